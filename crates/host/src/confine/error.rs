//! Errors of confinement.

use insula_base::{Kind, Kinded};
use rustix::io::Errno;

/// What went wrong while a process was confined, or while that was prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that no kernel known here has.
    #[error("unknown capability: {name:?}")]
    UnknownCapability { name: String },
    /// A name that getrlimit(2) does not have.
    #[error("invalid ulimit type: {name}")]
    UnknownLimit { name: String },
    /// The soft limit is above the hard one.
    #[error("ulimit {name}: soft limit must be less than or equal to hard limit: {soft} > {hard}")]
    LimitOrder { name: String, soft: u64, hard: u64 },
    /// A seccomp profile that cannot be read; `field` is the path of the culprit in the document.
    #[error("seccomp profile: {field}: {problem}")]
    Profile { field: String, problem: String },
    /// A seccomp profile that asks for what this engine does not do.
    #[error("seccomp profile: {field}: {what} is not supported")]
    ProfileUnsupported { field: String, what: String },
    /// The kernel's limit on the length of a filter.
    #[error("seccomp profile: compiles to {instructions} instructions, the kernel takes {maximum}")]
    ProfileTooLong { instructions: usize, maximum: usize },
    /// A file of the kernel that should be there.
    #[error("read {path}")]
    Read { path: &'static str, source: std::io::Error },
    /// A file of the kernel with content that was not expected.
    #[error("read {path}: unexpected content {content:?}")]
    Content { path: &'static str, content: String },
    /// A system call that was refused; holds no heap memory, for use after a fork.
    #[error("{call} {operand}")]
    Call { call: &'static str, operand: &'static str, source: Errno },
}

/// The result of everything in [`crate::confine`].
pub type Result<T> = std::result::Result<T, Error>;

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::UnknownCapability { .. }
            | Self::UnknownLimit { .. }
            | Self::LimitOrder { .. }
            | Self::Profile { .. }
            | Self::ProfileTooLong { .. } => Kind::InvalidArgument,
            Self::ProfileUnsupported { .. } => Kind::Unsupported,
            Self::Read { .. } | Self::Content { .. } => Kind::Internal,
            Self::Call { source, .. } => match *source {
                Errno::PERM | Errno::ACCESS => Kind::Denied,
                Errno::NOSYS | Errno::OPNOTSUPP => Kind::Unsupported,
                _ => Kind::Internal,
            },
        }
    }
}
