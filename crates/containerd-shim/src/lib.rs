//! containerd's shim protocol, version 2, over bundles: one process of ours for a container or a pod, which
//! containerd starts, speaks ttrpc to, may leave and find again.
//!
//! ```text
//! start ──> launch: one socket a pod; says where it is ──> serve
//! serve ──> service: the calls ──> task ──> wall ─┬─ bundled: insula-runtime create, start, exec, delete
//!                                    │            └─ machine: one for the pod, a monitor for each container
//!                                    └─ process ── stdio: threads that copy
//!           children: one thread reaps, and tells processes that they ended
//!           events: one thread tells containerd, in order
//! delete ─> launch: what a shim left that was killed
//! ```
//!
//! Whatever forks into a namespace is `insula-runtime`, a program of one thread. Nothing here does.

mod bundled;
mod children;
mod error;
mod events;
mod launch;
mod machine;
mod metrics;
mod oom;
mod options;
mod process;
mod rootfs;
mod runtime;
mod service;
mod stdio;
mod task;
mod wall;

use std::sync::{Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

pub use children::Children;
pub use error::{Error, Result};
pub use events::Publisher;
pub use launch::{Invocation, Isolation, delete, serve, start};

/// A thread that panicked has left what it changed as whole as any other.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn timestamp(at: jiff::Timestamp) -> Timestamp {
    Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond(), ..Timestamp::default() }
}
