//! What the entries of an archive's `index.json` stand for: a manifest, or an index with all that the archive has of
//! it, at whatever depth.

use std::collections::HashSet;

use insula_base::Digest;
use insula_spec::image::{ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Descriptor, Index, Manifest};
use insula_spec::reference::Reference;

use super::builtin;
use super::gather::{Gathered, is_foreign, member};
use super::standing::{DEPTH_MAX, IndexTree};
use crate::{Error, Result};

/// An entry.
#[derive(Debug)]
pub(super) struct Top {
    pub(super) name: Option<Reference>,
    /// The index that it is.
    pub(super) index: Option<IndexTree>,
    /// What the archive has of it; of a manifest that alone.
    pub(super) parts: Vec<Part>,
    /// Which of the parts the name means on this machine.
    pub(super) meant: usize,
    /// The archive has everything that the index lists.
    pub(super) whole: bool,
}

/// A manifest of an archive.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) digest: Digest,
    pub(super) bytes: Vec<u8>,
    pub(super) manifest: Manifest,
    /// It cannot be unpacked here, and is kept as it is.
    pub(super) artifact: bool,
    /// It is said to be for this machine; `None` is not said.
    runs_here: Option<bool>,
}

/// The entries, less those of images for other machines beside one for this one.
pub(super) fn tops(gathered: &Gathered, index: &Index) -> Result<Vec<Top>> {
    let single = index.manifests.len() == 1;
    let meant = |descriptor: &&Descriptor| single || runs_here(descriptor) != Some(false);
    index.manifests.iter().filter(meant).map(|descriptor| top(gathered, descriptor)).collect()
}

fn top(gathered: &Gathered, descriptor: &Descriptor) -> Result<Top> {
    let mut walk =
        Walk { gathered, seen: HashSet::new(), parts: Vec::new(), indexes: Vec::new(), whole: true };
    walk.entry(descriptor, None, 0)?;
    let name = name(descriptor)?;
    let (parts, whole) = (walk.parts, walk.whole);
    // The outermost ends last.
    let index = walk.indexes.pop().map(|bytes| IndexTree { bytes, within: walk.indexes });
    // An image for this machine, or one that says nothing; where the index has a name, anything of it.
    let ranks: [&dyn Fn(&Part) -> bool; 3] = [
        &|part| !part.artifact && part.runs_here == Some(true),
        &|part| !part.artifact && part.runs_here.is_none(),
        &|_| index.is_none() || name.is_some(),
    ];
    let meant = ranks.iter().find_map(|rank| parts.iter().position(rank)).ok_or_else(|| {
        let (digest, architecture) = (&descriptor.digest, builtin::architecture());
        Error::Unsupported(format!("{digest} has no image for linux/{architecture}"))
    })?;
    Ok(Top { name, index, parts, meant, whole })
}

struct Walk<'a> {
    gathered: &'a Gathered,
    /// The same index in many places is one.
    seen: HashSet<Digest>,
    parts: Vec<Part>,
    /// Each after those that it lists.
    indexes: Vec<Vec<u8>>,
    whole: bool,
}

impl Walk<'_> {
    /// `around` is what the index around it says of the machine that it is for.
    fn entry(&mut self, descriptor: &Descriptor, around: Option<bool>, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::Archive("its indexes are nested too deep".to_owned()));
        }
        let here = self.gathered.document(&member(&descriptor.digest)).is_some();
        if depth > 0 && !here {
            self.whole = false;
            return Ok(());
        }
        if !self.seen.insert(descriptor.digest.clone()) {
            return Ok(());
        }
        let bytes = self.gathered.blob(&descriptor.digest)?;
        let runs_here = runs_here(descriptor).or(around);
        if descriptor.is_index() {
            let index = Index::parse(bytes)?;
            index.manifests.iter().try_for_each(|entry| self.entry(entry, runs_here, depth + 1))?;
            self.indexes.push(bytes.to_vec());
            return Ok(());
        }
        let manifest = Manifest::parse(bytes)?;
        self.whole &= self.gathered.has_all(&manifest);
        let artifact = !manifest.is_image() || is_foreign(descriptor);
        let part =
            Part { digest: descriptor.digest.clone(), bytes: bytes.to_vec(), manifest, artifact, runs_here };
        self.parts.push(part);
        Ok(())
    }
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

/// What says nothing of a platform may be anything; attestations say `unknown`.
fn runs_here(descriptor: &Descriptor) -> Option<bool> {
    let platform = descriptor.platform.as_ref()?;
    Some(platform.os == "linux" && platform.architecture == builtin::architecture())
}
