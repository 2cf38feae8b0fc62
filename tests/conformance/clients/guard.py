"""An authorization plugin in Docker's protocol: guard.py SOCKET MODE-FILE LOG.

What it does is read from the mode file at each question; each question is a line of the log.
"""
import json
import os
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler

SOCKET, MODE, LOG = sys.argv[1:]


def verdict(mode, call, question):
    creates = question["RequestUri"].split("?")[0].endswith("/containers/create")
    if mode == "deny" and creates and call == "AuthZReq":
        return {"Allow": False, "Msg": "no creations"}
    if mode == "deny-answers" and call == "AuthZRes":
        return {"Allow": False, "Msg": "no answers"}
    if mode == "fails":
        return {"Allow": True, "Err": "out of order"}
    return {"Allow": True}


class Guard(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "daemon"

    def log_message(self, *_):
        pass

    def say(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/Plugin.Activate":
            return self.say(b'{"Implements": ["authz"]}')
        question = json.loads(body)
        call = self.path.split(".")[-1]
        with open(LOG, "a") as log:
            log.write(json.dumps({"Call": call, **question}) + "\n")
        mode = open(MODE).read()
        if mode == "hang":
            time.sleep(3600)
        elif mode == "dies":
            os._exit(3)
        elif mode == "rubbish":
            self.wfile.write(b"\x00\xff rubbish\r\n\r\n" * 100)
            self.close_connection = True
        elif mode == "no-json":
            self.say(b"yes")
        elif mode == "no-verdict":
            self.say(b"{}")
        elif mode == "ill-typed":
            self.say(b'{"Allow": "true"}')
        elif mode == "status":
            self.say(b'{"Allow": true}', 500)
        else:
            self.say(json.dumps(verdict(mode, call, question)).encode())


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if os.path.exists(SOCKET):
    os.remove(SOCKET)
Server(SOCKET, Guard).serve_forever()
