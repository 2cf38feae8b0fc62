//! What a wall with a kernel of its own needs of whoever runs the machine. A backend is chosen in
//! [`start`]; nothing outside this folder knows which there are.

use std::fmt::Debug;
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use insula_container::Jailed;
use insula_host::cgroup::Entry;
use insula_spec::machine::{Backend, MachinePlan};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use super::deadline::Deadline;
use super::dirty::{Counted, Counting};
use super::sockets::Inside;
use super::{own, qemu};
use crate::{Error, Result};

/// The port by which the agent is reached.
pub(super) const CHANNEL: &str = "insula";
/// The same in the machine of a tenant.
pub(super) const TENANT_CHANNEL: &str = "insula-tenant";
/// The tag of the shared files.
pub(super) const TAG: &str = "insula";

/// The port of a copy of a template that its files come through.
pub(super) const FILES: &str = "files";

/// How a machine gets the container's files.
#[derive(Debug)]
pub(super) enum Files {
    /// A device: connected to who serves them, by the vhost-user protocol.
    Device(OwnedFd),
    /// The port [`FILES`]: what templates and their copies have.
    Port(OwnedFd),
    /// Each container of a tenant's machine has its own, through the channel.
    None,
}

impl Files {
    pub(super) fn descriptor(&self) -> Option<&OwnedFd> {
        match self {
            Self::Device(descriptor) | Self::Port(descriptor) => Some(descriptor),
            Self::None => None,
        }
    }

    /// Name of the port that the channel is.
    pub(super) fn channel(&self) -> &'static str {
        match self {
            Self::Device(_) | Self::Port(_) => CHANNEL,
            Self::None => TENANT_CHANNEL,
        }
    }
}

/// What a machine begins with.
#[derive(Debug)]
pub(super) enum Begin {
    /// A boot, in memory of its own.
    Boot,
    /// A boot, in this memory.
    BootIn(OwnedFd),
    /// The state and the memory of a template, the latter copied as it is written; by when it is to go on.
    Template { state: OwnedFd, memory: OwnedFd, deadline: Deadline },
}

impl Begin {
    /// As the plan has it: by a boot, or the template's, going on by then.
    pub(super) fn of(plan: &MachinePlan, deadline: Deadline) -> Result<Self> {
        let Some(template) = &plan.template else { return Ok(Self::Boot) };
        let state = open(&template.state)?.into();
        let memory = open(&template.memory)?.into();
        Ok(Self::Template { state, memory, deadline })
    }
}

/// What a machine is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) plan: &'a MachinePlan,
    pub(super) begin: Begin,
    pub(super) files: Files,
    pub(super) interfaces: Vec<Interface>,
    /// The machine's ends of its sockets to the host, if the plan has such.
    pub(super) sockets: Option<Inside>,
    /// User and group of the process that is the machine.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The control group that it runs in.
    pub(super) entry: &'a Entry,
}

/// A network interface of a machine.
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) mac: String,
    /// Largest packet; 0 where nothing is asked for.
    pub(super) mtu: u32,
    /// The host's end.
    pub(super) tap: OwnedFd,
    /// Where the machine is told what the guest may send: see [`Sending`]. Who does not take it closes it.
    pub(super) sending: OwnedFd,
}

impl Interface {
    pub(super) fn new(mac: String, mtu: u32, tap: OwnedFd) -> Result<(Self, Sending)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, sending) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .map_err(|source| Error::call("socketpair", "for a network card", source))?;
        Ok((Self { mac, mtu, tap, sending }, Sending(ours)))
    }
}

/// Holds what a guest sends by one card to a rate, whatever its kernel does. A backend that cannot has only what
/// holds inside.
#[derive(Debug)]
pub(super) struct Sending(OwnedFd);

impl Sending {
    /// Bits a second, or as many as it can.
    pub(super) fn hold(&self, rate: Option<NonZeroU64>) -> Result<()> {
        let message = rate.map_or(0, NonZeroU64::get).to_le_bytes();
        match rustix::net::send(&self.0, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            // Nobody takes it: another backend's, or the machine has ended.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(source) => Err(Error::call("send", "the rate of a network card", source)),
        }
    }
}

/// A machine that runs: a process that is a child of this one. Every backend makes one of these.
#[derive(Debug)]
pub(super) struct Machine {
    /// What runs it, for people.
    pub(super) program: &'static str,
    pub(super) process: Jailed,
    /// A stream to the agent.
    pub(super) channel: OwnedFd,
    /// What the guest prints.
    pub(super) console: OwnedFd,
    pub(super) control: Box<dyn Control>,
    pub(super) counting: Counting,
}

/// What the process that is a machine is asked for beside its guest.
pub(super) trait Control: Debug {
    /// Saves a machine that began with [`Begin::BootIn`], all but its memory, to `state`. It is of no use then but to
    /// be ended.
    fn save(&mut self, state: &OwnedFd) -> Result<()>;

    /// Counts pages that the guest writes for a time, from now on.
    fn count(&mut self, period: Duration) -> Result<()>;

    /// What was counted; none before that time is over.
    fn counted(&mut self) -> Result<Option<Counted>>;

    /// Counts no more; false where that goes on until its time is over.
    fn stop_counting(&mut self) -> Result<bool>;
}

/// Starts a machine. It boots on its own; the agent's first word says that it has. A copy of a template has said
/// it before.
pub(super) fn start(parts: Parts<'_>) -> Result<Machine> {
    match parts.plan.backend {
        Backend::Kvm => own::start(parts),
        Backend::Qemu => qemu::start(parts),
    }
}

/// The two ends of a stream into a machine.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    sockets(SocketType::STREAM)
}

/// The same of messages.
pub(super) fn messages() -> Result<(OwnedFd, OwnedFd)> {
    sockets(SocketType::SEQPACKET)
}

fn sockets(kind: SocketType) -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .map_err(|source| Error::call("socketpair", "for a machine", source))
}

/// What a machine boots from.
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::File { call: "open", path: path.to_owned(), source })
}

/// Without measuring the clock: a kernel gets that wrong on a busy host. The emulator passes the host's
/// counter on as it is.
pub(super) fn kernel_arguments() -> String {
    let mut line = String::from(
        "console=ttyS0 quiet panic=-1 reboot=t mitigations=off random.trust_cpu=on no_timer_check",
    );
    let host = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let clock = host.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(':'));
    if let Some(mhz) = clock.and_then(|(_, mhz)| mhz.trim().parse::<f64>().ok()) {
        line.push_str(&format!(" tsc_early_khz={:.0}", mhz * 1000.0));
    }
    line
}
