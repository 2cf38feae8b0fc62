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
    /// Milliseconds from the start of the machine to the agent's first word.
    pub boot: u64,
}

impl MachineRecord {
    pub const FILE: &str = "machine.json";
}
