//! The daemon is replaced while everything is in use: nobody who follows something loses it, or sees it twice.
//!
//! `INSULA_TEST_CONTAINERS` and `INSULA_TEST_SECONDS` make it larger and longer: 50 and 60, for one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use insula_tests::{Daemon, daemon, eventually, holds, text};

/// Writes numbered lines, a thousand a second and more where there is time for it, until it is told to end.
/// Nothing in it starts a process: fifty of them leave the processors to the engine.
const NUMBERED: &str = "mkfifo /f; exec 3<>/f; i=0; while test ! -e /in/go; do k=$((i + 60)); \
    while test $i -lt $k; do i=$((i + 1)); echo $i; done; read -t 0.04 -u 3 x; done; echo end";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A command that goes on in the background, and what it has shown.
struct Follower {
    child: Child,
    output: PathBuf,
}

impl Follower {
    fn start(daemon: &Daemon, file: &str, arguments: &[&str]) -> Self {
        let output = daemon.folder().join(file);
        let mut command = daemon.command(arguments);
        // None of them is to start a daemon of its own.
        command.env("INSULA_HOST", format!("unix://{}", text(&daemon.instance().socket())));
        command.stdin(Stdio::null()).stdout(File::create(&output).unwrap());
        command.stderr(File::create(output.with_extension("err")).unwrap());
        Self { child: command.spawn().unwrap(), output }
    }

    fn size(&self) -> u64 {
        self.output.metadata().unwrap().len()
    }

    fn shown(&self) -> Vec<String> {
        std::fs::read_to_string(&self.output).unwrap().lines().map(str::to_owned).collect()
    }

    /// Its exit code and what it showed, when it has ended by itself.
    fn end(mut self) -> (Option<i32>, Vec<String>) {
        let status = eventually("a follower ends", || self.child.try_wait().unwrap());
        (status.code(), self.shown())
    }

    fn complaint(&self) -> String {
        std::fs::read_to_string(self.output.with_extension("err")).unwrap()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon goes, one time killed and one time asked, and the next one comes, for as long as is wanted.
fn replace(daemon: &mut Daemon, followers: &[Follower], length: Duration) -> usize {
    let (began, mut times) = (Instant::now(), 0);
    while times < 3 || began.elapsed() < length {
        if times % 2 == 0 {
            daemon.kill();
        } else {
            assert_eq!(daemon.stop(), Some(0));
        }
        daemon.restart();
        times += 1;
        for follower in followers {
            let before = follower.size();
            holds("a follower goes on", || follower.size() > before + 200);
        }
    }
    times
}

/// That it counts up from its first line, without a gap, to its end.
fn counts_up(shown: &[String]) {
    let (last, lines) = shown.split_last().unwrap();
    assert_eq!(last, "end", "the last line is there");
    let numbers: Vec<u64> = lines.iter().map(|line| line.parse().unwrap()).collect();
    let gap = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]);
    assert!(gap.is_none() && !numbers.is_empty(), "lost or doubled: {gap:?} of {}", numbers.len());
}

#[test]
fn followers_go_on_with_the_next_daemon() {
    let mut daemon = daemon!();
    let count = number("INSULA_TEST_CONTAINERS", 4);
    let length = Duration::from_secs(number("INSULA_TEST_SECONDS", 0));
    let names: Vec<String> = (0..count).map(|n| format!("c{n}")).collect();
    let events = ["--filter", "event=start", "--filter", "event=die", "--format"];
    let events = [&["events"], &events[..], &["{{.Action}} {{.Actor.Attributes.name}}"]].concat();
    let events = Follower::start(&daemon, "events", &events);
    // The first word of it says that it listens.
    let listens = || {
        daemon.sh(&["--network", "none", "--name", "first"], "true").ok();
        events.size() > 0
    };
    holds("events are followed", listens);
    let bind = format!("{}:/in", text(&daemon.folder()));
    let flags = ["-v", &bind, "--network", "none", "--log-opt", "max-size=1g"];
    for name in &names {
        daemon.detached(&[&flags[..], &["--name", name]].concat(), NUMBERED);
    }
    let began = Instant::now();
    let follow = |name: &String| Follower::start(&daemon, &format!("{name}.log"), &["logs", "-f", name]);
    let logs: Vec<Follower> = names.iter().map(follow).collect();
    let late = Follower::start(&daemon, "late.log", &["logs", "-f", "-n", "1", "c0"]);
    let attached = Follower::start(&daemon, "attached", &["attach", "--no-stdin", "c0"]);
    let script = "echo in; while test ! -e /in/leave; do usleep 20000; done; echo out; exit 9";
    let exec = Follower::start(&daemon, "exec", &["exec", "c1", "sh", "-c", script]);
    let doomed = Follower::start(&daemon, "doomed", &["exec", "c1", "sh", "-c", "echo in; sleep 1000"]);
    let waits = Follower::start(&daemon, "wait", &["wait", "c1"]);
    for follower in logs.iter().chain([&late, &attached, &exec, &doomed]) {
        holds("it shows something", || follower.size() > 0);
    }

    let times = replace(&mut daemon, &logs, length);
    // A command ends while there is no daemon, then the containers do, with a command in one of them.
    daemon.kill();
    std::fs::write(daemon.folder().join("leave"), "").unwrap();
    holds("the command ends", || exec.shown() == ["in", "out"]);
    daemon.restart();
    assert_eq!(exec.end(), (Some(9), vec!["in".to_owned(), "out".to_owned()]), "the exec's own code");
    let pids: Vec<u64> = names.iter().map(|name| daemon.pid_of(name)).collect();
    daemon.kill();
    let wrote = began.elapsed();
    std::fs::write(daemon.folder().join("go"), "").unwrap();
    holds("all end", || !pids.iter().any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists()));
    daemon.restart();

    holds("it is said", || doomed.complaint().contains("the exit code of the command is not known"));
    assert_eq!(doomed.end(), (Some(125), vec!["in".to_owned()]));
    assert_eq!(waits.end(), (Some(0), vec!["0".to_owned()]));
    for follower in [late, attached] {
        let (code, shown) = follower.end();
        assert_eq!(code, Some(0));
        counts_up(&shown);
    }
    let mut lines = 0;
    for (follower, name) in logs.into_iter().zip(&names) {
        let (code, shown) = follower.end();
        assert_eq!((code, shown[0].as_str()), (Some(0), "1"));
        counts_up(&shown);
        lines += shown.len();
        let kept = daemon.insula(&["logs", name]);
        assert!(kept.ok().lines().eq(shown.iter().map(String::as_str)), "{name}: as the log has it");
    }
    let rate = lines as f64 / count as f64 / wrote.as_secs_f64();
    eprintln!("{count} containers, {times} replacements, {lines} lines, {rate:.0} a second each");
    told_once(&daemon, events, &names);
}

#[test]
fn who_follows_is_told_at_once_that_the_daemon_ends() {
    let mut daemon = daemon!();
    daemon.stop();
    daemon.restart_with(&["--log", "insula_api=debug"]);
    daemon.detached(&["--network", "none", "--name", "box"], "echo line; exec sleep 1000");
    let paths = ["/events?since=1", "/containers/box/logs?follow=1&stdout=1", "/containers/box/stats"];
    let mut followers = paths.map(|path| {
        let mut stream = UnixStream::connect(daemon.instance().socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: insula\r\n\r\n").as_bytes()).unwrap();
        let mut shown = Vec::new();
        // Something of the body has come.
        while !shown.split(|byte| *byte == b'\n').skip_while(|line| *line != b"\r").any(|line| line.len() > 8)
        {
            let mut piece = [0; 4096];
            let count = stream.read(&mut piece).unwrap();
            assert!(count > 0, "{path}: {}", String::from_utf8_lossy(&shown));
            shown.extend_from_slice(&piece[..count]);
        }
        (path, stream)
    });
    assert_eq!(daemon.stop(), Some(0));
    assert!(!daemon.log().contains("closing connections that still stream"), "{}", daemon.log());
    for (path, stream) in &mut followers {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(!rest.ends_with(b"\r\n0\r\n\r\n"), "{path} is broken off: that would be its end");
    }
    daemon.restart();
}

/// Each start and each end is told once.
fn told_once(daemon: &Daemon, events: Follower, names: &[String]) {
    daemon.sh(&["--network", "none", "--name", "last"], "true").ok();
    let shown = eventually("the last event comes", || {
        let shown = events.shown();
        (shown.last()? == "die last").then_some(shown)
    });
    for name in names {
        for action in ["start", "die"] {
            let event = format!("{action} {name}");
            assert_eq!(shown.iter().filter(|shown| **shown == event).count(), 1, "{event} in {shown:?}");
        }
    }
}
