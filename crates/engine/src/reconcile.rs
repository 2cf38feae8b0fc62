//! The daemon's start: what the rows say meets what there is. What lives is taken over, what
//! ended is applied, what was lost is said, what belongs to nobody is freed.

use insula_sys::failpoint::failpoint;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use insula_base::ContainerId;
use insula_proto::{Call, Empty, Phase as TaskPhase};
use insula_store::Collection;

use crate::containers::container::Container;
use crate::containers::create::ID_POOL;
use crate::containers::leftovers;
use crate::containers::row::{Phase, Row};
use crate::monitor::{Connection, SandboxFolder};
use crate::{Engine, Error, Result};

/// How long a monitor that was cut off in the middle of a start may take to end.
const CUT_OFF: Duration = Duration::from_secs(3);

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
        for container in &containers {
            if container.row().phase.live() && !self.take_up(container).await? {
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

    /// Whether the container lives on.
    ///
    /// # Errors
    /// [`insula_base::Kind::Unsupported`]: a newer daemon has started it, whose monitor this one could misunderstand.
    async fn take_up(&self, container: &Arc<Container>) -> Result<bool> {
        let row = container.row();
        let sandbox = self.sandbox(&row);
        if !row.boot.is_empty() && row.boot != self.0.boot {
            // What its folder says is about another boot's processes.
            return Ok(false);
        }
        let lives = match connect(&sandbox).await {
            Some((_, status)) if status.version > insula_proto::VERSION => {
                return Err(Error::Unsupported(format!(
                    "container {} was started by a newer daemon: its monitor speaks version {} of the task \
                     protocol, and this daemon up to {}: start the newer one, or stop the container with it",
                    row.name,
                    status.version,
                    insula_proto::VERSION
                )));
            }
            Some((connection, status)) if status.phase() == TaskPhase::Running => {
                let confirmed = container.change(self.store(), |row| {
                    row.phase = Phase::Running { pid: status.pid };
                    row.started = jiff::Timestamp::from_nanosecond(status.started.into()).ok();
                });
                if let Err(error) = confirmed {
                    let error = insula_base::chain(&error);
                    tracing::error!(container = row.id.short(), error, "confirm what runs");
                }
                self.take_up_execs(container, &status);
                self.adopt(container, (connection, self.monitor_of(&row)), status.frozen);
                self.resume_health(container, &status.execs).await;
                true
            }
            Some((mut connection, _)) => {
                // Created and never started, or ended: its record is there by now.
                if !matches!(sandbox.exit(), Ok(Some(_))) {
                    let _ = connection.call(Call::Destroy(Empty {}), &[]).await;
                }
                false
            }
            None => false,
        };
        Ok(lives)
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
            let sandbox = SandboxFolder::new(self.instance().sandbox(&id));
            if let Some((mut connection, _)) = connect(&sandbox).await {
                let _ = connection.call(Call::Destroy(Empty {}), &[]).await;
            }
            leftovers::kill(&sandbox, &format!("{parent}/{id}"));
            sandbox.remove()?;
        }
        match leftovers::below(&parent) {
            Ok(names) => {
                for name in names.iter().filter(|name| !known.contains(*name) && !tenants.contains(*name)) {
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

/// The monitor of a sandbox, if it lives. One that is on its way out gets the time for it.
async fn connect(sandbox: &SandboxFolder) -> Option<(Connection, insula_proto::Status)> {
    let deadline = tokio::time::Instant::now() + CUT_OFF;
    loop {
        match Connection::open(&sandbox.socket()).await {
            Ok(found) => return Some(found),
            Err(error) => {
                let alive = sandbox.launch().is_some_and(|launch| launch.monitor.alive());
                if !alive || tokio::time::Instant::now() > deadline {
                    tracing::debug!(error = insula_base::chain(&error), "no monitor");
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
