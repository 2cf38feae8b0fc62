//! Monitors that do not answer, stopped as a debugger or an administrator stops them.

use insula_store::Collection;
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// The monitor of a container; ends with the test, whatever becomes of that.
struct Monitor(Pid);

impl Monitor {
    /// That of a container which has just been started.
    async fn of(engine: &Engine, name: &str) -> Self {
        let pid = engine.inspect_container(name, false).await.unwrap().state.pid;
        Self(Pid::from_raw(pid.try_into().unwrap()).unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.0, signal).unwrap();
    }

    /// As far as anybody can see; a zombie is.
    fn is_gone(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.as_raw_pid()));
        stat.map_or(true, |stat| stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
    }
}

/// An engine that starts beside the stopped monitor of a container that it finds running.
async fn beside_a_stopped_one(root: &Path) -> (Engine, Monitor) {
    let engine = engine(root).await;
    create(&engine, "web", request(&["sleep"])).await;
    engine.start_container("web").await.unwrap();
    let monitor = Monitor::of(&engine, "web").await;
    monitor.signal(Signal::STOP);
    (reopened(engine, root).await, monitor)
}

#[tokio::test]
async fn a_daemon_that_starts_beside_a_stopped_monitor_keeps_its_container() {
    let root = tempfile::tempdir().unwrap();
    let (engine, monitor) = beside_a_stopped_one(root.path()).await;
    assert_eq!(status(&engine, "web").await, "running");
    let error = engine.pause_container("web").await.unwrap_err();
    assert!(matches!(error, Error::Silent(_)) && error.to_string().contains("is stopped"), "{error}");
    // Also for the next one.
    let engine = reopened(engine, root.path()).await;
    assert_eq!(status(&engine, "web").await, "running");
    let wait = engine.wait_container("web", WaitCondition::NextExit).await.unwrap();
    monitor.signal(Signal::CONT);
    while matches!(engine.pause_container("web").await, Err(Error::Silent(_))) {
        tokio::task::yield_now().await;
    }
    assert_eq!(status(&engine, "web").await, "paused");
    engine.stop_container("web", StopRequest::default()).await.unwrap();
    assert_eq!(finish(wait).await.status_code, 143);
}

#[tokio::test]
async fn what_is_killed_with_its_monitor_shows_that() {
    let root = tempfile::tempdir().unwrap();
    let (engine, monitor) = beside_a_stopped_one(root.path()).await;
    engine.kill_container("web", None).await.unwrap();
    let state = engine.inspect_container("web", false).await.unwrap().state;
    assert_eq!((state.status.as_str(), state.exit_code, state.error.as_str()), ("exited", 137, ""));
    assert!(monitor.is_gone());
    // The next end is one of its own.
    engine.start_container("web").await.unwrap();
    let wait = engine.wait_container("web", WaitCondition::NextExit).await.unwrap();
    Monitor::of(&engine, "web").await.signal(Signal::KILL);
    assert_eq!(finish(wait).await.status_code, 255);
}

#[tokio::test]
async fn without_a_launch_record_it_is_lost_when_nobody_is_left() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let id = create(&engine, "web", request(&["sleep"])).await;
    engine.start_container("web").await.unwrap();
    let monitor = Monitor::of(&engine, "web").await;
    monitor.signal(Signal::STOP);
    let sandbox = engine.instance().sandbox(&id.parse().unwrap());
    std::fs::remove_file(sandbox.join("launch.json")).unwrap();
    let engine = reopened(engine, root.path()).await;
    assert_eq!(status(&engine, "web").await, "running");
    let wait = engine.wait_container("web", WaitCondition::NextExit).await.unwrap();
    monitor.signal(Signal::KILL);
    assert_eq!(finish(wait).await.status_code, 255);
    assert!(!sandbox.exists(), "its things are freed");
    engine.start_container("web").await.unwrap();
    engine.kill_container("web", None).await.unwrap();
}

#[tokio::test]
async fn a_stopped_monitor_that_nobody_can_reach_is_ended() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let id = create(&engine, "web", request(&["sleep"])).await;
    engine.start_container("web").await.unwrap();
    let monitor = Monitor::of(&engine, "web").await;
    monitor.signal(Signal::STOP);
    let sandbox = engine.instance().sandbox(&id.parse().unwrap());
    std::fs::remove_dir_all(&sandbox).unwrap();
    let engine = reopened(engine, root.path()).await;
    let state = engine.inspect_container("web", false).await.unwrap().state;
    assert_eq!((state.status.as_str(), state.exit_code), ("exited", 255));
    assert!(monitor.is_gone());
}

#[tokio::test]
async fn a_start_that_was_cut_off_is_taken_back_with_its_monitor() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let id = create(&engine, "web", request(&["sleep"])).await;
    engine.start_container("web").await.unwrap();
    let monitor = Monitor::of(&engine, "web").await;
    monitor.signal(Signal::STOP);
    // As if the daemon had been killed before it heard of it.
    let records = engine.store().state().records(Collection::Containers);
    let mut record = records.all().unwrap().into_iter().find(|record| record.id == id).unwrap();
    let mut row: serde_json::Value = serde_json::from_slice(&record.doc).unwrap();
    (row["phase"], row["started"]) = (serde_json::json!({"phase": "starting"}), serde_json::Value::Null);
    record.doc = serde_json::to_vec(&row).unwrap();
    records.replace(&record).unwrap();
    let engine = reopened(engine, root.path()).await;
    assert_eq!(status(&engine, "web").await, "created");
    assert!(monitor.is_gone());
    engine.start_container("web").await.unwrap();
    engine.kill_container("web", None).await.unwrap();
}

/// As a monitor leaves it before it frees what its container had.
fn record_an_end(engine: &Engine, id: &str) {
    let path = engine.instance().sandbox(&id.parse().unwrap()).join("exit.json");
    std::fs::write(path, r#"{"code":7,"oom":false,"at":5}"#).unwrap();
}

#[tokio::test]
async fn an_end_of_which_a_stopped_monitor_has_left_a_record_is_known() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let mut monitors = Vec::new();
    for end in ["before", "after"] {
        let id = create(&engine, end, request(&["sleep"])).await;
        engine.start_container(end).await.unwrap();
        let monitor = Monitor::of(&engine, end).await;
        monitor.signal(Signal::STOP);
        if end == "before" {
            record_an_end(&engine, &id);
        }
        monitors.push(monitor);
    }
    // One has ended before the daemon starts, the other one behind it.
    let engine = reopened(engine, root.path()).await;
    let state = engine.inspect_container("before", false).await.unwrap().state;
    assert_eq!((state.status.as_str(), state.exit_code), ("exited", 7));
    assert_eq!(status(&engine, "after").await, "running");
    let wait = engine.wait_container("after", WaitCondition::NextExit).await.unwrap();
    record_an_end(&engine, &engine.inspect_container("after", false).await.unwrap().id);
    assert_eq!(finish(wait).await.status_code, 7);
    assert!(monitors.iter().all(Monitor::is_gone));
}
