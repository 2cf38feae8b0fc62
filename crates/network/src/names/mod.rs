//! Names of containers: who is called what in which network, and the answers to queries about it.
//!
//! Nothing here does I/O. The daemon receives queries on sockets that the monitors keep
//! ([`insula_host::resolver`]), asks [`answer`], and passes on what is not about containers.

mod directory;
mod message;
mod upstream;

pub use directory::{Directory, View};
pub use message::{Answer, LARGEST_QUERY, Transport, answer, failure, relates};
pub use upstream::Upstreams;
