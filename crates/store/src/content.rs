//! Blobs by digest: manifests, configurations, and layers that came compressed. A blob is written to `ingest` and appears under
//! its name complete. It is flushed with the layers of its image and guarded as they are (see
//! `images::recover`): an fsync of its own would wait for all that was just unpacked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use insula_base::{Digest, Durability};
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// The blobs below one root.
#[derive(Debug)]
pub struct Content {
    blobs: PathBuf,
    ingest: PathBuf,
}

impl Content {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        crate::root::make_private(folder)?;
        let content = Self { blobs: folder.join("blobs/sha256"), ingest: folder.join("ingest") };
        for path in [&content.blobs, &content.ingest] {
            fs::create_dir_all(path).map_err(|e| Error::io("mkdir", path, e))?;
        }
        crate::root::empty(&content.ingest)?;
        Ok(content)
    }

    /// Where a blob is, if it is stored.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// Whether a blob is stored.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// A document; blobs longer than `max` bytes are an error.
    pub fn read(&self, digest: &Digest, max: u64) -> Result<Vec<u8>> {
        let (path, file) = (self.path(digest), self.open_blob(digest)?);
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", &path, e))?;
        if bytes.len() as u64 > max {
            return Err(Error::Limit { what: format!("content {digest}"), limit: max });
        }
        Ok(bytes)
    }

    /// Stores a document, also in the place of one that is damaged, and returns its digest.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = digest(bytes);
        let path = self.path(&digest);
        let whole = self.read(&digest, bytes.len() as u64).is_ok_and(|here| here == bytes);
        if !whole {
            let incoming = self.ingest.join(insula_base::random_hex(8));
            insula_base::replace(&incoming, bytes, 0o600, Durability::Process)
                .map_err(|e| Error::io("write", &incoming, e))?;
            fs::rename(&incoming, &path).map_err(|e| Error::io("rename", &path, e))?;
        }
        Ok(digest)
    }

    /// A blob that comes as a stream.
    pub(crate) fn begin(&self) -> Result<Incoming> {
        let path = self.ingest.join(insula_base::random_hex(8));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        Ok(Incoming { path, file })
    }

    /// Makes a blob appear under its digest, which the caller has verified.
    pub(crate) fn complete(&self, incoming: Incoming, digest: &Digest) -> Result<()> {
        let path = self.path(digest);
        if path.exists() {
            return Ok(());
        }
        fs::rename(&incoming.path, &path).map_err(|e| Error::io("rename", &path, e))
    }

    /// Opens a blob.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.path(digest);
        File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NoContent(digest.clone()),
            _ => Error::io("open", &path, e),
        })
    }

    /// Removes a blob, if it is there.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<()> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("unlink", &path, e)),
            _ => Ok(()),
        }
    }

    /// Takes a blob away; the file that is left to be removed, if it was there.
    pub(crate) fn set_aside(&self, digest: &Digest) -> Result<Option<PathBuf>> {
        crate::root::set_aside(&self.path(digest), &self.ingest)
    }

    /// Every stored blob.
    pub(crate) fn all(&self) -> Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.blobs).map_err(|e| Error::io("readdir", &self.blobs, e))? {
            let name = entry.map_err(|e| Error::io("readdir", &self.blobs, e))?.file_name();
            digests.extend(name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok()));
        }
        Ok(digests)
    }
}

/// A blob that is not complete. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Incoming {
    path: PathBuf,
    file: File,
}

impl Incoming {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Completed, it is elsewhere; what cannot be removed is swept when the store is opened.
        let _ = fs::remove_file(&self.path);
    }
}

/// The digest of bytes at hand.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}
