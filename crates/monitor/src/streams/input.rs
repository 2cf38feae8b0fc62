//! Standard input of a process.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::error::Result;
use crate::poll::{Interest, Place, Poll, ProcessKey, Token};

/// The writing end, and what the process has not taken yet.
#[derive(Debug)]
pub(crate) struct Input {
    key: ProcessKey,
    pipe: Option<OwnedFd>,
    token: Option<Token>,
    pending: Vec<u8>,
    /// The end of a client's input is the end of this one.
    closes: bool,
    /// Close once `pending` is written.
    closing: bool,
}

impl Input {
    pub(crate) fn new(key: ProcessKey, closes: bool) -> Self {
        Self { key, pipe: None, token: None, pending: Vec::new(), closes, closing: false }
    }

    pub(crate) fn open(&mut self, pipe: OwnedFd) {
        self.pipe = Some(pipe);
    }

    /// Whether it takes more now.
    pub(crate) fn hungry(&self) -> bool {
        self.pending.is_empty()
    }

    /// Passes bytes on, as far as the process takes them; the rest waits. Without an open input they
    /// go nowhere, as with a pipe that nobody reads.
    pub(crate) fn write(&mut self, poll: &mut Poll, bytes: &[u8]) -> Result<()> {
        if self.pipe.is_none() || self.closing {
            return Ok(());
        }
        self.pending.extend_from_slice(bytes);
        self.flush(poll)
    }

    /// Goes on with what waits.
    pub(crate) fn flush(&mut self, poll: &mut Poll) -> Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        while !self.pending.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::write(pipe, &self.pending)) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(Errno::AGAIN) => {
                    if self.token.is_none() {
                        let interest = Interest { read: false, write: true };
                        self.token = Some(poll.add(pipe, interest, Place::Input(self.key))?);
                    }
                    return Ok(());
                }
                // The process has closed its end, or it is broken.
                Err(_) => {
                    self.pending.clear();
                    return self.close(poll);
                }
            }
        }
        self.pending = Vec::new();
        if self.closing {
            return self.close(poll);
        }
        if let Some(token) = self.token.take() {
            poll.remove(pipe, token)?;
        }
        Ok(())
    }

    /// A client has no more input.
    pub(crate) fn client_ended(&mut self, poll: &mut Poll) -> Result<()> {
        if !self.closes {
            return Ok(());
        }
        self.closing = true;
        if self.pending.is_empty() { self.close(poll) } else { Ok(()) }
    }

    pub(crate) fn close(&mut self, poll: &mut Poll) -> Result<()> {
        if let Some(pipe) = self.pipe.take()
            && let Some(token) = self.token.take()
        {
            poll.remove(&pipe, token)?;
        }
        Ok(())
    }
}
