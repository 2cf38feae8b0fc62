//! The cache: what steps made, by what went into them. A record holds its layers as a container holds its
//! image's; records are removed when they are too many or too large together, the longest unused first.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use insula_base::{Digest, chain};
use insula_models::BuildCacheItem;
use insula_store::{Collection, Layer, LayerLease, Record, StagedLayer, Store};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Building;
use super::stage::Built;
use crate::events::EventType;
use crate::filters::{Filters, check_names, parse_moment};
use crate::{Engine, Error, Result, blocking};

/// Records that are kept, and bytes of the layers that they made.
const RECORDS_MAX: usize = 4096;
const BYTES_MAX: u64 = 20 << 30;

/// What a step is found by.
#[derive(Debug, Clone)]
pub(super) struct Key(String);

impl Key {
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    pub(super) fn known(text: String) -> Self {
        Self(text)
    }

    /// From the kind of step, the layers below and everything else that goes into it.
    pub(super) fn new(kind: &str, below: &[Layer], parts: &[String]) -> Self {
        let mut hash = Sha256::new();
        let top = below.last().map(|layer| layer.chain_id.to_string()).unwrap_or_default();
        for part in [kind, top.as_str()].into_iter().chain(parts.iter().map(String::as_str)) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(Digest::from_sha256(&hash.finalize().into()).hex().to_owned())
    }
}

/// What a step made, or was found to have made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) layers: Vec<Layer>,
    pub(super) created: String,
    pub(super) cached: bool,
    pub(super) lease: LayerLease,
}

/// `POST /build/prune`.
#[derive(Debug, Clone, Default)]
pub struct PruneRequest {
    /// Bytes that may stay.
    pub keep: u64,
    /// Only these: `until` (or `unused-for`), `id`, `type`, `description`, `label`.
    pub filters: Filters,
}

impl PruneRequest {
    fn check(&self) -> Result<()> {
        check_names(&self.filters, &["until", "unused-for", "id", "type", "description", "label", "label!"])?;
        self.unused_since().map(drop)
    }

    /// The latest use of what is chosen.
    fn unused_since(&self) -> Result<Option<Timestamp>> {
        let texts = ["until", "unused-for"].into_iter().flat_map(|name| self.values(name));
        let moments = texts.map(|text| parse_moment(text)).collect::<Result<Vec<_>>>()?;
        Ok(moments.into_iter().min())
    }

    fn values(&self, name: &str) -> &[String] {
        self.filters.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a record is one of those that are asked for. Records have no labels.
    fn chooses(&self, id: &str, document: &Document, unused_since: Option<Timestamp>) -> bool {
        let one_of = |name: &str, is: &dyn Fn(&String) -> bool| {
            self.values(name).is_empty() || self.values(name).iter().any(is)
        };
        let used = document.used.parse::<Timestamp>().unwrap_or_default();
        unused_since.is_none_or(|moment| used < moment)
            && self.values("label").is_empty()
            && one_of("id", &|wanted| id.starts_with(wanted.as_str()))
            && one_of("type", &|wanted| document.kind() == wanted)
            && one_of("description", &|wanted| document.text.contains(wanted.as_str()))
    }
}

/// One record.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Document {
    text: String,
    created: String,
    used: String,
    uses: u64,
    /// Bytes of the layer that it made.
    size: u64,
    /// The boot of the host in which it was written; empty when it is on the disk.
    unsynced: String,
    /// Tells one making of what it names from the next, which is not on the disk when the one before is.
    #[serde(default)]
    making: String,
    /// It is no step's, but a folder that commands keep files in.
    #[serde(default)]
    folder: bool,
    /// A folder that is a context of builds.
    #[serde(default)]
    context: bool,
}

/// What a folder beside the steps is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Mount,
    Context,
}

impl Document {
    /// Docker's word for it.
    fn kind(&self) -> &'static str {
        match (self.folder, self.context) {
            (true, true) => "source.local",
            (true, false) => "exec.cachemount",
            (false, _) => "regular",
        }
    }
}

/// The owner of what a record holds.
fn owner(key: &str) -> String {
    format!("build {key}")
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Building {
    /// What a step on top of a stage made before, or makes now. Blocks.
    pub(super) fn layer(
        &self,
        key: &Key,
        stage: &Built,
        text: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<u64> + Send,
    ) -> Result<Made> {
        if let Some(made) = self.found(key, stage)? {
            return Ok(made);
        }
        let mut failure = None;
        let staged = self.engine.store().images().stage_layer(|out| {
            write(out).map_err(|error| {
                failure = Some(error);
                insula_store::Error::Archive("the layer was not written".to_owned())
            })
        });
        let staged = staged.map_err(|error| failure.take().unwrap_or_else(|| error.into()))?;
        self.keep(key, &stage.layers, staged, text, self.now())
    }

    /// What the cache has for a step of a stage, or one that came along. Blocks.
    pub(super) fn found(&self, key: &Key, stage: &Built) -> Result<Option<Made>> {
        if stage.anew {
            return Ok(None);
        }
        match self.kept(key, stage)? {
            Some(made) => Ok(Some(made)),
            None => self.brought(key, &stage.layers),
        }
    }

    fn kept(&self, key: &Key, stage: &Built) -> Result<Option<Made>> {
        let store = self.engine.store();
        let Some(record) = store.state().records(Collection::BuildCache).get(&key.0)? else {
            return Ok(None);
        };
        let Ok(document) = serde_json::from_slice::<Document>(&record.doc) else { return Ok(None) };
        if !document.unsynced.is_empty() && document.unsynced != self.engine.0.boot {
            return Ok(None);
        }
        let Some(layers) = store.images().held(&owner(&key.0))? else { return Ok(None) };
        let lease = self.lease(&layers)?;
        let whole = layers.iter().all(|layer| lease.layers().contains(&layer.diff_id));
        if !whole || store.images().held(&owner(&key.0))?.is_none() {
            return Ok(None);
        }
        let Document { created, text, .. } = document;
        let used = jiff::Timestamp::now().to_string();
        // One that was pruned meanwhile is used all the same: the lease has its layers.
        let noted = change_record(store, &key.0, |document| {
            document.used = used;
            document.uses += 1;
        });
        if let Err(error) = noted {
            // It is only pruned earlier.
            tracing::warn!(error = chain(&error), "a use of the build cache was not noted");
        }
        locked(&self.keys).push(key.0.clone());
        self.record_step(key, &stage.layers, &layers, &created, &text);
        Ok(Some(Made { layers, created, cached: true, lease }))
    }

    /// Puts a layer on top of others and remembers it. Blocks.
    pub(super) fn keep(
        &self,
        key: &Key,
        below: &[Layer],
        staged: StagedLayer,
        text: &str,
        created: Timestamp,
    ) -> Result<Made> {
        let now = created.to_string();
        let mut document = Document {
            text: text.chars().take(256).collect(),
            created: now.clone(),
            used: jiff::Timestamp::now().to_string(),
            uses: 0,
            size: 0,
            unsynced: self.engine.0.boot.clone(),
            making: insula_base::random_hex(8),
            folder: false,
            context: false,
        };
        let images = self.engine.store().images();
        let count = below.len();
        let (layers, lease) = images.place_layer(below, staged, &owner(&key.0), |tx, layers| {
            document.size = layers.get(count).map_or(0, |layer| layer.size);
            let records = tx.records(Collection::BuildCache);
            records.remove(&key.0)?;
            let record = written(key, &document)
                .map_err(|_| insula_store::Error::Defect("a record of the cache is always JSON"))?;
            records.insert(&record)
        })?;
        locked(&self.keys).push(key.0.clone());
        self.record_step(key, below, &layers, &now, text);
        Ok(Made { layers, created: now, cached: false, lease })
    }

    /// Remembers that a command uses a folder, before it is made. Blocks.
    pub(super) fn note_cache(&self, key: &str, text: &str) -> Result<()> {
        self.engine.note_folder(key, text, Kind::Mount)?;
        locked(&self.keys).push(key.to_owned());
        Ok(())
    }

    fn lease(&self, layers: &[Layer]) -> Result<LayerLease> {
        let diffs: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        Ok(self.engine.store().images().lease_layers(&diffs)?)
    }
}

impl Engine {
    /// Remembers that a build uses a folder, before it is made. Blocks.
    pub(super) fn note_folder(&self, key: &str, text: &str, kind: Kind) -> Result<()> {
        let key = Key(key.to_owned());
        let now = jiff::Timestamp::now().to_string();
        self.store().state().transaction(|tx| {
            let records = tx.records(Collection::BuildCache);
            let known = records.get(&key.0)?;
            let known = known.and_then(|record| serde_json::from_slice::<Document>(&record.doc).ok());
            let mut document = known.unwrap_or_else(|| Document {
                text: text.to_owned(),
                created: now.clone(),
                used: String::new(),
                uses: 0,
                size: 0,
                unsynced: String::new(),
                making: String::new(),
                folder: true,
                context: kind == Kind::Context,
            });
            document.used.clone_from(&now);
            document.uses += 1;
            records.remove(&key.0)?;
            records.insert(&written(&key, &document)?)?;
            Ok::<_, Error>(())
        })
    }
}

fn read(store: &Store, key: &str) -> Result<Option<Document>> {
    let record = store.state().records(Collection::BuildCache).get(key)?;
    Ok(record.and_then(|record| serde_json::from_slice(&record.doc).ok()))
}

/// Brings what records name to the disk with `flush`, and notes that it is there, or how large their folders are by
/// now.
fn settle(store: &Store, keys: &[String], flush: impl FnOnce() -> Result<()>) -> Result<()> {
    let known = |key: &String| Ok(read(store, key)?.map(|document| (key.clone(), document)));
    let known = keys.iter().map(known).collect::<Result<Vec<_>>>()?;
    flush()?;
    known.into_iter().flatten().try_for_each(|(key, known)| {
        let size = known.folder.then(|| store.cache_size(&key)).transpose()?;
        change_record(store, &key, |document| match size {
            Some(size) => document.size = size,
            // One that was pruned meanwhile and made again is not on the disk yet.
            None if document.making == known.making => document.unsynced.clear(),
            None => {}
        })
    })
}

/// Changes a record that others may change or prune at the same time; one that is gone is left alone.
fn change_record(store: &Store, key: &str, change: impl FnOnce(&mut Document)) -> Result<()> {
    store.state().transaction(|tx| {
        let records = tx.records(Collection::BuildCache);
        let known = records.get(key)?;
        let known = known.and_then(|record| serde_json::from_slice::<Document>(&record.doc).ok());
        let Some(mut document) = known else { return Ok(()) };
        change(&mut document);
        Ok(records.replace(&written(&Key(key.to_owned()), &document)?)?)
    })
}

fn written(key: &Key, document: &Document) -> Result<Record> {
    let doc = serde_json::to_vec(document).map_err(|e| Error::Internal(format!("write a record: {e}")))?;
    Ok(Record { id: key.0.clone(), name: None, doc })
}

impl Engine {
    /// Removes records until those that stay are no larger than was asked for; returns the ids of what went
    /// and the bytes that they had.
    pub async fn prune_builds(&self, request: PruneRequest) -> Result<(Vec<String>, u64)> {
        request.check()?;
        let engine = self.clone();
        let (gone, freed) = blocking(move || engine.drop_records(usize::MAX, &request)).await?;
        self.events().pruned(EventType::Builder, freed);
        Ok((gone, freed))
    }

    fn drop_records(&self, count: usize, request: &PruneRequest) -> Result<(Vec<String>, u64)> {
        let (keep, unused_since) = (request.keep, request.unused_since()?);
        let store = self.store();
        let records = store.state().records(Collection::BuildCache).all()?;
        let mut documents: BTreeMap<(String, String), (u64, bool)> = BTreeMap::new();
        for record in &records {
            let document = serde_json::from_slice::<Document>(&record.doc).ok();
            if document.as_ref().is_some_and(|known| !request.chooses(&record.id, known, unused_since)) {
                continue;
            }
            let (used, what) = document
                .map(|document| (document.used, (document.size, document.folder)))
                .unwrap_or_default();
            documents.insert((used, record.id.clone()), what);
        }
        let (mut left, mut bytes) = (documents.len(), documents.values().map(|(size, _)| size).sum::<u64>());
        let (mut gone, mut freed) = (Vec::new(), 0);
        for ((_, id), (size, folder)) in documents {
            let enough = left <= count && bytes <= keep && !(keep == 0 && count == usize::MAX);
            if enough {
                break;
            }
            if folder {
                let Some(_idle) = self.0.caches.idle(&id) else { continue };
                store.state().records(Collection::BuildCache).remove(&id)?;
                store.remove_cache(&id)?;
            } else {
                store.images().release_image(&owner(&id), |tx| {
                    tx.records(Collection::BuildCache).remove(&id).map(drop)
                })?;
            }
            left -= 1;
            bytes -= size;
            freed += size;
            gone.push(id);
        }
        Ok((gone, freed))
    }

    /// The records, the oldest first. What a step made is held by its users themselves, so that its record is in
    /// nobody's use. Blocks.
    pub(crate) fn build_cache(&self) -> Result<Vec<BuildCacheItem>> {
        let store = self.store();
        let images = store.images().list()?;
        let of_images: HashSet<_> =
            images.iter().flat_map(|image| image.layers.iter().map(|layer| &layer.chain_id)).collect();
        let mut items = Vec::new();
        for record in store.state().records(Collection::BuildCache).all()? {
            let Ok(document) = serde_json::from_slice::<Document>(&record.doc) else { continue };
            let layers = store.images().held(&owner(&record.id))?.unwrap_or_default();
            items.push(BuildCacheItem {
                r#type: document.kind().to_owned(),
                in_use: document.folder && self.0.caches.in_use(&record.id),
                shared: layers.last().is_some_and(|layer| of_images.contains(&layer.chain_id)),
                size: i64::try_from(document.size).unwrap_or(i64::MAX),
                description: document.text,
                created_at: document.created,
                last_used_at: document.used,
                usage_count: i64::try_from(document.uses).unwrap_or(i64::MAX),
                id: record.id,
            });
        }
        items.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
        Ok(items)
    }

    /// After a build: what it made is brought to the disk, and what is too much goes.
    pub(super) fn settle_cache(&self, keys: Vec<String>) {
        let engine = self.clone();
        tokio::spawn(async move {
            let settled = blocking(move || {
                let largest = PruneRequest { keep: BYTES_MAX, ..PruneRequest::default() };
                engine.drop_records(RECORDS_MAX, &largest)?;
                let store = engine.store();
                settle(store, &keys, || Ok(store.images().flush()?))
            });
            if let Err(error) = settled.await {
                tracing::warn!(error = chain(&error), "the build cache was not flushed");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_again_while_the_disk_is_waited_for_is_not_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let write = |key: &str, making: &str| {
            let document = Document {
                text: String::new(),
                // As with SOURCE_DATE_EPOCH.
                created: "1970-01-01T00:00:00Z".to_owned(),
                used: String::new(),
                uses: 0,
                size: 0,
                unsynced: "boot".to_owned(),
                making: making.to_owned(),
                folder: false,
                context: false,
            };
            store.state().records(Collection::BuildCache).remove(key).unwrap();
            let record = written(&Key(key.to_owned()), &document).unwrap();
            store.state().records(Collection::BuildCache).insert(&record).unwrap();
        };
        let keys = ["stays", "again", "gone"].map(str::to_owned);
        keys.iter().for_each(|key| write(key, "first"));
        let meanwhile = || {
            write("again", "second");
            store.state().records(Collection::BuildCache).remove("gone")?;
            Ok(())
        };
        settle(&store, &keys, meanwhile).unwrap();
        let unsynced = keys.map(|key| read(&store, &key).unwrap().map(|document| document.unsynced));
        assert_eq!(unsynced, [Some(String::new()), Some("boot".to_owned()), None]);
    }
}
