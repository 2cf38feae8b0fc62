//! Unix sockets with descriptors: unix(7), SCM_RIGHTS.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::process::check;

/// The most descriptors that one call sends or receives here.
pub const MAX_DESCRIPTORS: usize = 32;

/// Sends bytes and, with the first of them, descriptors; returns how many bytes went. SIGPIPE is
/// not raised.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<usize> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(Errno::TOOMANYREFS);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })
}

/// Sends all bytes on a blocking socket, the descriptors with the first of them.
pub fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let mut with = descriptors;
    while !bytes.is_empty() {
        let sent = send(socket, bytes, with)?;
        bytes = &bytes[sent..];
        with = &[];
    }
    Ok(())
}

/// Receives bytes and the descriptors that came with them, close-on-exec; 0 bytes is the end.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)
    })?;
    let mut descriptors = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    Ok((message.bytes, descriptors))
}

/// How many bytes of what was written to a unix stream socket the other side has not read, SIOCOUTQ as
/// unix(7) has it: with what the kernel needs around them.
pub fn unread(socket: BorrowedFd<'_>) -> Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which SIOCOUTQ is, writes an int, which lives past the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    // While the last of it is given back, the kernel holds one.
    Ok(usize::try_from(bytes).unwrap_or(0).saturating_sub(1))
}

/// A path for bind(2) and connect(2) to a socket in an open folder: short, however long the folder's
/// own path is (unix(7) allows 108 bytes). Good as long as the folder stays open, in this process.
#[must_use]
pub fn path_in(folder: BorrowedFd<'_>, name: &str) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_arrive_with_the_bytes() {
        let (left, right) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send_all(left.as_fd(), b"hello", &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut bytes = [0; 16];
        let (count, mut descriptors) = receive(right.as_fd(), &mut bytes).unwrap();
        assert_eq!((&bytes[..count], descriptors.len()), (&b"hello"[..], 1));
        let moved = descriptors.pop().unwrap();
        rustix::io::write(&moved, b"x").unwrap();
        drop(moved);
        assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 1);
        drop(left);
        assert_eq!(receive(right.as_fd(), &mut bytes).unwrap().0, 0);
    }
}
