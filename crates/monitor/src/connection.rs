//! A daemon's connection: requests in, replies and events out, never blocking.

use std::os::fd::{AsFd, OwnedFd};

use insula_proto::{FrameReader, Outcome, Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::error::{Context, Result};
use crate::poll::{Interest, Place, Poll, Token};

/// Bytes of replies and events that may wait for a daemon that does not read; past that it is cut off.
const LARGEST_BACKLOG: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) number: u64,
    socket: OwnedFd,
    token: Token,
    reader: FrameReader,
    pending: Vec<u8>,
    writing: bool,
    /// Gets events.
    pub(crate) listens: bool,
    broken: bool,
}

impl Connection {
    pub(crate) fn new(poll: &mut Poll, number: u64, socket: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true).context("ioctl FIONBIO", "a connection")?;
        let token = poll.add(&socket, Interest::READ, Place::Connection(number))?;
        Ok(Self {
            number,
            socket,
            token,
            reader: FrameReader::default(),
            pending: Vec::new(),
            writing: false,
            listens: false,
            broken: false,
        })
    }

    /// Reads what is there. What cannot be understood breaks the connection.
    pub(crate) fn receive(&mut self) {
        let mut buffer = [0; 8 << 10];
        loop {
            match insula_sys::socket::receive(self.socket.as_fd(), &mut buffer) {
                Ok((0, _)) => self.broken = true,
                Ok((count, descriptors)) => {
                    if self.reader.push(&buffer[..count], descriptors).is_err() {
                        self.broken = true;
                    } else if count == buffer.len() {
                        continue;
                    }
                }
                Err(Errno::AGAIN) => {}
                Err(_) => self.broken = true,
            }
            return;
        }
    }

    /// The next whole request, with its descriptors.
    pub(crate) fn next(&mut self) -> Option<(Request, Vec<OwnedFd>)> {
        // A monitor may be stopped with its events in hand, and the other side give it up before it goes on: what they
        // say of the connection is old then.
        self.broken |= self.deserted();
        if self.broken {
            return None;
        }
        let next = self.reader.pop::<Request>().and_then(|request| {
            let Some(request) = request else { return Ok(None) };
            let mut descriptors = self.reader.take(request.descriptors())?;
            // Those that a newer daemon sends with what is not known here are closed.
            descriptors.truncate(request.call.as_ref().map_or(0, insula_proto::Call::descriptors));
            Ok(Some((request, descriptors)))
        });
        next.unwrap_or_else(|_| {
            self.broken = true;
            None
        })
    }

    /// Whether the other side has closed it by now.
    fn deserted(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let looked = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&at_once)));
        looked.is_ok() && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Sends, or keeps to send later.
    pub(crate) fn send(&mut self, poll: &mut Poll, id: u64, outcome: Outcome) {
        let frame = insula_proto::encode(&Reply { id, outcome: Some(outcome) });
        self.pending.extend_from_slice(&frame);
        if self.pending.len() > LARGEST_BACKLOG {
            self.broken = true;
        }
        self.flush(poll);
    }

    pub(crate) fn flush(&mut self, poll: &mut Poll) {
        while !self.pending.is_empty() && !self.broken {
            match insula_sys::socket::send(self.socket.as_fd(), &self.pending, &[]) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(Errno::AGAIN) => break,
                Err(_) => self.broken = true,
            }
        }
        let writing = !self.pending.is_empty();
        if writing != self.writing {
            let interest = Interest { read: true, write: writing };
            self.broken |= poll.change(&self.socket, self.token, interest).is_err();
            self.writing = writing;
        }
    }

    /// The other side has closed it.
    pub(crate) fn leave(&mut self) {
        self.broken = true;
    }

    /// Whether it is of no more use.
    pub(crate) fn broken(&self) -> bool {
        self.broken
    }

    /// Whether everything was sent.
    pub(crate) fn flushed(&self) -> bool {
        self.broken || self.pending.is_empty()
    }

    pub(crate) fn close(self, poll: &mut Poll) {
        // A failure leaves a dead entry in a set that dies with the monitor.
        let _ = poll.remove(&self.socket, self.token);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use insula_proto::{Call, Empty, encode};

    use super::*;

    #[test]
    fn what_somebody_asked_who_is_gone_is_not_carried_out() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut poll = Poll::new().unwrap();
        let mut connection = Connection::new(&mut poll, 1, ours.into()).unwrap();
        for id in [1, 2] {
            theirs.write_all(&encode(&Request::new(id, Call::Status(Empty {})))).unwrap();
        }
        connection.receive();
        assert_eq!(connection.next().unwrap().0.id, 1);
        drop(theirs);
        assert!(connection.next().is_none() && connection.broken());
    }
}
