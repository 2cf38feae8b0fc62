//! What an `unbundle` has made so far, in the state before it is made or in one commit with it: a daemon that
//! finds it there when it starts takes all of it back.

use insula_store::{Collection, Error as StoreError, Force, Record, Transaction};
use serde::{Deserialize, Serialize};

use crate::{Engine, Error, Result};

/// Of one workload. Everything in it was not here before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unfinished {
    id: String,
    /// By their ids, as networks and containers.
    pub(super) images: Vec<String>,
    pub(super) networks: Vec<String>,
    /// By their names.
    pub(super) volumes: Vec<String>,
    pub(super) containers: Vec<String>,
}

impl Unfinished {
    /// Of nothing yet.
    pub(super) fn begin(engine: &Engine) -> Result<Self> {
        let begun = Self {
            id: insula_base::random_hex(16),
            images: Vec::new(),
            networks: Vec::new(),
            volumes: Vec::new(),
            containers: Vec::new(),
        };
        engine.store().state().records(Collection::Unbundles).insert(&begun.record()?)?;
        Ok(begun)
    }

    /// Writes down what is added.
    pub(super) fn note(&mut self, engine: &Engine, add: impl FnOnce(&mut Self)) -> Result<()> {
        add(self);
        Ok(engine.store().state().records(Collection::Unbundles).replace(&self.record()?)?)
    }

    /// The same within a commit.
    pub(super) fn note_within(&mut self, tx: &Transaction<'_>, add: impl FnOnce(&mut Self)) -> Result<()> {
        add(self);
        Ok(tx.records(Collection::Unbundles).replace(&self.record()?)?)
    }

    /// All of it is there: it stays.
    pub(super) fn finish(&self, engine: &Engine) -> Result<()> {
        engine.store().state().records(Collection::Unbundles).remove(&self.id)?;
        Ok(())
    }

    fn record(&self) -> Result<Record> {
        let doc = serde_json::to_vec(self).map_err(|e| Error::Internal(format!("write an unbundle: {e}")))?;
        Ok(Record { id: self.id.clone(), name: None, doc })
    }
}

impl Engine {
    /// Takes back what unbundles had made that were cut off.
    pub(crate) fn take_back_unbundles(&self) -> Result<()> {
        let records = self.store().state().records(Collection::Unbundles);
        for record in records.all()? {
            match serde_json::from_slice::<Unfinished>(&record.doc) {
                Ok(unfinished) => {
                    tracing::info!("a bundle was not unpacked to its end: what was made of it is taken back");
                    self.take_back_all(&unfinished);
                }
                Err(error) => {
                    tracing::error!(error = error.to_string(), "a damaged row of an unbundle is dropped");
                    records.remove(&record.id)?;
                }
            }
        }
        Ok(())
    }

    /// What cannot be removed is said and stays; nothing is tried twice, since names may mean other things then.
    pub(super) fn take_back_all(&self, unfinished: &Unfinished) {
        let log = |what: &str, error: &dyn std::error::Error| {
            tracing::warn!(what, error = insula_base::chain(error), "left of a bundle that was not unpacked");
        };
        for id in &unfinished.containers {
            if let Some(container) = id.parse().ok().and_then(|id| self.0.containers.get(&id)) {
                self.discard(&container);
            }
        }
        for name in &unfinished.volumes {
            if let Err(error) = self.volumes().discard(name) {
                log(name, &error);
            }
        }
        for id in &unfinished.networks {
            match self.networks().remove(id) {
                Ok(network) => self.publish_network(&network, "destroy", &[]),
                // It was not made yet.
                Err(insula_network::Error::NetworkNotFound { .. }) => {}
                Err(error) => log(id, &error),
            }
        }
        for id in &unfinished.images {
            if let Err(error) = self.take_back_image(id) {
                log(id, &error);
            }
        }
        if let Err(error) = unfinished.finish(self) {
            log("its row", &error);
        }
    }

    /// Unless somebody else has come to want it meanwhile.
    fn take_back_image(&self, id: &str) -> Result<()> {
        let images = self.store().images();
        let image = match images.resolve(id) {
            Err(StoreError::NoImage(_)) => return Ok(()),
            found => found?,
        };
        let pulled = image.references.iter().any(|name| name.digest().is_some());
        if pulled || !images.users(&image.id)?.is_empty() {
            return Ok(());
        }
        images.remove(id, Force::Yes, &|_| true)?;
        Ok(())
    }
}
