//! The name server of a machine's container: its sockets are in a namespace that nobody else is in, and
//! questions of the guest reach them through the channel.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_host::netlink::{self, Routes};
use insula_host::resolver::Sockets;
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::fs::{Mode, OFlags};

use crate::{Error, Result};

/// Questions that may be under way; older ones are not answered, and asked again by who wants to know.
const UNDER_WAY: usize = 256;
/// Head of a message of DNS, RFC 1035 section 4.1.1; it begins with the number of the question.
const HEAD: usize = 12;
/// Largest answer that is passed on.
const LARGEST: usize = insula_proto::channel::LARGEST_QUERY;

/// Both sides of the name server.
#[derive(Debug)]
pub(super) struct Names {
    server: Sockets,
    client: UdpSocket,
    /// By the number that was asked with: that number, the channel's, and the question's own.
    asked: Vec<Option<(u16, u32, [u8; 2])>>,
    next: u16,
}

impl Names {
    pub(super) fn new() -> Result<Self> {
        let namespace = namespace()?;
        let made = netlink::inside(namespace.as_fd(), || {
            Routes::open()?.configure(&[])?;
            Ok::<_, netlink::Error>(sockets())
        });
        let (server, client) = made
            .and_then(|made| made)
            .map_err(insula_container::Error::from)?
            .map_err(|source| Error::Call { call: "bind", on: "a name server's sockets", source })?;
        Ok(Self { server, client, asked: vec![None; UNDER_WAY], next: 0 })
    }

    /// Duplicates of the server's side.
    pub(super) fn server(&self) -> Result<Sockets> {
        Ok(Sockets {
            udp: crate::duplicate(self.server.udp.as_fd())?,
            tcp: crate::duplicate(self.server.tcp.as_fd())?,
        })
    }

    /// Readable when there is an answer.
    pub(super) fn answers(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }

    /// Asks what the guest asks. One that cannot be asked is not answered.
    pub(super) fn ask(&mut self, number: u32, mut question: Vec<u8>) {
        if question.len() < HEAD {
            return;
        }
        self.next = self.next.wrapping_add(1);
        let own = [question[0], question[1]];
        question[..2].copy_from_slice(&self.next.to_be_bytes());
        self.asked[usize::from(self.next) % UNDER_WAY] = Some((self.next, number, own));
        let _ = self.client.send(&question);
    }

    /// The next answer, with the channel's number.
    pub(super) fn answer(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            let mut answer = vec![0; LARGEST];
            let count = self.client.recv(&mut answer).ok()?;
            answer.truncate(count);
            let asked = answer.first_chunk::<2>().map(|id| u16::from_be_bytes(*id)).filter(|_| count >= HEAD);
            let Some(asked) = asked else { continue };
            let slot = &mut self.asked[usize::from(asked) % UNDER_WAY];
            if let Some((_, number, own)) = slot.take_if(|(known, ..)| *known == asked) {
                answer[..2].copy_from_slice(&own);
                return Some((number, answer));
            }
        }
    }
}

fn sockets() -> std::io::Result<(Sockets, UdpSocket)> {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.connect(udp.local_addr()?)?;
    for prepared in [udp.set_nonblocking(true), tcp.set_nonblocking(true), client.set_nonblocking(true)] {
        prepared?;
    }
    Ok((Sockets { udp: udp.into(), tcp: tcp.into() }, client))
}

/// A network namespace with nobody in it.
pub(super) fn namespace() -> Result<OwnedFd> {
    let (hold, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|source| Error::call("pipe2", "to hold a process", source))?;
    match process::clone(CloneFlags::NEWNET, None)
        .map_err(|source| Error::call("clone3", "with a network namespace", source))?
    {
        Clone::Child => {
            drop(release);
            let _ = rustix::io::read(&hold, &mut [0u8; 1]);
            process::exit_now(0)
        }
        Clone::Parent { pid, .. } => {
            let path = format!("/proc/{pid}/ns/net");
            let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|source| Error::call("open", "a network namespace", source));
            drop(release);
            process::wait_for(pid).map_err(|source| Error::call("waitpid", "for a namespace", source))?;
            opened
        }
    }
}
