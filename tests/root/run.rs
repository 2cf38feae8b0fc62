//! `insula run`: exit codes, names, what stays and what goes.

use insula_tests::{Outcome, daemon, holds, text};

#[test]
fn the_exit_code_is_the_commands() {
    let daemon = daemon!();
    for code in [0, 1, 42, 255] {
        daemon.sh(&["--network", "none"], &format!("exit {code}")).exits(code);
    }
}

#[test]
fn a_command_that_a_signal_ends_exits_with_128_and_the_signal() {
    let daemon = daemon!();
    // The first process of a pid namespace is deaf to what comes from inside: hence --init.
    daemon.sh(&["--network", "none", "--init"], "kill -9 $$").exits(137);
    daemon.sh(&["--network", "none", "--init"], "kill -TERM $$").exits(143);
}

#[test]
fn a_missing_command_exits_with_127_and_leaves_nothing() {
    let daemon = daemon!();
    let outcome = daemon.insula(&["run", "--name", "gone", "busybox", "/no/such"]);
    outcome.fails(127, &["/no/such"]);
    daemon.insula(&["run", "--rm", "busybox", "nosuchword"]).fails(127, &["nosuchword", "not found"]);
    // Docker keeps the container without --rm: created, with the exit code.
    assert_eq!(daemon.inspect("gone", "/State/Status"), "created");
    assert_eq!(daemon.inspect("gone", "/State/ExitCode"), 127);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok().lines().count(), 1);
}

#[test]
fn a_file_that_is_no_program_exits_with_126() {
    let daemon = daemon!();
    daemon.insula(&["run", "--rm", "busybox", "/etc/plain"]).fails(126, &["/etc/plain"]);
    daemon.insula(&["run", "--rm", "busybox", "/etc"]).fails(126, &["/etc"]);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}

#[test]
fn a_mistake_of_the_caller_exits_with_125() {
    let daemon = daemon!();
    daemon.insula(&["run", "--no-such-flag", "busybox"]).fails(125, &["--no-such-flag"]);
    daemon.insula(&["run", "--rm", "-m", "lots", "busybox", "true"]).fails(125, &["lots"]);
    daemon.insula(&["run", "--rm", "--user", "nosuchuser", "busybox", "true"]).fails(125, &["nosuchuser"]);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}

#[test]
fn output_and_input_pass_through() {
    let daemon = daemon!();
    let outcome = daemon.sh(&["--network", "none"], "echo out; echo err >&2");
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    let input: Vec<u8> = (0..300_000u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    let arguments = ["run", "--rm", "-i", "--network", "none", "busybox", "md5sum"];
    let through = daemon.insula_with(&arguments, &input);
    let direct = Outcome::of(&mut std::process::Command::new("md5sum"), &input);
    assert_eq!(through.ok(), direct.ok());
}

#[test]
fn timing_says_what_a_start_spent_its_time_on() {
    let daemon = daemon!();
    let outcome = daemon.insula(&["run", "--rm", "--timing", "--network", "none", "busybox", "echo", "out"]);
    assert_eq!(outcome.ok(), "out");
    let parts: Vec<_> = outcome.stderr.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    // Of the command, the daemon, the monitor, the wall, and back.
    let levels =
        ["connect", "image", "create", "endpoint", "control-group", "exec", "confirmed", "start", "run"];
    let places: Vec<_> = levels.iter().map(|level| parts.iter().position(|part| part == level)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{outcome}");
    let quiet = daemon.insula(&["run", "-d", "--network", "none", "busybox", "true"]);
    assert_eq!((quiet.ok().len(), quiet.stderr.as_str()), (64, ""));
}

#[test]
fn a_large_output_arrives_whole() {
    let daemon = daemon!();
    let outcome = daemon.sh(&["--network", "none"], "seq 1 200000");
    assert_eq!(outcome.ok().lines().count(), 200_000);
    assert_eq!(outcome.ok().lines().last(), Some("200000"));
}

#[test]
fn rm_removes_and_without_it_the_container_stays() {
    let daemon = daemon!();
    daemon.insula(&["run", "--network", "none", "--name", "kept", "busybox", "true"]).ok();
    assert_eq!(daemon.inspect("kept", "/State/Status"), "exited");
    daemon.sh(&["--name", "passing", "--network", "none"], "true").ok();
    assert_eq!(daemon.insula(&["ps", "-a", "--format", "{{.Names}}"]).ok(), "kept");
    let id = daemon.insula(&["run", "-d", "--rm", "--network", "none", "busybox", "true"]);
    holds("--rm works detached", || daemon.insula(&["inspect", id.ok()]).code != 0);
}

#[test]
fn a_name_is_used_once() {
    let daemon = daemon!();
    daemon.sleeper(&["--name", "web", "--network", "none"]);
    daemon.insula(&["run", "--rm", "--name", "web", "busybox", "true"]).fails(125, &["web", "in use"]);
    daemon.insula(&["run", "--rm", "--name", "no/slash", "busybox", "true"]).fails(125, &["no/slash"]);
    // Names are made up for those that were given none.
    let id = daemon.sleeper(&["--network", "none"]);
    assert!(daemon.inspect(&id, "/Name").as_str().unwrap().contains('_'));
}

#[test]
fn detached_prints_the_id_alone() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--network", "none"]);
    assert_eq!(id.len(), 64);
    assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(daemon.insula(&["ps", "-q", "--no-trunc"]).ok(), id);
}

#[test]
fn the_cidfile_has_the_id_and_is_never_overwritten() {
    let daemon = daemon!();
    let path = daemon.folder().join("cid");
    daemon.insula(&["run", "--cidfile", text(&path), "--network", "none", "busybox", "true"]).ok();
    let id = std::fs::read_to_string(&path).unwrap();
    assert_eq!(daemon.inspect(&id, "/Id"), id.as_str());
    daemon.insula(&["run", "--cidfile", text(&path), "busybox", "true"]).fails(125, &[text(&path)]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), id);
}

#[test]
fn labels_come_from_flags_and_files() {
    let daemon = daemon!();
    let path = daemon.folder().join("labels");
    std::fs::write(&path, "# comment\nfrom=file\nempty\n").unwrap();
    let id = daemon.sleeper(&[
        "--label",
        "from=flag",
        "-l",
        "a=b=c",
        "--label-file",
        text(&path),
        "--network",
        "none",
    ]);
    assert_eq!(daemon.inspect(&id, "/Config/Labels/a"), "b=c");
    assert_eq!(daemon.inspect(&id, "/Config/Labels/empty"), "");
    assert_eq!(daemon.inspect(&id, "/Config/Labels/from"), "flag");
    assert_eq!(daemon.insula(&["ps", "-q", "--no-trunc", "--filter", "label=a=b=c"]).ok(), id);
    assert_eq!(daemon.insula(&["ps", "-q", "--filter", "label=a=other"]).ok(), "");
}

#[test]
fn the_host_image_needs_no_download() {
    let daemon = daemon!();
    let outcome = daemon.insula(&[
        "run",
        "--rm",
        "--network",
        "none",
        "host",
        "sh",
        "-c",
        "id -u; ls /home /root; touch /new && echo wrote",
    ]);
    assert!(outcome.ok().starts_with('0') && outcome.ok().ends_with("wrote"), "{outcome}");
    assert!(!std::path::Path::new("/new").exists());
    // The engine's own root is hidden.
    let root = daemon.instance().root().display().to_string();
    let seen = daemon.insula(&["run", "--rm", "--network", "none", "host", "ls", "-A", &root]);
    assert_eq!(seen.stdout, "", "{seen}");
}

#[test]
fn run_starts_a_daemon_when_there_is_none() {
    if !insula_tests::is_root() {
        return insula_tests::skip("root", "a daemon is started");
    }
    let daemon = insula_tests::Daemon::absent();
    let outcome = daemon.insula(&["run", "--rm", "--network", "none", "host", "echo", "hello"]);
    assert_eq!(outcome.ok(), "hello", "{outcome}");
    assert!(outcome.stderr.contains("insulad"), "it is said: {outcome}");
    daemon.insula(&["run", "--rm", "--network", "none", "host", "true"]).ok();
    assert!(daemon.insula(&["version"]).ok().contains("Server"));
}

#[test]
fn create_and_start_are_run_in_two_steps() {
    let daemon = daemon!();
    let id = daemon.insula(&["create", "--network", "none", "busybox", "sh", "-c", "echo hello; exit 3"]);
    let id = id.ok();
    assert_eq!(daemon.inspect(id, "/State/Status"), "created");
    let outcome = daemon.insula(&["start", "-a", id]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (3, "hello\n"), "{outcome}");
    assert_eq!(daemon.insula(&["start", id]).ok(), id);
    assert_eq!(daemon.insula(&["wait", id]).ok(), "3");
}
