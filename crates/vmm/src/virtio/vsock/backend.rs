//! The host's side: who connects, who is asked for connections, and one set of events for all of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use crate::error::{Error, Result};

const GONE: epoll::EventFlags = epoll::EventFlags::HUP.union(epoll::EventFlags::ERR);
/// So many events are taken at once.
const BATCH: usize = 64;
/// Told apart from every number of a connection.
const LISTENER: u64 = u64::MAX;
const BROKER: u64 = u64::MAX - 1;
/// The longest word of who connects; `CONNECT 4294967295` and a line's end are 19 bytes.
const LONGEST: usize = 32;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody has connected.
    Call,
    /// The broker has answered.
    Answer,
    /// To the socket of a connection, whose other end says no more, or is closed.
    Socket { id: u64, writable: bool, ended: bool, gone: bool },
}

/// What somebody who has connected said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// Nothing yet, or half of it.
    None,
    Connect(u32),
    /// What cannot be understood, or he has gone.
    Wrong,
}

#[derive(Debug)]
pub(super) struct Host {
    epoll: OwnedFd,
    listener: Option<OwnedFd>,
    broker: OwnedFd,
}

impl Host {
    /// The broker is a socket of messages: see [`Host::ask`].
    pub(super) fn new(listener: Option<OwnedFd>, broker: OwnedFd) -> Result<Self> {
        for socket in listener.iter().chain([&broker]) {
            rustix::io::ioctl_fionbio(socket, true)
                .map_err(|error| Error::call("ioctl FIONBIO", "sockets of a guest", error))?;
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| Error::call("epoll_create1", "sockets of a guest", error))?;
        let this = Self { epoll, listener, broker };
        if let Some(listener) = &this.listener {
            this.watch(listener.as_fd(), LISTENER)?;
        }
        this.watch(this.broker.as_fd(), BROKER)?;
        Ok(this)
    }

    /// Readable when something has happened.
    pub(super) fn source(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Tells of each change of a socket from now on, and of what it is now. That ends when it is closed.
    pub(super) fn watch(&self, socket: BorrowedFd<'_>, id: u64) -> Result<()> {
        let changes =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(id), changes)
            .map_err(|error| Error::call("epoll_ctl", "sockets of a guest", error))
    }

    /// What has happened, and whether there may be more.
    pub(super) fn events(&self) -> Result<(Vec<Event>, bool)> {
        let mut events = Vec::with_capacity(BATCH);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::call("epoll_wait", "sockets of a guest", error)),
        }
        let more = events.len() == BATCH;
        let told = events.into_iter().map(|event| match event.data.u64() {
            LISTENER => Event::Call,
            BROKER => Event::Answer,
            id => {
                let flags = event.flags;
                Event::Socket {
                    id,
                    writable: flags.contains(epoll::EventFlags::OUT),
                    ended: flags.intersects(GONE | epoll::EventFlags::RDHUP),
                    gone: flags.intersects(GONE),
                }
            }
        });
        Ok((told.collect(), more))
    }

    /// The next who has connected, if somebody is there. An error is none of his, as that no descriptor is left.
    pub(super) fn accept(&self) -> rustix::io::Result<Option<OwnedFd>> {
        let Some(listener) = &self.listener else { return Ok(None) };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            match rustix::net::accept_with(listener, flags) {
                Ok(socket) => return Ok(Some(socket)),
                // He has gone again; others may be there.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for a connection to who serves a port on the host: the number of the question in eight bytes and the
    /// port in four, little endian. The answer has the number, and with it the connection, which does not wait,
    /// or none. False if it cannot be asked.
    pub(super) fn ask(&self, id: u64, port: u32) -> bool {
        let mut question = [0; 12];
        question[..8].copy_from_slice(&id.to_le_bytes());
        question[8..].copy_from_slice(&port.to_le_bytes());
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::send(&self.broker, &question, flags).is_ok()
    }

    /// The next answer. None is the last: the rest of its queue, or its end.
    pub(super) fn answer(&self) -> Option<(u64, Option<OwnedFd>)> {
        let mut number = [0; 8];
        match insula_sys::socket::receive(self.broker.as_fd(), &mut number) {
            Ok((8, mut sockets)) => Some((u64::from_le_bytes(number), sockets.pop())),
            _ => None,
        }
    }
}

/// What somebody who has connected said first. What comes behind it is left: it is the guest's.
pub(super) fn word(socket: &OwnedFd) -> Word {
    let mut line = [0; LONGEST];
    let length = match rustix::net::recv(socket, &mut line, RecvFlags::PEEK) {
        Ok((_, 0)) => return Word::Wrong,
        Ok((_, length)) => length,
        Err(Errno::AGAIN | Errno::INTR) => return Word::None,
        Err(_) => return Word::Wrong,
    };
    let Some(end) = line[..length].iter().position(|byte| *byte == b'\n') else {
        return if length < LONGEST { Word::None } else { Word::Wrong };
    };
    if rustix::net::recv(socket, &mut line[..=end], RecvFlags::empty()).ok().map(|(_, taken)| taken)
        != Some(end + 1)
    {
        return Word::Wrong;
    }
    let port = std::str::from_utf8(&line[..end]).ok().and_then(|line| line.strip_prefix("CONNECT "));
    // A sign is none of a port.
    let port = port.filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    port.and_then(|port| port.parse().ok()).map_or(Word::Wrong, Word::Connect)
}
