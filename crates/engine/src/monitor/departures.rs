//! Control groups of monitors that waited for a container and do so no more. Each takes its group away and ends; what
//! one leaves that was killed goes here. Groups are removed by their name, which is a container's: nobody may start that
//! container meanwhile.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use insula_base::ContainerId;

use super::Process;
use crate::containers::leftovers;

/// How long monitors may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// Those on their way.
#[derive(Debug)]
pub(super) struct Departures {
    /// The control group above theirs.
    parent: String,
    all: Mutex<Vec<Departing>>,
    /// Held by who removes groups.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Departing {
    id: ContainerId,
    /// None where it serves another container, which has a group by its own name.
    process: Option<Process>,
}

impl Departures {
    pub(super) fn new(parent: String) -> Self {
        Self { parent, all: Mutex::default(), turn: Mutex::default() }
    }

    pub(super) fn add(&self, id: ContainerId, process: Option<Process>) {
        lock(&self.all).push(Departing { id, process });
    }

    pub(super) fn ids(&self) -> Vec<ContainerId> {
        lock(&self.all).iter().map(|departing| departing.id.clone()).collect()
    }

    /// Frees the groups of those that have ended.
    pub(super) fn sweep(&self) {
        let ended = |process: Process| matches!(process.ended_within(Duration::ZERO), Ok(true));
        self.free(|departing| departing.process.is_none_or(ended));
    }

    /// Frees the group of a container that is about to be started.
    pub(super) fn settle(&self, id: &ContainerId) {
        for process in self.processes(|departing| departing.id == *id) {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.ended_within(ENDING);
        }
        self.free(|departing| departing.id == *id);
    }

    /// Waits for all, a while, and frees their groups.
    pub(super) fn end(&self) {
        let began = Instant::now();
        for process in self.processes(|_| true) {
            // What it has not removed is removed below.
            let _ = process.ended_within(ENDING.saturating_sub(began.elapsed()));
        }
        self.free(|_| true);
    }

    fn processes(&self, of: impl Fn(&Departing) -> bool) -> Vec<Process> {
        lock(&self.all).iter().filter(|departing| of(departing)).filter_map(|one| one.process).collect()
    }

    /// They are known until their groups are gone.
    fn free(&self, which: impl Fn(&Departing) -> bool) {
        let _turn = lock(&self.turn);
        let chosen: Vec<ContainerId> =
            lock(&self.all).iter().filter(|one| which(one)).map(|one| one.id.clone()).collect();
        for id in chosen {
            let group = self.group(&id);
            if let Err(error) = leftovers::free(&group) {
                tracing::warn!(group, error = insula_base::chain(&error), "what a spare monitor left");
            }
            lock(&self.all).retain(|departing| departing.id != id);
        }
    }

    /// That of the container with this id.
    pub(super) fn group(&self, id: &ContainerId) -> String {
        format!("{}/{id}", self.parent)
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}
