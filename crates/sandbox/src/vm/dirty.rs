//! How much of its memory a guest writes, asked of whatever runs it.

use std::time::{Duration, Instant};

use insula_spec::machine::{DirtyRate, MachinePlan};

use super::backend::Machine;
use crate::{Error, Result};

/// How long after its time whoever has asked is waited for: another one must not begin before that one has heard what
/// was counted. Who goes away says so.
const GRACE: Duration = Duration::from_secs(5);

/// What a backend has counted, or estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) pages: u64,
    pub(super) time: Duration,
    pub(super) sampled: bool,
}

/// Until when a machine counts for somebody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Counting {
    #[default]
    No,
    Until(Instant),
    /// Nobody wants to know any more, but it cannot be stopped.
    InVain(Instant),
}

impl Counting {
    /// That nobody else's time runs.
    fn check(self, now: Instant) -> Result<()> {
        match self {
            Self::Until(end) if now < end + GRACE => Err(taken()),
            Self::InVain(end) if now < end => Err(taken()),
            _ => Ok(()),
        }
    }
}

fn taken() -> Error {
    Error::Full("the machine's dirty rate is being measured already".to_owned())
}

impl Machine {
    /// Counts from now on; for one at a time.
    pub(super) fn measure_dirty_rate(&mut self, period: Duration) -> Result<()> {
        if !DirtyRate::PERIODS.contains(&period) {
            let (least, most) = (DirtyRate::PERIODS.start(), DirtyRate::PERIODS.end());
            return Err(Error::Invalid(format!(
                "a dirty rate is measured for {} ms to {} s, not for {} ms",
                least.as_millis(),
                most.as_secs(),
                period.as_millis()
            )));
        }
        let now = Instant::now();
        self.counting.check(now)?;
        self.control.count(period)?;
        self.counting = Counting::Until(now + period);
        Ok(())
    }

    /// What was counted in the machine of this plan; none before the time is over.
    pub(super) fn dirty_rate(&mut self, plan: &MachinePlan) -> Result<Option<DirtyRate>> {
        if !matches!(self.counting, Counting::Until(_)) {
            return Err(Error::Phase { is: "not being measured", needed: "so" });
        }
        let counted = self.control.counted().inspect_err(|_| self.counting = Counting::No)?;
        let Some(Counted { pages, time, sampled }) = counted else { return Ok(None) };
        self.counting = Counting::No;
        // Whoever runs a guest may be the guest's by now.
        let pages = pages.min(plan.memory / DirtyRate::PAGE);
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        Ok(Some(DirtyRate { backend: plan.backend, memory: plan.memory, pages, microseconds, sampled }))
    }

    /// Nobody wants to know any more.
    pub(super) fn forget_dirty_rate(&mut self) -> Result<()> {
        if let Counting::Until(end) = self.counting {
            self.counting = if self.control.stop_counting()? { Counting::No } else { Counting::InVain(end) };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_counts_at_a_time() {
        let now = Instant::now();
        let (long_before, after) = (now - GRACE, now + Duration::from_secs(1));
        for free in [Counting::No, Counting::Until(long_before), Counting::InVain(now)] {
            assert!(free.check(now).is_ok(), "{free:?}");
        }
        for taken in [Counting::Until(after), Counting::Until(now), Counting::InVain(after)] {
            assert!(matches!(taken.check(now), Err(Error::Full(_))), "{taken:?}");
        }
    }
}
