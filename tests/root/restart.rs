//! Restart policies: by themselves, with the daemon, with the host.

use insula_tests::{Daemon, daemon, eventually, text};

const ALONE: &[&str] = &["--network", "none"];

fn with_policy(daemon: &Daemon, policy: &str, script: &str) -> String {
    daemon.detached(&[ALONE, &["--restart", policy]].concat(), script)
}

#[test]
fn failures_are_tried_again_as_often_as_asked() {
    let daemon = daemon!();
    let id = with_policy(&daemon, "on-failure:3", "exit 4");
    eventually("it gives up", || {
        let state = daemon.inspect(&id, "");
        (state["RestartCount"] == 3 && state["State"]["Status"] == "exited").then_some(())
    });
    assert_eq!(daemon.inspect(&id, "/State/ExitCode"), 4);
    let good = with_policy(&daemon, "on-failure", "exit 0");
    daemon.reaches(&good, "exited");
    assert_eq!(daemon.inspect(&good, "/RestartCount"), 0);
    // A user's start counts anew.
    daemon.insula(&["start", &id]).ok();
    eventually("it gives up again", || {
        let state = daemon.inspect(&id, "");
        (state["RestartCount"] == 3 && state["State"]["Status"] == "exited").then_some(())
    });
}

#[test]
fn a_stop_or_kill_while_it_waits_ends_it() {
    let daemon = daemon!();
    let stop = with_policy(&daemon, "always", "exit 1");
    let kill = with_policy(&daemon, "always", "exit 1");
    // Its pauses have grown long enough to be met by then.
    for id in [&stop, &kill] {
        eventually("its pauses grow", || {
            (daemon.inspect(id, "/RestartCount").as_u64().unwrap() >= 4).then_some(())
        });
        daemon.reaches(id, "restarting");
    }
    assert_eq!(daemon.inspect(&stop, "/State/Running"), true);
    daemon.insula(&["stop", &stop]).ok();
    daemon.insula(&["kill", &kill]).ok();
    for id in [&stop, &kill] {
        assert_eq!(daemon.inspect(id, "/State/Status"), "exited");
        assert_eq!(daemon.inspect(id, "/State/Restarting"), false);
        daemon.insula(&["rm", id]).ok();
    }
}

#[test]
fn policies_hold_over_daemons() {
    let mut daemon = daemon!();
    let named = |name: &str, policy: &str| {
        daemon.sleeper(&["--name", name, "--network", "none", "--restart", policy]);
    };
    for (name, policy) in [
        ("always", "always"),
        ("stopped-always", "always"),
        ("unless", "unless-stopped"),
        ("stopped-unless", "unless-stopped"),
        ("stopped-failure", "on-failure"),
        ("never", "no"),
    ] {
        named(name, policy);
    }
    for name in ["stopped-always", "stopped-unless", "stopped-failure"] {
        daemon.insula(&["stop", "-t", "1", name]).ok();
    }
    let bind = format!("{}:/in", text(&daemon.folder()));
    let waits = "while test ! -e /in/go; do sleep 0.02; done; test -e /in/again && exec sleep 1000; exit 3";
    let failing = daemon.detached(&["-v", &bind, "--network", "none", "--restart", "on-failure"], waits);
    let pid = daemon.pid_of(&failing);
    daemon.kill();
    std::fs::write(daemon.folder().join("go"), "").unwrap();
    eventually("it fails unseen", || (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    std::fs::write(daemon.folder().join("again"), "").unwrap();
    daemon.restart();
    for name in ["always", "unless", "never", "stopped-always"] {
        daemon.reaches(name, "running");
    }
    daemon.reaches(&failing, "running");
    assert_eq!(daemon.inspect(&failing, "/RestartCount"), 1);
    for name in ["stopped-unless", "stopped-failure"] {
        assert_eq!(daemon.inspect(name, "/State/Status"), "exited", "{name}");
    }
    assert_eq!(daemon.inspect("always", "/RestartCount"), 0, "it ran all the time");
}

#[test]
fn policies_hold_over_boots() {
    let mut daemon = daemon!();
    for (name, policy) in [("always", "always"), ("unless", "unless-stopped"), ("never", "no")] {
        daemon.sleeper(&["--name", name, "--network", "none", "--restart", policy]);
    }
    let once = daemon.sleeper(&["--network", "none", "--rm"]);
    daemon.crash_host();
    daemon.restart();
    for name in ["always", "unless"] {
        daemon.reaches(name, "running");
    }
    let state = daemon.inspect("never", "/State");
    assert_eq!((state["Status"].as_str(), state["ExitCode"].as_i64()), (Some("exited"), Some(255)));
    eventually("what --rm promised", || (daemon.insula(&["inspect", &once]).code == 1).then_some(()));
}
