//! Named contexts that are images of an OCI layout, which came along as a folder does.

use std::sync::Arc;

use insula_base::{DiffId, Digest};
use insula_registry::Wanted;
use insula_spec::image::{Descriptor, ImageConfig, Index, Manifest};
use insula_store::StagedLayer;

use super::Building;
use super::cache::{Key, Made};
use super::portable::{blob_file, document, piece};
use super::stage::Built;
use crate::tree::Tree;
use crate::{Error, Result, blocking};

/// Annotation of an entry: what the layout calls it.
const NAME: &str = "org.opencontainers.image.ref.name";
/// What is meant of several, if nothing else is said.
const LATEST: &str = "latest";
/// Indexes in indexes.
const DEPTH_MAX: usize = 4;

impl Building {
    /// An image of a layout, whose layers are kept as those of steps are.
    pub(super) async fn layout(self: &Arc<Self>, name: &str, wanted: &str, platform: &str) -> Result<Built> {
        let platform = Wanted::parse(platform).map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let (this, folder, wanted) = (self.clone(), name.to_owned(), wanted.to_owned());
        let (config, blobs) = blocking(move || found(&this.folder(&folder)?, &wanted, &platform)).await?;
        let diffs = config.rootfs.diff_ids.clone();
        if diffs.len() != blobs.len() {
            return Err(Error::InvalidArgument(format!(
                "the build context {name}: its image has {} layers and names {}",
                blobs.len(),
                diffs.len()
            )));
        }
        let config =
            ImageConfig { comment: None, docker_version: String::new(), build_cache: None, ..config };
        let mut built = Built::given(Vec::new(), config, Vec::new());
        for (diff, blob) in diffs.into_iter().zip(blobs) {
            let (this, name, below) = (self.clone(), name.to_owned(), built.clone());
            let made = blocking(move || this.layout_layer(&name, &blob, &diff, &below)).await?;
            built.layers = made.layers;
            built.leases.push(Arc::new(made.lease));
        }
        Ok(built)
    }

    /// Blocks.
    fn layout_layer(&self, name: &str, blob: &Descriptor, diff: &DiffId, below: &Built) -> Result<Made> {
        let key = Key::new("layout", &below.layers, &[diff.to_string()]);
        if let Some(made) = self.found(&key, below)? {
            return Ok(made);
        }
        let images = self.engine.store().images();
        let staged = match images.has_layer(diff)? {
            true => images.stage_layer(|out| {
                let copied = std::io::copy(&mut images.open_layer(diff)?, out);
                copied.map_err(insula_store::Error::Output)
            })?,
            false => {
                let mut file = blob_file(&self.folder(name)?, &blob.digest)?;
                let layer = images.ingest_layer(blob, diff, &mut || piece(&mut file))?;
                StagedLayer::of(&layer)
                    .ok_or_else(|| Error::Conflict(format!("the layer {diff} was taken by another build")))?
            }
        };
        let text = format!("a layer of the build context {name}");
        self.keep(&key, &below.layers, staged, &text, self.now())
    }
}

/// The configuration of the image that is wanted, and its layers. Blocks.
fn found(tree: &Tree, wanted: &str, platform: &Wanted) -> Result<(ImageConfig, Vec<Descriptor>)> {
    let index = super::read(tree, "index.json")?
        .ok_or_else(|| Error::NotFound("there is no index.json: an OCI layout is expected".to_owned()))?;
    let index = Index::parse(&index).map_err(insula_store::Error::from)?;
    let mut entry = entry(&index, wanted)?;
    for _ in 0..DEPTH_MAX {
        if !entry.is_index() {
            break;
        }
        let inner = Index::parse(&document(tree, &entry.digest)?).map_err(insula_store::Error::from)?;
        let chosen = platform.choose(&inner.manifests).cloned();
        entry =
            chosen.ok_or_else(|| Error::NotFound("the layout has nothing for this platform".to_owned()))?;
    }
    let manifest = Manifest::parse(&document(tree, &entry.digest)?).map_err(insula_store::Error::from)?;
    if !manifest.is_image() {
        return Err(Error::InvalidArgument(format!("{} is an artifact, not an image", entry.digest)));
    }
    let config = document(tree, &manifest.config.digest)?;
    let config = ImageConfig::parse(&config).map_err(insula_store::Error::from)?;
    Ok((config, manifest.layers))
}

/// What a tag or digest means in a layout; the only one, or the latest, if nothing is said.
fn entry(index: &Index, wanted: &str) -> Result<Descriptor> {
    let called = |entry: &&Descriptor, name: &str| {
        let known = entry.annotations.get(NAME).map(String::as_str).unwrap_or_default();
        known == name || known.rsplit_once(':').is_some_and(|(_, tag)| tag == name)
    };
    let found = match (wanted.parse::<Digest>(), index.manifests.as_slice()) {
        (Ok(digest), entries) => entries.iter().find(|entry| entry.digest == digest),
        (Err(_), [only]) if wanted.is_empty() => Some(only),
        (Err(_), entries) => {
            let name = if wanted.is_empty() { LATEST } else { wanted };
            entries.iter().find(|entry| called(entry, name))
        }
    };
    found.cloned().ok_or_else(|| {
        let wanted = if wanted.is_empty() { LATEST } else { wanted };
        Error::NotFound(format!("the layout has no image {wanted}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_tag_or_digest() {
        let named = |name: &str, sign: &str| Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: format!("sha256:{}", sign.repeat(64)).parse().unwrap(),
            size: 1,
            annotations: [(NAME.to_owned(), name.to_owned())].into(),
            platform: None,
        };
        let index = |manifests| Index { schema_version: 2, media_type: None, manifests };
        let (one, two) = (named("docker.io/library/a:1", "a"), named("latest", "b"));
        let both = index(vec![one.clone(), two.clone()]);
        assert_eq!(entry(&both, "1").unwrap(), one);
        assert_eq!(entry(&both, one.digest.as_str()).unwrap(), one);
        assert_eq!(entry(&both, "").unwrap(), two);
        assert_eq!(entry(&index(vec![one.clone()]), "").unwrap(), one);
        let why = entry(&index(vec![one]), "2").unwrap_err().to_string();
        assert_eq!(why, "the layout has no image 2");
        assert!(entry(&index(vec![]), "").is_err());
    }
}
