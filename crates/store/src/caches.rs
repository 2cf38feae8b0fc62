//! Folders that commands of builds keep files in from one build to the next. They are the daemon's to name;
//! one that is there is complete.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::root::{discard, make_folder, remove_any};
use crate::usage::Count;
use crate::{Error, Result, Store};

/// Begins the names of what is on its way in or out.
const PENDING: char = '.';

/// Whose a new folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheOwner {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl Store {
    fn caches_dir(&self) -> PathBuf {
        self.root().join("caches")
    }

    /// The folder of a cache, made if it is not there: `fill` puts in what it begins with.
    pub fn make_cache(
        &self,
        key: &str,
        owner: CacheOwner,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let valid = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !valid {
            return Err(Error::BadName { what: "cache", name: key.chars().take(300).collect() });
        }
        let folder = self.caches_dir().join(key);
        if folder.is_dir() {
            return Ok(folder);
        }
        let pending = self.caches_dir().join(format!("{PENDING}{}", insula_base::random_hex(8)));
        make_folder(&pending, 0o700)?;
        let made = fill(&pending).and_then(|()| {
            std::os::unix::fs::chown(&pending, Some(owner.uid), Some(owner.gid))
                .map_err(|e| Error::io("chown", &pending, e))?;
            fs::set_permissions(&pending, Permissions::from_mode(owner.mode))
                .map_err(|e| Error::io("chmod", &pending, e))?;
            fs::rename(&pending, &folder).map_err(|e| Error::io("rename", &pending, e))
        });
        if made.is_err() {
            remove_any(&pending)?;
        }
        made.map(|()| folder)
    }

    /// Where a cache is, or would be.
    #[must_use]
    pub fn cache_path(&self, key: &str) -> PathBuf {
        self.caches_dir().join(key)
    }

    /// Removes a cache; that it is not there is no error.
    pub fn remove_cache(&self, key: &str) -> Result<()> {
        discard(&self.caches_dir().join(key), &self.caches_dir())
    }

    /// Bytes of a cache on the disk.
    pub fn cache_size(&self, key: &str) -> Result<u64> {
        Count::of(self.root())?.tree(&self.caches_dir().join(key))
    }

    /// Every cache.
    pub fn caches(&self) -> Result<Vec<String>> {
        let names = names(&self.caches_dir())?;
        Ok(names.into_iter().filter(|name| !name.starts_with(PENDING)).collect())
    }

    /// Makes the folder of all caches, and removes what is half in it or half out.
    pub(crate) fn open_caches(&self) -> Result<()> {
        let folder = self.caches_dir();
        crate::root::make_private(&folder)?;
        for name in names(&folder)? {
            if name.starts_with(PENDING) {
                remove_any(&folder.join(name))?;
            }
        }
        Ok(())
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let fail = |error| Error::io("readdir", folder, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        names.extend(entry.map_err(fail)?.file_name().into_string().ok());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let meta = folder.path().metadata().unwrap();
        let owner = {
            use std::os::unix::fs::MetadataExt as _;
            CacheOwner { uid: meta.uid(), gid: meta.gid(), mode: 0o750 }
        };
        let failed = store.make_cache("a", owner, |at| {
            fs::write(at.join("half"), "").unwrap();
            Err(Error::Defect("no"))
        });
        assert!(failed.is_err() && store.caches().unwrap().is_empty());
        let made = store
            .make_cache("a", owner, |at| fs::write(at.join("x"), "1").map_err(|e| Error::io("write", at, e)));
        let made = made.unwrap();
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o7777, 0o750);
        // It is there: nothing is put into it again.
        store.make_cache("a", owner, |_| Err(Error::Defect("no"))).unwrap();
        assert!(store.cache_size("a").unwrap() > 0);
        assert!(store.make_cache("../b", owner, |_| Ok(())).is_err());
        fs::create_dir(folder.path().join("caches/.left")).unwrap();
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.caches().unwrap(), ["a"]);
        assert!(!folder.path().join("caches/.left").exists());
        store.remove_cache("a").unwrap();
        store.remove_cache("a").unwrap();
        assert!(store.caches().unwrap().is_empty());
    }
}
