//! Whole trees of files: removed, and shared. The trees come from images and containers, so they
//! may be of any depth and hold links to anywhere: everything goes by descriptors, nothing is
//! followed, and mounts are not entered.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, linkat, mkdirat,
    openat2, renameat, statat, unlinkat,
};
use rustix::io::Errno;

/// Folders within folders that are shared; what is deeper was made to hurt.
const DEPTH_MAX: usize = 256;

/// Removes `name` in `parent`, a file or a whole tree. That it is not there is no error.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    if unlink(parent, name)? {
        return Ok(());
    }
    empty(open_folder(parent, name)?.as_fd())?;
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes everything in a folder.
///
/// Trees deeper than two are flattened on the way: folders move up to `top` before they are
/// emptied. So no depth exhausts descriptors or the stack.
pub(crate) fn empty(top: BorrowedFd<'_>) -> io::Result<()> {
    let mut moved = Moved { prefix: insula_base::random_hex(8), count: 0 };
    loop {
        let names = names(top)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            if !unlink(top, &name)? {
                flatten(top, &name, &mut moved)?;
                unlinkat(top, &*name, AtFlags::REMOVEDIR)?;
            }
        }
    }
}

struct Moved {
    prefix: String,
    count: u64,
}

fn flatten(top: BorrowedFd<'_>, name: &CStr, moved: &mut Moved) -> io::Result<()> {
    let folder = open_folder(top, name)?;
    for inner in names(folder.as_fd())? {
        if !unlink(folder.as_fd(), &inner)? {
            moved.count += 1;
            renameat(&folder, &*inner, top, format!(".{}-{}", moved.prefix, moved.count))?;
        }
    }
    Ok(())
}

/// Removes a file or an empty folder; `false` is a folder that is not empty.
fn unlink(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        // POSIX's answer for a folder is EPERM, Linux' is EISDIR.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn open_folder(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(parent, name, flags, Mode::empty(), resolve)?)
}

pub(crate) fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Makes the empty folder `to` look like `from`: folders anew, everything else as hard links. Both
/// are unpacked layers, which nobody changes.
pub(crate) fn share(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    share_below(from, to, 0)
}

fn share_below(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("the folders of the layer are nested too deep"));
    }
    for name in names(from)? {
        let stat = statat(from, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            mkdirat(to, &*name, Mode::RWXU)?;
            share_below(open_folder(from, &name)?.as_fd(), open_folder(to, &name)?.as_fd(), depth + 1)?;
        } else {
            linkat(from, &*name, to, &*name, AtFlags::empty())?;
        }
    }
    copy_attributes(from, to)
}

fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    copy_ownership(from, to)?;
    let mut list = Vec::with_capacity(64 << 10);
    match rustix::fs::flistxattr(from, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::with_capacity(64 << 10);
        rustix::fs::fgetxattr(from, name, rustix::buffer::spare_capacity(&mut value))?;
        rustix::fs::fsetxattr(to, name, &value, rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}

/// Owner, mode and time of a folder.
pub(crate) fn copy_ownership(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
    rustix::fs::futimens(to, &Timestamps { last_access: time, last_modification: time })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn trees_of_any_depth_are_removed_and_links_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        fs::create_dir(folder.path().join("tree")).unwrap();
        std::os::unix::fs::symlink(&outside, folder.path().join("tree/link")).unwrap();
        // Deeper than any path may be long, and than there are descriptors.
        let mut at: OwnedFd = File::open(folder.path().join("tree")).unwrap().into();
        for _ in 0..5000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            mkdirat(&at, "e", Mode::RWXU).unwrap();
            at = open_folder(at.as_fd(), c"d").unwrap();
        }
        let top = File::open(folder.path()).unwrap();
        remove(top.as_fd(), c"tree").unwrap();
        remove(top.as_fd(), c"tree").unwrap();
        assert!(!folder.path().join("tree").exists());
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn shared_trees_share_files_but_not_folders() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("file", from.join("a/b/link")).unwrap();
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o1750)).unwrap();
        share(File::open(&from).unwrap().as_fd(), File::open(&to).unwrap().as_fd()).unwrap();
        let inode = |path: std::path::PathBuf| fs::symlink_metadata(path).unwrap().ino();
        assert_eq!(inode(from.join("a/b/file")), inode(to.join("a/b/file")));
        assert_eq!(inode(from.join("a/b/link")), inode(to.join("a/b/link")));
        assert_ne!(inode(from.join("a")), inode(to.join("a")));
        assert_eq!(fs::metadata(to.join("a")).unwrap().permissions().mode() & 0o7777, 0o1750);
        assert_eq!(
            fs::metadata(to.join("a")).unwrap().mtime(),
            fs::metadata(from.join("a")).unwrap().mtime()
        );
    }
}
