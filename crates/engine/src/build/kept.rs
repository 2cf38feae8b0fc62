//! Contexts that stay from one build to the next, so that only what changed is sent.
//!
//! ```text
//! caches/KEY/tree/    the files
//!            index    the boot of the host that it is of, and what the client says that the files are: opaque here, and
//!                     only there while they are whole
//! ```
//!
//! The client compares its folder with the index of what was sent before and sends what differs: the new index, names
//! that are gone, and an archive of the rest. An index is known by its digest; who sends for another one than there is
//! here is told so, and sends everything as if nothing were here.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use insula_base::Digest;
use insula_build::Part;
use insula_store::layers::{Limits, Onto, Whiteouts, unpack_onto};
use insula_store::{CacheOwner, Scratch};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest as _, Sha256};

use super::cache::Kind;
use super::caches::{Guard, key};
use super::take_in;
use crate::{Engine, Error, Result, blocking};

/// Bytes of an index, and of the names that are gone: some millions of files.
const INDEX_MAX: u64 = 1 << 30;
const TREE: &str = "tree";
const INDEX: &str = "index";
/// Whose the folder of a context is.
const OWNER: CacheOwner = CacheOwner { uid: 0, gid: 0, mode: 0o700 };

/// A context of which only changes come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptContext {
    /// Tells the client's folder from others; nobody else may guess it.
    pub id: String,
    /// The digest of the index that the changes are to; empty if everything comes.
    pub base: String,
    /// The digest of the index with them.
    pub index: String,
    /// For people.
    pub name: String,
}

/// One that is used by a build.
#[derive(Debug)]
pub(super) struct Kept {
    guard: Guard,
    tree: PathBuf,
    /// The digest of its index.
    pub(super) index: String,
    /// Files that came for the engine alone.
    pub(super) beside: Scratch,
    /// Something was sent of it.
    pub(super) renewed: bool,
}

impl Kept {
    pub(super) fn key(&self) -> &str {
        &self.guard.key
    }

    pub(super) fn tree(&self) -> &Path {
        &self.tree
    }
}

fn key_of(id: &str) -> String {
    key("context", id)
}

fn changed() -> Error {
    Error::Conflict("another context is kept here than the changes are to: send all of it".to_owned())
}

impl Engine {
    /// The index of a context that is kept here; `None` if it is the one that the client has.
    pub async fn context_index(&self, id: &str, known: &str) -> Result<Option<Vec<u8>>> {
        let (engine, key, known) = (self.clone(), key_of(id), known.to_owned());
        blocking(move || {
            let missing = || Error::NotFound("no such context is kept here".to_owned());
            let guard = engine.0.caches.try_beside(&key).ok_or_else(missing)?;
            let folder = engine.store().cache_path(&guard.key);
            let index = read_index(&folder, &engine.0.boot).ok_or_else(missing)?;
            Ok((digest(&index) != known).then_some(index))
        })
        .await
    }

    /// Brings a kept context up to date with what comes. Blocks.
    pub(super) fn keep_context(&self, source: &mut (impl Read + Send), wanted: &KeptContext) -> Result<Kept> {
        let kept = self.renewed(source, wanted);
        if let Err(Error::Conflict(_)) = &kept {
            // Who sends hears nothing before all of it was read.
            std::io::copy(source, &mut std::io::sink()).map_err(cut)?;
        }
        kept
    }

    fn renewed(&self, source: &mut (impl Read + Send), wanted: &KeptContext) -> Result<Kept> {
        let key = key_of(&wanted.id);
        let caches = &self.0.caches;
        let same = wanted.base == wanted.index && !wanted.index.is_empty();
        let guard = if same { caches.try_beside(&key) } else { caches.try_alone(&key) };
        let guard = guard.ok_or_else(changed)?;
        let path = self.store().cache_path(&key);
        let there = read_index(&path, &self.0.boot).map(|index| digest(&index)).unwrap_or_default();
        if there != wanted.base && !wanted.base.is_empty() {
            return Err(changed());
        }
        self.note_folder(&key, &format!("context {}", wanted.name), Kind::Context)?;
        let folder = caches.make(self.store(), &key, OWNER, |_| Ok(()))?;
        if !same {
            renew(source, &folder, wanted, &self.0.boot)?;
        }
        let beside = self.store().images().scratch()?;
        take_in(source, beside.path())?;
        let index = wanted.index.clone();
        Ok(Kept { guard, tree: folder.join(TREE), index, beside, renewed: !same })
    }
}

/// The index, if the files are what it says: what was not on the disk when the host went down is not believed.
fn read_index(folder: &Path, boot: &str) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(folder.join(INDEX)).ok()?;
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    (bytes[..end] == *boot.as_bytes()).then(|| bytes.split_off(end + 1))
}

fn digest(index: &[u8]) -> String {
    Digest::from_sha256(&Sha256::digest(index).into()).hex().to_owned()
}

/// Without an index until all of it is done.
fn renew(source: &mut (impl Read + Send), folder: &Path, wanted: &KeptContext, boot: &str) -> Result<()> {
    let (tree, index) = (folder.join(TREE), folder.join(INDEX));
    match std::fs::remove_file(&index) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("unlink", &index, error));
        }
        _ => {}
    }
    if wanted.base.is_empty() && tree.is_dir() {
        std::fs::remove_dir_all(&tree).map_err(|error| Error::io("remove", &tree, error))?;
    }
    if !tree.is_dir() {
        std::fs::create_dir(&tree).map_err(|error| Error::io("mkdir", &tree, error))?;
    }
    let root = File::open(&tree).map_err(|error| Error::io("open", &tree, error))?;
    let new = part(source, "its index")?;
    if digest(&new) != wanted.index {
        return Err(Error::InvalidArgument("the index of the context is not what was said".to_owned()));
    }
    for name in part(source, "what is gone of it")?.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        remove(&root, Path::new(std::ffi::OsStr::from_bytes(name)))?;
    }
    let mut changes = Part::new(source);
    let archive = crate::archive::decompressed(std::io::BufReader::with_capacity(128 << 10, &mut changes))?;
    unpack_onto(archive, root.as_fd(), &Limits::default(), Whiteouts::Ordinary, Onto::default())?;
    changes.finish().map_err(cut)?;
    let pending = folder.join(".index");
    let mut file = File::create(&pending).map_err(|error| Error::io("create", &pending, error))?;
    file.write_all(&[boot.as_bytes(), b"\n", &new].concat())
        .map_err(|error| Error::io("write", &pending, error))?;
    std::fs::rename(&pending, &index).map_err(|error| Error::io("rename", &index, error))
}

fn cut(error: std::io::Error) -> Error {
    Error::InvalidArgument(format!("reading the context: {error}"))
}

fn part(source: &mut impl Read, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut part = Part::new(source);
    (&mut part).take(INDEX_MAX + 1).read_to_end(&mut bytes).map_err(cut)?;
    if bytes.len() as u64 > INDEX_MAX {
        return Err(Error::InvalidArgument(format!("the context: {what} has more than {INDEX_MAX} bytes")));
    }
    part.finish().map_err(cut)?;
    Ok(bytes)
}

/// Removes a name below a folder; links lead nowhere. That it is not there is no error.
fn remove(root: &File, name: &Path) -> Result<()> {
    let fail = |error: rustix::io::Errno| Error::io("remove", name, error);
    let above = name.parent().unwrap_or(Path::new(""));
    let Some(last) = name.file_name() else {
        return Err(Error::InvalidArgument(format!("the context has no file {}", name.display())));
    };
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let parent = match rustix::fs::openat2(root, above, flags, Mode::empty(), resolve) {
        Ok(parent) => parent,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(fail(error)),
    };
    match rustix::fs::unlinkat(&parent, last, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {
            use std::os::fd::AsRawFd;
            // It follows no link at its end and none below.
            let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(last);
            std::fs::remove_dir_all(&path).map_err(|error| Error::io("remove", name, error))
        }
        Err(error) => Err(fail(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_removed_and_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        for path in [inside.join("a/b"), outside.join("x")] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::write(inside.join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink("../out", inside.join("link")).unwrap();
        let root = File::open(&inside).unwrap();
        for name in ["link/x", "../out/x", "/", ".."] {
            assert!(remove(&root, Path::new(name)).is_err(), "{name}");
        }
        assert!(outside.join("x").is_dir());
        for name in ["link", "a", "a/b/file", "absent", "absent/too"] {
            remove(&root, Path::new(name)).unwrap();
        }
        assert_eq!(inside.read_dir().unwrap().count(), 0);
        assert!(outside.join("x").is_dir());
    }
}
