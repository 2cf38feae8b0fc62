//! Unpacked layers, one folder each, named by chain id: a layer and everything below it. Two
//! images with the same lower layers share them.

mod diff;
mod files;
mod folders;
mod implied;
mod place;
mod unpack;
mod verity;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use insula_base::{ChainId, DiffId};

pub use diff::{DiffOf, attributes, write_diff, write_tree, write_upper};
pub(crate) use files::{Files, Key, Keys, Sharing};
pub(crate) use unpack::unpack_recorded;
pub use unpack::{IsFolder, Limits, Onto, Unpacked, Whiteouts, unpack, unpack_onto};

use crate::recipe::{Recipes, Replay};
use crate::root::{discard, empty, make_folder, make_private, remove_any, spread};
use crate::{Error, Result, tree};

/// What stays of the folders that were removed, until the files that only they shared are.
const OWED: &str = "owed";

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
    recipes: Recipes,
    files: Arc<Files>,
    verified: AtomicBool,
    verifiable: OnceLock<bool>,
}

impl Layers {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        make_private(folder)?;
        let (recipes, files) = (Recipes::open(folder)?, Arc::new(Files::open(folder)?));
        let layers = Self {
            folder: folder.to_owned(),
            recipes,
            files,
            verified: AtomicBool::new(false),
            verifiable: OnceLock::new(),
        };
        make_folder(&layers.temporary(), 0o700)?;
        spread(&layers.temporary())?;
        Ok(layers)
    }

    /// Removes what was on its way in, or out, when the last daemon ended; whether there was anything, and shared
    /// files may be nobody's for it.
    pub(crate) fn sweep_temporary(&self) -> Result<bool> {
        let folder = self.temporary();
        let fail = |e| Error::io("readdir", &folder, e);
        let mut any = false;
        for entry in fs::read_dir(&folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            any = true;
            match entry.file_type().map_err(fail)?.is_dir() {
                true => self.remove_owing(&entry.path())?,
                false => remove_any(&entry.path())?,
            }
        }
        Ok(any)
    }

    /// Removes a folder that may be the last to share some files. An empty one stays for it until these are swept
    /// ([`Layers::owed_sweep`]), and tells the next open to do it if nobody came to that. Takes no room on a full
    /// disk.
    fn remove_owing(&self, folder: &Path) -> Result<()> {
        let rest = self.temporary().join(OWED);
        if folder != rest {
            if rest.exists() {
                empty(&rest)?;
            }
            fs::rename(folder, &rest).map_err(|e| Error::io("rename", folder, e))?;
        }
        empty(&rest)
    }

    /// Work for a thread: looks at all shared files, of all layers that ever were.
    pub(crate) fn owed_sweep(&self) -> impl FnOnce() -> Result<()> + use<> {
        let (files, rest) = (self.files.clone(), self.temporary().join(OWED));
        move || {
            files.sweep()?;
            remove_any(&rest)
        }
    }

    /// Whether files of layers that come are shared with those that other layers have.
    pub fn share_files(&self, on: bool) {
        self.files.share(on);
    }

    /// Has the kernel verify the files of layers that come (fs-verity). [`Error::NoVerity`] where it cannot.
    pub fn verify_files(&self) -> Result<()> {
        verity::probe(&self.temporary())?;
        self.verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the kernel could verify the files of layers here.
    #[must_use]
    pub fn could_verify_files(&self) -> bool {
        *self.verifiable.get_or_init(|| verity::probe(&self.temporary()).is_ok())
    }

    /// Whether it does.
    #[must_use]
    pub fn verifies_files(&self) -> bool {
        self.verified.load(Ordering::Relaxed)
    }

    /// Has the kernel verify what was unpacked, where that is wanted.
    pub(crate) fn protect(&self, pending: &Pending, recipe: &Pending) -> Result<()> {
        if !self.verifies_files() {
            return Ok(());
        }
        verity::protect(pending.open()?.as_fd(), recipe.path())
    }

    /// What is wrong with the digests that the kernel has of the files of a layer.
    pub(crate) fn wrong_digest(&self, diff: &DiffId, chain: &ChainId) -> Result<Option<String>> {
        verity::wrong(&self.path(chain), &self.recipes.path(diff))
    }

    /// Files that are kept for layers to share and that no layer has any more, by their names: a removal that
    /// goes on has not come to them yet, or a crash has left them.
    pub fn unused_files(&self) -> Result<Vec<OsString>> {
        self.files.unused()
    }

    /// Removes them; how many there were.
    pub fn sweep_files(&self) -> Result<u64> {
        self.files.sweep()
    }

    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.files
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

    /// A new empty folder to unpack into.
    pub(crate) fn begin(&self) -> Result<Pending> {
        let path = self.temporary().join(insula_base::random_hex(8));
        // The root folder of a layer whose archive has no entry for it.
        make_folder(&path, 0o755)?;
        Ok(Pending { path, shares: Some((self.files.clone(), Keys::default())) })
    }

    /// Makes an unpacked layer appear under its name. The folders that it only implied take owner,
    /// mode and time from the layers below, whose folders are given, lowest first.
    pub(crate) fn complete(
        &self,
        pending: Pending,
        chain: &ChainId,
        implied: &[PathBuf],
        lower: &[PathBuf],
    ) -> Result<()> {
        self.adopt(&pending, implied, lower)?;
        let path = self.path(chain);
        fs::rename(&pending.path, &path).map_err(|e| Error::io("rename", &path, e))
    }

    /// Has folders that the layer only implied take owner, mode and time from the layers below.
    pub(crate) fn adopt(&self, pending: &Pending, implied: &[PathBuf], lower: &[PathBuf]) -> Result<()> {
        if implied.is_empty() { Ok(()) } else { implied::adopt(&pending.path, implied, lower) }
    }

    /// A copy of a complete layer, for another place in a stack: its files are shared.
    pub(crate) fn copy(&self, chain: &ChainId) -> Result<Pending> {
        let from = self.path(chain);
        let open = File::open(&from).map_err(|e| Error::io("open", &from, e))?;
        let pending = self.begin()?;
        tree::share(open.as_fd(), pending.open()?.as_fd()).map_err(|e| Error::io("share", &from, e))?;
        Ok(pending)
    }

    pub(crate) fn remove(&self, chain: &ChainId) -> Result<()> {
        discard(&self.path(chain), &self.temporary())
    }

    /// Removes one that a crash has left, which may share files; the sweep is owed then.
    pub(crate) fn remove_lost(&self, chain: &ChainId) -> Result<()> {
        self.remove_owing(&self.path(chain))
    }

    /// A new empty folder for the recipe of a layer.
    pub(crate) fn begin_recipe(&self) -> Result<Pending> {
        let path = self.temporary().join(insula_base::random_hex(8));
        make_folder(&path, 0o700)?;
        Ok(Pending { path, shares: None })
    }

    /// Makes a recipe appear under its name.
    pub(crate) fn complete_recipe(&self, pending: Pending, diff: &DiffId) -> Result<()> {
        self.recipes.complete(&pending.path, diff)
    }

    pub(crate) fn recipes(&self) -> &Recipes {
        &self.recipes
    }

    /// Takes a layer away; the folder that is left to be removed, if it was there.
    pub(crate) fn set_aside(&self, chain: &ChainId) -> Result<Option<PathBuf>> {
        crate::root::set_aside(&self.path(chain), &self.temporary())
    }

    /// The same for a recipe.
    pub(crate) fn set_recipe_aside(&self, diff: &DiffId) -> Result<Option<PathBuf>> {
        crate::root::set_aside(&self.recipes.path(diff), &self.temporary())
    }

    /// Removes a recipe, after all layers that it is for, and what only they shared.
    pub(crate) fn remove_recipe(&self, diff: &DiffId) -> Result<()> {
        let Some(dying) = self.set_recipe_aside(diff)? else { return Ok(()) };
        // With its folder goes what says that there may be files of nobody.
        self.files.release(&Keys::read(&dying)?)?;
        remove_any(&dying)
    }

    /// The archive of a layer without compression, made again from its files.
    pub(crate) fn replay(&self, diff: &DiffId, chain: &ChainId) -> Result<Replay> {
        self.recipes.replay(diff, &self.path(chain))
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

/// A layer that is not complete. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Pending {
    path: PathBuf,
    /// What a layer shares with others; a recipe has none.
    shares: Option<(Arc<Files>, Keys)>,
}

impl Pending {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn open(&self) -> Result<File> {
        File::open(&self.path).map_err(|e| Error::io("open", &self.path, e))
    }

    /// For who unpacks into it, if files are shared.
    pub(crate) fn sharing(&self) -> Option<Sharing> {
        self.shares.as_ref().and_then(|(files, keys)| files.begin(keys))
    }

    /// What it shares so far.
    pub(crate) fn keys(&self) -> Keys {
        self.shares.as_ref().map(|(_, keys)| keys.clone()).unwrap_or_default()
    }

    fn remove(&self) -> Result<()> {
        // Completed, it is elsewhere and there is nothing to remove.
        if !self.path.exists() {
            return Ok(());
        }
        if let Some((files, keys)) = &self.shares {
            // The folder goes last: as long as it is there, the next open looks for files of nobody.
            empty(&self.path)?;
            files.release(&keys.all())?;
        }
        remove_any(&self.path)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // What cannot be removed now is swept when the store is opened.
        if let Err(error) = self.remove() {
            tracing::warn!(path = %self.path.display(), error = &error as &dyn std::error::Error, "layer not swept");
        }
    }
}
