//! Monitors and what they stand for: sandboxes, control groups, mounts, and spares.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use insula_base::ContainerId;
use rustix::mount::UnmountFlags;
use tokio::sync::MutexGuard;

use super::network::name;
use super::{Finding, Known, Report, lasting};
use crate::containers::container::Container;
use crate::containers::leftovers;
use crate::containers::row::Phase;
use crate::monitor::{Process, SandboxFolder, end_politely, listeners};
use crate::{Engine, Error, Result, blocking};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wrong {
    /// A folder of run-time state of a container that does not run.
    Sandbox(ContainerId),
    /// A container runs, and what tells a later daemon of it is gone.
    NoSandbox(ContainerId),
    /// A control group of nobody, below the instance's.
    Cgroup(String),
    /// A monitor without a container.
    Monitor { process: Process, socket: PathBuf },
    /// A mount in a folder where there is none.
    Mount { target: PathBuf, kind: String },
    /// A spare that has ended, or does not listen any more.
    Spare(Process),
}

pub(super) async fn inspect(engine: &Engine, report: &mut Report) -> Result<()> {
    report.go_on()?;
    report.looked_at_many("sandbox", engine.sandboxes().len());
    report.looked_at_many("cgroup", groups(engine)?.len());
    report.looked_at_many("spare", engine.0.spares.waiting().len());
    let found = {
        let engine = engine.clone();
        lasting(move || look(&engine)).await?
    };
    for wrong in found {
        report.found(finding(engine, &wrong), repair(engine, &wrong)).await?;
    }
    Ok(())
}

/// What there is first, and rows then: a row is there before anything else is made, and goes last.
fn look(engine: &Engine) -> Result<Vec<Wrong>> {
    let sandboxes = engine.sandboxes();
    let cgroups = groups(engine)?;
    let monitors = listeners(&engine.instance().run().join("sandboxes"));
    let mut mounts = mounts(engine)?;
    let spares = engine.0.spares.waiting().into_iter().filter(|(_, alive)| !alive);
    let known = engine.known();
    mounts.retain(|wrong| !matches!(wrong, Wrong::Mount { target, .. } if is_disk(engine, &known, target)));
    let mut found: Vec<Wrong> = spares.map(|(process, _)| Wrong::Spare(process)).collect();
    // What is in a folder goes before it, and what was mounted last goes first.
    found.extend(mounts.into_iter().rev());
    for (socket, process) in monitors {
        let id = socket.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse().ok());
        let live = id.is_some_and(|id| belongs(engine, &known, &id, process));
        if !live {
            found.push(Wrong::Monitor { process, socket });
        }
    }
    found.extend(sandboxes.iter().filter(|id| !known.live.contains(*id)).cloned().map(Wrong::Sandbox));
    let running = known.live.iter().filter(|id| {
        let row = engine.0.containers.get(id).map(|container| container.row());
        row.is_some_and(|row| matches!(row.phase, Phase::Running { .. }))
    });
    let without = running.filter(|id| matches!(engine.sandbox_of(id).launch(), Ok(None)));
    found.extend(without.cloned().map(Wrong::NoSandbox));
    let ids = cgroups.into_iter().filter_map(|name| Some((name.parse::<ContainerId>().ok()?, name)));
    found.extend(ids.filter(|(id, _)| !known.live.contains(id)).map(|(_, name)| Wrong::Cgroup(name)));
    Ok(found)
}

/// Names of control groups below the instance's, but for those of containers to come.
fn groups(engine: &Engine) -> Result<Vec<String>> {
    let mut names = leftovers::below(&engine.instance().cgroup())?;
    let ahead = engine.0.spares.groups();
    names.retain(|name| !ahead.iter().any(|id| id.as_str() == name));
    Ok(names)
}

/// Whether a mount is the disk of a container's writable layer.
fn is_disk(engine: &Engine, known: &Known, target: &Path) -> bool {
    let name = engine.store().disk_at(target);
    name.is_some_and(|name| name.parse().map_or(true, |id: ContainerId| known.all.contains(&id)))
}

/// Whether a monitor is the one of a container that lives.
fn belongs(engine: &Engine, known: &Known, id: &ContainerId, process: Process) -> bool {
    let launched = engine.sandbox_of(id).launch().ok().flatten();
    known.live.contains(id) && launched.is_none_or(|launched| launched.monitor == process)
}

/// Mounts where the engine keeps its own and mounts nothing for long. Volumes may be mounts of an administrator.
fn mounts(engine: &Engine) -> Result<Vec<Wrong>> {
    const TABLE: &str = "/proc/self/mountinfo";
    let text = fs::read_to_string(TABLE).map_err(|e| Error::io("read", TABLE.as_ref(), e))?;
    let root = engine.store().root();
    let folders = ["containers", "layers", "points"].map(|name| root.join(name));
    let folders: Vec<PathBuf> =
        folders.into_iter().chain([engine.instance().run().join("sandboxes")]).collect();
    Ok(text.lines().filter_map(|line| mount_below(line, &folders)).collect())
}

/// proc_pid_mountinfo(5): the fifth field is the target, the first after ` - ` the kind of file system.
fn mount_below(line: &str, folders: &[PathBuf]) -> Option<Wrong> {
    let (fields, rest) = line.split_once(" - ")?;
    let target = PathBuf::from(unescape(fields.split(' ').nth(4)?));
    // A whole folder may be a disk of its own.
    let below = |folder: &PathBuf| target.starts_with(folder) && target != *folder;
    let kind = rest.split(' ').next().unwrap_or_default().to_owned();
    folders.iter().any(below).then_some(Wrong::Mount { target, kind })
}

/// Spaces and the like are written as three octal digits.
fn unescape(text: &str) -> std::ffi::OsString {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let octal = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    std::ffi::OsStr::from_bytes(&plain).to_owned()
}

fn finding(engine: &Engine, wrong: &Wrong) -> Finding {
    let (kind, subject, problem, user) = match wrong {
        Wrong::Sandbox(id) => {
            let path = engine.sandbox_of(id).path().display().to_string();
            let problem = "it is left of a container that does not run".to_owned();
            ("sandbox", path, problem, engine.known().all.contains(id).then_some(id))
        }
        Wrong::NoSandbox(id) => (
            "sandbox",
            engine.sandbox_of(id).path().display().to_string(),
            "its launch record is gone: the next daemon has to look for its monitor by its socket".to_owned(),
            Some(id),
        ),
        Wrong::Cgroup(name) => (
            "cgroup",
            format!("{}/{name}", engine.instance().cgroup()),
            "no container that runs has it".to_owned(),
            None,
        ),
        Wrong::Monitor { process, socket } => (
            "monitor",
            process.pid.to_string(),
            format!("it listens at {}, and no container that runs has it", socket.display()),
            None,
        ),
        Wrong::Mount { target, kind } if kind == "nsfs" => {
            ("namespace", target.display().to_string(), "it is pinned, and nobody uses it".to_owned(), None)
        }
        Wrong::Mount { target, kind } => {
            ("mount", target.display().to_string(), format!("{kind} is mounted, and nobody uses it"), None)
        }
        Wrong::Spare(process) => {
            ("spare", process.pid.to_string(), "the monitor that waited has ended".to_owned(), None)
        }
    };
    Finding { kind, subject, problem, used_by: user.map(|id| name(engine, id)).into_iter().collect() }
}

async fn repair(engine: &Engine, wrong: &Wrong) -> Result<String> {
    let done = match wrong {
        Wrong::Sandbox(id) => {
            let sandbox = engine.sandbox_of(id);
            let container = engine.0.containers.get(id);
            let _turn = engine.still_at_rest(container.as_deref()).await?;
            end_politely(id.short(), &sandbox).await;
            let cgroup = format!("{}/{id}", engine.instance().cgroup());
            blocking(move || {
                leftovers::kill(&sandbox, &cgroup);
                sandbox.remove()
            })
            .await?;
            "removed"
        }
        Wrong::NoSandbox(id) => {
            let why = format!("stop container {} and start it again", id.short());
            return Err(Error::Conflict(why));
        }
        Wrong::Cgroup(name) => {
            let path = format!("{}/{name}", engine.instance().cgroup());
            let container = name.parse().ok().and_then(|id| engine.0.containers.get(&id));
            let _turn = engine.still_at_rest(container.as_deref()).await?;
            blocking(move || leftovers::free(&path)).await?;
            "removed, with every process in it"
        }
        Wrong::Monitor { process, .. } => {
            process.kill().map_err(|e| Error::io("kill", Path::new(&process.pid.to_string()), e))?;
            "killed"
        }
        Wrong::Mount { target, .. } => {
            rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(|e| Error::io("unmount", target, e))?;
            "unmounted"
        }
        Wrong::Spare(_) => {
            let spares = engine.0.spares.clone();
            blocking(move || {
                spares.drop_ended();
                spares.refill()
            })
            .await?;
            "another one waits"
        }
    };
    Ok(done.to_owned())
}

impl Engine {
    /// Nobody starts the container, if there is one, as long as the answer is held.
    async fn still_at_rest<'a>(
        &self,
        container: Option<&'a Container>,
    ) -> Result<Option<MutexGuard<'a, ()>>> {
        let Some(container) = container else { return Ok(None) };
        let turn = container.turn.lock().await;
        if container.row().phase.live() {
            return Err(Error::Conflict(format!("container {} was started meanwhile", container.id.short())));
        }
        Ok(Some(turn))
    }

    fn sandbox_of(&self, id: &ContainerId) -> SandboxFolder {
        SandboxFolder::new(self.instance().sandbox(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_our_folders_are_found() {
        let folders = [PathBuf::from("/r/layers"), PathBuf::from("/r/a b")];
        let line = |target: &str| format!("40 22 0:38 / {target} rw,relatime shared:1 - nsfs nsfs rw");
        let found = |target: &str| mount_below(&line(target), &folders);
        let mount = |target: &str| Some(Wrong::Mount { target: target.into(), kind: "nsfs".to_owned() });
        assert_eq!(found("/r/layers/x"), mount("/r/layers/x"));
        assert_eq!(found("/r/a\\040b/c"), mount("/r/a b/c"));
        for other in ["/r/layers", "/r/layersx/y", "/r/volumes/x", "/"] {
            assert_eq!(found(other), None, "{other}");
        }
        assert_eq!(mount_below("", &folders), None);
        assert_eq!(unescape("a\\09b\\"), "a\\09b\\");
    }
}
