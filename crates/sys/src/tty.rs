//! Pseudo terminals: pty(7), ioctl_tty(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Result;

use crate::process::{check, last};

/// Unlocks the terminal of a master and opens it by TIOCGPTPEER: no path is looked up, so nobody
/// can put another file in its place.
pub fn open_peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int, which lives past the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a descriptor.
    let peer = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if peer < 0 {
        return Err(last());
    }
    // SAFETY: `peer` is a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(peer) })
}

/// Makes a terminal the controlling one of the session that the caller leads, TIOCSCTTY.
pub fn set_controlling(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the argument is an int passed by value.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })
}
