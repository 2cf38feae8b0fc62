//! A container's files for a guest that mounts them: the same root file system and the same binds that the
//! process wall makes, put together below one folder of a process that serves them. The host reaches a
//! running container's files there, too.
//!
//! The process is in the container's own user namespace: what serves files to a guest is nobody on the host,
//! and ids on disk are as with the process wall. Its folder [`PLACE`] has `root`, and each bind of the plan
//! as `mounts/N` and at its target below `root`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use insula_host::cgroup::Entry;
use insula_spec::plan::{MountPlan, MountSource, RootfsPlan, UserNamespace};
use insula_sys::mount::{MountAttributes, set_attributes};
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};

use crate::build::{Cloned, Guard};
use crate::error::{Context, Error, Result};
use crate::handshake::{self, Channel, Order};
use crate::inside;
use crate::jail::{self, Jailed};
use crate::{hidden, idmap, rootfs, sources};

/// The folder that is served, as the process sees it. It covers what the host has there, which the process
/// has no use for.
pub const PLACE: &str = "/tmp";
/// The container's root, below [`PLACE`].
pub const ROOT: &str = "root";
/// Folder of the binds, by number, below [`PLACE`].
pub const MOUNTS: &str = "mounts";

/// What to share, and the program that does.
#[derive(Debug)]
pub struct SharePlan<'a> {
    pub rootfs: &'a RootfsPlan,
    /// Its binds are shared, in their order.
    pub mounts: &'a [MountPlan],
    pub user: &'a UserNamespace,
    pub program: &'a Path,
    pub args: &'a [String],
    /// Open in the program, under the numbers that they have here.
    pub kept: &'a [BorrowedFd<'a>],
    pub entry: &'a Entry,
}

/// The container's root as `server` has it, which may have left the host's root behind.
#[must_use]
pub fn root_in(server: &Jailed) -> PathBuf {
    let own = PathBuf::from(format!("/proc/{}/root", server.pid));
    let beside = own.join(PLACE.trim_start_matches('/'));
    if beside.join(MOUNTS).is_dir() { beside.join(ROOT) } else { own.join(ROOT) }
}

/// Puts the files together and executes the program that serves them; returns also what a user should know.
/// For a process of one thread whose umask is 0.
pub fn share(plan: &SharePlan<'_>) -> Result<(Jailed, Vec<String>)> {
    let flags = match plan.user {
        UserNamespace::Private { .. } => CloneFlags::NEWNS | CloneFlags::NEWUSER,
        UserNamespace::Host => CloneFlags::NEWNS,
        UserNamespace::Path { .. } => {
            return Err(Error::Unsupported("a machine cannot share another container's ids".to_owned()));
        }
    };
    let (outside, inside) = handshake::pair()?;
    match process::clone(flags, plan.entry.birthplace()).context("clone3", plan.program.display())? {
        Clone::Child => {
            let Err(error) = serve(plan, &inside);
            inside.report_failure(&error);
            process::exit_now(1)
        }
        Clone::Parent { pid, pidfd } => {
            drop(inside);
            let child = Guard(Some(Cloned { pid, pidfd }));
            let warnings = provide(plan, pid, &outside)?;
            Ok((jail::listen(&outside, child)?, warnings))
        }
    }
}

/// The builder's part: everything that needs the host.
fn provide(plan: &SharePlan<'_>, pid: i32, outside: &Channel) -> Result<Vec<String>> {
    let namespace = match plan.user {
        UserNamespace::Private { first, count } => {
            idmap::map(pid, *first, *count)?;
            Some(idmap::namespace_of(pid)?)
        }
        _ => None,
    };
    let namespace = namespace.as_ref().map(AsFd::as_fd);
    hidden::hide(plan.rootfs)?;
    let maker = idmap::first(plan.user);
    let root = rootfs::build(plan.rootfs, namespace, maker)?;
    let mut warnings = Vec::new();
    let sources = sources::prepare(plan.mounts, namespace, maker, &mut warnings)?;
    outside.order(&Order::Build { start: true })?;
    let gift: Vec<BorrowedFd<'_>> =
        [root.mount.as_fd()].into_iter().chain(sources.iter().map(AsFd::as_fd)).collect();
    outside.give(&gift)?;
    Ok(warnings)
}

fn serve(plan: &SharePlan<'_>, channel: &Channel) -> Result<std::convert::Infallible> {
    const SIGKILL: i32 = 9;
    plan.entry.enter()?;
    jail::keep(plan.kept, channel)?;
    channel.await_order()?;
    let mut gift = channel.take(1 + sources::count(plan.mounts))?.into_iter();
    if *plan.user != UserNamespace::Host {
        inside::become_root()?;
    }
    let alone = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", alone).context("mount", "/ as a slave")?;
    let place = place()?;
    let root = gift.next().ok_or(Error::Lost)?;
    attach(&root, &place, ROOT)?;
    folder(&place, MOUNTS)?;
    for (number, source) in gift.enumerate() {
        attach(&source, &place, &format!("{MOUNTS}/{number}"))?;
    }
    for (number, mount) in sources::binds(plan.mounts).enumerate() {
        let copy = rustix::mount::open_tree(
            &place,
            format!("{MOUNTS}/{number}"),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE,
        )
        .context("open_tree", &mount.target)?;
        inside::attach_below(&root, &mount.target, &copy)?;
    }
    if plan.rootfs.readonly {
        make_places(plan, &root)?;
        let readonly = MountAttributes { readonly: true, ..MountAttributes::default() };
        set_attributes(root.as_fd(), readonly, false).context("mount_setattr", "the root read-only")?;
    }
    drop((root, place));
    process::no_new_privileges().context("prctl", "PR_SET_NO_NEW_PRIVS")?;
    process::parent_death_signal(SIGKILL).context("prctl", "PR_SET_PDEATHSIG")?;
    jail::execute(plan.program, plan.args)
}

/// What the guest mounts by itself it cannot make a folder for in a root that is read-only.
fn make_places(plan: &SharePlan<'_>, root: &OwnedFd) -> Result<()> {
    let own = plan.mounts.iter().filter(|mount| !mount.source.is_of_the_host());
    for target in ["/proc", "/sys", "/dev"] {
        inside::make_folder(root, target)?;
    }
    for mount in own {
        match mount.source {
            // The guest looks at what it covers.
            MountSource::Tmpfs { mode: None, .. } => {
                inside::make_folder_as(root, &mount.target, inside::OPEN)?
            }
            _ => inside::make_folder(root, &mount.target)?,
        };
    }
    Ok(())
}

/// A small tmpfs over [`PLACE`]; its root.
fn place() -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen", "tmpfs")?;
    for (key, value) in [("source", "tmpfs"), ("mode", "755"), ("size", "64k")] {
        rustix::mount::fsconfig_set_string(&fs, key, value).context("fsconfig", key)?;
    }
    rustix::mount::fsconfig_create(&fs).context("fsconfig", "to create a tmpfs")?;
    let place = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)
        .context("fsmount", "a tmpfs")?;
    rustix::mount::move_mount(&place, c"", CWD, PLACE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context("move_mount", PLACE)?;
    Ok(place)
}

fn folder(place: &OwnedFd, name: &str) -> Result<()> {
    rustix::fs::mkdirat(place, name, Mode::from_raw_mode(0o755)).context("mkdirat", name)
}

/// On a folder or an empty file, as the mount's root is one.
fn attach(mount: &OwnedFd, place: &OwnedFd, name: &str) -> Result<()> {
    let kind = rustix::fs::fstat(mount).context("fstat", name)?.st_mode;
    if FileType::from_raw_mode(kind) == FileType::Directory {
        folder(place, name)?;
    } else {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(place, name, flags, Mode::from_raw_mode(0o644)).context("openat", name)?;
    }
    rustix::mount::move_mount(mount, c"", place, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context("move_mount", name)
}
