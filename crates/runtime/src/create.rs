//! From a bundle to a container that waits for its start.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use insula_base::{Durability, replace};
use insula_container::{BundleBuild, Streams};
use insula_host::cgroup::Group;
use insula_host::resctrl::Resctrl;
use insula_spec::bundle::document::{self, Config};
use insula_spec::bundle::{self, Entering, Keyring, LARGEST, Status};

use crate::console;
use crate::error::{Context, Error, Result};
use crate::groups::{self, Grouping, Wanted};
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
    pub grouping: Grouping,
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
    let mut record = Record::new(request.id, bundle, plan);
    let wanted = Wanted::new(request.grouping, &config, &mut record)?;
    let folder = Folder::create(request.root, request.id)?;
    groups::within(&wanted, folder, record, |folder, record, group| stand(request, folder, record, group))
}

/// A file of the caller's, bounded.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).context("open", path.display())?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).context("read", path.display())?;
    Ok(bytes)
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
    if let Some(rdt) = record.rdt() {
        let resctrl = Resctrl::probe()?;
        resctrl.join(rdt, standing.pid)?;
        let parked = standing.park();
        if parked.is_err() {
            // The first error is the one to report.
            let _ = resctrl.leave(rdt);
        }
        return Ok(parked.map(|_| warnings)?);
    }
    standing.park()?;
    Ok(warnings)
}

/// A pid file is there in full or not at all.
pub(crate) fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let whole: PathBuf = std::path::absolute(path).context("resolve", path.display())?;
    replace(&whole, pid.to_string().as_bytes(), 0o644, Durability::Process).context("write", path.display())
}
