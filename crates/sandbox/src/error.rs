//! What a wall answers when it cannot.

use insula_base::{Kind, Kinded};

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Container(#[from] insula_container::Error),
    #[error(transparent)]
    Cgroup(#[from] insula_host::cgroup::Error),
    #[error("{call} {on}")]
    Call { call: &'static str, on: &'static str, source: std::io::Error },
    /// The sandbox is in another phase than the request needs.
    #[error("the container is {is}, not {needed}")]
    Phase { is: &'static str, needed: &'static str },
    #[error("no process {0} in this container")]
    NoExec(String),
    #[error("process {0} exists in this container")]
    ExecExists(String),
    #[error("the process has no terminal")]
    NoTerminal,
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
            Self::Container(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::Call { .. } => Kind::Internal,
            Self::Phase { .. } | Self::NoTerminal => Kind::Conflict,
            Self::ExecExists(_) => Kind::AlreadyExists,
            Self::NoExec(_) => Kind::NotFound,
        }
    }
}
