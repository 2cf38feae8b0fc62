//! `cp`: files of a container as a tar, and a tar into a container, whether it runs or not.
//!
//! The tar carries ids as they are inside. Into a running container it is unpacked by a thread
//! that acts as the container's root on file systems (its ids are all that they accept); into a
//! stopped one, into the writable layer.

mod engine;
mod read;
mod stat;
mod write;

use std::io::{Read, Write};
use std::path::PathBuf;

use insula_models::PathStat;

pub use self::engine::ArchiveChunks;
use crate::tree::{Last, Place, Tree, clean};
use crate::{Error, Result};

/// Where a container's files are.
#[derive(Debug, Clone)]
pub struct Files {
    /// Name or id, for messages.
    pub container: String,
    pub root: Root,
    /// Folders and files that are mounted while it runs: path inside, path on the host. Looked at only
    /// when it does not run.
    pub mounts: Vec<(PathBuf, PathBuf)>,
    /// `--read-only`.
    pub readonly: bool,
}

/// A root file system, mounted or not.
#[derive(Debug, Clone)]
pub enum Root {
    /// `/proc/<pid>/root` of one of its processes, and what id 0 inside is outside.
    Running { root: PathBuf, first_id: u32 },
    /// The writable layer and the image's, the latter lowest first. `hidden` are absolute paths below
    /// which the image's layers count as empty.
    Stopped { upper: PathBuf, lower: Vec<PathBuf>, hidden: Vec<String> },
}

/// What an archive that is copied in may not do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Refuse to replace a folder by a file and the other way round.
    pub keep_kinds: bool,
}

impl Files {
    /// What is at `path`, a symbolic link itself unless the path ends with a slash.
    pub fn stat(&self, path: &str) -> Result<PathStat> {
        let tree = self.tree()?;
        stat::describe(&tree, &self.find(&tree, path)?, path)
    }

    /// Writes what is at `path` as a tar whose names begin with the path's last part.
    pub fn read(&self, path: &str, out: impl Write) -> Result<()> {
        let tree = self.tree()?;
        read::pack(&tree, &self.find(&tree, path)?, path, out)
    }

    /// Writes the whole root file system, names without a slash in front.
    pub fn export(&self, out: impl Write) -> Result<()> {
        let tree = self.tree()?;
        read::pack_root(&tree, &tree.resolve(&clean("/"), Last::Follow)?, out)
    }

    /// Unpacks a tar, plain or compressed with gzip, into the folder at `path`.
    pub fn write(&self, path: &str, archive: impl Read + Send, options: WriteOptions) -> Result<()> {
        if self.readonly {
            return Err(Error::Denied("container rootfs is marked read-only".to_owned()));
        }
        let tree = self.tree()?;
        let mut place = self.resolve(&tree, path, Last::Follow)?;
        if place.dir().is_none() {
            return Err(match place.entry {
                Some(_) => Error::InvalidArgument("extraction point is not a directory".to_owned()),
                None => self.missing(path),
            });
        }
        write::unpack(&tree, &mut place, archive, options)
    }

    fn tree(&self) -> Result<Tree> {
        match &self.root {
            Root::Running { root, first_id } => Tree::running(root, *first_id),
            Root::Stopped { upper, lower, hidden } => Tree::stopped(upper, lower, hidden, &self.mounts),
        }
    }

    fn find(&self, tree: &Tree, path: &str) -> Result<Place> {
        let last = if path.ends_with('/') || path.ends_with("/.") { Last::Follow } else { Last::Keep };
        let place = self.resolve(tree, path, last)?;
        if place.entry.is_none() && place.dir().is_none() {
            return Err(self.missing(path));
        }
        Ok(place)
    }

    fn resolve(&self, tree: &Tree, path: &str, last: Last) -> Result<Place> {
        if path.is_empty() {
            return Err(Error::InvalidArgument("bad parameter: 'path' cannot be empty".to_owned()));
        }
        tree.resolve(&clean(path), last).map_err(|error| match &error {
            Error::Io { source, .. }
                if matches!(
                    source.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                self.missing(path)
            }
            _ => error,
        })
    }

    fn missing(&self, path: &str) -> Error {
        Error::NotFound(format!("Could not find the file {path} in container {}", self.container))
    }
}

/// The last part of a path as archives and descriptions have it: `/` for the root, `.` where the
/// path ends with it.
fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit('/').next() {
        None | Some("") => "/",
        Some(name) => name,
    }
}
