//! A container is written to files, and ends or goes on.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use insula_base::{Durability, replace};
use insula_spec::bundle::Status;

use crate::criu::{self, External, NETWORK, Reach, STREAMS};
use crate::error::{Context, Error, Result};
use crate::life::{Found, delete, find_locked};

/// What to write, and where.
#[derive(Debug)]
pub struct CheckpointRequest<'a> {
    pub root: &'a Path,
    pub id: &'a str,
    /// Folder of the images, made if absent.
    pub images: &'a Path,
    /// Folder of the log; that of the images where there is none.
    pub work: Option<&'a Path>,
    pub after: After,
    pub reach: Reach,
}

/// What becomes of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It ends and is removed.
    Gone,
    Running,
}

/// Writes a container that runs, or is paused; returns what the user should know.
pub fn checkpoint(request: &CheckpointRequest<'_>) -> Result<Vec<String>> {
    let program = criu::program()?;
    let Found { record, status, folder } = find_locked(request.root, request.id)?;
    match status {
        Status::Running | Status::Paused => {}
        Status::Stopped => return Err(Error::NotRunning),
        status => return Err(Error::Phase { verb: "checkpoint", status }),
    }
    criu::check(&record.plan)?;
    let images = made(request.images)?;
    let work = request.work.map_or_else(|| Ok(images.clone()), made)?;
    [&images, &work].into_iter().try_for_each(|folder| criu::check_folder(folder))?;
    let streams: Vec<PathBuf> = (0..3).map(|number| stream(record.pid, number)).collect::<Result<_>>()?;
    let text = serde_json::to_vec(&streams).map_err(std::io::Error::from).context("write", STREAMS)?;
    replace(&images.join(STREAMS), &text, 0o600, Durability::Process).context("write", STREAMS)?;
    let mut arguments = criu::arguments("dump", &images, &work, request.reach);
    arguments.extend(["--tree".into(), record.pid.to_string().into()]);
    arguments.extend((request.after == After::Running).then(|| "--leave-running".into()));
    if status == Status::Paused
        && let Some(folder) = record.group()?.freezer()
    {
        // Who is stopped there answers nobody: it lets them go on in its own hands, and stops them again.
        arguments.extend(["--freeze-cgroup".into(), folder.into()]);
    }
    for external in criu::external(&record.plan, request.reach)? {
        arguments.extend(["--external".into(), told(&external)]);
    }
    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mask = criu::private_files();
    let status = command.status();
    rustix::process::umask(mask);
    let status = status.context("execute", program.display())?;
    if !status.success() {
        return Err(criu::failure("dump", &work, &status.to_string()));
    }
    drop(folder);
    match request.after {
        After::Running => Ok(Vec::new()),
        After::Gone => delete(request.root, request.id, true),
    }
}

fn made(path: &Path) -> Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).context("mkdir", path.display())?;
    std::fs::canonicalize(path).context("open", path.display())
}

/// What a stream is called: a pipe by its number, which who restores puts another one in place of.
fn stream(pid: i32, number: i32) -> Result<PathBuf> {
    let path = format!("/proc/{pid}/fd/{number}");
    match std::fs::read_link(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(PathBuf::new()),
        link => link.context("readlink", path),
    }
}

fn told(external: &External) -> OsString {
    match external {
        External::Mount { target, .. } => format!("mnt[{target}]:{target}").into(),
        External::Network { inode, .. } => format!("net[{inode}]:{NETWORK}").into(),
    }
}
