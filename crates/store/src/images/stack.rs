//! What the layers of an image make together, which of their bytes nobody sees any more, and what differs
//! between two images.
//!
//! Layers are applied as overlayfs merges them (Documentation/filesystems/overlayfs.rst): a character device 0/0
//! takes away what is below it, and so does an opaque folder.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, fgetxattr};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, readlinkat, statat};

use super::{Image, ImageKind, Images};
use crate::{Error, Result};

/// Files of one image.
const FILES_MAX: usize = 4 << 20;
const PIECE: usize = 128 << 10;

/// How a path of one image differs from that of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    Added,
    Changed,
    Removed,
}

/// A file as a layer has it.
#[derive(Debug, Clone)]
struct Entry {
    layer: usize,
    stat: Stat,
    link: Option<Vec<u8>>,
}

/// Paths without the slash in front, and what is there.
type Tree = BTreeMap<Vec<u8>, Entry>;

#[derive(Default)]
struct Merged {
    tree: Tree,
    /// How many names an inode of a layer has that are seen.
    names: HashMap<(usize, u64), usize>,
    wasted: Vec<u64>,
}

impl Images {
    /// Bytes of each layer of an image that upper layers replace or remove, lowest first.
    pub fn wasted(&self, image: &Image) -> Result<Vec<u64>> {
        let _lease = self.lease_all(image.layers.iter().map(|layer| layer.diff_id.clone()).collect());
        Ok(merged(&stored(image)?)?.wasted)
    }

    /// What `to` has otherwise than `from`, by path. Times are not compared, nor are extended attributes.
    pub fn compare(&self, from: &Image, to: &Image) -> Result<Vec<(PathBuf, Difference)>> {
        let layers = [from, to].into_iter().flat_map(|image| &image.layers);
        let _lease = self.lease_all(layers.map(|layer| layer.diff_id.clone()).collect());
        let (before, after) = (stored(from)?, stored(to)?);
        let (old, new) = (merged(&before)?.tree, merged(&after)?.tree);
        let mut found = Vec::new();
        for (path, entry) in &new {
            match old.get(path) {
                None => found.push((path, Difference::Added)),
                Some(other) if !same(path, (other, &before), (entry, &after))? => {
                    found.push((path, Difference::Changed));
                }
                Some(_) => {}
            }
        }
        found.extend(
            old.keys().filter(|path| !new.contains_key(*path)).map(|path| (path, Difference::Removed)),
        );
        found.sort();
        Ok(found.into_iter().map(|(path, kind)| (Path::new("/").join(as_path(path)), kind)).collect())
    }
}

/// The folders of the layers, open.
fn stored(image: &Image) -> Result<Vec<(PathBuf, OwnedFd)>> {
    if let ImageKind::Artifact { kind } = &image.kind {
        return Err(Error::Unsupported(format!(
            "{} is an artifact of type {kind:?} and has no layers",
            image.id
        )));
    }
    if image.kind != ImageKind::Stored {
        return Err(Error::Unsupported(format!("image {} is the host's own and has no layers", image.id)));
    }
    let open = |path: &PathBuf| {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        Ok((path.clone(), file.into()))
    };
    image.layers.iter().map(|layer| open(&layer.path)).collect()
}

fn merged(layers: &[(PathBuf, OwnedFd)]) -> Result<Merged> {
    let mut merged = Merged { wasted: vec![0; layers.len()], ..Merged::default() };
    for (number, (path, root)) in layers.iter().enumerate() {
        merged.apply(number, path, root)?;
    }
    Ok(merged)
}

impl Merged {
    fn apply(&mut self, layer: usize, path: &Path, root: &OwnedFd) -> Result<()> {
        let mut folders = vec![Vec::new()];
        while let Some(folder) = folders.pop() {
            let failed =
                |call, error: rustix::io::Errno| Error::io(call, &path.join(as_path(&folder)), error);
            let open = open_below(root, &folder, OFlags::DIRECTORY).map_err(|e| failed("openat2", e))?;
            for entry in Dir::read_from(&open).map_err(|e| failed("readdir", e))? {
                let entry = entry.map_err(|e| failed("readdir", e))?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let stat =
                    statat(&open, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed("fstatat", e))?;
                let mut at = folder.clone();
                if !at.is_empty() {
                    at.push(b'/');
                }
                at.extend_from_slice(name.to_bytes());
                let kind = FileType::from_raw_mode(stat.st_mode);
                let link = match kind {
                    FileType::Symlink => {
                        let link =
                            readlinkat(&open, name, Vec::new()).map_err(|e| failed("readlinkat", e))?;
                        Some(link.into_bytes())
                    }
                    _ => None,
                };
                if kind == FileType::Directory {
                    let inside = open_below(&open, name.to_bytes(), OFlags::DIRECTORY);
                    let inside = inside.map_err(|e| failed("openat2", e))?;
                    if is_opaque(&inside) {
                        self.take_below(&at);
                    }
                    folders.push(at.clone());
                }
                self.put(at, Entry { layer, stat, link });
            }
            if self.tree.len() > FILES_MAX {
                return Err(Error::Limit { what: "the number of files".to_owned(), limit: FILES_MAX as u64 });
            }
        }
        Ok(())
    }

    fn put(&mut self, path: Vec<u8>, entry: Entry) {
        let folder = kind(&entry) == FileType::Directory;
        let was_folder = self.tree.get(&path).is_some_and(|old| kind(old) == FileType::Directory);
        if let Some(old) = self.tree.remove(&path) {
            self.let_go(&old);
        }
        if was_folder && !folder {
            self.take_below(&path);
        }
        // A whiteout is nothing by itself.
        if kind(&entry) == FileType::CharacterDevice && entry.stat.st_rdev == 0 {
            return;
        }
        *self.names.entry((entry.layer, entry.stat.st_ino)).or_default() += 1;
        self.tree.insert(path, entry);
    }

    fn take_below(&mut self, folder: &[u8]) {
        let (first, after) = ([folder, b"/"].concat(), [folder, b"0"].concat());
        let range = (Bound::Included(first), Bound::Excluded(after));
        let paths: Vec<Vec<u8>> = self.tree.range(range).map(|(path, _)| path.clone()).collect();
        for path in paths {
            if let Some(old) = self.tree.remove(&path) {
                self.let_go(&old);
            }
        }
    }

    fn let_go(&mut self, entry: &Entry) {
        let Some(names) = self.names.get_mut(&(entry.layer, entry.stat.st_ino)) else { return };
        *names -= 1;
        if *names == 0 && kind(entry) == FileType::RegularFile {
            self.wasted[entry.layer] += entry.stat.st_size.unsigned_abs();
        }
    }
}

fn kind(entry: &Entry) -> FileType {
    FileType::from_raw_mode(entry.stat.st_mode)
}

fn is_opaque(folder: impl AsFd) -> bool {
    let mut value = [0u8; 8];
    fgetxattr(folder, insula_sys::process::overlay_opaque(), &mut value[..])
        .is_ok_and(|count| &value[..count] == b"y")
}

/// Links are not followed: neither is one of a layer.
fn open_below(root: impl AsFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn as_path(path: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt as _;
    Path::new(std::ffi::OsStr::from_bytes(path))
}

type Side<'a> = (&'a Entry, &'a [(PathBuf, OwnedFd)]);

fn same(path: &[u8], old: Side<'_>, new: Side<'_>) -> Result<bool> {
    let (a, b) = (&old.0.stat, &new.0.stat);
    if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) {
        return Ok(true);
    }
    let regular = kind(old.0) == FileType::RegularFile;
    let alike = (a.st_mode, a.st_uid, a.st_gid, a.st_rdev, &old.0.link)
        == (b.st_mode, b.st_uid, b.st_gid, b.st_rdev, &new.0.link);
    if !alike || (regular && a.st_size != b.st_size) {
        return Ok(false);
    }
    if !regular || a.st_size == 0 {
        return Ok(true);
    }
    same_content(open_file(path, old)?, open_file(path, new)?, &old.1[old.0.layer].0.join(as_path(path)))
}

fn open_file(path: &[u8], (entry, layers): Side<'_>) -> Result<File> {
    let (folder, root) = &layers[entry.layer];
    let failed = |call, error| Error::io(call, &folder.join(as_path(path)), error);
    let file = open_below(root, path, OFlags::empty()).map_err(|e| failed("openat2", e))?;
    Ok(file.into())
}

fn same_content(mut one: File, mut other: File, path: &Path) -> Result<bool> {
    let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let count = one.read(&mut a).map_err(|e| Error::io("read", path, e))?;
        if count == 0 {
            return Ok(true);
        }
        match other.read_exact(&mut b[..count]) {
            Ok(()) if a[..count] == b[..count] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(Error::io("read", path, error)),
        }
    }
}
