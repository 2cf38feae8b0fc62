//! What can go wrong in the life of a container. Texts are those that engines look for.

use std::io;

use insula_base::{Kind, Kinded};
use insula_spec::bundle::Status;

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("container {0:?} does not exist")]
    Unknown(String),
    #[error("container with given ID already exists: {0:?}")]
    Exists(String),
    #[error("invalid container ID {0:?}")]
    Id(String),
    #[error("{call} {on}")]
    Call { call: &'static str, on: String, source: io::Error },
    #[error("{on} is damaged")]
    Damaged { on: String, source: serde_json::Error },
    #[error("cannot delete container {id} that is not stopped: {}", status.name())]
    Alive { id: String, status: Status },
    #[error("container not running")]
    NotRunning,
    #[error("cannot {verb} a container that is {}", status.name())]
    Phase { verb: &'static str, status: Status },
    /// CRIU's own words, and where there are more of them.
    #[error("criu {verb}: {status}: {said} (in full: {})", log.display())]
    Criu { verb: String, status: String, said: String, log: std::path::PathBuf },
    #[error("{0}")]
    Invalid(String),
    #[error("{0} is not supported")]
    Unsupported(String),
    #[error(transparent)]
    Document(#[from] insula_spec::bundle::Error),
    #[error(transparent)]
    Container(#[from] insula_container::Error),
    #[error(transparent)]
    Resctrl(#[from] insula_host::resctrl::Error),
    #[error(transparent)]
    Cgroup(#[from] insula_host::cgroup::Error),
    #[error(transparent)]
    Systemd(#[from] insula_host::systemd::Error),
}

impl Error {
    /// 126 or 127 when a program could not be executed.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Container(error) => error.exit_code(),
            _ => None,
        }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Unknown(_) => Kind::NotFound,
            Self::Exists(_) => Kind::AlreadyExists,
            Self::Id(_) | Self::Invalid(_) => Kind::InvalidArgument,
            Self::Alive { .. } | Self::NotRunning | Self::Phase { .. } => Kind::Conflict,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Call { .. } | Self::Damaged { .. } | Self::Criu { .. } => Kind::Internal,
            Self::Document(error) => error.kind(),
            Self::Container(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::Systemd(error) => error.kind(),
            Self::Resctrl(error) => error.kind(),
        }
    }
}

/// Says which call failed and on what.
pub(crate) trait Context<T> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T> {
        self.map_err(|source| Error::Call { call, on: on.to_string(), source: source.into() })
    }
}
