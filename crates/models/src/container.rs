//! Containers: create, inspect, list, wait, top, changes, prune.

use std::collections::BTreeMap;

use crate::lenient::{document, is_zero, null_if_empty};
use crate::network::{EndpointSettings, NetworkSettings, NetworkingConfig};
use crate::{HostConfig, Labels, Machine, Set};

/// A document with the fields of the API's `ContainerConfig`, which Go embeds.
macro_rules! config_document {
    ($(#[$attr:meta])* $name:ident { $($(#[$field_attr:meta])* $field:ident : $type:ty,)* }) => {
        /// What runs in a container, whatever the host; the words of `Cmd`, `Entrypoint` and `Shell`
        /// may be given as one string.
        $(#[$attr])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Deserialize, serde::Serialize)]
        #[serde(default, rename_all = "PascalCase")]
        pub struct $name {
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub hostname: String,
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub domainname: String,
            /// `user[:group]`, names or numbers.
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub user: String,
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub attach_stdin: bool,
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub attach_stdout: bool,
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub attach_stderr: bool,
            /// `80/tcp`.
            #[serde(deserialize_with = "crate::lenient::nullable", skip_serializing_if = "is_zero")]
            pub exposed_ports: Set,
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub tty: bool,
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub open_stdin: bool,
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub stdin_once: bool,
            /// `NAME=value`; `NAME` alone removes it from the image's.
            #[serde(deserialize_with = "crate::lenient::nullable", serialize_with = "null_if_empty")]
            pub env: Vec<String>,
            /// `None` is the image's.
            #[serde(deserialize_with = "crate::lenient::words")]
            pub cmd: Option<Vec<String>>,
            #[serde(deserialize_with = "crate::lenient::nullable", skip_serializing_if = "is_zero")]
            pub healthcheck: Option<HealthConfig>,
            #[serde(deserialize_with = "crate::lenient::nullable", skip_serializing_if = "is_zero")]
            pub args_escaped: bool,
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub image: String,
            #[serde(deserialize_with = "crate::lenient::nullable", serialize_with = "null_if_empty")]
            pub volumes: Set,
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub working_dir: String,
            /// `None` is the image's; `[]` and `[""]` are none.
            #[serde(deserialize_with = "crate::lenient::words")]
            pub entrypoint: Option<Vec<String>>,
            #[serde(deserialize_with = "crate::lenient::nullable", skip_serializing_if = "is_zero")]
            pub network_disabled: bool,
            #[serde(deserialize_with = "crate::lenient::nullable", skip_serializing_if = "is_zero")]
            pub mac_address: String,
            #[serde(deserialize_with = "crate::lenient::nullable", serialize_with = "null_if_empty")]
            pub on_build: Vec<String>,
            #[serde(deserialize_with = "crate::lenient::nullable")]
            pub labels: Labels,
            #[serde(deserialize_with = "crate::lenient::nullable", skip_serializing_if = "is_zero")]
            pub stop_signal: String,
            /// Seconds; `None` is 10.
            #[serde(deserialize_with = "crate::lenient::nullable", skip_serializing_if = "is_zero")]
            pub stop_timeout: Option<i64>,
            #[serde(deserialize_with = "crate::lenient::words", skip_serializing_if = "is_zero")]
            pub shell: Option<Vec<String>>,
            $(
                $(#[$field_attr])*
                #[serde(deserialize_with = "crate::lenient::nullable")]
                pub $field: $type,
            )*
        }
    };
}

config_document! { ContainerConfig {} }

config_document! {
    ///
    /// This one is the body of `POST /containers/create`.
    ContainerCreateRequest {
        host_config: HostConfig,
        networking_config: NetworkingConfig,
    }
}

impl ContainerCreateRequest {
    /// The three documents that the request is made of.
    #[must_use]
    pub fn into_parts(self) -> (ContainerConfig, HostConfig, NetworkingConfig) {
        let config = ContainerConfig {
            hostname: self.hostname,
            domainname: self.domainname,
            user: self.user,
            attach_stdin: self.attach_stdin,
            attach_stdout: self.attach_stdout,
            attach_stderr: self.attach_stderr,
            exposed_ports: self.exposed_ports,
            tty: self.tty,
            open_stdin: self.open_stdin,
            stdin_once: self.stdin_once,
            env: self.env,
            cmd: self.cmd,
            healthcheck: self.healthcheck,
            args_escaped: self.args_escaped,
            image: self.image,
            volumes: self.volumes,
            working_dir: self.working_dir,
            entrypoint: self.entrypoint,
            network_disabled: self.network_disabled,
            mac_address: self.mac_address,
            on_build: self.on_build,
            labels: self.labels,
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout,
            shell: self.shell,
        };
        (config, self.host_config, self.networking_config)
    }
}

document! {
    /// How health is probed; durations in nanoseconds, zero is inherited.
    HealthConfig {
        /// `[]` inherited, `["NONE"]`, `["CMD", …]`, `["CMD-SHELL", command]`.
        #[serde(skip_serializing_if = "is_zero")]
        test: Vec<String>,
        #[serde(skip_serializing_if = "is_zero")]
        interval: i64,
        #[serde(skip_serializing_if = "is_zero")]
        timeout: i64,
        #[serde(skip_serializing_if = "is_zero")]
        start_period: i64,
        #[serde(skip_serializing_if = "is_zero")]
        start_interval: i64,
        #[serde(skip_serializing_if = "is_zero")]
        retries: i64,
    }
}

document! {
    /// Answer of `POST /containers/create`.
    ContainerCreateResponse {
        id: String,
        warnings: Vec<String>,
    }
}

document! {
    /// Answer of `GET /containers/{id}/json`.
    ContainerInspect {
        id: String,
        /// RFC 3339 with nanoseconds.
        created: String,
        path: String,
        args: Vec<String>,
        state: ContainerState,
        /// Id of the image.
        image: String,
        resolv_conf_path: String,
        hostname_path: String,
        hosts_path: String,
        log_path: String,
        /// With a slash in front.
        name: String,
        /// insula's addition: the machine of a container that has a kernel of its own, while it runs.
        #[serde(skip_serializing_if = "is_zero")]
        machine: Option<Machine>,
        restart_count: i64,
        driver: String,
        platform: String,
        mount_label: String,
        process_label: String,
        app_armor_profile: String,
        #[serde(rename = "ExecIDs", serialize_with = "null_if_empty")]
        exec_ids: Vec<String>,
        host_config: HostConfig,
        graph_driver: GraphDriver,
        /// Bytes of the writable layer, when asked for.
        #[serde(skip_serializing_if = "is_zero")]
        size_rw: Option<i64>,
        #[serde(skip_serializing_if = "is_zero")]
        size_root_fs: Option<i64>,
        mounts: Vec<MountPoint>,
        config: ContainerConfig,
        network_settings: NetworkSettings,
    }
}

document! {
    /// Where a container is in its life.
    ContainerState {
        /// `created`, `running`, `paused`, `restarting`, `removing`, `exited`, `dead`.
        status: String,
        running: bool,
        paused: bool,
        restarting: bool,
        #[serde(rename = "OOMKilled")]
        oom_killed: bool,
        dead: bool,
        pid: i64,
        exit_code: i64,
        error: String,
        /// RFC 3339 with nanoseconds; `0001-01-01T00:00:00Z` is never.
        started_at: String,
        finished_at: String,
        #[serde(skip_serializing_if = "is_zero")]
        health: Option<Health>,
    }
}

document! {
    /// What the last probes of health found.
    Health {
        /// `none`, `starting`, `healthy`, `unhealthy`.
        status: String,
        failing_streak: i64,
        log: Vec<HealthLog>,
    }
}

document! {
    /// One probe.
    HealthLog {
        start: String,
        end: String,
        exit_code: i64,
        output: String,
    }
}

document! {
    /// How the root file system is made.
    GraphDriver {
        #[serde(serialize_with = "null_if_empty")]
        data: Labels,
        name: String,
    }
}

document! {
    /// A mount as it is in effect.
    MountPoint {
        #[serde(skip_serializing_if = "is_zero")]
        r#type: String,
        #[serde(skip_serializing_if = "is_zero")]
        name: String,
        source: String,
        destination: String,
        #[serde(skip_serializing_if = "is_zero")]
        driver: String,
        mode: String,
        #[serde(rename = "RW")]
        rw: bool,
        propagation: String,
    }
}

document! {
    /// One line of `GET /containers/json`.
    ContainerSummary {
        id: String,
        /// With a slash in front.
        names: Vec<String>,
        image: String,
        #[serde(rename = "ImageID")]
        image_id: String,
        command: String,
        /// Seconds since 1970.
        created: i64,
        ports: Vec<PortSummary>,
        #[serde(skip_serializing_if = "is_zero")]
        size_rw: Option<i64>,
        #[serde(skip_serializing_if = "is_zero")]
        size_root_fs: Option<i64>,
        labels: Labels,
        state: String,
        /// `Up 2 minutes`.
        status: String,
        host_config: HostConfigSummary,
        network_settings: NetworkSettingsSummary,
        mounts: Vec<MountPoint>,
    }
}

document! {
    /// The part of the host configuration that lists show.
    HostConfigSummary {
        network_mode: String,
        #[serde(skip_serializing_if = "is_zero")]
        annotations: Labels,
        /// insula's addition: the wall, where it is not the process wall.
        #[serde(skip_serializing_if = "is_zero")]
        isolation: String,
    }
}

document! {
    /// The part of the network settings that lists show.
    NetworkSettingsSummary {
        networks: BTreeMap<String, EndpointSettings>,
        /// insula's addition: names that the host's ports 80 and 443 lead here by, as `NAME:PORT/PROTOCOL`.
        #[serde(skip_serializing_if = "is_zero")]
        host_names: Vec<String>,
    }
}

document! {
    /// One published or exposed port.
    PortSummary {
        #[serde(rename = "IP", skip_serializing_if = "is_zero")]
        ip: String,
        private_port: u16,
        #[serde(skip_serializing_if = "is_zero")]
        public_port: u16,
        r#type: String,
    }
}

document! {
    /// Answer of `POST /containers/{id}/wait`.
    WaitResponse {
        #[serde(skip_serializing_if = "is_zero")]
        error: Option<WaitError>,
        status_code: i64,
    }
}

document! {
    /// Why waiting failed.
    WaitError {
        message: String,
    }
}

/// Message of a wait's error when the daemon ends before the container: the next daemon can be asked.
pub const WAIT_CUT_SHORT: &str = "the daemon is ending";

document! {
    /// Answer of `GET /containers/{id}/top`.
    TopResponse {
        titles: Vec<String>,
        processes: Vec<Vec<String>>,
    }
}

document! {
    /// One line of `GET /containers/{id}/changes`.
    ChangeItem {
        path: String,
        /// 0 modified, 1 added, 2 deleted.
        kind: u8,
    }
}

document! {
    /// Answer of `POST /containers/prune`.
    ContainersPruneResponse {
        #[serde(serialize_with = "null_if_empty")]
        containers_deleted: Vec<String>,
        space_reclaimed: u64,
    }
}

/// `X-Docker-Container-Path-Stat`: base64 of this document. Its names are Go's own, in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PathStat {
    pub name: String,
    pub size: i64,
    /// Go's `os.FileMode`: bit 31 folder, bit 27 symbolic link, low 9 bits permissions.
    pub mode: u32,
    pub mtime: String,
    #[serde(rename = "linkTarget")]
    pub link_target: String,
}
