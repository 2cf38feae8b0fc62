//! The executable is not to be written to from inside a container.
//!
//! A process of ours that is about to become one of the container's shows the host's executable at
//! `/proc/PID/exe`, and what runs inside can make it show there again (`#!/proc/self/exe`). Whoever opens that
//! must not be able to write: so what enters a container runs from a read-only mount of the executable that
//! exists nowhere else. Costs one execve and no copy.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;

use insula_sys::mount::{MountAttributes, set_attributes};
use insula_sys::process;
use rustix::fs::{CWD, StatVfsMountFlags};
use rustix::mount::OpenTreeFlags;

use crate::error::{Context, Error, Result};

const EXECUTABLE: &str = "/proc/self/exe";

/// Returns when this process runs from a file that nobody can write to by way of it; executes it anew
/// otherwise. Before anything is done.
pub fn protect() -> Result<()> {
    let mounted = rustix::fs::statvfs(EXECUTABLE).context("statvfs", EXECUTABLE)?;
    if mounted.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return process::set_name(c"insula-runtime").context("prctl", "PR_SET_NAME");
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = rustix::mount::open_tree(CWD, EXECUTABLE, flags).context("open_tree", EXECUTABLE)?;
    let readonly = MountAttributes { readonly: true, ..MountAttributes::default() };
    set_attributes(copy.as_fd(), readonly, false).context("mount_setattr", EXECUTABLE)?;
    let path = text(format!("/proc/self/fd/{}", copy.as_raw_fd()).into_bytes())?;
    let arguments =
        std::env::args_os().map(|argument| text(argument.into_vec())).collect::<Result<Vec<_>>>()?;
    let environment = std::env::vars_os()
        .map(|(name, value)| text([name.into_vec(), b"=".to_vec(), value.into_vec()].concat()))
        .collect::<Result<Vec<_>>>()?;
    Err(process::execve(&path, &arguments, &environment)).context("execve", EXECUTABLE)
}

fn text(bytes: Vec<u8>) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::Invalid("an argument holds a zero byte".to_owned()))
}
