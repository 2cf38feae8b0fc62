//! What ends a monitor, or makes it refuse a request.

use insula_base::{Kind, Kinded};

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{call} {on}")]
    Call { call: &'static str, on: String, source: std::io::Error },
    #[error(transparent)]
    Sandbox(#[from] insula_sandbox::Error),
    #[error("{what} cannot be read")]
    Malformed { what: &'static str, source: serde_json::Error },
    #[error("{0}")]
    Invalid(&'static str),
    #[error("the container is paused, unpause it before exec")]
    Frozen,
    #[error("the container has no machine of its own: it runs on the host's kernel")]
    NoMachine,
    /// A newer peer asked for something that this monitor does not know.
    #[error("this monitor does not know the request")]
    Unknown,
}

impl Error {
    /// 126 or 127 when a program could not be executed.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Sandbox(error) => error.exit_code(),
            _ => None,
        }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Call { .. } => Kind::Internal,
            Self::Sandbox(error) => error.kind(),
            Self::Malformed { .. } | Self::Invalid(_) => Kind::InvalidArgument,
            Self::Frozen => Kind::Conflict,
            Self::Unknown | Self::NoMachine => Kind::Unsupported,
        }
    }
}

/// Says which call failed and on what, at the place where both are known.
pub(crate) trait Context<T> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Call { call, on: on.to_string(), source: error.into() })
    }
}
