//! What works without root and without a daemon.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::process::Command;

use insula_tests::{Outcome, program};

fn insula(arguments: &[&str]) -> Outcome {
    let mut command = Command::new(program("insula"));
    command.env("INSULA_HOST", "unix:///nonexistent/insula.sock").env_remove("DOCKER_HOST");
    Outcome::of(command.args(arguments), b"")
}

const COMMANDS: &[&str] = &[
    "attach", "cp", "create", "diff", "events", "exec", "images", "import", "info", "inspect", "kill",
    "load", "logs", "pause", "ps", "rename", "restart", "rm", "rmi", "run", "start", "stats", "stop", "tag",
    "top", "unpause", "update", "version", "wait",
];

#[test]
fn every_command_is_listed_and_explains_itself_with_an_example() {
    let help = insula(&["--help"]);
    for command in COMMANDS {
        assert!(
            help.ok().lines().any(|line| line.split_whitespace().next() == Some(command)),
            "{command}: {help}"
        );
        let own = insula(&[command, "--help"]);
        assert!(own.ok().contains("Example"), "{own}");
        assert!(own.ok().contains(&format!("insula {command}")), "{own}");
    }
    for command in ["volume create", "volume ls", "volume inspect", "volume rm", "volume prune"] {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        assert!(insula(&words).ok().contains("Example"), "{command}");
    }
}

#[test]
fn unknown_words_are_named() {
    insula(&["nosuchcommand"]).fails(1, &["nosuchcommand"]);
    insula(&["ps", "--nosuchflag"]).fails(125, &["--nosuchflag"]);
    insula(&["run", "--nosuchflag", "x"]).fails(125, &["--nosuchflag"]);
}

#[test]
fn completions_and_manual_pages_are_generated() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(insula(&["completion", shell]).ok().contains("insula"), "{shell}");
    }
    let folder = std::env::temp_dir().join(format!("insula-t-{}", insula_tests::tag()));
    std::fs::create_dir(&folder).unwrap();
    let outcome = insula(&["man", insula_tests::text(&folder)]);
    let page = std::fs::read_to_string(folder.join("insula-run.1"));
    std::fs::remove_dir_all(&folder).unwrap();
    outcome.ok();
    assert!(page.unwrap().contains(".TH"));
}

#[test]
fn without_a_daemon_the_socket_is_named() {
    for arguments in [&["ps"][..], &["logs", "x"], &["info"]] {
        insula(arguments).fails(1, &["/nonexistent/insula.sock"]);
    }
    insula(&["run", "host", "true"]).fails(125, &["/nonexistent/insula.sock"]);
}

#[test]
fn programs_tell_their_version() {
    for name in ["insula", "insulad"] {
        let outcome = Outcome::of(Command::new(program(name)).arg("--version"), b"");
        assert!(outcome.ok().contains(env!("CARGO_PKG_VERSION")), "{outcome}");
    }
}

/// A program as an ordinary user: whoever runs the test, or nobody. By a descriptor, since its folder may be
/// closed to nobody.
fn as_ordinary(name: &str, arguments: &[&str]) -> Outcome {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::process::CommandExt as _;
    let file = std::fs::File::open(program(name)).unwrap();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    for name in [
        "DOCKER_HOST",
        "INSULA_HOST",
        "INSULA_ROOT",
        "INSULA_RUN",
        "HOME",
        "XDG_DATA_HOME",
        "XDG_CONFIG_HOME",
    ] {
        command.env_remove(name);
    }
    Outcome::of(command.args(arguments), b"")
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    let folder = format!("/tmp/insula-test-{}", insula_tests::tag());
    let folders = ["--root", &format!("{folder}/l"), "--run", &format!("{folder}/r")];
    as_ordinary("insulad", &[]).fails(1, &["HOME is not set", "--root and --run"]);
    as_ordinary("insula", &["run", "--rm", "x", "true"]).fails(125, &["HOME is not set", "--root and --run"]);
    as_ordinary("insulad", &[&folders[..], &["--group", "0"]].concat()).fails(1, &["that user's alone"]);
    as_ordinary("insulad", &[&folders[..], &["--metrics-addr", "127.0.0.1:1"]].concat())
        .fails(1, &["127.0.0.1:1", "unix sockets alone"]);
    assert!(!std::path::Path::new(&folder).exists(), "nothing is made");
}
