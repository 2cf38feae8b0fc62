//! The engine itself: version, information, disk use.

use std::collections::BTreeMap;

use crate::lenient::{document, is_zero, null_if_empty};
use crate::{ContainerSummary, ImageSummary, Labels, Volume};

document! {
    /// Answer of `GET /version`.
    Version {
        platform: PlatformName,
        components: Vec<ComponentVersion>,
        version: String,
        #[serde(rename = "ApiVersion")]
        api_version: String,
        #[serde(rename = "MinAPIVersion")]
        min_api_version: String,
        git_commit: String,
        go_version: String,
        os: String,
        arch: String,
        kernel_version: String,
        #[serde(skip_serializing_if = "is_zero")]
        experimental: bool,
        build_time: String,
    }
}

document! {
    /// Name of the product.
    PlatformName {
        name: String,
    }
}

document! {
    /// One part of the engine.
    ComponentVersion {
        name: String,
        version: String,
        details: Labels,
    }
}

document! {
    /// Answer of `GET /info`.
    SystemInfo {
        #[serde(rename = "ID")]
        id: String,
        containers: i64,
        containers_running: i64,
        containers_paused: i64,
        containers_stopped: i64,
        images: i64,
        driver: String,
        driver_status: Vec<(String, String)>,
        plugins: PluginsInfo,
        memory_limit: bool,
        swap_limit: bool,
        #[serde(rename = "CpuCfsPeriod")]
        cpu_cfs_period: bool,
        #[serde(rename = "CpuCfsQuota")]
        cpu_cfs_quota: bool,
        #[serde(rename = "CPUShares")]
        cpu_shares: bool,
        #[serde(rename = "CPUSet")]
        cpu_set: bool,
        pids_limit: bool,
        #[serde(rename = "IPv4Forwarding")]
        ipv4_forwarding: bool,
        debug: bool,
        #[serde(rename = "NFd")]
        n_fd: i64,
        oom_kill_disable: bool,
        n_goroutines: i64,
        system_time: String,
        logging_driver: String,
        cgroup_driver: String,
        /// `1` or `2`.
        cgroup_version: String,
        n_events_listener: i64,
        kernel_version: String,
        operating_system: String,
        #[serde(rename = "OSVersion")]
        os_version: String,
        #[serde(rename = "OSType")]
        os_type: String,
        architecture: String,
        index_server_address: String,
        registry_config: RegistryServiceConfig,
        #[serde(rename = "NCPU")]
        n_cpu: i64,
        mem_total: i64,
        docker_root_dir: String,
        #[serde(rename = "HttpProxy")]
        http_proxy: String,
        #[serde(rename = "HttpsProxy")]
        https_proxy: String,
        no_proxy: String,
        name: String,
        labels: Vec<String>,
        experimental_build: bool,
        server_version: String,
        runtimes: BTreeMap<String, RuntimeInfo>,
        default_runtime: String,
        swarm: SwarmInfo,
        live_restore_enabled: bool,
        /// Of programs that Docker has besides itself; insula has none of them.
        containerd_commit: Commit,
        runc_commit: Commit,
        init_commit: Commit,
        /// The wall a container gets when it asks for none.
        isolation: String,
        /// insula's addition.
        #[serde(skip_serializing_if = "is_zero")]
        machines: Option<crate::MachinesInfo>,
        init_binary: String,
        security_options: Vec<String>,
        #[serde(serialize_with = "null_if_empty")]
        warnings: Vec<String>,
    }
}

document! {
    /// Drivers by kind.
    PluginsInfo {
        volume: Vec<String>,
        network: Vec<String>,
        #[serde(serialize_with = "null_if_empty")]
        authorization: Vec<String>,
        log: Vec<String>,
    }
}

document! {
    /// A runtime; its names are in lower case.
    RuntimeInfo {
        #[serde(rename = "path")]
        path: String,
    }
}

document! {
    /// Registries as the daemon was told to treat them.
    RegistryServiceConfig {
        #[serde(rename = "AllowNondistributableArtifactsCIDRs")]
        allow_nondistributable_artifacts_cidrs: Vec<String>,
        allow_nondistributable_artifacts_hostnames: Vec<String>,
        #[serde(rename = "InsecureRegistryCIDRs")]
        insecure_registry_cidrs: Vec<String>,
        /// By name; `docker.io` is always there.
        index_configs: BTreeMap<String, IndexInfo>,
        /// Of Docker Hub.
        mirrors: Vec<String>,
    }
}

document! {
    /// One registry.
    IndexInfo {
        name: String,
        mirrors: Vec<String>,
        secure: bool,
        official: bool,
    }
}

document! {
    /// Which version of a program runs.
    Commit {
        #[serde(rename = "ID")]
        id: String,
        #[serde(skip_serializing_if = "is_zero")]
        expected: String,
    }
}

document! {
    /// Always inactive: insula is no orchestrator.
    SwarmInfo {
        #[serde(rename = "NodeID")]
        node_id: String,
        node_addr: String,
        local_node_state: String,
        control_available: bool,
        error: String,
        /// Always `null`.
        #[serde(serialize_with = "null_if_empty")]
        remote_managers: Vec<String>,
    }
}

document! {
    /// Answer of `GET /system/df`.
    DiskUsage {
        layers_size: i64,
        images: Vec<ImageSummary>,
        containers: Vec<ContainerSummary>,
        volumes: Vec<Volume>,
        #[serde(serialize_with = "null_if_empty")]
        build_cache: Vec<BuildCacheItem>,
        /// insula's own: what machines of containers start from and map.
        #[serde(skip_serializing_if = "is_zero")]
        machine_files: Vec<MachineFile>,
        /// insula's own: all that is below the engine's root.
        #[serde(skip_serializing_if = "is_zero")]
        storage: Option<StorageUse>,
    }
}

document! {
    /// A record of the build cache, in `GET /system/df`.
    BuildCacheItem {
        #[serde(rename = "ID")]
        id: String,
        /// `regular` for what a step made, `exec.cachemount` for a folder that commands keep files in.
        r#type: String,
        /// The step.
        description: String,
        /// A build uses it now.
        in_use: bool,
        /// Its layer is an image's too.
        shared: bool,
        /// Bytes.
        size: i64,
        /// RFC 3339.
        created_at: String,
        last_used_at: String,
        usage_count: i64,
    }
}

document! {
    /// What machines of containers start from or map, and is made anew when it is needed: in `GET /system/df`.
    MachineFile {
        /// `template`, a machine that was booted and saved; `image`, the root of containers.
        r#type: String,
        id: String,
        /// Bytes on disk.
        size: i64,
        /// New machines are made of the template; a container maps the image.
        in_use: bool,
    }
}

document! {
    /// Bytes on the disk by kind, as du(1) counts them. They add up to `total`.
    StorageUse {
        root: String,
        layers: i64,
        /// What makes the archives of layers again.
        recipes: i64,
        /// Layers that are kept compressed, as they came.
        compressed: i64,
        documents: i64,
        writable_layers: i64,
        logs: i64,
        volumes: i64,
        database: i64,
        /// What is on its way in or out.
        pending: i64,
        /// Machines that were booted and saved, for copies.
        templates: i64,
        /// Roots of containers that machines map into their memory.
        mapped_images: i64,
        /// What machines boot with.
        machines: i64,
        other: i64,
        total: i64,
    }
}
