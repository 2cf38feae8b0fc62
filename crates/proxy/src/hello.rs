//! The first message of TLS: who is asked for, before anything is answered.

use std::io;

use insula_spec::sites::HostName;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits;

/// A fatal alert `unrecognized_name` (RFC 8446, 6), as a record.
pub(crate) const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A client's first message.
#[derive(Debug)]
pub(crate) struct Hello {
    /// What was read of it, for whoever speaks TLS with this client.
    pub(crate) bytes: Vec<u8>,
    /// The server name (RFC 6066, 3), if it says one.
    pub(crate) name: Option<HostName>,
}

/// Reads it, whole.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Hello> {
    let (mut acceptor, mut bytes) = (Acceptor::default(), Vec::new());
    loop {
        let begin = bytes.len();
        if begin >= limits::HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut part = [0; 4096];
        let count = stream.read(&mut part).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&part[..count]);
        let mut unread = &bytes[begin..];
        while !unread.is_empty() {
            acceptor.read_tls(&mut unread)?;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().and_then(|name| name.parse().ok());
                    return Ok(Hello { bytes, name });
                }
                Err((error, _)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
    }
}
