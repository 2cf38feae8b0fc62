//! What machines have on the disk and can make again: how much it is, and what of it goes when space is wanted.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use insula_base::chain;
use insula_models::{ImageDeleteItem, ImagesPruneResponse, MachineFile};

use super::{ISOLATION, Machines};
use crate::containers::row::Row;
use crate::events::EventType;
use crate::filters::Filters;
use crate::{Engine, Result, blocking};

impl Engine {
    /// Templates, and roots of containers that are mapped. Looks at files.
    pub(crate) fn machine_files(&self) -> Result<Vec<MachineFile>> {
        let machines = &self.0.machines;
        let used = self.0.containers.as_they_are(|rows| machines.mapped_by(rows));
        let template = |found: &super::templates::Found| MachineFile {
            r#type: "template".to_owned(),
            id: found.id.clone(),
            size: signed(found.size),
            in_use: !machines.stale(found),
        };
        let image = |(path, size): (PathBuf, u64)| MachineFile {
            r#type: "image".to_owned(),
            id: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            size: signed(size),
            in_use: used.contains(&path),
        };
        let templates = machines.templates.list()?;
        Ok(templates.iter().map(template).chain(machines.images.made()?.into_iter().map(image)).collect())
    }

    /// Removes images that no container uses, and what machines have mapped of such. With other filters than
    /// `dangling` that is what was made of images that are gone.
    pub async fn prune_images(&self, filters: Filters) -> Result<ImagesPruneResponse> {
        let chosen = filters.keys().any(|name| name != "dangling");
        let mut answer = self.images().prune(filters).await?;
        answer.space_reclaimed += self.free_mapped(!chosen).await;
        self.events().pruned(EventType::Image, answer.space_reclaimed);
        Ok(answer)
    }

    /// What machines have mapped of images that were `removed` goes with them.
    pub(crate) async fn forget_mapped(&self, removed: &[ImageDeleteItem]) {
        if removed.iter().any(|item| !item.deleted.is_empty()) {
            self.free_mapped(false).await;
        }
    }

    /// Removes roots whose layers are gone, and with `unused` those that no container could map; the bytes that they
    /// had on the disk. What cannot be removed is said in the log.
    async fn free_mapped(&self, unused: bool) -> u64 {
        let engine = self.clone();
        let freed = blocking(move || {
            let machines = &engine.0.machines;
            let freed = machines.images.rest();
            if !unused {
                return Ok(freed);
            }
            // No container comes before they have other names: one that begins then finds none.
            let taken = engine.0.containers.as_they_are(|rows| {
                let used = machines.mapped_by(rows);
                machines.images.take_unless(|path| used.contains(path))
            })?;
            Ok(freed + taken.remove()?)
        });
        freed.await.unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "what machines map of images was not removed");
            0
        })
    }
}

impl Machines {
    /// Images that these containers would map.
    fn mapped_by(&self, rows: &[Arc<Row>]) -> HashSet<PathBuf> {
        rows.iter()
            .filter(|row| row.host.isolation == ISOLATION && row.host.readonly_rootfs)
            .filter_map(|row| self.images.place(&row.image.layers).ok().flatten())
            .collect()
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
