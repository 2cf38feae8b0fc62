//! The only place that prints.

use std::io::{self, Write};

use crate::failure::OutputError;

/// Prints a line on standard output.
pub(crate) fn line(text: &str) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).map_err(OutputError)
}

/// Prints text that has its line ends on standard output.
pub(crate) fn text(text: &str) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(OutputError)
}

/// Bytes as they are on standard output.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(OutputError)
}

/// Bytes as they are on standard error; a reader that is gone is nobody's concern.
pub(crate) fn error_bytes(bytes: &[u8]) {
    let _ = io::stderr().lock().write_all(bytes);
}

/// Prints text that has its line ends on standard error.
pub(crate) fn error_text(text: &str) {
    error_bytes(text.as_bytes());
}

/// Prints a line on standard error.
pub(crate) fn error(text: &str) {
    error_text(&format!("{text}\n"));
}

/// A notice of insula's own on standard error.
pub(crate) fn notice(text: &str) {
    error_text(&format!("insula: {text}\n"));
}

/// A warning on standard error, as Docker spells it.
pub(crate) fn warning(text: &str) {
    error_text(&format!("WARNING: {text}\n"));
}

/// Where the output of a container goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    Stdout,
    Stderr,
}

/// Writes bytes past std's buffers: the output of containers.
pub(crate) fn raw(sink: Sink, mut bytes: &[u8]) -> Result<(), OutputError> {
    use std::os::fd::AsFd;

    let (out, err) = (io::stdout(), io::stderr());
    let descriptor = match sink {
        Sink::Stdout => out.as_fd(),
        Sink::Stderr => err.as_fd(),
    };
    while !bytes.is_empty() {
        match rustix::io::write(descriptor, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            // Somebody who shares the terminal has made it non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                let mut wait =
                    [rustix::event::PollFd::from_borrowed_fd(descriptor, rustix::event::PollFlags::OUT)];
                match rustix::event::poll(&mut wait, None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(OutputError(error.into())),
                }
            }
            Err(error) => return Err(OutputError(error.into())),
        }
    }
    Ok(())
}
