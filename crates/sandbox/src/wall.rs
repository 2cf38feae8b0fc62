//! The wall that a plan asks for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_host::cgroup::Stats;
use insula_host::resolver::Sockets;
use insula_spec::plan::{ContainerPlan, NetworkChange, Resources};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::ns::Namespaces;
use crate::vm::Vm;
use crate::{
    Capabilities, Created, Error, Event, ExecPlan, Frozen, Machine, Processes, Result, Sandbox, SignalTarget,
    When,
};

/// The process wall, until a plan asks for a machine. There is one in a process.
#[derive(Debug)]
pub struct Wall {
    events: OwnedFd,
    namespaces: Namespaces,
    /// Once a plan has asked for it; the namespaces are of no more use then.
    machine: Option<Vm>,
}

impl Wall {
    /// Empty, and warm for the process wall. `group` is the control group that its container is expected to have.
    pub fn new(group: Option<&str>) -> Result<Self> {
        let mut namespaces = Namespaces::new()?;
        namespaces.warm_up(group)?;
        let events = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|source| Error::call("epoll_create1", "for a wall", source))?;
        let this = Self { events, namespaces, machine: None };
        this.watch(this.namespaces.event_fd())?;
        Ok(this)
    }

    fn watch(&self, descriptor: BorrowedFd<'_>) -> Result<()> {
        epoll::add(&self.events, descriptor, EventData::new_u64(0), EventFlags::IN)
            .map_err(|source| Error::call("epoll_ctl", "for a wall", source))
    }

    fn become_machine(&mut self) -> Result<&mut Vm> {
        if self.machine.is_none() {
            self.namespaces.cool_down()?;
            // It waits for every child and would take a machine's.
            epoll::delete(&self.events, self.namespaces.event_fd())
                .map_err(|source| Error::call("epoll_ctl", "for a wall", source))?;
            let machine = Vm::new()?;
            self.watch(machine.event_fd())?;
            self.machine = Some(machine);
        }
        self.machine.as_mut().ok_or(Error::Phase { is: "empty", needed: "created" })
    }

    fn any(&mut self) -> &mut dyn Sandbox {
        match &mut self.machine {
            Some(machine) => machine,
            None => &mut self.namespaces,
        }
    }
}

impl Sandbox for Wall {
    fn capabilities(&self) -> Capabilities {
        match &self.machine {
            Some(machine) => machine.capabilities(),
            None => self.namespaces.capabilities(),
        }
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn next_event(&mut self) -> Result<Option<Event>> {
        self.any().next_event()
    }

    fn create(&mut self, plan: ContainerPlan, when: When) -> Result<Created> {
        if plan.machine.is_some() {
            self.become_machine()?.create(plan, when)
        } else {
            self.any().create(plan, when)
        }
    }

    fn start(&mut self) -> Result<()> {
        self.any().start()
    }

    fn exec(&mut self, exec: &ExecPlan) -> Result<Created> {
        self.any().exec(exec)
    }

    fn signal(&mut self, target: SignalTarget<'_>, signal: i32) -> Result<()> {
        self.any().signal(target, signal)
    }

    fn resize(&mut self, exec: Option<&str>, columns: u16, rows: u16) -> Result<()> {
        self.any().resize(exec, columns, rows)
    }

    fn trim(&mut self) {
        self.any().trim();
    }

    fn rewire(&mut self, change: &NetworkChange) -> Result<()> {
        self.any().rewire(change)
    }

    fn resolver(&mut self) -> Result<Sockets> {
        self.any().resolver()
    }

    fn update(&mut self, resources: &Resources) -> Result<Vec<String>> {
        self.any().update(resources)
    }

    fn freeze(&mut self, frozen: Frozen) -> Result<()> {
        self.any().freeze(frozen)
    }

    fn stats(&mut self) -> Result<Stats> {
        self.any().stats()
    }

    fn processes(&mut self) -> Result<Processes> {
        self.any().processes()
    }

    fn machine(&mut self) -> Option<&mut dyn Machine> {
        self.any().machine()
    }

    fn destroy(&mut self) -> Result<()> {
        self.any().destroy()
    }
}
