//! A container's root file system as its processes see it, looked at from outside.
//!
//! A running container's is read through its processes' root. A stopped one is not mounted
//! anywhere, and this process mounts nothing: its writable layer and the image's layers are merged
//! here by overlayfs' rules (kernel document `filesystems/overlayfs`): the topmost layer that has a
//! name decides, folders are merged, a character device 0/0 hides what is below, and so does the
//! attribute `trusted.overlay.opaque` of a folder.
//!
//! Paths are walked name by name from open folders and symbolic links are never followed by the
//! kernel, so that nothing a container prepares leads out of its root.

mod copy_up;
mod dir;
mod resolve;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

pub(crate) use self::dir::{Dir, Entry, is_whiteout};
pub(crate) use self::resolve::{Last, Place, clean};
use crate::{Error, Result};

/// A root file system.
#[derive(Debug)]
pub(crate) struct Tree {
    root: Dir,
    /// What id 0 of the container is here: the files of a running container show the host's ids.
    first_id: u32,
    /// Absolute paths below which the image's layers count as empty.
    hidden: Vec<PathBuf>,
    /// What is mounted while the container runs: path inside, path on the host.
    mounts: Vec<(PathBuf, PathBuf)>,
}

impl Tree {
    /// The root of a running container by one of its processes' `/proc/<pid>/root`.
    pub(crate) fn running(root: &Path, first_id: u32) -> Result<Self> {
        Ok(Self { root: Dir::single(open_folder(root)?), first_id, hidden: Vec::new(), mounts: Vec::new() })
    }

    /// The root of a container that does not run; `lower` lowest first.
    pub(crate) fn stopped(
        upper: &Path,
        lower: &[PathBuf],
        hidden: &[String],
        mounts: &[(PathBuf, PathBuf)],
    ) -> Result<Self> {
        let mut folders = vec![open_folder(upper)?];
        for layer in lower.iter().rev() {
            folders.push(open_folder(layer)?);
        }
        Ok(Self {
            root: Dir::merged(folders),
            first_id: 0,
            hidden: hidden.iter().map(PathBuf::from).collect(),
            mounts: mounts.to_vec(),
        })
    }

    /// The id inside for one that a file shows; what is outside of the range is nobody.
    pub(crate) fn inside(&self, id: u32) -> u32 {
        const NOBODY: u32 = 65_534;
        if self.first_id == 0 {
            id
        } else {
            id.checked_sub(self.first_id).filter(|id| *id < 65_536).unwrap_or(NOBODY)
        }
    }

    /// Whether its folders are those of several layers, put together here.
    pub(crate) fn is_merged(&self) -> bool {
        self.root.is_merged()
    }

    /// What is added to an id inside to write it.
    pub(crate) fn first_id(&self) -> u32 {
        self.first_id
    }

    /// The root that an image gives, without a writable layer; `layers` lowest first.
    pub(crate) fn image(layers: &[PathBuf], hidden: &[String]) -> Result<Self> {
        let folders = layers.iter().rev().map(|layer| open_folder(layer)).collect::<Result<_>>()?;
        Ok(Self {
            root: Dir::layers(folders),
            first_id: 0,
            hidden: hidden.iter().map(PathBuf::from).collect(),
            mounts: Vec::new(),
        })
    }

    fn mounted(&self, path: &Path) -> Option<&Path> {
        self.mounts.iter().find(|(target, _)| target == path).map(|(_, source)| source.as_path())
    }

    fn hides(&self, path: &Path) -> bool {
        self.hidden.iter().any(|hidden| hidden == path)
    }
}

/// Opens a folder of the engine's own.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|error| Error::io("open", path, error))
}
