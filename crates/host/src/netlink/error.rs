use std::io;

use insula_base::{Kind, Kinded};

/// A netlink operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket itself failed.
    #[error("{call}")]
    Socket { call: &'static str, source: io::Error },
    /// The kernel refused a request.
    #[error("{action} {operand}{}", parenthesis(.detail))]
    Refused { action: &'static str, operand: String, detail: String, source: io::Error },
    /// No link has the name.
    #[error("no network interface is named {name}")]
    NoLink { name: String },
    /// A plan that cannot be carried out.
    #[error("interface {name}: {what} {text:?} is malformed")]
    Malformed { name: String, what: &'static str, text: String },
}

fn parenthesis(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

impl Error {
    /// The number of errno(3) that the kernel gave.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket { source, .. } | Self::Refused { source, .. } => source.raw_os_error(),
            Self::NoLink { .. } | Self::Malformed { .. } => None,
        }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoLink { .. } => Kind::NotFound,
            Self::Malformed { .. } => Kind::InvalidArgument,
            Self::Socket { source, .. } | Self::Refused { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Kind::Denied,
                io::ErrorKind::AlreadyExists => Kind::AlreadyExists,
                io::ErrorKind::NotFound => Kind::NotFound,
                io::ErrorKind::Unsupported => Kind::Unsupported,
                _ => Kind::Internal,
            },
        }
    }
}
