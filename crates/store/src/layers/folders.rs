//! Folders below the root of a layer, by the paths that archives write.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::{Errno, Result};

/// Folders that are kept open. Archives are written folder by folder, so few serve well.
const OPEN_MAX: usize = 64;
/// Renames anywhere on the host may make the kernel ask for another try (openat2(2), EAGAIN).
const TRIES: usize = 128;

/// Resolves paths as a process would that has the layer's root for its root directory: symbolic
/// links of the layer itself are followed, and none leads out.
#[derive(Debug)]
pub(super) struct Folders<'a> {
    root: BorrowedFd<'a>,
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Made because something below them was in the archive, and not (yet) by an entry of their own.
    pub(super) implied: BTreeSet<Vec<u8>>,
}

impl<'a> Folders<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, open: HashMap::new(), implied: BTreeSet::new() }
    }

    /// The folder at a clean relative path, the root if empty.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>> {
        if let Some(folder) = self.open.get(path) {
            return Ok(folder.clone());
        }
        let folder = Rc::new(self.resolve(path, OFlags::empty())?);
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        self.open.insert(path.to_vec(), folder.clone());
        Ok(folder)
    }

    /// As [`Folders::find`]; missing folders are made.
    pub(super) fn make(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>> {
        match self.find(path) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        // From the top: whatever prefix is there is found, what is not is made.
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut parent = self.find(b"")?;
        let mut start = 0;
        for end in ends.chain([path.len()]) {
            parent = match self.find(&path[..end]) {
                Err(Errno::NOENT) => {
                    mkdirat(&parent, &path[start..end], Mode::from_raw_mode(0o755))?;
                    self.implied.insert(path[..end].to_vec());
                    self.find(&path[..end])?
                }
                found => found?,
            };
            start = end + 1;
        }
        Ok(parent)
    }

    /// A folder that must be one itself, no symbolic link to one.
    pub(super) fn exactly(&self, path: &[u8]) -> Result<OwnedFd> {
        self.resolve(path, OFlags::NOFOLLOW)
    }

    /// To be called when anything but a new entry changed: cached paths may lead elsewhere now.
    pub(super) fn forget(&mut self) {
        self.open.clear();
    }

    fn resolve(&self, path: &[u8], more: OFlags) -> Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        for _ in 1..TRIES {
            match openat2(self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        openat2(self.root.as_fd(), path, flags, Mode::empty(), resolve)
    }
}
