//! A connection to who owns a tenant's machine: a monitor's or a daemon's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_base::Kinded;
use insula_spec::machine::{TenantAnswer, TenantCall};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// The longest line: a container has at most some networks.
const LARGEST: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Caller {
    socket: OwnedFd,
    bytes: Vec<u8>,
    /// The container that has joined by it.
    pub(super) seated: Option<Seated>,
    /// It has asked what the guest writes, and was not told yet.
    pub(super) measures: bool,
    /// The other end is closed, or not to be understood.
    pub(super) gone: bool,
}

/// A container in the machine.
#[derive(Debug)]
pub(super) struct Seated {
    pub(super) container: String,
    /// Of its cards.
    pub(super) places: Vec<usize>,
}

impl Caller {
    pub(super) fn new(socket: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|source| Error::call("ioctl FIONBIO", "a caller's socket", source))?;
        Ok(Self { socket, bytes: Vec::new(), seated: None, measures: false, gone: false })
    }

    pub(super) fn watched(&self) -> PollFd<'_> {
        PollFd::new(&self.socket, PollFlags::IN)
    }

    /// The next whole line that there is.
    pub(super) fn next(&mut self) -> Option<TenantCall> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                let call = serde_json::from_slice(&line).ok();
                self.gone |= call.is_none();
                return call;
            }
            let mut piece = [0; 4096];
            match rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut piece)) {
                Ok(1..) if self.bytes.len() > LARGEST => self.gone = true,
                Ok(count @ 1..) => {
                    self.bytes.extend_from_slice(&piece[..count]);
                    continue;
                }
                Err(Errno::AGAIN) => {}
                Ok(0) | Err(_) => self.gone = true,
            }
            return None;
        }
    }

    pub(super) fn answer(&mut self, answer: &TenantAnswer, gift: &[BorrowedFd<'_>]) {
        let Ok(mut line) = serde_json::to_vec(answer) else { return };
        line.push(b'\n');
        // Who does not take some hundred bytes does not listen.
        self.gone |= insula_sys::socket::send_all(self.socket.as_fd(), &line, gift).is_err();
    }

    pub(super) fn tell(&mut self, answer: &TenantAnswer) {
        self.answer(answer, &[]);
    }

    pub(super) fn fail(&mut self, error: &Error) {
        let message = insula_base::chain(error);
        self.tell(&TenantAnswer::Failed { kind: error.kind().code(), message });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn caller() -> (Caller, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Caller::new(ours.into()).unwrap(), theirs)
    }

    #[test]
    fn lines_are_taken_however_they_arrive() {
        let (mut caller, mut theirs) = caller();
        theirs.write_all(b"\"sta").unwrap();
        assert_eq!(caller.next(), None);
        theirs.write_all(b"tus\"\n\"leave\"\n").unwrap();
        assert_eq!(caller.next(), Some(TenantCall::Status));
        assert_eq!(caller.next(), Some(TenantCall::Leave));
        assert!(caller.next().is_none() && !caller.gone);
        caller.fail(&Error::Full("no room".to_owned()));
        let mut said = [0; 256];
        let count = theirs.read(&mut said).unwrap();
        let said: TenantAnswer = serde_json::from_slice(&said[..count]).unwrap();
        assert!(matches!(said, TenantAnswer::Failed { message, .. } if message == "no room"));
        drop(theirs);
        assert!(caller.next().is_none() && caller.gone);
    }

    #[test]
    fn who_is_not_to_be_understood_is_gone() {
        let (mut one, mut theirs) = caller();
        theirs.write_all(b"{\n").unwrap();
        assert!(one.next().is_none() && one.gone);
        let (mut one, theirs) = caller();
        theirs.set_nonblocking(true).unwrap();
        let piece = vec![b'x'; 64 << 10];
        let mut sent = 0;
        while !one.gone {
            sent += (&theirs).write(&piece).unwrap_or(0);
            assert!(one.next().is_none() && sent < 2 * LARGEST);
        }
    }
}
