//! What can go wrong with a control group.

use insula_base::{Kind, Kinded};
use rustix::io::Errno;

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
    #[error("the host has no control groups mounted: mount -t cgroup2 none /sys/fs/cgroup")]
    NoHierarchy,
    #[error("control groups are mounted read-only, {0} cannot be made: mount them writable")]
    ReadOnly(String),
    /// The rule of cgroups(7) that a group of version 2 has processes or controlled groups, never both.
    #[error(
        "{0} has processes, so that groups below it cannot have limits: move them to a group of their own"
    )]
    Occupied(String),
    /// Processes did not do in time what the kernel told them to.
    #[error("{0}")]
    Stuck(&'static str),
    #[error("{0}")]
    Unsupported(&'static str),
}

impl Error {
    /// Whether a call failed with this error number.
    pub(super) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Call { source, .. } if source.raw_os_error() == Some(errno.raw_os_error()))
    }
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
            Self::Stuck(_) => Kind::Unavailable,
            Self::NoHierarchy | Self::ReadOnly(_) | Self::Occupied(_) | Self::Unsupported(_) => {
                Kind::Unsupported
            }
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
