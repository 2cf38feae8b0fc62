//! One folder of a root file system: the folders of all layers that are merged into it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::{Errno, Result};

/// Marks a folder whose namesakes in lower layers do not count.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// The folders that make it up, the topmost first.
#[derive(Debug)]
pub(crate) struct Dir {
    parts: Vec<Part>,
    /// Merged by overlayfs' rules; otherwise there is one folder, and what is in it counts as it is.
    merged: bool,
}

#[derive(Debug)]
struct Part {
    /// The layer's number from above; the writable one is 0.
    layer: usize,
    folder: OwnedFd,
}

/// What a name in a folder stands for.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) stat: Stat,
    /// The folder, when it is one.
    pub(crate) dir: Option<Dir>,
    /// Which of the parent's parts has it.
    part: usize,
}

impl Entry {
    /// A folder of the host that is mounted in the container.
    pub(super) fn mounted(source: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, source, flags, Mode::empty())?;
        Ok(Self { stat: rustix::fs::fstat(&folder)?, dir: Some(Dir::single(folder)), part: 0 })
    }

    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

impl Dir {
    pub(super) fn single(folder: OwnedFd) -> Self {
        Self { parts: vec![Part { layer: 0, folder }], merged: false }
    }

    /// The topmost first.
    pub(crate) fn merged(folders: Vec<OwnedFd>) -> Self {
        Self::numbered(0, folders)
    }

    /// The same without a writable layer.
    pub(super) fn layers(folders: Vec<OwnedFd>) -> Self {
        Self::numbered(1, folders)
    }

    fn numbered(first: usize, folders: Vec<OwnedFd>) -> Self {
        let parts = (first..).zip(folders).map(|(layer, folder)| Part { layer, folder }).collect();
        Self { parts, merged: true }
    }

    pub(super) fn is_merged(&self) -> bool {
        self.merged
    }

    /// The same folder, held once more.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            parts.push(Part { layer: part.layer, folder: rustix::io::fcntl_dupfd_cloexec(&part.folder, 0)? });
        }
        Ok(Self { parts, merged: self.merged })
    }

    /// The folder of the writable layer, if it has been made there.
    pub(crate) fn upper(&self) -> Option<BorrowedFd<'_>> {
        self.parts.first().filter(|part| part.layer == 0).map(|part| part.folder.as_fd())
    }

    /// The folder that decides on owner, mode and times.
    pub(crate) fn topmost(&self) -> Option<BorrowedFd<'_>> {
        self.parts.first().map(|part| part.folder.as_fd())
    }

    /// Puts a folder of the writable layer on top.
    pub(super) fn add_upper(&mut self, folder: OwnedFd) {
        self.parts.insert(0, Part { layer: 0, folder });
    }

    /// The same without the image's layers.
    pub(super) fn only_upper(mut self) -> Self {
        self.parts.retain(|part| part.layer == 0);
        self
    }

    /// What `name` stands for; `None` if nothing is there.
    pub(crate) fn lookup(&self, name: &OsStr) -> Result<Option<Entry>> {
        let mut found: Option<Entry> = None;
        for (number, part) in self.parts.iter().enumerate() {
            let stat = match rustix::fs::statat(&part.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => return Err(error),
            };
            if self.merged && is_whiteout(&stat) {
                break;
            }
            let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            match (&mut found, folder) {
                // A file below a folder ends the merge.
                (Some(_), false) => break,
                (None, false) => return Ok(Some(Entry { stat, dir: None, part: number })),
                (entry, true) => {
                    let opened = self.open_folder(part, name)?;
                    let opaque = self.merged && is_opaque(opened.as_ref())?;
                    let parts = opened.into_iter().map(|folder| Part { layer: part.layer, folder });
                    match entry {
                        Some(Entry { dir: Some(dir), .. }) => dir.parts.extend(parts),
                        _ => {
                            let dir = Dir { parts: parts.collect(), merged: self.merged };
                            *entry = Some(Entry { stat, dir: Some(dir), part: number });
                        }
                    }
                    if opaque {
                        break;
                    }
                }
            }
        }
        Ok(found)
    }

    /// `None` for a folder of a layer that something else is mounted on: overlayfs does not cross it.
    fn open_folder(&self, part: &Part, name: &OsStr) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        if self.merged {
            resolve |= ResolveFlags::NO_XDEV;
        }
        match rustix::fs::openat2(&part.folder, name, flags, Mode::empty(), resolve) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::XDEV) if self.merged => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where the folders are, the topmost first: for folders that nobody moves.
    pub(crate) fn paths(&self) -> std::io::Result<Vec<PathBuf>> {
        self.parts.iter().map(|part| path_of(part.folder.as_fd())).collect()
    }

    /// Where what [`Dir::lookup`] found is.
    pub(crate) fn path_of(&self, name: &OsStr, entry: &Entry) -> std::io::Result<PathBuf> {
        Ok(path_of(self.folder_of(entry))?.join(name))
    }

    /// Every name, sorted.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        // A name that a higher layer hides stays in the map and is dropped at the end.
        let mut names: BTreeMap<OsString, bool> = BTreeMap::new();
        let mut buffer = Vec::with_capacity(32 << 10);
        for part in &self.parts {
            let mut entries = RawDir::new(reopened(&part.folder)?, buffer.spare_capacity_mut());
            while let Some(entry) = entries.next() {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let name = OsString::from_vec(name.to_vec());
                if names.contains_key(&name) {
                    continue;
                }
                let visible = !(self.merged
                    && matches!(entry.file_type(), FileType::CharacterDevice | FileType::Unknown)
                    && is_whiteout_at(part.folder.as_fd(), &name)?);
                names.insert(name, visible);
            }
        }
        Ok(names.into_iter().filter(|(_, visible)| *visible).map(|(name, _)| name).collect())
    }

    /// Every name of the topmost layer's folder, whiteouts included, sorted.
    pub(crate) fn raw_names(&self) -> Result<Vec<OsString>> {
        let Some(part) = self.parts.first() else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(reopened(&part.folder)?, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(OsString::from_vec(entry.file_name().to_bytes().to_vec()));
            }
        }
        names.sort();
        Ok(names)
    }

    /// What the topmost layer's folder has under `name`, a whiteout included.
    pub(crate) fn raw_lookup(&self, name: &OsStr) -> Result<Option<(Stat, Option<Self>)>> {
        let Some(part) = self.parts.first() else { return Ok(None) };
        let stat = match rustix::fs::statat(&part.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let folder = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.open_folder(part, name)?,
            _ => None,
        };
        let dir = folder
            .map(|folder| Self { parts: vec![Part { layer: part.layer, folder }], merged: self.merged });
        Ok(Some((stat, dir)))
    }

    /// Whether the topmost layer's folder hides its namesakes below.
    pub(crate) fn is_opaque(&self) -> Result<bool> {
        is_opaque(self.parts.first().map(|part| &part.folder))
    }

    /// Opens the regular file that [`Dir::lookup`] found, for reading. [`Errno::NXIO`] if there is something
    /// else by now: it is looked at before it is opened, for opening a device may set it going.
    pub(crate) fn open(&self, name: &OsStr, entry: &Entry) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat(self.folder_of(entry), name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&found)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::NXIO);
        }
        let same = format!("/proc/self/fd/{}", found.as_raw_fd());
        rustix::fs::openat(CWD, same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// The target of a symbolic link.
    pub(crate) fn read_link(&self, name: &OsStr, entry: &Entry) -> Result<OsString> {
        let target = rustix::fs::readlinkat(self.folder_of(entry), name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// The folder that `entry` was found in.
    pub(crate) fn folder_of(&self, entry: &Entry) -> BorrowedFd<'_> {
        self.parts[entry.part].folder.as_fd()
    }
}

fn path_of(folder: BorrowedFd<'_>) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

/// A descriptor of its own: reading a folder moves its offset.
fn reopened(folder: &OwnedFd) -> Result<OwnedFd> {
    rustix::fs::openat(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A character device 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_whiteout_at(folder: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    match rustix::fs::statat(folder, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(is_whiteout(&stat)),
        Err(Errno::NOENT) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether the folder hides its namesakes below.
fn is_opaque(folder: Option<&OwnedFd>) -> Result<bool> {
    let Some(folder) = folder else { return Ok(false) };
    for attribute in OPAQUE {
        let mut value = [0u8; 2];
        match rustix::fs::fgetxattr(folder, attribute, &mut value[..]) {
            Ok(1) if value[0] == b'y' => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
