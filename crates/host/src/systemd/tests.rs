//! The client against what `busctl` of systemd sends, and against a manager that is played.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use insula_spec::bundle::UnitValue;

use super::bus::{Address, sockets};
use super::message::{Body, ERROR, FIXED, Item, RETURN, SIGNAL, Target, answer, call, length};
use super::units::Manager;
use super::{Error, Message};

/// The body of `busctl call … StartTransientUnit 'ssa(sv)a(sa(sv))' a.scope replace 9 Slice s b.slice PIDs au 1 7
/// Delegate b true TasksMax t 33 AllowedCPUs ay 2 7 2 After as 2 x yz DeviceAllow 'a(ss)' 1 /dev/char/1:3 rw N i -5
/// L x -6 0`, as systemd 252 has sent it.
const BODY: &str = "07000000612e73636f706500070000007265706c61636500180100000000000005000000536c69636500017300000000\
                    07000000622e736c69636500000000000400000050494473000261750000000004000000070000000800000044656c65\
                    67617465000162000100000000000000080000005461736b734d61780001740021000000000000000b000000416c6c6f\
                    776564435055730002617900020000000702000000000000050000004166746572000261730000000f00000001000000\
                    7800000002000000797a0000000000000b000000446576696365416c6c6f770005612873732900001b00000000000000\
                    0d0000002f6465762f636861722f313a33000000020000007277000000000000010000004e00016900000000fbffffff\
                    010000004c0001780000000000000000faffffffffffffff0000000000000000";

fn named(name: &str, value: UnitValue) -> (String, UnitValue) {
    (name.to_owned(), value)
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_call_has_the_bytes_that_systemd_sends_itself() {
    let properties = [
        named("Slice", UnitValue::Text("b.slice".into())),
        named("PIDs", UnitValue::Numbers(vec![7])),
        named("Delegate", UnitValue::Flag(true)),
        named("TasksMax", UnitValue::Limit(33)),
        named("AllowedCPUs", UnitValue::Bytes(vec![7, 2])),
        named("After", UnitValue::Texts(texts(&["x", "yz"]))),
        named("DeviceAllow", UnitValue::Pairs(vec![("/dev/char/1:3".into(), "rw".into())])),
        named("N", UnitValue::Signed(-5)),
        named("L", UnitValue::Long(-6)),
    ];
    let body = Body::default().text("a.scope").text("replace").properties(&properties).no_others();
    let target = Target { destination: "a.b", path: "/a", interface: "a.b.C" };
    let bytes = call(3, target, "StartTransientUnit", &body);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(hex.ends_with(BODY), "{hex}");
    assert_eq!(length(bytes.first_chunk::<FIXED>().unwrap()).unwrap(), bytes.len());
    let read = Message::parse(&bytes).unwrap();
    assert_eq!((read.member.as_str(), read.interface.as_str()), ("StartTransientUnit", "a.b.C"));
    let first = [Item::Text("a.scope".into()), Item::Text("replace".into())];
    assert_eq!(read.items().unwrap(), first);
}

#[test]
fn what_is_cut_off_is_no_message() {
    let whole = answer(SIGNAL, &[(3, 's', "JobRemoved")], 0, &Body::default().text("x"));
    Message::parse(&whole).unwrap();
    for end in 0..whole.len() {
        assert!(Message::parse(&whole[..end]).is_err(), "{end}");
    }
    let mut large = whole.clone();
    large[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(length(large.first_chunk().unwrap()).is_err());
}

#[test]
fn addresses_name_sockets() {
    assert_eq!(
        sockets("unix:path=/run/a%20b,guid=7;tcp:host=x;unix:abstract=y"),
        [PathBuf::from("/run/a b")]
    );
    assert!(sockets("unix:path=/x%zz").is_empty());
}

/// Plays systemd for one connection: each call that comes is answered by `play`, which returns messages.
fn manager(
    path: &Path,
    accepts: bool,
    mut play: impl FnMut(&Message, u32) -> Vec<Vec<u8>> + Send + 'static,
) -> JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut stream = BufReader::new(stream);
        greet(&mut stream, accepts);
        let mut called = Vec::new();
        while let Some((message, serial)) = next(&mut stream) {
            called.push(message.member.clone());
            let answers = match message.member.as_str() {
                "Hello" | "AddMatch" => vec![answer(RETURN, &[BUS], serial, &Body::default())],
                _ => play(&message, serial),
            };
            for answer in answers {
                stream.get_mut().write_all(&answer).unwrap();
            }
        }
        called
    })
}

fn greet(stream: &mut BufReader<UnixStream>, accepts: bool) {
    let mut zero = [1];
    stream.read_exact(&mut zero).unwrap();
    assert_eq!(zero, [0]);
    let mut say = |expected: &str, answer: &str| {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
        stream.get_mut().write_all(answer.as_bytes()).unwrap();
    };
    say("AUTH EXTERNAL\r\n", "DATA\r\n");
    if !accepts {
        return say("DATA\r\n", "REJECTED EXTERNAL\r\n");
    }
    say("DATA\r\n", "OK 1234deadbeef\r\n");
    say("BEGIN\r\n", "");
}

fn next(stream: &mut BufReader<UnixStream>) -> Option<(Message, u32)> {
    let mut bytes = vec![0; FIXED];
    stream.read_exact(&mut bytes).ok()?;
    bytes.resize(length(bytes.first_chunk().unwrap()).unwrap(), 0);
    stream.read_exact(&mut bytes[FIXED..]).unwrap();
    let serial = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    Some((Message::parse(&bytes).unwrap(), serial))
}

const BUS: (u8, char, &str) = (7, 's', "org.freedesktop.DBus");
const SYSTEMD: (u8, char, &str) = (7, 's', ":1.1");
const STRANGER: (u8, char, &str) = (7, 's', ":1.66");

fn reply(to: u32, body: &Body) -> Vec<u8> {
    answer(RETURN, &[SYSTEMD], to, body)
}

fn refusal(to: u32, name: &str) -> Vec<u8> {
    answer(ERROR, &[(4, 's', name), SYSTEMD], to, &Body::default().text("it says why"))
}

fn ended(job: &str, result: &str) -> Vec<u8> {
    ended_by(SYSTEMD, "/org/freedesktop/systemd1", job, result)
}

fn ended_by(sender: (u8, char, &str), path: &str, job: &str, result: &str) -> Vec<u8> {
    // The number of the job has the form of a flag.
    let body = Body::default().flag(true).text(job).text("x.scope").text(result);
    let body = body.into_signal();
    let interface = (2, 's', "org.freedesktop.systemd1.Manager");
    answer(SIGNAL, &[(1, 'o', path), interface, (3, 's', "JobRemoved"), sender], 0, &body)
}

/// What anybody may send to whoever is on the same bus.
fn forgeries(serial: u32) -> Vec<Vec<u8>> {
    let mut large = answer(SIGNAL, &[STRANGER], 0, &Body::default().text(&"x".repeat(300 * 1024)));
    let wrong = |mut message: Vec<u8>| {
        // A field of a type that none has.
        message[18] = b'y';
        message
    };
    let mut other = answer(SIGNAL, &[], 0, &Body::default());
    other[0] = if other[0] == b'l' { b'B' } else { b'l' };
    other[4..16].as_chunks_mut::<4>().0.iter_mut().for_each(|number| number.reverse());
    large.extend(other);
    vec![
        ended_by(STRANGER, "/org/freedesktop/systemd1", "/job/2", "failed"),
        ended_by(SYSTEMD, "/a/path", "/job/2", "failed"),
        answer(ERROR, &[(4, 's', "a.b"), STRANGER], serial, &Body::default()),
        answer(RETURN, &[STRANGER], serial, &Body::default().text("/job/7")),
        wrong(answer(SIGNAL, &[STRANGER], 0, &Body::default())),
        large,
    ]
}

#[test]
fn a_scope_stands_when_its_job_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus");
    let mut refused = false;
    let played = manager(&path, true, move |message, serial| match message.member.as_str() {
        "StartTransientUnit" if !refused => {
            refused = true;
            vec![refusal(serial, "org.freedesktop.systemd1.UnitExists")]
        }
        "StartTransientUnit" => vec![
            ended("/job/1", "failed"),
            reply(serial, &Body::default().text("/job/2")),
            ended("/job/3", "failed"),
            ended("/job/2", "done"),
        ],
        "StopUnit" => vec![refusal(serial, "org.freedesktop.systemd1.NoSuchUnit")],
        _ => vec![reply(serial, &Body::default())],
    });
    let mut manager = Manager::at(&Address::Bus(path)).unwrap();
    manager.start("x.scope", &[]).unwrap();
    manager.set("x.scope", &[named("TasksMax", UnitValue::Limit(3))]).unwrap();
    manager.stop("x.scope").unwrap();
    drop(manager);
    let expected = [
        "Hello",
        "AddMatch",
        "Subscribe",
        "StartTransientUnit",
        "ResetFailedUnit",
        "StartTransientUnit",
        "SetUnitProperties",
        "StopUnit",
    ];
    assert_eq!(played.join().unwrap(), expected);
}

#[test]
fn what_others_on_the_bus_say_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus");
    let played = manager(&path, true, move |message, serial| match message.member.as_str() {
        "Subscribe" => vec![reply(serial, &Body::default())],
        "StartTransientUnit" => {
            let answers = [reply(serial, &Body::default().text("/job/2"))];
            [forgeries(serial), answers.into(), forgeries(serial), vec![ended("/job/2", "done")]].concat()
        }
        _ => vec![answer(
            ERROR,
            &[(4, 's', "org.freedesktop.DBus.Error.NoReply"), BUS],
            serial,
            &Body::default(),
        )],
    });
    let mut manager = Manager::at(&Address::Bus(path)).unwrap();
    manager.start("x.scope", &[]).unwrap();
    // The bus itself says that nobody will.
    let error = manager.set("x.scope", &[]).unwrap_err();
    assert!(error.is("org.freedesktop.DBus.Error.NoReply"), "{error}");
    drop(manager);
    played.join().unwrap();
}

#[test]
fn an_old_systemd_is_not_told_of_the_idle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("private");
    let mut refused = false;
    let played = manager(&path, true, move |_, serial| {
        let was = std::mem::replace(&mut refused, true);
        vec![match was {
            true => reply(serial, &Body::default()),
            false => refusal(serial, "org.freedesktop.DBus.Error.InvalidArgs"),
        }]
    });
    let mut manager = Manager::at(&Address::Itself(path)).unwrap();
    let limits = vec![named("CPUWeight", UnitValue::Limit(0)), named("TasksMax", UnitValue::Limit(3))];
    manager.limit("x.scope", limits).unwrap();
    drop(manager);
    assert_eq!(played.join().unwrap(), ["SetUnitProperties", "SetUnitProperties"]);
}

#[test]
fn what_systemd_refuses_is_said_in_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("private");
    let played = manager(&path, true, |message, serial| match message.member.as_str() {
        "StartTransientUnit" => {
            vec![reply(serial, &Body::default().text("/job/2")), ended("/job/2", "failed")]
        }
        _ => vec![refusal(serial, "org.example.No")],
    });
    let mut manager = Manager::at(&Address::Itself(path)).unwrap();
    let failed = manager.start("x.scope", &[]).unwrap_err();
    assert_eq!(failed.to_string(), "systemd: x.scope: the job ended as \"failed\"");
    let refused = manager.set("x.scope", &[]).unwrap_err();
    assert_eq!(refused.to_string(), "systemd: SetUnitProperties: it says why (org.example.No)");
    drop(manager);
    assert_eq!(played.join().unwrap(), ["StartTransientUnit", "SetUnitProperties"]);
}

#[test]
fn who_is_not_accepted_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus");
    let played = manager(&path, false, |_, _| Vec::new());
    let refused = Manager::at(&Address::Bus(path)).unwrap_err();
    assert!(matches!(refused, Error::Protocol(_)), "{refused}");
    played.join().unwrap();
}
