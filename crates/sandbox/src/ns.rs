//! The process wall: namespaces and control groups of this kernel.

mod ahead;
mod members;
mod running;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_base::Laps;
use insula_container::Told;
use insula_host::cgroup::{DevicePolicy, Group, Layout, Purpose, Stats, standard_devices};
use insula_host::resolver::Sockets;
use insula_spec::plan::{ContainerPlan, DevicePlan, DeviceRule, InitPlan, NetworkChange, Resources};
use insula_sys::process;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::{
    Capabilities, Created, Error, Event, ExecPlan, Frozen, Machine, Processes, Result, Sandbox, SignalTarget,
    When, duplicate,
};
use ahead::{Ahead, standard_policy};
use running::Running;

const SIGCHLD: i32 = 17;

/// A container of this kernel. There is one such sandbox in a process: it waits for every child.
#[derive(Debug)]
pub struct Namespaces {
    /// Readable when a child ended or memory ran out.
    events: OwnedFd,
    children: OwnedFd,
    layout: Option<Layout>,
    running: Option<Running>,
    /// For the container to come.
    ahead: Ahead,
}

impl Namespaces {
    /// An empty sandbox. The process becomes the reaper of what its container leaves behind, loses its
    /// umask (modes are meant as they are written) and every signal action but one: broken pipes
    /// are errors.
    pub fn new() -> Result<Self> {
        process::become_subreaper().map_err(|source| call("prctl", "PR_SET_CHILD_SUBREAPER", source))?;
        rustix::process::umask(rustix::fs::Mode::empty());
        process::default_signals();
        process::ignore_broken_pipes(true);
        let children = process::signal_descriptor(&[SIGCHLD])
            .map_err(|source| call("signalfd", "for children", source))?;
        let events = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|source| call("epoll_create1", "for a sandbox", source))?;
        watch(&events, &children)?;
        Ok(Self { events, children, layout: None, running: None, ahead: Ahead::default() })
    }

    /// Makes ready what does not depend on a container, for a sandbox that waits for one, and the control group that
    /// it is expected to have.
    pub fn warm_up(&mut self, group: Option<&str>) -> Result<()> {
        insula_sys::memory::map_text();
        insula_container::warm_up();
        // In a user namespace containers have none of their own, which a spare has, and no groups.
        if !process::in_user_namespace() {
            self.ahead = Ahead::make(&self.layout()?, group);
        }
        Ok(())
    }

    /// Lets go of what was made ready: there will be no container here.
    pub(crate) fn cool_down(&mut self) -> Result<()> {
        self.ahead.give_up()
    }

    fn layout(&mut self) -> Result<Layout> {
        if self.layout.is_none() {
            self.layout = Some(Layout::probe()?);
        }
        self.layout.clone().ok_or(Error::Cgroup(insula_host::cgroup::Error::NoHierarchy))
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().ok_or(Error::Phase { is: "empty", needed: "created" })
    }

    fn running_mut(&mut self) -> Result<&mut Running> {
        self.running.as_mut().ok_or(Error::Phase { is: "empty", needed: "created" })
    }
}

fn purpose(plan: &ContainerPlan) -> Purpose {
    match plan.init {
        InitPlan::System => {
            Purpose::Delegate { owner: plan.namespaces.user.range().map_or(0, |(first, _)| first) }
        }
        InitPlan::Process | InitPlan::Reaper => Purpose::Limit,
    }
}

/// What a group allows of devices, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allows {
    /// Nobody has told it anything yet.
    Unknown,
    Standard,
}

/// A container in its group. Whatever fails, of the spare nothing is left in there.
fn build(
    plan: &ContainerPlan,
    when: When,
    (group, allows): (&Group, Allows),
    spare: Option<Told>,
    laps: &mut Laps,
) -> Result<(insula_container::Created, Vec<String>)> {
    let warnings = limit(group, allows, plan)?;
    laps.lap("control-group");
    let created = insula_container::create(plan, when, &group.entry()?, spare)?;
    Ok((created, warnings))
}

fn limit(group: &Group, allows: Allows, plan: &ContainerPlan) -> Result<Vec<String>> {
    let warnings = group.limit(&plan.cgroup.resources)?;
    // Where no group can be made nobody can make a device node either, in a user namespace.
    if group.is_empty() {
        return Ok(warnings);
    }
    let (policy, standard) = (device_policy(plan)?, standard_policy());
    match allows {
        Allows::Unknown => group.allow_devices(&policy)?,
        Allows::Standard if policy == standard => {}
        Allows::Standard => group.change_devices(&[standard], &policy)?,
    }
    Ok(warnings)
}

/// Docker's: the standard ones, and what was asked for.
fn device_policy(plan: &ContainerPlan) -> Result<DevicePolicy> {
    if plan.security.privileged {
        return Ok(DevicePolicy::All);
    }
    let mut rules = standard_devices();
    for device in &plan.devices {
        rules.push(numbered(device)?);
    }
    rules.extend(plan.device_rules.iter().cloned());
    Ok(DevicePolicy::Only(rules))
}

/// The allowance of a device. Who has made the plan may not know what numbers its node has in this kernel.
fn numbered(device: &DevicePlan) -> Result<DeviceRule> {
    let mut rule = device.rule.clone();
    if rule.minor.is_none() {
        let path = || device.host_path.clone();
        let node = rustix::fs::stat(&device.host_path).map_err(|error| Error::File {
            call: "stat",
            path: path(),
            source: error.into(),
        })?;
        rule.major = Some(rustix::fs::major(node.st_rdev));
        rule.minor = Some(rustix::fs::minor(node.st_rdev));
    }
    Ok(rule)
}

impl Sandbox for Namespaces {
    fn capabilities(&self) -> Capabilities {
        Capabilities { host_pids: true }
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn next_event(&mut self) -> Result<Option<Event>> {
        self.ahead.clear()?;
        while process::take_signal(self.children.as_fd())
            .map_err(|source| call("read", "a signal", source))?
            .is_some()
        {}
        while let Some(reaped) = process::reap().map_err(|source| call("waitpid", "for a child", source))? {
            if let Some(running) = &mut self.running {
                running.reaped(reaped)?;
            }
        }
        match &mut self.running {
            Some(running) => running.next_event(),
            None => Ok(None),
        }
    }

    fn create(&mut self, plan: ContainerPlan, when: When) -> Result<Created> {
        if self.running.is_some() {
            return Err(Error::Phase { is: "created", needed: "empty" });
        }
        let mut laps = Laps::begin();
        let (spare, ready) = self.ahead.take(&plan, purpose(&plan))?;
        let (group, allows) = match ready {
            Some(group) => (group, Allows::Standard),
            None => {
                let group = Group::create(&self.layout()?, &plan.cgroup.path, purpose(&plan))?;
                (group, Allows::Unknown)
            }
        };
        let built = build(&plan, when, (&group, allows), spare, &mut laps);
        let (mut created, mut warnings) = match built {
            Ok(built) => built,
            Err(error) => {
                // The first error is the one to report; what is left is found by its name later.
                let _ = group.remove();
                return Err(error);
            }
        };
        laps.nest(std::mem::take(&mut created.laps), "wall");
        let (running, streams, more) = Running::new(plan, group, created, when)?;
        if let Some(oom) = running.oom() {
            watch(&self.events, oom)?;
        }
        warnings.extend(more);
        let pid = running.pid();
        self.running = Some(running);
        Ok(Created { pid, streams, warnings, laps: laps.done() })
    }

    fn start(&mut self) -> Result<()> {
        self.running_mut()?.start()
    }

    fn exec(&mut self, exec: &ExecPlan) -> Result<Created> {
        self.running_mut()?.exec(exec)
    }

    fn signal(&mut self, target: SignalTarget<'_>, signal: i32) -> Result<()> {
        self.running()?.signal(target, signal)
    }

    fn resize(&mut self, exec: Option<&str>, columns: u16, rows: u16) -> Result<()> {
        self.running()?.resize(exec, columns, rows)
    }

    fn trim(&mut self) {
        if let Some(running) = &mut self.running {
            running.trim();
        }
    }

    fn rewire(&mut self, change: &NetworkChange) -> Result<()> {
        self.running()?.rewire(change)
    }

    fn resolver(&mut self) -> Result<Sockets> {
        self.running_mut()?.resolver()
    }

    fn update(&mut self, resources: &Resources) -> Result<Vec<String>> {
        Ok(self.running()?.group().limit(resources)?)
    }

    fn freeze(&mut self, frozen: Frozen) -> Result<()> {
        Ok(self.running()?.group().freeze(frozen == Frozen::Yes)?)
    }

    fn stats(&mut self) -> Result<Stats> {
        self.running()?.stats()
    }

    fn processes(&mut self) -> Result<Processes> {
        Ok(Processes { pids: self.running()?.processes()?, elsewhere: None })
    }

    fn machine(&mut self) -> Option<&mut dyn Machine> {
        None
    }

    fn destroy(&mut self) -> Result<()> {
        let given_up = self.ahead.give_up();
        let destroyed = self.running.take().map_or(Ok(()), Running::destroy);
        destroyed.and(given_up)
    }
}

fn watch(events: &OwnedFd, descriptor: impl AsFd) -> Result<()> {
    epoll::add(events, descriptor, EventData::new_u64(0), EventFlags::IN)
        .map_err(|source| call("epoll_ctl", "for a sandbox", source))
}

fn call(call: &'static str, on: &'static str, source: rustix::io::Errno) -> Error {
    Error::Call { call, on, source: source.into() }
}

/// The master of a terminal, kept to change its size.
fn master_of(streams: &crate::Streams) -> Result<Option<OwnedFd>> {
    match streams {
        crate::Streams::Terminal(master) => duplicate(master.as_fd()).map(Some),
        crate::Streams::Pipes { .. } | crate::Streams::Inherited => Ok(None),
    }
}
