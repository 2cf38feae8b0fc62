//! A streaming reader of tar archives (POSIX ustar and pax, GNU, old V7) for bytes that nobody
//! vouches for: one pass, bounded memory, no file system.
//!
//! The reader is our own because layers need what general readers leave out: pax values may hold
//! any byte (`security.capability` often holds a newline), extension headers are bounded, and
//! every sparse format is expanded as a map instead of as zeros.

mod header;
mod pax;
mod sparse;

use std::io::BufRead;

pub use header::EntryKind;
use header::{BLOCK, Header};
use pax::Extensions;

use crate::{Error, Result};

/// Bytes of one extension header (pax, long name); Go's reader has the same bound.
const EXTENSION_MAX: u64 = 1 << 20;
/// Bytes of a path or link target: PATH_MAX with its NUL.
const PATH_MAX: usize = 4095;

/// One member of an archive, its names as they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: EntryKind,
    pub path: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Length of the file when it is unpacked.
    pub size: u64,
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    /// Extended attributes, in order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data lies in the file, if not all of it is there: offset and length, ascending.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// An archive being read.
#[derive(Debug)]
pub struct Archive<R> {
    source: R,
    /// Bytes of the current member that were not read yet, and the padding after them.
    left: u64,
    padding: u64,
    ended: bool,
}

impl<R: BufRead> Archive<R> {
    /// Reads from the beginning of an archive.
    pub fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0, ended: false }
    }

    /// The next member; what was not read of the one before is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_member()?;
            let Some(header) = self.read_header()? else {
                return if extensions.is_empty() {
                    Ok(None)
                } else {
                    Err(malformed("it ends after an extension header"))
                };
            };
            self.enter(header.size)?;
            match header.kind {
                EntryKind::PaxLocal => extensions.read_pax(&self.read_extension()?)?,
                EntryKind::LongName => set_once(&mut extensions.long_name, self.read_extension()?)?,
                EntryKind::LongLink => set_once(&mut extensions.long_link, self.read_extension()?)?,
                // Defaults for all later members; no writer of layers uses them, others ignore them too.
                EntryKind::PaxGlobal => {}
                _ => return self.finish(header, extensions).map(Some),
            }
        }
    }

    /// Bytes of the current member that were not read yet.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// A part of the current member; empty when it was read whole.
    pub fn fill(&mut self) -> Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let bytes = self.source.fill_buf().map_err(Error::Input)?;
        if bytes.is_empty() {
            return Err(malformed("it ends within a member"));
        }
        let count = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(&bytes[..count])
    }

    /// Marks bytes that [`Archive::fill`] returned as read.
    pub fn consume(&mut self, count: usize) {
        debug_assert!(count as u64 <= self.left, "more was consumed than was there");
        self.source.consume(count);
        self.left -= count as u64;
    }

    /// Where the archive is read from.
    pub(crate) fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// Reads what follows the last member, so that a digest of the stream covers it.
    pub fn drain(mut self) -> Result<R> {
        loop {
            let count = self.source.fill_buf().map_err(Error::Input)?.len();
            if count == 0 {
                return Ok(self.source);
            }
            self.source.consume(count);
        }
    }

    fn finish(&mut self, header: Header, extensions: Extensions) -> Result<Entry> {
        if let (Some(size), EntryKind::File | EntryKind::GnuSparse) = (extensions.size, header.kind) {
            self.enter(size)?;
        }
        let map = sparse::map(self, &header, &extensions)?;
        let mut entry = Entry {
            kind: header.kind,
            path: header.path,
            link: header.link,
            mode: header.mode & 0o7777,
            uid: owner(extensions.uid.unwrap_or(header.uid))?,
            gid: owner(extensions.gid.unwrap_or(header.gid))?,
            mtime: extensions.mtime.unwrap_or((header.mtime, 0)),
            size: self.left,
            device: header.device,
            xattrs: extensions.xattrs,
            sparse: None,
        };
        if let Some(map) = map {
            (entry.size, entry.sparse) = (map.real_size, Some(map.segments));
            entry.kind = EntryKind::File;
        }
        let long_name = extensions.sparse.name.or(extensions.path).or(extensions.long_name);
        entry.path = long_name.unwrap_or(entry.path);
        entry.link = extensions.link.or(extensions.long_link).unwrap_or(entry.link);
        check_name(&entry.path)?;
        check_name(&entry.link)?;
        // V7 archives have no type for folders but a slash at the end of their names.
        if entry.kind == EntryKind::File && entry.path.ends_with(b"/") {
            entry.kind = EntryKind::Folder;
        }
        if entry.kind != EntryKind::File {
            entry.size = 0;
        }
        Ok(entry)
    }

    fn enter(&mut self, size: u64) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(malformed("a member is longer than a file can be"));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn skip_member(&mut self) -> Result<()> {
        while self.left > 0 {
            let count = self.fill()?.len();
            self.consume(count);
        }
        self.left = std::mem::take(&mut self.padding);
        while self.left > 0 {
            let count = self.fill()?.len();
            self.consume(count);
        }
        Ok(())
    }

    /// The next header, or `None` at the end: a block of zeros, or no more bytes.
    fn read_header(&mut self) -> Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let count = match self.source.read(&mut block[filled..]) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Input(error)),
            };
            if count == 0 {
                break;
            }
            filled += count;
        }
        if filled == 0 || (filled == BLOCK && block.iter().all(|byte| *byte == 0)) {
            self.ended = true;
            return Ok(None);
        }
        if filled < BLOCK {
            return Err(malformed("it ends within a header"));
        }
        Header::parse(&block).map(Some)
    }

    fn read_extension(&mut self) -> Result<Vec<u8>> {
        if self.left > EXTENSION_MAX {
            return Err(Error::Limit { what: "a tar extension header".to_owned(), limit: EXTENSION_MAX });
        }
        let mut bytes = Vec::new();
        while self.left > 0 {
            let part = self.fill()?;
            let count = part.len();
            bytes.extend_from_slice(part);
            self.consume(count);
        }
        Ok(bytes)
    }

    /// One block of the current member's data, for sparse maps.
    fn read_block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let part = self.fill()?;
            if part.is_empty() {
                return Err(malformed("a sparse map is cut short"));
            }
            let count = part.len().min(BLOCK - filled);
            block[filled..filled + count].copy_from_slice(&part[..count]);
            self.consume(count);
            filled += count;
        }
        Ok(block)
    }

    /// Blocks of an old GNU sparse map stand between the header and the data and are not counted.
    fn read_extra_block(&mut self) -> Result<[u8; BLOCK]> {
        let (left, padding) = (self.left, self.padding);
        self.left = BLOCK as u64;
        let block = self.read_block();
        (self.left, self.padding) = (left, padding);
        block
    }
}

impl Archive<crate::stream::Chunks> {
    /// The next bytes of the current member, at least `count` unless it is shorter, unread.
    pub(crate) fn peek(&mut self, count: usize) -> Result<&[u8]> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let bytes = self.source.peek(count.min(left)).map_err(Error::Input)?;
        Ok(&bytes[..bytes.len().min(left)])
    }

    /// A part of the current member without a copy; `None` when it was read whole.
    pub(crate) fn chunk(&mut self) -> Result<Option<bytes::Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let max = usize::try_from(self.left).unwrap_or(usize::MAX);
        let chunk = self.source.chunk(max).map_err(Error::Input)?;
        let chunk = chunk.ok_or_else(|| malformed("it ends within a member"))?;
        self.left -= chunk.len() as u64;
        Ok(Some(chunk))
    }
}

/// Whether a block may begin a tar archive: a header with a right checksum, or the end.
pub(crate) fn looks_like_tar(block: &[u8]) -> bool {
    block
        .first_chunk::<BLOCK>()
        .is_some_and(|block| Header::checksum_holds(block) || block.iter().all(|b| *b == 0))
}

fn malformed(why: &str) -> Error {
    Error::Archive(why.to_owned())
}

/// A long name ends at its NUL. Two of them for one member would be read differently by others.
fn set_once(name: &mut Option<Vec<u8>>, mut bytes: Vec<u8>) -> Result<()> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    if name.replace(bytes).is_some() { Err(malformed("a member has two long names")) } else { Ok(()) }
}

/// `u32::MAX` means "leave as it is" to chown(2) and is no id.
fn owner(id: u64) -> Result<u32> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| malformed("an owner is not a 32-bit id"))
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > PATH_MAX {
        return Err(Error::Limit { what: "a path in an archive".to_owned(), limit: PATH_MAX as u64 });
    }
    if name.contains(&0) { Err(malformed("a path holds a NUL")) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
