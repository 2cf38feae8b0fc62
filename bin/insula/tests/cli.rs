//! The program against a daemon that says what it is told to: output, streams and exit codes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../crates/client/tests/fake/mod.rs"]
mod fake;

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use fake::{Fake, Reply};

const ID: &str = "8f1c0a3b5d7e8f1c0a3b5d7e8f1c0a3b5d7e8f1c0a3b5d7e8f1c0a3b5d7e8f1c";

fn insula(fake: &Fake, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_insula"));
    command.env_clear().env("INSULA_HOST", format!("unix://{}", fake.socket().display())).args(arguments);
    command
}

fn run(fake: &Fake, arguments: &[&str]) -> Output {
    insula(fake, arguments).stdin(Stdio::null()).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(status: u16, body: &str) -> Reply {
    Reply::Whole(status, body.to_owned())
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 0, 0];
    frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A daemon whose container echoes its input on standard error and ends with a code; `start` is
/// what it answers to the start.
fn echoing(code: u8, start: (u16, &'static str)) -> Fake {
    Fake::start(move |request| {
        let path = request.target.split('?').next().unwrap();
        match path.trim_start_matches("/v1.51/containers/").trim_start_matches(ID) {
            "create" => json(201, &format!(r#"{{"Id":"{ID}","Warnings":["no swap limit"]}}"#)),
            "/attach" => Reply::Hijack(
                frame(1, b"hello\n"),
                Box::new(|mut stream| {
                    let mut input = Vec::new();
                    stream.read_to_end(&mut input).unwrap_or_default();
                    // The other side has gone when the start failed.
                    let _ = stream.write_all(&frame(2, &input));
                }),
            ),
            "/wait" => Reply::Chunks(vec![format!("{{\"StatusCode\":{code}}}\n").into_bytes()]),
            "/start" => json(start.0, start.1),
            _ => json(404, r#"{"message":"no such route"}"#),
        }
    })
}

#[test]
fn run_moves_streams_and_returns_the_exit_code() {
    let fake = echoing(42, (204, ""));
    let mut child = insula(&fake, &["run", "-i", "--rm", "busybox", "cat", "-n"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"typed").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(out(&output), "hello\n");
    assert_eq!(err(&output), "WARNING: no swap limit\ntyped");
    let calls = fake.calls();
    let order: Vec<&str> =
        calls.iter().map(|call| call.split('?').next().unwrap().rsplit('/').next().unwrap()).collect();
    // It attaches and waits side by side.
    let (attach, wait) = if order[1] == "attach" { (1, 2) } else { (2, 1) };
    assert_eq!([order[0], order[attach], order[wait], order[3]], ["create", "attach", "wait", "start"]);
    assert!(calls[wait].ends_with("condition=removed"), "{calls:?}");
    let requests = fake.requests();
    let created: serde_json::Value = serde_json::from_slice(&requests[0].body).unwrap();
    assert_eq!((&created["Image"], &created["Cmd"]), (&"busybox".into(), &serde_json::json!(["cat", "-n"])));
    assert!(requests[attach].headers.contains("upgrade: tcp"));
}

#[test]
fn run_detached_prints_the_id_and_removes_no_file() {
    let fake = echoing(0, (204, ""));
    let file = fake.folder().join("cid");
    let file = file.to_str().unwrap();
    let output = run(&fake, &["run", "-d", "--cidfile", file, "busybox"]);
    assert_eq!((output.status.code(), out(&output)), (Some(0), format!("{ID}\n")));
    assert_eq!(std::fs::read_to_string(file).unwrap(), ID);
    let again = run(&fake, &["run", "-d", "--cidfile", file, "busybox"]);
    assert_eq!(again.status.code(), Some(125));
    assert!(err(&again).contains("container ID file found"), "{}", err(&again));
}

#[test]
fn failures_to_start_have_dockers_codes() {
    for (message, code) in [
        (r#"{"message":"exec: \"nope\": executable file not found in $PATH"}"#, 127),
        (r#"{"message":"exec: \"/etc/passwd\": permission denied"}"#, 126),
        (r#"{"message":"port is already allocated"}"#, 125),
    ] {
        let fake = echoing(0, (500, message));
        let output = run(&fake, &["run", "--rm", "busybox", "nope"]);
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(err(&output).contains("insula: Error response from daemon: "), "{}", err(&output));
    }
}

#[test]
fn a_missing_image_is_looked_for() {
    let fake = Fake::start(|_| json(404, r#"{"message":"No such image: nope:latest"}"#));
    let output = run(&fake, &["run", "nope"]);
    assert_eq!(output.status.code(), Some(125));
    insta::assert_snapshot!(err(&output));
    let never = run(&fake, &["run", "--pull", "never", "nope"]);
    assert!(err(&never).contains("Error response from daemon: No such image: nope:latest"));
}

#[test]
fn wrong_flags_never_reach_the_daemon() {
    let fake = Fake::start(|_| json(500, "{}"));
    for (arguments, code) in [
        (&["run", "--nope", "busybox"][..], 125),
        (&["run", "--health-retries", "x", "busybox"], 125),
        (&["run", "-p", "x", "busybox"], 125),
        (&["run"], 1),
        (&["ps", "--nope"], 125),
        (&["ps", "--filter", "x"], 125),
        (&["rm"], 1),
        (&["nope"], 1),
        (&["exec", "web"], 1),
        (&["inspect", "-f", "{{.x", "web"], 64),
    ] {
        let output = run(&fake, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {}", err(&output));
        assert!(!err(&output).is_empty(), "{arguments:?}");
    }
    assert_eq!(fake.connections(), 0);
}

#[test]
fn an_empty_name_means_nothing() {
    let fake = Fake::start(|_| json(200, "[]"));
    for (arguments, object) in [
        (&["inspect", ""][..], "container"),
        (&["image", "inspect", ""], "image"),
        (&["volume", "inspect", ""], "volume"),
        (&["network", "inspect", ""], "network"),
        (&["stop", ""], "container"),
        (&["volume", "rm", ""], "volume"),
    ] {
        let output = run(&fake, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let why = format!("invalid {object} name or ID: value is empty\n");
        assert!(err(&output).ends_with(&why), "{arguments:?} {}", err(&output));
    }
    for arguments in [["rename", "web", ""], ["rename", "", "web"]] {
        let output = run(&fake, &arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(err(&output).contains("Neither old nor new names may be empty"), "{}", err(&output));
    }
    assert_eq!(fake.calls(), [""; 0]);
}

#[test]
fn a_context_that_is_elsewhere_is_a_body_whose_end_is_known() {
    let fake = Fake::start(|request| match request.target.contains("/build") {
        true => Reply::Chunks(vec![b"{\"error\":\"no\",\"errorDetail\":{\"message\":\"no\"}}\n".to_vec()]),
        false => json(200, "{}"),
    });
    for flags in [&[][..], &["--provenance=true", "-t", "a"]] {
        let output = run(&fake, &[&["build"], flags, &["http://127.0.0.1:1/x"]].concat());
        assert_eq!(output.status.code(), Some(1), "{}", err(&output));
        let request = fake.requests().pop().unwrap();
        let known = !request.headers.contains("transfer-encoding");
        assert!(request.target.contains("remote=http") && known, "{request:?}");
        assert_eq!(request.body.is_empty(), flags.is_empty());
    }
}

#[test]
fn lists_and_their_formats() {
    let fake = Fake::start(|_| {
        json(
            200,
            &format!(
                r#"[{{"Id":"{ID}","Names":["/web"],"Image":"nginx","Command":"nginx","Created":1,"Ports":[],"State":"running","Status":"Up"}}]"#
            ),
        )
    });
    assert_eq!(out(&run(&fake, &["ps", "-q"])), "8f1c0a3b5d7e\n");
    assert_eq!(out(&run(&fake, &["ps", "-q", "--no-trunc"])), format!("{ID}\n"));
    let table = out(&run(&fake, &["container", "ls", "--format", "table {{.Names}}\t{{.Image}}"]));
    assert_eq!(table, "NAMES     IMAGE\nweb       nginx\n");
    run(&fake, &["ps", "-a", "-f", "status=exited"]);
    assert_eq!(
        fake.calls().last().unwrap(),
        "GET /v1.51/containers/json?all=1&filters=%7B%22status%22%3A%5B%22exited%22%5D%7D"
    );
}

#[test]
fn inspect_shows_what_is_there_and_fails_for_the_rest() {
    let fake = Fake::start(|request| match request.target.as_str() {
        "/v1.51/containers/web/json" => json(200, r#"{"Name":"/web","State":{"Pid":42}}"#),
        "/v1.51/images/web/json" => json(200, r#"{"RepoTags":["web:1"]}"#),
        _ => json(404, r#"{"message":"No such thing"}"#),
    });
    let output = run(&fake, &["inspect", "web", "nope"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(err(&output), "Error: No such object: nope\n");
    insta::assert_snapshot!(out(&output));
    assert_eq!(out(&run(&fake, &["inspect", "-f", "{{.State.Pid}}", "web"])), "42\n");
    assert_eq!(
        out(&run(&fake, &["inspect", "--type", "image", "-f", "{{json .}}", "web"])),
        "{\"RepoTags\":[\"web:1\"]}\n"
    );
    assert_eq!(out(&run(&fake, &["inspect", "nope"])), "[]\n");
}

#[test]
fn several_names_one_of_them_wrong() {
    let fake = Fake::start(|request| match request.target.contains("/nope/") {
        true => json(404, r#"{"message":"No such container: nope"}"#),
        false => json(204, ""),
    });
    let output = run(&fake, &["stop", "-t", "3", "a", "nope", "b"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), "a\nb\n"));
    assert_eq!(err(&output), "Error response from daemon: No such container: nope\n");
    assert_eq!(fake.calls()[0], "POST /v1.51/containers/a/stop?t=3");
}

#[test]
fn a_reader_that_is_gone_ends_it_quietly() {
    let fake = Fake::start(|_| Reply::Chunks(vec![b"{\"Type\":\"x\",\"Action\":\"y\"}\n".to_vec(); 10_000]));
    let mut child = insula(&fake, &["events"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(141), ""));
}

#[test]
fn nobody_listens_where_the_user_said() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_insula"));
    let output = command.env_clear().args(["-H", "unix:///no/such.sock", "ps"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).starts_with("Cannot connect to the insula daemon at unix:///no/such.sock."),
        "{}",
        err(&output)
    );
    let mut tcp = Command::new(env!("CARGO_BIN_EXE_insula"));
    let output = tcp.env_clear().args(["-H", "tcp://1.2.3.4:2375", "ps"]).output().unwrap();
    assert!(err(&output).contains("only unix:// is supported"), "{}", err(&output));
}

#[test]
fn help_is_as_it_was() {
    let fake = Fake::start(|_| json(500, "{}"));
    for command in ["", "run", "ps", "exec", "cp"] {
        let arguments: Vec<&str> = [command, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        let output = insula(&fake, &arguments).env("COLUMNS", "100").output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        insta::assert_snapshot!(format!("help_{command}"), out(&output));
    }
}

#[test]
fn manuals_and_completions_are_made() {
    let fake = Fake::start(|_| json(500, "{}"));
    let folder = tempfile::tempdir().unwrap();
    let output = run(&fake, &["man", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let page = std::fs::read_to_string(folder.path().join("insula-run.1")).unwrap();
    assert!(page.contains("Examples"), "{page}");
    for shell in ["bash", "zsh", "fish"] {
        let script = out(&run(&fake, &["completion", shell]));
        assert!(script.contains("insula") && script.contains("unpause"), "{shell}");
    }
}
