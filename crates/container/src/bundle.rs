//! A bundle's container from outside: built, left to wait for its start, and started by somebody else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_host::cgroup::Entry;
use insula_host::netlink::Carried;
use insula_spec::bundle::{BundlePlan, MountNamespace, RootPropagation, State};
use insula_spec::plan::{ContainerPlan, UserNamespace};
use rustix::fs::{Mode, OFlags};

use crate::build::{Guard, clone_init, network_of};
use crate::error::{Context, Error, Result};
use crate::handshake::{self, Channel, Order, Report};
use crate::inside::{Confinement, Inside, Parking, has_selinux};
use crate::streams::{self, Streams};
use crate::{devices, hooks, idmap, rootfs, sources};

/// What to build.
#[derive(Debug)]
pub struct BundleBuild<'a> {
    pub plan: &'a ContainerPlan,
    pub entry: &'a Entry,
    /// Where the init is to wait ([`listen`]).
    pub listener: BorrowedFd<'a>,
    /// Left open in the program, under the numbers that they have.
    pub preserved: &'a [OwnedFd],
    /// What hooks read; the pid is filled in.
    pub state: &'a State,
}

/// A container that stands and does not wait yet: it ends with this value.
#[derive(Debug)]
pub struct Standing {
    /// As the builder's pid namespace sees it.
    pub pid: i32,
    pub streams: Streams,
    /// For the user.
    pub warnings: Vec<String>,
    /// They go back before the init ends.
    interfaces: Vec<Carried>,
    guard: Guard,
    channel: Channel,
}

impl Standing {
    /// From now on it stands by itself; returns the init, a child of the caller until that ends.
    pub fn park(self) -> Result<OwnedFd> {
        self.channel.order(&Order::Park)?;
        let init = self.guard.disarm()?;
        self.interfaces.into_iter().for_each(Carried::stay);
        Ok(init.pidfd)
    }
}

/// Makes the socket that an init waits at, in a folder that nobody else may enter.
pub fn listen(folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    handshake::listen(folder, name)
}

/// Whether an init waits at that socket.
pub fn is_waiting(folder: BorrowedFd<'_>, name: &str) -> Result<bool> {
    match handshake::connect(folder, name) {
        Ok(_) => Ok(true),
        Err(Error::Call { source, .. })
            if matches!(
                source.kind(),
                std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Starts the program of a container that waits at that socket; returns when it is executed.
pub fn start(folder: BorrowedFd<'_>, name: &str) -> Result<()> {
    let channel = handshake::connect(folder, name)?;
    channel.order(&Order::Start)?;
    match channel.await_report()? {
        Report::Executed => Ok(()),
        _ => Err(Error::Lost),
    }
}

/// Builds a bundle's container. On failure nothing of it is left. For a process of one thread whose umask is
/// 0.
pub fn create_bundle(build: &BundleBuild<'_>) -> Result<Standing> {
    let plan = build.plan;
    let bundle =
        plan.bundle.as_deref().ok_or_else(|| Error::Invalid("the plan is no bundle's".to_owned()))?;
    if bundle.mount_label.is_some() && !has_selinux() {
        return Err(Error::Unsupported("linux.mountLabel: the host has no SELinux".to_owned()));
    }
    let confinement = Confinement::prepare(plan, &plan.process, &plan.security.seccomp)?;
    let (streams, ends) = streams::make_for_bundle(&plan.stdio);
    let (outside, inside) = handshake::pair()?;
    let parking =
        Parking { plan: bundle, listener: build.listener, preserved: build.preserved, state: build.state };
    let cloned = clone_init(
        &Inside {
            plan,
            ends: &ends,
            confinement: &confinement,
            channel: &inside,
            entry: build.entry,
            loopback: false,
            bundle: Some(parking),
        },
        &outside,
    )?;
    drop((inside, ends));
    let guard = Guard(Some(cloned));
    let pid = guard.init()?.pid;
    let (mut warnings, interfaces) = prepare(plan, bundle, pid, &outside, &confinement)?;
    warnings.extend(confinement.warnings);
    let Report::Mounted = outside.await_report()? else { return Err(Error::Lost) };
    hooks::run_all("createRuntime", &bundle.hooks.create_runtime, &State { pid, ..build.state.clone() })?;
    outside.order(&Order::Known { pid })?;
    let streams = listen_to(&outside, streams)?;
    Ok(Standing { pid, streams, warnings, interfaces, guard, channel: outside })
}

fn listen_to(channel: &Channel, mut streams: Option<Streams>) -> Result<Streams> {
    loop {
        match channel.await_report()? {
            Report::Terminal(master) => streams = Some(Streams::Terminal(master)),
            Report::Ready => return streams.ok_or(Error::Lost),
            _ => return Err(Error::Lost),
        }
    }
}

/// Everything between the clone and the order to build.
fn prepare(
    plan: &ContainerPlan,
    bundle: &BundlePlan,
    pid: i32,
    channel: &Channel,
    confinement: &Confinement,
) -> Result<(Vec<String>, Vec<Carried>)> {
    if let UserNamespace::Private { .. } = plan.namespaces.user {
        idmap::map_as(pid, &bundle.uid_mappings, &bundle.gid_mappings)?;
    }
    let warnings = confinement.apply_from_outside(pid, &plan.process)?;
    let namespace = match &plan.namespaces.user {
        UserNamespace::Host => None,
        UserNamespace::Private { .. } | UserNamespace::Path { .. } => Some(idmap::namespace_of(pid)?),
    };
    let root = root(plan, bundle)?;
    let devices = devices::build(plan)?;
    let sources = sources::prepare_bundle(&bundle.mounts, namespace.as_ref().map(AsFd::as_fd))?;
    // Last of all: whatever goes wrong from here on takes them back.
    let interfaces = match bundle.interfaces.as_slice() {
        [] => Vec::new(),
        names => insula_host::netlink::carry(names, network_of(pid)?.as_fd())?,
    };
    channel.order(&Order::Build { start: false })?;
    let gift: Vec<BorrowedFd<'_>> =
        [root.as_fd(), devices.as_fd()].into_iter().chain(sources.iter().map(AsFd::as_fd)).collect();
    channel.give(&gift)?;
    Ok((warnings, interfaces))
}

/// The bundle's folder with all that is mounted below it. What is mounted inside reaches the host only where
/// the bundle says so.
fn root(plan: &ContainerPlan, bundle: &BundlePlan) -> Result<OwnedFd> {
    let [path] = plan.rootfs.layers.as_slice() else {
        return Err(Error::Invalid("a bundle has one root".to_owned()));
    };
    if bundle.mount_namespace != MountNamespace::Private {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return rustix::fs::open(path, flags, Mode::empty()).context("open", path.display());
    }
    let root = idmap::copy_of(path, true)?;
    if !rootfs::is_folder(&root)? {
        return Err(Error::Invalid(format!("root.path: {} is not a folder", path.display())));
    }
    if !matches!(bundle.propagation, Some((RootPropagation::Shared, _))) {
        sources::spread(&root, RootPropagation::Slave, true)?;
    }
    Ok(root)
}
