//! What is pushed here. Blobs wait in files without names, verified, until the manifest that needs them comes:
//! then they are taken in as those of a pull are, and the image appears in one step. What no manifest asks for is
//! gone after an hour, or with the daemon. Manifests that come by their digest alone are for an index, and for as long
//! nobody prunes them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use insula_base::{DiffId, Digest};
use insula_registry::{Document, DocumentKind, Wanted};
use insula_spec::image::{DOCUMENT_MAX, Descriptor, ImageConfig, Index, Manifest};
use insula_spec::reference::Reference;
use insula_store::{Images as Store, Ingested, IngestedLayer, ManifestLease};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;

use super::SharedManifest;
use super::documents::shared;
use crate::images::Images;
use crate::images::registry::unnamed;
use crate::{Error, Result, blocking};

/// Uploads that are under way or wait for their manifest.
const UPLOADS_MAX: usize = 512;
/// Bytes of one blob.
const BLOB_MAX: u64 = 64 << 30;
/// How long something may wait that nobody touches.
const PATIENCE: Duration = Duration::from_secs(3600);
const PIECE: usize = 256 << 10;
/// Indexes within indexes.
const DEPTH_MAX: usize = 4;
/// Layers that are unpacked at once.
const UNPACKING: usize = 4;

/// Uploads of one engine.
#[derive(Debug, Default)]
pub(crate) struct Uploads(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    under_way: HashMap<String, (Instant, Arc<AsyncMutex<Upload>>)>,
    arrived: HashMap<Digest, (Instant, Arc<Arrived>)>,
    /// Manifests and indexes that wait for an index.
    waiting: HashMap<Digest, (Instant, ManifestLease)>,
}

/// A blob that comes in pieces.
#[derive(Debug)]
struct Upload {
    file: File,
    size: u64,
    hash: Sha256,
}

/// A blob that is here whole.
#[derive(Debug)]
struct Arrived {
    file: File,
    size: u64,
}

impl Uploads {
    fn table(&self) -> MutexGuard<'_, Table> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.under_way.retain(|_, (touched, _)| touched.elapsed() < PATIENCE);
        table.arrived.retain(|_, (touched, _)| touched.elapsed() < PATIENCE);
        table.waiting.retain(|_, (touched, _)| touched.elapsed() < PATIENCE);
        table
    }

    /// Lets go of what waited too long.
    pub(crate) fn settle(&self) {
        drop(self.table());
    }

    fn upload(&self, id: &str) -> Result<Arc<AsyncMutex<Upload>>> {
        match self.table().under_way.get_mut(id) {
            Some((touched, upload)) => {
                *touched = Instant::now();
                Ok(upload.clone())
            }
            None => Err(Error::NotFound(format!("upload {id} is not known"))),
        }
    }

    fn arrived(&self, digest: &Digest) -> Option<Arc<Arrived>> {
        self.table().arrived.get(digest).map(|(_, blob)| blob.clone())
    }
}

impl Images {
    /// Begins an upload; its id.
    pub async fn begin_upload(&self) -> Result<String> {
        let store = self.store.clone();
        let file = blocking(move || unnamed(&store)).await?;
        let id = insula_base::random_hex(16);
        let mut table = self.uploads.table();
        if table.under_way.len() + table.arrived.len() >= UPLOADS_MAX {
            return Err(Error::Unavailable(format!("{UPLOADS_MAX} blobs wait for their manifests already")));
        }
        let upload = Upload { file, size: 0, hash: Sha256::new() };
        table.under_way.insert(id.clone(), (Instant::now(), Arc::new(AsyncMutex::new(upload))));
        Ok(id)
    }

    /// Bytes that are here of an upload.
    pub async fn uploaded(&self, id: &str) -> Result<u64> {
        Ok(self.uploads.upload(id)?.lock().await.size)
    }

    /// Adds to an upload at its end; how many bytes are here now. Two at a time take turns.
    pub async fn append_upload(&self, id: &str, piece: Bytes) -> Result<u64> {
        let upload = self.uploads.upload(id)?;
        let root = self.store.root().to_owned();
        let mut upload = upload.lock_owned().await;
        blocking(move || {
            if upload.size + piece.len() as u64 > BLOB_MAX {
                return Err(Error::InvalidArgument(format!("a blob has more than {BLOB_MAX} bytes")));
            }
            upload.file.write_all(&piece).map_err(|e| Error::io("write a blob below", &root, e))?;
            upload.hash.update(&piece);
            upload.size += piece.len() as u64;
            Ok(upload.size)
        })
        .await
    }

    /// Ends an upload, which has to be what `digest` says.
    pub async fn finish_upload(&self, id: &str, digest: &Digest) -> Result<()> {
        let upload = self.uploads.upload(id)?;
        self.cancel_upload(id)?;
        let mut upload = upload.lock().await;
        let found = Digest::from_sha256(&std::mem::take(&mut upload.hash).finalize().into());
        if found != *digest {
            let expected = digest.clone();
            return Err(insula_store::Error::Mismatch { what: "the blob".to_owned(), expected, found }.into());
        }
        let file = upload.file.try_clone().map_err(|e| Error::io("dup", self.store.root(), e))?;
        let arrived = Arrived { file, size: upload.size };
        self.uploads.table().arrived.insert(digest.clone(), (Instant::now(), Arc::new(arrived)));
        Ok(())
    }

    /// Throws an upload away.
    pub fn cancel_upload(&self, id: &str) -> Result<()> {
        let cancelled = self.uploads.table().under_way.remove(id);
        cancelled.map(drop).ok_or_else(|| Error::NotFound(format!("upload {id} is not known")))
    }

    /// The bytes of a blob that is in the store or was pushed, if there is one.
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        if let Some(blob) = self.uploads.arrived(digest) {
            return Ok(Some(blob.size));
        }
        match self.shared_blob(digest).await {
            Ok(blob) => Ok(Some(blob.size())),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes appear what a manifest or an index stands for, whose blobs or manifests are in the store or were
    /// pushed.
    pub async fn put_manifest(
        &self,
        name: &str,
        reference: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<SharedManifest> {
        let target = target(name, reference)?;
        let document = Document::parse(bytes, media_type, &target.familiar())
            .map_err(|error| Error::InvalidArgument(insula_base::chain(&error)))?;
        if let Some(expected) = target.digest().filter(|expected| **expected != document.digest) {
            let (expected, found) = (expected.clone(), document.digest);
            return Err(
                insula_store::Error::Mismatch { what: "the manifest".to_owned(), expected, found }.into()
            );
        }
        let names = names_of(&target, &document.digest)?;
        let by_digest = target.digest().is_some();
        let lease = by_digest.then(|| self.store.images().keep_manifests(vec![document.digest.clone()]));
        let loaded = match document.kind {
            DocumentKind::Index => {
                let id = self.put_index(&names, document.bytes.clone()).await?;
                let index = Index::parse(&document.bytes).map_err(insula_store::Error::from)?;
                let mut table = self.uploads.table();
                index.manifests.iter().for_each(|entry| drop(table.waiting.remove(&entry.digest)));
                id
            }
            DocumentKind::Manifest => {
                let manifest = Manifest::parse(&document.bytes).map_err(insula_store::Error::from)?;
                let id = match manifest.is_image() {
                    true => self.put_image(&names, &manifest, document.bytes.clone()).await?,
                    false => self.put_artifact(&names, &manifest, document.bytes.clone()).await?,
                };
                let mut table = self.uploads.table();
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    table.arrived.remove(&blob.digest);
                }
                id
            }
        };
        let mut table = self.uploads.table();
        if let Some(lease) = lease.filter(|_| table.waiting.len() < UPLOADS_MAX) {
            table.waiting.insert(document.digest.clone(), (Instant::now(), lease));
        }
        drop(table);
        self.publish("load", &loaded, &target.familiar());
        shared(document.bytes)
    }

    async fn put_image(&self, names: &[Reference], manifest: &Manifest, bytes: Vec<u8>) -> Result<Digest> {
        let config = self.pushed_document(&manifest.config).await?;
        let parsed = ImageConfig::parse(&config).map_err(insula_store::Error::from)?;
        if parsed.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(Error::InvalidArgument(format!(
                "the manifest has {} layers, its configuration {}",
                manifest.layers.len(),
                parsed.rootfs.diff_ids.len()
            )));
        }
        let layers: Vec<_> = manifest.layers.iter().cloned().zip(parsed.rootfs.diff_ids).collect();
        let lease = self.lease(&layers).await?;
        let arrived = self.take_in(layers, lease.layers()).await?;
        let image =
            Ingested { manifest: bytes, index: None, config, references: names.to_vec(), origin: None };
        let store = self.store.clone();
        let loaded = blocking(move || Ok(store.images().commit_ingested(&image, &arrived)?)).await?;
        drop(lease);
        Ok(loaded.id)
    }

    async fn put_artifact(&self, names: &[Reference], manifest: &Manifest, bytes: Vec<u8>) -> Result<Digest> {
        let mut arrived: Vec<(Descriptor, Arc<Arrived>)> = Vec::new();
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            if arrived.iter().any(|(other, _)| other.digest == blob.digest)
                || self.store.content().contains(&blob.digest)
            {
                continue;
            }
            let found = self.uploads.arrived(&blob.digest).ok_or_else(|| unknown(&blob.digest))?;
            arrived.push((blob.clone(), found));
        }
        let (store, names) = (self.store.clone(), names.to_vec());
        let loaded = blocking(move || {
            let images = store.images();
            let mut blobs = Vec::with_capacity(arrived.len());
            for (blob, arrived) in &arrived {
                let mut from = At { blob: arrived, offset: 0 };
                let mut next = || from.piece().map_err(insula_store::Error::Input);
                blobs.push(images.ingest_blob(blob, &mut next)?);
            }
            Ok(images.commit_artifact(&bytes, &names, blobs)?)
        });
        Ok(loaded.await?.id)
    }

    /// All that an index lists has to be here: whoever pulls it gets all of it.
    async fn put_index(&self, names: &[Reference], bytes: Vec<u8>) -> Result<Digest> {
        let (store, names) = (self.store.clone(), names.to_vec());
        blocking(move || {
            let images = store.images();
            // From here on nothing goes but what somebody asks to be removed: then there is no index.
            let listed = Index::parse(&bytes).map_err(insula_store::Error::from)?.manifests;
            let listed = listed.into_iter().filter(|entry| !entry.is_index()).map(|entry| entry.digest);
            let kept = images.keep_manifests(listed.collect());
            let id = meant(images, &bytes, 0)?;
            images.name_document(&names, &bytes, &[], &id, &[kept])?;
            Ok(id)
        })
        .await
    }

    async fn lease(&self, layers: &[(Descriptor, DiffId)]) -> Result<insula_store::LayerLease> {
        let diffs: Vec<_> = layers.iter().map(|(_, diff)| diff.clone()).collect();
        let store = self.store.clone();
        blocking(move || Ok(store.images().lease_layers(&diffs)?)).await
    }

    /// Unpacks the layers that are not here.
    async fn take_in(
        &self,
        layers: Vec<(Descriptor, DiffId)>,
        here: &[DiffId],
    ) -> Result<Vec<Arc<IngestedLayer>>> {
        let mut taking = JoinSet::new();
        let mut taken: Vec<Arc<IngestedLayer>> = Vec::new();
        let mut seen = Vec::new();
        for (blob, diff) in layers {
            // One that is here in another form has to come in this one too: it is pulled by this digest.
            let known = here.contains(&diff) && self.store.images().has_blob(&blob.digest)?;
            if known || seen.contains(&diff) {
                continue;
            }
            seen.push(diff.clone());
            let arrived = self.uploads.arrived(&blob.digest);
            let arrived = arrived.ok_or_else(|| unknown(&blob.digest))?;
            if taking.len() >= UNPACKING
                && let Some(done) = taking.join_next().await
            {
                taken.push(joined(done)?);
            }
            let store = self.store.clone();
            taking.spawn(blocking(move || {
                let mut from = At { blob: &arrived, offset: 0 };
                let mut next = || from.piece().map_err(insula_store::Error::Input);
                Ok(Arc::new(store.images().ingest_layer(&blob, &diff, &mut next)?))
            }));
        }
        while let Some(done) = taking.join_next().await {
            taken.push(joined(done)?);
        }
        Ok(taken)
    }

    async fn pushed_document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let arrived = self.uploads.arrived(&descriptor.digest);
        let (store, digest) = (self.store.clone(), descriptor.digest.clone());
        blocking(move || {
            let Some(arrived) = arrived else {
                return match store.content().read(&digest, DOCUMENT_MAX as u64) {
                    Err(insula_store::Error::NoContent(_)) => Err(unknown(&digest)),
                    read => Ok(read?),
                };
            };
            let mut bytes = Vec::new();
            let from = At { blob: &arrived, offset: 0 };
            let limit = DOCUMENT_MAX as u64;
            from.take(limit + 1).read_to_end(&mut bytes).map_err(insula_store::Error::Input)?;
            if bytes.len() as u64 > limit {
                return Err(Error::InvalidArgument(format!("the configuration has more than {limit} bytes")));
            }
            Ok(bytes)
        })
        .await
    }
}

/// What an index means here, all of which has to be here.
fn meant(images: &Store, index: &[u8], depth: usize) -> Result<Digest> {
    if depth > DEPTH_MAX {
        return Err(Error::InvalidArgument("indexes are nested too deep".to_owned()));
    }
    let index = Index::parse(index).map_err(insula_store::Error::from)?;
    let chosen = Wanted::host().choose(&index.manifests).or_else(|| index.manifests.first());
    let mut meant_here = None;
    for entry in &index.manifests {
        let id = match images.with_manifest(&entry.digest)? {
            Some(id) => id,
            // One that another index lists here, and that has no name of its own.
            None if entry.is_index() => {
                let bytes = images.document(&entry.digest).map_err(|_| unknown(&entry.digest))?;
                meant(images, &bytes, depth + 1)?
            }
            None => return Err(unknown(&entry.digest)),
        };
        if chosen == Some(entry) {
            meant_here = Some(id);
        }
    }
    meant_here.ok_or_else(|| Error::InvalidArgument("the index lists nothing".to_owned()))
}

/// A digest is a name too: what was pushed is pulled by it, whatever else comes under the tag.
fn names_of(target: &Reference, digest: &Digest) -> Result<Vec<Reference>> {
    let by_digest = format!("{}@{digest}", target.name());
    let by_digest = Reference::parse(&by_digest).map_err(insula_store::Error::from)?;
    let tagged = target.digest().is_none().then(|| target.clone());
    Ok(tagged.into_iter().chain([by_digest]).collect())
}

/// A manifest names a blob that was not pushed.
fn unknown(digest: &Digest) -> Error {
    Error::InvalidArgument(format!("blob {digest} is not known: push it first"))
}

fn joined<T>(done: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    done.unwrap_or_else(|error| Err(Error::Internal(format!("a task ended: {error}"))))
}

/// What an image is called here that is pushed under this name.
fn target(name: &str, reference: &str) -> Result<Reference> {
    let text =
        if reference.contains(':') { format!("{name}@{reference}") } else { format!("{name}:{reference}") };
    Ok(Reference::parse(&text).map_err(insula_store::Error::from)?)
}

struct At<'a> {
    blob: &'a Arrived,
    offset: u64,
}

impl At<'_> {
    fn piece(&mut self) -> std::io::Result<Option<Bytes>> {
        let mut piece = vec![0; PIECE];
        let count = self.read(&mut piece)?;
        piece.truncate(count);
        Ok((count > 0).then(|| Bytes::from(piece)))
    }
}

impl Read for At<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.blob.file.read_at(into, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}
