//! A new tmpfs begins with a copy of what it covers: mount option `tmpcopyup`.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::places::below;
use crate::error::{Context, Error, Result};

/// Folders deeper than this are no content of an image.
const DEEPEST: usize = 200;

/// Copies the folder at `target` below `root` into the file system `to`; one that is not there is empty.
pub(super) fn copy_up(root: &OwnedFd, target: &str, to: &OwnedFd, keep_root: bool) -> Result<()> {
    let folder = match below(root, target) {
        Err(Errno::NOENT) => return Ok(()),
        found => found.context("openat2", target)?,
    };
    let stat = rustix::fs::fstat(&folder).context("fstat", target)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Error::Invalid(format!("tmpcopyup: {target} is no folder")));
    }
    let from = open_folder(folder.as_fd(), c".").context("openat", target)?;
    let into = open_folder(to.as_fd(), c".").context("openat", "a new tmpfs")?;
    entries(&from, &into, 0)?;
    if keep_root { Ok(()) } else { dress(&into, &stat) }
}

fn open_folder(at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn entries(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<()> {
    if depth > DEEPEST {
        return Err(Error::Invalid(format!("tmpcopyup: more than {DEEPEST} folders in one another")));
    }
    for entry in Dir::read_from(from).context("getdents64", "a folder to copy")? {
        let entry = entry.context("getdents64", "a folder to copy")?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            one(from, to, entry.file_name(), depth)?;
        }
    }
    Ok(())
}

fn one(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> Result<()> {
    // Names are any bytes; messages show what can be shown of them.
    let shown = name.to_string_lossy();
    let shown = shown.as_ref();
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).context("fstatat", shown)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::RWXU).context("mkdirat", shown)?;
            let folder = open_folder(from.as_fd(), name).context("openat", shown)?;
            let copy = open_folder(to.as_fd(), name).context("openat", shown)?;
            entries(&folder, &copy, depth + 1)?;
            dress(&copy, &stat)
        }
        FileType::RegularFile => {
            let mut file = open_file(from, name)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut copy =
                File::from(rustix::fs::openat(to, name, flags, Mode::RUSR).context("openat", shown)?);
            std::io::copy(&mut file, &mut copy).context("copy", shown)?;
            dress(&OwnedFd::from(copy), &stat)
        }
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(from, name, Vec::new()).context("readlinkat", shown)?;
            rustix::fs::symlinkat(link.as_c_str(), to, name).context("symlinkat", shown)?;
            own(to, name, &stat)
        }
        FileType::Fifo => {
            rustix::fs::mknodat(to, name, FileType::Fifo, Mode::from_raw_mode(stat.st_mode), 0)
                .context("mknodat", shown)?;
            own(to, name, &stat)
        }
        // A socket leads nowhere without who listens, and devices are those of `/dev`.
        _ => Ok(()),
    }
}

/// A file that was one a moment ago. Another container with the same root may have put a pipe in its place, which
/// nobody is to wait at.
fn open_file(from: &OwnedFd, name: &CStr) -> Result<File> {
    let shown = name.to_string_lossy();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(from, name, flags, Mode::empty()).context("openat", &shown)?;
    let stat = rustix::fs::fstat(&file).context("fstat", &shown)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(File::from(file)),
        _ => Err(Error::Invalid(format!("tmpcopyup: {shown} is a file no more"))),
    }
}

fn own(to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<()> {
    let (uid, gid) = owner(stat);
    rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .context("fchownat", name.to_string_lossy())
}

fn owner(stat: &Stat) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    (Some(rustix::fs::Uid::from_raw(stat.st_uid)), Some(rustix::fs::Gid::from_raw(stat.st_gid)))
}

/// Owner, mode and times; the owner first, since another one takes bits of the mode away.
fn dress(copy: &OwnedFd, stat: &Stat) -> Result<()> {
    let (uid, gid) = owner(stat);
    rustix::fs::fchown(copy, uid, gid).context("fchown", "a copy")?;
    rustix::fs::fchmod(copy, Mode::from_raw_mode(stat.st_mode & 0o7777)).context("fchmod", "a copy")?;
    let time = |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::futimens(copy, &times).context("futimens", "a copy")
}
