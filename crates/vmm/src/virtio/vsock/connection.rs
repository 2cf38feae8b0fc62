//! One stream: what each side may still send, and what is to be said to the guest.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};

use super::request::{Head, NO_RECEIVE, NO_SEND, NOTHING, operation};

/// What the guest may send before it was passed on.
pub(super) const BUFFER: u32 = 64 << 10;

/// The two ports that tell a connection from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// ```text
/// host connects ──> Asked ──── guest agrees ──> Open ── guest is done ──> Draining ── all is passed on
/// guest connects ─> Brokered ─ broker agrees ──> Open
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The guest is asked.
    Asked,
    /// The broker is asked.
    Brokered,
    Open,
    /// The guest knows nothing of it any more; what it sent before is passed on.
    Draining,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) pair: Pair,
    pub(super) state: State,
    /// It waits for its turn to say something.
    pub(super) due: bool,
    socket: Option<OwnedFd>,
    /// Of the guest's, what the socket did not take yet.
    outgoing: VecDeque<u8>,
    /// Bytes of the guest's that were passed on, and what it knows of that. All counts go round.
    forwarded: u32,
    told_forwarded: u32,
    /// What the guest can take, and has passed on.
    guest_buffer: u32,
    guest_forwarded: u32,
    sent: u32,
    /// The next packet without data, if it has to be said.
    owed: Option<u16>,
    /// What the guest will not do any more, and the host; the latter the guest knows so far.
    guest_done: u32,
    host_done: u32,
    told_done: u32,
    /// There may be something to read.
    readable: bool,
    /// The socket's other end is closed, or broken.
    gone: bool,
}

impl Connection {
    /// That somebody on the host wants.
    pub(super) fn to_guest(pair: Pair, socket: OwnedFd) -> Self {
        let mut this = Self::new(pair, State::Asked);
        this.socket = Some(socket);
        this.owed = Some(operation::REQUEST);
        // What he has said behind his word came before anybody looked.
        this.readable = true;
        this
    }

    /// That a program in the guest wants.
    pub(super) fn from_guest(pair: Pair, head: &Head) -> Self {
        let mut this = Self::new(pair, State::Brokered);
        this.hear_credit(head);
        this
    }

    fn new(pair: Pair, state: State) -> Self {
        Self {
            pair,
            state,
            due: false,
            socket: None,
            outgoing: VecDeque::new(),
            forwarded: 0,
            told_forwarded: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            sent: 0,
            owed: None,
            guest_done: 0,
            host_done: 0,
            told_done: 0,
            readable: false,
            gone: false,
        }
    }

    /// Whether the guest has heard of it, or will not let go of it unless it hears that it has ended.
    pub(super) fn is_known(&self) -> bool {
        match self.state {
            State::Asked => self.owed.is_none(),
            State::Brokered | State::Open => true,
            State::Draining => false,
        }
    }

    /// The host has agreed.
    pub(super) fn open(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
        self.state = State::Open;
        self.owed = Some(operation::RESPONSE);
    }

    /// The guest has agreed. False if who wanted that has gone.
    pub(super) fn agreed(&mut self) -> bool {
        self.state = State::Open;
        let word = format!("OK {}\n", self.pair.host);
        // Nothing else was written there yet: it takes all of it.
        self.write(word.as_bytes()) == word.len() && !self.gone
    }

    /// What every packet of the guest's says.
    pub(super) fn hear_credit(&mut self, head: &Head) {
        (self.guest_buffer, self.guest_forwarded) = (head.buffer, head.forwarded);
    }

    /// The guest wants to know what it may send.
    pub(super) fn tell_credit(&mut self) {
        self.owed.get_or_insert(operation::CREDIT_UPDATE);
    }

    /// How much the guest may send now.
    pub(super) fn room(&self) -> usize {
        if self.guest_done & NO_SEND == 0 { BUFFER as usize - self.outgoing.len() } else { 0 }
    }

    /// What the guest sends, no more than there is [`Connection::room`] for.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        let written = if self.outgoing.is_empty() { self.write(bytes) } else { 0 };
        if self.is_deaf() {
            return self.forward(bytes.len());
        }
        self.forward(written);
        self.outgoing.extend(&bytes[written..]);
    }

    /// The socket may take more.
    pub(super) fn flush(&mut self) {
        // Most connections never need one again.
        let mut waiting = std::mem::take(&mut self.outgoing);
        while !waiting.is_empty() {
            let written = self.write(waiting.make_contiguous());
            let passed = if self.is_deaf() { waiting.len() } else { written };
            if passed == 0 {
                self.outgoing = waiting;
                return;
            }
            waiting.drain(..passed);
            self.forward(passed);
        }
        self.finish();
    }

    /// The guest does no more of this.
    pub(super) fn guest_ends(&mut self, what: u32) {
        self.guest_done |= what & NOTHING;
        self.finish();
    }

    /// The guest is done: what it sent is passed on, and it hears no more of this.
    pub(super) fn drain(&mut self) {
        self.state = State::Draining;
        self.owed = None;
    }

    pub(super) fn guest_has_ended(&self) -> bool {
        self.guest_done == NOTHING
    }

    /// Whether all that the guest sent has left.
    pub(super) fn is_drained(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Something happened to the socket.
    pub(super) fn stir(&mut self, writable: bool, gone: bool) {
        self.readable = true;
        self.gone |= gone;
        if writable && matches!(self.state, State::Open | State::Draining) {
            self.flush();
        }
    }

    /// Who is there on the host has gone.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether there may be something to say to the guest.
    pub(super) fn has_word(&self) -> bool {
        self.owed.is_some() || self.may_read() || self.host_ends() != 0
    }

    /// The next packet for the guest: its head without addresses, with so many bytes of `data`.
    pub(super) fn next(&mut self, data: &mut [u8]) -> Option<(Head, usize)> {
        if let Some(operation) = self.owed.take() {
            return Some((self.head(operation), 0));
        }
        if self.may_read() {
            let most = data.len().min(self.credit() as usize);
            let read = self.read(&mut data[..most]);
            if read > 0 {
                self.sent = self.sent.wrapping_add(read as u32);
                return Some((Head { length: read as u32, ..self.head(operation::DATA) }, read));
            }
        }
        let ends = self.host_ends();
        if ends == 0 {
            return None;
        }
        self.told_done |= ends;
        Some((Head { flags: self.told_done, ..self.head(operation::SHUTDOWN) }, 0))
    }

    fn head(&mut self, operation: u16) -> Head {
        self.told_forwarded = self.forwarded;
        Head { operation, buffer: BUFFER, forwarded: self.forwarded, ..Head::default() }
    }

    /// What the guest takes beyond what it has.
    fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    fn may_read(&self) -> bool {
        let open =
            self.state == State::Open && (self.guest_done & NO_RECEIVE | self.host_done & NO_SEND) == 0;
        open && self.readable && self.credit() > 0
    }

    /// What the host does no more of, as far as the guest is to be told.
    fn host_ends(&self) -> u32 {
        if self.state != State::Open {
            return 0;
        }
        // Who has closed his end takes nothing either; what he had sent comes first, if the guest wants it.
        let heard = self.host_done & NO_SEND != 0 || self.guest_done & NO_RECEIVE != 0;
        let gone = if self.gone && heard { NOTHING } else { 0 };
        (self.host_done | gone) & !self.told_done
    }

    /// Nobody takes what the guest sends.
    fn is_deaf(&self) -> bool {
        self.host_done & NO_RECEIVE != 0
    }

    fn forward(&mut self, bytes: usize) {
        self.forwarded = self.forwarded.wrapping_add(bytes as u32);
        if self.forwarded.wrapping_sub(self.told_forwarded) >= BUFFER / 2 && self.state == State::Open {
            self.tell_credit();
        }
    }

    /// Passes the end on when all was that came before.
    fn finish(&mut self) {
        if self.guest_done & NO_SEND != 0
            && self.outgoing.is_empty()
            && let Some(socket) = &self.socket
        {
            // Whose other end is gone needs no more.
            let _ = rustix::net::shutdown(socket, Shutdown::Write);
        }
    }

    /// How much the socket took. Who takes no more at all is deaf from then on.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(socket) = &self.socket else { return 0 };
        match rustix::io::retry_on_intr(|| {
            rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        }) {
            Ok(written) => written,
            Err(Errno::AGAIN) => 0,
            Err(_) => {
                self.host_done |= NO_RECEIVE;
                0
            }
        }
    }

    /// How much was there.
    fn read(&mut self, data: &mut [u8]) -> usize {
        let Some(socket) = &self.socket else { return 0 };
        match rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut *data)) {
            Ok(read) if read > 0 => return read,
            Err(Errno::AGAIN) => {}
            // The end, or one that is as good.
            Ok(_) | Err(_) => self.host_done |= NO_SEND,
        }
        self.readable = false;
        0
    }
}
