//! What a wall is asked to build. A plan says *what*; each wall decides *how*: overlay mounts and
//! a veth for namespaces, block devices and a tap for a VM.
//!
//! The plan travels as JSON inside the task protocol and is kept in the sandbox's launch record.
//! New fields carry `#[serde(default)]`, so that a monitor and a daemon of neighbouring versions
//! understand each other. Paths inside the container are absolute and resolved below its root;
//! paths of the host are used as they are and come from the daemon only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use insula_base::ContainerId;
use serde::{Deserialize, Serialize};

use crate::bundle::MountNamespace;

/// One container, complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerPlan {
    pub id: ContainerId,
    pub process: ProcessPlan,
    pub init: InitPlan,
    pub rootfs: RootfsPlan,
    /// Mounted in this order, after the root file system and `/proc`, `/sys`, `/dev`.
    pub mounts: Vec<MountPlan>,
    pub namespaces: NamespacesPlan,
    pub hostname: String,
    #[serde(default)]
    pub domainname: String,
    /// Interfaces that the wall makes in a private network namespace. Loopback is always up.
    #[serde(default)]
    pub interfaces: Vec<InterfacePlan>,
    /// A name server answers at 127.0.0.11: its sockets are bound before the program runs.
    #[serde(default)]
    pub resolver: bool,
    pub cgroup: CgroupPlan,
    pub devices: Vec<DevicePlan>,
    /// `cgroup` rules beside the devices above: `c 13:* rwm`.
    #[serde(default)]
    pub device_rules: Vec<DeviceRule>,
    pub security: SecurityPlan,
    /// Kernel parameters below `/proc/sys`, dots between the parts (`net.core.somaxconn`).
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    pub stdio: StdioPlan,
    pub log: LogPlan,
    /// The machine around it; the process wall without it.
    #[serde(default)]
    pub machine: Option<crate::machine::MachinePlan>,
    /// It is a bundle of the OCI runtime specification: mounts, ids and devices are exactly what this says,
    /// `mounts` and `devices` above are empty.
    #[serde(default)]
    pub bundle: Option<Box<crate::bundle::BundlePlan>>,
}

impl ContainerPlan {
    /// Whether its mounts are its own.
    #[must_use]
    pub fn has_own_mounts(&self) -> bool {
        *self.mount_namespace() == MountNamespace::Private
    }

    #[must_use]
    pub fn mount_namespace(&self) -> &MountNamespace {
        self.bundle.as_ref().map_or(&MountNamespace::Private, |bundle| &bundle.mount_namespace)
    }
}

/// A process to execute, the first one of a container or a later one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Program and arguments; the program is looked up in the container's `PATH` unless it holds a slash.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute; made if absent.
    pub cwd: String,
    /// `user[:group]`, names or numbers, resolved against the container's `/etc/passwd` and
    /// `/etc/group`. Empty is root.
    #[serde(default)]
    pub user: String,
    /// Groups beside those of the user, names or numbers.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Capabilities in upper case with prefix (`CAP_NET_RAW`): bounding, effective and permitted
    /// for root; bounding only for another user. Nothing is inheritable, as in Docker since 20.10.14.
    #[serde(default)]
    pub capabilities: Vec<String>,
    #[serde(default)]
    pub no_new_privileges: bool,
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// `/proc/self/oom_score_adj`, -1000 to 1000; `None` leaves what is inherited.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// In place of `user`, `groups` and `capabilities`, for a bundle.
    #[serde(default)]
    pub exact: Option<Box<crate::bundle::ExactPlan>>,
}

/// A resource limit by its name in getrlimit(2), lower case without prefix (`nofile`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub name: String,
    /// `u64::MAX` is unlimited.
    pub soft: u64,
    pub hard: u64,
}

/// What PID 1 of the container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitPlan {
    /// The process of the plan.
    Process,
    /// A reaper of ours, which starts the process of the plan as its child and forwards signals.
    Reaper,
    /// The image's own init: systemd's container interface is provided (writable cgroups, `/run`
    /// as tmpfs, `container=`, `/run/host`), stop is SIGRTMIN+3.
    System,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootfsPlan {
    /// Folders of unpacked layers on the host, lowest first. May be `["/"]` for the host image.
    pub layers: Vec<PathBuf>,
    /// Whether files in `layers` are owned by ids inside the container (unpacked images) and so
    /// need an idmapped mount when the container has a user namespace.
    pub idmap: bool,
    /// The writable layer; `None` mounts the layers alone, read-only.
    pub upper: Option<UpperPlan>,
    /// `--read-only`: the root is mounted read-only, tmpfs and volumes stay writable.
    pub readonly: bool,
    /// The one layer is a whole root file system, made elsewhere: it is used as it is, and written to.
    #[serde(default)]
    pub whole: bool,
    /// Absolute paths of the root file system whose content is not to be seen (the places where the
    /// host keeps secrets, for the host image): folders are empty inside, files are empty files, each
    /// with the mode it has, so that `/tmp` stays usable. What does not exist is skipped.
    #[serde(default)]
    pub hidden: Vec<String>,
}

/// The writable layer of an overlay: two folders on one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpperPlan {
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Nothing of it outlives a crash of the host anyway: who syncs there does not wait for the disk, and its end
    /// writes nothing back.
    #[serde(default)]
    pub volatile: bool,
}

/// A file system or a part of the host below the container's root.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Absolute path in the container; made if absent.
    pub target: String,
    pub source: MountSource,
    #[serde(default)]
    pub readonly: bool,
    /// Mount with nosuid, nodev, noexec respectively. Bind mounts inherit them from the host.
    #[serde(default)]
    pub nosuid: bool,
    #[serde(default)]
    pub nodev: bool,
    #[serde(default)]
    pub noexec: bool,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum MountSource {
    /// A file or folder of the host.
    Bind {
        path: PathBuf,
        /// Submounts too.
        recursive: bool,
        propagation: Propagation,
        /// Show host ids as if the user namespace were not there (id 0 outside is 0 inside).
        idmap: bool,
    },
    /// Folders of the host merged as the layers of a root file system are, lowest first, their ids those inside.
    Merged {
        layers: Vec<PathBuf>,
        /// Takes changes; nothing can be changed without it.
        upper: Option<UpperPlan>,
    },
    Tmpfs {
        /// Bytes; `None` is the kernel's default, half of memory.
        size: Option<u64>,
        /// Permission bits.
        mode: Option<u32>,
        #[serde(default)]
        uid: Option<u32>,
        #[serde(default)]
        gid: Option<u32>,
    },
    Mqueue,
    /// The container's own cgroups.
    Cgroup,
}

impl MountSource {
    /// Whether it is made of the host's files, and not inside.
    #[must_use]
    pub fn is_of_the_host(&self) -> bool {
        matches!(self, Self::Bind { .. } | Self::Merged { .. })
    }
}

/// mount_namespaces(7), "Shared subtrees". Recursive forms where the bind is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Propagation {
    #[default]
    Private,
    Slave,
    Shared,
}

/// Which namespaces are the container's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacesPlan {
    pub user: UserNamespace,
    pub pid: Namespace,
    pub network: Namespace,
    pub ipc: Namespace,
    pub uts: Namespace,
    pub cgroup: Namespace,
}

/// One namespace other than user and mount (a mount namespace is always private).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Namespace {
    Private,
    Host,
    /// An existing one, by its file (`/proc/123/ns/net`).
    Path(PathBuf),
}

/// The user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserNamespace {
    Host,
    /// Ids 0 to `count - 1` inside are `first` and following outside.
    Private {
        first: u32,
        count: u32,
    },
    /// That of another container, whose range this one shares too (`container:` namespaces).
    Path {
        path: PathBuf,
        first: u32,
        count: u32,
    },
}

impl UserNamespace {
    /// First id outside and how many, for a container that has a user namespace.
    #[must_use]
    pub fn range(&self) -> Option<(u32, u32)> {
        match self {
            Self::Host => None,
            Self::Private { first, count } | Self::Path { first, count, .. } => Some((*first, *count)),
        }
    }
}

/// A network interface of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfacePlan {
    /// Inside (`eth0`).
    pub name: String,
    #[serde(default)]
    pub kind: InterfaceKind,
    /// Interface of the host that it hangs on: the bridge that a veth's other end is plugged into, the parent of
    /// a macvlan.
    pub bridge: String,
    /// Name of the host's end; at most 15 bytes. A macvlan has none.
    pub host_name: String,
    /// `02:42:ac:11:00:02`.
    pub mac: String,
    pub mtu: u32,
    /// `172.17.0.2/16`, `fd00::2/64`.
    pub addresses: Vec<String>,
    /// Default route, when this interface has it.
    pub gateway: Option<std::net::IpAddr>,
    #[serde(default)]
    pub gateway6: Option<std::net::IpAddr>,
    /// The bridge may send a packet back to where it came from, for a container that reaches itself
    /// by a port that it publishes.
    #[serde(default)]
    pub hairpin: bool,
    /// Bits a second that it sends and receives at most, each.
    #[serde(default)]
    pub rate: Option<std::num::NonZeroU64>,
}

/// What an interface is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum InterfaceKind {
    /// One end of a pair; the other is a port of a bridge of the host.
    #[default]
    Veth,
    /// An address of its own on an interface of the host.
    Macvlan { mode: MacvlanMode },
}

/// Whom a macvlan sees, by the kernel's names and numbers (`enum macvlan_mode`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MacvlanMode {
    /// Not its neighbours on the same parent.
    Private = 1,
    /// Neighbours by way of a switch that sends back.
    Vepa = 2,
    /// Neighbours directly.
    #[default]
    Bridge = 4,
    /// It takes the parent for itself.
    Passthru = 8,
}

/// Another set of interfaces for a container that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkChange {
    /// Interfaces that go, by their names inside.
    #[serde(default)]
    pub unplug: Vec<String>,
    /// Interfaces that come; their own default routes do not count.
    #[serde(default)]
    pub plug: Vec<InterfacePlan>,
    /// Interfaces that stay and have another rate.
    #[serde(default)]
    pub shape: Vec<InterfacePlan>,
    /// Default routes afterwards; `None` is none.
    #[serde(default)]
    pub gateway: Option<GatewayPlan>,
    #[serde(default)]
    pub gateway6: Option<GatewayPlan>,
}

/// A default route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayPlan {
    pub address: std::net::IpAddr,
    /// Inside.
    pub interface: String,
}

/// Where the container is accounted and what it may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// Below the root of every hierarchy, no leading slash: `insula/<id>`.
    pub path: String,
    pub resources: Resources,
}

/// Limits in Docker's units. `None` is no limit and, in an update, no change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Bytes.
    pub memory: Option<u64>,
    /// Memory and swap together, bytes; -1 is unlimited.
    pub memory_swap: Option<i64>,
    /// Bytes; a soft limit.
    pub memory_reservation: Option<u64>,
    /// 0 to 100.
    pub memory_swappiness: Option<u64>,
    pub oom_kill_disable: Option<bool>,
    /// Billionths of a CPU (`--cpus 1.5` is 1,500,000,000).
    pub nano_cpus: Option<u64>,
    /// Microseconds of the period; -1 quota is unlimited.
    pub cpu_period: Option<u64>,
    pub cpu_quota: Option<i64>,
    /// 2 to 262,144 (cgroup v1 cpu.shares; converted for v2).
    pub cpu_shares: Option<u64>,
    /// Lists as in cpuset(7): `0-2,4`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// -1 is unlimited.
    pub pids: Option<i64>,
    /// 10 to 1000.
    pub blkio_weight: Option<u16>,
    pub device_read_bps: Vec<ThrottleDevice>,
    pub device_write_bps: Vec<ThrottleDevice>,
    pub device_read_iops: Vec<ThrottleDevice>,
    pub device_write_iops: Vec<ThrottleDevice>,
    /// What Docker's model does not have, for a bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<Box<crate::bundle::ExactResources>>,
}

/// A rate for one block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleDevice {
    pub major: u32,
    pub minor: u32,
    /// Bytes or operations a second.
    pub rate: u64,
}

/// A device node of the host, in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    pub host_path: PathBuf,
    /// Absolute, below `/dev` as a rule.
    pub path: String,
    pub rule: DeviceRule,
}

/// An allowance of the device cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    pub kind: DeviceKind,
    /// `None` is any; of a [`DevicePlan`], what its node has.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    Any,
    Char,
    Block,
}

/// Walls inside the wall.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SecurityPlan {
    pub seccomp: SeccompPlan,
    /// Paths that read as empty.
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    /// Everything of the host: all devices, writable `/sys`, no masks. Implies no user namespace.
    #[serde(default)]
    pub privileged: bool,
}

/// The system call filter. Conditions of a profile are evaluated against the process' capabilities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompPlan {
    Unconfined,
    /// The built-in profile; it travels by name because it is what nearly every container uses.
    Default,
    /// The same, and sockets of the family that leads from a guest to its host: for a guest's only container, to whom
    /// its machine's were given.
    DefaultWithVsock,
    /// A profile in Docker's JSON format.
    Profile(serde_json::Value),
}

/// Standard input, output and error of the first process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioPlan {
    /// A pseudo terminal in place of three pipes.
    pub tty: bool,
    /// Columns and rows; 0 is not known yet.
    #[serde(default)]
    pub columns: u16,
    #[serde(default)]
    pub rows: u16,
    /// Standard input stays open for those who attach; `/dev/null` otherwise.
    pub open_stdin: bool,
    /// The first who attached and leaves closes standard input.
    #[serde(default)]
    pub stdin_once: bool,
}

/// Where output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "driver")]
pub enum LogPlan {
    None,
    /// Docker's json-file: one object a line with `log`, `stream`, `time`.
    JsonFile {
        path: PathBuf,
        /// Bytes after which the file is rotated; 0 is never.
        max_size: u64,
        /// Files kept, the current one included; at least 1.
        max_files: u32,
        /// Those that are not written any more are compressed.
        #[serde(default)]
        compress: bool,
        /// `attrs` of every record.
        #[serde(default)]
        attributes: BTreeMap<String, String>,
    },
    /// Docker's local: messages with their length before and behind.
    Local {
        path: PathBuf,
        max_size: u64,
        max_files: u32,
        compress: bool,
    },
    /// Messages to a receiver of syslog.
    Syslog {
        syslog: SyslogPlan,
        /// What is kept to be read again.
        cache: Option<Box<LogPlan>>,
    },
    /// Entries of systemd's journal.
    Journald {
        /// Of every entry; names in upper case.
        fields: BTreeMap<String, String>,
        cache: Option<Box<LogPlan>>,
    },
}

/// Messages of syslog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyslogPlan {
    pub address: SyslogAddress,
    /// 0 to 23, RFC 5424 section 6.2.1.
    pub facility: u8,
    pub format: SyslogFormat,
    pub tag: String,
    pub hostname: String,
    /// Seconds east of UTC, for formats without a zone.
    pub utc_offset: i32,
}

/// Where messages go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum SyslogAddress {
    Unixgram { path: PathBuf },
    Unix { path: PathBuf },
    Udp { address: SocketAddr },
    Tcp { address: SocketAddr },
}

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyslogFormat {
    /// RFC 3164 without the host's name, as local receivers expect it.
    Local,
    Rfc3164,
    Rfc5424,
    /// With microseconds.
    Rfc5424Micro,
}
