//! Sockets between the guest and who owns its machine (specification 1.2, 5.10): streams. Here their ends are Unix
//! sockets, and nobody but the guest's owner is reached.
//!
//! ```text
//! host program ── connects, says "CONNECT 80\n" ── listener ──┐
//!              ◄─ "OK 1073741824\n", then the stream ─────────┤ Vsock ══ queues ══ guest, CID 3 or more
//! host program ◄─ connection to PATH_90 ── broker ◄─ port 90 ─┘                   its host is CID 2
//! ```
//!
//! The device opens nothing: it takes connections of a socket that listens already, and asks a broker for those that
//! the guest wants.

mod backend;
mod connection;
mod device;
mod request;
#[cfg(test)]
mod tests;

pub use device::Vsock;
