//! Parts of images that are here, fetched again because they are damaged.

use std::sync::Arc;

use insula_base::{DiffId, Digest};
use insula_registry::{Credentials, Wanted};
use insula_spec::image::{DOCUMENT_MAX, Descriptor, Manifest};
use insula_spec::reference::Reference;
use insula_store::IngestedLayer;

use crate::images::Images;
use crate::{Error, Result};

impl Images {
    /// A layer from a repository, without credentials.
    pub(crate) async fn fetch_from(
        &self,
        repository: &str,
        blob: &Descriptor,
        diff: &DiffId,
    ) -> Result<Arc<IngestedLayer>> {
        let reference = Reference::parse(repository).map_err(insula_store::Error::from)?;
        let sources = self.registries.sources(&reference, &Credentials::Anonymous)?;
        let job = self.layers.get(&self.store, &sources, blob, diff);
        let mut progress = job.progress.clone();
        let ended = |_| Error::Internal("a download ended without a word".to_owned());
        let progress = progress.wait_for(|progress| progress.outcome.is_some()).await.map_err(ended)?.clone();
        match progress.outcome {
            Some(Ok(layer)) => Ok(layer),
            Some(Err(error)) => Err(Error::Shared(error)),
            None => Err(Error::Internal("a download ended without a word".to_owned())),
        }
    }

    /// Fetches the configuration or the manifest of an image from a registry that it was pulled from or pushed
    /// to, and puts it into its place; which one that was.
    pub(crate) async fn fetch_document(
        &self,
        image: &Digest,
        digest: &Digest,
        names: &[Reference],
    ) -> Result<Option<String>> {
        let mut failure = None;
        for name in names.iter().filter(|name| name.digest().is_some()) {
            match self.document_of(name, image, digest).await {
                Ok(bytes) => {
                    self.store.images().restore_document(digest, &bytes)?;
                    return Ok(Some(name.familiar_name()));
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    async fn document_of(&self, name: &Reference, image: &Digest, digest: &Digest) -> Result<Vec<u8>> {
        let wanted = Wanted::host();
        let sources = self.registries.sources(name, &Credentials::Anonymous)?;
        let mut failure = Error::Internal("no source".to_owned());
        for source in sources {
            let resolved = match source.resolve(None, name.digest(), &wanted).await {
                Ok(resolved) => resolved,
                Err(error) => {
                    failure = error.into();
                    continue;
                }
            };
            if resolved.top.digest == *digest {
                return Ok(resolved.top.bytes);
            }
            if image != digest {
                return Ok(resolved.document.bytes);
            }
            // Its length is in the manifest.
            let manifest = Manifest::parse(&resolved.document.bytes).map_err(insula_store::Error::from)?;
            if manifest.config.digest != *digest || manifest.config.size > DOCUMENT_MAX as u64 {
                failure = Error::NotFound(format!("{} is not of the image", name.familiar()));
                continue;
            }
            match source.document(&manifest.config, "configuration").await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }
}
