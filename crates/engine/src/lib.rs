//! Use cases without HTTP: what an engine does with containers, images, networks and volumes.
//!
//! Nothing here speaks HTTP and nothing forks, mounts or enters a namespace: walls are built by
//! monitors, to which the engine speaks the task protocol.

pub mod archive;
pub mod build;
pub mod changes;
pub mod check;
pub mod containers;
mod descriptors;
mod engine;
mod error;
pub mod events;
pub mod exec;
pub mod filters;
mod idmaps;
pub mod images;
pub mod logs;
mod machines;
pub mod measures;
mod monitor;
mod names;
mod networks;
mod plan;
pub mod policy;
mod reconcile;
pub mod rootless;
mod sites;
pub mod system;
mod task;
mod tenants;
mod tree;
pub mod volumes;
pub mod workload;

pub use containers::storage::{StorageOptions, parse as parse_storage_size};
pub use containers::{AttachOptions, AttachTarget, AttachedStream};
pub use engine::{Config, Engine};
pub use error::{Error, Result};
pub use insula_network::Options as NetworkOptions;
pub use insula_spec::machine::{Backend, USUAL_PATIENCE};
pub use policy::Policy;
pub use sites::Options as SiteOptions;
use task::{blocking, transfer};
