//! What makes a layer's archive again, bit for bit, from its unpacked files: one copy of a layer is
//! on disk, and it can still be saved and pushed with the digest that it came with.
//!
//! ```text
//! <root>/layers/recipes/<64>/    one folder for each diff id
//!   tar                          the recipe: 32 bytes of head, then one zstd frame with a checksum
//!   replaced/<number>            what the archive itself replaced by a later entry
//!
//! head    "insula-r" | version: u32 | replaced: u32 | length of the archive: u64 | bytes in files: u64
//!         (little endian)
//! frame   steps, each a tag and numbers as LEB128:
//!         1 length bytes…        as they are: headers, padding, content that is in no file
//!         2 length path…         a file of the layer is opened
//!         3 offset length        content of the opened file
//!         4 number length path…  what earlier steps meant by this path, a file or a folder with
//!                                all that is in it, is `replaced/<number>` now
//!         0                      the end
//! ```
//!
//! Paths are those where the unpacked file really is, links of the archive followed. A recipe is
//! written while the layer is unpacked, from the stream that is hashed, and whoever reads an archive
//! that was made again compares its digest.

mod read;
mod steps;
mod write;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use insula_base::DiffId;

pub use read::Replay;
pub use steps::{Step, Steps};
pub(crate) use write::{Recorder, Recording};

use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"insula-r";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 32;
/// Bytes of a path within a layer.
const PATH_BYTES_MAX: usize = 4096;
/// Entries that an archive may replace by later ones.
const REPLACED_MAX: u32 = 1 << 16;
/// The name of the recipe in its folder.
const TAR: &str = "tar";
const REPLACED: &str = "replaced";

/// What the head of a recipe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) replaced: u32,
    /// Bytes of the archive.
    pub(crate) length: u64,
    /// Those of them that are in files of the layer.
    pub(crate) in_files: u64,
}

impl Head {
    fn bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.replaced.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..].copy_from_slice(&self.in_files.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; HEAD_BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let known = bytes[..8] == *MAGIC && word(8) == VERSION && word(12) <= REPLACED_MAX;
        known.then(|| Self { replaced: word(12), length: long(16), in_files: long(24) })
    }
}

/// The recipes below one root.
#[derive(Debug)]
pub(crate) struct Recipes {
    folder: PathBuf,
}

impl Recipes {
    pub(crate) fn open(layers: &Path) -> Result<Self> {
        let folder = layers.join("recipes");
        crate::root::make_private(&folder)?;
        Ok(Self { folder })
    }

    /// The folder of a recipe.
    pub(crate) fn path(&self, diff: &DiffId) -> PathBuf {
        self.folder.join(diff.0.hex())
    }

    /// Whether the archive can be made again.
    pub(crate) fn contains(&self, diff: &DiffId) -> bool {
        self.path(diff).join(TAR).is_file()
    }

    /// What the head of a recipe says.
    pub(crate) fn head(&self, diff: &DiffId) -> Result<Head> {
        let path = self.path(diff).join(TAR);
        let file = File::open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NoRecipe(diff.clone()),
            _ => Error::io("open", &path, e),
        })?;
        read_head(&path, &file)
    }

    /// The archive, made again from the files of the layer that is unpacked in `layer`.
    pub(crate) fn replay(&self, diff: &DiffId, layer: &Path) -> Result<Replay> {
        self.head(diff)?;
        Replay::open(&self.path(diff), layer)
    }

    /// Moves a finished recipe to its place, unless there is one already.
    pub(crate) fn complete(&self, pending: &Path, diff: &DiffId) -> Result<()> {
        let path = self.path(diff);
        if self.contains(diff) {
            return Ok(());
        }
        crate::root::discard(&path, &self.folder)?;
        fs::rename(pending, &path).map_err(|e| Error::io("rename", &path, e))
    }

    /// Every recipe.
    pub(crate) fn all(&self) -> Result<Vec<DiffId>> {
        let mut diffs = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(|e| Error::io("readdir", &self.folder, e))? {
            let name = entry.map_err(|e| Error::io("readdir", &self.folder, e))?.file_name();
            let digest = name.to_str().map(|hex| format!("sha256:{hex}").parse());
            diffs.extend(digest.and_then(std::result::Result::ok).map(DiffId));
        }
        Ok(diffs)
    }
}

fn read_head(path: &Path, file: &File) -> Result<Head> {
    let mut bytes = [0; HEAD_BYTES];
    let damaged = || Error::Recipe { path: path.to_owned(), why: "its head is not that of a recipe" };
    file.read_exact_at(&mut bytes, 0).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => damaged(),
        _ => Error::io("read", path, e),
    })?;
    Head::parse(&bytes).ok_or_else(damaged)
}

#[cfg(test)]
mod tests;
