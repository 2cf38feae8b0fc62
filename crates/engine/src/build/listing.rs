//! The last stage's files one by one, for who asks for each of them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use insula_store::layers::attributes;
use rustix::fs::{FileType, Stat, major, minor};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::stage::Built;
use crate::archive::{go_mode, modified};
use crate::tree::{Dir, Entry, Last, Tree};
use crate::{Error, Result};

/// As deep as archives go.
const DEPTH_MAX: usize = 512;
/// Bytes of a list: some millions of files. It is in memory at once, since files are asked for by their number.
const LIST_MAX: usize = 512 << 20;

/// Who gets the files.
pub type ListingSender = mpsc::Sender<Listing>;

/// Files of a build, which stay as long as this.
#[derive(Debug)]
pub struct Listing {
    tree: Tree,
    entries: Vec<ListedFile>,
    _built: Arc<Built>,
}

/// What is known of a file without its content.
#[derive(Debug, Clone)]
pub struct ListedFile {
    /// From the root, without a slash in front; a folder is before what is in it, and names are sorted.
    pub path: Vec<u8>,
    /// As Go's `os.FileMode` has it.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of its content.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified: i64,
    /// Of a device.
    pub number: (u32, u32),
    /// Where a symbolic link leads, or the earlier file that this one is another name of.
    pub link: Vec<u8>,
    pub attributes: Vec<(String, Vec<u8>)>,
}

impl Listing {
    /// Blocks.
    pub(super) fn of(built: Arc<Built>) -> Result<Self> {
        let tree = built.tree()?;
        let root = tree.resolve(Path::new("/"), Last::Follow)?;
        let mut walk = Walk { tree: &tree, entries: Vec::new(), names: HashMap::new(), size: 0 };
        if let Some(dir) = root.dir() {
            walk.folder(dir, b"", 0)?;
        }
        let entries = walk.entries;
        Ok(Self { tree, entries, _built: built })
    }

    #[must_use]
    pub fn entries(&self) -> &[ListedFile] {
        &self.entries
    }

    /// The content of a regular file, by its number. Blocks.
    pub fn open(&self, number: usize) -> Result<File> {
        let unknown = || Error::InvalidArgument(format!("there is no file with the number {number}"));
        let path = &self.entries.get(number).ok_or_else(unknown)?.path;
        let path = Path::new("/").join(OsStr::from_bytes(path));
        let place = self.tree.resolve(&path, Last::Keep)?;
        let (Some(dir), Some(entry)) = (place.parent(), &place.entry) else { return Err(unknown()) };
        let opened = dir.open(&place.name, entry);
        opened.map(File::from).map_err(|error| Error::io("open", &path, error))
    }
}

impl ListedFile {
    fn new(path: Vec<u8>, stat: &Stat) -> Self {
        let file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Self {
            path,
            mode: go_mode(stat),
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if file { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
            modified: i64::try_from(modified(stat).as_nanosecond()).unwrap_or(0),
            number: (major(stat.st_rdev), minor(stat.st_rdev)),
            link: Vec::new(),
            attributes: Vec::new(),
        }
    }
}

struct Walk<'a> {
    tree: &'a Tree,
    entries: Vec<ListedFile>,
    /// The first names of files that have several.
    names: HashMap<(u64, u64), Vec<u8>>,
    /// Bytes of the entries.
    size: usize,
}

impl Walk<'_> {
    fn folder(&mut self, dir: &Dir, name: &[u8], depth: usize) -> Result<()> {
        let path = Path::new("/").join(OsStr::from_bytes(name));
        let fail = |error: Errno| Error::io("read the folder", &path, error);
        if depth > DEPTH_MAX {
            return Err(fail(Errno::NAMETOOLONG));
        }
        for child in dir.names().map_err(fail)? {
            let Some(entry) = self.tree.look(dir, &path, &child).map_err(fail)? else { continue };
            let inner = match name {
                [] => child.as_bytes().to_vec(),
                name => [name, b"/", child.as_bytes()].concat(),
            };
            match &entry.dir {
                Some(inside) => {
                    self.add(ListedFile::new(inner.clone(), &entry.stat))?;
                    self.folder(inside, &inner, depth + 1)?;
                }
                None => self.leaf(dir, &child, inner, &entry)?,
            }
        }
        Ok(())
    }

    fn leaf(&mut self, dir: &Dir, child: &OsStr, path: Vec<u8>, entry: &Entry) -> Result<()> {
        let at = Path::new("/").join(OsStr::from_bytes(&path));
        let fail = |error: Errno| Error::io("read", &at, error);
        let mut listed = ListedFile::new(path, &entry.stat);
        let identity = (entry.stat.st_dev, entry.stat.st_ino);
        match (entry.kind(), self.names.get(&identity)) {
            // As in archives.
            (FileType::Socket, _) => return Ok(()),
            (FileType::Symlink, _) => listed.link = dir.read_link(child, entry).map_err(fail)?.into_vec(),
            (FileType::RegularFile, Some(first)) => listed.link.clone_from(first),
            (FileType::RegularFile, None) => {
                let opened = dir.open(child, entry).map_err(fail)?;
                listed.attributes = attributes(opened.as_fd(), &listed.path)?;
                if entry.stat.st_nlink > 1 {
                    self.names.insert(identity, listed.path.clone());
                }
            }
            _ => {}
        }
        self.add(listed)
    }

    fn add(&mut self, listed: ListedFile) -> Result<()> {
        let attributes: usize = listed.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.size += size_of::<ListedFile>() + listed.path.len() + listed.link.len() + attributes;
        if self.size > LIST_MAX {
            let message =
                format!("the list of the image's files is larger than {LIST_MAX} bytes: use type=tar");
            return Err(Error::InvalidArgument(message));
        }
        self.entries.push(listed);
        Ok(())
    }
}
