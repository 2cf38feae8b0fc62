//! Stacks of layers that are no images: what a step of a build leaves, and what the next one begins with.
//!
//! An owner (a record of the build cache, a container of a build) holds a stack as a container holds an
//! image: by a row of `image_uses`. What it names is the digest of the owner and never an image's, so
//! that the layers live as long as the use does and are seen nowhere.

use std::io::Write;
use std::path::{Path, PathBuf};

use insula_base::{DiffId, Digest};
use insula_spec::image::{ImageConfig, LAYERS_MAX};
use insula_spec::reference::Reference;
use insula_sys::failpoint::failpoint;

use super::commit::chain_ids;
use super::commit_upper::stage_written;
use super::contents::Found;
use super::gather::Gathered;
use super::rows::{self, LayerRow};
use super::stage::Staged;
use super::{Images, IngestedLayer, LayerLease, builtin};
use crate::layers::Pending;
use crate::{Error, Layer, Result, Transaction, content};

/// A layer that was taken in and has no place yet. Dropped, it is gone.
#[derive(Debug)]
pub struct StagedLayer {
    staged: Staged,
    entries: u64,
}

impl StagedLayer {
    /// Nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// A layer that came from elsewhere, unless a commit has it already.
    #[must_use]
    pub fn of(layer: &IngestedLayer) -> Option<Self> {
        layer.take().map(|staged| Self { staged, entries: 1 })
    }

    /// The digest of its archive.
    #[must_use]
    pub fn diff_id(&self) -> &DiffId {
        &self.staged.diff
    }
}

/// A folder for what comes with a request. Dropped, it is gone, and swept when the store is opened.
#[derive(Debug)]
pub struct Scratch(Pending);

impl Scratch {
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// An image that was put together from layers that are here.
#[derive(Debug, Clone)]
pub struct Composed {
    /// Its layers are replaced by those that are given.
    pub config: ImageConfig,
    pub references: Vec<Reference>,
}

impl Composed {
    /// The configuration with its layers, as bytes, and the digest of it.
    pub fn document(&mut self, layers: &[Layer]) -> Result<(Digest, Vec<u8>)> {
        self.config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let bytes =
            serde_json::to_vec(&self.config).map_err(|_| Error::Defect("a configuration is always JSON"))?;
        Ok((content::digest(&bytes), bytes))
    }

    /// The image of these layers, which are here, without a manifest.
    pub(super) fn found(mut self, layers: &[Layer]) -> Result<Found> {
        let (id, config_bytes) = self.document(layers)?;
        let Self { config, references } = self;
        if let Some(reference) = references.iter().find(|name| builtin::is_builtin(name)) {
            return Err(Error::Builtin(reference.familiar()));
        }
        Ok(Found {
            index: None,
            id,
            layers: layers.iter().map(|layer| (layer.diff_id.to_string(), None)).collect(),
            config,
            config_bytes,
            manifest: None,
            references,
            places: Vec::new(),
        })
    }
}

impl Images {
    /// An empty folder on the same file system as the layers.
    pub fn scratch(&self) -> Result<Scratch> {
        self.layers.begin().map(Scratch)
    }

    /// Takes in a layer's archive that `write` makes; it returns how many entries there are.
    pub fn stage_layer(
        &self,
        write: impl FnOnce(&mut dyn Write) -> Result<u64> + Send,
    ) -> Result<StagedLayer> {
        let (staged, entries) = stage_written(&self.layers, &self.content, write)?;
        Ok(StagedLayer { staged, entries })
    }

    /// Puts a layer on others that stay meanwhile, and has `owner` hold them all; `also` is written in the
    /// same commit. One that is empty is no layer. The lease keeps them for the caller, whatever becomes of the owner.
    pub fn place_layer(
        &self,
        below: &[Layer],
        layer: StagedLayer,
        owner: &str,
        also: impl FnOnce(&Transaction<'_>, &[Layer]) -> Result<()>,
    ) -> Result<(Vec<Layer>, LayerLease)> {
        let mut layers = below.to_vec();
        let _changes = self.changes();
        let mut placed = None;
        if !layer.is_empty() {
            if below.len() >= LAYERS_MAX {
                return Err(Error::Limit {
                    what: "the number of layers".to_owned(),
                    limit: LAYERS_MAX as u64,
                });
            }
            let (top, new) = self.place(below, layer.staged)?;
            failpoint("build.layer");
            placed = new.then(|| top.clone());
            layers.push(top);
        }
        let written = self.state.transaction(|tx| {
            if let Some(top) = &placed {
                let row = LayerRow { chain: top.chain_id.clone(), diff: top.diff_id.clone(), size: top.size };
                rows::add_layer(tx.sql(), &row)?;
            }
            self.hold(tx, &layers, owner)?;
            also(tx, &layers)
        });
        if let (Err(_), Some(top)) = (&written, &placed) {
            // The next open would find it without a row.
            self.layers.remove(&top.chain_id)?;
        }
        written?;
        let lease = self.leases.take(layers.iter().map(|layer| layer.diff_id.clone()).collect());
        Ok((layers, lease))
    }

    /// The folder and the recipe go to their places; whether the layer is new.
    fn place(&self, below: &[Layer], mut staged: Staged) -> Result<(Layer, bool)> {
        let diffs: Vec<DiffId> =
            below.iter().map(|layer| layer.diff_id.clone()).chain([staged.diff.clone()]).collect();
        let chain = chain_ids(&diffs).pop().ok_or(Error::Defect("a stack with a layer has a chain id"))?;
        let path = self.layers.path(&chain);
        let layer =
            Layer { diff_id: staged.diff.clone(), chain_id: chain.clone(), path, size: staged.unpacked.size };
        let stored = self.state.transaction(|tx| rows::layer(tx.sql(), &chain))?;
        if let Some(row) = stored.filter(|_| self.layers.contains(&chain)) {
            return Ok((Layer { size: row.size, ..layer }, false));
        }
        if let Some(recipe) = staged.recipe.take()
            && !self.layers.recipes().contains(&staged.diff)
        {
            self.layers.complete_recipe(recipe, &staged.diff)?;
        }
        let lower: Vec<PathBuf> = below.iter().map(|layer| layer.path.clone()).collect();
        self.layers.complete(staged.pending, &chain, &staged.unpacked.implied, &lower)?;
        Ok((layer, true))
    }

    /// Has `owner` hold layers that are here until [`Images::release_image`], within the transaction that
    /// writes the owner's record.
    pub fn hold(&self, tx: &Transaction<'_>, layers: &[Layer], owner: &str) -> Result<()> {
        let id = held_as(owner);
        let chains: Vec<_> = layers.iter().map(|layer| layer.chain_id.clone()).collect();
        for chain in &chains {
            if rows::layer(tx.sql(), chain)?.is_none() {
                return Err(Error::NoLayer(chain.to_string()));
            }
        }
        rows::hold_layers(tx.sql(), &id, &chains)?;
        rows::add_use(tx.sql(), &id, owner)
    }

    /// The stack that `owner` holds, lowest first; `None` if there is none or a folder is not there.
    pub fn held(&self, owner: &str) -> Result<Option<Vec<Layer>>> {
        let id = held_as(owner);
        let rows = self.state.transaction(|tx| match rows::used_by(tx.sql(), owner)? {
            Some(used) if used == id => rows::layers_of(tx.sql(), &id).map(Some),
            _ => Ok(None),
        })?;
        let Some(rows) = rows else { return Ok(None) };
        let layers: Vec<Layer> = rows
            .into_iter()
            .map(|row| Layer {
                path: self.layers.path(&row.chain),
                diff_id: row.diff,
                chain_id: row.chain,
                size: row.size,
            })
            .collect();
        Ok(layers.iter().all(|layer| self.layers.contains(&layer.chain_id)).then_some(layers))
    }

    /// Makes an image of layers that are here; returns its id.
    pub fn compose(&self, layers: &[Layer], composed: Composed) -> Result<Digest> {
        let found = composed.found(layers)?;
        let id = found.id.clone();
        self.commit(found, Gathered::default())?;
        Ok(id)
    }
}

/// What an owner holds is called this.
fn held_as(owner: &str) -> Digest {
    content::digest(format!("held by {owner}").as_bytes())
}
