//! Containers whose monitor does not answer: they are as they were, and used again as soon as it does.

use std::sync::Arc;

use insula_proto::{Phase as TaskPhase, Status, VERSION};

use super::container::Container;
use super::leftovers;
use super::row::{Phase, Row};
use crate::monitor::{Asked, Connection, Process, Task, end_monitor, is_stopped, nobody_listens};
use crate::{Engine, Result};

impl Engine {
    /// Whom to ask about a container that runs.
    pub(super) fn monitor_of(&self, row: &Row) -> Asked {
        Asked::new(&row.name, self.sandbox(row).monitor())
    }

    /// The monitor of a container that runs, also when its launch record is gone meanwhile.
    pub(super) fn monitor_known(&self, container: &Container) -> Option<Process> {
        let known = container.state().task.as_ref().and_then(|task| task.monitor());
        known.or_else(|| self.sandbox(&container.row()).monitor())
    }

    /// Takes over a container of a former daemon from its monitor.
    pub(crate) async fn take_over(
        &self,
        container: &Arc<Container>,
        connection: Connection,
        status: &Status,
    ) {
        let confirmed = container.change(self.store(), |row| {
            row.phase = Phase::Running { pid: status.pid };
            row.started = jiff::Timestamp::from_nanosecond(status.started.into()).ok();
        });
        if let Err(error) = confirmed {
            let error = insula_base::chain(&error);
            tracing::error!(container = container.id.short(), error, "confirm what runs");
        }
        self.take_up_execs(container, status);
        self.adopt(container, (connection, self.monitor_of(&container.row())), status.frozen);
        self.resume_health(container, &status.execs).await;
    }

    /// Has a container of a former daemon run on, whose monitor does not answer.
    pub(crate) fn keep_silent(&self, container: &Arc<Container>, monitor: Option<Process>) -> Result<()> {
        let (pid, row) = (monitor.map(|monitor| monitor.pid), container.row());
        tracing::warn!(container = row.id.short(), pid, "its monitor does not answer: it is asked again");
        let (task, events) = Task::unheard(Asked::new(&row.name, monitor))?;
        let task = Self::runs(container, task, false);
        super::life::watch(Arc::downgrade(&self.0), container.clone(), task, events);
        Ok(())
    }

    /// Whether a monitor that did not answer does again, or is gone.
    pub(super) async fn heard_of_again(&self, container: &Arc<Container>) -> bool {
        let monitor = self.monitor_known(container);
        // One that cannot be looked at now may live.
        if monitor.is_some_and(Process::gone) {
            self.vanished(container).await;
            return true;
        }
        // Who connects to one that is stopped waits for nothing, and others have no place before it then.
        if monitor.is_some_and(is_stopped) {
            return self.ended_in_silence(container).await;
        }
        match Connection::open(&self.sandbox(&container.row()).socket()).await {
            // That of a newer daemon could be misunderstood.
            Ok((_, status)) if status.version > VERSION => false,
            Ok((connection, status)) if status.phase() == TaskPhase::Running => {
                self.take_up_again(container, connection, &status).await;
                true
            }
            // It ends; clients may still read from it what its container wrote last.
            Ok(_) => {
                let exited = self.sandbox(&container.row()).exit().ok().flatten();
                if let Some(exited) = &exited {
                    self.ended(container, exited).await;
                }
                exited.is_some()
            }
            Err(error) => {
                if self.ended_in_silence(container).await {
                    return true;
                }
                let lost = monitor.is_none() && nobody_listens(&error) && self.nothing_left(container);
                if lost {
                    self.vanished(container).await;
                }
                lost
            }
        }
    }

    /// Whether a container has ended of which a monitor does not tell that answers nothing. It is ended too: it would go
    /// on with what the next run has by the same names.
    async fn ended_in_silence(&self, container: &Arc<Container>) -> bool {
        let sandbox = self.sandbox(&container.row());
        if !matches!(sandbox.exit(), Ok(Some(_))) {
            return false;
        }
        end_monitor(container.id.short(), &sandbox).await;
        self.vanished(container).await;
        true
    }

    /// Whether a container of which no monitor is known has no process any more, and nobody will ever tell.
    fn nothing_left(&self, container: &Container) -> bool {
        let cgroup = format!("{}/{}", self.instance().cgroup(), container.id);
        let recorded = self.sandbox(&container.row()).launch();
        matches!(recorded, Ok(None)) && leftovers::none(&cgroup).is_ok_and(|none| none)
    }

    /// Goes on with a monitor that did not answer for a while.
    async fn take_up_again(&self, container: &Arc<Container>, connection: Connection, status: &Status) {
        let row = container.row();
        tracing::info!(container = row.id.short(), "its monitor answers again");
        let heard = container.state().task.as_ref().is_some_and(|task| task.heard());
        if heard {
            self.catch_up_on_execs(container, status);
            self.adopt(container, (connection, self.monitor_of(&row)), status.frozen);
            self.resume_health(container, &status.execs).await;
        } else {
            self.take_over(container, connection, status).await;
            self.let_go_again(container).await;
        }
        self.leave_unfinished_soon(container);
    }
}
