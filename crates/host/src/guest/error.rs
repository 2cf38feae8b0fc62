//! Why a guest cannot be given a kernel.

use std::path::PathBuf;

use insula_base::{Kind, Kinded};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{call} {path}")]
    Io { call: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "there is no kernel for guests on this host: install one (Debian's linux-image-cloud-amd64 will do), \
             or name one with `insula kernel use PATH`"
    )]
    NoKernel,
    #[error("the kernel {0}, chosen for guests, is gone: choose another one with `insula kernel use PATH`")]
    Gone(PathBuf),
    #[error("{0} was built without CONFIG_PVH, which a kernel that is not compressed needs to be booted")]
    NoEntry(PathBuf),
    #[error("{0} is neither a kernel nor a folder with one in boot/ or lib/modules/")]
    NotAKernel(PathBuf),
    #[error(
        "the modules of kernel {release} are not beside {image}: they are expected in lib/modules/{release}"
    )]
    NoModules { release: String, image: PathBuf },
    #[error("kernel {release} has no driver {driver}, which a guest needs")]
    NoDriver { release: String, driver: String },
    #[error("{path} cannot be read as {what}")]
    Malformed { path: PathBuf, what: &'static str },
    #[error("{0} is not a static program: a guest has no libraries for it")]
    NotStatic(PathBuf),
}

impl Error {
    pub(super) fn io(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { call, path, source }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Kind::NotFound,
            Self::Io { .. } => Kind::Internal,
            Self::NoKernel | Self::Gone(_) | Self::NoDriver { .. } | Self::NotStatic(_) => Kind::Unavailable,
            Self::NoEntry(_) | Self::NotAKernel(_) | Self::NoModules { .. } | Self::Malformed { .. } => {
                Kind::InvalidArgument
            }
        }
    }
}
