//! Threads of a host that may have none left (`TasksMax` of a unit, `pids.max` of a control group).
//!
//! `std::thread::spawn` and `Scope::spawn` panic there, which ends a program that is built to abort. These fail.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// Runs `work` on a thread of its own.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] where there is no thread to be had. `work` is dropped then, and with it what it would
/// have answered on.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(work).map_err(said)
}

/// The same in a scope, which waits for it.
///
/// # Errors
/// As [`spawn`]'s.
pub fn scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, work).map_err(said)
}

fn said(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("start a thread: {error}"))
}
