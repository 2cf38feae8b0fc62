//! The name server of containers, beside a resolver of the test's own.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};

use insula_tests::{Lan, daemon, holds, is_root, skip, text};

/// `example.org.`, class IN, type A.
const QUERY: &str = r"\000\007\001\000\000\001\000\000\000\000\000\000\007example\003org\000\000\001\000\001";
const ELSEWHERE: [u8; 4] = [203, 0, 113, 7];

/// The same with one address for an answer, whatever was asked.
fn answered(query: &[u8]) -> Vec<u8> {
    let mut reply = query.to_vec();
    (reply[2], reply[3], reply[7]) = (0x81, 0x80, 1);
    // The name of the question (RFC 1035, 4.1.4), type A, class IN, a minute, four bytes.
    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    reply.extend(ELSEWHERE);
    reply
}

/// A resolver on the loopback of the host, for as long as the process lasts.
fn resolve(lan: &Lan) {
    let place = ("127.0.0.1", 53);
    let (udp, tcp) = lan.inside(|| (UdpSocket::bind(place).unwrap(), TcpListener::bind(place).unwrap()));
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((count, from)) = udp.recv_from(&mut query) {
            // Those of IPv6 are not known here.
            let kind = query[count - 3];
            let mut reply = answered(&query[..count]);
            if kind != 1 {
                (reply[3], reply[7]) = (0x80, 0);
                reply.truncate(count);
            }
            let _ = udp.send_to(&reply, from);
        }
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().map_while(Result::ok) {
            let (mut length, mut query) = ([0; 2], [0; 512]);
            let whole = stream.read_exact(&mut length).ok().map(|()| usize::from(u16::from_be_bytes(length)));
            let Some(count) = whole.filter(|count| stream.read_exact(&mut query[..*count]).is_ok()) else {
                continue;
            };
            let reply = answered(&query[..count]);
            let _ = stream.write_all(&(reply.len() as u16).to_be_bytes());
            let _ = stream.write_all(&reply);
        }
    });
}

#[test]
fn what_is_no_container_is_asked_of_resolvers_on_the_hosts_loopback() {
    if !is_root() {
        return skip("root", "a host of the test's own needs namespaces");
    }
    let lan = Lan::new();
    resolve(&lan);
    let file = lan.path("resolv.conf");
    std::fs::write(&file, "nameserver 127.0.0.1\n").unwrap();
    lan.lines(&format!("mount --bind {} /etc/resolv.conf", text(&file)));
    let mut daemon = lan.daemon();
    daemon.insula(&["network", "create", "blue"]).ok();
    let asker = daemon.sleeper(&["--network", "blue", "--dns-search", "blue", "--dns-option", "attempts:1"]);
    let seen = daemon.exec(&asker, "cat /etc/resolv.conf");
    seen.shows(&["nameserver 127.0.0.11", "search blue", "attempts:1"]);
    let found = || daemon.exec(&asker, "nslookup example.org 127.0.0.11").stdout.contains("203.0.113.7");
    holds("by UDP", found);
    let by_tcp = format!(r"printf '\000\035{QUERY}' | nc -w 20 127.0.0.11 53 | od -An -v -tu1 | xargs echo");
    holds("by TCP", || daemon.exec(&asker, &by_tcp).stdout.trim().ends_with("203 0 113 7"));
    daemon.kill();
    daemon.restart();
    holds("by the next daemon", || {
        daemon.exec(&asker, "nslookup example.org 127.0.0.11").stdout.contains("203.0.113.7")
    });
}

#[test]
fn containers_of_one_name_take_turns() {
    let daemon = daemon!();
    daemon.insula(&["network", "create", "blue"]).ok();
    let wanted: BTreeSet<String> = (0..3)
        .map(|_| {
            let id = daemon.sleeper(&["--network", "blue", "--network-alias", "many"]);
            let address = daemon.inspect(&id, "/NetworkSettings/Networks/blue/IPAddress");
            address.as_str().unwrap().to_owned()
        })
        .collect();
    let asker = daemon.sleeper(&["--network", "blue"]);
    // The server's own address stands first.
    let first = "nslookup -type=a many 127.0.0.11 | sed -n 's/^Address: //p' | head -n 1";
    let mut seen = BTreeSet::new();
    holds("each stands first in its turn", || {
        seen.insert(daemon.exec(&asker, first).ok().to_owned());
        seen == wanted
    });
}
