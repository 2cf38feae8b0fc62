//! By when something has to have happened, and how long that was, for who is told that it did not.

use std::fmt;
use std::time::{Duration, Instant};

use rustix::event::Timespec;

#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    began: Instant,
    patience: Duration,
}

impl Deadline {
    pub(super) fn since(began: Instant, patience: Duration) -> Self {
        Self { began, patience }
    }

    pub(super) fn from_now(patience: Duration) -> Self {
        Self::since(Instant::now(), patience)
    }

    /// How long poll(2) may wait; none when the time is over.
    pub(super) fn left(&self) -> Option<Timespec> {
        let left = self.patience.checked_sub(self.began.elapsed()).filter(|left| !left.is_zero())?;
        Some(Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        })
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} s", self.patience.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_when_it_is_over() {
        let (now, hour) = (Instant::now(), Duration::from_secs(3600));
        let left = Deadline::since(now, hour).left().unwrap();
        assert!(left.tv_sec > 0 && left.tv_sec <= 3600, "{left:?}");
        assert!(Deadline::since(now, Duration::ZERO).left().is_none());
        assert_eq!(Deadline::from_now(hour).to_string(), "3600 s");
    }
}
