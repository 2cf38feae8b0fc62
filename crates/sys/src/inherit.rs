//! Descriptors that the parent process left open for this one.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes over descriptor `number`, which the command line says is open, and marks it close-on-exec.
/// EBADF if it is not open. To be called once for a number, before the program opens anything.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) with F_SETFD takes an integer; a number that is not open gives EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as fcntl has just shown, and by the contract above nothing else
    // in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn an_open_descriptor_is_taken_and_others_are_refused() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = theirs.into_raw_fd();
        let taken = take(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert_eq!(take(1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
        drop(ours);
    }
}
