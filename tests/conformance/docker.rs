//! Docker's own command line against the daemon's socket.

use std::process::Command;

use insula_tests::images::busybox;
use insula_tests::{Daemon, Outcome, Terminal, daemon, docker, text};

struct Docker {
    daemon: Daemon,
    program: std::path::PathBuf,
}

impl Docker {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("DOCKER_HOST", format!("unix://{}", self.daemon.instance().socket().display()));
        // No configuration of the user who runs the tests, and no context.
        command.env("DOCKER_CONFIG", self.daemon.folder()).env_remove("DOCKER_CONTEXT").args(arguments);
        command
    }

    fn docker(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(arguments), b"")
    }
}

/// A daemon and a client, or the end of the test.
macro_rules! docker {
    () => {{
        let daemon = daemon!();
        let Some(program) = docker() else {
            return insula_tests::skip("root", "docker's command line (Debian package docker.io) is missing");
        };
        Docker { daemon, program }
    }};
}

const ALONE: &[&str] = &["run", "--rm", "--network", "none"];

fn run(rest: &[&'static str]) -> Vec<&'static str> {
    [ALONE, rest].concat()
}

#[test]
fn run_passes_output_and_exit_codes() {
    let docker = docker!();
    let outcome = docker.docker(&run(&["busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]));
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "out\n", "err\n"));
    docker.docker(&run(&["busybox", "/no/such"])).exits(127);
    docker.docker(&run(&["busybox", "/etc/plain"])).exits(126);
    docker.docker(&run(&["nosuch:image", "true"])).exits(125);
    let through = Outcome::of(&mut docker.command(&run(&["-i", "busybox", "cat"])), b"through");
    assert_eq!(through.ok(), "through");
    docker.docker(&["run", "--rm", "busybox", "ip", "addr", "show", "eth0"]).shows(&["inet "]);
}

#[test]
fn run_at_a_terminal() {
    let docker = docker!();
    let mut terminal = Terminal::start(&docker.command(&run(&["-it", "busybox", "sh"])));
    terminal.expect("/ # ");
    terminal.send("echo $((6 * 7)); stty size\n");
    terminal.expect("42");
    terminal.send("exit 5\n");
    assert_eq!(terminal.wait(), 5);
}

#[test]
fn ps_exec_logs_stop_and_rm() {
    let docker = docker!();
    let id = docker.docker(&[
        "run",
        "-d",
        "--name",
        "box",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "echo started; exec sleep 1000",
    ]);
    docker.docker(&["ps"]).shows(&["box", "busybox", &id.ok()[..12]]);
    assert_eq!(docker.docker(&["exec", "box", "sh", "-c", "hostname; exit 3"]).code, 3);
    let mut terminal = Terminal::start(&docker.command(&["exec", "-it", "box", "sh"]));
    terminal.expect("/ # ");
    terminal.send("exit 4\n");
    assert_eq!(terminal.wait(), 4);
    let mut follow = docker.command(&["logs", "-f", "box"]);
    let follow = std::thread::spawn(move || Outcome::of(&mut follow, b""));
    docker.docker(&["stop", "-t", "1", "box"]).ok();
    assert_eq!(follow.join().unwrap().ok(), "started");
    assert_eq!(docker.docker(&["inspect", "-f", "{{.State.Status}}", "box"]).ok(), "exited");
    docker.docker(&["rm", "box"]).ok();
    assert_eq!(docker.docker(&["ps", "-aq"]).ok(), "");
}

#[test]
fn images_come_and_go() {
    let docker = docker!();
    let mut image = busybox();
    image.name = "loaded:1".into();
    let path = docker.daemon.folder().join("image.tar");
    std::fs::write(&path, image.docker_archive()).unwrap();
    docker.docker(&["load", "-i", text(&path)]).shows(&["Loaded image: loaded:1"]);
    docker.docker(&["images"]).shows(&["loaded", "busybox"]);
    assert!(docker.docker(&["image", "inspect", "-f", "{{.Id}}", "loaded:1"]).ok().starts_with("sha256:"));
    docker.docker(&["tag", "loaded:1", "loaded:2"]).ok();
    docker.docker(&["rmi", "loaded:1", "loaded:2"]).shows(&["Untagged"]);
}

#[test]
fn the_rest_of_the_everyday_commands() {
    let docker = docker!();
    docker.docker(&["version"]).shows(&["Server"]);
    docker.docker(&["info"]).shows(&["Containers: 0"]);
    docker.docker(&["volume", "create", "vol"]).ok();
    let create = [
        "create", "--name", "box", "-v", "vol:/v", "-m", "64m", "-p", "80", "--init", "busybox", "sleep",
        "1000",
    ];
    docker.docker(&create).ok();
    docker.docker(&["start", "box"]).ok();
    docker.docker(&["port", "box"]).shows(&["80/tcp"]);
    docker.docker(&["top", "box"]).shows(&["sleep"]);
    docker.docker(&["stats", "--no-stream", "box"]).shows(&["64MiB"]);
    docker.docker(&["pause", "box"]).ok();
    docker.docker(&["unpause", "box"]).ok();
    docker.docker(&["update", "-m", "32m", "--memory-swap", "32m", "box"]).ok();
    docker.docker(&["rename", "box", "other"]).ok();
    docker.docker(&["exec", "other", "touch", "/added"]).ok();
    docker.docker(&["diff", "other"]).shows(&["A /added"]);
    let out = docker.daemon.folder().join("out");
    docker.docker(&["cp", "other:/etc/passwd", text(&out)]).ok();
    assert!(std::fs::read_to_string(&out).unwrap().contains("alice"));
    docker.docker(&["cp", text(&out), "other:/tmp/in"]).ok();
    docker.docker(&["restart", "-t", "1", "other"]).ok();
    docker.docker(&["kill", "other"]).ok();
    assert_eq!(docker.docker(&["wait", "other"]).ok(), "137");
    docker.docker(&["rm", "-v", "other"]).ok();
    docker.docker(&["volume", "rm", "vol"]).ok();
    // Its times have whole seconds, so the end is in the next one.
    docker.docker(&["events", "--since", "1h", "--until=-1s"]).shows(&["container kill"]);
}
