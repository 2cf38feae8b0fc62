//! What registries keep beside images: artifacts, whose blobs are kept as they came.

use std::collections::BTreeSet;

use bytes::Bytes;
use insula_base::Digest;
use insula_spec::image::{DOCUMENT_MAX, Descriptor, ImageConfig, Manifest};
use insula_spec::reference::Reference;
use sha2::{Digest as _, Sha256};

use super::contents::{Artifact, Contents};
use super::gather::{Gathered, Source, member};
use super::rows::{self, ImageRow};
use super::{Image, ImageKind, Images, Loaded, builtin};
use crate::content::{Content, Incoming};
use crate::state::Sql;
use crate::{Error, Result, content};

/// Annotation of a manifest: when it was made.
const CREATED: &str = "org.opencontainers.image.created";

/// A blob that was taken in whole and waits for its artifact. Dropped, it is gone.
#[derive(Debug)]
pub struct IngestedBlob {
    incoming: Incoming,
    digest: Digest,
}

impl IngestedBlob {
    /// Puts it among the others; whether it is new there.
    pub(super) fn place(self, content: &Content) -> Result<bool> {
        let new = !content.contains(&self.digest);
        if new {
            content.complete(self.incoming, &self.digest)?;
        }
        Ok(new)
    }
}

impl Images {
    /// Takes in a blob, which is what `next` returns until there is no more. Digest and size are verified.
    pub fn ingest_blob(
        &self,
        blob: &Descriptor,
        next: &mut dyn FnMut() -> Result<Option<Bytes>>,
    ) -> Result<IngestedBlob> {
        self.ingest_named(blob.digest.clone(), blob.size, next)
    }

    /// The same, by digest and the most bytes that it may have.
    pub(super) fn ingest_named(
        &self,
        digest: Digest,
        limit: u64,
        next: &mut dyn FnMut() -> Result<Option<Bytes>>,
    ) -> Result<IngestedBlob> {
        let (mut incoming, mut hash, mut size) = (self.content.begin()?, Sha256::new(), 0u64);
        while let Some(bytes) = next()? {
            size += bytes.len() as u64;
            if size > limit {
                return Err(Error::Limit { what: format!("blob {digest}"), limit });
            }
            hash.update(&bytes);
            incoming.write(&bytes)?;
        }
        let found = Digest::from_sha256(&hash.finalize().into());
        if found != digest {
            let what = format!("blob {digest}");
            return Err(Error::Mismatch { what, expected: digest, found });
        }
        Ok(IngestedBlob { incoming, digest: found })
    }

    /// Takes in those blobs of an archive's artifacts that came with it and that no image brings.
    pub(super) fn take_blobs(&self, found: &mut Contents, gathered: &mut Gathered) -> Result<()> {
        let layers = found.images.iter().flat_map(|image| &image.layers);
        let of_images: BTreeSet<Digest> = layers.filter_map(|(_, blob)| blob.clone()).collect();
        for artifact in &mut found.artifacts {
            let manifest = Manifest::parse(&artifact.manifest)?;
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                if !of_images.contains(&blob.digest) {
                    artifact.blobs.extend(self.blob_of(&blob.digest, gathered)?);
                }
            }
        }
        Ok(())
    }

    /// `None` is here already, or taken by another artifact before.
    fn blob_of(&self, digest: &Digest, gathered: &mut Gathered) -> Result<Option<IngestedBlob>> {
        let name = gathered.resolve(&member(digest)).to_owned();
        if let Some(taken) = gathered.blobs.remove(&name) {
            gathered.blobs.insert(name, Ok(None));
            return taken;
        }
        if gathered.documents.contains_key(&name) {
            let bytes = Bytes::copy_from_slice(gathered.blob(digest)?);
            let (size, mut bytes) = (bytes.len() as u64, Some(bytes));
            return self.ingest_named(digest.clone(), size, &mut || Ok(bytes.take())).map(Some);
        }
        match gathered.layers.get_mut(&name) {
            // It came before it was known what it is, and looked like a layer.
            Some(Ok(Source::Staged(staged))) if staged.blob == *digest && staged.compressed.is_some() => {
                let incoming = staged.compressed.take().map(|compressed| compressed.blob);
                Ok(incoming.map(|incoming| IngestedBlob { incoming, digest: digest.clone() }))
            }
            None | Some(_) if self.content.contains(digest) => Ok(None),
            None => Err(Error::Archive(format!("it lacks {name}"))),
            Some(_) => Err(Error::Unsupported(format!(
                "{name} is part of an artifact, which the archive says too late: index.json and manifests have to \
                 come first, as 'save' writes them"
            ))),
        }
    }

    /// Makes an artifact appear, of blobs that were taken in or are here as they came.
    pub fn commit_artifact(
        &self,
        manifest: &[u8],
        references: &[Reference],
        blobs: Vec<IngestedBlob>,
    ) -> Result<Loaded> {
        if let Some(name) = references.iter().find(|name| builtin::is_builtin(name)) {
            return Err(Error::Builtin(name.familiar()));
        }
        let artifact = Artifact { manifest: manifest.to_vec(), references: references.to_vec(), blobs };
        let contents = Contents { artifacts: vec![artifact], ..Contents::default() };
        let mut loaded = self.commit(contents, Gathered::default())?;
        loaded.pop().ok_or(Error::Defect("a commit of one artifact made none"))
    }

    /// Puts the blobs and the manifest of an artifact among the others; `placed` has those that are new there.
    pub(super) fn place_artifact(&self, artifact: &mut Artifact, placed: &mut Vec<Digest>) -> Result<()> {
        for blob in artifact.blobs.drain(..) {
            let digest = blob.digest.clone();
            if blob.place(&self.content)? {
                placed.push(digest);
            }
        }
        let wanted = blobs_of(&Manifest::parse(&artifact.manifest)?);
        if let Some(missing) = wanted.into_iter().find(|digest| !self.content.contains(digest)) {
            return Err(Error::NoContent(missing));
        }
        self.place_document(&artifact.manifest, placed)
    }

    /// Writes the rows of an artifact whose blobs are in their places; returns its id.
    pub(super) fn write_artifact(&self, sql: Sql<'_>, artifact: &Artifact) -> Result<Digest> {
        let manifest = Manifest::parse(&artifact.manifest)?;
        let id = content::digest(&artifact.manifest);
        let size = manifest.layers.iter().chain([&manifest.config]).map(|blob| blob.size).sum();
        let row = ImageRow { id: id.clone(), manifest: Some(id.clone()), size };
        rows::add_image(sql, &row, &[], &self.boot)?;
        blobs_of(&manifest).iter().try_for_each(|digest| rows::add_artifact_blob(sql, &id, digest))?;
        artifact.references.iter().try_for_each(|name| rows::set_name(sql, name, &id, Some(&id)))?;
        Ok(id)
    }

    pub(super) fn artifact(&self, row: &ImageRow, references: Vec<Reference>) -> Result<Image> {
        let manifest = Manifest::parse(&self.content.read(&row.id, DOCUMENT_MAX as u64)?)?;
        let created = manifest.annotations.get(CREATED).cloned();
        Ok(Image {
            id: row.id.clone(),
            kind: ImageKind::Artifact { kind: super::attest::kind(&manifest).chars().take(256).collect() },
            references,
            config: ImageConfig { created, ..ImageConfig::default() },
            layers: Vec::new(),
            size: row.size,
            manifest: row.manifest.clone(),
        })
    }
}

/// The blobs of an artifact, each once.
fn blobs_of(manifest: &Manifest) -> BTreeSet<Digest> {
    manifest.layers.iter().chain([&manifest.config]).map(|blob| blob.digest.clone()).collect()
}
