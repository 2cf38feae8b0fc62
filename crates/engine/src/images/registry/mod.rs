//! Images from and to registries.

mod account;
mod jobs;
mod lines;
mod pull;

pub(crate) use self::jobs::LayerJobs;
pub use self::pull::PullRequest;
