//! The Docker Engine API on a unix socket: versions, routes, streams, hijacked connections.
//!
//! No use case lives here: a route reads its request, calls the engine and writes what the engine
//! said. Workloads' streams do not pass through either: a hijacked connection is handed on.

mod app;
mod error;
mod hijack;
mod listen;
mod request;
mod routes;
mod server;
mod stream;
mod version;

pub use error::ApiError;
pub use listen::{ListenError, bind};
pub use server::serve;
pub use version::ApiVersion;
