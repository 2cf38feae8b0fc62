//! Create: a request becomes a row, folders and volumes.

use insula_sys::failpoint::failpoint;
use std::sync::Arc;

use insula_base::{ContainerId, Kind, Kinded, Lap, Laps};
use insula_models::{
    ContainerConfig, ContainerCreateRequest, ContainerCreateResponse, HostConfig, NetworkingConfig,
    VolumeCreateRequest,
};
use insula_network::Mode;
use insula_registry::Wanted;
use insula_store::{Collection, Image, ImageKind, StagedUpper};
use jiff::Timestamp;

use super::container::Container;
use super::row::{IdRange, ImageRow, MountRow, Phase, Row, SourceRow};
use super::{check, copyup, merge, mounts, names, ports};
use crate::{Engine, Error, Result, blocking, plan, sites};

/// Ids of the host from which containers get theirs: above those that systemd and shadow hand out.
pub(crate) const ID_POOL: &str = "ids";
const IDS_FIRST: u64 = 1_879_048_192;
const IDS_COUNT: u32 = 65_536;
/// How many ranges there are below 2^31, past which file systems and tools stumble.
pub(crate) const IDS_RANGES: u64 = ((1 << 31) - IDS_FIRST) / IDS_COUNT as u64;

/// What a new container has that no request asks for.
#[derive(Debug, Default)]
pub(crate) struct Own {
    /// One that was written down before.
    pub(crate) id: Option<ContainerId>,
    /// In the place of those asked for at the same target.
    pub(crate) mounts: Vec<MountRow>,
    /// What it has changed of its image already.
    pub(crate) upper: Option<StagedUpper>,
}

impl Engine {
    /// `platform` as in `linux/amd64`. Says also what the time went into.
    pub async fn create_container(
        &self,
        name: Option<String>,
        platform: Option<String>,
        request: ContainerCreateRequest,
    ) -> Result<(ContainerCreateResponse, Vec<Lap>)> {
        let engine = self.clone();
        let created = move || {
            let mut laps = Laps::begin();
            let answer = engine.create(name, platform, request, &mut laps)?;
            Ok((answer, laps.done()))
        };
        // A commit and a few folders; what copies an image's content is for a thread that may block.
        let created = blocking(created).await?;
        if self.0.spares.promises_more() {
            self.0.refill();
        }
        Ok(created)
    }

    fn create(
        &self,
        name: Option<String>,
        platform: Option<String>,
        request: ContainerCreateRequest,
        laps: &mut Laps,
    ) -> Result<ContainerCreateResponse> {
        let (config, host, networking) = request.into_parts();
        let name = name.filter(|name| !name.is_empty());
        let name = name.as_deref().map(names::check).transpose()?.map(str::to_owned);
        let reference = config.image.clone();
        if reference.is_empty() {
            return Err(Error::InvalidArgument("no image was specified".to_owned()));
        }
        // Before anybody is told that the image is missing, and goes to pull it.
        let platform = platform.filter(|platform| !platform.is_empty());
        let platform = platform.as_deref().map(platform_of).transpose()?;
        let image = self.images().resolve(&reference).map_err(|error| no_image(error, &reference))?;
        if let ImageKind::Artifact { kind } = &image.kind {
            return Err(Error::InvalidArgument(format!(
                "{reference} is an artifact of type {kind:?}, not an image: it has no programs"
            )));
        }
        check_platform(platform.as_ref(), &image)?;
        laps.lap("image");
        self.create_of(name, image, (config, host, networking), Own::default(), laps)
            .map(|(_, answer)| answer)
            .map_err(missing_beside_image)
    }

    /// A container for a step of a build: of layers that are no image, which it holds itself.
    pub(crate) fn create_for_build(
        &self,
        image: Image,
        config: ContainerConfig,
        host: HostConfig,
        mounts: Vec<MountRow>,
    ) -> Result<ContainerCreateResponse> {
        let own = Own { mounts, ..Own::default() };
        let request = (config, host, NetworkingConfig::default());
        self.create_of(None, image, request, own, &mut Laps::begin()).map(|(_, answer)| answer)
    }

    /// A container with what it has from elsewhere.
    pub(crate) fn create_of(
        &self,
        name: Option<String>,
        image: Image,
        (config, mut host, networking): (ContainerConfig, HostConfig, NetworkingConfig),
        own: Own,
        laps: &mut Laps,
    ) -> Result<(Arc<Container>, ContainerCreateResponse)> {
        self.default_storage(&mut host);
        let reference = config.image.clone();
        let policy = &self.0.config.policy;
        policy.check(&host, matches!(image.kind, ImageKind::Host { .. }))?;
        let mut warnings = check::check(&config, &host)?;
        // Before the image's labels come in: an image takes no names.
        let sites = sites::wished(&config.labels)?;
        let mut config = merge::merge(config, &image.config.config)?;
        check::check_health_action(&config, &host)?;
        check::check_rate(&host, &mut warnings)?;
        let ports = ports::requests(&config, &host)?;
        plan::complete(&mut host);
        self.check_joined(&host)?;
        self.check_tenant(&host)?;
        self.0.machines.check_sockets(crate::machines::wants_sockets(&host))?;
        let sites = self.site_rows(sites, &config, &host)?;
        let endpoints = self.endpoints(networking.endpoints_config, &host)?;
        let joined: Vec<&str> = endpoints.keys().map(String::as_str).collect();
        warnings.extend(self.networks().foresee(&joined, &ports)?);
        let mut mounts = mounts::collect(&config, &host, &|name| Ok(self.find(name)?.row().mounts.clone()))?;
        self.find_folders(&mut mounts)?;
        policy.check_mounts(&mut mounts)?;
        mounts::put_over(&mut mounts, own.mounts);
        // Names are in the row before anything has them.
        for mount in &mut mounts {
            if let SourceRow::Volume { name, .. } = &mut mount.source
                && name.is_empty()
            {
                *name = insula_base::random_hex(32);
            }
        }
        let id = own.id.unwrap_or_else(|| self.0.spares.promise());
        let named = self.fill_hostname(&id, &mut config, &host);
        named.inspect_err(|_| self.0.spares.take_back(&id))?;
        let row = Row {
            version: Row::version(),
            name: name.unwrap_or_default(),
            created: Timestamp::now(),
            image: image_row(&image, reference),
            endpoints,
            endpoints_complete: true,
            mounts,
            ids: None,
            phase: Phase::Created,
            started: None,
            restarts: 0,
            stopped: false,
            failure: None,
            boot: String::new(),
            again: false,
            held: false,
            with_volumes: false,
            sites,
            health: None,
            config,
            host,
            id,
        };
        laps.lap("request");
        self.finish_create(row, &image, own.upper.as_ref(), warnings, laps)
    }

    /// From here on something is made; what fails takes it back.
    fn finish_create(
        &self,
        row: Row,
        image: &Image,
        upper: Option<&StagedUpper>,
        mut warnings: Vec<String>,
        laps: &mut Laps,
    ) -> Result<(Arc<Container>, ContainerCreateResponse)> {
        let own_ids = plan::may_have_own_ids(&row.host);
        let mut row = row;
        let idmaps = &self.0.idmaps;
        let refused = own_ids.then(|| idmaps.refused(&row.image.layers)).flatten();
        if refused.is_some() {
            // What is in effect is what inspection shows.
            "host".clone_into(&mut row.host.userns_mode);
        }
        let id = row.id.clone();
        let inserted = self.insert(row, image, own_ids && refused.is_none());
        let row = inserted.inspect_err(|_| self.0.spares.take_back(&id))?;
        warnings.extend(refused.and_then(|why| idmaps.once(why)));
        let container = Arc::new(Container::new(row));
        self.0.containers.insert(container.clone());
        failpoint("create.row");
        laps.lap("row");
        if let Err(error) = self.make_parts(&container, image, upper) {
            self.discard(&container);
            return Err(error);
        }
        warnings.extend(self.unmapped_mounts(&container.row()));
        self.publish(&container.row(), "create", &[]);
        laps.lap("folders");
        Ok((container, ContainerCreateResponse { id: id.to_string(), warnings }))
    }

    /// The row with its ids, its hold on the image and a name if it has none, in one commit.
    fn insert(&self, mut row: Row, image: &Image, ids: bool) -> Result<Row> {
        let taken = |error| name_taken(error, &row.name);
        let owner = row.id.to_string();
        let inserted = self.store().state().transaction(|tx| {
            let mut row = row.clone();
            if row.name.is_empty() {
                // Here nobody else chooses. A state that cannot be read says so to the row.
                let records = tx.records(Collection::Containers);
                row.name = names::random(|name| !matches!(records.by_name(name), Ok(None)));
            }
            if ids {
                let number = tx.allocations().allocate(ID_POOL, 0..IDS_RANGES, None, &owner)?;
                row.ids = Some(range(number));
            }
            let record = row.record()?;
            tx.records(Collection::Containers).insert(&record)?;
            match row.image.is_of_build() {
                true => self.store().images().hold(tx, &image.layers, &owner)?,
                false => self.store().images().use_image(tx, &image.id, &owner)?,
            }
            Ok::<_, Error>(row)
        });
        row = inserted.map_err(taken)?;
        Ok(row)
    }

    /// Mounts whose owners a container with ids of its own cannot see.
    fn unmapped_mounts(&self, row: &Row) -> Vec<String> {
        if row.host.userns_mode == "host" {
            return Vec::new();
        }
        let volumes = self.store().volumes_dir();
        let unmapped = row.mounts.iter().filter(|mount| {
            let source = mount.host_path(&volumes);
            source.is_some_and(|path| !plan::owned_by_the_kernel(&path) && !self.0.idmaps.maps(&path))
        });
        unmapped
            .map(|mount| {
                format!(
                    "The file system of what is mounted at {} cannot map ids: its files belong to nobody in the \
                     container (with --userns=host ids are the host's)",
                    mount.target
                )
            })
            .collect()
    }

    /// Volumes with what the image puts into them, then the folders: one that has its folders is complete.
    fn make_parts(&self, container: &Container, image: &Image, upper: Option<&StagedUpper>) -> Result<()> {
        let row = container.row();
        for mount in &row.mounts {
            self.make_mount(mount, &row.host, image)?;
        }
        failpoint("create.volumes");
        match upper {
            Some(upper) => self.store().restore_container_dir(&container.id, upper)?,
            None => {
                let size = self.storage_size(&row.host, &row.image.layers)?;
                self.store().create_container_dir(&container.id, size)?
            }
        };
        failpoint("create.folders");
        Ok(())
    }

    /// Whether all of it was made, or its create was cut off.
    pub(crate) fn is_complete(&self, row: &Row) -> bool {
        self.store().container_dir(&row.id).is_complete()
    }

    /// Volumes that stand for folders of the host.
    fn find_folders(&self, mounts: &mut [MountRow]) -> Result<()> {
        for mount in mounts {
            if let SourceRow::Volume { name, copy, folder, .. } = &mut mount.source
                && let Some(found) = self.volumes().folder(name)?
            {
                // It is not the engine's to fill.
                (*copy, *folder) = (false, Some(found));
            }
        }
        Ok(())
    }

    /// Makes the source of one mount.
    fn make_mount(&self, mount: &MountRow, host: &HostConfig, image: &Image) -> Result<()> {
        match &mount.source {
            SourceRow::Bind { path, propagation, .. } => {
                mounts::make_source(path)?;
                mounts::check_propagation(path, propagation)
            }
            SourceRow::Tmpfs { .. } | SourceRow::Own { .. } | SourceRow::Merged { .. } => Ok(()),
            SourceRow::Volume { name, folder: Some(folder), .. } => match folder.try_exists() {
                Ok(true) => Ok(()),
                Ok(false) => Err(Error::InvalidArgument(format!(
                    "failed to mount local volume {name}: {}: no such file or directory",
                    folder.display()
                ))),
                Err(error) => Err(Error::io("stat", folder, error)),
            },
            SourceRow::Volume { name, copy, anonymous, folder: None } => {
                let labels = mounts::volume_labels(host, &mount.target);
                let volume = if *anonymous && self.volumes().inspect(name).is_err() {
                    self.volumes().create_anonymous(name, labels)?
                } else {
                    let request =
                        VolumeCreateRequest { name: name.clone(), labels, ..VolumeCreateRequest::default() };
                    self.volumes().create(request)?
                };
                if *copy {
                    // With what the engine mounts on: what is mounted in the volume needs places there.
                    let layers = plan::layers(&image.layer_paths(), &self.store().points());
                    copyup::fill(&layers, image.hidden(), &mount.target, volume.mountpoint.as_ref())?;
                }
                Ok(())
            }
        }
    }

    /// Undoes a create that failed; the first error is the one to report.
    pub(crate) fn discard(&self, container: &Arc<Container>) {
        self.0.containers.remove(container);
        self.0.spares.release(&container.id);
        let owner = container.id.to_string();
        let undone =
            self.forget(&owner).and_then(|()| Ok(self.store().remove_container_dir(&container.id)?));
        if let Err(error) = undone {
            tracing::warn!(container = owner, error = insula_base::chain(&error), "undo a create");
        }
        for (name, anonymous) in container.row().volumes() {
            if anonymous && !name.is_empty() {
                self.drop_volume(name);
            }
        }
    }

    /// Containers whose namespaces are to be shared have to exist.
    fn check_joined(&self, host: &HostConfig) -> Result<()> {
        for mode in [&host.network_mode, &host.pid_mode] {
            if let Some(reference) = mode.strip_prefix("container:") {
                self.find(reference)?;
            }
        }
        if let Mode::Network(name) = Mode::parse(&host.network_mode) {
            self.networks().get(&name)?;
        }
        Ok(())
    }

    fn fill_hostname(&self, id: &ContainerId, config: &mut ContainerConfig, host: &HostConfig) -> Result<()> {
        if config.hostname.is_empty() {
            config.hostname = match host.network_mode.strip_prefix("container:") {
                Some(reference) => self.find(reference)?.row().config.hostname.clone(),
                None if host.network_mode == "host" || host.uts_mode == "host" => {
                    rustix::system::uname().nodename().to_string_lossy().into_owned()
                }
                None => id.short().to_owned(),
            };
        }
        Ok(())
    }
}

fn image_row(image: &Image, reference: String) -> ImageRow {
    ImageRow { id: image.id.clone(), reference, layers: image.layer_paths(), hidden: image.hidden().to_vec() }
}

/// The ids of the range with this number.
pub(crate) fn range(number: u64) -> IdRange {
    // Ranges end below 2^31.
    IdRange { first: (IDS_FIRST + number * u64::from(IDS_COUNT)) as u32, count: IDS_COUNT }
}

fn name_taken(error: Error, name: &str) -> Error {
    match error {
        Error::Store(insula_store::Error::NameTaken { owner, .. }) => Error::Conflict(format!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to \
             remove (or rename) that container to be able to reuse that name."
        )),
        error => error,
    }
}

pub(super) fn rename_taken(error: insula_store::Error, name: &str) -> Error {
    name_taken(error.into(), name)
}

/// Docker names the tag that it looked for, and says first what could not be a name at all.
fn no_image(error: Error, reference: &str) -> Error {
    use insula_spec::reference::Reference;
    match (error, Reference::parse(reference)) {
        (Error::Store(insula_store::Error::NoImage(_)), Ok(name)) => {
            Error::NotFound(format!("No such image: {}", name.familiar()))
        }
        (Error::Store(insula_store::Error::NoImage(_)), Err(wrong)) => {
            Error::Store(insula_store::Error::Reference(wrong))
        }
        (error, _) => error,
    }
}

/// Clients take "not found" for a missing image, and pull it: a network or a container that is not there is a
/// mistake of the request.
fn missing_beside_image(error: Error) -> Error {
    match &error {
        Error::Store(insula_store::Error::NoImage(_)) => error,
        other if other.kind() == Kind::NotFound => Error::InvalidArgument(other.to_string()),
        _ => error,
    }
}

fn platform_of(text: &str) -> Result<Wanted> {
    Wanted::parse(text).map_err(|error| Error::InvalidArgument(error.to_string()))
}

fn check_platform(platform: Option<&Wanted>, image: &Image) -> Result<()> {
    let Some(platform) = platform else { return Ok(()) };
    let config = &image.config;
    if platform.accepts(&config.os, &config.architecture, config.variant.as_deref()) {
        return Ok(());
    }
    Err(Error::NotFound(format!(
        "image with reference {} was found but does not match the specified platform: wanted {platform}, \
         actual: {}/{}",
        image.id, image.config.os, image.config.architecture
    )))
}
