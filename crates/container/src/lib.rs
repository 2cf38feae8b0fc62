//! One process-isolated container: from a plan to namespaces to the execution of its program, and
//! later processes in it.
//!
//! Three parties take part. The **builder** ([`create`]) is the caller, a process of one thread
//! with the host's privileges: it clones the **init** into fresh namespaces, maps its ids,
//! prepares every mount that needs the host (the overlay, device nodes, bind sources) as
//! detached mounts and hands them over. The init ([`inside`]) attaches them below a root that it
//! then pivots into, drops what it must not keep and executes the program. They talk over a
//! [`handshake`] channel that the execution closes; whatever goes wrong inside comes back through
//! it as an error with its kind. [`exec`] does the same for a process that joins.
//!
//! [`share`] puts the same files together for a guest that mounts them, and [`jail`] is for the programs that
//! serve it.
//!
//! Nothing here knows of images, the daemon or the task protocol.

mod build;
mod bundle;
mod devices;
mod error;
mod exec;
mod handshake;
mod hidden;
pub mod hooks;
mod idmap;
mod inside;
mod jail;
mod rootfs;
pub mod share;
mod sources;
mod spare;
mod streams;
mod users;

pub use build::{Created, Init, When, create};
pub use bundle::{BundleBuild, Standing, create_bundle, is_waiting, listen, start};
pub use error::{Error, Result};
pub use exec::{ExecPlan, Executed, Target, exec};
pub use idmap::probe;
pub use inside::warm_up;
pub use jail::{JailPlan, Jailed, jail};
pub use rootfs::probe_layers;
pub use spare::{Spare, Told};
pub use streams::Streams;
