//! What an image has at the target of a new volume is copied into it, owners and all, so that the
//! volume begins as the image would have it. Half of it is worse than nothing, since a volume with something in
//! it is not filled again: beside its data stands what is being copied, and whoever finds that takes it back.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::tree::{Dir, Entry, Last, Tree, clean};
use crate::{Error, Result};

/// Folders below each other: past any real tree, short of this thread's stack.
const DEEPEST: usize = 256;

/// Beside the data of a volume that is being filled: the names that are copied, a zero behind each.
const FILLING: &str = "filling";

/// Takes back what was copied to `volume` when it was cut off. What others have put there has other names.
pub(crate) fn take_back(volume: &Path) -> Result<()> {
    let Some(list) = volume.parent().map(|folder| folder.join(FILLING)) else { return Ok(()) };
    let names = match std::fs::read(&list) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", &list, error)),
    };
    for name in names.split(|byte| *byte == 0).filter(|name| is_name(name)) {
        let path = volume.join(OsStr::from_bytes(name));
        let removed = match std::fs::symlink_metadata(&path) {
            Ok(stat) if stat.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, error));
            }
            _ => {}
        }
    }
    std::fs::remove_file(&list).map_err(|e| Error::io("remove", &list, e))
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && !matches!(name, b"." | b"..") && !name.contains(&b'/')
}

/// Fills the folder `volume` if it is empty. An image that has no folder at `target` gives nothing.
pub(super) fn fill(layers: &[PathBuf], hidden: &[String], target: &str, volume: &Path) -> Result<()> {
    let fail = |error| Error::io("copy the image's content to", volume, error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let to = rustix::fs::openat(CWD, volume, flags, Mode::empty()).map_err(fail)?;
    if !is_empty(volume)? {
        return Ok(());
    }
    let tree = Tree::image(layers, hidden)?;
    let place = match tree.resolve(&clean(target), Last::Follow) {
        Ok(place) => place,
        Err(Error::Io { source, .. }) if missing(&source) => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(from) = place.dir() else { return Ok(()) };
    let names = from.names().map_err(fail)?;
    let list = volume.with_file_name(FILLING);
    let text: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), &[0]].concat()).collect();
    insula_base::replace(&list, &text, 0o600, insula_base::Durability::Process)
        .map_err(|e| Error::io("write", &list, e))?;
    if let Err(error) = folder(&tree, from, &place.path, to.as_fd(), 0) {
        take_back(volume)?;
        return Err(fail(error));
    }
    std::fs::remove_file(&list).map_err(|e| Error::io("remove", &list, e))?;
    if let Some(top) = from.topmost() {
        let stat = rustix::fs::fstat(top).map_err(fail)?;
        own(&to, &stat).map_err(fail)?;
    }
    Ok(())
}

fn missing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn is_empty(folder: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(folder).map_err(|e| Error::io("readdir", folder, e))?;
    Ok(entries.next().is_none())
}

fn folder(tree: &Tree, from: &Dir, path: &Path, to: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
    if depth > DEEPEST {
        return Err(Errno::NAMETOOLONG);
    }
    for name in from.names()? {
        // Also below the target there may be what the image is to keep to itself.
        let Some(entry) = tree.look(from, path, &name)? else { continue };
        match (entry.kind(), &entry.dir) {
            (FileType::Directory, Some(inside)) => {
                rustix::fs::mkdirat(to, &name, Mode::RWXU)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(to, &name, flags, Mode::empty())?;
                folder(tree, inside, &path.join(&name), made.as_fd(), depth + 1)?;
                own(&made, &entry.stat)?;
            }
            _ => leaf(from, &name, &entry, to)?,
        }
    }
    Ok(())
}

fn leaf(from: &Dir, name: &OsStr, entry: &Entry, to: BorrowedFd<'_>) -> Result<(), Errno> {
    const NEW: OFlags = OFlags::CREATE.union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
    let stat = &entry.stat;
    match entry.kind() {
        FileType::RegularFile => {
            let source = from.open(name, entry)?;
            let made = rustix::fs::openat(to, name, OFlags::WRONLY | NEW, Mode::RUSR | Mode::WUSR)?;
            let (mut source, mut copy) = (std::fs::File::from(source), std::fs::File::from(made));
            std::io::copy(&mut source, &mut copy)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            own(&OwnedFd::from(copy), stat)
        }
        FileType::Symlink => {
            rustix::fs::symlinkat(from.read_link(name, entry)?, to, name)?;
            chown(to, name, stat)
        }
        kind @ (FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice) => {
            rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)?;
            chown(to, name, stat)
        }
        // A socket means nothing without who listens on it.
        _ => Ok(()),
    }
}

fn chown(to: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// Owner first: a change of owner takes the set-id bits away.
fn own(file: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::fchown(file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.cast_signed() };
    rustix::fs::futimens(
        file,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn half_of_it_is_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("layer/srv/sub")).unwrap();
        fs::create_dir_all(path("vol/_data/sub")).unwrap();
        fs::write(path("layer/srv/sub/b"), "b").unwrap();
        fs::write(path("layer/srv/a"), "a").unwrap();
        // What a daemon leaves that is killed in the middle, and what somebody else has put beside it.
        fs::write(path("vol/filling"), b"a\0sub\0../layer\0..\0\0").unwrap();
        fs::write(path("vol/_data/sub/b"), "").unwrap();
        fs::write(path("vol/_data/theirs"), "theirs").unwrap();
        take_back(&path("vol/_data")).unwrap();
        let names: Vec<_> =
            fs::read_dir(path("vol/_data")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["theirs"]);
        fs::remove_file(path("vol/_data/theirs")).unwrap();
        fill(&[path("layer")], &[], "/srv", &path("vol/_data")).unwrap();
        assert_eq!(fs::read_to_string(path("vol/_data/sub/b")).unwrap(), "b");
        assert!(!path("vol/filling").exists());
        take_back(&path("vol/_data")).unwrap();
        assert_eq!(fs::read_to_string(path("vol/_data/a")).unwrap(), "a");
    }

    #[test]
    fn the_merged_content_is_copied_once() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for folder in ["low/srv/sub", "high/srv", "high/data", "v/volume", "o/other"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        fs::write(path("low/srv/a"), "low").unwrap();
        fs::write(path("low/srv/sub/b"), "b").unwrap();
        fs::write(path("high/srv/a"), "high").unwrap();
        fs::set_permissions(path("high/srv/a"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("/srv", path("high/data/link")).unwrap();
        symlink("/etc", path("low/srv/out")).unwrap();
        let layers = [path("low"), path("high")];
        // By a link of the image's own, which stays inside.
        fill(&layers, &[], "/data/link", &path("v/volume")).unwrap();
        assert_eq!(fs::read_to_string(path("v/volume/a")).unwrap(), "high");
        assert_eq!(fs::metadata(path("v/volume/a")).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_to_string(path("v/volume/sub/b")).unwrap(), "b");
        assert_eq!(fs::read_link(path("v/volume/out")).unwrap(), Path::new("/etc"));
        fs::write(path("v/volume/a"), "mine").unwrap();
        fill(&layers, &[], "/srv", &path("v/volume")).unwrap();
        assert_eq!(fs::read_to_string(path("v/volume/a")).unwrap(), "mine");
        fill(&layers, &[], "/nowhere/at/all", &path("o/other")).unwrap();
        fill(&layers, &[], "/srv/a/below", &path("o/other")).unwrap();
        assert_eq!(fs::read_dir(path("o/other")).unwrap().count(), 0);
    }

    #[test]
    fn what_the_image_hides_is_not_copied() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for folder in ["low/etc/keys", "low/root", "v/volume", "o/other"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        for file in ["low/etc/shadow", "low/etc/passwd", "low/etc/keys/k", "low/root/token"] {
            fs::write(path(file), "secret").unwrap();
        }
        let hidden: Vec<String> = ["/etc/shadow", "/etc/keys", "/root"].map(str::to_owned).into();
        fill(&[path("low")], &hidden, "/etc", &path("v/volume")).unwrap();
        assert!(path("v/volume/passwd").exists() && !path("v/volume/shadow").exists());
        assert_eq!(fs::read_dir(path("v/volume/keys")).unwrap().count(), 0);
        fill(&[path("low")], &hidden, "/root", &path("o/other")).unwrap();
        assert_eq!(fs::read_dir(path("o/other")).unwrap().count(), 0);
    }
}
