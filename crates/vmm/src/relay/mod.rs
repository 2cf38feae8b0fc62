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

pub mod message;
mod ring;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{Bytes, GuestAddress};

use crate::error::{Error, Result};
use crate::jail::Filter;
use crate::memory::Memory;
use crate::virtio::fs::backend::{Events, Server};
use message::{LARGEST, Message, Opcode};
use ring::{Ring, SLOTS};

/// One for urgent messages, which stays empty, and one for all.
const QUEUES: usize = 2;
/// The queue that is used.
const ALL: usize = 1;
/// Where the rings begin: three pages for each queue.
const RINGS: u64 = 3 * 4096;
/// Where the slots begin.
const BUFFERS: u64 = QUEUES as u64 * RINGS;
/// What the port has not taken at which no more answers are fetched.
const MOST_WAITING: usize = 1 << 20;
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
    memory: Memory,
    ring: Ring,
    events: Vec<Events>,
    /// What each slot's message asks for; none in a free one.
    slots: Vec<Option<Opcode>>,
    inbound: Vec<u8>,
    outbound: Vec<u8>,
}

impl Relay {
    fn new(port: UnixStream, server: UnixStream) -> Result<Self> {
        let size = (BUFFERS + u64::from(SLOTS) * 2 * LARGEST).next_multiple_of(1 << 20);
        let memory = Memory::new(size)?;
        let rings: Vec<Ring> = (0..QUEUES as u64).map(|queue| Ring::new(queue * RINGS)).collect();
        let events = (0..QUEUES).map(|_| Events::new()).collect::<Result<Vec<_>>>()?;
        let mut server = Server::connect(server, QUEUES)?;
        let version = 1 << VIRTIO_F_VERSION_1;
        if server.features() & version == 0 {
            return Err(Error::Unsupported("a server of shared folders of before the standard"));
        }
        let queues = rings.iter().map(Ring::queue).collect::<Result<Vec<_>>>()?;
        server.begin(version, memory.ram(), &queues, &events)?;
        let [_, ring] = rings.try_into().unwrap_or([Ring::new(0), Ring::new(RINGS)]);
        let slots = vec![None; usize::from(SLOTS)];
        Ok(Self {
            port,
            _server: server,
            memory,
            ring,
            events,
            slots,
            inbound: Vec::new(),
            outbound: Vec::new(),
        })
    }

    /// Waits until something can be done and does it; false at the end.
    fn turn(&mut self) -> Result<bool> {
        let room = self.outbound.len() < MOST_WAITING;
        let mut port = PollFlags::empty();
        port.set(PollFlags::IN, self.slots.contains(&None));
        port.set(PollFlags::OUT, !self.outbound.is_empty());
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
            self.take_answers()?;
        }
        let open = self.hear()?;
        self.ask()?;
        self.flush();
        Ok(open && !ended)
    }

    /// Takes what the port has; false at its end.
    fn hear(&mut self) -> Result<bool> {
        // One whole message at most is kept beside those in slots.
        if self.inbound.len() > LARGEST as usize {
            return Ok(true);
        }
        let mut piece = [0; PIECE];
        match rustix::io::retry_on_intr(|| {
            rustix::net::recv(self.port.as_fd(), &mut piece, RecvFlags::DONTWAIT)
        }) {
            Ok((0, _)) => Ok(false),
            Ok((count, _)) => {
                self.inbound.extend_from_slice(&piece[..count]);
                Ok(true)
            }
            Err(Errno::AGAIN) => Ok(true),
            Err(error) => Err(Error::call("recv", "a port", error)),
        }
    }

    /// Puts whole messages into free slots.
    fn ask(&mut self) -> Result<()> {
        let mut taken = 0;
        let mut any = false;
        while let Some(slot) = self.slots.iter().position(Option::is_none) {
            let Some(message) = Message::first(&self.inbound[taken..])? else { break };
            let ram = self.memory.ram();
            let (question, answer) = buffers(slot);
            ram.write_slice(message.bytes, GuestAddress(question)).map_err(lost)?;
            self.ring.put(
                ram,
                slot as u16,
                (question, message.bytes.len() as u32),
                (answer, message.room),
            )?;
            self.slots[slot] = Some(message.opcode);
            taken += message.bytes.len();
            any = true;
        }
        self.inbound.drain(..taken);
        if any {
            self.events[ALL].kick.write(1).map_err(|error| Error::call("write", "a kick", error))?;
        }
        Ok(())
    }

    /// Passes what the server answered on to the port. A message that has no answer frees its slot all the
    /// same.
    fn take_answers(&mut self) -> Result<()> {
        while self.outbound.len() < MOST_WAITING {
            let Some(slot) = self.ring.returned(self.memory.ram())? else { return Ok(()) };
            let slot = usize::from(slot);
            let opcode = self.slots.get_mut(slot).and_then(Option::take);
            let opcode = opcode.ok_or_else(|| Error::Shape(format!("slot {slot} was returned twice")))?;
            if !opcode.answered() {
                continue;
            }
            let mut head = [0; 4];
            let (_, answer) = buffers(slot);
            let ram = self.memory.ram();
            ram.read_slice(&mut head, GuestAddress(answer)).map_err(lost)?;
            let length = message::answer_length(head)?;
            let from = self.outbound.len();
            self.outbound.resize(from + length, 0);
            ram.read_slice(&mut self.outbound[from..], GuestAddress(answer)).map_err(lost)?;
            if opcode == Opcode::INIT {
                message::bound(&mut self.outbound[from..]);
            }
        }
        Ok(())
    }

    fn flush(&mut self) {
        let mut sent = 0;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while sent < self.outbound.len() {
            match rustix::io::retry_on_intr(|| {
                rustix::net::send(self.port.as_fd(), &self.outbound[sent..], flags)
            }) {
                Ok(count) => sent += count,
                // Its end is seen when it is read.
                Err(_) => break,
            }
        }
        self.outbound.drain(..sent);
    }
}

/// Where a slot's question and its answer lie.
fn buffers(slot: usize) -> (u64, u64) {
    let question = BUFFERS + slot as u64 * 2 * LARGEST;
    (question, question + LARGEST)
}

fn lost(error: vm_memory::GuestMemoryError) -> Error {
    Error::call("access", "a relay's memory", std::io::Error::other(error))
}

#[cfg(test)]
mod tests;
