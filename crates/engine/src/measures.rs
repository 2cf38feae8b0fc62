//! What the engine has done since its daemon began, counted: for who watches over many of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is counted and timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Start,
    Pull,
    Push,
    Build,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Start, Self::Pull, Self::Push, Self::Build];

    /// As it is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Build => "build",
        }
    }
}

/// How often something was done, and how long that took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measure {
    pub succeeded: u64,
    pub failed: u64,
    /// All of them together; one that was given up is in no number.
    pub took: Duration,
}

#[derive(Debug, Default)]
struct Count {
    succeeded: AtomicU64,
    failed: AtomicU64,
    nanoseconds: AtomicU64,
}

/// Counters of one engine.
#[derive(Debug, Default)]
pub struct Measures([Count; Operation::ALL.len()]);

impl Measures {
    /// Counts what `work` does.
    pub(crate) async fn of<T, E>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began = Instant::now();
        let result = work.await;
        let count = &self.0[operation as usize];
        let outcome = if result.is_ok() { &count.succeeded } else { &count.failed };
        outcome.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        count.nanoseconds.fetch_add(took, Ordering::Relaxed);
        result
    }

    /// So far.
    #[must_use]
    pub fn get(&self, operation: Operation) -> Measure {
        let count = &self.0[operation as usize];
        Measure {
            succeeded: count.succeeded.load(Ordering::Relaxed),
            failed: count.failed.load(Ordering::Relaxed),
            took: Duration::from_nanos(count.nanoseconds.load(Ordering::Relaxed)),
        }
    }
}
