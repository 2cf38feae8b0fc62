//! A container with its processes: containerd's word is task.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, ExecProcessRequest};
use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::topics::TASK_OOM_EVENT_TOPIC;
use insula_host::cgroup::{Group, Layout};
use insula_runtime_core as core;
use insula_spec::bundle::{Status, document};
use insula_spec::plan::Namespace;
use rustix::event::{PollFd, PollFlags};
use tracing::warn;

use crate::children::{Children, Exit};
use crate::error::{Context, Error, Result};
use crate::events::Publisher;
use crate::options::Options;
use crate::process::{Phase, Process, State};
use crate::runtime::{PID_FILE, Runtime};
use crate::stdio::{Console, Owner, Stdio, Streams};
use crate::{lock, metrics, rootfs};

const SIGKILL: i32 = 9;
/// How long one that is killed may take to end.
const DYING: Duration = Duration::from_secs(10);
/// Longest name of a process: it becomes that of a file.
const LONGEST: usize = 128;

/// A container that stands.
#[derive(Debug)]
pub(crate) struct Task {
    runtime: Runtime,
    options: Options,
    init: Arc<Process>,
    executed: Mutex<BTreeMap<String, Arc<Process>>>,
    publisher: Arc<Publisher>,
    /// Held by who starts, deletes or changes it.
    life: Mutex<()>,
    oom: Arc<OutOfMemory>,
}

impl Task {
    /// Creates it; on failure nothing is left. Its end is not told before [`Process::settle`].
    pub(crate) fn create(
        request: &CreateTaskRequest,
        namespace: &str,
        children: &Arc<Children>,
        publisher: &Arc<Publisher>,
    ) -> Result<Arc<Self>> {
        if !request.checkpoint.is_empty() {
            return Err(Error::Unsupported("creation from a checkpoint".to_owned()));
        }
        let options = Options::of(request.options.as_ref())?;
        let bundle = PathBuf::from(&request.bundle);
        let runtime = Runtime::new(children, namespace, &request.id, &bundle, &options.kept)?;
        runtime.keep(&options.kept)?;
        let oom = Arc::new(OutOfMemory::new(&runtime, publisher));
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let last = last(&runtime, &oom);
        let init = Process::new(&request.id, "", stdio, publisher, last);
        init.begin()?;
        let root = bundle.join("rootfs");
        rootfs::mount(&request.rootfs, &root)?;
        let publisher = Arc::clone(publisher);
        let (executed, life) = (Mutex::default(), Mutex::default());
        let task = Arc::new(Self { runtime, options, init, executed, publisher, life, oom });
        match task.create_init() {
            Ok(()) => Ok(task),
            Err(error) => {
                // The first error is the one to report; both may be repeated.
                let _ = task.runtime.call(&["delete", "--force", task.id()]);
                let _ = rootfs::unmount(&root);
                Err(error)
            }
        }
    }

    fn create_init(&self) -> Result<()> {
        let pid_file = self.bundle().join(PID_FILE);
        let mut arguments = vec!["create", "--bundle", "."];
        arguments.extend(self.options.no_pivot.then_some("--no-pivot"));
        arguments.extend(self.options.no_new_keyring.then_some("--no-new-keyring"));
        self.launch(&self.init, &arguments, &pid_file, &[])?;
        self.oom.watch(self.init.state().pid);
        Ok(())
    }

    /// Runs the runtime's command that makes a process, and connects its streams.
    fn launch(&self, process: &Arc<Process>, verb: &[&str], pid_file: &Path, last: &[&str]) -> Result<()> {
        let launch = self.runtime.children().launch();
        let mut command = self.runtime.command(verb);
        command.arg("--pid-file").arg(pid_file);
        if process.stdio.terminal {
            let name = format!("console-{}", process.id());
            let console = Console::listen(self.bundle(), &name)?;
            command.arg("--console-socket").arg(console.path()).arg(self.id()).args(last);
            self.runtime.run(command)?;
            process.set_streams(Streams::terminal(&process.stdio, console.receive()?)?);
        } else {
            process.set_streams(Streams::connect(&process.stdio, self.owner(), &mut command)?);
            command.arg(self.id()).args(last);
            self.runtime.run(command)?;
        }
        let pid = read_pid(pid_file)?;
        process.set_pid(pid);
        self.runtime.children().adopt(&launch, pid, Arc::clone(process) as _);
        Ok(())
    }

    fn owner(&self) -> Owner {
        self.options.owner
    }

    pub(crate) fn id(&self) -> &str {
        self.runtime.id()
    }

    pub(crate) fn bundle(&self) -> &Path {
        self.runtime.bundle()
    }

    fn root(&self) -> &Path {
        self.runtime.root()
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
        match self.runtime.call(&["start", self.id()]) {
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

    fn exec_pid_file(&self, exec: &str) -> PathBuf {
        self.bundle().join(format!("exec-{exec}.pid"))
    }

    /// Executes what was noted.
    pub(crate) fn execute(&self, exec: &str, tell: impl FnOnce(i32)) -> Result<i32> {
        let process = self.process(exec)?;
        process.begin()?;
        let file = self.process_file(exec).display().to_string();
        let launched =
            self.launch(&process, &["exec", "--detach", "--process", &file], &self.exec_pid_file(exec), &[]);
        match launched {
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
        for path in [self.process_file(exec), self.exec_pid_file(exec)] {
            // The second is not there for one that never ran; the bundle goes later.
            let _ = std::fs::remove_file(path);
        }
        Ok((state, process.wait()))
    }

    /// Removes the container, which has ended or was not started.
    pub(crate) fn delete(&self) -> Result<(State, Exit)> {
        let _life = lock(&self.life);
        let state = self.init.check_removable()?;
        self.runtime.call(&["delete", self.id()])?;
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
        let process = self.process(exec)?;
        let state = process.state();
        if exec.is_empty() {
            return match core::kill(self.root(), self.id(), signal, all) {
                Err(core::Error::NotRunning) => Err(Error::Ended),
                killed => Ok(killed?),
            };
        }
        if state.phase == Phase::Created {
            return Err(Error::Phase { verb: "kill", phase: "created" });
        }
        if !self.runtime.children().signal(state.pid, signal)? {
            return Err(Error::Ended);
        }
        Ok(())
    }

    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        let _life = lock(&self.life);
        Ok(core::freeze(self.root(), self.id(), frozen)?)
    }

    pub(crate) fn is_paused(&self) -> bool {
        core::find(self.root(), self.id()).is_ok_and(|found| found.status == Status::Paused)
    }

    /// Changes limits; what the document does not name stays.
    pub(crate) fn update(&self, resources: &Any) -> Result<()> {
        let _life = lock(&self.life);
        let document = document::parse(&resources.value, "resources")?;
        for warning in core::update(self.root(), self.id(), &document)? {
            warn!(task = self.id(), warning);
        }
        Ok(())
    }

    pub(crate) fn processes(&self) -> Result<Vec<i32>> {
        Ok(core::processes(self.root(), self.id())?)
    }

    /// The name by which a process was executed, if its pid is that of one.
    pub(crate) fn executed_as(&self, pid: i32) -> Option<String> {
        let executed = lock(&self.executed);
        executed.values().find(|process| process.state().pid == pid).map(|process| process.id().to_owned())
    }

    pub(crate) fn metrics(&self) -> Result<Any> {
        let stats = core::stats(self.root(), self.id())?;
        metrics::of(&stats, &Layout::probe()?, self.oom.kills())
    }
}

fn read_pid(path: &Path) -> Result<i32> {
    let text = std::fs::read_to_string(path).context("read", path.display())?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| Error::Invalid(format!("{} holds no pid", path.display())))
}

/// Plain names become parts of paths.
fn check(exec: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if !exec.is_empty() && exec.len() <= LONGEST && exec.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::Invalid(format!("invalid name of a process {exec:?}")))
}

/// At the end of the first process: others do not survive it, though the kernel lets them without a namespace
/// of pids.
fn last(runtime: &Runtime, oom: &Arc<OutOfMemory>) -> crate::process::Last {
    let (root, id, oom) = (runtime.root().to_owned(), runtime.id().to_owned(), Arc::clone(oom));
    Box::new(move || {
        oom.look();
        let shared =
            core::find(&root, &id).is_ok_and(|found| found.record.plan.namespaces.pid != Namespace::Private);
        if shared && let Err(error) = core::kill(&root, &id, SIGKILL, true) {
            warn!(task = id, error = insula_base::chain(&error), "processes cannot be killed");
        }
    })
}

/// Tells when the kernel kills for want of memory.
#[derive(Debug)]
struct OutOfMemory {
    root: PathBuf,
    id: String,
    publisher: Arc<Publisher>,
    told: Mutex<u64>,
    kills: AtomicU64,
}

impl OutOfMemory {
    fn new(runtime: &Runtime, publisher: &Arc<Publisher>) -> Self {
        Self {
            root: runtime.root().to_owned(),
            id: runtime.id().to_owned(),
            publisher: Arc::clone(publisher),
            told: Mutex::default(),
            kills: AtomicU64::new(0),
        }
    }

    fn kills(&self) -> u64 {
        self.look();
        self.kills.load(Ordering::Relaxed)
    }

    fn group(&self) -> Result<Group> {
        Ok(core::find(&self.root, &self.id)?.record.group()?)
    }

    /// One event for each look that finds more.
    fn look(&self) {
        // After the end of the group there is nothing more to find.
        let Ok(kills) = self.group().and_then(|group| Ok(group.oom_kills()?)) else { return };
        let mut told = lock(&self.told);
        if kills > *told {
            *told = kills;
            self.kills.store(kills, Ordering::Relaxed);
            let mut event = TaskOOM::new();
            event.container_id = self.id.clone();
            self.publisher.publish(TASK_OOM_EVENT_TOPIC, &event);
        }
    }

    /// Looks whenever memory runs out, as long as the first process lives.
    fn watch(self: &Arc<Self>, pid: i32) {
        let watched = self.group().and_then(|group| Ok(group.oom_descriptor()?));
        let descriptor = match watched {
            Ok(Some(descriptor)) => descriptor,
            Ok(None) => return,
            Err(error) => {
                return warn!(task = self.id, error = insula_base::chain(&error), "memory is not watched");
            }
        };
        let Some(init) = rustix::process::Pid::from_raw(pid)
            .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok())
        else {
            return;
        };
        let watching = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("memory".to_owned());
        if let Err(error) = thread.spawn(move || watch(&watching, &descriptor, &init)) {
            warn!(task = self.id, %error, "memory is not watched");
        }
    }
}

fn watch(watching: &Weak<OutOfMemory>, descriptor: &OwnedFd, init: &OwnedFd) {
    let mut block = [0; 4096];
    loop {
        let mut poll =
            [PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN), PollFd::new(init, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None)).is_err() {
            return;
        }
        if !poll[1].revents().is_empty() {
            return;
        }
        let _ = rustix::io::read(descriptor, &mut block);
        match watching.upgrade() {
            Some(oom) => oom.look(),
            None => return,
        }
    }
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
