//! What a piece of work spent its time on.

use std::borrow::Cow;
use std::time::{Duration, Instant};

/// A part of the work, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lap {
    /// What was done: lower-case words with dashes.
    pub name: Cow<'static, str>,
    pub took: Duration,
}

/// A stopwatch: each lap lasts from the end of the one before.
#[derive(Debug, Clone)]
pub struct Laps {
    since: Instant,
    laps: Vec<Lap>,
}

impl Laps {
    /// The first lap begins.
    #[must_use]
    pub fn begin() -> Self {
        Self { since: Instant::now(), laps: Vec::new() }
    }

    /// A lap ends.
    pub fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.laps.push(Lap { name: Cow::Borrowed(name), took: now - self.since });
        self.since = now;
    }

    /// A lap ends whose parts are known from whom it was asked of; the rest, the way there and back, is `rest`.
    /// Clocks are not compared: those may be another kernel's.
    pub fn nest(&mut self, parts: impl IntoIterator<Item = Lap>, rest: &'static str) {
        let first = self.laps.len();
        self.laps.extend(parts);
        let known: Duration = self.laps[first..].iter().map(|lap| lap.took).sum();
        self.lap(rest);
        if let Some(last) = self.laps.last_mut() {
            last.took = last.took.saturating_sub(known);
        }
    }

    /// All that have ended, in their order.
    #[must_use]
    pub fn done(self) -> Vec<Lap> {
        self.laps
    }

    /// The same, to be read.
    #[must_use]
    pub fn all(&self) -> &[Lap] {
        &self.laps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_of_others_counts_once() {
        let mut laps = Laps::begin();
        laps.since -= Duration::from_secs(10);
        laps.lap("plan");
        laps.since -= Duration::from_secs(60);
        let inner = |name, seconds| Lap { name: Cow::Borrowed(name), took: Duration::from_secs(seconds) };
        laps.nest([inner("clone", 20), inner("mount", 30)], "answer");
        let seconds: Vec<_> = laps.all().iter().map(|lap| (lap.name.as_ref(), lap.took.as_secs())).collect();
        assert_eq!(seconds, [("plan", 10), ("clone", 20), ("mount", 30), ("answer", 10)]);
    }

    #[test]
    fn others_that_claim_too_much_leave_nothing() {
        let mut laps = Laps::begin();
        laps.nest([Lap { name: Cow::Borrowed("clone"), took: Duration::MAX / 2 }], "answer");
        assert_eq!(laps.done()[1].took, Duration::ZERO);
    }
}
