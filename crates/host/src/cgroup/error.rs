//! What can go wrong with a control group.

use insula_base::{Kind, Kinded};

/// `Result` with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{call} {on}")]
    Call { call: &'static str, on: String, source: std::io::Error },
    /// The kernel refused a limit.
    #[error("set {limit} to {value:?} ({file})")]
    Limit { limit: &'static str, value: String, file: String, source: std::io::Error },
    #[error("cgroup path {0:?} is not a plain relative path")]
    Path(String),
    #[error("the host has no control groups mounted")]
    NoHierarchy,
    #[error("{0}")]
    Unsupported(&'static str),
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Call { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Kind::NotFound,
            Self::Call { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Kind::Denied
            }
            Self::Call { .. } => Kind::Internal,
            Self::Limit { .. } | Self::Path(_) => Kind::InvalidArgument,
            Self::NoHierarchy | Self::Unsupported(_) => Kind::Unsupported,
        }
    }
}

/// Says which call failed and on what, at the place where both are known.
pub(super) trait Context<T> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Call { call, on: on.to_string(), source: error.into() })
    }
}
