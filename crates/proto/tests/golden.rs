//! The bytes of the protocol as monitors that run speak it. A monitor outlives many daemons: what is in
//! `golden.txt` is never changed, only added to. A test that fails here says that a daemon of tomorrow and a
//! monitor of today would misunderstand each other.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use insula_proto::*;
use prost::Message;

/// Name and bytes of each line.
fn golden() -> BTreeMap<&'static str, Vec<u8>> {
    let lines = include_str!("golden.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, digits) = line.split_once(" = ").unwrap();
            let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
            (name, (0..digits.len()).step_by(2).map(byte).collect())
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attachment() -> Attachment {
    Attachment {
        stdin: true,
        stdout: true,
        stderr: true,
        multiplexed: true,
        already_read: b"ls\n".to_vec(),
        detach_keys: vec![16, 17],
    }
}

fn started(laps: Vec<Lap>) -> Started {
    Started { pid: 42, warnings: vec!["w".into()], at: 5, laps }
}

fn exited() -> Exited {
    Exited { code: 137, oom: true, at: 1_700_000_000_000_000_001, error: "broke".into() }
}

/// One of each, with every field set.
fn requests() -> Vec<(&'static str, Call)> {
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        (
            "create",
            Call::Create(Create {
                plan: text("{}"),
                folder: "/run".into(),
                attachments: vec![attachment()],
                start: true,
                template: true,
            }),
        ),
        ("start", Call::Start(Start {})),
        (
            "exec",
            Call::Exec(Exec {
                exec: "e1".into(),
                process: text("{}"),
                stdio: text("{}"),
                attachments: vec![attachment(), Attachment::default()],
                privileged: true,
                remembered: false,
            }),
        ),
        ("exec-remembered", Call::Exec(Exec { exec: "e1".into(), remembered: true, ..Exec::default() })),
        ("signal", Call::Signal(Signal { exec: "e1".into(), signal: 15, all: true, group: true })),
        ("resize", Call::Resize(Resize { exec: "e1".into(), columns: 80, rows: 24 })),
        ("update", Call::Update(Update { resources: text("{}") })),
        ("freeze", Call::Freeze(Empty {})),
        ("thaw", Call::Thaw(Empty {})),
        ("stats", Call::Stats(Empty {})),
        ("attach", Call::Attach(Attach { exec: "e1".into(), attachment: Some(attachment()) })),
        ("processes", Call::Processes(Empty {})),
        ("status", Call::Status(Empty {})),
        ("destroy", Call::Destroy(Empty {})),
        ("furnish", Call::Furnish(Furnish { plan: text("{}") })),
        ("rewire", Call::Rewire(Rewire { change: text("{}") })),
        ("resolver", Call::Resolver(Empty {})),
        ("measure-dirty-rate", Call::MeasureDirtyRate(MeasureDirtyRate { milliseconds: 60_000 })),
        ("dirty-rate", Call::DirtyRate(Empty {})),
    ]
}

fn outcomes() -> Vec<(&'static str, Outcome)> {
    let process = ProcessText { pid: 7, stat: "s".into(), status: "t".into(), command: vec![97, 0] };
    let elsewhere = Elsewhere { processes: vec![process], memory: 1024, uptime: 9 };
    vec![
        ("failed", Outcome::Failed(Failed { kind: 3, message: "no".into(), exit_code: 127 })),
        ("done", Outcome::Done(Done { warnings: vec!["w".into()], mapped: false })),
        ("furnished", Outcome::Done(Done { warnings: Vec::new(), mapped: true })),
        ("started", Outcome::Started(started(Vec::new()))),
        ("started-with-laps", Outcome::Started(started(vec![Lap { name: "clone".into(), nanoseconds: 7 }]))),
        ("measured", Outcome::Stats(b"{}".to_vec())),
        ("listed", Outcome::Processes(Processes { pids: vec![1, 300], elsewhere: Some(elsewhere) })),
        (
            "stands",
            Outcome::Status(Status {
                phase: Phase::Ended as i32,
                pid: 42,
                started: 5,
                frozen: true,
                exit: Some(exited()),
                version: 1,
                execs: vec!["e1".into()],
                ended_execs: Vec::new(),
            }),
        ),
        (
            "stands-with-ended-execs",
            Outcome::Status(Status {
                phase: Phase::Running as i32,
                version: 1,
                ended_execs: vec![ExecExited { exec: "e1".into(), code: 3 }],
                ..Status::default()
            }),
        ),
        ("dirty", Outcome::DirtyRate(b"null".to_vec())),
        ("exited", Outcome::Exited(exited())),
        ("exec-exited", Outcome::ExecExited(ExecExited { exec: "e1".into(), code: -1 })),
        ("oom", Outcome::Oom(Empty {})),
    ]
}

/// Bytes that the fixture does not have are shown as a line for it.
fn agrees<M>(golden: &BTreeMap<&str, Vec<u8>>, name: &str, message: &M)
where
    M: Message + Default + PartialEq + std::fmt::Debug,
{
    let bytes = message.encode_to_vec();
    let line = format!("{name} = {}", hex(&bytes));
    let kept = golden.get(name).unwrap_or_else(|| panic!("golden.txt lacks this line:\n{line}"));
    assert_eq!(hex(kept), hex(&bytes), "who speaks today's protocol writes {name} otherwise");
    assert_eq!(&M::decode(&kept[..]).unwrap(), message, "who speaks today's protocol reads {name} otherwise");
}

#[test]
fn what_is_said_today_is_understood_tomorrow() {
    let golden = golden();
    let (requests, outcomes) = (requests(), outcomes());
    let known: Vec<&str> =
        requests.iter().map(|(name, _)| *name).chain(outcomes.iter().map(|(name, _)| *name)).collect();
    assert!(golden.keys().all(|name| known.contains(name)), "a message that monitors speak is gone");
    for (name, call) in requests {
        agrees(&golden, name, &Request::new(300, call));
    }
    for (name, outcome) in outcomes {
        agrees(&golden, name, &Reply { id: 300, outcome: Some(outcome) });
    }
}

/// A field of a number that nobody has: text, a number and eight bytes.
fn unknown_fields() -> Vec<u8> {
    let mut bytes = Vec::new();
    // Field 900: tag and kind, then the value. https://protobuf.dev/programming-guides/encoding/
    for (kind, value) in [(2u32, &b"\x03new"[..]), (0, &[0x96, 0x01]), (1, &[1; 8])] {
        prost::encoding::encode_varint(u64::from(900 << 3 | kind), &mut bytes);
        bytes.extend(value);
    }
    bytes
}

#[test]
fn what_is_said_tomorrow_is_understood_as_far_as_it_is_known_today() {
    for (name, bytes) in golden() {
        let newer = [bytes.clone(), unknown_fields()].concat();
        if requests().iter().any(|(request, _)| *request == name) {
            assert_eq!(Request::decode(&newer[..]).unwrap(), Request::decode(&bytes[..]).unwrap(), "{name}");
        } else {
            assert_eq!(Reply::decode(&newer[..]).unwrap(), Reply::decode(&bytes[..]).unwrap(), "{name}");
        }
    }
    // A call of a number that nobody has, with two descriptors, and an outcome of such a number.
    let call = [&b"\x08\x07"[..], &unknown_fields(), b"\x80\x01\x02"].concat();
    let request = Request::decode(&call[..]).unwrap();
    assert_eq!((request.id, request.call.as_ref(), request.descriptors()), (7, None, 2));
    let reply = Reply::decode(&[&b"\x08\x07"[..], &unknown_fields()].concat()[..]).unwrap();
    assert_eq!(reply, Reply { id: 7, outcome: None });
}
