//! One client of a process' streams: a socket that speaks Docker's attach stream.

use std::os::fd::{AsFd, OwnedFd};

use insula_proto::Attachment;
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::error::Result;
use crate::log::Stream;
use crate::poll::{Interest, Place, Poll, ProcessKey, Token};

/// Bytes of input read at once.
const PIECE: usize = 32 << 10;

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

    /// Whether it has got everything so far.
    pub(crate) fn up_to_date(&self) -> bool {
        self.pending.is_empty()
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
        if !wanted || self.state != State::Attached {
            return;
        }
        if self.multiplexed {
            let number = match stream {
                Stream::Stdout => 1,
                Stream::Stderr => 2,
            };
            // A piece is far below 4 GiB.
            let length = (piece.len() as u32).to_be_bytes();
            self.pending.extend_from_slice(&[number, 0, 0, 0]);
            self.pending.extend_from_slice(&length);
        }
        self.pending.extend_from_slice(piece);
        self.flush();
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self) {
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
        if ended && self.pending.is_empty() && self.state == State::Attached {
            self.leave();
        }
        match self.state {
            State::Left => Ok(()),
            State::Leaving => {
                poll.remove(&self.socket, self.token)?;
                // The descriptor may have a duplicate in the daemon: closing ours would not end the stream.
                let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
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
    fn anything_else_passes_unchanged() {
        assert_eq!(typed(&[b"a\x10", b"b\x11"]), (b"a\x10b\x11".to_vec(), false));
    }
}
