//! Blobs on their way out. What is made again is hashed on the way, and its end is held back until it is what
//! its digest says: nobody takes a damaged layer for a whole one, whoever reads it.

use std::io::{self, Read as _};
use std::time::Duration;

use bytes::Bytes;
use insula_base::Digest;
use insula_store::BlobReader;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use crate::images::Images;
use crate::images::registry::fill;
use crate::{Error, Result, blocking};

/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;
/// Pieces on their way to the network.
const WAITING: usize = 2;
/// Blobs that are read at once; each holds a thread.
static STREAMS: Semaphore = Semaphore::const_new(16);
/// Who takes nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// A blob that can be read.
#[derive(Debug)]
pub struct SharedBlob {
    reader: BlobReader,
    digest: Digest,
}

impl Images {
    /// A blob by its digest, whatever image it is of.
    pub async fn shared_blob(&self, digest: &Digest) -> Result<SharedBlob> {
        let (store, digest) = (self.store.clone(), digest.clone());
        blocking(move || {
            let reader = match store.images().open_blob(&digest) {
                Err(insula_store::Error::NoContent(_) | insula_store::Error::NoRecipe(_)) => {
                    return Err(Error::NotFound(format!("blob {digest} is not known")));
                }
                opened => opened?,
            };
            Ok(SharedBlob { reader, digest })
        })
        .await
    }
}

impl SharedBlob {
    /// Bytes of the whole.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.reader.size()
    }

    /// Its bytes from `first` on, `length` of them. An error ends them early.
    pub async fn read(self, first: u64, length: u64) -> Result<mpsc::Receiver<io::Result<Bytes>>> {
        // It is never closed.
        let turn = STREAMS.acquire().await.map_err(|error| Error::Internal(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let send = |item| {
                let sent = runtime.block_on(sender.send_timeout(item, PATIENCE));
                sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
            };
            if let Err(error) = self.copy(first, length, send) {
                // Who has gone does not care.
                let _ = sender.try_send(Err(error));
            }
        });
        Ok(receiver)
    }

    fn copy(
        mut self,
        first: u64,
        length: u64,
        send: impl Fn(io::Result<Bytes>) -> io::Result<()>,
    ) -> io::Result<()> {
        let size = self.size();
        if self.reader.is_kept() {
            self.reader.skip(first)?;
            return copy_kept(&mut self.reader.take(length), send);
        }
        let (mut hash, mut at, end) = (Sha256::new(), 0, first + length);
        let mut piece = vec![0; PIECE];
        // To the blob's own end only if that is wanted: what ends before is verified by who asked for a part.
        let wanted = if end == size { u64::MAX } else { end };
        let mut last = Bytes::new();
        while at < wanted {
            // Files of a layer come one at a time, and many are small.
            let count = fill(&mut self.reader, &mut piece)?;
            if count == 0 {
                break;
            }
            hash.update(&piece[..count]);
            let from = first.saturating_sub(at).min(count as u64);
            let to = end.saturating_sub(at).min(count as u64);
            at += count as u64;
            if from < to {
                let next = Bytes::copy_from_slice(&piece[from as usize..to as usize]);
                let before = std::mem::replace(&mut last, next);
                if !before.is_empty() {
                    send(Ok(before))?;
                }
            }
        }
        if end == size && Digest::from_sha256(&hash.finalize().into()) != self.digest {
            let digest = &self.digest;
            tracing::warn!(%digest, "a layer is damaged: see `insula system check`");
            return Err(io::Error::other(format!("the layer {digest} is damaged")));
        }
        send(Ok(last))
    }
}

/// A blob as it came was verified when it did; who reads it verifies it again.
fn copy_kept(
    reader: &mut impl io::Read,
    send: impl Fn(io::Result<Bytes>) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let mut piece = vec![0; PIECE];
        let count = reader.read(&mut piece)?;
        if count == 0 {
            return Ok(());
        }
        piece.truncate(count);
        send(Ok(Bytes::from(piece)))?;
    }
}
