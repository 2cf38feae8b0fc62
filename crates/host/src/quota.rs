//! Project quotas: a tree of files that must not grow past a size, held to it by the file system that it is on.
//! They cost nothing, where the file system has them: XFS and ext4, made and mounted for it (`prjquota`).
//!
//! A project is a number that files have, and what is made in a folder has the folder's. Others on the same file
//! system use such numbers too, so those of one root are taken from a range of their own, and one that is taken or
//! takes anything is passed over.
//!
//! Who has `CAP_SYS_RESOURCE` in the first user namespace is not held by ext4; overlayfs writes without it,
//! whoever has mounted it (`ovl_fill_super`), and who writes past overlayfs does so within [`obeyed`]. And who is
//! root in the first user namespace can give a file to another project: not for containers with the host's ids.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use insula_sys::quota;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::disk::{Error, Result};

/// Numbers of one root, and where the first such range begins: far from those that people choose.
const RANGE: u32 = 1 << 14;
const FIRST: u32 = 1 << 30;
/// One more file or folder for so many bytes, as in a disk of that size.
const PER_INODE: u64 = 4096;
/// What overlayfs and the folders themselves need.
const INODES: u64 = 64;

/// Projects of one root.
#[derive(Debug)]
pub struct Quotas {
    root: PathBuf,
    folder: File,
    first: u32,
    /// Where the next free one is looked for. Held while one is taken.
    next: Mutex<u32>,
}

impl Quotas {
    /// Those of the file system that `root` is on, or why there are none that would hold.
    pub fn probe(root: &Path) -> std::result::Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", root.display());
        let folder = File::open(root).map_err(failed)?;
        let inode = folder.metadata().map_err(failed)?.ino();
        match quota::are_enforced(folder.as_fd()) {
            Ok(true) => {}
            Err(Errno::PERM) => return Err("they need the rights of the host's root".to_owned()),
            Ok(false) | Err(_) => {
                return Err(format!("the file system of {} is not mounted with prjquota", root.display()));
            }
        }
        // Inodes are a file system's own, and mostly small: two roots on one rarely have the same range, and
        // if they do they only pass over each other's projects.
        let number = u32::try_from(inode % (u64::from(FIRST) / u64::from(RANGE))).unwrap_or(0);
        let quotas =
            Self { root: root.to_owned(), folder, first: FIRST + number * RANGE, next: Mutex::new(0) };
        quotas.release(quotas.first).map_err(|error| insula_base::chain(&error))?;
        Ok(quotas)
    }

    /// Holds a folder, which must be empty, and all that will be made in it, to so many bytes.
    pub fn hold(&self, folder: &Path, bytes: u64) -> Result<()> {
        let open = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
        let id = self.take(bytes)?;
        quota::set_project(open.as_fd(), id).map_err(|error| {
            // Nothing has this number; the next open would see to it as well.
            let _ = self.release(id);
            Error::io("FS_IOC_FSSETXATTR", folder, error)
        })
    }

    /// The project that a folder is held to.
    pub fn of(&self, folder: &Path) -> Result<Option<u32>> {
        let open = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
        match quota::project_of(open.as_fd()) {
            // Also one of another range: the root may have been moved.
            Ok(id) => Ok((id >= FIRST).then_some(id)),
            Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) => Ok(None),
            Err(error) => Err(Error::io("FS_IOC_FSGETXATTR", folder, error)),
        }
    }

    /// Nothing belongs to this project any more.
    pub fn release(&self, id: u32) -> Result<()> {
        quota::set_limits(self.folder.as_fd(), id, 0, 0)
            .map_err(|e| Error::io("quotactl_fd Q_XSETQLIM", &self.root, e))
    }

    /// Releases projects that nothing belongs to: whoever took them was killed.
    pub fn sweep(&self) -> Result<()> {
        let mut id = self.first;
        while self.range().contains(&id) {
            match quota::next_project(self.folder.as_fd(), id) {
                Ok(Some(project)) if self.range().contains(&project.id) => {
                    if is_unused(&project) && (project.bytes_max, project.inodes_max) != (0, 0) {
                        self.release(project.id)?;
                    }
                    id = project.id + 1;
                }
                // There are no more, or this file system cannot say so: then they are passed over.
                Ok(_) | Err(Errno::NOSYS | Errno::INVAL) => break,
                Err(error) => return Err(Error::io("quotactl_fd Q_XGETNEXTQUOTA", &self.root, error)),
            }
        }
        Ok(())
    }

    fn range(&self) -> std::ops::Range<u32> {
        self.first..self.first + RANGE
    }

    /// A project that nobody has, with its limit.
    fn take(&self, bytes: u64) -> Result<u32> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        for step in 0..RANGE {
            let id = self.first + (*next + step) % RANGE;
            let known = quota::project(self.folder.as_fd(), id)
                .map_err(|e| Error::io("quotactl_fd Q_XGETQUOTA", &self.root, e))?;
            let free = known.is_none_or(|of| is_unused(&of) && (of.bytes_max, of.inodes_max) == (0, 0));
            if free {
                quota::set_limits(self.folder.as_fd(), id, bytes, bytes / PER_INODE + INODES)
                    .map_err(|e| Error::io("quotactl_fd Q_XSETQLIM", &self.root, e))?;
                *next = (id - self.first + 1) % RANGE;
                return Ok(id);
            }
        }
        Err(Error::Unsupported(format!(
            "all {RANGE} numbers for projects on {} are taken",
            self.root.display()
        )))
    }
}

fn is_unused(project: &quota::Project) -> bool {
    (project.bytes, project.inodes) == (0, 0)
}

/// Does something that the quotas of whoever owns the files hold for, though this thread may be above them.
pub fn obeyed<T>(work: impl FnOnce() -> T) -> T {
    let _held = Held::begin();
    work()
}

/// The capabilities that the thread had, if it has less now.
struct Held(Option<CapabilitySets>);

impl Held {
    fn begin() -> Self {
        let Ok(before) = capabilities(None) else { return Self(None) };
        let mut less = before;
        less.effective.remove(CapabilitySet::SYS_RESOURCE);
        let lowered = less.effective != before.effective && set_capabilities(None, less).is_ok();
        Self(lowered.then_some(before))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // It is still permitted, so this cannot be refused.
            let _ = set_capabilities(None, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_hold_says_why() {
        let why = Quotas::probe(Path::new("/proc")).unwrap_err();
        assert!(why.contains("prjquota") || why.contains("rights"), "{why}");
        assert!(Quotas::probe(Path::new("/no/such")).unwrap_err().contains("/no/such"));
    }

    #[test]
    fn who_obeys_has_its_rights_again_afterwards() {
        let effective = || capabilities(None).unwrap().effective;
        let before = effective();
        let within = obeyed(effective);
        assert!(!within.contains(CapabilitySet::SYS_RESOURCE));
        assert_eq!(effective(), before);
    }
}
