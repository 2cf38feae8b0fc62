//! Images from and to registries.

mod account;
mod artifact;
mod cache;
mod content;
mod gzip;
mod jobs;
mod lines;
mod pull;
mod push;
mod refetch;
mod whole;

pub(crate) use self::cache::RemoteLayers;
pub(crate) use self::content::{compress, fill, unnamed};
pub(crate) use self::jobs::LayerJobs;
pub use self::pull::PullRequest;
pub use self::push::PushRequest;
