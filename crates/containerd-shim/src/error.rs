//! What can go wrong between containerd and a container.

use std::io;

use containerd_shim_protos::protobuf;
use containerd_shim_protos::ttrpc::{self, Code};
use insula_base::{Kind, Kinded};

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("task {0:?} does not exist")]
    UnknownTask(String),
    #[error("process {exec:?} of task {task:?} does not exist")]
    UnknownProcess { task: String, exec: String },
    #[error("{0:?} exists already")]
    Exists(String),
    #[error("process has ended already")]
    Ended,
    #[error("cannot {verb} a process that is {phase}")]
    Phase { verb: &'static str, phase: &'static str },
    #[error("{call} {on}")]
    Call { call: &'static str, on: String, source: io::Error },
    #[error("{0}")]
    Invalid(String),
    #[error("{0} is not supported")]
    Unsupported(String),
    /// In the words of `insula-runtime`.
    #[error("{0}")]
    Runtime(String),
    /// In the words of a monitor, or of who owns a machine.
    #[error("{message}")]
    Wall { kind: Kind, message: String },
    #[error("{on} is damaged")]
    Damaged { on: String, source: serde_json::Error },
    #[error("{on}")]
    Message { on: &'static str, source: protobuf::Error },
    #[error("{on}")]
    Rpc { on: &'static str, source: ttrpc::Error },
    #[error(transparent)]
    Document(#[from] insula_spec::bundle::Error),
    #[error(transparent)]
    Container(#[from] insula_runtime_core::Error),
    #[error(transparent)]
    Cgroup(#[from] insula_host::cgroup::Error),
    #[error(transparent)]
    Network(#[from] insula_host::netlink::Error),
    #[error(transparent)]
    Kernel(#[from] insula_host::guest::Error),
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            // containerd takes a signal to a process that has ended for success by this kind.
            Self::UnknownTask(_) | Self::UnknownProcess { .. } | Self::Ended => Kind::NotFound,
            Self::Exists(_) => Kind::AlreadyExists,
            Self::Phase { .. } => Kind::Conflict,
            Self::Invalid(_) => Kind::InvalidArgument,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Call { .. }
            | Self::Runtime(_)
            | Self::Damaged { .. }
            | Self::Message { .. }
            | Self::Rpc { .. } => Kind::Internal,
            Self::Document(error) => error.kind(),
            Self::Container(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::Network(error) => error.kind(),
            Self::Kernel(error) => error.kind(),
            Self::Wall { kind, .. } => *kind,
        }
    }
}

impl From<Error> for ttrpc::Error {
    /// The codes are those that containerd's own errors have.
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            Kind::InvalidArgument => Code::INVALID_ARGUMENT,
            Kind::NotFound => Code::NOT_FOUND,
            Kind::AlreadyExists => Code::ALREADY_EXISTS,
            Kind::Conflict => Code::FAILED_PRECONDITION,
            Kind::Denied => Code::PERMISSION_DENIED,
            Kind::Unavailable => Code::UNAVAILABLE,
            Kind::Unsupported => Code::UNIMPLEMENTED,
            Kind::Internal => Code::INTERNAL,
        };
        Self::RpcStatus(ttrpc::get_status(code, insula_base::chain(&error)))
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
