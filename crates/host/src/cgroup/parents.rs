//! What must be above a group: folders, and in them what their children need.

use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::error::{Context, Error, Result};
use super::layout::{Hierarchy, Version};
use super::member::Member;

/// Makes one group. Whether there was a parent to make it in.
pub(super) fn mkdir(path: &Path) -> Result<bool> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(Errno::ROFS) => Err(Error::ReadOnly(path.display().to_string())),
        Err(error) => Err(error).context("mkdir", path.display()),
    }
}

/// Makes a group with all above it, each fit to have others below it. May be repeated, by several at once.
pub(super) fn make(hierarchy: &Hierarchy, path: &str, controllers: &[&str]) -> Result<()> {
    let mut full = hierarchy.root.clone();
    for part in Path::new(path) {
        match &hierarchy.version {
            Version::V2 => enable(hierarchy, &full, controllers)?,
            version if version.has("cpuset") && full != hierarchy.root => share(&full)?,
            Version::V1(_) | Version::Named(_) => {}
        }
        full.push(part);
        if !mkdir(&full)? {
            return Err(Errno::NOENT).context("mkdir", full.display());
        }
    }
    if hierarchy.has("cpuset") { inherit(&full).map(drop) } else { Ok(()) }
}

/// Whether a group has what its parents were to give it.
pub(super) fn are_ready(hierarchy: &Hierarchy, member: &Member, controllers: &[&str]) -> Result<bool> {
    let has = |name| Ok(member.read(name)?.is_some_and(|text| !text.trim().is_empty()));
    match &hierarchy.version {
        Version::V2 => {
            // Of the root's: those that are above may have been made for somebody who asked for less.
            let own = member.read("cgroup.controllers")?.unwrap_or_default();
            let all = read(&hierarchy.root.join("cgroup.controllers"))?;
            Ok(missing(controllers, &all, &own).next().is_none())
        }
        version if version.has("cpuset") => Ok(has("cpuset.cpus")? && has("cpuset.mems")?),
        Version::V1(_) | Version::Named(_) => Ok(true),
    }
}

/// Version 2: turns controllers on for the groups below.
fn enable(hierarchy: &Hierarchy, parent: &Path, controllers: &[&str]) -> Result<()> {
    let file = parent.join("cgroup.subtree_control");
    let (available, enabled) = (read(&parent.join("cgroup.controllers"))?, read(&file)?);
    let missing: Vec<String> =
        missing(controllers, &available, &enabled).map(|name| format!("+{name}")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    match std::fs::write(&file, missing.join(" ")) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && parent == hierarchy.root => {
            evacuate(parent)?;
            std::fs::write(&file, missing.join(" "))
                .map_err(|_| Error::Occupied(parent.display().to_string()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            Err(Error::Occupied(parent.display().to_string()))
        }
        // One of them cannot be had here; who sets a limit of it is told so then.
        Err(_) => {
            for one in missing {
                let _ = std::fs::write(&file, one);
            }
            Ok(())
        }
    }
}

/// Controllers of these that are available and not enabled.
fn missing<'a>(
    controllers: &'a [&'a str],
    available: &'a str,
    enabled: &'a str,
) -> impl Iterator<Item = &'a str> {
    available
        .split_whitespace()
        .filter(|name| controllers.contains(name))
        .filter(|name| !enabled.split_whitespace().any(|on| on == *name))
}

/// In a container the root that one sees is a group like others, with the processes of the container in
/// it: they go to a group of their own, as an init would have it. It is theirs to leave again.
fn evacuate(root: &Path) -> Result<()> {
    let refuge = root.join("init");
    mkdir(&refuge)?;
    let refuge = refuge.join("cgroup.procs");
    // What forks meanwhile is found in the next round.
    for _ in 0..10 {
        let processes = read(&root.join("cgroup.procs"))?;
        if processes.is_empty() {
            break;
        }
        for pid in processes.lines() {
            match std::fs::write(&refuge, pid) {
                // It ended.
                Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                result => result.context("write", refuge.display())?,
            }
        }
    }
    Ok(())
}

/// Version 1, cpuset(7): a new group has no CPUs at all until it is given some. One that we prepare gives
/// its children what it has; one that was there, with CPUs of its own, is not ours to change.
fn share(parent: &Path) -> Result<()> {
    if inherit(parent)? {
        let file = parent.join("cgroup.clone_children");
        std::fs::write(&file, "1").context("write", file.display())?;
    }
    Ok(())
}

/// Gives a group without CPUs and memory nodes those of its parent; whether it was one.
fn inherit(folder: &Path) -> Result<bool> {
    let above = folder.parent().unwrap_or(folder);
    let mut empty = false;
    for (name, effective) in
        [("cpuset.cpus", "cpuset.effective_cpus"), ("cpuset.mems", "cpuset.effective_mems")]
    {
        let file = folder.join(name);
        if !read(&file)?.trim().is_empty() {
            continue;
        }
        empty = true;
        let mut value = read(&above.join(name))?;
        if value.trim().is_empty() {
            value = read(&above.join(effective))?;
        }
        std::fs::write(&file, value.trim()).context("write", file.display())?;
    }
    Ok(empty)
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).context("read", file.display())
}
