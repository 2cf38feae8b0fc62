//! What happens to a container by itself: its end, and what follows from it.

use insula_sys::failpoint::failpoint;
use std::sync::{Arc, Weak};
use std::time::Duration;

use insula_base::{Kind, Kinded, Laps};
use insula_models::Health;
use insula_proto::{Call, Empty, Exited, Outcome};
use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedReceiver;

use super::container::Container;
use super::health::UNHEALTHY;
use super::leftovers;
use super::row::{Phase, Row};
use super::signals::KILL;
use super::start::moment;
use crate::engine::Inner;
use crate::monitor::{SandboxFolder, Task, end_monitor};
use crate::{Engine, Error, Result, blocking};

/// The first pause before a restart; it doubles each time, and begins anew after a good run.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
const GOOD_RUN: Duration = Duration::from_secs(10);

/// How long a monitor may take to unmount and to remove control groups.
const FREEING: Duration = Duration::from_secs(10);

/// Between two looks whether a monitor that did not answer is gone, or goes on.
const LOOK: Duration = Duration::from_millis(100);

/// What a container shows that ended while nobody could see how.
const LOST_CODE: i32 = 255;

/// Follows the events of a monitor until its container has ended.
pub(super) fn watch(
    engine: Weak<Inner>,
    container: Arc<Container>,
    task: Weak<Task>,
    mut events: UnboundedReceiver<Outcome>,
) {
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            let Some(engine) = engine.upgrade().map(Engine) else { return };
            match event {
                Outcome::Exited(exited) => {
                    container.state().leaving = task.upgrade();
                    return engine.ended(&container, &exited).await;
                }
                Outcome::ExecExited(exited) => engine.exec_ended(&container, &exited),
                Outcome::Oom(_) => {
                    container.state().oom = true;
                    engine.publish(&container.row(), "oom", &[]);
                }
                other => tracing::debug!(?other, "an event that is none"),
            }
        }
        // It has ended, or did not answer and was given up.
        while let Some(engine) = engine.upgrade().map(Engine)
            && container.row().phase.live()
        {
            if engine.heard_of_again(&container).await {
                return;
            }
            drop(engine);
            tokio::time::sleep(LOOK).await;
        }
    });
}

impl Engine {
    /// The monitor is gone without a word: what it left says more.
    pub(super) async fn vanished(&self, container: &Arc<Container>) {
        match self.sandbox(&container.row()).exit() {
            Ok(Some(exited)) => self.ended(container, &exited).await,
            Ok(None) => self.lost(container).await,
            Err(error) => {
                tracing::warn!(
                    container = container.id.short(),
                    error = insula_base::chain(&error),
                    "exit record"
                );
                self.lost(container).await;
            }
        }
    }

    /// Applies an exit, and does what the container wants then.
    pub(crate) async fn ended(&self, container: &Arc<Container>, exited: &Exited) {
        let error = exited.error.clone();
        let phase = Phase::Exited { code: exited.code, oom: exited.oom, at: moment(exited.at), error };
        self.over(container, phase).await;
    }

    /// The same for one whose monitor left no record.
    pub(crate) async fn lost(&self, container: &Arc<Container>) {
        let row = container.row();
        self.kill_leftovers(container, self.sandbox(&row)).await;
        let (code, error) = if std::mem::take(&mut container.state().killed) {
            (128 + KILL, "")
        } else if row.boot.is_empty() || row.boot == self.0.boot {
            (LOST_CODE, "the container's monitor ended without leaving its exit code")
        } else {
            (LOST_CODE, "the host was started anew while the container ran")
        };
        let error = error.to_owned();
        if !error.is_empty() {
            tracing::warn!(container = container.id.short(), error, "lost");
        }
        self.over(container, Phase::Exited { code, oom: false, at: Timestamp::now(), error }).await;
    }

    /// Waits until the monitor of a run that is over has given back what the container had of the host's: it
    /// answers nothing before. What one leaves that was killed over it is taken away.
    pub(super) async fn freed(&self, container: &Container, sandbox: &SandboxFolder) {
        let leaving = container.state().leaving.take();
        if let Some(task) = leaving {
            let answer = tokio::time::timeout(FREEING, task.call(Call::Status(Empty {}), &[])).await;
            match answer {
                // It would go on with what the next run of the container has by the same names.
                Ok(Err(Error::Silent(_))) => end_monitor(container.id.short(), sandbox).await,
                Err(_) => {
                    tracing::warn!(container = container.id.short(), "its monitor takes long to free it");
                    return;
                }
                Ok(_) => {}
            }
        }
        if sandbox.abandoned() {
            self.kill_leftovers(container, sandbox.clone()).await;
        }
    }

    /// Ends what is left of a container without a monitor, and waits for it.
    pub(super) async fn kill_leftovers(&self, container: &Container, sandbox: SandboxFolder) {
        let cgroup = format!("{}/{}", self.instance().cgroup(), container.id);
        let killed = blocking(move || {
            leftovers::kill(&sandbox, &cgroup);
            Ok(())
        });
        if let Err(error) = killed.await {
            tracing::error!(
                container = container.id.short(),
                error = insula_base::chain(&error),
                "leftovers"
            );
        }
    }

    async fn over(&self, container: &Arc<Container>, phase: Phase) {
        if let Err(error) = self.apply(container, phase).await {
            let error = insula_base::chain(&error);
            tracing::error!(container = container.id.short(), error, "apply the end of a container");
        }
    }

    /// [`Self::put_down`], away from the threads that serve: the firewall and the disk hold it up. What the
    /// container does next waits for it, and so does the end of the daemon.
    async fn put_down_aside(&self, container: &Arc<Container>, row: &Arc<Row>) -> Result<()> {
        let (engine, container, row) = (self.clone(), container.clone(), row.clone());
        let _turn = self.turn_before_the_end().await;
        blocking(move || {
            let told = engine.publish_connections(&row, "disconnect");
            engine.put_down(&container, &row).and(told)
        })
        .await
    }

    /// What is kept of an end. On a full disk it takes what is kept for that.
    fn put_down(&self, container: &Container, row: &Row) -> Result<()> {
        let full = match self.put_down_once(container, row) {
            Err(error) if error.kind() == Kind::Unavailable => error,
            done => return done,
        };
        if !self.store().spend_reserve() {
            return Err(full);
        }
        let done = self.put_down_once(container, row);
        self.store().refill_reserve();
        done
    }

    /// Every step may be repeated.
    fn put_down_once(&self, container: &Container, row: &Row) -> Result<()> {
        self.networks().release(&container.id)?;
        failpoint("exit.released");
        container.change(self.store(), |_| {})?;
        failpoint("exit.row");
        self.sandbox(row).remove()?;
        failpoint("exit.folder");
        Ok(())
    }

    async fn apply(&self, container: &Arc<Container>, phase: Phase) -> Result<()> {
        let Phase::Exited { code, oom, at, .. } = phase else { return Ok(()) };
        failpoint("exit.heard");
        let (row, uptime) = {
            let mut state = container.state();
            state.task = None;
            state.names = None;
            state.paused = false;
            state.execs.values_mut().for_each(crate::exec::Exec::ended);
            let (health, uptime) = (state.health.take(), state.uptime.take());
            drop(state);
            let row = container.amend(|row| {
                row.phase = phase;
                row.held = false;
                row.health = health.map(|health| Health { status: UNHEALTHY.to_owned(), ..health });
            });
            (row, uptime)
        };
        // An end that nobody saw is measured by the clock.
        let by_the_clock = || row.started.and_then(|started| at.duration_since(started).try_into().ok());
        let ran = uptime.map(|uptime| uptime.now()).or_else(by_the_clock);
        let again = self.wants_restart(container, &row, code);
        // Who brings it down to start it again keeps it.
        let goes = {
            let mut state = container.state();
            state.goes = row.host.auto_remove && !again && !state.stopping;
            state.goes
        };
        // A container that goes now needs no row of its end: its sandbox's record stays until the row is gone.
        if !goes {
            self.freed(container, &self.sandbox(&row)).await;
            if let Err(error) = self.put_down_aside(container, &row).await {
                // Its record is still there, for the next daemon. Whoever waits for the end is told of it.
                let error = insula_base::chain(&error);
                tracing::error!(
                    container = container.id.short(),
                    error,
                    "the end of a container is not written"
                );
            }
        }
        let seconds = ran.unwrap_or_default().as_secs().to_string();
        self.publish(&row, "die", &[("exitCode", &code.to_string()), ("execDuration", &seconds)]);
        if again {
            self.schedule_restart(container, ran.unwrap_or_default());
        }
        container.tell(|progress| {
            progress.running = false;
            progress.exits += 1;
            progress.code = code;
        });
        if oom {
            tracing::info!(container = container.id.short(), "ended for want of memory");
        }
        if goes {
            let _turn = container.turn.lock().await;
            self.remove_now(container, true).await?;
        }
        Ok(())
    }

    fn wants_restart(&self, container: &Container, row: &Row, code: i32) -> bool {
        !self.0.ending() && !container.state().stopping && (row.again || restarts(row, code))
    }

    fn schedule_restart(&self, container: &Arc<Container>, ran: Duration) {
        let mut state = container.state();
        let pause = next_backoff(state.backoff, ran);
        state.backoff = pause;
        let (engine, target) = (Arc::downgrade(&self.0), container.clone());
        let restart = tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let Some(engine) = engine.upgrade().map(Engine) else { return };
            let _turn = target.turn.lock().await;
            // Cancelled while it waited for its turn.
            if target.state().restarting.take().is_none() {
                return;
            }
            engine.restart_by_policy(&target).await;
        });
        state.restarting = Some(restart.abort_handle());
    }

    /// For one that ended while no daemon was there.
    pub(crate) fn restart_soon(&self, container: &Arc<Container>) {
        if container.state().restarting.is_none() {
            self.schedule_restart(container, Duration::ZERO);
        }
    }

    async fn restart_by_policy(&self, container: &Arc<Container>) {
        container.amend(|row| row.restarts += 1);
        if let Err(error) = self.start(container, &mut Laps::begin()).await {
            tracing::warn!(container = container.id.short(), error = insula_base::chain(&error), "restart");
            let row = container.row();
            if matches!(row.phase, Phase::Created | Phase::Exited { .. })
                && restarts(&row, row.exit_code())
                && !matches!(error, Error::Conflict(_))
            {
                self.schedule_restart(container, Duration::ZERO);
            }
        }
    }
}

/// What the policy says when the daemon starts about a container that does not run: `always` is always,
/// even for one that a user had stopped.
pub(crate) fn restarts_with_the_daemon(row: &Row, code: i32) -> bool {
    row.host.restart_policy.name == "always" || row.again || restarts(row, code)
}

/// Docker's rules: what the policy says about a container that ended with this code. `unhealthy` is insula's:
/// as `on-failure`, and a container that becomes unhealthy is a failure too.
pub(crate) fn restarts(row: &Row, code: i32) -> bool {
    let policy = &row.host.restart_policy;
    match policy.name.as_str() {
        "always" | "unless-stopped" => !row.stopped,
        "on-failure" | "unhealthy" => {
            let left = policy.maximum_retry_count == 0
                || row.restarts < u64::try_from(policy.maximum_retry_count).unwrap_or(0);
            code != 0 && left && !row.stopped
        }
        _ => false,
    }
}

fn next_backoff(last: Duration, ran: Duration) -> Duration {
    if ran >= GOOD_RUN || last.is_zero() { FIRST_BACKOFF } else { (last * 2).min(LONGEST_BACKOFF) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_until_a_good_run() {
        let mut pause = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            pause = next_backoff(pause, Duration::from_secs(1));
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[11], 60_000);
        assert_eq!(next_backoff(pause, GOOD_RUN), FIRST_BACKOFF);
    }

    #[test]
    fn policies_decide_by_code_and_count() {
        let row = |name: &str, most: i64, restarts: u64, stopped: bool| {
            let mut row = crate::containers::row::tests::row();
            row.host.restart_policy.name = name.into();
            row.host.restart_policy.maximum_retry_count = most;
            (row.restarts, row.stopped) = (restarts, stopped);
            row
        };
        assert!(!super::restarts(&row("no", 0, 0, false), 1));
        assert!(super::restarts(&row("always", 0, 9, false), 0));
        assert!(!super::restarts(&row("unless-stopped", 0, 0, true), 0));
        assert!(!super::restarts(&row("on-failure", 0, 0, false), 0));
        assert!(super::restarts(&row("on-failure", 3, 2, false), 1));
        assert!(!super::restarts(&row("on-failure", 3, 3, false), 1));
        assert!(super::restarts(&row("unhealthy", 0, 7, false), 143));
        assert!(!super::restarts(&row("always", 0, 0, true), 0));
        assert!(restarts_with_the_daemon(&row("always", 0, 0, true), 0));
        assert!(!restarts_with_the_daemon(&row("unless-stopped", 0, 0, true), 0));
        assert!(!restarts_with_the_daemon(&row("on-failure", 0, 0, true), 143));
    }
}
