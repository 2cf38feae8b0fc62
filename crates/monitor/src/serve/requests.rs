//! Requests and their answers.

use insula_sys::failpoint::failpoint;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use insula_base::{Kinded, Laps};
use insula_proto::{
    Attach, Call, Create, Done, Exec, Failed, Lap, Outcome, Phase, Resize, Rewire, Signal, Started, Status,
};
use insula_sandbox::{Created, ExecPlan, Frozen, Machine, Sandbox, SignalTarget, When};
use insula_spec::plan::{ContainerPlan, StdioPlan};

use super::{Monitor, Process};
use crate::clock;
use crate::error::{Context, Error, Result};
use crate::log::Log;
use crate::streams::ProcessStreams;

impl<S: Sandbox> Monitor<S> {
    /// Carries a request out.
    pub(super) fn answer(
        &mut self,
        connection: usize,
        call: Option<Call>,
        descriptors: Vec<OwnedFd>,
    ) -> Outcome {
        if matches!(call, Some(Call::Create(_) | Call::Status(_))) {
            self.connections[connection].listens = true;
        }
        self.carry_out(call, descriptors).unwrap_or_else(|error| {
            Outcome::Failed(Failed {
                kind: error.kind().code(),
                message: insula_base::chain(&error),
                exit_code: error.exit_code().map_or(0, i32::from),
            })
        })
    }

    fn carry_out(&mut self, call: Option<Call>, descriptors: Vec<OwnedFd>) -> Result<Outcome> {
        let done = Outcome::Done(Done::default());
        match call {
            None | Some(Call::Furnish(_)) => Err(Error::Unknown),
            Some(Call::Create(call)) => self.create(&call, descriptors),
            Some(Call::Start(_)) => {
                self.sandbox.start()?;
                self.runs();
                Ok(started(self.pid, Vec::new(), self.started))
            }
            Some(Call::Exec(call)) => self.exec(&call, descriptors),
            Some(Call::Signal(call)) => self.signal(&call).map(|()| done),
            Some(Call::Resize(call)) => self.resize(&call).map(|()| done),
            Some(Call::Update(call)) => {
                let warnings = self.sandbox.update(&parse("resources", &call.resources)?)?;
                Ok(Outcome::Done(Done { warnings, ..Done::default() }))
            }
            Some(Call::Freeze(_)) => {
                self.sandbox.freeze(Frozen::Yes)?;
                self.frozen = true;
                Ok(done)
            }
            Some(Call::Thaw(_)) => {
                self.sandbox.freeze(Frozen::No)?;
                self.frozen = false;
                Ok(done)
            }
            Some(Call::Stats(_)) => {
                let stats = serde_json::to_vec(&self.sandbox.stats()?);
                Ok(Outcome::Stats(stats.map_err(|source| Error::Malformed { what: "statistics", source })?))
            }
            Some(Call::Attach(call)) => self.attach(call, descriptors).map(|()| done),
            Some(Call::Processes(_)) => Ok(Outcome::Processes(self.sandbox.processes()?)),
            Some(Call::Status(_)) => Ok(Outcome::Status(self.status())),
            Some(Call::Rewire(call)) => self.rewire(&call).map(|()| done),
            Some(Call::Resolver(_)) => self.resolver(descriptors).map(|()| done),
            Some(Call::MeasureDirtyRate(call)) => {
                let machine = self.machine()?;
                match call.milliseconds {
                    0 => machine.forget_dirty_rate()?,
                    period => machine.measure_dirty_rate(Duration::from_millis(period.into()))?,
                }
                Ok(done)
            }
            Some(Call::DirtyRate(_)) => {
                let rate = serde_json::to_vec(&self.machine()?.dirty_rate()?);
                Ok(Outcome::DirtyRate(
                    rate.map_err(|source| Error::Malformed { what: "a dirty rate", source })?,
                ))
            }
            Some(Call::Destroy(_)) => self.destroy().map(|()| done),
        }
    }

    fn create(&mut self, call: &Create, mut descriptors: Vec<OwnedFd>) -> Result<Outcome> {
        let mut laps = Laps::begin();
        let mut plan: ContainerPlan = parse("plan", &call.plan)?;
        // Open until the sandbox has made of them what it needs.
        let _template = template(&mut plan, call, &mut descriptors);
        let (stdio, log) = (plan.stdio.clone(), Log::open(&plan.log)?);
        if self.folder.is_none() {
            self.listen(PathBuf::from(&call.folder))?;
        }
        failpoint("monitor.create.listens");
        laps.lap("folder-and-log");
        let when = if call.start { When::Now } else { When::Later };
        let mut created = self.sandbox.create(plan, when)?;
        failpoint("monitor.create.built");
        laps.nest(std::mem::take(&mut created.laps), "handover");
        self.pid = created.pid;
        self.phase = Phase::Created;
        let warnings = self.adopt(None, created, Some(log), &stdio, call.attachments.clone(), descriptors)?;
        if call.start {
            self.runs();
        }
        laps.lap("streams");
        let laps = laps.done().into_iter().map(Lap::from).collect();
        Ok(Outcome::Started(Started { pid: self.pid, warnings, at: self.started, laps }))
    }

    fn runs(&mut self) {
        self.phase = Phase::Running;
        self.started = clock::now();
    }

    fn exec(&mut self, call: &Exec, descriptors: Vec<OwnedFd>) -> Result<Outcome> {
        // It would stand still with the others before it says that it runs, which is waited for here: nobody could thaw
        // them any more.
        if self.frozen {
            return Err(Error::Frozen);
        }
        let stdio: StdioPlan = parse("streams", &call.stdio)?;
        let plan = ExecPlan {
            id: call.exec.clone(),
            process: parse("process", &call.process)?,
            stdio: stdio.clone(),
            privileged: call.privileged,
        };
        let created = self.sandbox.exec(&plan)?;
        failpoint("monitor.exec.built");
        let pid = created.pid;
        let exec = Some(call.exec.clone());
        let warnings = self.adopt(exec, created, None, &stdio, call.attachments.clone(), descriptors)?;
        if let Some(process) = self.processes.last_mut() {
            process.remembered = call.remembered;
        }
        Ok(started(pid, warnings, clock::now()))
    }

    /// Takes over the streams of a new process, with those who wait for them.
    fn adopt(
        &mut self,
        exec: Option<String>,
        created: Created,
        log: Option<Log>,
        stdio: &StdioPlan,
        attachments: Vec<insula_proto::Attachment>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Vec<String>> {
        let key = self.next_key;
        self.next_key += 1;
        // A terminal's input has no end: who leaves it may come back.
        let closes = !stdio.tty && (exec.is_some() || stdio.stdin_once);
        let mut streams = ProcessStreams::new(&mut self.poll, key, created.streams, log, closes)?;
        for (socket, attachment) in descriptors.into_iter().zip(attachments) {
            streams.attach(&mut self.poll, socket, attachment, true)?;
        }
        self.processes.push(Process { key, exec, running: true, remembered: false, streams });
        Ok(created.warnings)
    }

    fn signal(&mut self, call: &Signal) -> Result<()> {
        let target = match (call.all, call.exec.as_str()) {
            (true, _) => SignalTarget::All,
            (false, "") => SignalTarget::First,
            (false, exec) if call.group => SignalTarget::ExecGroup(exec),
            (false, exec) => SignalTarget::Exec(exec),
        };
        Ok(self.sandbox.signal(target, call.signal)?)
    }

    fn resize(&mut self, call: &Resize) -> Result<()> {
        let size = |value: u32| {
            u16::try_from(value).map_err(|_| Error::Invalid("a terminal has at most 65535 rows and columns"))
        };
        let exec = Some(call.exec.as_str()).filter(|exec| !exec.is_empty());
        Ok(self.sandbox.resize(exec, size(call.columns)?, size(call.rows)?)?)
    }

    fn attach(&mut self, call: Attach, mut descriptors: Vec<OwnedFd>) -> Result<()> {
        let (Some(attachment), Some(socket)) = (call.attachment, descriptors.pop()) else {
            return Err(Error::Invalid("an attachment needs its description and its socket"));
        };
        let exec = Some(call.exec).filter(|exec| !exec.is_empty());
        let process = self
            .processes
            .iter_mut()
            .find(|process| process.running && process.exec == exec)
            .ok_or(Error::Invalid("the process does not run"))?;
        process.streams.attach(&mut self.poll, socket, attachment, false)
    }

    fn rewire(&mut self, call: &Rewire) -> Result<()> {
        Ok(self.sandbox.rewire(&parse("interfaces", &call.change)?)?)
    }

    fn resolver(&mut self, mut descriptors: Vec<OwnedFd>) -> Result<()> {
        let to = descriptors
            .pop()
            .ok_or(Error::Invalid("the name server's sockets need a socket to travel by"))?;
        let sockets = self.sandbox.resolver()?;
        insula_sys::socket::send_all(to.as_fd(), b"r", &[sockets.udp.as_fd(), sockets.tcp.as_fd()])
            .context("sendmsg", "the name server's sockets")
    }

    fn machine(&mut self) -> Result<&mut dyn Machine> {
        self.sandbox.machine().ok_or(Error::NoMachine)
    }

    fn status(&self) -> Status {
        Status {
            phase: self.phase as i32,
            pid: self.pid,
            started: self.started,
            frozen: self.frozen,
            exit: self.exit.clone(),
            version: insula_proto::VERSION,
            execs: self.processes.iter().filter(|p| p.running).filter_map(|p| p.exec.clone()).collect(),
            ended_execs: self.ended_execs.iter().rev().cloned().collect(),
        }
    }

    fn destroy(&mut self) -> Result<()> {
        self.sandbox.destroy()?;
        for process in &mut self.processes {
            process.streams.finish(&mut self.poll)?;
        }
        self.processes.clear();
        self.phase = Phase::Empty;
        self.destroyed = true;
        Ok(())
    }
}

fn started(pid: i32, warnings: Vec<String>, at: i64) -> Outcome {
    Outcome::Started(Started { pid, warnings, at, laps: Vec::new() })
}

/// Takes what a template consists of from the descriptors of a call, and says in the plan where it is.
fn template(plan: &mut ContainerPlan, call: &Create, descriptors: &mut Vec<OwnedFd>) -> Vec<OwnedFd> {
    let theirs = descriptors.split_off(call.attachments.len().min(descriptors.len()));
    let template = plan.machine.as_mut().and_then(|machine| machine.template.as_mut());
    if let (Some(template), [memory, state]) = (template, theirs.as_slice()) {
        let path = |descriptor: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        (template.memory, template.state) = (path(memory), path(state));
    }
    theirs
}

fn parse<'a, T: serde::Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Malformed { what, source })
}
