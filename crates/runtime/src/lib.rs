//! The life of a bundle's container when nobody stays beside it: runtime specification, "Lifecycle". Each
//! operation is one short run of a program; what it has to know is in the container's folder ([`store`]), and
//! what there is besides is the container's own init.
//!
//! ```text
//! ROOT/<id>/             mode 0700; locked by whoever changes the container
//!   state.json           replaced, never edited; without a pid as long as nothing stands
//!   start                socket at which an init waits that was created and not started
//! ```
//!
//! The folder is made first and removed last, so whatever a crash leaves behind is found by it and goes with
//! `delete --force`. Knows nothing of command lines; prints nothing.

mod checkpoint;
mod console;
mod create;
mod criu;
mod error;
mod events;
mod exec;
mod groups;
mod life;
mod protect;
mod restore;
mod scope;
mod signal;
pub mod store;
mod wait;

pub use checkpoint::{After, CheckpointRequest, checkpoint};
pub use create::{CreateRequest, create, read};
pub use criu::Reach;
pub use error::{Error, Result};
pub use events::{Event, watch};
pub use exec::{ExecRequest, Executed, exec};
pub use groups::{Grouping, Groups, Maker};
pub use life::{Found, delete, find, freeze, kill, list, processes, start, stats, update};
pub use protect::protect;
pub use restore::{RestoreRequest, restore};
pub use scope::Unit;
pub use signal::number as signal_number;
pub use wait::wait;
