//! The socket that gets a terminal: the master by SCM_RIGHTS, with its name as the message.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::error::{Context, Error, Result};

/// A terminal is to go somewhere, and only a terminal.
pub(crate) fn check(terminal: bool, socket: Option<&Path>) -> Result<()> {
    match (terminal, socket) {
        (true, None) => Err(Error::Unsupported("a terminal without --console-socket".to_owned())),
        (false, Some(_)) => {
            Err(Error::Invalid("--console-socket is for a process with a terminal".to_owned()))
        }
        _ => Ok(()),
    }
}

pub(crate) fn send(path: &Path, master: &OwnedFd) -> Result<()> {
    let socket = UnixStream::connect(path).context("connect", path.display())?;
    insula_sys::socket::send_all(socket.as_fd(), b"/dev/ptmx", &[master.as_fd()])
        .context("sendmsg", path.display())
}
