//! The builder's side: clones the init, maps, prepares and hands over, and listens.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_base::{Lap, Laps};
use insula_host::cgroup::Entry;
use insula_host::resolver::{self, Sockets};
use insula_spec::bundle::{MountNamespace, TimePlan};
use insula_spec::plan::{ContainerPlan, Namespace, NetworkChange, UserNamespace};
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Result};
use crate::handshake::{self, Channel, Order, Report};
use crate::inside::{Confinement, Inside};
use crate::spare::Told;
use crate::streams::{self, Ends, Streams};
use crate::{devices, hidden, idmap, rootfs, sources};

/// When the program is to be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As soon as everything is built, in one go.
    Now,
    /// On [`Created::start`].
    Later,
}

/// A container whose init stands, with or without its program running yet.
#[derive(Debug)]
pub struct Created {
    pub init: Init,
    pub streams: Streams,
    /// The name server's, if the plan asks for one.
    pub resolver: Option<Sockets>,
    /// For the user.
    pub warnings: Vec<String>,
    /// What making it took.
    pub laps: Vec<Lap>,
}

/// The first process of a container, a child of who built it.
#[derive(Debug)]
pub struct Init {
    /// As the builder's pid namespace sees it.
    pub pid: i32,
    pub pidfd: OwnedFd,
    channel: Option<Channel>,
    /// Mounts that its root file system was made of, until there is time to let them go.
    parts: Vec<OwnedFd>,
    /// Its mount namespace. As long as it is held the kernel has nothing to unmount while the init ends, and the
    /// end is known a millisecond earlier.
    _mounts: Option<OwnedFd>,
}

impl Init {
    /// Lets go of what only its making needed, which takes a while: for when there is nothing else to do.
    pub fn trim(&mut self) {
        self.parts = Vec::new();
    }

    /// Gives the container other interfaces.
    pub fn rewire(&self, change: &NetworkChange) -> Result<()> {
        Ok(insula_host::netlink::change(change, network_of(self.pid)?.as_fd())?)
    }

    /// Binds the sockets of a name server inside.
    pub fn bind_resolver(&self) -> Result<Sockets> {
        Ok(resolver::bind(network_of(self.pid)?.as_fd())?)
    }

    /// Executes the program of a container that was created with [`When::Later`].
    pub fn start(&mut self) -> Result<()> {
        let channel = self.channel.take().ok_or(Error::Lost)?;
        channel.order(&Order::Start)?;
        match channel.await_report()? {
            Report::Executed => Ok(()),
            _ => Err(Error::Lost),
        }
    }
}

/// Builds a container, its processes in the control group that `entry` leads into. On failure
/// nothing of it is left. For a process of one thread whose umask is 0. A spare was told this plan; one that does not
/// suit ends, and whoever waits for every child of this process reaps it.
pub fn create(plan: &ContainerPlan, when: When, entry: &Entry, spare: Option<Told>) -> Result<Created> {
    let mut laps = Laps::begin();
    let owner = idmap::first(&plan.namespaces.user);
    let confinement = Confinement::prepare(plan, &plan.process, &plan.security.seccomp)?;
    let (streams, ends) = streams::make(&plan.stdio, owner)?;
    let spare = spare.and_then(|spare| spare.suited(entry));
    let becoming = spare.is_some();
    let (init, outside) = match spare {
        Some(spare) => spare.become_init(&ends, entry)?,
        None => fresh_init(plan, &ends, &confinement, entry)?,
    };
    drop(ends);
    let init = Guard(Some(init));
    laps.lap("init");
    let building = Building { plan, channel: &outside, confinement: &confinement, when, becoming };
    let prepared = building.prepare(&init);
    let Prepared { warnings, resolver, parts } =
        prepared.map_err(|error| outside.last_words().unwrap_or(error))?;
    laps.lap("mounts");
    // One that has failed already reports why.
    let mounts = mounts_of(init.init()?.pid).ok();
    let mut built = Built { streams, warnings };
    built.warnings.extend(confinement.warnings);
    built.listen(&outside, when)?;
    laps.lap(if when == When::Now { "exec" } else { "stand" });
    let streams = built.streams.ok_or(Error::Lost)?;
    let Cloned { pid, pidfd } = init.disarm()?;
    let channel = (when == When::Later).then_some(outside);
    let init = Init { pid, pidfd, channel, parts, _mounts: mounts };
    Ok(Created { init, streams, resolver, warnings: built.warnings, laps: laps.done() })
}

/// An init that is cloned for this container, and the channel to it.
fn fresh_init(
    plan: &ContainerPlan,
    ends: &Ends,
    confinement: &Confinement,
    entry: &Entry,
) -> Result<(Cloned, Channel)> {
    let (outside, inside) = handshake::pair_with_bell()?;
    let parts = Inside { plan, ends, confinement, channel: &inside, entry, loopback: false, bundle: None };
    Ok((clone_init(&parts, &outside)?, outside))
}

/// What the reports of the init add up to.
struct Built {
    streams: Option<Streams>,
    warnings: Vec<String>,
}

impl Built {
    fn listen(&mut self, channel: &Channel, when: When) -> Result<()> {
        loop {
            match channel.await_report()? {
                Report::Terminal(master) => self.streams = Some(Streams::Terminal(master)),
                Report::Ready if when == When::Later => return Ok(()),
                Report::Executed if when == When::Now => return Ok(()),
                _ => return Err(Error::Lost),
            }
        }
    }
}

/// A process that was just cloned.
#[derive(Debug)]
pub(crate) struct Cloned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// Kills and reaps an init that was not taken over.
#[derive(Debug)]
pub(crate) struct Guard(pub(crate) Option<Cloned>);

impl Guard {
    pub(crate) fn init(&self) -> Result<&Cloned> {
        self.0.as_ref().ok_or(Error::Lost)
    }

    pub(crate) fn disarm(mut self) -> Result<Cloned> {
        self.0.take().ok_or(Error::Lost)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(Cloned { pid, pidfd }) = self.0.take() {
            // It may have ended by itself; then there is nothing to kill, and the wait says so.
            let _ = process::signal(pidfd.as_fd(), 9);
            let _ = process::wait_for(pid);
        }
    }
}

/// What was handed over to an init, but for its descriptors.
struct Prepared {
    warnings: Vec<String>,
    resolver: Option<Sockets>,
    parts: Vec<OwnedFd>,
}

/// A container whose init is there.
struct Building<'a> {
    plan: &'a ContainerPlan,
    channel: &'a Channel,
    confinement: &'a Confinement,
    when: When,
    /// A spare enters its groups and namespace meanwhile, and reports it.
    becoming: bool,
}

impl Building<'_> {
    /// Everything between the clone and the order to build. Both work side by side.
    fn prepare(&self, init: &Guard) -> Result<Prepared> {
        let Self { plan, channel, .. } = self;
        let pid = init.init()?.pid;
        if let UserNamespace::Private { first, count } = plan.namespaces.user {
            idmap::map(pid, first, count)?;
        }
        let mut warnings = self.confinement.apply_from_outside(pid, &plan.process)?;
        channel.order(&Order::Prepare)?;
        let namespace = match &plan.namespaces.user {
            UserNamespace::Host => None,
            UserNamespace::Private { .. } | UserNamespace::Path { .. } => Some(idmap::namespace_of(pid)?),
        };
        let namespace = namespace.as_ref().map(AsFd::as_fd);
        hidden::hide(&plan.rootfs)?;
        let maker = idmap::first(&plan.namespaces.user);
        let rootfs = rootfs::build(&plan.rootfs, namespace, maker)?;
        let devices = devices::build(plan)?;
        let sources = sources::prepare(&plan.mounts, namespace, maker, &mut warnings)?;
        let resolver = plug(plan, pid)?;
        if self.becoming && !matches!(channel.await_report()?, Report::Entered) {
            return Err(Error::Lost);
        }
        let order = Order::Build { start: self.when == When::Now };
        let gift: Vec<BorrowedFd<'_>> = [rootfs.mount.as_fd(), devices.as_fd()]
            .into_iter()
            .chain(sources.iter().map(AsFd::as_fd))
            .collect();
        channel.announce(&order)?;
        channel.give(&gift)?;
        channel.ring()?;
        Ok(Prepared { warnings, resolver, parts: rootfs.parts })
    }
}

fn plug(plan: &ContainerPlan, pid: i32) -> Result<Option<Sockets>> {
    if plan.interfaces.is_empty() && !plan.resolver {
        return Ok(None);
    }
    let namespace = network_of(pid)?;
    for interface in &plan.interfaces {
        insula_host::netlink::plug(interface, namespace.as_fd())?;
    }
    Ok(if plan.resolver { Some(resolver::bind(namespace.as_fd())?) } else { None })
}

/// The network namespace of a process.
pub(crate) fn network_of(pid: i32) -> Result<OwnedFd> {
    namespace_of(pid, "net")
}

/// The mount namespace of a process.
fn mounts_of(pid: i32) -> Result<OwnedFd> {
    namespace_of(pid, "mnt")
}

fn namespace_of(pid: i32, kind: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{kind}");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context("open", path)
}

/// Clones the init into the namespaces of its plan. Where some exist already, a process in between
/// joins them and clones the init as its sibling.
pub(crate) fn clone_init(inside: &Inside<'_>, outside: &Channel) -> Result<Cloned> {
    let flags = fresh(inside.plan);
    let joined = existing(inside.plan)?;
    let first = if joined.is_empty() { flags } else { CloneFlags::empty() };
    match process::clone(first, inside.entry.birthplace()).context("clone3", "the container's init")? {
        Clone::Parent { pid, pidfd } if joined.is_empty() => Ok(Cloned { pid, pidfd }),
        Clone::Parent { pid, pidfd } => {
            let between = Guard(Some(Cloned { pid, pidfd }));
            told_of(outside, &between)
        }
        Clone::Child => {
            if let Err(error) =
                inside.enter_group().and_then(|()| step_between(&joined, flags, inside.channel))
            {
                inside.channel.report_failure(&error);
                process::exit_now(1)
            }
            inside.run()
        }
    }
}

/// What a process in between has cloned. It may be killed before it says so, by its memory limit for one, while the
/// clone holds the channel and waits for us.
pub(crate) fn told_of(channel: &Channel, between: &Guard) -> Result<Cloned> {
    let pidfd = &between.init()?.pidfd;
    let mut ready = [PollFd::new(channel, PollFlags::IN), PollFd::new(pidfd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, None)).context("poll", "for a clone")?;
    // What it has said stands, whether it has ended since or not.
    if !channel.has_report()? {
        return Err(Error::Lost);
    }
    match channel.await_report()? {
        Report::Process { pid, pidfd } => Ok(Cloned { pid, pidfd }),
        _ => Err(Error::Lost),
    }
}

/// Joins, then clones; returns in the clone only. Nothing to join is nothing to do.
fn step_between(joined: &[OwnedFd], flags: CloneFlags, channel: &Channel) -> Result<()> {
    if joined.is_empty() {
        return Ok(());
    }
    for file in joined {
        process::join_namespace(file.as_fd()).context("setns", "an existing namespace")?;
    }
    match process::clone(flags | CloneFlags::PARENT, None).context("clone3", "in existing namespaces")? {
        Clone::Child => Ok(()),
        Clone::Parent { pid, pidfd } => {
            let told = channel.report_process(pid, pidfd.as_fd());
            process::exit_now(i32::from(told.is_err()))
        }
    }
}

/// Flags of the namespaces that are the container's own. That of cgroups comes later, from inside:
/// its root is where the process is when it is made.
fn fresh(plan: &ContainerPlan) -> CloneFlags {
    let namespaces = &plan.namespaces;
    let mut flags = if plan.has_own_mounts() { CloneFlags::NEWNS } else { CloneFlags::empty() };
    if matches!(namespaces.user, UserNamespace::Private { .. }) {
        flags |= CloneFlags::NEWUSER;
    }
    for (namespace, flag) in [
        (&namespaces.pid, CloneFlags::NEWPID),
        (&namespaces.network, CloneFlags::NEWNET),
        (&namespaces.ipc, CloneFlags::NEWIPC),
        (&namespaces.uts, CloneFlags::NEWUTS),
    ] {
        if *namespace == Namespace::Private {
            flags |= flag;
        }
    }
    flags
}

/// The existing namespaces to join, the user namespace last: until then the host's rights hold.
fn existing(plan: &ContainerPlan) -> Result<Vec<OwnedFd>> {
    let namespaces = &plan.namespaces;
    let others = [&namespaces.pid, &namespaces.network, &namespaces.ipc, &namespaces.uts, &namespaces.cgroup];
    let mut paths: Vec<_> = others
        .into_iter()
        .filter_map(|namespace| match namespace {
            Namespace::Path(path) => Some(path),
            Namespace::Private | Namespace::Host => None,
        })
        .collect();
    if let MountNamespace::Path(path) = plan.mount_namespace() {
        paths.push(path);
    }
    if let Some(TimePlan::Path(path)) = plan.bundle.as_ref().and_then(|bundle| bundle.time.as_ref()) {
        paths.push(path);
    }
    if let UserNamespace::Path { path, .. } = &namespaces.user {
        paths.push(path);
    }
    paths
        .into_iter()
        .map(|path| {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .context("open", path.display())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends are open here, as they are where the clone of a killed process lives on.
    #[test]
    fn a_process_in_between_that_is_killed_is_not_waited_for() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = child.id().cast_signed();
        let open = || {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
        };
        let (outside, inside) = handshake::pair().unwrap();
        inside.report_process(7, open().as_fd()).unwrap();
        let between = Guard(Some(Cloned { pid, pidfd: open() }));
        assert_eq!(told_of(&outside, &between).unwrap().pid, 7);
        child.kill().unwrap();
        assert!(matches!(told_of(&outside, &between), Err(Error::Lost)));
        inside.report_process(8, open().as_fd()).unwrap();
        assert_eq!(told_of(&outside, &between).unwrap().pid, 8, "what it said before stands");
        drop(between);
        // It was reaped by the guard.
        assert!(child.wait().is_err());
    }
}
