//! One path in every hierarchy that it is needed in.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::time::{Duration, Instant};

use insula_spec::plan::Resources;
use rustix::event::EventfdFlags;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, inotify};
use rustix::io::Errno;

use super::error::{Context, Error, Result};
use super::layout::{EVERY, Hierarchy, Layout, USUAL, Version};
use super::member::{Member, wait};
use super::{DevicePolicy, Stats, devices, exact, limits, stats, tree};

/// How long processes may take to stop or to go on.
const FREEZING: Duration = Duration::from_secs(2);

/// How long they may take to die.
const DYING: Duration = Duration::from_secs(10);

/// Groups that a container may nest, and groups that it may have in all, where it manages its own.
const DELEGATED: [(&str, &str); 2] = [("cgroup.max.depth", "32"), ("cgroup.max.descendants", "4096")];

/// What a group is for, which decides the hierarchies that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Limits and accounting.
    Limit,
    /// The same with limits that only hierarchies have which are left out as a rule: those of network traffic, and
    /// the files of version 2 beside version 1.
    LimitEverywhere,
    /// Limits of a unit of systemd's, which looks for its processes in the hierarchy of its name.
    Unit,
    /// The same with every hierarchy and controller.
    UnitEverywhere,
    /// Also to be managed from inside by an init of the container's own, whose root has this id:
    /// named hierarchies and version 2 beside version 1 are made too and handed over.
    Delegate { owner: u32 },
}

impl Purpose {
    /// Those of version 2 that it takes. What more is turned on costs every group, and changes the host's root.
    fn controllers(self) -> &'static [&'static str] {
        match self {
            Self::Limit | Self::Unit | Self::Delegate { .. } => &USUAL,
            Self::LimitEverywhere | Self::UnitEverywhere => &EVERY,
        }
    }

    fn is_of_systemd(self) -> bool {
        matches!(self, Self::Unit | Self::UnitEverywhere)
    }
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

    /// The ways into the groups of version 1, to be handed to the process that is to walk them.
    #[must_use]
    pub fn tasks(&self) -> &[OwnedFd] {
        &self.tasks
    }

    /// What another process has handed over of its [`Entry::tasks`].
    #[must_use]
    pub fn received(tasks: Vec<OwnedFd>) -> Self {
        Self { tasks, unified: None }
    }

    /// Moves the calling process, which must have one thread, into the groups of version 1.
    pub fn enter(&self) -> Result<()> {
        self.tasks.iter().try_for_each(|tasks| {
            rustix::io::write(tasks, b"0").map(drop).context("write", "0 to tasks of a control group")
        })
    }
}

impl Group {
    /// Makes the group with its parents. It may exist already.
    pub fn create(layout: &Layout, path: &str, purpose: Purpose) -> Result<Self> {
        check(path)?;
        let unified = layout.unified();
        let mut group = Self { members: Vec::new() };
        for hierarchy in &layout.hierarchies {
            if !needed(hierarchy, purpose, unified) {
                continue;
            }
            match Member::create(hierarchy, path, purpose.controllers()) {
                Ok(member) => group.members.push(member),
                Err(error) => {
                    // The first error is the one to report; one that was there with processes in it stays.
                    for made in &group.members {
                        let _ = rustix::fs::rmdir(&made.path);
                    }
                    return Err(error);
                }
            }
        }
        if let Purpose::Delegate { owner } = purpose {
            group.delegate(owner)?;
        }
        Ok(group)
    }

    /// Whether nobody has removed it since it was made, from any hierarchy.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.members.iter().all(Member::stands)
    }

    /// One that is in no hierarchy: nothing is limited and nothing counted.
    #[must_use]
    pub fn nowhere() -> Self {
        Self { members: Vec::new() }
    }

    /// The group as it exists, wherever it does.
    pub fn open(layout: &Layout, path: &str) -> Result<Self> {
        check(path)?;
        let mut members = Vec::new();
        for hierarchy in &layout.hierarchies {
            match Member::open(hierarchy, path) {
                Err(error) if error.is(Errno::NOENT) => {}
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

    /// The way to a process of the group. An init that manages its own groups has moved on to one of them:
    /// version 2 then takes no more processes where it came from.
    pub fn entry_to(&self, first: i32) -> Result<Entry> {
        let mut entry = self.entry()?;
        let Some(member) = self.v2() else { return Ok(entry) };
        if member.read("cgroup.subtree_control")?.is_some_and(|text| !text.trim().is_empty())
            && let Some(group) = tree::group_of(&member.path, first)?
        {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = rustix::fs::open(&group, flags, Mode::empty()).context("open", group.display())?;
            entry.unified = Some(folder);
        }
        Ok(entry)
    }

    /// Sets limits; what is `None` stays. Returns what the host cannot hold, for the user.
    pub fn limit(&self, resources: &Resources) -> Result<Vec<String>> {
        let Some(more) = &resources.exact else { return limits::apply(self, resources) };
        exact::check(self, resources, more)?;
        let mut warnings = limits::apply(self, resources)?;
        exact::apply(self, more, &mut warnings)?;
        Ok(warnings)
    }

    /// Allows these devices and no others.
    pub fn allow_devices(&self, policy: &DevicePolicy) -> Result<()> {
        devices::apply(self, policy)
    }

    /// The same for a group that has allowed one of the old ones: more than one where a change has failed.
    pub fn change_devices(&self, old: &[DevicePolicy], new: &DevicePolicy) -> Result<()> {
        devices::change(self, old, new)
    }

    /// Whether that can be done; changes nothing.
    pub fn check_device_change(&self, old: &[DevicePolicy], new: &DevicePolicy) -> Result<()> {
        devices::check_change(self, old, new)
    }

    /// Whether it has devices that version 1 decides over.
    #[must_use]
    pub fn has_device_list(&self) -> bool {
        self.v1("devices").is_some()
    }

    /// Stops every process of the group, or lets them go on; returns when they are. What cannot be stopped
    /// goes on.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        if self.order_freeze(frozen, FREEZING)? {
            return Ok(());
        }
        if frozen {
            // What is said below is the error to report.
            let _ = self.order_freeze(false, Duration::ZERO);
            return Err(Error::Stuck(
                "the processes of the group cannot be stopped: one of them is in the kernel",
            ));
        }
        Err(Error::Stuck("the processes of the group do not go on: a group above it is frozen"))
    }

    /// Lets those who are stopped die of a signal, which version 1 does not.
    pub fn let_die(&self) -> Result<()> {
        if self.v1("freezer").is_some() { self.freeze(false) } else { Ok(()) }
    }

    /// Whether it came true within `limit`.
    fn order_freeze(&self, frozen: bool, limit: Duration) -> Result<bool> {
        if let Some(member) = self.v1("freezer") {
            let state = if frozen { "FROZEN" } else { "THAWED" };
            member.write("freezer.state", state)?;
            return member.becomes("freezer.state", limit, |text| text.trim() == state);
        }
        let member = self.v2().ok_or(Error::Unsupported("the host has no freezer for control groups"))?;
        member.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let line = if frozen { "frozen 1" } else { "frozen 0" };
        member.becomes("cgroup.events", limit, |text| text.lines().any(|found| found == line))
    }

    /// Whether every process of the group is stopped.
    pub fn is_frozen(&self) -> Result<bool> {
        if let Some(member) = self.v1("freezer") {
            return Ok(member.read("freezer.state")?.is_some_and(|text| text.trim() == "FROZEN"));
        }
        let Some(member) = self.v2() else { return Ok(false) };
        Ok(member.read("cgroup.events")?.is_some_and(|text| text.lines().any(|line| line == "frozen 1")))
    }

    /// The folder by which its processes are stopped.
    #[must_use]
    pub fn freezer(&self) -> Option<&Path> {
        self.v1("freezer").or_else(|| self.v2()).map(|member| member.path.as_path())
    }

    /// What the group uses.
    pub fn stats(&self) -> Result<Stats> {
        stats::read(self)
    }

    /// Its processes, those of groups below it included.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let Some(member) = self.v1("pids").or_else(|| self.members.first()) else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        tree::processes(&member.path, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills every process of the group, a frozen one too; none of them runs on when this returns. Zombies
    /// are the affair of their parents.
    pub fn kill(&self) -> Result<()> {
        if let Some(member) = self.v2()
            && member.write("cgroup.kill", "1").is_ok()
        {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            let pids = self.processes()?;
            if pids.is_empty() {
                return Ok(());
            }
            if began.elapsed() > DYING {
                return Err(Error::Stuck("processes of the group do not die: one of them is in the kernel"));
            }
            self.kill_once()?;
            wait(Duration::from_millis(1))?;
        }
    }

    /// While it is frozen the group cannot fork, nor give its numbers to others. Who stays in the kernel and
    /// will not freeze is found in the next round.
    fn kill_once(&self) -> Result<()> {
        let freezer = self.v1("freezer");
        if freezer.is_some() {
            self.order_freeze(true, Duration::from_millis(20))?;
        }
        let killed =
            self.processes()?.into_iter().try_for_each(|pid| match insula_sys::process::kill(pid, 9) {
                Ok(()) | Err(Errno::SRCH) => Ok(()),
                Err(error) => Err(error).context("kill", pid),
            });
        freezer.map_or(Ok(()), |member| member.write("freezer.state", "THAWED"))?;
        killed
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
            let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
            member.write("cgroup.event_control", &line)?;
            return Ok(Some(event));
        }
        let Some(member) = self.v2() else { return Ok(None) };
        let events = member.path.join("memory.events");
        if !events.exists() {
            return Ok(None);
        }
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .context("inotify_init1", "for memory")?;
        inotify::add_watch(&watch, &events, inotify::WatchFlags::MODIFY)
            .context("inotify_add_watch", events.display())?;
        Ok(Some(watch))
    }

    /// Removes the group and what was made below it, in every hierarchy that lets it go. May be repeated.
    pub fn remove(self) -> Result<()> {
        self.members.iter().map(|member| tree::remove(&member.path)).fold(Ok(()), Result::and)
    }

    pub(super) fn v1(&self, controller: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.version.has(controller))
    }

    pub(super) fn v2(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.version == Version::V2)
    }

    /// Hands over the files that the kernel lists in `/sys/kernel/cgroup/delegate`, and the folder.
    fn delegate(&self, owner: u32) -> Result<()> {
        let handed = self.members.iter().filter(|member| !matches!(member.version, Version::V1(_)));
        for member in handed {
            let (user, group) = (Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)));
            for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"] {
                let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::empty() };
                match rustix::fs::chownat(&member.folder, name, user, group, flags) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error).context("chown", member.path.join(name).display()),
                }
            }
            if member.version == Version::V2 {
                DELEGATED.iter().try_for_each(|(file, bound)| member.write(file, bound))?;
            }
        }
        Ok(())
    }
}

fn needed(hierarchy: &Hierarchy, purpose: Purpose, unified: bool) -> bool {
    match hierarchy.version {
        Version::V1(_) if !hierarchy.version.is_rare() => true,
        Version::V1(_) => matches!(purpose, Purpose::LimitEverywhere | Purpose::UnitEverywhere),
        Version::V2 if unified || hierarchy.limits => true,
        Version::V2 => purpose != Purpose::Limit,
        Version::Named(ref name) if purpose.is_of_systemd() => name == "systemd",
        Version::Named(_) => matches!(purpose, Purpose::Delegate { .. }),
    }
}

fn check(path: &str) -> Result<()> {
    let plain =
        !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if plain { Ok(()) } else { Err(Error::Path(path.to_owned())) }
}
