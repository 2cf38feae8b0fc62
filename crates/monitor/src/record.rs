//! The exit record: written once, when the container has ended and its log is complete, before
//! anyone is told. A daemon that was not there finds it in the sandbox's folder.

use std::path::Path;

use insula_base::Durability;
use insula_proto::Exited;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};

/// Name of the record in the sandbox's folder.
pub const FILE: &str = "exit.json";
/// Name of the socket in the sandbox's folder.
pub const SOCKET: &str = "task.sock";

/// The content of `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// 128 and the signal's number when a signal ended the container.
    pub code: i32,
    /// The kernel killed a process for want of memory.
    pub oom: bool,
    /// Nanoseconds since 1970.
    pub at: i64,
    /// Why, when that was not its own doing; empty otherwise.
    #[serde(default)]
    pub error: String,
}

impl From<&Exited> for ExitRecord {
    fn from(exited: &Exited) -> Self {
        Self { code: exited.code, oom: exited.oom, at: exited.at, error: exited.error.clone() }
    }
}

/// Leaves the record. It lives on a tmpfs as long as the boot that it is about.
pub(crate) fn write(folder: &Path, record: &ExitRecord) -> Result<()> {
    let text = serde_json::to_vec(record).map_err(std::io::Error::other);
    let path = folder.join(FILE);
    text.and_then(|text| insula_base::replace(&path, &text, 0o600, Durability::Process))
        .context("write", path.display())
}
