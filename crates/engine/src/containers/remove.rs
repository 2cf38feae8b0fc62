//! Remove: first the tombstone, then the parts, then the row, then the bytes.

use insula_sys::failpoint::failpoint;
use std::sync::Arc;

use insula_base::{Kind, Kinded};
use insula_models::ContainersPruneResponse;
use insula_store::Collection;

use super::container::Container;
use super::create::ID_POOL;
use super::row::{Phase, Row};
use super::{RemoveRequest, list};
use crate::events::EventType;
use crate::filters::{Filters, check_names};
use crate::monitor::end_politely;
use crate::{Engine, Error, Result, blocking, volumes};

impl Engine {
    pub async fn remove_container(&self, reference: &str, request: RemoveRequest) -> Result<()> {
        let container = self.find(reference)?;
        if request.link {
            return Err(Error::Unsupported("links are not available in this version".to_owned()));
        }
        if request.force {
            container.cancel_restart();
            self.kill_by_force(&container).await?;
        }
        let _turn = container.turn.lock().await;
        if request.force {
            // Whoever had the turn may have started it again.
            container.cancel_restart();
            self.kill_by_force(&container).await?;
        }
        if self.0.containers.get(&container.id).is_none() {
            // It was removed while this waited; `--rm` may be faster.
            return Ok(());
        }
        if !container.at_rest() {
            return Err(Error::Conflict(format!(
                "cannot remove container \"/{}\": container is {}: stop the container before removing or force \
                 remove",
                container.row().name,
                container.status()
            )));
        }
        self.remove_now(&container, request.volumes).await
    }

    /// For who has the turn of a container that does not run. On a full disk it takes what is kept for that.
    pub(super) async fn remove_now(&self, container: &Arc<Container>, volumes: bool) -> Result<()> {
        container.put_down().await;
        let full = match self.remove_once(container, volumes).await {
            Err(error) if error.kind() == Kind::Unavailable => error,
            done => return done,
        };
        if !self.store().spend_reserve() {
            return Err(full);
        }
        let removed = self.remove_once(container, volumes).await;
        self.store().refill_reserve();
        removed
    }

    /// Every step may be repeated.
    async fn remove_once(&self, container: &Arc<Container>, volumes: bool) -> Result<()> {
        if self.0.containers.get(&container.id).is_none() {
            return Ok(());
        }
        let row = container.row();
        let anonymous: Vec<String> = row
            .volumes()
            .filter(|(_, anonymous)| volumes && *anonymous)
            .map(|(name, _)| name.to_owned())
            .collect();
        let at_once = anonymous.is_empty();
        let (engine, target, before) = (self.clone(), container.clone(), row.clone());
        // The firewall and the disk hold it up: away from the threads that serve, and once if nothing comes between.
        blocking(move || {
            engine.entomb(&target, &before, volumes)?;
            if at_once { engine.forget_removed(&target) } else { Ok(()) }
        })
        .await?;
        if !at_once {
            // Before the row: a crash in between leaves who goes on.
            for name in &anonymous {
                self.drop_volume_of(&container.id, name).await;
            }
            let (engine, target) = (self.clone(), container.clone());
            blocking(move || engine.forget_removed(&target)).await?;
        }
        failpoint("remove.row");
        self.0.containers.remove(container);
        // If it has never run.
        self.0.spares.release(&container.id);
        self.0.execs.retain(|_, of| *of != container.id);
        container.state().attachments.clear();
        self.publish(&row, "destroy", &[]);
        container.tell(|progress| progress.removed = true);
        let auto_remove = row.host.auto_remove;
        let (engine, container) = (self.clone(), container.clone());
        let bytes = async move {
            let sandbox = engine.sandbox(&row);
            engine.freed(&container, &sandbox).await;
            blocking(move || {
                sandbox.remove()?;
                engine.store().remove_container_dir(&row.id)?;
                failpoint("remove.folders");
                Ok(())
            })
            .await
        };
        if auto_remove {
            // Nobody waits for it; what a crash leaves is swept at the next start.
            self.remove_behind(bytes).await;
            return Ok(());
        }
        bytes.await
    }

    /// Says that it goes, and takes its addresses.
    fn entomb(&self, container: &Container, row: &Row, volumes: bool) -> Result<()> {
        // One that has just ended and is to go needs no tombstone: its end says as much.
        if !row.host.auto_remove {
            container.change(self.store(), |row| {
                row.phase = Phase::Removing;
                row.with_volumes = volumes;
            })?;
        }
        failpoint("remove.tombstone");
        self.publish_connections(row, "disconnect")?;
        self.networks().release(&container.id)?;
        failpoint("remove.released");
        Ok(())
    }

    /// Goes on with a removal that a former daemon began.
    pub(crate) async fn finish_removal(&self, container: &Arc<Container>) -> Result<()> {
        let _turn = container.turn.lock().await;
        let row = container.row();
        let sandbox = self.sandbox(&row);
        if sandbox.abandoned() {
            // Nobody else knows of its monitor any more.
            end_politely(row.id.short(), &sandbox).await;
        }
        self.remove_now(container, row.host.auto_remove || row.with_volumes).await
    }

    fn forget_removed(&self, container: &Container) -> Result<()> {
        failpoint("remove.volumes");
        self.forget(container.id.as_str())
    }

    /// Row, ids and the hold on the image.
    pub(super) fn forget(&self, owner: &str) -> Result<()> {
        Ok(self.store().images().release_image(owner, |tx| {
            tx.records(Collection::Containers).remove(owner)?;
            tx.allocations().release_owner(Some(ID_POOL), owner)?;
            Ok(())
        })?)
    }

    /// Removes an anonymous volume of a container that goes, unless another one uses it.
    async fn drop_volume_of(&self, id: &insula_base::ContainerId, name: &str) {
        let removed = match self.volume_users() {
            Ok(mut users) => {
                if let Some(users) = users.get_mut(name) {
                    users.retain(|user| user != id.as_str());
                }
                users.retain(|_, users| !users.is_empty());
                self.volumes().remove(name, true, &users).await
            }
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) | Err(Error::Conflict(_)) => {}
            Err(error) => tracing::warn!(volume = name, error = insula_base::chain(&error), "not removed"),
        }
    }

    /// Removes an anonymous volume that nobody else uses.
    pub(super) fn drop_volume(&self, name: &str) {
        let (engine, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            let removed = match engine.volume_users() {
                Ok(users) => engine.volumes().remove(&name, true, &users).await,
                Err(error) => Err(error),
            };
            match removed {
                Ok(()) | Err(Error::Conflict(_)) => {}
                Err(error) => {
                    tracing::warn!(volume = name, error = insula_base::chain(&error), "not removed")
                }
            }
        });
    }

    /// Which containers use which volume.
    pub fn volume_users(&self) -> Result<volumes::Users> {
        let mut users = volumes::Users::new();
        for container in self.0.containers.all() {
            for (name, _) in container.row().volumes() {
                users.entry(name.to_owned()).or_default().push(container.id.to_string());
            }
        }
        Ok(users)
    }

    pub async fn prune_containers(&self, filters: Filters) -> Result<ContainersPruneResponse> {
        check_names(&filters, &["until", "label", "label!"])?;
        let mut answer = ContainersPruneResponse::default();
        for container in self.0.containers.all() {
            if !prunable(&container.row(), &filters)? {
                continue;
            }
            let _turn = container.turn.lock().await;
            if !container.at_rest() {
                continue;
            }
            // One whose disk is broken can be removed all the same.
            let size = self.sizes(&container.row()).await.map_or(0, |(own, _)| own.unsigned_abs());
            self.remove_now(&container, false).await?;
            answer.space_reclaimed += size;
            answer.containers_deleted.push(container.id.to_string());
        }
        self.events().pruned(EventType::Container, answer.space_reclaimed);
        Ok(answer)
    }
}

fn prunable(row: &Row, filters: &Filters) -> Result<bool> {
    let values = |name: &str| filters.get(name).map_or(&[][..], Vec::as_slice);
    for until in values("until") {
        if row.created >= crate::filters::parse_moment(until)? {
            return Ok(false);
        }
    }
    let labels = &row.config.labels;
    let resting = matches!(row.phase, Phase::Created | Phase::Exited { .. });
    Ok(resting && list::labelled(labels, values("label")) && !list::any_label(labels, values("label!")))
}
