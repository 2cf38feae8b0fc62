//! One process of a container, its first or one that was executed later.
//!
//! ```text
//! Created ── start ──> Running ── it ends ──> Stopped
//!    └────────────── it is killed ───────────────┘
//! ```
//!
//! Who learns first that it ended may be the thread that reaps, while another is still starting it: the end is
//! told after the start.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::topics::TASK_EXIT_EVENT_TOPIC;

use crate::children::{Ended, Exit};
use crate::error::{Error, Result};
use crate::events::Publisher;
use crate::stdio::{Stdio, Streams};
use crate::{lock, timestamp};

/// What containerd shows for what has no exit code.
const NEVER_RAN: i32 = 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    /// Being created or started: its end is told when that is done.
    Starting,
    Running,
    Stopped,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    /// 0 for one that was never there.
    pub(crate) pid: i32,
    pub(crate) exit: Option<Exit>,
}

/// What is done at its end before anybody is told.
pub(crate) type Last = Box<dyn Fn() + Send + Sync>;

pub(crate) struct Process {
    task: String,
    /// Empty for the first process.
    id: String,
    pub(crate) stdio: Stdio,
    state: Mutex<State>,
    changed: Condvar,
    streams: Mutex<Option<Arc<Streams>>>,
    publisher: Arc<Publisher>,
    last: Last,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("task", &self.task).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Process {
    pub(crate) fn new(
        task: &str,
        id: &str,
        stdio: Stdio,
        publisher: &Arc<Publisher>,
        last: Last,
    ) -> Arc<Self> {
        Arc::new(Self {
            task: task.to_owned(),
            id: id.to_owned(),
            stdio,
            state: Mutex::new(State { phase: Phase::Created, pid: 0, exit: None }),
            changed: Condvar::new(),
            streams: Mutex::default(),
            publisher: Arc::clone(publisher),
            last,
        })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn state(&self) -> State {
        *lock(&self.state)
    }

    pub(crate) fn set_pid(&self, pid: i32) {
        lock(&self.state).pid = pid;
    }

    pub(crate) fn set_streams(&self, streams: Streams) {
        *lock(&self.streams) = Some(Arc::new(streams));
    }

    pub(crate) fn streams(&self) -> Option<Arc<Streams>> {
        lock(&self.streams).clone()
    }

    /// Nobody else starts it from now on.
    pub(crate) fn begin(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if state.phase != Phase::Created || state.exit.is_some() {
            return Err(Error::Phase { verb: "start", phase: state.phase.name() });
        }
        state.phase = Phase::Starting;
        Ok(())
    }

    /// It was started: `tell` says so, and after it comes the end, if there was one meanwhile.
    pub(crate) fn started(&self, tell: impl FnOnce(i32)) -> i32 {
        let mut state = lock(&self.state);
        state.phase = Phase::Running;
        tell(state.pid);
        if let Some(exit) = state.exit {
            self.stop(&mut state, exit);
        }
        state.pid
    }

    /// It waits for its start now or again, or has ended.
    pub(crate) fn settle(&self) {
        let mut state = lock(&self.state);
        state.phase = Phase::Created;
        if let Some(exit) = state.exit {
            self.stop(&mut state, exit);
        }
    }

    fn stop(&self, state: &mut State, exit: Exit) {
        state.phase = Phase::Stopped;
        let mut event = TaskExit::new();
        event.container_id = self.task.clone();
        event.id = if self.id.is_empty() { self.task.clone() } else { self.id.clone() };
        event.pid = state.pid.unsigned_abs();
        event.exit_status = exit.code.unsigned_abs();
        event.exited_at = Some(timestamp(exit.at)).into();
        self.publisher.publish(TASK_EXIT_EVENT_TOPIC, &event);
        self.changed.notify_all();
    }

    /// Waits for the end, told and all.
    pub(crate) fn wait(&self) -> Exit {
        let mut state = lock(&self.state);
        loop {
            if let (Phase::Stopped, Some(exit)) = (state.phase, state.exit) {
                return exit;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The same, for so long at most.
    pub(crate) fn wait_for(&self, patience: Duration) -> Option<Exit> {
        let running = |state: &mut State| state.phase != Phase::Stopped;
        let waited = self.changed.wait_timeout_while(lock(&self.state), patience, running);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.exit.filter(|_| state.phase == Phase::Stopped)
    }

    /// It is removed: whoever waits for one that never ran waits no longer.
    pub(crate) fn abandon(&self) {
        let mut state = lock(&self.state);
        if state.exit.is_none() {
            state.exit = Some(Exit { code: NEVER_RAN, at: jiff::Timestamp::now() });
            state.phase = Phase::Stopped;
            self.changed.notify_all();
        }
    }

    /// It may be removed.
    pub(crate) fn check_removable(&self) -> Result<State> {
        let state = self.state();
        match state.phase {
            Phase::Created | Phase::Stopped => Ok(state),
            phase => Err(Error::Phase { verb: "delete", phase: phase.name() }),
        }
    }
}

impl Ended for Process {
    fn ended(&self, exit: Exit) {
        (self.last)();
        let mut state = lock(&self.state);
        state.exit = Some(exit);
        if state.phase != Phase::Starting {
            self.stop(&mut state, exit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn process() -> Arc<Process> {
        let nobody = Publisher::start("n", "/no/such/socket").unwrap();
        Process::new("box", "", Stdio::default(), &nobody, Box::new(|| ()))
    }

    fn exit(code: i32) -> Exit {
        Exit { code, at: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn an_end_during_the_start_is_told_after_it() {
        let process = process();
        process.begin().unwrap();
        process.set_pid(7);
        process.ended(exit(3));
        assert_eq!(process.wait_for(Duration::ZERO), None);
        assert_eq!(process.started(|pid| assert_eq!(pid, 7)), 7);
        assert_eq!(process.wait().code, 3);
        assert!(process.begin().is_err());
    }

    #[test]
    fn one_that_did_not_start_may_be_started_again() {
        let process = process();
        process.begin().unwrap();
        assert!(process.begin().is_err());
        assert!(process.check_removable().is_err());
        process.settle();
        process.begin().unwrap();
        process.started(|_| ());
        assert_eq!(process.state().phase, Phase::Running);
    }

    #[test]
    fn nobody_waits_for_one_that_never_ran() {
        let process = process();
        let waiting = Arc::clone(&process);
        let waiter = std::thread::spawn(move || waiting.wait().code);
        process.abandon();
        assert_eq!(waiter.join().unwrap(), NEVER_RAN);
    }
}
