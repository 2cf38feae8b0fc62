//! What the engine is, on which host, and what it takes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use insula_host::cgroup::Layout;
use insula_models::{
    ComponentVersion, ContainerSummary, DiskUsage, ImageSummary, IndexInfo, Labels, PlatformName,
    PluginsInfo, RegistryServiceConfig, RuntimeInfo, StorageUse, SwarmInfo, SystemInfo, Version,
};
use insula_registry::Insecure;
use insula_store::{Collection, ContainerUsage, Record, Usage};
use jiff::Timestamp;

use crate::containers::ListRequest;
use crate::filters::Filters;
use crate::images::Shown;
use crate::{Engine, Error, Result, blocking};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const RUNTIME: &str = "insula";
/// What clients file credentials of Docker Hub under.
const INDEX_SERVER: &str = "https://index.docker.io/v1/";
/// The record of the engine's own id.
const IDENTITY: &str = "engine-id";

/// The oldest and the newest version of an API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRange {
    pub min: String,
    pub max: String,
}

impl Engine {
    /// `GET /version`, for an API that speaks these versions.
    #[must_use]
    pub fn version(&self, api: &ApiRange) -> Version {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let details = Labels::from([
            ("ApiVersion".to_owned(), api.max.clone()),
            ("Arch".to_owned(), architecture().to_owned()),
            ("KernelVersion".to_owned(), kernel.clone()),
            ("Experimental".to_owned(), "false".to_owned()),
            ("MinAPIVersion".to_owned(), api.min.clone()),
            ("Os".to_owned(), "linux".to_owned()),
        ]);
        Version {
            platform: PlatformName { name: "insula".to_owned() },
            components: vec![ComponentVersion {
                name: "Engine".to_owned(),
                version: VERSION.to_owned(),
                details,
            }],
            version: VERSION.to_owned(),
            api_version: api.max.clone(),
            min_api_version: api.min.clone(),
            os: "linux".to_owned(),
            arch: architecture().to_owned(),
            kernel_version: kernel,
            ..Version::default()
        }
    }

    /// `GET /info`.
    pub async fn info(&self) -> Result<SystemInfo> {
        let this = self.clone();
        blocking(move || this.describe()).await
    }

    fn describe(&self) -> Result<SystemInfo> {
        let counts = self.container_counts();
        let uname = rustix::system::uname();
        let groups = Controllers::probe();
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        Ok(SystemInfo {
            id: self.identity()?,
            containers: signed(counts.running + counts.paused + counts.stopped),
            containers_running: signed(counts.running),
            containers_paused: signed(counts.paused),
            containers_stopped: signed(counts.stopped),
            images: signed(self.images().list(&Filters::new(), Shown::Images)?.len()),
            driver: "overlay".to_owned(),
            driver_status: self.driver_status(),
            plugins: PluginsInfo {
                volume: vec!["local".to_owned()],
                network: ["bridge", "host", "null"].map(str::to_owned).to_vec(),
                authorization: Vec::new(),
                log: crate::plan::log::DRIVERS.map(str::to_owned).to_vec(),
            },
            memory_limit: groups.memory,
            swap_limit: groups.swap,
            cpu_cfs_period: groups.quota,
            cpu_cfs_quota: groups.quota,
            cpu_shares: groups.cpu,
            cpu_set: groups.cpuset,
            pids_limit: groups.pids,
            oom_kill_disable: groups.oom_kill_disable,
            ipv4_forwarding: read("/proc/sys/net/ipv4/ip_forward") == "1",
            n_fd: fs::read_dir("/proc/self/fd").map_or(0, |entries| signed(entries.count())),
            system_time: Timestamp::now().to_string(),
            logging_driver: "json-file".to_owned(),
            cgroup_driver: if groups.none { "none" } else { "cgroupfs" }.to_owned(),
            cgroup_version: groups.version.to_owned(),
            n_events_listener: signed(self.events().listeners()),
            kernel_version: uname.release().to_string_lossy().into_owned(),
            operating_system: distribution("PRETTY_NAME"),
            os_version: distribution("VERSION_ID"),
            os_type: "linux".to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            index_server_address: INDEX_SERVER.to_owned(),
            registry_config: registry_config(&self.0.config.registries),
            n_cpu: cpus(),
            mem_total: memory_total(),
            docker_root_dir: self.store().root().to_string_lossy().into_owned(),
            name: uname.nodename().to_string_lossy().into_owned(),
            server_version: VERSION.to_owned(),
            runtimes: BTreeMap::from([(RUNTIME.to_owned(), RuntimeInfo { path: RUNTIME.to_owned() })]),
            default_runtime: RUNTIME.to_owned(),
            swarm: SwarmInfo { local_node_state: "inactive".to_owned(), ..SwarmInfo::default() },
            live_restore_enabled: true,
            isolation: "process".to_owned(),
            machines: Some(self.machines_info()),
            init_binary: RUNTIME.to_owned(),
            security_options: self.security_options(),
            warnings: self
                .0
                .idmaps
                .warning()
                .into_iter()
                .chain(crate::rootless::warnings())
                .chain(self.networks().warnings()?)
                .chain(self.disk_troubles())
                .collect(),
            ..SystemInfo::default()
        })
    }

    fn driver_status(&self) -> Vec<(String, String)> {
        let sizes = match self.store().without_quotas() {
            None => "project quotas".to_owned(),
            Some(why) => format!("disks in files ({why})"),
        };
        let layers = self.store().layers();
        let verified = match layers.verifies_files() {
            true => "fs-verity",
            false if layers.could_verify_files() => "no (insulad --storage-opt verity=true would have it)",
            false => "no (this kernel or file system cannot: see --storage-opt verity of insulad)",
        };
        vec![
            ("Backing Filesystem".to_owned(), backing(self.store().root())),
            ("Sizes of Writable Layers".to_owned(), sizes),
            ("Files Verified when Read".to_owned(), verified.to_owned()),
        ]
    }

    fn security_options(&self) -> Vec<String> {
        let ids = self.0.idmaps.any().then_some("name=userns");
        let rootless = crate::rootless::outside().map(|_| "name=rootless");
        ["name=seccomp,profile=builtin"].into_iter().chain(ids).chain(rootless).map(str::to_owned).collect()
    }

    /// `GET /system/df`: images, containers and volumes with what they take, and all that is on the disk.
    pub async fn disk_use(&self) -> Result<DiskUsage> {
        let request = ListRequest { all: true, size: true, ..ListRequest::default() };
        let containers = self.list_containers(request).await?;
        let volumes = self.volumes().usage(self.volume_users()?).await?;
        let store = self.store().clone();
        let engine = self.clone();
        let (usage, build_cache, machine_files) =
            blocking(move || Ok((store.usage()?, engine.build_cache()?, engine.machine_files()?))).await?;
        let mut images = self.images().list_used(&Filters::new(), Shown::All, &usage)?;
        count_users(&mut images, &containers);
        let storage = Some(storage_use(self.store().root(), &usage));
        let layers_size = signed(usage.images());
        Ok(DiskUsage { layers_size, images, containers, volumes, build_cache, machine_files, storage })
    }

    /// Fills in how many containers each image has.
    pub async fn count_image_users(&self, images: &mut [ImageSummary]) -> Result<()> {
        let request = ListRequest { all: true, ..ListRequest::default() };
        count_users(images, &self.list_containers(request).await?);
        Ok(())
    }

    /// An id that this root keeps.
    fn identity(&self) -> Result<String> {
        let records = self.store().state().records(Collection::Meta);
        if let Some(record) = records.get(IDENTITY)? {
            return Ok(String::from_utf8_lossy(&record.doc).into_owned());
        }
        let digits = insula_base::random_hex(16);
        let id = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-");
        let record = Record { id: IDENTITY.to_owned(), name: None, doc: id.clone().into_bytes() };
        match records.insert(&record) {
            // Somebody asked at the same time.
            Err(insula_store::Error::IdTaken { .. }) => records
                .get(IDENTITY)?
                .map(|record| String::from_utf8_lossy(&record.doc).into_owned())
                .ok_or_else(|| Error::Internal("the record of the engine's id vanished".to_owned())),
            result => result.map(|()| id).map_err(Error::from),
        }
    }
}

fn registry_config(options: &insula_registry::Options) -> RegistryServiceConfig {
    let hub = insula_spec::reference::DEFAULT_DOMAIN;
    let mirrors = |name: &str| {
        options.mirrors.get(name).into_iter().flatten().map(ToString::to_string).collect::<Vec<_>>()
    };
    let names = [hub.to_owned()].into_iter().chain(options.mirrors.keys().cloned());
    let index = |name: String| IndexInfo {
        mirrors: mirrors(&name),
        secure: !options.is_insecure(&name),
        official: name == hub,
        name,
    };
    // Loopback addresses are always among them, as Docker says of its own.
    let mut networks = vec!["127.0.0.0/8".to_owned()];
    let mut indexes: BTreeMap<String, IndexInfo> = names.map(|name| (name.clone(), index(name))).collect();
    for insecure in &options.insecure {
        match insecure {
            Insecure::Host(name) => drop(indexes.insert(name.clone(), index(name.clone()))),
            Insecure::Network(address, bits) => networks.push(format!("{address}/{bits}")),
        }
    }
    RegistryServiceConfig {
        insecure_registry_cidrs: networks,
        index_configs: indexes,
        mirrors: mirrors(hub),
        ..RegistryServiceConfig::default()
    }
}

fn count_users(images: &mut [ImageSummary], containers: &[ContainerSummary]) {
    for image in images {
        let users = containers.iter().filter(|container| container.image_id == image.id).count();
        image.containers = i64::try_from(users).unwrap_or(i64::MAX);
    }
}

fn storage_use(root: &Path, usage: &Usage) -> StorageUse {
    let of = |part: fn(&ContainerUsage) -> u64| signed(usage.containers.values().map(part).sum());
    StorageUse {
        root: root.to_string_lossy().into_owned(),
        layers: signed(usage.layers),
        recipes: signed(usage.recipes),
        compressed: signed(usage.compressed),
        documents: signed(usage.documents),
        writable_layers: of(|container| container.upper + container.other),
        logs: of(|container| container.logs),
        volumes: signed(usage.volumes.values().sum()),
        database: signed(usage.database),
        pending: signed(usage.pending),
        templates: signed(usage.templates),
        mapped_images: signed(usage.mapped_images),
        machines: signed(usage.machines),
        other: signed(usage.other + usage.caches),
        total: signed(usage.total()),
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What the host's cgroups can limit.
#[derive(Debug, Clone, Copy)]
struct Controllers {
    /// No group can be made.
    none: bool,
    version: &'static str,
    memory: bool,
    swap: bool,
    cpu: bool,
    quota: bool,
    cpuset: bool,
    pids: bool,
    oom_kill_disable: bool,
}

impl Controllers {
    fn probe() -> Self {
        let Ok(layout) = Layout::probe() else {
            return Self {
                none: true,
                version: "",
                memory: false,
                swap: false,
                cpu: false,
                quota: false,
                cpuset: false,
                pids: false,
                oom_kill_disable: false,
            };
        };
        let unified = layout.unified();
        let second = layout.hierarchies.first().filter(|_| unified).map(|hierarchy| {
            fs::read_to_string(hierarchy.root.join("cgroup.controllers")).unwrap_or_default()
        });
        let has = |name: &str| match &second {
            Some(controllers) => controllers.split_whitespace().any(|controller| controller == name),
            None => layout.v1(name).is_some(),
        };
        let file = |controller: &str, file: &str| {
            layout.v1(controller).is_some_and(|hierarchy| hierarchy.root.join(file).exists())
        };
        Self {
            none: layout.is_empty(),
            version: if unified { "2" } else { "1" },
            memory: has("memory"),
            swap: if unified { has("memory") } else { file("memory", "memory.memsw.limit_in_bytes") },
            cpu: has("cpu"),
            quota: if unified { has("cpu") } else { file("cpu", "cpu.cfs_quota_us") },
            cpuset: has("cpuset"),
            pids: has("pids"),
            oom_kill_disable: !unified && file("memory", "memory.oom_control"),
        }
    }
}

/// The processor as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn memory_total() -> i64 {
    let pages = rustix::param::page_size() as u64;
    let info = rustix::system::sysinfo();
    // In units of its own, which are bytes on 64 bit.
    let total = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    i64::try_from(total / pages * pages).unwrap_or(i64::MAX)
}

/// A field of os-release(5).
fn distribution(field: &str) -> String {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| read("/etc/os-release"));
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix('='))
        .map(|value| value.trim_matches('"').to_owned())
        .unwrap_or_default()
}

/// The file system that holds the root, by its magic number (statfs(2)).
fn backing(path: &Path) -> String {
    let name = match rustix::fs::statfs(path).map(|stat| stat.f_type as u64 & 0xffff_ffff) {
        Ok(0xef53) => "extfs",
        Ok(0x5846_5342) => "xfs",
        Ok(0x9123_683e) => "btrfs",
        Ok(0x0102_1994) => "tmpfs",
        Ok(0x794c_7630) => "overlayfs",
        Ok(0x2fc1_2fc1) => "zfs",
        _ => "unknown",
    };
    name.to_owned()
}
/// CPUs that this daemon may use. Asked once: the answer takes a dozen system calls.
pub(crate) fn cpus() -> i64 {
    static CPUS: std::sync::LazyLock<i64> =
        std::sync::LazyLock::new(|| std::thread::available_parallelism().map_or(1, |n| n.get() as i64));
    *CPUS
}
