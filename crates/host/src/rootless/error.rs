use std::fmt::Display;
use std::io;

use insula_base::{Kind, Kinded};

/// An ordinary user's namespaces could not be made or joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{call} {on}")]
    Call { call: &'static str, on: String, source: io::Error },
    #[error("make a user namespace{hint}")]
    Refused { hint: String, source: io::Error },
    #[error("{program}: {said}")]
    Program { program: &'static str, said: String },
    #[error(transparent)]
    Netlink(#[from] crate::netlink::Error),
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Refused { .. } => Kind::Unsupported,
            Self::Program { .. } => Kind::Denied,
            Self::Call { .. } => Kind::Internal,
            Self::Netlink(error) => error.kind(),
        }
    }
}

pub(super) trait Context<T> {
    fn context(self, call: &'static str, on: impl Display) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, call: &'static str, on: impl Display) -> Result<T, Error> {
        self.map_err(|error| Error::Call { call, on: on.to_string(), source: error.into() })
    }
}
