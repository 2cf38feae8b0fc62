//! From a tree to a tar.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use insula_store::layers::attributes;
use jiff::Timestamp;
use rustix::fs::{FileType, Stat, major, minor};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::base_name;
use super::stat::stat_of;
use crate::tree::{Dir, Entry, Place, Tree};
use crate::{Error, Result};

/// Deeper trees are not walked: each level holds descriptors.
const DEPTH_MAX: usize = 1024;
/// What fits into a header; longer names go into an extension of their own.
const NAME_MAX: usize = 100;
/// Bytes of a file that are read at a time.
const PIECE: usize = 256 << 10;
/// What everything in an archive is a multiple of.
const BLOCK: usize = 512;

/// Writes what is at `place`; names begin with the last part of `path`, with a slash for the root.
pub(super) fn pack(tree: &Tree, place: &Place, path: &str, out: impl Write) -> Result<()> {
    let mut packing = Packing::new(tree, out);
    let base = base_name(path);
    match (place.dir(), place.parent(), &place.entry) {
        (Some(dir), _, _) => {
            let stat = stat_of(place, path)?;
            packing.folder(base.as_bytes(), &place.path, &stat, dir, 0)?;
        }
        (None, Some(parent), Some(entry)) => {
            packing.leaf(base.as_bytes(), &place.path, parent, &place.name, entry)?;
        }
        _ => return Err(Error::io("look up", &place.path, Errno::NOENT)),
    }
    packing.tar.finish().map_err(|error| Error::io("write the archive of", &place.path, error))
}

/// Writes what is below the root.
pub(crate) fn pack_root(tree: &Tree, root: &Place, out: impl Write) -> Result<()> {
    let mut packing = Packing::new(tree, out);
    let dir = root.dir().ok_or_else(|| Error::io("look up", &root.path, Errno::NOENT))?;
    packing.content(b"", &root.path, dir, 0)?;
    packing.tar.finish().map_err(|error| Error::io("write the archive of", &root.path, error))
}

struct Packing<'a, W: Write> {
    tree: &'a Tree,
    tar: Builder<W>,
    /// Files with several names: the name that has the content.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    piece: Vec<u8>,
}

impl<'a, W: Write> Packing<'a, W> {
    fn new(tree: &'a Tree, out: W) -> Self {
        Self { tree, tar: Builder::new(out), links: BTreeMap::new(), piece: Vec::new() }
    }

    fn folder(&mut self, name: &[u8], path: &Path, stat: &Stat, dir: &Dir, depth: usize) -> Result<()> {
        let name = if name.ends_with(b"/") { name.to_vec() } else { [name, b"/"].concat() };
        let mut header = self.header(stat, EntryType::Directory);
        self.write(stat, &mut header, &name, &[], &[], path)?;
        self.content(&name, path, dir, depth)
    }

    /// What is in a folder; `name` ends with a slash or is empty.
    fn content(&mut self, name: &[u8], path: &Path, dir: &Dir, depth: usize) -> Result<()> {
        let fail = |error: Errno| Error::io("read the folder", path, error);
        if depth > DEPTH_MAX {
            return Err(fail(Errno::NAMETOOLONG));
        }
        if is_the_kernels(dir).map_err(fail)? {
            return Ok(());
        }
        // What went away meanwhile is left out.
        let names = match dir.names() {
            Err(error) if went_away(error) => return Ok(()),
            names => names.map_err(fail)?,
        };
        for child in names {
            let entry = match self.tree.look(dir, path, &child) {
                Err(error) if went_away(error) => continue,
                entry => entry.map_err(fail)?,
            };
            let Some(entry) = entry else { continue };
            let (inner, at) = ([name, child.as_bytes()].concat(), path.join(&child));
            match &entry.dir {
                Some(inside) => self.folder(&inner, &at, &entry.stat, inside, depth + 1)?,
                None => self.leaf(&inner, &at, dir, &child, &entry)?,
            }
        }
        Ok(())
    }

    fn leaf(&mut self, name: &[u8], path: &Path, dir: &Dir, child: &OsStr, entry: &Entry) -> Result<()> {
        let stat = &entry.stat;
        match entry.kind() {
            FileType::RegularFile => return self.file(name, path, dir, child, entry),
            FileType::Symlink => {
                let target = match dir.read_link(child, entry) {
                    // INVAL: it is no link any more.
                    Err(error) if went_away(error) || error == Errno::INVAL => return Ok(()),
                    target => target.map_err(|error| Error::io("readlink", path, error))?,
                };
                let mut header = self.header(stat, EntryType::Symlink);
                return self.write(stat, &mut header, name, target.as_bytes(), &[], path);
            }
            _ => {}
        }
        let kind = match entry.kind() {
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            // An archive has no sockets.
            _ => return Ok(()),
        };
        let mut header = self.header(stat, kind);
        let number = |error| Error::io("write the device number of", path, error);
        header.set_device_major(major(stat.st_rdev)).map_err(number)?;
        header.set_device_minor(minor(stat.st_rdev)).map_err(number)?;
        self.write(stat, &mut header, name, &[], &[], path)
    }

    fn file(&mut self, name: &[u8], path: &Path, dir: &Dir, child: &OsStr, entry: &Entry) -> Result<()> {
        let identity = (entry.stat.st_dev, entry.stat.st_ino);
        if let Some(first) = self.links.get(&identity) {
            let first = first.clone();
            let mut header = self.header(&entry.stat, EntryType::Link);
            return self.write(&entry.stat, &mut header, name, &first, &[], path);
        }
        let fail = |error: Errno| Error::io("open", path, error);
        let opened = match dir.open(child, entry) {
            Ok(opened) => opened,
            // It went away since it was looked at, or something else is there.
            Err(error) if went_away(error) || error == Errno::NXIO => return Ok(()),
            Err(error) => return Err(fail(error)),
        };
        let stat = rustix::fs::fstat(&opened).map_err(fail)?;
        if stat.st_nlink > 1 {
            self.links.insert(identity, name.to_vec());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = self.header(&stat, EntryType::Regular);
        header.set_size(size);
        let attributes = attributes(opened.as_fd(), name)?;
        self.write(&stat, &mut header, name, &[], &attributes, path)?;
        self.copy(&File::from(opened), size).map_err(|error| Error::io("write the archive of", path, error))
    }

    /// Content and padding. A file that shrinks is filled up with zeros, one that grows is cut: the header
    /// is out.
    fn copy(&mut self, mut file: &File, size: u64) -> io::Result<()> {
        let out = self.tar.get_mut();
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            if self.piece.len() < want {
                self.piece.resize(want, 0);
            }
            let count = match file.read(&mut self.piece[..want]) {
                Ok(0) => {
                    self.piece[..want].fill(0);
                    want
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            out.write_all(&self.piece[..count])?;
            left -= count as u64;
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        out.write_all(&[0; BLOCK][..usize::try_from(padding).unwrap_or(0)])
    }

    fn header(&self, stat: &Stat, kind: EntryType) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(self.tree.inside(stat.st_uid).into());
        header.set_gid(self.tree.inside(stat.st_gid).into());
        header.set_mtime(u64::try_from(seconds(stat)).unwrap_or(0));
        header.set_size(0);
        header
    }

    /// A member without its content.
    fn write(
        &mut self,
        stat: &Stat,
        header: &mut Header,
        name: &[u8],
        link: &[u8],
        attributes: &[(String, Vec<u8>)],
        path: &Path,
    ) -> Result<()> {
        let fail = |error: io::Error| Error::io("write the archive of", path, error);
        let named = |(name, value): &(String, Vec<u8>)| (format!("SCHILY.xattr.{name}"), value.clone());
        let mut extensions: Vec<_> = attributes.iter().map(named).collect();
        if seconds(stat) < 0 {
            // A header's times have no sign.
            extensions.push(("mtime".to_owned(), seconds(stat).to_string().into_bytes()));
        }
        let texts = [("path", name), ("linkpath", link)];
        let long = texts.into_iter().filter(|(_, text)| text.len() > NAME_MAX);
        extensions.extend(long.map(|(key, text)| (key.to_owned(), text.to_vec())));
        if !extensions.is_empty() {
            let extensions = extensions.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.tar.append_pax_extensions(extensions).map_err(fail)?;
        }
        let fields = header.as_old_mut();
        for (field, text) in [(&mut fields.name, name), (&mut fields.linkname, link)] {
            let length = text.len().min(NAME_MAX);
            field[..length].copy_from_slice(&text[..length]);
        }
        header.set_cksum();
        self.tar.append(header, io::empty()).map_err(fail)
    }
}

/// When it was modified; the epoch for what no calendar has.
fn seconds(stat: &Stat) -> i64 {
    Timestamp::from_second(stat.st_mtime).unwrap_or_default().as_second()
}

/// Whether something was removed, or replaced by something of another kind, since its name was read.
fn went_away(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE)
}

/// Whether the folder is of a file system that shows the kernel's state: its files are no content of the
/// container, and many cannot be read. statfs(2) has the numbers.
fn is_the_kernels(dir: &Dir) -> rustix::io::Result<bool> {
    const CGROUP: i64 = 0x0027_e0eb;
    const CGROUP2: i64 = 0x6367_7270;
    const DEVPTS: i64 = 0x1cd1;
    const MQUEUE: i64 = 0x1980_0202;
    const PROC: i64 = 0x9fa0;
    const SYSFS: i64 = 0x6265_6572;
    let Some(folder) = dir.topmost() else { return Ok(false) };
    let kind = rustix::fs::fstatfs(folder)?.f_type;
    Ok(matches!(kind, CGROUP | CGROUP2 | DEVPTS | MQUEUE | PROC | SYSFS))
}
