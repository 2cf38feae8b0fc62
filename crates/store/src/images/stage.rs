//! One layer's archive, from a stream into a folder that is not yet in its place.
//!
//! ```text
//! the archive's member ─┬─> hash ──────────────────────────────> digest of the blob
//!                       ├─> [a file, if it is compressed]
//!                       └─> [decompress ─┬─> hash] ─────────────> diff id
//!                                        └─> unpack ─┬──────────> folder
//!                                                    └──────────> recipe
//! ```

use std::io::{self, BufRead};
use std::os::fd::{AsFd as _, OwnedFd};

use bytes::Bytes;
use insula_base::{DiffId, Digest, thread};
use insula_spec::image::media;

use crate::content::Incoming;
use crate::layers::{Limits, Pending, Sharing, Unpacked, unpack_recorded};
use crate::recipe::Recorder;
use crate::stream::{Chunks, Compression, Hashing, Sender, channel, pump};
use crate::{Content, Error, Layers, Result};

/// A layer that was unpacked beside its place.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) pending: Pending,
    /// Digest of the archive as it is kept: as it came, or plain where that cannot be a blob of an image.
    pub(super) blob: Digest,
    /// Digest of the archive without compression.
    pub(super) diff: DiffId,
    pub(super) unpacked: Unpacked,
    /// What makes the archive without compression again; taken by who puts it in its place.
    pub(super) recipe: Option<Pending>,
    /// The archive as it came, if that is not its plain form.
    pub(super) compressed: Option<Compressed>,
}

/// A layer's archive in a form that cannot be made again.
#[derive(Debug)]
pub(super) struct Compressed {
    pub(super) blob: Incoming,
    pub(super) size: u64,
    pub(super) media_type: &'static str,
}

/// What becomes of a stream whose layer could not be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// It is read to the end: more than the layer is in it.
    Read,
    Left,
}

/// Unpacks what `next` returns until there is no more.
pub(super) fn stage(
    layers: &Layers,
    content: &Content,
    compression: Compression,
    rest: Rest,
    next: &mut dyn FnMut() -> Result<Option<Bytes>>,
) -> Result<Staged> {
    let (pending, recipe) = (layers.begin()?, layers.begin_recipe()?);
    let root: OwnedFd = pending.open()?.into();
    let recorder = Recorder::begin(recipe.path(), root.as_fd())?;
    let sharing = pending.sharing();
    let media_type = match compression {
        // What no media type stands for is kept as if it had come plain.
        Compression::None | Compression::Xz | Compression::Bzip2 => None,
        Compression::Gzip => Some(media::LAYER_GZIP),
        Compression::Zstd => Some(media::LAYER_ZSTD),
    };
    let mut compressed = match media_type {
        Some(media_type) => Some(Compressed { blob: content.begin()?, size: 0, media_type }),
        None => None,
    };
    let mut next = || {
        let chunk = next()?;
        if let (Some(chunk), Some(compressed)) = (&chunk, &mut compressed) {
            compressed.blob.write(chunk)?;
            compressed.size += chunk.len() as u64;
        }
        Ok(chunk)
    };
    std::thread::scope(|scope| {
        let hashing = Hashing::start(scope)?;
        let (sender, chunks) = channel();
        let worker = thread::scoped(scope, "unpack", move || match compression {
            Compression::None => {
                unpack_plain(chunks, &root, recorder, sharing).map(|unpacked| (unpacked, None))
            }
            _ => unpack_compressed(chunks, &root, recorder, sharing)
                .map(|(unpacked, diff)| (unpacked, Some(diff))),
        })
        .map_err(Error::Thread)?;
        let fed = feed(&hashing, sender, rest, &mut next);
        let outcome = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // If the stream failed, that is the reason for whatever the worker says.
        fed?;
        let (unpacked, diff) = outcome?;
        let blob = hashing.finish();
        let diff = DiffId(diff.unwrap_or_else(|| blob.clone()));
        let blob = if media_type.is_some() { blob } else { diff.0.clone() };
        pending.keys().write(recipe.path())?;
        layers.protect(&pending, &recipe)?;
        Ok((blob, diff, unpacked))
    })
    .map(|(blob, diff, unpacked)| Staged {
        pending,
        blob,
        diff,
        unpacked,
        recipe: Some(recipe),
        compressed,
    })
}

/// Hands the stream on, to its end even if the worker gave up, when what follows is wanted.
fn feed(
    hashing: &Hashing<'_>,
    sender: Sender,
    rest: Rest,
    next: &mut dyn FnMut() -> Result<Option<Bytes>>,
) -> Result<()> {
    let mut listening = true;
    loop {
        match next() {
            Ok(Some(chunk)) => {
                hashing.update(&chunk);
                listening = listening && sender.send(Ok(chunk)).is_ok();
                if !listening && rest == Rest::Left {
                    return Ok(());
                }
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

fn unpack_plain(
    source: impl BufRead,
    root: &OwnedFd,
    recorder: Recorder,
    sharing: Option<Sharing>,
) -> Result<Unpacked> {
    unpack_recorded(source, root.as_fd(), &Limits::default(), recorder, sharing).map(|(unpacked, _)| unpacked)
}

fn unpack_compressed(
    chunks: Chunks,
    root: &OwnedFd,
    recorder: Recorder,
    sharing: Option<Sharing>,
) -> Result<(Unpacked, Digest)> {
    std::thread::scope(|scope| {
        let hashing = Hashing::start(scope)?;
        let (sender, plain) = channel();
        let decoding = thread::scoped(scope, "decompress", move || {
            pump(chunks, &sender, Some(&hashing));
            drop(sender);
            hashing.finish()
        })
        .map_err(Error::Thread)?;
        let unpacked = unpack_plain(plain, root, recorder, sharing);
        let digest = decoding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((unpacked?, digest))
    })
}

/// The compression of what begins with `head`, if it can be a layer's archive and a blob.
pub(super) fn layer_compression(head: &[u8]) -> Option<Compression> {
    archive_compression(head)
        .filter(|compression| !matches!(compression, Compression::Xz | Compression::Bzip2))
}

/// The same where it need not be a blob: a member of Docker's own archives, which is named as one likes.
pub(super) fn archive_compression(head: &[u8]) -> Option<Compression> {
    match Compression::of(head) {
        Compression::None if !crate::archive::looks_like_tar(head) => None,
        compression => Some(compression),
    }
}
