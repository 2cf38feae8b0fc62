//! The VM wall: one machine for each pod, and the pod's containers in it.
//!
//! ```text
//! shim ─┬─ pod: insula-monitor tenant, which owns the machine; in the network namespace of the pod
//!       └─ guest, one a container: insula-monitor serve ── the task protocol, two sockets for the streams
//! ```
//!
//! These are the programs that the engine starts for a tenant's machine, and what is in the machine is the process
//! wall once more: a shim of the process wall asks `insula-runtime`, this one asks monitors.

mod guest;
mod left;
mod monitor;
mod pod;
mod size;

use std::path::{Path, PathBuf};

use insula_base::env;
use insula_host::guest::{Kernel, find, installed};

use crate::error::{Context, Result};

pub(crate) use guest::Guest;
pub(crate) use left::delete;
pub(crate) use pod::Pod;

/// Folder of a container's monitor, in the bundle.
const FOLDER: &str = "machine";

/// Where the engine keeps what machines are made of, and the kernel that its user has chosen (`insula kernel use`).
fn folder() -> PathBuf {
    std::env::var_os(env::ROOT).map_or_else(|| env::DEFAULT_ROOT.into(), PathBuf::from).join("machines")
}

/// The kernel of new machines.
fn kernel(folder: &Path) -> Result<Kernel> {
    let chosen = folder.join("kernel");
    match std::fs::read_to_string(&chosen) {
        Ok(path) if !path.trim().is_empty() => Ok(find(Path::new(path.trim()))?),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("read", chosen.display())
        }
        _ => Ok(installed(Path::new("/")).into_iter().next().ok_or(insula_host::guest::Error::NoKernel)?),
    }
}
