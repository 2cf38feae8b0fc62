//! Groups below a group, whoever made them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::error::{Context, Result};
use super::member::wait;

/// How long killed processes may take to leave a group that is removed.
const LEAVING: Duration = Duration::from_secs(2);

/// The processes of a group and of those below it.
pub(super) fn processes(folder: &Path, pids: &mut Vec<i32>) -> Result<()> {
    pids.extend(processes_in(folder)?);
    children(folder)?.iter().try_for_each(|child| processes(child, pids))
}

/// The group at or below `folder` that a process is in.
pub(super) fn group_of(folder: &Path, pid: i32) -> Result<Option<PathBuf>> {
    if processes_in(folder)?.contains(&pid) {
        return Ok(Some(folder.to_owned()));
    }
    for child in children(folder)? {
        if let Some(found) = group_of(&child, pid)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn processes_in(folder: &Path) -> Result<Vec<i32>> {
    let file = folder.join("cgroup.procs");
    match std::fs::read_to_string(&file) {
        // The group went.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(Vec::new()),
        text => {
            let text = text.context("read", file.display())?;
            Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
        }
    }
}

/// Groups right below a group. The number of links of the folder is not kept by every kernel.
fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("open", folder.display())?,
    };
    Ok(entries
        .filter_map(std::result::Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

/// Removes a group and those below it. A killed process leaves its group when the kernel has taken it
/// apart, of which version 1 does not tell.
pub(super) fn remove(folder: &Path) -> Result<()> {
    let began = Instant::now();
    let mut moment = Duration::ZERO;
    loop {
        match rustix::fs::rmdir(folder) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if began.elapsed() < LEAVING => {}
            Err(error) => return Err(error).context("rmdir", folder.display()),
        }
        for child in children(folder)? {
            remove(&child)?;
        }
        // The first time it may have been for the groups below.
        if !moment.is_zero() {
            wait(moment)?;
        }
        moment = (moment * 2).clamp(Duration::from_millis(1), Duration::from_millis(16));
    }
}
