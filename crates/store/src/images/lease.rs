//! Leases: layers that a pull, a load, a build or a commit counts on stay, and so do the blobs of artifacts that
//! leave, whatever is removed meanwhile.
//!
//! They live in memory only: the root belongs to one daemon, and what that had begun ends with it. What
//! a lease alone held is swept by the next change, or when the store is opened.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use insula_base::{DiffId, Digest};

/// How many hold each of them.
#[derive(Debug)]
pub(super) struct Leases<T>(Mutex<HashMap<T, usize>>);

impl<T> Default for Leases<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone + Eq + Hash> Leases<T> {
    pub(super) fn take(self: &Arc<Self>, things: Vec<T>) -> Lease<T> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for thing in &things {
            *held.entry(thing.clone()).or_default() += 1;
        }
        Lease { things, leases: self.clone() }
    }

    pub(super) fn holds(&self, thing: &T) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(thing)
    }
}

/// Keeps what it names until it is dropped.
#[derive(Debug)]
pub struct Lease<T: Clone + Eq + Hash> {
    things: Vec<T>,
    leases: Arc<Leases<T>>,
}

/// Keeps layers.
pub type LayerLease = Lease<DiffId>;

/// Keeps manifests, and what they are of, from going along with something else before something is named that lists
/// them.
pub type ManifestLease = Lease<Digest>;

impl LayerLease {
    /// The layers that it keeps; those of [`Images::lease_layers`](super::Images::lease_layers) are here, whole.
    #[must_use]
    pub fn layers(&self) -> &[DiffId] {
        &self.things
    }
}

impl ManifestLease {
    pub(super) fn manifests(&self) -> &[Digest] {
        &self.things
    }
}

/// Keeps the layers of an image, or the blobs of an artifact.
#[derive(Debug)]
pub struct ImageLease {
    pub layers: LayerLease,
    pub(super) _blobs: Lease<Digest>,
}

impl<T: Clone + Eq + Hash> Drop for Lease<T> {
    fn drop(&mut self) {
        let mut held = self.leases.0.lock().unwrap_or_else(PoisonError::into_inner);
        for thing in &self.things {
            if let Some(count) = held.get_mut(thing) {
                *count -= 1;
                if *count == 0 {
                    held.remove(thing);
                }
            }
        }
    }
}
