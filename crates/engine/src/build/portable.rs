//! Records of the cache that leave with a build, and those that come along with the next one, wherever that is.
//! They travel in the configuration of an image that has their layers, which may be the image that was built
//! (`insula_spec::build_cache`). A layer comes when a step turns out to have made it, and is verified.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use insula_base::{DiffId, Digest, chain};
use insula_registry::Wanted;
use insula_spec::build_cache::CacheRecord;
use insula_spec::image::{DOCUMENT_MAX, Descriptor, ImageConfig, Index, LAYERS_MAX, Manifest, RootFs};
use insula_spec::reference::Reference;
use insula_store::{Composed, Layer, Scratch, StagedLayer, Store};
use tokio::runtime::Handle;

use super::cache::{Key, Made, locked};
use super::named::Folders;
use super::report::Report;
use super::stage::Built;
use super::{BuildRequest, Building, base};
use crate::archive::ArchiveSender;
use crate::images::RemoteLayers;
use crate::tree::{Last, Tree};
use crate::{Engine, Error, Result};

/// Bytes that are read of a layer at a time.
const PIECE: usize = 256 << 10;

/// Where records come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheSource {
    /// An image of the engine's, or of a registry.
    Image(String),
    /// An OCI layout in front of the context, and what the client calls it.
    Layout(String),
}

/// Where records go.
#[derive(Debug, Clone)]
pub enum CacheTarget {
    /// Into the image that is built.
    Inline,
    /// To a registry, under a name.
    Registry { name: String, scope: CacheScope },
    /// An archive of an OCI layout, behind what else is put out; all of it is framed ([`insula_build::Framed`]).
    Layout { sender: ArchiveSender, scope: CacheScope },
}

/// Which records leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheScope {
    /// Those of layers that the image has.
    Result,
    /// Those of all stages.
    All,
}

/// A step of this build, done or found.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    pub(super) key: String,
    /// What the layers below it are called.
    pub(super) below: String,
    pub(super) layer: Option<Layer>,
    pub(super) created: String,
    pub(super) text: String,
}

/// What came along.
#[derive(Debug, Default)]
pub(super) struct Brought {
    places: Vec<Place>,
    steps: HashMap<String, (usize, CacheRecord)>,
}

/// Where the layers of some records are.
#[derive(Debug)]
enum Place {
    Here,
    Registry(RemoteLayers),
    Layout { folder: Scratch, layers: HashMap<DiffId, Descriptor> },
}

impl Brought {
    /// Looks at what was named. What cannot be read is as if it had not been named, and said.
    pub(super) async fn read(
        engine: &Engine,
        request: &BuildRequest,
        layouts: Folders,
        report: &Report,
    ) -> Self {
        let mut brought = Self::default();
        let mut layouts: HashMap<String, Scratch> = layouts.into_scratches().collect();
        for (number, source) in request.cache_from.iter().enumerate() {
            let (name, found) = match source {
                CacheSource::Image(name) => (name, of_image(engine, request, name).await),
                CacheSource::Layout(name) => {
                    let folder = layouts.remove(&layout_name(number));
                    let folder = folder.ok_or_else(|| Error::Internal("a cache did not come".to_owned()));
                    (name, folder.and_then(of_layout))
                }
            };
            let found = found.and_then(|(config, place)| {
                let records = CacheRecord::of(&config).map_err(insula_store::Error::from)?;
                Ok((records, place))
            });
            match found {
                Ok((records, place)) => {
                    let line = format!("Importing cache from {name}: {} steps\n", records.len());
                    report.line(line).await;
                    let number = brought.places.len();
                    brought.places.push(place);
                    for record in records {
                        brought.steps.entry(record.key.clone()).or_insert((number, record));
                    }
                }
                Err(error) => {
                    report.line(format!("[Warning] importing cache from {name}: {}\n", chain(&error))).await;
                }
            }
        }
        brought
    }

    /// The layer that a step made, taken in. Blocks.
    fn layer(&self, engine: &Engine, place: usize, diff: &DiffId) -> Result<StagedLayer> {
        let images = engine.store().images();
        let taken = || Error::Conflict(format!("the layer {diff} was taken by another build"));
        if images.has_layer(diff)? {
            let staged = images.stage_layer(|out| {
                let copied = std::io::copy(&mut images.open_layer(diff)?, out);
                copied.map_err(insula_store::Error::Output)
            })?;
            if staged.diff_id() != diff {
                let found = staged.diff_id().0.clone();
                let what = "a layer on the disk".to_owned();
                return Err(insula_store::Error::Mismatch { what, expected: diff.0.clone(), found }.into());
            }
            return Ok(staged);
        }
        match self.places.get(place) {
            Some(Place::Registry(remote)) => {
                let layer = Handle::current().block_on(engine.images().fetch_remote(remote, diff))?;
                StagedLayer::of(&layer).ok_or_else(taken)
            }
            Some(Place::Layout { folder, layers }) => {
                let blob = layers.get(diff);
                let blob = blob.ok_or_else(|| Error::NotFound(format!("the layout has no layer {diff}")))?;
                let mut file = blob_file(&Tree::running(folder.path(), 0)?, &blob.digest)?;
                let layer = images.ingest_layer(blob, diff, &mut || piece(&mut file))?;
                StagedLayer::of(&layer).ok_or_else(taken)
            }
            Some(Place::Here) | None => Err(Error::NotFound(format!("the layer {diff} is not here"))),
        }
    }
}

/// What an OCI layout in front of the context is called there.
pub(super) fn layout_name(number: usize) -> String {
    number.to_string()
}

pub(super) fn piece(file: &mut File) -> Result<Option<Bytes>, insula_store::Error> {
    let mut piece = vec![0; PIECE];
    let count = file.read(&mut piece).map_err(insula_store::Error::Input)?;
    piece.truncate(count);
    Ok((count > 0).then(|| piece.into()))
}

async fn of_image(engine: &Engine, request: &BuildRequest, name: &str) -> Result<(ImageConfig, Place)> {
    // As for Docker's older builder, one that is here is meant, whatever a registry has.
    if let Ok(image) = engine.images().resolve(name) {
        return Ok((image.config, Place::Here));
    }
    let reference = Reference::parse(name).map_err(insula_store::Error::from)?;
    let credentials = request.credentials(&reference).await?;
    let (config, remote) = Box::pin(engine.images().look_up(&reference, &credentials)).await?;
    Ok((config, Place::Registry(remote)))
}

fn of_layout(folder: Scratch) -> Result<(ImageConfig, Place)> {
    let tree = Tree::running(folder.path(), 0)?;
    let index = super::read(&tree, "index.json")?
        .ok_or_else(|| Error::NotFound("there is no index.json: an OCI layout is expected".to_owned()))?;
    let index = Index::parse(&index).map_err(insula_store::Error::from)?;
    let chosen = Wanted::host().choose(&index.manifests).or(index.manifests.first());
    let chosen = chosen.ok_or_else(|| Error::NotFound("its index.json names nothing".to_owned()))?;
    let manifest = Manifest::parse(&document(&tree, &chosen.digest)?).map_err(insula_store::Error::from)?;
    let config = document(&tree, &manifest.config.digest)?;
    let config = ImageConfig::parse(&config).map_err(insula_store::Error::from)?;
    let layers = config.rootfs.diff_ids.iter().cloned().zip(manifest.layers).collect();
    Ok((config, Place::Layout { folder, layers }))
}

/// A document of a layout, verified.
pub(super) fn document(tree: &Tree, digest: &Digest) -> Result<Vec<u8>> {
    use sha2::Digest as _;
    let mut bytes = Vec::new();
    let read = blob_file(tree, digest)?.take(DOCUMENT_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::io("read", Path::new(digest.as_str()), error))?;
    let found = Digest::from_sha256(&sha2::Sha256::digest(&bytes).into());
    if found != *digest {
        let what = "a document of the cache".to_owned();
        return Err(insula_store::Error::Mismatch { what, expected: digest.clone(), found }.into());
    }
    Ok(bytes)
}

/// A blob of a layout; links in it lead nowhere else.
pub(super) fn blob_file(tree: &Tree, digest: &Digest) -> Result<File> {
    let path = Path::new("/blobs/sha256").join(digest.hex());
    let missing = || Error::NotFound(format!("the layout has no blob {digest}"));
    let place = tree.resolve(&path, Last::Follow).map_err(|_| missing())?;
    let (Some(dir), Some(entry)) = (place.parent(), &place.entry) else { return Err(missing()) };
    if entry.kind() != rustix::fs::FileType::RegularFile {
        return Err(missing());
    }
    Ok(dir.open(&place.name, entry).map_err(|error| Error::io("open", &path, error))?.into())
}

impl Building {
    /// What a step made elsewhere, as if it had been made here. Blocks.
    pub(super) fn brought(&self, key: &Key, below: &[Layer]) -> Result<Option<Made>> {
        let Some((place, record)) = self.brought.steps.get(key.text()) else { return Ok(None) };
        let staged = match &record.layer {
            Some(diff) => self.brought.layer(&self.engine, *place, diff),
            None => self.nothing(),
        };
        match staged {
            Ok(staged) => {
                let created = record.created.parse::<jiff::Timestamp>().unwrap_or_else(|_| self.now());
                let mut made = self.keep(key, below, staged, &record.text, created)?;
                made.cached = true;
                Ok(Some(made))
            }
            // Then the step is done.
            Err(error) => {
                let line = format!("[Warning] the cache has a step that cannot be used: {}\n", chain(&error));
                Handle::current().block_on(self.report.line(line));
                Ok(None)
            }
        }
    }

    /// A layer without anything.
    fn nothing(&self) -> Result<StagedLayer> {
        let images = self.engine.store().images();
        Ok(images.stage_layer(|out| {
            out.write_all(&[0; 1024]).map_err(insula_store::Error::Output)?;
            Ok(0)
        })?)
    }

    pub(super) fn record_step(
        &self,
        key: &Key,
        below: &[Layer],
        layers: &[Layer],
        created: &str,
        text: &str,
    ) {
        if self.request.cache_to.is_empty() {
            return;
        }
        locked(&self.steps).push(Recorded {
            key: key.text().to_owned(),
            below: below.last().map(|layer| layer.chain_id.to_string()).unwrap_or_default(),
            layer: layers.get(below.len()).cloned(),
            created: created.to_owned(),
            text: text.chars().take(256).collect(),
        });
    }

    /// Whether what all stages made is wanted, and has to stay.
    pub(super) fn exports_all(&self) -> bool {
        self.request.cache_to.iter().any(|target| match target {
            CacheTarget::Inline => false,
            CacheTarget::Registry { scope, .. } | CacheTarget::Layout { scope, .. } => {
                *scope == CacheScope::All
            }
        })
    }

    /// The records that belong to an image, or all, by their keys; and their layers.
    fn leaving(&self, built: &Built, scope: CacheScope) -> (Vec<CacheRecord>, Vec<Layer>) {
        let of_image: HashSet<String> =
            built.layers.iter().map(|layer| layer.chain_id.to_string()).chain([String::new()]).collect();
        let mut records = BTreeMap::new();
        let mut layers: BTreeMap<DiffId, Layer> = BTreeMap::new();
        for step in locked(&self.steps).iter() {
            let made = step.layer.as_ref().map(|layer| layer.chain_id.to_string());
            let wanted = scope == CacheScope::All || of_image.contains(made.as_ref().unwrap_or(&step.below));
            if !wanted || records.contains_key(&step.key) {
                continue;
            }
            if let Some(layer) = &step.layer {
                if layers.len() >= LAYERS_MAX && !layers.contains_key(&layer.diff_id) {
                    continue;
                }
                layers.insert(layer.diff_id.clone(), layer.clone());
            }
            let layer = step.layer.as_ref().map(|layer| layer.diff_id.clone());
            let (key, created, text) = (step.key.clone(), step.created.clone(), step.text.clone());
            records.insert(key.clone(), CacheRecord { key, layer, created, text });
        }
        (records.into_values().collect(), layers.into_values().collect())
    }

    /// What the image itself takes along, if that is wanted.
    pub(super) fn inline(&self, built: &Built, config: &mut ImageConfig) -> Result<()> {
        if self.request.cache_to.iter().any(|target| matches!(target, CacheTarget::Inline)) {
            config.build_cache = Some(member(&self.leaving(built, CacheScope::Result).0)?);
        }
        Ok(())
    }

    /// An image that is nothing but a cache.
    pub(super) fn cache_image(&self, built: &Built, scope: CacheScope) -> Result<(Vec<Layer>, Composed)> {
        let (records, layers) = self.leaving(built, scope);
        let config = ImageConfig {
            architecture: base::architecture().to_owned(),
            os: "linux".to_owned(),
            rootfs: RootFs::default(),
            build_cache: Some(member(&records)?),
            ..ImageConfig::default()
        };
        Ok((layers, Composed { config, references: Vec::new() }))
    }

    /// Sends caches to registries.
    pub(super) async fn push_caches(self: &Arc<Self>, built: &Built) -> Result<()> {
        for target in &self.request.cache_to {
            let CacheTarget::Registry { name, scope } = target else { continue };
            let reference = Reference::parse(name).map_err(insula_store::Error::from)?;
            let (layers, composed) = self.cache_image(built, *scope)?;
            self.report.line(format!("Exporting cache to {}\n", reference.familiar())).await;
            let credentials = self.request.credentials(&reference).await?;
            let images = self.engine.images();
            let pushed =
                images.push_composed(&reference, &layers, composed, &credentials, self.report.sender());
            let digest = Box::pin(pushed).await?;
            self.report.line(format!("Exported cache: {digest}\n")).await;
        }
        Ok(())
    }

    /// Where an archive of the cache goes, if one is wanted.
    pub(super) fn cache_archive(&self) -> Option<(ArchiveSender, CacheScope)> {
        self.request.cache_to.iter().find_map(|target| match target {
            CacheTarget::Layout { sender, scope } => Some((sender.clone(), *scope)),
            _ => None,
        })
    }

    /// Writes the archive of the cache.
    pub(super) fn write_cache(
        &self,
        store: &Store,
        built: &Built,
        scope: CacheScope,
        out: &mut dyn Write,
    ) -> Result<()> {
        let (layers, composed) = self.cache_image(built, scope)?;
        store.images().save_composed(&layers, composed, out)?;
        Ok(())
    }
}

fn member(records: &[CacheRecord]) -> Result<serde_json::Value> {
    serde_json::to_value(records).map_err(|error| Error::Internal(format!("write records: {error}")))
}
