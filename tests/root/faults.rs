//! What fails that nobody can prevent: nothing that was acknowledged is lost.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use insula_tests::{Daemon, daemon, eventually, holds};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

const SLEEPER: &[&str] = &["--name", "box", "--network", "none"];

/// Writes `bytes` into a database, sees the daemon refuse it with `words`, takes them back, and finds the
/// container as it was.
#[track_caller]
fn refused(daemon: &mut Daemon, at: u64, bytes: &[u8], words: &[&str]) {
    let pid = daemon.pid_of("box");
    // In order, so that all of the database is in one file.
    assert_eq!(daemon.stop(), Some(0));
    let path = daemon.instance().root().join("state.db");
    let sound = std::fs::read(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(bytes, at).unwrap();
    let damaged = std::fs::read(&path).unwrap();
    assert!(!daemon.try_restart(), "it serves from {words:?}");
    let log = daemon.log();
    assert!(words.iter().all(|word| log.contains(word)), "{words:?} in {log}");
    assert!(std::fs::read(&path).unwrap() == damaged, "it is left for who can repair it");
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "what runs goes on");
    std::fs::write(&path, sound).unwrap();
    daemon.restart();
    assert_eq!(daemon.pid_of("box"), pid);
    daemon.exec("box", "true").ok();
}

#[test]
fn a_database_that_cannot_be_read_is_said_and_left_alone() {
    let mut daemon = daemon!();
    daemon.sleeper(SLEEPER);
    refused(&mut daemon, 0, &[0xa5; 4096], &["state.db", "damaged"]);
    // The version of the schema: bytes 60 to 63 of the header, https://www.sqlite.org/fileformat.html.
    refused(&mut daemon, 60, &99_u32.to_be_bytes(), &["state.db", "newer version", "schema 99"]);
}

/// Connections on which this was sent.
fn clients(daemon: &Daemon, count: u64, bytes: &[u8]) -> Vec<UnixStream> {
    let socket = daemon.instance().socket();
    let open = |_| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        // Who came first may have been sent away.
        let _ = stream.write_all(bytes);
        stream
    };
    (0..count).map(open).collect()
}

/// Half of the descriptors that this process may have; others use them too.
fn half_the_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.unwrap_or(u64::MAX) / 2
}

#[test]
fn ten_thousand_half_open_connections_are_in_nobodys_way() {
    let daemon = daemon!();
    daemon.sleeper(SLEEPER);
    let count = half_the_descriptors().min(10_000);
    let mut held = clients(&daemon, count / 2, b"GET /containers/json HTTP/1.1\r\nHost: x\r\nX-Half");
    held.extend(clients(&daemon, count - count / 2, b""));
    daemon.insula(&["ps", "-q"]).ok();
    assert_eq!(daemon.sh(&[], "echo served").ok(), "served");
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count() as u64;
    assert!(open < count / 2, "{open} descriptors for {count} clients that ask for nothing");
    // The last to come are those that still have their place.
    let last = held.last_mut().unwrap();
    last.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn who_is_one_too_many_is_told_and_no_container_notices() {
    let mut daemon = daemon!();
    daemon.sleeper(SLEEPER);
    daemon.stop();
    daemon.restart_with_mounts("ulimit -n 200");
    let pid = daemon.pid_of("box");
    // A quarter of the descriptors is how many can be served.
    let mut held = Vec::new();
    let answer = loop {
        assert!(held.len() <= 50, "there is no end");
        let mut client = clients(&daemon, 1, b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").remove(0);
        let mut begin = [0; 12];
        client.read_exact(&mut begin).unwrap();
        if begin != *b"HTTP/1.1 200" {
            let mut rest = String::new();
            client.read_to_string(&mut rest).unwrap();
            break String::from_utf8_lossy(&begin).into_owned() + &rest;
        }
        held.push(client);
    };
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("ask again"), "{answer}");
    let refused = daemon.insula(&["ps"]);
    assert!(refused.code != 0 && refused.stderr.contains("as many clients are served"), "{refused:?}");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(held);
    holds("clients that left make room", || daemon.insula(&["ps"]).code == 0);
    assert_eq!(daemon.pid_of("box"), pid);
    daemon.exec("box", "true").ok();
    assert!(!daemon.log().contains("Too many open files"), "{}", daemon.log());
    daemon.insula(&["stop", "-t", "0", "box"]).ok();
}

#[test]
fn containers_leave_descriptors_to_be_stopped_with() {
    const FEW: &str = "ulimit -n 64";
    let mut daemon = daemon!();
    daemon.stop();
    daemon.restart_with_mounts(FEW);
    let mut count = 0;
    let refused = loop {
        assert!(count < 64, "there is no end");
        let name = format!("c{count}");
        let run = ["run", "-d", "--init", "--network", "none", "--name", &name, "busybox", "sleep", "1000"];
        let outcome = daemon.insula(&run);
        if outcome.code != 0 {
            break outcome;
        }
        count += 1;
    };
    assert!(count > 4, "{refused}");
    refused.fails(125, &["of its 64 descriptors in use", "raise its limit of open files"]);
    let last = format!("c{count}");
    assert_eq!(daemon.inspect(&last, "/State/Status"), "created", "it may be started later");
    let running = |daemon: &Daemon| daemon.insula(&["ps", "-q"]).ok().lines().count();
    assert_eq!(running(&daemon), count);
    daemon.exec("c0", "true").ok();
    daemon.kill();
    daemon.restart_with_mounts(FEW);
    assert_eq!(running(&daemon), count, "the next one finds all of them");
    daemon.insula(&["rm", "-f", "c0", "c1", "c2"]).ok();
    holds("there is room again", || daemon.insula(&["start", &last]).code == 0);
    assert!(!daemon.log().contains("Too many open files"), "{}", daemon.log());
}

#[test]
fn a_frozen_process_that_ignores_sigterm_is_stopped() {
    let daemon = daemon!();
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    daemon.detached(SLEEPER, script);
    holds("the trap is set", || daemon.insula(&["logs", "box"]).stdout.contains("ready"));
    daemon.insula(&["pause", "box"]).ok();
    daemon.insula(&["stop", "-t", "1", "box"]).ok();
    assert_eq!(daemon.inspect("box", "/State/ExitCode"), 137);
    assert_eq!(daemon.inspect("box", "/State/Paused"), false);
}

/// The process that watches over a container's first one.
fn monitor_of(pid: u64) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    let command = std::fs::read_to_string(format!("/proc/{parent}/cmdline")).unwrap();
    assert!(command.contains("insula-monitor"), "{command}");
    parent
}

#[test]
fn a_monitor_that_memory_runs_out_for_takes_its_container_along() {
    let memory = Path::new("/sys/fs/cgroup/memory");
    if insula_tests::is_root() && !memory.is_dir() {
        return insula_tests::skip("memory", "there is no hierarchy of version 1 for memory");
    }
    let daemon = daemon!();
    daemon.sleeper(SLEEPER);
    let (pid, monitor) = (daemon.pid_of("box"), monitor_of(daemon.pid_of("box")));
    let group = memory.join(format!("insula-test-{}", insula_base::random_hex(4)));
    std::fs::create_dir(&group).unwrap();
    let _removed = insula_tests::OnDrop(|| insula_tests::remove_cgroups(&group));
    let write = |file: &str, text: &str| std::fs::write(group.join(file), text);
    write("memory.limit_in_bytes", "4096").unwrap();
    // Where there is swap.
    let _ = write("memory.memsw.limit_in_bytes", "4096");
    write("cgroup.procs", &monitor.to_string()).unwrap();
    // Whatever it is asked to do now takes memory.
    eventually("the kernel kills it", || {
        let _ = daemon.insula(&["exec", "box", "true"]);
        let counts = std::fs::read_to_string(group.join("memory.oom_control")).unwrap();
        let killed = counts.lines().any(|line| line.starts_with("oom_kill ") && line != "oom_kill 0");
        (killed && daemon.inspect("box", "/State/Status") == "exited").then_some(())
    });
    assert_eq!(daemon.inspect("box", "/State/ExitCode"), 255);
    eventually("nothing of it runs on", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    daemon.insula(&["start", "box"]).ok();
    daemon.exec("box", "true").ok();
}

#[test]
fn a_monitor_that_is_killed_takes_its_container_along_and_is_told() {
    let daemon = daemon!();
    let id = daemon.sleeper(SLEEPER);
    let pid = daemon.pid_of("box");
    let monitor = rustix::process::Pid::from_raw(monitor_of(pid)).unwrap();
    // As the kernel does when memory runs out.
    rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
    daemon.reaches(&id, "exited");
    assert_eq!(daemon.inspect("box", "/State/ExitCode"), 255);
    eventually("nothing of it runs on", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    daemon.insula(&["start", "box"]).ok();
    daemon.exec("box", "true").ok();
}

/// Signals the monitors of these containers.
fn signal_monitors(daemon: &Daemon, names: &[&str], signal: Signal) -> Vec<i32> {
    let monitors: Vec<i32> = names.iter().map(|name| monitor_of(daemon.pid_of(name))).collect();
    for monitor in &monitors {
        kill_process(Pid::from_raw(*monitor).unwrap(), signal).unwrap();
    }
    monitors
}

#[test]
fn a_stopped_monitor_fails_requests_and_nothing_else() {
    let daemon = daemon!();
    daemon.insula(&["network", "create", "net"]).ok();
    daemon.sleeper(&["--name", "box", "--network", "net", "--restart", "always"]);
    let pid = daemon.pid_of("box");
    let monitor = signal_monitors(&daemon, &["box"], Signal::STOP)[0];
    let pid_said = format!("pid {monitor}, state T");
    let said = ["the monitor of box does not answer", &pid_said, "kill -CONT"];
    let requests: &[&[&str]] = &[
        &["stop", "-t", "1", "box"],
        &["exec", "box", "touch", "/carried-out"],
        &["exec", "-d", "box", "touch", "/carried-out"],
        &["pause", "box"],
        &["update", "--pids-limit", "33", "box"],
        &["network", "disconnect", "net", "box"],
        &["top", "box"],
    ];
    std::thread::scope(|scope| {
        for request in requests {
            let daemon = &daemon;
            scope.spawn(move || {
                let outcome = daemon.insula(request);
                assert!(
                    outcome.code != 0 && said.iter().all(|word| outcome.stderr.contains(word)),
                    "{outcome}"
                );
            });
        }
    });
    assert_eq!(daemon.inspect("box", "/State/Status"), "running");
    signal_monitors(&daemon, &["box"], Signal::CONT);
    holds("it is taken up again", || daemon.exec("box", "true").code == 0);
    // None of what failed was done late.
    daemon.exec("box", "test ! -e /carried-out").ok();
    assert_eq!((daemon.pid_of("box"), daemon.inspect("box", "/State/Paused")), (pid, false.into()));
    assert_eq!(daemon.inspect("box", "/HostConfig/PidsLimit").as_i64().unwrap_or_default(), 0);
    daemon.exec("box", "ip addr show eth0").ok();
    // The stop that came to nothing does not keep it down after its own end.
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    holds("it is started again", || {
        daemon.inspect("box", "/State/Pid").as_u64().is_some_and(|again| again > 0 && again != pid)
    });
    daemon.insula(&["stop", "box"]).ok();
    assert_eq!(daemon.inspect("box", "/State/ExitCode"), 143);
}

#[test]
fn a_daemon_that_starts_beside_stopped_monitors_goes_on_with_their_containers() {
    let mut daemon = daemon!();
    daemon.insula(&["network", "create", "net"]).ok();
    let other = daemon.insula(&["network", "create", "other"]).ok().to_owned();
    let networks = daemon.insula(&["network", "inspect", &other]).ok().to_owned();
    let networks: serde_json::Value = serde_json::from_str(&networks).unwrap();
    let subnet = networks.pointer("/0/IPAM/Config/0/Subnet").unwrap().as_str().unwrap();
    let address = format!("{}.77", subnet.rsplit_once('.').unwrap().0);
    daemon.sleeper(&["--name", "box", "--network", "net", "--health-cmd", "true", "--health-interval", "1s"]);
    daemon.sleeper(&["--name", "paused", "--network", "none"]);
    daemon.insula(&["pause", "paused"]).ok();
    let pid = daemon.pid_of("box");
    signal_monitors(&daemon, &["box", "paused"], Signal::STOP);
    daemon.kill();
    daemon.restart();
    assert_eq!((daemon.inspect("box", "/State/Status"), daemon.pid_of("box")), ("running".into(), pid));
    let connect = daemon.insula(&["network", "connect", "--ip", &address, "other", "box"]);
    connect.fails(1, &["the monitor of box does not answer", "kill -CONT"]);
    // Nobody knows whether it has the address by now.
    let next = ["run", "--rm", "--network", "other", "--ip", &address, "busybox", "true"];
    daemon.insula(&next).fails(125, &[&address]);
    signal_monitors(&daemon, &["box", "paused"], Signal::CONT);
    holds("it is used again", || daemon.exec("box", "true").code == 0);
    holds("the address is free again", || daemon.insula(&next).code == 0);
    assert_eq!(daemon.exec("box", "ls /sys/class/net").ok().split_whitespace().count(), 2);
    daemon.insula(&["network", "connect", "--ip", &address, "other", "box"]).ok();
    assert!(daemon.exec("box", "ip addr show eth1").ok().contains(&address));
    holds("it is probed", || daemon.inspect("box", "/State/Health/Status") == "healthy");
    holds("it is known to be paused", || daemon.inspect("paused", "/State/Paused") == true);
    daemon.insula(&["unpause", "paused"]).ok();
    daemon.exec("paused", "true").ok();
    assert_eq!(daemon.pid_of("box"), pid);
}

#[test]
fn what_is_killed_goes_though_its_monitor_is_stopped() {
    let daemon = daemon!();
    let names = ["one", "frozen", "killed", "other"];
    let pids = names.map(|name| {
        daemon.sleeper(&["--name", name, "--network", "none"]);
        daemon.pid_of(name)
    });
    daemon.insula(&["pause", "frozen"]).ok();
    signal_monitors(&daemon, &names[..3], Signal::STOP);
    std::thread::scope(|scope| {
        scope.spawn(|| daemon.insula(&["kill", "killed"]).exits(0).stdout.len());
        daemon.insula(&["rm", "-f", "one", "frozen"]).ok();
    });
    assert_eq!(daemon.inspect("killed", "/State/Status"), "exited");
    assert_eq!(daemon.inspect("killed", "/State/ExitCode"), 137);
    assert_eq!(daemon.insula(&["ps", "-q", "--no-trunc"]).ok().lines().count(), 1);
    for pid in &pids[..3] {
        eventually("nothing of it runs on", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    }
    daemon.insula(&["start", "killed"]).ok();
    daemon.exec("killed", "true").ok();
    assert_eq!(daemon.pid_of("other"), pids[3]);
}

#[test]
fn where_no_thread_is_left_requests_fail_and_the_daemon_lives() {
    let pids = Path::new("/sys/fs/cgroup/pids");
    if insula_tests::is_root() && !pids.is_dir() {
        return insula_tests::skip("pids", "there is no hierarchy of version 1 for processes");
    }
    let daemon = daemon!();
    daemon.sleeper(SLEEPER);
    let folder = daemon.folder();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (image, root, changed) = (path("image.tar"), path("root.tar"), path("changed"));
    daemon.insula(&["save", "-o", &image, "busybox"]).ok();
    daemon.insula(&["export", "-o", &root, "box"]).ok();
    std::fs::write(&changed, "changed").unwrap();
    let group = pids.join(format!("insula-test-{}", insula_base::random_hex(4)));
    std::fs::create_dir(&group).unwrap();
    let member = daemon.pid().to_string();
    let _removed = insula_tests::OnDrop(|| {
        let _ = std::fs::write(pids.join("cgroup.procs"), &member);
        insula_tests::remove_cgroups(&group);
    });
    let write = |file: &str, text: &str| std::fs::write(group.join(file), text).unwrap();
    write("cgroup.procs", &member);
    let requests: &[&[&str]] = &[
        &["save", "-o", "/dev/null", "busybox"],
        &["load", "-q", "-i", &image],
        &["import", &root],
        &["commit", "box"],
        &["cp", &changed, "box:/tmp/changed"],
        &["cp", "box:/etc", &path("etc")],
    ];
    for request in requests {
        let mut refused = 0;
        // As many more threads as it takes, one by one.
        for more in 0..8 {
            let current = std::fs::read_to_string(group.join("pids.current")).unwrap();
            write("pids.max", &(current.trim().parse::<u32>().unwrap() + more).to_string());
            let outcome = daemon.insula(request);
            write("pids.max", "max");
            if outcome.code != 0 {
                // An answer that has begun is cut off, its head on the way or not yet.
                let said = ["start a thread", "unexpected EOF", "connection closed before message completed"]
                    .iter()
                    .any(|why| outcome.stderr.contains(why));
                assert!(said, "{request:?} with {more} more: {outcome}");
                refused += 1;
            }
        }
        assert!(refused > 0, "{request:?}");
        daemon.insula(request).exits(0);
    }
    let log = daemon.log();
    assert!(!log.contains("panicked"), "{log}");
}
