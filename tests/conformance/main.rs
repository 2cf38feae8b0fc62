//! Others' programs against the product: Docker's command line, systemd as PID 1, a web server
//! from its package.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod beside;
mod bollard;
mod bundles;
mod clients;
mod compat;
mod compose;
mod docker;
mod engines;
mod fields;
mod guarded;
mod services;
