//! Layers as archives, as registries and image archives want them: with the digest that they came with.
//!
//! ```text
//! came plain        made again by its recipe (see `recipe`)
//! came compressed   the blob is kept: what compressed it cannot be told in general
//! ```

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};

use insula_base::{DiffId, Digest};
use insula_spec::image::{Descriptor, Manifest, media};
use serde_json::json;

use super::{Image, ImageKind, Images, rows};
use crate::recipe::Replay;
use crate::{Error, Result, content};

/// A layer of an image as a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    pub diff: DiffId,
    pub blob: Descriptor,
}

/// The bytes of a blob. Those of a layer that is made again are what its digest says, unless files of
/// the store were changed behind its back: who needs to be sure hashes them.
#[derive(Debug)]
pub struct BlobReader {
    bytes: Bytes,
    size: u64,
}

#[derive(Debug)]
enum Bytes {
    File(File),
    Made(Box<Replay>),
}

impl BlobReader {
    /// Bytes of the whole blob.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the blob is a file of its own, and not made again of a layer's files.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        matches!(self.bytes, Bytes::File(_))
    }

    /// Leaves out the first bytes; to be called before anything is read.
    pub fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.bytes {
            Bytes::File(file) => file.seek(SeekFrom::Start(bytes)).map(drop),
            Bytes::Made(replay) => io::copy(&mut replay.by_ref().take(bytes), &mut io::sink()).map(drop),
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.bytes {
            Bytes::File(file) => file.read(into),
            Bytes::Made(replay) => replay.read(into),
        }
    }
}

impl Images {
    /// The manifest of an image: the very bytes that it came with, or one whose layers are plain, as for one that came
    /// with none or whose own is damaged. Every blob that it names can be opened.
    pub fn manifest(&self, image: &Image) -> Result<Vec<u8>> {
        if let (ImageKind::Artifact { .. }, Some(digest)) = (&image.kind, &image.manifest) {
            return self.document(digest);
        }
        if let Some(Ok(bytes)) = image.manifest.as_ref().map(|digest| self.document(digest)) {
            let layers = Manifest::parse(&bytes)?.layers;
            let mut here = true;
            for layer in &layers {
                here &= self.has_blob(&layer.digest)?;
            }
            if here {
                return Ok(bytes);
            }
        }
        let config = self.document(&image.id)?;
        self.plain_manifest(image, &config)
    }

    /// The layers of an image as its [`Images::manifest`] has them, lowest first.
    pub fn layer_blobs(&self, image: &Image) -> Result<Vec<LayerBlob>> {
        let manifest = Manifest::parse(&self.manifest(image)?)?;
        let diffs = image.layers.iter().map(|layer| layer.diff_id.clone());
        Ok(diffs.zip(manifest.layers).map(|(diff, blob)| LayerBlob { diff, blob }).collect())
    }

    /// Layers that are kept in the compressed form that they came in.
    pub fn compressed_blobs(&self) -> Result<Vec<Digest>> {
        let rows = self.state.transaction(|tx| rows::blobs(tx.sql()))?;
        Ok(rows.into_iter().map(|row| row.digest).collect())
    }

    /// Whether a blob can be opened.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool> {
        Ok(self.content.contains(digest) || self.layer_here(&DiffId(digest.clone()))?.is_some())
    }

    /// A manifest, a configuration, or a layer, compressed or not.
    pub fn open_blob(&self, digest: &Digest) -> Result<BlobReader> {
        match self.content.open_blob(digest) {
            Err(Error::NoContent(_)) => self.open_layer(&DiffId(digest.clone())),
            opened => {
                let file = opened?;
                let size =
                    file.metadata().map_err(|e| Error::io("stat", &self.content.path(digest), e))?.len();
                Ok(BlobReader { bytes: Bytes::File(file), size })
            }
        }
    }

    /// The archive of a layer without compression.
    pub fn open_layer(&self, diff: &DiffId) -> Result<BlobReader> {
        let row = self.state.transaction(|tx| rows::layer_with(tx.sql(), diff))?;
        let row = row.ok_or_else(|| Error::NoContent(diff.0.clone()))?;
        let replay = self.layers.replay(diff, &row.chain)?;
        let size = replay.length();
        Ok(BlobReader { bytes: Bytes::Made(Box::new(replay)), size })
    }

    /// The content of the layer that this is the digest of, compressed or not, if it is here whole.
    pub(super) fn known_layer(&self, digest: &Digest) -> Result<Option<DiffId>> {
        let blob = self.state.transaction(|tx| rows::blob(tx.sql(), digest))?;
        let diff = blob.filter(|_| self.content.contains(digest)).map(|blob| blob.diff);
        self.layer_here(&diff.unwrap_or_else(|| DiffId(digest.clone())))
    }

    /// The layer's content if it is here and can be made again.
    pub(super) fn layer_here(&self, diff: &DiffId) -> Result<Option<DiffId>> {
        let row = self.state.transaction(|tx| rows::layer_with(tx.sql(), diff))?;
        let here = row.is_some_and(|row| self.layers.contains(&row.chain));
        Ok((here && self.layers.recipes().contains(diff)).then(|| diff.clone()))
    }

    /// The same document for the same image, wherever it is made.
    pub(super) fn plain_manifest(&self, image: &Image, config: &[u8]) -> Result<Vec<u8>> {
        if image.kind != ImageKind::Stored {
            return Err(Error::Unsupported(format!(
                "image {} is the host's own and has no layers",
                image.id
            )));
        }
        let layers = image
            .layers
            .iter()
            .map(|layer| {
                let size = self.layers.recipes().head(&layer.diff_id)?.length;
                Ok(json!({"mediaType": media::LAYER, "digest": layer.diff_id.0.as_str(), "size": size}))
            })
            .collect::<Result<Vec<_>>>()?;
        debug_assert_eq!(content::digest(config), image.id);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::MANIFEST,
            "config": {"mediaType": media::CONFIG, "digest": image.id.as_str(), "size": config.len()},
            "layers": layers,
        });
        serde_json::to_vec(&manifest).map_err(|_| Error::Defect("a manifest is always JSON"))
    }
}
