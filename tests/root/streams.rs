//! The API's streams, as clients other than ours use them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use insula_tests::{daemon, holds};

/// Sends a request that turns the connection into a stream; returns it behind the head.
fn hijack(socket: &std::path::Path, path: &str, headers: &str) -> (String, UnixStream) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Type: application/json\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the head ends: {}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    (String::from_utf8(head).unwrap(), stream)
}

#[test]
fn attach_frames_the_two_streams() {
    let daemon = daemon!();
    let body = r#"{"Image":"busybox","Cmd":["sh","-c","read a; echo $a; echo err >&2"],"OpenStdin":true,"StdinOnce":true,"AttachStdin":true,"HostConfig":{"NetworkMode":"none"}}"#;
    let created = daemon.api("POST", "/v1.41/containers/create?name=box", body);
    assert_eq!(created.status, 201, "{}", created.text());
    let socket = daemon.instance().socket();
    let query = "/v1.41/containers/box/attach?stream=1&stdin=1&stdout=1&stderr=1";
    let (head, mut stream) = hijack(&socket, query, "Connection: Upgrade\r\nUpgrade: tcp\r\n");
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(
        head.to_ascii_lowercase().contains("application/vnd.docker.raw-stream")
            || head.to_ascii_lowercase().contains("multiplexed-stream"),
        "{head}"
    );
    assert_eq!(daemon.api("POST", "/v1.41/containers/box/start", "").status, 204);
    stream.write_all(b"word\n").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let mut frames = [b"\x01\0\0\0\0\0\0\x05word\n".to_vec(), b"\x02\0\0\0\0\0\0\x04err\n".to_vec()];
    assert!(
        bytes == frames.concat() || {
            frames.reverse();
            bytes == frames.concat()
        },
        "{bytes:?}"
    );
}

#[test]
fn a_client_that_does_not_ask_for_an_upgrade_gets_an_ordinary_answer() {
    let daemon = daemon!();
    let script = "echo first; while test ! -e /go; do sleep 0.02; done; echo last";
    daemon.detached(&["--name", "box", "--network", "none"], script);
    let socket = daemon.instance().socket();
    let path = "/containers/box/attach?logs=1&stream=1&stdout=1";
    let attached = std::thread::spawn(move || insula_tests::request(&socket, "POST", path, b""));
    let events =
        ["events", "--since", "1h", "--until", "0s", "--filter", "event=attach", "--format", "{{.Action}}"];
    holds("it is attached", || daemon.insula(&events).stdout.contains("attach"));
    daemon.exec("box", "touch /go").ok();
    let answer = attached.join().unwrap();
    let frames = b"\x01\0\0\0\0\0\0\x06first\n\x01\0\0\0\0\0\0\x05last\n";
    assert_eq!((answer.status, answer.body.as_slice()), (200, frames.as_slice()));
}

#[test]
fn starting_twice_is_not_modified_and_waiting_has_a_condition() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--network", "none"]);
    assert_eq!(daemon.api("POST", &format!("/containers/{id}/start"), "").status, 304);
    assert_eq!(daemon.api("POST", &format!("/containers/{id}/stop?t=1"), "").status, 204);
    assert_eq!(daemon.api("POST", &format!("/containers/{id}/stop?t=1"), "").status, 304);
    let waited = daemon.api("POST", &format!("/containers/{id}/wait?condition=not-running"), "").json();
    assert_eq!(waited["StatusCode"], 143);
}

#[test]
fn clients_that_stall_in_the_middle_of_an_archive_hold_nobody_else_up() {
    let daemon = daemon!();
    let socket = daemon.instance().socket();
    let stalled: Vec<UnixStream> = (0..80)
        .map(|_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            write!(stream, "POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nbegun")
                .unwrap();
            stream
        })
        .collect();
    assert_eq!(daemon.sh(&["--network", "none"], "echo on").ok(), "on");
    daemon.insula(&["ps", "-as"]).ok();
    // Who hangs up makes room for others.
    drop(stalled);
    daemon.load(&insula_tests::images::busybox().docker_archive()).ok();
}

#[test]
fn a_client_that_never_reads_holds_a_container_up_for_a_while_only() {
    let daemon = daemon!();
    let script = r#"read go; yes "$(head -c 999 /dev/zero | tr '\0' x)" | head -n 5000; exit 7"#;
    let body = serde_json::json!({
        "Image": "busybox", "Cmd": ["sh", "-c", script], "OpenStdin": true,
        "HostConfig": {"NetworkMode": "none"},
    });
    let created = daemon.api("POST", "/containers/create?name=box", &body.to_string());
    assert_eq!(created.status, 201, "{}", created.text());
    let socket = daemon.instance().socket();
    let query = "/containers/box/attach?stream=1&stdin=1&stdout=1&stderr=1";
    assert_eq!(daemon.api("POST", "/containers/box/start", "").status, 204);
    let (_, mut stream) = hijack(&socket, query, "Connection: Upgrade\r\nUpgrade: tcp\r\n");
    stream.write_all(b"go\n").unwrap();
    daemon.reaches("box", "exited");
    assert_eq!(daemon.inspect("box", "/State/ExitCode"), 7);
    assert_eq!(daemon.insula(&["logs", "box"]).ok().lines().count(), 5000, "the log has all of it");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let (mut got, mut rest, mut word) = (0, bytes.as_slice(), &b""[..]);
    while let [kind, 0, 0, 0, a, b, c, d, body @ ..] = rest {
        let (payload, next) = body.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        match kind {
            3 => word = payload,
            _ => got += payload.len(),
        }
        rest = next;
    }
    let word = String::from_utf8_lossy(word);
    assert!(word.starts_with(&format!("{} bytes of output are lost", 5_000_000 - got)), "{got}: {word}");
}
