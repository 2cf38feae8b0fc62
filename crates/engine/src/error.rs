//! The errors of the use cases.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use insula_base::{Kind, Kinded};

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is malformed or contradicts itself.
    #[error("{0}")]
    InvalidArgument(String),
    /// The named object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The object is in a state that forbids the request.
    #[error("{0}")]
    Conflict(String),
    /// The caller or the engine lacks the right.
    #[error("{0}")]
    Denied(String),
    /// This version, the host or the wall cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// A system call failed.
    #[error("{call} {path:?}")]
    Io {
        call: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The host has none left for the moment.
    #[error(transparent)]
    Thread(io::Error),
    #[error(transparent)]
    Store(#[from] insula_store::Error),
    #[error(transparent)]
    Registry(#[from] insula_registry::Error),
    /// The failure of something that several requests waited for.
    #[error(transparent)]
    Shared(Arc<Error>),
    #[error(transparent)]
    Network(#[from] insula_network::Error),
    #[error(transparent)]
    Confine(#[from] insula_host::confine::Error),
    #[error(transparent)]
    Cgroup(#[from] insula_host::cgroup::Error),
    /// Something that the host lacks for the moment, or until somebody installs it.
    #[error("{0}")]
    Unavailable(String),
    /// A monitor that is stopped or stuck. What it was asked for is not begun any more.
    #[error("{0}")]
    Silent(String),
    #[error(transparent)]
    Guest(#[from] insula_host::guest::Error),
    /// The monitor refused or failed. The message is the whole chain of causes.
    #[error("{message}")]
    Wall {
        kind: Kind,
        message: String,
        /// 126 or 127 when a program could not be executed.
        exit_code: Option<i32>,
    },
    #[error(transparent)]
    Dockerfile(#[from] insula_build::Error),
    /// An instruction of a Dockerfile that could not be done.
    #[error("Dockerfile:{line}: {text}")]
    Build {
        line: u32,
        text: String,
        #[source]
        source: Box<Error>,
    },
    /// A defect of this program.
    #[error("{0}")]
    Internal(String),
}

/// The result of a use case.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether a registry did not accept credentials.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Registry(insula_registry::Error::Unauthorized { .. }))
    }

    pub(crate) fn io(call: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { call, path: path.to_owned(), source: source.into() }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::InvalidArgument(_) => Kind::InvalidArgument,
            Self::NotFound(_) => Kind::NotFound,
            Self::Conflict(_) => Kind::Conflict,
            Self::Denied(_) => Kind::Denied,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Kind::Denied,
                io::ErrorKind::InvalidFilename => Kind::InvalidArgument,
                _ if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                    Kind::InvalidArgument
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::Unavailable,
                _ => Kind::Internal,
            },
            Self::Store(error) => error.kind(),
            Self::Registry(error) => error.kind(),
            Self::Shared(error) => error.kind(),
            Self::Network(error) => error.kind(),
            Self::Confine(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::Guest(error) => error.kind(),
            Self::Dockerfile(error) => error.kind(),
            Self::Build { source, .. } => source.kind(),
            Self::Unavailable(_) | Self::Silent(_) | Self::Thread(_) => Kind::Unavailable,
            Self::Wall { kind, .. } => *kind,
            Self::Internal(_) => Kind::Internal,
        }
    }
}
