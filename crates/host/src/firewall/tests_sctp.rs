//! Ports of SCTP. Many kernels translate its packets and have no sockets of it; the tests of guests run this in one
//! that has.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, connect, ipproto, listen, socket};

use super::Forward;
use super::tests::lan;
use crate::netlink::tests::{inside, isolated};

/// One-to-one sockets (RFC 6458, 4) are used as those of TCP are.
fn open() -> OwnedFd {
    socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)).unwrap()
}

/// Says to whoever connects who that is.
fn serve(namespace: &File, address: &'static str) {
    let listener = inside(namespace, move || {
        let socket = open();
        bind(&socket, &address.parse::<SocketAddr>().unwrap()).unwrap();
        listen(&socket, 8).unwrap();
        TcpListener::from(socket)
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            write!(stream, "hello {}", from.ip()).unwrap();
        }
    });
}

fn greeting(address: &str) -> String {
    let socket = open();
    connect(&socket, &address.parse::<SocketAddr>().unwrap()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut text = [0; 64];
    let count = stream.read(&mut text).unwrap();
    String::from_utf8_lossy(&text[..count]).into_owned()
}

#[test]
fn a_port_is_published_by_sctp() {
    let required = std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default();
    if let Err(error) = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)) {
        assert!(!required.contains("sctp"), "sctp is required: {error}");
        eprintln!("skipped: this kernel has no sockets of SCTP");
        return;
    }
    isolated(|| {
        let lan = lan();
        serve(&lan.first, "0.0.0.0:80");
        let port = |address: Option<&str>, port| Forward {
            proto: 132,
            address: address.map(|address| address.parse().unwrap()),
            port,
            to: [172, 30, 0, 2].into(),
            to_port: 80,
        };
        lan.firewall.add(&[port(None, 8080), port(Some("127.0.0.1"), 8081)], &[]).unwrap();
        let elsewhere = inside(&lan.elsewhere, || greeting("198.51.100.1:8080"));
        assert_eq!(elsewhere, "hello 198.51.100.2", "the client's address is kept");
        assert_eq!(greeting("127.0.0.1:8080"), "hello 172.30.0.1");
        assert_eq!(greeting("127.0.0.1:8081"), "hello 172.30.0.1");
        assert_eq!(inside(&lan.second, || greeting("172.30.0.1:8080")), "hello 172.30.0.1");
    });
}
