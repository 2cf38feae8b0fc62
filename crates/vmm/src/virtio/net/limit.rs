//! How much a card sends: a bucket of time, and a timer for what has to wait.
//!
//! The interface in the guest has a limit too, by which packets wait fairly. But whoever is master of the guest's
//! kernel lifts that one; here nobody of the guest's comes by.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::error::{Error, Result};

/// Bytes that may go at once: what ten milliseconds carry, and no less than the largest frame. As `tc` has it for
/// the other end (`host::netlink`).
const LEAST_BURST: u64 = 64 << 10;
const NANOSECONDS: u128 = 1_000_000_000;

/// A token bucket, counted in time: each frame takes as long as it does at the rate, and the sum may be ahead of the
/// clock by the bucket's depth.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bucket {
    /// Bits a second.
    rate: NonZeroU64,
    depth: Duration,
    /// When all that has gone would have gone at the rate.
    due: Duration,
}

impl Bucket {
    fn new(rate: NonZeroU64) -> Self {
        let burst = (rate.get() / 8 / 100).max(LEAST_BURST);
        Self { rate, depth: time(burst, rate), due: Duration::ZERO }
    }

    /// Lets a frame go, or says how long it has to wait.
    fn take(&mut self, now: Duration, bytes: u64) -> Result<(), Duration> {
        let due = self.due.max(now);
        match (due - now).checked_sub(self.depth) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                self.due = due.saturating_add(time(bytes, self.rate));
                Ok(())
            }
        }
    }
}

/// What so many bytes take at a rate, rounded up.
fn time(bytes: u64, rate: NonZeroU64) -> Duration {
    let nanoseconds = (u128::from(bytes) * 8 * NANOSECONDS).div_ceil(u128::from(rate.get()));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// A rate that whoever holds the machine sets while it runs: messages of eight bytes, bits a second, little endian;
/// 0 for none.
#[derive(Debug)]
pub(super) struct Limit {
    control: File,
    timer: OwnedFd,
    bucket: Option<Bucket>,
    now: fn() -> Duration,
}

impl Limit {
    /// `control` is a socket of messages, and does not wait.
    pub(super) fn new(control: OwnedFd, now: fn() -> Duration) -> Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|error| Error::call("timerfd_create", "a network card", error))?;
        Ok(Self { control: File::from(control), timer, bucket: None, now })
    }

    pub(super) fn sources(&self) -> [BorrowedFd<'_>; 2] {
        [self.timer.as_fd(), self.control.as_fd()]
    }

    /// Takes what was set meanwhile.
    pub(super) fn refresh(&mut self) {
        let mut message = [0; 8];
        // None is there, the other side is gone, or it is not to be understood: the rate stays.
        while matches!(self.control.read(&mut message), Ok(8)) {
            self.bucket = NonZeroU64::new(u64::from_le_bytes(message)).map(Bucket::new);
        }
    }

    /// Whether a frame may go now. If not, the timer says when.
    pub(super) fn allows(&mut self, bytes: usize) -> Result<bool> {
        let Some(bucket) = &mut self.bucket else { return Ok(true) };
        let Err(wait) = bucket.take((self.now)(), bytes as u64) else { return Ok(true) };
        let when = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let timer = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: when };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer)
            .map_err(|error| Error::call("timerfd_settime", "a network card", error))?;
        Ok(false)
    }
}

/// Since somebody asked first.
pub(super) fn monotonic() -> Duration {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    BEGIN.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(bits: u64) -> NonZeroU64 {
        NonZeroU64::new(bits).unwrap()
    }

    #[test]
    fn what_is_over_the_burst_goes_at_the_rate() {
        // A megabyte a second; 64 KiB at once.
        let mut bucket = Bucket::new(rate(8_000_000));
        let (mut now, mut sent) = (Duration::from_secs(5), 0);
        let end = now + Duration::from_secs(10);
        while now < end {
            match bucket.take(now, 1500) {
                Ok(()) => sent += 1500,
                Err(wait) => now += wait,
            }
        }
        let expected = 10_000_000 + LEAST_BURST;
        assert!((expected - 3000..=expected + 3000).contains(&sent), "{sent}");
        // Who was silent has no more than the burst again.
        now += Duration::from_secs(100);
        let burst = std::iter::from_fn(|| bucket.take(now, 1500).ok()).count() as u64;
        assert!((LEAST_BURST..LEAST_BURST + 3000).contains(&(burst * 1500)), "{burst}");
    }

    proptest! {
        /// Whatever comes whenever: between any two moments no more goes than the rate, the burst and one frame.
        #[test]
        fn no_stretch_of_time_carries_more(
            bits in 1u64..1 << 40,
            frames in prop::collection::vec((0u64..20_000_000, 0u64..65_550), 1..200),
        ) {
            let mut bucket = Bucket::new(rate(bits));
            let burst = (bits / 800).max(LEAST_BURST);
            let (mut now, mut gone) = (Duration::from_secs(1), Vec::new());
            for (pause, bytes) in frames {
                now += Duration::from_nanos(pause);
                if bucket.take(now, bytes).is_ok() {
                    gone.push((now, bytes));
                }
            }
            for (at, (begin, _)) in gone.iter().enumerate() {
                let mut sum = 0;
                for (end, bytes) in &gone[at..] {
                    let time = (*end - *begin).as_nanos();
                    let most = u128::from(bits) * time / (8 * NANOSECONDS) + u128::from(burst) + 65_550 + 1;
                    sum += u128::from(*bytes);
                    prop_assert!(sum <= most, "{sum} > {most} in {time} ns");
                }
            }
        }

        /// Who waits as long as it is told can go on.
        #[test]
        fn who_waited_goes(bits in 1u64..1 << 50, bytes in prop::collection::vec(0u64..65_550, 1..50)) {
            let (mut bucket, mut now) = (Bucket::new(rate(bits)), Duration::from_secs(1));
            for bytes in bytes {
                if let Err(wait) = bucket.take(now, bytes) {
                    now += wait;
                    prop_assert_eq!(bucket.take(now, bytes), Ok(()));
                }
            }
        }
    }
}
