//! `diff`: what a container's writable layer changes of its image.
//!
//! Docker's rules: a path that the image has is changed, one that it has not is added, one that is
//! hidden is deleted. A folder that the image has counts as changed when something below it
//! changed, or its own owner, mode or time. Folders and files that the engine itself made to mount
//! on are no change.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use insula_models::ChangeItem;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::tree::{Dir, Entry, is_whiteout, open_folder};
use crate::{Error, Result};

const MODIFIED: u8 = 0;
const ADDED: u8 = 1;
const DELETED: u8 = 2;

/// Deeper trees are not walked: each level holds descriptors of all layers.
const DEPTH_MAX: usize = 256;

/// The writable layer and the image's, the latter lowest first.
#[derive(Debug, Clone)]
pub struct ChangesRequest {
    pub upper: PathBuf,
    pub lower: Vec<PathBuf>,
    /// Absolute paths that the engine mounts on or hides.
    pub ignored: BTreeSet<PathBuf>,
}

/// Every change, sorted by path. Walks the whole writable layer.
pub fn changes(request: &ChangesRequest) -> Result<Vec<ChangeItem>> {
    let upper = Dir::merged(vec![open_folder(&request.upper)?]);
    let folders = request.lower.iter().rev().map(|path| open_folder(path)).collect::<Result<Vec<_>>>()?;
    let mut walk = Walk { ignored: &request.ignored, items: Vec::new() };
    walk.folder(&upper, Some(&Dir::merged(folders)), Path::new("/"), 0)?;
    walk.items.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.items)
}

struct Walk<'a> {
    ignored: &'a BTreeSet<PathBuf>,
    items: Vec<ChangeItem>,
}

/// What was found below a folder.
#[derive(Debug, Clone, Copy, Default)]
struct Below {
    /// Something that is reported.
    reported: bool,
    /// Something that the engine made, which changed the folder's time.
    ignored: bool,
}

impl Walk<'_> {
    /// Compares a folder of the writable layer with what the image has at its path.
    fn folder(&mut self, upper: &Dir, lower: Option<&Dir>, path: &Path, depth: usize) -> Result<Below> {
        let fail = |error: Errno| Error::io("read the changes of", path, error);
        if depth > DEPTH_MAX {
            return Err(fail(Errno::NAMETOOLONG));
        }
        let mut below = Below::default();
        for name in upper.raw_names().map_err(fail)? {
            let at = path.join(&name);
            let before = match lower {
                Some(lower) => lower.lookup(&name).map_err(fail)?,
                None => None,
            };
            if self.ignored.contains(&at) {
                below.ignored = true;
                // A volume's folder may hold what was written before; the place itself is the engine's.
                continue;
            }
            let Some((stat, dir)) = upper.raw_lookup(&name).map_err(fail)? else { continue };
            let inner = self.entry(&at, &stat, dir.as_ref(), before, depth)?;
            below.reported |= inner.reported;
            below.ignored |= inner.ignored;
        }
        Ok(below)
    }

    fn entry(
        &mut self,
        path: &Path,
        stat: &Stat,
        dir: Option<&Dir>,
        before: Option<Entry>,
        depth: usize,
    ) -> Result<Below> {
        if is_whiteout(stat) {
            if before.is_some() {
                self.report(path, DELETED);
            }
            return Ok(Below { reported: before.is_some(), ignored: false });
        }
        let Some(dir) = dir else {
            self.report(path, if before.is_some() { MODIFIED } else { ADDED });
            return Ok(Below { reported: true, ignored: false });
        };
        let fail = |error: Errno| Error::io("read the changes of", path, error);
        let lower = before.as_ref().and_then(|entry| entry.dir.as_ref());
        let mut inner = Below::default();
        if let Some(lower) = lower.filter(|_| dir.is_opaque().unwrap_or(false)) {
            for name in lower.names().map_err(fail)? {
                if dir.raw_lookup(&name).map_err(fail)?.is_none() && !self.ignored.contains(&path.join(&name))
                {
                    self.report(&path.join(&name), DELETED);
                    inner.reported = true;
                }
            }
        }
        let walked = self.folder(dir, lower, path, depth + 1)?;
        inner.reported |= walked.reported;
        inner.ignored |= walked.ignored;
        match &before {
            // A folder that the engine made on the way to what it mounts is no change either.
            None if inner.ignored && !inner.reported => return Ok(inner),
            None => self.report(path, ADDED),
            Some(before) if inner.reported || differs(&before.stat, stat, inner.ignored) => {
                self.report(path, MODIFIED);
            }
            Some(_) => return Ok(inner),
        }
        Ok(Below { reported: true, ..inner })
    }

    fn report(&mut self, path: &Path, kind: u8) {
        self.items.push(ChangeItem { path: path.to_string_lossy().into_owned(), kind });
    }
}

/// Whether a folder's own attributes changed. `touched`: its time tells nothing.
fn differs(before: &Stat, after: &Stat, touched: bool) -> bool {
    let kind = |stat: &Stat| FileType::from_raw_mode(stat.st_mode);
    kind(before) != kind(after)
        || (before.st_mode, before.st_uid, before.st_gid) != (after.st_mode, after.st_uid, after.st_gid)
        || (!touched && (before.st_mtime, before.st_mtime_nsec) != (after.st_mtime, after.st_mtime_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, XattrFlags, mknodat, setxattr};
    use std::fs;
    use std::process::Command;

    /// A folder `lower` and a copy of it, times included, to become the writable layer.
    struct Layers {
        folder: tempfile::TempDir,
    }

    impl Layers {
        fn new(lower: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for path in ["lower", "upper"] {
                fs::create_dir(folder.path().join(path)).unwrap();
            }
            for path in lower {
                make(&folder.path().join("lower").join(path));
            }
            Self { folder }
        }

        fn upper(&self, path: &str) -> PathBuf {
            self.folder.path().join("upper").join(path)
        }

        /// As overlayfs copies a folder up: with its attributes.
        fn copy_up(&self, path: &str) {
            fs::create_dir_all(self.upper(path)).unwrap();
            self.same_times(path);
        }

        fn same_times(&self, path: &str) {
            let from = self.folder.path().join("lower").join(path);
            let status = Command::new("touch").arg("-r").arg(from).arg(self.upper(path)).status().unwrap();
            assert!(status.success());
        }

        fn white_out(&self, path: &str) {
            mknodat(CWD, self.upper(path), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        }

        fn changes(&self, ignored: &[&str]) -> Vec<String> {
            let request = ChangesRequest {
                upper: self.folder.path().join("upper"),
                lower: vec![self.folder.path().join("lower")],
                ignored: ignored.iter().map(PathBuf::from).collect(),
            };
            let letter = |kind| ["C", "A", "D"][usize::from(kind)];
            changes(&request)
                .unwrap()
                .iter()
                .map(|item| format!("{} {}", letter(item.kind), item.path))
                .collect()
        }
    }

    fn make(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    #[test]
    fn paths_are_added_changed_and_deleted() {
        let layers = Layers::new(&["etc/hosts", "etc/passwd", "usr/lib/a", "usr/lib/b"]);
        layers.copy_up("usr/lib");
        layers.white_out("usr/lib/a");
        layers.white_out("usr/lib/never");
        make(&layers.upper("etc/hosts"));
        make(&layers.upper("srv/new/file"));
        assert_eq!(
            layers.changes(&[]),
            [
                "C /etc",
                "C /etc/hosts",
                "A /srv",
                "A /srv/new",
                "A /srv/new/file",
                "C /usr",
                "C /usr/lib",
                "D /usr/lib/a"
            ]
        );
    }

    #[test]
    fn a_folder_that_was_only_copied_is_no_change() {
        let layers = Layers::new(&["usr/lib/a"]);
        layers.copy_up("usr/lib");
        layers.same_times("usr");
        assert!(layers.changes(&[]).is_empty());
        fs::write(layers.upper("usr/lib/t"), "").unwrap();
        fs::remove_file(layers.upper("usr/lib/t")).unwrap();
        assert_eq!(layers.changes(&[]), ["C /usr", "C /usr/lib"]);
    }

    #[test]
    fn what_replaced_a_folder_hides_what_was_in_it() {
        let layers = Layers::new(&["opt/old", "opt/kept"]);
        make(&layers.upper("opt/kept"));
        make(&layers.upper("opt/new"));
        let set = setxattr(layers.upper("opt"), "user.overlay.opaque", b"y", XattrFlags::empty());
        if set == Err(Errno::NOTSUP) {
            eprintln!("skipped: the file system of temporary files has no user attributes");
            return;
        }
        set.unwrap();
        assert_eq!(layers.changes(&[]), ["C /opt", "C /opt/kept", "A /opt/new", "D /opt/old"]);
    }

    #[test]
    fn what_the_engine_made_is_no_change() {
        let layers = Layers::new(&["etc/passwd"]);
        make(&layers.upper("etc/hosts"));
        fs::create_dir_all(layers.upper("data/volume")).unwrap();
        assert!(layers.changes(&["/etc/hosts", "/data/volume"]).is_empty());
        make(&layers.upper("etc/mine"));
        assert_eq!(layers.changes(&["/etc/hosts", "/data/volume"]), ["C /etc", "A /etc/mine"]);
    }
}
