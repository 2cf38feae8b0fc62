//! What names stand for in registries: a manifest, or an index with what it lists, which may be indexes again.
//!
//! An index that another one lists has no name of its own: `index_parts` holds it for as long as a name stands for
//! the outer one.

use std::collections::HashSet;

use insula_base::Digest;
use insula_spec::image::{DOCUMENT_MAX, Descriptor, Index, Manifest};
use insula_spec::reference::Reference;

use super::{Images, ManifestLease, builtin, rows};
use crate::{Error, Result, content};

/// Indexes within indexes.
pub(super) const DEPTH_MAX: usize = 4;
/// Bytes of all indexes within one.
const WITHIN_MAX: usize = 32 << 20;

/// What a name stands for in registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// An index.
    Index(StandingIndex),
    /// A manifest that the image has been known by, all of whose blobs are here.
    Manifest(Vec<u8>),
}

/// An index that a name stands for, and what is here of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingIndex {
    pub bytes: Vec<u8>,
    /// The manifests that it lists at whatever depth, with their images.
    pub here: Vec<(Digest, Digest)>,
    /// The indexes within it, each after those that are within that one.
    pub within: Vec<Vec<u8>>,
    /// How many entries are not here.
    pub missing: usize,
}

/// An index, and all indexes that it lists, each after those that are within that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndexTree {
    pub(super) bytes: Vec<u8>,
    pub(super) within: Vec<Vec<u8>>,
}

impl Images {
    /// Has names stand for an index or a manifest; `image` is what they mean here. `within` are the indexes that an
    /// index lists, at whatever depth, as far as they are not here yet. [`Error::NoImage`] if a part that was kept
    /// for it, or what is meant, was removed by somebody who asked for that.
    pub fn name_document(
        &self,
        names: &[Reference],
        document: &[u8],
        within: &[Vec<u8>],
        image: &Digest,
        kept: &[ManifestLease],
    ) -> Result<()> {
        if let Some(name) = names.iter().find(|name| builtin::is_builtin(name)) {
            return Err(Error::Builtin(name.familiar()));
        }
        let _changes = self.changes();
        let mut placed = Vec::new();
        let mut documents = within.iter().map(Vec::as_slice).chain([document]);
        let named = documents
            .try_for_each(|bytes| self.place_document(bytes, &mut placed))
            .and_then(|()| self.name_placed(names, document, image, kept));
        // What nothing stands for any more, or for after all.
        self.drop_documents(named.as_deref().unwrap_or(&placed));
        named.map(drop)
    }

    fn name_placed(
        &self,
        names: &[Reference],
        document: &[u8],
        image: &Digest,
        kept: &[ManifestLease],
    ) -> Result<Vec<Digest>> {
        let (parts, document) = (self.index_parts(document)?, content::digest(document));
        self.state.transaction(|tx| {
            let sql = tx.sql();
            let before = rows::documents(sql)?;
            rows::image(sql, image)?.ok_or_else(|| Error::NoImage(image.to_string()))?;
            for part in kept.iter().flat_map(ManifestLease::manifests) {
                rows::with_manifest(sql, part)?.ok_or_else(|| Error::NoImage(part.to_string()))?;
            }
            rows::add_index_parts(sql, &parts)?;
            names.iter().try_for_each(|name| rows::set_name(sql, name, image, Some(&document)))?;
            self.dropped(tx, &before)
        })
    }

    /// Which index lists which others that are here, from this one on down.
    pub(super) fn index_parts(&self, document: &[u8]) -> Result<Vec<(Digest, Digest)>> {
        let mut pairs = Vec::new();
        let mut seen = HashSet::new();
        let mut left = vec![(document.to_vec(), 0)];
        let mut size = 0;
        while let Some((bytes, depth)) = left.pop() {
            size += bytes.len();
            if size > WITHIN_MAX {
                let what = "the size of the indexes within one".to_owned();
                return Err(Error::Limit { what, limit: WITHIN_MAX as u64 });
            }
            let digest = content::digest(&bytes);
            let Ok(index) = Index::parse(&bytes) else { continue };
            if depth == DEPTH_MAX || !seen.insert(digest.clone()) {
                continue;
            }
            for entry in index.manifests.iter().filter(|entry| entry.is_index()) {
                if self.content.contains(&entry.digest) {
                    pairs.push((digest.clone(), entry.digest.clone()));
                    // One that is damaged lists nothing until it is here again.
                    left.extend(self.document(&entry.digest).ok().map(|bytes| (bytes, depth + 1)));
                }
            }
        }
        Ok(pairs)
    }

    /// The image that has this manifest, or artifact that it is.
    pub fn with_manifest(&self, manifest: &Digest) -> Result<Option<Digest>> {
        self.state.transaction(|tx| rows::with_manifest(tx.sql(), manifest))
    }

    /// The manifests that the indexes list which tags stand for.
    pub fn parts_of_indexes(&self) -> Result<HashSet<Digest>> {
        let documents = self.state.transaction(|tx| rows::tagged_documents(tx.sql(), None))?;
        let mut parts = HashSet::new();
        for document in documents {
            self.listed(&document, &mut parts);
        }
        Ok(parts)
    }

    /// Adds what a document lists, at whatever depth. A manifest lists nothing, and one that is damaged is no reason
    /// to keep anything.
    pub(super) fn listed(&self, document: &Digest, found: &mut HashSet<Digest>) {
        self.each_listed(document, &mut |entry| {
            found.insert(entry.digest.clone());
        });
    }

    /// Visits every entry of an index, and of the indexes within it, each of those once.
    pub(super) fn each_listed(&self, document: &Digest, visit: &mut dyn FnMut(&Descriptor)) {
        let (mut left, mut seen) = (vec![document.clone()], HashSet::new());
        while let Some(document) = left.pop() {
            let index = self.document(&document).ok().and_then(|bytes| Index::parse(&bytes).ok());
            for entry in index.into_iter().flat_map(|index| index.manifests) {
                visit(&entry);
                if entry.is_index() && seen.insert(entry.digest.clone()) {
                    left.push(entry.digest);
                }
            }
        }
    }

    /// A document that is known to be here. [`Error::Mismatch`] if it is damaged.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self.content.read(digest, DOCUMENT_MAX as u64)?;
        let found = content::digest(&bytes);
        if found == *digest {
            return Ok(bytes);
        }
        let what = "the document on the disk".to_owned();
        Err(Error::Mismatch { what, expected: digest.clone(), found })
    }

    /// What a name stands for in registries, if that is known and here.
    pub fn standing(&self, name: &Reference) -> Result<Option<Standing>> {
        let document = self.state.transaction(|tx| rows::document_of(tx.sql(), name))?;
        // One that is damaged is told of by a check; meanwhile the name stands for its image.
        let found = document.and_then(|digest| Some((self.document(&digest).ok()?, digest)));
        let Some((bytes, document)) = found else { return Ok(None) };
        let index = match Index::parse(&bytes) {
            Ok(index) if !index.manifests.is_empty() => index,
            _ => {
                let manifest = Manifest::parse(&bytes)?;
                return Ok(self.has_all(&manifest)?.then_some(Standing::Manifest(bytes)));
            }
        };
        let mut found = StandingIndex { bytes, here: Vec::new(), within: Vec::new(), missing: 0 };
        self.look_within(&index, &mut HashSet::from([document]), 0, &mut found)?;
        Ok(Some(Standing::Index(found)))
    }

    fn look_within(
        &self,
        index: &Index,
        seen: &mut HashSet<Digest>,
        depth: usize,
        found: &mut StandingIndex,
    ) -> Result<()> {
        for entry in &index.manifests {
            if !seen.insert(entry.digest.clone()) {
                continue;
            }
            if entry.is_index() {
                let size: usize = found.within.iter().map(Vec::len).sum();
                let fits = depth < DEPTH_MAX && size <= WITHIN_MAX;
                // One that is damaged is as good as not here.
                let bytes = self.document(&entry.digest).ok().filter(|_| fits);
                match bytes.and_then(|bytes| Some((Index::parse(&bytes).ok()?, bytes))) {
                    Some((index, bytes)) => {
                        self.look_within(&index, seen, depth + 1, found)?;
                        found.within.push(bytes);
                    }
                    None => found.missing += 1,
                }
                continue;
            }
            match self.with_manifest(&entry.digest)? {
                Some(image) if self.has_manifest(&entry.digest)? => {
                    found.here.push((entry.digest.clone(), image));
                }
                _ => found.missing += 1,
            }
        }
        Ok(())
    }

    /// Whether a manifest and all of its blobs are here.
    fn has_manifest(&self, digest: &Digest) -> Result<bool> {
        let manifest = self.document(digest).ok().and_then(|bytes| Manifest::parse(&bytes).ok());
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
}
