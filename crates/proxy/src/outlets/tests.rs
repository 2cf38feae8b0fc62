use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use insula_spec::outlets::{Order, Outlet, Reply, Transport, VERSION};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A server that greets everybody with one word.
fn greeter(word: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).unwrap();
    let place = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(word.as_bytes()).unwrap();
        }
    });
    place
}

/// All that a server says; empty if it breaks off.
fn heard(place: SocketAddr) -> String {
    let mut text = String::new();
    let mut stream = TcpStream::connect(place).unwrap();
    let _ = stream.read_to_string(&mut text);
    text
}

fn table() -> Table {
    Table::new(tokio::runtime::Handle::current(), Arc::new(Semaphore::new(16)))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_lead_where_they_are_told() {
    let table = table();
    let outer = TcpListener::bind(loopback()).unwrap();
    let host = outer.local_addr().unwrap();
    let outlet = move |to| Outlet { transport: Transport::Tcp, host, to };
    table.serve(outlet(greeter("one")), outer.into()).unwrap();
    tokio::task::spawn_blocking(move || {
        assert_eq!(heard(host), "one");
        assert!(table.turn(&outlet(greeter("two"))));
        assert_eq!(heard(host), "two");
        assert!(table.turn(&outlet(loopback())));
        assert_eq!(heard(host), "", "nowhere");
        assert_eq!(table.list(), [outlet(loopback())]);
        table.stop(&outlet(loopback()));
        assert!(!table.turn(&outlet(loopback())) && table.list().is_empty());
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_are_answered_to_who_sent_them() {
    let table = table();
    let inner = UdpSocket::bind(loopback()).unwrap();
    let to = inner.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        loop {
            let (count, from) = inner.recv_from(&mut buffer).unwrap();
            inner.send_to(&buffer[..count], from).unwrap();
        }
    });
    let outer = UdpSocket::bind(loopback()).unwrap();
    let host = outer.local_addr().unwrap();
    table.serve(Outlet { transport: Transport::Udp, host, to }, outer.into()).unwrap();
    tokio::task::spawn_blocking(move || {
        let clients = [(); 2].map(|()| UdpSocket::bind(loopback()).unwrap());
        for (client, word) in clients.iter().zip([b"a", b"b"]) {
            client.send_to(word, host).unwrap();
        }
        for (client, word) in clients.iter().zip([b"a", b"b"]) {
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut buffer = [0; 16];
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (1, host));
            assert_eq!(&buffer[..1], word);
        }
        table.clear();
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_obeyed_until_the_end() {
    let folder = std::env::temp_dir().join(format!("insula-outlets-{}", insula_base::random_hex(8)));
    let listener = UnixListener::bind(&folder).unwrap();
    let table = table();
    let obeying = tokio::task::spawn_blocking(move || control::obey(&listener, &table));
    let asked = tokio::task::spawn_blocking(move || {
        let ask = |stream: &mut UnixStream, order: &Order| -> Reply {
            let text = serde_json::to_vec(order).unwrap();
            stream.write_all(&(text.len() as u32).to_be_bytes()).unwrap();
            stream.write_all(&text).unwrap();
            let mut head = [0; 4];
            stream.read_exact(&mut head).unwrap();
            let mut reply = vec![0; u32::from_be_bytes(head) as usize];
            stream.read_exact(&mut reply).unwrap();
            serde_json::from_slice(&reply).unwrap()
        };
        let mut stream = UnixStream::connect(&folder).unwrap();
        let listed = ask(&mut stream, &Order::List);
        assert_eq!(listed, Reply::List { version: VERSION, outlets: Vec::new() });
        let outlet = Outlet { transport: Transport::Tcp, host: loopback(), to: loopback() };
        // A daemon that is killed in the middle of a word, and the next one.
        stream.write_all(&[0, 0]).unwrap();
        drop(stream);
        let mut stream = UnixStream::connect(&folder).unwrap();
        for order in [Order::Serve(vec![outlet]), Order::Turn(vec![outlet])] {
            assert!(matches!(ask(&mut stream, &order), Reply::Refused { .. }), "{order:?}");
        }
        assert_eq!(ask(&mut stream, &Order::Stop(vec![outlet])), Reply::Done);
        assert_eq!(ask(&mut stream, &Order::End), Reply::Ended);
        std::fs::remove_file(&folder).unwrap();
    });
    asked.await.unwrap();
    obeying.await.unwrap().unwrap();
}
