//! The bytes of layers, for pushing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use insula_base::{DiffId, Digest};
use insula_registry::Content;
use insula_spec::image::{Descriptor, media};
use insula_store::Store;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::gzip::gzip;
use crate::{Error, Result};

/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;
/// Pieces on their way to the network.
const WAITING: usize = 2;

/// A blob of the store.
#[derive(Debug)]
pub(super) struct StoredBlob {
    store: Arc<Store>,
    digest: Digest,
}

impl StoredBlob {
    pub(super) fn new(store: &Arc<Store>, digest: &Digest) -> Self {
        Self { store: store.clone(), digest: digest.clone() }
    }
}

impl Content for StoredBlob {
    fn open(&self, offset: u64) -> mpsc::Receiver<io::Result<Bytes>> {
        let (store, digest) = (self.store.clone(), self.digest.clone());
        sent(move || {
            let mut reader = store.images().open_blob(&digest).map_err(io::Error::other)?;
            reader.skip(offset)?;
            Ok(reader)
        })
    }
}

/// A compressed layer in a file without a name, which is gone with its last user, however that ends.
#[derive(Debug)]
pub(crate) struct Compressed(Arc<File>);

impl Compressed {
    /// All of it, from the beginning.
    pub(crate) fn reader(&self) -> impl Read + use<> {
        At { file: self.0.clone(), offset: 0 }
    }
}

impl Content for Compressed {
    fn open(&self, offset: u64) -> mpsc::Receiver<io::Result<Bytes>> {
        let file = self.0.clone();
        sent(move || Ok(At { file, offset }))
    }
}

/// A file from an offset on.
struct At {
    file: Arc<File>,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(into, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// What a reader has, by a thread that may block.
fn sent<R: Read>(open: impl FnOnce() -> io::Result<R> + Send + 'static) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let read = open().and_then(|mut reader| {
            loop {
                let mut piece = vec![0; PIECE];
                let count = fill(&mut reader, &mut piece)?;
                piece.truncate(count);
                if count == 0 || sender.blocking_send(Ok(Bytes::from(piece))).is_err() {
                    return Ok(());
                }
            }
        });
        if let Err(error) = read {
            // Who gave up does not care.
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}

/// Reads until `into` is full or there is no more.
pub(crate) fn fill(reader: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match reader.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Compresses the archive of a layer, always to the same bytes, and verifies that it is what it was.
/// `read` is told how many of how many bytes are done.
pub(crate) fn compress(
    store: &Store,
    diff: &DiffId,
    read: impl Fn(u64, u64),
) -> Result<(Descriptor, Compressed)> {
    let file = unnamed(store)?;
    let path = store.root();
    let reader = store.images().open_layer(diff)?;
    let mut plain = Verified { total: reader.size(), reader, read, done: 0, hash: Sha256::new() };
    let mut hashed = Hashed::new(&file);
    gzip(&mut plain, &mut hashed).map_err(|e| Error::io("compress a layer below", path, e))?;
    let found = Digest::from_sha256(&plain.hash.finalize().into());
    if found != diff.0 {
        let what = format!("layer {diff} as it is on the disk");
        return Err(insula_store::Error::Mismatch { what, expected: diff.0.clone(), found }.into());
    }
    let blob = Descriptor {
        media_type: media::LAYER_GZIP.to_owned(),
        digest: Digest::from_sha256(&hashed.hash.finalize().into()),
        size: hashed.size,
        annotations: Default::default(),
        platform: None,
    };
    Ok((blob, Compressed(Arc::new(file))))
}

/// A layer's archive on its way, hashed and counted.
struct Verified<R, T> {
    reader: R,
    read: T,
    done: u64,
    total: u64,
    hash: Sha256,
}

impl<R: Read, T: Fn(u64, u64)> Read for Verified<R, T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        self.hash.update(&into[..count]);
        self.done += count as u64;
        (self.read)(self.done, self.total);
        Ok(count)
    }
}

/// A file below the root that is gone with its last user, however that ends.
pub(crate) fn unnamed(store: &Store) -> Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(store.root(), flags, Mode::RUSR | Mode::WUSR);
    Ok(file.map_err(|error| Error::io("open a file without a name below", store.root(), error))?.into())
}

struct Hashed<'a> {
    file: &'a File,
    hash: Sha256,
    size: u64,
}

impl<'a> Hashed<'a> {
    fn new(file: &'a File) -> Self {
        Self { file, hash: Sha256::new(), size: 0 }
    }
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
