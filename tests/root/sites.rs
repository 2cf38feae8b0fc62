//! Host names that lead to containers: `--publish-host`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use insula_tests::{Daemon, Outcome, daemon, holds, own_loopback, text};

/// A daemon whose host names are served at an address of the test's own.
struct Served {
    daemon: Daemon,
    http: String,
    https: String,
}

impl Served {
    fn new(mut daemon: Daemon) -> Self {
        assert_eq!(daemon.stop(), Some(0));
        // An address for each process of tests, ports for each test.
        static TESTS: AtomicU16 = AtomicU16::new(0);
        let address = own_loopback();
        let port = 8000 + 2 * TESTS.fetch_add(1, Ordering::Relaxed);
        let (http, https) = (format!("{address}:{port}"), format!("{address}:{}", port + 1));
        let mut served = Self { daemon, http, https };
        served.restart();
        served
    }

    fn restart(&mut self) {
        let certificates = self.certificates();
        self.daemon.restart_with(&[
            "--publish-host-http",
            &self.http,
            "--publish-host-https",
            &self.https,
            "--publish-host-certs",
            text(&certificates),
        ]);
    }

    fn certificates(&self) -> PathBuf {
        let folder = self.daemon.folder().join("certs");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A web server whose page says who it is.
    fn server(&self, name: &str, flags: &[&str]) -> String {
        let script = format!("mkdir /www; echo {name} >/www/index.html; exec httpd -f -p 80 -h /www");
        self.daemon.detached(&[&["--init", "--name", name], flags].concat(), &script)
    }

    /// What curl gets of a host name.
    fn curl(&self, url: &str, flags: &[&str]) -> Outcome {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--noproxy", "*", "-w", "|%{http_code}|%{http_version}"]);
        for place in [format!(":80:{}", self.http), format!(":443:{}", self.https)] {
            command.args(["--connect-to", &place]);
        }
        command.args(flags).arg(url);
        Outcome::of(&mut command, b"")
    }

    fn page(&self, name: &str) -> String {
        self.curl(&format!("http://{name}/"), &[]).stdout.replace('\n', "")
    }

    fn reaches(&self, name: &str, page: &str) {
        holds(&format!("{name} leads to {page}"), || self.page(name) == format!("{page}|200|1.1"));
    }

    fn proxy(&self) -> Option<u32> {
        let needle = format!("{}/proxy/empty", self.daemon.instance().run().display());
        self.daemon.leaks().processes.into_iter().find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&needle))
        })
    }
}

#[test]
fn a_host_name_leads_to_its_containers_whatever_becomes_of_the_daemon() {
    let mut served = Served::new(daemon!());
    assert_eq!(served.proxy(), None, "off until first used");
    let one = ["--publish-host", "one.example", "--publish-host", "both.example/http"];
    served.server("one", &one);
    let names = ["both.example:80/http", "one.example:80"];
    assert_eq!(served.daemon.inspect("one", "/NetworkSettings/HostNames"), serde_json::json!(names));
    let ps = served.daemon.insula(&["ps", "--format", "{{.Ports}}"]).ok().to_owned();
    assert_eq!(ps, "both.example->80/http, one.example->80/http");
    let port = |words: &[&str]| served.daemon.insula(&[&["port", "one"], words].concat()).ok().to_owned();
    assert_eq!(port(&[]), "80/http -> both.example\n80/http -> one.example");
    assert_eq!(port(&["80/http"]), "both.example\none.example");
    served.server("two", &["--label", "insula.http.host=both.example:80/http,*.two.example"]);
    served.reaches("one.example", "one");
    served.reaches("www.two.example", "two");
    holds("both answer", || {
        let mut pages = [served.page("both.example"), served.page("both.example")];
        pages.sort();
        pages == ["one|200|1.1", "two|200|1.1"]
    });
    assert_eq!(served.page("three.example"), "insula: no container is published as three.example|404|1.1");
    let proxy = served.proxy().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{proxy}/status")).unwrap();
    for line in ["Uid:\t65534\t65534\t65534\t65534", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }

    served.daemon.kill();
    assert_eq!(served.page("one.example"), "one|200|1.1");
    served.restart();
    assert_eq!(served.proxy(), Some(proxy), "the next daemon finds it again");
    // What changes from now on is the next daemon's word.
    served.daemon.insula(&["stop", "-t", "1", "one"]).ok();
    holds("who has stopped is left out", || served.page("one.example").ends_with("|503|1.1"));
    served.reaches("both.example", "two");
    served.daemon.insula(&["start", "one"]).ok();
    served.reaches("one.example", "one");
    served.daemon.insula(&["pause", "two"]).ok();
    served.reaches("both.example", "one");
    served.daemon.insula(&["unpause", "two"]).ok();

    // One that dies is started again, by itself.
    let pid = rustix::process::Pid::from_raw(proxy as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    served.reaches("one.example", "one");
    served.daemon.insula(&["rm", "-f", "one", "two"]).ok();
    holds("it ends with the last host name", || served.proxy().is_none());
}

#[test]
fn unhealthy_containers_are_left_out() {
    let served = Served::new(daemon!());
    let check = ["--health-cmd", "test ! -e /ill", "--health-interval", "200ms", "--health-retries", "1"];
    let flags = [&["--publish-host", "a.example"][..], &check].concat();
    served.server("one", &flags);
    served.server("two", &flags);
    for name in ["one", "two"] {
        holds("it is healthy", || served.daemon.inspect(name, "/State/Health/Status") == "healthy");
    }
    served.daemon.exec("one", "touch /ill").ok();
    holds("it is unhealthy", || served.daemon.inspect("one", "/State/Health/Status") == "unhealthy");
    holds("only the healthy one answers", || (0..4).all(|_| served.page("a.example") == "two|200|1.1"));
    served.daemon.exec("one", "rm /ill").ok();
    served.reaches("a.example", "one");
}

#[test]
fn certificates_are_taken_from_a_folder() {
    let served = Served::new(daemon!());
    let folder = served.certificates();
    let write = |name: &str, host: &str| {
        let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap();
        // The certificate last: a pair is complete when both are there.
        std::fs::write(folder.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.crt")), made.cert.pem()).unwrap();
    };
    write("a", "a.example");
    served.server("one", &["--publish-host", "a.example", "--publish-host", "b.example"]);
    served.reaches("b.example", "one");
    let trusted = folder.join("a.crt");
    let get = |url: &str, flags: &[&str]| {
        served.curl(url, &[&["--cacert", text(&trusted)], flags].concat()).stdout.replace('\n', "")
    };
    assert_eq!(get("https://a.example/", &["--http2"]), "one|200|2");
    assert_eq!(get("https://a.example/", &["--http1.1"]), "one|200|1.1");
    let other = get("https://a.example/", &["-H", "Host: b.example"]);
    assert_eq!(other, "insula: the certificate of this connection is not for b.example|421|2");
    let sent = served.curl("http://a.example/x", &["--http2-prior-knowledge", "-D-"]).stdout;
    let https = served.https.rsplit(':').next().unwrap();
    assert!(
        sent.contains(&format!("location: https://a.example:{https}/x\r\n")) && sent.ends_with("|301|2"),
        "{sent}"
    );
    assert_eq!(served.curl("http://b.example/", &["--http2-prior-knowledge"]).stdout, "one\n|200|2");
    served.curl("https://b.example/", &["-k"]).exits(35);
    write("b", "b.example");
    let trusted = folder.join("b.crt");
    let url = "https://b.example/";
    holds("a new certificate is used", || {
        served.curl(url, &["--cacert", text(&trusted)]).stdout == "one\n|200|2"
    });
}

#[test]
fn connections_change_their_protocol_and_last() {
    let mut served = Served::new(daemon!());
    let script = r#"printf '#!/bin/sh
while read -r line; do [ "$line" = "$(printf "\r")" ] && break; done
printf "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"
exec cat
' >/echo; chmod +x /echo; exec nc -ll -p 8000 -e /echo"#;
    served.daemon.detached(&["--init", "--expose", "8000", "--publish-host", "ws.example"], script);
    let head = b"GET / HTTP/1.1\r\nHost: ws.example\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    let mut answer = String::new();
    let mut stream = insula_tests::eventually("it changes its protocol", || {
        let mut stream = TcpStream::connect(&served.http).ok()?;
        stream.write_all(head).ok()?;
        answer.clear();
        while !answer.ends_with("\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            answer.push(byte[0].into());
        }
        answer.starts_with("HTTP/1.1 101").then_some(stream)
    });
    let mut echoes = |line: &str| {
        stream.write_all(line.as_bytes()).unwrap();
        let mut echoed = vec![0; line.len()];
        stream.read_exact(&mut echoed).unwrap();
        assert_eq!(echoed, line.as_bytes());
    };
    echoes("hello\n");
    served.daemon.kill();
    echoes("without a daemon\n");
    served.restart();
    echoes("and with the next\n");
}

#[test]
fn no_request_is_lost_when_containers_come_and_go() {
    let served = Served::new(daemon!());
    let folder = served.daemon.folder().join("gates");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mount = format!("{}:/gates", text(&folder));
    let slow = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\ntouch /gates/asked\n\
        until test -e /gates/open; do usleep 50000; done\necho late\n";
    std::fs::write(folder.join("slow"), slow).unwrap();
    let script = "mkdir -p /www/cgi-bin; cp /gates/slow /www/cgi-bin/slow; chmod +x /www/cgi-bin/slow; \
        echo one >/www/index.html; exec httpd -f -p 80 -h /www";
    served.daemon.detached(
        &[
            "--init",
            "--name",
            "one",
            "-v",
            &mount,
            "--publish-host",
            "a.example",
            "--publish-host",
            "b.example",
        ],
        script,
    );
    served.reaches("a.example", "one");
    std::thread::scope(|scope| {
        let late = scope.spawn(|| served.curl("http://a.example/cgi-bin/slow", &[]).stdout);
        insula_tests::eventually("it is asked", || folder.join("asked").exists().then_some(()));
        let stop = scope.spawn(|| served.daemon.insula(&["stop", "-t", "60", "one"]).ok().to_owned());
        holds("nobody new is led there", || served.page("a.example").ends_with("|503|1.1"));
        std::fs::write(folder.join("open"), "").unwrap();
        assert_eq!(late.join().unwrap(), "late\n|200|1.1");
        assert_eq!(stop.join().unwrap(), "one");
    });
    served.server("two", &["--publish-host", "b.example"]);
    served.reaches("b.example", "two");
    // One after the other is replaced under load.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ask = || {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                let page = served.page("b.example");
                assert!(["one|200|1.1", "two|200|1.1", "three|200|1.1"].contains(&&*page), "{page}");
                count += 1;
            }
            count
        };
        let clients = [scope.spawn(ask), scope.spawn(ask)];
        let end = insula_tests::OnDrop(|| done.store(true, Ordering::Relaxed));
        // Each has a turn before it has to stand in for others.
        served.daemon.insula(&["start", "one"]).ok();
        served.reaches("b.example", "one");
        served.daemon.insula(&["stop", "two"]).ok();
        served.server("three", &["--publish-host", "b.example"]);
        served.reaches("b.example", "three");
        served.daemon.insula(&["restart", "one"]).ok();
        served.daemon.insula(&["rm", "two"]).ok();
        drop(end);
        for client in clients {
            assert!(client.join().unwrap() > 0);
        }
    });
}

#[test]
fn what_cannot_be_served_is_said_first() {
    let served = Served::new(daemon!());
    let refused = |flags: &[&str], why: &str| {
        served.daemon.sh(flags, "true").fails(125, &[why]);
    };
    refused(&["--publish-host", "a b"], "invalid host name \"a b\"");
    refused(&["--publish-host", "a:0"], "NAME[:PORT][/PROTOCOL] is expected");
    refused(&["--label", "insula.http.host=a/udp"], "the protocol is http, h2c or tls");
    refused(&["--network", "none", "--publish-host", "a"], "the network mode none");
    refused(
        &["--expose", "81", "--expose", "82", "--publish-host", "a"],
        "say which of them a is, as in a:81",
    );
    let taken = std::net::TcpListener::bind(&served.https).unwrap();
    refused(&["--publish-host", "a"], &format!("{} failed: port is already allocated", served.https));
    drop(taken);
    let names: Vec<String> = (0..1000).map(|number| format!("site{number}.example")).collect();
    served.server("many", &["--label", &format!("insula.http.host={}", names.join(","))]);
    served.reaches("site0.example", "many");
    served.reaches("site999.example", "many");
    refused(&["--publish-host", "site7.example/tls"], "is served by container many with another protocol");
}
