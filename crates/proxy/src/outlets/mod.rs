//! Ports of the host for an ordinary user's engine: the sockets are the host's, the connections that this makes are the
//! engine's network namespace's.
//!
//! ```text
//! control ──> table ──> tcp, udp     the daemon's orders, what is served, one task for each port
//! ```

mod control;
mod table;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use tokio::sync::Semaphore;

use self::table::Table;

/// Descriptors that are no connections'.
const SPARE: usize = 64;
/// A connection has two, and pipes none.
const DESCRIPTORS_EACH: usize = 2;

/// Carries what comes to the ports until the daemon orders the end. `control` listens for the daemon; `descriptors` is
/// how many may be open.
pub async fn carry(control: OwnedFd, descriptors: usize) -> Result<(), crate::Error> {
    let most = (descriptors.saturating_sub(SPARE) / DESCRIPTORS_EACH).clamp(1, Semaphore::MAX_PERMITS);
    let table = Arc::new(Table::new(tokio::runtime::Handle::current(), Arc::new(Semaphore::new(most))));
    let listener = UnixListener::from(control);
    let obeyed = tokio::task::spawn_blocking(move || control::obey(&listener, &table)).await;
    match obeyed {
        Ok(Err(source)) => Err(crate::Error::Listener { call: "accept from", source }),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}
