//! A machine that stands, from its boot to its end.

mod body;
mod wiring;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use insula_base::{Lap, Laps};
use insula_container::{Jailed, share};
use insula_host::cgroup::{Entry, Group, Layout, Purpose, Stats};
use insula_proto::{Call, Create, Empty, Exec, Furnish, Outcome, Resize, Signal, Start, Update};
use insula_spec::machine::{DirtyRate, MachinePlan, MachineRecord};
use insula_spec::plan::{ContainerPlan, Resources};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use self::body::{Body, Whole};
use super::backend::{self, Begin, Files, Machine, Parts};
use super::cards::Cards;
use super::console::Console;
use super::deadline::Deadline;
use super::link::Link;
use super::names::Names;
use super::seat::Seat;
use super::sockets::Sockets;
use super::{files, guest};
use crate::{Created, Error, Event, ExecPlan, Frozen, Processes, Result, SignalTarget, When};

/// How long an agent may take for an answer.
const ANSWER: Duration = Duration::from_secs(180);
/// How long it may take until a copy of a template is what the plan means: what has not answered by then will not,
/// and a boot takes no longer.
pub(super) const COPY: Duration = Duration::from_secs(15);
/// The code of a container whose machine broke: as if it had been killed.
const BROKEN: i32 = 137;
/// The same however it shows first: the process is gone, its channel is closed, or an answer fails.
pub(super) const ENDED: &str = "the machine ended";
const SERVER_ENDED: &str = "the process that serves the machine's files ended";

pub(super) use self::body::TENANT_ENDED;

/// The machine, what serves it, and the link into it.
#[derive(Debug)]
pub(super) struct Running {
    plan: MachinePlan,
    group: Group,
    files: Jailed,
    /// Between the files and a port, in a copy of a template; or a stream, in a tenant's machine.
    relay: Option<Jailed>,
    body: Body,
    link: Link,
    /// Of a container that has a name server.
    names: Option<Names>,
    /// The channel is also waited for until it takes more.
    writing: bool,
    /// Why it is of no more use.
    broken: Option<String>,
    /// Its template is of no use, and it was booted.
    refused: bool,
    /// Its container's root is in its memory.
    mapped: bool,
    /// Of its making, for the user.
    warnings: Vec<String>,
    began: Instant,
    /// Until it was what the plan means.
    boot: Duration,
    /// Of its kernel.
    release: String,
}

/// The processes that a machine is made of.
struct Members {
    files: Jailed,
    relay: Option<Jailed>,
    body: Body,
    began: Instant,
}

impl Running {
    /// Starts the machine, waits for its agent, and makes it the one that the plan means. On failure nothing of
    /// it is left.
    pub(super) fn awake(plan: &ContainerPlan, events: &OwnedFd) -> Result<Self> {
        let mut this = Self::start(plan, events)?;
        match this.furnish(plan, events) {
            Ok(()) => Ok(this),
            Err(error) => {
                // The first error is the one to report; what is left is found by its name later.
                let _ = this.destroy();
                Err(error)
            }
        }
    }

    fn furnish(&mut self, plan: &ContainerPlan, events: &OwnedFd) -> Result<()> {
        self.release = match &self.plan.template {
            Some(template) => template.release.clone(),
            None => self.boot(events)?,
        };
        let furnish = Furnish { plan: json(&guest::machine(plan))? };
        let number = self.link.ask(Call::Furnish(furnish));
        let answer = match self.plan.template {
            Some(_) => {
                let answer = self.await_answer_until(Deadline::since(self.began, COPY), number, events);
                answer.map_err(|error| if self.served() { error.of_copy() } else { error })?
            }
            None => self.await_answer(number, events)?,
        };
        match answer {
            Outcome::Done(done) => {
                self.mapped = done.mapped && self.plan.image.is_some();
                self.warnings.extend(done.warnings);
            }
            other => return Err(unexpected(&other)),
        }
        self.boot = self.began.elapsed();
        Ok(())
    }

    /// It was booted, since it could not be a copy of its template.
    pub(super) fn booted_since(&mut self, error: &Error) {
        self.refused = matches!(error, Error::Template(_));
        let what =
            if self.refused { "its template is of no use" } else { "no copy could be made of its template" };
        let why = insula_base::chain(error);
        self.warnings.push(format!("the machine was booted, since {what}: {why}"));
    }

    /// Starts the machine with what it needs; it boots by itself. On failure nothing of it is left.
    fn start(plan: &ContainerPlan, events: &OwnedFd) -> Result<Self> {
        let machine =
            plan.machine.as_ref().ok_or_else(|| Error::Invalid("the plan has no machine".into()))?;
        let group = Group::create(&Layout::probe()?, &plan.cgroup.path, Purpose::Limit)?;
        match Self::start_in(plan, machine, &group) {
            Ok((Members { files, relay, body, began }, warnings)) => {
                let mut this = Self {
                    plan: machine.clone(),
                    group,
                    files,
                    relay,
                    body,
                    link: Link::default(),
                    names: None,
                    writing: false,
                    broken: None,
                    refused: false,
                    mapped: false,
                    warnings,
                    began,
                    boot: Duration::ZERO,
                    release: String::new(),
                };
                match this.prepare(plan, events) {
                    Ok(()) => Ok(this),
                    Err(error) => {
                        // As above.
                        let _ = this.destroy();
                        Err(error)
                    }
                }
            }
            Err(error) => {
                // The first error is the one to report; what is left is found by its name later.
                let _ = group.kill();
                let _ = group.remove();
                Err(error)
            }
        }
    }

    fn start_in(
        plan: &ContainerPlan,
        machine: &MachinePlan,
        group: &Group,
    ) -> Result<(Members, Vec<String>)> {
        let mut warnings = group.limit(&guest::outside(&plan.cgroup.resources, machine.memory))?;
        let entry = group.entry()?;
        let (process, connection, more) = files::serve(plan, &machine.folder, &entry)?;
        warnings.extend(more);
        // The last id of the container's own, which nothing in it has as a rule; nobody without a range.
        let user = plan.namespaces.user.range().map_or(65534, |(first, count)| first + count - 1);
        let mut relay = None;
        let began = Instant::now();
        let started = match &machine.tenant {
            Some(socket) => sit_down(plan, machine, socket, &connection, user, &entry, &mut relay),
            None => make(plan, machine, (connection, began), user, &entry, &mut relay),
        };
        match started {
            Ok(body) => Ok((Members { files: process, relay, body, began }, warnings)),
            Err(error) => {
                process.end();
                if let Some(relay) = relay {
                    relay.end();
                }
                Err(error)
            }
        }
    }

    fn prepare(&mut self, plan: &ContainerPlan, events: &OwnedFd) -> Result<()> {
        if plan.resolver {
            self.listen_for_names(events)?;
        }
        let own = [self.body.channel(), self.files.pidfd.as_fd()];
        let relay = self.relay.as_ref().map(|relay| relay.pidfd.as_fd());
        let all = own.into_iter().chain(self.body.watched()).chain(relay);
        // Everything is known by its number alone: all of it is looked at each time.
        all.collect::<Vec<_>>().into_iter().try_for_each(|descriptor| wait_for(events, descriptor))
    }

    /// Has the agent make the container.
    pub(super) fn create(
        &mut self,
        plan: ContainerPlan,
        when: When,
        events: &OwnedFd,
        mut laps: Laps,
    ) -> Result<Created> {
        let container = guest::container(&plan);
        let seated = self.plan.tenant.is_some();
        let create = Create {
            plan: json(&container)?,
            folder: String::new(),
            attachments: Vec::new(),
            // In a tenant's machine its network comes first.
            start: when == When::Now && !seated,
            template: false,
        };
        let (number, streams) = self.link.ask_process(None, &plan.stdio, Call::Create(create))?;
        let started = match self.await_answer(number, events)? {
            Outcome::Started(started) => started,
            other => return Err(unexpected(&other)),
        };
        laps.nest(started.laps.into_iter().map(Lap::from), "guest");
        if seated {
            self.settle_in(&plan, events)?;
            if when == When::Now {
                self.start_program(events)?;
            }
            laps.lap("seat");
        }
        self.record()?;
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.extend(started.warnings);
        Ok(Created { pid: self.body.pid(), streams, warnings, laps: laps.done() })
    }

    fn boot(&mut self, events: &OwnedFd) -> Result<String> {
        let deadline = Deadline::since(self.began, Duration::from_secs(self.plan.patience.into()));
        loop {
            if let Some(release) = self.link.hello() {
                return Ok(release.to_owned());
            }
            if !self.turn(deadline, events)? {
                let late = format!("the guest's agent did not answer within {deadline} of its start");
                return Err(Error::Machine(self.body.said(&late)));
            }
        }
    }

    fn record(&self) -> Result<()> {
        let boot = u64::try_from(self.boot.as_millis()).unwrap_or(u64::MAX);
        let record = MachineRecord {
            root: share::root_in(&self.files),
            refused: self.refused,
            mapped: self.mapped,
            ..self.body.record(&self.plan, &self.release, boot)
        };
        let path = self.plan.folder.join(MachineRecord::FILE);
        insula_base::replace(&path, &json(&record)?, 0o600, insula_base::Durability::Process)
            .map_err(|source| Error::File { call: "write", path, source })
    }

    pub(super) fn start_program(&mut self, events: &OwnedFd) -> Result<()> {
        self.call(Call::Start(Start {}), events).map(drop)
    }

    pub(super) fn exec(&mut self, exec: &ExecPlan, events: &OwnedFd) -> Result<Created> {
        if self.link.runs(&exec.id) {
            return Err(Error::ExecExists(exec.id.clone()));
        }
        let call = Call::Exec(Exec {
            exec: exec.id.clone(),
            process: json(&exec.process)?,
            stdio: json(&guest::stdio(&exec.stdio))?,
            attachments: Vec::new(),
            privileged: exec.privileged,
            // That monitor serves one daemon for its whole life: this process.
            remembered: false,
        });
        let (number, streams) = self.link.ask_process(Some(exec.id.clone()), &exec.stdio, call)?;
        match self.await_answer(number, events) {
            Ok(Outcome::Started(started)) => {
                let laps = started.laps.into_iter().map(Lap::from).collect();
                Ok(Created { pid: self.body.pid(), streams, warnings: started.warnings, laps })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => {
                self.link.forget(number);
                Err(error)
            }
        }
    }

    pub(super) fn signal(&mut self, target: SignalTarget<'_>, signal: i32, events: &OwnedFd) -> Result<()> {
        let mut call = Signal { signal, ..Signal::default() };
        match target {
            SignalTarget::First => {}
            SignalTarget::Exec(id) => id.clone_into(&mut call.exec),
            SignalTarget::ExecGroup(id) => {
                id.clone_into(&mut call.exec);
                call.group = true;
            }
            SignalTarget::All => call.all = true,
        }
        self.call(Call::Signal(call), events).map(drop)
    }

    pub(super) fn resize(
        &mut self,
        exec: Option<&str>,
        columns: u16,
        rows: u16,
        events: &OwnedFd,
    ) -> Result<()> {
        let exec = exec.unwrap_or_default().to_owned();
        self.call(Call::Resize(Resize { exec, columns: columns.into(), rows: rows.into() }), events).map(drop)
    }

    pub(super) fn update(&mut self, resources: &Resources, events: &OwnedFd) -> Result<Vec<String>> {
        if let Some(memory) = resources.memory
            && memory > self.plan.memory
        {
            return Err(Error::Invalid(format!(
                "the container's machine has {} MiB of memory: a limit of {} MiB takes a new one (stop it, then \
                 start it again)",
                self.plan.memory >> 20,
                memory >> 20
            )));
        }
        let mut warnings = self.group.limit(&Resources { memory: None, ..guest::outside(resources, 0) })?;
        let update = Update { resources: json(&guest::inside(resources))? };
        match self.call(Call::Update(update), events)? {
            Outcome::Done(done) => warnings.extend(done.warnings),
            other => return Err(unexpected(&other)),
        }
        Ok(warnings)
    }

    pub(super) fn freeze(&mut self, frozen: Frozen, events: &OwnedFd) -> Result<()> {
        let call = if frozen == Frozen::Yes { Call::Freeze(Empty {}) } else { Call::Thaw(Empty {}) };
        self.call(call, events).map(drop)
    }

    pub(super) fn stats(&mut self, events: &OwnedFd) -> Result<Stats> {
        match self.call(Call::Stats(Empty {}), events)? {
            Outcome::Stats(bytes) => {
                let mut stats: Stats = serde_json::from_slice(&bytes)
                    .map_err(|_| insula_proto::channel::ChannelError::Malformed("statistics"))?;
                // More than the machine has it cannot take.
                stats.memory_limit = Some(stats.memory_limit.unwrap_or(u64::MAX).min(self.plan.memory));
                Ok(stats)
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn processes(&mut self, events: &OwnedFd) -> Result<Processes> {
        match self.call(Call::Processes(Empty {}), events)? {
            Outcome::Processes(processes) => Ok(processes),
            other => Err(unexpected(&other)),
        }
    }

    /// The machine, which is the container's alone.
    pub(super) fn machine(&mut self) -> Result<&mut Machine> {
        match &mut self.body {
            Body::Whole(whole) => Ok(&mut whole.machine),
            Body::Seat(_) => Err(Error::Unsupported(
                "the machine is its tenant's, with memory of all containers in it: it is measured as a whole",
            )),
        }
    }

    pub(super) fn dirty_rate(&mut self) -> Result<Option<DirtyRate>> {
        let plan = self.plan.clone();
        self.machine()?.dirty_rate(&plan)
    }

    fn call(&mut self, call: Call, events: &OwnedFd) -> Result<Outcome> {
        let number = self.link.ask(call);
        self.await_answer(number, events)
    }

    fn await_answer(&mut self, number: u32, events: &OwnedFd) -> Result<Outcome> {
        self.await_answer_until(Deadline::from_now(ANSWER), number, events)
    }

    fn await_answer_until(&mut self, deadline: Deadline, number: u32, events: &OwnedFd) -> Result<Outcome> {
        self.serve();
        loop {
            match self.link.answer(number) {
                Some(Outcome::Failed(failed)) => {
                    return Err(Error::Guest {
                        kind: failed.kind(),
                        exit_code: u8::try_from(failed.exit_code).unwrap_or(0),
                        message: failed.message,
                    });
                }
                Some(outcome) => return Ok(outcome),
                None => {}
            }
            if !self.turn(deadline, events)? {
                let late = format!("the guest's agent does not answer within {deadline}");
                return Err(Error::Machine(self.body.said(&late)));
            }
        }
    }

    /// Waits until something happens and serves it; false when the time is over, whatever a guest sends
    /// meanwhile.
    fn turn(&mut self, deadline: Deadline, events: &OwnedFd) -> Result<bool> {
        if let Some(broken) = &self.broken {
            return Err(Error::Machine(broken.clone()));
        }
        self.watch(events)?;
        let Some(time) = deadline.left() else { return Ok(false) };
        let mut polled = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&time)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(source) => return Err(Error::call("poll", "for a machine", source)),
        }
        self.serve();
        Ok(true)
    }

    /// Serves everything that is there. What breaks the machine is kept for who asks.
    fn serve(&mut self) {
        if self.broken.is_some() {
            return;
        }
        self.body.read_console();
        let served = self.link.serve(self.body.channel()).and_then(|open| {
            self.serve_names()?;
            Ok(self.body.connect_sockets()? && open)
        });
        let broken = match served {
            Ok(true) => self.ended(),
            Ok(false) => Some(ENDED.to_owned()),
            // What was under way when a process ended fails as well; the end is the reason.
            Err(error) => Some(self.ended().unwrap_or_else(|| insula_base::chain(&error))),
        };
        if let Some(broken) = broken {
            let broken = self.body.last_words(&broken);
            self.link.cut(BROKEN, &broken);
            self.broken = Some(broken);
        }
    }

    /// Whether one of the processes that it is made of has ended.
    fn ended(&self) -> Option<String> {
        if self.body.ended() {
            return Some(ENDED.to_owned());
        }
        // Who serves a machine ends with it, and may be seen to before it is: by then its end of the channel is closed.
        let why = || if closed(self.body.channel()) { ENDED } else { SERVER_ENDED };
        (!self.served()).then(|| why().to_owned())
    }

    /// Whether its files are still served.
    fn served(&self) -> bool {
        let ended = |process: &Jailed| ready(process.pidfd.as_fd());
        !(ended(&self.files) || self.relay.as_ref().is_some_and(ended))
    }

    fn watch(&mut self, events: &OwnedFd) -> Result<()> {
        self.link.watch(events)?;
        let writing = self.link.has_more();
        if writing != self.writing {
            let flags = if writing { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(events, self.body.channel(), EventData::new_u64(0), flags)
                .map_err(|source| Error::call("epoll_ctl", "for a machine", source))?;
            self.writing = writing;
        }
        Ok(())
    }

    pub(super) fn next_event(&mut self, events: &OwnedFd) -> Result<Option<Event>> {
        if let Some(event) = self.link.next_event() {
            return Ok(Some(event));
        }
        self.serve();
        self.watch(events)?;
        Ok(self.link.next_event())
    }

    /// Ends and frees everything.
    pub(super) fn destroy(self) -> Result<()> {
        // All at once: one that is left behind complains.
        let killed = self.group.kill();
        self.body.end();
        self.files.end();
        if let Some(relay) = self.relay {
            relay.end();
        }
        killed?;
        Ok(self.group.remove()?)
    }
}

/// Starts a machine for one container.
fn make(
    plan: &ContainerPlan,
    machine: &MachinePlan,
    (connection, began): (OwnedFd, Instant),
    user: u32,
    entry: &Entry,
    relay: &mut Option<Jailed>,
) -> Result<Body> {
    let begin = Begin::of(machine, Deadline::since(began, COPY))?;
    let files = files_of(machine, connection, user, entry, relay)?;
    let (cards, interfaces) = Cards::open(&plan.interfaces, machine.template.is_some())?;
    let (uid, gid) = (user, user);
    let (sockets, inside) = match machine.vsock {
        Some(_) => Sockets::open(&machine.folder).map(|(ours, inside)| (Some(ours), Some(inside)))?,
        None => (None, None),
    };
    let parts = Parts { plan: machine, begin, files, interfaces, sockets: inside, uid, gid, entry };
    let machine = backend::start(parts)?;
    Ok(Body::Whole(Whole { machine, cards, console: Console::default(), sockets }))
}

/// Takes a seat in a tenant's machine, with a relay for the container's files.
fn sit_down(
    plan: &ContainerPlan,
    machine: &MachinePlan,
    socket: &Path,
    connection: &OwnedFd,
    user: u32,
    entry: &Entry,
    relay: &mut Option<Jailed>,
) -> Result<Body> {
    let (seat, stream) = Seat::take(socket, plan.id.as_str(), &plan.interfaces)?;
    *relay = Some(files::relay(&machine.vmm, &stream, connection, user, entry)?);
    Ok(Body::Seat(seat))
}

/// How a machine gets its files: a copy of a template through a relay, which is started here.
fn files_of(
    machine: &MachinePlan,
    connection: OwnedFd,
    user: u32,
    entry: &Entry,
    relay: &mut Option<Jailed>,
) -> Result<Files> {
    if machine.template.is_none() {
        return Ok(Files::Device(connection));
    }
    let (port, port_inside) = backend::pair()?;
    *relay = Some(files::relay(&machine.vmm, &port, &connection, user, entry)?);
    Ok(Files::Port(port_inside))
}

fn wait_for(events: &OwnedFd, descriptor: BorrowedFd<'_>) -> Result<()> {
    epoll::add(events, descriptor, EventData::new_u64(0), EventFlags::IN)
        .map_err(|source| Error::call("epoll_ctl", "for a machine", source))
}

pub(super) fn ready(descriptor: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(1..))
}

/// Whether the other end of a socket is gone, whatever is still to be read.
fn closed(descriptor: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(1..))
}

fn unexpected(outcome: &Outcome) -> Error {
    Error::Machine(format!("the guest's agent answered with {outcome:?}"))
}

pub(super) fn json(document: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document)
        .map_err(|error| Error::Invalid(format!("a document cannot be written: {error}")))
}
