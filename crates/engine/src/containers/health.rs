//! Health: a command that is run inside a container now and then, and what follows from how it ends.
//!
//! ```text
//! starting ──> healthy <──> unhealthy     one success makes healthy, `retries` failures in a row
//!     └──────────────────────^            unhealthy; failures in the start period do not count
//! ```
//!
//! What is known is kept in the sandbox's folder after each probe, so that the next daemon goes on from
//! there. It goes into the container's row when the container ends, as unhealthy, which is Docker's word
//! for whoever is not looked after any more.

use std::sync::{Arc, Weak};
use std::time::Duration;

use insula_base::ExecId;
use insula_models::{ContainerConfig, Health, HealthLog, HostConfig};
use insula_proto::{Call, Empty, Outcome, Phase, Signal};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StopRequest;
use super::container::{Container, State};
use super::row::Row;
use super::signals::KILL;
use crate::engine::Inner;
use crate::exec::probe::Probe;
use crate::monitor::Task;
use crate::{Engine, Result};

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: i64 = 3;
/// A shell's code of what KILL ended.
const KILLED: i64 = 137;
/// How long the end of a container may take to be known here after that of what ran beside it.
const SETTLED: Duration = Duration::from_secs(10);
/// Probes that are remembered.
const KEPT: usize = 5;
/// What is known, in the sandbox's folder.
const FILE: &str = "health.json";

pub(crate) const STARTING: &str = "starting";
pub(crate) const HEALTHY: &str = "healthy";
pub(crate) const UNHEALTHY: &str = "unhealthy";

/// How a container is probed, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: i64,
}

/// The file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Known {
    health: Health,
    /// The exec of a probe that was begun: what a former daemon left running is ended.
    probe: Option<ExecId>,
}

/// What is done to a container that becomes unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnFailure {
    Nothing,
    Kill,
    Stop,
    Restart,
}

impl OnFailure {
    pub(crate) fn of(host: &HostConfig) -> Self {
        match (host.health_on_failure.as_str(), host.restart_policy.name.as_str()) {
            ("kill", _) => Self::Kill,
            ("stop", _) => Self::Stop,
            ("restart", _) | ("" | "none", "unhealthy") => Self::Restart,
            _ => Self::Nothing,
        }
    }
}

impl Check {
    /// `None` for a container that is not probed.
    fn of(config: &ContainerConfig) -> Option<Self> {
        let check = config.healthcheck.as_ref()?;
        let span = |nanoseconds: i64, default: Duration| match u64::try_from(nanoseconds) {
            Ok(0) | Err(_) => default,
            Ok(nanoseconds) => Duration::from_nanos(nanoseconds),
        };
        Some(Self {
            command: command(config)?,
            interval: span(check.interval, INTERVAL),
            timeout: span(check.timeout, TIMEOUT),
            start_period: span(check.start_period, Duration::ZERO),
            start_interval: span(check.start_interval, START_INTERVAL),
            retries: if check.retries > 0 { check.retries } else { RETRIES },
        })
    }

    /// How long to wait for the next probe.
    fn pause(&self, health: &Health, up: Duration) -> Duration {
        let begins = health.status == STARTING && up < self.start_period;
        if begins { self.start_interval } else { self.interval }
    }

    /// Counts a probe; whether the status changed by it.
    fn count(&self, health: &mut Health, log: HealthLog, up: Duration) -> bool {
        let before = health.status.clone();
        if log.exit_code == 0 {
            health.failing_streak = 0;
            HEALTHY.clone_into(&mut health.status);
        } else if !(before == STARTING && up < self.start_period) {
            health.failing_streak += 1;
            if health.failing_streak >= self.retries {
                UNHEALTHY.clone_into(&mut health.status);
            }
        }
        if health.log.len() >= KEPT {
            health.log.drain(..=health.log.len() - KEPT);
        }
        health.log.push(log);
        health.status != before
    }
}

/// What a probe executes; `None` for a container without a check.
pub(super) fn command(config: &ContainerConfig) -> Option<Vec<String>> {
    const SHELL: [&str; 2] = ["/bin/sh", "-c"];
    let (kind, rest) = config.healthcheck.as_ref()?.test.split_first()?;
    let words: Vec<String> = match kind.as_str() {
        "CMD" => rest.to_vec(),
        "CMD-SHELL" => {
            let own = config.shell.clone().filter(|shell| !shell.is_empty());
            let shell = own.unwrap_or_else(|| SHELL.map(str::to_owned).to_vec());
            shell.into_iter().chain(rest.iter().cloned()).collect()
        }
        _ => return None,
    };
    Some(words).filter(|_| !rest.is_empty())
}

/// Docker's word for how well a container is.
pub(crate) fn word(container: &Container) -> String {
    of(container).map_or_else(|| "none".to_owned(), |health| health.status)
}

/// What is known of a container that is or was probed.
pub(crate) fn of(container: &Container) -> Option<Health> {
    let state = container.state();
    state.health.clone().or_else(|| state.row().health.clone())
}

impl Engine {
    /// Looks after a container that has just been started.
    pub(super) fn begin_health(&self, container: &Arc<Container>) {
        let Some(check) = Check::of(&container.row().config) else { return };
        let health = Health { status: STARTING.to_owned(), ..Health::default() };
        let pause = check.pause(&health, Duration::ZERO);
        container.state().health = Some(health);
        self.look_after(container, check, pause);
    }

    /// Goes on where the former daemon left it. `execs` are those that run.
    pub(crate) async fn resume_health(&self, container: &Arc<Container>, execs: &[String]) {
        let row = container.row();
        let Some(check) = Check::of(&row.config) else { return };
        let known = self.known_health(&row);
        let begun = known.probe.filter(|probe| execs.iter().any(|exec| exec == probe.as_str()));
        if let (Some(probe), Ok(task)) = (begun, container.task()) {
            let exec = probe.to_string();
            let call = Call::Signal(Signal { exec, signal: KILL, group: true, ..Signal::default() });
            if let Err(error) = task.call(call, &[]).await {
                let error = insula_base::chain(&error);
                tracing::warn!(container = row.id.short(), error, "end the check of a former daemon");
            }
        }
        let health = known.health;
        let last = health.log.last().and_then(|log| log.end.parse::<Timestamp>().ok());
        let since = last.or(row.started).map_or(Duration::ZERO, |moment| since(moment, Timestamp::now()));
        let pause = check.pause(&health, up(&container.state())).saturating_sub(since);
        let unhealthy = health.status == UNHEALTHY;
        container.state().health = Some(health);
        if unhealthy {
            // The former daemon may have died between its word and its deed.
            self.answer_unhealthy(container);
        }
        self.look_after(container, check, pause);
    }

    fn known_health(&self, row: &Row) -> Known {
        let text = std::fs::read(self.sandbox(row).path().join(FILE)).unwrap_or_default();
        let mut known: Known = serde_json::from_slice(&text).unwrap_or_default();
        if known.health.status.is_empty() {
            STARTING.clone_into(&mut known.health.status);
        }
        known
    }

    fn look_after(&self, container: &Arc<Container>, check: Check, pause: Duration) {
        let Some(task) = container.state().task.as_ref().map(Arc::downgrade) else { return };
        tokio::spawn(look_after(Arc::downgrade(&self.0), container.clone(), task, check, pause));
    }

    /// One probe, from the word that it begins to what it changes.
    async fn probe_health(&self, container: &Arc<Container>, task: &Arc<Task>, check: &Check) {
        let id = ExecId::random();
        self.keep_health(container, Some(id.clone()));
        let (start, up) = (Timestamp::now(), up(&container.state()));
        let probe = Probe { id: &id, command: &check.command, timeout: check.timeout };
        let probed = self.probe(container, task, &probe).await;
        if probed.code != 0 && ends(container, task, probed.code).await {
            return;
        }
        let log = HealthLog {
            start: format!("{start:.9}"),
            end: format!("{:.9}", Timestamp::now()),
            exit_code: probed.code,
            output: probed.output,
        };
        let changed = {
            let mut state = container.state();
            // What was cut short by the container's end or a pause says nothing about it.
            let ours = state.task.as_ref().is_some_and(|current| Arc::ptr_eq(current, task));
            if !ours || state.paused {
                return;
            }
            let Some(health) = state.health.as_mut() else { return };
            check.count(health, log, up).then(|| health.status.clone())
        };
        self.keep_health(container, None);
        if let Some(status) = changed {
            self.publish(&container.row(), &format!("health_status: {status}"), &[]);
            if status == UNHEALTHY {
                self.answer_unhealthy(container);
            }
        }
    }

    /// For the next daemon; what cannot be kept is known again after some probes.
    fn keep_health(&self, container: &Container, probe: Option<ExecId>) {
        let Some(health) = container.state().health.clone() else { return };
        let path = self.sandbox(&container.row()).path().join(FILE);
        let kept = serde_json::to_vec(&Known { health, probe })
            .map_err(std::io::Error::other)
            .and_then(|text| insula_base::replace(&path, &text, 0o600, insula_base::Durability::Process));
        if let Err(error) = kept {
            tracing::warn!(
                container = container.id.short(),
                error = insula_base::chain(&error),
                "keep health"
            );
        }
    }

    /// Does what the container wants done when it becomes unhealthy.
    fn answer_unhealthy(&self, container: &Arc<Container>) {
        let action = OnFailure::of(&container.row().host);
        if action == OnFailure::Nothing {
            return;
        }
        let (engine, container) = (self.clone(), container.clone());
        tokio::spawn(async move {
            if let Err(error) = engine.bring_down_unhealthy(&container, action).await {
                let error = insula_base::chain(&error);
                tracing::warn!(container = container.id.short(), ?action, error, "an unhealthy container");
            }
        });
    }

    async fn bring_down_unhealthy(&self, container: &Arc<Container>, action: OnFailure) -> Result<()> {
        let _turn = container.turn.lock().await;
        let row = container.row();
        let still = container.state().health.as_ref().is_some_and(|health| health.status == UNHEALTHY);
        if !row.running() || !still {
            return Ok(());
        }
        match action {
            OnFailure::Nothing => Ok(()),
            OnFailure::Kill => self.kill_now(container).await,
            OnFailure::Stop => {
                container.change(self.store(), |row| row.stopped = true)?;
                self.bring_down(container, &StopRequest::default()).await?;
                self.publish(&container.row(), "stop", &[]);
                Ok(())
            }
            OnFailure::Restart => {
                let most = u64::try_from(row.host.restart_policy.maximum_retry_count).unwrap_or(0);
                if most != 0 && row.restarts >= most {
                    return Ok(());
                }
                container.change(self.store(), |row| row.again = true)?;
                self.bring_down(container, &StopRequest::default()).await
            }
        }
    }
}

/// Probes until the container has ended or is served by another connection.
async fn look_after(
    engine: Weak<Inner>,
    container: Arc<Container>,
    task: Weak<Task>,
    check: Check,
    mut pause: Duration,
) {
    loop {
        tokio::time::sleep(pause).await;
        let (Some(engine), Some(task)) = (engine.upgrade().map(Engine), task.upgrade()) else { return };
        let (ours, paused) = {
            let state = container.state();
            (state.task.as_ref().is_some_and(|current| Arc::ptr_eq(current, &task)), state.paused)
        };
        if !ours {
            return;
        }
        if !paused {
            engine.probe_health(&container, &task, &check).await;
        }
        let state = container.state();
        let health = state.health.clone().unwrap_or_default();
        pause = check.pause(&health, up(&state));
    }
}

/// Whether it is brought down, has ended or stands still, which a probe that failed may come of: it was cut short or
/// refused, or what it looks for was told to end. Nothing is counted then.
async fn ends(container: &Container, task: &Task, code: i64) -> bool {
    let mut progress = container.subscribe();
    let before = progress.borrow_and_update().exits;
    if container.state().told_to_end {
        return true;
    }
    // What is left in a namespace of processes is killed first, and its first process is over after that.
    let over = progress.wait_for(|now| !now.running || now.exits != before);
    if code == KILLED && tokio::time::timeout(SETTLED, over).await.is_ok() {
        return true;
    }
    match task.call(Call::Status(Empty {}), &[]).await {
        Ok(Outcome::Status(status)) => status.phase() == Phase::Ended || status.frozen,
        _ => true,
    }
}

/// How long it has run.
fn up(state: &State) -> Duration {
    state.uptime.map_or(Duration::ZERO, |uptime| uptime.now())
}

fn since(moment: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(moment)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_models::HealthConfig;

    fn config(check: HealthConfig) -> ContainerConfig {
        ContainerConfig { healthcheck: Some(check), ..ContainerConfig::default() }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn probed(code: i64) -> HealthLog {
        HealthLog { exit_code: code, ..HealthLog::default() }
    }

    fn starting() -> Health {
        Health { status: STARTING.to_owned(), ..Health::default() }
    }

    #[test]
    fn a_check_is_a_command_or_none() {
        let of = |test: &[&str]| command(&config(HealthConfig { test: words(test), ..Default::default() }));
        assert_eq!(of(&["CMD", "curl", "-f", "x"]), Some(words(&["curl", "-f", "x"])));
        assert_eq!(of(&["CMD-SHELL", "true || false"]), Some(words(&["/bin/sh", "-c", "true || false"])));
        for none in [&[][..], &["NONE"], &["CMD"], &["OTHER", "x"]] {
            assert_eq!(of(none), None, "{none:?}");
        }
        let mut own = config(HealthConfig { test: words(&["CMD-SHELL", "x"]), ..Default::default() });
        own.shell = Some(words(&["/bin/bash", "-ec"]));
        assert_eq!(command(&own), Some(words(&["/bin/bash", "-ec", "x"])));
        let check =
            Check::of(&config(HealthConfig { test: words(&["CMD", "x"]), ..Default::default() })).unwrap();
        assert_eq!((check.interval, check.timeout, check.retries), (INTERVAL, TIMEOUT, 3));
    }

    fn check(start_period: u64) -> Check {
        Check {
            command: words(&["x"]),
            interval: INTERVAL,
            timeout: TIMEOUT,
            start_period: Duration::from_secs(start_period),
            start_interval: START_INTERVAL,
            retries: 2,
        }
    }

    #[test]
    fn statuses_follow_dockers_rules() {
        let (check, up) = (check(0), Duration::from_secs(1));
        let mut health = starting();
        assert!(!check.count(&mut health, probed(1), up));
        assert_eq!((health.status.as_str(), health.failing_streak), (STARTING, 1));
        assert!(check.count(&mut health, probed(-1), up));
        assert_eq!((health.status.as_str(), health.failing_streak), (UNHEALTHY, 2));
        assert!(check.count(&mut health, probed(0), up));
        assert_eq!((health.status.as_str(), health.failing_streak), (HEALTHY, 0));
        assert!(!check.count(&mut health, probed(2), up));
        assert_eq!(health.status, HEALTHY);
        for code in 10..20 {
            check.count(&mut health, probed(code), up);
        }
        let codes: Vec<i64> = health.log.iter().map(|log| log.exit_code).collect();
        assert_eq!(codes, [15, 16, 17, 18, 19]);
    }

    #[test]
    fn failures_do_not_count_while_it_starts() {
        let check = check(60);
        let early = Duration::from_secs(59);
        let mut health = starting();
        for _ in 0..4 {
            assert!(!check.count(&mut health, probed(1), early));
        }
        assert_eq!((health.failing_streak, check.pause(&health, early)), (0, START_INTERVAL));
        assert_eq!(check.pause(&health, Duration::from_secs(60)), INTERVAL);
        assert!(check.count(&mut health, probed(0), early));
        assert_eq!(check.pause(&health, early), INTERVAL);
        // Once it was healthy the period is over.
        check.count(&mut health, probed(1), early);
        assert!(check.count(&mut health, probed(1), early));
        assert_eq!(health.status, UNHEALTHY);
    }

    #[test]
    fn actions_come_from_the_flag_or_the_policy() {
        let of = |action: &str, policy: &str| {
            let mut host = HostConfig { health_on_failure: action.into(), ..HostConfig::default() };
            host.restart_policy.name = policy.into();
            OnFailure::of(&host)
        };
        assert_eq!(of("", "always"), OnFailure::Nothing);
        assert_eq!(of("none", "unhealthy"), OnFailure::Restart);
        assert_eq!(of("kill", "unhealthy"), OnFailure::Kill);
        assert_eq!(of("restart", "no"), OnFailure::Restart);
        assert_eq!(of("stop", "no"), OnFailure::Stop);
    }
}
