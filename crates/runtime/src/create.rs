//! From a bundle to a container that waits for its start.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use insula_base::{Durability, Kind, Kinded, replace};
use insula_container::{BundleBuild, Streams};
use insula_host::cgroup::{self, DevicePolicy, Group, Layout, Purpose, standard_devices};
use insula_spec::bundle::document::{self, Config};
use insula_spec::bundle::{self, BundleDevices, Entering, Keyring, LARGEST, Status};
use insula_spec::plan::ContainerPlan;

use crate::console;
use crate::error::{Context, Error, Result};
use crate::store::{Folder, Record, START, start_time};

/// What to create.
#[derive(Debug)]
pub struct CreateRequest<'a> {
    /// Folder of the containers' folders.
    pub root: &'a Path,
    pub id: &'a str,
    /// Folder with `config.json`.
    pub bundle: &'a Path,
    /// Socket that gets the master of the terminal.
    pub console_socket: Option<&'a Path>,
    pub pid_file: Option<&'a Path>,
    /// Left open in the program, under the numbers that they have.
    pub preserved: &'a [OwnedFd],
    pub entering: Entering,
    pub keyring: Keyring,
    pub groups: Groups,
}

/// Whether a container needs its control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    Needed,
    /// What an ordinary user may not have of them is done without, and said.
    Wanted,
}

/// Creates; returns what the user should know. On failure nothing is left. For a process of one thread whose
/// umask is 0.
pub fn create(request: &CreateRequest<'_>) -> Result<Vec<String>> {
    let bundle = std::fs::canonicalize(request.bundle).context("open", request.bundle.display())?;
    let config: Config = document::parse(&read(&bundle.join("config.json"))?, "config.json")?;
    let mut plan = bundle::plan(&config, request.id, &bundle)?;
    if let Some(own) = &mut plan.bundle {
        (own.entering, own.keyring) = (request.entering, request.keyring);
    }
    console::check(plan.stdio.tty, request.console_socket)?;
    let folder = Folder::create(request.root, request.id)?;
    let record = Record {
        id: request.id.to_owned(),
        bundle,
        created: jiff::Timestamp::now().to_string(),
        pid: 0,
        start_time: 0,
        plan,
    };
    match build(request, &folder, record) {
        Ok(warnings) => Ok(warnings),
        Err(error) => {
            // The first error is the one to report; what is left is found by the folder.
            let _ = folder.remove();
            Err(error)
        }
    }
}

/// A file of the caller's, bounded.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).context("open", path.display())?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).context("read", path.display())?;
    Ok(bytes)
}

fn build(request: &CreateRequest<'_>, folder: &Folder, record: Record) -> Result<Vec<String>> {
    folder.write(&record)?;
    let layout = Layout::probe()?;
    let occupied = Group::open(&layout, &record.plan.cgroup.path)?.processes()?;
    if !occupied.is_empty() {
        let path = &record.plan.cgroup.path;
        return Err(Error::Invalid(format!("linux.cgroupsPath: the group {path:?} has processes in it")));
    }
    let rare = record.plan.cgroup.resources.exact.as_ref().is_some_and(|exact| exact.is_rare());
    let purpose = if rare { Purpose::LimitEverywhere } else { Purpose::Limit };
    let mut warnings = Vec::new();
    let made = Group::create(&layout, &record.plan.cgroup.path, purpose);
    let group = if_needed(request.groups, made, &mut warnings)?.unwrap_or_else(Group::nowhere);
    let built = limit(request.groups, &group, &record.plan, &mut warnings).and_then(|()| {
        warnings.extend(stand(request, folder, record, &group)?);
        Ok(warnings)
    });
    if built.is_err() {
        // As above.
        let _ = group.remove();
    }
    built
}

/// None for what is refused to who does without.
fn if_needed<T>(groups: Groups, result: cgroup::Result<T>, warnings: &mut Vec<String>) -> Result<Option<T>> {
    match result {
        Err(error)
            if groups == Groups::Wanted && matches!(error.kind(), Kind::Denied | Kind::Unsupported) =>
        {
            warnings.push(format!("without control groups: {}", insula_base::chain(&error)));
            Ok(None)
        }
        result => Ok(Some(result?)),
    }
}

fn limit(groups: Groups, group: &Group, plan: &ContainerPlan, warnings: &mut Vec<String>) -> Result<()> {
    let told = if_needed(groups, group.limit(&plan.cgroup.resources), warnings)?;
    warnings.extend(told.into_iter().flatten());
    // Who is in a user namespace makes no nodes, and opens those of the host as far as it may.
    if groups == Groups::Wanted && insula_sys::process::in_user_namespace() {
        return Ok(());
    }
    Ok(group.allow_devices(&match plan.bundle.as_ref().map(|bundle| &bundle.device_policy) {
        Some(BundleDevices::All) => DevicePolicy::All,
        Some(BundleDevices::Only(rules)) => {
            DevicePolicy::Only(standard_devices().into_iter().chain(rules.iter().cloned()).collect())
        }
        None => DevicePolicy::Only(standard_devices()),
    })?)
}

fn stand(
    request: &CreateRequest<'_>,
    folder: &Folder,
    mut record: Record,
    group: &Group,
) -> Result<Vec<String>> {
    let listener = insula_container::listen(folder.descriptor(), START)?;
    let standing = insula_container::create_bundle(&BundleBuild {
        plan: &record.plan,
        entry: &group.entry()?,
        listener: listener.as_fd(),
        preserved: request.preserved,
        state: &record.state(Status::Creating),
    })?;
    drop(listener);
    if let (Streams::Terminal(master), Some(socket)) = (&standing.streams, request.console_socket) {
        console::send(socket, master)?;
    }
    record.pid = standing.pid;
    record.start_time = start_time(standing.pid)?.ok_or(Error::Container(insula_container::Error::Lost))?;
    folder.write(&record)?;
    if let Some(path) = request.pid_file {
        write_pid(path, standing.pid)?;
    }
    let warnings = standing.warnings.clone();
    standing.park()?;
    Ok(warnings)
}

/// A pid file is there in full or not at all.
pub(crate) fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let whole: PathBuf = std::path::absolute(path).context("resolve", path.display())?;
    replace(&whole, pid.to_string().as_bytes(), 0o644, Durability::Process).context("write", path.display())
}
