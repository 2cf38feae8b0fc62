//! Bundles of the OCI runtime specification: `config.json` as the standard defines it ([`document`]), and
//! what a [`ContainerPlan`](crate::plan::ContainerPlan) has to hold beyond Docker's model to build exactly
//! what a bundle says ([`BundlePlan`], [`ExactPlan`]).
//!
//! A property that the standard does not know is ignored, as the standard wants it ("Extensibility"). One
//! that it knows and insula does not have yet is refused by its name: nothing that somebody asked for is
//! left out in silence.

mod convert;
pub mod document;
mod machine;
mod mounts;
mod placement;
mod process;
mod resources;
mod scheduling;
mod template;
mod unit;

use std::collections::BTreeMap;
use std::path::PathBuf;

use insula_base::{Kind, Kinded};
use serde::{Deserialize, Serialize};

use crate::plan::{DeviceKind, DeviceRule};
use document::Hook;

pub use convert::plan;
pub use machine::{for_machine, network};
pub use mounts::OPTIONS;
pub use placement::{memory_policies, memory_policy};
pub use process::{process, terminal};
pub use resources::{devices, resources};
pub use scheduling::personality;
pub use template::template;
pub use unit::{UnitPlan, UnitValue, in_slice, names_unit, unit};

/// The version of the specification that this is written after.
pub const VERSION: &str = "1.3.0";

/// The largest `config.json` that is read.
pub const LARGEST: u64 = 4 << 20;

/// `Result` with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The document is not what the standard describes.
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    /// The standard knows it, insula does not do it.
    #[error("{field}: {what} is not supported")]
    Unsupported { field: String, what: String },
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::InvalidArgument,
            Self::Unsupported { .. } => Kind::Unsupported,
        }
    }
}

pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Invalid { field: field.into(), problem: problem.into() }
}

pub(crate) fn unsupported(field: impl Into<String>, what: impl Into<String>) -> Error {
    Error::Unsupported { field: field.into(), what: what.into() }
}

/// A bundle, beside what every container has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BundlePlan {
    /// Everything below the root, `/proc` and `/dev` too, in this order.
    pub mounts: Vec<BundleMount>,
    /// Empty without a user namespace of the container's own.
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
    /// Nodes in `/dev` beside the standard ones.
    pub devices: Vec<NodePlan>,
    pub device_policy: BundleDevices,
    /// Of the root mount: `private`, `slave`, `shared` or `unbindable`; whether all below it too.
    pub propagation: Option<(RootPropagation, bool)>,
    pub hooks: HooksPlan,
    pub annotations: BTreeMap<String, String>,
    /// None is the host's clocks.
    #[serde(default)]
    pub time: Option<TimePlan>,
    #[serde(default)]
    pub rdt: Option<RdtPlan>,
    /// Interfaces of the host that become the container's, and what they are called there.
    #[serde(default)]
    pub interfaces: Vec<(String, String)>,
    /// Context of SELinux that files of new file systems have.
    #[serde(default)]
    pub mount_label: Option<String>,
    #[serde(default)]
    pub mount_namespace: MountNamespace,
    #[serde(default)]
    pub entering: Entering,
    #[serde(default)]
    pub keyring: Keyring,
}

/// A group of resctrl: shares of caches and of memory bandwidth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdtPlan {
    /// Empty is that of all others.
    pub group: String,
    /// It is the container's, made for it and removed with it.
    pub own: bool,
    /// Lines of the kernel's file of that name.
    pub schemata: Vec<String>,
    /// Group below it that what the container uses is counted in.
    #[serde(default)]
    pub monitor: Option<String>,
}

/// Clocks of the container's own: time_namespaces(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimePlan {
    /// Clocks and what is added to each.
    Private(Vec<(Clock, document::TimeOffset)>),
    Path(PathBuf),
}

/// A clock that a time namespace shifts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    Monotonic,
    Boottime,
}

impl Clock {
    /// As `/proc/PID/timens_offsets` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Monotonic => "monotonic",
            Self::Boottime => "boottime",
        }
    }
}

/// Whose mounts a container has. Where they are not its own it mounts nothing, and begins at another root folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountNamespace {
    #[default]
    Private,
    /// Those of who creates it.
    Host,
    /// Those of an existing one, by its file.
    Path(PathBuf),
}

/// How the root is entered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entering {
    #[default]
    Pivot,
    /// Where the host's root is its initial RAM disk, which pivot_root(2) does not take away.
    Chroot,
}

/// Keys of the container's session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keyring {
    #[default]
    New,
    /// Those of who creates it.
    Inherited,
}

/// Devices that may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BundleDevices {
    All,
    /// Beside the standard ones.
    Only(Vec<DeviceRule>),
    /// Each in effect over those before it, the first over nothing; the standard ones are allowed after them all.
    Listed(Vec<DeviceVerdict>),
}

/// What becomes of devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceVerdict {
    pub verdict: Verdict,
    pub rule: DeviceRule,
}

/// May they be used?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Allow,
    Deny,
}

impl Default for BundleDevices {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

/// mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootPropagation {
    Private,
    Slave,
    Shared,
    Unbindable,
}

/// One entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BundleMount {
    /// Absolute path in the container; made if absent.
    pub target: String,
    pub source: BundleSource,
    pub attributes: Attributes,
    /// Those of the mount and of all below it.
    #[serde(default)]
    pub recursive: Attributes,
    pub propagation: Option<(RootPropagation, bool)>,
}

/// Where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum BundleSource {
    /// A file or folder of the host.
    Bind { path: PathBuf, recursive: bool, idmap: Option<MountIds> },
    /// A new instance of a file system, with its own options. An empty value is a flag.
    New {
        kind: String,
        device: String,
        options: Vec<(String, String)>,
        #[serde(default)]
        content: Content,
    },
    /// What is mounted there already, with other options.
    Remount { options: Vec<(String, String)> },
    /// The tmpfs at `/dev`, which gets the nodes.
    Dev { options: Vec<(String, String)> },
    /// The container's own control groups.
    Cgroup,
}

/// What a new file system has in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    #[default]
    Nothing,
    /// A copy of what it covers.
    Copy,
}

/// Ids of a mount that are shown as others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MountIds {
    /// Empty: those of the container's user namespace.
    pub uids: Vec<IdMapping>,
    pub gids: Vec<IdMapping>,
    /// Of the mounts below it too.
    pub recursive: bool,
}

/// Bits of mount_setattr(2), which are part of the kernel's interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub set: u64,
    pub clear: u64,
}

/// `size` ids from `inside` on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    #[serde(rename = "containerID")]
    pub inside: u32,
    #[serde(rename = "hostID")]
    pub outside: u32,
    pub size: u32,
}

/// A node below `/dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    pub path: String,
    /// `None` is a named pipe.
    pub kind: Option<DeviceKind>,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    /// In the container.
    pub uid: u32,
    pub gid: u32,
}

/// Programs that are run on the way, each with the container's [`State`] as its input.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HooksPlan {
    /// `prestart` and `createRuntime`, in this order, in the runtime's namespaces.
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before its root is entered.
    pub create_container: Vec<Hook>,
    /// In the container, before its program.
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// Who a process is, to the last bit; nothing is looked up in the container's files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExactPlan {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: Option<u32>,
    pub capabilities: document::Capabilities,
    #[serde(default)]
    pub scheduler: Option<SchedulerPlan>,
    #[serde(default)]
    pub io_priority: Option<IoPriorityPlan>,
    /// Bits of personality(2).
    #[serde(default)]
    pub personality: Option<u32>,
    /// Profile of AppArmor that the program is executed in.
    #[serde(default)]
    pub apparmor: Option<String>,
    /// Context of SELinux that the program is executed in.
    #[serde(default)]
    pub selinux: Option<String>,
    #[serde(default)]
    pub affinity: Option<AffinityPlan>,
    #[serde(default)]
    pub memory_policy: Option<MemoryPolicyPlan>,
}

/// On which processors a process is executed that joins: before and after it is in the control groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AffinityPlan {
    /// Empty: nothing is changed.
    pub first: Vec<u32>,
    pub then: Vec<u32>,
}

/// set_mempolicy(2): mode with its flags, and nodes, by the kernel's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicyPlan {
    pub mode: u32,
    pub nodes: Vec<u32>,
}

/// Limits of a bundle beside those that Docker's model has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExactResources {
    /// Microseconds beyond the quota that were left over before.
    pub cpu_burst: Option<u64>,
    /// 1: only what nobody else wants.
    pub cpu_idle: Option<i64>,
    /// Microseconds.
    pub realtime_period: Option<u64>,
    pub realtime_runtime: Option<i64>,
    pub leaf_weight: Option<u16>,
    pub weight_devices: Vec<WeightDevice>,
    /// Bytes for each size of pages, by the kernel's name for it: `2MB`.
    pub huge_pages: Vec<(String, u64)>,
    /// Class of packets for the traffic control.
    pub network_class: Option<u32>,
    /// Of packets that leave by an interface of the host.
    pub network_priorities: Vec<(String, u32)>,
    pub rdma: Vec<RdmaLimit>,
    /// Files of version 2 and what is written to them.
    pub unified: BTreeMap<String, String>,
    /// Limits of the kernel's own memory are asked for, which no kernel takes any more.
    pub kernel_memory: bool,
    /// A limit of memory below what is used already is refused.
    pub check_before_update: bool,
}

impl ExactResources {
    /// Whether it takes hierarchies that other containers have no groups in.
    #[must_use]
    pub fn is_rare(&self) -> bool {
        !(self.huge_pages.is_empty()
            && self.network_class.is_none()
            && self.network_priorities.is_empty()
            && self.rdma.is_empty()
            && self.unified.is_empty())
    }
}

/// Share of one block device, against neighbours and against groups below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightDevice {
    pub major: u32,
    pub minor: u32,
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
}

/// What may be used of one RDMA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaLimit {
    pub device: String,
    pub handles: Option<u32>,
    pub objects: Option<u32>,
}

/// Arguments of sched_setattr(2); policies and flags by the kernel's numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerPlan {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// Nanoseconds.
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// ioprio_set(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoPriorityPlan {
    /// By the kernel's numbers: 1 is real time, 2 best effort, 3 idle.
    pub class: u8,
    /// 0, the highest, to 7.
    pub level: u8,
}

/// What a hook reads and `state` prints: runtime specification, "State".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub oci_version: String,
    pub id: String,
    pub status: Status,
    /// As the runtime sees it; 0 when there is none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pid: i32,
    pub bundle: PathBuf,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}
