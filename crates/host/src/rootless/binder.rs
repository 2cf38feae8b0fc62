//! The part of the daemon that stays outside: it binds sockets on the host and hands them in. A socket belongs to the
//! network namespace that it was made in, whoever holds it. It ends with the daemon.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_spec::outlets::Transport;
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, socketpair, sockopt,
};
use serde::{Deserialize, Serialize};

use super::error::{Context, Error};

const BACKLOG: i32 = 1024;
/// An order is shorter.
const LONGEST: usize = 256;

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    transport: Transport,
    address: SocketAddr,
}

/// Clones it; what it is asked by.
pub(super) fn start() -> Result<OwnedFd, Error> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .context("socketpair", "for the binder of ports")?;
    match process::clone(CloneFlags::empty(), None).context("clone3", "the binder of ports")? {
        Clone::Parent { .. } => Ok(ours),
        Clone::Child => {
            drop(ours);
            process::ignore_endings();
            let settled = process::detach()
                .and_then(|()| rustix::stdio::dup2_stderr(rustix::stdio::stdout()))
                .map_err(std::io::Error::from)
                .and_then(|()| process::set_title(c"insula: ports"));
            process::close_from_3_but(&[theirs.as_fd()]);
            if settled.is_ok() {
                serve(theirs.as_fd());
            }
            process::exit_now(0)
        }
    }
}

/// Until nobody asks any more.
fn serve(socket: BorrowedFd<'_>) {
    let mut buffer = [0; LONGEST];
    loop {
        let length = match insula_sys::socket::receive(socket, &mut buffer) {
            Ok((0, _)) | Err(_) => return,
            Ok((length, _)) => length,
        };
        let made = serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::INVAL).and_then(make);
        let told = match made {
            Ok(made) => insula_sys::socket::send(socket, &0i32.to_le_bytes(), &[made.as_fd()]),
            Err(error) => insula_sys::socket::send(socket, &error.raw_os_error().to_le_bytes(), &[]),
        };
        if told.is_err() {
            return;
        }
    }
}

fn make(order: Order) -> rustix::io::Result<OwnedFd> {
    let (kind, protocol) = match order.transport {
        Transport::Tcp => (SocketType::STREAM, ipproto::TCP),
        Transport::Udp => (SocketType::DGRAM, ipproto::UDP),
    };
    let family = if order.address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol))?;
    if order.address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if order.transport == Transport::Tcp {
        // Connections that ended a moment ago do not keep a port.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &order.address)?;
    if order.transport == Transport::Tcp {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// One socket of the binder.
pub(super) fn ask(
    binder: BorrowedFd<'_>,
    transport: Transport,
    address: SocketAddr,
) -> rustix::io::Result<OwnedFd> {
    let text = serde_json::to_vec(&Order { transport, address }).map_err(|_| Errno::INVAL)?;
    insula_sys::socket::send(binder, &text, &[])?;
    let mut answer = [0; 4];
    let (length, mut sockets) = insula_sys::socket::receive(binder, &mut answer)?;
    match (length, i32::from_le_bytes(answer), sockets.pop()) {
        (4, 0, Some(socket)) => Ok(socket),
        (4, number, None) if number != 0 => Err(Errno::from_raw_os_error(number)),
        // It has ended.
        _ => Err(Errno::PIPE),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn sockets_are_bound_for_who_asks() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let served = std::thread::spawn(move || serve(theirs.as_fd()));
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let tcp = TcpListener::from(ask(ours.as_fd(), Transport::Tcp, any).unwrap());
        let place = tcp.local_addr().unwrap();
        std::net::TcpStream::connect(place).unwrap();
        assert_eq!(ask(ours.as_fd(), Transport::Tcp, place).unwrap_err(), Errno::ADDRINUSE);
        let udp = UdpSocket::from(ask(ours.as_fd(), Transport::Udp, any).unwrap());
        let place = udp.local_addr().unwrap();
        assert_eq!(ask(ours.as_fd(), Transport::Udp, place).unwrap_err(), Errno::ADDRINUSE);
        drop(ours);
        served.join().unwrap();
    }
}
