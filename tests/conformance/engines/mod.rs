//! Other people's engines, from Debian's packages, with `insula-runtime` for a runtime.

mod archives;
mod containerd;
mod cri;
pub(crate) mod place;
mod pods;

use std::fs;
use std::process::Command;

use insula_tests::{Outcome, Terminal, docker, holds, program};
use place::Place;

const LIMITS: &str = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; \
                      cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
/// The window has the size of the tests' terminal after a while.
const AT_A_TERMINAL: &str =
    "until test \"$(stty size)\" = '24 80'; do sleep 0.1; done; test -t 2 && echo on a terminal; exit 7";

fn runtime() -> String {
    program("insula-runtime").display().to_string()
}

fn of(mut command: Command) -> Outcome {
    Outcome::of(&mut command, b"")
}

fn at_a_terminal(command: &Command) {
    let mut terminal = Terminal::start(command);
    terminal.expect("on a terminal");
    assert_eq!(terminal.wait(), 7, "{}", terminal.screen());
}

/// What podman and Docker have in common.
fn lives(place: &Place, engine: impl Fn(&[&str]) -> Command) {
    let run = |flags: &[&str], script: &str| {
        let parent = format!("/{}", place.group);
        let own = ["run", "--network", "none", "--cgroup-parent", &parent];
        engine(&[&own[..], flags, &["busybox", "sh", "-c", script]].concat())
    };
    let said = of(run(&["--rm"], "echo out; echo err >&2; exit 3"));
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (3, "out\n", "err\n"), "{said}");
    of(engine(&["run", "--rm", "--network", "none", "busybox", "no-such-program"]))
        .fails(127, &["executable file not found"]);
    at_a_terminal(&run(&["--rm", "-it"], AT_A_TERMINAL));

    of(run(&["-d", "--name", "one", "--memory", "64m", "--pids-limit", "33"], "exec sleep 1000")).ok();
    assert_eq!(of(engine(&["exec", "one", "sh", "-c", LIMITS])).ok(), "33\n67108864");
    let script = "id -u; pwd; echo $X; exit 9";
    let said = of(engine(&["exec", "-u", "5:6", "-w", "/tmp", "-e", "X=1", "one", "sh", "-c", script]));
    assert_eq!((said.code, said.stdout.as_str()), (9, "5\n/tmp\n1\n"), "{said}");
    at_a_terminal(&engine(&["exec", "-it", "one", "sh", "-c", AT_A_TERMINAL]));
    let status = || of(engine(&["inspect", "-f", "{{.State.Status}}", "one"])).ok().to_owned();
    of(engine(&["pause", "one"])).ok();
    assert_eq!(status(), "paused");
    of(engine(&["unpause", "one"])).ok();
    assert_eq!(status(), "running");
    assert_eq!(of(engine(&["stats", "--no-stream", "--format", "{{.PIDs}}", "one"])).ok(), "1");
    of(engine(&["kill", "one"])).ok();
    assert_eq!(of(engine(&["wait", "one"])).ok(), "137");
    of(engine(&["start", "one"])).ok();
    assert_eq!(status(), "running");
    assert!(!place.groups().is_empty());
    // Podman would ask first and wait ten seconds.
    of(engine(&["kill", "one"])).ok();
    of(engine(&["rm", "-f", "one"])).ok();
    holds("nothing is left of the containers", || place.groups().is_empty());
}

/// The engine's own defaults raise limits above what root may have on some hosts.
const CONTAINERS: &str = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
                          [engine]\nevents_logger = \"file\"\n";

/// Storage and settings of podman and buildah.
fn storage(place: &Place, name: &str) -> Command {
    fs::write(place.path("containers.conf"), CONTAINERS).unwrap();
    let mut command = place.command(name);
    command.env("CONTAINERS_CONF", place.path("containers.conf"));
    command.args(["--root", &place.at("root"), "--runroot", &place.at("run"), "--storage-driver", "vfs"]);
    command
}

#[test]
fn podman() {
    let Some(place) = Place::with(&["podman"]) else { return };
    let engine = |arguments: &[&str]| {
        let mut command = storage(&place, "podman");
        command.args(["--tmpdir", &place.at("tmp"), "--network-config-dir", &place.at("networks")]);
        command.args(["--runtime", &runtime(), "--cgroup-manager", "cgroupfs"]).args(arguments);
        command
    };
    of(engine(&["load", "-i", &place.at("busybox.tar")])).ok();
    lives(&place, engine);
    archives::trade(&place, engine);
}

#[test]
fn dockerd() {
    let Some(place) = Place::with(&["dockerd", "containerd"]) else { return };
    let Some(client) = docker() else { return insula_tests::skip("root", "docker.io is missing") };
    let socket = format!("unix://{}", place.at("docker.sock"));
    let engine = |arguments: &[&str]| {
        let mut command = place.command(client.to_str().unwrap());
        command.env("DOCKER_CONFIG", place.path("")).args(["-H", &socket]).args(arguments);
        command
    };
    let key = format!("{{\"deprecated-key-path\": {:?}}}", place.at("key.json"));
    fs::write(place.path("daemon.json"), key).unwrap();
    let mut daemon = place.command("dockerd");
    daemon.args(["-H", &socket, "--config-file", &place.at("daemon.json"), "--pidfile", &place.at("pid")]);
    daemon.args(["--data-root", &place.at("data"), "--exec-root", &place.at("exec")]);
    daemon.args(["--iptables=false", "--ip6tables=false", "--storage-driver", "vfs"]);
    daemon.args(["--add-runtime", &format!("insula={}", runtime()), "--default-runtime", "insula"]);
    place.daemon(&mut daemon, || engine(&["version"]));
    of(engine(&["load", "-i", &place.at("busybox.tar")])).ok();
    lives(&place, engine);
    archives::trade(&place, engine);
    // Docker plugs its network in by a hook of the bundle.
    let parent = format!("/{}", place.group);
    let run = ["run", "--rm", "--cgroup-parent", &parent, "busybox", "ip", "-4", "-o", "addr"];
    of(engine(&run)).shows(&["eth0"]);
}

#[test]
fn buildah() {
    let Some(place) = Place::with(&["buildah"]) else { return };
    let buildah = |arguments: &[&str]| {
        let mut command = storage(&place, "buildah");
        command.args(arguments);
        command
    };
    let parent = format!("/{}", place.group);
    let archive = format!("docker-archive:{}", place.at("busybox.tar"));
    of(buildah(&["pull", &archive])).ok();
    let from = ["from", "--pull-never", "--cgroup-parent", &parent, "--name", "one", "busybox"];
    of(buildah(&from)).ok();
    let run = |script| {
        let own = ["run", "--isolation", "oci", "--runtime", &runtime(), "--network", "none", "one", "--"];
        of(buildah(&[&own[..], &["sh", "-c", script]].concat()))
    };
    assert_eq!(run("id -u; echo made >/made").ok(), "0");
    run("grep -q made /made && exit 3").exits(3);
    fs::create_dir(place.path("context")).unwrap();
    fs::write(place.path("context/Dockerfile"), "FROM busybox\nRUN echo built >/built && cat /built\n")
        .unwrap();
    let build = ["build", "--pull-never", "--isolation", "oci", "--runtime", &runtime(), "--network", "none"];
    let more = ["--cgroup-parent", &parent, "--tag", "built", &place.at("context")];
    of(buildah(&[&build[..], &more].concat())).shows(&["built"]);
    assert!(place.groups().is_empty());
}
