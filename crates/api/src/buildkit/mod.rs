//! BuildKit's protocol: builds of clients that serve what a build needs of them.
//!
//! ```text
//! POST /session ── upgraded: the client serves gRPC on it, the daemon asks ──┐
//!                                                                            ├ files, secrets, agents, credentials
//! POST /build?version=2&session=ID ── the build, which waits for the session ┘
//!        └─> lines of JSON, in which steps are told as BuildKit's records
//! ```
//!
//! What a client serves is asked for when a step needs it. Its files come as a list first and then piece by piece,
//! and become the archive that every build begins with; the engine knows nothing of the protocol.

mod agents;
mod build;
mod client;
mod files;
mod grpc;
mod messages;
mod output;
mod refusal;
mod session;
mod status;

pub(crate) use self::build::{Asked, BuildKit, IS_SENT, cancel, prepare};
pub(crate) use self::refusal::refuse;
pub(crate) use self::session::open;
