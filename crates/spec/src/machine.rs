//! The machine around a container: what a wall with a kernel of its own is asked to build, and what the
//! agent in the guest is told.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plan::InterfacePlan;

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
    /// Folder of the sandbox, where the machine's own record is left.
    pub folder: PathBuf,
    /// What it goes on from instead of a boot.
    #[serde(default)]
    pub template: Option<TemplatePlan>,
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

/// A template to make. What comes of it is left in a folder as [`TemplateOrder::MEMORY`] and
/// [`TemplateOrder::STATE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateOrder {
    pub machine: MachinePlan,
    /// How many interfaces it has; see [`card`].
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
    /// Questions to the name server's address are for the host.
    #[serde(default)]
    pub resolver: bool,
    /// How the container's files come.
    #[serde(default)]
    pub files: FilesPlan,
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
}

impl MachineRecord {
    pub const FILE: &str = "machine.json";
}
