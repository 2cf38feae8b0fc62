//! A local file or folder as a tar stream.
//!
//! Somebody else may write to the folder meanwhile, a container it is mounted in for one: what is below it
//! is opened folder by folder, and no symbolic link is followed there.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use insula_client::FileUpload;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

/// What is packed and what it is called in the archive.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// Name of the top entry; empty packs the content of a folder without the folder.
    pub(crate) name: PathBuf,
    /// Pack what a symbolic link at `path` points to.
    pub(crate) follow: bool,
    /// Keep owners; otherwise everything belongs to root.
    pub(crate) keep_owner: bool,
}

/// Writes the archive; errors name the file.
pub(crate) fn pack(source: &Source, sink: &mut dyn Write) -> io::Result<()> {
    let found =
        open_path(CWD, &source.path, source.follow).map_err(|error| at(&source.path, error.into()))?;
    let mut packing =
        Packing { tar: tar::Builder::new(sink), keep_owner: source.keep_owner, piece: Vec::new() };
    packing.entry(found, &source.path, &source.name)?;
    packing.tar.finish()
}

pub(super) fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// What is there, without opening it.
fn open_path(folder: BorrowedFd<'_>, name: &Path, follow: bool) -> rustix::io::Result<File> {
    let nofollow = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    rustix::fs::openat(folder, name, OFlags::PATH | OFlags::CLOEXEC | nofollow, Mode::empty()).map(File::from)
}

/// The same for reading.
fn reopen(found: &File) -> rustix::io::Result<OwnedFd> {
    let same = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::fs::openat(CWD, same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

struct Packing<'a> {
    tar: tar::Builder<&'a mut dyn Write>,
    keep_owner: bool,
    piece: Vec<u8>,
}

impl Packing<'_> {
    fn entry(&mut self, found: File, path: &Path, name: &Path) -> io::Result<()> {
        let fail = |error: Errno| at(path, error.into());
        let metadata = found.metadata().map_err(|error| at(path, error))?;
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        if kind.is_dir() {
            if !name.as_os_str().is_empty() {
                let mut header = begin(&mut self.tar, &metadata, self.keep_owner)?;
                header.set_size(0);
                self.tar.append_data(&mut header, name, io::empty())?;
            }
            let folder = reopen(&found).map_err(fail)?;
            drop(found);
            return self.folder(&folder, path, name);
        }
        if kind.is_symlink() {
            let target = rustix::fs::readlinkat(&found, "", Vec::new()).map_err(fail)?;
            let mut header = begin(&mut self.tar, &metadata, self.keep_owner)?;
            header.set_size(0);
            return self.tar.append_link(&mut header, name, OsStr::from_bytes(target.as_bytes()));
        }
        if kind.is_file() {
            let file = File::from(reopen(&found).map_err(fail)?);
            let mut header = begin(&mut self.tar, &metadata, self.keep_owner)?;
            return append_file(&mut self.tar, &mut header, name, &file, metadata.len(), &mut self.piece)
                .map_err(|error| at(path, error));
        }
        let mut header = begin(&mut self.tar, &metadata, self.keep_owner)?;
        header.set_size(0);
        self.tar.append_data(&mut header, name, io::empty())
    }

    fn folder(&mut self, folder: &OwnedFd, path: &Path, name: &Path) -> io::Result<()> {
        for child in names(folder).map_err(|error| at(path, error.into()))? {
            let child_path = path.join(&child);
            let found = open_path(folder.as_fd(), Path::new(&child), false);
            let found = found.map_err(|error| at(&child_path, error.into()))?;
            self.entry(found, &child_path, &name.join(&child))?;
        }
        Ok(())
    }
}

/// The header that has to follow. What goes before it for a time before 1970, for which it has no sign, is written.
pub(super) fn begin<W: Write>(
    tar: &mut tar::Builder<W>,
    metadata: &Metadata,
    keep_owner: bool,
) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    if metadata.mtime() < 0 {
        header.set_mtime(0);
        tar.append_pax_extensions([("mtime", metadata.mtime().to_string().as_bytes())])?;
    }
    if !keep_owner {
        header.set_uid(0);
        header.set_gid(0);
    }
    Ok(header)
}

/// What is in a folder, sorted.
fn names(folder: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(OsString::from_vec(entry.file_name().to_bytes().to_vec()));
        }
    }
    names.sort();
    Ok(names)
}

/// Less is soon copied, however it is done.
const LARGE: u64 = 1 << 20;

/// A large regular file, to be copied by the daemon from its descriptor; `None` for anything else.
pub(crate) fn large_file(source: &Source) -> io::Result<Option<FileUpload>> {
    let fail = |error: Errno| at(&source.path, error.into());
    let found = open_path(CWD, &source.path, source.follow).map_err(fail)?;
    let metadata = found.metadata().map_err(|error| at(&source.path, error))?;
    if !metadata.is_file() || metadata.len() < LARGE {
        return Ok(None);
    }
    let mut beginning = Vec::new();
    let mut tar = tar::Builder::new(&mut beginning);
    let mut header = begin(&mut tar, &metadata, source.keep_owner)?;
    header.set_size(metadata.len());
    tar.append_data(&mut header, &source.name, io::empty())?;
    let length = tar.get_ref().len();
    tar.into_inner()?.truncate(length);
    Ok(Some(FileUpload { beginning, file: reopen(&found).map_err(fail)?.into(), size: metadata.len() }))
}

/// Bytes of a file that are read at a time.
const PIECE: usize = 256 << 10;
/// What everything in an archive is a multiple of.
const BLOCK: usize = 512;

/// Writes a file of this size. One that grows or shrinks meanwhile keeps the size that the header promises.
/// `piece` is scratch space.
pub(super) fn append_file(
    tar: &mut tar::Builder<&mut dyn Write>,
    header: &mut tar::Header,
    name: impl AsRef<Path>,
    mut file: &File,
    size: u64,
    piece: &mut Vec<u8>,
) -> io::Result<()> {
    header.set_size(size);
    tar.append_data(header, name, io::empty())?;
    let out = tar.get_mut();
    let mut left = size;
    while left > 0 {
        let want = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        if piece.len() < want {
            piece.resize(want, 0);
        }
        let count = match file.read(&mut piece[..want]) {
            Ok(0) => {
                piece[..want].fill(0);
                want
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        out.write_all(&piece[..count])?;
        left -= count as u64;
    }
    let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
    out.write_all(&[0; BLOCK][..padding])
}
