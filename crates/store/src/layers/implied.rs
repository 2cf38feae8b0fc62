//! Folders that a layer's archive uses without an entry of their own. Overlay shows the uppermost
//! folder's owner and mode, so such a folder must look like the one below it.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::{Error, Result, tree};

/// Gives each implied folder the attributes of the nearest lower one. `lower` has the lowest first.
pub(super) fn adopt(layer: &Path, implied: &[PathBuf], lower: &[PathBuf]) -> Result<()> {
    let layer_folder = open(layer)?;
    let lower: Vec<File> = lower.iter().rev().map(|path| open(path)).collect::<Result<_>>()?;
    for path in implied {
        let Ok(own) = below(&layer_folder, path) else { continue };
        if let Some(theirs) = nearest(&lower, path).map_err(|e| Error::io("openat2", path, e))? {
            tree::copy_ownership(theirs.as_fd(), own.as_fd()).map_err(|e| Error::io("adopt", path, e))?;
        }
    }
    Ok(())
}

/// The folder in the uppermost layer that has something at this path, if that is a folder.
fn nearest(lower: &[File], path: &Path) -> Result<Option<OwnedFd>, Errno> {
    for layer in lower {
        match below(layer, path) {
            Ok(folder) => return Ok(Some(folder)),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn below(layer: &File, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(layer, path, flags, Mode::empty(), resolve)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("open", path, e))
}
