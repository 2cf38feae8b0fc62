//! The folder of a container, and what is written in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use insula_base::{Durability, replace};
use insula_host::cgroup::Group;
use insula_spec::bundle::{BundleDevices, RdtPlan, State, Status, VERSION};
use insula_spec::plan::ContainerPlan;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::scope::{self, Unit};

/// The socket at which an init waits.
pub(crate) const START: &str = "start";
const STATE: &str = "state.json";
/// Longest name of a container: with `state.json` and a temporary name it fits where names have 255 bytes.
const LONGEST: usize = 200;

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub id: String,
    pub bundle: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// 0 before the init stands.
    pub pid: i32,
    /// Of the init, in clock ticks since boot: tells it from a later process with its number.
    pub start_time: u64,
    pub plan: ContainerPlan,
    /// None where the control groups are the runtime's own.
    #[serde(default)]
    pub unit: Option<Unit>,
    /// Devices that a change which has not come to its end may have allowed, in whole or in part, instead of those of the
    /// plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tried_devices: Vec<BundleDevices>,
}

impl Record {
    /// Of a container that does not stand yet.
    pub(crate) fn new(id: &str, bundle: PathBuf, plan: ContainerPlan) -> Self {
        let created = jiff::Timestamp::now().to_string();
        Self {
            id: id.to_owned(),
            bundle,
            created,
            pid: 0,
            start_time: 0,
            plan,
            unit: None,
            tried_devices: Vec::new(),
        }
    }

    /// The group of resctrl that it is in.
    pub(crate) fn rdt(&self) -> Option<&RdtPlan> {
        self.plan.bundle.as_ref()?.rdt.as_ref()
    }

    /// As hooks and `state` show it.
    #[must_use]
    pub fn state(&self, status: Status) -> State {
        let annotations = self.plan.bundle.as_ref().map(|bundle| bundle.annotations.clone());
        State {
            oci_version: VERSION.to_owned(),
            id: self.id.clone(),
            status,
            pid: if status == Status::Stopped { 0 } else { self.pid },
            bundle: self.bundle.clone(),
            annotations: annotations.unwrap_or_default(),
        }
    }

    /// The control groups, as far as they exist.
    pub fn group(&self) -> Result<Group> {
        Ok(Group::open(&scope::layout(self.unit.as_ref())?, &self.plan.cgroup.path)?)
    }

    /// A descriptor of the init, if it lives: whatever comes after has its number, it does not have this.
    pub fn init(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            pidfd => pidfd.context("pidfd_open", self.pid)?,
        };
        Ok((start_time(self.pid)? == Some(self.start_time)).then_some(pidfd))
    }
}

/// When a process began, in clock ticks since boot: field 22 of proc_pid_stat(5). None for one that ended.
pub(crate) fn start_time(pid: i32) -> Result<Option<u64>> {
    let path = format!("/proc/{pid}/stat");
    let stat = match std::fs::read_to_string(&path) {
        Ok(stat) => stat,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error).context("read", path),
    };
    // The name, in brackets, may have anything in it.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    if matches!(fields.next(), None | Some("Z" | "X")) {
        return Ok(None);
    }
    Ok(fields.nth(22 - 4).and_then(|field| field.parse().ok()))
}

/// A container's folder, open.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    file: OwnedFd,
}

impl Folder {
    /// Makes the folder of a new container and locks it.
    pub fn create(root: &Path, id: &str) -> Result<Self> {
        check(id)?;
        let mut make = std::fs::DirBuilder::new();
        make.recursive(true).mode(0o711).create(root).context("mkdir", root.display())?;
        let path = root.join(id);
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            Err(Errno::EXIST) => return Err(Error::Exists(id.to_owned())),
            made => made.context("mkdir", path.display())?,
        }
        let folder = Self::open_path(path, id)?;
        folder.lock()?;
        Ok(folder)
    }

    pub fn open(root: &Path, id: &str) -> Result<Self> {
        check(id)?;
        Self::open_path(root.join(id), id)
    }

    fn open_path(path: PathBuf, id: &str) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::NOENT) => Err(Error::Unknown(id.to_owned())),
            file => Ok(Self { file: file.context("open", path.display())?, path }),
        }
    }

    /// Waits until nobody else changes the container. Who waited for somebody that removed it finds it gone.
    pub fn lock(&self) -> Result<()> {
        rustix::io::retry_on_intr(|| rustix::fs::flock(&self.file, FlockOperation::LockExclusive))
            .context("flock", self.path.display())?;
        match rustix::fs::fstat(&self.file).context("fstat", self.path.display())?.st_nlink {
            0 => Err(Error::Unknown(self.name())),
            _ => Ok(()),
        }
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&self, record: &Record) -> Result<()> {
        let path = self.path.join(STATE);
        let text = serde_json::to_vec(record)
            .map_err(|source| Error::Damaged { on: path.display().to_string(), source })?;
        replace(&path, &text, 0o600, Durability::Process).context("write", path.display())
    }

    pub fn read(&self) -> Result<Record> {
        let path = self.path.join(STATE);
        match std::fs::read(&path) {
            // Whoever creates it has got no further, or whoever removes it has.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::Unknown(self.name())),
            text => serde_json::from_slice(&text.context("read", path.display())?)
                .map_err(|source| Error::Damaged { on: path.display().to_string(), source }),
        }
    }

    /// Where a container with this record is in its life.
    pub fn status(&self, record: &Record) -> Result<Status> {
        if record.pid == 0 {
            return Ok(Status::Creating);
        }
        if record.init()?.is_none() {
            return Ok(Status::Stopped);
        }
        if insula_container::is_waiting(self.descriptor(), START)? {
            return Ok(Status::Created);
        }
        Ok(if record.group()?.is_frozen()? { Status::Paused } else { Status::Running })
    }

    /// It is started: nobody waits there any more.
    pub(crate) fn remove_socket(&self) -> Result<()> {
        let path = self.path.join(START);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.context("unlink", path.display()),
        }
    }

    pub fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.path).context("rmdir", self.path.display())
    }
}

/// The names of all containers below a root.
pub fn names(root: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("open", root.display())?,
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| check(name).is_ok())
        .collect();
    names.sort();
    Ok(names)
}

/// What other runtimes take as a name, too.
fn check(id: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    let fits = !id.is_empty() && id.len() <= LONGEST && id != "." && id != "..";
    if fits && id.bytes().all(plain) { Ok(()) } else { Err(Error::Id(id.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["a", "box-1_2.x+y", &"x".repeat(200)] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "ä", "a\0", &"x".repeat(201)] {
            assert!(check(name).is_err(), "{name}");
        }
    }

    #[test]
    fn one_folder_for_one_name() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::create(root.path(), "box").unwrap();
        assert!(matches!(Folder::create(root.path(), "box"), Err(Error::Exists(_))));
        assert!(matches!(Folder::open(root.path(), "other"), Err(Error::Unknown(_))));
        assert!(matches!(folder.read(), Err(Error::Unknown(_))));
        assert_eq!(names(root.path()).unwrap(), ["box"]);
        let late = Folder::open(root.path(), "box").unwrap();
        folder.remove().unwrap();
        assert!(matches!(late.lock(), Err(Error::Unknown(_))));
    }

    #[test]
    fn a_process_is_known_by_its_beginning() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(start_time(pid).unwrap().unwrap() > 0);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(start_time(pid).unwrap(), None);
    }
}
