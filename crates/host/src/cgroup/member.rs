//! A group in one hierarchy: its files.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::error::{Context, Result};
use super::layout::{Hierarchy, Version};
use super::parents;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) version: Version,
    pub(super) folder: OwnedFd,
    pub(super) path: PathBuf,
}

impl Member {
    /// Makes it with its parents where they are missing, with these controllers in version 2 where they are to be had.
    pub(super) fn create(hierarchy: &Hierarchy, path: &str, controllers: &[&str]) -> Result<Self> {
        if !parents::mkdir(&hierarchy.root.join(path))? {
            parents::make(hierarchy, path, controllers)?;
        }
        let member = Self::open(hierarchy, path)?;
        // Who made the parents may be about to prepare them, or have died over it.
        if !parents::are_ready(hierarchy, &member, controllers)? {
            parents::make(hierarchy, path, controllers)?;
        }
        Ok(member)
    }

    pub(super) fn open(hierarchy: &Hierarchy, path: &str) -> Result<Self> {
        let path = hierarchy.root.join(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&path, flags, Mode::empty()).context("open", path.display())?;
        Ok(Self { version: hierarchy.version.clone(), folder, path })
    }

    /// The kernel finds nothing in a folder that was removed.
    pub(super) fn stands(&self) -> bool {
        let exists = rustix::fs::Access::EXISTS;
        rustix::fs::accessat(&self.folder, "cgroup.procs", exists, AtFlags::empty()).is_ok()
    }

    pub(super) fn file(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        rustix::fs::openat(&self.folder, name, flags | OFlags::CLOEXEC, Mode::empty())
            .context("open", self.path.join(name).display())
    }

    pub(super) fn write(&self, name: &str, value: &str) -> Result<()> {
        let file = self.file(name, OFlags::WRONLY)?;
        rustix::io::write(&file, value.as_bytes())
            .map(drop)
            .context("write", format_args!("{value:?} to {}", self.path.join(name).display()))
    }

    /// Several values, each in a write of its own.
    pub(super) fn write_each(&self, name: &str, values: &[String]) -> Result<()> {
        let mut file = File::from(self.file(name, OFlags::WRONLY)?);
        for value in values {
            file.write_all(value.as_bytes())
                .context("write", format_args!("{value:?} to {}", self.path.join(name).display()))?;
        }
        Ok(())
    }

    /// The content of a file; none where the kernel does not have it.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>> {
        let file = match self.file(name, OFlags::RDONLY) {
            Err(error) if error.is(Errno::NOENT) => return Ok(None),
            file => file?,
        };
        let mut text = String::new();
        match File::from(file).read_to_string(&mut text) {
            // Some files of version 1 cannot be read for a group without the matching device.
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(None),
            // The group is gone since it was opened.
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
            result => result.map(|_| Some(text)).context("read", self.path.join(name).display()),
        }
    }

    /// Whether a file reads as wanted within `limit`. The kernel tells of changes of `cgroup.events` by
    /// poll(2); `freezer.state` has no such thing and is read again after a moment.
    pub(super) fn becomes(&self, name: &str, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<bool> {
        let began = Instant::now();
        let file = self.file(name, OFlags::RDONLY)?;
        let mut buffer = [0; 512];
        loop {
            // The read arms the poll: without one it reports a change at once.
            let length = rustix::io::pread(&file, &mut buffer, 0).context("read", name)?;
            if wanted(&String::from_utf8_lossy(&buffer[..length])) {
                return Ok(true);
            }
            if began.elapsed() > limit {
                return Ok(false);
            }
            let watched = PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI);
            let moment = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
            poll(&mut [watched], Some(&moment)).context("poll", name)?;
        }
    }
}

/// Lets time pass for processes that the kernel takes apart, of which it does not tell.
pub(super) fn wait(moment: Duration) -> Result<()> {
    let moment = Timespec { tv_sec: 0, tv_nsec: i64::from(moment.subsec_nanos()) };
    match poll(&mut [], Some(&moment)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("poll", "for a moment"),
    }
}
