//! Who owns the machine of a tenant: a process of its own, beside the monitors of the containers in it. It starts
//! the machine, gives each container that comes two streams into it and cards of its own, and ends it with the last
//! one.
//!
//! ```text
//! monitor of one container ─┬─ control: orders and answers, one JSON document a line
//!                           ├─ a stream to this container's agent  ─┐
//!                           └─ a stream to its files               ─┴─ owner ══ channel ══ insula-agent
//! ```
//!
//! What the guest says is passed on with bounds; who does not keep to the format is ended.

mod caller;
mod order;

use std::io::Write;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use insula_host::cgroup::{Group, Layout, Purpose};
use insula_proto::channel::{ChannelError, ChannelFrame, Kind};
use insula_proto::{Call, Furnish, Outcome, Reply, Request};
use insula_spec::machine::{MachinePlan, TenantAnswer, TenantCall, TenantMachine, TenantOrder};
use insula_spec::plan::{InterfacePlan, Resources};
use insula_sys::failpoint::failpoint;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use self::caller::{Caller, Seated};
pub use self::order::receive as receive_order;
use super::backend::{self, Begin, Files, Machine, Parts};
use super::cards::Cards;
use super::console::Console;
use super::deadline::Deadline;
use super::running::{COPY, ENDED, json, ready};
use super::{guest, seat::Placed};
use crate::mux::Mux;
use crate::{Error, Result};

/// How long the agent may take to make the machine what it is to be.
const FURNISH: Duration = Duration::from_secs(180);
/// Beside the guest's memory, for what runs it.
const OVERHEAD: u64 = 512 << 20;

/// Makes the machine and serves it until it ends. `daemon` is who has asked for it: it is told what the machine is,
/// or why there is none, and keeps it as any other caller does. For a process of one thread whose umask is 0.
pub fn serve(order: &TenantOrder, daemon: OwnedFd) -> Result<()> {
    insula_sys::process::ignore_broken_pipes(true);
    let mut daemon = Caller::new(daemon)?;
    let booted;
    let mut refused = false;
    let awake = match Owner::awake(order) {
        Err(error) if order.machine.template.is_some() => {
            refused = matches!(error, Error::Template(_));
            let why = insula_base::chain(&error);
            report(&format!(
                "the machine of tenant {} boots, since it could not be a copy of its template: {why}",
                order.tenant
            ));
            let machine = MachinePlan { template: None, ..order.machine.clone() };
            booted = TenantOrder { machine, ..order.clone() };
            Owner::awake(&booted)
        }
        awake => awake,
    };
    let mut owner = match awake {
        Ok(owner) => owner,
        Err(error) => {
            daemon.fail(&error);
            return Err(error);
        }
    };
    owner.refused = refused;
    failpoint("owner.stands");
    daemon.tell(&TenantAnswer::Status(owner.status()));
    owner.callers.push(daemon);
    let served = owner.run();
    let ended = owner.end();
    served.and(ended)
}

#[derive(Debug)]
struct Owner<'a> {
    order: &'a TenantOrder,
    group: Group,
    machine: Machine,
    cards: Cards,
    console: Console,
    mux: Mux,
    listener: OwnedFd,
    callers: Vec<Caller>,
    /// Number of the last stream that was opened.
    last: u32,
    /// Of its kernel.
    release: Option<String>,
    /// The agent's answer to the one request that there is.
    answer: Option<Outcome>,
    began: Instant,
    boot: Duration,
    /// Its template is of no use, and it was booted.
    refused: bool,
    stands: bool,
    stopped: bool,
}

impl<'a> Owner<'a> {
    /// One whose machine stands. On failure nothing of it is left.
    fn awake(order: &'a TenantOrder) -> Result<Self> {
        let mut owner = Self::new(order)?;
        match owner.stand() {
            Ok(()) => Ok(owner),
            Err(error) => {
                let error = if order.machine.template.is_some() { error.of_copy() } else { error };
                // The first error is the one to report; what is left is found by its name later.
                let _ = owner.end();
                Err(error)
            }
        }
    }

    /// Starts the machine, which boots by itself. On failure nothing of it is left.
    fn new(order: &'a TenantOrder) -> Result<Self> {
        let group = Group::create(&Layout::probe()?, &order.cgroup, Purpose::Limit)?;
        let began = Instant::now();
        let made = start(order, &group, began).and_then(|started| {
            failpoint("owner.started");
            Ok((started, listen(order)?))
        });
        match made {
            Ok(((machine, cards, mux), listener)) => Ok(Self {
                order,
                group,
                machine,
                cards,
                console: Console::default(),
                mux,
                listener,
                callers: Vec::new(),
                last: 0,
                release: None,
                answer: None,
                began,
                boot: Duration::ZERO,
                refused: false,
                stands: false,
                stopped: false,
            }),
            Err(error) => {
                // The first error is the one to report; what is left is found by its name later.
                let _ = group.kill();
                let _ = group.remove();
                Err(error)
            }
        }
    }

    /// Waits for the agent, which has said its first word in a template already, and makes the machine what it is
    /// to be.
    fn stand(&mut self) -> Result<()> {
        match &self.order.machine.template {
            Some(template) => self.release = Some(template.release.clone()),
            None => self.hello()?,
        }
        self.boot = self.began.elapsed();
        self.furnish()?;
        if self.order.machine.template.is_some() {
            self.boot = self.began.elapsed();
        }
        self.stands = true;
        Ok(())
    }

    fn hello(&mut self) -> Result<()> {
        let patience = Duration::from_secs(self.order.machine.patience.into());
        let deadline = Deadline::since(self.began, patience);
        while self.release.is_none() {
            if !self.wait(Some(deadline))? {
                let late = format!("the guest's agent did not answer within {deadline} of its start");
                return Err(Error::Machine(self.console.said(&late)));
            }
            self.turn()?;
            self.attend();
        }
        Ok(())
    }

    fn furnish(&mut self) -> Result<()> {
        let plan = json(&guest::tenant(&self.order.tenant, self.order.cards))?;
        let request = insula_proto::encode(&Request::new(1, Call::Furnish(Furnish { plan })));
        // A frame of the task protocol is the message with its length before it.
        self.mux.put(Kind::Request, 0, &request[4..]);
        let copy = self.order.machine.template.is_some();
        let deadline = if copy { Deadline::since(self.began, COPY) } else { Deadline::from_now(FURNISH) };
        loop {
            self.turn()?;
            self.attend();
            match self.answer.take() {
                Some(Outcome::Done(_)) => return Ok(()),
                Some(Outcome::Failed(failed)) => {
                    return Err(Error::Guest { kind: failed.kind(), exit_code: 0, message: failed.message });
                }
                Some(_) => return Err(ChannelError::Malformed("a reply").into()),
                None if self.wait(Some(deadline))? => {}
                None => {
                    let late = format!("the guest's agent does not answer within {deadline}");
                    return Err(Error::Machine(self.console.said(&late)));
                }
            }
        }
    }

    /// Serves until the machine has ended or nobody wants it any more.
    fn run(&mut self) -> Result<()> {
        while !self.over() {
            self.wait(None)?;
            if let Err(error) = self.turn() {
                let why = insula_base::chain(&error);
                self.callers
                    .iter_mut()
                    .for_each(|caller| caller.tell(&TenantAnswer::Ended { why: why.clone() }));
                return Err(error);
            }
            self.attend();
        }
        Ok(())
    }

    /// Serves those who call.
    fn attend(&mut self) {
        self.accept();
        self.hear();
    }

    fn over(&self) -> bool {
        self.stopped || (!self.order.keep && self.callers.is_empty())
    }

    /// Waits until something happens; false when the time is over.
    fn wait(&self, deadline: Option<Deadline>) -> Result<bool> {
        let left = deadline.map(|deadline| deadline.left());
        if let Some(None) = left {
            return Ok(false);
        }
        let mut polled: Vec<_> = self.mux.watched().collect();
        let own = [&self.listener, &self.machine.console, &self.machine.process.pidfd];
        polled.extend(own.into_iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)));
        polled.extend(self.callers.iter().map(Caller::watched));
        match rustix::event::poll(&mut polled, left.flatten().as_ref()) {
            Ok(0) => Ok(false),
            Ok(_) | Err(Errno::INTR) => Ok(true),
            Err(source) => Err(Error::call("poll", "for a tenant's machine", source)),
        }
    }

    /// Serves the machine; its end is an error.
    fn turn(&mut self) -> Result<()> {
        self.console.read(self.machine.console.as_fd());
        let turn = self.mux.turn();
        let why = match turn {
            Ok(turn) => {
                turn.frames.into_iter().try_for_each(|frame| self.take(&frame))?;
                if turn.open && !ready(self.machine.process.pidfd.as_fd()) {
                    return Ok(());
                }
                ENDED.to_owned()
            }
            Err(error) => insula_base::chain(&error),
        };
        self.console.finish(self.machine.console.as_fd());
        Err(Error::Machine(self.console.said(&why)))
    }

    fn take(&mut self, frame: &ChannelFrame) -> Result<()> {
        match frame.kind {
            Kind::Hello => self.release = Some(frame.hello()?),
            Kind::Reply => {
                let reply: Reply =
                    insula_proto::decode(&frame.payload).map_err(|_| ChannelError::Malformed("a reply"))?;
                self.answer = reply.outcome;
            }
            _ => return Err(ChannelError::Malformed("a frame of no stream").into()),
        }
        Ok(())
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            // Who cannot be served is gone.
            self.callers.extend(Caller::new(socket));
        }
    }

    /// Carries out what callers ask, and frees what those had who have gone.
    fn hear(&mut self) {
        for at in (0..self.callers.len()).rev() {
            while let Some(call) = self.callers[at].next() {
                match self.answer(at, call) {
                    Ok((answer, gift)) => {
                        let gift: Vec<_> = gift.iter().map(AsFd::as_fd).collect();
                        self.callers[at].answer(&answer, &gift);
                    }
                    Err(error) => self.callers[at].fail(&error),
                }
            }
            if self.callers[at].gone {
                if let Err(error) = self.forget_dirty_rate(at) {
                    report(&format!("tenant {}: {}", self.order.tenant, insula_base::chain(&error)));
                }
                self.let_go(at);
                self.callers.remove(at);
            }
        }
    }

    fn answer(&mut self, at: usize, call: TenantCall) -> Result<(TenantAnswer, Vec<OwnedFd>)> {
        let no_gift = |answer| Ok((answer, Vec::new()));
        match call {
            TenantCall::Status => no_gift(TenantAnswer::Status(self.status())),
            TenantCall::Join { container, interfaces } => self.join(at, container, &interfaces),
            TenantCall::Wire { unplug, plug, shape } => {
                no_gift(TenantAnswer::Cards(self.wire(at, &unplug, &plug, &shape)?))
            }
            TenantCall::Leave => {
                self.let_go(at);
                no_gift(TenantAnswer::Done)
            }
            TenantCall::MeasureDirtyRate { milliseconds: 0 } => {
                self.forget_dirty_rate(at)?;
                no_gift(TenantAnswer::Done)
            }
            TenantCall::MeasureDirtyRate { milliseconds } => {
                self.machine.measure_dirty_rate(Duration::from_millis(milliseconds.into()))?;
                self.callers[at].measures = true;
                no_gift(TenantAnswer::Done)
            }
            TenantCall::DirtyRate if !self.callers[at].measures => {
                Err(Error::Phase { is: "not being measured", needed: "so" })
            }
            TenantCall::DirtyRate => {
                let rate = self.machine.dirty_rate(&self.order.machine)?;
                self.callers[at].measures = rate.is_none();
                no_gift(TenantAnswer::DirtyRate(rate))
            }
            TenantCall::Stop => {
                let inside = self.status().containers;
                if !inside.is_empty() {
                    return Err(Error::Full(format!(
                        "{} containers are in the tenant's machine",
                        inside.len()
                    )));
                }
                self.stopped = true;
                no_gift(TenantAnswer::Done)
            }
        }
    }

    fn status(&self) -> TenantMachine {
        let plan = &self.order.machine;
        TenantMachine {
            backend: plan.backend,
            program: self.machine.program.to_owned(),
            pid: self.machine.process.pid,
            cpus: plan.cpus,
            memory: plan.memory,
            kernel: self.release.clone().filter(|_| self.stands).unwrap_or_default(),
            boot: u64::try_from(self.boot.as_millis()).unwrap_or(u64::MAX),
            template: plan.template.is_some(),
            refused: self.refused,
            free_cards: self.cards.free(),
            containers: self
                .callers
                .iter()
                .filter_map(|caller| caller.seated.as_ref())
                .map(|seated| seated.container.clone())
                .collect(),
        }
    }

    /// Two streams and cards for a container.
    fn join(
        &mut self,
        at: usize,
        container: String,
        interfaces: &[InterfacePlan],
    ) -> Result<(TenantAnswer, Vec<OwnedFd>)> {
        if !self.stands {
            return Err(Error::Phase { is: "about to boot", needed: "up" });
        }
        if self.callers[at].seated.is_some() {
            return Err(Error::Phase { is: "in the machine", needed: "outside" });
        }
        let cards = self.plug(interfaces)?;
        let places = cards.iter().map(|(place, _)| *place).collect();
        self.callers[at].seated = Some(Seated { container, places });
        let ((channel, theirs), (files, files_theirs)) = (backend::pair()?, backend::pair()?);
        // Numbers come again after four thousand million streams, and then the first has long gone.
        let number = self.last.wrapping_add(2);
        self.last = number;
        self.mux.put(Kind::Open, number, b"");
        self.mux.open(number, channel)?;
        self.mux.open(number.wrapping_add(1), files)?;
        Ok((TenantAnswer::Cards(cards), vec![theirs, files_theirs]))
    }

    fn wire(
        &mut self,
        at: usize,
        unplug: &[usize],
        plug: &[InterfacePlan],
        shape: &[(usize, Option<NonZeroU64>)],
    ) -> Result<Placed> {
        let seated = self.callers[at].seated.as_ref();
        let own = seated.ok_or(Error::Phase { is: "outside", needed: "in the machine" })?;
        let mut named = unplug.iter().chain(shape.iter().map(|(place, _)| place));
        if let Some(foreign) = named.find(|place| !own.places.contains(place)) {
            return Err(Error::Invalid(format!("card {foreign} is not the container's")));
        }
        for (place, rate) in shape {
            self.cards.hold(*place, *rate)?;
        }
        let cards = self.plug(plug)?;
        for place in unplug {
            self.cards.unplug(*place)?;
        }
        if let Some(seated) = &mut self.callers[at].seated {
            seated.places.retain(|place| !unplug.contains(place));
            seated.places.extend(cards.iter().map(|(place, _)| *place));
        }
        Ok(cards)
    }

    /// All of them, or none.
    fn plug(&mut self, interfaces: &[InterfacePlan]) -> Result<Placed> {
        let mut cards = Vec::new();
        for plan in interfaces {
            match self.cards.plug(plan) {
                Ok(card) => cards.push(card),
                Err(error) => {
                    for (place, _) in cards {
                        // The first error is the one to report.
                        let _ = self.cards.unplug(place);
                    }
                    return Err(match error {
                        Error::Full(_) => Error::Full(self.full()),
                        error => error,
                    });
                }
            }
        }
        Ok(cards)
    }

    fn full(&self) -> String {
        format!(
            "the machine of tenant {} is full: its {} network cards are in use (a tenant is made with more by \
             --cards)",
            self.order.tenant, self.order.cards
        )
    }

    /// Who has asked what the guest writes does not want to know any more.
    fn forget_dirty_rate(&mut self, at: usize) -> Result<()> {
        if std::mem::take(&mut self.callers[at].measures) { self.machine.forget_dirty_rate() } else { Ok(()) }
    }

    /// Frees what a container had.
    fn let_go(&mut self, at: usize) {
        let Some(seated) = self.callers[at].seated.take() else { return };
        for place in seated.places {
            if let Err(error) = self.cards.unplug(place) {
                report(&format!("a card of tenant {}: {}", self.order.tenant, insula_base::chain(&error)));
            }
        }
    }

    /// Ends and frees everything.
    fn end(self) -> Result<()> {
        // First, so that nobody comes any more.
        let _ = std::fs::remove_file(self.order.machine.folder.join(TenantOrder::SOCKET));
        drop((self.listener, self.callers));
        let killed = self.group.kill();
        self.machine.process.end();
        killed?;
        Ok(self.group.remove()?)
    }
}

fn start(order: &TenantOrder, group: &Group, began: Instant) -> Result<(Machine, Cards, Mux)> {
    let limits = Resources {
        memory: Some(order.machine.memory + OVERHEAD),
        nano_cpus: Some(order.nano_cpus).filter(|limit| *limit > 0),
        ..Resources::default()
    };
    for warning in group.limit(&limits)? {
        report(&format!("tenant {}: {warning}", order.tenant));
    }
    let (cards, interfaces) = Cards::all_spare(order.cards)?;
    let machine = backend::start(Parts {
        plan: &order.machine,
        begin: Begin::of(&order.machine, Deadline::since(began, COPY))?,
        files: Files::None,
        interfaces,
        sockets: None,
        uid: order.user,
        gid: order.user,
        entry: &group.entry()?,
    })?;
    match crate::duplicate(machine.channel.as_fd()).and_then(Mux::new) {
        Ok(mux) => Ok((machine, cards, mux)),
        Err(error) => {
            machine.process.end();
            Err(error)
        }
    }
}

/// Says what nobody has asked for to the daemon's log, which may not be read any more.
fn report(what: &str) {
    let _ = writeln!(std::io::stderr(), "insula-monitor: {what}");
}

/// The socket at which monitors call, in the machine's folder.
fn listen(order: &TenantOrder) -> Result<OwnedFd> {
    let call = |call| move |source| Error::call(call, "the socket of a tenant's machine", source);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(&order.machine.folder, flags, Mode::empty()).map_err(call("open"))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(call("socket"))?;
    let path = insula_sys::socket::path_in(folder.as_fd(), TenantOrder::SOCKET);
    let address = SocketAddrUnix::new(path).map_err(call("bind"))?;
    rustix::net::bind(&socket, &address).map_err(call("bind"))?;
    rustix::net::listen(&socket, 64).map_err(call("listen"))?;
    Ok(socket)
}
