//! What can go wrong between a client and its daemon.

use std::io;

use insula_base::{Kind, Kinded};

use crate::Address;

/// Result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the address.
    #[error("Cannot connect to the insula daemon at {address}. Is insulad running?")]
    Connect {
        /// Where.
        address: Address,
        /// What connect(2) said.
        #[source]
        source: io::Error,
    },
    /// The address cannot be used by this version.
    #[error("{address:?} is not an address that insula can connect to: {reason}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
        /// `Unsupported` or `InvalidArgument`.
        kind: Kind,
    },
    /// A call about one object, without a name: the path would be that of another call.
    #[error("invalid {object} name or ID: value is empty")]
    EmptyName {
        /// `container`, `image`.
        object: &'static str,
    },
    /// The daemon refused or failed; the message is the daemon's.
    #[error("{message}")]
    Daemon {
        /// HTTP status.
        status: u16,
        /// The body's `message`.
        message: String,
    },
    /// The connection broke in the middle of a call.
    #[error("connection to the daemon, {call}")]
    Connection {
        /// Method and path.
        call: String,
        /// What HTTP said.
        #[source]
        source: hyper::Error,
    },
    /// An answer that is not the document of its route.
    #[error("answer of the daemon to {call}: {reason}")]
    Answer {
        /// Method and path.
        call: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The stream of a hijacked connection, or a file that is sent.
    #[error("{doing}")]
    Io {
        /// What was done.
        doing: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The HTTP status, when the daemon gave one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Daemon { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Connect { .. } | Self::Connection { .. } => Kind::Unavailable,
            Self::Address { kind, .. } => *kind,
            Self::EmptyName { .. } => Kind::InvalidArgument,
            Self::Daemon { status, .. } => match status {
                400 => Kind::InvalidArgument,
                401 | 403 => Kind::Denied,
                404 => Kind::NotFound,
                409 => Kind::Conflict,
                501 => Kind::Unsupported,
                503 => Kind::Unavailable,
                _ => Kind::Internal,
            },
            Self::Answer { .. } | Self::Io { .. } => Kind::Internal,
        }
    }
}
