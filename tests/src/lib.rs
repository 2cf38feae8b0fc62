//! The harness of the end-to-end tests: a daemon of its own for every test, images written on the
//! spot, and a search for whatever the test leaves behind.
//!
//! The product is found by one variable, `INSULA_BIN_DIR` (the workspace's debug build without
//! it), so that the same tests run against a release. A test knows the product's programs, its
//! API and Docker's documents; it uses none of its crates but for the names of an instance.

#![expect(clippy::unwrap_used, reason = "a harness that cannot go on panics, which fails the test")]

pub mod clients;
mod daemon;
pub mod guest;
mod host;
mod http;
pub mod images;
mod lan;
mod ordinary;
mod outcome;
mod product;
pub mod proxy;
pub mod registry;
mod require;
mod terminal;
mod wait;

pub use daemon::{Daemon, OnDrop, text};
pub use host::{Leaks, Neighbour, cgroups_called, host_address, own_loopback, remove_cgroups};
pub use http::{Response, get, request};
pub use lan::{Lan, echo_datagrams, echoes, within_network};
pub use ordinary::{Ids, Ordinary};
pub use outcome::Outcome;
pub use product::{docker, dockers, program};
pub use require::{is_root, skip};
pub use terminal::Terminal;
pub use wait::{eventually, holds};

/// Six digits that no other test has.
#[must_use]
pub fn tag() -> String {
    insula_base::random_hex(3)
}
