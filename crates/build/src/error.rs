//! What can go wrong with a build.

use insula_base::{Kind, Kinded};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The Dockerfile is not one. Lines count from 1.
    #[error("dockerfile parse error on line {line}: {why}")]
    Syntax { line: u32, why: String },
    /// No stage has this name.
    #[error("{0}")]
    Target(String),
    /// A pattern of `.dockerignore`.
    #[error(".dockerignore line {line}: {why}")]
    Ignore { line: u32, why: String },
}

impl Error {
    /// Something is wrong at a line of the Dockerfile.
    #[must_use]
    pub fn at(line: u32, why: impl Into<String>) -> Self {
        Self::Syntax { line, why: why.into() }
    }

    /// The line of the Dockerfile that is wrong.
    #[must_use]
    pub fn line(&self) -> Option<u32> {
        match self {
            Self::Syntax { line, .. } => Some(*line),
            Self::Ignore { .. } | Self::Target(_) => None,
        }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Syntax { .. } | Self::Ignore { .. } | Self::Target(_) => Kind::InvalidArgument,
        }
    }
}
