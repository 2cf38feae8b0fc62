//! The one place where a test waits for a state.

use std::time::{Duration, Instant};

/// Far more than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// Asks until there is an answer.
///
/// # Panics
/// When there is none within a minute.
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, ask)
}

/// Asks until there is an answer, for as long as `patience`.
pub(crate) fn within<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < patience, "waited for {patience:?}: {what}");
        std::thread::park_timeout(PAUSE);
    }
}

/// Waits until something is so.
pub fn holds(what: &str, mut ask: impl FnMut() -> bool) {
    eventually(what, || ask().then_some(()));
}
