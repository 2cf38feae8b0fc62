//! What every other crate needs and nothing more: ids, digests, sizes, durations, a stopwatch, error kinds, names,
//! atomic file replacement and the names of environment variables.
//!
//! This crate makes no system call but file I/O and threads through `std` and knows nothing of containers,
//! HTTP or the kernel's facilities.

mod digest;
mod duration;
pub mod env;
mod error;
mod file;
mod id;
mod instance;
mod laps;
mod size;
pub mod thread;

pub use digest::{ChainId, DiffId, Digest, DigestError};
pub use duration::{DurationError, format_duration, parse_duration};
pub use error::{Kind, Kinded, chain};
pub use file::{Durability, replace};
pub use id::{ContainerId, ExecId, IdError, NetworkId, random_hex};
pub use instance::{Folders, Instance};
pub use laps::{Lap, Laps};
pub use size::{SizeError, format_decimal, parse_bytes};
