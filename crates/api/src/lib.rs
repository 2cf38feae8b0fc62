//! The Docker Engine API on a unix socket: versions, routes, streams, hijacked connections.
//!
//! No use case lives here: a route reads its request, calls the engine and writes what the engine
//! said. Workloads' streams do not pass through either: a hijacked connection is handed on.

mod app;
mod authorization;
mod buildkit;
mod door;
mod earlier;
mod error;
mod hijack;
mod leftover;
mod listen;
mod metrics;
mod plain;
mod registry_names;
mod request;
mod routes;
mod sent;
mod server;
mod stream;
mod target;
mod tls;
mod upload;
mod version;
mod web_socket;

pub use authorization::{Authorization, PluginError};
pub use error::ApiError;
pub use insula_models::ApiVersion;
pub use listen::{Group, ListenError, NoSuchGroup, bind};
pub use plain::parse as parse_plain_takeover;
pub use server::Server;
pub use tls::{Files as TlsFiles, TlsError, acceptor as tls_acceptor};
