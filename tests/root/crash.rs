//! `kill -9` is a supported way to stop the daemon.

use insula_tests::{Outcome, daemon, eventually, get, holds, text};

const ALONE: &[&str] = &["--network", "none"];

#[test]
fn a_running_container_is_found_again() {
    let mut daemon = daemon!();
    let id = daemon.detached(
        &["-p", "80", "--init"],
        "mkdir /www; echo alive > /www/index.html; exec httpd -f -p 80 -h /www",
    );
    let port = daemon.inspect(&id, "/NetworkSettings/Ports/80~1tcp/0/HostPort");
    let address = format!("127.0.0.1:{}", port.as_str().unwrap());
    let alive = || get(&address).filter(|response| response.text().trim() == "alive");
    eventually("the page is served", alive);
    let before =
        daemon.insula(&["ps", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Ports}}"]).ok().to_owned();
    let pid = daemon.pid_of(&id);
    daemon.kill();
    assert!(alive().is_some(), "the page is served without the daemon");
    daemon.restart();
    assert_eq!(
        daemon.insula(&["ps", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Ports}}"]).ok(),
        before
    );
    assert_eq!(daemon.pid_of(&id), pid);
    assert!(alive().is_some());
    daemon.exec(&id, "true").ok();
    daemon.insula(&["stop", &id]).ok();
    assert_eq!(daemon.inspect(&id, "/State/ExitCode"), 143);
}

#[test]
fn what_ended_meanwhile_has_its_exit_code_and_all_of_its_log() {
    let mut daemon = daemon!();
    let script = "echo first; while test ! -e /in/go; do sleep 0.02; done; seq 1 5000; exit 23";
    let bind = format!("{}:/in", text(&daemon.folder()));
    let id = daemon.detached(&["-v", &bind, "--network", "none"], script);
    let pid = daemon.pid_of(&id);
    daemon.kill();
    std::fs::write(daemon.folder().join("go"), "").unwrap();
    holds("the container ends", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    daemon.restart();
    daemon.reaches(&id, "exited");
    assert_eq!(daemon.inspect(&id, "/State/ExitCode"), 23);
    let log = daemon.insula(&["logs", &id]);
    assert_eq!(log.ok().lines().count(), 5001);
    assert!(log.ok().starts_with("first") && log.ok().ends_with("5000"));
}

/// Writes numbered lines, about a thousand a second, until it is told to end.
const NUMBERED: &str = "i=0; while test ! -e /in/go; do seq $((i * 50 + 1)) $((i * 50 + 50)); i=$((i + 1)); sleep 0.05; done; echo end";

#[test]
fn a_daemon_that_is_replaced_under_load_loses_no_line_and_no_event() {
    let mut daemon = daemon!();
    let bind = format!("{}:/in", text(&daemon.folder()));
    let names = ["one", "two", "three", "x4"];
    for name in names {
        daemon.detached(&["-v", &bind, "--name", name, "--network", "none"], NUMBERED);
    }
    let lines = |daemon: &insula_tests::Daemon, name: &str| -> Vec<String> {
        daemon.insula(&["logs", name]).ok().lines().map(str::to_owned).collect()
    };
    for killed in [true, false, true, false] {
        let before = names.map(|name| lines(&daemon, name).len());
        if killed {
            daemon.kill()
        } else {
            assert_eq!(daemon.stop(), Some(0))
        }
        daemon.restart();
        for (name, before) in names.iter().zip(before) {
            holds("it writes on", || lines(&daemon, name).len() > before + 50);
        }
    }
    // They end while there is no daemon.
    let pids = names.map(|name| daemon.pid_of(name));
    daemon.kill();
    std::fs::write(daemon.folder().join("go"), "").unwrap();
    holds("all end", || !pids.iter().any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists()));
    daemon.restart();
    for name in names {
        daemon.reaches(name, "exited");
        let found = lines(&daemon, name);
        let mut expected: Vec<String> = (1..found.len()).map(|number| number.to_string()).collect();
        expected.push("end".to_owned());
        assert!(found == expected, "{name}: lines are lost or doubled: {found:?}");
    }
    let told = ["events", "--since", "1", "--until", "0s", "--filter", "type=container", "--format"];
    let told = [&told[..], &["{{.Action}} {{.Actor.Attributes.name}}"]].concat();
    // An end is seen before it is told: in between it is written.
    let told = eventually("all ends are told", || {
        let told = daemon.insula(&told);
        let ends = told.ok().lines().filter(|line| line.starts_with("die ")).count();
        (ends >= names.len()).then_some(told)
    });
    for action in ["create", "start", "die"] {
        let of: Vec<&str> =
            told.ok().lines().filter_map(|line| line.strip_prefix(action)?.strip_prefix(' ')).collect();
        let mut sorted = of.clone();
        sorted.sort_unstable();
        let mut expected = names;
        expected.sort_unstable();
        assert_eq!(sorted, expected, "{action} in {told}");
    }
}

#[test]
fn an_attached_client_outlives_the_daemon() {
    let mut daemon = daemon!();
    let mut terminal =
        daemon.terminal(&["run", "-it", "--network", "none", "--name", "box", "busybox", "sh"]);
    terminal.expect("/ # ");
    daemon.kill();
    terminal.send("echo still $((5 * 5))\n");
    terminal.expect("still 25");
    daemon.restart();
    terminal.send("echo and $((6 * 6))\n");
    terminal.expect("and 36");
    assert_eq!(daemon.inspect("box", "/State/Status"), "running");
    terminal.send("exit 7\n");
    assert_eq!(terminal.wait(), 7, "the next daemon is asked for the exit code");
}

#[test]
fn a_restart_removes_what_rm_promised() {
    let mut daemon = daemon!();
    let bind = format!("{}:/in", text(&daemon.folder()));
    let id = daemon
        .detached(&["--rm", "-v", &bind, "--network", "none"], "while test ! -e /in/go; do sleep 0.02; done");
    let pid = daemon.pid_of(&id);
    daemon.kill();
    std::fs::write(daemon.folder().join("go"), "").unwrap();
    holds("the container ends", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    daemon.restart();
    holds("it is removed", || daemon.insula(&["inspect", &id]).code == 1);
}

#[test]
fn killed_while_busy_it_comes_back_without_leaks() {
    let mut daemon = daemon!();
    for round in 0..3 {
        let runs: Vec<_> = (0..6)
            .map(|_| {
                let mut command = daemon.command(&["run", "-d", "--network", "none", "busybox", "true"]);
                // One that comes after the kill must not start a daemon of its own.
                command.env("INSULA_HOST", format!("unix://{}", text(&daemon.instance().socket())));
                std::thread::spawn(move || Outcome::of(&mut command, b""))
            })
            .collect();
        let wanted = (round + 1) * 2;
        holds("some are made", || daemon.insula(&["ps", "-aq"]).stdout.lines().count() >= wanted);
        daemon.kill();
        runs.into_iter().for_each(|run| drop(run.join().unwrap()));
        daemon.restart();
    }
    // Whatever is listed can be removed, and the harness finds nothing else.
    for id in daemon.insula(&["ps", "-aq"]).ok().lines() {
        daemon.insula(&["rm", "-f", id]).ok();
    }
    daemon.sh(ALONE, "true").ok();
}
