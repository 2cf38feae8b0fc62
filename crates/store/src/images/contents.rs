//! Which images an archive holds, by its documents: `manifest.json` of `docker save`, or the
//! `index.json` of an OCI layout (image specification, "Image Layout").

use insula_base::Digest;
use insula_spec::image::{
    ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, ArchiveEntry, Descriptor, ImageConfig, Index, Manifest,
    parse_archive_manifest,
};
use insula_spec::reference::Reference;

use super::builtin;
use super::gather::{Gathered, clean};
use super::rows::Place;
use crate::{Error, Result, content};

/// Indexes within indexes.
const DEPTH_MAX: usize = 4;

/// An image of an archive.
#[derive(Debug)]
pub(super) struct Found {
    /// The index that its names stand for in registries, if that is not the manifest.
    pub(super) index: Option<Vec<u8>>,
    pub(super) id: Digest,
    pub(super) config: ImageConfig,
    pub(super) config_bytes: Vec<u8>,
    /// The document, where the archive has one.
    pub(super) manifest: Option<Vec<u8>>,
    /// For each layer the member that holds it, and its declared digest.
    pub(super) layers: Vec<(String, Option<Digest>)>,
    pub(super) references: Vec<Reference>,
    /// Where registries have its layers.
    pub(super) places: Vec<Place>,
}

/// Every image of the archive. `manifest.json` wins where both are: it names all tags.
pub(super) fn images(gathered: &Gathered) -> Result<Vec<Found>> {
    let manifests = match gathered.document("index.json") {
        Some(bytes) => manifests(gathered, &Index::parse(bytes)?)?,
        None => Vec::new(),
    };
    let found = match gathered.document("manifest.json") {
        Some(bytes) => parse_archive_manifest(bytes)?
            .iter()
            .map(|entry| from_entry(gathered, entry, &manifests))
            .collect::<Result<Vec<_>>>()?,
        None if !manifests.is_empty() => manifests
            .iter()
            .map(|(descriptor, digest)| from_manifest(gathered, descriptor, digest))
            .collect::<Result<_>>()?,
        None => {
            return Err(Error::Archive(
                "it has neither manifest.json nor index.json with an image".to_owned(),
            ));
        }
    };
    for image in &found {
        check(image)?;
    }
    Ok(found)
}

pub(super) fn check(image: &Found) -> Result<()> {
    let (given, declared) = (image.layers.len(), image.config.rootfs.diff_ids.len());
    if given != declared {
        return Err(Error::Archive(format!(
            "image {} has {given} layers, its configuration {declared}",
            image.id
        )));
    }
    if !matches!(image.config.os.as_str(), "" | "linux") {
        return Err(Error::Unsupported(format!("image {} is for {}, not linux", image.id, image.config.os)));
    }
    match image.references.iter().find(|reference| builtin::is_builtin(reference)) {
        Some(reference) => Err(Error::Builtin(reference.familiar())),
        None => Ok(()),
    }
}

fn from_entry(
    gathered: &Gathered,
    entry: &ArchiveEntry,
    manifests: &[(Descriptor, Digest)],
) -> Result<Found> {
    let bytes = gathered
        .document(&clean(entry.config.as_bytes())?)
        .ok_or_else(|| Error::Archive(format!("it lacks the configuration {:?}", entry.config)))?;
    let id = content::digest(bytes);
    // Newer archives name the configuration by its digest, and then it has to be that.
    if let Some(hex) = entry.config.strip_prefix("blobs/sha256/")
        && hex != id.hex()
    {
        return Err(Error::Archive(format!("the configuration {:?} has the digest {id}", entry.config)));
    }
    let references = entry.repo_tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<_, _>>()?;
    let layers = entry
        .layers
        .iter()
        .map(|name| {
            let name = clean(name.as_bytes())?;
            let digest =
                name.strip_prefix("blobs/sha256/").map(|hex| format!("sha256:{hex}").parse()).transpose()?;
            Ok((name, digest))
        })
        .collect::<Result<_>>()?;
    Ok(Found {
        index: None,
        config: ImageConfig::parse(bytes)?,
        config_bytes: bytes.to_vec(),
        manifest: manifest_of(gathered, &id, manifests)?,
        id,
        layers,
        references,
        places: Vec::new(),
    })
}

/// The manifest of an archive that has both forms.
fn manifest_of(
    gathered: &Gathered,
    id: &Digest,
    manifests: &[(Descriptor, Digest)],
) -> Result<Option<Vec<u8>>> {
    for (_, digest) in manifests {
        let bytes = gathered.blob(digest)?;
        if Manifest::parse(bytes)?.config.digest == *id {
            return Ok(Some(bytes.to_vec()));
        }
    }
    Ok(None)
}

fn from_manifest(gathered: &Gathered, descriptor: &Descriptor, digest: &Digest) -> Result<Found> {
    let bytes = gathered.blob(digest)?;
    let manifest = Manifest::parse(bytes)?;
    if !manifest.is_image() {
        return Err(Error::Unsupported(format!(
            "{digest} is an artifact of type {:?}: artifacts are pulled from registries and not loaded",
            manifest.kind()
        )));
    }
    let config = gathered.blob(&manifest.config.digest)?;
    Ok(Found {
        index: None,
        id: manifest.config.digest.clone(),
        config: ImageConfig::parse(config)?,
        config_bytes: config.to_vec(),
        manifest: Some(bytes.to_vec()),
        layers: manifest
            .layers
            .iter()
            .map(|layer| (format!("blobs/sha256/{}", layer.digest.hex()), Some(layer.digest.clone())))
            .collect(),
        references: name(descriptor)?.into_iter().collect(),
        places: Vec::new(),
    })
}

/// The name in an index entry. A bare tag names no image: there is no repository to put it in.
fn name(descriptor: &Descriptor) -> Result<Option<Reference>> {
    if let Some(name) = descriptor.annotations.get(ANNOTATION_IMAGE_NAME) {
        return Ok(Some(Reference::parse(name)?));
    }
    match descriptor.annotations.get(ANNOTATION_REF_NAME) {
        Some(name) if name.contains(['/', ':']) => Ok(Some(Reference::parse(name)?)),
        _ => Ok(None),
    }
}

/// The manifests that an index means on this machine; an index below it stands for the one of its
/// images that this machine runs.
fn manifests(gathered: &Gathered, index: &Index) -> Result<Vec<(Descriptor, Digest)>> {
    let mut manifests = Vec::new();
    let single = index.manifests.len() == 1;
    for descriptor in &index.manifests {
        if !single && !runs_here(descriptor) {
            continue;
        }
        let mut chosen = descriptor.clone();
        let mut depth = 0;
        while chosen.is_index() {
            depth += 1;
            if depth > DEPTH_MAX {
                return Err(Error::Archive("its indexes are nested too deep".to_owned()));
            }
            let inner = Index::parse(gathered.blob(&chosen.digest)?)?;
            chosen = choose(&inner).cloned().ok_or_else(|| {
                Error::Unsupported(format!(
                    "{} has no image for linux/{}",
                    chosen.digest,
                    builtin::architecture()
                ))
            })?;
        }
        manifests.push((descriptor.clone(), chosen.digest));
    }
    Ok(manifests)
}

fn choose(index: &Index) -> Option<&Descriptor> {
    index
        .manifests
        .iter()
        .find(|descriptor| descriptor.platform.is_some() && runs_here(descriptor))
        .or_else(|| index.manifests.iter().find(|descriptor| descriptor.platform.is_none()))
}

/// What says nothing of a platform may be anything; attestations say `unknown`.
fn runs_here(descriptor: &Descriptor) -> bool {
    descriptor
        .platform
        .as_ref()
        .is_none_or(|platform| platform.os == "linux" && platform.architecture == builtin::architecture())
}
