//! The monitor of one sandbox: serves the task protocol, holds the standard streams, writes the log and
//! the exit record. It outlives the daemon and ends when its container has ended and everyone
//! attached has got everything.
//!
//! One thread, one epoll. [`serve::Monitor`] is the loop; [`connection`] a daemon's connection;
//! [`streams`] the standard streams of one process with their clients; [`log`] the file format;
//! [`record`] what is left for a daemon that was not there.

mod clock;
mod connection;
mod error;
mod log;
mod poll;
pub mod record;
mod serve;
mod streams;

pub use error::{Error, Result};
pub use serve::Monitor;

/// Says on standard error, which is the daemon's, what went wrong without ending the monitor.
pub(crate) fn report(what: &str, error: &dyn std::error::Error) {
    eprintln!("insula-monitor[{}]: {what}: {}", std::process::id(), insula_base::chain(error));
}
