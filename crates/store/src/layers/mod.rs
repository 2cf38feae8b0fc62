//! Unpacked layers, one folder each, named by chain id: a layer and everything below it. Two
//! images with the same lower layers share them.

use std::fs;
use std::path::{Path, PathBuf};

use insula_base::{ChainId, DiffId};

use crate::root::{discard, empty, make_folder};
use crate::{Error, Result};

/// One unpacked layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Of its uncompressed archive.
    pub diff_id: DiffId,
    /// Of it and the layers below it.
    pub chain_id: ChainId,
    /// The folder on the host, in overlay's format: whiteouts are character devices 0/0, opaque
    /// folders carry `trusted.overlay.opaque`. Owners are those of the image.
    pub path: PathBuf,
    /// Bytes of the regular files in it.
    pub size: u64,
}

/// The unpacked layers below one root.
#[derive(Debug)]
pub struct Layers {
    folder: PathBuf,
}

impl Layers {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let layers = Self { folder: folder.to_owned() };
        make_folder(folder, 0o711)?;
        make_folder(&layers.temporary(), 0o700)?;
        empty(&layers.temporary())?;
        Ok(layers)
    }

    /// The folder of a layer, complete or not there.
    #[must_use]
    pub fn path(&self, chain: &ChainId) -> PathBuf {
        self.folder.join(chain.0.hex())
    }

    /// Whether the layer is there.
    #[must_use]
    pub fn contains(&self, chain: &ChainId) -> bool {
        self.path(chain).is_dir()
    }

    pub(crate) fn remove(&self, chain: &ChainId) -> Result<()> {
        discard(&self.path(chain), &self.temporary())
    }

    fn temporary(&self) -> PathBuf {
        self.folder.join("tmp")
    }

    /// Every complete layer.
    pub(crate) fn all(&self) -> Result<Vec<ChainId>> {
        let mut chains = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(|e| Error::io("readdir", &self.folder, e))? {
            let name = entry.map_err(|e| Error::io("readdir", &self.folder, e))?.file_name();
            let digest = name.to_str().map(|hex| format!("sha256:{hex}").parse());
            chains.extend(digest.and_then(std::result::Result::ok).map(ChainId));
        }
        Ok(chains)
    }
}
