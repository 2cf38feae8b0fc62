//! Trying again, with growing pauses.

use std::time::Duration;

use crate::options::Limits;
use crate::{Error, Result};

/// How often something was tried, and how long to wait before the next time.
#[derive(Debug)]
pub(crate) struct Attempts {
    made: u32,
    most: u32,
    first_pause: Duration,
    longest_pause: Duration,
}

impl Attempts {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            made: 0,
            most: limits.attempts,
            first_pause: limits.first_pause,
            longest_pause: limits.longest_pause,
        }
    }

    /// After a success that was no mere beginning, counting starts anew.
    pub(crate) fn begin_again(&mut self) {
        self.made = 0;
    }

    /// Waits before the next attempt, or gives the error back if there is to be none.
    pub(crate) async fn after(&mut self, error: Error) -> Result<()> {
        self.made += 1;
        if !error.is_transient() || self.made >= self.most {
            return Err(error);
        }
        let asked = match &error {
            Error::Status { wait, .. } => *wait,
            _ => None,
        };
        let pause = asked.unwrap_or_else(|| self.pause()).min(self.longest_pause);
        tracing::info!(error = insula_base::chain(&error), attempt = self.made, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Doubles each time. A part of it is chance, so that many who failed together do not come back
    /// together.
    fn pause(&self) -> Duration {
        let full = self.first_pause.saturating_mul(1 << (self.made - 1).min(10));
        let chance = u32::from_str_radix(&insula_base::random_hex(1), 16).unwrap_or(128);
        full.mul_f64(0.75 + f64::from(chance) / 1024.0)
    }
}

/// Runs `attempt` until it succeeds, fails for good or was tried often enough.
pub(crate) async fn retried<T, F>(limits: &Limits, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut attempts = Attempts::new(limits);
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            // Nobody is there: who asks for the first thing is told at once.
            Err(Error::Connection { doing, source }) if source.is_connect() => {
                return Err(Error::Connection { doing, source });
            }
            Err(error) => attempts.after(error).await?,
        }
    }
}
