//! The daemon's start: what the rows say meets what there is. What lives is taken over, what
//! ended is applied, what was lost is said, what belongs to nobody is freed.

use insula_sys::failpoint::failpoint;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use insula_base::ContainerId;
use insula_proto::Phase as TaskPhase;
use insula_store::Collection;
use tokio::task::JoinSet;

use crate::containers::container::Container;
use crate::containers::create::ID_POOL;
use crate::containers::leftovers;
use crate::containers::row::{Phase, Row};
use crate::monitor::{Reached, SandboxFolder, end_monitor, end_politely, reach};
use crate::{Engine, Error, Result};

impl Engine {
    /// Takes everything up again. Fails only where nothing could be served afterwards.
    pub(crate) async fn reconcile(&self) -> Result<()> {
        let mut ended = Vec::new();
        for record in self.store().state().records(Collection::Containers).all()? {
            match Row::read(&record) {
                Ok(row) => self.0.containers.insert(Arc::new(Container::new(row))),
                Err(error) => {
                    tracing::error!(container = record.id, error = insula_base::chain(&error), "left alone");
                }
            }
        }
        self.discard_unfinished();
        let containers = self.0.containers.all();
        let mut reached = self.reach_all(&containers).await;
        for container in &containers {
            if container.row().phase.live() && !self.take_up(container, reached.remove(&container.id)).await?
            {
                ended.push(container.clone());
            }
            self.let_go_again(container).await;
        }
        failpoint("daemon.adopted");
        let over = |container: &Container| ended.iter().any(|ended| ended.id == container.id);
        let live =
            containers.iter().filter(|c| c.row().running() && !over(c)).map(|c| c.id.clone()).collect();
        for warning in self.networks().reconcile(&live)? {
            tracing::warn!(warning, "network");
        }
        for container in containers.iter().filter(|container| live.contains(&container.id)) {
            self.leave_unfinished_soon(container);
        }
        self.take_back_unbundles()?;
        failpoint("daemon.networks");
        self.free_unknown().await?;
        failpoint("daemon.freed");
        self.follow_up(&containers, &ended).await;
        failpoint("daemon.followed");
        Ok(())
    }

    /// Containers whose create was cut off: nobody was told of them.
    fn discard_unfinished(&self) {
        for container in self.0.containers.all() {
            let row = container.row();
            if row.phase == Phase::Created && !self.is_complete(&row) {
                tracing::info!(container = row.id.short(), "its create was cut off: it is taken back");
                self.discard(&container);
            }
        }
    }

    /// What became of the monitors of those that ran. One that does not answer holds up no other.
    async fn reach_all(&self, containers: &[Arc<Container>]) -> HashMap<ContainerId, Reached> {
        let mut asked = JoinSet::new();
        for container in containers {
            let row = container.row();
            // What its folder says may be about another boot's processes.
            if row.phase.live() && (row.boot.is_empty() || row.boot == self.0.boot) {
                let sandbox = self.sandbox(&row);
                asked.spawn(async move { (row.id.clone(), reach(&sandbox).await) });
            }
        }
        asked.join_all().await.into_iter().collect()
    }

    /// Whether the container lives on.
    ///
    /// # Errors
    /// [`insula_base::Kind::Unsupported`]: a newer daemon has started it, whose monitor this one could misunderstand.
    async fn take_up(&self, container: &Arc<Container>, reached: Option<Reached>) -> Result<bool> {
        let row = container.row();
        let sandbox = self.sandbox(&row);
        let Some(reached) = reached else { return Ok(false) };
        match reached {
            Reached::Answers(_, status) if status.version > insula_proto::VERSION => {
                return Err(Error::Unsupported(format!(
                    "container {} was started by a newer daemon: its monitor speaks version {} of the task \
                     protocol, and this daemon up to {}: start the newer one, or stop the container with it",
                    row.name,
                    status.version,
                    insula_proto::VERSION
                )));
            }
            Reached::Answers(connection, status) if status.phase() == TaskPhase::Running => {
                self.take_over(container, *connection, &status).await;
                return Ok(true);
            }
            // The record of an end is there before a monitor frees what its container had, which may take long.
            Reached::Silent(monitor) if row.running() && !matches!(sandbox.exit(), Ok(Some(_))) => {
                self.keep_silent(container, monitor)?;
                return Ok(true);
            }
            // Ended: what it tells it has written, and clients may still read from it.
            Reached::Answers(..) if matches!(sandbox.exit(), Ok(Some(_))) => {}
            // Created and never started.
            Reached::Answers(..) => end_politely(row.id.short(), &sandbox).await,
            // Nobody was told of a start that was cut off.
            Reached::Silent(_) | Reached::Never => end_monitor(row.id.short(), &sandbox).await,
        }
        Ok(false)
    }

    /// What follows from ends that nobody saw, and what policies want.
    async fn follow_up(&self, containers: &[Arc<Container>], ended: &[Arc<Container>]) {
        for container in ended {
            let row = container.row();
            match self.sandbox(&row).exit() {
                Ok(Some(exited)) => self.ended(container, &exited).await,
                // It had not begun: nothing of it ever ran.
                _ if row.phase == Phase::Starting && row.started.is_none() => self.never_ran(container),
                _ => self.lost(container).await,
            }
        }
        for container in containers {
            let row = container.row();
            let finished = match &row.phase {
                Phase::Removing => self.finish_removal(container).await,
                Phase::Exited { .. } if row.host.auto_remove => self.finish_removal(container).await,
                Phase::Exited { code, .. } if crate::containers::restarts_with_the_daemon(&row, *code) => {
                    self.restart_soon(container);
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(error) = finished {
                let error = insula_base::chain(&error);
                tracing::error!(container = row.id.short(), error, "finish what was begun");
            }
        }
    }

    fn never_ran(&self, container: &Arc<Container>) {
        let row = container.row();
        let cgroup = format!("{}/{}", self.instance().cgroup(), row.id);
        leftovers::kill(&self.sandbox(&row), &cgroup);
        let undone = self
            .sandbox(&row)
            .remove()
            .and_then(|()| container.change(self.store(), |row| row.phase = Phase::Created).map(drop));
        if let Err(error) = undone {
            tracing::error!(container = row.id.short(), error = insula_base::chain(&error), "undo a start");
        }
    }

    /// Sandboxes, cgroups, folders and ids that no row knows.
    async fn free_unknown(&self) -> Result<()> {
        let known: HashSet<String> = self
            .store()
            .state()
            .records(Collection::Containers)
            .all()?
            .into_iter()
            .map(|record| record.id)
            .collect();
        self.0.tenants.reconcile()?;
        let tenants: HashSet<String> = self.0.tenants.known()?.into_iter().collect();
        let parent = self.instance().cgroup();
        // An exit whose record was applied, and no more: the row has it.
        let applied = |id: &ContainerId| {
            let row = self.0.containers.get(id).map(|container| container.row());
            row.is_some_and(|row| matches!(row.phase, Phase::Created | Phase::Exited { .. }))
        };
        for id in self.sandboxes().into_iter().filter(|id| !known.contains(id.as_str()) || applied(id)) {
            let container = self.0.containers.get(&id);
            let _turn = match &container {
                Some(container) => {
                    // It may have ended this moment, and be about to start again.
                    let turn = container.turn.lock().await;
                    container.put_down().await;
                    if !applied(&id) {
                        continue;
                    }
                    Some(turn)
                }
                None => None,
            };
            let sandbox = SandboxFolder::new(self.instance().sandbox(&id));
            end_politely(id.short(), &sandbox).await;
            leftovers::kill(&sandbox, &format!("{parent}/{id}"));
            sandbox.remove()?;
        }
        match leftovers::below(&parent) {
            Ok(names) => {
                // What was made ahead of a start that did not come.
                let never_ran = |name: &String| {
                    let container = name.parse().ok().and_then(|id| self.0.containers.get(&id));
                    container.is_some_and(|container| container.row().phase == Phase::Created)
                };
                let nobodys = |name: &String| !known.contains(name) && !tenants.contains(name);
                for name in names.iter().filter(|name| nobodys(name) || never_ran(name)) {
                    if let Err(error) = leftovers::free(&format!("{parent}/{name}")) {
                        tracing::warn!(name, error = insula_base::chain(&error), "a cgroup of nobody");
                    }
                }
            }
            Err(error) => tracing::warn!(error = insula_base::chain(&error), "look for cgroups of nobody"),
        }
        for id in self.store().container_dirs()? {
            if !known.contains(id.as_str()) {
                self.store().remove_container_dir(&id)?;
            }
        }
        let allocations = self.store().state().allocations();
        for allocation in allocations.all(ID_POOL)? {
            if !known.contains(&allocation.owner) && !tenants.contains(&allocation.owner) {
                allocations.release_owner(Some(ID_POOL), &allocation.owner)?;
            }
        }
        Ok(())
    }

    pub(crate) fn sandboxes(&self) -> Vec<ContainerId> {
        let folder = self.instance().run().join("sandboxes");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }
}
