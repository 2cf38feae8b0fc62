//! Mapping ids: user_namespaces(7), and idmapped mounts, mount_setattr(2).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use insula_spec::bundle::IdMapping;
use insula_spec::plan::UserNamespace;
use insula_sys::mount::{MountAttributes, set_attributes};
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::error::{Context, Error, Result};

/// The first id outside of a container's range; 0 where ids are the host's.
pub(crate) fn first(user: &UserNamespace) -> u32 {
    user.range().map_or(0, |(first, _)| first)
}

/// The id outside for one inside; the same without a map, and the map's first for a stranger.
pub(crate) fn outside(mappings: &[IdMapping], id: u32) -> u32 {
    let Some(first) = mappings.first() else { return id };
    let of = |each: &&IdMapping| id >= each.inside && id - each.inside < each.size;
    mappings.iter().find(of).map_or(first.outside, |each| each.outside + (id - each.inside))
}

/// Writes the id maps of a process in a new user namespace.
pub(crate) fn map(pid: i32, first: u32, count: u32) -> Result<()> {
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, format!("0 {first} {count}\n")).context("write", path)?;
    }
    Ok(())
}

/// Writes any id maps.
pub(crate) fn map_as(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    for (file, mappings) in [("uid_map", uids), ("gid_map", gids)] {
        let path = format!("/proc/{pid}/{file}");
        let line = |each: &IdMapping| format!("{} {} {}\n", each.inside, each.outside, each.size);
        let text: String = mappings.iter().map(line).collect();
        std::fs::write(&path, text).context("write", path)?;
    }
    Ok(())
}

/// A user namespace with these maps and nobody in it, for mounts. For a process of one thread.
pub(crate) fn namespace_with(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    let (hold, release) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("pipe2", "to hold a process")?;
    match process::clone(CloneFlags::NEWUSER, None).context("clone3", "with a user namespace")? {
        Clone::Child => {
            drop(release);
            let _ = rustix::io::read(&hold, &mut [0u8; 1]);
            process::exit_now(0)
        }
        Clone::Parent { pid, .. } => {
            let namespace = map_as(pid, uids, gids).and_then(|()| namespace_of(pid));
            drop(release);
            process::wait_for(pid).context("waitpid", "for a user namespace")?;
            namespace
        }
    }
}

/// A detached copy of what is mounted at `path`, as it is.
pub(crate) fn copy_of(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, path, flags).context("open_tree", path.display())
}

/// The user namespace of a process, as idmapped mounts want it.
pub(crate) fn namespace_of(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/user");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context("open", path)
}

/// A detached copy of what is mounted at `path`, seen through `namespace` where one is given.
pub(crate) fn detached(path: &Path, recursive: bool, attributes: MountAttributes<'_>) -> Result<OwnedFd> {
    let tree = copy_of(path, recursive)?;
    set_through(&tree, attributes, recursive).map_err(|errno| {
        if attributes.idmap.is_some() && errno == Errno::INVAL {
            Error::Unsupported(format!("the file system of {} cannot map ids", path.display()))
        } else {
            Error::Call { call: "mount_setattr", on: path.display().to_string(), source: errno.into() }
        }
    })?;
    Ok(tree)
}

/// Sets attributes of a tree of mounts. Where something is mounted below that cannot map ids (`/proc` below
/// `/`), the tree's root is mapped alone; the rest shows its owners as nobody.
fn set_through(tree: &OwnedFd, attributes: MountAttributes<'_>, recursive: bool) -> Result<(), Errno> {
    match set_attributes(tree.as_fd(), attributes, recursive) {
        Err(Errno::INVAL) if recursive && attributes.idmap.is_some() => {
            set_attributes(tree.as_fd(), attributes, false)?;
            set_attributes(tree.as_fd(), MountAttributes { idmap: None, ..attributes }, true)
        }
        result => result,
    }
}

/// Whether the kernel gives user namespaces and the file system of `path` can be mounted with
/// mapped ids: an error says what is missing. Returns a namespace to try other file systems with. For a
/// process of one thread.
pub fn probe(path: &Path) -> Result<OwnedFd> {
    let (hold, release) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("pipe2", "to hold a process")?;
    match process::clone(CloneFlags::NEWUSER, None).context("clone3", "with a user namespace")? {
        Clone::Child => {
            drop(release);
            let _ = rustix::io::read(&hold, &mut [0u8; 1]);
            process::exit_now(0)
        }
        Clone::Parent { pid, .. } => {
            let result = map(pid, 1 << 20, 65536).and_then(|()| {
                let namespace = namespace_of(pid)?;
                let attributes =
                    MountAttributes { idmap: Some(namespace.as_fd()), ..MountAttributes::default() };
                detached(path, false, attributes)?;
                crate::rootfs::maps_layers()?;
                Ok(namespace)
            });
            drop(release);
            process::wait_for(pid).context("waitpid", "for a probe")?;
            result
        }
    }
}
