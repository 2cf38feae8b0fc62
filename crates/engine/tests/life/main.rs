//! The life of containers over a monitor that builds nothing: what the daemon does by itself, without
//! privileges. Walls are tested where they are.

#![allow(clippy::unwrap_used)]

mod monitor;
mod oldest;
mod silent;

use std::collections::HashSet;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use insula_base::{Instance, Kind, Kinded};
use insula_engine::containers::{Change, ListRequest, RemoveRequest, StopRequest, WaitCondition};
use insula_engine::events::EventFilter;
use insula_engine::{AttachOptions, AttachedStream, Config, Engine, Error};
use insula_models::{
    ContainerCreateRequest, ExecCreateRequest, ExecStartRequest, HostConfig, RestartPolicy, WaitResponse,
};

/// The engine starts this very program as `PROGRAM serve`, and the test harness then runs what has that
/// in its name.
#[test]
fn serve() {
    let control = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let is_socket = rustix::net::sockopt::socket_type(&control).is_ok();
    if is_socket && std::env::args().nth(1).as_deref() == Some("serve") {
        monitor::serve(UnixStream::from(control));
    }
}

fn config(root: &Path) -> Config {
    let instance = Instance::new(root.join("root"), root.join("run"));
    Config {
        instance,
        monitor: std::env::current_exe().unwrap(),
        agent: "/nonexistent".into(),
        vmm: "/nonexistent".into(),
        vm_backend: None,
        vm_templates: false,
        vm_boot_timeout: 180,
        storage: Default::default(),
        registries: Default::default(),
        policy: Default::default(),
        sites: insula_engine::SiteOptions {
            proxy: "/no/such/proxy".into(),
            http: Vec::new(),
            https: Vec::new(),
            certificates: "/no/such/folder".into(),
        },
        network: Default::default(),
    }
}

async fn engine(root: &Path) -> Engine {
    Engine::open(config(root)).await.unwrap()
}

/// As `kill -9` and a start: everything in memory is gone.
async fn reopened(engine: Engine, root: &Path) -> Engine {
    drop(engine);
    open(root).await
}

fn request(command: &[&str]) -> ContainerCreateRequest {
    ContainerCreateRequest {
        image: "host".into(),
        cmd: Some(command.iter().map(|word| (*word).to_owned()).collect()),
        host_config: HostConfig { network_mode: "none".into(), ..HostConfig::default() },
        ..ContainerCreateRequest::default()
    }
}

async fn create(engine: &Engine, name: &str, request: ContainerCreateRequest) -> String {
    engine.create_container(Some(name.to_owned()), None, request).await.unwrap().0.id
}

async fn status(engine: &Engine, name: &str) -> String {
    engine.inspect_container(name, false).await.unwrap().state.status
}

async fn run(engine: &Engine, name: &str, command: &[&str]) -> WaitResponse {
    create(engine, name, request(command)).await;
    let wait = engine.wait_container(name, WaitCondition::NextExit).await.unwrap();
    engine.start_container(name).await.unwrap();
    finish(wait).await
}

/// Waits for so many events of a container, counted from the engine's beginning on.
async fn told(engine: &Engine, name: &str, action: &str, times: usize) {
    let filters = [("container", name), ("event", action)];
    let filters = filters.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into();
    let filter = EventFilter::new(filters).unwrap();
    let mut events = engine.events().subscribe(filter, Some(jiff::Timestamp::UNIX_EPOCH), None);
    for _ in 0..times {
        tokio::time::timeout(Duration::from_secs(60), events.next()).await.unwrap().unwrap();
    }
}

async fn finish(wait: insula_engine::containers::ContainerWait) -> WaitResponse {
    tokio::time::timeout(Duration::from_secs(60), wait.finish()).await.unwrap()
}

/// Those of containers: the names of such as are to come begin with a dot.
fn folders_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    entries.map(|name| name.into_string().unwrap()).filter(|name| !name.starts_with('.')).collect()
}

#[tokio::test]
async fn a_container_runs_ends_and_goes() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    assert_eq!(run(&engine, "web", &["exit", "3"]).await.status_code, 3);
    let state = engine.inspect_container("/web", false).await.unwrap().state;
    assert_eq!((state.status.as_str(), state.exit_code), ("exited", 3));
    assert!(!state.finished_at.starts_with("0001"));
    // Again, from the same row.
    let wait = engine.wait_container("web", WaitCondition::NextExit).await.unwrap();
    assert_eq!(engine.start_container("web").await.unwrap(), Change::Done);
    assert_eq!(finish(wait).await.status_code, 3);
    let gone = engine.wait_container("web", WaitCondition::Removed).await.unwrap();
    engine.remove_container("web", RemoveRequest::default()).await.unwrap();
    finish(gone).await;
    let error = engine.inspect_container("web", false).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (Kind::NotFound, "No such container: web".into()));
    for folder in ["root/containers", "run/sandboxes"] {
        assert_eq!(folders_in(&root.path().join(folder)), Vec::<String>::new());
    }
}

#[tokio::test]
async fn names_are_unique_and_may_change() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let first = create(&engine, "one", request(&["sleep"])).await;
    let error = engine.create_container(Some("one".into()), None, request(&["sleep"])).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains("\"/one\"") && error.to_string().contains(&first), "{error}");
    create(&engine, "two", request(&["sleep"])).await;
    assert_eq!(engine.rename_container("two", "one").await.unwrap_err().kind(), Kind::Conflict);
    engine.rename_container("one", "three").await.unwrap();
    assert_eq!(engine.inspect_container("three", false).await.unwrap().id, first);
    assert!(engine.inspect_container("one", false).await.is_err());
    assert_eq!(engine.inspect_container(&first[..12], false).await.unwrap().name, "/three");
}

#[tokio::test]
async fn names_that_nobody_asked_for_are_given_once() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let mut creating = tokio::task::JoinSet::new();
    // Enough to meet one another: there are some thousand pairs of words.
    for _ in 0..200 {
        let engine = engine.clone();
        creating.spawn(async move { engine.create_container(None, None, request(&["sleep"])).await });
    }
    while let Some(created) = creating.join_next().await {
        created.unwrap().unwrap();
    }
    let names: HashSet<_> = engine
        .store()
        .state()
        .records(insula_store::Collection::Containers)
        .all()
        .unwrap()
        .into_iter()
        .map(|record| record.name)
        .collect();
    assert_eq!(names.len(), 200);
}

#[tokio::test]
async fn what_cannot_be_created_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let mut bad = request(&["sleep"]);
    bad.host_config.volumes_from = vec!["nobody".into()];
    // Not found is the image alone: clients pull it.
    assert_eq!(engine.create_container(None, None, bad).await.unwrap_err().kind(), Kind::InvalidArgument);
    let missing = ContainerCreateRequest { image: "nothere".into(), ..request(&["sleep"]) };
    let error = engine.create_container(None, None, missing).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (Kind::NotFound, "No such image: nothere:latest".into()));
    // The source of a bind that cannot be made, after the row was written.
    std::fs::write(root.path().join("file"), "").unwrap();
    let mut bad = request(&["sleep"]);
    bad.host_config.binds =
        vec!["fresh:/fresh".into(), format!("{}:/x", root.path().join("file/below").display())];
    engine.create_container(None, None, bad).await.unwrap_err();
    let all = ListRequest { all: true, ..ListRequest::default() };
    assert!(engine.list_containers(all).await.unwrap().is_empty());
    assert_eq!(folders_in(&root.path().join("root/containers")), Vec::<String>::new());
    assert!(engine.store().state().allocations().all("ids").unwrap().is_empty());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_said_with_its_code() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    create(&engine, "web", request(&["missing"])).await;
    let error = engine.start_container("web").await.unwrap_err();
    assert!(matches!(&error, Error::Wall { exit_code: Some(127), .. }), "{error:?}");
    let state = engine.inspect_container("web", false).await.unwrap().state;
    assert_eq!((state.status.as_str(), state.exit_code), ("created", 127));
    assert!(state.error.contains("executable file not found"), "{}", state.error);
    let mut once = request(&["missing"]);
    once.host_config.auto_remove = true;
    create(&engine, "once", once).await;
    engine.start_container("once").await.unwrap_err();
    assert!(engine.inspect_container("once", false).await.is_err());
}

#[tokio::test]
async fn stop_asks_first_and_kills_then() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    for (name, word, code) in [("kind", "sleep", 143), ("deaf", "deaf", 137), ("late", "late", 137)] {
        create(&engine, name, request(&[word])).await;
        engine.start_container(name).await.unwrap();
        assert_eq!(engine.start_container(name).await.unwrap(), Change::Nothing);
        let error = engine.remove_container(name, RemoveRequest::default()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        let patience = StopRequest { timeout: Some(0), ..StopRequest::default() };
        let patience = if word == "sleep" { StopRequest::default() } else { patience };
        assert_eq!(engine.stop_container(name, patience).await.unwrap(), Change::Done);
        assert_eq!(engine.stop_container(name, StopRequest::default()).await.unwrap(), Change::Nothing);
        assert_eq!(engine.inspect_container(name, false).await.unwrap().state.exit_code, code);
        assert_eq!(engine.kill_container(name, None).await.unwrap_err().kind(), Kind::Conflict);
        engine.remove_container(name, RemoveRequest { force: true, ..Default::default() }).await.unwrap();
    }
}

#[tokio::test]
async fn rm_is_done_by_the_daemon() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let mut once = request(&["exit", "5"]);
    once.host_config.auto_remove = true;
    let id = create(&engine, "once", once).await;
    let wait = engine.wait_container("once", WaitCondition::Removed).await.unwrap();
    engine.start_container("once").await.unwrap();
    assert_eq!(finish(wait).await.status_code, 5);
    // By its id it is still known how it ended, for who could not wait; its name is free.
    let late = engine.wait_container(&id, WaitCondition::NotRunning).await.unwrap();
    assert_eq!(finish(late).await.status_code, 5);
    assert!(engine.wait_container("once", WaitCondition::NotRunning).await.is_err());
    assert!(engine.inspect_container("once", false).await.is_err());
    assert!(engine.store().state().allocations().all("ids").unwrap().is_empty());
}

#[tokio::test]
async fn clients_attach_before_and_after_the_start() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    create(&engine, "web", request(&["sleep"])).await;
    let options = AttachOptions { stdout: true, stream: true, ..AttachOptions::default() };
    let attach = async |engine: &Engine| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = AttachedStream { descriptor: OwnedFd::from(theirs), already_read: Vec::new() };
        engine.attach("web", options.clone(), stream).await.unwrap();
        ours
    };
    let hear = async |mut socket: UnixStream| {
        tokio::task::spawn_blocking(move || {
            let mut bytes = [0; 14];
            socket.read_exact(&mut bytes).unwrap();
            bytes
        })
        .await
        .unwrap()
    };
    let early = attach(&engine).await;
    engine.start_container("web").await.unwrap();
    assert_eq!(&hear(early).await, b"\x01\0\0\0\0\0\0\x06hello\n");
    assert_eq!(&hear(attach(&engine).await).await, b"\x01\0\0\0\0\0\0\x06hello\n");
    engine.kill_container("web", None).await.unwrap();
}

#[tokio::test]
async fn execs_have_codes_of_their_own() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    create(&engine, "web", request(&["sleep"])).await;
    let exec = |words: &[&str]| ExecCreateRequest {
        cmd: words.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecCreateRequest::default()
    };
    let error = engine.create_exec("web", exec(&["ls"])).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    engine.start_container("web").await.unwrap();
    let id = engine.create_exec("web", exec(&["exit", "7"])).await.unwrap().id;
    engine.start_exec(&id, ExecStartRequest::default(), None).await.unwrap();
    let code = loop {
        if let Some(code) = engine.inspect_exec(&id).await.unwrap().exit_code {
            break code;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(code, 7);
    let again = engine.start_exec(&id, ExecStartRequest::default(), None).await.unwrap_err();
    assert_eq!(again.kind(), Kind::Conflict);
    let id = engine.create_exec("web", exec(&["missing"])).await.unwrap().id;
    engine.start_exec(&id, ExecStartRequest::default(), None).await.unwrap_err();
    assert_eq!(engine.inspect_exec(&id).await.unwrap().exit_code, Some(127));
    assert_eq!(engine.inspect_exec("nothere").await.unwrap_err().kind(), Kind::NotFound);
    engine.kill_container("web", None).await.unwrap();
    assert_eq!(engine.inspect_exec(&id).await.unwrap().exit_code, Some(127));
}

#[tokio::test]
async fn pause_is_a_state() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    create(&engine, "web", request(&["sleep"])).await;
    assert_eq!(engine.pause_container("web").await.unwrap_err().kind(), Kind::Conflict);
    engine.start_container("web").await.unwrap();
    engine.pause_container("web").await.unwrap();
    assert_eq!(status(&engine, "web").await, "paused");
    assert_eq!(engine.pause_container("web").await.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(engine.start_container("web").await.unwrap_err().kind(), Kind::Conflict);
    let engine = reopened(engine, root.path()).await;
    assert_eq!(status(&engine, "web").await, "paused");
    engine.unpause_container("web").await.unwrap();
    assert_eq!(status(&engine, "web").await, "running");
    engine.remove_container("web", RemoveRequest { force: true, ..Default::default() }).await.unwrap();
}

#[tokio::test]
async fn a_monitor_that_vanishes_is_a_lost_container() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    create(&engine, "web", request(&["vanish"])).await;
    let wait = engine.wait_container("web", WaitCondition::NextExit).await.unwrap();
    engine.start_container("web").await.unwrap();
    let _ = engine.kill_container("web", Some("TERM")).await;
    let ended = finish(wait).await;
    assert_eq!(ended.status_code, 255);
    let state = engine.inspect_container("web", false).await.unwrap().state;
    assert!(state.error.contains("without leaving its exit code"), "{}", state.error);
}

/// All of the engine is on one thread here: whoever waits on it for the disk holds everything up.
#[tokio::test]
async fn an_end_that_waits_for_the_disk_holds_nobody_up() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let id = create(&engine, "web", request(&["sleep"])).await;
    engine.start_container("web").await.unwrap();
    let wait = engine.wait_container("web", WaitCondition::NextExit).await.unwrap();
    let (store, (hold, held), (release, released)) = (engine.store().clone(), channel(), channel::<()>());
    let holder = std::thread::spawn(move || {
        store.state().transaction(|_| {
            hold.send(()).unwrap();
            Ok::<_, insula_store::Error>(released.recv_timeout(Duration::from_secs(60)))
        })
    });
    held.recv().unwrap();
    let task = engine.instance().sandbox(&id.parse().unwrap()).join("task.sock");
    tokio::task::spawn_blocking(move || signal(&task, 15)).await.unwrap();
    // Until the engine knows of the end, which it can write nowhere.
    let exec = ExecCreateRequest { cmd: vec!["ls".to_owned()], ..ExecCreateRequest::default() };
    while engine.create_exec("web", exec.clone()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // And on until it waits.
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
    release.send(()).unwrap();
    assert_eq!(holder.join().unwrap().unwrap(), Ok(()), "nobody was held up");
    assert_eq!(finish(wait).await.status_code, 143);
}

#[tokio::test]
async fn a_failed_start_of_which_something_is_left_is_over() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let id = create(&engine, "web", request(&["sleep"])).await;
    let sandbox = engine.instance().sandbox(&id.parse().unwrap());
    // What cannot be removed as a folder can.
    std::fs::create_dir_all(sandbox.parent().unwrap()).unwrap();
    std::fs::write(&sandbox, "").unwrap();
    let error = engine.start_container("web").await.unwrap_err();
    assert!(error.to_string().starts_with("remove"), "{error}");
    let state = engine.inspect_container("web", false).await.unwrap().state;
    assert_eq!((state.status.as_str(), state.exit_code), ("created", 128));
    std::fs::remove_file(&sandbox).unwrap();
    engine.start_container("web").await.unwrap();
    engine.kill_container("web", None).await.unwrap();
    engine.remove_container("web", RemoveRequest::default()).await.unwrap();
}

#[tokio::test]
async fn policies_start_again_until_a_user_stops() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let mut always = request(&["exit", "1"]);
    always.host_config.restart_policy = RestartPolicy { name: "on-failure".into(), maximum_retry_count: 2 };
    create(&engine, "twice", always).await;
    engine.start_container("twice").await.unwrap();
    told(&engine, "twice", "die", 3).await;
    let found = engine.inspect_container("twice", false).await.unwrap();
    assert_eq!((found.restart_count, found.state.status.as_str()), (2, "exited"));
    let mut forever = request(&["sleep"]);
    forever.host_config.restart_policy.name = "always".into();
    create(&engine, "forever", forever).await;
    engine.start_container("forever").await.unwrap();
    engine.stop_container("forever", StopRequest::default()).await.unwrap();
    assert_eq!(status(&engine, "forever").await, "exited");
}

#[tokio::test]
async fn what_another_boot_left_is_not_taken_over() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    let mut tasks = Vec::new();
    for (name, policy) in [("always", "always"), ("never", "no")] {
        let mut sleeps = request(&["vanish"]);
        sleeps.host_config.restart_policy.name = policy.into();
        let id = create(&engine, name, sleeps).await;
        engine.start_container(name).await.unwrap();
        // As if it had been started before the host was.
        let records = engine.store().state().records(insula_store::Collection::Containers);
        let mut record = records.all().unwrap().into_iter().find(|record| record.id == id).unwrap();
        let mut row: serde_json::Value = serde_json::from_slice(&record.doc).unwrap();
        row["boot"] = "another".into();
        record.doc = serde_json::to_vec(&row).unwrap();
        records.replace(&record).unwrap();
        tasks.push(engine.instance().sandbox(&id.parse().unwrap()).join("task.sock"));
    }
    drop(engine);
    for task in tasks {
        tokio::task::spawn_blocking(move || signal(&task, 15)).await.unwrap();
    }
    let engine = open(root.path()).await;
    let never = engine.inspect_container("never", false).await.unwrap().state;
    assert_eq!((never.status.as_str(), never.exit_code), ("exited", 255));
    assert!(never.error.contains("started anew"), "{}", never.error);
    // The former engine's start counts too.
    told(&engine, "always", "start", 2).await;
    assert_eq!(status(&engine, "always").await, "running");
    engine.remove_container("always", RemoveRequest { force: true, ..Default::default() }).await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_was_killed_finds_everything_again() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    create(&engine, "runs", request(&["sleep"])).await;
    create(&engine, "ends", request(&["sleep"])).await;
    let mut once = request(&["sleep"]);
    once.host_config.auto_remove = true;
    create(&engine, "once", once).await;
    create(&engine, "never", request(&["sleep"])).await;
    for name in ["runs", "ends", "once"] {
        engine.start_container(name).await.unwrap();
    }
    let instance = engine.instance().clone();
    let socket = |id: &str| instance.sandbox(&id.parse().unwrap()).join("task.sock");
    let id = |name: &'static str| {
        let engine = engine.clone();
        async move { engine.inspect_container(name, false).await.unwrap().id }
    };
    let (ends, once) = (socket(&id("ends").await), socket(&id("once").await));
    drop(engine);
    // They end while nobody is there to see it.
    for path in [ends, once] {
        tokio::task::spawn_blocking(move || signal(&path, 15)).await.unwrap();
    }
    // What a crash in the middle of other things leaves.
    let stray = "f".repeat(64);
    std::fs::create_dir_all(root.path().join("root/containers").join(&stray).join("upper")).unwrap();
    std::fs::create_dir_all(root.path().join("run/sandboxes").join(&stray)).unwrap();
    let engine = open(root.path()).await;
    assert_eq!(status(&engine, "runs").await, "running");
    assert_eq!(status(&engine, "never").await, "created");
    let ended = engine.inspect_container("ends", false).await.unwrap().state;
    assert_eq!((ended.status.as_str(), ended.exit_code), ("exited", 143));
    assert!(engine.inspect_container("once", false).await.is_err());
    for folder in ["root/containers", "run/sandboxes"] {
        assert!(!root.path().join(folder).join(&stray).exists(), "{folder}");
    }
    let wait = engine.wait_container("runs", WaitCondition::NextExit).await.unwrap();
    engine.stop_container("runs", StopRequest::default()).await.unwrap();
    assert_eq!(finish(wait).await.status_code, 143);
}

/// Opens an engine; threads of the former one may still have the store, which is waited for.
async fn open(root: &Path) -> Engine {
    Engine::open(config(root)).await.unwrap()
}

/// Signals a container beside the daemon, and waits until its monitor is gone.
fn signal(task: &Path, signal: i32) {
    use insula_proto::{Call, Request, Signal, encode};
    use std::io::Write;
    let mut socket = UnixStream::connect(task).unwrap();
    let call = Call::Signal(Signal { signal, ..Signal::default() });
    socket.write_all(&encode(&Request::new(1, call))).unwrap();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
}

/// Kinds, subjects and outcomes of a check.
async fn checked(engine: &Engine, repair: insula_engine::check::Repair) -> Vec<insula_models::CheckFinding> {
    let (sender, mut lines) = tokio::sync::mpsc::channel(16);
    let engine = engine.clone();
    tokio::spawn(async move { engine.check(repair, sender).await });
    let mut found = Vec::new();
    while let Some(line) = lines.recv().await {
        assert_eq!(line.error, "");
        found.extend(line.finding);
    }
    found
}

#[tokio::test]
async fn ids_that_nobody_has_are_free_again() {
    use insula_engine::check::Repair;
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    create(&engine, "one", request(&["sleep"])).await;
    assert_eq!(checked(&engine, Repair::No).await, []);
    let allocations = engine.store().state().allocations();
    allocations.allocate("ids", 900..901, None, &"ab".repeat(32)).unwrap();
    for repair in [Repair::No, Repair::Yes] {
        let found = checked(&engine, repair).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].kind.as_str(), found[0].subject.as_str()), ("ids", "900"));
        assert_eq!(found[0].repaired, if repair == Repair::Yes { "free again" } else { "" });
    }
    assert_eq!(checked(&engine, Repair::No).await, []);
    assert!(!allocations.all("ids").unwrap().iter().any(|allocation| allocation.number == 900));
}

/// A downgrade: what runs is left to a daemon that understands it.
#[tokio::test]
async fn the_first_monitors_are_served_and_taken_over() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    create(&engine, "old", request(&["sleep", "oldest"])).await;
    engine.start_container("old").await.unwrap();
    let exec = async |engine: &Engine, code: &str| {
        let words = ["exit", code].map(str::to_owned);
        let request = ExecCreateRequest { cmd: words.into(), ..ExecCreateRequest::default() };
        let id = engine.create_exec("old", request).await.unwrap().id;
        engine.start_exec(&id, ExecStartRequest::default(), None).await.unwrap();
        loop {
            if let Some(code) = engine.inspect_exec(&id).await.unwrap().exit_code {
                break code;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(exec(&engine, "7").await, 7);
    engine.pause_container("old").await.unwrap();
    let engine = reopened(engine, root.path()).await;
    assert_eq!(status(&engine, "old").await, "paused");
    engine.unpause_container("old").await.unwrap();
    assert_eq!(exec(&engine, "8").await, 8);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let options = AttachOptions { stdout: true, stream: true, ..AttachOptions::default() };
    let stream = AttachedStream { descriptor: OwnedFd::from(theirs), already_read: Vec::new() };
    engine.attach("old", options, stream).await.unwrap();
    let mut hello = [0; 14];
    ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    tokio::task::spawn_blocking(move || ours.read_exact(&mut hello).map(|()| hello)).await.unwrap().unwrap();
    let wait = engine.wait_container("old", WaitCondition::NextExit).await.unwrap();
    engine.stop_container("old", StopRequest::default()).await.unwrap();
    assert_eq!(finish(wait).await.status_code, 143);
}

#[test]
fn the_first_monitors_pass_over_what_came_later() {
    use insula_proto::{Call, Empty, ExecExited, Outcome, Reply, Request, Rewire, Signal, Status};
    let heard = |call| oldest::heard(&Request::new(1, call));
    assert_eq!(heard(Call::Rewire(Rewire::default())), None);
    assert_eq!(heard(Call::Resolver(Empty {})), None);
    let group = |group| Call::Signal(Signal { signal: 9, group, ..Signal::default() });
    assert_eq!(heard(group(true)), Some(group(false)));
    let status = Status { pid: 5, execs: vec!["e".into()], ..Status::default() };
    let more = Status { ended_execs: vec![ExecExited::default()], ..status.clone() };
    let said = oldest::said(&Reply { id: 1, outcome: Some(Outcome::Status(more)) });
    assert_eq!(said.outcome, Some(Outcome::Status(status)));
}

#[tokio::test]
async fn a_monitor_of_a_newer_protocol_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let engine = engine(root.path()).await;
    create(&engine, "future", request(&["future"])).await;
    engine.start_container("future").await.unwrap();
    drop(engine);
    let error = Engine::open(config(root.path())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("future") && error.to_string().contains("version 99"), "{error}");
    let instance = config(root.path()).instance;
    let sandbox = std::fs::read_dir(instance.run().join("sandboxes")).unwrap().next().unwrap().unwrap();
    // When its monitor has ended nothing stands in the way any more.
    signal(&sandbox.path().join("task.sock"), 9);
    let engine = open(root.path()).await;
    assert_eq!(status(&engine, "future").await, "exited");
}
