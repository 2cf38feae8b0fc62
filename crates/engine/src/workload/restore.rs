//! From a file to containers.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use insula_models::{
    NetworkingConfig, Workload, WorkloadConflict, WorkloadContainer, WorkloadMade, WorkloadMount,
    WorkloadRestored,
};
use insula_store::Force;
use insula_store::layers::Whiteouts;
use insula_store::workload::WorkloadFile;

use super::{Changes, digest, joined, read};
use crate::containers::container::Container;
use crate::containers::create::Own;
use crate::containers::mounts::plain_target;
use crate::containers::row::{MountRow, SourceRow};
use crate::{Engine, Error, Result, blocking, transfer};

impl Engine {
    /// Makes what is in a file, after the changes. Either all of it is there afterwards or nothing.
    pub async fn unbundle(
        &self,
        input: impl Read + Send + 'static,
        changes: Changes,
    ) -> Result<WorkloadRestored> {
        let store = self.store().clone();
        let file = transfer(move || Ok(store.take_workload(input)?)).await?;
        let engine = self.clone();
        blocking(move || engine.restore(&file, &changes)).await
    }

    fn restore(&self, file: &WorkloadFile, changes: &Changes) -> Result<WorkloadRestored> {
        let mut workload = read(file.document())?;
        changes.apply(&mut workload)?;
        check(&workload, file)?;
        let conflicts = self.conflicts(&workload, changes)?;
        if !conflicts.is_empty() {
            return Err(refused(&conflicts));
        }
        let mut made = Made::new(self);
        made.images(file)?;
        for network in &workload.networks {
            made.network(network)?;
        }
        for volume in &workload.volumes {
            let archive = digest(&volume.archive)?;
            let fill = |folder: &Path| Ok(file.unpack(&archive, folder, Whiteouts::Ordinary)?);
            self.volumes().restore(&volume.name, volume.labels.clone(), fill)?;
            made.volumes.push(volume.name.clone());
        }
        let mut answer = WorkloadRestored::default();
        for container in in_order(&workload.containers) {
            let (id, warnings) = made.container(container, file)?;
            let (name, ran) = (container.name.clone(), container.running);
            answer.containers.push(WorkloadMade { id, name, ran });
            answer.warnings.extend(warnings);
            answer.warnings.extend(warnings_of(container));
        }
        made.keep();
        Ok(answer)
    }
}

/// What the document names is in the file, and what it says can be meant.
fn check(workload: &Workload, file: &WorkloadFile) -> Result<()> {
    let layers = workload.containers.iter().map(|container| &container.layer);
    for text in layers.chain(workload.volumes.iter().map(|volume| &volume.archive)) {
        if !file.has(&digest(text)?) {
            return Err(Error::InvalidArgument(format!("insula.json: {text} is not in the bundle")));
        }
    }
    let (mut names, mut volumes) = (BTreeSet::new(), BTreeSet::new());
    for container in &workload.containers {
        if !names.insert(&container.name) {
            return Err(Error::InvalidArgument(format!("two containers would be called {}", container.name)));
        }
    }
    for volume in &workload.volumes {
        if !volumes.insert(&volume.name) {
            return Err(Error::InvalidArgument(format!("two volumes would be called {}", volume.name)));
        }
    }
    let mounts = workload.containers.iter().flat_map(|container| &container.mounts);
    match mounts.into_iter().find(|mount| !volumes.contains(&mount.volume)) {
        Some(mount) => Err(Error::InvalidArgument(format!(
            "insula.json: the volume {:?} of {} is not in the bundle",
            mount.volume, mount.target
        ))),
        None => Ok(()),
    }
}

fn refused(conflicts: &[WorkloadConflict]) -> Error {
    let lines: Vec<String> = conflicts
        .iter()
        .map(|conflict| format!("{} {}: {}", conflict.kind, conflict.name, conflict.reason))
        .collect();
    Error::Conflict(format!("nothing was made, since this host has it already: {}", lines.join("; ")))
}

/// Those that others join come before them; who joins in a circle is told when it is made.
fn in_order(containers: &[WorkloadContainer]) -> Vec<&WorkloadContainer> {
    let mut left: Vec<&WorkloadContainer> = containers.iter().collect();
    let mut ordered: Vec<&WorkloadContainer> = Vec::with_capacity(left.len());
    loop {
        let waits = |container: &WorkloadContainer| {
            needs(container).any(|name| left.iter().any(|other| other.name == name))
        };
        let (later, now): (Vec<_>, Vec<_>) = left.iter().partition(|container| waits(container));
        if now.is_empty() {
            ordered.extend(later);
            return ordered;
        }
        ordered.extend(now);
        left = later;
    }
}

fn needs(container: &WorkloadContainer) -> impl Iterator<Item = &str> {
    let host = &container.host_config;
    let modes =
        [&host.network_mode, &host.pid_mode, &host.ipc_mode].into_iter().filter_map(|mode| joined(mode));
    modes.chain(host.links.iter().map(|link| link.split(':').next().unwrap_or_default()))
}

/// What a bundle leaves to the host.
fn warnings_of(container: &WorkloadContainer) -> Vec<String> {
    let host = &container.host_config;
    let binds = host.binds.iter().filter_map(|bind| bind.split(':').next());
    let mounts = host.mounts.iter().filter(|mount| mount.r#type == "bind").map(|mount| mount.source.as_str());
    let mut warnings: Vec<String> = binds
        .filter(|source| source.starts_with('/'))
        .chain(mounts)
        .map(|path| format!("{} has {path} of this host: its content is not in the bundle", container.name))
        .collect();
    if host.privileged {
        warnings.push(format!("{} is privileged: it can do what root can on this host", container.name));
    }
    warnings
}

fn mount_row(mount: &WorkloadMount) -> Result<MountRow> {
    Ok(MountRow {
        target: plain_target(&mount.target)?,
        // It has its content.
        source: SourceRow::Volume { name: mount.volume.clone(), anonymous: mount.anonymous, copy: false },
        readonly: mount.read_only,
        mode: mount.mode.clone(),
    })
}

/// What was made so far. Dropped, it is undone.
struct Made<'a> {
    engine: &'a Engine,
    /// Those that were not here before.
    images: Vec<String>,
    networks: Vec<String>,
    volumes: Vec<String>,
    containers: Vec<Arc<Container>>,
    kept: bool,
}

impl<'a> Made<'a> {
    fn new(engine: &'a Engine) -> Self {
        let (images, networks, volumes) = (Vec::new(), Vec::new(), Vec::new());
        Self { engine, images, networks, volumes, containers: Vec::new(), kept: false }
    }

    fn images(&mut self, file: &WorkloadFile) -> Result<()> {
        let store = self.engine.store();
        let here: BTreeSet<_> = store.images().list()?.into_iter().map(|image| image.id).collect();
        let loaded = store.load_workload_images(file)?;
        let new = loaded.into_iter().map(|image| image.id).filter(|id| !here.contains(id));
        self.images = new.map(|id| id.to_string()).collect();
        Ok(())
    }

    fn keep(mut self) {
        self.kept = true;
    }

    /// Unless there is one that will do.
    fn network(&mut self, wanted: &insula_models::NetworkCreateRequest) -> Result<()> {
        let networks = self.engine.networks();
        if networks.list().iter().any(|network| network.name == wanted.name) {
            return Ok(());
        }
        let network = networks.create(&crate::networks::wanted(wanted.clone())?)?;
        self.engine.publish_network(&network, "create", &[]);
        self.networks.push(network.id.to_string());
        Ok(())
    }

    fn container(
        &mut self,
        wanted: &WorkloadContainer,
        file: &WorkloadFile,
    ) -> Result<(String, Vec<String>)> {
        let store = self.engine.store();
        let image = self.engine.images().resolve(digest(&wanted.image)?.as_str())?;
        let upper = store.begin_upper()?;
        file.unpack(&digest(&wanted.layer)?, upper.path(), Whiteouts::Overlay)?;
        let mounts = wanted.mounts.iter().map(mount_row).collect::<Result<_>>()?;
        let networking = NetworkingConfig { endpoints_config: wanted.networks.clone() };
        let request = (wanted.config.clone(), wanted.host_config.clone(), networking);
        let name = Some(crate::containers::names::check(&wanted.name)?.to_owned());
        let own = Own { mounts, upper: Some(upper) };
        let (container, answer) = self.engine.create_of(name, image, request, own)?;
        self.containers.push(container);
        Ok((answer.id, answer.warnings))
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let log = |what: &str, error: &dyn std::error::Error| {
            tracing::warn!(what, error = insula_base::chain(error), "left of a bundle that was not unpacked");
        };
        for container in &self.containers {
            self.engine.discard(container);
        }
        for name in &self.volumes {
            if let Err(error) = self.engine.volumes().discard(name) {
                log(name, &error);
            }
        }
        for id in &self.networks {
            match self.engine.networks().remove(id) {
                Ok(network) => self.engine.publish_network(&network, "destroy", &[]),
                Err(error) => log(id, &error),
            }
        }
        let images = self.engine.store().images();
        for id in &self.images {
            if let Err(error) = images.remove(id, Force::Yes, &|_| true) {
                log(id, &error);
            }
        }
    }
}
