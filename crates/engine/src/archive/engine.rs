//! Files of containers by the names that clients call them.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use insula_models::{ChangeItem, PathStat};
use insula_store::MOUNT_POINTS;
use tokio::sync::mpsc;

use super::{Files, Root, WriteOptions};
use crate::changes::{ChangesRequest, changes};
use crate::containers::ContainerFiles;
use crate::{Engine, Error, Result, blocking, transfer};

/// Bytes of one chunk of an archive, and how many may wait for a slow client.
const CHUNK: usize = 256 << 10;
const WAITING: usize = 4;

/// An archive as it is made; an error ends it early.
pub type ArchiveChunks = mpsc::Receiver<io::Result<Vec<u8>>>;
/// Where an archive goes as it is made.
pub type ArchiveSender = mpsc::Sender<io::Result<Vec<u8>>>;

/// Both ends of an archive.
#[must_use]
pub fn archive_channel() -> (ArchiveSender, ArchiveChunks) {
    mpsc::channel(WAITING)
}

impl Engine {
    /// What is at `path` in the container.
    pub async fn stat_path(&self, reference: &str, path: &str) -> Result<PathStat> {
        let (files, path) = (self.files(reference)?, path.to_owned());
        blocking(move || files.stat(&path)).await
    }

    /// What is at `path`, described and as a tar.
    pub async fn read_archive(&self, reference: &str, path: &str) -> Result<(PathStat, ArchiveChunks)> {
        let stat = self.stat_path(reference, path).await?;
        let id = self.container_files(reference)?.id;
        let (files, path) = (self.files(reference)?, path.to_owned());
        let chunks = produce(move |out| files.read(&path, out));
        self.publish_container(&id, "archive-path");
        Ok((stat, chunks))
    }

    /// Unpacks a tar into the folder at `path`.
    pub async fn write_archive(
        &self,
        reference: &str,
        path: &str,
        archive: impl BufRead + Send + 'static,
        options: WriteOptions,
    ) -> Result<()> {
        let id = self.container_files(reference)?.id;
        let (files, path) = (self.files(reference)?, path.to_owned());
        transfer(move || files.write(&path, archive, options)).await?;
        self.publish_container(&id, "extract-to-dir");
        Ok(())
    }

    /// The container's root file system as a tar, without what is mounted in it.
    pub async fn export_container(&self, reference: &str) -> Result<ArchiveChunks> {
        let found = self.container_files(reference)?;
        let id = found.id.clone();
        let files = Files {
            root: stopped(&found),
            mounts: Vec::new(),
            volumes: Vec::new(),
            container: reference.to_owned(),
            readonly: false,
        };
        let chunks = produce(move |out| files.export(out));
        self.publish_container(&id, "export");
        Ok(chunks)
    }

    /// What the container changed of its image.
    pub async fn container_changes(&self, reference: &str) -> Result<Vec<ChangeItem>> {
        let files = self.container_files(reference)?;
        let ignored = made_by_engine(&files);
        let request = ChangesRequest { upper: files.upper, lower: files.layers, ignored };
        blocking(move || changes(&request)).await
    }

    fn files(&self, reference: &str) -> Result<Files> {
        let found = self.container_files(reference)?;
        let root = match found.root {
            Some(ref root) => {
                Root::Running { root: root.clone(), first_id: found.ids.map_or(0, |(first, _)| first) }
            }
            None => stopped(&found),
        };
        // What exists only while it runs is not there to be written otherwise.
        let there = found.mounts.iter().filter(|mount| found.root.is_some() || mount.source.is_some());
        let volumes = there.map(|mount| (PathBuf::from(&mount.target), mount.readonly)).collect();
        let folder = |source: Option<PathBuf>| source.filter(|source| source.is_dir());
        let mounts = found
            .mounts
            .into_iter()
            .filter_map(|mount| Some((PathBuf::from(mount.target), folder(mount.source)?)))
            .collect();
        Ok(Files { container: reference.to_owned(), root, mounts, volumes, readonly: found.readonly })
    }
}

/// Where the engine mounts something, or hides it.
pub(crate) fn made_by_engine(files: &ContainerFiles) -> BTreeSet<PathBuf> {
    let targets = files.mounts.iter().map(|mount| PathBuf::from(&mount.target));
    let always = MOUNT_POINTS.iter().map(|name| Path::new("/").join(name));
    targets.chain(always).chain(files.hidden.iter().map(PathBuf::from)).collect()
}

fn stopped(files: &ContainerFiles) -> Root {
    let lower = std::iter::once(&files.points).chain(&files.layers).cloned().collect();
    Root::Stopped { upper: files.upper.clone(), lower, hidden: files.hidden.clone() }
}

/// Runs `work` on a thread that may block; what it writes is received, and an error at the end.
pub(crate) fn produce(work: impl FnOnce(&mut ChunkWriter) -> Result<()> + Send + 'static) -> ArchiveChunks {
    let (sender, receiver) = archive_channel();
    let failed = sender.clone();
    let work = move || {
        let mut out = ChunkWriter::new(sender);
        let worked = work(&mut out)
            .and_then(|()| out.flush().map_err(|error| Error::Internal(format!("send an archive: {error}"))));
        if let Err(error) = worked {
            let message = insula_base::chain(&error);
            tracing::info!(error = message, "an archive was not completed");
            // The client may have gone, which is then the reason.
            let _ = out.sender.blocking_send(Err(io::Error::other(message)));
        }
        Ok(())
    };
    tokio::spawn(async move {
        if let Err(error) = transfer(work).await {
            let message = insula_base::chain(&error);
            tracing::warn!(error = message, "send an archive");
            // Nobody has begun: what ends without an error would be taken for the whole.
            let _ = failed.send(Err(io::Error::other(message))).await;
        }
    });
    receiver
}

pub(crate) struct ChunkWriter {
    sender: mpsc::Sender<io::Result<Vec<u8>>>,
    buffer: Vec<u8>,
}

impl ChunkWriter {
    /// What is written has to be flushed at last.
    pub(crate) fn new(sender: ArchiveSender) -> Self {
        Self { sender, buffer: Vec::with_capacity(CHUNK) }
    }
}

impl Write for ChunkWriter {
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
        self.sender.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
