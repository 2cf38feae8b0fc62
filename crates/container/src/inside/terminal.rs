//! The terminal of a process, from the container's own devpts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_sys::tty;
use rustix::fs::{Mode, OFlags};
use rustix::termios::Winsize;

use crate::error::{Context, Error, Result};
use crate::handshake::Channel;
use crate::streams::Ends;

/// `f_type` of devpts, statfs(2).
const DEVPTS: u64 = 0x1cd1;

/// Opens a terminal where the streams are one, sends its master out and keeps the slave.
pub(crate) fn open(ends: &Ends, channel: &Channel) -> Result<Option<OwnedFd>> {
    let Ends::Terminal { columns, rows } = *ends else { return Ok(None) };
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).context("open", "/dev/pts/ptmx")?;
    // A running container may have put something else there for a process that joins.
    let kind = rustix::fs::fstatfs(&master).context("fstatfs", "/dev/pts/ptmx")?.f_type;
    if kind as u64 != DEVPTS {
        return Err(Error::Invalid("/dev/pts/ptmx is not a terminal multiplexer".to_owned()));
    }
    let slave = tty::open_peer(master.as_fd()).context("ioctl TIOCGPTPEER", "/dev/pts/ptmx")?;
    if columns != 0 && rows != 0 {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).context("ioctl TIOCSWINSZ", "the terminal")?;
    }
    channel.report_terminal(master.as_fd())?;
    Ok(Some(slave))
}

/// Makes the terminal that of the caller's session.
pub(crate) fn control(slave: BorrowedFd<'_>) -> Result<()> {
    tty::set_controlling(slave).context("ioctl TIOCSCTTY", "the terminal")
}
