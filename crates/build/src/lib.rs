//! Building images from Dockerfiles: the language, and what it takes to make an image of it.
//!
//! Nothing here waits for the network or starts a program, and everything is synchronous: who builds
//! says how images are found and how commands run.

pub mod attest;
pub mod dockerfile;
mod environment;
mod error;
mod git;
pub mod ignore;
mod mode;
mod nearest;
mod part;
mod plan;
mod scope;

pub use error::{Error, Result};
pub use git::GitReference;
pub use ignore::Ignore;
pub use mode::Mode;
pub use nearest::nearest;
pub use part::{Framed, Part};
pub use plan::{Base, Given, Plan, PlannedStage};
pub use scope::{CopyOp, Op, RunOp, Scope, Script};
