//! One layer's archive, from a stream into a folder that is not yet in its place.
//!
//! ```text
//! the archive's member ─┬─> hash ──────────────────────────────> digest of the blob
//!                       └─> [decompress ─┬─> hash] ─────────────> diff id
//!                                        └─> unpack ────────────> folder
//! ```

use std::io::{self, BufRead};
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;

use bytes::Bytes;
use insula_base::{DiffId, Digest};

use crate::layers::{Limits, Pending, Unpacked, Whiteouts, unpack};
use crate::stream::{Chunks, Compression, Hashing, Sender, channel, pump};
use crate::{Layers, Result};

/// A layer that was unpacked beside its place.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) pending: Pending,
    /// Digest of the archive as it came.
    pub(super) blob: Digest,
    /// Digest of the archive without compression.
    pub(super) diff: DiffId,
    pub(super) unpacked: Unpacked,
}

/// Unpacks what `next` returns until there is no more.
pub(super) fn stage(
    layers: &Layers,
    compression: Compression,
    next: &mut dyn FnMut() -> Result<Option<Bytes>>,
) -> Result<Staged> {
    let pending = layers.begin()?;
    let root: OwnedFd = pending.open()?.into();
    thread::scope(|scope| {
        let hashing = Hashing::start(scope);
        let (sender, chunks) = channel();
        let worker = scope.spawn(move || match compression {
            Compression::None => unpack_plain(chunks, &root).map(|unpacked| (unpacked, None)),
            _ => unpack_compressed(chunks, &root).map(|(unpacked, diff)| (unpacked, Some(diff))),
        });
        let fed = feed(&hashing, sender, next);
        let outcome = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // If the stream failed, that is the reason for whatever the worker says.
        fed?;
        let (unpacked, diff) = outcome?;
        let blob = hashing.finish();
        let diff = DiffId(diff.unwrap_or_else(|| blob.clone()));
        Ok(Staged { pending, blob, diff, unpacked })
    })
}

/// Hands the stream on, to its end even if the worker gave up: what follows it is wanted.
fn feed(
    hashing: &Hashing<'_>,
    sender: Sender,
    next: &mut dyn FnMut() -> Result<Option<Bytes>>,
) -> Result<()> {
    let mut listening = true;
    loop {
        match next() {
            Ok(Some(chunk)) => {
                hashing.update(&chunk);
                listening = listening && sender.send(Ok(chunk)).is_ok();
            }
            Ok(None) => return Ok(()),
            Err(error) => {
                // The worker must not take this for the end; if it ended already it does not care.
                let _ = sender.send(Err(io::Error::other("the archive ended early")));
                return Err(error);
            }
        }
    }
}

fn unpack_plain(source: impl BufRead, root: &OwnedFd) -> Result<Unpacked> {
    unpack(source, root.as_fd(), &Limits::default(), Whiteouts::Overlay)
}

fn unpack_compressed(chunks: Chunks, root: &OwnedFd) -> Result<(Unpacked, Digest)> {
    thread::scope(|scope| {
        let hashing = Hashing::start(scope);
        let (sender, plain) = channel();
        let decoding = scope.spawn(move || {
            pump(chunks, &sender, Some(&hashing));
            drop(sender);
            hashing.finish()
        });
        let unpacked = unpack_plain(plain, root);
        let digest = decoding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((unpacked?, digest))
    })
}

/// The compression of what begins with `head`, if it can be a layer's archive.
pub(super) fn layer_compression(head: &[u8]) -> Option<Compression> {
    match Compression::of(head) {
        Compression::None if crate::archive::looks_like_tar(head) => Some(Compression::None),
        Compression::None => None,
        compressed => Some(compressed),
    }
}
