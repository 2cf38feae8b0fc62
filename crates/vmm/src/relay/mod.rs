//! Shared folders over a byte stream. The guest's agent passes the messages of its kernel's `/dev/fuse`
//! through a port of the console; here they are put to a server of shared folders, which speaks the
//! vhost-user protocol and takes them from queues in memory that it shares with this process alone.
//!
//! ```text
//! guest: kernel ─ /dev/fuse ─ agent ─ port ══ relay ─ queues in a memfd ─ virtiofsd
//! ```
//!
//! So the guest's memory can be a private mapping of a template, which no server can share, and the guest
//! has no device that cannot be saved. What comes from the guest is hostile: a message is taken only as far
//! as its slot goes, and no more are under way than there are slots.

mod exchange;
pub mod message;
mod ring;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::error::{Error, Result};
use crate::jail::Filter;
use crate::virtio::fs::backend::{Events, Server};

pub use exchange::Exchange;

/// One for urgent messages, which stays empty, and one for all.
const QUEUES: usize = 2;
/// The queue that is used.
const ALL: usize = 1;
/// Bytes taken from the port at once.
const PIECE: usize = 64 << 10;

/// Relays until the guest's side or the server is gone, behind `filter` from before the guest's first word.
pub fn serve(port: UnixStream, server: UnixStream, filter: Option<&Filter>) -> Result<()> {
    let mut relay = Relay::new(port, server)?;
    filter.map_or(Ok(()), Filter::install)?;
    while relay.turn()? {}
    Ok(())
}

#[derive(Debug)]
struct Relay {
    port: UnixStream,
    _server: Server,
    exchange: Exchange,
    events: Vec<Events>,
}

impl Relay {
    fn new(port: UnixStream, server: UnixStream) -> Result<Self> {
        let exchange = Exchange::new()?;
        let events = (0..QUEUES).map(|_| Events::new()).collect::<Result<Vec<_>>>()?;
        let mut server = Server::connect(server, QUEUES)?;
        let version = 1 << VIRTIO_F_VERSION_1;
        if server.features() & version == 0 {
            return Err(Error::Unsupported("a server of shared folders of before the standard"));
        }
        server.begin(version, exchange.ram(), &exchange.queues()?, &events)?;
        Ok(Self { port, _server: server, exchange, events })
    }

    /// Waits until something can be done and does it; false at the end.
    fn turn(&mut self) -> Result<bool> {
        let room = self.exchange.has_room();
        let mut port = PollFlags::empty();
        port.set(PollFlags::IN, self.exchange.listens());
        port.set(PollFlags::OUT, !self.exchange.outbound().is_empty());
        // SAFETY: the event lives as long as `self`.
        let call = unsafe { BorrowedFd::borrow_raw(self.events[ALL].call.as_raw_fd()) };
        let answers = if room { PollFlags::IN } else { PollFlags::empty() };
        let mut polled = [PollFd::new(&self.port, port), PollFd::from_borrowed_fd(call, answers)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))
            .map_err(|error| Error::call("poll", "a relay", error))?;
        let ended = polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR);
        if room {
            // Whether it was raised or not: what is there is taken.
            let _ = self.events[ALL].call.read();
            self.exchange.take_answers()?;
        }
        let open = self.hear()?;
        if self.exchange.ask()? {
            self.events[ALL].kick.write(1).map_err(|error| Error::call("write", "a kick", error))?;
        }
        self.flush();
        Ok(open && !ended)
    }

    /// Takes what the port has; false at its end.
    fn hear(&mut self) -> Result<bool> {
        if !self.exchange.listens() {
            return Ok(true);
        }
        let mut piece = [0; PIECE];
        match rustix::io::retry_on_intr(|| {
            rustix::net::recv(self.port.as_fd(), &mut piece, RecvFlags::DONTWAIT)
        }) {
            Ok((0, _)) => Ok(false),
            Ok((count, _)) => {
                self.exchange.hear(&piece[..count]);
                Ok(true)
            }
            Err(Errno::AGAIN) => Ok(true),
            Err(error) => Err(Error::call("recv", "a port", error)),
        }
    }

    fn flush(&mut self) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while !self.exchange.outbound().is_empty() {
            match rustix::io::retry_on_intr(|| {
                rustix::net::send(self.port.as_fd(), self.exchange.outbound(), flags)
            }) {
                Ok(count) => self.exchange.sent(count),
                // Its end is seen when it is read.
                Err(_) => break,
            }
        }
    }
}

fn lost(error: vm_memory::GuestMemoryError) -> Error {
    Error::call("access", "a relay's memory", std::io::Error::other(error))
}
