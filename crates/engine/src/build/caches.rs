//! Folders of `RUN --mount=type=cache`: one for each id, with a record beside those of steps, and who uses them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use insula_base::Digest;
use insula_build::dockerfile::Sharing;
use insula_store::{CacheOwner, Collection, Store};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::cache::locked;
use crate::Result;

/// Folders that private users of one cache have at once; more of them wait.
const PRIVATE_MAX: usize = 64;

/// Copies of kept contexts that are remembered.
const COPIES_MAX: usize = 4096;

/// Who uses which cache.
#[derive(Debug, Default)]
pub(crate) struct Caches {
    used: Mutex<HashMap<String, Arc<RwLock<()>>>>,
    /// Held while a folder is made.
    making: Mutex<()>,
    /// Keys of copies, by what was copied of which context: nothing is read to know them.
    copies: Mutex<HashMap<String, String>>,
}

/// One use of a cache.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) key: String,
    _held: Held,
}

#[derive(Debug)]
enum Held {
    Beside(#[expect(dead_code, reason = "held until it is dropped")] OwnedRwLockReadGuard<()>),
    Alone(#[expect(dead_code, reason = "held until it is dropped")] OwnedRwLockWriteGuard<()>),
    /// Another one of the same command holds it.
    Along,
}

impl Guard {
    pub(super) fn along(other: &Self) -> Self {
        Self { key: other.key.clone(), _held: Held::Along }
    }
}

/// What a cache is found by: its id, and what it begins with.
pub(super) fn key(id: &str, from: &str) -> String {
    let mut hash = Sha256::new();
    for part in ["cache", id, from] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Digest::from_sha256(&hash.finalize().into()).hex().to_owned()
}

impl Caches {
    fn lock(&self, key: &str) -> Arc<RwLock<()>> {
        let mut used = locked(&self.used);
        used.retain(|_, lock| Arc::strong_count(lock) > 1);
        used.entry(key.to_owned()).or_default().clone()
    }

    /// Waits for a cache that others have to themselves, or takes another in its place.
    pub(super) async fn take(&self, key: &str, sharing: Sharing) -> Guard {
        let own = key.to_owned();
        let _held = match sharing {
            Sharing::Shared => Held::Beside(self.lock(key).read_owned().await),
            Sharing::Locked => Held::Alone(self.lock(key).write_owned().await),
            Sharing::Private => {
                for number in 0..PRIVATE_MAX {
                    let key = if number == 0 { own.clone() } else { format!("{own}-{number}") };
                    if let Ok(held) = self.lock(&key).try_write_owned() {
                        return Guard { key, _held: Held::Alone(held) };
                    }
                }
                Held::Alone(self.lock(key).write_owned().await)
            }
        };
        Guard { key: own, _held }
    }

    /// A cache beside others that look at it, unless somebody has it alone.
    pub(super) fn try_beside(&self, key: &str) -> Option<Guard> {
        let held = Held::Beside(self.lock(key).try_read_owned().ok()?);
        Some(Guard { key: key.to_owned(), _held: held })
    }

    /// A cache that nobody uses.
    pub(super) fn try_alone(&self, key: &str) -> Option<Guard> {
        let held = Held::Alone(self.lock(key).try_write_owned().ok()?);
        Some(Guard { key: key.to_owned(), _held: held })
    }

    /// What a copy of a kept context is found by, if it was copied before.
    pub(super) fn copy_of(&self, context: &str) -> Option<String> {
        locked(&self.copies).get(context).cloned()
    }

    pub(super) fn note_copy(&self, context: &str, key: &str) {
        let mut copies = locked(&self.copies);
        if copies.len() >= COPIES_MAX {
            copies.clear();
        }
        copies.insert(context.to_owned(), key.to_owned());
    }

    /// Whether a build uses a cache now.
    pub(super) fn in_use(&self, key: &str) -> bool {
        locked(&self.used).get(key).is_some_and(|lock| Arc::strong_count(lock) > 1)
    }

    /// A cache that nobody uses, and nobody does until this is dropped.
    pub(super) fn idle(&self, key: &str) -> Option<OwnedRwLockWriteGuard<()>> {
        self.lock(key).try_write_owned().ok()
    }

    /// The folder, made if it is not there. Blocks.
    pub(super) fn make(
        &self,
        store: &Store,
        key: &str,
        owner: CacheOwner,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let _making = locked(&self.making);
        let mut failed = None;
        let made = store.make_cache(key, owner, |folder| {
            fill(folder).map_err(|error| {
                failed = Some(error);
                insula_store::Error::Defect("what a cache begins with was not copied")
            })
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(made?),
        }
    }
}

/// Removes folders that no record names.
pub(super) fn sweep(store: &Store) -> Result<()> {
    for key in store.caches()? {
        if store.state().records(Collection::BuildCache).get(&key)?.is_none() {
            store.remove_cache(&key)?;
        }
    }
    Ok(())
}
