//! `HostConfig`: what a container asks of its host.

use std::collections::BTreeMap;

use crate::Labels;
use crate::lenient::{Words, document, is_zero, null_if_empty};

/// Ports that one container may publish. A client that asks for many more fills the largest body that the daemon
/// reads before it is told so.
pub const MOST_PUBLISHED: usize = 4096;

/// `"80/tcp"` to where it is published; `null` for a port that is exposed only.
pub type PortMap = BTreeMap<String, Option<Vec<PortBinding>>>;

/// A document with the fields of the API's `Resources`, which Go embeds.
macro_rules! resources_document {
    ($(#[$attr:meta])* $name:ident { $($(#[$field_attr:meta])* $field:ident : $type:ty,)* }) => {
        document! {
            $(#[$attr])*
            $name {
                $($(#[$field_attr])* $field : $type,)*
                /// Relative weight, 2 to 262,144.
                cpu_shares: i64,
                /// Bytes.
                memory: i64,
                /// Billionths of a CPU.
                nano_cpus: i64,
                cgroup_parent: String,
                /// 10 to 1000.
                blkio_weight: u16,
                #[serde(serialize_with = "null_if_empty")]
                blkio_weight_device: Vec<WeightDevice>,
                #[serde(serialize_with = "null_if_empty")]
                blkio_device_read_bps: Vec<ThrottleDevice>,
                #[serde(serialize_with = "null_if_empty")]
                blkio_device_write_bps: Vec<ThrottleDevice>,
                #[serde(rename = "BlkioDeviceReadIOps", serialize_with = "null_if_empty")]
                blkio_device_read_iops: Vec<ThrottleDevice>,
                #[serde(rename = "BlkioDeviceWriteIOps", serialize_with = "null_if_empty")]
                blkio_device_write_iops: Vec<ThrottleDevice>,
                /// Microseconds.
                cpu_period: i64,
                /// Microseconds in each period.
                cpu_quota: i64,
                cpu_realtime_period: i64,
                cpu_realtime_runtime: i64,
                cpuset_cpus: String,
                cpuset_mems: String,
                #[serde(serialize_with = "null_if_empty")]
                devices: Vec<DeviceMapping>,
                #[serde(serialize_with = "null_if_empty")]
                device_cgroup_rules: Vec<String>,
                #[serde(serialize_with = "null_if_empty")]
                device_requests: Vec<DeviceRequest>,
                /// Bytes; a soft limit.
                memory_reservation: i64,
                /// Bytes of memory and swap together; -1 is unlimited.
                memory_swap: i64,
                memory_swappiness: Option<i64>,
                oom_kill_disable: Option<bool>,
                pids_limit: Option<i64>,
                #[serde(serialize_with = "null_if_empty")]
                ulimits: Vec<Ulimit>,
                cpu_count: i64,
                cpu_percent: i64,
                #[serde(rename = "IOMaximumIOps")]
                io_maximum_iops: u64,
                #[serde(rename = "IOMaximumBandwidth")]
                io_maximum_bandwidth: u64,
                #[serde(skip_serializing_if = "is_zero")]
                kernel_memory: i64,
                #[serde(rename = "KernelMemoryTCP", skip_serializing_if = "is_zero")]
                kernel_memory_tcp: i64,
                /// insula's own: bits a second, each way, on each interface.
                #[serde(skip_serializing_if = "is_zero")]
                network_rate: i64,
            }
        }
    };
}

resources_document! {
    /// What a container asks of its host; the fields of `Resources` included.
    HostConfig {
        /// `SOURCE:TARGET[:OPTIONS]`.
        #[serde(serialize_with = "null_if_empty")]
        binds: Vec<String>,
        #[serde(rename = "ContainerIDFile")]
        container_id_file: String,
        log_config: LogConfig,
        /// `bridge` (and `default`, empty), `none`, `host`, `container:ID`, or a network.
        network_mode: String,
        port_bindings: PortMap,
        restart_policy: RestartPolicy,
        auto_remove: bool,
        volume_driver: String,
        #[serde(serialize_with = "null_if_empty")]
        volumes_from: Vec<String>,
        /// Rows and columns of the terminal at start.
        console_size: [u32; 2],
        #[serde(skip_serializing_if = "is_zero")]
        annotations: Labels,
        #[serde(serialize_with = "null_if_empty")]
        cap_add: Words,
        #[serde(serialize_with = "null_if_empty")]
        cap_drop: Words,
        /// `private`, `host` or empty.
        cgroupns_mode: String,
        dns: Vec<String>,
        dns_options: Vec<String>,
        dns_search: Vec<String>,
        /// `NAME:ADDRESS`.
        #[serde(serialize_with = "null_if_empty")]
        extra_hosts: Vec<String>,
        #[serde(serialize_with = "null_if_empty")]
        group_add: Vec<String>,
        /// `none`, `private`, `shareable`, `host`, `container:ID` or empty.
        ipc_mode: String,
        cgroup: String,
        #[serde(serialize_with = "null_if_empty")]
        links: Vec<String>,
        oom_score_adj: i64,
        /// `host`, `container:ID` or empty.
        pid_mode: String,
        privileged: bool,
        publish_all_ports: bool,
        readonly_rootfs: bool,
        #[serde(serialize_with = "null_if_empty")]
        security_opt: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        storage_opt: Labels,
        /// Target to mount options.
        #[serde(skip_serializing_if = "is_zero")]
        tmpfs: Labels,
        /// `host` or empty.
        #[serde(rename = "UTSMode")]
        uts_mode: String,
        /// `host` or empty.
        userns_mode: String,
        /// Bytes of `/dev/shm`.
        shm_size: i64,
        #[serde(skip_serializing_if = "is_zero")]
        sysctls: Labels,
        runtime: String,
        /// The wall: empty or `default` (the daemon's choice), `process`, and what else insula offers.
        isolation: String,
        #[serde(skip_serializing_if = "is_zero")]
        mounts: Vec<Mount>,
        /// `None` on input: insula's own default list.
        masked_paths: Option<Vec<String>>,
        readonly_paths: Option<Vec<String>>,
        /// A reaper as PID 1.
        #[serde(skip_serializing_if = "is_zero")]
        init: Option<bool>,
        /// insula's addition: `systemd` when the image's own init system is PID 1 (`--init=systemd`).
        #[serde(skip_serializing_if = "is_zero")]
        init_system: String,
        /// insula's addition: what is done to a container that becomes unhealthy; `none` (and empty), `kill`,
        /// `restart`, `stop`.
        #[serde(skip_serializing_if = "is_zero")]
        health_on_failure: String,
    }
}

resources_document! {
    /// Body of `POST /containers/{id}/update`: zero is no change.
    ContainerUpdateRequest {
        restart_policy: RestartPolicy,
    }
}

document! {
    /// Body of the answer to an update, and of others that can only warn.
    Warnings {
        #[serde(serialize_with = "null_if_empty")]
        warnings: Vec<String>,
    }
}

document! {
    /// Where output is kept.
    LogConfig {
        /// `json-file`, `none`.
        r#type: String,
        config: Labels,
    }
}

document! {
    /// An address and a port of the host, both may be empty.
    PortBinding {
        host_ip: String,
        /// A number or a range `8000-8010`.
        host_port: String,
    }
}

document! {
    /// When the engine starts a container again.
    RestartPolicy {
        /// `no` (and empty), `always`, `unless-stopped`, `on-failure`.
        name: String,
        maximum_retry_count: i64,
    }
}

document! {
    /// Weight of one block device.
    WeightDevice {
        path: String,
        weight: u16,
    }
}

document! {
    /// Bytes or operations a second for one block device.
    ThrottleDevice {
        path: String,
        rate: u64,
    }
}

document! {
    /// `--device`.
    DeviceMapping {
        path_on_host: String,
        path_in_container: String,
        /// Of `rwm`.
        cgroup_permissions: String,
    }
}

document! {
    /// `--gpus` and the like.
    DeviceRequest {
        driver: String,
        count: i64,
        #[serde(rename = "DeviceIDs", serialize_with = "null_if_empty")]
        device_ids: Vec<String>,
        #[serde(serialize_with = "null_if_empty")]
        capabilities: Vec<Vec<String>>,
        #[serde(serialize_with = "null_if_empty")]
        options: Labels,
    }
}

document! {
    /// A resource limit; -1 is unlimited.
    Ulimit {
        /// As in setrlimit(2), lower case without prefix (`nofile`).
        name: String,
        hard: i64,
        soft: i64,
    }
}

document! {
    /// `--mount`.
    Mount {
        /// `bind`, `volume`, `tmpfs`.
        r#type: String,
        #[serde(skip_serializing_if = "is_zero")]
        source: String,
        #[serde(skip_serializing_if = "is_zero")]
        target: String,
        #[serde(skip_serializing_if = "is_zero")]
        read_only: bool,
        #[serde(skip_serializing_if = "is_zero")]
        consistency: String,
        #[serde(skip_serializing_if = "is_zero")]
        bind_options: Option<BindOptions>,
        #[serde(skip_serializing_if = "is_zero")]
        volume_options: Option<VolumeOptions>,
        #[serde(skip_serializing_if = "is_zero")]
        tmpfs_options: Option<TmpfsOptions>,
    }
}

document! {
    /// Options of a bind mount.
    BindOptions {
        /// `rprivate`, `private`, `rshared`, `shared`, `rslave`, `slave` or empty.
        #[serde(skip_serializing_if = "is_zero")]
        propagation: String,
        #[serde(skip_serializing_if = "is_zero")]
        non_recursive: bool,
        #[serde(skip_serializing_if = "is_zero")]
        create_mountpoint: bool,
        #[serde(skip_serializing_if = "is_zero")]
        read_only_non_recursive: bool,
        #[serde(skip_serializing_if = "is_zero")]
        read_only_force_recursive: bool,
    }
}

document! {
    /// Options of a volume mount.
    VolumeOptions {
        #[serde(skip_serializing_if = "is_zero")]
        no_copy: bool,
        #[serde(skip_serializing_if = "is_zero")]
        labels: Labels,
        #[serde(skip_serializing_if = "is_zero")]
        subpath: String,
        #[serde(skip_serializing_if = "is_zero")]
        driver_config: Option<VolumeDriver>,
    }
}

document! {
    /// Driver of a volume that is made on the way.
    VolumeDriver {
        #[serde(skip_serializing_if = "is_zero")]
        name: String,
        #[serde(skip_serializing_if = "is_zero")]
        options: Labels,
    }
}

document! {
    /// Options of a tmpfs mount.
    TmpfsOptions {
        #[serde(skip_serializing_if = "is_zero")]
        size_bytes: i64,
        /// Permission bits.
        #[serde(skip_serializing_if = "is_zero")]
        mode: u32,
        #[serde(skip_serializing_if = "is_zero")]
        options: Vec<Vec<String>>,
    }
}
