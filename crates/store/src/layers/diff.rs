//! From overlay's writable layer to a layer's archive (OCI image specification, "Image Layer Filesystem
//! Changeset"): the other way of `unpack`.
//!
//! Nothing but the writable layer is read, so the archive is exactly the difference, and the same
//! difference is the same bytes: names are sorted, and no time but that of the last change is in it.
//! Whiteouts and opaque folders become `.wh.` entries; sockets have no place in an archive. Redirects
//! and metadata-only copies need lower layers; the engine's overlays are mounted so that there are none.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, major, minor, openat2, readlinkat,
    statat,
};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::place::is_kept;
use crate::{Error, Result};

/// Folders within folders; each is open while it is read.
const DEPTH_MAX: usize = 256;
/// What fits into a header; longer names go into an extension of their own.
const NAME_MAX: usize = 100;
/// What overlay keeps of other features than those that the engine mounts with.
const FOREIGN: [&str; 2] = ["redirect", "metacopy"];
/// Bytes of all names, or of one value, of extended attributes (xattr(7)).
const ATTRIBUTES_MAX: usize = 64 << 10;

/// What a writable layer is compared with.
#[derive(Debug, Clone, Default)]
pub struct DiffOf {
    /// The writable layer.
    pub upper: PathBuf,
    /// Layers below it, lowest first.
    pub lower: Vec<PathBuf>,
    /// Paths from the root that the engine mounts on; what it made for that is no difference.
    pub ignored: BTreeSet<PathBuf>,
    /// What was changed later is dated to this, in seconds since 1970.
    pub latest: Option<i64>,
}

/// Writes the archive; returns the number of its entries.
pub fn write_diff(of: &DiffOf, out: impl Write) -> Result<u64> {
    write(of, Form::Difference, out)
}

/// As [`write_diff`], with the root's own owner, mode and attributes: for who puts it back as it was.
pub fn write_upper(of: &DiffOf, out: impl Write) -> Result<u64> {
    write(of, Form::Upper, out)
}

/// Writes a folder as it is, its own owner and mode included; nothing in it means anything to overlay.
pub fn write_tree(folder: &Path, out: impl Write) -> Result<u64> {
    write(&DiffOf { upper: folder.to_owned(), ..DiffOf::default() }, Form::Tree, out)
}

/// What becomes of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Difference,
    Upper,
    Tree,
}

fn write(of: &DiffOf, form: Form, out: impl Write) -> Result<u64> {
    let lower = of.lower.iter().rev().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
    let ignored = of.ignored.iter().map(|path| relative(path)).collect();
    let mut writing = Writing {
        latest: of.latest,
        tar: Builder::new(out),
        lower,
        ignored,
        links: HashMap::new(),
        waiting: Vec::new(),
        entries: 0,
        form,
    };
    let upper = open(&of.upper)?;
    if form != Form::Difference {
        writing.root(&upper)?;
    }
    writing.folder(upper.as_fd(), &[], 0)?;
    writing.tar.finish().map_err(|e| Error::io("write the archive of", &of.upper, e))?;
    Ok(writing.entries)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("open", path, e))
}

fn relative(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec()
}

struct Writing<W: Write> {
    latest: Option<i64>,
    tar: Builder<W>,
    /// The topmost first.
    lower: Vec<File>,
    ignored: BTreeSet<Vec<u8>>,
    /// Files with several names → the first.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Folders that are written only if something in them is.
    waiting: Vec<(Vec<u8>, OwnedFd)>,
    entries: u64,
    form: Form,
}

impl<W: Write> Writing<W> {
    fn root(&mut self, folder: &File) -> Result<()> {
        let stat = fstat(folder).map_err(|e| failed(b".", "fstat", e))?;
        let xattrs = attributes(folder.as_fd(), b".")?;
        self.write(header(&stat, EntryType::Directory), b"./", b"", &stat, &xattrs, io::empty())
    }

    /// What is in a folder. Whether the engine made some of it.
    fn folder(&mut self, folder: BorrowedFd<'_>, path: &[u8], depth: usize) -> Result<bool> {
        if depth > DEPTH_MAX {
            return Err(failed(path, "its folders are nested too deep", Errno::NAMETOOLONG));
        }
        let mut ignored = false;
        for name in names(folder).map_err(|e| failed(path, "read the folder", e))? {
            let at = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            if self.ignored.contains(&at) {
                ignored = true;
                continue;
            }
            match statat(folder, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => ignored |= self.entry(folder, &name, &at, &stat, depth)?,
                // It went while the container ran on.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(failed(&at, "lstat", error)),
            }
        }
        Ok(ignored)
    }

    /// Whether it is a folder that only the engine changed.
    fn entry(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        depth: usize,
    ) -> Result<bool> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let node = match kind {
            FileType::Directory => return self.subfolder(folder, name, path, depth),
            FileType::RegularFile => return self.file(folder, name, path).map(|()| false),
            FileType::CharacterDevice if stat.st_rdev == 0 && self.form != Form::Tree => {
                return self.whiteout(path).map(|()| false);
            }
            FileType::Symlink => {
                let target = readlinkat(folder, name, Vec::new()).map_err(|e| failed(path, "readlink", e))?;
                return self
                    .leaf(folder, name, path, stat, (EntryType::Symlink, target.to_bytes()))
                    .map(|()| false);
            }
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            _ => return Ok(false),
        };
        self.leaf(folder, name, path, stat, (node, b"")).map(|()| false)
    }

    fn subfolder(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8], depth: usize) -> Result<bool> {
        let Some(folder) =
            open_below(parent, name, OFlags::DIRECTORY).map_err(|e| failed(path, "open", e))?
        else {
            return Ok(false);
        };
        let opaque = self.is_opaque(folder.as_fd(), path)?;
        let depth_before = self.waiting.len();
        self.waiting.push((path.to_vec(), folder));
        // Held twice, since the other waits to be written.
        let folder = match open_below(parent, name, OFlags::DIRECTORY).map_err(|e| failed(path, "open", e))? {
            Some(folder) => folder,
            None => {
                self.waiting.truncate(depth_before);
                return Ok(false);
            }
        };
        if opaque {
            let marker = [path, b"/.wh..wh..opq"].concat();
            self.empty_file(&marker)?;
        }
        let ignored = self.folder(folder.as_fd(), path, depth + 1)?;
        if self.waiting.len() <= depth_before {
            return Ok(false);
        }
        // Nothing in it was written. What the engine alone touched is as it was.
        if ignored && self.as_below(folder.as_fd(), path)? {
            self.waiting.truncate(depth_before);
            return Ok(true);
        }
        self.write_waiting().map(|()| false)
    }

    /// Whether the layers below have a folder with the same owner and mode, or none.
    fn as_below(&self, folder: BorrowedFd<'_>, path: &[u8]) -> Result<bool> {
        let own = fstat(folder).map_err(|e| failed(path, "fstat", e))?;
        for layer in &self.lower {
            if let Ok(Some(below)) = open_below(layer.as_fd(), path, OFlags::PATH) {
                let below = fstat(&below).map_err(|e| failed(path, "fstat", e))?;
                return Ok(
                    (own.st_mode, own.st_uid, own.st_gid) == (below.st_mode, below.st_uid, below.st_gid)
                );
            }
        }
        Ok(true)
    }

    fn is_opaque(&self, folder: BorrowedFd<'_>, path: &[u8]) -> Result<bool> {
        if self.form == Form::Tree {
            return Ok(false);
        }
        let opaque = insula_sys::process::overlay_opaque();
        for feature in FOREIGN {
            let name = opaque.replace("opaque", feature);
            if attribute(folder, name.as_bytes())
                .map_err(|e| failed(path, "its attributes of overlayfs", e))?
                .is_some()
            {
                return Err(Error::Unsupported(format!(
                    "{:?} has the attribute {name} of an overlay that was mounted otherwise",
                    String::from_utf8_lossy(path)
                )));
            }
        }
        let value = attribute(folder, opaque.as_bytes()).map_err(|e| failed(path, opaque, e))?;
        Ok(value.as_deref() == Some(b"y"))
    }

    fn write_waiting(&mut self) -> Result<()> {
        for (path, folder) in std::mem::take(&mut self.waiting) {
            let stat = fstat(&folder).map_err(|e| failed(&path, "fstat", e))?;
            let name = [&path[..], b"/"].concat();
            let xattrs = attributes(folder.as_fd(), &path)?;
            self.write(header(&stat, EntryType::Directory), &name, b"", &stat, &xattrs, io::empty())?;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let marker = [&path[..at], b".wh.", &path[at..]].concat();
        self.empty_file(&marker)
    }

    /// Whiteouts have no attributes that anyone looks at.
    fn empty_file(&mut self, path: &[u8]) -> Result<()> {
        self.write_waiting()?;
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        self.append(header, path, b"", Vec::new(), io::empty())
    }

    fn file(&mut self, folder: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        let fail = |error| failed(path, "open", error);
        let Some(file) = open_below(folder, name, OFlags::NONBLOCK).map_err(fail)? else { return Ok(()) };
        let stat = fstat(&file).map_err(|e| failed(path, "fstat", e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        self.is_opaque(file.as_fd(), path)?;
        self.write_waiting()?;
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&identity) {
            let first = first.clone();
            return self.write(header(&stat, EntryType::Link), path, &first, &stat, &[], io::empty());
        }
        if stat.st_nlink > 1 {
            self.links.insert(identity, path.to_vec());
        }
        let xattrs = attributes(file.as_fd(), path)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = header(&stat, EntryType::Regular);
        header.set_size(size);
        // A file that shrinks is filled up with zeros, one that grows is cut: the header is out.
        let content = File::from(file).chain(io::repeat(0)).take(size);
        self.write(header, path, b"", &stat, &xattrs, content)
    }

    /// A link or a node.
    fn leaf(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        (kind, target): (EntryType, &[u8]),
    ) -> Result<()> {
        self.write_waiting()?;
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&identity) {
            let first = first.clone();
            return self.write(header(stat, EntryType::Link), path, &first, stat, &[], io::empty());
        }
        if stat.st_nlink > 1 {
            self.links.insert(identity, path.to_vec());
        }
        let mut header = header(stat, kind);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let number = |e: io::Error| Error::io("write the device number of", &shown(path), e);
            header.set_device_major(major(stat.st_rdev)).map_err(number)?;
            header.set_device_minor(minor(stat.st_rdev)).map_err(number)?;
        }
        let link = super::place::open_path(folder, name).map_err(|e| failed(path, "open", e))?;
        let xattrs = attributes_at(link.as_fd(), path)?;
        self.write(header, path, target, stat, &xattrs, io::empty())
    }

    fn write(
        &mut self,
        mut header: Header,
        path: &[u8],
        link: &[u8],
        stat: &Stat,
        xattrs: &[(String, Vec<u8>)],
        content: impl io::Read,
    ) -> Result<()> {
        let mut extensions: Vec<(String, Vec<u8>)> = Vec::new();
        // In a header times have no fractions and no sign.
        let (seconds, nanoseconds) = match self.latest {
            Some(latest) if stat.st_mtime >= latest => (latest, 0),
            _ => (stat.st_mtime, stat.st_mtime_nsec),
        };
        match u64::try_from(seconds) {
            Ok(seconds) => header.set_mtime(seconds),
            Err(_) => header.set_mtime(0),
        }
        if nanoseconds != 0 || seconds < 0 {
            extensions.push(("mtime".to_owned(), decimal(seconds, nanoseconds as u32).into_bytes()));
        }
        extensions.extend(xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())));
        self.append(header, path, link, extensions, content)
    }

    fn append(
        &mut self,
        mut header: Header,
        path: &[u8],
        link: &[u8],
        mut extensions: Vec<(String, Vec<u8>)>,
        content: impl io::Read,
    ) -> Result<()> {
        let fail = |e: io::Error| Error::io("write the archive of", &shown(path), e);
        for (key, text) in [("path", path), ("linkpath", link)] {
            if text.len() > NAME_MAX {
                extensions.push((key.to_owned(), text.to_vec()));
            }
        }
        extensions.sort();
        if !extensions.is_empty() {
            let records = extensions.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            self.tar.append_pax_extensions(records).map_err(fail)?;
        }
        let fields = header.as_old_mut();
        for (field, text) in [(&mut fields.name, path), (&mut fields.linkname, link)] {
            let length = text.len().min(NAME_MAX);
            field[..length].copy_from_slice(&text[..length]);
        }
        header.set_cksum();
        self.entries += 1;
        self.tar.append(&header, content).map_err(fail)
    }
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_size(0);
    header
}

/// A time as pax has it: the fraction counts upwards from the seconds.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
}

fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

fn failed(path: &[u8], call: &'static str, error: Errno) -> Error {
    Error::io(call, &shown(path), error)
}

/// What is at a path below an open folder; `None` if nothing is.
fn open_below(folder: BorrowedFd<'_>, path: &[u8], more: OFlags) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(folder, path, flags, Mode::empty(), resolve) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sorted.
fn names(folder: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_bytes().to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn attribute(file: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = Vec::with_capacity(ATTRIBUTES_MAX);
    match rustix::fs::fgetxattr(file, name, rustix::buffer::spare_capacity(&mut value)) {
        Ok(_) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Those that a layer may have, sorted.
/// The extended attributes that a layer may have, of an open file; `path` is what errors call it.
pub fn attributes(file: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let fail = |error| failed(path, "read the extended attributes of", error);
    let mut list = Vec::with_capacity(ATTRIBUTES_MAX);
    match rustix::fs::flistxattr(file, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    }
    collect(&list, path, |name| attribute(file, name))
}

/// The same of what is opened as a path only.
fn attributes_at(file: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let at = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let mut list = Vec::with_capacity(ATTRIBUTES_MAX);
    match rustix::fs::listxattr(&at, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(failed(path, "read the extended attributes of", error)),
    }
    collect(&list, path, |name| {
        let mut value = Vec::with_capacity(ATTRIBUTES_MAX);
        match rustix::fs::getxattr(&at, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    })
}

fn collect(
    list: &[u8],
    path: &[u8],
    value: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, Errno>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in
        list.split_inclusive(|byte| *byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok())
    {
        if !is_kept(name.to_bytes()) {
            continue;
        }
        let text = name.to_str().map_err(|_| failed(path, "write an extended attribute of", Errno::ILSEQ))?;
        let value = value(name.to_bytes()).map_err(|e| failed(path, "getxattr", e))?;
        found.extend(value.map(|value| (text.to_owned(), value)));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
