//! What clients may hold, and for how long.

use std::time::Duration;

/// Connections of all clients; more wait to be accepted. Fewer where descriptors are short.
pub const MOST_CONNECTIONS: usize = 4096;
/// Connections of one client, which for IPv6 is a network of 64 bits; more are closed at once.
pub const MOST_OF_ONE: usize = 512;
/// Descriptors that one connection needs at most, its container's among them.
pub(crate) const DESCRIPTORS: usize = 2;
/// Descriptors for everything else, idle connections to containers among them.
pub(crate) const OTHER_DESCRIPTORS: usize = 256;

/// Bytes of the head of a request or response, and of a client's first message of TLS.
pub(crate) const HEAD: usize = 64 << 10;
/// Fields of one head.
pub(crate) const FIELDS: usize = 128;
/// Requests that a client has under way on one connection of HTTP/2.
pub(crate) const STREAMS: u32 = 128;

/// For a head to arrive whole, the one that a kept connection waits for among them; for a handshake of TLS too.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(30);
/// For a connection of HTTP/2 without a request.
pub(crate) const IDLE: Duration = Duration::from_secs(60);
/// For the next part of a request's body, and for a client to take anything of what is sent to it.
pub(crate) const STALL: Duration = Duration::from_secs(60);
/// For a container to accept a connection.
pub(crate) const CONNECT: Duration = Duration::from_secs(3);
/// For connections that there are when the end comes.
pub(crate) const DRAIN: Duration = Duration::from_secs(30);

/// Connections to one container that wait for the next request, and how long they do.
pub(crate) const KEPT: usize = 16;
pub(crate) const KEPT_TIME: Duration = Duration::from_secs(20);
