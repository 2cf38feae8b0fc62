//! From a file to containers.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use insula_base::{ContainerId, Laps, NetworkId};
use insula_host::quota::obeyed;
use insula_models::{
    NetworkingConfig, Workload, WorkloadConflict, WorkloadContainer, WorkloadMade, WorkloadMount,
    WorkloadRestored, WorkloadVolume,
};
use insula_store::Transaction;
use insula_store::layers::Whiteouts;
use insula_store::workload::WorkloadFile;
use insula_sys::failpoint::failpoint;

use super::unfinished::Unfinished;
use super::{Changes, digest, joined, read};
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
        let mut made = Made::begin(self)?;
        made.images(&workload, file)?;
        failpoint("unbundle.images");
        for network in &workload.networks {
            made.network(network)?;
        }
        failpoint("unbundle.networks");
        for volume in &workload.volumes {
            made.volume(volume, file)?;
        }
        failpoint("unbundle.volumes");
        let mut answer = WorkloadRestored::default();
        for container in in_order(&workload.containers) {
            let (id, warnings) = made.container(container, file)?;
            let (name, ran) = (container.name.clone(), container.running);
            answer.containers.push(WorkloadMade { id, name, ran });
            answer.warnings.extend(warnings);
            answer.warnings.extend(warnings_of(container));
        }
        failpoint("unbundle.containers");
        made.keep()?;
        failpoint("unbundle.made");
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
        source: SourceRow::Volume {
            name: mount.volume.clone(),
            anonymous: mount.anonymous,
            copy: false,
            folder: None,
        },
        readonly: mount.read_only,
        mode: mount.mode.clone(),
    })
}

/// What was made so far. Dropped, it is undone.
struct Made<'a> {
    engine: &'a Engine,
    unfinished: Unfinished,
    kept: bool,
}

impl<'a> Made<'a> {
    fn begin(engine: &'a Engine) -> Result<Self> {
        Ok(Self { engine, unfinished: Unfinished::begin(engine)?, kept: false })
    }

    fn images(&mut self, workload: &Workload, file: &WorkloadFile) -> Result<()> {
        let store = self.engine.store();
        let here: BTreeSet<_> =
            store.images().list()?.into_iter().map(|image| image.id.to_string()).collect();
        let wanted: BTreeSet<_> = workload.containers.iter().map(|container| &container.image).collect();
        let new: Vec<String> = wanted.into_iter().filter(|id| !here.contains(*id)).cloned().collect();
        self.unfinished.note(self.engine, |made| made.images = new)?;
        let loaded = store.load_workload_images(file)?;
        let other = loaded.iter().map(|image| image.id.to_string());
        let other: Vec<String> =
            other.filter(|id| !here.contains(id) && !self.unfinished.images.contains(id)).collect();
        if !other.is_empty() {
            // Images that no container of it has: nobody needs them, and they go if it fails.
            self.unfinished.note(self.engine, |made| made.images.extend(other))?;
        }
        Ok(())
    }

    fn keep(mut self) -> Result<()> {
        self.unfinished.finish(self.engine)?;
        self.kept = true;
        Ok(())
    }

    /// Unless there is one that will do.
    fn network(&mut self, wanted: &insula_models::NetworkCreateRequest) -> Result<()> {
        let networks = self.engine.networks();
        if networks.list().iter().any(|network| network.name == wanted.name) {
            return Ok(());
        }
        let id = NetworkId::random();
        self.unfinished.note(self.engine, |made| made.networks.push(id.to_string()))?;
        let network = networks.create_as(id, &crate::networks::wanted(wanted.clone())?)?;
        self.engine.publish_network(&network, "create", &[]);
        Ok(())
    }

    fn volume(&mut self, wanted: &WorkloadVolume, file: &WorkloadFile) -> Result<()> {
        let archive = digest(&wanted.archive)?;
        let fill = |folder: &Path| Ok(file.unpack(&archive, folder, Whiteouts::Ordinary)?);
        let (engine, mut unfinished) = (self.engine, self.unfinished.clone());
        let note = |tx: &Transaction<'_>| {
            unfinished.note_within(tx, |made| made.volumes.push(wanted.name.clone()))?;
            // A volume of this name is ours from here on, and not before.
            self.unfinished = unfinished;
            Ok(())
        };
        engine.volumes().restore(&wanted.name, wanted.labels.clone(), fill, note)
    }

    fn container(
        &mut self,
        wanted: &WorkloadContainer,
        file: &WorkloadFile,
    ) -> Result<(String, Vec<String>)> {
        let store = self.engine.store();
        let image = self.engine.images().resolve(digest(&wanted.image)?.as_str())?;
        let size = self.engine.storage_size(&wanted.host_config, &image.layer_paths())?;
        let upper = store.begin_upper(size)?;
        let layer = digest(&wanted.layer)?;
        obeyed(|| file.unpack(&layer, upper.path(), Whiteouts::Overlay))?;
        let mounts = wanted.mounts.iter().map(mount_row).collect::<Result<_>>()?;
        let networking = NetworkingConfig { endpoints_config: wanted.networks.clone() };
        let request = (wanted.config.clone(), wanted.host_config.clone(), networking);
        let name = Some(crate::containers::names::check(&wanted.name)?.to_owned());
        let id = ContainerId::random();
        self.unfinished.note(self.engine, |made| made.containers.push(id.to_string()))?;
        let own = Own { id: Some(id), mounts, upper: Some(upper) };
        let (_, answer) = self.engine.create_of(name, image, request, own, &mut Laps::begin())?;
        Ok((answer.id, answer.warnings))
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.engine.take_back_all(&self.unfinished);
        }
    }
}
