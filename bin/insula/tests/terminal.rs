//! A person at a terminal: raw mode and back, detach keys, the window's size.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../crates/client/tests/fake/mod.rs"]
mod fake;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::mpsc;

use fake::{Fake, Reply};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

const ID: &str = "8f1c0a3b5d7e8f1c0a3b5d7e8f1c0a3b5d7e8f1c0a3b5d7e8f1c0a3b5d7e8f1c";

/// The two ends of a terminal of 40 rows and 100 columns.
fn terminal() -> (File, OwnedFd) {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
    tcsetwinsize(&slave, Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (master.into(), slave)
}

fn is_raw(slave: &OwnedFd) -> bool {
    !tcgetattr(slave).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
}

/// A container that prompts, and reports what was typed when its input ends.
fn prompting(typed: mpsc::Sender<Vec<u8>>, start: u16) -> Fake {
    let typed = std::sync::Mutex::new(typed);
    Fake::start(move |request| {
        let path = request.target.split('?').next().unwrap();
        match path.trim_start_matches("/v1.51/containers/").trim_start_matches(ID) {
            "create" => Reply::Whole(201, format!(r#"{{"Id":"{ID}","Warnings":[]}}"#)),
            "/attach" => {
                let typed = typed.lock().unwrap().clone();
                let report = move |mut stream: std::os::unix::net::UnixStream| {
                    let mut input = Vec::new();
                    stream.read_to_end(&mut input).unwrap_or_default();
                    typed.send(input).unwrap_or_default();
                };
                Reply::Hijack(b"prompt$ ".to_vec(), Box::new(report))
            }
            "/wait" => Reply::Chunks(vec![b"{\"StatusCode\":0}\n".to_vec()]),
            "/start" => Reply::Whole(start, r#"{"message":"port is already allocated"}"#.to_owned()),
            _ => Reply::Whole(200, String::new()),
        }
    })
}

fn spawn(fake: &Fake, slave: &OwnedFd, arguments: &[&str]) -> Child {
    let end = || slave.as_fd().try_clone_to_owned().unwrap();
    Command::new(env!("CARGO_BIN_EXE_insula"))
        .env_clear()
        .env("INSULA_HOST", format!("unix://{}", fake.socket().display()))
        .args(arguments)
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap()
}

/// Reads from the terminal until it shows this.
fn expect(master: &mut File, text: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let mut byte = [0];
        master.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
}

#[test]
fn detach_keys_leave_and_the_terminal_is_as_before() {
    let (sender, typed) = mpsc::channel();
    let fake = prompting(sender, 204);
    let (mut master, slave) = terminal();
    assert!(!is_raw(&slave));
    let mut child = spawn(&fake, &slave, &["run", "-it", "busybox"]);
    expect(&mut master, "prompt$ ");
    assert!(is_raw(&slave));
    master.write_all(b"x\x03y\x10\x11").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!is_raw(&slave));
    assert_eq!(typed.recv().unwrap(), b"x\x03y");
    let created: serde_json::Value = serde_json::from_slice(&fake.requests()[0].body).unwrap();
    assert_eq!(created["HostConfig"]["ConsoleSize"], serde_json::json!([40, 100]));
    assert!(fake.calls().contains(&format!("POST /v1.51/containers/{ID}/resize?h=40&w=100")));
    // It waits side by side with that.
    let requests = fake.requests();
    let attach = requests.iter().find(|request| request.target.contains("/attach")).unwrap();
    assert!(attach.headers.contains("upgrade: tcp"));
}

#[test]
fn a_failed_start_restores_the_terminal() {
    let (sender, _typed) = mpsc::channel();
    let fake = prompting(sender, 500);
    let (mut master, slave) = terminal();
    let mut child = spawn(&fake, &slave, &["run", "-it", "busybox"]);
    expect(&mut master, "port is already allocated");
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert!(!is_raw(&slave));
}

#[test]
fn a_signal_restores_the_terminal() {
    let (sender, _typed) = mpsc::channel();
    let fake = prompting(sender, 204);
    let (mut master, slave) = terminal();
    let mut child = spawn(&fake, &slave, &["run", "-it", "busybox"]);
    expect(&mut master, "prompt$ ");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(!is_raw(&slave));
    assert_eq!(fake.connections(), 3);
}
