//! How many clients there may be at a time, so that the engine has descriptors whatever clients do.
//!
//! A client that has not said yet what it wants waits in the hall: it costs one descriptor and no more. The
//! hall is never full: who came first goes when another one comes, since a client that means it has sent its
//! request by then. Who has asked is served, and counted until it leaves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// The fewest of either kind, however few descriptors there are.
const FEWEST: usize = 16;
/// The most that wait.
const MOST_WAITING: usize = 4096;
/// The most that are served.
const MOST_SERVED: usize = 64 << 10;
/// Where the limit of open files is not known, or there is none.
const MANY: u64 = 1 << 20;

/// Of one listener.
#[derive(Debug)]
pub(crate) struct Door {
    hall: Mutex<Hall>,
    most: usize,
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
}

/// What becomes of a client that has asked; the permit counts it until it is dropped.
#[derive(Debug)]
pub(crate) enum Entry {
    Served(OwnedSemaphorePermit),
    /// It is one too many, and is to be told so.
    Refused(OwnedSemaphorePermit),
    /// So many are being told already that this one is not.
    Closed,
}

#[derive(Debug, Default)]
struct Hall {
    /// By the order in which they came.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
    next: u64,
}

/// A client's place in the hall, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    door: Arc<Door>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Door {
    /// For as many as this process may have files open: a client that is served takes two, and at least
    /// a quarter of all is left to the engine.
    pub(crate) fn new() -> Arc<Self> {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(MANY);
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        Self::of((files / 8).clamp(FEWEST, MOST_WAITING), (files / 4).clamp(FEWEST, MOST_SERVED))
    }

    fn of(waiting: usize, served: usize) -> Arc<Self> {
        let (served, refused) = (Arc::new(Semaphore::new(served)), Arc::new(Semaphore::new(waiting)));
        Arc::new(Self { hall: Mutex::default(), most: waiting, served, refused })
    }

    /// Somebody comes in; when the hall is full, whoever waits longest loses its place.
    pub(crate) fn wait(self: &Arc<Self>) -> Seat {
        let (lose, lost) = oneshot::channel();
        let mut hall = self.hall.lock().unwrap_or_else(PoisonError::into_inner);
        if hall.waiting.len() >= self.most {
            // Dropping its sender is what tells it.
            hall.waiting.pop_first();
        }
        let number = hall.next;
        hall.next += 1;
        hall.waiting.insert(number, lose);
        Seat { door: self.clone(), number, lost }
    }

    /// Somebody has asked.
    pub(crate) fn enter(&self) -> Entry {
        if let Ok(permit) = self.served.clone().try_acquire_owned() {
            return Entry::Served(permit);
        }
        self.refused.clone().try_acquire_owned().map_or(Entry::Closed, Entry::Refused)
    }
}

impl Seat {
    /// Returns when another client needs the place.
    pub(crate) async fn lost(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.lost).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.door.hall.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_longest_makes_room() {
        let door = Door::of(2, 1);
        let (mut first, second, mut third) = (door.wait(), door.wait(), door.wait());
        first.lost().await;
        assert!(third.lost.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        drop((first, second));
        // There is room again: nobody has to go.
        let _fourth = door.wait();
        assert!(third.lost.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
    }

    #[test]
    fn so_many_are_served_and_no_more() {
        let door = Door::of(1, 2);
        let (first, _second) = (door.enter(), door.enter());
        let third = door.enter();
        assert!(matches!(
            (&first, &third, door.enter()),
            (Entry::Served(_), Entry::Refused(_), Entry::Closed)
        ));
        drop((first, third));
        assert!(matches!(
            (door.enter(), door.enter()),
            (Entry::Served(_), Entry::Served(_) | Entry::Refused(_))
        ));
    }
}
