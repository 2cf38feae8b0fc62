//! One client of a process' streams: a socket that speaks Docker's attach stream.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use insula_proto::Attachment;
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::error::Result;
use crate::log::Stream;
use crate::poll::{Interest, Place, Poll, ProcessKey, Token};

/// Bytes of input read at once.
const PIECE: usize = 32 << 10;

/// The stream of a frame whose text is not the process', after which clients stop.
const SYSTEM_ERROR: u8 = 3;

/// What a client's socket gave.
pub(crate) enum Taken {
    Input(Vec<u8>),
    End,
    Nothing,
}

#[derive(Debug)]
pub(crate) struct Client {
    socket: OwnedFd,
    token: Token,
    interest: Interest,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    multiplexed: bool,
    detach: DetachKeys,
    /// Output that the socket did not take yet.
    pending: Vec<u8>,
    /// Since when there is output that the socket did not take.
    behind: Option<Instant>,
    /// Whether the stream is a terminal's.
    terminal: bool,
    /// Whether the process waits for it however long it takes, as for the reader of a pipe.
    pub(crate) is_pipe: bool,
    /// Bytes of output that this client lost since it stopped reading; absent while it reads.
    lost: Option<u64>,
    /// Nothing comes after what is pending.
    ends: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Attached,
    /// Gone, detached or finished: to be dropped once its socket is out of the set.
    Leaving,
    Left,
}

impl Client {
    /// Registers a client; returns also what it had said before.
    pub(crate) fn new(
        poll: &mut Poll,
        key: ProcessKey,
        socket: OwnedFd,
        attachment: Attachment,
        terminal: bool,
    ) -> Result<(Self, Vec<u8>)> {
        let interest = if attachment.stdin { Interest::READ } else { Interest::NONE };
        let token = poll.add(&socket, interest, Place::Client(key))?;
        let keys = if terminal { attachment.detach_keys } else { Vec::new() };
        let client = Self {
            socket,
            token,
            interest,
            stdin: attachment.stdin,
            stdout: attachment.stdout,
            stderr: attachment.stderr,
            multiplexed: attachment.multiplexed && !terminal,
            detach: DetachKeys { keys, matched: 0 },
            pending: Vec::new(),
            behind: None,
            terminal,
            is_pipe: false,
            lost: None,
            ends: false,
            state: State::Attached,
        };
        let first = if client.stdin { attachment.already_read } else { Vec::new() };
        Ok((client, first))
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Whether input is still expected of it.
    pub(crate) fn reads(&self) -> bool {
        self.stdin
    }

    /// Whether the process has to wait for it.
    pub(crate) fn holds_up(&self) -> bool {
        !self.pending.is_empty() && self.lost.is_none() && !self.ends
    }

    /// How much longer the process waits for it; `None` while it does not wait, or without end.
    pub(crate) fn patience(&self, patience: Duration) -> Option<Duration> {
        let behind = self.behind.filter(|_| self.holds_up() && !self.is_pipe)?;
        Some(patience.saturating_sub(behind.elapsed()))
    }

    /// The process waits for it no longer: what comes until it has taken what lies there is lost to it.
    pub(crate) fn overdue(&mut self) {
        self.lost = Some(0);
    }

    /// Whether it was sent away with input still open, which then ends as if it had hung up.
    pub(crate) fn took_input_along(&self) -> bool {
        self.left() && self.ends && self.stdin
    }

    pub(crate) fn left(&self) -> bool {
        self.state == State::Left
    }

    pub(crate) fn leave(&mut self) {
        self.state = State::Leaving;
    }

    /// Sends a piece of output, framed if so agreed.
    pub(crate) fn output(&mut self, stream: Stream, piece: &[u8]) {
        let wanted = match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        };
        if !wanted || self.ends || self.state != State::Attached {
            return;
        }
        if let Some(lost) = &mut self.lost {
            *lost = lost.saturating_add(piece.len() as u64);
            return;
        }
        if self.multiplexed {
            let number = match stream {
                Stream::Stdout => 1,
                Stream::Stderr => 2,
            };
            self.pending.extend_from_slice(&frame(number, piece.len()));
        }
        self.pending.extend_from_slice(piece);
        self.flush();
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self) {
        self.push();
        if let Some(lost) = self.lost.take_if(|_| self.pending.is_empty()).filter(|lost| *lost > 0) {
            self.confess(lost);
        }
        self.behind = match (self.pending.is_empty(), self.behind) {
            (true, _) => None,
            (false, None) => Some(Instant::now()),
            (false, since) => since,
        };
    }

    /// Says what it did not get. On a terminal a gap does less harm than the end; any other stream ends with
    /// a frame of stdcopy's error stream, since who reads it would take a gap for what was written.
    fn confess(&mut self, lost: u64) {
        let word = format!("{lost} bytes of output are lost to this client, which did not read");
        if self.terminal {
            self.pending = format!("\r\n[{word}]\r\n").into_bytes();
        } else if self.multiplexed {
            self.pending = frame(SYSTEM_ERROR, word.len()).to_vec();
            self.pending.extend_from_slice(word.as_bytes());
            self.ends = true;
        } else {
            self.ends = true;
        }
        self.push();
    }

    fn push(&mut self) {
        let mut sent = 0;
        while sent < self.pending.len() {
            match insula_sys::socket::send(self.socket.as_fd(), &self.pending[sent..], &[]) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => break,
                // Gone, or broken so that nothing more will reach it.
                Err(_) => {
                    self.pending.clear();
                    self.leave();
                    return;
                }
            }
        }
        if sent == self.pending.len() {
            self.pending = Vec::new();
        } else {
            self.pending.drain(..sent);
        }
    }

    /// Reads a piece of input.
    pub(crate) fn take(&mut self) -> Taken {
        let mut piece = Vec::with_capacity(PIECE);
        match rustix::io::retry_on_intr(|| {
            rustix::io::read(&self.socket, rustix::buffer::spare_capacity(&mut piece))
        }) {
            Ok(0) => {
                self.stdin = false;
                Taken::End
            }
            Ok(_) => Taken::Input(piece),
            Err(Errno::AGAIN) => Taken::Nothing,
            Err(_) => {
                self.leave();
                Taken::End
            }
        }
    }

    /// The input without the keys that detach, and whether they were pressed.
    pub(crate) fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        self.detach.filter(bytes)
    }

    /// Brings the registration in line with what the client waits for; drops one that is done.
    pub(crate) fn settle(&mut self, poll: &mut Poll, ended: bool, hungry: bool) -> Result<()> {
        if (ended || self.ends) && self.pending.is_empty() && self.state == State::Attached {
            self.leave();
        }
        match self.state {
            State::Left => Ok(()),
            State::Leaving => {
                poll.remove(&self.socket, self.token)?;
                // The descriptor may have a duplicate in the daemon: closing ours would not end the stream.
                let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
                self.discard();
                self.state = State::Left;
                Ok(())
            }
            State::Attached => {
                let interest = Interest { read: self.stdin && hungry, write: !self.pending.is_empty() };
                if interest != self.interest {
                    poll.change(&self.socket, self.token, interest)?;
                    self.interest = interest;
                }
                Ok(())
            }
        }
    }
}

impl Client {
    /// Takes what it has said for nobody: a socket that is closed with something unread in it tells its peer of
    /// a reset instead of the end (RFC 1122, 4.2.2.13, and Linux for unix sockets too). After the shutdown a
    /// peer can add no more.
    fn discard(&self) {
        /// More than a socket holds, and an end where a peer elsewhere goes on.
        const PIECES: usize = 256;
        let mut piece = [0; PIECE];
        for _ in 0..PIECES {
            match rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut piece)) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

/// The head of a frame. A piece is far below 4 GiB.
fn frame(stream: u8, length: usize) -> [u8; 8] {
    let [a, b, c, d] = (length as u32).to_be_bytes();
    [stream, 0, 0, 0, a, b, c, d]
}

/// The keys that detach, and how many of them the input ends with so far.
#[derive(Debug)]
struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// Passes input on, except for a run of keys that is or may become the sequence.
    fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (bytes.to_vec(), false);
        }
        let mut passed = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if *byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if *byte == self.keys[0] {
                self.matched = 1;
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut keys = DetachKeys { keys: vec![16, 17], matched: 0 };
        let mut passed = Vec::new();
        for piece in pieces {
            let (more, detached) = keys.filter(piece);
            passed.extend(more);
            if detached {
                return (passed, true);
            }
        }
        (passed, false)
    }

    #[test]
    fn the_sequence_detaches_however_it_arrives() {
        assert_eq!(typed(&[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(typed(&[b"ab\x10", b"\x11"]), (b"ab".to_vec(), true));
        assert_eq!(typed(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
    }

    #[test]
    fn input_that_nobody_took_does_not_turn_the_end_into_a_reset() {
        use std::io::{Read, Write};
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut poll = Poll::new().unwrap();
        let attachment = Attachment { stdin: true, stdout: true, ..Attachment::default() };
        let (mut client, _) = Client::new(&mut poll, 0, ours.into(), attachment, false).unwrap();
        theirs.write_all(&[b'x'; 100_000]).unwrap();
        client.output(Stream::Stdout, b"out");
        client.settle(&mut poll, true, false).unwrap();
        drop(client);
        let mut output = Vec::new();
        theirs.read_to_end(&mut output).unwrap();
        assert_eq!(output, b"out");
    }

    #[test]
    fn anything_else_passes_unchanged() {
        assert_eq!(typed(&[b"a\x10", b"b\x11"]), (b"a\x10b\x11".to_vec(), false));
    }
}
