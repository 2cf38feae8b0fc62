//! What builds keep in registries for the next ones: documents first, a layer when a step turns out to have made it;
//! and an image of layers that is not among the engine's own on its way there.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use insula_base::{DiffId, Digest};
use insula_registry::{Content, Credentials, Repository, Sent, Wanted};
use insula_spec::image::{Descriptor, ImageConfig, media};
use insula_spec::reference::{DEFAULT_TAG, Reference};
use insula_store::{Composed, IngestedLayer, Layer, LayerPlace};

use super::lines::Lines;
use super::pull::resolve;
use super::push::{Outgoing, configuration, made, nearby};
use crate::images::{Images, ProgressSender};
use crate::{Error, Result, blocking};

/// Layers of an image that a registry has.
#[derive(Debug)]
pub(crate) struct RemoteLayers {
    sources: Vec<Repository>,
    layers: HashMap<DiffId, Descriptor>,
}

impl Images {
    /// The configuration of an image, and where its layers are: none of them is fetched.
    pub(crate) async fn look_up(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<(ImageConfig, RemoteLayers)> {
        let sources = self.registries.sources(reference, credentials)?;
        let (resolved, sources) = resolve(reference, sources, &Wanted::host()).await?;
        let bytes = self.configuration(&resolved, &sources).await?;
        let config = ImageConfig::parse(&bytes).map_err(insula_store::Error::from)?;
        let layers = config.rootfs.diff_ids.iter().cloned().zip(resolved.manifest.layers).collect();
        Ok((config, RemoteLayers { sources, layers }))
    }

    /// Fetches one of them, for whoever asks first.
    pub(crate) async fn fetch_remote(
        &self,
        remote: &RemoteLayers,
        diff: &DiffId,
    ) -> Result<Arc<IngestedLayer>> {
        let blob = remote.layers.get(diff);
        let blob = blob.ok_or_else(|| Error::NotFound(format!("the manifest has no layer {diff}")))?;
        let job = self.layers.get(&self.store, &remote.sources, blob, diff);
        let mut progress = job.progress.clone();
        let done = progress.wait_for(|progress| progress.outcome.is_some()).await;
        let outcome = done.ok().and_then(|progress| progress.outcome.clone());
        match outcome {
            Some(outcome) => outcome.map_err(Error::Shared),
            None => Err(Error::Internal("a download ended without a word".to_owned())),
        }
    }

    /// Pushes an image of layers that are here and stay meanwhile.
    pub(crate) async fn push_composed(
        &self,
        name: &Reference,
        layers: &[Layer],
        mut composed: Composed,
        credentials: &Credentials,
        progress: ProgressSender,
    ) -> Result<Digest> {
        let lines = Lines::new(progress);
        let (id, config) = composed.document(layers)?;
        let (store, diffs) = (self.store.clone(), layers.iter().map(|layer| layer.diff_id.clone()));
        let diffs: Vec<_> = diffs.collect();
        let outgoing = blocking(move || {
            let outgoing = diffs.into_iter().map(|diff| {
                let places = store.images().places(&diff)?;
                Ok(Outgoing { diff, blob: None, places })
            });
            outgoing.collect::<Result<Vec<_>>>()
        })
        .await?;
        let target = self.registries.target(name, credentials)?.reading(&nearby(name, &outgoing));
        let blobs = Box::pin(self.push_layers(name, &target, outgoing, &lines)).await?;
        let config = Bytes::from(config);
        let described = Descriptor { size: config.len() as u64, ..configuration(&id) };
        let (content, sent): (Arc<dyn Content>, Sent) = (Arc::new(config), Arc::new(|_| {}));
        target.push_blob(&described, &[], &content, &sent).await?;
        let document = made(&described, &blobs)?;
        let tag = name.tag().unwrap_or(DEFAULT_TAG);
        let digest = target.put_manifest(tag, media::MANIFEST, &document).await?.digest;
        let (store, name) = (self.store.clone(), name.clone());
        blocking(move || {
            for (diff, blob) in blobs {
                let (registry, repository) = (name.domain().to_owned(), name.path().to_owned());
                store.images().add_place(&diff, &LayerPlace { registry, repository, blob })?;
            }
            Ok(())
        })
        .await?;
        Ok(digest)
    }
}
