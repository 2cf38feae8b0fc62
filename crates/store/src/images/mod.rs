//! Images: names, a configuration, layers.

mod artifact;
mod attest;
mod blobs;
mod builtin;
mod commit;
mod commit_upper;
mod contents;
mod gather;
mod import;
mod index;
mod ingest;
mod lease;
mod recover;
mod remove;
mod restore;
mod rows;
pub(crate) mod save;
mod snapshot;
mod stack;
mod stage;
mod standing;
mod verify;

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use insula_base::{DiffId, Digest};
use insula_spec::image::{DOCUMENT_MAX, ImageConfig, RunConfig};
use insula_spec::reference::Reference;

pub use self::artifact::IngestedBlob;
pub use self::attest::{Attested, Described, Statement};
pub use self::blobs::{BlobReader, LayerBlob};
pub use self::commit_upper::{CommitOptions, StagedDiff};
pub use self::ingest::{Ingested, IngestedLayer, LayerPlace};
pub use self::lease::{ImageLease, LayerLease, ManifestLease};
pub use self::save::IndexParts;
pub use self::snapshot::{Composed, Scratch, StagedLayer};
pub use self::stack::Difference;
pub use self::standing::{Standing, StandingIndex};
pub use self::verify::Part;
use crate::{Content, Error, Layer, Layers, Result, State, Transaction};

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
    /// Digest of the manifest, if the image came with one.
    pub manifest: Option<Digest>,
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
            ImageKind::Stored | ImageKind::Artifact { .. } => &[],
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
    /// No image, but something that registries keep as they keep images: it has blobs and no layers, and its id
    /// is the digest of its manifest. `kind` is its type.
    Artifact { kind: String },
}

/// What happens while an image is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of a layer's archive taken in so far, of how many if that is known. `id` is the first
    /// twelve signs of the name that the archive has for it.
    Layer { id: String, bytes: u64, total: Option<u64> },
    /// The layer was here already.
    LayerExists { id: String },
}

/// An image that a load brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub id: Digest,
    /// The names that it was given. Empty: `docker load` then prints the id.
    pub references: Vec<Reference>,
}

/// What becomes of a name that an image of an archive and another image here have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// The archive's image gets it.
    Move,
    /// It stays where it is.
    Stay,
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
    /// Held while layers or blobs come and go, so that none is removed between its last check and
    /// the row that holds it.
    changes: Mutex<()>,
    leases: Arc<lease::Leases<DiffId>>,
    /// Blobs of artifacts that leave.
    kept: Arc<lease::Leases<Digest>>,
    /// Manifests of what is brought one after the other, and gets its name at last.
    coming: Arc<lease::Leases<Digest>>,
    /// Threads that flush what was loaded, or remove what was let go of.
    syncing: Mutex<Vec<JoinHandle<()>>>,
    /// What tells this run of the machine from the one before a power loss.
    boot: String,
}

/// What all names of an image stand for, if that is the same; of one that has tags what those stand for.
fn the_one_document(tx: &Transaction<'_>, id: &Digest) -> Result<Option<Digest>> {
    let mut names = rows::names_of(tx.sql(), id)?;
    if names.iter().any(|name| name.tag().is_some()) {
        names.retain(|name| name.tag().is_some());
    }
    let documents = names.iter().map(|name| rows::document_of(tx.sql(), name));
    let mut documents = documents.collect::<Result<HashSet<_>>>()?.into_iter();
    Ok(documents.next().flatten().filter(|_| documents.next().is_none()))
}

impl Images {
    pub(crate) fn open(
        root: &Path,
        state: &Arc<State>,
        content: &Arc<Content>,
        layers: &Arc<Layers>,
    ) -> Result<Self> {
        let images = Self {
            root: root.to_owned(),
            state: state.clone(),
            content: content.clone(),
            layers: layers.clone(),
            changes: Mutex::new(()),
            leases: Arc::default(),
            kept: Arc::default(),
            coming: Arc::default(),
            syncing: Mutex::new(Vec::new()),
            boot: recover::boot_id()?,
        };
        images.recover()?;
        Ok(images)
    }

    /// Loads every image of an archive: `docker save`'s or an OCI layout, plain or compressed with
    /// gzip or zstd. Either all of its images and artifacts appear or none. Names that other images had move.
    pub fn load(&self, input: impl Read + Send, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Loaded>> {
        self.load_named(input, Names::Move, progress)
    }

    /// As [`Images::load`], saying what becomes of names that other images have.
    pub fn load_named(
        &self,
        input: impl Read + Send,
        names: Names,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Loaded>> {
        let mut gathered = gather::gather(input, self, progress)?;
        let mut found = contents::read(&gathered)?;
        if names == Names::Stay {
            found.leave_names(&self.names()?);
        }
        self.take_blobs(&mut found, &mut gathered)?;
        let mut loaded = self.commit(found, gathered)?;
        // Parts of an index have no names of their own.
        loaded.retain(|one| {
            one.references.is_empty() || one.references.iter().any(|name| name.tag().is_some())
        });
        self.sweep()?;
        Ok(loaded)
    }

    /// Makes an image of one layer from a root file system's tar, plain or compressed.
    pub fn import(
        &self,
        input: impl Read + Send,
        options: ImportOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Digest> {
        let (found, gathered) = import::import(input, self, options, progress)?;
        let id = found.id.clone();
        self.commit(found, gathered)?;
        Ok(id)
    }

    /// The image by name, complete id, or unique beginning of an id, with or without `sha256:`.
    /// Names win over ids.
    pub fn resolve(&self, text: &str) -> Result<Image> {
        if let Some(image) = builtin::resolve(text, &self.root) {
            return Ok(image);
        }
        let known = self.state.transaction(|tx| {
            let (row, _) = find(tx, text)?;
            Known::read(tx, row)
        })?;
        self.image(known)
    }

    /// The id of the image that a text means, as [`Images::resolve`] finds it, though its documents may be damaged.
    pub fn id_of(&self, text: &str) -> Result<Digest> {
        match builtin::resolve(text, &self.root) {
            Some(image) => Ok(image.id),
            None => self.state.transaction(|tx| Ok(find(tx, text)?.0.id)),
        }
    }

    /// Every image, the built-in ones last, others newest first. One whose configuration is damaged is left
    /// out: it must not take the others with it.
    pub fn list(&self) -> Result<Vec<Image>> {
        let all = self.state.transaction(|tx| {
            let rows = rows::images(tx.sql())?;
            rows.into_iter().map(|row| Known::read(tx, row)).collect::<Result<Vec<_>>>()
        })?;
        let mut images = Vec::with_capacity(all.len());
        for known in all {
            let id = known.row.id.clone();
            match self.image(known) {
                Ok(image) => images.push(image),
                // It was removed meanwhile.
                Err(Error::NoImage(_)) => {}
                Err(error @ (Error::NoContent(_) | Error::Document(_) | Error::Limit { .. })) => {
                    let error = insula_base::chain(&error);
                    tracing::warn!(image = %id, error, "an image is left out: see `insula system check`");
                }
                Err(error) => return Err(error),
            }
        }
        let created = |image: &Image| {
            image.config.created.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok())
        };
        images.sort_by_cached_key(|image| std::cmp::Reverse(created(image)));
        images.extend(builtin::all(&self.root));
        Ok(images)
    }

    /// Every name of a stored image, sorted, and what it names.
    pub fn names(&self) -> Result<Vec<(Reference, Digest)>> {
        self.state.transaction(|tx| rows::all_names(tx.sql()))
    }

    /// Gives an image another name, taking it away from the image that had it; returns that one's
    /// id if it was another. Built-in images and their names have no part in this.
    pub fn tag(&self, source: &str, target: &Reference) -> Result<Option<Digest>> {
        if builtin::is_builtin(target) {
            return Err(Error::Builtin(target.familiar()));
        }
        if builtin::resolve(source, &self.root).is_some() {
            return Err(Error::Builtin(source.to_owned()));
        }
        let _changes = self.changes();
        let (before, dropped) = self.state.transaction(|tx| {
            let (row, by) = find(tx, source)?;
            let documents = rows::documents(tx.sql())?;
            let document = match by {
                FoundBy::Name(name) => rows::document_of(tx.sql(), &name)?,
                FoundBy::Id => the_one_document(tx, &row.id)?,
            };
            let before = rows::named(tx.sql(), target)?.filter(|id| *id != row.id);
            rows::set_name(tx.sql(), target, &row.id, document.as_ref())?;
            Ok::<_, Error>((before, self.dropped(tx, &documents)?))
        })?;
        self.drop_documents(&dropped);
        Ok(before)
    }

    /// Notes that `owner` (a container) needs the image's layers, until it is released; within the
    /// transaction that writes the owner's record. Built-in images need no note.
    pub fn use_image(&self, tx: &Transaction<'_>, id: &Digest, owner: &str) -> Result<()> {
        if builtin::is_builtin_id(id) {
            return Ok(());
        }
        match rows::image(tx.sql(), id)? {
            Some(_) => rows::add_use(tx.sql(), id, owner),
            None => Err(Error::NoImage(id.to_string())),
        }
    }

    /// Which owners use the image.
    pub fn users(&self, id: &Digest) -> Result<Vec<String>> {
        self.state.transaction(|tx| rows::users(tx.sql(), id))
    }

    /// Waits until everything loaded so far was flushed to the disk, and everything removed is gone from it.
    pub fn wait_synced(&self) {
        let threads = std::mem::take(&mut *self.syncing());
        for thread in threads {
            // A thread that panicked left its images marked; the next open sees to them.
            let _ = thread.join();
        }
    }

    /// What is in its documents. One that was removed since its rows were read is none.
    fn image(&self, known: Known) -> Result<Image> {
        let id = known.row.id.clone();
        match self.described(known) {
            Err(Error::NoContent(_))
                if self.state.transaction(|tx| rows::image(tx.sql(), &id))?.is_none() =>
            {
                Err(Error::NoImage(id.to_string()))
            }
            described => described,
        }
    }

    fn described(&self, known: Known) -> Result<Image> {
        let Known { row, references, layers } = known;
        if row.manifest.as_ref() == Some(&row.id) {
            return self.artifact(&row, references);
        }
        let config = ImageConfig::parse(&self.content.read(&row.id, DOCUMENT_MAX as u64)?)?;
        let layers = layers
            .into_iter()
            .map(|layer| Layer {
                path: self.layers.path(&layer.chain),
                diff_id: layer.diff,
                chain_id: layer.chain,
                size: layer.size,
            })
            .collect();
        Ok(Image {
            id: row.id,
            kind: ImageKind::Stored,
            references,
            config,
            layers,
            size: row.size,
            manifest: row.manifest,
        })
    }

    fn changes(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn syncing(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.syncing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        self.wait_synced();
    }
}

/// What the state has of an image at one moment.
struct Known {
    row: rows::ImageRow,
    references: Vec<Reference>,
    layers: Vec<rows::LayerRow>,
}

impl Known {
    fn read(tx: &Transaction<'_>, row: rows::ImageRow) -> Result<Self> {
        let references = rows::names_of(tx.sql(), &row.id)?;
        let layers = rows::layers_of(tx.sql(), &row.id)?;
        Ok(Self { row, references, layers })
    }
}

/// What a text found an image by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FoundBy {
    Name(Reference),
    Id,
}

/// The stored image that a text means, and whether the text is a name of it.
fn find(tx: &Transaction<'_>, text: &str) -> Result<(rows::ImageRow, FoundBy)> {
    let missing = || Error::NoImage(text.chars().take(256).collect());
    let name = Reference::parse(text);
    if let Ok(name) = name.clone()
        && let Some(id) = rows::named(tx.sql(), &name)?
    {
        let row = rows::image(tx.sql(), &id)?.ok_or_else(missing)?;
        return Ok((row, FoundBy::Name(name)));
    }
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let hexadecimal = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if digits.is_empty() || digits.len() > 64 || !hexadecimal {
        return Err(name.err().map_or_else(missing, Error::from));
    }
    let mut rows = rows::images_beginning(tx.sql(), digits)?;
    match (rows.pop(), rows.pop()) {
        (Some(row), None) => Ok((row, FoundBy::Id)),
        (Some(_), Some(_)) => Err(Error::AmbiguousImage(text.to_owned())),
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod tests;
