//! `config.json`: runtime specification, "Configuration" and "Linux Container Configuration".
//!
//! `Option` nearly everywhere: programs that write these documents write `null` for what is empty. What insula
//! does not have is kept as the value it is, so that it can be refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{IdMapping, LARGEST, Result, invalid};

macro_rules! object {
    ($(#[$doc:meta])* $name:ident { $($(#[$field:meta])* $key:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $(
                $(#[$field])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $key: Option<$type>,
            )*
        }
    };
}

object! {
    /// The whole of it.
    Config {
        oci_version: String,
        process: Process,
        root: Root,
        hostname: String,
        domainname: String,
        mounts: Vec<Mount>,
        hooks: Hooks,
        annotations: BTreeMap<String, String>,
        linux: Linux,
        vm: Value,
    }
}

object! {
    /// `root`.
    Root {
        path: String,
        readonly: bool,
    }
}

object! {
    /// `process`, and what `exec --process` reads.
    Process {
        terminal: bool,
        console_size: ConsoleSize,
        user: User,
        args: Vec<String>,
        command_line: Value,
        env: Vec<String>,
        cwd: String,
        capabilities: Capabilities,
        rlimits: Vec<Rlimit>,
        no_new_privileges: bool,
        apparmor_profile: String,
        oom_score_adj: i32,
        selinux_label: String,
        io_priority: Value,
        scheduler: Value,
        #[serde(rename = "execCPUAffinity")]
        exec_cpu_affinity: Value,
    }
}

object! {
    /// `process.consoleSize`.
    ConsoleSize {
        height: u16,
        width: u16,
    }
}

object! {
    /// `process.user`.
    User {
        uid: u32,
        gid: u32,
        umask: u32,
        additional_gids: Vec<u32>,
    }
}

/// `process.capabilities`, five sets of names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    pub bounding: Option<Vec<String>>,
    pub effective: Option<Vec<String>>,
    pub inheritable: Option<Vec<String>>,
    pub permitted: Option<Vec<String>>,
    pub ambient: Option<Vec<String>>,
}

/// One entry of `process.rlimits`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`.
    #[serde(rename = "type")]
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

/// One entry of `mounts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    pub destination: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid_mappings: Option<Vec<IdMapping>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid_mappings: Option<Vec<IdMapping>>,
}

object! {
    /// `hooks`.
    Hooks {
        prestart: Vec<Hook>,
        create_runtime: Vec<Hook>,
        create_container: Vec<Hook>,
        start_container: Vec<Hook>,
        poststart: Vec<Hook>,
        poststop: Vec<Hook>,
    }
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute.
    pub path: String,
    /// The first one is the program's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

object! {
    /// `linux`.
    Linux {
        namespaces: Vec<Namespace>,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
        time_offsets: BTreeMap<String, TimeOffset>,
        devices: Vec<Device>,
        net_devices: BTreeMap<String, NetDevice>,
        cgroups_path: String,
        resources: Resources,
        rootfs_propagation: String,
        seccomp: Value,
        sysctl: BTreeMap<String, String>,
        masked_paths: Vec<String>,
        readonly_paths: Vec<String>,
        mount_label: String,
        intel_rdt: IntelRdt,
        memory_policy: Value,
        personality: Value,
    }
}

object! {
    /// `linux.intelRdt`.
    IntelRdt {
        #[serde(rename = "closID")]
        clos_id: String,
        l3_cache_schema: String,
        mem_bw_schema: String,
        schemata: Vec<String>,
        #[serde(rename = "enableCMT")]
        enable_cmt: bool,
        #[serde(rename = "enableMBM")]
        enable_mbm: bool,
        enable_monitoring: bool,
    }
}

object! {
    /// One entry of `linux.netDevices`.
    NetDevice {
        name: String,
    }
}

/// One entry of `linux.timeOffsets`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    pub secs: i64,
    pub nanosecs: u32,
}

/// One entry of `linux.namespaces`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// One entry of `linux.devices`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

object! {
    /// `linux.resources`, and what `update --resources` reads.
    Resources {
        devices: Vec<DeviceCgroup>,
        memory: Memory,
        cpu: Cpu,
        pids: Pids,
        #[serde(rename = "blockIO")]
        block_io: BlockIo,
        hugepage_limits: Vec<HugepageLimit>,
        network: Network,
        rdma: BTreeMap<String, Rdma>,
        unified: BTreeMap<String, String>,
    }
}

/// One entry of `linux.resources.devices`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceCgroup {
    pub allow: bool,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
}

object! {
    /// `linux.resources.memory`; bytes, -1 is unlimited.
    Memory {
        limit: i64,
        reservation: i64,
        swap: i64,
        kernel: i64,
        #[serde(rename = "kernelTCP")]
        kernel_tcp: i64,
        swappiness: u64,
        #[serde(rename = "disableOOMKiller")]
        disable_oom_killer: bool,
        use_hierarchy: bool,
        check_before_update: bool,
    }
}

object! {
    /// `linux.resources.cpu`; microseconds.
    Cpu {
        shares: u64,
        quota: i64,
        burst: u64,
        period: u64,
        realtime_runtime: i64,
        realtime_period: u64,
        cpus: String,
        mems: String,
        idle: i64,
    }
}

object! {
    /// `linux.resources.pids`.
    Pids {
        limit: i64,
    }
}

object! {
    /// `linux.resources.blockIO`.
    BlockIo {
        weight: u16,
        leaf_weight: u16,
        weight_device: Vec<WeightDevice>,
        throttle_read_bps_device: Vec<Throttle>,
        throttle_write_bps_device: Vec<Throttle>,
        #[serde(rename = "throttleReadIOPSDevice")]
        throttle_read_iops_device: Vec<Throttle>,
        #[serde(rename = "throttleWriteIOPSDevice")]
        throttle_write_iops_device: Vec<Throttle>,
    }
}

/// One entry of `linux.resources.hugepageLimits`; bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    pub page_size: String,
    pub limit: u64,
}

object! {
    /// `linux.resources.network`.
    Network {
        #[serde(rename = "classID")]
        class_id: u32,
        priorities: Vec<Priority>,
    }
}

/// One entry of `linux.resources.network.priorities`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Priority {
    pub name: String,
    pub priority: u32,
}

object! {
    /// One entry of `linux.resources.rdma`.
    Rdma {
        hca_handles: u32,
        hca_objects: u32,
    }
}

/// One entry of `linux.resources.blockIO.weightDevice`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightDevice {
    pub major: u32,
    pub minor: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf_weight: Option<u16>,
}

/// A rate of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Throttle {
    pub major: u32,
    pub minor: u32,
    pub rate: u64,
}

/// Reads a document of this kind. Errors name the place.
pub fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T> {
    if bytes.len() as u64 > LARGEST {
        return Err(invalid(name, format!("is larger than {LARGEST} bytes")));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { name.to_owned() } else { path };
        invalid(field, error.inner().to_string())
    })?;
    reader.end().map_err(|error| invalid(name, error.to_string()))?;
    Ok(value)
}
