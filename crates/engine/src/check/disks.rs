//! The disks of writable layers that have a size of their own: can they be mounted, and has the kernel met errors?

use super::{Finding, Report};
use crate::{Engine, Error, Result, blocking};

pub(super) async fn inspect(engine: &Engine, report: &mut Report) -> Result<()> {
    for container in engine.0.containers.all() {
        report.go_on()?;
        if !engine.store().container_dir(&container.id).has_disk() {
            continue;
        }
        report.looked_at("disk");
        let problem = match engine.writable_dir(&container.id).await {
            Err(error) => insula_base::chain(&error),
            Ok(_) => match engine.disk_trouble(&container.id) {
                Some(trouble) => trouble,
                None => continue,
            },
        };
        if engine.0.containers.get(&container.id).is_none() {
            // Removed meanwhile.
            continue;
        }
        let finding = Finding {
            kind: "disk",
            subject: container.id.to_string(),
            problem,
            used_by: vec![container.row().name.clone()],
        };
        let repair = async {
            let _turn = container.turn.lock().await;
            if container.row().phase.live() {
                return Err(Error::Conflict("the container is running: stop it first".to_owned()));
            }
            let (store, id) = (engine.0.store.clone(), container.id.clone());
            blocking(move || {
                store.repair_container_disk(&id)?;
                store.attach_container_dir(&id)?;
                Ok("repaired by e2fsck".to_owned())
            })
            .await
        };
        report.found(finding, repair).await?;
    }
    Ok(())
}
