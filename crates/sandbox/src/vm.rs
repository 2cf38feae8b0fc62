//! A machine around the process wall: the container runs in a guest with a kernel of its own, where the
//! agent makes it with the very code that makes it here without one.
//!
//! ```text
//! monitor ── Vm ──┬── files (jailed): the container's root and binds, put together as the process wall does
//!                 ├── machine (jailed): QEMU or another backend; kernel, initial RAM disk, taps as descriptors
//!                 └── link: the task protocol and all standard streams in one byte stream ── insula-agent
//! ```
//!
//! [`backend`] is the one place that knows which backends there are. What comes from the guest is hostile:
//! the link takes no more than was allowed, and who does not keep to the format is ended.

mod backend;
mod cards;
mod console;
mod control;
mod deadline;
mod dirty;
mod files;
mod guest;
mod link;
mod names;
mod own;
mod qemu;
mod running;
mod seat;
mod sockets;
mod streams;
mod template;
mod tenant;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use insula_base::Laps;
use insula_host::cgroup::Stats;
use insula_host::resolver::Sockets;
use insula_spec::machine::DirtyRate;
use insula_spec::plan::{ContainerPlan, NetworkChange, Resources};
use rustix::event::epoll::{self, CreateFlags};

use crate::{
    Capabilities, Created, Error, Event, ExecPlan, Frozen, Machine, Processes, Result, Sandbox, SignalTarget,
    When,
};
use running::Running;
pub use template::make as make_template;
pub use tenant::{receive_order as receive_tenant_order, serve as serve_tenant};

/// A machine with one container.
#[derive(Debug)]
pub struct Vm {
    events: OwnedFd,
    running: Option<Running>,
}

impl Vm {
    /// An empty one.
    pub fn new() -> Result<Self> {
        let events = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|source| Error::call("epoll_create1", "for a machine", source))?;
        Ok(Self { events, running: None })
    }

    /// A machine that is ready for its container. One that cannot be a copy of its template is booted.
    fn awake(&self, mut plan: ContainerPlan) -> Result<(Running, ContainerPlan)> {
        let error = match Running::awake(&plan, &self.events) {
            Ok(running) => return Ok((running, plan)),
            Err(error) => error,
        };
        if plan.machine.as_mut().and_then(|machine| machine.template.take()).is_none() {
            return Err(error);
        }
        let mut running = Running::awake(&plan, &self.events)?;
        running.booted_since(&error);
        Ok((running, plan))
    }

    fn parts(&mut self) -> Result<(&mut Running, &OwnedFd)> {
        let running = self.running.as_mut().ok_or(Error::Phase { is: "empty", needed: "created" })?;
        Ok((running, &self.events))
    }
}

impl Sandbox for Vm {
    fn capabilities(&self) -> Capabilities {
        Capabilities { host_pids: false }
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn next_event(&mut self) -> Result<Option<Event>> {
        match &mut self.running {
            Some(running) => running.next_event(&self.events),
            None => Ok(None),
        }
    }

    fn create(&mut self, plan: ContainerPlan, when: When) -> Result<Created> {
        if self.running.is_some() {
            return Err(Error::Phase { is: "created", needed: "empty" });
        }
        let mut laps = Laps::begin();
        let (mut running, plan) = self.awake(plan)?;
        laps.lap("machine");
        match running.create(plan, when, &self.events, laps) {
            Ok(created) => {
                self.running = Some(running);
                Ok(created)
            }
            Err(error) => {
                // The first error is the one to report; what is left is found by its name later.
                let _ = running.destroy();
                Err(error)
            }
        }
    }

    fn start(&mut self) -> Result<()> {
        let (running, events) = self.parts()?;
        running.start_program(events)
    }

    fn exec(&mut self, exec: &ExecPlan) -> Result<Created> {
        let (running, events) = self.parts()?;
        running.exec(exec, events)
    }

    fn signal(&mut self, target: SignalTarget<'_>, signal: i32) -> Result<()> {
        let (running, events) = self.parts()?;
        running.signal(target, signal, events)
    }

    fn resize(&mut self, exec: Option<&str>, columns: u16, rows: u16) -> Result<()> {
        let (running, events) = self.parts()?;
        running.resize(exec, columns, rows, events)
    }

    /// All that it has is the machine's.
    fn trim(&mut self) {}

    fn rewire(&mut self, change: &NetworkChange) -> Result<()> {
        let (running, events) = self.parts()?;
        running.rewire(change, events)
    }

    fn resolver(&mut self) -> Result<Sockets> {
        let (running, events) = self.parts()?;
        running.resolver(events)
    }

    fn update(&mut self, resources: &Resources) -> Result<Vec<String>> {
        let (running, events) = self.parts()?;
        running.update(resources, events)
    }

    fn freeze(&mut self, frozen: Frozen) -> Result<()> {
        let (running, events) = self.parts()?;
        running.freeze(frozen, events)
    }

    fn stats(&mut self) -> Result<Stats> {
        let (running, events) = self.parts()?;
        running.stats(events)
    }

    fn processes(&mut self) -> Result<Processes> {
        let (running, events) = self.parts()?;
        running.processes(events)
    }

    fn machine(&mut self) -> Option<&mut dyn Machine> {
        Some(self)
    }

    fn destroy(&mut self) -> Result<()> {
        match self.running.take() {
            Some(running) => running.destroy(),
            None => Ok(()),
        }
    }
}

impl Machine for Vm {
    fn measure_dirty_rate(&mut self, period: Duration) -> Result<()> {
        self.parts()?.0.machine()?.measure_dirty_rate(period)
    }

    fn dirty_rate(&mut self) -> Result<Option<DirtyRate>> {
        self.parts()?.0.dirty_rate()
    }

    fn forget_dirty_rate(&mut self) -> Result<()> {
        self.parts()?.0.machine()?.forget_dirty_rate()
    }
}

/// The first of `paths` that is there.
fn program(paths: &[&'static str], name: &'static str, package: &'static str) -> Result<&'static str> {
    let found = paths.iter().copied().find(|path| Path::new(path).is_file());
    found.ok_or(Error::Missing { program: name, package })
}
