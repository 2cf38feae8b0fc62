//! The documents: what images and runtimes are described by, and [`plan::ContainerPlan`], the
//! one document that tells a wall what to build. Data and its validation only: nothing here
//! touches the system.

pub mod build_cache;
pub mod bundle;
pub mod image;
pub mod machine;
pub mod outlets;
pub mod plan;
pub mod reference;
pub mod sites;
pub mod sysctl;
