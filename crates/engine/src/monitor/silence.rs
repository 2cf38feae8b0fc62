//! Monitors that do not answer: how long they are waited for, and what is said then.
//!
//! A request ends, not the container. Its connection is closed, so that the monitor, if it goes on, does not carry out
//! what nobody waits for any more; it is connected to again when it answers.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use insula_host::process::Process;
use tokio::time::{Instant, timeout};

use crate::Error;

/// For one that is stopped: it does nothing until somebody continues it.
const STOPPED: Duration = Duration::from_secs(5);
/// For one that runs: it does one thing after the other, perhaps in a machine that is emulated on a busy host.
const BUSY: Duration = Duration::from_secs(300);
/// On top of what the user said.
const MARGIN: Duration = Duration::from_secs(2);
/// Between two looks at what it does.
const LOOK: Duration = Duration::from_millis(500);

/// How long a monitor may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    stopped: Duration,
    busy: Duration,
}

impl Patience {
    /// Of who has said nothing about it.
    pub(crate) const USUAL: Self = Self { stopped: STOPPED, busy: BUSY };

    /// To build a container: as long as it takes.
    pub(crate) const START: Self = Self { stopped: STOPPED, busy: Duration::MAX };

    /// Of a user who waits for so long, or for ever.
    pub(crate) fn of_user(said: Option<Duration>) -> Self {
        let said = said.unwrap_or(Duration::MAX).saturating_add(MARGIN);
        Self { stopped: said.max(STOPPED), busy: said.max(BUSY) }
    }

    /// Of who kills the container if there is no answer.
    pub(crate) fn before_killing(busy: Duration) -> Self {
        Self { stopped: STOPPED.min(busy), busy }
    }
}

/// Whose answers are waited for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    container: String,
    /// Unknown where the launch record cannot be read: it is waited for without an end then.
    process: Option<Process>,
}

impl Asked {
    pub(crate) fn new(container: &str, process: Option<Process>) -> Self {
        Self { container: container.to_owned(), process }
    }

    /// Waits for an answer; `None` when there is none in time.
    pub(crate) async fn within<T>(
        &self,
        patience: Patience,
        answer: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let mut answer = pin!(answer);
        let began = Instant::now();
        let mut stopped = Some(began);
        loop {
            if let Ok(answer) = timeout(LOOK, &mut answer).await {
                return Ok(answer);
            }
            // One that is gone closes its connection, which is an answer.
            let Some(state) = self.state() else { continue };
            let over = if says_stopped(state) {
                stopped.get_or_insert_with(Instant::now).elapsed() >= patience.stopped
            } else {
                // Somebody may stop it for a moment later, with a debugger.
                stopped = None;
                began.elapsed() >= patience.busy
            };
            if over {
                return Err(self.silent());
            }
        }
    }

    pub(crate) fn process(&self) -> Option<Process> {
        self.process
    }

    fn state(&self) -> Option<char> {
        self.process.and_then(state)
    }

    /// What there is to say about one that does not answer.
    pub(super) fn silent(&self) -> Error {
        let pid = self.process.map_or(0, |process| process.pid);
        let state = self.state();
        let does = match state {
            Some(state) if says_stopped(state) => {
                format!("it is stopped: continue it (kill -CONT {pid}), or remove the container by force")
            }
            Some('D') => "it waits for something in the kernel".to_owned(),
            _ => "it is busy".to_owned(),
        };
        let state = state.unwrap_or('-');
        let container = &self.container;
        Error::Silent(format!(
            "the monitor of {container} does not answer (pid {pid}, state {state}): {does}; the container is as it was"
        ))
    }
}

/// Whether a signal or a debugger has stopped it, as far as can be seen.
pub(crate) fn is_stopped(process: Process) -> bool {
    state(process).is_some_and(says_stopped)
}

fn state(process: Process) -> Option<char> {
    process.look().ok().flatten()
}

fn says_stopped(state: char) -> bool {
    matches!(state, 'T' | 't')
}
