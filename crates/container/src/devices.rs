//! `/dev` as one detached tmpfs, made by the builder: inside a user namespace nobody may make
//! device nodes, and binding them one by one costs three calls each.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use insula_spec::bundle::{BundlePlan, BundleSource, IdMapping, NodePlan};
use insula_spec::plan::{ContainerPlan, DeviceKind};
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};

use crate::build::{Cloned, Guard};
use crate::error::{Context, Error, Result};
use crate::handshake;
use crate::idmap;

/// Device numbers from the kernel's list of allocated devices.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Not every kernel has it.
const CORE: (&str, &str) = ("/proc/kcore", "core");

const FOLDERS: [&str; 3] = ["pts", "shm", "mqueue"];

/// Makes the tmpfs with the standard nodes and those of the plan.
pub(crate) fn build(plan: &ContainerPlan) -> Result<OwnedFd> {
    let owner = idmap::first(&plan.namespaces.user);
    let dev = match plan.bundle.as_deref() {
        Some(bundle) => bundle_tmpfs(bundle)?,
        None => tmpfs(owner)?,
    };
    let at = Node { dev: dev.as_fd(), owner, bound: process::in_user_namespace().then(RefCell::default) };
    for (name, major, minor) in NODES {
        let number = rustix::fs::makedev(major, minor);
        at.make_device(
            Path::new(name),
            &Path::new("/dev").join(name),
            FileType::CharacterDevice,
            0o666,
            number,
        )?;
    }
    for (target, name) in LINKS {
        at.make_link(target, name)?;
    }
    if Path::new(CORE.0).exists() {
        at.make_link(CORE.0, CORE.1)?;
    }
    // Without IPC there is no shared memory either.
    let shared = plan.bundle.is_some() || plan.mounts.iter().any(|mount| mount.target == "/dev/shm");
    for name in FOLDERS.into_iter().filter(|name| shared || *name != "shm") {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).context("mkdirat", name)?;
        at.own(Path::new(name), owner, owner)?;
    }
    if plan.stdio.tty {
        // The terminal is bound over this file from inside.
        at.make(Path::new("console"), FileType::RegularFile, 0o620, 0)?;
    }
    for device in &plan.devices {
        at.copy(&device.host_path, &device.path)?;
    }
    for device in plan.bundle.iter().flat_map(|bundle| &bundle.devices) {
        let ids = plan.bundle.as_deref().map(|bundle| (&bundle.uid_mappings[..], &bundle.gid_mappings[..]));
        at.place(device, ids.unwrap_or_default())?;
    }
    match at.bound.as_ref().map(RefCell::take) {
        Some(bound) => bind(&dev, &bound),
        None => Ok(dev),
    }
}

/// Where nobody may make device nodes, in a user namespace, those of the host are bound over files. Mounts need
/// an attached tree: a child has one in a mount namespace of its own, and hands a detached copy of it back.
fn bind(dev: &OwnedFd, bound: &[(PathBuf, PathBuf)]) -> Result<OwnedFd> {
    let (outside, inside) = handshake::pair()?;
    match process::clone(CloneFlags::NEWNS, None).context("clone3", "with a mount namespace")? {
        Clone::Child => {
            let given = assemble(dev, bound).and_then(|tree| inside.give(&[tree.as_fd()]));
            if let Err(error) = &given {
                inside.report_failure(error);
            }
            process::exit_now(i32::from(given.is_err()))
        }
        Clone::Parent { pid, pidfd } => {
            let _child = Guard(Some(Cloned { pid, pidfd }));
            drop(inside);
            outside.take(1)?.pop().ok_or(Error::Lost)
        }
    }
}

fn assemble(dev: &OwnedFd, bound: &[(PathBuf, PathBuf)]) -> Result<OwnedFd> {
    let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", alone).context("mount", "the namespace as private")?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let nodes = bound.iter().map(|(host, path)| {
        let node = rustix::mount::open_tree(CWD, host, clone).context("open_tree", host.display())?;
        Ok((node, path))
    });
    // Before the tmpfs hides them.
    let nodes = nodes.collect::<Result<Vec<_>>>()?;
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(dev, c"", CWD, "/dev", whole).context("move_mount", "a tmpfs to /dev")?;
    for (node, path) in nodes {
        rustix::mount::move_mount(&node, c"", dev, path, whole).context("move_mount", path.display())?;
    }
    rustix::mount::open_tree(dev, c"", clone | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE)
        .context("open_tree", "the tmpfs at /dev")
}

/// With the options that the bundle's mount of `/dev` has; where it has none nobody sees this tmpfs, which
/// the standard nodes are bound from then.
fn bundle_tmpfs(bundle: &BundlePlan) -> Result<OwnedFd> {
    let dev = bundle.mounts.iter().find_map(|mount| match &mount.source {
        BundleSource::Dev { options } => Some((options.as_slice(), mount.attributes.set)),
        _ => None,
    });
    let (options, set) = dev.unwrap_or_default();
    let attributes = MountAttrFlags::from_bits_retain(set as u32);
    let dev = crate::inside::new_file_system("tmpfs", "tmpfs", options, attributes)?;
    // Its owner is the container's root, wherever the options say nothing else.
    let owner = |mappings: &[IdMapping]| idmap::outside(mappings, 0);
    let (uid, gid) = (owner(&bundle.uid_mappings), owner(&bundle.gid_mappings));
    let told = |name: &str| options.iter().any(|(key, _)| key == name);
    if (uid, gid) != (0, 0) && !told("uid") && !told("gid") {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(&dev, "", uid, gid, AtFlags::EMPTY_PATH)
            .context("fchownat", "the tmpfs at /dev")?;
    }
    Ok(dev)
}

/// As large as Docker's, and programs may be mapped from it: `mmap` of `/dev/zero` and of some devices asks for that.
fn tmpfs(owner: u32) -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen", "tmpfs")?;
    let owner = owner.to_string();
    let options = [("source", "tmpfs"), ("mode", "755"), ("size", "64m"), ("uid", &owner), ("gid", &owner)];
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&fs, key, value).context("fsconfig", key)?;
    }
    rustix::mount::fsconfig_create(&fs).context("fsconfig", "to create a tmpfs")?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOSUID)
        .context("fsmount", "a tmpfs")
}

struct Node<'a> {
    dev: BorrowedFd<'a>,
    owner: u32,
    /// Nodes of the host and where they are to be bound, where none can be made.
    bound: Option<RefCell<Vec<(PathBuf, PathBuf)>>>,
}

impl Node<'_> {
    /// A device, which the host has at `host`.
    fn make_device(&self, path: &Path, host: &Path, kind: FileType, mode: u32, number: u64) -> Result<()> {
        let Some(bound) = &self.bound else { return self.make(path, kind, mode, number) };
        self.make(path, FileType::RegularFile, 0o600, 0)?;
        bound.borrow_mut().push((host.to_owned(), path.to_owned()));
        Ok(())
    }

    /// The umask of the builder is 0.
    fn make(&self, path: &Path, kind: FileType, mode: u32, number: u64) -> Result<()> {
        match rustix::fs::mknodat(self.dev, path, kind, Mode::from_raw_mode(mode), number) {
            // A plan may name a standard node again.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context("mknodat", path.display()),
        }
        self.own(path, self.owner, self.owner)
    }

    fn make_link(&self, target: &str, name: &str) -> Result<()> {
        rustix::fs::symlinkat(target, self.dev, name).context("symlinkat", name)?;
        self.own(Path::new(name), self.owner, self.owner)
    }

    fn own(&self, path: &Path, uid: u32, gid: u32) -> Result<()> {
        if uid == 0 && gid == 0 {
            return Ok(());
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(self.dev, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)
            .context("fchownat", path.display())
    }

    fn make_parents(&self, relative: &Path) -> Result<()> {
        let parents: Vec<&Path> =
            relative.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
        for folder in parents.into_iter().rev() {
            match rustix::fs::mkdirat(self.dev, folder, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).context("mkdirat", folder.display()),
            }
            self.own(folder, self.owner, self.owner)?;
        }
        Ok(())
    }

    /// Makes a node of a bundle. A standard one gets the mode and the owners that the bundle says.
    fn place(&self, node: &NodePlan, (uids, gids): (&[IdMapping], &[IdMapping])) -> Result<()> {
        let relative = below_dev(&node.path)?;
        self.make_parents(relative)?;
        let kind = match node.kind {
            None => FileType::Fifo,
            Some(DeviceKind::Block) => FileType::BlockDevice,
            Some(_) => FileType::CharacterDevice,
        };
        match rustix::fs::unlinkat(self.dev, relative, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error).context("unlinkat", relative.display()),
        }
        let number = rustix::fs::makedev(node.major, node.minor);
        self.make(relative, kind, node.mode, number)?;
        self.own(relative, idmap::outside(uids, node.uid), idmap::outside(gids, node.gid))
    }

    /// Makes the node that the host has at `host`, with its numbers, mode and owners.
    fn copy(&self, host: &Path, inside: &str) -> Result<()> {
        let relative = below_dev(inside)?;
        self.make_parents(relative)?;
        let stat = rustix::fs::stat(host).context("stat", host.display())?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
            return Err(Error::Invalid(format!("{} is not a device node", host.display())));
        }
        self.make_device(relative, host, kind, stat.st_mode & 0o7777, stat.st_rdev)?;
        self.own(relative, self.owner + stat.st_uid.min(65535), self.owner + stat.st_gid.min(65535))
    }
}

fn below_dev(path: &str) -> Result<&Path> {
    let wrong = || Error::Unsupported(format!("device node {path:?}: only paths below /dev can be made"));
    let relative = Path::new(path).strip_prefix("/dev").map_err(|_| wrong())?;
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && relative.components().next().is_some() { Ok(relative) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_stay_below_dev() {
        assert_eq!(below_dev("/dev/snd/timer").unwrap(), Path::new("snd/timer"));
        for path in ["/dev", "/etc/x", "/dev/../etc/x", "dev/x", ""] {
            assert!(below_dev(path).is_err(), "{path}");
        }
    }
}
