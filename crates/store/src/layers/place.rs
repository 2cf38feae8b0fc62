//! One entry, made in its open folder.

use std::fs::File;
use std::io::{BufRead, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::unpack::failed;
use crate::archive::{Archive, Entry, EntryKind};
use crate::recipe::Recording;
use crate::{Error, Result, tree};

/// Where an entry goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot<'a> {
    pub(super) parent: BorrowedFd<'a>,
    pub(super) name: &'a [u8],
    /// From the root of the layer, for messages.
    pub(super) path: &'a [u8],
}

impl Spot<'_> {
    fn failed(&self, call: &str, error: Errno) -> Error {
        failed(self.path, call, Some(error))
    }
}

/// A new file, empty.
pub(super) fn make_file(spot: Spot<'_>) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file =
        openat(spot.parent, spot.name, flags, Mode::RUSR | Mode::WUSR).map_err(|e| spot.failed("open", e))?;
    Ok(file.into())
}

/// Content, then attributes: writing would take setuid and capabilities away.
pub(super) fn fill_file<R: BufRead>(
    spot: Spot<'_>,
    file: &File,
    entry: &Entry,
    archive: &mut Archive<Recording<R>>,
) -> Result<()> {
    let whole = [(0, archive.left())];
    let parts = entry.sparse.as_deref().unwrap_or(&whole);
    archive.source_mut().begin_file(spot.parent, spot.name, parts)?;
    finish_file(spot, file, entry, archive)
}

/// The same for a file whose content was begun.
pub(super) fn finish_file<R: BufRead>(
    spot: Spot<'_>,
    file: &File,
    entry: &Entry,
    archive: &mut Archive<Recording<R>>,
) -> Result<()> {
    let filled = match &entry.sparse {
        None => write_all(spot, file, archive),
        Some(segments) => write_segments(spot, file, entry.size, segments, archive),
    };
    archive.source_mut().end_file();
    filled?;
    set_open_attributes(file.as_fd(), spot.path, entry)
}

fn write_all<R: BufRead>(spot: Spot<'_>, mut file: &File, archive: &mut Archive<R>) -> Result<()> {
    loop {
        let bytes = archive.fill()?;
        if bytes.is_empty() {
            return Ok(());
        }
        file.write_all(bytes).map_err(|e| io_failed(spot, "write", e))?;
        let count = bytes.len();
        archive.consume(count);
    }
}

fn write_segments<R: BufRead>(
    spot: Spot<'_>,
    file: &File,
    size: u64,
    segments: &[(u64, u64)],
    archive: &mut Archive<R>,
) -> Result<()> {
    file.set_len(size).map_err(|e| io_failed(spot, "ftruncate", e))?;
    segments.iter().try_for_each(|(offset, length)| write_segment(spot, file, *offset, *length, archive))
}

fn write_segment<R: BufRead>(
    spot: Spot<'_>,
    file: &File,
    mut offset: u64,
    mut length: u64,
    archive: &mut Archive<R>,
) -> Result<()> {
    while length > 0 {
        let bytes = archive.fill()?;
        let count = bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        if count == 0 {
            return Err(Error::Archive("a sparse member is cut short".to_owned()));
        }
        file.write_all_at(&bytes[..count], offset).map_err(|e| io_failed(spot, "pwrite", e))?;
        archive.consume(count);
        offset += count as u64;
        length -= count as u64;
    }
    Ok(())
}

pub(super) fn io_failed(spot: Spot<'_>, call: &'static str, error: std::io::Error) -> Error {
    Error::Entry {
        path: std::path::PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(
            spot.path,
        )),
        why: call.to_owned(),
        source: Some(error),
    }
}

/// Makes a folder, or finds one; `false` is something else at its place.
pub(super) fn make_folder(spot: Spot<'_>) -> Result<bool> {
    // Attributes come last; until then others need not look in.
    match mkdirat(spot.parent, spot.name, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(kind(spot)? == FileType::Directory),
        Err(error) => Err(spot.failed("mkdir", error)),
    }
}

pub(super) fn make_symbolic_link(spot: Spot<'_>, target: &[u8]) -> Result<()> {
    symlinkat(target, spot.parent, spot.name).map_err(|e| spot.failed("symlink", e))
}

/// Hard links to symbolic links link the link.
pub(super) fn make_hard_link(spot: Spot<'_>, from: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    linkat(from, name, spot.parent, spot.name, AtFlags::empty()).map_err(|error| match error {
        Errno::PERM => failed(spot.path, "a hard link to a folder, or to what may not be linked", None),
        _ => spot.failed("link", error),
    })
}

/// A device or a fifo.
pub(super) fn make_node(spot: Spot<'_>, entry: &Entry) -> Result<()> {
    let kind = match entry.kind {
        EntryKind::CharDevice => FileType::CharacterDevice,
        EntryKind::BlockDevice => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = makedev(entry.device.0, entry.device.1);
    mknodat(spot.parent, spot.name, kind, Mode::RUSR | Mode::WUSR, device).map_err(|error| match error {
        Errno::PERM => {
            spot.failed("mknod: making device nodes is not permitted here (it needs CAP_MKNOD)", error)
        }
        _ => spot.failed("mknod", error),
    })
}

/// Whether overlay's whiteout is at this place.
pub(super) fn is_whiteout(spot: Spot<'_>) -> Result<bool> {
    let stat =
        statat(spot.parent, spot.name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| spot.failed("lstat", e))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
}

/// Whether a folder is at this place; nothing may be by now.
pub(super) fn is_folder(spot: Spot<'_>) -> Result<bool> {
    match statat(spot.parent, spot.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(spot.failed("lstat", error)),
    }
}

/// Whether anything is at this place.
pub(super) fn exists(spot: Spot<'_>) -> Result<bool> {
    match statat(spot.parent, spot.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(spot.failed("lstat", error)),
    }
}

fn kind(spot: Spot<'_>) -> Result<FileType> {
    let stat =
        statat(spot.parent, spot.name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| spot.failed("lstat", e))?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// Removes what is at this place, a whole tree if it is one.
pub(super) fn remove(spot: Spot<'_>) -> Result<()> {
    let name =
        std::ffi::CString::new(spot.name).map_err(|_| failed(spot.path, "the path holds a NUL", None))?;
    tree::remove(spot.parent, &name).map_err(|e| io_failed(spot, "remove what an earlier entry made", e))
}

/// Owner, mode, time and extended attributes of what has no descriptor of its own.
pub(super) fn set_attributes(spot: Spot<'_>, entry: &Entry) -> Result<()> {
    let (uid, gid) = owner(entry);
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    chownat(spot.parent, spot.name, uid, gid, nofollow).map_err(|e| spot.failed(chown_of(e), e))?;
    for (name, value) in kept(entry) {
        // There is no setxattrat before Linux 6.13; the folder's descriptor has a path in /proc.
        let mut path = format!("/proc/self/fd/{}/", spot.parent.as_raw_fd()).into_bytes();
        path.extend_from_slice(spot.name);
        let set = lsetxattr(&path[..], name, value, XattrFlags::empty());
        check_attribute(spot.path, name, set)?;
    }
    if entry.kind != EntryKind::SymbolicLink {
        change_mode(spot, mode(entry))?;
    }
    utimensat(spot.parent, spot.name, &times(entry), nofollow).map_err(|e| spot.failed("utimensat", e))
}

/// chmod(2) of what is at this place, and never of what a symbolic link at its place leads to: in a
/// running container it may have been replaced by now.
fn change_mode(spot: Spot<'_>, mode: Mode) -> Result<()> {
    let file = open_path(spot.parent, spot.name).map_err(|e| spot.failed("open", e))?;
    let stat = rustix::fs::fstat(&file).map_err(|e| spot.failed("fstat", e))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(spot.failed("chmod", Errno::LOOP));
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)
        .map_err(|e| spot.failed("chmod", e))
}

/// What is in a folder, a symbolic link itself, without reading it.
pub(super) fn open_path(folder: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// The attributes of a folder, when everything in it was made.
pub(super) fn set_folder_attributes(folder: BorrowedFd<'_>, path: &[u8], entry: &Entry) -> Result<()> {
    set_open_attributes(folder, path, entry)
}

fn set_open_attributes(file: BorrowedFd<'_>, path: &[u8], entry: &Entry) -> Result<()> {
    let fail = |call: &'static str| move |error| failed(path, call, Some(error));
    let (uid, gid) = owner(entry);
    fchown(file, uid, gid).map_err(|e| fail(chown_of(e))(e))?;
    for (name, value) in kept(entry) {
        check_attribute(path, name, fsetxattr(file, name, value, XattrFlags::empty()))?;
    }
    // After chown, which takes setuid and setgid away.
    fchmod(file, mode(entry)).map_err(fail("chmod"))?;
    futimens(file, &times(entry)).map_err(fail("futimens"))
}

/// What is said of a chown(2) that failed: in a user namespace there may be no such id.
fn chown_of(error: Errno) -> &'static str {
    if error == Errno::INVAL && insula_sys::process::in_user_namespace() {
        "chown to an id that this user has not (subuid(5), subgid(5))"
    } else {
        "chown"
    }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// The attributes that a layer may have.
pub(super) fn kept(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    let has_content = matches!(entry.kind, EntryKind::File | EntryKind::Folder);
    entry
        .xattrs
        .iter()
        .map(|(name, value)| (&name[..], &value[..]))
        .filter(move |(name, _)| is_kept(name) && (has_content || !name.starts_with(b"user.")))
}

/// Whether a layer may have this attribute.
pub(super) fn is_kept(name: &[u8]) -> bool {
    let own = |prefix: &[u8], overlay: &[u8]| name.starts_with(prefix) && !name.starts_with(overlay);
    if name.contains(&0) || name.len() > 255 {
        return false;
    }
    matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
        || own(b"user.", b"user.overlay.")
        || own(b"trusted.", b"trusted.overlay.")
}

/// What the file system cannot keep is left out, except capabilities: programs need them.
fn check_attribute(path: &[u8], name: &[u8], set: rustix::io::Result<()>) -> Result<()> {
    match set {
        Err(Errno::OPNOTSUPP) if name != b"security.capability" => Ok(()),
        Err(error) => Err(failed(path, format!("setxattr {}", String::from_utf8_lossy(name)), Some(error))),
        Ok(()) => Ok(()),
    }
}
