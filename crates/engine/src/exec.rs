//! Processes beside a container's first one. The next daemon learns from the monitor which of them run, and how
//! the last ones ended, so that who waits for one is told; what they were asked for with it does not know.

pub(crate) mod probe;

use insula_sys::failpoint::failpoint;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use insula_base::{ContainerId, ExecId};
use insula_models::{ExecCreateRequest, ExecInspect, ExecProcessConfig, ExecStartRequest, IdResponse};
use insula_proto::{Attachment, Call, Empty, ExecExited, Outcome, Resize};
use insula_spec::plan::{ProcessPlan, StdioPlan};
use tokio::sync::Notify;

use crate::containers::attach::detach_keys;
use crate::containers::container::Container;
use crate::containers::merge::{environment, overlay};
use crate::containers::row::Row;
use crate::{AttachedStream, Engine, Error, Result};

/// How long one that ended can be inspected.
const KEPT: Duration = Duration::from_secs(300);
/// How long the word of an end may take from the monitor to here.
const SETTLED: Duration = Duration::from_secs(2);
/// The code of one that ended while nobody could see how.
const LOST: i32 = 255;
/// How many of a container may be remembered.
const MOST: usize = 4096;

/// One such process.
#[derive(Debug)]
pub(crate) struct Exec {
    request: ExecCreateRequest,
    state: ExecState,
    pid: i32,
    /// Of the last change.
    since: Instant,
    /// Told when it ended.
    over: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExecState {
    Created,
    Starting,
    Running,
    Ended { code: i32 },
}

impl Exec {
    /// Its container ended, and it with it.
    pub(crate) fn ended(&mut self) {
        if matches!(self.state, ExecState::Starting | ExecState::Running) {
            self.end(137);
        }
    }

    fn end(&mut self, code: i32) {
        self.state = ExecState::Ended { code };
        self.since = Instant::now();
        self.over.notify_waiters();
    }

    /// One that was started for another daemon.
    fn found(state: ExecState) -> Self {
        let request = ExecCreateRequest::default();
        Self { request, state, pid: 0, since: Instant::now(), over: Arc::default() }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, ExecState::Ended { .. })
    }

    fn forgettable(&self) -> bool {
        self.is_over() && self.since.elapsed() > KEPT
    }
}

/// What one needs to know before taking a connection over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecTarget {
    /// Output is raw rather than multiplexed.
    pub tty: bool,
}

impl Engine {
    pub async fn create_exec(&self, reference: &str, request: ExecCreateRequest) -> Result<IdResponse> {
        let container = self.find(reference)?;
        container.task()?;
        let mut state = container.state();
        if state.paused {
            return Err(Error::Conflict(format!(
                "Container {} is paused, unpause the container before exec",
                container.id
            )));
        }
        if request.cmd.is_empty() {
            return Err(Error::InvalidArgument("No exec command specified".to_owned()));
        }
        self.0.config.policy.check_exec(&request)?;
        detach_keys(Some(&request.detach_keys), request.tty)?;
        let over = state.execs.iter().filter(|(_, exec)| exec.forgettable());
        let forgotten: Vec<ExecId> = over.map(|(id, _)| id.clone()).collect();
        forgotten.iter().for_each(|id| drop(state.execs.remove(id)));
        if state.execs.len() >= MOST {
            return Err(Error::Conflict(format!("container {} has {MOST} execs already", container.id)));
        }
        let id = ExecId::random();
        let action = told("exec_create", &request.cmd);
        let exec =
            Exec { request, state: ExecState::Created, pid: 0, since: Instant::now(), over: Arc::default() };
        state.execs.insert(id.clone(), exec);
        drop(state);
        self.0.execs.insert(id.clone(), container.id.clone());
        forgotten.iter().for_each(|id| self.0.execs.remove(id));
        failpoint("exec.created");
        self.publish(&container.row(), &action, &[("execID", id.as_str())]);
        Ok(IdResponse { id: id.to_string() })
    }

    /// Fails if there is no such exec, or it ran already, before the connection is taken over.
    pub async fn exec_target(&self, id: &str) -> Result<ExecTarget> {
        let (container, id) = self.find_exec(id)?;
        with(&container, &id, |exec| startable(exec, &id).map(|()| ExecTarget { tty: exec.request.tty }))
    }

    /// Starts it; with a stream, that becomes its standard streams, without it is detached.
    pub async fn start_exec(
        &self,
        id: &str,
        start: ExecStartRequest,
        stream: Option<AttachedStream>,
    ) -> Result<()> {
        let (container, id) = self.find_exec(id)?;
        let task = container.task()?;
        let request = with(&container, &id, |exec| {
            startable(exec, &id)?;
            exec.state = ExecState::Starting;
            Ok(exec.request.clone())
        })?;
        let action = told("exec_start", &request.cmd);
        let call = call(&container.row(), &id, &request, &start, stream.as_ref())?;
        let descriptors: Vec<_> = stream.into_iter().map(|stream| stream.descriptor).collect();
        self.publish(&container.row(), &action, &[("execID", id.as_str())]);
        match task.call(Call::Exec(call), &descriptors).await {
            Ok(Outcome::Started(started)) => with(&container, &id, |exec| {
                failpoint("exec.answered");
                // A short one may have ended before this.
                if exec.state == ExecState::Starting {
                    exec.state = ExecState::Running;
                }
                exec.pid = started.pid;
                Ok(())
            }),
            Ok(other) => Err(Error::Internal(format!("the monitor answered an exec with {other:?}"))),
            Err(error) => {
                let code = match &error {
                    Error::Wall { exit_code: Some(code), .. } => *code,
                    _ => 126,
                };
                with(&container, &id, |exec| {
                    exec.end(code);
                    Ok(())
                })?;
                Err(error)
            }
        }
    }

    pub async fn inspect_exec(&self, id: &str) -> Result<ExecInspect> {
        let (container, id) = self.find_exec(id)?;
        settle(&container, &id).await?;
        let row = container.row();
        with(&container, &id, |exec| Ok(inspect(exec, &id, &row)))
    }

    pub async fn resize_exec(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let (container, id) = self.find_exec(id)?;
        with(&container, &id, |exec| match exec.state {
            ExecState::Running | ExecState::Starting => Ok(()),
            _ => Err(Error::Conflict(format!("exec process {id} is not running"))),
        })?;
        let call = Resize { exec: id.to_string(), columns: columns.into(), rows: rows.into() };
        container.task()?.call(Call::Resize(call), &[]).await.map(drop)
    }

    pub(crate) fn exec_ended(&self, container: &Arc<Container>, exited: &ExecExited) {
        let Ok(id) = exited.exec.parse::<ExecId>() else { return };
        let ended = with(container, &id, |exec| {
            exec.end(exited.code);
            Ok(())
        });
        if ended.is_ok() {
            let code = exited.code.to_string();
            self.publish(&container.row(), "exec_die", &[("execID", id.as_str()), ("exitCode", &code)]);
        }
    }

    /// Takes up what the monitor knows of those that were started for another daemon. Before it is listened to.
    pub(crate) fn take_up_execs(&self, container: &Arc<Container>, status: &insula_proto::Status) {
        let running = status.execs.iter().map(|id| (id, ExecState::Running));
        let ended = status.ended_execs.iter().map(|one| (&one.exec, ExecState::Ended { code: one.code }));
        let mut state = container.state();
        for (id, found) in running.chain(ended) {
            let Ok(id) = id.parse::<ExecId>() else { continue };
            state.execs.insert(id.clone(), Exec::found(found));
            self.0.execs.insert(id, container.id.clone());
        }
    }

    /// What became meanwhile of those that this daemon knows of, from a monitor that did not answer for a while.
    /// Before it is listened to.
    pub(crate) fn catch_up_on_execs(&self, container: &Arc<Container>, status: &insula_proto::Status) {
        for exec in &status.execs {
            let Ok(id) = exec.parse::<ExecId>() else { continue };
            // One whose start was given up may have begun all the same.
            let _ = with(container, &id, |exec| {
                exec.state = ExecState::Running;
                Ok(())
            });
        }
        let began = |exec: &Exec| matches!(exec.state, ExecState::Starting | ExecState::Running);
        let known: Vec<String> = {
            let state = container.state();
            state.execs.iter().filter(|(_, exec)| began(exec)).map(|(id, _)| id.to_string()).collect()
        };
        for exec in known.into_iter().filter(|exec| !status.execs.contains(exec)) {
            let ended = status.ended_execs.iter().find(|ended| ended.exec == exec);
            let code = ended.map_or(LOST, |ended| ended.code);
            self.exec_ended(container, &ExecExited { exec, code });
        }
    }

    fn find_exec(&self, id: &str) -> Result<(Arc<Container>, ExecId)> {
        let missing = || Error::NotFound(format!("No such exec instance: {id}"));
        let exec: ExecId = self.0.execs.find(id).ok_or_else(missing)?;
        let container = self.0.execs.container(&exec).and_then(|id| self.0.containers.get(&id));
        Ok((container.ok_or_else(missing)?, exec))
    }
}

/// A client asks how an exec ended as soon as its streams did, which may be before the monitor's word
/// of it has been read here. So of one that seems to run the monitor is asked.
async fn settle(container: &Container, id: &ExecId) -> Result<()> {
    let over = with(container, id, |exec| Ok(exec.over.clone()))?;
    let mut told = pin!(over.notified());
    // From here on no end is missed.
    told.as_mut().enable();
    // A short one can be over before its start was answered.
    let seems_to_run = |exec: &mut Exec| Ok(matches!(exec.state, ExecState::Starting | ExecState::Running));
    if !with(container, id, seems_to_run)? {
        return Ok(());
    }
    let Ok(task) = container.task() else { return Ok(()) };
    match task.call(Call::Status(Empty {}), &[]).await {
        Ok(Outcome::Status(status)) if !status.execs.iter().any(|exec| exec == id.as_str()) => {
            // It is on its way; if the monitor fails meanwhile, the exec shows as it was.
            let _ = tokio::time::timeout(SETTLED, told).await;
        }
        _ => {}
    }
    Ok(())
}

fn with<T>(container: &Container, id: &ExecId, work: impl FnOnce(&mut Exec) -> Result<T>) -> Result<T> {
    let mut state = container.state();
    let exec = state.execs.get_mut(id);
    work(exec.ok_or_else(|| Error::NotFound(format!("No such exec instance: {id}")))?)
}

/// An event's action with a command: its first word and the others, with a blank between them even if there are
/// no others, as Docker has it.
fn told(action: &str, words: &[String]) -> String {
    let (first, others) =
        words.split_first().map_or(("", &[][..]), |(first, others)| (first.as_str(), others));
    format!("{action}: {first} {}", others.join(" "))
}

fn startable(exec: &Exec, id: &ExecId) -> Result<()> {
    match exec.state {
        ExecState::Created => Ok(()),
        ExecState::Starting | ExecState::Running => {
            Err(Error::Conflict(format!("Error: Exec command {id} is already running")))
        }
        ExecState::Ended { .. } => Err(Error::Conflict(format!("Error: Exec command {id} has already run"))),
    }
}

fn call(
    row: &Row,
    id: &ExecId,
    request: &ExecCreateRequest,
    start: &ExecStartRequest,
    stream: Option<&AttachedStream>,
) -> Result<insula_proto::Exec> {
    let write = |error| Error::Internal(format!("write an exec's plan: {error}"));
    let [rows, columns] = start.console_size.or(request.console_size).unwrap_or_default();
    let bounded = |value: u32| u16::try_from(value).unwrap_or(0);
    let stdio = StdioPlan {
        tty: request.tty,
        columns: bounded(columns),
        rows: bounded(rows),
        open_stdin: request.attach_stdin && stream.is_some(),
        stdin_once: true,
    };
    let attachment = stream.map(|stream| Attachment {
        stdin: request.attach_stdin,
        stdout: request.attach_stdout,
        stderr: request.attach_stderr,
        multiplexed: !request.tty,
        already_read: stream.already_read.clone(),
        detach_keys: detach_keys(Some(&request.detach_keys), request.tty).unwrap_or_default(),
    });
    Ok(insula_proto::Exec {
        exec: id.to_string(),
        process: serde_json::to_vec(&process(row, request)?).map_err(write)?,
        stdio: serde_json::to_vec(&stdio).map_err(write)?,
        attachments: attachment.into_iter().collect(),
        privileged: request.privileged,
        remembered: true,
    })
}

fn process(row: &Row, request: &ExecCreateRequest) -> Result<ProcessPlan> {
    let mut process = crate::plan::process(row)?;
    process.args.clone_from(&request.cmd);
    process.env = environment(&row.config, &row.config.hostname);
    if request.tty && !process.env.iter().any(|line| line.starts_with("TERM=")) {
        process.env.push("TERM=xterm".to_owned());
    }
    overlay(&mut process.env, &request.env);
    if !request.working_dir.is_empty() {
        process.cwd.clone_from(&request.working_dir);
    }
    if !request.user.is_empty() {
        process.user.clone_from(&request.user);
    }
    if request.privileged {
        process.capabilities = insula_host::confine::capabilities::effective(&[], &[], true)?;
    }
    Ok(process)
}

fn inspect(exec: &Exec, id: &ExecId, row: &Row) -> ExecInspect {
    let request = &exec.request;
    let mut words = request.cmd.iter().cloned();
    ExecInspect {
        id: id.to_string(),
        running: matches!(exec.state, ExecState::Starting | ExecState::Running),
        exit_code: match exec.state {
            ExecState::Ended { code } => Some(code.into()),
            _ => None,
        },
        process_config: ExecProcessConfig {
            tty: request.tty,
            entrypoint: words.next().unwrap_or_default(),
            arguments: words.collect(),
            privileged: request.privileged,
            // The container's own without one.
            user: Some(&request.user).filter(|user| !user.is_empty()).unwrap_or(&row.config.user).clone(),
        },
        open_stdin: request.attach_stdin,
        open_stderr: request.attach_stderr,
        open_stdout: request.attach_stdout,
        can_remove: false,
        container_id: row.id.to_string(),
        detach_keys: request.detach_keys.clone(),
        pid: exec.pid.into(),
    }
}

/// Which container an exec belongs to.
#[derive(Debug, Default)]
pub(crate) struct ExecIndex(std::sync::Mutex<std::collections::HashMap<ExecId, ContainerId>>);

impl ExecIndex {
    fn insert(&self, exec: ExecId, container: ContainerId) {
        self.lock().insert(exec, container);
    }

    /// By complete id or unique beginning.
    fn find(&self, text: &str) -> Option<ExecId> {
        let known = self.lock();
        if let Ok(id) = text.parse::<ExecId>() {
            return known.contains_key(&id).then_some(id);
        }
        let mut found = known.keys().filter(|id| !text.is_empty() && id.as_str().starts_with(text));
        found.next().filter(|_| found.next().is_none()).cloned()
    }

    fn container(&self, exec: &ExecId) -> Option<ContainerId> {
        self.lock().get(exec).cloned()
    }

    pub(crate) fn remove(&self, exec: &ExecId) {
        self.lock().remove(exec);
    }

    /// Forgets those whose container has forgotten them.
    pub(crate) fn retain(&self, known: impl Fn(&ExecId, &ContainerId) -> bool) {
        self.lock().retain(|exec, container| known(exec, container));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<ExecId, ContainerId>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
