//! What a sandbox leaves when its monitor was killed: processes and cgroups.

use std::io::ErrorKind;
use std::path::Path;

use insula_host::cgroup::{Group, Layout};

use crate::monitor::{Process, SandboxFolder};
use crate::{Error, Result};

/// Kills what is left of a sandbox and frees it. Whatever stands in the way is said, and left to the next
/// start of the daemon.
pub(crate) fn kill(sandbox: &SandboxFolder, cgroup: &str) {
    let launch = sandbox.launch().ok().flatten();
    let monitor = launch.as_ref().map(|launch| launch.monitor);
    let cgroup = launch.map_or_else(|| cgroup.to_owned(), |launch| launch.cgroup);
    if let Err(error) = free(&cgroup).and_then(|()| kill_orphans(monitor)) {
        tracing::warn!(cgroup, error = insula_base::chain(&error), "what a container left");
    }
}

/// Kills the container of this monitor, which may be about to end, and those whose monitor has gone, where there are no
/// groups to find them by: first processes of pid namespaces in this user namespace, whose parent is not in it. With
/// the first go all others.
fn kill_orphans(monitor: Option<Process>) -> Result<()> {
    if !crate::rootless::without_groups() {
        return Ok(());
    }
    let proc = Path::new("/proc");
    let link = |pid: &str, kind: &str| std::fs::read_link(proc.join(pid).join("ns").join(kind)).ok();
    let (users, pids) = (link("self", "user"), link("self", "pid"));
    let entries = std::fs::read_dir(proc).map_err(|error| Error::io("readdir", proc, error))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((pid, number)) = name.to_str().and_then(|name| Some((name, name.parse::<i32>().ok()?)))
        else {
            continue;
        };
        let status = std::fs::read_to_string(proc.join(pid).join("status")).unwrap_or_default();
        let field = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|values| values.split_ascii_whitespace().last()).unwrap_or_default()
        };
        let first = link(pid, "user") == users && link(pid, "pid") != pids && field("NSpid") == "1";
        let parent = field("PPid");
        let of_monitor = monitor.is_some_and(|monitor| {
            parent == monitor.pid.to_string() && Process::start_time(monitor.pid) == Some(monitor.started)
        });
        if first && (of_monitor || link(parent, "user") != users) {
            // It may have ended meanwhile.
            let _ = insula_sys::process::kill(number, 9);
        }
    }
    Ok(())
}

/// Whether a group has no process.
pub(crate) fn none(cgroup: &str) -> Result<bool> {
    Ok(Group::open(&Layout::probe()?, cgroup)?.processes()?.is_empty())
}

/// Kills every process of a group and removes it.
pub(crate) fn free(cgroup: &str) -> Result<()> {
    let layout = Layout::probe()?;
    let group = Group::open(&layout, cgroup)?;
    if group.is_empty() {
        return Ok(());
    }
    group.kill()?;
    Ok(group.remove()?)
}

/// Names of the groups below `parent` in any hierarchy.
pub(crate) fn below(parent: &str) -> Result<Vec<String>> {
    let layout = Layout::probe()?;
    let mut names = std::collections::BTreeSet::new();
    for hierarchy in &layout.hierarchies {
        let folder = hierarchy.root.join(parent);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("readdir", &folder, error)),
        };
        for entry in entries.flatten().filter(|entry| is_folder(&entry.path())) {
            names.extend(entry.file_name().to_str().map(str::to_owned));
        }
    }
    Ok(names.into_iter().collect())
}

/// Removes the group above those of containers; one that is in use stays.
pub(crate) fn remove_parent(parent: &str) -> Result<()> {
    for hierarchy in &Layout::probe()?.hierarchies {
        let folder = hierarchy.root.join(parent);
        match std::fs::remove_dir(&folder) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ResourceBusy) => {
                return Err(Error::io("rmdir", &folder, error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_folder(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}
