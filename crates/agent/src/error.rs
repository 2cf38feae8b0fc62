//! What ends an agent, or makes it refuse a request.

use insula_base::{Kind, Kinded};

/// `Result` with this crate's error.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{call} {on}")]
    Call { call: &'static str, on: String, source: std::io::Error },
    #[error(transparent)]
    Network(#[from] insula_host::netlink::Error),
    #[error("the host's part of the channel is not to be understood")]
    Channel(#[from] insula_proto::channel::ChannelError),
    #[error("the host's request is not to be understood")]
    Frame(#[from] insula_proto::FrameError),
    #[error("the machine's plan cannot be read")]
    Plan(#[from] serde_json::Error),
    #[error("the machine has no interface with the address {0}")]
    NoInterface(String),
    #[error("the machine has no card for another network")]
    NoCards,
    #[error("the device of the image has not come")]
    NoImage,
    #[error("the machine has no channel to the host")]
    NoChannel,
    #[error(transparent)]
    Sandbox(#[from] insula_sandbox::Error),
    #[error("the container has not begun, or has ended")]
    NoContainer,
    #[error("this is for a machine of another kind")]
    NotHere,
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Call { .. } | Self::NoChannel | Self::NoCards | Self::NoImage | Self::NoInterface(_) => {
                Kind::Internal
            }
            Self::Network(error) => error.kind(),
            Self::Sandbox(error) => error.kind(),
            Self::NoContainer => Kind::Conflict,
            Self::NotHere => Kind::Unsupported,
            Self::Channel(_) | Self::Frame(_) | Self::Plan(_) => Kind::InvalidArgument,
        }
    }
}

/// Says which call failed and on what, at the place where both are known.
pub(crate) trait Context<T> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, call: &'static str, on: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| Error::Call { call, on: on.to_string(), source: error.into() })
    }
}
