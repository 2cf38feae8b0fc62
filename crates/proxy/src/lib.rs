//! HTTP by `Host` and TLS by server name, from the host's ports to containers.
//!
//! The proxy outlives the daemon: it serves the table that it was told last ([`insula_spec::sites::Table`]),
//! opens no file, and never needs a privilege. Every byte that comes from a client is parsed by hyper, h2 or
//! rustls, within bounds; what a client may hold, and for how long, stands in [`limits`].
//!
//! ```text
//! server ──> connection ──> request ──> target      one of these for each listener, client, request, container
//!    │            └──> hello, identity                TLS: who is asked for, and what proves it
//!    └── control ──> table                            the daemon's orders
//! ```

mod body;
mod connection;
mod control;
mod headers;
mod hello;
mod identity;
pub mod limits;
pub mod outlets;
mod request;
mod server;
mod stream;
mod table;
mod target;
#[cfg(test)]
mod tests;

pub use server::{Listeners, serve};

/// What stops a proxy from serving.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{call} a listening socket")]
    Listener {
        call: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
}

impl insula_base::Kinded for Error {
    fn kind(&self) -> insula_base::Kind {
        insula_base::Kind::Internal
    }
}
