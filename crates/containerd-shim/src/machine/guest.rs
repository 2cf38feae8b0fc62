//! One container in its pod's machine, by its monitor.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::topics::TASK_OOM_EVENT_TOPIC;
use insula_base::Kind;
use insula_host::cgroup::{Layout, Stats};
use insula_proto::{Call, Create, Empty, Exec, Outcome, Resize, Signal, Start, Update};
use insula_runtime_core as core;
use insula_spec::bundle::{self, document};
use insula_spec::plan::{ContainerPlan, StdioPlan};
use jiff::Timestamp;
use serde::Serialize;

use super::monitor::Monitor;
use super::{FOLDER, Pod, left};
use crate::children::{Ended, Exit};
use crate::error::{Context, Error, Result};
use crate::events::Publisher;
use crate::options::Checkpoint;
use crate::process::{Last, Phase, Process};
use crate::stdio::{Stdio, Streams};
use crate::wall::Wall;
use crate::{lock, metrics};

const KILLED: i32 = 137;
/// How long a monitor may take to free what it has.
const FREEING: Duration = Duration::from_secs(60);

/// A container that has its pod's kernel.
#[derive(Debug)]
pub(crate) struct Guest {
    id: String,
    bundle: PathBuf,
    pod: Arc<Pod>,
    monitor: OnceLock<Arc<Monitor>>,
    paused: AtomicBool,
    heard: Arc<Heard>,
}

/// What the monitor's events are for.
#[derive(Debug)]
struct Heard {
    id: String,
    publisher: Arc<Publisher>,
    /// Those that run; the first has no name.
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
    kills: AtomicU64,
}

impl Heard {
    fn hear(&self, event: Option<Outcome>) {
        match event {
            Some(Outcome::Exited(exited)) => {
                if !exited.error.is_empty() {
                    tracing::warn!(task = self.id, error = exited.error, "the container has ended");
                }
                self.ended("", exited.code);
            }
            Some(Outcome::ExecExited(exited)) => self.ended(&exited.exec, exited.code),
            Some(Outcome::Oom(_)) => {
                self.kills.fetch_add(1, Ordering::Relaxed);
                let mut event = TaskOOM::new();
                event.container_id = self.id.clone();
                self.publisher.publish(TASK_OOM_EVENT_TOPIC, &event);
            }
            Some(_) => {}
            // Whoever is still there has ended with it.
            None => {
                let names: Vec<String> = lock(&self.processes).keys().rev().cloned().collect();
                names.iter().for_each(|name| self.ended(name, KILLED));
            }
        }
    }

    fn ended(&self, name: &str, code: i32) {
        let process = lock(&self.processes).remove(name);
        if let Some(process) = process {
            process.ended(Exit { code, at: Timestamp::now() });
        }
    }

    fn expect(&self, process: &Arc<Process>) {
        lock(&self.processes).insert(process.id().to_owned(), Arc::clone(process));
    }
}

impl Guest {
    pub(crate) fn new(id: &str, bundle: &Path, pod: &Arc<Pod>, publisher: &Arc<Publisher>) -> Self {
        let heard = Heard {
            id: id.to_owned(),
            publisher: Arc::clone(publisher),
            processes: Mutex::default(),
            kills: AtomicU64::new(0),
        };
        Self {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            pod: Arc::clone(pod),
            monitor: OnceLock::new(),
            paused: AtomicBool::new(false),
            heard: Arc::new(heard),
        }
    }

    fn call(&self, call: Call) -> Result<Outcome> {
        self.monitor.get().ok_or(Error::Ended)?.call(call, &[])
    }

    /// What the bundle says, for the pod's machine, and the folder of its monitor.
    fn plan(&self, stdio: &Stdio) -> Result<(ContainerPlan, PathBuf)> {
        let config = core::read(&self.bundle.join("config.json"))?;
        let config: document::Config = document::parse(&config, "config.json")?;
        let plan = bundle::plan(&config, &self.id, &self.bundle)?;
        let folder = self.bundle.join(FOLDER);
        let mut make = std::fs::DirBuilder::new();
        make.recursive(true).mode(0o700).create(&folder).context("mkdir", folder.display())?;
        left::keep(&self.bundle, &plan.cgroup.path)?;
        let mut plan = self.pod.seat(plan, &folder)?;
        connect(&mut plan.stdio, stdio);
        Ok((plan, folder))
    }

    fn make(&self, plan: &ContainerPlan, folder: &Path, init: &Arc<Process>) -> Result<()> {
        let heard = Arc::clone(&self.heard);
        let monitor = Monitor::start(Box::new(move |event| heard.hear(event)))?;
        let monitor = self.monitor.get_or_init(|| monitor);
        let (streams, ends) = Streams::sockets(&init.stdio)?;
        let create = Create {
            plan: json(plan)?,
            folder: folder.display().to_string(),
            attachments: ends.iter().map(|(attachment, _)| attachment.clone()).collect(),
            start: false,
            template: false,
        };
        let sockets: Vec<_> = ends.iter().map(|(_, socket)| socket.as_fd()).collect();
        self.heard.expect(init);
        let created = monitor.call(Call::Create(create), &sockets);
        drop(sockets);
        drop(ends);
        let Outcome::Started(started) = created? else { return Err(unexpected()) };
        for warning in started.warnings {
            tracing::warn!(task = self.id, warning);
        }
        init.set_streams(streams);
        init.set_pid(started.pid);
        let first = self.processes()?.first().copied();
        self.pod.settle(Some(first.ok_or(Error::Ended)?));
        Ok(())
    }
}

impl Wall for Guest {
    fn create(&self, init: &Arc<Process>, checkpoint: Option<&Path>) -> Result<()> {
        if checkpoint.is_some() {
            return Err(Error::Unsupported("creation from a checkpoint behind the VM wall".to_owned()));
        }
        let made = self.plan(&init.stdio).and_then(|(plan, folder)| self.make(&plan, &folder, init));
        made.inspect_err(|_| {
            // Nobody is told of the end of one that never was.
            lock(&self.heard.processes).clear();
            let _ = self.delete(init);
            self.pod.settle(None);
        })
    }

    fn start(&self, _: &Arc<Process>) -> Result<()> {
        self.call(Call::Start(Start {})).map(drop)
    }

    /// The pod's machine could be saved as a whole, with its other containers; one of them cannot.
    fn checkpoint(&self, _: &Checkpoint) -> Result<()> {
        Err(Error::Unsupported("a checkpoint of one container behind the VM wall".to_owned()))
    }

    fn execute(&self, process: &Arc<Process>, document: &Path) -> Result<()> {
        let document = std::fs::read(document).context("read", document.display())?;
        let document: document::Process = document::parse(&document, "spec")?;
        let plan = bundle::process(&document, "spec")?;
        let mut stdio = bundle::terminal(&document);
        connect(&mut stdio, &process.stdio);
        let (streams, ends) = Streams::sockets(&process.stdio)?;
        let exec = Exec {
            exec: process.id().to_owned(),
            process: json(&plan)?,
            stdio: json(&stdio)?,
            attachments: ends.iter().map(|(attachment, _)| attachment.clone()).collect(),
            privileged: false,
            remembered: false,
        };
        let sockets: Vec<_> = ends.iter().map(|(_, socket)| socket.as_fd()).collect();
        self.heard.expect(process);
        let executed = self.monitor.get().ok_or(Error::Ended)?.call(Call::Exec(exec), &sockets);
        match executed {
            Ok(Outcome::Started(started)) => {
                process.set_streams(streams);
                process.set_pid(started.pid);
                Ok(())
            }
            other => {
                lock(&self.heard.processes).remove(process.id());
                other.and(Err(unexpected()))
            }
        }
    }

    fn forget(&self, _: &Process) {}

    fn signal(&self, process: &Process, signal: i32, all: bool) -> Result<()> {
        match process.state().phase {
            Phase::Stopped => return Err(Error::Ended),
            Phase::Created if !process.id().is_empty() => {
                return Err(Error::Phase { verb: "kill", phase: "created" });
            }
            _ => {}
        }
        let call = Signal { exec: process.id().to_owned(), signal, all, group: false };
        self.call(Call::Signal(call)).map(drop)
    }

    fn resize(&self, process: &Process, columns: u16, rows: u16) -> Result<()> {
        let (columns, rows) = (columns.into(), rows.into());
        self.call(Call::Resize(Resize { exec: process.id().to_owned(), columns, rows })).map(drop)
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        self.call(if frozen { Call::Freeze(Empty {}) } else { Call::Thaw(Empty {}) })?;
        self.paused.store(frozen, Ordering::Relaxed);
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    fn update(&self, document: &document::Resources) -> Result<Vec<String>> {
        let limits = bundle::resources(document, "resources")?;
        match self.call(Call::Update(Update { resources: json(&limits)? }))? {
            Outcome::Done(done) => Ok(done.warnings),
            _ => Err(unexpected()),
        }
    }

    fn processes(&self) -> Result<Vec<i32>> {
        match self.call(Call::Processes(Empty {}))? {
            Outcome::Processes(processes) => Ok(processes.pids),
            _ => Err(unexpected()),
        }
    }

    fn has_host_pids(&self) -> bool {
        false
    }

    fn metrics(&self) -> Result<Any> {
        let Outcome::Stats(stats) = self.call(Call::Stats(Empty {}))? else { return Err(unexpected()) };
        let stats: Stats = serde_json::from_slice(&stats)
            .map_err(|source| Error::Damaged { on: "what the monitor counts".to_owned(), source })?;
        metrics::of(&stats, &Layout::probe()?, self.heard.kills.load(Ordering::Relaxed))
    }

    fn delete(&self, init: &Process) -> Result<()> {
        let Some(monitor) = self.monitor.get() else { return Ok(()) };
        if let (Phase::Stopped, Some(streams)) = (init.state().phase, init.streams()) {
            streams.drain();
        }
        match monitor.call(Call::Destroy(Empty {}), &[]) {
            Ok(_) | Err(Error::Ended) => {}
            Err(error) => return Err(error),
        }
        if monitor.wait(FREEING) {
            return Ok(());
        }
        Err(Error::Invalid(format!("the monitor of {} does not end", self.id)))
    }

    fn last(&self) -> Last {
        Box::new(|| ())
    }
}

/// The end of input is that of the client's.
fn connect(plan: &mut StdioPlan, stdio: &Stdio) {
    plan.tty = stdio.terminal;
    plan.open_stdin = !stdio.stdin.is_empty();
    plan.stdin_once = true;
}

fn json(document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|source| Error::Damaged { on: "a document".to_owned(), source })
}

fn unexpected() -> Error {
    Error::Wall { kind: Kind::Internal, message: "the monitor answered something else".to_owned() }
}
