//! `save`: an archive that is both an OCI layout and what `docker load` of every version reads.
//!
//! ```text
//! oci-layout  index.json  manifest.json
//! blobs/sha256/…    manifests, configurations, layers with the digests that they came with
//! ```
//!
//! Documents come first, indexes before all others, so that who reads a stream knows what is to come. A name that
//! stands for an index of which all is here has that index in `index.json`, with every part of it behind. The same
//! images are the same bytes: nothing in the archive tells when or where it was made.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use bytes::Bytes;
use insula_base::{Digest, thread};
use insula_spec::image::{
    ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, ArchiveEntry, Descriptor, Index, Manifest, Platform, media,
};
use insula_spec::reference::Reference;
use tar::{Builder, EntryType, Header};

use super::contents::Found;
use super::{Composed, Image, ImageKind, ImageLease, Images, Standing, builtin};
use crate::stream::{Hashing, channel, pump_plain};
use crate::{Error, Layer, Result, content};

/// An image to be saved, under these names.
pub(super) struct Saved {
    image: Image,
    references: BTreeSet<Reference>,
    manifest: Vec<u8>,
    config: Vec<u8>,
    /// Those of the names that stand for an index, with it.
    indexes: BTreeMap<Reference, Vec<u8>>,
    /// Indexes that these list.
    within: Vec<Vec<u8>>,
    /// Manifests and configurations of what these indexes have.
    parts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Blobs that are not in the store.
    blobs: Vec<Vec<u8>>,
    /// The index, of an image without a name.
    unnamed: Option<Vec<u8>>,
    /// Keep what is saved until it is, whoever removes it.
    leases: Vec<ImageLease>,
}

impl Saved {
    pub(super) fn new(
        image: Image,
        references: BTreeSet<Reference>,
        manifest: Vec<u8>,
        config: Vec<u8>,
    ) -> Self {
        Self {
            image,
            references,
            manifest,
            config,
            indexes: BTreeMap::new(),
            within: Vec::new(),
            parts: Vec::new(),
            blobs: Vec::new(),
            unnamed: None,
            leases: Vec::new(),
        }
    }

    /// All of its names stand for an index of it and of an attestation, whose last blob is its configuration.
    pub(super) fn add_attested(&mut self, index: Vec<u8>, attestation: Vec<u8>, blobs: Vec<Vec<u8>>) {
        self.parts.push((attestation, blobs.last().cloned().unwrap_or_default()));
        self.blobs = blobs;
        self.indexes.extend(self.references.iter().map(|name| (name.clone(), index.clone())));
        self.unnamed = self.references.is_empty().then_some(index);
    }
}

/// Whether all of an index goes with a name of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexParts {
    All,
    /// The image alone.
    Meant,
}

/// A blob of the archive.
enum Blob {
    Document(Vec<u8>),
    Layer(u64),
}

impl Images {
    /// Writes images by names or ids. A repository without a tag means all of its tags, as in Docker; an
    /// image by its id has no name in the archive.
    pub fn save(&self, names: &[String], parts: IndexParts, out: impl Write) -> Result<()> {
        let mut tar = Builder::new(out);
        self.write_saved(&self.chosen(names, parts)?, &BTreeSet::new(), &mut tar)?;
        tar.finish().map_err(sending)
    }

    /// Writes the members of an archive of images, less the layers in `without`, which whoever reads it has.
    pub(crate) fn write_images(
        &self,
        names: &[String],
        without: &BTreeSet<Digest>,
        tar: &mut Builder<impl Write>,
    ) -> Result<()> {
        self.write_saved(&self.chosen(names, IndexParts::Meant)?, without, tar)
    }

    /// Writes an image that is made of layers which are here and stay meanwhile, and is not in the store: its names
    /// are the archive's alone. Returns its id.
    pub fn save_composed(&self, layers: &[Layer], composed: Composed, out: impl Write) -> Result<Digest> {
        self.save_found(layers, composed.found(layers)?, |_| {}, out)
    }

    /// The same of an image whose documents are made; `add` says what goes with it.
    pub(super) fn save_found(
        &self,
        layers: &[Layer],
        found: Found,
        add: impl FnOnce(&mut Saved),
        out: impl Write,
    ) -> Result<Digest> {
        let Found { id, config, config_bytes, manifest, references, .. } = found;
        let named = references.iter().cloned().collect();
        let image = Image {
            id: id.clone(),
            kind: ImageKind::Stored,
            references,
            config,
            layers: layers.to_vec(),
            size: 0,
            manifest: None,
        };
        let manifest = manifest.map_or_else(|| self.plain_manifest(&image, &config_bytes), Ok)?;
        let mut saved = Saved::new(image, named, manifest, config_bytes);
        add(&mut saved);
        let mut tar = Builder::new(out);
        self.write_saved(&[saved], &BTreeSet::new(), &mut tar)?;
        tar.finish().map_err(sending)?;
        Ok(id)
    }

    pub(super) fn write_saved(
        &self,
        saved: &[Saved],
        without: &BTreeSet<Digest>,
        tar: &mut Builder<impl Write>,
    ) -> Result<()> {
        let mut blobs: BTreeMap<Digest, Blob> = BTreeMap::new();
        let mut indexes = BTreeMap::new();
        for image in saved {
            let all = image.indexes.values().chain(&image.within).chain(&image.unnamed);
            indexes.extend(all.map(|bytes| (content::digest(bytes), bytes)));
            let parts = image.parts.iter().map(|(manifest, config)| (manifest, config));
            for (bytes, config) in parts.chain([(&image.manifest, &image.config)]) {
                let manifest = Manifest::parse(bytes)?;
                for layer in manifest.layers.into_iter().filter(|layer| !without.contains(&layer.digest)) {
                    blobs.entry(layer.digest).or_insert(Blob::Layer(layer.size));
                }
                // An artifact's may be the same empty one as another's, or its one blob.
                blobs.insert(manifest.config.digest, Blob::Document(config.clone()));
                blobs.insert(content::digest(bytes), Blob::Document(bytes.clone()));
            }
            let here =
                image.blobs.iter().map(|bytes| (content::digest(bytes), Blob::Document(bytes.clone())));
            blobs.extend(here);
        }
        put(tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        put(tar, "index.json", &json(&index(saved)?)?)?;
        put(tar, "manifest.json", &json(&entries(saved)?)?)?;
        for folder in ["blobs/", "blobs/sha256/"] {
            append(tar, header(EntryType::Directory, 0o755, 0), folder, std::io::empty())?;
        }
        let documents = blobs.iter().filter_map(|(digest, blob)| match blob {
            Blob::Document(bytes) => Some((digest, bytes)),
            Blob::Layer(_) => None,
        });
        for (digest, bytes) in indexes.iter().map(|(digest, bytes)| (digest, *bytes)).chain(documents) {
            put(tar, &format!("blobs/sha256/{}", digest.hex()), bytes)?;
        }
        for (digest, blob) in &blobs {
            if let Blob::Layer(size) = blob {
                self.put_layer(tar, digest, *size)?;
            }
        }
        Ok(())
    }

    /// Whether all of these can be saved.
    pub fn check_save(&self, names: &[String]) -> Result<()> {
        self.chosen(names, IndexParts::Meant).map(drop)
    }

    fn chosen(&self, names: &[String], parts: IndexParts) -> Result<Vec<Saved>> {
        if names.is_empty() {
            return Err(Error::Archive("no images are given to be saved".to_owned()));
        }
        let mut saved: Vec<Saved> = Vec::new();
        for name in names {
            for (image, references) in self.meant(name)? {
                if matches!(image.kind, ImageKind::Host { .. }) {
                    return Err(Error::Builtin(name.clone()));
                }
                match saved.iter_mut().find(|other| other.image.id == image.id) {
                    Some(other) => other.references.extend(references),
                    None => {
                        let leases = vec![self.lease_image(&image)?];
                        let manifest = self.manifest(&image)?;
                        let config = self.config_of(&manifest)?;
                        let one = Saved::new(image, references.into_iter().collect(), manifest, config);
                        saved.push(Saved { leases, ..one });
                    }
                }
            }
        }
        if parts == IndexParts::All {
            saved.iter_mut().try_for_each(|image| self.add_indexes(image))?;
        }
        Ok(saved)
    }

    fn config_of(&self, manifest: &[u8]) -> Result<Vec<u8>> {
        self.document(&Manifest::parse(manifest)?.config.digest)
    }

    /// Those of which a part is missing stay here: who reads the archive could not have them whole either.
    fn add_indexes(&self, saved: &mut Saved) -> Result<()> {
        for name in &saved.references {
            let Some(Standing::Index(index)) = self.standing(name)? else { continue };
            if index.missing > 0 {
                continue;
            }
            for (manifest, id) in index.here {
                saved.leases.push(self.lease_image(&self.resolve(id.as_str())?)?);
                let manifest = self.document(&manifest)?;
                let config = self.config_of(&manifest)?;
                saved.parts.push((manifest, config));
            }
            saved.within.extend(index.within);
            saved.indexes.insert(name.clone(), index.bytes);
        }
        Ok(())
    }

    /// The images that a word means, each with the names that it means.
    fn meant(&self, name: &str) -> Result<Vec<(Image, Vec<Reference>)>> {
        let parsed = Reference::parse(name).ok().filter(|reference| !builtin::is_builtin(reference));
        let bare = |reference: &&Reference| {
            // Parsing gives the tag `latest` to what has none.
            let last = name.rsplit('/').next().unwrap_or(name);
            reference.digest().is_none() && !last.contains(':')
        };
        if let Some(reference) = parsed.as_ref().filter(bare) {
            let of_it = |other: &Reference| other.name() == reference.name() && other.tag().is_some();
            let found: Vec<_> = self
                .list()?
                .into_iter()
                .filter(|image| !matches!(image.kind, ImageKind::Host { .. }))
                .filter_map(|image| {
                    let names: Vec<_> =
                        image.references.iter().filter(|other| of_it(other)).cloned().collect();
                    (!names.is_empty()).then_some((image, names))
                })
                .collect();
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let image = self.resolve(name)?;
        let named =
            parsed.filter(|reference| image.references.contains(reference) && reference.tag().is_some());
        Ok(vec![(image, named.into_iter().collect())])
    }

    /// What is read is hashed on the way: a damaged file must not leave as if it were whole.
    fn put_layer(&self, tar: &mut Builder<impl Write>, digest: &Digest, size: u64) -> Result<()> {
        let mut blob = self.open_blob(digest)?;
        if blob.size() != size {
            return Err(Error::Archive(format!(
                "the layer {digest} has {} bytes, {size} were declared",
                blob.size()
            )));
        }
        let found = std::thread::scope(|scope| {
            let (sender, mut chunks) = channel();
            let hashing = Hashing::start(scope)?;
            let reading = move || pump_plain(&mut blob, &sender);
            thread::scoped(scope, "read", reading).map_err(Error::Thread)?;
            let mut reader = Hashed { chunks: &mut chunks, hashing: &hashing, current: Bytes::new() };
            let name = format!("blobs/sha256/{}", digest.hex());
            append(tar, header(EntryType::Regular, 0o644, size), &name, (&mut reader).take(size))?;
            Ok::<_, Error>(hashing.finish())
        })?;
        if found == *digest {
            return Ok(());
        }
        Err(Error::Mismatch { what: "the layer on the disk".to_owned(), expected: digest.clone(), found })
    }
}

/// Chunks as a stream, hashed as they are taken.
struct Hashed<'a, 'scope> {
    chunks: &'a mut crate::stream::Chunks,
    hashing: &'a Hashing<'scope>,
    current: Bytes,
}

impl Read for Hashed<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.current.is_empty() {
            let Some(chunk) = self.chunks.chunk(usize::MAX)? else { return Ok(0) };
            self.hashing.update(&chunk);
            self.current = chunk;
        }
        let count = into.len().min(self.current.len());
        into[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

fn index(saved: &[Saved]) -> Result<Index> {
    let mut manifests = Vec::new();
    for image in saved {
        let media_type = Manifest::parse(&image.manifest)?.media_type;
        let descriptor = Descriptor {
            media_type: media_type.unwrap_or_else(|| media::MANIFEST.to_owned()),
            digest: content::digest(&image.manifest),
            size: image.manifest.len() as u64,
            annotations: BTreeMap::new(),
            platform: platform(&image.image),
        };
        if image.references.is_empty() {
            let of_index = image.unnamed.as_deref().map(describe_index).transpose()?;
            manifests.push(of_index.unwrap_or_else(|| descriptor.clone()));
        }
        for reference in &image.references {
            let tag = reference.tag().unwrap_or_default().to_owned();
            let annotations = BTreeMap::from([
                (ANNOTATION_IMAGE_NAME.to_owned(), reference.to_string()),
                (ANNOTATION_REF_NAME.to_owned(), tag),
            ]);
            let descriptor = match image.indexes.get(reference) {
                Some(bytes) => describe_index(bytes)?,
                None => descriptor.clone(),
            };
            manifests.push(Descriptor { annotations, ..descriptor });
        }
    }
    Ok(Index { schema_version: 2, media_type: Some(media::INDEX.to_owned()), manifests })
}

fn describe_index(bytes: &[u8]) -> Result<Descriptor> {
    let media_type = Index::parse(bytes)?.media_type;
    Ok(Descriptor {
        media_type: media_type.unwrap_or_else(|| media::INDEX.to_owned()),
        digest: content::digest(bytes),
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
        platform: None,
    })
}

fn platform(image: &Image) -> Option<Platform> {
    let (architecture, os) = (image.config.architecture.clone(), image.config.os.clone());
    let known = !architecture.is_empty() && !os.is_empty();
    known.then(|| Platform { architecture, os, variant: image.config.variant.clone() })
}

fn entries(saved: &[Saved]) -> Result<Vec<ArchiveEntry>> {
    let member = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    saved
        .iter()
        // Who reads this document knows images only.
        .filter(|image| image.image.kind == ImageKind::Stored)
        .map(|image| {
            Ok(ArchiveEntry {
                config: member(&image.image.id),
                repo_tags: image.references.iter().map(Reference::familiar).collect(),
                layers: Manifest::parse(&image.manifest)?
                    .layers
                    .iter()
                    .map(|layer| member(&layer.digest))
                    .collect(),
            })
        })
        .collect()
}

pub(super) fn json(document: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|_| Error::Defect("a document of an archive is always JSON"))
}

pub(crate) fn put(tar: &mut Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<()> {
    append(tar, header(EntryType::Regular, 0o644, bytes.len() as u64), name, bytes)
}

pub(crate) fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// All names are shorter than a header's field.
pub(crate) fn append(
    tar: &mut Builder<impl Write>,
    mut header: Header,
    name: &str,
    content: impl Read,
) -> Result<()> {
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar.append(&header, content).map_err(sending)
}

fn sending(error: std::io::Error) -> Error {
    Error::Output(error)
}
