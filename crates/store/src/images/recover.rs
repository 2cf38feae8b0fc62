//! What a crash may leave, made good when the store is opened.
//!
//! ```text
//! folder or blob without a row    a load or a removal was cut short       removed
//! shared file of no layer         the same                                removed, by a thread
//! row without its folder or blob  files were removed behind our back      the image is dropped
//! `unsynced` of this boot         the daemon died, the machine did not    flushed
//! `unsynced` of another boot      power was lost before the flush         the image is dropped
//! image_layers without an image   a forced removal; a container uses it   kept until released
//! ```

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use insula_base::Digest;

use super::{Images, rows};
use crate::{Error, Result};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Changes with every boot (random(4)).
pub(super) fn boot_id() -> Result<String> {
    let text = fs::read_to_string(BOOT_ID).map_err(|e| Error::io("read", Path::new(BOOT_ID), e))?;
    Ok(text.trim().to_owned())
}

impl Images {
    pub(super) fn recover(&self) -> Result<()> {
        let _changes = self.changes();
        let cut_short = self.layers.sweep_temporary()?;
        self.drop_damaged()?;
        self.drop_unheld()?;
        if self.sweep_files()? || cut_short {
            self.sweep_shared();
        }
        let unsynced = self.state.transaction(|tx| rows::unsynced(tx.sql()))?;
        if !unsynced.is_empty() {
            self.sync_later(unsynced.into_iter().map(|(id, _)| id).collect());
        }
        Ok(())
    }

    /// Images that cannot be trusted to be whole.
    fn drop_damaged(&self) -> Result<()> {
        let (all, unsynced) = self
            .state
            .transaction(|tx| Ok::<_, Error>((rows::images(tx.sql())?, rows::unsynced(tx.sql())?)))?;
        let torn: HashSet<Digest> =
            unsynced.into_iter().filter(|(_, boot)| *boot != self.boot).map(|(id, _)| id).collect();
        for image in all {
            let layers = self.state.transaction(|tx| rows::layers_of(tx.sql(), &image.id))?;
            let lost = layers.iter().any(|layer| !self.layers.contains(&layer.chain));
            let why = if torn.contains(&image.id) {
                "the machine stopped before the image was on the disk"
            } else if lost || !self.content.contains(&image.id) {
                "files of the image are missing"
            } else {
                continue;
            };
            tracing::warn!(image = %image.id, why, "image dropped: load it again");
            self.state.transaction(|tx| {
                rows::remove_image(tx.sql(), &image.id)?;
                // Whoever still uses it would run on broken files: its layers go too.
                rows::drop_layers(tx.sql(), &image.id, &|_| false).map(drop)
            })?;
        }
        Ok(())
    }

    /// Layers whose image is gone and whose last user was removed without a word.
    fn drop_unheld(&self) -> Result<()> {
        self.state.transaction(|tx| {
            for id in rows::unheld(tx.sql())? {
                rows::drop_layers(tx.sql(), &id, &|_| false)?;
            }
            rows::drop_orphans(tx.sql(), &|_| false)?;
            rows::drop_blobs(tx.sql())?;
            rows::drop_places(tx.sql())
        })
    }

    /// Whether there was a layer to remove.
    fn sweep_files(&self) -> Result<bool> {
        let (chains, diffs, blobs) = self.state.transaction(|tx| {
            for blob in rows::blobs(tx.sql())? {
                if !self.content.contains(&blob.digest) {
                    rows::remove_blob(tx.sql(), &blob.digest)?;
                }
            }
            rows::drop_artifact_blobs(tx.sql(), &|_| false)?;
            rows::drop_index_parts(tx.sql())?;
            let blobs: HashSet<Digest> = rows::contents(tx.sql())?;
            let chains = rows::all_layers(tx.sql())?.into_iter().collect::<HashSet<_>>();
            Ok::<_, Error>((chains, rows::all_diffs(tx.sql())?, blobs))
        })?;
        let mut removed = false;
        for chain in self.layers.all()?.iter().filter(|chain| !chains.contains(chain)) {
            self.layers.remove_lost(chain)?;
            removed = true;
        }
        for diff in self.layers.recipes().all()?.iter().filter(|diff| !diffs.contains(diff)) {
            self.layers.remove_recipe(diff)?;
        }
        for digest in self.content.all()?.iter().filter(|digest| !blobs.contains(digest)) {
            self.content.remove(digest)?;
        }
        Ok(removed)
    }

    /// Of all layers that ever were: who starts need not wait for that.
    fn sweep_shared(&self) {
        let sweep = self.layers.owed_sweep();
        let work = move || {
            if let Err(error) = sweep() {
                tracing::warn!(error = &error as &dyn std::error::Error, "shared files not swept");
            }
        };
        match std::thread::Builder::new().name("sweep".to_owned()).spawn(work) {
            Ok(thread) => self.syncing().push(thread),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "shared files are swept another time"
                );
            }
        }
    }
}
