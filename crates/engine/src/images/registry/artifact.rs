//! Artifacts: what registries keep beside images, as it is.

use insula_base::Digest;
use insula_registry::{Blob, Repository, Resolved};
use insula_spec::image::{Descriptor, Manifest};
use insula_spec::reference::Reference;
use insula_store::IngestedBlob;
use tokio::sync::mpsc;

use super::lines::Lines;
use super::pull::{Pulled, TRIES};
use super::whole::by_digest;
use crate::images::Images;
use crate::{Error, Result, blocking};

/// Pieces on their way to the store.
const WAITING: usize = 2;

impl Images {
    /// Pulls an artifact: its manifest and its blobs, as they are.
    pub(super) async fn pull_artifact(
        &self,
        reference: &Reference,
        resolved: &Resolved,
        sources: &[Repository],
        lines: &Lines,
    ) -> Result<Pulled> {
        let (digest, document) = (resolved.top.digest.clone(), &resolved.document);
        let tagged = reference.digest().is_none().then(|| reference.clone());
        let by_digest = by_digest(reference, &document.digest)?;
        let names: Vec<Reference> = tagged.into_iter().chain([by_digest]).collect();
        let before = self.store.images().id_of(&reference.to_string()).ok();
        for _ in 0..TRIES {
            let blobs = Box::pin(self.artifact_blobs(&resolved.manifest, sources, lines)).await?;
            let (store, bytes, names) = (self.store.clone(), document.bytes.clone(), names.clone());
            let committed =
                blocking(move || Ok(store.images().commit_artifact(&bytes, &names, blobs))).await?;
            match committed {
                Ok(loaded) => {
                    self.publish("pull", &loaded.id, &reference.familiar());
                    return Ok(Pulled { digest, newer: before != Some(loaded.id) });
                }
                Err(insula_store::Error::NoContent(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Conflict(format!("blobs of {} are removed again and again", reference.familiar())))
    }

    /// Those blobs of an artifact that are not here.
    async fn artifact_blobs(
        &self,
        manifest: &Manifest,
        sources: &[Repository],
        lines: &Lines,
    ) -> Result<Vec<IngestedBlob>> {
        let mut blobs = Vec::new();
        let mut seen: Vec<&Digest> = Vec::new();
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            if seen.contains(&&blob.digest) {
                continue;
            }
            seen.push(&blob.digest);
            let id = blob.digest.short();
            if self.store.content().contains(&blob.digest) {
                lines.about(id, "Already exists").await;
                continue;
            }
            lines.state(id, "Pulling fs layer").await;
            blobs.push(Box::pin(self.fetch_blob(blob, sources)).await?);
            lines.state(id, "Download complete").await;
            lines.state(id, "Pull complete").await;
        }
        Ok(blobs)
    }

    async fn fetch_blob(&self, blob: &Descriptor, sources: &[Repository]) -> Result<IngestedBlob> {
        let download = Blob::new(sources.to_vec(), blob);
        let mut download =
            download.ok_or_else(|| Error::Internal("a blob that is nowhere to be had".to_owned()))?;
        let (sender, mut receiver) = mpsc::channel(WAITING);
        let (store, blob) = (self.store.clone(), blob.clone());
        let taking = tokio::spawn(blocking(move || {
            let mut next = || match receiver.blocking_recv() {
                Some(piece) => Ok(piece),
                // The download failed or was given up; this is no end of the blob.
                None => Err(insula_store::Error::Input(std::io::Error::other("the download ended early"))),
            };
            Ok(store.images().ingest_blob(&blob, &mut next)?)
        }));
        let fed = loop {
            match download.next().await {
                Ok(piece) => {
                    let last = piece.is_none();
                    if sender.send(piece).await.is_err() || last {
                        break Ok(());
                    }
                }
                Err(error) => break Err(error),
            }
        };
        drop(sender);
        let taken =
            taking.await.unwrap_or_else(|error| Err(Error::Internal(format!("a thread ended: {error}"))));
        // If the download failed, that is the reason for whatever the store says.
        fed?;
        taken
    }
}
