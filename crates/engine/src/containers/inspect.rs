//! Inspect: a container as Docker describes it.

use std::collections::BTreeMap;
use std::path::Path;

use insula_models::{
    ContainerInspect, ContainerState, EndpointSettings, GraphDriver, Labels, Machine, MountPoint,
    NetworkSettings, PortBinding,
};
use insula_network::{Endpoint, Mode};
use insula_spec::machine::MachineRecord;
use insula_spec::plan::LogPlan;
use jiff::Timestamp;

use super::container::Container;
use super::merge::command;
use super::row::{Phase, Row, SourceRow};
use crate::networks::endpoint_settings;
use crate::{Engine, Result, plan};

/// A moment that has not come: Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";

impl Engine {
    /// With `size`, the bytes that it takes are counted.
    pub async fn inspect_container(&self, reference: &str, size: bool) -> Result<ContainerInspect> {
        let container = self.find(reference)?;
        let row = container.row();
        let folder = self.store().container_dir(&row.id);
        let names = self.instance().sandbox(&row.id);
        // They are there while it runs.
        let file = |name: &str| match row.started {
            Some(_) => names.join(name).to_string_lossy().into_owned(),
            None => String::new(),
        };
        let mut words = command(&row.config).map(str::to_owned);
        let log = plan::log::plan(&row.host.log_config, &folder.logs(), &plan::log::Subject::of(&row))?;
        let log_path = match log {
            LogPlan::JsonFile { path, .. } => path.to_string_lossy().into_owned(),
            // Docker names the files of json-file alone.
            _ => String::new(),
        };
        let mut inspect = ContainerInspect {
            id: row.id.to_string(),
            created: time(row.created),
            path: words.next().unwrap_or_default(),
            args: words.collect(),
            state: state(&container, &row),
            image: row.image.id.to_string(),
            resolv_conf_path: file("resolv.conf"),
            hostname_path: file("hostname"),
            hosts_path: file("hosts"),
            log_path,
            name: format!("/{}", row.name),
            machine: row.pid().and_then(|_| self.sandbox(&row).machine()).map(machine),
            restart_count: i64::try_from(row.restarts).unwrap_or(i64::MAX),
            driver: "overlay2".to_owned(),
            platform: "linux".to_owned(),
            exec_ids: container.state().unfinished_execs(),
            host_config: row.host.clone(),
            graph_driver: graph_driver(&row, &folder),
            mounts: mount_points(&row, &self.store().volumes_dir()),
            config: row.config.clone(),
            network_settings: self.network_settings(&row)?,
            ..ContainerInspect::default()
        };
        if inspect.state.error.is_empty() {
            inspect.state.error = self.disk_trouble(&row.id).unwrap_or_default();
        }
        if size {
            let (rw, root) = self.sizes(&row).await?;
            (inspect.size_rw, inspect.size_root_fs) = (Some(rw), Some(root));
        }
        Ok(inspect)
    }

    fn network_settings(&self, row: &Row) -> Result<NetworkSettings> {
        Ok(self.settings_of(row, self.networks().endpoint(&row.id)?))
    }

    /// The same of what it was given.
    pub(super) fn settings_of(&self, row: &Row, endpoint: Option<Endpoint>) -> NetworkSettings {
        let endpoint = endpoint.filter(|_| row.phase.live());
        let mut settings = NetworkSettings { host_names: row.host_names(), ..NetworkSettings::default() };
        let Some(endpoint) = endpoint else {
            // What it will be connected to.
            for (name, asked) in self.asked(row) {
                let network_id = self.networks().get(&name).map(|n| n.id.to_string()).unwrap_or_default();
                settings.networks.insert(name, EndpointSettings { network_id, ..asked });
            }
            return settings;
        };
        settings.sandbox_id = row.id.to_string();
        settings.sandbox_key = row.pid().map(|pid| format!("/proc/{pid}/ns/net")).unwrap_or_default();
        settings.ports = ports(row, &endpoint);
        let asked = self.asked(row);
        let one = |attachment: &insula_network::Attachment| {
            let asked = asked.get(&attachment.network_name).cloned().unwrap_or_default();
            (attachment.network_name.clone(), endpoint_settings(&endpoint, attachment, asked))
        };
        settings.networks = endpoint.attachments.iter().map(one).collect();
        if let Some(bridge) = settings.networks.get("bridge").cloned() {
            settings.endpoint_id = bridge.endpoint_id;
            settings.gateway = bridge.gateway;
            settings.ip_address = bridge.ip_address;
            settings.ip_prefix_len = bridge.ip_prefix_len;
            settings.mac_address = bridge.mac_address;
            settings.ipv6_gateway = bridge.ipv6_gateway;
            settings.global_ipv6_address = bridge.global_ipv6_address;
            settings.global_ipv6_prefix_len = bridge.global_ipv6_prefix_len;
        }
        settings
    }

    /// The networks that it asks for, by name.
    fn asked(&self, row: &Row) -> BTreeMap<String, EndpointSettings> {
        match Mode::parse(&row.host.network_mode) {
            Mode::Container(_) => BTreeMap::new(),
            Mode::None | Mode::Host => {
                BTreeMap::from([(row.host.network_mode.clone(), EndpointSettings::default())])
            }
            Mode::Network(primary) => row.endpoints(&primary),
        }
    }
}

fn ports(row: &Row, endpoint: &Endpoint) -> insula_models::PortMap {
    let mut ports: insula_models::PortMap =
        row.config.exposed_ports.keys().map(|port| (port.clone(), None)).collect();
    for published in &endpoint.ports {
        let key = format!("{}/{}", published.container_port, published.proto);
        let binding = PortBinding {
            host_ip: published.host_ip.to_string(),
            host_port: published.host_port.to_string(),
        };
        ports.entry(key).or_default().get_or_insert_default().push(binding);
    }
    ports
}

fn machine(record: MachineRecord) -> Machine {
    Machine {
        backend: record.backend.name().to_owned(),
        program: record.program,
        pid: record.pid.into(),
        cpus: record.cpus,
        memory: record.memory,
        kernel: record.kernel,
        boot_milliseconds: record.boot,
        template: record.template,
        root: if record.mapped { "mapped" } else { "served" }.to_owned(),
        vsock: record.vsock.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
    }
}

fn state(container: &Container, row: &Row) -> ContainerState {
    let status = container.status();
    let (oom, finished, mut error) = match &row.phase {
        Phase::Exited { oom, at, error, .. } => (*oom, time(*at), error.clone()),
        _ => (container.state().oom, NEVER.to_owned(), String::new()),
    };
    if let Some(failure) = &row.failure {
        error.clone_from(&failure.error);
    }
    ContainerState {
        status: status.to_owned(),
        running: matches!(status, "running" | "paused" | "restarting"),
        paused: status == "paused",
        restarting: status == "restarting",
        oom_killed: oom,
        dead: false,
        pid: row.pid().unwrap_or(0).into(),
        exit_code: row.exit_code().into(),
        error,
        started_at: row.started.map_or_else(|| NEVER.to_owned(), time),
        finished_at: finished,
        health: super::health::of(container),
    }
}

fn graph_driver(row: &Row, folder: &insula_store::ContainerDir) -> GraphDriver {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let lower: Vec<String> = row.image.layers.iter().rev().map(|path| text(path)).collect();
    let data = Labels::from([
        ("LowerDir".to_owned(), lower.join(":")),
        ("UpperDir".to_owned(), text(&folder.upper())),
        ("WorkDir".to_owned(), text(&folder.work())),
    ]);
    GraphDriver { data, name: "overlay2".to_owned() }
}

/// Mounts that inspection and lists show; tmpfs of `--tmpfs` are only in the host configuration, as
/// Docker has it.
pub(super) fn mount_points(row: &Row, volumes: &Path) -> Vec<MountPoint> {
    let point = |mount: &super::row::MountRow| {
        let mut point = MountPoint {
            destination: mount.target.clone(),
            mode: mount.mode.clone(),
            rw: !mount.readonly,
            source: mount.host_path(volumes).unwrap_or_default().to_string_lossy().into_owned(),
            ..MountPoint::default()
        };
        match &mount.source {
            SourceRow::Bind { propagation, .. } => {
                "bind".clone_into(&mut point.r#type);
                point.propagation.clone_from(propagation);
            }
            SourceRow::Volume { name, .. } => {
                "volume".clone_into(&mut point.r#type);
                point.name.clone_from(name);
                // Also where it stands for another folder.
                point.source = volumes.join(name).join("_data").to_string_lossy().into_owned();
                "local".clone_into(&mut point.driver);
                // Docker's word for a label that it may set; what the image alone asks for has none.
                if point.mode.is_empty() && !row.config.volumes.contains_key(&mount.target) {
                    "z".clone_into(&mut point.mode);
                }
            }
            SourceRow::Tmpfs { .. } if row.host.tmpfs.contains_key(&mount.target) => return None,
            SourceRow::Tmpfs { .. } => "tmpfs".clone_into(&mut point.r#type),
            SourceRow::Own { .. } | SourceRow::Merged { .. } => "bind".clone_into(&mut point.r#type),
        }
        Some(point)
    };
    row.mounts.iter().filter_map(point).collect()
}

/// RFC 3339 with nanoseconds.
fn time(moment: Timestamp) -> String {
    format!("{moment:.9}")
}
