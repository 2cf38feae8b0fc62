//! Docker's own command line against the daemon's socket, and in part ours by the same tests.

use std::collections::BTreeSet;
use std::process::Command;

use insula_tests::images::busybox;
use insula_tests::{Daemon, Outcome, Terminal, text};

struct Docker {
    daemon: Daemon,
    program: std::path::PathBuf,
}

impl Docker {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let socket = format!("unix://{}", self.daemon.instance().socket().display());
        command.env("DOCKER_HOST", &socket).env("INSULA_HOST", &socket);
        // No configuration of the user who runs the tests, and no context.
        command.env("DOCKER_CONFIG", self.daemon.folder()).env_remove("DOCKER_CONTEXT").args(arguments);
        command
    }

    fn docker(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(arguments), b"")
    }
}

/// One test of each function for the distribution's client and for another one, where there is one.
macro_rules! with_both {
    (ours: $($name:ident)*) => {
        mod ours {
            $(
                #[test]
                fn $name() {
                    let daemon = insula_tests::daemon!();
                    super::$name(&super::Docker { daemon, program: insula_tests::program("insula") });
                }
            )*
        }
    };
    ($($name:ident)*) => {
        with_both!(distribution 0 $($name)*);
        with_both!(other 1 $($name)*);
    };
    ($module:ident $number:literal $($name:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    let Some(program) = insula_tests::dockers().into_iter().nth($number) else {
                        return insula_tests::skip(
                            if $number == 0 { "root" } else { "docker" },
                            "docker's command line (Debian package docker.io, or another) is missing",
                        );
                    };
                    let daemon = insula_tests::daemon!();
                    super::$name(&super::Docker { daemon, program });
                }
            )*
        }
    };
}

with_both! {
    run_passes_output_and_exit_codes
    run_at_a_terminal
    who_detaches_comes_back
    ps_exec_logs_stop_and_rm
    images_come_and_go
    the_rest_of_the_everyday_commands
    no_byte_is_lost
    contexts_and_what_is_not_there
    images_are_built
    images_from_and_to_a_registry
    every_version_of_the_api_is_spoken
    windows_and_the_end_of_input_arrive
    signals_reach_the_container
}

with_both! {
    ours:
    run_passes_output_and_exit_codes
    run_at_a_terminal
    who_detaches_comes_back
    windows_and_the_end_of_input_arrive
    signals_reach_the_container
}

const ALONE: &[&str] = &["run", "--rm", "--network", "none"];

fn run(rest: &[&'static str]) -> Vec<&'static str> {
    [ALONE, rest].concat()
}

fn run_passes_output_and_exit_codes(docker: &Docker) {
    let outcome = docker.docker(&run(&["busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]));
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "out\n", "err\n"));
    docker.docker(&run(&["busybox", "/no/such"])).exits(127);
    docker.docker(&run(&["busybox", "/etc/plain"])).exits(126);
    docker.docker(&run(&["nosuch:image", "true"])).exits(125);
    let through = Outcome::of(&mut docker.command(&run(&["-i", "busybox", "cat"])), b"through");
    assert_eq!(through.ok(), "through");
    docker.docker(&["run", "--rm", "busybox", "ip", "addr", "show", "eth0"]).shows(&["inet "]);
}

fn run_at_a_terminal(docker: &Docker) {
    let mut terminal = Terminal::start(&docker.command(&run(&["-it", "busybox", "sh"])));
    terminal.expect("/ # ");
    terminal.send("echo $((6 * 7)); stty size\n");
    terminal.expect("42");
    terminal.send("exit 5\n");
    assert_eq!(terminal.wait(), 5);
}

fn ps_exec_logs_stop_and_rm(docker: &Docker) {
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

fn images_come_and_go(docker: &Docker) {
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

fn the_rest_of_the_everyday_commands(docker: &Docker) {
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

fn who_detaches_comes_back(docker: &Docker) {
    let mut terminal = Terminal::start(&docker.command(&[
        "run",
        "-it",
        "--name",
        "box",
        "--network",
        "none",
        "busybox",
        "sh",
    ]));
    terminal.expect("/ # ");
    // Job control: a job is stopped and comes back, and Ctrl-C ends it and not the shell.
    terminal.send("sh -c 'echo sl''eeps; exec sleep 1000'\n");
    terminal.expect("sleeps");
    terminal.send("\x1a");
    terminal.expect("Stopped");
    terminal.send("fg\n");
    insula_tests::holds("the job runs again", || {
        docker.docker(&["exec", "box", "sh", "-c", "cat /proc/[0-9]*/stat"]).stdout.contains("(sleep) S")
    });
    terminal.send("\x03");
    terminal.expect("^C");
    terminal.send("echo code $?; a=kept\n");
    terminal.expect("code 130");
    follows_the_window(&mut terminal);
    terminal.send("\x10\x11");
    assert_eq!(terminal.wait(), 0);
    assert_eq!(docker.docker(&["inspect", "-f", "{{.State.Running}}", "box"]).ok(), "true");
    let mut again = Terminal::start(&docker.command(&["attach", "--detach-keys", "ctrl-x,x", "box"]));
    again.send("echo it was $a\n");
    again.expect("it was kept");
    // The usual keys are the shell's then.
    again.send("\x10\x11\necho still $a\n");
    again.expect("still kept");
    again.send("\x18x");
    // The older client takes this for a failure.
    again.wait();
    assert_eq!(docker.docker(&["inspect", "-f", "{{.State.Running}}", "box"]).ok(), "true");
    let mut last = Terminal::start(&docker.command(&["attach", "box"]));
    last.send("exit 9\n");
    assert_eq!(last.wait(), 9);
    docker.docker(&["rm", "box"]).ok();
}

fn no_byte_is_lost(docker: &Docker) {
    let folder = docker.daemon.folder();
    let program = text(&docker.program).to_owned();
    let shell = |script: String| {
        let mut command = Command::new("bash");
        for (name, value) in docker.command(&[]).get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Outcome::of(command.current_dir(&folder).args(["-ec", &script]), b"")
    };
    // 100 MB there and back.
    let through = shell(format!(
        "head -c 100000000 /dev/urandom >in; sha256sum <in; \
         {program} run -i --rm --network none busybox cat <in | sha256sum"
    ));
    let sums: Vec<&str> = through.ok().lines().collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{sums:?}");
    // A process that writes and ends at once, several at a time.
    let counted = shell(format!(
        "export program={program}; seq 24 | xargs -P 8 -I N sh -c '$program run --rm --network none busybox \
         sh -c \"head -c 70001 /dev/zero; echo N >&2; exit 3\" 2>/dev/null | wc -c'"
    ));
    assert_eq!(counted.ok().lines().filter(|line| *line == "70001").count(), 24, "{counted}");
}

fn contexts_and_what_is_not_there(docker: &Docker) {
    let host = format!("host=unix://{}", docker.daemon.instance().socket().display());
    docker.docker(&["context", "create", "insula", "--docker", &host]).ok();
    let mut command = docker.command(&["--context", "insula", "version", "-f", "{{.Server.Platform.Name}}"]);
    assert_eq!(Outcome::of(command.env_remove("DOCKER_HOST"), b"").ok(), "insula");
    docker.docker(&["service", "ls"]).fails(1, &["This node is not a swarm manager"]);
    docker.docker(&["swarm", "init"]).fails(1, &["This node is not a swarm manager"]);
    docker.docker(&["plugin", "ls"]).ok();
}

/// By Docker's older builder; BuildKit's protocol is another one.
fn images_are_built(docker: &Docker) {
    let context = docker.daemon.folder().join("context");
    std::fs::create_dir(&context).unwrap();
    let dockerfile = "FROM busybox AS made\nRUN echo built >/word\nFROM busybox\nCOPY --from=made /word /\nCMD [\"cat\", \"/word\"]\n";
    std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let mut build = docker.command(&["build", "-t", "built", text(&context)]);
    let built = Outcome::of(build.env("DOCKER_BUILDKIT", "0"), b"");
    assert!(built.ok().contains("Successfully tagged built:latest"), "{built}");
    assert_eq!(docker.docker(&["run", "--rm", "--network", "none", "built"]).ok(), "built");
}

fn images_from_and_to_a_registry(docker: &Docker) {
    let registry =
        insula_tests::registry!(&insula_tests::registry::Wants { password: true, ..Default::default() });
    let address = registry.address().to_string();
    let name = registry.name("app:1");
    docker.docker(&["pull", &name]).exits(1);
    docker.docker(&["login", "-u", "ann", "-p", "wrong", &address]).exits(1);
    docker.docker(&["login", "-u", "ann", "-p", "secret", &address]).shows(&["Login Succeeded"]);
    docker.docker(&["tag", "busybox", &name]).ok();
    docker.docker(&["push", &name]).shows(&["Pushed", "1: digest: sha256:"]);
    docker.docker(&["rmi", &name, "busybox"]).ok();
    docker.docker(&["pull", &name]).shows(&["Pull complete", "Status: Downloaded newer image"]);
    docker.docker(&["rmi", &name]).ok();
    docker.docker(&["run", "--rm", "--network", "none", &name, "echo", "pulled"]).shows(&["pulled"]);
    docker.docker(&["pull", &registry.name("app:none")]).fails(1, &["manifest unknown"]);
    docker.docker(&["logout", &address]).ok();
}

fn every_version_of_the_api_is_spoken(docker: &Docker) {
    let at = |version: &str, words: &[&str]| {
        Outcome::of(docker.command(words).env("DOCKER_API_VERSION", version), b"")
    };
    let own = docker.docker(&["version", "-f", "{{.Client.APIVersion}}"]).ok().to_owned();
    let newest: u32 = own.strip_prefix("1.").and_then(|minor| minor.parse().ok()).unwrap();
    for minor in 24..=newest {
        let version = format!("1.{minor}");
        // Newer clients speak no version that is this old.
        let spoken = at(&version, &["version", "-f", "{{.Client.APIVersion}}"]);
        if spoken.stderr.contains("is too old") {
            continue;
        }
        assert_eq!(spoken.ok(), version);
        let name = format!("box{minor}");
        at(&version, &["create", "--name", &name, "--network", "none", "busybox", "echo", "made"]).ok();
        assert_eq!(at(&version, &["start", "-a", &name]).ok(), "made", "{version}");
        assert_eq!(at(&version, &["wait", &name]).ok(), "0", "{version}");
        assert_eq!(
            at(&version, &["ps", "-a", "--format", "{{.Names}} {{.Image}}"]).ok(),
            format!("{name} busybox")
        );
        assert_eq!(at(&version, &["inspect", "-f", "{{.State.ExitCode}}", &name]).ok(), "0", "{version}");
        for words in
            [&["images"][..], &["info"], &["network", "ls"], &["volume", "ls"], &["history", "busybox"]]
        {
            at(&version, words).ok();
        }
        at(&version, &["rm", &name]).ok();
    }
    let daemons = docker.docker(&["version", "-f", "{{.Server.MinAPIVersion}}"]);
    assert_eq!(daemons.ok(), "1.24");
    at("1.99", &["ps"]).fails(1, &["client version 1.99 is too new"]);
}

/// Docker's client tells the size that it finds, and only then begins to listen for changes: one in between is lost.
/// From the first that arrives on, none is; it is the second size, since the first may be what it found.
fn follows_the_window(terminal: &mut Terminal) {
    let mut columns = 200;
    insula_tests::holds("a change arrives", || {
        columns += 1;
        terminal.resize(columns, 31);
        terminal.ask_size();
        let screen = terminal.screen();
        let sizes: BTreeSet<_> = screen.match_indices("31 2").map(|(at, _)| screen.get(at..at + 6)).collect();
        sizes.len() > 1
    });
    terminal.resize(101, 33);
    terminal.expect_size("33 101");
}

fn windows_and_the_end_of_input_arrive(docker: &Docker) {
    // Whoever counts its input sees its end, and answers after it.
    let counted = Outcome::of(&mut docker.command(&run(&["-i", "busybox", "wc", "-c"])), &[b'x'; 70_001]);
    assert_eq!(counted.ok(), "70001");
    // A terminal in a running container follows the window as well.
    docker
        .docker(&["run", "-d", "--init", "--name", "box", "--network", "none", "busybox", "sleep", "1000"])
        .ok();
    let mut terminal = Terminal::start(&docker.command(&["exec", "-it", "box", "sh"]));
    terminal.expect("/ # ");
    follows_the_window(&mut terminal);
    terminal.send("exit 6\n");
    assert_eq!(terminal.wait(), 6);
    docker.docker(&["rm", "-f", "box"]).ok();
}

fn signals_reach_the_container(docker: &Docker) {
    let script = "trap 'exit 33' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command = docker.command(&run(&["busybox", "sh", "-c", script]));
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(33));
}
