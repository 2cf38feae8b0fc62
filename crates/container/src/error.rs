//! What can go wrong between a plan and a running program.

use insula_base::{Kind, Kinded};
use rustix::io::Errno;

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed: which, and on what.
    #[error("{call} {on}")]
    Call { call: &'static str, on: String, source: std::io::Error },
    /// The plan asks for something that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The host cannot do what the plan asks for.
    #[error("{0}")]
    Unsupported(String),
    /// The program cannot be executed: 127 when it is not there, 126 otherwise.
    #[error("exec: {program:?}: {reason}")]
    Program { program: String, reason: &'static str, exit_code: u8 },
    /// A hook of a bundle failed.
    #[error("{hook}: {problem}")]
    Hook { hook: String, problem: String },
    /// What the init or a joining process reported; the message is the whole chain.
    #[error("{message}")]
    Inside { kind: Kind, message: String, exit_code: u8 },
    /// The init ended without a word.
    #[error("the container's init ended before it could execute the program")]
    Lost,
    #[error(transparent)]
    Network(#[from] insula_host::netlink::Error),
    #[error(transparent)]
    Cgroup(#[from] insula_host::cgroup::Error),
    #[error(transparent)]
    Confine(#[from] insula_host::confine::Error),
}

impl Error {
    /// The exit code that a shell uses for a program that cannot be executed, where it is that.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Program { exit_code, .. } => Some(*exit_code),
            Self::Inside { exit_code, .. } if *exit_code != 0 => Some(*exit_code),
            _ => None,
        }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Call { source, .. } => kind_of(source),
            Self::Invalid(_) | Self::Program { .. } => Kind::InvalidArgument,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Inside { kind, .. } => *kind,
            Self::Lost | Self::Hook { .. } => Kind::Internal,
            Self::Network(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::Confine(error) => error.kind(),
        }
    }
}

fn kind_of(source: &std::io::Error) -> Kind {
    match source.kind() {
        std::io::ErrorKind::NotFound => Kind::NotFound,
        std::io::ErrorKind::PermissionDenied => Kind::Denied,
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::OutOfMemory => Kind::Unavailable,
        _ => Kind::Internal,
    }
}

/// Says which call failed and on what, at the place where both are known.
pub(crate) trait Context<T> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, Errno> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T> {
        self.map_err(|errno| Error::Call { call, on: on.to_string(), source: errno.into() })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T> {
        self.map_err(|source| Error::Call { call, on: on.to_string(), source })
    }
}
