//! Which documents names and digests stand for, and which of them say something about another one
//! (distribution specification, "Listing Referrers").

use std::collections::BTreeSet;

use insula_base::Digest;
use insula_spec::image::{Descriptor, Index, Manifest, media};
use insula_spec::reference::Reference;
use insula_store::{Images as Store, Standing};
use serde_json::{Value, json};

use super::{SharedManifest, digest_of, named};
use crate::images::Images;
use crate::{Error, Result, blocking};

/// Manifests of one answer: it has to fit into what clients read.
const REFERRERS_MAX: usize = 1000;

/// What says something about a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrers {
    /// An index of them.
    pub document: Value,
}

impl Images {
    /// The manifests in a repository that have `subject` as theirs, of one type or of all. A repository that is not
    /// known has none.
    pub async fn referrers(&self, name: &str, subject: &Digest, kind: Option<&str>) -> Result<Referrers> {
        let (store, name) = (self.store.clone(), name.to_owned());
        let (subject, kind) = (subject.clone(), kind.map(str::to_owned));
        blocking(move || {
            let images = store.images();
            let found = match named(&images.names()?, &name) {
                Err(Error::NotFound(_)) => Vec::new(),
                found => found?,
            };
            let (mut seen, mut entries) = (BTreeSet::new(), Vec::new());
            for (name, id) in &found {
                let bytes = match name.digest() {
                    // Others are found by these too.
                    None => by_name(images, name, id)?,
                    Some(digest) => match by_digest(images, &found, digest)? {
                        Some(bytes) => bytes,
                        None => continue,
                    },
                };
                let digest = digest_of(&bytes);
                let Ok(manifest) = Manifest::parse(&bytes) else { continue };
                let about = manifest.subject.as_ref().is_some_and(|about| about.digest == subject);
                let fits = kind.as_deref().is_none_or(|kind| kind == manifest.kind());
                if about && fits && seen.len() < REFERRERS_MAX && seen.insert(digest.clone()) {
                    entries.push(entry(&manifest, &digest, bytes.len()));
                }
            }
            let document = json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": entries});
            Ok(Referrers { document })
        })
        .await
    }
}

fn entry(manifest: &Manifest, digest: &Digest, size: usize) -> Value {
    let media_type = manifest.media_type.as_deref().unwrap_or(media::MANIFEST);
    let mut entry = json!({
        "mediaType": media_type, "digest": digest.as_str(), "size": size, "artifactType": manifest.kind(),
    });
    if !manifest.annotations.is_empty() {
        entry["annotations"] = json!(manifest.annotations);
    }
    entry
}

/// What a name stands for: what it did where it came from, or the manifest of its image.
pub(super) fn by_name(images: &Store, name: &Reference, id: &Digest) -> Result<Vec<u8>> {
    match images.standing(name)? {
        Some(Standing::Index(index)) => Ok(index.bytes),
        Some(Standing::Manifest(bytes)) => Ok(bytes),
        None => Ok(images.manifest(&images.resolve(id.as_str())?)?),
    }
}

/// The document with this digest, if one of these names leads to it.
pub(super) fn by_digest(
    images: &Store,
    names: &[(Reference, Digest)],
    digest: &Digest,
) -> Result<Option<Vec<u8>>> {
    for (name, id) in names {
        let standing = images.standing(name)?;
        if let Some(Standing::Index(index)) = &standing {
            let mut indexes = index.within.iter().chain([&index.bytes]);
            if let Some(bytes) = indexes.find(|bytes| digest_of(bytes) == *digest) {
                return Ok(Some(bytes.clone()));
            }
            if index.here.iter().any(|(manifest, _)| manifest == digest) {
                return Ok(Some(images.document(digest)?));
            }
        }
        if let Some(Standing::Manifest(bytes)) = standing
            && digest_of(&bytes) == *digest
        {
            return Ok(Some(bytes));
        }
        let own = images.manifest(&images.resolve(id.as_str())?)?;
        if digest_of(&own) == *digest {
            return Ok(Some(own));
        }
    }
    Ok(None)
}

/// As it is sent.
pub(super) fn shared(bytes: Vec<u8>) -> Result<SharedManifest> {
    let digest = digest_of(&bytes);
    let (media_type, subject) = match Manifest::parse(&bytes) {
        Ok(manifest) => (manifest.media_type.unwrap_or_else(|| media::MANIFEST.to_owned()), manifest.subject),
        Err(_) => {
            let index = Index::parse(&bytes).map_err(insula_store::Error::from)?;
            (index.media_type.unwrap_or_else(|| media::INDEX.to_owned()), None::<Descriptor>)
        }
    };
    Ok(SharedManifest { bytes, digest, media_type, subject: subject.map(|subject| subject.digest) })
}
