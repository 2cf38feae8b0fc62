//! The machine around a container: what a wall with a kernel of its own is asked to build, and what the
//! agent in the guest is told.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::{GatewayPlan, InterfacePlan};

/// The machine of a container that does not share the host's kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePlan {
    pub backend: Backend,
    /// The program `insula-vmm`, for [`Backend::Kvm`].
    pub vmm: PathBuf,
    pub kernel: KernelPlan,
    /// The initial RAM disk with the agent.
    pub initramfs: PathBuf,
    /// Processors; at least 1.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Seconds from its start in which its agent has to answer.
    #[serde(default = "patience")]
    pub patience: u32,
    /// Folder of the sandbox, where the machine's own record is left.
    pub folder: PathBuf,
    /// What it goes on from instead of a boot.
    #[serde(default)]
    pub template: Option<TemplatePlan>,
    /// The container's root without its mounts, an EROFS image that is mapped into the guest's memory: for
    /// [`Backend::Kvm`], and roots that are read-only. Its files are served besides.
    #[serde(default)]
    pub image: Option<PathBuf>,
    /// The socket of a tenant's machine that runs: the container gets a seat in it instead of a machine of its own.
    #[serde(default)]
    pub tenant: Option<PathBuf>,
    /// The address (CID) of the guest's sockets, if it has such: for [`Backend::Kvm`]. The host's ends are in
    /// `folder`.
    #[serde(default)]
    pub vsock: Option<u32>,
}

/// Seconds that a machine may take to boot where nobody said anything else: an emulated one on a busy host needs
/// many times what it needs on an idle one.
pub const USUAL_PATIENCE: u32 = 180;

fn patience() -> u32 {
    USUAL_PATIENCE
}

/// A machine that was saved right before it would have taken a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplatePlan {
    /// Release of the kernel that runs in it.
    pub release: String,
    /// Its memory: nobody who opens it can write to it. Said by who has it open.
    #[serde(default)]
    pub memory: PathBuf,
    /// Everything else of it; said by who has it open.
    #[serde(default)]
    pub state: PathBuf,
}

/// Whom a template is for, which says what its agent waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemplateFor {
    /// A machine of its own.
    #[default]
    Container,
    /// The machine of a tenant.
    Tenant,
}

/// A template to make. What comes of it is left in a folder as [`TemplateOrder::MEMORY`] and
/// [`TemplateOrder::STATE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateOrder {
    pub machine: MachinePlan,
    pub whom: TemplateFor,
    /// How many networks its container is in; it has cards for more, see [`spare_cards`] and [`card`]. All cards of
    /// a tenant's.
    pub interfaces: usize,
    /// The control group that it is made in.
    pub cgroup: String,
    /// Nobody waits for it: others go first.
    pub patient: bool,
}

impl TemplateOrder {
    pub const MEMORY: &str = "memory";
    pub const STATE: &str = "state";
}

/// What came of a [`TemplateOrder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateMade {
    /// Release of the kernel that answered.
    pub release: String,
    /// Milliseconds from the start of the machine to the agent's first word.
    pub boot: u64,
}

/// The hardware address of a template's interface, by its place, until it gets that of a container.
#[must_use]
pub fn card(place: usize) -> String {
    format!("02:69:6e:73:{:02x}:{:02x}", place >> 8 & 0xff, place & 0xff)
}

/// Networks that a container can be in when its machine starts.
pub const MOST_INTERFACES: usize = 16;

/// Cards that a machine has beside those of the networks that it starts with, for networks that it comes into
/// while it runs. One without a network stays so.
#[must_use]
pub fn spare_cards(interfaces: usize) -> usize {
    const SPARE: usize = 2;
    if interfaces == 0 { 0 } else { SPARE.min(MOST_INTERFACES.saturating_sub(interfaces)) }
}

/// Other networks for a machine that runs: what its agent is told. Cards are known by their places.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardsChange {
    /// Cards that wait from now on, with the names that their interfaces have.
    pub unplug: Vec<(usize, String)>,
    /// Cards that waited, with what their interfaces become; default routes of theirs do not count.
    pub plug: Vec<(usize, InterfacePlan)>,
    /// Interfaces that send at other rates from now on.
    pub shape: Vec<InterfacePlan>,
    /// Default routes afterwards; `None` is none.
    pub gateway: Option<GatewayPlan>,
    pub gateway6: Option<GatewayPlan>,
}

/// What runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Hardware virtualization, by our own machine.
    Kvm,
    /// QEMU, emulating every instruction.
    Qemu,
}

impl Backend {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

/// A kernel for guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelPlan {
    /// The bootable file (`/boot/vmlinuz-6.1.0-56-cloud-amd64`).
    pub image: PathBuf,
    /// The folder of its modules (`/usr/lib/modules/6.1.0-56-cloud-amd64`).
    pub modules: PathBuf,
    pub release: String,
}

/// What a guest is told before its first container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPlan {
    /// The host's time, nanoseconds since 1970.
    pub time: i64,
    /// Randomness of the host, hexadecimal.
    pub entropy: String,
    pub hostname: String,
    /// Interfaces of the machine, found by their hardware address.
    pub interfaces: Vec<InterfacePlan>,
    /// Cards without a network, in the places behind those of `interfaces`; they have the addresses of [`card`].
    #[serde(default)]
    pub spare: usize,
    /// Questions to the name server's address are for the host.
    #[serde(default)]
    pub resolver: bool,
    /// How the container's files come.
    #[serde(default)]
    pub files: FilesPlan,
    /// Where its root is.
    #[serde(default)]
    pub root: RootPlan,
}

/// Where a guest has the container's root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootPlan {
    /// Among the files that the host shares.
    #[default]
    Shared,
    /// In an image in its memory: nobody writes to it. If that cannot be mounted, as above.
    Image,
}

/// How a guest gets the files that the host shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilesPlan {
    /// By a device of its own, virtiofs.
    #[default]
    Device,
    /// By messages through a port of the console: what a copy of a template has, which has no such device. Its
    /// interfaces have the addresses of [`card`].
    Port,
    /// By messages through a stream of its own, as each container of a tenant's machine.
    Stream,
    /// Not at all: what the machine of a tenant has is its containers'.
    None,
}

/// What a sandbox leaves in its folder about its machine, `machine.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    pub backend: Backend,
    /// What runs the guest: `qemu-system-x86_64`.
    pub program: String,
    /// Of the process that is the machine.
    pub pid: i32,
    /// The container's root with its binds, as the process that serves files to the guest has it:
    /// `/proc/PID/root/root`.
    pub root: PathBuf,
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Release of the kernel that answered.
    pub kernel: String,
    /// Names of its interfaces, inside and on the host, where they are taps.
    #[serde(default)]
    pub taps: Vec<(String, String)>,
    /// Milliseconds from the start of the machine to the agent's first word, or its answer in a copy.
    pub boot: u64,
    /// It is a copy of a template.
    #[serde(default)]
    pub template: bool,
    /// It was booted, since a copy of its template did not go on.
    #[serde(default)]
    pub refused: bool,
    /// The container's root is mapped into its memory, and not served.
    #[serde(default)]
    pub mapped: bool,
    /// Where programs of the host connect to sockets of the guest.
    #[serde(default)]
    pub vsock: Option<PathBuf>,
}

/// How much of its memory a guest has written in a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtyRate {
    pub backend: Backend,
    /// Bytes of memory that the machine has.
    pub memory: u64,
    /// Of [`DirtyRate::PAGE`] bytes, each counted once.
    pub pages: u64,
    /// The time; not 0.
    pub microseconds: u64,
    /// It is an estimate from samples, and not what was counted.
    pub sampled: bool,
}

impl DirtyRate {
    /// Bytes.
    pub const PAGE: u64 = 4096;
    /// Times that can be asked for.
    pub const PERIODS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
}

/// A machine for all containers of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantOrder {
    pub tenant: String,
    /// Its folder is where the machine's socket is to be.
    pub machine: MachinePlan,
    /// Cards of its containers together.
    pub cards: usize,
    /// User and group of the process that is the machine.
    pub user: u32,
    pub cgroup: String,
    /// Billionths of a CPU that the machine may use; 0 is as many as there are.
    pub nano_cpus: u64,
    /// It stays when its last container has gone.
    pub keep: bool,
}

impl TenantOrder {
    /// Name of the machine's socket in its folder.
    pub const SOCKET: &str = "machine.sock";
}

/// What a tenant's machine is asked: one JSON document a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TenantCall {
    /// What it is. Who has asked keeps it from ending as long as the connection is there.
    Status,
    /// A seat for a container, with a card for each interface. The answer comes with two descriptors: a stream to
    /// an agent for this container, and one for its files.
    Join { container: String, interfaces: Vec<InterfacePlan> },
    /// Other cards for the container that has joined by this connection: those of the places go, others come, and
    /// some send at other rates, bits a second.
    Wire {
        unplug: Vec<usize>,
        plug: Vec<InterfacePlan>,
        #[serde(default)]
        shape: Vec<(usize, Option<NonZeroU64>)>,
    },
    /// The container has ended. Its connection ending says the same.
    Leave,
    /// Ends the machine if nobody is in it.
    Stop,
    /// Pages that the guest writes are counted for so long; 0 for no longer. Answered at once. The connection ending
    /// says that nobody wants to know any more.
    MeasureDirtyRate { milliseconds: u32 },
    /// What was counted.
    DirtyRate,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TenantAnswer {
    Status(TenantMachine),
    /// Of a join or new cards: where they are, and what they are as they were carried out.
    Cards(Vec<(usize, InterfacePlan)>),
    /// `None` before the time is over.
    DirtyRate(Option<DirtyRate>),
    Done,
    /// [`insula_base::Kind::code`], and the whole chain of causes.
    Failed {
        kind: u32,
        message: String,
    },
    /// Nobody has asked: the machine has ended. The last word.
    Ended {
        why: String,
    },
}

/// A tenant's machine that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantMachine {
    pub backend: Backend,
    pub program: String,
    /// Of the process that is the machine.
    pub pid: i32,
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Release of the kernel that answered; empty until it stands.
    pub kernel: String,
    /// Milliseconds from its start to the agent's first word, or its answer in a copy.
    pub boot: u64,
    /// It is a copy of a template.
    #[serde(default)]
    pub template: bool,
    /// It was booted, since a copy of its template did not go on.
    #[serde(default)]
    pub refused: bool,
    /// Cards that no container has.
    pub free_cards: usize,
    /// Ids of the containers in it.
    pub containers: Vec<String>,
}

impl MachineRecord {
    pub const FILE: &str = "machine.json";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_in_networks_have_cards_for_more() {
        assert_eq!([0, 1, 14, 15, 16, 99].map(spare_cards), [0, 2, 2, 1, 0, 0]);
    }
}
