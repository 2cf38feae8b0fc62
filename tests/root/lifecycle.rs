//! The life of a container, and what the commands say of it.

use insula_tests::{daemon, holds};
use serde_json::Value;

const ALONE: &[&str] = &["--network", "none"];

#[test]
fn states_from_created_to_gone() {
    let daemon = daemon!();
    let id = daemon
        .insula(&["create", "--name", "box", "--network", "none", "--init", "busybox", "sleep", "1000"])
        .ok()
        .to_owned();
    assert_eq!(daemon.inspect(&id, "/State/Status"), "created");
    assert_eq!(daemon.insula(&["start", "box"]).ok(), "box");
    assert_eq!(daemon.inspect("box", "/State/Running"), true);
    daemon.insula(&["pause", "box"]).ok();
    assert_eq!(daemon.inspect("box", "/State/Status"), "paused");
    daemon.insula(&["exec", "box", "true"]).fails(1, &["paused"]);
    daemon.insula(&["unpause", "box"]).ok();
    assert_eq!(daemon.inspect("box", "/State/Status"), "running");
    let began = daemon.inspect("box", "/State/StartedAt");
    daemon.insula(&["restart", "-t", "2", "box"]).ok();
    assert_ne!(daemon.inspect("box", "/State/StartedAt"), began);
    daemon.insula(&["stop", "-t", "2", "box"]).ok();
    assert_eq!(daemon.inspect("box", "/State/Status"), "exited");
    assert_eq!(daemon.inspect("box", "/State/ExitCode"), 143);
    daemon.insula(&["rm", "box"]).shows(&["box"]);
    daemon.insula(&["inspect", "box"]).fails(1, &["box"]);
}

/// What goes at its end is not worth to wait for a disk for, and comes back from a restart all the same.
#[test]
fn the_layer_of_a_container_that_goes_is_volatile_and_restarts() {
    let daemon = daemon!();
    let options = |of: &str| {
        daemon.insula(&["exec", of, "sh", "-c", "grep ' / ' /proc/mounts"]).ok().contains("volatile")
    };
    let kept = daemon.sleeper(ALONE);
    assert!(!options(&kept), "one that stays is synced");
    let goes =
        daemon.detached(&["--rm", "--network", "none"], "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    assert!(options(&goes));
    daemon.insula(&["exec", &goes, "sh", "-c", "echo kept >/file && sync"]).ok();
    daemon.insula(&["restart", "-t", "2", &goes]).ok();
    assert!(options(&goes));
    daemon.insula(&["exec", &goes, "cat", "/file"]).shows(&["kept"]);
    daemon.insula(&["stop", "-t", "2", &goes]).ok();
    holds("it goes", || daemon.insula(&["inspect", &goes]).code == 1);
}

/// Half of it would be an end, and with `--rm` one that nobody removes the container after.
#[test]
fn a_restart_goes_on_without_who_asked_for_it() {
    let daemon = daemon!();
    let goes = daemon.detached(
        &["--rm", "--network", "none"],
        "trap 'echo told; sleep 2; exit 0' TERM; echo ready; while :; do sleep 0.05; done",
    );
    holds("the trap is set", || daemon.insula(&["logs", &goes]).stdout.contains("ready"));
    let began = daemon.inspect(&goes, "/State/StartedAt");
    let mut asks = daemon.command(&["restart", "-t", "30", &goes]).spawn().unwrap();
    holds("it is told", || daemon.insula(&["logs", &goes]).stdout.contains("told"));
    asks.kill().unwrap();
    asks.wait().unwrap();
    holds("it runs again", || {
        daemon.inspect(&goes, "/State/Running") == true && daemon.inspect(&goes, "/State/StartedAt") != began
    });
    daemon.insula(&["kill", &goes]).ok();
    holds("it goes", || daemon.insula(&["inspect", &goes]).code == 1);
}

#[test]
fn a_running_container_is_not_removed_without_force() {
    let daemon = daemon!();
    let id = daemon.sleeper(ALONE);
    daemon.insula(&["rm", &id]).fails(1, &["running"]);
    daemon.insula(&["rm", "-f", &id]).ok();
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}

#[test]
fn signals_by_name_and_number() {
    let daemon = daemon!();
    let id = daemon
        .detached(ALONE, "trap 'echo hup' HUP; trap 'exit 5' USR2; echo ready; while :; do sleep 0.05; done");
    holds("the traps are set", || daemon.insula(&["logs", &id]).stdout.contains("ready"));
    daemon.insula(&["kill", "-s", "HUP", &id]).ok();
    holds("the signal arrives", || daemon.insula(&["logs", &id]).stdout.contains("hup"));
    daemon.insula(&["kill", "--signal", "12", &id]).ok();
    assert_eq!(daemon.insula(&["wait", &id]).ok(), "5");
    daemon.insula(&["kill", &id]).fails(1, &["not running"]);
    daemon.insula(&["kill", "-s", "NOSUCH", &id]).fails(1, &["NOSUCH"]);
}

#[test]
fn prefixes_of_ids_name_containers() {
    let daemon = daemon!();
    let id = daemon.sleeper(ALONE);
    assert_eq!(daemon.inspect(&id[..4], "/Id"), id.as_str());
    daemon.insula(&["inspect", "nosuch"]).fails(1, &["nosuch"]);
    daemon.insula(&["stop", "nosuch"]).fails(1, &["No such container", "nosuch"]);
}

#[test]
fn ps_lists_filters_and_formats() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--name", "up", "--network", "none"]);
    daemon.insula(&["run", "--name", "down", "--network", "none", "busybox", "false"]).exits(1);
    daemon.insula(&["ps"]).shows(&[
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "PORTS",
        "NAMES",
        "up",
        "Up ",
        &id[..12],
    ]);
    assert!(!daemon.insula(&["ps"]).stdout.contains("down"));
    daemon.insula(&["ps", "-a"]).shows(&["down", "Exited (1)"]);
    let names = |filter: &str| {
        daemon.insula(&["ps", "-a", "--filter", filter, "--format", "{{.Names}}"]).ok().to_owned()
    };
    assert_eq!(names("status=exited"), "down");
    assert_eq!(names("exited=1"), "down");
    assert_eq!(names("name=u"), "up");
    assert_eq!(names("ancestor=busybox"), "down\nup");
    daemon.insula(&["ps", "--filter", "nosuch=1"]).fails(1, &["nosuch"]);
    let json: Value = serde_json::from_str(daemon.insula(&["ps", "--format", "json"]).ok()).unwrap();
    assert_eq!((json["Names"].as_str(), json["State"].as_str()), (Some("up"), Some("running")));
    assert_eq!(daemon.insula(&["ps", "-a", "--format", "{{.Names}}", "-n", "1"]).ok(), "down");
}

#[test]
fn inspect_has_dockers_fields() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--name", "box", "-e", "A=b", "--network", "none"]);
    for (pointer, want) in [
        ("/Name", Value::from("/box")),
        ("/Path", Value::from("sleep")),
        ("/Args/0", Value::from("1000")),
        ("/Config/Image", Value::from("busybox")),
        ("/Config/Env/0", Value::from("A=b")),
        ("/HostConfig/NetworkMode", Value::from("none")),
        ("/HostConfig/Init", Value::from(true)),
        ("/State/OOMKilled", Value::from(false)),
        ("/RestartCount", Value::from(0)),
    ] {
        assert_eq!(daemon.inspect(&id, pointer), want, "{pointer}");
    }
    assert_eq!(
        daemon.insula(&["inspect", "-f", "{{.State.Status}} {{json .Config.Cmd}}", "box"]).ok(),
        r#"running ["sleep","1000"]"#
    );
    daemon.insula(&["inspect", "-f", "{{.NoSuch", "box"]).fails(64, &["template parsing error"]);
}

#[test]
fn logs_keep_streams_apart_and_can_be_cut() {
    let daemon = daemon!();
    daemon
        .insula(&[
            "run",
            "--name",
            "box",
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            "seq 1 5; echo err >&2",
        ])
        .ok();
    let all = daemon.insula(&["logs", "box"]);
    assert_eq!((all.stdout.as_str(), all.stderr.as_str()), ("1\n2\n3\n4\n5\n", "err\n"));
    assert_eq!(daemon.insula(&["logs", "-n", "2", "box"]).stdout.lines().count() + 1, 2);
    let stamped = daemon.insula(&["logs", "-t", "--tail", "1", "box"]);
    let line = format!("{}{}", stamped.stdout, stamped.stderr);
    assert!(line.starts_with("20") && line.contains("Z "), "{stamped}");
    assert_eq!(daemon.insula(&["logs", "--since", "2100-01-01T00:00:00Z", "box"]).stdout, "");
    daemon.insula(&["logs", "nosuch"]).fails(1, &["nosuch"]);
}

#[test]
fn logs_follow_to_the_end() {
    let daemon = daemon!();
    let id = daemon.detached(ALONE, "while test ! -e /go; do sleep 0.02; done; seq 1 1000; echo last");
    let mut follow = daemon.command(&["logs", "-f", &id]);
    let follow = std::thread::spawn(move || insula_tests::Outcome::of(&mut follow, b""));
    daemon.exec(&id, "touch /go").ok();
    let outcome = follow.join().unwrap();
    assert_eq!(outcome.ok().lines().count(), 1001);
    assert!(outcome.ok().ends_with("last"));
}

#[test]
fn top_and_rename() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--name", "old", "--network", "none"]);
    daemon.insula(&["top", "old"]).shows(&["PID", "sleep 1000"]);
    daemon.insula(&["rename", "old", "new"]).ok();
    assert_eq!(daemon.inspect("new", "/Id"), id.as_str());
    daemon.insula(&["inspect", "old"]).exits(1);
    daemon.sleeper(&["--name", "other", "--network", "none"]);
    daemon.insula(&["rename", "new", "other"]).fails(1, &["other", "in use"]);
}

#[test]
fn wait_prints_the_exit_code() {
    let daemon = daemon!();
    let id = daemon.detached(ALONE, "while test ! -e /go; do sleep 0.02; done; exit 17");
    let mut wait = daemon.command(&["wait", &id]);
    let wait = std::thread::spawn(move || insula_tests::Outcome::of(&mut wait, b""));
    daemon.exec(&id, "touch /go").ok();
    assert_eq!(wait.join().unwrap().ok(), "17");
}

#[test]
fn attach_sees_output_and_exit_code() {
    let daemon = daemon!();
    let id = daemon
        .insula(&[
            "run",
            "-d",
            "-i",
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            "read line; echo got $line; exit 4",
        ])
        .ok()
        .to_owned();
    let outcome = daemon.insula_with(&["attach", &id], b"word\n");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (4, "got word\n"), "{outcome}");
}

#[test]
fn events_tell_the_story() {
    let mut daemon = daemon!();
    daemon.sh(&["--name", "box", "--network", "none"], "exit 3").exits(3);
    let now = daemon.insula(&[
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--format",
        "{{.Action}}",
        "--filter",
        "type=container",
    ]);
    let actions: Vec<&str> = now.ok().lines().collect();
    let order: Vec<usize> = ["create", "start", "die", "destroy"]
        .iter()
        .map(|action| {
            actions.iter().position(|have| have == action).unwrap_or_else(|| panic!("{action}: {actions:?}"))
        })
        .collect();
    assert!(order.is_sorted(), "{actions:?}");
    let json = daemon.insula(&[
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--format",
        "json",
        "--filter",
        "event=die",
    ]);
    let event: Value = serde_json::from_str(json.ok().lines().next().unwrap()).unwrap();
    assert_eq!(event["Actor"]["Attributes"]["exitCode"], "3");
    // The next daemon tells the same story.
    let story = ["events", "--since", "1h", "--until", "0s", "--filter", "container=box"];
    let before = daemon.insula(&story).ok().to_owned();
    daemon.kill();
    daemon.restart();
    assert_eq!(daemon.insula(&story).ok(), before);
}

#[test]
fn version_and_info() {
    let daemon = daemon!();
    daemon.insula(&["version"]).shows(&["Client", "Server", "API version"]);
    daemon.insula(&["info"]).shows(&["Containers: 0", "Cgroup Version", "Kernel Version"]);
    assert_eq!(daemon.insula(&["info", "-f", "{{.ContainersRunning}}"]).ok(), "0");
    let version = daemon.api("GET", "/version", "").json();
    assert!(version["ApiVersion"].as_str().unwrap().starts_with("1."));
}
