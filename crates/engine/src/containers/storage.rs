//! How much a container may write: `HostConfig.StorageOpt`.

use std::path::PathBuf;

use insula_base::{ContainerId, format_decimal, parse_bytes};
use insula_host::disk;
use insula_models::HostConfig;
use insula_store::{ContainerDir, LayerSize, Writer};

use crate::{Engine, Error, Result, blocking, plan};

/// The one option that there is, by Docker's name.
const SIZE: &str = "size";

/// What the daemon's configuration says of storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageOptions {
    /// Size of writable layers for which none is asked, as `HostConfig.StorageOpt` has it.
    pub size: Option<String>,
    /// Files that are the same in several layers are stored once.
    pub share_files: bool,
    /// The kernel verifies the files of layers, where it can (fs-verity).
    pub verity: bool,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self { size: None, share_files: true, verity: false }
    }
}

/// Bytes that the writable layer may take; `None` for all that there are, which `0` says too.
pub(crate) fn size(host: &HostConfig) -> Result<Option<u64>> {
    let mut size = None;
    for (name, text) in &host.storage_opt {
        if !name.eq_ignore_ascii_case(SIZE) {
            return Err(Error::InvalidArgument(format!(
                "Unknown option {name}: of a writable layer the size can be said (size=10g)"
            )));
        }
        size = parse(text)?;
    }
    Ok(size)
}

/// The same of a text, as `insulad --storage-opt size=…` has it too.
pub fn parse(text: &str) -> Result<Option<u64>> {
    let bytes = parse_bytes(text)
        .map_err(|error| Error::InvalidArgument(format!("invalid size of the writable layer: {error}")))?;
    match bytes {
        0 => Ok(None),
        bytes if bytes < disk::SMALLEST => Err(Error::InvalidArgument(format!(
            "invalid size of the writable layer: {text} is too small, at least {} are needed (size=4m)",
            format_decimal(disk::SMALLEST)
        ))),
        bytes => Ok(Some(bytes)),
    }
}

impl Engine {
    /// What the daemon's configuration says for those that do not say it.
    pub(super) fn default_storage(&self, host: &mut HostConfig) {
        if let Some(text) = &self.0.config.storage.size
            && !host.storage_opt.keys().any(|name| name.eq_ignore_ascii_case(SIZE))
        {
            host.storage_opt.insert(SIZE.to_owned(), text.clone());
        }
    }

    /// The size of the writable layer that a container with this configuration gets here.
    pub(crate) fn storage_size(&self, host: &HostConfig, layers: &[PathBuf]) -> Result<Option<LayerSize>> {
        let mut host = host.clone();
        self.default_storage(&mut host);
        // One with privileges in a machine may get another wall later.
        let own =
            plan::may_have_own_ids(&host) && !host.privileged && self.0.idmaps.refused(layers).is_none();
        let writer = if own { Writer::OwnIds } else { Writer::HostIds };
        Ok(size(&host)?.map(|bytes| LayerSize { bytes, writer }))
    }

    /// A container's folders, the writable layer there to be used.
    pub(crate) async fn writable_dir(&self, id: &ContainerId) -> Result<ContainerDir> {
        let folder = self.store().container_dir(id);
        if !folder.has_disk() {
            return Ok(folder);
        }
        let (engine, id) = (self.clone(), id.clone());
        blocking(move || Ok(engine.store().attach_container_dir(&id)?)).await
    }

    /// What is wrong with the disk of a container's writable layer, which the kernel alone notices.
    pub(crate) fn disk_trouble(&self, id: &ContainerId) -> Option<String> {
        let errors = self.store().container_disk_errors(id);
        let errors = errors.inspect_err(|error| {
            let error = error as &dyn std::error::Error;
            tracing::warn!(container = id.short(), error, "look for errors of its disk");
        });
        let errors = errors.ok().filter(|errors| *errors > 0)?;
        let many = if errors == 1 { "an error".to_owned() } else { format!("{errors} errors") };
        Some(format!(
            "the disk of the writable layer has met {many}: what was written last may be lost, and nothing more may be \
             taken; stop the container and run 'insula system check --repair'"
        ))
    }

    /// The same of all containers, with their names.
    pub(crate) fn disk_troubles(&self) -> Vec<String> {
        let rows = self.0.containers.all().into_iter().map(|container| container.row());
        let sized = rows.filter(|row| !row.host.storage_opt.is_empty());
        sized
            .filter_map(|row| {
                let trouble = self.disk_trouble(&row.id)?;
                Some(format!("Container {}: {trouble}", row.name))
            })
            .collect()
    }

    /// Unmounts the disks of containers that do not run: for the very end.
    pub(crate) async fn detach_disks(&self) {
        for container in self.0.containers.all() {
            let _turn = container.turn.lock().await;
            if container.row().phase.live() || !self.store().container_dir(&container.id).has_disk() {
                continue;
            }
            let (engine, id) = (self.clone(), container.id.clone());
            let detached = blocking(move || Ok(engine.store().detach_container_dir(&id)?)).await;
            if let Err(error) = detached {
                let error = insula_base::chain(&error);
                tracing::warn!(container = container.id.short(), error, "unmount its disk");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> Result<Option<u64>> {
        let storage_opt = [(name.to_owned(), value.to_owned())].into();
        size(&HostConfig { storage_opt, ..HostConfig::default() })
    }

    #[test]
    fn sizes_are_as_docker_reads_them() {
        assert_eq!(size(&HostConfig::default()).unwrap(), None);
        assert_eq!(of("size", "20m").unwrap(), Some(20 << 20));
        assert_eq!(of("Size", "1.5G").unwrap(), Some(3 << 29));
        assert_eq!(of("size", "0").unwrap(), None);
        for (name, value) in [("size", ""), ("size", "-1"), ("size", "4194303"), ("size", "x"), ("siz", "1g")]
        {
            assert!(matches!(of(name, value), Err(Error::InvalidArgument(_))), "{name}={value}");
        }
    }
}
