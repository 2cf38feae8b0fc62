//! A container in memory, and the registry of all of them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use insula_base::{ContainerId, ExecId};
use insula_proto::Attachment;
use insula_store::{Collection, Store};
use jiff::Timestamp;
use tokio::sync::watch;

use super::row::{Phase, Row};
use crate::exec::Exec;
use crate::monitor::Task;
use crate::{Error, Result};

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    /// Held by whoever changes the container's life, one operation at a time. Exits are applied
    /// without it: they only ever meet a container that runs.
    pub(crate) turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

/// What changes.
#[derive(Debug)]
pub(crate) struct State {
    row: Arc<Row>,
    /// The monitor, while there is a sandbox.
    pub(crate) task: Option<Arc<Task>>,
    /// The monitor of a run that is over, until it has freed what that had.
    pub(crate) leaving: Option<Arc<Task>>,
    /// Answers its queries for names.
    pub(crate) names: Option<crate::names::Serving>,
    pub(crate) paused: bool,
    pub(crate) oom: bool,
    /// It is killed without its monitor, which can tell nothing of its end.
    pub(crate) killed: bool,
    /// Of one that runs.
    pub(crate) uptime: Option<Uptime>,
    /// Of one that runs and is probed.
    pub(crate) health: Option<insula_models::Health>,
    /// A user brings it down and starts it again: its end is no reason for its policy to do that, nor to remove it.
    pub(crate) stopping: bool,
    /// Its end removes it: nothing that it had is given back for another start.
    pub(crate) goes: bool,
    /// It was told to end, and who told it waits for that.
    pub(crate) told_to_end: bool,
    /// Waits for its restart policy to start it again.
    pub(crate) restarting: Option<tokio::task::AbortHandle>,
    /// How long the next restart will wait.
    pub(crate) backoff: Duration,
    pub(crate) execs: HashMap<ExecId, Exec>,
    /// Clients that attached before the start.
    pub(crate) attachments: Vec<(Attachment, std::os::fd::OwnedFd)>,
    /// Variables that are written nowhere: secrets of a step of a build.
    pub(crate) secrets: Vec<String>,
}

/// How long a container has run, whatever is done to the host's clock meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Uptime {
    /// Before this daemon took it over, as the clock has it.
    before: Duration,
    since: Instant,
}

impl Uptime {
    /// Of one that was started at `started` and is taken over now.
    pub(crate) fn of(started: Option<Timestamp>) -> Self {
        let before = started.map(|started| Timestamp::now().duration_since(started));
        // One that will have been started later says that the clock was set back.
        let before = before.and_then(|before| Duration::try_from(before).ok()).unwrap_or_default();
        Self { before, since: Instant::now() }
    }

    pub(crate) fn now(&self) -> Duration {
        self.before + self.since.elapsed()
    }
}

/// What others wait for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) running: bool,
    /// How many times it ended since the daemon started.
    pub(crate) exits: u64,
    pub(crate) code: i32,
    pub(crate) removed: bool,
    /// The daemon ends; the container need not.
    pub(crate) ending: bool,
}

impl State {
    /// Those that run, or will.
    pub(crate) fn unfinished_execs(&self) -> Vec<String> {
        let unfinished = self.execs.iter().filter(|(_, exec)| !exec.is_over());
        unfinished.map(|(id, _)| id.to_string()).collect()
    }
}

impl Container {
    pub(crate) fn new(row: Row) -> Self {
        let progress = Progress { running: row.running(), code: row.exit_code(), ..Progress::default() };
        Self {
            id: row.id.clone(),
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::new(State {
                row: Arc::new(row),
                task: None,
                leaving: None,
                names: None,
                paused: false,
                oom: false,
                killed: false,
                uptime: None,
                health: None,
                stopping: false,
                goes: false,
                told_to_end: false,
                restarting: None,
                backoff: Duration::ZERO,
                execs: HashMap::new(),
                attachments: Vec::new(),
                secrets: Vec::new(),
            }),
            progress: watch::Sender::new(progress),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn row(&self) -> Arc<Row> {
        self.state().row.clone()
    }

    /// Changes the row on disk, then in memory.
    pub(crate) fn change(&self, store: &Store, change: impl FnOnce(&mut Row)) -> Result<Arc<Row>> {
        let mut state = self.state();
        let mut row = Row::clone(&state.row);
        change(&mut row);
        store.state().records(Collection::Containers).replace(&row.record()?)?;
        state.row = Arc::new(row);
        Ok(state.row.clone())
    }

    /// The same for one field that only memory needs until the next commit.
    pub(crate) fn amend(&self, change: impl FnOnce(&mut Row)) -> Arc<Row> {
        let mut state = self.state();
        change(Arc::make_mut(&mut state.row));
        state.row.clone()
    }

    /// The connection to its monitor; the error of something that needs it to run.
    pub(crate) fn task(&self) -> Result<Arc<Task>> {
        let state = self.state();
        match (&state.row.phase, &state.task) {
            (Phase::Running { .. }, Some(task)) => Ok(task.clone()),
            _ => Err(Error::Conflict(format!("container {} is not running", self.id))),
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(crate) fn tell(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    /// Waits until an end that was heard of is put down to its last step, which takes away what it had: what
    /// a start would give again, and what a removal takes away too.
    pub(crate) async fn put_down(&self) {
        // The sender is here.
        let _ = self.subscribe().wait_for(|progress| !progress.running).await;
    }

    /// Docker's word for where it stands.
    pub(crate) fn status(&self) -> &'static str {
        let state = self.state();
        match &state.row.phase {
            Phase::Created | Phase::Starting => "created",
            Phase::Running { .. } if state.paused => "paused",
            Phase::Running { .. } => "running",
            Phase::Exited { .. } if state.restarting.is_some() => "restarting",
            Phase::Exited { .. } => "exited",
            Phase::Removing => "removing",
        }
    }
}

impl State {
    pub(crate) fn row(&self) -> &Row {
        &self.row
    }
}

/// All containers, by id and name.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: RwLock<Names>,
}

#[derive(Debug, Default)]
struct Names {
    by_id: HashMap<ContainerId, Arc<Container>>,
    by_name: HashMap<String, ContainerId>,
    /// How the last of those that are gone ended, newest last: a client whose wait was cut short by the
    /// daemon's end may ask when a container with `--rm` has been removed already.
    departed: VecDeque<(ContainerId, Progress)>,
}

/// How many containers that are gone are remembered.
const DEPARTED: usize = 256;

impl Registry {
    pub(crate) fn insert(&self, container: Arc<Container>) {
        let name = container.row().name.clone();
        let mut names = self.write();
        names.by_name.insert(name, container.id.clone());
        names.by_id.insert(container.id.clone(), container);
    }

    pub(crate) fn remove(&self, container: &Container) {
        let mut names = self.write();
        names.by_id.remove(&container.id);
        names.by_name.retain(|_, id| *id != container.id);
        if names.departed.len() == DEPARTED {
            names.departed.pop_front();
        }
        let last = Progress { removed: true, ..container.progress.borrow().clone() };
        names.departed.push_back((container.id.clone(), last));
    }

    /// How a container that is gone ended, by its complete id, as far as it is remembered.
    pub(crate) fn departed(&self, id: &ContainerId) -> Option<Progress> {
        self.read().departed.iter().rev().find(|(gone, _)| gone == id).map(|(_, progress)| progress.clone())
    }

    pub(crate) fn rename(&self, id: &ContainerId, name: &str) {
        let mut names = self.write();
        names.by_name.retain(|_, known| known != id);
        names.by_name.insert(name.to_owned(), id.clone());
    }

    pub(crate) fn get(&self, id: &ContainerId) -> Option<Arc<Container>> {
        self.read().by_id.get(id).cloned()
    }

    /// Every one, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        self.read().by_id.values().cloned().collect()
    }

    /// Has somebody look at what they are; none comes or goes meanwhile.
    pub(crate) fn as_they_are<T>(&self, look: impl FnOnce(&[Arc<Row>]) -> T) -> T {
        let names = self.read();
        let rows: Vec<_> = names.by_id.values().map(|container| container.row()).collect();
        look(&rows)
    }

    /// By complete id, name, or unique beginning of an id, in this order.
    pub(crate) fn find(&self, reference: &str) -> Result<Arc<Container>> {
        let names = self.read();
        let wanted = reference.strip_prefix('/').unwrap_or(reference);
        if let Ok(id) = wanted.parse::<ContainerId>()
            && let Some(container) = names.by_id.get(&id)
        {
            return Ok(container.clone());
        }
        if let Some(container) = names.by_name.get(wanted).and_then(|id| names.by_id.get(id)) {
            return Ok(container.clone());
        }
        let mut found =
            names.by_id.values().filter(|c| !wanted.is_empty() && c.id.as_str().starts_with(wanted));
        match (found.next(), found.next()) {
            (Some(container), None) => Ok(container.clone()),
            (Some(_), Some(_)) => {
                Err(Error::InvalidArgument(format!("multiple IDs found with provided prefix: {wanted}")))
            }
            (None, _) => Err(Error::NotFound(format!("No such container: {reference}"))),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Names> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Names> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}
