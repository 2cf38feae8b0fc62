//! What clients do, each from its beginning to its end: nothing is left of it.

use std::fs;

use insula_tests::{Daemon, Outcome, eventually};

use crate::Dice;

/// One deed of one client.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) daemon: &'a Daemon,
    pub(crate) dice: &'a mut Dice,
    /// Unique: for names.
    pub(crate) tag: String,
}

pub(crate) type Deed = fn(&mut Turn<'_>);

pub(crate) const DEEDS: [(&str, Deed); 16] = [
    ("run", run),
    ("fail", fail),
    ("serve", serve),
    ("write", write_much),
    ("exec", exec),
    ("restart", restart),
    ("health", health),
    ("network", network),
    ("volume", volume),
    ("commit", commit),
    ("build", build),
    ("copy", copy),
    ("save", save),
    ("freeze", freeze),
    ("look", look),
    ("create", create_and_remove),
];

impl Turn<'_> {
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        self.daemon.insula(arguments).ok().to_owned()
    }

    fn one_of<'b>(&mut self, all: &[&'b str]) -> &'b str {
        all[self.dice.roll(all.len())]
    }

    /// A container that runs until it is removed.
    #[track_caller]
    fn sleeper(&self, flags: &[&str]) {
        self.daemon.sleeper(&[&["--name", &self.tag], flags].concat());
    }

    #[track_caller]
    fn remove(&self) {
        self.ok(&["rm", "-f", "-v", &self.tag]);
    }

    fn folder(&self) -> std::path::PathBuf {
        let path = self.daemon.folder().join(&self.tag);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

fn run(turn: &mut Turn<'_>) {
    let network = turn.one_of(&["none", "bridge", "host"]);
    let driver = turn.one_of(&["json-file", "local", "none"]);
    let flags = ["--network", network, "--log-driver", driver, "--memory", "64m", "--pids-limit", "50"];
    assert_eq!(turn.daemon.sh(&flags, "echo out; echo err >&2").ok(), "out");
    turn.daemon.sh(&["--network", "none"], "exit 7").exits(7);
}

/// What cannot be started leaves nothing.
fn fail(turn: &mut Turn<'_>) {
    turn.daemon.insula(&["run", "--rm", "--network", "none", "busybox", "missing"]).exits(127);
    turn.daemon.insula(&["run", "--rm", "-v", "/no/such/file:/x:ro,bind", "busybox", "true"]).exits(125);
    turn.daemon.insula(&["exec", "no-such-container", "true"]).exits(1);
}

fn serve(turn: &mut Turn<'_>) {
    turn.sleeper(&["-p", "127.0.0.1::80", "-p", "127.0.0.1::53/udp"]);
    let port = turn.ok(&["port", &turn.tag, "80"]);
    assert!(port.starts_with("127.0.0.1:"), "{port}");
    let deed = turn.one_of(&["stop", "kill", "rm"]);
    match deed {
        "stop" => turn.ok(&["stop", "-t", "3", &turn.tag]),
        "kill" => turn.ok(&["kill", &turn.tag]),
        _ => String::new(),
    };
    turn.remove();
}

/// More lines than the log keeps in one file.
fn write_much(turn: &mut Turn<'_>) {
    let driver = turn.one_of(&["json-file", "local"]);
    let log = ["--log-driver", driver, "--log-opt", "max-size=50k", "--log-opt", "max-file=3"];
    let script = "i=0; while [ $i -lt 2000 ]; do echo a line of the log $i; i=$((i+1)); done";
    let flags = [&["--name", &turn.tag, "--network", "none"][..], &log].concat();
    turn.daemon.detached(&flags, script);
    turn.daemon.insula(&["logs", "-f", "--tail", "10", &turn.tag]).ok();
    assert!(turn.ok(&["logs", "--tail", "1", &turn.tag]).ends_with("a line of the log 1999"));
    turn.remove();
}

fn exec(turn: &mut Turn<'_>) {
    turn.sleeper(&["--network", "none"]);
    for _ in 0..=turn.dice.roll(4) {
        let through = turn.daemon.insula_with(&["exec", "-i", &turn.tag, "cat"], b"through and through\n");
        assert_eq!(through.ok(), "through and through");
    }
    turn.daemon.insula(&["exec", &turn.tag, "sh", "-c", "exit 3"]).exits(3);
    turn.ok(&["exec", "-d", &turn.tag, "sleep", "1000"]);
    turn.ok(&["top", &turn.tag]);
    turn.remove();
}

fn restart(turn: &mut Turn<'_>) {
    let flags = ["--name", &turn.tag, "--network", "none", "--restart", "on-failure:2"];
    turn.daemon.detached(&flags, "exit 1");
    eventually("it gives up", || {
        let state = turn.daemon.inspect(&turn.tag, "/State/Status");
        (state == "exited" && turn.daemon.inspect(&turn.tag, "/RestartCount") == 2).then_some(())
    });
    turn.remove();
}

fn health(turn: &mut Turn<'_>) {
    let command = turn.one_of(&["true", "false"]);
    let check = ["--health-cmd", command, "--health-interval", "100ms", "--health-retries", "1"];
    turn.sleeper(&[&["--network", "none"], &check[..]].concat());
    let wanted = if command == "true" { "healthy" } else { "unhealthy" };
    eventually(wanted, || (turn.daemon.inspect(&turn.tag, "/State/Health/Status") == wanted).then_some(()));
    turn.remove();
}

fn network(turn: &mut Turn<'_>) {
    let name = format!("n-{}", turn.tag);
    turn.ok(&["network", "create", &name]);
    turn.sleeper(&["--network", &name]);
    assert_eq!(
        turn.daemon
            .sh(&["--network", &name], &format!("ping -c 1 {} >/dev/null && echo there", turn.tag))
            .ok(),
        "there"
    );
    turn.ok(&["network", "connect", "bridge", &turn.tag]);
    turn.ok(&["network", "disconnect", &name, &turn.tag]);
    turn.remove();
    turn.ok(&["network", "rm", &name]);
}

fn volume(turn: &mut Turn<'_>) {
    let mount = format!("{}:/data", turn.tag);
    turn.daemon.sh(&["--network", "none", "-v", &mount, "-v", "/anonymous"], "echo kept >/data/file").ok();
    assert_eq!(turn.daemon.sh(&["--network", "none", "-v", &mount], "cat /data/file").ok(), "kept");
    turn.ok(&["volume", "rm", &turn.tag]);
}

fn commit(turn: &mut Turn<'_>) {
    let image = format!("i-{}", turn.tag);
    turn.daemon
        .insula(&["run", "--name", &turn.tag, "--network", "none", "busybox", "sh", "-c", "echo new >/new"])
        .ok();
    turn.ok(&["diff", &turn.tag]);
    turn.ok(&["commit", &turn.tag, &image]);
    turn.remove();
    assert_eq!(turn.ok(&["run", "--rm", "--network", "none", &image, "cat", "/new"]), "new");
    turn.ok(&["rmi", &image]);
}

fn build(turn: &mut Turn<'_>) {
    let (folder, image) = (turn.folder(), format!("b-{}", turn.tag));
    let number = turn.dice.roll(3);
    let text = format!("FROM busybox\nCOPY file /file\nRUN echo {number} >>/file\nCMD cat /file\n");
    fs::write(folder.join("Dockerfile"), text).unwrap();
    fs::write(folder.join("file"), "copied\n").unwrap();
    turn.ok(&["build", "-q", "-t", &image, folder.to_str().unwrap()]);
    let wanted = format!("copied\n{number}");
    assert_eq!(turn.ok(&["run", "--rm", "--network", "none", &image]), wanted);
    turn.ok(&["rmi", &image]);
    fs::remove_dir_all(folder).unwrap();
}

fn copy(turn: &mut Turn<'_>) {
    let folder = turn.folder();
    let (there, back) = (folder.join("there"), folder.join("back"));
    fs::write(&there, vec![turn.dice.roll(256) as u8; 100_000]).unwrap();
    turn.sleeper(&["--network", "none"]);
    turn.ok(&["cp", there.to_str().unwrap(), &format!("{}:/tmp/x", turn.tag)]);
    turn.ok(&["cp", &format!("{}:/tmp/x", turn.tag), back.to_str().unwrap()]);
    assert!(fs::read(there).unwrap() == fs::read(back).unwrap());
    turn.remove();
    fs::remove_dir_all(folder).unwrap();
}

fn save(turn: &mut Turn<'_>) {
    let folder = turn.folder();
    let archive = folder.join("image.tar");
    let name = format!("s-{}", turn.tag);
    turn.ok(&["tag", "busybox", &name]);
    turn.ok(&["save", "-o", archive.to_str().unwrap(), &name]);
    turn.ok(&["rmi", &name]);
    turn.ok(&["load", "-i", archive.to_str().unwrap()]);
    turn.ok(&["rmi", &name]);
    fs::remove_dir_all(folder).unwrap();
}

fn freeze(turn: &mut Turn<'_>) {
    turn.sleeper(&["--network", "none"]);
    turn.ok(&["pause", &turn.tag]);
    turn.ok(&["unpause", &turn.tag]);
    turn.ok(&["update", "--memory", "100m", "--memory-swap", "100m", &turn.tag]);
    turn.ok(&["rename", &turn.tag, &format!("{}-new", turn.tag)]);
    turn.ok(&["rename", &format!("{}-new", turn.tag), &turn.tag]);
    turn.ok(&["restart", "-t", "1", &turn.tag]);
    turn.remove();
}

/// Changes nothing.
fn look(turn: &mut Turn<'_>) {
    let words: &[&str] = match turn.dice.roll(8) {
        0 => &["ps", "-a", "-s"],
        1 => &["images"],
        2 => &["stats", "--no-stream", "kept-json", "kept-web"],
        3 => &["system", "df", "-v"],
        4 => &["events", "--since", "1s", "--until", "0s"],
        5 => &["info"],
        6 => &["inspect", "kept-json", "kept-local", "kept-web"],
        _ => &["logs", "--tail", "5", "kept-local"],
    };
    turn.ok(words);
    // A client that goes away in the middle.
    let socket = turn.daemon.instance().socket();
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    std::io::Write::write_all(&mut stream, b"GET /events HTTP/1.1\r\nHost: insula\r\n\r\n").unwrap();
    drop(stream);
}

fn create_and_remove(turn: &mut Turn<'_>) {
    turn.ok(&["create", "--name", &turn.tag, "-v", "/v", "busybox", "true"]);
    let again: Outcome = turn.daemon.insula(&["create", "--name", &turn.tag, "busybox", "true"]);
    again.exits(1);
    turn.ok(&["start", "-a", &turn.tag]);
    turn.remove();
}
