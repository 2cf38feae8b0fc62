//! `COPY` and `ADD`: which files go where, from trees to the entries of a layer, without a container.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use insula_build::{CopyOp, Ignore, Mode};
use rustix::fs::{FileType, major, minor};
use tar::EntryType;

use super::sources::{Picked, pick};
use crate::tree::{Dir, Entry, Last, Tree};
use crate::{Error, Result};

/// Deeper trees are not walked: each level holds descriptors.
const DEPTH_MAX: usize = 512;
/// Entries of one copy.
const ENTRIES_MAX: usize = 4 << 20;

/// Whose the copies are, and who may do what with them.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes {
    /// User and group; those of the source without it.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<Mode>,
}

/// What new folders and files are dated to, and the latest that others are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Seconds since 1970.
    pub(super) now: u64,
    pub(super) latest: Option<u64>,
}

/// One thing to be copied.
#[derive(Debug)]
pub(super) struct Item<'a> {
    pub(super) tree: &'a Tree,
    pub(super) picked: Picked,
    /// What is left out of it.
    pub(super) ignore: &'a Ignore,
    pub(super) attributes: Attributes,
    /// What was in an archive: it goes into a folder.
    pub(super) unpacked: bool,
}

/// One entry of the layer.
#[derive(Debug)]
pub(super) struct Planned {
    /// Number of the tree that it comes from.
    pub(super) tree: usize,
    /// Without a slash in front.
    pub(super) to: Vec<u8>,
    /// In the source's tree; empty for what has no source.
    pub(super) from: PathBuf,
    pub(super) content: Content,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    /// Seconds.
    pub(super) modified: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Folder,
    File,
    Text(Vec<u8>),
    Link(Vec<u8>),
    /// Another name of an entry before.
    Hard(Vec<u8>),
    /// A device or a FIFO.
    Node {
        kind: EntryType,
        major: u32,
        minor: u32,
    },
}

/// Everything that is to be copied, in the order of the archive.
#[derive(Debug)]
pub(super) struct Copying<'a> {
    pub(super) trees: Vec<&'a Tree>,
    pub(super) entries: Vec<Planned>,
}

/// One source on its way.
struct Walk<'a, 'b> {
    item: &'b Item<'a>,
    number: usize,
    target: &'b Tree,
    times: Times,
    /// Files with several names: the first.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a> Copying<'a> {
    /// What a `COPY` of one tree copies.
    pub(super) fn plan(
        op: &CopyOp,
        source: &'a Tree,
        target: &Tree,
        ignore: &'a Ignore,
        attributes: Attributes,
        times: Times,
    ) -> Result<Self> {
        let mut items = Vec::new();
        for path in &op.transfer.sources.paths {
            items.extend(pick(op, path, source, ignore)?.into_iter().map(|picked| Item {
                tree: source,
                picked,
                ignore,
                attributes: attributes.clone(),
                unpacked: false,
            }));
        }
        Self::of(op, &items, target, attributes, times)
    }

    /// Looks at the sources and at what is at the destination.
    pub(super) fn of(
        op: &CopyOp,
        items: &[Item<'a>],
        target: &Tree,
        attributes: Attributes,
        times: Times,
    ) -> Result<Self> {
        let mut copying = Self { trees: items.iter().map(|item| item.tree).collect(), entries: Vec::new() };
        let heredocs = &op.transfer.sources.heredocs;
        let several = items.len() + heredocs.len() > 1;
        let there = resolved(target, &op.destination)?;
        let slash = op.destination.ends_with('/');
        if several && !slash && op.transfer.sources.paths.len() > 1 {
            return Err(Error::InvalidArgument(
                "when copying more than one source file, the destination must be a directory and end with a /"
                    .to_owned(),
            ));
        }
        let folder = slash || there.folder || several || items.iter().any(|item| item.unpacked);
        let owner = attributes.owner.unwrap_or((0, 0));
        copying.parents(target, &there.path, folder, owner, times.now)?;
        for (number, item) in items.iter().enumerate() {
            let mut walk = Walk { item, number, target, times, links: HashMap::new() };
            copying.add(&mut walk, &there.path, folder, owner)?;
        }
        for heredoc in heredocs {
            let to = if folder { there.path.join(&heredoc.name) } else { there.path.clone() };
            copying.entries.push(Planned {
                tree: 0,
                to: relative(&to),
                from: PathBuf::new(),
                content: Content::Text(heredoc.content.clone().into_bytes()),
                mode: attributes.mode.as_ref().map_or(0o644, |mode| mode.of(0o644, false)),
                owner,
                modified: times.now,
            });
        }
        Ok(copying)
    }

    /// Folders above the destination, and the destination itself if it is one, that are not there.
    fn parents(
        &mut self,
        target: &Tree,
        path: &Path,
        folder: bool,
        owner: (u32, u32),
        now: u64,
    ) -> Result<()> {
        let last = if folder { Some(path) } else { path.parent() };
        let mut missing = Vec::new();
        for above in last.into_iter().flat_map(Path::ancestors).filter(|above| *above != Path::new("/")) {
            let there = resolved(target, &above.to_string_lossy())?;
            if there.file {
                return Err(Error::InvalidArgument(format!("{} is not a folder", above.display())));
            }
            if there.folder {
                break;
            }
            missing.push(above.to_owned());
        }
        self.entries.extend(missing.into_iter().rev().map(|path| Planned {
            tree: 0,
            to: relative(&path),
            from: PathBuf::new(),
            content: Content::Folder,
            mode: 0o755,
            owner,
            modified: now,
        }));
        Ok(())
    }

    fn add(&mut self, walk: &mut Walk<'a, '_>, base: &Path, folder: bool, owner: (u32, u32)) -> Result<()> {
        let (place, below) = (&walk.item.picked.place, &walk.item.picked.below);
        let to = joined(base, below);
        match place.dir() {
            Some(dir) => {
                self.parents(walk.target, &to, true, owner, walk.times.now)?;
                self.folder(walk, dir, &place.path, &to, 0)
            }
            None => {
                let entry = place.entry.as_ref().ok_or_else(|| missing(&place.path))?;
                let name = if folder { walk.item.picked.name.clone() } else { OsString::new() };
                if !below.as_os_str().is_empty() {
                    self.parents(walk.target, &to, true, owner, walk.times.now)?;
                }
                let to = if name.is_empty() { to } else { to.join(name) };
                let parent = place.parent().ok_or_else(|| missing(&place.path))?;
                self.leaf(walk, (parent, &place.name, entry), &place.path, &to)
            }
        }
    }

    fn folder(
        &mut self,
        walk: &mut Walk<'a, '_>,
        dir: &Dir,
        from: &Path,
        to: &Path,
        depth: usize,
    ) -> Result<()> {
        let fail = |error| Error::io("read the folder", from, error);
        if depth > DEPTH_MAX || self.entries.len() > ENTRIES_MAX {
            return Err(fail(rustix::io::Errno::NAMETOOLONG));
        }
        for name in dir.names().map_err(fail)? {
            let Some(entry) = walk.item.tree.look(dir, from, &name).map_err(fail)? else { continue };
            let (below, inner) = (from.join(&name), to.join(&name));
            let relative_path = below.to_string_lossy();
            let ignored = walk.item.ignore.ignores(&relative_path);
            if ignored && !(entry.dir.is_some() && walk.item.ignore.may_keep_below(&relative_path)) {
                continue;
            }
            match &entry.dir {
                Some(inside) => {
                    if !ignored {
                        self.entries.push(walk.planned(&entry, &below, &inner, Content::Folder));
                    }
                    self.folder(walk, inside, &below, &inner, depth + 1)?;
                }
                None if ignored => {}
                None => self.leaf(walk, (dir, &name, &entry), &below, &inner)?,
            }
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        walk: &mut Walk<'a, '_>,
        (parent, name, entry): (&Dir, &OsStr, &Entry),
        from: &Path,
        to: &Path,
    ) -> Result<()> {
        let content = match entry.kind() {
            FileType::RegularFile => walk.file(entry, to),
            FileType::Symlink => {
                let link = parent.read_link(name, entry).map_err(|e| Error::io("readlink", from, e))?;
                Content::Link(link.as_bytes().to_vec())
            }
            FileType::CharacterDevice => node(EntryType::Char, entry),
            FileType::BlockDevice => node(EntryType::Block, entry),
            FileType::Fifo => node(EntryType::Fifo, entry),
            // A layer has no place for sockets.
            FileType::Socket => return Ok(()),
            _ => return Err(missing(from)),
        };
        if resolved(walk.target, &to.to_string_lossy()).is_ok_and(|there| there.folder) {
            return Err(Error::InvalidArgument(format!(
                "cannot copy the file {} over the folder {}",
                from.display(),
                to.display()
            )));
        }
        self.entries.push(walk.planned(entry, from, to, content));
        Ok(())
    }
}

impl Walk<'_, '_> {
    fn file(&mut self, entry: &Entry, to: &Path) -> Content {
        if entry.stat.st_nlink < 2 {
            return Content::File;
        }
        let identity = (entry.stat.st_dev, entry.stat.st_ino);
        match self.links.get(&identity) {
            Some(first) => Content::Hard(first.clone()),
            None => {
                self.links.insert(identity, relative(to));
                Content::File
            }
        }
    }

    fn planned(&self, entry: &Entry, from: &Path, to: &Path, content: Content) -> Planned {
        let (stat, attributes) = (&entry.stat, &self.item.attributes);
        let mode = stat.st_mode & 0o7777;
        let folder = content == Content::Folder;
        let changed = attributes.mode.as_ref().filter(|_| !matches!(content, Content::Link(_)));
        let modified = u64::try_from(stat.st_mtime).unwrap_or(0);
        Planned {
            tree: self.number,
            to: relative(to),
            from: from.to_owned(),
            mode: changed.map_or(mode, |change| change.of(mode, folder)),
            owner: attributes.owner.unwrap_or((stat.st_uid, stat.st_gid)),
            modified: self.times.latest.map_or(modified, |latest| modified.min(latest)),
            content,
        }
    }
}

fn node(kind: EntryType, entry: &Entry) -> Content {
    let device = entry.stat.st_rdev;
    match kind {
        EntryType::Fifo => Content::Node { kind, major: 0, minor: 0 },
        _ => Content::Node { kind, major: major(device), minor: minor(device) },
    }
}

/// Where a path leads, as far as there is something.
pub(super) struct There {
    /// Free of links as far as it exists.
    pub(super) path: PathBuf,
    pub(super) folder: bool,
    /// Something else than a folder.
    file: bool,
}

/// Follows the links of what exists; the rest is to be made.
pub(super) fn resolved(tree: &Tree, path: &str) -> Result<There> {
    let path = Path::new("/").join(path.trim_start_matches('/'));
    for above in path.ancestors() {
        match tree.resolve(above, Last::Follow) {
            Ok(place) if place.dir().is_some() => {
                let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
                let folder = rest.as_os_str().is_empty();
                let path = if folder { place.path } else { place.path.join(rest) };
                return Ok(There { path, folder, file: false });
            }
            Ok(place) if place.entry.is_some() => {
                if above == path {
                    return Ok(There { path: place.path, folder: false, file: true });
                }
                return Err(Error::InvalidArgument(format!("{} is not a folder", above.display())));
            }
            Ok(_) => {}
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(There { folder: false, file: false, path })
}

/// A path joined with nothing would end with a slash.
fn joined(base: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { base.to_owned() } else { base.join(below) }
}

fn relative(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec()
}

pub(super) fn missing(path: &Path) -> Error {
    Error::NotFound(format!("{} does not exist in the build context", path.display()))
}
