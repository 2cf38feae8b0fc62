//! The one place where a test waits for a state.

use std::time::{Duration, Instant};

/// Far more than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);

/// Asks until there is an answer.
///
/// # Panics
/// When there is none within half a minute.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited for {PATIENCE:?}: {what}");
        std::thread::park_timeout(PAUSE);
    }
}

/// Waits until something is so.
pub fn holds(what: &str, mut ask: impl FnMut() -> bool) {
    eventually(what, || ask().then_some(()));
}
