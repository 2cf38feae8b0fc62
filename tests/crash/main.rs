//! `kill -9` at every step: of the daemon, and of the monitor. Needs root and a build for development, which
//! has failpoints.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod points;
mod state;
mod storm;
