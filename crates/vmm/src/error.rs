//! What goes wrong with a machine.

use insula_base::{Kind, Kinded};

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call of the kernel failed.
    #[error("{call} for {on}")]
    Call { call: &'static str, on: String, source: std::io::Error },
    /// The host's KVM cannot do what every machine needs.
    #[error("/dev/kvm does not offer {0}")]
    Lacks(&'static str),
    /// The shape of the machine makes no sense.
    #[error("{0}")]
    Shape(String),
    /// The kernel, initial file system or command line cannot be loaded.
    #[error("{file}: {why}")]
    Boot { file: String, why: String },
    /// A snapshot that is damaged, or of another program, machine or processor.
    #[error("snapshot {file}: {why}")]
    Snapshot { file: String, why: String },
    /// What this machine cannot do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The guest broke the rules of a device; the device stops, the machine goes on.
    #[error("the guest misuses its {device}: {why}")]
    Guest { device: &'static str, why: String },
}

impl Error {
    pub(crate) fn kvm(call: &'static str, on: impl Into<String>, source: kvm_ioctls::Error) -> Self {
        Self::Call { call, on: on.into(), source: std::io::Error::from_raw_os_error(source.errno()) }
    }

    pub(crate) fn call(call: &'static str, on: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Call { call, on: on.into(), source: source.into() }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Call { .. } => Kind::Internal,
            Self::Lacks(_) | Self::Unsupported(_) => Kind::Unsupported,
            Self::Shape(_) | Self::Boot { .. } | Self::Guest { .. } => Kind::InvalidArgument,
            Self::Snapshot { .. } => Kind::Conflict,
        }
    }
}
