//! Pull: the documents first, then every layer that is not here, side by side, each downloaded,
//! verified, decompressed and unpacked in one go; then one transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use insula_base::{DiffId, Digest};
use insula_registry::{Credentials, Document, Error as RegistryError, Repository, Resolved, Wanted};
use insula_spec::image::{DOCUMENT_MAX, Descriptor, ImageConfig};
use insula_spec::reference::Reference;
use insula_store::{Ingested, IngestedLayer};
use insula_sys::failpoint::failpoint;
use tokio::task::JoinSet;

use super::jobs::Job;
use super::lines::Lines;
use super::push::digest_of;
use crate::images::{Images, ProgressSender};
use crate::measures::Operation;
use crate::{Error, Result, blocking};

/// The platform that stands for all of an index.
const WHOLE: &str = "all";

/// Between two lines about the same layer.
const PACE: Duration = Duration::from_millis(100);
/// A layer may be removed between the look for it and the commit; then it is fetched after all.
pub(super) const TRIES: usize = 3;

/// What is to be pulled.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// `NAME`, `NAME:TAG` or `NAME@DIGEST`; a bare name without [`PullRequest::tag`] is all of its tags.
    pub name: String,
    /// A tag or a digest, or empty.
    pub tag: String,
    /// Empty: what this host runs; `all`: the whole of an index.
    pub platform: String,
    pub credentials: Credentials,
}

/// What a pull brought.
pub(super) struct Pulled {
    pub(super) digest: Digest,
    pub(super) newer: bool,
}

impl Images {
    /// Pulls an image, or all tags of a repository, with Docker's lines.
    pub async fn pull(&self, request: PullRequest, progress: ProgressSender) -> Result<()> {
        self.events.measures().of(Operation::Pull, self.pull_all(request, progress)).await
    }

    async fn pull_all(&self, request: PullRequest, progress: ProgressSender) -> Result<()> {
        let lines = Lines::new(progress);
        let whole = request.platform == WHOLE;
        let platform = if whole { "" } else { &request.platform };
        let wanted = Wanted::parse(platform).map_err(|e| Error::InvalidArgument(e.to_string()))?;
        let (reference, all) = requested(&request)?;
        let mut references = vec![reference.clone()];
        if all {
            references = self.all_tags(&reference, &request.credentials).await?;
        }
        let mut newer = false;
        for reference in &references {
            let pulled = match whole {
                // Futures of this size are on the heap, not on the stack of whoever waits.
                true => Box::pin(self.pull_whole(reference, &request.credentials, &lines)).await?,
                false => Box::pin(self.pull_one(reference, &wanted, &request.credentials, &lines)).await?,
            };
            lines.status(format!("Digest: {}", pulled.digest)).await;
            newer |= pulled.newer;
        }
        let name = if all { reference.familiar_name() } else { reference.familiar() };
        let status = if newer { "Downloaded newer image for" } else { "Image is up to date for" };
        lines.status(format!("Status: {status} {name}")).await;
        Ok(())
    }

    async fn all_tags(&self, reference: &Reference, credentials: &Credentials) -> Result<Vec<Reference>> {
        let sources = self.registries.sources(reference, credentials)?;
        // Mirrors know the tags that were asked for, not all.
        let origin = sources.last().ok_or_else(|| Error::Internal("no source".to_owned()))?;
        let tags = origin.tags().await.map_err(|error| denied(error, reference))?;
        if tags.is_empty() {
            return Err(Error::NotFound(format!("{} has no tags", reference.familiar_name())));
        }
        Ok(tags
            .iter()
            .map(|tag| reference.with_tag(tag))
            .collect::<Result<_, _>>()
            .map_err(insula_store::Error::from)?)
    }

    pub(super) async fn pull_one(
        &self,
        reference: &Reference,
        wanted: &Wanted,
        credentials: &Credentials,
        lines: &Lines,
    ) -> Result<Pulled> {
        let sources = self.registries.sources(reference, credentials)?;
        let (resolved, sources) = resolve(reference, sources, wanted).await?;
        let tag = reference.digest().map_or_else(|| reference.tag().unwrap_or_default(), Digest::as_str);
        lines.about(tag, format!("Pulling from {}", reference.path())).await;
        if !resolved.manifest.is_image() {
            return Box::pin(self.pull_artifact(reference, &resolved, &sources, lines)).await;
        }
        let config = self.configuration(&resolved, &sources).await?;
        let layers = layers(&resolved, &config, reference, wanted)?;
        let digest = resolved.top.digest.clone();
        let image = ingested(reference, &resolved, config)?;
        let before = self.store.images().id_of(&reference.to_string()).ok();
        for _ in 0..TRIES {
            let (arrived, jobs) = self.layers(&layers, &sources, lines).await?;
            failpoint("pull.fetched");
            let (this, image) = (self.clone(), image.clone());
            let committed =
                blocking(move || Ok(this.store.images().commit_ingested(&image, &arrived))).await?;
            // Others may wait for the same layers until they are in their places.
            drop(jobs);
            match committed {
                Ok(loaded) => {
                    failpoint("pull.made");
                    self.publish("pull", &loaded.id, &reference.familiar());
                    return Ok(Pulled { digest, newer: before != Some(loaded.id) });
                }
                Err(insula_store::Error::NoLayer(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Conflict(format!("layers of {} are removed again and again", reference.familiar())))
    }

    /// The bytes of the image's configuration, which may be here, whole or damaged.
    pub(super) async fn configuration(&self, resolved: &Resolved, sources: &[Repository]) -> Result<Vec<u8>> {
        let descriptor = &resolved.manifest.config;
        if let Ok(bytes) = self.store.content().read(&descriptor.digest, DOCUMENT_MAX as u64)
            && digest_of(&bytes) == descriptor.digest
        {
            return Ok(bytes);
        }
        let mut failure = None;
        for source in sources {
            match source.document(descriptor, "configuration").await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.map_or_else(|| Error::Internal("no source".to_owned()), Error::from))
    }

    /// All layers that are not here, and the jobs that brought them.
    async fn layers(
        &self,
        layers: &[(Descriptor, DiffId)],
        sources: &[Repository],
        lines: &Lines,
    ) -> Result<(Vec<Arc<IngestedLayer>>, Vec<Arc<Job>>)> {
        let mut following = JoinSet::new();
        let mut jobs: HashMap<&DiffId, Arc<Job>> = HashMap::new();
        for (blob, diff) in layers {
            let id = blob.digest.short();
            // One that is here in another form has to come in this one too: it may be pushed as it was pulled.
            let here = || {
                Ok::<_, Error>(
                    self.store.images().has_layer(diff)? && self.store.images().has_blob(&blob.digest)?,
                )
            };
            if jobs.contains_key(diff) || here()? {
                lines.about(id, "Already exists").await;
                continue;
            }
            lines.state(id, "Pulling fs layer").await;
            let job = self.layers.get(&self.store, sources, blob, diff);
            jobs.insert(diff, job.clone());
            following.spawn(follow(job, id.to_owned(), blob.size, lines.clone()));
        }
        let mut arrived = Vec::new();
        while let Some(followed) = following.join_next().await {
            let layer =
                followed.unwrap_or_else(|error| Err(Error::Internal(format!("a task ended: {error}"))));
            arrived.push(layer?);
        }
        Ok((arrived, jobs.into_values().collect()))
    }
}

/// The reference, and whether it stands for all tags.
fn requested(request: &PullRequest) -> Result<(Reference, bool)> {
    // `pull -a` of old clients.
    let name = request.name.strip_suffix(':').unwrap_or(&request.name);
    let named = name.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    let text = match request.tag.as_str() {
        "" => name.to_owned(),
        digest if digest.contains(':') => format!("{}@{digest}", name.split('@').next().unwrap_or(name)),
        tag if named => {
            return requested(&PullRequest {
                name: name[..name.rfind([':', '@']).unwrap_or(name.len())].to_owned(),
                tag: tag.to_owned(),
                ..request.clone()
            });
        }
        tag => format!("{name}:{tag}"),
    };
    let reference = Reference::parse(&text).map_err(insula_store::Error::from)?;
    Ok((reference, request.tag.is_empty() && !named))
}

/// What the name stands for, at the first place that knows; and the places from there on.
pub(super) async fn resolve(
    reference: &Reference,
    mut sources: Vec<Repository>,
    wanted: &Wanted,
) -> Result<(Resolved, Vec<Repository>)> {
    loop {
        let Some(source) = sources.first() else { return Err(Error::Internal("no source".to_owned())) };
        match source.resolve(reference.tag(), reference.digest(), wanted).await {
            Ok(resolved) => return Ok((resolved, sources)),
            Err(error) if sources.len() > 1 => {
                passed_over(source, &error);
                sources.remove(0);
            }
            Err(error) => return Err(denied(error, reference)),
        }
    }
}

/// The document that the name stands for, at the first place that knows; and the places from there on.
pub(super) async fn document(
    reference: &Reference,
    mut sources: Vec<Repository>,
) -> Result<(Document, Vec<Repository>)> {
    loop {
        let Some(source) = sources.first() else { return Err(Error::Internal("no source".to_owned())) };
        match source.manifest(reference.tag(), reference.digest()).await {
            Ok(document) => return Ok((document, sources)),
            Err(error) if sources.len() > 1 => {
                passed_over(source, &error);
                sources.remove(0);
            }
            Err(error) => return Err(denied(error, reference)),
        }
    }
}

fn passed_over(mirror: &Repository, error: &RegistryError) {
    tracing::warn!(error = insula_base::chain(error), mirror = mirror.host(), "mirror passed over");
}

/// Docker says the same of what may not be read and of what does not exist.
fn denied(error: RegistryError, reference: &Reference) -> Error {
    match error {
        RegistryError::Denied { why, .. } => Error::NotFound(format!(
            "pull access denied for {}, repository does not exist or may require 'insula login': {why}",
            reference.familiar_name()
        )),
        error => error.into(),
    }
}

/// Each layer with the digest of its content; the image is for the platform that was asked for.
fn layers(
    resolved: &Resolved,
    config: &[u8],
    reference: &Reference,
    wanted: &Wanted,
) -> Result<Vec<(Descriptor, DiffId)>> {
    let config = ImageConfig::parse(config).map_err(insula_store::Error::from)?;
    let variant = config.variant.as_deref();
    if wanted.explicit && !wanted.accepts(&config.os, &config.architecture, variant) {
        return Err(Error::NotFound(format!(
            "image with reference {} was found but does not match the specified platform: wanted {wanted}, \
             actual: {}/{}",
            reference.familiar(),
            config.os,
            config.architecture
        )));
    }
    let (blobs, diffs) = (&resolved.manifest.layers, &config.rootfs.diff_ids);
    if blobs.len() != diffs.len() {
        return Err(Error::InvalidArgument(format!(
            "{} has {} layers, its configuration {}",
            reference.familiar(),
            blobs.len(),
            diffs.len()
        )));
    }
    Ok(blobs.iter().cloned().zip(diffs.iter().cloned()).collect())
}

/// The documents and names for the store: the tag, and the digest that the name stands for there.
fn ingested(reference: &Reference, resolved: &Resolved, config: Vec<u8>) -> Result<Ingested> {
    let by_digest = format!("{}@{}", reference.name(), resolved.top.digest);
    let by_digest = Reference::parse(&by_digest).map_err(insula_store::Error::from)?;
    let tagged = (reference.digest().is_none()).then(|| reference.clone());
    Ok(Ingested {
        manifest: resolved.document.bytes.clone(),
        index: (resolved.top.digest != resolved.document.digest).then(|| resolved.top.bytes.clone()),
        config,
        references: tagged.into_iter().chain([by_digest]).collect(),
        origin: Some(reference.clone()),
    })
}

/// Tells how far a layer is until it is here.
async fn follow(job: Arc<Job>, id: String, size: u64, lines: Lines) -> Result<Arc<IngestedLayer>> {
    let mut progress = job.progress.clone();
    let mut told = false;
    // It is seldom worth a word that others come first.
    let _ = tokio::time::timeout(PACE, progress.wait_for(|progress| progress.begun)).await;
    loop {
        let now = progress.borrow_and_update().clone();
        if let Some(outcome) = now.outcome {
            let layer = outcome.map_err(Error::Shared)?;
            lines.state(&id, "Download complete").await;
            lines.state(&id, "Pull complete").await;
            return Ok(layer);
        }
        match (now.begun, now.bytes) {
            (false, _) if !told => {
                told = true;
                lines.state(&id, "Waiting").await;
            }
            (true, bytes) if bytes >= size && size > 0 => lines.bytes(&id, "Extracting", bytes, size),
            (true, bytes) if bytes > 0 => lines.bytes(&id, "Downloading", bytes, size),
            _ => {}
        }
        if progress.changed().await.is_err() {
            return Err(Error::Internal("a download ended without a word".to_owned()));
        }
        // No more often than people can read, and not a moment later when it is done.
        let done = progress.wait_for(|progress| progress.outcome.is_some());
        let _ = tokio::time::timeout(PACE, done).await;
    }
}
