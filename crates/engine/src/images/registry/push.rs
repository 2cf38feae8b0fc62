//! Push: layers side by side, those that the registry lacks; then the configuration, and at last the
//! manifest, so that the name never stands for something incomplete.

use std::sync::Arc;

use bytes::Bytes;
use insula_base::{DiffId, Digest};
use insula_registry::{Content, Credentials, Pushed, Repository, Sent};
use insula_spec::image::{Descriptor, Index, Manifest, media};
use insula_spec::reference::Reference;
use insula_store::{Image, ImageKind, ImageLease, LayerPlace, Standing, StandingIndex};
use insula_sys::failpoint::failpoint;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::content::{StoredBlob, compress};
use super::lines::Lines;
use super::whole::by_digest;
use crate::images::{Images, ProgressSender};
use crate::measures::Operation;
use crate::{Error, Result, blocking};

/// What is to be pushed.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// `NAME` or `NAME:TAG`.
    pub name: String,
    /// Empty: all tags of the name that are here.
    pub tag: String,
    pub credentials: Credentials,
}

/// One layer on its way there.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub(super) diff: DiffId,
    /// As the image's manifest has it; none if the archive is yet to be compressed.
    pub(super) blob: Option<Descriptor>,
    /// Repositories of the same registry that may have it, and as what.
    pub(super) places: Vec<LayerPlace>,
}

/// What is pushed of an image or an artifact. Its layers and blobs stay here meanwhile, whoever removes it.
struct Documents {
    image: Image,
    /// If there is one whose blobs are here.
    manifest: Option<Vec<u8>>,
    config: Descriptor,
    config_bytes: Bytes,
    layers: Vec<Outgoing>,
    _lease: ImageLease,
}

impl Images {
    /// Pushes an image by one of its names, or by all in a repository, with Docker's lines.
    pub async fn push(&self, request: PushRequest, progress: ProgressSender) -> Result<()> {
        self.events.measures().of(Operation::Push, self.push_all(request, progress)).await
    }

    async fn push_all(&self, request: PushRequest, progress: ProgressSender) -> Result<()> {
        let lines = Lines::new(progress);
        let mut name = Reference::parse(&request.name).map_err(insula_store::Error::from)?;
        if !request.tag.is_empty() {
            name = name.with_tag(&request.tag).map_err(insula_store::Error::from)?;
        }
        if name.digest().is_some() {
            return Err(Error::InvalidArgument("cannot push a digest reference".to_owned()));
        }
        let all =
            request.tag.is_empty() && !request.name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        lines.status(format!("The push refers to repository [{}]", name.name())).await;
        let names = if all { self.tags_here(&name)? } else { vec![name] };
        for name in &names {
            self.push_one(name, &request.credentials, &lines).await?;
        }
        Ok(())
    }

    /// Every tag of a repository that is here.
    fn tags_here(&self, name: &Reference) -> Result<Vec<Reference>> {
        let images = self.store.images().list()?;
        let names = images.into_iter().flat_map(|image| image.references);
        let mut names: Vec<_> =
            names.filter(|other| other.name() == name.name() && other.tag().is_some()).collect();
        names.sort();
        if names.is_empty() {
            let name = name.familiar_name();
            return Err(Error::NotFound(format!("An image does not exist locally with the tag: {name}")));
        }
        Ok(names)
    }

    async fn push_one(&self, name: &Reference, credentials: &Credentials, lines: &Lines) -> Result<()> {
        // Futures of this size are on the heap, not on the stack of whoever waits.
        let pushed = Box::pin(self.push_found(name, credentials, lines)).await;
        let here = || self.resolve(&name.to_string()).is_ok();
        pushed.map_err(|error| match error {
            // Somebody may have removed it since it was found, before it was held.
            Error::Store(insula_store::Error::NoImage(_) | insula_store::Error::NoContent(_)) if !here() => {
                let name = name.familiar_name();
                Error::NotFound(format!("An image does not exist locally with the tag: {name}"))
            }
            error => error,
        })
    }

    async fn push_found(&self, name: &Reference, credentials: &Credentials, lines: &Lines) -> Result<()> {
        let image = self.resolve(&name.to_string())?;
        let (store, named) = (self.store.clone(), name.clone());
        let standing = blocking(move || Ok(store.images().standing(&named)?)).await?;
        let given = match standing {
            Some(Standing::Index(index)) if index.missing == 0 => {
                return Box::pin(self.push_index(name, &image, index, credentials, lines)).await;
            }
            Some(Standing::Index(index)) => {
                let (missing, count) = (index.missing, index.here.len() + index.missing);
                lines
                    .status(format!(
                        "{missing} of the {count} images of the index are not here: only this host's is pushed \
                         (pull --platform all)"
                    ))
                    .await;
                None
            }
            Some(Standing::Manifest(bytes)) => Some(bytes),
            None => None,
        };
        let tag = name.tag().unwrap_or_default();
        let (this, of_image) = (self.clone(), image.clone());
        let documents = blocking(move || this.documents(of_image, given)).await?;
        let (digest, size) = Box::pin(self.push_document(name, tag, documents, credentials, lines)).await?;
        lines.status(format!("{tag}: digest: {digest} size: {size}")).await;
        lines.aux(json!({"Tag": tag, "Digest": digest.as_str(), "Size": size})).await;
        self.publish("push", &image.id, &name.familiar());
        Ok(())
    }

    /// Pushes every image of an index, then the indexes within it, and at last the index.
    async fn push_index(
        &self,
        name: &Reference,
        image: &Image,
        index: StandingIndex,
        credentials: &Credentials,
        lines: &Lines,
    ) -> Result<()> {
        let (this, here) = (self.clone(), index.here);
        for (manifest, documents) in blocking(move || this.parts(here)).await? {
            let as_what = manifest.as_str();
            let (found, _) =
                Box::pin(self.push_document(name, as_what, documents, credentials, lines)).await?;
            if found != manifest {
                return Err(Error::Internal(format!("{manifest} would be pushed as {found}")));
            }
        }
        let target = self.registries.target(name, credentials)?;
        for bytes in &index.within {
            target.put_manifest(digest_of(bytes).as_str(), &index_type(bytes)?, bytes).await?;
        }
        let (tag, bytes) = (name.tag().unwrap_or_default(), index.bytes);
        let digest = target.put_manifest(tag, &index_type(&bytes)?, &bytes).await?.digest;
        let (store, id, size) = (self.store.clone(), image.id.clone(), bytes.len());
        let by_digest = by_digest(name, &digest)?;
        blocking(move || known_as(store.images(), &by_digest, &bytes, &id)).await?;
        lines.status(format!("{tag}: digest: {digest} size: {size}")).await;
        lines.aux(json!({"Tag": tag, "Digest": digest.as_str(), "Size": size})).await;
        self.publish("push", &image.id, &name.familiar());
        Ok(())
    }

    /// Pushes a manifest with its blobs as a tag or by its digest, which is returned with its size.
    async fn push_document(
        &self,
        name: &Reference,
        as_what: &str,
        documents: Documents,
        credentials: &Credentials,
        lines: &Lines,
    ) -> Result<(Digest, usize)> {
        let Documents { image, manifest, config, config_bytes, layers, _lease } = documents;
        let target = self.registries.target(name, credentials)?.reading(&nearby(name, &layers));
        let blobs = Box::pin(self.push_layers(name, &target, layers, lines)).await?;
        failpoint("push.layers");
        let (content, sent): (Arc<dyn Content>, Sent) = (Arc::new(config_bytes), Arc::new(|_| {}));
        target.push_blob(&config, &[], &content, &sent).await?;
        let document = match manifest {
            Some(bytes) => bytes,
            None => made(&config, &blobs)?,
        };
        let parsed = Manifest::parse(&document).map_err(insula_store::Error::from)?;
        let media_type = parsed.media_type.unwrap_or_else(|| media::MANIFEST.to_owned());
        let stored = target.put_manifest(as_what, &media_type, &document).await?;
        failpoint("push.manifest");
        if let (Some(error), Some(subject)) = (&stored.unlisted, &parsed.subject) {
            let why = insula_base::chain(error);
            lines
                .status(format!(
                    "Warning: {} is pushed, but who asks the registry what refers to {} is not told of it: {why}",
                    stored.digest, subject.digest
                ))
                .await;
        }
        let size = document.len();
        self.remember(name, &image, document, &blobs).await?;
        Ok((stored.digest, size))
    }

    /// What is pushed of these manifests and their images, by the digests of the manifests. All of it stays from before
    /// the first upload: an index is no use without a part.
    fn parts(&self, here: Vec<(Digest, Digest)>) -> Result<Vec<(Digest, Documents)>> {
        let part = |(manifest, id): (Digest, Digest)| {
            let document = self.store.images().document(&manifest)?;
            Ok((manifest, self.documents(self.resolve(id.as_str())?, Some(document))?))
        };
        here.into_iter().map(part).collect()
    }

    /// What is pushed of an image: a manifest that is given, whose blobs are here, or its own.
    fn documents(&self, image: Image, given: Option<Vec<u8>>) -> Result<Documents> {
        let images = self.store.images();
        let lease = images.lease_image(&image)?;
        let (manifest, layers) = self.outgoing(&image, given)?;
        let mut config = match &manifest {
            Some(bytes) => Manifest::parse(bytes).map_err(insula_store::Error::from)?.config,
            None => configuration(&image.id),
        };
        let config_bytes = Bytes::from(images.document(&config.digest)?);
        config.size = config_bytes.len() as u64;
        Ok(Documents { image, manifest, config, config_bytes, layers, _lease: lease })
    }

    /// The manifest to push, if there is one whose blobs are here, and the layers.
    fn outgoing(&self, image: &Image, given: Option<Vec<u8>>) -> Result<(Option<Vec<u8>>, Vec<Outgoing>)> {
        let images = self.store.images();
        let artifact = matches!(image.kind, ImageKind::Artifact { .. });
        if given.is_some() || artifact {
            let bytes = given.map_or_else(|| images.manifest(image), Ok)?;
            let blobs = Manifest::parse(&bytes).map_err(insula_store::Error::from)?.layers;
            let diffs =
                image.layers.iter().map(|layer| Some(layer.diff_id.clone())).chain(std::iter::repeat(None));
            let layers = blobs.into_iter().zip(diffs).map(|(blob, diff)| {
                // A blob of an artifact is what it is.
                let diff = diff.unwrap_or_else(|| DiffId(blob.digest.clone()));
                let places = if artifact { Vec::new() } else { images.places(&diff)? };
                Ok(Outgoing { diff, blob: Some(blob), places })
            });
            return Ok((Some(bytes), layers.collect::<Result<_>>()?));
        }
        let bytes = images.manifest(image)?;
        let blobs = images.layer_blobs(image)?;
        // Plain layers of a manifest made here are better compressed on the way.
        let own = image.manifest.as_ref().is_none_or(|digest| digest_of(&bytes) != *digest);
        let layers = blobs
            .into_iter()
            .map(|layer| {
                let places = images.places(&layer.diff)?;
                Ok(Outgoing { diff: layer.diff, blob: (!own).then_some(layer.blob), places })
            })
            .collect::<Result<_>>()?;
        Ok(((!own).then_some(bytes), layers))
    }

    pub(super) async fn push_layers(
        &self,
        name: &Reference,
        target: &Repository,
        layers: Vec<Outgoing>,
        lines: &Lines,
    ) -> Result<Vec<(DiffId, Descriptor)>> {
        let slots = Arc::new(Semaphore::new(self.registries.options().uploads.max(1)));
        for layer in &layers {
            lines.state(layer.diff.0.short(), "Preparing").await;
        }
        let mut pushing = JoinSet::new();
        let mut blobs: Vec<Option<(DiffId, Descriptor)>> = vec![None; layers.len()];
        for (at, layer) in layers.into_iter().enumerate() {
            let (this, name, target) = (self.clone(), name.clone(), target.clone());
            let (slots, lines) = (slots.clone(), lines.clone());
            pushing.spawn(async move {
                // The semaphore is never closed.
                let _slot = slots.acquire_owned().await;
                let diff = layer.diff.clone();
                this.push_layer(&name, &target, layer, &lines).await.map(|blob| (at, (diff, blob)))
            });
        }
        while let Some(pushed) = pushing.join_next().await {
            let (at, blob) =
                pushed.unwrap_or_else(|error| Err(Error::Internal(format!("a task ended: {error}"))))?;
            blobs[at] = Some(blob);
        }
        Ok(blobs.into_iter().flatten().collect())
    }

    /// Makes sure that the registry has a layer, and returns as what.
    async fn push_layer(
        &self,
        name: &Reference,
        target: &Repository,
        layer: Outgoing,
        lines: &Lines,
    ) -> Result<Descriptor> {
        let id = layer.diff.0.short().to_owned();
        let near: Vec<_> = layer.places.iter().filter(|place| place.registry == name.domain()).collect();
        let others = |blob: &Descriptor| -> Vec<String> {
            let same = near.iter().filter(|place| place.blob.digest == blob.digest);
            same.map(|place| place.repository.clone()).collect()
        };
        let (blob, content): (Descriptor, Arc<dyn Content>) = match layer.blob {
            Some(blob) => (blob.clone(), Arc::new(StoredBlob::new(&self.store, &blob.digest))),
            None => {
                for place in &near {
                    let others = [place.repository.clone()];
                    if let Some(pushed) = target.mount_blob(&place.blob, &others).await? {
                        told(lines, &id, &pushed).await;
                        return Ok(place.blob.clone());
                    }
                }
                lines.state(&id, "Compressing").await;
                let (store, diff) = (self.store.clone(), layer.diff.clone());
                let read = progress(lines, &id, "Compressing");
                let (blob, file) = blocking(move || compress(&store, &diff, read)).await?;
                (blob, Arc::new(file))
            }
        };
        let (total, tell) = (blob.size, progress(lines, &id, "Pushing"));
        let sent: Sent = Arc::new(move |bytes| tell(bytes, total));
        let pushed = target.push_blob(&blob, &others(&blob), &content, &sent).await?;
        told(lines, &id, &pushed).await;
        Ok(blob)
    }

    /// Where the layers are now, and what the image is called by its digest there.
    async fn remember(
        &self,
        name: &Reference,
        image: &Image,
        document: Vec<u8>,
        blobs: &[(DiffId, Descriptor)],
    ) -> Result<()> {
        let by_digest = by_digest(name, &digest_of(&document))?;
        let (store, id, name) = (self.store.clone(), image.id.clone(), name.clone());
        let artifact = matches!(image.kind, ImageKind::Artifact { .. });
        let blobs = if artifact { Vec::new() } else { blobs.to_vec() };
        blocking(move || {
            for (diff, blob) in &blobs {
                let place = LayerPlace {
                    registry: name.domain().to_owned(),
                    repository: name.path().to_owned(),
                    blob: blob.clone(),
                };
                store.images().add_place(diff, &place)?;
            }
            // What it is known by there stays what it is.
            known_as(store.images(), &by_digest, &document, &id)
        })
        .await
    }
}

/// Notes by which digest a registry knows an image. One that was removed while it was pushed is pushed all the same.
fn known_as(images: &insula_store::Images, name: &Reference, document: &[u8], id: &Digest) -> Result<()> {
    match images.name_document(std::slice::from_ref(name), document, &[], id, &[]) {
        Ok(()) | Err(insula_store::Error::NoImage(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn index_type(bytes: &[u8]) -> Result<String> {
    let media_type = Index::parse(bytes).map_err(insula_store::Error::from)?.media_type;
    Ok(media_type.unwrap_or_else(|| media::INDEX.to_owned()))
}

/// Other repositories of the same registry that may have some of the layers.
pub(super) fn nearby(name: &Reference, layers: &[Outgoing]) -> Vec<String> {
    let near = |place: &LayerPlace| place.registry == name.domain() && place.repository != name.path();
    let mut others: Vec<String> = Vec::new();
    for place in layers.iter().flat_map(|layer| &layer.places).filter(|place| near(place)) {
        if !others.contains(&place.repository) {
            others.push(place.repository.clone());
        }
    }
    others
}

/// Tells how many of how many bytes of a layer are done.
fn progress(lines: &Lines, id: &str, doing: &'static str) -> impl Fn(u64, u64) + Send + Sync + 'static {
    let (lines, id) = (lines.clone(), id.to_owned());
    let pace = super::lines::Pace::default();
    move |done, total| {
        if pace.is_due(done == total) {
            lines.bytes(&id, doing, done, total);
        }
    }
}

async fn told(lines: &Lines, id: &str, pushed: &Pushed) {
    match pushed {
        Pushed::Exists => lines.state(id, "Layer already exists").await,
        Pushed::Mounted(from) => lines.state(id, format!("Mounted from {from}")).await,
        Pushed::Uploaded => lines.state(id, "Pushed").await,
    }
}

/// The manifest of an image that came with none, or with one whose blobs are not here.
pub(super) fn made(config: &Descriptor, blobs: &[(DiffId, Descriptor)]) -> Result<Vec<u8>> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::MANIFEST.to_owned()),
        config: config.clone(),
        layers: blobs.iter().map(|(_, blob)| blob.clone()).collect(),
        annotations: Default::default(),
        artifact_type: None,
        subject: None,
    };
    serde_json::to_vec(&manifest).map_err(|error| Error::Internal(error.to_string()))
}

pub(super) fn configuration(image: &Digest) -> Descriptor {
    Descriptor {
        media_type: media::CONFIG.to_owned(),
        digest: image.clone(),
        size: 0,
        annotations: Default::default(),
        platform: None,
    }
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
}
