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
    /// A copy of a template did not go on: its state was refused, or it does not answer.
    #[error("{0}")]
    Template(String),
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

    /// The same of a machine that was to be a copy of a template, as far as it is the machine's own.
    pub(crate) fn of_copy(self) -> Self {
        match self {
            Self::Machine(why) => Self::Template(why),
            error @ Self::Channel(_) => Self::Template(insula_base::chain(&error)),
            error => error,
        }
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
            Self::Missing { .. } | Self::Machine(_) | Self::Template(_) | Self::Channel(_) => {
                Kind::Unavailable
            }
            Self::Guest { kind, .. } => *kind,
            Self::Invalid(_) => Kind::InvalidArgument,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Phase { .. } | Self::NoTerminal | Self::Full(_) => Kind::Conflict,
            Self::ExecExists(_) => Kind::AlreadyExists,
            Self::NoExec(_) => Kind::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_machines_own_says_nothing_of_a_template() {
        let of_template = |error: Error| matches!(error.of_copy(), Error::Template(_));
        assert!(of_template(Error::Machine("the guest's agent does not answer".to_owned())));
        assert!(of_template(insula_proto::channel::ChannelError::Malformed("a reply").into()));
        let answered = Error::Guest { kind: Kind::Internal, message: String::new(), exit_code: 0 };
        for other in [Error::call("socketpair", "for a machine", rustix::io::Errno::MFILE), answered] {
            assert!(!of_template(other));
        }
    }
}
