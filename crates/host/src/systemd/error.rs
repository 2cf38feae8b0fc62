//! What can go wrong with systemd.

use std::io;

use insula_base::{Kind, Kinded};

/// `Result` with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every address that was tried, with what was wrong there.
    #[error("no systemd answers: {0}")]
    Nowhere(String),
    #[error("{call} {on}")]
    Call { call: &'static str, on: String, source: io::Error },
    /// The other side does not follow D-Bus.
    #[error("D-Bus: {0}")]
    Protocol(&'static str),
    /// By the name that the bus has for the error.
    #[error("systemd: {member}: {text} ({name})")]
    Refused { member: &'static str, name: String, text: String },
    #[error("systemd: {unit}: the job ended as {result:?}")]
    Job { unit: String, result: String },
    #[error("systemd: {0} takes too long")]
    Late(&'static str),
}

impl Error {
    /// Whether systemd refused with the error of this name.
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name == wanted)
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Nowhere(_) => Kind::Unsupported,
            Self::Refused { .. } | Self::Job { .. } => Kind::InvalidArgument,
            Self::Late(_) => Kind::Unavailable,
            Self::Call { .. } | Self::Protocol(_) => Kind::Internal,
        }
    }
}

/// Says which call failed and on what.
pub(super) trait Context<T> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T> {
        self.map_err(|source| Error::Call { call, on: on.to_string(), source })
    }
}
