//! Images: load and import with their progress, list, inspect, history, names, removal.

mod change;
mod commit;
pub(crate) mod describe;
mod filter;
mod layers;
mod progress;
mod registry;
mod shared;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;

use insula_base::{Digest, chain};
use insula_models::{HistoryItem, ImageDeleteItem, ImageInspect, ImageSummary, ImagesPruneResponse, Labels};
use insula_registry::Registries;
use insula_spec::image::RunConfig;
use insula_spec::reference::Reference;
use insula_store::{Force, Image, ImageKind, ImportOptions, Layer, Removal, Store, Usage};

pub use self::commit::CommitRequest;
pub use self::progress::ProgressSender;
use self::progress::Reporter;
use self::registry::LayerJobs;
pub use self::registry::{PullRequest, PushRequest};
pub(crate) use self::registry::{RemoteLayers, compress, fill};
use self::shared::Uploads;
pub use self::shared::{Referrers, SharedBlob, SharedManifest};
use crate::archive::{ArchiveChunks, produce};
use crate::events::{EventType, Events};
use crate::filters::Filters;
use crate::{Engine, Error, Result, blocking, transfer};
pub use insula_registry::Credentials;
pub use insula_store::IndexParts;

/// The images of one engine.
#[derive(Debug, Clone)]
pub struct Images {
    store: Arc<Store>,
    events: Arc<Events>,
    registries: Registries,
    layers: Arc<LayerJobs>,
    uploads: Arc<Uploads>,
}

/// What is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    All,
    /// Without what only says something about an image that is listed.
    Images,
}

impl Shown {
    fn has(self, image: &Image) -> bool {
        let named = || image.references.iter().any(|name| name.tag().is_some());
        self == Self::All || !image.is_attestation() || named()
    }
}

/// What an imported root file system is to be.
#[derive(Debug, Clone, Default)]
pub struct ImportRequest {
    /// `NAME` or `NAME:TAG`; without it the image has no name.
    pub reference: Option<String>,
    pub message: String,
    /// Instructions of a Dockerfile that set the configuration, one each.
    pub changes: Vec<String>,
    /// `linux/amd64`; the host's own if empty.
    pub platform: String,
}

impl Images {
    /// Those of `store`, and the way to others.
    #[must_use]
    pub fn new(store: Arc<Store>, events: Arc<Events>, registries: Registries) -> Self {
        let layers = Arc::new(LayerJobs::new(registries.options().downloads));
        Self { store, events, registries, layers, uploads: Arc::default() }
    }

    /// What is on disk.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The way to registries.
    #[must_use]
    pub fn registries(&self) -> &Registries {
        &self.registries
    }

    /// Loads every image of an archive, telling how far it is and what came in Docker's words.
    pub async fn load(&self, input: impl Read + Send + 'static, progress: ProgressSender) -> Result<()> {
        let this = self.clone();
        transfer(move || {
            let mut reporter = Reporter::new(progress);
            let loaded = this.store.images().load(input, &mut |step| reporter.step(&step))?;
            for image in loaded {
                if image.references.is_empty() {
                    reporter.line(format!("Loaded image ID: {}\n", image.id));
                }
                for reference in &image.references {
                    reporter.line(format!("Loaded image: {}\n", reference.familiar()));
                }
                let name = image.references.first().map_or_else(|| image.id.to_string(), Reference::familiar);
                this.publish("load", &image.id, &name);
            }
            Ok(())
        })
        .await
    }

    /// Makes an image of a root file system's tar; the last line of the progress is its id.
    pub async fn import(
        &self,
        input: impl Read + Send + 'static,
        request: ImportRequest,
        progress: ProgressSender,
    ) -> Result<()> {
        let options = import_options(request)?;
        let this = self.clone();
        transfer(move || {
            let mut reporter = Reporter::new(progress);
            let name = options.reference.as_ref().map(Reference::familiar);
            let id = this.store.images().import(input, options, &mut |step| reporter.step(&step))?;
            this.publish("import", &id, name.as_deref().unwrap_or_default());
            reporter.status(id.to_string());
            Ok(())
        })
        .await
    }

    /// The image by name, id or unique beginning of an id.
    pub fn resolve(&self, name: &str) -> Result<Image> {
        Ok(self.store.images().resolve(name)?)
    }

    /// The images that are shown and pass the filters, newest first.
    pub fn list(&self, filters: &Filters, shown: Shown) -> Result<Vec<ImageSummary>> {
        let images = self.store.images();
        let mut chosen = filter::choose(images, images.list()?, filters)?;
        chosen.retain(|image| shown.has(image));
        Ok(chosen.iter().map(describe::summary).collect())
    }

    /// Everything about one image.
    pub fn inspect(&self, name: &str) -> Result<ImageInspect> {
        Ok(describe::inspect(&self.resolve(name)?))
    }

    /// How the image's layers came to be, the last first.
    pub fn history(&self, name: &str) -> Result<Vec<HistoryItem>> {
        Ok(describe::history(&self.resolve(name)?))
    }

    /// Images by names or ids as one archive; `parts` says whether names that stand for an index bring all of it.
    pub fn save(&self, names: Vec<String>, parts: IndexParts) -> Result<ArchiveChunks> {
        if names.is_empty() {
            return Err(Error::InvalidArgument("no images are given to be saved".to_owned()));
        }
        // An error that can be told before the first byte is an answer of its own.
        self.store.images().check_save(&names)?;
        for name in &names {
            if let Ok(image) = self.resolve(name) {
                self.publish("save", &image.id, name);
            }
        }
        let store = self.store.clone();
        Ok(produce(move |out| Ok(store.images().save(&names, parts, out)?)))
    }

    /// Gives the image another name: `repository` and `tag` as `POST /images/{name}/tag` has them.
    pub fn tag(&self, name: &str, repository: &str, tag: &str) -> Result<()> {
        let mut target = Reference::parse(repository).map_err(insula_store::Error::from)?;
        if !tag.is_empty() {
            target = target.with_tag(tag).map_err(insula_store::Error::from)?;
        }
        if target.digest().is_some() {
            return Err(Error::InvalidArgument(
                "refusing to create a tag with a digest reference".to_owned(),
            ));
        }
        // It would be read as the digest of an image.
        if target.familiar_name() == "sha256" {
            return Err(Error::InvalidArgument(
                "refusing to create an ambiguous tag using digest algorithm as name".to_owned(),
            ));
        }
        let id = self.store.images().id_of(name)?;
        self.store.images().tag(name, &target)?;
        self.publish("tag", &id, &target.familiar());
        Ok(())
    }

    /// Removes a name, and the image with its last one. `running` says which containers run.
    pub async fn remove(
        &self,
        name: &str,
        force: Force,
        running: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Vec<ImageDeleteItem>> {
        let (this, name) = (self.clone(), name.to_owned());
        blocking(move || {
            // One whose documents are damaged can be removed, too.
            let id = this.store.images().id_of(&name)?;
            let steps = this.store.with_reserve(|| this.store.images().remove(&name, force, &running))?;
            Ok(steps.into_iter().map(|step| this.removed(&id, step)).collect())
        })
        .await
    }

    /// Removes images that no container uses: those without a name, or all with the filter
    /// `dangling=false`. Who asked for it publishes what it freed.
    pub(crate) async fn prune(&self, filters: Filters) -> Result<ImagesPruneResponse> {
        let this = self.clone();
        blocking(move || {
            this.uploads.settle();
            let images = this.store.images();
            let mut answer = ImagesPruneResponse::default();
            let sizes = removable(&images.list()?);
            for image in filter::prunable(images, &filters)? {
                match this.store.with_reserve(|| images.prune(&image)) {
                    Ok(steps) => {
                        answer.space_reclaimed += freed(&sizes, &steps);
                        let done = steps.into_iter().map(|step| this.removed(&image.id, step));
                        answer.images_deleted.extend(done);
                    }
                    Err(error) => tracing::warn!(image = %image.id, error = chain(&error), "not pruned"),
                }
            }
            Ok(answer)
        })
        .await
    }

    /// As [`Images::list`], with the bytes of those layers and files that other images have too.
    pub async fn list_shared(&self, filters: &Filters, shown: Shown) -> Result<Vec<ImageSummary>> {
        let store = self.store.clone();
        let usage = blocking(move || Ok(store.usage()?)).await?;
        self.list_used(filters, shown, &usage)
    }

    /// The same for who knows already what is on the disk.
    pub(crate) fn list_used(
        &self,
        filters: &Filters,
        shown: Shown,
        usage: &Usage,
    ) -> Result<Vec<ImageSummary>> {
        let all = self.store.images().list()?;
        let mut images_of: BTreeMap<_, u32> = BTreeMap::new();
        for layer in all.iter().flat_map(|image| &image.layers) {
            *images_of.entry(layer.chain_id.clone()).or_default() += 1;
        }
        let shared = |image: &Image| -> u64 {
            let (whole, own): (Vec<&Layer>, Vec<&Layer>) =
                image.layers.iter().partition(|layer| images_of[&layer.chain_id] > 1);
            let whole: u64 = whole.into_iter().map(|layer| layer.size).sum();
            whole + shared_files(image, &own, usage)
        };
        let sizes: BTreeMap<String, u64> =
            all.iter().map(|image| (image.id.to_string(), shared(image))).collect();
        let mut chosen = filter::choose(self.store.images(), all, filters)?;
        chosen.retain(|image| shown.has(image));
        Ok(chosen
            .iter()
            .map(|image| {
                let mut summary = describe::summary(image);
                let bytes = sizes.get(&summary.id).copied().unwrap_or_default();
                summary.shared_size = i64::try_from(bytes).unwrap_or(i64::MAX);
                summary
            })
            .collect())
    }

    fn removed(&self, image: &Digest, step: Removal) -> ImageDeleteItem {
        match step {
            Removal::Untagged(reference) => {
                self.publish("untag", image, &reference.familiar());
                ImageDeleteItem { untagged: reference.familiar(), deleted: String::new() }
            }
            Removal::Deleted(digest) => {
                // Layers are listed too and are no event.
                if digest == *image {
                    self.publish("delete", image, digest.as_str());
                }
                ImageDeleteItem { untagged: String::new(), deleted: digest.to_string() }
            }
        }
    }

    pub(crate) fn publish(&self, action: &str, id: &Digest, name: &str) {
        let attributes = Labels::from([("name".to_owned(), name.to_owned())]);
        self.events.publish(EventType::Image, action, id.as_str(), attributes);
    }
}

impl Engine {
    /// Removes a name of an image, and the image with its last one; with `force` also one that stopped
    /// containers use.
    pub async fn remove_image(&self, name: &str, force: bool) -> Result<Vec<ImageDeleteItem>> {
        let engine = self.clone();
        let force = if force { Force::Yes } else { Force::No };
        let removed = self.images().remove(name, force, move |owner| engine.is_running(owner)).await?;
        self.forget_mapped(&removed).await;
        Ok(removed)
    }
}

/// Bytes of what can be removed, by the digests that a removal names.
fn removable(images: &[Image]) -> HashMap<Digest, u64> {
    let layers = images.iter().flat_map(|image| &image.layers);
    let layers = layers.map(|layer| (layer.chain_id.0.clone(), layer.size));
    let artifacts = images.iter().filter(|image| matches!(image.kind, ImageKind::Artifact { .. }));
    layers.chain(artifacts.map(|image| (image.id.clone(), image.size))).collect()
}

/// Bytes of what a removal took.
fn freed(sizes: &HashMap<Digest, u64>, steps: &[Removal]) -> u64 {
    let size = |step: &Removal| match step {
        Removal::Deleted(digest) => sizes.get(digest).copied(),
        Removal::Untagged(_) => None,
    };
    steps.iter().filter_map(size).sum()
}

/// Bytes of files of these layers of an image that layers have, too, which the image has not.
fn shared_files(image: &Image, own: &[&Layer], usage: &Usage) -> u64 {
    let chains: Vec<_> = own.iter().map(|layer| &layer.chain_id).collect();
    let all: HashSet<_> = image.layers.iter().map(|layer| &layer.chain_id).collect();
    let elsewhere = usage.shared.iter().filter(|of| of.layers.iter().any(|(chain, _)| !all.contains(chain)));
    elsewhere
        .map(|of| {
            let here = of.layers.iter().filter(|(chain, _)| chains.contains(&chain));
            of.bytes * here.map(|(_, names)| u64::from(*names)).sum::<u64>()
        })
        .sum()
}

fn import_options(request: ImportRequest) -> Result<ImportOptions> {
    let reference =
        request.reference.as_deref().map(Reference::parse).transpose().map_err(insula_store::Error::from)?;
    let mut config = RunConfig::default();
    for instruction in &request.changes {
        change::apply(&mut config, instruction)?;
    }
    let architecture = match request.platform.split('/').collect::<Vec<_>>().as_slice() {
        [""] | ["linux"] => String::new(),
        ["linux", architecture] | ["linux", architecture, _] => (*architecture).to_owned(),
        _ => {
            return Err(Error::InvalidArgument(format!(
                "platform {:?}: linux/ARCHITECTURE is expected",
                request.platform
            )));
        }
    };
    let message = if request.message.is_empty() { "Imported from -".to_owned() } else { request.message };
    Ok(ImportOptions { reference, config, message, architecture })
}
