//! Everything between creation and the end.

use std::os::fd::AsFd;
use std::path::Path;

use insula_container::hooks;
use insula_host::cgroup::Stats;
use insula_host::resctrl::Resctrl;
use insula_spec::bundle::document::Resources;
use insula_spec::bundle::{self, BundleDevices, Status};
use insula_spec::plan::Namespace;
use insula_sys::process;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::groups;
use crate::scope::Unit;
use crate::store::{self, Folder, Record, START};

const SIGKILL: i32 = 9;
/// How long a killed init may take to end.
const DYING: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A container as it is now.
#[derive(Debug)]
pub struct Found {
    pub folder: Folder,
    pub record: Record,
    pub status: Status,
}

/// Looks a container up.
pub fn find(root: &Path, id: &str) -> Result<Found> {
    let folder = Folder::open(root, id)?;
    let record = folder.read()?;
    let status = folder.status(&record)?;
    Ok(Found { folder, record, status })
}

/// The same, with nobody else changing it.
pub(crate) fn find_locked(root: &Path, id: &str) -> Result<Found> {
    let folder = Folder::open(root, id)?;
    folder.lock()?;
    let record = folder.read()?;
    let status = folder.status(&record)?;
    Ok(Found { folder, record, status })
}

/// Every container below a root; those that go meanwhile are left out.
pub fn list(root: &Path) -> Result<Vec<Found>> {
    let found = store::names(root)?.into_iter().map(|id| find(root, &id));
    found.filter(|found| !matches!(found, Err(Error::Unknown(_)))).collect()
}

/// Executes the program of a created container; returns what the user should know.
pub fn start(root: &Path, id: &str) -> Result<Vec<String>> {
    let Found { folder, record, status } = find_locked(root, id)?;
    match status {
        Status::Created => {}
        Status::Stopped => {
            return Err(Error::Invalid("cannot start a container that has stopped".to_owned()));
        }
        status => return Err(Error::Phase { verb: "start", status }),
    }
    insula_container::start(folder.descriptor(), START)?;
    folder.remove_socket()?;
    Ok(after(&record, "poststart", Status::Running))
}

/// Hooks that cannot change what has happened: a failure is a warning.
fn after(record: &Record, phase: &str, status: Status) -> Vec<String> {
    let Some(bundle) = record.plan.bundle.as_deref() else { return Vec::new() };
    let list = if phase == "poststart" { &bundle.hooks.poststart } else { &bundle.hooks.poststop };
    let state = record.state(status);
    let run = |hook| hooks::run_all(phase, std::slice::from_ref(hook), &state);
    list.iter().filter_map(|hook| run(hook).err()).map(|error| insula_base::chain(&error)).collect()
}

/// Whether the kernel ends all processes with the first one.
fn has_own_pids(record: &Record) -> bool {
    record.plan.namespaces.pid == Namespace::Private
}

/// Sends a signal to the init, or to every process.
pub fn kill(root: &Path, id: &str, signal: i32, all: bool) -> Result<()> {
    let Found { record, status, .. } = find(root, id)?;
    if all {
        return signal_all(&record, signal);
    }
    let Some(init) = record.init()? else { return Err(Error::NotRunning) };
    match process::signal(init.as_fd(), signal) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Err(Error::NotRunning),
        Err(error) => return Err(error).context("pidfd_send_signal", record.pid),
    }
    if signal == SIGKILL && !has_own_pids(&record) {
        record.group()?.kill()?;
    }
    if signal == SIGKILL && status == Status::Paused {
        record.group()?.let_die()?;
    }
    Ok(())
}

pub(crate) fn signal_all(record: &Record, signal: i32) -> Result<()> {
    for pid in record.group()?.processes()? {
        match process::kill(pid, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error).context("kill", pid),
        }
    }
    Ok(())
}

/// Removes a container; with `force` one that runs, too. Returns what the user should know.
pub fn delete(root: &Path, id: &str, force: bool) -> Result<Vec<String>> {
    let folder = match Folder::open(root, id) {
        Err(Error::Unknown(_)) if force => return Ok(Vec::new()),
        folder => folder?,
    };
    folder.lock()?;
    let record = match folder.read() {
        // Who made the folder died before anything else.
        Err(Error::Unknown(_)) => return folder.remove().map(|()| Vec::new()),
        record => record?,
    };
    match folder.status(&record)? {
        Status::Stopped => {}
        // The lock says that nobody creates it any more; and who was not started has nothing to lose.
        Status::Creating | Status::Created => end(&record)?,
        _ if force => end(&record)?,
        status => return Err(Error::Alive { id: id.to_owned(), status }),
    }
    let group = record.group()?;
    if !has_own_pids(&record) {
        group.kill()?;
    }
    // Without systemd there is still the group itself to be removed.
    let stopped = record.unit.as_ref().map_or(Ok(()), Unit::stop);
    group.remove()?;
    if let Some(rdt) = record.rdt()
        && let Ok(resctrl) = Resctrl::probe()
    {
        resctrl.leave(rdt)?;
    }
    let mut warnings = after(&record, "poststop", Status::Stopped);
    warnings.extend(stopped.err().map(|error| insula_base::chain(&error)));
    folder.remove()?;
    Ok(warnings)
}

/// Kills everything and waits for it.
fn end(record: &Record) -> Result<()> {
    let group = record.group()?;
    let Some(init) = record.init()? else { return Ok(group.kill()?) };
    match process::signal(init.as_fd(), SIGKILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error).context("pidfd_send_signal", record.pid),
    }
    group.kill()?;
    loop {
        let mut poll = [PollFd::new(&init, PollFlags::IN)];
        match rustix::event::poll(&mut poll, Some(&DYING)) {
            Ok(0) => return Err(Error::Invalid(format!("process {} does not end", record.pid))),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll", record.pid),
        }
    }
}

/// Stops every process, or lets them go on.
pub fn freeze(root: &Path, id: &str, frozen: bool) -> Result<()> {
    // The folder is what is locked.
    let Found { record, status, folder: _folder } = find_locked(root, id)?;
    match (frozen, status) {
        (true, Status::Running) | (false, Status::Paused) => Ok(record.group()?.freeze(frozen)?),
        (_, Status::Stopped) => Err(Error::NotRunning),
        (true, status) => Err(Error::Phase { verb: "pause", status }),
        (false, status) => Err(Error::Phase { verb: "resume", status }),
    }
}

/// Changes limits; what the document does not have stays. Returns what the user should know.
pub fn update(root: &Path, id: &str, resources: &Resources) -> Result<Vec<String>> {
    let limits = bundle::resources(resources, "resources")?;
    let Found { mut record, status, folder } = find_locked(root, id)?;
    let devices = new_devices(&record, resources)?;
    if status == Status::Stopped {
        return Err(Error::NotRunning);
    }
    let group = record.group()?;
    // Before anything is changed: without systemd nothing would stay so.
    let unit = record.unit.clone();
    let mut held = unit.as_ref().map(Unit::connect).transpose()?;
    let mut warnings = Vec::new();
    if let Some(devices) = devices {
        warnings.extend(groups::change_devices(&mut record, &folder, &group, held.as_mut(), devices)?);
    }
    warnings.extend(group.limit(&limits)?);
    if let Some(mut held) = held
        && let Err(error) = held.hold(&group)
    {
        warnings.push(format!("until systemd is loaded anew: {}", insula_base::chain(&error)));
    }
    Ok(warnings)
}

/// None where nothing is said of them, or what there is: Kubernetes sends all that there was, with other limits.
fn new_devices(record: &Record, resources: &Resources) -> Result<Option<BundleDevices>> {
    let list = resources.devices.as_deref().unwrap_or_default();
    if list.is_empty() {
        return Ok(None);
    }
    let new = bundle::devices(list, "resources.devices")?;
    let old = record.plan.bundle.as_ref().map(|bundle| &bundle.device_policy);
    Ok(Some(new).filter(|new| old != Some(new) || !record.tried_devices.is_empty()))
}

/// Pids of the container's processes.
pub fn processes(root: &Path, id: &str) -> Result<Vec<i32>> {
    Ok(find(root, id)?.record.group()?.processes()?)
}

/// What the container uses.
pub fn stats(root: &Path, id: &str) -> Result<Stats> {
    let Found { record, status, .. } = find(root, id)?;
    match status {
        Status::Stopped => Err(Error::NotRunning),
        _ => Ok(record.group()?.stats()?),
    }
}
