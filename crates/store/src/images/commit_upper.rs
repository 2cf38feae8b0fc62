//! `commit`: an image of another image's layers and what a container changed. Only the difference is
//! stored: an archive is made of it, which is taken in as any other layer's.

use std::io::{self, Write};

use bytes::Bytes;
use insula_base::{Digest, thread};
use insula_spec::image::{History, ImageConfig, LAYERS_MAX, RunConfig};
use insula_spec::reference::Reference;

use super::contents::Found;
use super::gather::{Gathered, Source};
use super::stage::{Rest, Staged, stage};
use super::{Image, ImageKind, Images, LayerLease, builtin};
use crate::layers::{DiffOf, write_diff};
use crate::stream::{Compression, Sender, channel};
use crate::{Content, Error, Layers, Result, content};

/// Bytes of one chunk.
const CHUNK: usize = 256 << 10;
const LAYER: &str = "diff.tar";

/// What a container changed of its image, taken in and not yet part of an image. Dropped, it is gone.
#[derive(Debug)]
pub struct StagedDiff {
    parent: Image,
    staged: Staged,
    entries: u64,
    /// The image may be removed before it is committed.
    _lease: LayerLease,
}

/// What the image is to be beside its files.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    pub config: RunConfig,
    pub author: String,
    pub message: String,
    /// The command that made the difference.
    pub created_by: String,
    pub reference: Option<Reference>,
}

impl Images {
    /// Takes in the difference between a writable layer and the image below it. Who wants one moment of a
    /// running container holds it still meanwhile.
    pub fn stage_diff(&self, parent: &Digest, of: &DiffOf) -> Result<StagedDiff> {
        let parent = self.resolve(parent.as_str())?;
        if parent.kind != ImageKind::Stored {
            return Err(Error::Unsupported(
                "the layers of this container are the host's own root file system, which no image can have: export it"
                    .to_owned(),
            ));
        }
        if parent.layers.len() >= LAYERS_MAX {
            return Err(Error::Limit { what: "the number of layers".to_owned(), limit: LAYERS_MAX as u64 });
        }
        let diffs: Vec<_> = parent.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let lease = self.lease_all(diffs);
        let (staged, entries) = stage_written(&self.layers, &self.content, |out| write_diff(of, out))?;
        Ok(StagedDiff { parent, staged, entries, _lease: lease })
    }

    /// Makes the image appear. A difference of nothing is no layer.
    pub fn commit_diff(&self, diff: StagedDiff, options: CommitOptions) -> Result<Digest> {
        if let Some(reference) = options.reference.as_ref().filter(|name| builtin::is_builtin(name)) {
            return Err(Error::Builtin(reference.familiar()));
        }
        let StagedDiff { parent, staged, entries, _lease } = diff;
        let now = jiff::Timestamp::now().to_string();
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut config = ImageConfig {
            author: text(&options.author).or(parent.config.author.clone()),
            comment: text(&options.message),
            config: options.config,
            created: Some(now.clone()),
            docker_version: String::new(),
            build_cache: None,
            ..parent.config.clone()
        };
        config.history.push(History {
            created: Some(now),
            created_by: options.created_by,
            author: options.author,
            comment: options.message,
            empty_layer: entries == 0,
        });
        let mut layers: Vec<(String, Option<Digest>)> =
            parent.layers.iter().map(|layer| (layer.diff_id.to_string(), None)).collect();
        let mut gathered = Gathered::default();
        if entries > 0 {
            config.rootfs.diff_ids.push(staged.diff.clone());
            layers.push((LAYER.to_owned(), None));
            gathered.layers.insert(LAYER.to_owned(), Ok(Source::Staged(staged)));
        }
        let config_bytes =
            serde_json::to_vec(&config).map_err(|_| Error::Defect("a configuration is always JSON"))?;
        let id = content::digest(&config_bytes);
        let found = Found {
            index: None,
            id: id.clone(),
            config,
            config_bytes,
            manifest: None,
            layers,
            references: options.reference.into_iter().collect(),
            places: Vec::new(),
        };
        self.commit(found, gathered)?;
        Ok(id)
    }
}

/// Takes in an archive that `write` makes; it returns how many entries there are.
pub(super) fn stage_written(
    layers: &Layers,
    content: &Content,
    write: impl FnOnce(&mut dyn Write) -> Result<u64> + Send,
) -> Result<(Staged, u64)> {
    std::thread::scope(|scope| {
        let (sender, mut chunks) = channel();
        let writing = thread::scoped(scope, "write", move || {
            let mut out = Chunking { sender, buffer: Vec::with_capacity(CHUNK) };
            let written = write(&mut out).and_then(|entries| {
                out.flush().map_err(Error::Output)?;
                Ok(entries)
            });
            if written.is_err() {
                let _ = out.sender.send(Err(io::Error::other("the archive could not be made")));
            }
            written
        })
        .map_err(Error::Thread)?;
        let mut next = || chunks.chunk(usize::MAX).map_err(Error::Input);
        let staged = stage(layers, content, Compression::None, Rest::Left, &mut next);
        drop(chunks);
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (staged, written) {
            (Ok(staged), Ok(entries)) => Ok((staged, entries)),
            // Each may have failed because the other did.
            (Err(error), Err(why)) => Err(if is_broken_pipe(&why) { error } else { why }),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    })
}

fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } | Error::Output(source) if source.kind() == io::ErrorKind::BrokenPipe)
}

/// A writer whose bytes another thread takes.
struct Chunking {
    sender: Sender,
    buffer: Vec<u8>,
}

impl Write for Chunking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.sender.send(Ok(Bytes::from(chunk))).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
