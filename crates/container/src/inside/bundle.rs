//! A bundle's container from inside: mounts exactly as they are listed, hooks, and the wait for whoever
//! starts it.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_spec::bundle::{BundleMount, BundlePlan, BundleSource, Content, RootPropagation, State, Status};
use insula_spec::plan::{ContainerPlan, InitPlan, Namespace, UserNamespace};
use insula_sys::process;
use rustix::fs::{AtFlags, CWD, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsPickFlags, MountAttrFlags, MountPropagationFlags, OpenTreeFlags};

use super::mounts::{self, Built};
use super::{Inside, cgroups, labels, paths, places, program, terminal};
use crate::error::{Context, Error, Result};
use crate::handshake::{self, Channel, Order};
use crate::streams::Ends;
use crate::{hooks, sources};

/// What an init holds while it waits without its builder.
#[derive(Clone, Copy)]
pub(crate) struct Parking<'a> {
    pub(crate) plan: &'a BundlePlan,
    pub(crate) listener: BorrowedFd<'a>,
    pub(crate) preserved: &'a [OwnedFd],
    /// What hooks read, without pid and status.
    pub(crate) state: &'a State,
}

impl Parking<'_> {
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener).chain(self.preserved.iter().map(AsFd::as_fd))
    }

    fn told(&self, pid: i32, status: Status) -> State {
        State { pid, status, ..self.state.clone() }
    }
}

impl Inside<'_> {
    /// Builds, waits for the start, and tells who starts it what goes wrong from then on.
    pub(super) fn build_and_park(&self, parking: &Parking<'_>) -> Result<Infallible> {
        let Order::Build { .. } = self.channel.await_order()? else { return Err(Error::Lost) };
        let binds =
            parking.plan.mounts.iter().filter(|mount| matches!(mount.source, BundleSource::Bind { .. }));
        let mut gift = self.channel.take(2 + binds.count())?.into_iter();
        let (Some(rootfs), Some(devices)) = (gift.next(), gift.next()) else { return Err(Error::Lost) };
        self.take_identity()?;
        let built = if self.plan.has_own_mounts() {
            build(self.plan, parking.plan, &rootfs, devices, gift.collect())?
        } else {
            let root = rootfs.try_clone().context("dup", "the root file system")?;
            Built { root, proc: None, sys: None, dev: devices }
        };
        self.channel.report_mounted()?;
        let Order::Known { pid } = self.channel.await_order()? else { return Err(Error::Lost) };
        hooks::run_all(
            "createContainer",
            &parking.plan.hooks.create_container,
            &parking.told(pid, Status::Creating),
        )?;
        paths::set_sysctls(built.proc.as_ref(), &self.plan.sysctls)?;
        paths::protect(&self.plan.security, &built)?;
        labels::label(&self.plan.process, built.proc.as_ref().map(AsFd::as_fd))?;
        mounts::enter(self.plan, &rootfs)?;
        propagate(parking.plan)?;
        drop((rootfs, built));
        self.name()?;
        self.connect()?;
        let terminal = terminal::open(self.ends, self.channel)?;
        if let Some(slave) = &terminal {
            if self.plan.has_own_mounts() {
                bind_console(slave.as_fd())?;
            }
            // Who creates may wait for the end of its own output, which the init must not keep open.
            Ends::install(slave.as_fd(), slave.as_fd(), slave.as_fd())?;
        }
        // What is missing now is said to who creates, who has more to clean up than who starts.
        program::look_up(&self.plan.process)?;
        self.channel.report_ready()?;
        let Order::Park = self.channel.await_order()? else { return Err(Error::Lost) };
        let starter = wait(parking.listener)?;
        let hooks = &parking.plan.hooks.start_container[..];
        let Err(error) = self.execute(
            terminal,
            Some((&parking.told(pid, Status::Creating), pid)),
            Some((hooks, &parking.told(pid, Status::Created))),
        );
        starter.report_failure(&error);
        process::exit_now(i32::from(error.exit_code().unwrap_or(1)))
    }
}

/// The channel to whoever starts the container. Who connects and leaves only wanted to know whether it waits.
fn wait(listener: BorrowedFd<'_>) -> Result<Channel> {
    loop {
        let channel = handshake::accept(listener)?;
        if matches!(channel.await_order(), Ok(Order::Start)) {
            return Ok(channel);
        }
    }
}

fn build(
    plan: &ContainerPlan,
    bundle: &BundlePlan,
    rootfs: &OwnedFd,
    devices: OwnedFd,
    sources: Vec<OwnedFd>,
) -> Result<Built> {
    if plan.namespaces.user == UserNamespace::Host {
        // In a user namespace the kernel has done so: nothing of ours may reach the host.
        let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags).context("mount", "/ as a slave")?;
    }
    let root = rustix::fs::openat(rootfs, ".", OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .context("openat", "the root file system")?;
    let new = new_instances(bundle)?;
    let groups = host_groups(plan, bundle)?;
    mounts::attach(rootfs.as_fd(), CWD, c"/")?;
    let mut built = Built { root, proc: None, sys: None, dev: devices };
    let mut sources = sources.into_iter();
    let mut new = new.into_iter();
    for mount in &bundle.mounts {
        let attached = match &mount.source {
            BundleSource::Bind { .. } => sources.next().ok_or(Error::Lost)?,
            BundleSource::New { kind, content, options, .. } => {
                let tree = new.next().ok_or(Error::Lost)?;
                if let (Some(context), "mqueue") = (&bundle.mount_label, kind.as_str()) {
                    labels::label_folder(&tree, &mount.target, context)?;
                }
                if *content == Content::Copy {
                    copy_up(&built.root, mount, &tree, options)?;
                }
                tree
            }
            BundleSource::Remount { options } => {
                remount(&built.root, mount, options).map_err(|error| mounts::at(&mount.target, error))?;
                continue;
            }
            BundleSource::Dev { .. } => built.dev.try_clone().context("dup", "/dev")?,
            BundleSource::Cgroup => {
                cgroup(&built.root, mount, groups.as_ref())?;
                continue;
            }
        };
        mounts::attach_below(&built.root, &mount.target, &attached)?;
        match mount.target.trim_end_matches('/') {
            "/proc" => built.proc = Some(attached),
            "/sys" => built.sys = Some(attached),
            _ => {}
        }
    }
    standard_devices(bundle, &built)?;
    Ok(built)
}

/// What is copied is written first, whatever the mount then allows.
fn copy_up(root: &OwnedFd, mount: &BundleMount, tree: &OwnedFd, options: &[(String, String)]) -> Result<()> {
    let said = options.iter().any(|(key, _)| ["mode", "uid", "gid"].contains(&key.as_str()));
    super::copy_up::copy_up(root, &mount.target, tree, said)
        .and_then(|()| sources::change_attributes(tree, mount))
        .map_err(|error| mounts::at(&mount.target, error))
}

/// Other options for what is mounted there: of the mount, and of the file system where some are said.
fn remount(root: &OwnedFd, mount: &BundleMount, options: &[(String, String)]) -> Result<()> {
    let target = &mount.target;
    let there = places::below(root, target).context("openat2", target)?;
    let stat =
        rustix::fs::statx(&there, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).context("statx", target)?;
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::Invalid(format!("{target}: nothing is mounted there that could be remounted")));
    }
    if !options.is_empty() {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let fs = rustix::mount::fspick(&there, "", flags).context("fspick", target)?;
        mounts::configure(&fs, options)?;
        rustix::mount::fsconfig_reconfigure(&fs).context("fsconfig", "to reconfigure")?;
    }
    sources::change_attributes(&there, mount)?;
    match mount.propagation {
        Some((kind, below)) => sources::spread(&there, kind, below),
        None => Ok(()),
    }
}

/// Before the host's own instances are out of sight: in a user namespace the kernel gives no more of `proc`
/// and `sysfs` than can be seen already.
fn new_instances(bundle: &BundlePlan) -> Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    for mount in &bundle.mounts {
        let BundleSource::New { kind, device, options, content } = &mount.source else { continue };
        let mut attributes = MountAttrFlags::from_bits_retain(mount.attributes.set as u32);
        if *content == Content::Copy {
            attributes.remove(MountAttrFlags::MOUNT_ATTR_RDONLY);
        }
        let tree = mounts::new_file_system(kind, device, options, attributes)
            .map_err(|error| mounts::at(&mount.target, error))?;
        if let Some((kind, _)) = mount.propagation {
            sources::spread(&tree, kind, false)?;
        }
        all.push(tree);
    }
    Ok(all)
}

fn is_readonly(mount: &BundleMount) -> bool {
    mount.attributes.set & u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()) != 0
}

fn cgroup(root: &OwnedFd, mount: &BundleMount, groups: Option<&cgroups::Groups>) -> Result<()> {
    let readonly = is_readonly(mount);
    match groups {
        Some(groups) => cgroups::bind(root, &mount.target, readonly, groups),
        // As the namespace shows them.
        None => mounts::attach_at(&cgroups::make(readonly, InitPlan::Process)?, root, &mount.target),
    }
    .map_err(|error| mounts::at(&mount.target, error))
}

/// Without a cgroup namespace of its own a container must still see no groups but its own.
fn host_groups(plan: &ContainerPlan, bundle: &BundlePlan) -> Result<Option<cgroups::Groups>> {
    let mounted = bundle.mounts.iter().any(|mount| mount.source == BundleSource::Cgroup);
    if mounted && plan.namespaces.cgroup == Namespace::Host {
        cgroups::own_groups().map(Some)
    } else {
        Ok(None)
    }
}

/// The nodes that every container has, where its `/dev` is no tmpfs of ours and not the host's either: each is
/// bound from the one that the builder made.
fn standard_devices(bundle: &BundlePlan, built: &Built) -> Result<()> {
    if bundle.mounts.iter().any(|mount| mount.target.trim_end_matches('/') == "/dev") {
        return Ok(());
    }
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let node = rustix::mount::open_tree(&built.dev, name, flags).context("open_tree", name)?;
        mounts::attach_below(&built.root, &format!("/dev/{name}"), &node)?;
    }
    Ok(())
}

fn propagate(bundle: &BundlePlan) -> Result<()> {
    let Some((kind, recursive)) = bundle.propagation else { return Ok(()) };
    let mut flags = match kind {
        RootPropagation::Private => MountPropagationFlags::PRIVATE,
        RootPropagation::Slave => MountPropagationFlags::DOWNSTREAM,
        RootPropagation::Shared => MountPropagationFlags::SHARED,
        RootPropagation::Unbindable => MountPropagationFlags::UNBINDABLE,
    };
    if recursive {
        flags |= MountPropagationFlags::REC;
    }
    rustix::mount::mount_change("/", flags).context("mount", "/ with its propagation")
}

/// Where there is no `/dev` of the container's own there is no `/dev/console` either.
fn bind_console(terminal: BorrowedFd<'_>) -> Result<()> {
    match super::mounts::bind_console(terminal) {
        Err(Error::Call { source, .. }) if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
            Ok(())
        }
        result => result,
    }
}
