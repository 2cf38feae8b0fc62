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
    #[error("{call} {}", path.display())]
    File { call: &'static str, path: std::path::PathBuf, source: std::io::Error },
    /// A program that a machine needs is not installed.
    #[error(
        "{program} is not installed, which a container with a kernel of its own needs (Debian's {package} has it)"
    )]
    Missing { program: &'static str, package: &'static str },
    /// The machine ended, did not start, or its agent does not answer.
    #[error("{0}")]
    Machine(String),
    /// What the agent answered; the message is the whole chain.
    #[error("{message}")]
    Guest { kind: Kind, message: String, exit_code: u8 },
    #[error("the guest's agent is not to be understood")]
    Channel(#[from] insula_proto::channel::ChannelError),
    #[error("{0}")]
    Invalid(String),
    /// Nothing of what it takes is left.
    #[error("{0}")]
    Full(String),
    /// This wall cannot do it.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl Error {
    pub(crate) fn call(call: &'static str, on: &'static str, source: rustix::io::Errno) -> Self {
        Self::Call { call, on, source: source.into() }
    }

    /// 126 or 127 when a program could not be executed.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Container(error) => error.exit_code(),
            Self::Guest { exit_code, .. } if *exit_code != 0 => Some(*exit_code),
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
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Kind::NotFound,
            Self::File { .. } => Kind::Internal,
            Self::Missing { .. } | Self::Machine(_) | Self::Channel(_) => Kind::Unavailable,
            Self::Guest { kind, .. } => *kind,
            Self::Invalid(_) => Kind::InvalidArgument,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Phase { .. } | Self::NoTerminal | Self::Full(_) => Kind::Conflict,
            Self::ExecExists(_) => Kind::AlreadyExists,
            Self::NoExec(_) => Kind::NotFound,
        }
    }
}
