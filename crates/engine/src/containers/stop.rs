//! Stop, kill, restart, pause: what a user does to a container that runs.

use insula_sys::failpoint::failpoint;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use insula_base::{Kind, Laps};
use insula_proto::{Call, Empty, Outcome, Resize, Signal};

use super::container::{Container, Progress};
use super::row::{Phase, Row};
use super::signals::{self, KILL};
use super::start::not_running;
use super::{Change, StopRequest};
use crate::monitor::Patience;
use crate::task::beside;
use crate::{Engine, Error, Result};
use crate::{machines, plan};

/// How long a container may take to be gone after KILL: what it was busy with in the kernel.
const DEATH: Duration = Duration::from_secs(10);
/// The same where another kernel carries the signal out, perhaps an emulated one on a busy host.
const DEATH_IN_A_MACHINE: Duration = Duration::from_secs(60);
/// How long a monitor may take to say where it stands.
const ANSWER: Duration = Duration::from_secs(5);
/// SIGRTMIN+3 asks systemd to halt.
const HALT: i32 = 37;

/// While it is there its container is one that was told to end.
struct Told<'a>(&'a Container);

impl<'a> Told<'a> {
    fn of(container: &'a Container) -> Self {
        container.state().told_to_end = true;
        Self(container)
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.state().told_to_end = false;
    }
}

impl Engine {
    pub async fn stop_container(&self, reference: &str, request: StopRequest) -> Result<Change> {
        let container = self.find(reference)?;
        let _turn = container.turn.lock().await;
        let waiting = container.cancel_restart();
        let row = container.row();
        if !row.running() {
            if waiting {
                container.change(self.store(), by_a_user)?;
                return Ok(Change::Done);
            }
            return Ok(Change::Nothing);
        }
        if row.host.restart_policy.name != "no" || row.again {
            container.change(self.store(), by_a_user)?;
        }
        failpoint("stop.marked");
        if let Err(error) = self.bring_down(&container, &request).await {
            return Err(self.unmarked(&container, &row, error));
        }
        failpoint("stop.ended");
        self.publish(&container.row(), "stop", &[]);
        Ok(Change::Done)
    }

    /// Goes on when whoever asks goes away: half of it is an end.
    pub async fn restart_container(&self, reference: &str, request: StopRequest) -> Result<()> {
        let (engine, container) = (self.clone(), self.find(reference)?);
        beside(async move {
            let _turn = container.turn.lock().await;
            let restarted = engine.restart_in_turn(&container, &request).await;
            let row = container.row();
            // Its end was none to remove it after, so nobody else does.
            if restarted.is_err() && row.host.auto_remove && matches!(row.phase, Phase::Exited { .. }) {
                engine.remove_now(&container, true).await?;
            }
            restarted
        })
        .await
    }

    async fn restart_in_turn(&self, container: &Arc<Container>, request: &StopRequest) -> Result<()> {
        container.cancel_restart();
        // Its policy counts anew.
        container.amend(|row| row.restarts = 0);
        if container.row().running() {
            container.state().stopping = true;
            let down = self.bring_down(container, request).await;
            container.state().stopping = false;
            down?;
        }
        self.start(container, &mut Laps::begin()).await?;
        self.publish(&container.row(), "restart", &[]);
        Ok(())
    }

    /// `signal` is a name or a number; KILL without it.
    pub async fn kill_container(&self, reference: &str, signal: Option<&str>) -> Result<()> {
        let container = self.find(reference)?;
        let signal = signal.filter(|text| !text.is_empty()).map_or(Ok(KILL), signals::parse)?;
        let row = container.row();
        let ends = signal == KILL || signal == stop_signal(&row, None)?;
        if !row.running() && ends && container.cancel_restart() {
            // It counts as running while it waits to be started again.
            container.change(self.store(), by_a_user)?;
            return Ok(());
        }
        if container.task().is_err() {
            // What it writes may be seen before its start is answered, and who saw it may send a signal.
            drop(container.turn.lock().await);
        }
        // It may have been confirmed since.
        let row = container.row();
        if !row.running() {
            return Err(Error::Conflict(format!(
                "cannot kill container: {reference}: container {} is not running",
                row.id
            )));
        }
        if ends && (row.host.restart_policy.name != "no" || row.again) {
            container.change(self.store(), by_a_user)?;
        }
        failpoint("kill.marked");
        let mut end = End::of(&container);
        let patience = match signal {
            KILL => Patience::before_killing(death(&row)),
            _ => Patience::USUAL,
        };
        match self.signal(&container, signal, patience).await {
            Err(Error::Silent(_)) if signal == KILL => return self.kill_silent(&container, &mut end).await,
            signalled => signalled.map_err(|error| self.unmarked(&container, &row, error))?,
        }
        failpoint("kill.signalled");
        self.publish(&row, "kill", &[("signal", &signal.to_string())]);
        if signal == KILL {
            // As Docker: a container that was killed is gone when the answer comes.
            end.within(death(&row)).await;
        }
        Ok(())
    }

    /// Takes back what was noted before the monitor was asked, where it has not answered: the container is as it was,
    /// its policy too.
    fn unmarked(&self, container: &Container, before: &Row, error: Error) -> Error {
        if !matches!(error, Error::Silent(_)) || !container.row().running() {
            return error;
        }
        let marks = |row: &mut Row| (row.stopped, row.again) = (before.stopped, before.again);
        container.change(self.store(), marks).err().unwrap_or(error)
    }

    /// Kills a container without waiting for its turn, and without its monitor where that does not answer.
    pub(super) async fn kill_by_force(&self, container: &Arc<Container>) -> Result<()> {
        let mut end = End::of(container);
        match self.kill_within(container, Patience::before_killing(death(&container.row()))).await {
            Err(Error::Silent(_)) => self.kill_silent(container, &mut end).await,
            killed => killed,
        }
    }

    /// Kills a container without waiting for its turn.
    pub(super) async fn kill_now(&self, container: &Arc<Container>) -> Result<()> {
        self.kill_within(container, Patience::USUAL).await
    }

    async fn kill_within(&self, container: &Arc<Container>, patience: Patience) -> Result<()> {
        let mut end = End::of(container);
        let row = container.row();
        if !row.running() {
            container.put_down().await;
            return Ok(());
        }
        match self.signal(container, KILL, patience).await {
            Ok(()) => self.publish(&row, "kill", &[("signal", &KILL.to_string())]),
            Err(Error::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
        end.within(death(&row)).await.then_some(()).ok_or_else(|| unkillable(&row))
    }

    /// Kills a container whose monitor does not answer: the monitor first, so that what it leaves is ended as after
    /// any that went without a word, by its control group, frozen or not.
    async fn kill_silent(&self, container: &Container, end: &mut End<'_>) -> Result<()> {
        let row = container.row();
        tracing::warn!(container = row.id.short(), "its monitor does not answer, and is killed with it");
        container.state().killed = true;
        match self.monitor_known(container) {
            Some(monitor) => monitor.kill().map_err(|error| {
                container.state().killed = false;
                Error::io("kill", Path::new("the monitor"), error)
            })?,
            None => self.kill_leftovers(container, self.sandbox(&row)).await,
        }
        self.publish(&row, "kill", &[("signal", &KILL.to_string())]);
        end.within(death(&row)).await.then_some(()).ok_or_else(|| unkillable(&row))
    }

    async fn signal(&self, container: &Container, signal: i32, patience: Patience) -> Result<()> {
        let task = container.task()?;
        let call = Call::Signal(Signal { signal, ..Signal::default() });
        let signalled = task.call_within(patience, call, &[]).await;
        signalled.map_err(|error| ended_meanwhile(error, container))?;
        let paused = std::mem::take(&mut container.state().paused);
        if paused {
            // A frozen process ends when it thaws.
            let thawed = task.call_within(patience, Call::Thaw(Empty {}), &[]).await;
            thawed.map_err(|error| ended_meanwhile(error, container))?;
        }
        Ok(())
    }

    /// Asks it to end, waits, kills it.
    pub(super) async fn bring_down(&self, container: &Arc<Container>, request: &StopRequest) -> Result<()> {
        let row = container.row();
        let signal = stop_signal(&row, request.signal.as_deref())?;
        let patience = match request.timeout {
            Some(seconds) => u64::try_from(seconds).ok(),
            None => row.stop_timeout(),
        };
        let mut end = End::of(container);
        if !container.row().running() {
            container.put_down().await;
            return Ok(());
        }
        let _told = Told::of(container);
        // What is paused answers nobody.
        if !container.state().paused {
            self.leave_sites(&row, patience.map(Duration::from_secs)).await;
        }
        match self.signal(container, signal, Patience::of_user(patience.map(Duration::from_secs))).await {
            Err(Error::Conflict(_)) => {}
            result => result?,
        }
        failpoint("stop.signalled");
        self.publish(&row, "kill", &[("signal", &signal.to_string())]);
        let ended = match patience {
            Some(seconds) => end.within(Duration::from_secs(seconds)).await,
            None => end.comes().await,
        };
        if ended { Ok(()) } else { self.kill_now(container).await }
    }

    pub async fn pause_container(&self, reference: &str) -> Result<()> {
        let container = self.find(reference)?;
        let _turn = container.turn.lock().await;
        let task = container.task()?;
        if container.state().paused {
            return Err(Error::Conflict(format!("container {} is already paused", container.id)));
        }
        task.call(Call::Freeze(Empty {}), &[]).await.map_err(|error| not_running(error, &container.id))?;
        container.state().paused = true;
        self.publish(&container.row(), "pause", &[]);
        Ok(())
    }

    pub async fn unpause_container(&self, reference: &str) -> Result<()> {
        let container = self.find(reference)?;
        let _turn = container.turn.lock().await;
        let task = container.task()?;
        if !container.state().paused {
            return Err(Error::Conflict(format!("Container {} is not paused", container.id)));
        }
        task.call(Call::Thaw(Empty {}), &[]).await.map_err(|error| not_running(error, &container.id))?;
        container.state().paused = false;
        self.publish(&container.row(), "unpause", &[]);
        Ok(())
    }

    pub async fn resize_container(&self, reference: &str, rows: u16, columns: u16) -> Result<()> {
        let container = self.find(reference)?;
        let call = Resize { exec: String::new(), columns: columns.into(), rows: rows.into() };
        let resized = container.task()?.call(Call::Resize(call), &[]).await;
        resized.map_err(|error| not_running(error, &container.id))?;
        let (height, width) = (rows.to_string(), columns.to_string());
        self.publish(&container.row(), "resize", &[("height", &height), ("width", &width)]);
        Ok(())
    }
}

/// The only conflict of a signal is with the end: the monitor knew of it before the daemon does.
fn ended_meanwhile(error: Error, container: &Container) -> Error {
    match error {
        Error::Wall { kind: Kind::Conflict, .. } => {
            Error::Conflict(format!("container {} is not running", container.id))
        }
        error => not_running(error, &container.id),
    }
}

/// The next end of a container, for who is about to bring it about.
struct End<'a> {
    container: &'a Container,
    progress: tokio::sync::watch::Receiver<Progress>,
    /// Ends before it. A restart policy may have it running again before anybody looks.
    exits: u64,
}

impl<'a> End<'a> {
    fn of(container: &'a Container) -> Self {
        let progress = container.subscribe();
        let exits = progress.borrow().exits;
        Self { container, progress, exits }
    }

    /// Waits for it, until it is put down; always true.
    async fn comes(&mut self) -> bool {
        let exits = self.exits;
        self.progress.wait_for(|progress| !progress.running || progress.exits > exits).await.is_ok()
    }

    /// Whether the container ends in this time. What is put down about an end may take longer, where others
    /// keep the firewall or the disk busy: that is waited for, and no reason to call it alive.
    async fn within(&mut self, patience: Duration) -> bool {
        match tokio::time::timeout(patience, self.comes()).await {
            Ok(came) => came,
            Err(_) if self.is_known().await => self.comes().await,
            Err(_) => false,
        }
    }

    /// Whether it was heard of, or is on its way from the monitor.
    async fn is_known(&self) -> bool {
        let Ok(task) = self.container.task() else { return true };
        let status = task.call(Call::Status(Empty {}), &[]);
        match tokio::time::timeout(ANSWER, status).await {
            Ok(Ok(Outcome::Status(status))) => status.phase() == insula_proto::Phase::Ended,
            Ok(Err(Error::Silent(_))) | Err(_) => false,
            // The monitor is gone, which is an end too.
            Ok(_) => true,
        }
    }
}

/// How long the end of a container that was killed may take.
fn death(row: &Row) -> Duration {
    if machines::wanted(&row.host.isolation) { DEATH_IN_A_MACHINE } else { DEATH }
}

fn unkillable(row: &Row) -> Error {
    let what = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/wchan")).ok();
    let waits = row.pid().and_then(what).filter(|text| !matches!(text.as_str(), "" | "0"));
    let place = waits.map_or_else(String::new, |place| format!(" ({place})"));
    Error::Conflict(format!(
        "container {} was killed and has not ended yet: it waits for something in the kernel{place}; try again",
        row.id
    ))
}

/// A user wants it down, which no policy overrides.
fn by_a_user(row: &mut Row) {
    row.stopped = true;
    row.again = false;
}

/// The one asked for, the container's own, that of its init system, TERM.
fn stop_signal(row: &Row, asked: Option<&str>) -> Result<i32> {
    let own = Some(row.config.stop_signal.as_str());
    match asked.into_iter().chain(own).find(|text| !text.is_empty()) {
        Some(text) => signals::parse(text),
        None if plan::init(row) == insula_spec::plan::InitPlan::System => Ok(HALT),
        None => Ok(signals::TERM),
    }
}

impl Container {
    /// Gives up a restart that was to come; whether there was one.
    pub(super) fn cancel_restart(&self) -> bool {
        let restart = self.state().restarting.take();
        restart.inspect(tokio::task::AbortHandle::abort).is_some()
    }

    /// Whether it may be removed without force.
    pub(super) fn at_rest(&self) -> bool {
        let state = self.state();
        state.restarting.is_none() && !matches!(state.row().phase, Phase::Running { .. } | Phase::Starting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_counts_that_is_put_down_late_and_followed_by_a_start() {
        let container = Container::new(crate::containers::row::tests::row());
        container.tell(|progress| progress.running = true);
        let mut end = End::of(&container);
        // It has no monitor any more: its end was heard of.
        let killed = end.within(Duration::ZERO);
        let again = async {
            tokio::task::yield_now().await;
            container.tell(|progress| progress.exits += 1);
        };
        assert!(tokio::join!(killed, again).0);
    }
}
