//! One method a route.

pub(crate) mod archive;
pub(crate) mod build;
mod check;
pub(crate) mod containers;
pub(crate) mod exec;
pub(crate) mod images;
pub(crate) mod machines;
pub(crate) mod networks;
mod registries;
pub(crate) mod system;
pub(crate) mod volumes;
pub(crate) mod workload;
