//! Images with attestations, as BuildKit stores them.
//!
//! ```text
//! name ─> index ┬─> manifest of the image    its layers as they came, or compressed as they are pushed
//!               └─> attestation manifest     platform unknown/unknown; its subject is the image's manifest
//!                      └─ in-toto statements
//! ```
//!
//! The attestation manifest is an artifact: whatever is done with the index is done with it too, and who asks a
//! registry what refers to the image finds it. It goes with the last name of its index.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Write;

use bytes::Bytes;
use insula_base::{DiffId, Digest};
use insula_spec::image::{Descriptor, Index, Manifest, Platform, media};
use insula_spec::reference::Reference;

use super::contents::{Artifact, Contents, Found};
use super::gather::Gathered;
use super::rows::{self, BlobRow};
use super::save::json;
use super::standing::IndexTree;
use super::{Composed, Image, ImageKind, Images, IngestedBlob};
use crate::{Error, Layer, Result, Transaction, content};

/// What BuildKit and those who read its images call them.
const ATTESTATION: &str = "application/vnd.docker.attestation.manifest.v1+json";
const STATEMENT: &str = "application/vnd.in-toto+json";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
const ATTESTATION_MANIFEST: &str = "attestation-manifest";
const UNKNOWN: &str = "unknown";
/// The configuration of what needs none (image specification, "Guidance for an Empty Descriptor").
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const NOTHING: &[u8] = b"{}";

/// Something that is said about an image.
#[derive(Debug, Clone)]
pub struct Statement {
    pub predicate_type: String,
    /// An in-toto statement.
    pub bytes: Vec<u8>,
}

/// The documents of an image that is to be.
#[derive(Debug)]
pub struct Described {
    /// What statements are about: the manifest.
    pub subject: Descriptor,
    image: Found,
}

/// An image that is to be, with what is said about it.
#[derive(Debug)]
pub struct Attested {
    described: Described,
    attestation: Vec<u8>,
    /// What the attestation manifest lists.
    blobs: Vec<Vec<u8>>,
    index: Vec<u8>,
}

impl Image {
    /// Says something about an image, and is nobody's business without it.
    #[must_use]
    pub fn is_attestation(&self) -> bool {
        matches!(&self.kind, ImageKind::Artifact { kind } if kind == ATTESTATION)
    }
}

/// What an artifact is called; attestations of before they had a type have an image's configuration.
pub(super) fn kind(manifest: &Manifest) -> &str {
    let said = |layer: &Descriptor| layer.media_type == STATEMENT;
    match manifest.artifact_type.is_none() && !manifest.layers.is_empty() && manifest.layers.iter().all(said)
    {
        true => ATTESTATION,
        false => manifest.kind(),
    }
}

impl Described {
    /// The same with statements about it.
    pub fn attested(self, statements: Vec<Statement>) -> Result<Attested> {
        let layers = statements.iter().map(|statement| Descriptor {
            annotations: [(PREDICATE_TYPE.to_owned(), statement.predicate_type.clone())].into(),
            ..descriptor(STATEMENT, &statement.bytes)
        });
        let subject = Descriptor { platform: None, ..self.subject.clone() };
        let attestation = json(&Manifest {
            schema_version: 2,
            media_type: Some(media::MANIFEST.to_owned()),
            config: descriptor(EMPTY, NOTHING),
            layers: layers.collect(),
            annotations: BTreeMap::new(),
            artifact_type: Some(ATTESTATION.to_owned()),
            subject: Some(subject),
        })?;
        let annotations =
            [(REFERENCE_TYPE, ATTESTATION_MANIFEST), (REFERENCE_DIGEST, self.subject.digest.as_str())];
        let entry = Descriptor {
            annotations: annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            platform: Some(Platform {
                architecture: UNKNOWN.to_owned(),
                os: UNKNOWN.to_owned(),
                variant: None,
            }),
            ..descriptor(media::MANIFEST, &attestation)
        };
        let index = json(&Index {
            schema_version: 2,
            media_type: Some(media::INDEX.to_owned()),
            manifests: vec![self.subject.clone(), entry],
        })?;
        let mut blobs: Vec<_> = statements.into_iter().map(|statement| statement.bytes).collect();
        blobs.push(NOTHING.to_vec());
        Ok(Attested { described: self, attestation, blobs, index })
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: content::digest(bytes),
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
        platform: None,
    }
}

/// What a document is called in the repositories of these names.
fn by_digest(names: &[Reference], digest: &Digest) -> Result<Vec<Reference>> {
    let repositories: BTreeSet<String> = names.iter().map(Reference::name).collect();
    let named = repositories.into_iter().map(|name| Reference::parse(&format!("{name}@{digest}")));
    Ok(named.collect::<std::result::Result<_, _>>()?)
}

impl Images {
    /// Whether a layer is kept in a compressed form, too.
    pub fn is_compressed(&self, diff: &DiffId) -> Result<bool> {
        Ok(self.compressed(diff)?.is_some())
    }

    fn compressed(&self, diff: &DiffId) -> Result<Option<BlobRow>> {
        let mut blobs = self.state.transaction(|tx| rows::blobs(tx.sql()))?;
        blobs.retain(|blob| blob.diff == *diff && self.content.contains(&blob.digest));
        // Of several always the same.
        Ok(blobs.into_iter().min_by(|one, other| one.digest.as_str().cmp(other.digest.as_str())))
    }

    /// Keeps a layer that is leased in a compressed form, too, which is what `next` returns until there is no more.
    pub fn keep_compressed(
        &self,
        diff: &DiffId,
        blob: &Descriptor,
        next: &mut dyn FnMut() -> Result<Option<Bytes>>,
    ) -> Result<()> {
        let taken = self.ingest_blob(blob, next)?;
        let row = BlobRow {
            digest: blob.digest.clone(),
            diff: diff.clone(),
            size: blob.size,
            media_type: blob.media_type.clone(),
        };
        let _changes = self.changes();
        if self.layer_here(diff)?.is_none() {
            return Err(Error::NoLayer(diff.to_string()));
        }
        taken.place(&self.content)?;
        self.state.transaction(|tx| rows::add_blob(tx.sql(), &row))
    }

    /// The documents of an image of layers that are here and stay meanwhile. Layers are named in the compressed form
    /// that is kept, and plain without one.
    pub fn describe(&self, layers: &[Layer], composed: Composed) -> Result<Described> {
        let image = composed.found(layers)?;
        let layers = layers.iter().map(|layer| {
            let (media_type, digest, size) = match self.compressed(&layer.diff_id)? {
                Some(blob) => (blob.media_type, blob.digest, blob.size),
                None => {
                    let size = self.layers.recipes().head(&layer.diff_id)?.length;
                    (media::LAYER.to_owned(), layer.diff_id.0.clone(), size)
                }
            };
            Ok(Descriptor { media_type, digest, size, annotations: BTreeMap::new(), platform: None })
        });
        let manifest = json(&Manifest {
            schema_version: 2,
            media_type: Some(media::MANIFEST.to_owned()),
            config: descriptor(media::CONFIG, &image.config_bytes),
            layers: layers.collect::<Result<_>>()?,
            annotations: BTreeMap::new(),
            artifact_type: None,
            subject: None,
        })?;
        let of = &image.config;
        let platform = Platform {
            architecture: of.architecture.clone(),
            os: of.os.clone(),
            variant: of.variant.clone(),
        };
        let subject = Descriptor { platform: Some(platform), ..descriptor(media::MANIFEST, &manifest) };
        Ok(Described { subject, image: Found { manifest: Some(manifest), ..image } })
    }

    /// Makes the image appear with what is said about it, its names standing for the index; returns its id.
    pub fn compose_attested(&self, attested: Attested) -> Result<Digest> {
        let Attested { described, attestation, blobs, index } = attested;
        let Described { subject, image } = described;
        let artifact = Artifact {
            references: by_digest(&image.references, &content::digest(&attestation))?,
            manifest: attestation,
            blobs: blobs.into_iter().map(|bytes| self.taken_in(bytes)).collect::<Result<_>>()?,
        };
        // As every part of an index it is called by its digest: another manifest of the same image may come.
        let part = Found { references: by_digest(&image.references, &subject.digest)?, ..image.clone() };
        let id = image.id.clone();
        let named = Found { index: Some(IndexTree { bytes: index, within: Vec::new() }), ..image };
        let contents =
            Contents { images: vec![part, named], artifacts: vec![artifact], ..Contents::default() };
        self.commit(contents, Gathered::default())?;
        Ok(id)
    }

    fn taken_in(&self, bytes: Vec<u8>) -> Result<IngestedBlob> {
        let blob = descriptor(STATEMENT, &bytes);
        let mut bytes = Some(Bytes::from(bytes));
        self.ingest_blob(&blob, &mut || Ok(bytes.take()))
    }

    /// Writes the image as an archive, as [`Images::save_composed`] does; returns its id.
    pub fn save_attested(&self, layers: &[Layer], attested: Attested, out: impl Write) -> Result<Digest> {
        let Attested { described, attestation, blobs, index } = attested;
        self.save_found(layers, described.image, |saved| saved.add_attested(index, attestation, blobs), out)
    }

    /// Removes attestations that only indexes list which nothing stands for any more, as far as nobody gave them names
    /// or brings what lists them; `before` is what names stood for. Returns the blobs that nothing needs.
    pub(super) fn drop_attestations(
        &self,
        tx: &Transaction<'_>,
        before: &HashSet<Digest>,
    ) -> Result<Vec<Digest>> {
        let sql = tx.sql();
        let now = rows::documents(sql)?;
        let (mut gone, mut kept) = (HashSet::new(), HashSet::new());
        before.difference(&now).for_each(|document| self.attestations(document, &mut gone));
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        now.iter().for_each(|document| self.attestations(document, &mut kept));
        let mut freed = Vec::new();
        for digest in gone.difference(&kept) {
            let Some(row) = rows::image(sql, digest)? else { continue };
            let names = rows::names_of(sql, digest)?;
            let own = names.iter().all(|name| name.digest() == Some(digest)) && !self.is_coming(&row, &names);
            if own && row.manifest.as_ref() == Some(digest) && self.says_something(digest) {
                rows::remove_image(sql, digest)?;
                freed.push(digest.clone());
            }
        }
        freed.extend(rows::drop_artifact_blobs(sql, &|digest| self.kept.holds(digest))?);
        let wanted = rows::contents(sql)?;
        freed.retain(|digest| !wanted.contains(digest));
        Ok(freed)
    }

    /// Whether it is an attestation by itself, and not only to an index, which may come from anywhere.
    fn says_something(&self, digest: &Digest) -> bool {
        let manifest = self.document(digest).and_then(|bytes| Ok(Manifest::parse(&bytes)?));
        // One that is damaged is no reason to fail whoever names something else.
        manifest.is_ok_and(|manifest| kind(&manifest) == ATTESTATION)
    }

    fn attestations(&self, document: &Digest, found: &mut HashSet<Digest>) {
        self.each_listed(document, &mut |entry| {
            if entry.annotations.get(REFERENCE_TYPE).is_some_and(|kind| kind == ATTESTATION_MANIFEST) {
                found.insert(entry.digest.clone());
            }
        });
    }
}
