//! What a sandbox leaves when its monitor was killed: processes and cgroups.

use std::io::ErrorKind;
use std::path::Path;

use insula_host::cgroup::{Group, Layout};

use crate::monitor::SandboxFolder;
use crate::{Error, Result};

/// Kills what is left of a sandbox and frees it. Whatever stands in the way is said, and left to the next
/// start of the daemon.
pub(crate) fn kill(sandbox: &SandboxFolder, cgroup: &str) {
    let cgroup = sandbox.launch().map_or_else(|| cgroup.to_owned(), |launch| launch.cgroup);
    if let Err(error) = free(&cgroup) {
        tracing::warn!(cgroup, error = insula_base::chain(&error), "what a container left");
    }
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
