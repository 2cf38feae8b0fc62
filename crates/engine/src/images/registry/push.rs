//! Push: layers side by side, those that the registry lacks; then the configuration, and at last the
//! manifest, so that the name never stands for something incomplete.

use std::sync::Arc;

use bytes::Bytes;
use insula_base::{DiffId, Digest};
use insula_registry::{Content, Credentials, Pushed, Repository, Sent};
use insula_spec::image::{DOCUMENT_MAX, Descriptor, Manifest, media};
use insula_spec::reference::Reference;
use insula_store::{Image, LayerPlace};
use insula_sys::failpoint::failpoint;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::content::{StoredBlob, compress};
use super::lines::Lines;
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
struct Outgoing {
    diff: DiffId,
    /// As the image's manifest has it; none if the archive is yet to be compressed.
    blob: Option<Descriptor>,
    /// Repositories of the same registry that may have it, and as what.
    places: Vec<LayerPlace>,
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
        let missing = |error| match error {
            Error::Store(insula_store::Error::NoImage(_)) => {
                let name = name.familiar_name();
                Error::NotFound(format!("An image does not exist locally with the tag: {name}"))
            }
            error => error,
        };
        let image = self.resolve(&name.to_string()).map_err(missing)?;
        let (this, of_image) = (self.clone(), image.clone());
        let (document, layers) = blocking(move || this.outgoing(&of_image)).await?;
        let mut others: Vec<String> = Vec::new();
        let near = |place: &LayerPlace| place.registry == name.domain() && place.repository != name.path();
        for place in layers.iter().flat_map(|layer| &layer.places).filter(|place| near(place)) {
            if !others.contains(&place.repository) {
                others.push(place.repository.clone());
            }
        }
        let target = self.registries.target(name, credentials)?.reading(&others);
        let blobs = self.push_layers(name, &target, layers, lines).await?;
        failpoint("push.layers");
        let config = self.push_configuration(&target, &image).await?;
        let document = match document {
            Some(bytes) => bytes,
            None => made(&config, &blobs)?,
        };
        let media_type = Manifest::parse(&document).map_err(insula_store::Error::from)?.media_type;
        let media_type = media_type.unwrap_or_else(|| media::MANIFEST.to_owned());
        let tag = name.tag().unwrap_or_default();
        let digest = target.put_manifest(tag, &media_type, &document).await?;
        failpoint("push.manifest");
        self.remember(name, &image, &digest, &blobs).await?;
        lines.status(format!("{tag}: digest: {digest} size: {}", document.len())).await;
        lines.aux(json!({"Tag": tag, "Digest": digest.as_str(), "Size": document.len()})).await;
        self.publish("push", &image.id, &name.familiar());
        Ok(())
    }

    /// The manifest to push, if there is one whose blobs are here, and the layers.
    fn outgoing(&self, image: &Image) -> Result<(Option<Vec<u8>>, Vec<Outgoing>)> {
        let images = self.store.images();
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

    async fn push_layers(
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

    async fn push_configuration(&self, target: &Repository, image: &Image) -> Result<Descriptor> {
        let bytes = Bytes::from(self.store.content().read(&image.id, DOCUMENT_MAX as u64)?);
        let blob = Descriptor {
            media_type: media::CONFIG.to_owned(),
            digest: image.id.clone(),
            size: bytes.len() as u64,
            annotations: Default::default(),
            platform: None,
        };
        let (content, sent): (Arc<dyn Content>, Sent) = (Arc::new(bytes), Arc::new(|_| {}));
        target.push_blob(&blob, &[], &content, &sent).await?;
        Ok(blob)
    }

    /// Where the layers are now, and what the image is called by its digest there.
    async fn remember(
        &self,
        name: &Reference,
        image: &Image,
        digest: &Digest,
        blobs: &[(DiffId, Descriptor)],
    ) -> Result<()> {
        let by_digest = Reference::parse(&format!("{}@{digest}", name.name()));
        let by_digest = by_digest.map_err(insula_store::Error::from)?;
        let (store, id, name, blobs) = (self.store.clone(), image.id.clone(), name.clone(), blobs.to_vec());
        blocking(move || {
            for (diff, blob) in &blobs {
                let place = LayerPlace {
                    registry: name.domain().to_owned(),
                    repository: name.path().to_owned(),
                    blob: blob.clone(),
                };
                store.images().add_place(diff, &place)?;
            }
            store.images().tag(id.as_str(), &by_digest)?;
            Ok(())
        })
        .await
    }
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
fn made(config: &Descriptor, blobs: &[(DiffId, Descriptor)]) -> Result<Vec<u8>> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::MANIFEST.to_owned()),
        config: config.clone(),
        layers: blobs.iter().map(|(_, blob)| blob.clone()).collect(),
        annotations: Default::default(),
    };
    serde_json::to_vec(&manifest).map_err(|error| Error::Internal(error.to_string()))
}

fn digest_of(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
}
