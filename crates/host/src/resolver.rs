//! The sockets of a name server inside a network namespace, at 127.0.0.11 port 53.
//!
//! The sockets themselves are bound to ports that the kernel chooses, and a table in the namespace leads
//! port 53 of that one address to them: a container that is a name server itself may have port 53 of
//! all its addresses.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};

use insula_sys::netlink::{Family, Socket};

use crate::netlink::message::{Batch, CREATE};
use crate::netlink::{Error, Routes, inside};

/// Where containers find their name server.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;

const TABLE: &str = "insula-dns";
const CHAIN: &str = "output";
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const NEWRULE: u16 = SUBSYSTEM | 6;
const APPEND: u16 = 0x800;
/// `nfgenmsg` of a batch, and of NFPROTO_IPV4.
const FRAME: [u8; 4] = [0, 0, 0, 10];
const IPV4: [u8; 4] = [2, 0, 0, 0];
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Both sockets, of the namespace that they were made in.
#[derive(Debug)]
pub struct Sockets {
    pub udp: OwnedFd,
    /// Listens.
    pub tcp: OwnedFd,
}

/// Binds them in `namespace`, whose loopback comes up for it.
pub fn bind(namespace: BorrowedFd<'_>) -> Result<Sockets, Error> {
    inside(namespace, || {
        Routes::open()?.configure(&[])?;
        let refused = |call| move |source: io::Error| Error::Socket { call, source };
        let udp = UdpSocket::bind((ADDRESS, 0)).map_err(refused("bind a name server's socket"))?;
        let tcp = TcpListener::bind((ADDRESS, 0)).map_err(refused("listen for a name server"))?;
        for error in [udp.set_nonblocking(true), tcp.set_nonblocking(true)] {
            error.map_err(refused("prepare a name server's socket"))?;
        }
        let port = |address: io::Result<SocketAddr>| {
            address.map(|address| address.port()).map_err(refused("ask for a name server's port"))
        };
        redirect(&[(UDP, port(udp.local_addr())?), (TCP, port(tcp.local_addr())?)])?;
        Ok(Sockets { udp: udp.into(), tcp: tcp.into() })
    })?
}

/// Leads port 53 to the sockets' own ports.
fn redirect(ports: &[(u8, u16)]) -> Result<(), Error> {
    const ACTION: &str = "lead a name server's port to its socket by table";
    let mut batch = Batch::new();
    batch.begin(BATCH_BEGIN, 0, &FRAME, ACTION, TABLE);
    batch.begin(NEWTABLE, CREATE, &IPV4, ACTION, TABLE);
    batch.text(1, TABLE);
    batch.begin(NEWCHAIN, CREATE, &IPV4, ACTION, TABLE);
    batch.text(1, TABLE);
    batch.text(3, CHAIN);
    let hook = batch.nest(4);
    // NF_INET_LOCAL_OUT, NF_IP_PRI_NAT_DST.
    batch.attribute(1, &3u32.to_be_bytes());
    batch.attribute(2, &(-100i32).to_be_bytes());
    batch.close(&hook);
    batch.text(7, "nat");
    for (proto, port) in ports {
        batch.begin(NEWRULE, CREATE | APPEND, &IPV4, ACTION, TABLE);
        batch.text(1, TABLE);
        batch.text(2, CHAIN);
        let list = batch.nest(4);
        rule(&mut batch, *proto, SocketAddrV4::new(ADDRESS, *port));
        batch.close(&list);
    }
    batch.begin(BATCH_END, 0, &FRAME, ACTION, TABLE);
    let socket = Socket::open(Family::Netfilter)
        .map_err(|source| Error::Socket { call: "open a netfilter socket", source })?;
    batch.run(&socket)
}

/// `ip daddr 127.0.0.11 meta l4proto PROTO th dport 53 dnat to TARGET`.
fn rule(batch: &mut Batch<'_>, proto: u8, target: SocketAddrV4) {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    const L4PROTO: u32 = 16;
    let address = target.ip().octets();
    expression(batch, "payload", &[(1, 1), (2, NETWORK), (3, 16), (4, 4)], None);
    expression(batch, "cmp", &[(1, 1), (2, 0)], Some((3, &address)));
    expression(batch, "meta", &[(1, 1), (2, L4PROTO)], None);
    expression(batch, "cmp", &[(1, 1), (2, 0)], Some((3, &[proto])));
    expression(batch, "payload", &[(1, 1), (2, TRANSPORT), (3, 2), (4, 2)], None);
    expression(batch, "cmp", &[(1, 1), (2, 0)], Some((3, &PORT.to_be_bytes())));
    expression(batch, "immediate", &[(1, 1)], Some((2, &address)));
    expression(batch, "immediate", &[(1, 2)], Some((2, &target.port().to_be_bytes())));
    // Destination, IPv4, address and port from the two registers.
    expression(batch, "nat", &[(1, 1), (2, 2), (3, 1), (5, 2)], None);
}

/// One expression of a rule: attributes that are numbers, and one that is a value.
fn expression(batch: &mut Batch<'_>, name: &str, numbers: &[(u16, u32)], value: Option<(u16, &[u8])>) {
    let element = batch.nest(1);
    batch.text(1, name);
    let data = batch.nest(2);
    for (kind, number) in numbers {
        batch.attribute(*kind, &number.to_be_bytes());
    }
    if let Some((kind, bytes)) = value {
        let nest = batch.nest(kind);
        batch.attribute(1, bytes);
        batch.close(&nest);
    }
    batch.close(&data);
    batch.close(&element);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::netlink::tests::{another, inside as within, isolated};

    #[test]
    fn queries_arrive_although_the_port_is_somebody_elses() {
        isolated(|| {
            let namespace = another();
            let sockets = bind(namespace.as_fd()).unwrap();
            let (udp, tcp) = (UdpSocket::from(sockets.udp), TcpListener::from(sockets.tcp));
            let client = within(&namespace, || {
                let own = UdpSocket::bind("0.0.0.0:53").unwrap();
                let listener = TcpListener::bind("0.0.0.0:53").unwrap();
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                client.connect("127.0.0.11:53").unwrap();
                client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                client.send(b"name?").unwrap();
                let stream = std::net::TcpStream::connect("127.0.0.11:53").unwrap();
                (client, stream, own, listener)
            });
            let mut buffer = [0; 16];
            let (count, from) = udp.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"name?");
            udp.send_to(b"address", from).unwrap();
            let count = client.0.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"address", "the answer comes from port 53");
            tcp.accept().unwrap();
        });
    }
}
