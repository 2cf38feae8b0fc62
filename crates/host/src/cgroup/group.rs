//! One path in every hierarchy that it is needed in.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use insula_spec::plan::Resources;
use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::error::{Context, Error, Result};
use super::layout::{Hierarchy, Layout, Version};
use super::{DevicePolicy, Stats, devices, limits, stats};

/// Controllers that are turned on for groups of version 2.
const V2_CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// What a group is for, which decides the hierarchies that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Limits and accounting.
    Limit,
    /// Also to be managed from inside by an init of the container's own, whose root has this id:
    /// named hierarchies and version 2 beside version 1 are made too and handed over.
    Delegate { owner: u32 },
}

/// A control group.
#[derive(Debug)]
pub struct Group {
    members: Vec<Member>,
}

/// The way into a group: opened by who may, walked by the process itself.
///
/// Moving another process takes a lock that every fork and exit of the host shares, and waits for an
/// RCU grace period, 10 ms and more, to get it. A process that moves its own and only thread does not
/// need that lock ("cgroup: Optimize single thread migration", Linux 5.5), and on version 2 a
/// process can be born inside (clone3(2), `CLONE_INTO_CGROUP`).
#[derive(Debug)]
pub struct Entry {
    tasks: Vec<OwnedFd>,
    unified: Option<OwnedFd>,
}

impl Entry {
    /// For clone3(2): the group of version 2 that the child is to be born in.
    #[must_use]
    pub fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Moves the calling process, which must have one thread, into the groups of version 1.
    pub fn enter(&self) -> Result<()> {
        self.tasks.iter().try_for_each(|tasks| {
            rustix::io::write(tasks, b"0").map(drop).context("write", "0 to tasks of a control group")
        })
    }
}

/// The group in one hierarchy.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) version: Version,
    pub(super) folder: OwnedFd,
    pub(super) path: PathBuf,
}

impl Group {
    /// Makes the group with its parents. It may exist already.
    pub fn create(layout: &Layout, path: &str, purpose: Purpose) -> Result<Self> {
        check(path)?;
        let unified = layout.unified();
        let mut group = Self { members: Vec::new() };
        for hierarchy in &layout.hierarchies {
            if needed(hierarchy, purpose, unified) {
                group.members.push(Member::create(hierarchy, path)?);
            }
        }
        if let Purpose::Delegate { owner } = purpose {
            group.delegate(owner)?;
        }
        Ok(group)
    }

    /// The group as it exists, wherever it does.
    pub fn open(layout: &Layout, path: &str) -> Result<Self> {
        check(path)?;
        let mut members = Vec::new();
        for hierarchy in &layout.hierarchies {
            match Member::open(hierarchy, path) {
                Err(Error::Call { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                member => members.push(member?),
            }
        }
        Ok(Self { members })
    }

    /// Whether it exists nowhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Moves another process into the group, which costs what [`Entry`] avoids.
    pub fn add(&self, pid: i32) -> Result<()> {
        let pid = pid.to_string();
        self.members.iter().try_for_each(|member| member.write("cgroup.procs", &pid))
    }

    /// The way in, for a process that is about to be cloned.
    pub fn entry(&self) -> Result<Entry> {
        let mut entry = Entry { tasks: Vec::new(), unified: None };
        for member in &self.members {
            if member.version == Version::V2 {
                entry.unified = Some(member.file(".", OFlags::PATH | OFlags::DIRECTORY)?);
            } else {
                entry.tasks.push(member.file("tasks", OFlags::WRONLY)?);
            }
        }
        Ok(entry)
    }

    /// Sets limits; what is `None` stays. Returns what the host cannot hold, for the user.
    pub fn limit(&self, resources: &Resources) -> Result<Vec<String>> {
        limits::apply(self, resources)
    }

    /// Allows these devices and no others.
    pub fn allow_devices(&self, policy: &DevicePolicy) -> Result<()> {
        devices::apply(self, policy)
    }

    /// Stops every process of the group, or lets them go on; returns when they are.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        if let Some(member) = self.v1("freezer") {
            let state = if frozen { "FROZEN" } else { "THAWED" };
            member.write("freezer.state", state)?;
            return member.await_content("freezer.state", |text| text.trim() == state);
        }
        let member = self.v2().ok_or(Error::Unsupported("the host has no freezer for control groups"))?;
        member.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let line = if frozen { "frozen 1" } else { "frozen 0" };
        member.await_content("cgroup.events", |text| text.lines().any(|found| found == line))
    }

    /// What the group uses.
    pub fn stats(&self) -> Result<Stats> {
        stats::read(self)
    }

    /// Its processes, those of groups below it included.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let Some(member) = self.v1("pids").or_else(|| self.members.first()) else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        collect(&member.path, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills every process of the group and returns when none is left to be killed. Zombies are the
    /// affair of their parents.
    pub fn kill(&self) -> Result<()> {
        if let Some(member) = self.v2()
            && member.write("cgroup.kill", "1").is_ok()
        {
            return Ok(());
        }
        // A process may fork while it is being killed: as often as there is someone left, bounded by what a
        // fork bomb can do against a SIGKILL for everyone it has.
        for _ in 0..1000 {
            let pids = self.processes()?;
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                match insula_sys::process::kill(pid, 9) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => return Err(error).context("kill", pid),
                }
            }
            std::thread::yield_now();
        }
        Err(Error::Unsupported("processes of the group come back faster than they can be killed"))
    }

    /// How many processes the kernel has killed here for want of memory.
    pub fn oom_kills(&self) -> Result<u64> {
        let (member, file) = match (self.v1("memory"), self.v2()) {
            (Some(member), _) => (member, "memory.oom_control"),
            (None, Some(member)) => (member, "memory.events"),
            (None, None) => return Ok(0),
        };
        Ok(member.read(file)?.map_or(0, |text| stats::keyed(&text, "oom_kill")))
    }

    /// A descriptor that becomes readable when memory runs out: an eventfd on version 1. On version 2 the
    /// kernel tells by modifying `memory.events`, which inotify(7) sees.
    pub fn oom_descriptor(&self) -> Result<Option<OwnedFd>> {
        if let Some(member) = self.v1("memory") {
            let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .context("eventfd", "for memory")?;
            let control = member.file("memory.oom_control", OFlags::RDONLY)?;
            use std::os::fd::AsRawFd;
            let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
            member.write("cgroup.event_control", &line)?;
            return Ok(Some(event));
        }
        let Some(member) = self.v2() else { return Ok(None) };
        let events = member.path.join("memory.events");
        if !events.exists() {
            return Ok(None);
        }
        use rustix::fs::inotify;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .context("inotify_init1", "for memory")?;
        inotify::add_watch(&watch, &events, inotify::WatchFlags::MODIFY)
            .context("inotify_add_watch", events.display())?;
        Ok(Some(watch))
    }

    /// Removes the group and what was made below it. May be repeated.
    pub fn remove(self) -> Result<()> {
        for member in self.members {
            remove_tree(&member.path)?;
        }
        Ok(())
    }

    pub(super) fn v1(&self, controller: &str) -> Option<&Member> {
        self.members.iter().find(|member| {
            matches!(&member.version, Version::V1(controllers) if controllers.iter().any(|c| c == controller))
        })
    }

    /// The member in version 2, when that is where the limits are.
    pub(super) fn v2(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.version == Version::V2)
    }

    fn delegate(&self, owner: u32) -> Result<()> {
        let handed = self.members.iter().filter(|m| !matches!(m.version, Version::V1(_)));
        for member in handed {
            let id = Some(rustix::fs::Uid::from_raw(owner));
            let group = Some(rustix::fs::Gid::from_raw(owner));
            for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"] {
                let flags = if name.is_empty() {
                    rustix::fs::AtFlags::EMPTY_PATH
                } else {
                    rustix::fs::AtFlags::empty()
                };
                match rustix::fs::chownat(&member.folder, name, id, group, flags) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error).context("chown", member.path.join(name).display()),
                }
            }
        }
        Ok(())
    }
}

fn needed(hierarchy: &Hierarchy, purpose: Purpose, unified: bool) -> bool {
    match hierarchy.version {
        Version::V1(_) => true,
        Version::V2 if unified => true,
        Version::Named(_) | Version::V2 => matches!(purpose, Purpose::Delegate { .. }),
    }
}

fn check(path: &str) -> Result<()> {
    let plain =
        !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if plain { Ok(()) } else { Err(Error::Path(path.to_owned())) }
}

impl Member {
    fn create(hierarchy: &Hierarchy, path: &str) -> Result<Self> {
        let full = hierarchy.root.join(path);
        match rustix::fs::mkdir(&full, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => make_parents(hierarchy, path)?,
            Err(error) => return Err(error).context("mkdir", full.display()),
        }
        Self::open(hierarchy, path)
    }

    fn open(hierarchy: &Hierarchy, path: &str) -> Result<Self> {
        let path = hierarchy.root.join(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&path, flags, Mode::empty()).context("open", path.display())?;
        Ok(Self { version: hierarchy.version.clone(), folder, path })
    }

    fn file(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        rustix::fs::openat(&self.folder, name, flags | OFlags::CLOEXEC, Mode::empty())
            .context("open", self.path.join(name).display())
    }

    pub(super) fn write(&self, name: &str, value: &str) -> Result<()> {
        let file = self.file(name, OFlags::WRONLY)?;
        rustix::io::write(&file, value.as_bytes())
            .map(drop)
            .context("write", format_args!("{value:?} to {}", self.path.join(name).display()))
    }

    /// Several values, each in a write of its own.
    pub(super) fn write_each(&self, name: &str, values: &[String]) -> Result<()> {
        let mut file = File::from(self.file(name, OFlags::WRONLY)?);
        for value in values {
            file.write_all(value.as_bytes())
                .context("write", format_args!("{value:?} to {}", self.path.join(name).display()))?;
        }
        Ok(())
    }

    /// The content of a file; none where the kernel does not have it.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>> {
        let file = match self.file(name, OFlags::RDONLY) {
            Err(Error::Call { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            file => file?,
        };
        let mut text = String::new();
        match File::from(file).read_to_string(&mut text) {
            // Some files of version 1 cannot be read for a group without the matching device.
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(None),
            result => result.map(|_| Some(text)).context("read", self.path.join(name).display()),
        }
    }

    /// Waits until a file reads as wanted. The kernel tells of changes of `cgroup.events` by poll(2);
    /// `freezer.state` has no such thing and is read again after a moment.
    fn await_content(&self, name: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for _ in 0..1000 {
            if self.read(name)?.is_some_and(|text| wanted(&text)) {
                return Ok(());
            }
            let file = self.file(name, OFlags::RDONLY)?;
            let mut poll =
                [rustix::event::PollFd::from_borrowed_fd(file.as_fd(), rustix::event::PollFlags::PRI)];
            let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
            rustix::event::poll(&mut poll, Some(&moment)).context("poll", name)?;
        }
        Err(Error::Unsupported("the processes of the group cannot be stopped: one of them is in the kernel"))
    }
}

fn make_parents(hierarchy: &Hierarchy, path: &str) -> Result<()> {
    let mut full = hierarchy.root.clone();
    prepare_parent(hierarchy, &full)?;
    let parts: Vec<_> = Path::new(path).components().collect();
    for (at, part) in parts.iter().enumerate() {
        full.push(part);
        match rustix::fs::mkdir(&full, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context("mkdir", full.display()),
        }
        if at + 1 < parts.len() {
            prepare_parent(hierarchy, &full)?;
        }
    }
    Ok(())
}

/// Makes a group fit to have others below it.
fn prepare_parent(hierarchy: &Hierarchy, parent: &Path) -> Result<()> {
    if hierarchy.version == Version::V2 {
        let available = std::fs::read_to_string(parent.join("cgroup.controllers"))
            .context("read", parent.join("cgroup.controllers").display())?;
        let wanted: Vec<String> = available
            .split_whitespace()
            .filter(|controller| V2_CONTROLLERS.contains(controller))
            .map(|controller| format!("+{controller}"))
            .collect();
        let file = parent.join("cgroup.subtree_control");
        return std::fs::write(&file, wanted.join(" ")).context("write", file.display());
    }
    // cpuset(7): a new group has no CPUs at all until it is given some; with this flag it gets its
    // parent's. The root of the hierarchy is not ours to change.
    if hierarchy.has("cpuset") && parent != hierarchy.root {
        for name in ["cpuset.cpus", "cpuset.mems"] {
            let above = parent.parent().unwrap_or(parent).join(name);
            let value = std::fs::read_to_string(&above).context("read", above.display())?;
            let file = parent.join(name);
            std::fs::write(&file, value.trim()).context("write", file.display())?;
        }
        let file = parent.join("cgroup.clone_children");
        std::fs::write(&file, "1").context("write", file.display())?;
    }
    Ok(())
}

fn collect(folder: &Path, pids: &mut Vec<i32>) -> Result<()> {
    let file = folder.join("cgroup.procs");
    let text = match std::fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        text => text.context("read", file.display())?,
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(folder)? {
        collect(&child, pids)?;
    }
    Ok(())
}

/// Groups below a group. The number of links of the folder is not kept by every kernel.
fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("open", folder.display())?,
    };
    Ok(entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

fn remove_tree(folder: &Path) -> Result<()> {
    for attempt in 0..100 {
        match rustix::fs::rmdir(folder) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => {
                for child in children(folder)? {
                    remove_tree(&child)?;
                }
                // A killed process leaves its group when the kernel has taken it apart, of which version 1
                // does not tell; the first round is for groups below.
                if attempt > 0 {
                    let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                    rustix::event::poll(&mut [], Some(&moment)).context("poll", "for a moment")?;
                }
            }
            Err(error) => return Err(error).context("rmdir", folder.display()),
        }
    }
    Err(Errno::BUSY).context("rmdir", folder.display())
}
