//! Files that are the same in several layers, stored once.
//!
//! ```text
//! layers/files/<32 hex>        a second name of each file that may be shared
//! layers/recipes/<64>/files    which of them a layer has: 16 bytes each
//! ```
//!
//! The name is made of all that an inode holds beside its content (size, owner, mode, time, attributes), and of
//! the path in the layer. Who unpacks a file with that name compares what comes with what is there, and links
//! instead of writing as long as they are the same. Bytes are compared and no digests, so a file that was
//! damaged is never given to another layer: the one that comes takes its place here.
//!
//! The path is in the name so that no two names of a file are ever seen in one stack: tar(1) and cp(1) in a
//! container would take them for hard links. For the same reason only what programs consist of is shared
//! ([`OWN`]): overlayfs gives a file another inode number when it is first written to if it has several names
//! (Documentation/filesystems/overlayfs.rst, "Inode properties"), and logrotate(8) leaves such files alone.
//!
//! Who is last to remove a layer's name of a file removes the one here too. A file with no name but this one is
//! nobody's; the kernel counts, so nothing else has to, and a crash leaves nothing that a look at the count
//! would not find. Nobody writes to a file of a layer: overlayfs copies before it writes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, linkat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::place::{self, Spot};
use crate::archive::{Archive, Entry, EntryKind};
use crate::recipe::Recording;
use crate::root::make_private;
use crate::{Error, Result};

const FOLDER: &str = "files";
/// The names that a layer has here, beside its recipe.
const LIST: &str = "files";
/// A smaller file takes a block all the same: 59 of 100 files of a distribution are, and 1 of 100 bytes.
const SMALLEST: u64 = 4096;
/// What is written to where it is, or read by who minds a second name: data, settings, logs.
const OWN: [&[u8]; 8] = [b"etc", b"home", b"mnt", b"root", b"run", b"srv", b"tmp", b"var"];
const KEY: usize = 16;
/// Bytes that are compared at a time.
const PIECE: usize = 128 << 10;

/// What a shared file is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key([u8; KEY]);

impl Key {
    /// Of what goes to this path, if it may be shared.
    fn of(path: &[u8], entry: &Entry) -> Option<Self> {
        let top = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        let shareable = entry.kind == EntryKind::File
            && entry.sparse.is_none()
            && entry.size >= SMALLEST
            && !OWN.contains(&top);
        if !shareable {
            return None;
        }
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(path);
        part(&entry.size.to_le_bytes());
        part(&[entry.mode, entry.uid, entry.gid, entry.mtime.1].map(u32::to_le_bytes).concat());
        part(&entry.mtime.0.to_le_bytes());
        let mut attributes: Vec<_> = place::kept(entry).collect();
        attributes.sort_unstable();
        for (name, value) in attributes {
            part(name);
            part(value);
        }
        let digest = hash.finalize();
        let mut key = [0; KEY];
        key.copy_from_slice(&digest[..KEY]);
        Some(Self(key))
    }

    fn name(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The names that one layer has; for who removes them again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys(Arc<Mutex<Vec<Key>>>);

impl Keys {
    fn add(&self, key: Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(key);
    }

    pub(crate) fn all(&self) -> Vec<Key> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes them beside a recipe.
    pub(crate) fn write(&self, recipe: &Path) -> Result<()> {
        let bytes: Vec<u8> = self.all().iter().flat_map(|key| key.0).collect();
        if bytes.is_empty() {
            return Ok(());
        }
        let path = recipe.join(LIST);
        fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))
    }

    /// Those that are beside a recipe; none where it has none, or there is no recipe.
    pub(crate) fn read(recipe: &Path) -> Result<Vec<Key>> {
        let path = recipe.join(LIST);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes.as_chunks().0.iter().map(|bytes| Key(*bytes)).collect()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Vec::new())
            }
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }
}

/// The folder of the second names.
#[derive(Debug)]
pub(crate) struct Files {
    path: PathBuf,
    folder: File,
    on: AtomicBool,
}

impl Files {
    pub(crate) fn open(layers: &Path) -> Result<Self> {
        let path = layers.join(FOLDER);
        make_private(&path)?;
        let folder = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        Ok(Self { path, folder, on: AtomicBool::new(true) })
    }

    /// Whether layers that come share files with others.
    pub(crate) fn share(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// For one layer that is about to be unpacked; what it has is noted in `keys`.
    pub(crate) fn begin(self: &Arc<Self>, keys: &Keys) -> Option<Sharing> {
        let on = self.on.load(Ordering::Relaxed);
        on.then(|| Sharing { files: self.clone(), keys: keys.clone(), piece: Vec::new() })
    }

    /// Removes those names that are the last ones of their files.
    pub(crate) fn release(&self, keys: &[Key]) -> Result<()> {
        keys.iter().try_for_each(|key| self.release_one(Path::new(&key.name())).map(drop))
    }

    /// Looks at all of them; how many were removed.
    pub(crate) fn sweep(&self) -> Result<u64> {
        let mut removed = 0;
        for name in self.names()? {
            removed += u64::from(self.release_one(Path::new(&name))?);
        }
        Ok(removed)
    }

    /// Those of files that have no other name.
    pub(crate) fn unused(&self) -> Result<Vec<OsString>> {
        let mut unused = Vec::new();
        for name in self.names()? {
            if self.is_last(Path::new(&name))? {
                unused.push(name);
            }
        }
        Ok(unused)
    }

    fn names(&self) -> Result<Vec<OsString>> {
        let fail = |e| Error::io("readdir", &self.path, e);
        let entries = fs::read_dir(&self.path).map_err(fail)?;
        entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(fail)).collect()
    }

    fn is_last(&self, name: &Path) -> Result<bool> {
        match statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(stat.st_nlink == 1),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::io("lstat", &self.path.join(name), error)),
        }
    }

    /// Another layer may get the file between the look and the removal: then it is not shared any more.
    fn release_one(&self, name: &Path) -> Result<bool> {
        if !self.is_last(name)? {
            return Ok(false);
        }
        match unlinkat(&self.folder, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::io("unlink", &self.path.join(name), error)),
        }
    }

    /// The file that was there before with this key, if it is as the key says.
    fn find(&self, key: Key, entry: &Entry) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.folder, key.name(), flags, Mode::empty()).ok()?);
        let meta = file.metadata().ok()?;
        let fits = FileType::from_raw_mode(meta.mode()) == FileType::RegularFile
            && meta.len() == entry.size
            && meta.mode() & 0o7777 == entry.mode & 0o7777
            && (meta.uid(), meta.gid()) == (entry.uid, entry.gid)
            && (meta.mtime(), meta.mtime_nsec()) == (entry.mtime.0, i64::from(entry.mtime.1));
        fits.then_some(file)
    }

    /// Gives a file that was just written its name here. One that has it already stays, unless it is to be
    /// replaced.
    fn add(&self, key: Key, spot: Spot<'_>, replace: bool) -> Result<(), Errno> {
        let name = key.name();
        match linkat(spot.parent, spot.name, &self.folder, &name, AtFlags::empty()) {
            Err(Errno::EXIST) if replace => {}
            Err(Errno::EXIST) => return Ok(()),
            done => return done,
        }
        let new = format!("{name}.{}", insula_base::random_hex(4));
        linkat(spot.parent, spot.name, &self.folder, &new, AtFlags::empty())?;
        renameat(&self.folder, &new, &self.folder, &name)
    }
}

/// One layer that is being unpacked.
#[derive(Debug)]
pub(crate) struct Sharing {
    files: Arc<Files>,
    keys: Keys,
    piece: Vec<u8>,
}

/// A file that may be shared.
#[derive(Debug)]
pub(super) struct Shareable {
    key: Key,
    /// One that may be the same.
    pub(super) known: Option<File>,
}

/// How much of what comes is what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Same {
    All,
    /// The first bytes.
    Begins(u64),
}

impl Sharing {
    /// Whether what goes to this path may be shared.
    pub(super) fn look(&self, path: &[u8], entry: &Entry) -> Option<Shareable> {
        let key = Key::of(path, entry)?;
        Some(Shareable { key, known: self.files.find(key, entry) })
    }

    /// Reads the member as long as it is what is in `known`.
    pub(super) fn compare<R: BufRead>(
        &mut self,
        known: &File,
        archive: &mut Archive<Recording<R>>,
    ) -> Result<Same> {
        self.piece.resize(PIECE, 0);
        let mut offset = 0;
        loop {
            let bytes = archive.fill()?;
            if bytes.is_empty() {
                return Ok(Same::All);
            }
            let count = bytes.len().min(PIECE);
            let read = known.read_exact_at(&mut self.piece[..count], offset);
            // One that cannot be read is as good as another.
            if read.is_err() || self.piece[..count] != bytes[..count] {
                return Ok(Same::Begins(offset));
            }
            archive.consume(count);
            offset += count as u64;
        }
    }

    /// Makes `known` appear at `spot`; false if that cannot be: it has as many names as the file system allows,
    /// or was just removed.
    pub(super) fn link(&self, shareable: &Shareable, known: &File, spot: Spot<'_>) -> Result<bool, Errno> {
        // Not by its name: another file may have that by now.
        let path = format!("/proc/self/fd/{}", known.as_fd().as_raw_fd());
        match linkat(CWD, path, spot.parent, spot.name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => {
                self.keys.add(shareable.key);
                Ok(true)
            }
            Err(Errno::MLINK | Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has others share a file that was just written.
    pub(super) fn offer(&self, shareable: &Shareable, spot: Spot<'_>) -> Result<(), Errno> {
        match self.files.add(shareable.key, spot, shareable.known.is_some()) {
            Ok(()) => {
                self.keys.add(shareable.key);
                Ok(())
            }
            // Swept meanwhile; or a file system without hard links, where nothing can be shared.
            Err(Errno::NOENT | Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Writes the first bytes of one file to the beginning of another.
pub(super) fn copy_start(mut from: &File, mut to: &File, length: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(0))?;
    let copied = io::copy(&mut io::Read::take(&mut from, length), &mut to)?;
    if copied == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
