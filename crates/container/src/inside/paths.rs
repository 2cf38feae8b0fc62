//! Kernel parameters, and the paths that a container must not see or change.
//!
//! Paths below `/proc` and `/sys` are resolved below the mounts that this init has just made, not
//! by name from the root, and what is put over them comes from the device file system that the
//! builder made: nothing that another container shares with this one can take their place.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use insula_spec::plan::SecurityPlan;
use insula_sys::mount::{MountAttributes, set_attributes};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};

use super::mounts::{self, Built};
use super::places;
use crate::error::{Context, Error, Result};

/// `f_type` of procfs, statfs(2).
const PROC: u64 = 0x9fa0;

/// Writes kernel parameters, dots or slashes between the parts.
pub(crate) fn set_sysctls(proc: Option<&OwnedFd>, sysctls: &BTreeMap<String, String>) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let own = if proc.is_none() { Some(mounts::new("proc", &[], mounts::hardened())?) } else { None };
    let proc = proc.or(own.as_ref()).ok_or(Error::Lost)?;
    for (name, value) in sysctls {
        let path = format!("sys/{}", name.replace('.', "/"));
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // Nothing that is mounted over it, and nothing that only looks like it.
        let file = rustix::fs::openat2(proc, path.as_str(), flags, Mode::empty(), within_one_mount())
            .context("open sysctl", name)?;
        check_proc(&file, name)?;
        std::fs::File::from(file).write_all(value.as_bytes()).context("write sysctl", name)?;
    }
    Ok(())
}

/// For what is below `/proc` and not to be taken for something else.
pub(super) fn within_one_mount() -> ResolveFlags {
    strict() | ResolveFlags::NO_XDEV
}

/// Whether a file is one of the kernel's own.
pub(super) fn check_proc(file: &OwnedFd, name: &str) -> Result<()> {
    if rustix::fs::fstatfs(file).context("fstatfs", name)?.f_type as u64 != PROC {
        return Err(Error::Invalid(format!("/proc has no file for {name}: it is something else")));
    }
    Ok(())
}

/// Masks and write-protects.
pub(crate) fn protect(security: &SecurityPlan, built: &Built) -> Result<()> {
    let mut empty = None;
    for path in &security.masked_paths {
        if let Some(target) = find(built, path)? {
            mask(&target, built, &mut empty).map_err(|error| name(path, error))?;
        }
    }
    for path in &security.readonly_paths {
        if let Some(target) = find(built, path)? {
            freeze(&target).map_err(|error| name(path, error))?;
        }
    }
    Ok(())
}

fn name(path: &str, error: Error) -> Error {
    match error {
        Error::Call { call, source, .. } => Error::Call { call, on: path.to_owned(), source },
        error => error,
    }
}

fn strict() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// The place to protect, if this kernel has it.
fn find(built: &Built, path: &str) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = built.proc.as_ref().zip(path.strip_prefix("/proc/"));
    let found = match proc.or_else(|| built.sys.as_ref().zip(path.strip_prefix("/sys/"))) {
        Some((mount, rest)) => rustix::fs::openat2(mount, rest, flags, Mode::empty(), strict()),
        None => places::below(&built.root, path),
    };
    match found {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(error) => Err(error).context("openat2", path),
    }
}

/// A folder reads as empty, a file as `/dev/null`.
fn mask(target: &OwnedFd, built: &Built, empty: &mut Option<OwnedFd>) -> Result<()> {
    let kind = rustix::fs::fstat(target).context("fstat", "a masked path")?.st_mode;
    let cover = if FileType::from_raw_mode(kind) == FileType::Directory {
        if empty.is_none() {
            let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            let tmpfs = mounts::new("tmpfs", &[("size", "0"), ("nr_inodes", "1"), ("mode", "755")], flags)?;
            mounts::attach(tmpfs.as_fd(), target.as_fd(), c"")?;
            *empty = Some(tmpfs);
            return Ok(());
        }
        copy(empty.as_ref().ok_or(Error::Lost)?, "", false)?
    } else {
        copy(&built.dev, "null", false)?
    };
    mounts::attach(cover.as_fd(), target.as_fd(), c"")
}

/// A read-only copy of what is there, on top of it.
fn freeze(target: &OwnedFd) -> Result<()> {
    let copy = copy(target, "", true)?;
    let readonly = MountAttributes { readonly: true, ..MountAttributes::default() };
    set_attributes(copy.as_fd(), readonly, true).context("mount_setattr", "a read-only path")?;
    mounts::attach(copy.as_fd(), target.as_fd(), c"")
}

fn copy(at: &OwnedFd, path: &str, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(at, path, flags).context("open_tree", path)
}
