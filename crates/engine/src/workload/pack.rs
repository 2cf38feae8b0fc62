//! From containers to a file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use insula_base::Digest;
use insula_models::{
    HostConfig, NetworkCreateRequest, Workload, WorkloadContainer, WorkloadMount, WorkloadVolume,
};
use insula_spec::reference::Reference;
use insula_store::layers::{DiffOf, write_tree, write_upper};
use insula_store::workload::{DOCUMENT_MAX, State};
use insula_sys::failpoint::failpoint;
use jiff::Timestamp;

use super::{VERSION, joined};
use crate::archive::{ArchiveChunks, made_by_engine, produce};
use crate::containers::container::Container;
use crate::containers::row::{Row, SourceRow};
use crate::{Engine, Error, Result, transfer};

/// `GET /insula/bundle`.
#[derive(Debug, Clone, Default)]
pub struct BundleRequest {
    /// Names or ids.
    pub containers: Vec<String>,
    /// Hold those that run still while their files are read, all of them for the same moment.
    pub pause: bool,
    /// Layers that whoever reads it has.
    pub without: BTreeSet<Digest>,
}

impl Engine {
    /// Writes containers with all that they are made of as one file.
    pub async fn bundle(&self, request: BundleRequest) -> Result<ArchiveChunks> {
        let mut containers: Vec<Arc<Container>> = Vec::new();
        for reference in &request.containers {
            let container = self.find(reference)?;
            if !containers.iter().any(|have| have.id == container.id) {
                containers.push(container);
            }
        }
        let mut workload = self.describe_workload(&containers)?;
        let engine = self.clone();
        // To its end, whether the client stays or not: what is held still has to go on.
        let work = tokio::spawn(async move {
            let held = engine.hold_still(if request.pause { &containers } else { &[] }).await?;
            failpoint("bundle.paused");
            let (this, of) = (engine.clone(), containers.clone());
            let state =
                transfer(move || this.spool_state(&of, &mut workload).map(|state| (state, workload))).await;
            engine.let_go(held).await;
            state.map(|(state, workload)| (state, workload, request.without))
        });
        let (state, workload, without) =
            work.await.map_err(|error| Error::Internal(format!("the files were not read: {error}")))??;
        let images = self.image_names(&workload);
        let document = serde_json::to_vec_pretty(&workload)
            .map_err(|error| Error::Internal(format!("write insula.json: {error}")))?;
        if document.len() as u64 > DOCUMENT_MAX {
            return Err(Error::InvalidArgument("so many containers do not fit into one bundle".to_owned()));
        }
        self.store().images().check_save(&images)?;
        let store = self.store().clone();
        Ok(produce(move |out| Ok(store.write_workload(&document, (&images, &without), &state, out)?)))
    }

    /// All but the digests of what has to be read.
    fn describe_workload(&self, containers: &[Arc<Container>]) -> Result<Workload> {
        let rows: Vec<_> = containers.iter().map(|container| container.row()).collect();
        let mut workload =
            Workload { version: VERSION, created: Timestamp::now().to_string(), ..Workload::default() };
        let mut fixed = BTreeSet::new();
        for row in &rows {
            let described = self.describe_container(row, containers)?;
            for (name, settings) in &described.networks {
                if settings.ipam_config.as_ref().is_some_and(|asked| *asked != Default::default()) {
                    fixed.insert(name.clone());
                }
                if !workload.networks.iter().any(|network| network.name == *name) {
                    workload.networks.extend(self.describe_network(name)?);
                }
            }
            for mount in &described.mounts {
                if !workload.volumes.iter().any(|volume| volume.name == mount.volume) {
                    let volume = self.volumes().inspect(&mount.volume)?;
                    if let Some(folder) = self.volumes().folder(&volume.name)? {
                        return Err(Error::Unsupported(format!(
                            "the volume {} stands for {} of this host, which a bundle does not take",
                            volume.name,
                            folder.display()
                        )));
                    }
                    workload.volumes.push(WorkloadVolume {
                        name: volume.name,
                        labels: volume.labels,
                        archive: String::new(),
                    });
                }
            }
            workload.containers.push(described);
        }
        // Another host may have the addresses in use, which matters only where somebody asked for one.
        for network in workload.networks.iter_mut().filter(|network| !fixed.contains(&network.name)) {
            network.ipam = None;
        }
        Ok(workload)
    }

    fn describe_container(&self, row: &Row, all: &[Arc<Container>]) -> Result<WorkloadContainer> {
        if row.image.layers.iter().any(|layer| layer == std::path::Path::new("/")) {
            return Err(Error::Unsupported(format!(
                "container {} is made of this host's own files, which another host has otherwise: export it",
                row.name
            )));
        }
        let mut host = row.host.clone();
        for mode in [&mut host.network_mode, &mut host.pid_mode, &mut host.ipc_mode] {
            if let Some(reference) = joined(mode) {
                *mode = format!("container:{}", self.bundled(row, reference, all)?);
            }
        }
        for link in &mut host.links {
            let (name, rest) = link.split_once(':').map_or((link.as_str(), None), |(n, r)| (n, Some(r)));
            let found = self.bundled(row, name, all)?;
            *link = format!("{found}:{}", rest.unwrap_or(name));
        }
        let mut config = row.config.clone();
        if joined(&host.network_mode).is_some() || host.network_mode == "host" || host.uts_mode == "host" {
            // It was found out, and there it is another.
            config.hostname.clear();
            config.domainname.clear();
        }
        let mounts = volume_mounts(row);
        take_over_mounts(&mut host, row);
        Ok(WorkloadContainer {
            name: row.name.clone(),
            image: row.image.id.to_string(),
            image_name: row.image.reference.clone(),
            running: row.running(),
            config,
            host_config: host,
            networks: row.endpoints.clone(),
            mounts,
            layer: String::new(),
        })
    }

    /// The name of a container that another needs.
    fn bundled(&self, row: &Row, reference: &str, all: &[Arc<Container>]) -> Result<String> {
        let found = self.find(reference)?;
        match all.iter().any(|container| container.id == found.id) {
            true => Ok(found.row().name.clone()),
            false => Err(Error::InvalidArgument(format!(
                "container {} needs {}: bundle them together",
                row.name,
                found.row().name
            ))),
        }
    }

    /// As one would make it again; nothing for those that every host has.
    fn describe_network(&self, name: &str) -> Result<Option<NetworkCreateRequest>> {
        let network = self.networks().get(name)?;
        if network.predefined() {
            return Ok(None);
        }
        let shown = crate::networks::describe(&network);
        Ok(Some(NetworkCreateRequest {
            name: shown.name,
            driver: shown.driver,
            enable_ipv6: Some(shown.enable_ipv6),
            ipam: Some(shown.ipam),
            internal: shown.internal,
            attachable: shown.attachable,
            options: shown.options,
            labels: shown.labels,
            ..NetworkCreateRequest::default()
        }))
    }

    fn spool_state(&self, containers: &[Arc<Container>], workload: &mut Workload) -> Result<State> {
        let store = self.store();
        let mut state = State::new();
        for (container, described) in containers.iter().zip(&mut workload.containers) {
            let files = self.container_files(container.id.as_str())?;
            let ignored = made_by_engine(&files);
            let of = DiffOf { upper: files.upper, lower: files.layers, ignored, latest: None };
            let spooled = store.spool(|out| write_upper(&of, out).map(drop))?;
            described.layer = spooled.digest().to_string();
            state.insert(spooled.digest().clone(), spooled);
        }
        for volume in &mut workload.volumes {
            let folder = store.volume_data(&volume.name)?;
            let spooled = store.spool(|out| write_tree(&folder, out).map(drop))?;
            volume.archive = spooled.digest().to_string();
            state.insert(spooled.digest().clone(), spooled);
        }
        Ok(state)
    }

    /// What the images are called in the archive: as the containers have them, while that is still so.
    fn image_names(&self, workload: &Workload) -> Vec<String> {
        let mut names: BTreeMap<String, ()> = BTreeMap::new();
        for container in &workload.containers {
            let called = Reference::parse(&container.image_name).ok().map(|name| name.familiar());
            let current = called.filter(|name| {
                self.images().resolve(name).is_ok_and(|image| image.id.to_string() == container.image)
            });
            names.insert(current.unwrap_or_else(|| container.image.clone()), ());
        }
        names.into_keys().collect()
    }
}

fn volume_mounts(row: &Row) -> Vec<WorkloadMount> {
    let mounts = row.mounts.iter().filter_map(|mount| match &mount.source {
        SourceRow::Volume { name, anonymous, .. } => Some(WorkloadMount {
            target: mount.target.clone(),
            volume: name.clone(),
            anonymous: *anonymous,
            read_only: mount.readonly,
            mode: mount.mode.clone(),
        }),
        _ => None,
    });
    mounts.collect()
}

/// What it has from other containers (`--volumes-from`) becomes its own.
fn take_over_mounts(host: &mut HostConfig, row: &Row) {
    if std::mem::take(&mut host.volumes_from).is_empty() {
        return;
    }
    let own = |target: &str| {
        host.mounts.iter().any(|mount| mount.target == target)
            || host.binds.iter().any(|bind| bind.split(':').nth(1) == Some(target))
    };
    let more: Vec<String> = row
        .mounts
        .iter()
        .filter(|mount| !own(&mount.target))
        .filter_map(|mount| match &mount.source {
            SourceRow::Bind { path, .. } => {
                let mode = if mount.readonly { ":ro" } else { "" };
                Some(format!("{}:{}{mode}", path.display(), mount.target))
            }
            _ => None,
        })
        .collect();
    host.binds.extend(more);
}
