//! Making folders of the image writable, as overlayfs does on the first change.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, fchmod, fchown, futimens};
use rustix::io::{Errno, Result};

use super::{Dir, Place, Tree};

impl Tree {
    /// Makes the folder at `place`, and those above it, in the writable layer. A running container's
    /// are writable as they are.
    pub(crate) fn copy_up(&self, place: &mut Place) -> Result<()> {
        let Place { parents, name, entry, .. } = place;
        let mut above: Option<OwnedFd> = None;
        for (name, dir) in parents.iter_mut() {
            above = Some(raise(above.as_ref(), name, dir)?);
        }
        match entry.as_mut().and_then(|entry| entry.dir.as_mut()) {
            Some(dir) => raise(above.as_ref(), name, dir).map(drop),
            None => Ok(()),
        }
    }
}

/// The folder of `dir` in the writable layer, made below `above` if it is not there.
fn raise(above: Option<&OwnedFd>, name: &OsStr, dir: &mut Dir) -> Result<OwnedFd> {
    if let Some(upper) = dir.upper() {
        return rustix::io::fcntl_dupfd_cloexec(upper, 0);
    }
    let above = above.ok_or(Errno::NOENT)?;
    let stat = rustix::fs::fstat(dir.topmost().ok_or(Errno::NOENT)?)?;
    // Not to be entered by others before it has its owner.
    rustix::fs::mkdirat(above, name, Mode::RWXU)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(above, name, flags, Mode::empty())?;
    adopt(folder.as_fd(), &stat)?;
    let copy = rustix::io::fcntl_dupfd_cloexec(&folder, 0)?;
    dir.add_upper(folder);
    Ok(copy)
}

fn adopt(folder: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
    fchown(folder, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(folder, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.cast_signed() };
    futimens(
        folder,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        },
    )
}
