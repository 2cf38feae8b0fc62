//! Where a container's files and output are, for those who read them.

use std::path::PathBuf;

use insula_spec::plan::LogPlan;

use super::row::Row;
use super::{ContainerFiles, ContainerMount, LogSource};
use crate::logs::LogFormat;
use crate::{Engine, Result, plan};

impl Engine {
    /// Where the container's output is.
    pub fn log_source(&self, reference: &str) -> Result<LogSource> {
        let container = self.find(reference)?;
        let row = container.row();
        let logs = self.store().container_dir(&row.id).logs();
        let log = plan::log::plan(&row.host.log_config, &logs, &plan::log::Subject::of(&row))?;
        let file = match plan::log::readable(&log) {
            Some(LogPlan::JsonFile { path, .. }) => Some((path.clone(), LogFormat::Json)),
            Some(LogPlan::Local { path, .. }) => Some((path.clone(), LogFormat::Local)),
            _ => None,
        };
        let mut progress = container.subscribe();
        let ended = Box::pin(async move {
            // It ends with the engine too.
            let _ = progress.wait_for(|progress| !progress.running).await;
        });
        Ok(LogSource { id: row.id.clone(), tty: row.config.tty, file, ended })
    }

    /// Where the root of a running container is: that of a process in it, or what its machine is shown.
    fn root_of(&self, row: &Row) -> Option<PathBuf> {
        let pid = row.pid()?;
        match self.sandbox(row).machine() {
            Some(machine) => Some(machine.root),
            None => Some(PathBuf::from(format!("/proc/{pid}/root"))),
        }
    }

    /// Where the container's files are.
    pub fn container_files(&self, reference: &str) -> Result<ContainerFiles> {
        let row = self.find(reference)?.row();
        let volumes = self.store().volumes_dir();
        let mounts = row.mounts.iter().map(|mount| ContainerMount {
            target: mount.target.clone(),
            source: mount.host_path(&volumes),
            readonly: mount.readonly,
        });
        Ok(ContainerFiles {
            id: row.id.clone(),
            layers: row.image.layers.clone(),
            points: self.store().points(),
            upper: self.store().attach_container_dir(&row.id)?.upper(),
            hidden: row.image.hidden.clone(),
            readonly: row.host.readonly_rootfs,
            root: self.root_of(&row),
            ids: self.ids_of(&row).map(|ids| (ids.first, ids.count)),
            mounts: mounts.collect(),
        })
    }
}
