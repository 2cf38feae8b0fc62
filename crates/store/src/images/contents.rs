//! Which images an archive holds, by its documents: `manifest.json` of `docker save`, or the
//! `index.json` of an OCI layout (image specification, "Image Layout").

use insula_base::Digest;
use insula_spec::image::{ArchiveEntry, ImageConfig, Index, parse_archive_manifest};
use insula_spec::reference::Reference;

use super::gather::{Gathered, clean, member};
use super::index::{self, Part, Top};
use super::rows::Place;
use super::standing::IndexTree;
use super::{IngestedBlob, builtin};
use crate::{Error, Result, content};

/// An image of an archive.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The index that its names stand for in registries, if that is not the manifest.
    pub(super) index: Option<IndexTree>,
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

/// What an archive holds, or a pull or a build brings: all of it appears at once.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) images: Vec<Found>,
    pub(super) artifacts: Vec<Artifact>,
    pub(super) names: Vec<Named>,
}

/// The name of an index that means an artifact here.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: Reference,
    pub(super) index: IndexTree,
    /// The digest of the artifact.
    pub(super) id: Digest,
}

/// An artifact, of blobs that were taken in or are here as they came.
#[derive(Debug)]
pub(super) struct Artifact {
    pub(super) manifest: Vec<u8>,
    pub(super) references: Vec<Reference>,
    pub(super) blobs: Vec<IngestedBlob>,
}

impl Artifact {
    /// One whose blobs are here, or are yet to be taken in.
    fn new(manifest: Vec<u8>, references: Vec<Reference>) -> Self {
        Self { manifest, references, blobs: Vec::new() }
    }
}

impl From<Found> for Contents {
    fn from(image: Found) -> Self {
        Self { images: vec![image], ..Self::default() }
    }
}

/// All of the archive. Of images `manifest.json` has the last word where both are: it names all tags.
pub(super) fn read(gathered: &Gathered) -> Result<Contents> {
    let tops = match gathered.document("index.json") {
        Some(bytes) => index::tops(gathered, &Index::parse(bytes)?)?,
        None => Vec::new(),
    };
    let mut contents = Contents::default();
    let listed = gathered.document("manifest.json").map(parse_archive_manifest).transpose()?;
    for entry in listed.iter().flatten() {
        contents.images.push(from_entry(gathered, entry, &tops)?);
    }
    for top in &tops {
        let listed = listed.is_some();
        match (&top.index, &top.name) {
            (Some(index), Some(name)) => contents.add_index(gathered, top, index, name)?,
            _ => contents.add_meant(gathered, top, listed)?,
        }
    }
    if listed.is_none() && contents.images.is_empty() && contents.artifacts.is_empty() {
        return Err(Error::Archive("it has neither manifest.json nor index.json with an image".to_owned()));
    }
    contents.images.iter().try_for_each(check)?;
    Ok(contents)
}

impl Contents {
    /// Leaves names to the images here that have them.
    pub(super) fn leave_names(&mut self, taken: &[(Reference, Digest)]) {
        let free = |name: &Reference, id: &Digest| !taken.iter().any(|(have, of)| have == name && of != id);
        for image in &mut self.images {
            let id = image.id.clone();
            image.references.retain(|name| free(name, &id));
        }
        for artifact in &mut self.artifacts {
            let id = content::digest(&artifact.manifest);
            artifact.references.retain(|name| free(name, &id));
        }
        self.names.retain(|named| free(&named.name, &named.id));
    }

    /// A manifest, or what an index without a name means: there is nothing that the rest of it could be called.
    fn add_meant(&mut self, gathered: &Gathered, top: &Top, listed: bool) -> Result<()> {
        let part = &top.parts[top.meant];
        if part.artifact {
            let references = top.name.iter().cloned().collect();
            self.artifacts.push(Artifact::new(part.bytes.clone(), references));
        } else if !listed {
            self.images.push(from_manifest(gathered, part, top.name.clone())?);
        }
        Ok(())
    }

    /// What an index means here gets its name. If all of it is there the rest comes too, called by its digests;
    /// otherwise nobody could have it whole.
    fn add_index(
        &mut self,
        gathered: &Gathered,
        top: &Top,
        index: &IndexTree,
        name: &Reference,
    ) -> Result<()> {
        for part in top.parts.iter().filter(|_| top.whole) {
            let by_digest = Reference::parse(&format!("{}@{}", name.name(), part.digest))?;
            if part.artifact {
                self.artifacts.push(Artifact::new(part.bytes.clone(), vec![by_digest]));
            } else {
                self.images.push(from_manifest(gathered, part, Some(by_digest))?);
            }
        }
        let meant = &top.parts[top.meant];
        if meant.artifact {
            if !top.whole {
                self.artifacts.push(Artifact::new(meant.bytes.clone(), Vec::new()));
            }
            let (name, index, id) = (name.clone(), index.clone(), meant.digest.clone());
            self.names.push(Named { name, index, id });
            return Ok(());
        }
        let id = &meant.manifest.config.digest;
        // `manifest.json` may give the name to another image.
        if !self.images.iter().any(|image| image.id != *id && image.references.contains(name)) {
            self.images.iter_mut().for_each(|image| image.references.retain(|other| other != name));
            self.images.retain(|image| image.id != *id || !image.references.is_empty());
            let named = from_manifest(gathered, meant, Some(name.clone()))?;
            self.images.push(Found { index: Some(index.clone()), ..named });
        }
        Ok(())
    }
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

fn from_entry(gathered: &Gathered, entry: &ArchiveEntry, tops: &[Top]) -> Result<Found> {
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
        manifest: manifest_of(&id, tops),
        id,
        layers,
        references,
        places: Vec::new(),
    })
}

/// The manifest of an archive that has both forms.
fn manifest_of(id: &Digest, tops: &[Top]) -> Option<Vec<u8>> {
    let mut parts = tops.iter().flat_map(|top| &top.parts);
    parts.find(|part| part.manifest.config.digest == *id).map(|part| part.bytes.clone())
}

fn from_manifest(gathered: &Gathered, part: &Part, name: Option<Reference>) -> Result<Found> {
    let manifest = &part.manifest;
    let config = gathered.blob(&manifest.config.digest)?;
    Ok(Found {
        index: None,
        id: manifest.config.digest.clone(),
        config: ImageConfig::parse(config)?,
        config_bytes: config.to_vec(),
        manifest: Some(part.bytes.clone()),
        layers: manifest
            .layers
            .iter()
            .map(|layer| (member(&layer.digest), Some(layer.digest.clone())))
            .collect(),
        references: name.into_iter().collect(),
        places: Vec::new(),
    })
}
