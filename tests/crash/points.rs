//! Every failpoint once.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use insula_sys::failpoint::ALL;
use insula_tests::images::Compression;
use insula_tests::{Daemon, OnDrop, Outcome, daemon, holds, images, registry, text};

use crate::state::{check, clear};

const PORT: &str = "127.0.0.1::80";

/// A container that has something of everything.
fn create(daemon: &Daemon, name: &str) {
    let made = ["create", "--init", "--name", name, "-v", "/anonymous", "-v", "named:/named", "-p", PORT];
    let size = ["--storage-opt", "size=8m"];
    daemon.insula(&[&made[..], &size, &["busybox", "sleep", "1000"]].concat());
}

fn arm(daemon: &Daemon, point: &str) {
    fs::write(daemon.failpoint_file(), point).unwrap();
}

fn armed(daemon: &Daemon) -> bool {
    daemon.failpoint_file().exists()
}

/// What has to be there for an operation, and the operation; its answer is of no interest.
fn come_by(daemon: &mut Daemon, point: &str) {
    let operation = point.trim_start_matches("monitor.").split('.').next().unwrap();
    if !matches!(point, "monitor.create.listens" | "monitor.create.built") && operation != "create" {
        create(daemon, "box");
        if operation != "start" {
            daemon.insula(&["start", "box"]).ok();
        }
    } else if point.starts_with("monitor.") {
        create(daemon, "box");
    }
    match operation {
        "create" if point.starts_with("monitor.") => {
            arm(daemon, point);
            daemon.insula(&["start", "box"]);
        }
        "create" => {
            arm(daemon, point);
            create(daemon, "box");
        }
        "start" => {
            arm(daemon, point);
            daemon.insula(&["start", "box"]);
        }
        "exit" | "kill" => {
            arm(daemon, point);
            daemon.insula(&["kill", "box"]);
        }
        "stop" => {
            arm(daemon, point);
            daemon.insula(&["stop", "-t", "5", "box"]);
        }
        "remove" => {
            daemon.insula(&["kill", "box"]).ok();
            arm(daemon, point);
            daemon.insula(&["rm", "-v", "box"]);
        }
        "exec" => {
            arm(daemon, point);
            let mut exec = daemon.command(&["exec", "box", "true"]);
            let mut exec = exec.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            holds("the failpoint is passed", || !armed(daemon));
            // It would wait for the next daemon, which knows how the command ended.
            exec.kill().unwrap();
            exec.wait().unwrap();
        }
        "connect" => {
            daemon.api("POST", "/networks/create", r#"{"Name":"second"}"#);
            arm(daemon, point);
            let connect = br#"{"Container":"box"}"#;
            let path = "/networks/second/connect";
            // The daemon dies over it: there is no answer to read.
            let mut socket = std::os::unix::net::UnixStream::connect(daemon.instance().socket()).unwrap();
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n");
            let length = format!("Content-Length: {}\r\n\r\n", connect.len());
            socket.write_all(&[head.as_bytes(), length.as_bytes(), connect].concat()).unwrap();
        }
        "disconnect" => {
            daemon.api("POST", "/networks/create", r#"{"Name":"second"}"#);
            daemon.insula(&["network", "connect", "second", "box"]).ok();
            arm(daemon, point);
            daemon.insula(&["network", "disconnect", "second", "box"]);
        }
        "load" => {
            let mut image = images::busybox();
            image.name = format!("{}:latest", point.replace('.', "-"));
            let layer = images::Layer::default().file("point", 0o644, point.as_bytes());
            image.layers.push(layer.bytes());
            arm(daemon, point);
            daemon.load(&image.docker_archive());
        }
        "volume" => {
            daemon.insula(&["volume", "create", "other"]);
            if point == "volume.row" {
                arm(daemon, point);
                daemon.insula(&["volume", "create", "third"]);
            } else {
                arm(daemon, point);
                daemon.insula(&["volume", "rm", "other"]);
            }
        }
        "daemon" => {
            create(daemon, "other");
            daemon.kill();
            arm(daemon, point);
            assert!(!daemon.try_restart(), "{point} was not passed");
        }
        other => panic!("nothing comes by the failpoints of {other}"),
    }
}

fn programme(mine: impl Fn(&str) -> bool) {
    let mut daemon = daemon!();
    if !daemon.can_fail() {
        return;
    }
    let file = daemon.failpoint_file();
    // Whatever happens, the daemon's own end must not come by an armed failpoint.
    let _disarm = OnDrop(move || drop(fs::remove_file(&file)));
    for (point, _) in ALL.iter().filter(|(point, _)| mine(point)) {
        come_by(&mut daemon, point);
        if point.starts_with("monitor.") {
            insula_tests::eventually(&format!("{point} is passed"), || (!armed(&daemon)).then_some(()));
            if !point.starts_with("monitor.create.") {
                daemon.reaches("box", "exited");
            }
            check(&daemon, &format!("after {point}"));
        } else {
            if !point.starts_with("daemon.") {
                daemon.await_kill();
            }
            assert!(!armed(&daemon), "{point} was not passed");
            daemon.restart();
            check(&daemon, &format!("after {point}"));
        }
        clear(&daemon, &format!("after {point}"));
        daemon.api("DELETE", "/networks/second", "");
    }
}

#[test]
fn killed_at_every_step_of_a_beginning() {
    programme(|point| {
        let begin = ["create.", "start.", "exec.", "connect.", "disconnect.", "load."];
        begin.iter().any(|begin| point.starts_with(begin))
    });
}

/// An operation that makes an image or sends one away, for the first or a second time.
fn make_image(daemon: &Daemon, operation: &str, name: &str) -> Outcome {
    match operation {
        "commit" => daemon.insula(&["commit", "box", name]),
        "pull" => daemon.insula(&["pull", "-q", name]),
        "push" => daemon.insula(&["push", "-q", name]),
        "build" => {
            let context = daemon.folder();
            let steps = format!("FROM busybox\nRUN echo {name} > /made\n");
            fs::write(context.join("Dockerfile"), steps).unwrap();
            daemon.insula(&["build", "--network", "none", "-t", name, text(&context)])
        }
        other => panic!("nothing comes by the failpoints of {other}"),
    }
}

#[test]
fn killed_at_every_step_of_an_image() {
    let registry = registry!();
    let mut daemon = daemon!();
    if !daemon.can_fail() {
        return;
    }
    let file = daemon.failpoint_file();
    let _disarm = OnDrop(move || drop(fs::remove_file(&file)));
    let operations = ["commit", "pull", "push", "build"];
    for (point, _) in ALL {
        let (operation, step) = point.split_once('.').unwrap();
        if !operations.contains(&operation) {
            continue;
        }
        let name = registry.name(&format!("{operation}/{step}:1"));
        let mut image = images::busybox();
        image.layers.push(images::Layer::default().file("point", 0o644, point.as_bytes()).bytes());
        match operation {
            "commit" => drop(daemon.detached(&["--name", "box"], "echo changed > /changed; exec sleep 1000")),
            "pull" => drop(registry.put(&image, &format!("pull/{step}"), "1", Compression::Gzip)),
            "push" => drop(daemon.insula(&["tag", "busybox", &name]).exits(0)),
            _ => {}
        }
        arm(&daemon, point);
        make_image(&daemon, operation, &name);
        daemon.await_kill();
        assert!(!armed(&daemon), "{point} was not passed");
        daemon.restart();
        let when = format!("after {point}");
        check(&daemon, &when);
        let there = daemon.insula(&["image", "inspect", &name]).code == 0;
        assert_eq!(there, operation == "push" || step == "made", "the image, {when}");
        make_image(&daemon, operation, &name).exits(0);
        daemon.insula(&["run", "--rm", "--network", "none", &name, "true"]).exits(0);
        clear(&daemon, &when);
        daemon.insula(&["rmi", &name]).exits(0);
    }
    daemon.insula(&["builder", "prune", "-af"]).exits(0);
}

/// A workload of an image, a network, a volume and two containers as a file.
fn workload(daemon: &Daemon) -> Vec<u8> {
    daemon.insula(&["network", "create", "back"]).ok();
    let script = "echo kept > /stock/count; echo ready; exec sleep 1000";
    daemon.detached(&["--name", "shop", "--network", "back", "-v", "stock:/stock", "-v", "/cache"], script);
    insula_tests::eventually("the script is done", || {
        daemon.insula(&["logs", "shop"]).stdout.contains("ready").then_some(())
    });
    daemon.insula(&["create", "--name", "side", "--network", "container:shop", "busybox", "sleep", "9"]).ok();
    let output = daemon.command(&["bundle", "side", "shop"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Names of all that a workload brings.
fn of_workload(daemon: &Daemon) -> Vec<String> {
    let listed: [&[&str]; 4] = [
        &["ps", "-a", "--format", "{{.Names}}"],
        &["volume", "ls", "-q"],
        &["network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"],
        &["images", "--format", "{{.Repository}}", "busybox"],
    ];
    let mut all: Vec<String> = listed
        .iter()
        .flat_map(|words| daemon.insula(words).ok().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    all.iter_mut().filter(|name| name.len() == 64).for_each(|name| "anonymous".clone_into(name));
    all.sort();
    all
}

#[test]
fn killed_at_every_step_of_a_workload() {
    let here = daemon!();
    let mut there = daemon!(bare);
    if !there.can_fail() {
        return;
    }
    let file = there.failpoint_file();
    let _disarm = OnDrop(move || drop(fs::remove_file(&file)));
    let workload = workload(&here);
    drop(here);
    for (point, _) in ALL.iter().filter(|(point, _)| point.starts_with("unbundle.")) {
        let when = format!("after {point}");
        arm(&there, point);
        there.insula_with(&["unbundle", "--no-start", "-"], &workload);
        there.await_kill();
        assert!(!armed(&there), "{point} was not passed");
        there.restart();
        let expected: &[&str] = match *point {
            "unbundle.made" => &["anonymous", "back", "busybox", "shop", "side", "stock"],
            _ => &[],
        };
        assert_eq!(of_workload(&there), expected, "{when}");
        if expected.is_empty() {
            check(&there, &when);
        } else {
            there.insula(&["start", "shop"]).ok();
            assert_eq!(there.exec("shop", "cat /stock/count").ok(), "kept");
            check(&there, &when);
        }
    }
    clear(&there, "at the end");
    there.insula(&["network", "rm", "back"]).ok();
}

#[test]
fn what_is_held_still_goes_on_when_the_daemon_dies() {
    let mut daemon = daemon!();
    if !daemon.can_fail() {
        return;
    }
    let file = daemon.failpoint_file();
    let _disarm = OnDrop(move || drop(fs::remove_file(&file)));
    for name in ["one", "two", "paused"] {
        daemon.detached(&["--name", name], "exec sleep 1000");
    }
    daemon.insula(&["pause", "paused"]).ok();
    for (point, words) in [
        ("commit.paused", &["commit", "one", "made"][..]),
        ("bundle.paused", &["bundle", "-o", "/dev/null", "one", "two", "paused"]),
    ] {
        arm(&daemon, point);
        daemon.insula(words);
        daemon.await_kill();
        assert!(!armed(&daemon), "{point} was not passed");
        daemon.restart();
        for name in ["one", "two"] {
            assert_eq!(daemon.inspect(name, "/State/Status"), "running", "after {point}");
            daemon.insula(&["exec", name, "true"]).ok();
        }
        // A user's pause is the user's.
        assert_eq!(daemon.inspect("paused", "/State/Status"), "paused", "after {point}");
        daemon.insula(&["commit", "one", "made"]).ok();
    }
    daemon.insula(&["unpause", "paused"]).ok();
    clear(&daemon, "at the end");
    daemon.insula(&["rmi", "made"]).ok();
}

#[test]
fn killed_at_every_step_of_an_end() {
    programme(|point| {
        ["exit.", "stop.", "kill.", "remove.", "volume."].iter().any(|begin| point.starts_with(begin))
    });
}

#[test]
fn killed_at_every_step_of_the_daemons_start() {
    programme(|point| point.starts_with("daemon."));
}

#[test]
fn the_monitor_killed_at_every_step() {
    programme(|point| point.starts_with("monitor."));
}

#[test]
fn every_failpoint_is_in_the_document() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reliability.md");
    let document = fs::read_to_string(path).unwrap();
    let mut missing: Vec<String> = Vec::new();
    for (point, done) in ALL {
        let begin = format!("| `{point}` | {done} |");
        if !document.contains(&begin) {
            missing.push(begin);
        }
    }
    let rows = document.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() == 2);
    let known = rows.filter(|line| ALL.iter().any(|(point, _)| line.starts_with(&format!("| `{point}` |"))));
    assert!(missing.is_empty(), "not in {path}:\n{}", missing.join("\n"));
    assert_eq!(known.count(), ALL.len(), "no row of a failpoint that is gone");
}
