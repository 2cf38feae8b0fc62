//! Places of a root file system that are to be empty inside: the host image's secrets.
//!
//! They are hidden in the writable layer, by an opaque folder or a whiteout (kernel document
//! `filesystems/overlayfs`), not by mounts on top: what is hidden can then be used afresh inside,
//! and nothing inside can unmount its way back.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use insula_spec::plan::RootfsPlan;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// Prepares the writable layer of a plan so that its hidden paths are empty. May be repeated.
pub(crate) fn hide(plan: &RootfsPlan) -> Result<()> {
    if plan.hidden.is_empty() {
        return Ok(());
    }
    let (Some(upper), Some(lower)) = (&plan.upper, plan.layers.last()) else {
        return Err(Error::Unsupported("hidden paths need a writable layer".to_owned()));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lower = rustix::fs::open(lower, flags, Mode::empty()).context("open", lower.display())?;
    let upper =
        rustix::fs::open(&upper.upper, flags, Mode::empty()).context("open", upper.upper.display())?;
    plan.hidden.iter().try_for_each(|path| hide_one(&lower, &upper, path))
}

fn hide_one(lower: &OwnedFd, upper: &OwnedFd, path: &str) -> Result<()> {
    let parts = parts(path)?;
    let Some((last, parents)) = parts.split_last() else {
        return Err(Error::Invalid("the root itself cannot be hidden".to_owned()));
    };
    let mut at = PathBuf::new();
    for part in parents {
        at.push(part);
        match look(lower, &at)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                folder(upper, &at, &stat)?;
            }
            // A link or nothing: the path as written does not exist below.
            _ => return Ok(()),
        }
    }
    at.push(last);
    match look(lower, &at)? {
        None => Ok(()),
        Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            if folder(upper, &at, &stat)? {
                opaque(upper, &at)?;
            }
            Ok(())
        }
        Some(_) => whiteout(upper, &at),
    }
}

fn parts(path: &str) -> Result<Vec<&Path>> {
    Path::new(path)
        .components()
        .filter(|part| *part != Component::RootDir)
        .map(|part| match part {
            Component::Normal(name) => Ok(Path::new(name)),
            _ => Err(Error::Invalid(format!("hidden path {path:?} is not plain"))),
        })
        .collect()
}

/// What is there, links not followed.
fn look(lower: &OwnedFd, path: &Path) -> Result<Option<Stat>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(lower, path, flags, Mode::empty(), resolve) {
        Ok(file) => rustix::fs::fstat(file.as_fd()).map(Some).context("fstat", path.display()),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error).context("openat2", path.display()),
    }
}

/// Makes the folder in the writable layer as it is below; whether it is new.
fn folder(upper: &OwnedFd, path: &Path, below: &Stat) -> Result<bool> {
    match rustix::fs::mkdirat(upper, path, Mode::from_raw_mode(below.st_mode & 0o7777)) {
        Ok(()) => {
            let (uid, gid) = (Uid::from_raw(below.st_uid), Gid::from_raw(below.st_gid));
            rustix::fs::chownat(upper, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .context("fchownat", path.display())?;
            Ok(true)
        }
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error).context("mkdirat", path.display()),
    }
}

fn opaque(upper: &OwnedFd, path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(upper, path, flags, Mode::empty()).context("openat", path.display())?;
    rustix::fs::fsetxattr(folder, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .context("fsetxattr", path.display())
}

fn whiteout(upper: &OwnedFd, path: &Path) -> Result<()> {
    match rustix::fs::mknodat(upper, path, FileType::CharacterDevice, Mode::empty(), 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).context("mknodat", path.display()),
    }
}
