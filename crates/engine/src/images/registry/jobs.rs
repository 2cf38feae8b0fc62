//! Layers on their way here. Pulls that want the same one wait for the same download, which ends
//! early only when nobody waits for it any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::{Bytes, BytesMut};
use insula_base::{DiffId, Digest};
use insula_registry::{Blob, Repository};
use insula_spec::image::Descriptor;
use insula_store::{IngestedLayer, Store};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use crate::{Error, Result, blocking};

/// Bytes that are handed to the store at a time: what comes from the network comes in crumbs.
const PIECE: usize = 256 << 10;
/// Pieces on their way to the store.
const WAITING: usize = 2;

/// How far a layer is.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// It is its turn.
    pub(super) begun: bool,
    /// Downloaded.
    pub(super) bytes: u64,
    pub(super) outcome: Option<Result<Arc<IngestedLayer>, Arc<Error>>>,
}

impl Progress {
    /// Whether who comes later can wait for it too. A layer that a commit has taken is in its place already,
    /// or gone with a commit that failed.
    fn is_of_use(&self) -> bool {
        match &self.outcome {
            None => true,
            Some(Ok(layer)) => !layer.is_taken(),
            Some(Err(_)) => false,
        }
    }
}

/// One layer's download and unpacking.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) progress: watch::Receiver<Progress>,
    task: AbortHandle,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All that are under way.
#[derive(Debug)]
pub(crate) struct LayerJobs {
    running: Mutex<HashMap<(Digest, DiffId), Weak<Job>>>,
    /// So many are downloaded at a time.
    slots: Arc<Semaphore>,
}

impl LayerJobs {
    pub(crate) fn new(downloads: usize) -> Self {
        Self { running: Mutex::default(), slots: Arc::new(Semaphore::new(downloads.max(1))) }
    }

    /// The job of a layer: one that runs, or a new one.
    pub(super) fn get(
        &self,
        store: &Arc<Store>,
        sources: &[Repository],
        blob: &Descriptor,
        diff: &DiffId,
    ) -> Arc<Job> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, job| job.strong_count() > 0);
        let key = (blob.digest.clone(), diff.clone());
        if let Some(job) = running.get(&key).and_then(Weak::upgrade)
            && job.progress.borrow().is_of_use()
        {
            return job;
        }
        let (sender, progress) = watch::channel(Progress::default());
        let (store, sources, blob, diff) = (store.clone(), sources.to_vec(), blob.clone(), diff.clone());
        let slots = self.slots.clone();
        let task = tokio::spawn(async move {
            // The semaphore is never closed.
            let _slot = slots.acquire_owned().await;
            sender.send_modify(|progress| progress.begun = true);
            let outcome = fetch(&store, sources, &blob, &diff, &sender).await;
            sender.send_modify(|progress| {
                progress.outcome = Some(outcome.map(Arc::new).map_err(Arc::new));
            });
        });
        let job = Arc::new(Job { progress, task: task.abort_handle() });
        running.insert(key, Arc::downgrade(&job));
        job
    }
}

/// Downloads and takes in a layer. What comes wrong from one place may come right from the next.
async fn fetch(
    store: &Arc<Store>,
    mut sources: Vec<Repository>,
    blob: &Descriptor,
    diff: &DiffId,
    progress: &watch::Sender<Progress>,
) -> Result<IngestedLayer> {
    loop {
        match attempt(store, &sources, blob, diff, progress).await {
            Err(error) if sources.len() > 1 && is_wrong_content(&error) => {
                let from = sources.remove(0).host();
                tracing::warn!(
                    error = insula_base::chain(&error),
                    from,
                    "a layer is fetched from another place"
                );
            }
            outcome => return outcome,
        }
    }
}

async fn attempt(
    store: &Arc<Store>,
    sources: &[Repository],
    blob: &Descriptor,
    diff: &DiffId,
    progress: &watch::Sender<Progress>,
) -> Result<IngestedLayer> {
    let download = Blob::new(sources.to_vec(), blob)
        .ok_or_else(|| Error::Internal("a layer that is nowhere to be had".to_owned()))?;
    let (sender, mut receiver) = mpsc::channel::<Option<Bytes>>(WAITING);
    let (store, blob, diff) = (store.clone(), blob.clone(), diff.clone());
    let taking = tokio::spawn(blocking(move || {
        let mut next = || match receiver.blocking_recv() {
            Some(piece) => Ok(piece),
            // The download failed or was given up; this is no end of the layer.
            None => Err(insula_store::Error::Input(std::io::Error::other("the download ended early"))),
        };
        Ok(store.images().ingest_layer(&blob, &diff, &mut next)?)
    }));
    let fed = feed(download, sender, progress).await;
    let taken = taking.await.unwrap_or_else(|error| Err(Error::Internal(format!("a thread ended: {error}"))));
    // If the download failed, that is the reason for whatever the store says.
    fed?;
    taken
}

/// Hands a download on to who takes it in, until its end or until that one gives up.
async fn feed(
    mut download: Blob,
    sender: mpsc::Sender<Option<Bytes>>,
    progress: &watch::Sender<Progress>,
) -> Result<()> {
    let mut piece = BytesMut::with_capacity(PIECE);
    let mut bytes = 0;
    while let Some(mut chunk) = download.next().await? {
        bytes += chunk.len() as u64;
        progress.send_modify(|progress| progress.bytes = bytes);
        while !chunk.is_empty() {
            // Never more than it has room for: it would grow to twice the size.
            let part = chunk.split_to(chunk.len().min(PIECE - piece.len()));
            piece.extend_from_slice(&part);
            if piece.len() == PIECE {
                let full = std::mem::replace(&mut piece, BytesMut::with_capacity(PIECE));
                if sender.send(Some(full.freeze())).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    if !piece.is_empty() && sender.send(Some(piece.freeze())).await.is_err() {
        return Ok(());
    }
    // Who gave up has an error of its own.
    let _ = sender.send(None).await;
    Ok(())
}

fn is_wrong_content(error: &Error) -> bool {
    use insula_store::Error as Store;
    matches!(
        error,
        Error::Store(
            Store::Mismatch { .. }
                | Store::Archive(_)
                | Store::Entry { source: None, .. }
                | Store::Limit { .. }
                | Store::Input(_)
        )
    )
}
