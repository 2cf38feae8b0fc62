//! A container that stands, with the processes that joined it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_container::Target;
use insula_host::cgroup::{Group, Stats};
use insula_host::resolver::Sockets;
use insula_spec::plan::{ContainerPlan, Namespace, NetworkChange};
use insula_sys::process::{self, Reaped};
use rustix::io::Errno;
use rustix::termios::Winsize;

use super::{call, master_of};
use crate::{Created, Error, Event, ExecPlan, Result, SignalTarget, Streams, When, duplicate};

#[derive(Debug)]
pub(super) struct Running {
    plan: ContainerPlan,
    group: Group,
    init: insula_container::Init,
    /// As long as they are open, queries wait for whoever answers them next.
    resolver: Option<Sockets>,
    terminal: Option<OwnedFd>,
    started: bool,
    execs: Vec<Exec>,
    oom: Option<OwnedFd>,
    oom_kills: u64,
    events: VecDeque<Event>,
    ended: bool,
}

#[derive(Debug)]
struct Exec {
    id: String,
    pid: i32,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
}

impl Running {
    /// Takes over what was created; returns also what is not its business.
    pub(super) fn new(
        plan: ContainerPlan,
        group: Group,
        created: insula_container::Created,
        when: When,
    ) -> Result<(Self, Streams, Vec<String>)> {
        let insula_container::Created { init, streams, resolver, warnings, laps: _ } = created;
        let running = Self {
            oom: group.oom_descriptor()?,
            plan,
            group,
            init,
            resolver,
            terminal: master_of(&streams)?,
            started: when == When::Now,
            execs: Vec::new(),
            oom_kills: 0,
            events: VecDeque::new(),
            ended: false,
        };
        Ok((running, streams, warnings))
    }

    pub(super) fn pid(&self) -> i32 {
        self.init.pid
    }

    pub(super) fn trim(&mut self) {
        self.init.trim();
    }

    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    /// The processes of the container. Where no groups can be made they are those of its pid namespace, which is
    /// its own then.
    pub(super) fn processes(&self) -> Result<Vec<i32>> {
        if self.group.is_empty() && matches!(self.plan.namespaces.pid, Namespace::Private) {
            return super::members::of_namespace(self.init.pid);
        }
        Ok(self.group.processes()?)
    }

    pub(super) fn stats(&self) -> Result<Stats> {
        if self.group.is_empty() {
            return Ok(super::members::use_of(&self.processes()?));
        }
        Ok(self.group.stats()?)
    }

    pub(super) fn oom(&self) -> Option<BorrowedFd<'_>> {
        self.oom.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn start(&mut self) -> Result<()> {
        if self.started {
            return Err(Error::Phase { is: "running", needed: "created" });
        }
        self.init.start()?;
        self.started = true;
        Ok(())
    }

    pub(super) fn exec(&mut self, exec: &ExecPlan) -> Result<Created> {
        if !self.started || self.ended {
            let is = if self.ended { "ended" } else { "created" };
            return Err(Error::Phase { is, needed: "running" });
        }
        if self.execs.iter().any(|known| known.id == exec.id) {
            return Err(Error::ExecExists(exec.id.clone()));
        }
        let target = Target { plan: &self.plan, pidfd: self.init.pidfd.as_fd() };
        let plan = insula_container::ExecPlan {
            state: None,
            process: &exec.process,
            stdio: &exec.stdio,
            privileged: exec.privileged,
            preserved: &[],
        };
        let executed = insula_container::exec(&target, &plan, &self.group.entry_to(self.init.pid)?)?;
        let terminal = master_of(&executed.streams)?;
        let pid = executed.pid;
        self.execs.push(Exec { id: exec.id.clone(), pid, pidfd: executed.pidfd, terminal });
        Ok(Created { pid, streams: executed.streams, warnings: executed.warnings, laps: Vec::new() })
    }

    pub(super) fn signal(&self, target: SignalTarget<'_>, signal: i32) -> Result<()> {
        let to = |pidfd: BorrowedFd<'_>| match process::signal(pidfd, signal) {
            // It has ended and will be reported.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(source) => Err(call("pidfd_send_signal", "a process of the container", source)),
        };
        match target {
            SignalTarget::First => to(self.init.pidfd.as_fd()),
            SignalTarget::Exec(id) => to(self.find(id)?.pidfd.as_fd()),
            // It has not been reaped, so the number of its group is still its own.
            SignalTarget::ExecGroup(id) => match process::kill(-self.find(id)?.pid, signal) {
                Ok(()) | Err(Errno::SRCH) => Ok(()),
                Err(source) => Err(call("kill", "the process group of an exec", source)),
            },
            SignalTarget::All => {
                for pid in self.processes()? {
                    match process::kill(pid, signal) {
                        Ok(()) | Err(Errno::SRCH) => {}
                        Err(source) => return Err(call("kill", "a process of the container", source)),
                    }
                }
                Ok(())
            }
        }
    }

    pub(super) fn resize(&self, exec: Option<&str>, columns: u16, rows: u16) -> Result<()> {
        let terminal = match exec {
            None => &self.terminal,
            Some(id) => &self.find(id)?.terminal,
        };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal.as_ref().ok_or(Error::NoTerminal)?, size)
            .map_err(|source| call("ioctl TIOCSWINSZ", "a terminal", source))
    }

    pub(super) fn rewire(&self, change: &NetworkChange) -> Result<()> {
        Ok(self.init.rewire(change)?)
    }

    pub(super) fn resolver(&mut self) -> Result<Sockets> {
        if self.resolver.is_none() {
            self.resolver = Some(self.init.bind_resolver()?);
        }
        let Some(sockets) = &self.resolver else {
            return Err(Error::Phase { is: "ended", needed: "running" });
        };
        Ok(Sockets { udp: duplicate(sockets.udp.as_fd())?, tcp: duplicate(sockets.tcp.as_fd())? })
    }

    fn find(&self, id: &str) -> Result<&Exec> {
        self.execs.iter().find(|exec| exec.id == id).ok_or_else(|| Error::NoExec(id.to_owned()))
    }

    /// A child of this process ended.
    pub(super) fn reaped(&mut self, reaped: Reaped) -> Result<()> {
        if let Some(at) = self.execs.iter().position(|exec| exec.pid == reaped.pid) {
            let exec = self.execs.remove(at);
            self.events.push_back(Event::ExecExited { id: exec.id, code: reaped.code });
        }
        if reaped.pid == self.init.pid {
            let counted = self.count_oom();
            return self.end(reaped.code).and(counted);
        }
        Ok(())
    }

    /// With the first process goes all the rest. In a pid namespace of its own the kernel has seen to that.
    /// It is over whatever fails here.
    fn end(&mut self, code: i32) -> Result<()> {
        self.ended = true;
        // They would keep the namespace, and with it the interfaces.
        self.resolver = None;
        let cleared = self.clear();
        self.events.push_back(Event::Exited { code, error: String::new() });
        cleared
    }

    /// Kills and reaps what is left besides the first process.
    fn clear(&mut self) -> Result<()> {
        self.group.kill()?;
        for exec in std::mem::take(&mut self.execs) {
            let reaped = process::wait_for(exec.pid)
                .map_err(|source| call("waitpid", "for a process of the container", source))?;
            self.events.push_back(Event::ExecExited { id: exec.id, code: reaped.code });
        }
        Ok(())
    }

    pub(super) fn next_event(&mut self) -> Result<Option<Event>> {
        if self.events.is_empty() {
            self.look_for_oom()?;
        }
        Ok(self.events.pop_front())
    }

    fn look_for_oom(&mut self) -> Result<()> {
        let Some(oom) = &self.oom else { return Ok(()) };
        let mut buffer = [0; 4096];
        match rustix::io::read(oom, &mut buffer) {
            Err(Errno::AGAIN) => return Ok(()),
            result => drop(result.map_err(|source| call("read", "a memory event", source))?),
        }
        self.count_oom()
    }

    /// The kernel tells before it kills, and on version 2 at most every 10 ms: the last word is the count.
    fn count_oom(&mut self) -> Result<()> {
        let kills = self.group.oom_kills()?;
        if kills > self.oom_kills {
            self.oom_kills = kills;
            self.events.push_back(Event::Oom);
        }
        Ok(())
    }

    /// Kills what runs, reaps it and frees the group.
    pub(super) fn destroy(self) -> Result<()> {
        if !self.ended {
            // It may have ended unnoticed; then there is nothing to kill.
            let _ = process::signal(self.init.pidfd.as_fd(), 9);
            self.group.kill()?;
            for pid in self.execs.iter().map(|exec| exec.pid).chain([self.init.pid]) {
                match process::wait_for(pid) {
                    Ok(_) | Err(Errno::CHILD) => {}
                    Err(source) => return Err(call("waitpid", "for the container", source)),
                }
            }
        }
        Ok(self.group.remove()?)
    }
}
