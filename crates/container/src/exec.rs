//! Another process in a running container.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use insula_host::cgroup::Entry;
use insula_spec::bundle::{MountNamespace, State};
use insula_spec::plan::{ContainerPlan, Namespace, ProcessPlan, SeccompPlan, StdioPlan, UserNamespace};
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::build::{Cloned, Guard, told_of};
use crate::error::{Context, Error, Result};
use crate::handshake::{self, Channel, Order, Report};
use crate::idmap;
use crate::inside::{self, Confinement};
use crate::streams::{self, Ends, Streams};

/// What to execute.
#[derive(Debug)]
pub struct ExecPlan<'a> {
    pub process: &'a ProcessPlan,
    pub stdio: &'a StdioPlan,
    /// All capabilities and no filter.
    pub privileged: bool,
    /// Left open in the program, under the numbers that they have.
    pub preserved: &'a [OwnedFd],
    /// What who decides about system calls is told; a bundle's.
    pub state: Option<&'a State>,
}

/// The container to join.
#[derive(Debug)]
pub struct Target<'a> {
    pub plan: &'a ContainerPlan,
    /// Of its init.
    pub pidfd: BorrowedFd<'a>,
}

/// A process that runs its program.
#[derive(Debug)]
pub struct Executed {
    /// As the caller's pid namespace sees it; a child of the caller.
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub streams: Streams,
    pub warnings: Vec<String>,
}

/// Executes a program in a running container, in the control group that `entry` leads into. For a
/// process of one thread.
pub fn exec(target: &Target<'_>, exec: &ExecPlan<'_>, entry: &Entry) -> Result<Executed> {
    let filter = if exec.privileged { &SeccompPlan::Unconfined } else { &target.plan.security.seccomp };
    let confinement = Confinement::prepare(target.plan, exec.process, filter)?;
    let (streams, ends) = match target.plan.bundle {
        Some(_) => streams::make_for_bundle(exec.stdio),
        None => streams::make(exec.stdio, idmap::first(&target.plan.namespaces.user))?,
    };
    if let Some(affinity) = exec.process.exact.as_ref().and_then(|exact| exact.affinity.as_ref()) {
        // Of the caller, whose child inherits it until the control groups of the container say otherwise.
        inside::run_on(&affinity.first)?;
    }
    let (outside, inside) = handshake::pair()?;
    let joining = Joining {
        target,
        process: exec.process,
        ends: &ends,
        confinement: &confinement,
        entry,
        preserved: exec.preserved,
        state: exec.state,
    };
    let between = clone_between(&joining, &inside)?;
    drop((inside, ends));
    let child = Guard(Some(told_of(&outside, &between)?));
    let Some(Cloned { pid, .. }) = child.0 else { return Err(Error::Lost) };
    let mut warnings = confinement.apply_from_outside(pid, exec.process)?;
    warnings.extend(confinement.warnings);
    outside.order(&Order::Known { pid })?;
    let streams = listen(&outside, streams)?;
    // It ended long ago; reaping it is kept off the way to the program.
    drop(between);
    let Cloned { pid, pidfd } = child.disarm()?;
    Ok(Executed { pid, pidfd, streams, warnings })
}

fn listen(channel: &Channel, mut streams: Option<Streams>) -> Result<Streams> {
    loop {
        match channel.await_report()? {
            Report::Terminal(master) => streams = Some(Streams::Terminal(master)),
            Report::Executed => return streams.ok_or(Error::Lost),
            _ => return Err(Error::Lost),
        }
    }
}

/// The process in between joins; its sibling, cloned from there, is inside for good.
fn clone_between(joining: &Joining<'_>, channel: &Channel) -> Result<Guard> {
    let birthplace = joining.entry.birthplace();
    match process::clone(CloneFlags::empty(), birthplace).context("clone3", "to join a container")? {
        Clone::Parent { pid, pidfd } => Ok(Guard(Some(Cloned { pid, pidfd }))),
        Clone::Child => {
            let Err(error) = joining.run(channel);
            channel.report_failure(&error);
            process::exit_now(i32::from(error.exit_code().unwrap_or(1)))
        }
    }
}

struct Joining<'a> {
    target: &'a Target<'a>,
    process: &'a ProcessPlan,
    ends: &'a Ends,
    confinement: &'a Confinement,
    entry: &'a Entry,
    preserved: &'a [OwnedFd],
    state: Option<&'a State>,
}

impl Joining<'_> {
    fn run(&self, channel: &Channel) -> Result<std::convert::Infallible> {
        self.entry.enter()?;
        // The monitor's descriptors are for nobody inside, not even by paths below `/proc/self/fd`.
        let mut kept = self.ends.descriptors();
        kept.extend([channel.as_fd(), self.target.pidfd]);
        kept.extend(self.preserved.iter().map(AsFd::as_fd));
        kept.extend(self.confinement.listener());
        process::close_from_3_but(&kept);
        let root = self.open_root()?;
        // From here on processes of the container can see this one.
        process::become_undumpable().context("prctl", "PR_SET_DUMPABLE")?;
        if let Some(root) = root {
            self.enter_root(&root)?;
        }
        let namespaces = &self.target.plan.namespaces;
        process::join_namespaces(self.target.pidfd, flags(self.target.plan))
            .context("setns", "the container's namespaces")?;
        match process::clone(CloneFlags::PARENT, None).context("clone3", "in the container")? {
            Clone::Parent { pid, pidfd } => {
                let told = channel.report_process(pid, pidfd.as_fd());
                process::exit_now(i32::from(told.is_err()))
            }
            Clone::Child => {}
        }
        let Order::Known { pid } = channel.await_order()? else { return Err(Error::Lost) };
        if namespaces.user != UserNamespace::Host {
            inside::become_root()?;
        }
        inside::label_keyring_inside(self.process)?;
        inside::fresh_keyring(self.target.plan)?;
        inside::label_by_path(self.process)?;
        let terminal = inside::open_terminal(self.ends, channel)?;
        inside::Program {
            process: self.process,
            confinement: self.confinement,
            ends: self.ends,
            terminal: terminal.as_ref().map(AsFd::as_fd),
            make_folder: false,
            preserved: self.preserved,
            told: self.state.map(|state| (state, pid)),
            hooks: None,
        }
        .execute()
    }

    /// The root of a container without mounts of its own, a folder among others: that of its first process, whatever
    /// is found by its name where the caller is.
    fn open_root(&self) -> Result<Option<OwnedFd>> {
        if *self.target.plan.mount_namespace() == MountNamespace::Private {
            return Ok(None);
        }
        let path = format!("/proc/{}/root", self.first()?);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Some(rustix::fs::open(&path, flags, Mode::empty()).context("open", &path)?))
    }

    /// The pid of the first process; who is gone meanwhile cannot be joined below either.
    fn first(&self) -> Result<i32> {
        let path = format!("/proc/self/fdinfo/{}", self.target.pidfd.as_raw_fd());
        let text = std::fs::read_to_string(&path).context("read", &path)?;
        let said = text.lines().find_map(|line| line.strip_prefix("Pid:"));
        let pid = said.and_then(|pid| pid.trim().parse().ok()).filter(|pid| *pid > 0);
        pid.ok_or(Errno::SRCH).context("read", path)
    }

    /// It takes the host's rights.
    fn enter_root(&self, root: &OwnedFd) -> Result<()> {
        process::join_namespaces(self.target.pidfd, CloneFlags::NEWNS)
            .context("setns", "the container's mount namespace")?;
        rustix::process::fchdir(root).context("fchdir", "the container's root")?;
        rustix::process::chroot(".").context("chroot", "the container's root")?;
        rustix::process::chdir("/").context("chdir", "/")
    }
}

/// The namespaces of the container that are not the host's.
fn flags(plan: &ContainerPlan) -> CloneFlags {
    let namespaces = &plan.namespaces;
    let mut flags = if plan.has_own_mounts() { CloneFlags::NEWNS } else { CloneFlags::empty() };
    if namespaces.user != UserNamespace::Host {
        flags |= CloneFlags::NEWUSER;
    }
    for (namespace, flag) in [
        (&namespaces.pid, CloneFlags::NEWPID),
        (&namespaces.network, CloneFlags::NEWNET),
        (&namespaces.ipc, CloneFlags::NEWIPC),
        (&namespaces.uts, CloneFlags::NEWUTS),
        (&namespaces.cgroup, CloneFlags::NEWCGROUP),
    ] {
        if *namespace != Namespace::Host {
            flags |= flag;
        }
    }
    if plan.bundle.as_ref().is_some_and(|bundle| bundle.time.is_some()) {
        flags |= CloneFlags::NEWTIME;
    }
    flags
}
