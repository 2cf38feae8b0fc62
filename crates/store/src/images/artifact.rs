//! What registries keep beside images: artifacts, whose blobs are kept as they came, and indexes, which names
//! stand for.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use insula_base::Digest;
use insula_spec::image::{DOCUMENT_MAX, Descriptor, ImageConfig, Index, Manifest};
use insula_spec::reference::Reference;
use sha2::{Digest as _, Sha256};

use super::contents::{Artifact, Contents};
use super::gather::{Gathered, Source, member};
use super::rows::{self, ImageRow};
use super::{Image, ImageKind, Images, Loaded, builtin};
use crate::content::Incoming;
use crate::{Error, Result, content};

/// Annotation of a manifest: when it was made.
const CREATED: &str = "org.opencontainers.image.created";

/// A blob that was taken in whole and waits for its artifact. Dropped, it is gone.
#[derive(Debug)]
pub struct IngestedBlob {
    incoming: Incoming,
    digest: Digest,
}

/// What a name stands for in registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// An index, and the manifests of those of its entries that are here, with their images.
    Index { bytes: Vec<u8>, here: Vec<(Digest, Digest)>, missing: usize },
    /// A manifest that the image has been known by, all of whose blobs are here.
    Manifest(Vec<u8>),
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

    /// For each artifact of an archive those of its blobs that came with it and that no image brings.
    pub(super) fn blobs_of(
        &self,
        found: &Contents,
        gathered: &mut Gathered,
    ) -> Result<Vec<Vec<IngestedBlob>>> {
        let of_images: BTreeSet<Digest> = found
            .images
            .iter()
            .flat_map(|image| &image.layers)
            .filter_map(|(_, blob)| blob.clone())
            .collect();
        let of_one = |artifact: &Artifact| {
            let manifest = Manifest::parse(&artifact.manifest)?;
            let mut blobs = Vec::new();
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                if !of_images.contains(&blob.digest) {
                    blobs.extend(self.blob_of(&blob.digest, gathered)?);
                }
            }
            Ok(blobs)
        };
        found.artifacts.iter().map(of_one).collect()
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
        let document = Manifest::parse(manifest)?;
        let id = content::digest(manifest);
        let wanted: BTreeSet<&Digest> =
            document.layers.iter().chain([&document.config]).map(|blob| &blob.digest).collect();
        let _changes = self.changes();
        let mut placed: Vec<Digest> = Vec::new();
        let made = self.place_artifact(manifest, &wanted, blobs, &mut placed).and_then(|()| {
            let size = document.layers.iter().chain([&document.config]).map(|blob| blob.size).sum();
            let row = ImageRow { id: id.clone(), manifest: Some(id.clone()), size };
            self.state.transaction(|tx| {
                let sql = tx.sql();
                let before = rows::documents(sql)?;
                rows::add_image(sql, &row, &[], &self.boot)?;
                wanted.iter().try_for_each(|digest| rows::add_artifact_blob(sql, &id, digest))?;
                references.iter().try_for_each(|name| rows::set_name(sql, name, &id, Some(&id)))?;
                let now = rows::contents(sql)?;
                Ok::<_, Error>(before.difference(&now).cloned().collect::<Vec<_>>())
            })
        });
        match made {
            Ok(dropped) => {
                self.drop_documents(&dropped);
                self.sync_later(vec![id.clone()]);
                Ok(Loaded { id, references: references.to_vec() })
            }
            Err(error) => {
                self.drop_documents(&placed);
                Err(error)
            }
        }
    }

    fn place_artifact(
        &self,
        manifest: &[u8],
        wanted: &BTreeSet<&Digest>,
        blobs: Vec<IngestedBlob>,
        placed: &mut Vec<Digest>,
    ) -> Result<()> {
        for blob in blobs {
            if !self.content.contains(&blob.digest) {
                self.content.complete(blob.incoming, &blob.digest)?;
                placed.push(blob.digest);
            }
        }
        if let Some(missing) = wanted.iter().find(|digest| !self.content.contains(digest)) {
            return Err(Error::NoContent((*missing).clone()));
        }
        if !self.content.contains(&content::digest(manifest)) {
            placed.push(self.content.write(manifest)?);
        }
        Ok(())
    }

    /// Has a name stand for an index or a manifest; `image` is what it means here.
    pub fn name_document(&self, name: &Reference, document: &[u8], image: &Digest) -> Result<()> {
        if builtin::is_builtin(name) {
            return Err(Error::Builtin(name.familiar()));
        }
        let _changes = self.changes();
        let document = self.content.write(document)?;
        let dropped = self.state.transaction(|tx| {
            let sql = tx.sql();
            let before = rows::documents(sql)?;
            rows::image(sql, image)?.ok_or_else(|| Error::NoImage(image.to_string()))?;
            rows::set_name(sql, name, image, Some(&document))?;
            let now = rows::contents(sql)?;
            Ok::<_, Error>(before.difference(&now).cloned().collect::<Vec<_>>())
        })?;
        self.drop_documents(&dropped);
        Ok(())
    }

    /// The image that has this manifest, or artifact that it is.
    pub fn with_manifest(&self, manifest: &Digest) -> Result<Option<Digest>> {
        self.state.transaction(|tx| rows::with_manifest(tx.sql(), manifest))
    }

    /// The manifests that the indexes list which tags stand for.
    pub fn parts_of_indexes(&self) -> Result<HashSet<Digest>> {
        let documents = self.state.transaction(|tx| rows::tagged_documents(tx.sql()))?;
        let mut parts = HashSet::new();
        for document in documents {
            // A manifest lists none, and one that is damaged is no reason to keep anything.
            let bytes = self.content.read(&document, DOCUMENT_MAX as u64);
            let index = bytes.ok().and_then(|bytes| Index::parse(&bytes).ok());
            parts.extend(index.into_iter().flat_map(|index| index.manifests).map(|entry| entry.digest));
        }
        Ok(parts)
    }

    /// A document that is known to be here.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.content.read(digest, DOCUMENT_MAX as u64)
    }

    /// What a name stands for in registries, if that is known and here.
    pub fn standing(&self, name: &Reference) -> Result<Option<Standing>> {
        let document = self.state.transaction(|tx| rows::document_of(tx.sql(), name))?;
        let Some(document) = document.filter(|digest| self.content.contains(digest)) else {
            return Ok(None);
        };
        let bytes = self.content.read(&document, DOCUMENT_MAX as u64)?;
        let Ok(index) = Index::parse(&bytes) else { return self.standing_manifest(bytes) };
        if index.manifests.is_empty() {
            return self.standing_manifest(bytes);
        }
        let (mut here, mut missing) = (Vec::new(), 0);
        for entry in &index.manifests {
            match self.with_manifest(&entry.digest)? {
                Some(image) if self.has_manifest(&entry.digest)? => here.push((entry.digest.clone(), image)),
                _ => missing += 1,
            }
        }
        Ok(Some(Standing::Index { bytes, here, missing }))
    }

    fn standing_manifest(&self, bytes: Vec<u8>) -> Result<Option<Standing>> {
        let manifest = Manifest::parse(&bytes)?;
        Ok(self.has_all(&manifest)?.then_some(Standing::Manifest(bytes)))
    }

    /// Whether a manifest and all of its blobs are here.
    fn has_manifest(&self, digest: &Digest) -> Result<bool> {
        if !self.content.contains(digest) {
            return Ok(false);
        }
        let manifest = Manifest::parse(&self.content.read(digest, DOCUMENT_MAX as u64)?);
        manifest.map_or(Ok(false), |manifest| self.has_all(&manifest))
    }

    fn has_all(&self, manifest: &Manifest) -> Result<bool> {
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            if !self.has_blob(&blob.digest)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn artifact(&self, row: &ImageRow) -> Result<Image> {
        let manifest = Manifest::parse(&self.content.read(&row.id, DOCUMENT_MAX as u64)?)?;
        let references = self.state.transaction(|tx| rows::names_of(tx.sql(), &row.id))?;
        let created = manifest.annotations.get(CREATED).cloned();
        Ok(Image {
            id: row.id.clone(),
            kind: ImageKind::Artifact { kind: manifest.kind().chars().take(256).collect() },
            references,
            config: ImageConfig { created, ..ImageConfig::default() },
            layers: Vec::new(),
            size: row.size,
            manifest: row.manifest.clone(),
        })
    }
}
