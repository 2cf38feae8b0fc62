//! File systems in one file, EROFS as the kernel has it (Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h):
//! read-only, not compressed, every regular file in whole blocks of its own. So the kernel maps them where they are
//! (`dax`) and keeps no pages of its own for them.
//!
//! ```text
//! block 0          superblock, at 1024
//! block 1          zeros
//! blocks           contents of files, then folders and links too long to stand with their inode
//! blocks           inodes of 64 bytes, each with its extended attributes, folder or link behind it
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

const BLOCK: u64 = 4096;
const BLOCK_BITS: u8 = 12;
const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_MTIME`: times are those of modification.
const MTIME: u32 = 2;
/// An inode's number is its place among the inodes, in these.
const SLOT: u64 = 32;
const INODE: u64 = 64;
/// The first inode: 0 is no number for programs that list folders.
const FIRST: u64 = 2 * SLOT;
/// Before the attributes of an inode.
const ATTRIBUTES_HEAD: usize = 12;
/// What an inode can count, in words behind that.
const ATTRIBUTES_MAX: usize = ATTRIBUTES_HEAD + 4 * (u16::MAX as usize - 1);
const ENTRY: usize = 12;
/// The first block of contents. Block 1 is where a guest's kernel looks for what its drivers of persistent memory have
/// written about a device (`nd_btt_probe`, `nd_pfn_probe`, `nd_dax_probe`, each at 4096), and no file may say that.
const CONTENTS: u64 = 2;
/// Names, links, attributes and what else is in memory until the end may have this together.
const METADATA_MAX: u64 = 256 << 20;
/// What is kept of a file or a name beside that, at most.
const KEPT: u64 = 256;
/// The file has whole ones of these: a machine maps no less.
const ALIGNMENT: u64 = 2 << 20;

/// What every file has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Kind and permissions, as in `st_mode`.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Of its last modification, since 1970.
    pub seconds: i64,
    pub nanoseconds: u32,
    /// Names with their prefixes; of others than `user`, `trusted`, `security` and POSIX' lists nothing is kept.
    pub extended: Vec<(String, Vec<u8>)>,
}

/// What a file is, beyond its attributes.
#[derive(Debug)]
pub enum Content<'a> {
    Folder,
    /// So many bytes from its beginning.
    File(&'a File, u64),
    Link(&'a [u8]),
    /// Major and minor number.
    Device(u32, u32),
    /// A pipe or a socket.
    Other,
}

/// A file of the image, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node(usize);

#[derive(Debug)]
enum Kind {
    Folder { entries: BTreeMap<Vec<u8>, Node>, parent: Node },
    File { size: u64, block: u32 },
    Link(Vec<u8>),
    Device(u32),
    Other,
}

#[derive(Debug)]
struct Inode {
    mode: u16,
    uid: u32,
    gid: u32,
    seconds: i64,
    nanoseconds: u32,
    extended: Vec<u8>,
    links: u32,
    kind: Kind,
}

/// Where an inode lies, from the first block of inodes.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u64,
    /// Bytes of a folder or link.
    length: u64,
    /// The block of those that do not stand behind their inode.
    block: Option<u32>,
}

/// An image in the making.
#[derive(Debug)]
pub struct Image {
    file: File,
    /// Bytes that it may have.
    largest: u64,
    /// The next free block.
    next: u64,
    /// Bytes that are in memory until the end.
    metadata: u64,
    inodes: Vec<Inode>,
}

impl Image {
    /// An image in an empty file, of no more than so many bytes, whose root has these attributes. What does not go into
    /// it is refused as [`io::ErrorKind::FileTooLarge`].
    #[must_use]
    pub fn new(file: File, root: Attributes, largest: u64) -> Self {
        let kind = Kind::Folder { entries: BTreeMap::new(), parent: Node(0) };
        let inodes = vec![Inode { links: 2, ..Inode::new(root, kind) }];
        Self { file, largest, next: CONTENTS, metadata: 0, inodes }
    }

    #[must_use]
    pub fn root(&self) -> Node {
        Node(0)
    }

    /// Adds a file under a name of a folder.
    pub fn add(
        &mut self,
        folder: Node,
        name: &[u8],
        attributes: Attributes,
        content: Content<'_>,
    ) -> io::Result<Node> {
        let node = Node(self.inodes.len());
        let extended = encode(&attributes.extended).len();
        if extended > ATTRIBUTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many extended attributes"));
        }
        let target = if let Content::Link(target) = content { target.len() } else { 0 };
        self.keep(extended + target)?;
        let kind = match content {
            Content::Folder => Kind::Folder { entries: BTreeMap::new(), parent: folder },
            Content::File(source, size) => Kind::File { size, block: self.copy(source, size)? },
            Content::Link(target) => Kind::Link(target.to_owned()),
            Content::Device(major, minor) => Kind::Device(device(major, minor)),
            Content::Other => Kind::Other,
        };
        let is_folder = matches!(kind, Kind::Folder { .. });
        self.inodes.push(Inode::new(attributes, kind));
        if let Err(error) = self.link(folder, name, node) {
            self.inodes.pop();
            return Err(error);
        }
        if is_folder {
            // Of its own `.`, and for the `..` in it.
            self.inodes[node.0].links += 1;
            self.inodes[folder.0].links += 1;
        }
        Ok(node)
    }

    /// Gives a file another name.
    pub fn link(&mut self, folder: Node, name: &[u8], node: Node) -> io::Result<()> {
        self.keep(name.len())?;
        let fine = !name.is_empty() && name.len() <= 255 && !matches!(name, b"." | b"..");
        match &mut self.inodes[folder.0].kind {
            Kind::Folder { entries, .. } if fine && !entries.contains_key(name) => {
                entries.insert(name.to_owned(), node);
            }
            _ => {
                let name = String::from_utf8_lossy(name);
                let why = format!("no place for the name {name:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        }
        self.inodes[node.0].links += 1;
        Ok(())
    }

    /// Counts what stays in memory.
    fn keep(&mut self, bytes: usize) -> io::Result<()> {
        self.metadata = self.metadata.saturating_add(KEPT + bytes as u64);
        if self.metadata > METADATA_MAX {
            let why = format!("names and attributes of more than {} MiB", METADATA_MAX >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        Ok(())
    }

    /// Contents to whole blocks, but for their holes; the first of them.
    fn copy(&mut self, source: &File, size: u64) -> io::Result<u32> {
        let block = self.take(size)?;
        if source.metadata()?.len() < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut end = 0;
        while end < size {
            let data = match seek(source, SeekFrom::Data(end)) {
                Ok(data) if data < size => data,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            end = seek(source, SeekFrom::Hole(data))?.min(size);
            seek(source, SeekFrom::Start(data))?;
            seek(&self.file, SeekFrom::Start(u64::from(block) * BLOCK + data))?;
            let copied = io::copy(&mut source.take(end - data), &mut self.file)?;
            if copied < end - data {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(block)
    }

    /// So many bytes in blocks of their own.
    fn take(&mut self, size: u64) -> io::Result<u32> {
        let block = u32::try_from(self.next).ok();
        self.next = self.next.saturating_add(size.div_ceil(BLOCK));
        self.fits(self.next)?;
        block.ok_or_else(|| io::ErrorKind::FileTooLarge.into())
    }

    /// Whether it may have so many blocks, whose numbers have 32 bits.
    fn fits(&self, blocks: u64) -> io::Result<()> {
        let most = (self.largest / BLOCK).min(u32::MAX.into());
        if blocks > most {
            let why = format!("an image of more than {} MiB", (most * BLOCK) >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        Ok(())
    }

    /// Writes what is not written yet; the file's size.
    pub fn finish(mut self) -> io::Result<u64> {
        let (places, length) = self.places()?;
        let first = self.next;
        let blocks = first + length.div_ceil(BLOCK);
        self.fits(blocks)?;
        let mut inodes = Vec::new();
        for (inode, place) in self.inodes.iter().zip(&places) {
            inodes.resize(place.at as usize, 0);
            inode.write(inodes.len() as u64 / SLOT, place, &mut inodes);
            let number = |node: Node| places[node.0].at / SLOT;
            let content = inode.content(place.at / SLOT, number, |node| self.inodes[node.0].kind());
            match place.block {
                Some(block) => self.file.write_all_at(&content, u64::from(block) * BLOCK)?,
                None => inodes.extend(content),
            }
        }
        self.file.write_all_at(&inodes, first * BLOCK)?;
        self.file.write_all_at(&self.superblock(places[0].at / SLOT, first, blocks)?, SUPERBLOCK)?;
        let size = (blocks * BLOCK).next_multiple_of(ALIGNMENT);
        self.file.set_len(size)?;
        Ok(size)
    }

    /// Where the inodes go, and how long they are together: one and what stands behind it is in one block, where it
    /// fits into one.
    fn places(&mut self) -> io::Result<(Vec<Place>, u64)> {
        let mut places: Vec<Place> = Vec::with_capacity(self.inodes.len());
        let mut at = FIRST;
        for number in 0..self.inodes.len() {
            let inode = &self.inodes[number];
            let head = INODE + inode.extended.len() as u64;
            let length = inode.content(0, |_| 0, |_| 0).len() as u64;
            let block = if head + length > BLOCK { Some(self.take(length)?) } else { None };
            let all = if block.is_some() { head } else { head + length };
            if all <= BLOCK && at % BLOCK + all > BLOCK {
                at = at.next_multiple_of(BLOCK);
            }
            places.push(Place { at, length, block });
            at = (at + all).next_multiple_of(SLOT);
        }
        Ok((places, at))
    }

    /// `struct erofs_super_block`: the number of the root's inode, the first block of inodes, and all blocks.
    fn superblock(&self, root: u64, first: u64, blocks: u64) -> io::Result<[u8; 128]> {
        let mut bytes = [0; 128];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let number = |number: u64| u32::try_from(number).map_err(|_| io::ErrorKind::FileTooLarge);
        put(0, &MAGIC.to_le_bytes());
        put(8, &MTIME.to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &(root as u16).to_le_bytes());
        put(16, &(self.inodes.len() as u64).to_le_bytes());
        put(36, &number(blocks)?.to_le_bytes());
        put(40, &number(first)?.to_le_bytes());
        Ok(bytes)
    }
}

impl Inode {
    fn new(attributes: Attributes, kind: Kind) -> Self {
        let Attributes { mode, uid, gid, seconds, nanoseconds, extended } = attributes;
        Self { mode, uid, gid, seconds, nanoseconds, extended: encode(&extended), links: 0, kind }
    }

    /// `EROFS_FT_…`, as in folders.
    fn kind(&self) -> u8 {
        const BLOCK_DEVICE: u16 = 0o060_000;
        const PIPE: u16 = 0o010_000;
        match &self.kind {
            Kind::File { .. } => 1,
            Kind::Folder { .. } => 2,
            Kind::Device(_) if self.mode & 0o170_000 == BLOCK_DEVICE => 4,
            Kind::Device(_) => 3,
            Kind::Other if self.mode & 0o170_000 == PIPE => 5,
            Kind::Other => 6,
            Kind::Link(_) => 7,
        }
    }

    /// Of a folder or link; `own` is its number.
    fn content(&self, own: u64, number: impl Fn(Node) -> u64, kind: impl Fn(Node) -> u8) -> Vec<u8> {
        match &self.kind {
            Kind::Link(target) => target.clone(),
            Kind::Folder { entries, parent } => {
                let mut all: Vec<(&[u8], u64, u8)> =
                    entries.iter().map(|(name, node)| (&name[..], number(*node), kind(*node))).collect();
                all.push((b"..", number(*parent), 2));
                all.push((b".", own, 2));
                all.sort_unstable();
                pack(&all)
            }
            _ => Vec::new(),
        }
    }

    /// `struct erofs_inode_extended`, and the attributes behind it.
    fn write(&self, number: u64, place: &Place, to: &mut Vec<u8>) {
        const EXTENDED: u16 = 1;
        const INLINE: u16 = 2 << 1;
        let behind = place.length > 0 && place.block.is_none();
        let (size, what) = match &self.kind {
            Kind::File { size, block } => (*size, *block),
            Kind::Device(device) => (0, *device),
            _ => (place.length, place.block.unwrap_or(0)),
        };
        let count = match self.extended.len() {
            0 => 0,
            length => ((length - ATTRIBUTES_HEAD) / 4 + 1) as u16,
        };
        to.extend((if behind { EXTENDED | INLINE } else { EXTENDED }).to_le_bytes());
        to.extend(count.to_le_bytes());
        to.extend(self.mode.to_le_bytes());
        to.extend([0; 2]);
        to.extend(size.to_le_bytes());
        to.extend(what.to_le_bytes());
        to.extend((number as u32).to_le_bytes());
        to.extend(self.uid.to_le_bytes());
        to.extend(self.gid.to_le_bytes());
        to.extend(self.seconds.to_le_bytes());
        to.extend(self.nanoseconds.to_le_bytes());
        to.extend(self.links.to_le_bytes());
        to.extend([0; 16]);
        to.extend(&self.extended);
    }
}

/// `struct erofs_xattr_ibody_header`, and an entry for each.
fn encode(extended: &[(String, Vec<u8>)]) -> Vec<u8> {
    /// `EROFS_XATTR_INDEX_…` of prefixes; those that are a whole name leave nothing.
    const PREFIXES: [(&str, u8); 5] = [
        ("user.", 1),
        ("system.posix_acl_access", 2),
        ("system.posix_acl_default", 3),
        ("trusted.", 4),
        ("security.", 6),
    ];
    let mut bytes = vec![0; ATTRIBUTES_HEAD];
    for (name, value) in extended {
        let found = PREFIXES.iter().find_map(|(prefix, index)| Some((name.strip_prefix(prefix)?, index)));
        let (Some((rest, index)), Ok(size)) = (found, u16::try_from(value.len())) else { continue };
        // The kernel's own names have 255 bytes at most.
        let Ok(length) = u8::try_from(rest.len()) else { continue };
        bytes.extend([length, *index]);
        bytes.extend(size.to_le_bytes());
        bytes.extend(rest.as_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if bytes.len() == ATTRIBUTES_HEAD { Vec::new() } else { bytes }
}

/// Names, sorted, with numbers and kinds: blocks of `struct erofs_dirent`, the names of each behind them. The last
/// block ends with its last name.
fn pack(entries: &[(&[u8], u64, u8)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        let mut used = 0;
        let fits = |(name, ..): &&(&[u8], u64, u8)| {
            used += ENTRY + name.len();
            used <= BLOCK as usize
        };
        let count = rest.iter().take_while(fits).count();
        let (block, more) = rest.split_at(count);
        let mut at = count * ENTRY;
        for (name, number, kind) in block {
            bytes.extend(number.to_le_bytes());
            bytes.extend((at as u16).to_le_bytes());
            bytes.extend([*kind, 0]);
            at += name.len();
        }
        block.iter().for_each(|(name, ..)| bytes.extend(*name));
        rest = more;
    }
    bytes
}

/// As the kernel has it in 32 bits, `new_encode_dev` of linux/kdev_t.h.
fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

#[cfg(test)]
mod tests;
