//! From a path to a place in a root file system.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{Dir, Entry, Tree};
use crate::{Error, Result};

/// Symbolic links on the way, as path_resolution(7) has it.
const LINKS_MAX: usize = 40;
/// Names on the way, links' targets included.
const NAMES_MAX: usize = 4096;

/// What is done with a symbolic link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    Follow,
    Keep,
}

/// Where a path leads.
#[derive(Debug)]
pub(crate) struct Place {
    /// Folders from the root to the parent; the root itself has none but itself.
    pub(crate) parents: Vec<(OsString, Dir)>,
    /// The last name; empty for the root.
    pub(crate) name: OsString,
    /// What is there; `None` for the root and for what does not exist.
    pub(crate) entry: Option<Entry>,
    /// Free of links and dots.
    pub(crate) path: PathBuf,
}

impl Place {
    /// The folder, if the place is one.
    pub(crate) fn dir(&self) -> Option<&Dir> {
        if self.name.is_empty() {
            return self.parents.last().map(|(_, dir)| dir);
        }
        self.entry.as_ref().and_then(|entry| entry.dir.as_ref())
    }

    /// The folder that holds the place.
    pub(crate) fn parent(&self) -> Option<&Dir> {
        self.parents.last().map(|(_, dir)| dir)
    }
}

impl Tree {
    /// Resolves an absolute path. Everything but its last part has to exist.
    pub(crate) fn resolve(&self, path: &Path, last: Last) -> Result<Place> {
        let fail = |error: Errno| Error::io("look up", path, error);
        let mut links = 0;
        // What is still to be walked, the next part last.
        let mut ahead: Vec<OsString> = parts(path);
        let mut parents = vec![(OsString::new(), self.root.try_clone().map_err(fail)?)];
        let mut at = PathBuf::from("/");
        let mut names = 0;
        while let Some(name) = ahead.pop() {
            names += 1;
            if names > NAMES_MAX {
                return Err(fail(Errno::NAMETOOLONG));
            }
            if name == ".." {
                if parents.len() > 1 {
                    parents.pop();
                    at.pop();
                }
                continue;
            }
            let Some((_, dir)) = parents.last() else { return Err(fail(Errno::NOENT)) };
            let entry = self.look(dir, &at, &name).map_err(fail)?;
            let is_last = ahead.is_empty();
            match entry {
                Some(entry) if entry.kind() == FileType::Symlink && !(is_last && last == Last::Keep) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(fail(Errno::LOOP));
                    }
                    let target = dir.read_link(&name, &entry).map_err(fail)?;
                    if Path::new(&target).is_absolute() {
                        parents.truncate(1);
                        at = PathBuf::from("/");
                    }
                    ahead.extend(parts(Path::new(&target)));
                }
                Some(Entry { dir: Some(dir), .. }) if !is_last => {
                    at.push(&name);
                    parents.push((name, dir));
                }
                Some(_) if !is_last => return Err(fail(Errno::NOTDIR)),
                None if !is_last => return Err(fail(Errno::NOENT)),
                entry => {
                    let path = at.join(&name);
                    return Ok(Place { parents, name, entry, path });
                }
            }
        }
        // It ended at a folder that was walked into: the root, or `..` or a link to the root.
        self.walked(parents, at).map_err(fail)
    }

    fn walked(&self, mut parents: Vec<(OsString, Dir)>, at: PathBuf) -> rustix::io::Result<Place> {
        let name = match parents.len() {
            0 | 1 => None,
            _ => parents.pop().map(|(name, _)| name),
        };
        let Some(name) = name else {
            return Ok(Place { parents, name: OsString::new(), entry: None, path: at });
        };
        let above = at.parent().unwrap_or(Path::new("/")).to_owned();
        let entry = match parents.last() {
            Some((_, dir)) => self.look(dir, &above, &name)?,
            None => None,
        };
        Ok(Place { parents, name, entry, path: at })
    }

    /// What `name` in the folder at `path` stands for, hidden places being empty.
    pub(crate) fn look(&self, dir: &Dir, path: &Path, name: &OsStr) -> rustix::io::Result<Option<Entry>> {
        let at = path.join(name);
        if let Some(source) = self.mounted(&at) {
            return Entry::mounted(source).map(Some);
        }
        let Some(mut entry) = dir.lookup(name)? else { return Ok(None) };
        if !self.hides(&at) {
            return Ok(Some(entry));
        }
        // What was made there since is in the writable layer.
        entry.dir = entry.dir.map(Dir::only_upper);
        let kept = entry.dir.is_some()
            || dir.upper().is_some_and(|upper| {
                rustix::fs::statat(upper, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
            });
        Ok(kept.then_some(entry))
    }
}

/// The names of a path, the first last; `.` and empty ones left out.
fn parts(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// An absolute path from one that a user wrote.
pub(crate) fn clean(path: &str) -> PathBuf {
    Path::new("/").join(path)
}
