//! Images: names, a configuration, layers.

mod builtin;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use insula_base::Digest;
use insula_spec::image::{ImageConfig, RunConfig};
use insula_spec::reference::Reference;

use crate::{Content, Error, Layer, Layers, Result, State};

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the configuration.
    pub id: Digest,
    pub kind: ImageKind,
    /// Names, sorted. Without any the image is dangling.
    pub references: Vec<Reference>,
    pub config: ImageConfig,
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// Bytes of all layers.
    pub size: u64,
    /// Digest of the manifest; what `RepoDigests` shows.
    pub manifest: Digest,
}

impl Image {
    /// The folders of the layers, lowest first, as a plan wants them.
    #[must_use]
    pub fn layer_paths(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|layer| layer.path.clone()).collect()
    }

    /// Absolute paths that a container of this image must not see.
    #[must_use]
    pub fn hidden(&self) -> &[String] {
        match &self.kind {
            ImageKind::Stored => &[],
            ImageKind::Host { hidden } => hidden,
        }
    }
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageKind {
    /// Loaded or imported.
    Stored,
    /// Built in: the host's own root file system, less what is hidden (files and folders; those
    /// that do not exist are left out).
    Host { hidden: Vec<String> },
}

/// What happens while an image is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of the archive read so far.
    Reading { bytes: u64 },
    /// Bytes of a layer unpacked so far, of how many (uncompressed or as archived, as known).
    Layer { chain: Digest, bytes: u64, total: Option<u64> },
    /// The layer was here already.
    LayerExists { chain: Digest },
}

/// An image that a load brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub id: Digest,
    /// The names that it was given. Empty: `docker load` then prints the id.
    pub references: Vec<Reference>,
}

/// What an imported root file system is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportOptions {
    pub reference: Option<Reference>,
    /// Complete; changes of `--change` are applied by the caller.
    pub config: RunConfig,
    pub message: String,
    /// `amd64` and so on; the host's own if empty.
    pub architecture: String,
}

/// Whether a removal may break what depends on the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    No,
    Yes,
}

/// One step of a removal, as `docker rmi` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// `Untagged: busybox:latest`.
    Untagged(Reference),
    /// `Deleted: sha256:…`, an image or a layer.
    Deleted(Digest),
}

/// The images below one root.
#[derive(Debug)]
pub struct Images {
    root: PathBuf,
    state: Arc<State>,
    content: Arc<Content>,
    layers: Arc<Layers>,
}

impl Images {
    pub(crate) fn open(
        root: &Path,
        state: &Arc<State>,
        content: &Arc<Content>,
        layers: &Arc<Layers>,
    ) -> Result<Self> {
        Ok(Self {
            root: root.to_owned(),
            state: state.clone(),
            content: content.clone(),
            layers: layers.clone(),
        })
    }

    /// Loads every image of an archive: `docker save`'s or an OCI layout, plain or compressed with
    /// gzip or zstd. Either all of its images appear or none.
    pub fn load(&self, _input: impl Read + Send, _progress: &mut dyn FnMut(Progress)) -> Result<Vec<Loaded>> {
        Err(Error::Unsupported("loading images".into()))
    }

    /// Makes an image of one layer from a root file system's tar, plain or compressed.
    pub fn import(
        &self,
        _input: impl Read + Send,
        _options: ImportOptions,
        _progress: &mut dyn FnMut(Progress),
    ) -> Result<Digest> {
        Err(Error::Unsupported("importing images".into()))
    }

    /// The image by name, complete id, or unique beginning of an id, with or without `sha256:`.
    /// Names win over ids.
    pub fn resolve(&self, text: &str) -> Result<Image> {
        if let Some(image) = builtin::resolve(text, &self.root) {
            return Ok(image);
        }
        Err(Error::NoImage(text.to_owned()))
    }

    /// Every image, the built-in ones too, newest first.
    pub fn list(&self) -> Result<Vec<Image>> {
        Ok(builtin::all(&self.root))
    }

    /// Gives an image another name, taking it away from the image that had it; returns that one's id.
    pub fn tag(&self, _source: &str, _target: &Reference) -> Result<Option<Digest>> {
        Err(Error::Unsupported("tagging images".into()))
    }

    /// Removes a name, and with its last name the image, and the layers that nothing else uses, by
    /// Docker's rules. `running` says whether the owner of a use runs: then not even force helps.
    pub fn remove(
        &self,
        _text: &str,
        _force: Force,
        _running: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Removal>> {
        Err(Error::Unsupported("removing images".into()))
    }

    /// Notes that `owner` (a container) needs the image's layers, until it is released. Within the
    /// transaction that writes the owner's record.
    pub fn use_image(&self, _tx: &crate::Transaction<'_>, _id: &Digest, _owner: &str) -> Result<()> {
        Err(Error::Unsupported("using images".into()))
    }

    /// Ends the use, and removes layers that only it still held. To be called after the owner's
    /// record is gone; that there is no use is no error.
    pub fn release_image(&self, _owner: &str) -> Result<()> {
        Err(Error::Unsupported("using images".into()))
    }

    /// Which owners use the image.
    pub fn users(&self, _id: &Digest) -> Result<Vec<String>> {
        Err(Error::Unsupported("using images".into()))
    }
}
