//! A connection that stopped being HTTP.

use std::io;
use std::os::unix::net::UnixStream;

use hyper_util::rt::TokioIo;

use crate::error::{Error, Result};

/// The raw stream of attach and exec: a blocking unix socket.
#[derive(Debug)]
pub struct Hijacked {
    /// The socket; its write half may be shut down to end standard input.
    pub stream: UnixStream,
    /// What was read beyond the HTTP answer: it comes before the socket's bytes.
    pub leftover: Vec<u8>,
    /// Whether output is multiplexed, when the daemon said so in its content type.
    pub multiplexed: Option<bool>,
}

impl Hijacked {
    /// Takes the socket out of an upgraded connection.
    pub(crate) fn new(upgraded: hyper::upgrade::Upgraded, content_type: Option<&str>) -> Result<Self> {
        let failed = |source| Error::Io { doing: "take over the connection for a stream".to_owned(), source };
        let parts = upgraded
            .downcast::<TokioIo<tokio::net::UnixStream>>()
            .map_err(|_| failed(io::Error::other("it is not a unix socket")))?;
        let stream = parts.io.into_inner().into_std().map_err(failed)?;
        stream.set_nonblocking(false).map_err(failed)?;
        let multiplexed = match content_type {
            Some("application/vnd.docker.multiplexed-stream") => Some(true),
            Some("application/vnd.docker.raw-stream") => Some(false),
            _ => None,
        };
        Ok(Self { stream, leftover: parts.read_buf.to_vec(), multiplexed })
    }
}
