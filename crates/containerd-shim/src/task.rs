//! A container with its processes: containerd's word is task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, ExecProcessRequest};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use insula_spec::bundle::document;
use tracing::warn;

use crate::children::Exit;
use crate::error::{Context, Error, Result};
use crate::events::Publisher;
use crate::options::Checkpoint;
use crate::process::{Phase, Process, State};
use crate::stdio::Stdio;
use crate::wall::Wall;
use crate::{lock, rootfs};

/// How long one that is killed may take to end.
const DYING: Duration = Duration::from_secs(10);
/// Longest name of a process: it becomes that of a file.
const LONGEST: usize = 128;

/// A container that stands.
#[derive(Debug)]
pub(crate) struct Task {
    id: String,
    bundle: PathBuf,
    wall: Box<dyn Wall>,
    init: Arc<Process>,
    executed: Mutex<BTreeMap<String, Arc<Process>>>,
    publisher: Arc<Publisher>,
    /// Held by who starts, deletes or changes it.
    life: Mutex<()>,
}

impl Task {
    /// Creates it; on failure nothing is left. Its end is not told before [`Process::settle`].
    pub(crate) fn create(
        request: &CreateTaskRequest,
        wall: Box<dyn Wall>,
        publisher: &Arc<Publisher>,
    ) -> Result<Arc<Self>> {
        let checkpoint = Some(Path::new(&request.checkpoint)).filter(|path| !path.as_os_str().is_empty());
        let bundle = PathBuf::from(&request.bundle);
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let init = Process::new(&request.id, "", stdio, publisher, wall.last());
        init.begin()?;
        let root = bundle.join("rootfs");
        rootfs::mount(&request.rootfs, &root)?;
        let (id, publisher) = (request.id.clone(), Arc::clone(publisher));
        let (executed, life) = (Mutex::default(), Mutex::default());
        let task = Arc::new(Self { id, bundle, wall, init, executed, publisher, life });
        match task.wall.create(&task.init, checkpoint) {
            Ok(()) => Ok(task),
            Err(error) => {
                // The first error is the one to report; this may be repeated.
                let _ = rootfs::unmount(&root);
                Err(error)
            }
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn bundle(&self) -> &Path {
        &self.bundle
    }

    pub(crate) fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// The first process where `exec` is empty.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        lock(&self.executed)
            .get(exec)
            .cloned()
            .ok_or_else(|| Error::UnknownProcess { task: self.id().to_owned(), exec: exec.to_owned() })
    }

    /// Starts the first process; `tell` says so before anybody learns of its end.
    pub(crate) fn start(&self, tell: impl FnOnce(i32)) -> Result<i32> {
        let _life = lock(&self.life);
        self.init.begin()?;
        match self.wall.start(&self.init) {
            Ok(()) => Ok(self.init.started(tell)),
            Err(error) => {
                self.init.settle();
                Err(error)
            }
        }
    }

    /// Notes a process that is to be executed.
    pub(crate) fn add(&self, request: &ExecProcessRequest) -> Result<()> {
        let id = request.exec_id.as_str();
        check(id)?;
        if self.init.state().phase == Phase::Stopped {
            return Err(Error::Ended);
        }
        let mut executed = lock(&self.executed);
        if executed.contains_key(id) {
            return Err(Error::Exists(id.to_owned()));
        }
        let spec = &request.spec.value;
        document::parse::<document::Process>(spec, "spec")?;
        let path = self.process_file(id);
        std::fs::write(&path, spec).context("write", path.display())?;
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let process = Process::new(self.id(), id, stdio, &self.publisher, Box::new(|| ()));
        executed.insert(id.to_owned(), process);
        Ok(())
    }

    fn process_file(&self, exec: &str) -> PathBuf {
        self.bundle().join(format!("exec-{exec}.json"))
    }

    /// Executes what was noted.
    pub(crate) fn execute(&self, exec: &str, tell: impl FnOnce(i32)) -> Result<i32> {
        let process = self.process(exec)?;
        process.begin()?;
        match self.wall.execute(&process, &self.process_file(exec)) {
            Ok(()) => Ok(process.started(tell)),
            Err(error) => {
                process.settle();
                Err(error)
            }
        }
    }

    /// Removes a process that was executed and has ended, or was not started.
    pub(crate) fn remove(&self, exec: &str) -> Result<(State, Exit)> {
        let process = self.process(exec)?;
        let state = process.check_removable()?;
        process.abandon();
        if let Some(streams) = process.streams() {
            streams.drain();
        }
        lock(&self.executed).remove(exec);
        self.wall.forget(&process);
        // The bundle goes later.
        let _ = std::fs::remove_file(self.process_file(exec));
        Ok((state, process.wait()))
    }

    /// Removes the container, which has ended or was not started.
    pub(crate) fn delete(&self) -> Result<(State, Exit)> {
        let _life = lock(&self.life);
        let state = self.init.check_removable()?;
        self.wall.delete(&self.init)?;
        let ended = self.init.wait_for(DYING);
        let exit = ended.ok_or_else(|| Error::Invalid(format!("process {} does not end", state.pid)))?;
        if let Some(streams) = self.init.streams() {
            streams.drain();
        }
        rootfs::unmount(&self.bundle().join("rootfs"))?;
        Ok((state, exit))
    }

    /// Sends a signal to a process, or to all of them.
    pub(crate) fn kill(&self, exec: &str, signal: i32, all: bool) -> Result<()> {
        self.wall.signal(&*self.process(exec)?, signal, all)
    }

    pub(crate) fn resize(&self, exec: &str, columns: u16, rows: u16) -> Result<()> {
        self.wall.resize(&*self.process(exec)?, columns, rows)
    }

    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        let _life = lock(&self.life);
        self.wall.freeze(frozen)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.wall.is_paused()
    }

    /// Writes the container to files.
    pub(crate) fn checkpoint(&self, order: &Checkpoint) -> Result<()> {
        let _life = lock(&self.life);
        self.wall.checkpoint(order)
    }

    /// Changes limits; what the document does not name stays.
    pub(crate) fn update(&self, resources: &Any) -> Result<()> {
        let _life = lock(&self.life);
        let document = document::parse(&resources.value, "resources")?;
        for warning in self.wall.update(&document)? {
            warn!(task = self.id(), warning);
        }
        Ok(())
    }

    pub(crate) fn processes(&self) -> Result<Vec<i32>> {
        self.wall.processes()
    }

    /// The name by which a process was executed, if its pid is that of one.
    pub(crate) fn executed_as(&self, pid: i32) -> Option<String> {
        if !self.wall.has_host_pids() {
            return None;
        }
        let executed = lock(&self.executed);
        executed.values().find(|process| process.state().pid == pid).map(|process| process.id().to_owned())
    }

    pub(crate) fn metrics(&self) -> Result<Any> {
        self.wall.metrics()
    }
}

/// Plain names become parts of paths.
fn check(exec: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if !exec.is_empty() && exec.len() <= LONGEST && exec.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::Invalid(format!("invalid name of a process {exec:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_are_plain() {
        for name in ["a", "probe-1_2.x", "0123abcd"] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", "a/b", "..\0", "a b", &"x".repeat(129)] {
            assert!(check(name).is_err(), "{name}");
        }
    }
}
