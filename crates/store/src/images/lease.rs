//! Leases: layers that a pull, a load, a build or a commit counts on stay, whatever is removed meanwhile.
//!
//! They live in memory only: the root belongs to one daemon, and what that had begun ends with it. What
//! a lease alone held is swept by the next change, or when the store is opened.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use insula_base::DiffId;

/// How many hold each content.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<DiffId, usize>>);

impl Leases {
    pub(super) fn take(self: &Arc<Self>, diffs: Vec<DiffId>) -> LayerLease {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for diff in &diffs {
            *held.entry(diff.clone()).or_default() += 1;
        }
        LayerLease { diffs, leases: self.clone() }
    }

    pub(super) fn holds(&self, diff: &DiffId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(diff)
    }
}

/// Keeps layers until it is dropped.
#[derive(Debug)]
pub struct LayerLease {
    diffs: Vec<DiffId>,
    leases: Arc<Leases>,
}

impl LayerLease {
    /// The layers that are here, whole, and stay so.
    #[must_use]
    pub fn layers(&self) -> &[DiffId] {
        &self.diffs
    }
}

impl Drop for LayerLease {
    fn drop(&mut self) {
        let mut held = self.leases.0.lock().unwrap_or_else(PoisonError::into_inner);
        for diff in &self.diffs {
            if let Some(count) = held.get_mut(diff) {
                *count -= 1;
                if *count == 0 {
                    held.remove(diff);
                }
            }
        }
    }
}
