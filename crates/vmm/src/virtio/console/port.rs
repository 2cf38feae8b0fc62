//! One port: a socket on the host's side, a character device on the guest's.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use crate::error::{Error, Result};
use crate::virtio::{Chain, Progress, Queues};

/// What is moved at once.
const PIECE: usize = 64 << 10;
/// After so many pieces the other devices have their turn.
const ROUND: usize = 16;

/// A port and the queues that it has: one for each direction.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: String,
    socket: UnixStream,
    /// The guest holds it open.
    pub(super) open: bool,
    /// The host's end is gone; what the guest still sends is lost.
    closed: bool,
    incoming: Box<[u8]>,
    /// How much of `incoming` waits for a buffer of the guest.
    waiting: std::ops::Range<usize>,
    outgoing: Box<[u8]>,
    /// How much of `outgoing`, the guest's latest piece, waits for the socket.
    unsent: std::ops::Range<usize>,
}

impl Port {
    pub(super) fn new(name: String, socket: UnixStream) -> Result<Self> {
        socket.set_nonblocking(true).map_err(|error| Error::call("ioctl FIONBIO", name.clone(), error))?;
        let piece = || vec![0; PIECE].into_boxed_slice();
        Ok(Self {
            name,
            socket,
            open: false,
            closed: false,
            incoming: piece(),
            waiting: 0..0,
            outgoing: piece(),
            unsent: 0..0,
        })
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    pub(super) fn host_is_gone(&self) -> bool {
        self.closed
    }

    /// The driver forgot the port; what was on its way is lost.
    pub(super) fn reset(&mut self) {
        self.open = false;
        self.waiting = 0..0;
        self.unsent = 0..0;
    }

    /// From the socket into the guest's buffers. Nothing is read for a guest that does not listen, so
    /// that who writes there waits.
    pub(super) fn receive(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        let memory = queues.memory();
        let mut delivered = 0;
        while self.open && delivered < ROUND && self.fill() {
            let Some(chain) = queues.pop(queue)? else { break };
            let head = chain.head_index();
            let mut writer = chain.writer(memory).map_err(misuse)?;
            let written = writer.write(&self.incoming[self.waiting.clone()]).map_err(misuse)?;
            self.waiting.start += written;
            queues.done(queue, head, written as u32)?;
            delivered += 1;
        }
        if delivered > 0 {
            queues.signal(queue)?;
        }
        Ok(if delivered == ROUND { Progress::More } else { Progress::Waits })
    }

    /// Whether there is something for the guest.
    fn fill(&mut self) -> bool {
        if !self.waiting.is_empty() {
            return true;
        }
        match self.socket.read(&mut self.incoming) {
            Ok(0) => self.closed = true,
            Ok(length) => self.waiting = 0..length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.closed = true,
        }
        !self.waiting.is_empty()
    }

    /// From the guest into the socket. While that is full the guest's buffers stay with it, and the
    /// guest waits.
    pub(super) fn send(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        let mut returned = 0;
        while returned < ROUND && self.flush() {
            let Some(chain) = queues.pop(queue)? else { break };
            let head = chain.head_index();
            self.take(chain, queues)?;
            queues.done(queue, head, 0)?;
            returned += 1;
        }
        if returned > 0 {
            queues.signal(queue)?;
        }
        Ok(if returned == ROUND { Progress::More } else { Progress::Waits })
    }

    /// A buffer larger than a piece is written at once, and what the socket does not take of it would
    /// be lost: no driver sends any (Linux sends at most 32 KiB), so one that does is at fault.
    fn take(&mut self, chain: Chain<'_>, queues: &Queues<'_>) -> Result<()> {
        let mut reader = chain.reader(queues.memory()).map_err(misuse)?;
        let length = reader.available_bytes();
        if length > PIECE {
            return Err(misuse(format!("{length} bytes in one buffer of port {}", self.name)));
        }
        reader.read_exact(&mut self.outgoing[..length]).map_err(misuse)?;
        self.unsent = 0..length;
        Ok(())
    }

    /// Whether all that the guest sent has left.
    fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() && !self.closed {
            match self.socket.write(&self.outgoing[self.unsent.clone()]) {
                Ok(written) => self.unsent.start += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.closed = true,
            }
        }
        true
    }
}

fn misuse(why: impl ToString) -> Error {
    Error::Guest { device: "console", why: why.to_string() }
}
