//! An image that comes in parts: layers side by side, in any order, each from a stream of its own,
//! and the documents. Nothing is visible before the commit.
//!
//! ```text
//! ingest_layer ─┐
//! ingest_layer ─┼─> commit_ingested: one transaction
//! documents ────┘
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use insula_base::{DiffId, Digest};
use insula_spec::image::{Descriptor, ImageConfig, Manifest};
use insula_spec::reference::Reference;

use super::contents::Found;
use super::gather::{Gathered, Source};
use super::rows::{self, Place};
use super::stage::{Rest, Staged, layer_compression, stage};
use super::standing::IndexTree;
use super::{Image, ImageLease, Images, LayerLease, Loaded};
use crate::stream::Compression;
use crate::{Error, Result, content};

/// Enough to tell how an archive is compressed.
const HEAD: usize = 512;

/// A layer that was taken in and waits beside its place, for one commit or several: whoever
/// commits first has it. Dropped by all, it is gone.
#[derive(Debug)]
pub struct IngestedLayer {
    staged: Mutex<Option<Staged>>,
}

impl IngestedLayer {
    /// What was taken in, for the first who asks.
    pub(super) fn take(&self) -> Option<Staged> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A commit took it: it is in its place, or that commit failed and it is gone.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// The documents of an image and what it is to be called.
#[derive(Debug, Clone)]
pub struct Ingested {
    pub manifest: Vec<u8>,
    /// The index that the names stand for in registries, if that is not the manifest.
    pub index: Option<Vec<u8>>,
    pub config: Vec<u8>,
    pub references: Vec<Reference>,
    /// Registry and repository that the layers are in, if they are.
    pub origin: Option<Reference>,
}

impl Images {
    /// Whether a layer with this content is here and can be made again, so that it need not be fetched.
    pub fn has_layer(&self, diff: &DiffId) -> Result<bool> {
        Ok(self.layer_here(diff)?.is_some())
    }

    /// Those of the layers that are here and can be made again. They stay while the lease is held, so an
    /// image that is committed meanwhile may count on them.
    pub fn lease_layers(&self, diffs: &[DiffId]) -> Result<LayerLease> {
        let _changes = self.changes();
        let mut here = Vec::new();
        for diff in diffs {
            here.extend(self.layer_here(diff)?);
        }
        Ok(self.leases.take(here))
    }

    /// Keeps the layers of an image or the blobs of an artifact, whoever removes it while the lease is held.
    /// [`Error::NoImage`] if somebody did since it was looked up.
    pub fn lease_image(&self, image: &Image) -> Result<ImageLease> {
        let (layers, blobs) = {
            let _changes = self.changes();
            let blobs = self.state.transaction(|tx| rows::blobs_of_artifact(tx.sql(), &image.id))?;
            let layers = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
            (self.leases.take(layers), self.kept.take(blobs))
        };
        self.id_of(image.id.as_str())?;
        Ok(ImageLease { layers, _blobs: blobs })
    }

    /// Keeps the layers that have these folders. [`Error::NoLayer`] if one of them is not here.
    pub fn lease_folders(&self, folders: &[PathBuf]) -> Result<LayerLease> {
        let _changes = self.changes();
        let diffs = self.state.transaction(|tx| {
            let chains = rows::all_layers(tx.sql())?;
            let of = |folder: &PathBuf| {
                let chain = chains.iter().find(|chain| self.layers.path(chain) == *folder);
                let row = chain.map(|chain| rows::layer(tx.sql(), chain)).transpose()?.flatten();
                row.map(|row| row.diff).ok_or_else(|| Error::NoLayer(folder.display().to_string()))
            };
            folders.iter().map(of).collect::<Result<Vec<_>>>()
        })?;
        Ok(self.leases.take(diffs))
    }

    /// Takes in the archive of one layer, which is what `next` returns until there is no more. Digests
    /// and size are verified.
    pub fn ingest_layer(
        &self,
        blob: &Descriptor,
        diff: &DiffId,
        next: &mut dyn FnMut() -> Result<Option<Bytes>>,
    ) -> Result<IngestedLayer> {
        let (mut head, mut ended) = (Vec::new(), false);
        while head.len() < HEAD && !ended {
            match next()? {
                Some(bytes) => head.extend_from_slice(&bytes),
                None => ended = true,
            }
        }
        let compression = layer_compression(&head).or_else(|| head.is_empty().then_some(Compression::None));
        let compression = compression.ok_or_else(|| {
            Error::Archive(format!("layer {} is neither tar nor compressed with gzip or zstd", blob.digest))
        })?;
        let (mut head, mut size) = (Some(Bytes::from(head)), 0u64);
        let mut counted = || {
            let bytes = match head.take() {
                Some(head) => Some(head),
                None if ended => None,
                None => next()?,
            };
            size += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
            if size > blob.size {
                return Err(Error::Limit { what: format!("layer {}", blob.digest), limit: blob.size });
            }
            Ok(bytes)
        };
        let staged = stage(&self.layers, &self.content, compression, Rest::Left, &mut counted)?;
        check(&format!("layer {}", blob.digest), &blob.digest, &staged.blob)?;
        check(&format!("layer {} without compression", blob.digest), &diff.0, &staged.diff.0)?;
        Ok(IngestedLayer { staged: Mutex::new(Some(staged)) })
    }

    /// Makes the image appear, of layers that were taken in or are here. [`Error::NoLayer`] if
    /// neither is true of one, which may have been removed since it was looked for.
    pub fn commit_ingested(&self, image: &Ingested, layers: &[Arc<IngestedLayer>]) -> Result<Loaded> {
        let manifest = Manifest::parse(&image.manifest)?;
        let config = ImageConfig::parse(&image.config)?;
        let id = content::digest(&image.config);
        check("the configuration", &manifest.config.digest, &id)?;
        let found = Found {
            index: image.index.clone().map(|bytes| IndexTree { bytes, within: Vec::new() }),
            id,
            layers: manifest
                .layers
                .iter()
                .map(|layer| (layer.digest.to_string(), Some(layer.digest.clone())))
                .collect(),
            places: places(image, &manifest, &config),
            config,
            config_bytes: image.config.clone(),
            manifest: Some(image.manifest.clone()),
            references: image.references.clone(),
        };
        super::contents::check(&found)?;
        // Who finds a layer taken by another commit finds it in its place: that commit is over.
        let changes = self.changes();
        let mut gathered = Gathered::default();
        for layer in layers {
            if let Some(staged) = layer.take() {
                gathered.layers.insert(staged.blob.to_string(), Ok(Source::Staged(staged)));
            }
        }
        let mut loaded = self.commit_changed(&changes, found.into(), gathered)?;
        loaded.pop().ok_or(Error::Defect("a commit of one image made none"))
    }

    /// Where registries have a layer, and as what.
    pub fn places(&self, diff: &DiffId) -> Result<Vec<LayerPlace>> {
        let places = self.state.transaction(|tx| rows::places(tx.sql(), diff))?;
        Ok(places
            .into_iter()
            .map(|place| LayerPlace {
                registry: place.registry,
                repository: place.repository,
                blob: Descriptor {
                    media_type: place.media_type,
                    digest: place.digest,
                    size: place.size,
                    annotations: Default::default(),
                    platform: None,
                },
            })
            .collect())
    }

    /// Notes that a registry has a layer.
    pub fn add_place(&self, diff: &DiffId, place: &LayerPlace) -> Result<()> {
        let place = Place {
            diff: diff.clone(),
            registry: place.registry.clone(),
            repository: place.repository.clone(),
            digest: place.blob.digest.clone(),
            size: place.blob.size,
            media_type: place.blob.media_type.clone(),
        };
        self.state.transaction(|tx| rows::add_place(tx.sql(), &place))
    }
}

/// A blob of a registry that holds a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlace {
    /// `HOST[:PORT]`.
    pub registry: String,
    pub repository: String,
    pub blob: Descriptor,
}

fn places(image: &Ingested, manifest: &Manifest, config: &ImageConfig) -> Vec<Place> {
    let Some(origin) = &image.origin else { return Vec::new() };
    let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    layers
        .map(|(blob, diff)| Place {
            diff: diff.clone(),
            registry: origin.domain().to_owned(),
            repository: origin.path().to_owned(),
            digest: blob.digest.clone(),
            size: blob.size,
            media_type: blob.media_type.clone(),
        })
        .collect()
}

fn check(what: &str, expected: &Digest, found: &Digest) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (expected.clone(), found.clone());
    Err(Error::Mismatch { what: what.to_owned(), expected, found })
}
