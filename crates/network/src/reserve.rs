//! Ports of the host, reserved by sockets that the daemon holds: another program or instance
//! that wants one gets `EADDRINUSE`, and so do we. Nothing is ever received on them, since the
//! firewall leads packets on before they get there.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, listen, socket_with, sockopt,
};

use insula_host::rootless;
use insula_spec::outlets::Transport;

use crate::{Error, PortRequest, Proto, PublishedPort};

/// Where ports are looked for when the kernel knows the protocol only by its rules, not by sockets.
const UNBOUND: std::ops::RangeInclusive<u16> = 49152..=65535;

/// How often and in what steps a port is tried again that is taken.
const INSTANTS: u32 = 5;
const INSTANT: Duration = Duration::from_millis(2);

/// A port that is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) published: PublishedPort,
    /// `None` where the kernel has no sockets of the protocol (SCTP is often left out), or where another program
    /// holds it for us (`networks::outlets`).
    pub(crate) socket: Option<OwnedFd>,
}

/// Ports of the kernel's choice that are tried when another address has not the same one free.
const CHOICES: usize = 20;

/// Reserves one port of what is asked for, on each address: one of either family if none is named and `v6`
/// says so. `held` says which are ours already.
pub(crate) fn reserve(
    request: &PortRequest,
    v6: bool,
    held: &dyn Fn(&PublishedPort) -> bool,
) -> Result<Vec<Reservation>, Error> {
    request.validate()?;
    let addresses = request.addresses(v6);
    let range = request.host_ports.clone().unwrap_or(0..=0);
    let (first, last) = (*range.start(), *range.end());
    let mut taken = addresses[0];
    let choices = if (first, last) == (0, 0) { CHOICES } else { 1 };
    for port in std::iter::repeat_n(range, choices).flatten() {
        let instants = if first == last { INSTANTS } else { 0 };
        match attempt_all(request, &addresses, port, held, instants) {
            Ok(found) => return Ok(found),
            Err((address, Errno::ADDRINUSE)) => taken = address,
            Err((address, Errno::ADDRNOTAVAIL)) => return Err(Error::NotOurAddress { address, port }),
            Err((address, errno)) => return Err(refused(address, port, request.proto, errno)),
        }
    }
    if first == last {
        let holder = holder(request.proto, first).unwrap_or_default();
        Err(Error::PortTaken { address: taken, port: first, proto: request.proto, holder })
    } else {
        Err(Error::PortsExhausted { address: addresses[0], first, last })
    }
}

/// Reserves a port again after a restart.
pub(crate) fn reserve_again(published: &PublishedPort) -> Result<Vec<Reservation>, Error> {
    let request = PortRequest {
        container_port: published.container_port,
        proto: published.proto,
        host_ip: Some(published.host_ip),
        host_ports: Some(published.host_port..=published.host_port),
    };
    reserve(&request, false, &|_| false)
}

/// A TCP socket that listens, for a program that serves the host itself. [`Error::PortTaken`] says who has the port.
pub fn listen_at(place: SocketAddr) -> Result<OwnedFd, Error> {
    const BACKLOG: i32 = 1024;
    let attempt = || {
        if let Some(outside) = rootless::outside() {
            return outside.bind(Transport::Tcp, place);
        }
        let socket = open(Proto::Tcp, place.ip())?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &place)?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    let (address, port) = (place.ip(), place.port());
    for _ in 0..INSTANTS {
        match attempt() {
            Err(Errno::ADDRINUSE) => std::thread::sleep(INSTANT),
            Ok(socket) => return Ok(socket),
            Err(Errno::ADDRNOTAVAIL) => return Err(Error::NotOurAddress { address, port }),
            Err(errno) => return Err(refused(address, port, Proto::Tcp, errno)),
        }
    }
    let holder = holder(Proto::Tcp, port).unwrap_or_default();
    Err(Error::PortTaken { address, port, proto: Proto::Tcp, holder })
}

fn refused(address: IpAddr, port: u16, proto: Proto, errno: Errno) -> Error {
    match errno {
        Errno::OPNOTSUPP if proto == Proto::Sctp => {
            Error::Unsupported { what: "publishing sctp ports from an ordinary user's engine".to_owned() }
        }
        Errno::ACCESS => Error::PrivilegedPort { address, port, proto },
        _ => Error::Reserve { address, port, proto, source: errno.into() },
    }
}

/// The same port on all addresses, or the address that has it not.
fn attempt_all(
    request: &PortRequest,
    addresses: &[IpAddr],
    port: u16,
    held: &dyn Fn(&PublishedPort) -> bool,
    instants: u32,
) -> Result<Vec<Reservation>, (IpAddr, Errno)> {
    let mut reserved: Vec<Reservation> = Vec::with_capacity(addresses.len());
    for address in addresses {
        // What the kernel chose for the first.
        let port = reserved.first().map_or(port, |first| first.published.host_port);
        let found = attempt_patiently(request, *address, port, held, instants);
        reserved.push(found.map_err(|errno| (*address, errno))?);
    }
    Ok(reserved)
}

/// A program that this process starts has a copy of every descriptor until it is executed, so a port that was
/// given up a moment ago may still be taken for an instant.
fn attempt_patiently(
    request: &PortRequest,
    address: IpAddr,
    port: u16,
    held: &dyn Fn(&PublishedPort) -> bool,
    instants: u32,
) -> Result<Reservation, Errno> {
    for _ in 0..instants {
        match attempt(request, address, port, held) {
            Err(Errno::ADDRINUSE) => std::thread::sleep(INSTANT),
            result => return result,
        }
    }
    attempt(request, address, port, held)
}

fn attempt(
    request: &PortRequest,
    address: IpAddr,
    port: u16,
    held: &dyn Fn(&PublishedPort) -> bool,
) -> Result<Reservation, Errno> {
    let published = |host_port| PublishedPort {
        container_port: request.container_port,
        proto: request.proto,
        host_ip: address,
        host_port,
    };
    if port != 0 && held(&published(port)) {
        return Err(Errno::ADDRINUSE);
    }
    match hold(request.proto, SocketAddr::new(address, port)) {
        Ok((socket, port)) => Ok(Reservation { published: published(port), socket: Some(socket) }),
        Err(Errno::PROTONOSUPPORT) => {
            let mut candidates = if port == 0 { UNBOUND } else { port..=port };
            let free = candidates.find(|port| !held(&published(*port))).ok_or(Errno::ADDRINUSE)?;
            Ok(Reservation { published: published(free), socket: None })
        }
        Err(errno) => Err(errno),
    }
}

/// Binds a socket and returns it with its port.
fn hold(proto: Proto, wanted: SocketAddr) -> Result<(OwnedFd, u16), Errno> {
    if let Some(outside) = rootless::outside() {
        let socket = outside.bind(proto.transport().ok_or(Errno::OPNOTSUPP)?, wanted)?;
        let name: SocketAddr = getsockname(&socket)?.try_into()?;
        return Ok((socket, name.port()));
    }
    let socket = open(proto, wanted.ip())?;
    match bind(&socket, &wanted) {
        // It may be that nobody but connections that ended a moment ago have the port. To tell,
        // one must be as tolerant as servers are, and listen as they do.
        Err(Errno::ADDRINUSE) if proto == Proto::Tcp => {
            let socket = open(proto, wanted.ip())?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &wanted)?;
            listen(&socket, 0)?;
            Ok((socket, wanted.port()))
        }
        Err(errno) => Err(errno),
        Ok(()) => {
            let name: SocketAddr = getsockname(&socket)?.try_into()?;
            Ok((socket, name.port()))
        }
    }
}

fn open(proto: Proto, address: IpAddr) -> Result<OwnedFd, Errno> {
    let (kind, protocol) = match proto {
        Proto::Tcp => (SocketType::STREAM, ipproto::TCP),
        Proto::Udp => (SocketType::DGRAM, ipproto::UDP),
        Proto::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol))?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

/// The process that has a port of this host, as far as it can be seen: its name and id.
fn holder(proto: Proto, port: u16) -> Option<String> {
    let tables: &[&str] = match proto {
        Proto::Tcp => &["tcp", "tcp6"],
        Proto::Udp => &["udp", "udp6"],
        Proto::Sctp => return None,
    };
    let inodes: Vec<String> = tables
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok())
        .flat_map(|text| text.lines().skip(1).filter_map(|line| inode(line, proto, port)).collect::<Vec<_>>())
        .collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let holds = |pid: &u32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        targets.any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
    };
    let pid = pids.filter(|_| !links.is_empty()).find(holds)?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (pid {pid})", name.trim()))
}

/// The socket of a line of `/proc/net/tcp` or `udp`, if it has the port: listening, or bound for UDP.
fn inode(line: &str, proto: Proto, port: u16) -> Option<String> {
    const LISTENING: &str = "0A";
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let found = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
    let right = found == port && (proto == Proto::Udp || *fields.get(3)? == LISTENING);
    right.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn request(proto: Proto, ports: std::ops::RangeInclusive<u16>) -> PortRequest {
        let host_ip = Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
        PortRequest { container_port: 80, proto, host_ip, host_ports: Some(ports) }
    }

    fn take(proto: Proto, ports: std::ops::RangeInclusive<u16>) -> Result<Reservation, Error> {
        Ok(reserve(&request(proto, ports), false, &|_| false)?.remove(0))
    }

    #[test]
    fn both_families_have_the_same_port() {
        let everywhere = PortRequest { host_ip: None, ..request(Proto::Tcp, 0..=0) };
        let both = reserve(&everywhere, true, &|_| false).unwrap();
        let port = both[0].published.host_port;
        let all: Vec<_> = both.iter().map(|one| one.published.host_ip.to_string()).collect();
        assert_eq!((all, both[1].published.host_port), (vec!["0.0.0.0".to_owned(), "::".to_owned()], port));
        assert!(TcpListener::bind(("::1", port)).is_err());
        drop(both);
        let theirs = TcpListener::bind(("::1", port)).unwrap();
        let again = PortRequest { host_ports: Some(port..=port), ..everywhere };
        let error = reserve(&again, true, &|_| false).unwrap_err().to_string();
        assert!(error.starts_with(&format!("Bind for [::]:{port} failed: port is already")), "{error}");
        assert_eq!(reserve(&again, false, &|_| false).unwrap().len(), 1);
        drop(theirs);
    }

    #[test]
    fn a_reserved_port_is_nobody_elses() {
        for proto in [Proto::Tcp, Proto::Udp] {
            let first = take(proto, 0..=0).unwrap();
            let port = first.published.host_port;
            assert_ne!(port, 0);
            let error = take(proto, port..=port).unwrap_err().to_string();
            let expected = format!("Bind for 127.0.0.1:{port} failed: port is already allocated");
            assert!(error.starts_with(&expected), "{error}");
            match proto {
                Proto::Udp => assert!(UdpSocket::bind(("127.0.0.1", port)).is_err()),
                _ => assert!(TcpListener::bind(("127.0.0.1", port)).is_err()),
            }
            drop(first);
            let published = take(proto, port..=port).unwrap().published;
            assert_eq!(reserve_again(&published).unwrap()[0].published, published);
        }
    }

    #[test]
    fn a_port_is_listened_at_once() {
        let first = TcpListener::from(listen_at(([127, 0, 0, 1], 0).into()).unwrap());
        let place = first.local_addr().unwrap();
        let error = listen_at(place).unwrap_err();
        assert!(matches!(error, Error::PortTaken { port, .. } if port == place.port()), "{error}");
        drop(first);
        listen_at(place).unwrap();
    }

    #[test]
    fn the_first_free_port_of_a_range_is_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = take(Proto::Tcp, port..=port).unwrap_err();
        let own = format!("(pid {})", std::process::id());
        assert!(error.to_string().ends_with(&own), "{error}");
        let found = take(Proto::Tcp, port..=port.saturating_add(50)).unwrap();
        assert!(found.published.host_port > port);
    }

    #[test]
    fn connections_that_ended_do_not_keep_a_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        drop(listener.accept().unwrap());
        client.read_to_end(&mut Vec::new()).unwrap();
        drop(client);
        drop(listener);
        let found = take(Proto::Tcp, port..=port).unwrap();
        assert!(TcpListener::bind(("127.0.0.1", port)).is_err());
        drop(found);
    }

    #[test]
    fn addresses_of_others_are_refused() {
        let host_ip = Some("192.0.2.77".parse().unwrap());
        let error =
            reserve(&PortRequest { host_ip, ..request(Proto::Tcp, 80..=80) }, false, &|_| false).unwrap_err();
        assert!(matches!(error, Error::NotOurAddress { port: 80, .. }), "{error}");
    }

    #[test]
    fn sctp_is_reserved_in_our_own_books_at_least() {
        let first = take(Proto::Sctp, 0..=0).unwrap().published;
        let same = request(Proto::Sctp, first.host_port..=first.host_port);
        let error = reserve(&same, false, &|port| port.host_port == first.host_port).unwrap_err();
        assert!(matches!(error, Error::PortTaken { .. }), "{error}");
    }
}
