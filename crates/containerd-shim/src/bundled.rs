//! The process wall: `insula-runtime` makes the container, and what is known of it is in the runtime's own folder.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use insula_host::cgroup::Layout;
use insula_runtime_core as core;
use insula_spec::bundle::document::{self, Resources};
use insula_spec::bundle::{self, Status};
use insula_spec::plan::Namespace;
use tracing::warn;

use crate::error::{Context, Error, Result};
use crate::events::Publisher;
use crate::metrics;
use crate::oom::OutOfMemory;
use crate::options::{Checkpoint, Options};
use crate::process::{Last, Phase, Process};
use crate::runtime::{PID_FILE, Runtime};
use crate::stdio::{Console, Streams};
use crate::wall::Wall;

const SIGKILL: i32 = 9;

/// A container that shares the host's kernel.
#[derive(Debug)]
pub(crate) struct Bundled {
    runtime: Runtime,
    options: Options,
    oom: Arc<OutOfMemory>,
    /// Files that the first process goes on from.
    checkpoint: OnceLock<PathBuf>,
}

impl Bundled {
    pub(crate) fn new(runtime: Runtime, options: Options, publisher: &Arc<Publisher>) -> Result<Self> {
        runtime.keep(&options.kept)?;
        let oom = Arc::new(OutOfMemory::new(&runtime, publisher));
        Ok(Self { runtime, options, oom, checkpoint: OnceLock::new() })
    }

    fn create_init(&self, init: &Arc<Process>) -> Result<()> {
        let pid_file = self.runtime.bundle().join(PID_FILE);
        let mut arguments = self.systemd()?;
        arguments.extend(["create", "--bundle", "."]);
        arguments.extend(self.options.no_pivot.then_some("--no-pivot"));
        arguments.extend(self.options.no_new_keyring.then_some("--no-new-keyring"));
        self.launch(init, &arguments, &pid_file)?;
        self.oom.watch(init.state().pid);
        Ok(())
    }

    fn restore(&self, init: &Arc<Process>, images: &Path) -> Result<()> {
        let pid_file = self.runtime.bundle().join(PID_FILE);
        let (images, work) = (text(images)?, self.work());
        let mut arguments = self.systemd()?;
        arguments.extend(["restore", "--detach", "--no-subreaper", "--bundle", ".", "--image-path", &images]);
        arguments.extend(["--work-path", &work]);
        self.launch(init, &arguments, &pid_file)?;
        self.oom.watch(init.state().pid);
        Ok(())
    }

    /// Kubernetes with the driver `systemd` says where a group is in systemd's words, and containerd has no option for
    /// a runtime that it does not know.
    fn systemd(&self) -> Result<Vec<&'static str>> {
        let config = core::read(&self.runtime.bundle().join("config.json"))?;
        let config = document::parse(&config, "config.json").map_err(core::Error::from)?;
        let asked = self.options.systemd || bundle::names_unit(&config);
        Ok(asked.then_some("--systemd-cgroup").into_iter().collect())
    }

    /// Where CRIU's log goes: the files are containerd's.
    fn work(&self) -> String {
        self.runtime.bundle().join("criu").display().to_string()
    }

    /// Runs the runtime's command that makes a process, and connects its streams.
    fn launch(&self, process: &Arc<Process>, verb: &[&str], pid_file: &Path) -> Result<()> {
        let launch = self.runtime.children().launch();
        let mut command = self.runtime.command(verb);
        command.arg("--pid-file").arg(pid_file);
        if process.stdio.terminal {
            let name = format!("console-{}", process.id());
            let console = Console::listen(self.runtime.bundle(), &name)?;
            command.arg("--console-socket").arg(console.path()).arg(self.runtime.id());
            self.runtime.run(command)?;
            process.set_streams(Streams::terminal(&process.stdio, console.receive()?)?);
        } else {
            process.set_streams(Streams::connect(&process.stdio, self.options.owner, &mut command)?);
            command.arg(self.runtime.id());
            self.runtime.run(command)?;
        }
        let pid = read_pid(pid_file)?;
        process.set_pid(pid);
        self.runtime.children().adopt(&launch, pid, Arc::clone(process) as _);
        Ok(())
    }

    fn exec_pid_file(&self, exec: &str) -> std::path::PathBuf {
        self.runtime.bundle().join(format!("exec-{exec}.pid"))
    }
}

impl Wall for Bundled {
    fn create(&self, init: &Arc<Process>, checkpoint: Option<&Path>) -> Result<()> {
        if let Some(images) = checkpoint {
            let work = self.work();
            std::fs::DirBuilder::new().mode(0o700).create(&work).context("mkdir", &work)?;
            // Nobody else has created it.
            let _ = self.checkpoint.set(images.to_owned());
            return Ok(());
        }
        self.create_init(init).inspect_err(|_| {
            // The first error is the one to report; this may be repeated.
            let _ = self.runtime.call(&["delete", "--force", self.runtime.id()]);
        })
    }

    fn start(&self, init: &Arc<Process>) -> Result<()> {
        match self.checkpoint.get() {
            Some(images) => self.restore(init, images),
            None => self.runtime.call(&["start", self.runtime.id()]),
        }
    }

    fn checkpoint(&self, order: &Checkpoint) -> Result<()> {
        let (images, own) = (text(&order.images)?, self.work());
        let work = order.work.as_deref().map_or(Ok(own), text)?;
        let mut arguments = vec!["checkpoint", "--image-path", &images, "--work-path", &work];
        arguments.extend(order.flags.iter().map(String::as_str));
        arguments.push(self.runtime.id());
        self.runtime.call(&arguments)
    }

    fn execute(&self, process: &Arc<Process>, document: &Path) -> Result<()> {
        let document = document.display().to_string();
        let verb = ["exec", "--detach", "--process", &document];
        self.launch(process, &verb, &self.exec_pid_file(process.id()))
    }

    fn forget(&self, process: &Process) {
        // Not there for one that never ran; the bundle goes later.
        let _ = std::fs::remove_file(self.exec_pid_file(process.id()));
    }

    fn signal(&self, process: &Process, signal: i32, all: bool) -> Result<()> {
        let state = process.state();
        if process.id().is_empty() {
            return match core::kill(self.runtime.root(), self.runtime.id(), signal, all) {
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

    fn resize(&self, process: &Process, columns: u16, rows: u16) -> Result<()> {
        let streams = process.streams().ok_or(Error::Phase { verb: "resize", phase: "created" })?;
        streams.resize(columns, rows)
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        Ok(core::freeze(self.runtime.root(), self.runtime.id(), frozen)?)
    }

    fn is_paused(&self) -> bool {
        core::find(self.runtime.root(), self.runtime.id()).is_ok_and(|found| found.status == Status::Paused)
    }

    fn update(&self, document: &Resources) -> Result<Vec<String>> {
        Ok(core::update(self.runtime.root(), self.runtime.id(), document)?)
    }

    fn processes(&self) -> Result<Vec<i32>> {
        Ok(core::processes(self.runtime.root(), self.runtime.id())?)
    }

    fn has_host_pids(&self) -> bool {
        true
    }

    fn metrics(&self) -> Result<Any> {
        let stats = core::stats(self.runtime.root(), self.runtime.id())?;
        metrics::of(&stats, &Layout::probe()?, self.oom.kills())
    }

    /// After a checkpoint that ends it there is nothing of it, nor before a restore.
    fn delete(&self, _: &Process) -> Result<()> {
        match core::find(self.runtime.root(), self.runtime.id()) {
            Err(core::Error::Unknown(_)) => Ok(()),
            _ => self.runtime.call(&["delete", self.runtime.id()]),
        }
    }

    /// Others do not survive the first process, though the kernel lets them without a namespace of pids.
    fn last(&self) -> Last {
        let (root, id) = (self.runtime.root().to_owned(), self.runtime.id().to_owned());
        let oom = Arc::clone(&self.oom);
        Box::new(move || {
            oom.look();
            let shared = core::find(&root, &id)
                .is_ok_and(|found| found.record.plan.namespaces.pid != Namespace::Private);
            if shared && let Err(error) = core::kill(&root, &id, SIGKILL, true) {
                warn!(task = id, error = insula_base::chain(&error), "processes cannot be killed");
            }
        })
    }
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::Invalid(format!("{} is no text", path.display())))
}

fn read_pid(path: &Path) -> Result<i32> {
    let text = std::fs::read_to_string(path).context("read", path.display())?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| Error::Invalid(format!("{} holds no pid", path.display())))
}
