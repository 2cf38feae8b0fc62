//! Control groups, cgroups(7): version 1, version 2 and both at once, found by probing.
//!
//! A [`Layout`] says which hierarchies the host has and where. A [`Group`] is one path made in all of
//! those that are needed; limits are written where a controller for them exists, and what cannot
//! be held is returned as text for the user rather than dropped.

mod devices;
mod error;
mod exact;
mod group;
mod layout;
mod limits;
mod member;
mod parents;
mod standing;
mod stats;
#[cfg(test)]
mod tests_root;
mod tree;

pub use devices::{DevicePolicy, standard as standard_devices};
pub use error::{Error, Result};
pub use group::{Entry, Group, Purpose};
pub use layout::{Hierarchy, Layout, Version};
pub use standing::{Standing, place};
pub use stats::{BlkioEntry, Stats};
