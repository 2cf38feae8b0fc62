//! Places below the container's root: found by openat2(2), so that no link of the image leads out of it, and made
//! where they are absent.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// As many as the kernel follows, path_resolution(7).
const MOST_LINKS: u32 = 40;

/// How often a place is looked for while others mount or rename.
const ATTEMPTS: u32 = 1000;

const PLAIN: Mode = Mode::from_raw_mode(0o755);

/// What is at `path` below `root`; links are followed but never out of it.
pub(super) fn below(root: &OwnedFd, path: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
    let path = path.as_ref();
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    open(root, path, OFlags::PATH | OFlags::CLOEXEC)
}

/// The same, opened with flags. The kernel says EAGAIN where a path has a `..` and anything of the host was mounted or
/// a folder renamed meanwhile (openat2(2)), which says nothing about this path.
pub(super) fn open(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 1..ATTEMPTS {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            found => return found,
        }
    }
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// The folder at `path` below `root`, made with its parents if absent.
pub(crate) fn make_folder(root: &OwnedFd, path: &str) -> Result<OwnedFd> {
    make_folder_as(root, path, PLAIN)
}

/// The same; if it is made, with this mode.
pub(crate) fn make_folder_as(root: &OwnedFd, path: &str, mode: Mode) -> Result<OwnedFd> {
    match below(root, path) {
        Err(Errno::NOENT) => make_parts(root, &followed(root, path)?, path, mode),
        found => found.context("openat2", path),
    }
}

/// The file at `path` below `root`, made empty if absent.
pub(super) fn make_file(root: &OwnedFd, path: &str) -> Result<OwnedFd> {
    match below(root, path) {
        Err(Errno::NOENT) => {}
        found => return found.context("openat2", path),
    }
    let led_to = followed(root, path)?;
    let (Some(parent), Some(name)) = (led_to.parent(), led_to.file_name()) else {
        return Err(Error::Invalid(format!("path {path:?} names no file")));
    };
    let parent = make_parts(root, parent, path, PLAIN)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        // Somebody else has made it, in a volume that others have too: what is there is looked at again.
        Ok(_) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).context("openat", path),
    }
    below(root, &led_to).context("openat2", path)
}

/// The folder at `plain`, which has no `..`, with this mode if it is made; for errors it is `path`.
fn make_parts(root: &OwnedFd, plain: &Path, path: &str, mode: Mode) -> Result<OwnedFd> {
    let mut so_far = PathBuf::new();
    let mut names = plain.iter().peekable();
    while let Some(name) = names.next() {
        let parent = below(root, &so_far).context("openat2", path)?;
        match rustix::fs::mkdirat(&parent, name, if names.peek().is_some() { PLAIN } else { mode }) {
            Ok(()) | Err(Errno::EXIST) => so_far.push(name),
            Err(error) => return Err(error).context("mkdirat", path),
        }
    }
    below(root, plain).context("openat2", path)
}

/// Where `path` leads below `root`, and be it to what is not there: the kernel says where no link leads that leads
/// nowhere yet. What is found is only names: whoever changes a link meanwhile, in a volume that others have too, gains
/// nothing, since each is opened below the root again.
fn followed(root: &OwnedFd, path: &str) -> Result<PathBuf> {
    let mut so_far = PathBuf::new();
    let mut left = names(Path::new(path));
    let (mut links, mut missing) = (0, false);
    while let Some(name) = left.pop() {
        if name == ".." {
            if missing {
                // As for the kernel, nothing is above what is not there.
                return Err(Errno::NOENT).context("openat2", path);
            }
            so_far.pop();
            continue;
        }
        match below(root, &so_far).and_then(|folder| link_at(&folder, &name)) {
            Ok(target) if links < MOST_LINKS => {
                links += 1;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    so_far.clear();
                }
                left.extend(names(&target));
            }
            Ok(_) | Err(Errno::LOOP) => return Err(Errno::LOOP).context("openat2", path),
            // It is no link.
            Err(Errno::INVAL) => so_far.push(name),
            Err(Errno::NOENT) => {
                missing = true;
                so_far.push(name);
            }
            Err(error) => return Err(error).context("readlinkat", path),
        }
    }
    Ok(so_far)
}

/// What a link says. One of `/proc` that leads to an open file (`/proc/self/fd/3`) says a path too, which is not where
/// it leads: it is refused, as by [`below`].
fn link_at(folder: &OwnedFd, name: &OsStr) -> Result<CString, Errno> {
    let target = rustix::fs::readlinkat(folder, name, Vec::new())?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // Not in a root: an absolute link would be looked for below the folder, and found to be itself.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve) {
        Err(Errno::LOOP) => Err(Errno::LOOP),
        _ => Ok(target),
    }
}

/// The names of a path and its `..`, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let names =
        path.components().rev().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn handle(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn what_links_lead_to_is_made_below_the_root() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        let handle = handle(&root);
        // As systemd-resolved leaves it; above the root; to a name that the link's own folder has too.
        let links =
            [("resolv.conf", "../run/stub/resolv.conf"), ("up", "../../../../out/up"), ("hosts", "/hosts")];
        for (name, target) in links {
            symlink(target, root.join("etc").join(name)).unwrap();
            make_file(&handle, &format!("/etc/{name}")).unwrap();
        }
        for made in ["run/stub/resolv.conf", "out/up", "hosts"] {
            assert!(root.join(made).is_file(), "{made}");
        }
        symlink("/far/away", root.join("link")).unwrap();
        make_folder(&handle, "/link/../beside/inner").unwrap_err();
        make_folder(&handle, "/link/inner").unwrap();
        assert!(root.join("far/away/inner").is_dir());
        make_folder(&handle, "/link/../beside").unwrap();
        assert!(root.join("far/beside").is_dir());
        let left: Vec<_> =
            std::fs::read_dir(place.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["root"], "nothing is made outside");
    }

    #[test]
    fn links_in_a_circle_and_those_to_open_files_are_refused() {
        let place = tempfile::tempdir().unwrap();
        symlink("b", place.path().join("a")).unwrap();
        symlink("a", place.path().join("b")).unwrap();
        for name in ["/a", "/a/inner"] {
            make_folder(&handle(place.path()), name).unwrap_err();
            make_file(&handle(place.path()), name).unwrap_err();
        }
        let host = handle(Path::new("/"));
        let folder = handle(place.path());
        let number = std::os::fd::AsRawFd::as_raw_fd(&folder);
        let through = format!("/proc/self/fd/{number}/made");
        assert_eq!(followed(&host, &through).unwrap_err().to_string(), format!("openat2 {through}"));
        make_folder(&host, &through).unwrap_err();
        assert!(!place.path().join("made").exists());
    }
}
