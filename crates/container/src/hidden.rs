//! Places of a root file system that are to be empty inside: the host image's secrets.
//!
//! They are hidden in the writable layer, by an opaque folder or a whiteout (kernel document
//! `filesystems/overlayfs`), not by mounts on top: what is hidden can then be used afresh inside,
//! and nothing inside can unmount its way back.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use insula_spec::plan::RootfsPlan;
use insula_sys::process::overlay_opaque;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// Prepares the writable layer of a plan so that its hidden paths are empty. May be repeated.
pub(crate) fn hide(plan: &RootfsPlan) -> Result<()> {
    if plan.hidden.is_empty() {
        return Ok(());
    }
    let (Some(upper), Some(lower)) = (&plan.upper, plan.layers.last()) else {
        return Err(Error::Unsupported("hidden paths need a writable layer".to_owned()));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lower = rustix::fs::open(lower, flags, Mode::empty()).context("open", lower.display())?;
    let upper =
        rustix::fs::open(&upper.upper, flags, Mode::empty()).context("open", upper.upper.display())?;
    plan.hidden.iter().try_for_each(|path| hide_one(&lower, &upper, path))
}

fn hide_one(lower: &OwnedFd, upper: &OwnedFd, path: &str) -> Result<()> {
    let parts = parts(path)?;
    let Some((last, parents)) = parts.split_last() else {
        return Err(Error::Invalid("the root itself cannot be hidden".to_owned()));
    };
    let mut at = PathBuf::new();
    let mut above = rustix::io::fcntl_dupfd_cloexec(upper, 0).context("fcntl", path)?;
    for part in parents {
        at.push(part);
        match look(lower, &at)? {
            Some(stat) if is_folder(&stat) => match folder(&above, part, &stat)? {
                Some(folder) => above = folder,
                None => return Ok(()),
            },
            // A link or nothing: the path as written does not exist below.
            _ => return Ok(()),
        }
    }
    at.push(last);
    match look(lower, &at)? {
        None => Ok(()),
        Some(stat) if is_folder(&stat) => match folder(&above, last, &stat)? {
            Some(folder) => opaque(&folder, &at),
            None => Ok(()),
        },
        Some(_) => whiteout(&above, last),
    }
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn parts(path: &str) -> Result<Vec<&Path>> {
    Path::new(path)
        .components()
        .filter(|part| *part != Component::RootDir)
        .map(|part| match part {
            Component::Normal(name) => Ok(Path::new(name)),
            _ => Err(Error::Invalid(format!("hidden path {path:?} is not plain"))),
        })
        .collect()
}

/// What is there, links not followed.
fn look(lower: &OwnedFd, path: &Path) -> Result<Option<Stat>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(lower, path, flags, Mode::empty(), resolve) {
        Ok(file) => rustix::fs::fstat(file.as_fd()).map(Some).context("fstat", path.display()),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error).context("openat2", path.display()),
    }
}

/// The folder in the writable layer, made as it is below. None where the container has put something
/// else in its place, which hides what is below and is not to be followed: it may be a link to anywhere.
fn folder(above: &OwnedFd, name: &Path, below: &Stat) -> Result<Option<OwnedFd>> {
    match rustix::fs::mkdirat(above, name, Mode::from_raw_mode(below.st_mode & 0o7777)) {
        Ok(()) => {
            let (uid, gid) = (Uid::from_raw(below.st_uid), Gid::from_raw(below.st_gid));
            rustix::fs::chownat(above, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .context("fchownat", name.display())?;
        }
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error).context("mkdirat", name.display()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(above, name, flags, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error).context("openat", name.display()),
    }
}

/// Also where the folder was there: whoever made it may have ended before this.
fn opaque(folder: &OwnedFd, path: &Path) -> Result<()> {
    rustix::fs::fsetxattr(folder, overlay_opaque(), b"y", XattrFlags::empty())
        .context("fsetxattr", path.display())
}

fn whiteout(upper: &OwnedFd, path: &Path) -> Result<()> {
    match rustix::fs::mknodat(upper, path, FileType::CharacterDevice, Mode::empty(), 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).context("mknodat", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use insula_spec::plan::UpperPlan;

    use super::*;

    fn plan(folder: &Path, hidden: &[&str]) -> RootfsPlan {
        for name in ["lower/etc/keys", "lower/var/lib/state", "upper", "outside/lib"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        fs::write(folder.join("lower/etc/shadow"), "x").unwrap();
        RootfsPlan {
            layers: vec![folder.join("lower")],
            upper: Some(UpperPlan {
                upper: folder.join("upper"),
                work: folder.join("work"),
                volatile: false,
            }),
            hidden: hidden.iter().map(|path| (*path).to_owned()).collect(),
            idmap: false,
            readonly: false,
            whole: false,
        }
    }

    fn needs_root() -> bool {
        if rustix::process::geteuid().is_root() {
            return false;
        }
        assert!(!std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default().contains("root"), "needs root");
        eprintln!("skipped: needs root");
        true
    }

    fn is_opaque(folder: &Path) -> bool {
        let mut value = [0; 1];
        rustix::fs::getxattr(folder, overlay_opaque(), &mut value[..]) == Ok(1) && value == *b"y"
    }

    #[test]
    fn what_was_half_hidden_is_hidden_in_the_end() {
        if needs_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(folder.path(), &["/etc/keys", "/etc/shadow", "/var/lib/state", "/no/such"]);
        // As a builder leaves it that was killed between two calls.
        fs::create_dir_all(folder.path().join("upper/etc/keys")).unwrap();
        hide(&plan).unwrap();
        hide(&plan).unwrap();
        let upper = |path: &str| folder.path().join("upper").join(path);
        assert!(is_opaque(&upper("etc/keys")) && is_opaque(&upper("var/lib/state")));
        assert!(!is_opaque(&upper("etc")) && !upper("no").exists());
        let stat = rustix::fs::lstat(upper("etc/shadow")).unwrap();
        assert_eq!((FileType::from_raw_mode(stat.st_mode), stat.st_rdev), (FileType::CharacterDevice, 0));
    }

    #[test]
    fn links_that_a_container_put_in_the_way_are_not_followed() {
        if needs_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(folder.path(), &["/etc/shadow", "/var/lib/state"]);
        let outside = folder.path().join("outside");
        symlink(&outside, folder.path().join("upper/etc")).unwrap();
        symlink(&outside, folder.path().join("upper/var")).unwrap();
        hide(&plan).unwrap();
        let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["lib"]);
        assert_eq!(fs::read_dir(outside.join("lib")).unwrap().count(), 0);
    }
}
