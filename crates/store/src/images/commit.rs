//! The last step of whatever brings images: layers move to their places, documents are stored, and
//! one transaction makes the images appear, with the artifacts and the indexes that come with them: who
//! looks meanwhile sees all of it or nothing, and takes no part of it away as one that nobody needs. If
//! anything fails, what was placed is taken away again.

use insula_sys::failpoint::failpoint;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use insula_base::{ChainId, DiffId, Digest};
use insula_spec::image::LAYERS_MAX;

use super::contents::{Contents, Found};
use super::gather::{Gathered, Source};
use super::rows::{self, BlobRow, ImageRow, LayerRow};
use super::{Images, Loaded};
use crate::layers::{Pending, Unpacked};
use crate::state::Sql;
use crate::{Error, Result, State, Transaction, content};

/// Layers of all images of one archive: an archive that says more says the same many times.
const PLACED_MAX: usize = 16 * LAYERS_MAX;

/// The chain ids of a stack of layers (OCI image specification, "Layer ChainID").
pub(super) fn chain_ids(diffs: &[DiffId]) -> Vec<ChainId> {
    let mut chains: Vec<ChainId> = Vec::with_capacity(diffs.len());
    for diff in diffs {
        let digest = match chains.last() {
            None => diff.0.clone(),
            Some(below) => content::digest(format!("{below} {diff}").as_bytes()),
        };
        chains.push(ChainId(digest));
    }
    chains
}

/// What a commit has placed so far.
#[derive(Default)]
struct Placed {
    layers: HashMap<ChainId, LayerRow>,
    blobs: Vec<Digest>,
    /// Layers that came compressed and are kept so.
    compressed: Vec<BlobRow>,
    /// Contents whose recipes came.
    recipes: Vec<DiffId>,
}

impl Images {
    /// Makes everything appear at once. The caller holds no lock.
    pub(super) fn commit(&self, contents: impl Into<Contents>, gathered: Gathered) -> Result<Vec<Loaded>> {
        self.commit_changed(&self.changes(), contents.into(), gathered)
    }

    /// The same, for who has to look at something under the lock first.
    pub(super) fn commit_changed(
        &self,
        _changes: &MutexGuard<'_, ()>,
        mut contents: Contents,
        mut gathered: Gathered,
    ) -> Result<Vec<Loaded>> {
        let mut placed = Placed::default();
        let committed = self.place_all(&mut contents, &mut gathered, &mut placed).and_then(|()| {
            failpoint("load.placed");
            self.write_rows(&contents, &placed)
        });
        match committed {
            Ok(replaced) => {
                failpoint("load.rows");
                self.drop_documents(&replaced);
                let loaded = told(contents);
                self.sync_later(loaded.iter().map(|one| one.id.clone()).collect());
                Ok(loaded)
            }
            Err(error) => {
                self.take_away(&placed);
                Err(error)
            }
        }
    }

    fn place_all(&self, contents: &mut Contents, gathered: &mut Gathered, placed: &mut Placed) -> Result<()> {
        self.place_images(&contents.images, gathered, placed)?;
        for artifact in &mut contents.artifacts {
            self.place_artifact(artifact, &mut placed.blobs)?;
        }
        let indexes = contents.images.iter().filter_map(|image| image.index.as_ref());
        for index in indexes.chain(contents.names.iter().map(|named| &named.index)) {
            for bytes in index.within.iter().chain([&index.bytes]) {
                self.place_document(bytes, &mut placed.blobs)?;
            }
        }
        Ok(())
    }

    /// Puts a document among the blobs, also in the place of one that is damaged; `placed` has those that are new.
    pub(super) fn place_document(&self, bytes: &[u8], placed: &mut Vec<Digest>) -> Result<()> {
        let new = !self.content.contains(&content::digest(bytes));
        let digest = self.content.write(bytes)?;
        placed.extend(new.then_some(digest));
        Ok(())
    }

    fn place_images(&self, images: &[Found], gathered: &mut Gathered, placed: &mut Placed) -> Result<()> {
        for image in images {
            if image.layers.len() != image.config.rootfs.diff_ids.len() {
                return Err(Error::Defect("an image has other layers than its configuration"));
            }
            self.check_layers(image, gathered, placed)?;
            self.place_archives(image, gathered, placed)?;
            let diffs = &image.config.rootfs.diff_ids;
            let chains = chain_ids(diffs);
            for (position, chain) in chains.iter().enumerate() {
                let stored = self.state.transaction(|tx| rows::layer(tx.sql(), chain))?;
                if placed.layers.contains_key(chain) || (stored.is_some() && self.layers.contains(chain)) {
                    continue;
                }
                if placed.layers.len() >= PLACED_MAX {
                    return Err(Error::Limit {
                        what: "the number of layers".to_owned(),
                        limit: PLACED_MAX as u64,
                    });
                }
                let (pending, unpacked) =
                    self.obtain(&image.layers[position].0, &diffs[position], gathered, placed)?;
                let lower: Vec<PathBuf> =
                    chains[..position].iter().map(|chain| self.layers.path(chain)).collect();
                self.layers.complete(pending, chain, &unpacked.implied, &lower)?;
                failpoint("load.layer");
                let row =
                    LayerRow { chain: chain.clone(), diff: diffs[position].clone(), size: unpacked.size };
                placed.layers.insert(chain.clone(), row);
            }
            for bytes in std::iter::once(&image.config_bytes).chain(&image.manifest) {
                self.place_document(bytes, &mut placed.blobs)?;
            }
        }
        Ok(())
    }

    /// What makes the archives of the layers again, and those that come compressed.
    fn place_archives(&self, image: &Found, gathered: &mut Gathered, placed: &mut Placed) -> Result<()> {
        for (name, _) in &image.layers {
            let name = gathered.resolve(name).to_owned();
            let Some(Ok(Source::Staged(staged))) = gathered.layers.get_mut(&name) else { continue };
            if let Some(recipe) = staged.recipe.take()
                && !self.layers.recipes().contains(&staged.diff)
            {
                self.layers.complete_recipe(recipe, &staged.diff)?;
                placed.recipes.push(staged.diff.clone());
            }
            if let Some(compressed) = staged.compressed.take() {
                let new = !self.content.contains(&staged.blob);
                self.content.complete(compressed.blob, &staged.blob)?;
                if new {
                    placed.blobs.push(staged.blob.clone());
                }
                placed.compressed.push(BlobRow {
                    digest: staged.blob.clone(),
                    diff: staged.diff.clone(),
                    size: compressed.size,
                    media_type: compressed.media_type.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Every layer is there and is what manifest and configuration say.
    fn check_layers(&self, image: &Found, gathered: &mut Gathered, placed: &Placed) -> Result<()> {
        for ((name, blob), diff) in image.layers.iter().zip(&image.config.rootfs.diff_ids) {
            let name = gathered.resolve(name).to_owned();
            match gathered.layers.get(&name) {
                None => {
                    // An image before it took the layer; or it was left out of the archive because it is
                    // known to be at this end.
                    let here = placed.layers.values().any(|row| row.diff == *diff)
                        || self.state.transaction(|tx| rows::layer_with(tx.sql(), diff))?.is_some();
                    if !here {
                        return Err(Error::NoLayer(name));
                    }
                }
                Some(Err(_)) => {
                    return gathered.layers.remove(&name).map_or(Ok(()), |failed| failed.map(drop));
                }
                Some(Ok(Source::Known(found))) => check_digest(&name, diff, found)?,
                Some(Ok(Source::Staged(staged))) => {
                    if let Some(expected) = blob
                        && staged.blob != *expected
                    {
                        let (expected, found) = (expected.clone(), staged.blob.clone());
                        return Err(Error::Mismatch { what: format!("layer {name:?}"), expected, found });
                    }
                    check_digest(&name, diff, &staged.diff)?;
                }
            }
        }
        Ok(())
    }

    /// The unpacked layer: a copy that shares the files of one at another place of a stack, or what
    /// the archive brought.
    fn obtain(
        &self,
        name: &str,
        diff: &DiffId,
        gathered: &mut Gathered,
        placed: &Placed,
    ) -> Result<(Pending, Unpacked)> {
        let twin = match placed.layers.values().find(|row| row.diff == *diff) {
            Some(row) => Some(row.clone()),
            None => self.state.transaction(|tx| rows::layer_with(tx.sql(), diff))?,
        };
        if let Some(twin) = twin {
            let pending = self.layers.copy(&twin.chain)?;
            return Ok((pending, Unpacked { size: twin.size, ..Unpacked::default() }));
        }
        match gathered.layers.remove(gathered.resolve(name).to_owned().as_str()) {
            Some(Ok(Source::Staged(staged))) => Ok((staged.pending, staged.unpacked)),
            _ => Err(Error::NoLayer(name.to_owned())),
        }
    }

    /// Returns the manifests that no image has any more, since one has another.
    fn write_rows(&self, contents: &Contents, placed: &Placed) -> Result<Vec<Digest>> {
        let indexes = contents.images.iter().filter_map(|image| image.index.as_ref());
        let indexes = indexes.chain(contents.names.iter().map(|named| &named.index));
        let parts: Vec<_> =
            indexes.map(|index| self.index_parts(&index.bytes)).collect::<Result<Vec<_>>>()?.concat();
        self.state.transaction(|tx| {
            let sql = tx.sql();
            let before = rows::documents(sql)?;
            rows::add_index_parts(sql, &parts)?;
            for row in placed.layers.values() {
                rows::add_layer(sql, row)?;
            }
            for row in &placed.compressed {
                rows::add_blob(sql, row)?;
            }
            for image in &contents.images {
                self.write_image(sql, image)?;
            }
            for artifact in &contents.artifacts {
                self.write_artifact(sql, artifact)?;
            }
            for named in &contents.names {
                rows::image(sql, &named.id)?.ok_or_else(|| Error::NoImage(named.id.to_string()))?;
                rows::set_name(sql, &named.name, &named.id, Some(&content::digest(&named.index.bytes)))?;
            }
            self.dropped(tx, &before)
        })
    }

    fn write_image(&self, sql: Sql<'_>, image: &Found) -> Result<()> {
        let chains = chain_ids(&image.config.rootfs.diff_ids);
        let mut size = 0u64;
        for chain in &chains {
            let row = rows::layer(sql, chain)?.ok_or(Error::Defect("a layer was placed without a row"))?;
            size = size.saturating_add(row.size);
        }
        let manifest = image.manifest.as_deref().map(content::digest);
        rows::add_image(sql, &ImageRow { id: image.id.clone(), manifest, size }, &chains, &self.boot)?;
        let index = image.index.as_ref().map(|index| &index.bytes);
        let document = index.or(image.manifest.as_ref()).map(|bytes| content::digest(bytes));
        for reference in &image.references {
            rows::set_name(sql, reference, &image.id, document.as_ref())?;
        }
        image.places.iter().try_for_each(|place| rows::add_place(sql, place))
    }

    /// What names stood for `before` and nothing needs any more, with its attestations.
    pub(super) fn dropped(&self, tx: &Transaction<'_>, before: &HashSet<Digest>) -> Result<Vec<Digest>> {
        let mut dropped = self.drop_attestations(tx, before)?;
        let now = rows::contents(tx.sql())?;
        dropped.extend(before.difference(&now).cloned());
        Ok(dropped)
    }

    /// What cannot be removed now is swept at the next open.
    pub(super) fn drop_documents(&self, digests: &[Digest]) {
        for digest in digests {
            if let Err(error) = self.content.remove(digest) {
                tracing::warn!(error = &error as &dyn std::error::Error, "a replaced manifest is left");
            }
        }
    }

    fn take_away(&self, placed: &Placed) {
        let removed = placed.layers.keys().map(|chain| self.layers.remove(chain));
        let blobs = placed.blobs.iter().map(|digest| self.content.remove(digest));
        let recipes = placed.recipes.iter().map(|diff| self.layers.remove_recipe(diff));
        for result in removed.chain(blobs).chain(recipes) {
            if let Err(error) = result {
                // The next open finds it without a row and removes it.
                tracing::warn!(error = &error as &dyn std::error::Error, "leftover of a failed load");
            }
        }
    }

    /// Flushes what was loaded in the background. Until that is done the rows carry the boot id: if
    /// the machine loses power first, the next open finds another boot id and drops the images
    /// instead of serving half-written files.
    pub(super) fn sync_later(&self, ids: Vec<Digest>) {
        let (root, state) = (self.root.clone(), self.state.clone());
        let spawned = std::thread::Builder::new().name("sync".to_owned()).spawn(move || {
            if let Err(error) = sync(&root, &state, &ids) {
                tracing::warn!(error = &error as &dyn std::error::Error, "images not flushed to the disk");
            }
        });
        match spawned {
            Ok(thread) => self.syncing().push(thread),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "no thread to flush images")
            }
        }
    }
}

/// What is said of what came, in the order in which it was given.
fn told(contents: Contents) -> Vec<Loaded> {
    let images =
        contents.images.into_iter().map(|image| Loaded { id: image.id, references: image.references });
    let artifacts = contents
        .artifacts
        .into_iter()
        .map(|artifact| Loaded { id: content::digest(&artifact.manifest), references: artifact.references });
    let names = contents.names.into_iter().map(|named| Loaded { id: named.id, references: vec![named.name] });
    images.chain(artifacts).chain(names).collect()
}

fn sync(root: &Path, state: &Arc<State>, ids: &[Digest]) -> Result<()> {
    let folder = File::open(root).map_err(|e| Error::io("open", root, e))?;
    rustix::fs::syncfs(&folder).map_err(|e| Error::io("syncfs", root, e))?;
    state.transaction(|tx| ids.iter().try_for_each(|id| rows::set_synced(tx.sql(), id)))
}

fn check_digest(name: &str, expected: &DiffId, found: &DiffId) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (expected.0.clone(), found.0.clone());
    Err(Error::Mismatch { what: format!("layer {name:?} without compression"), expected, found })
}
