//! Health checks, and what follows from them.

use insula_tests::{Daemon, Outcome, daemon, eventually, holds, images, text};
use serde_json::{Value, json};

const FAST: &[&str] = &["--network", "none", "--init", "--health-interval", "50ms", "--health-retries", "2"];

fn sleeper(daemon: &Daemon, flags: &[&str]) -> String {
    daemon.sleeper(&[FAST, flags].concat())
}

fn becomes(daemon: &Daemon, id: &str, status: &str) {
    eventually(status, || (daemon.inspect(id, "/State/Health/Status") == status).then_some(()));
}

/// Actions of a container's events so far, without what their details are.
fn actions(daemon: &Daemon, id: &str) -> Vec<String> {
    let until = daemon.api("GET", "/info", "").json()["SystemTime"].as_str().unwrap().to_owned();
    let filter = format!("container={id}");
    let format = "{{.Action}}";
    let shown = daemon
        .insula(&["events", "--since", "0", "--until", &until, "--filter", &filter, "--format", format]);
    shown.ok().lines().map(str::to_owned).collect()
}

#[test]
fn a_container_becomes_healthy_and_unhealthy() {
    let daemon = daemon!();
    let id = sleeper(&daemon, &["--name", "box", "--health-cmd", "echo looked; test -e /well"]);
    becomes(&daemon, &id, "unhealthy");
    assert!(daemon.inspect(&id, "/State/Health/FailingStreak").as_u64().unwrap() >= 2);
    daemon.insula(&["ps"]).shows(&["(unhealthy)"]);
    daemon.exec(&id, "touch /well").ok();
    becomes(&daemon, &id, "healthy");
    let health = daemon.inspect(&id, "/State/Health");
    assert_eq!(health["FailingStreak"], 0);
    let last = health["Log"].as_array().unwrap().last().unwrap();
    assert_eq!((last["ExitCode"].as_i64(), last["Output"].as_str()), (Some(0), Some("looked\n")));
    assert!(health["Log"].as_array().unwrap().len() <= 5);
    daemon.insula(&["ps"]).shows(&["(healthy)"]);
    let names = |filter: &str| {
        daemon.insula(&["ps", "-a", "--filter", filter, "--format", "{{.Names}}"]).ok().to_owned()
    };
    assert_eq!((names("health=healthy").as_str(), names("health=none").as_str()), ("box", ""));
    let seen = actions(&daemon, &id);
    let health: Vec<_> = seen.iter().filter(|action| action.starts_with("health_status")).collect();
    assert_eq!(health, ["health_status: unhealthy", "health_status: healthy"]);
    let command = "exec_create: /bin/sh -c echo looked; test -e /well";
    assert!(seen.iter().any(|action| action == command), "{seen:?}");
    assert!(seen.iter().any(|action| action == "exec_die"), "{seen:?}");
    daemon.insula(&["stop", "-t", "1", &id]).ok();
    assert_eq!(daemon.inspect(&id, "/State/Health/Status"), "unhealthy", "nobody looks after it any more");
}

#[test]
fn a_check_that_hangs_is_killed_with_what_it_started() {
    let daemon = daemon!();
    let check = "echo began; sleep 3456 & sleep 3456";
    let id = sleeper(&daemon, &["--health-cmd", check, "--health-timeout", "500ms"]);
    becomes(&daemon, &id, "unhealthy");
    let said = "Health check exceeded timeout (500ms): began\n";
    // On a busy host one or the other is over before its shell has begun.
    eventually("what one said until then is kept", || {
        let log = daemon.inspect(&id, "/State/Health/Log");
        let all = log.as_array().unwrap();
        assert!(all.iter().all(|check| check["ExitCode"] == -1), "{log}");
        all.iter().any(|check| check["Output"] == said).then_some(())
    });
    daemon.insula(&["pause", &id]).ok();
    daemon.insula(&["unpause", &id]).ok();
    let sleepers = || {
        let top = daemon.insula(&["top", &id, "-eo", "pid,args"]);
        top.ok().lines().filter(|line| line.contains("sleep 3456")).count()
    };
    // One check at a time, and nothing of the former ones.
    holds("killed checks are gone", || sleepers() <= 3);
    daemon.insula(&["rm", "-f", &id]).ok();
}

#[test]
fn a_check_that_the_end_cuts_short_does_not_count() {
    let daemon = daemon!();
    let check = ["--health-cmd", "touch /begun; exec sleep 3456", "--health-timeout", "10m"];
    let stops = |id: &str| daemon.insula(&["stop", "-t", "5", id]);
    let kills = |id: &str| daemon.insula(&["kill", id]);
    // Its own end.
    let ends = |id: &str| {
        // The command, which is the init's only child; not what the check has become.
        daemon.exec(id, "kill -KILL $(cat /proc/1/task/1/children)");
        daemon.insula(&["wait", id])
    };
    let all: [&dyn Fn(&str) -> Outcome; 3] = [&stops, &kills, &ends];
    for end in all {
        let id = sleeper(&daemon, &check);
        holds("a check runs", || daemon.exec(&id, "test -e /begun").code == 0);
        end(&id).ok();
        let health = daemon.inspect(&id, "/State/Health");
        assert_eq!(health["FailingStreak"], 0, "{health}");
        assert_eq!(health["Log"].as_array().map(Vec::len), Some(0), "{health}");
    }
}

#[test]
fn output_is_bounded_and_bad_commands_are_said() {
    let daemon = daemon!();
    let id = sleeper(&daemon, &["--health-cmd", "yes | head -c 1000000"]);
    becomes(&daemon, &id, "healthy");
    let output = daemon.inspect(&id, "/State/Health/Log/0/Output");
    assert_eq!(output.as_str().unwrap().len(), 4096 + 3);
    let body = r#"{"Image":"busybox","Cmd":["sleep","100"],"HostConfig":{"NetworkMode":"none"},
        "Healthcheck":{"Test":["CMD","/no/such/program"],"Interval":50000000,"Retries":1}}"#;
    let made = daemon.api("POST", "/containers/create?name=bad", body).json();
    daemon.insula(&["start", made["Id"].as_str().unwrap()]).ok();
    becomes(&daemon, "bad", "unhealthy");
    let log = daemon.inspect("bad", "/State/Health/Log/0");
    assert_eq!(log["ExitCode"], -1);
    assert!(log["Output"].as_str().unwrap().contains("/no/such/program"), "{log}");
    let wrong = r#"{"Image":"busybox","Healthcheck":{"Test":["CMD","x"],"Interval":5}}"#;
    let answer = daemon.api("POST", "/containers/create", wrong);
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("Interval in Healthcheck cannot be less than 1ms"));
    let nothing = &["run", "--rm", "--health-on-failure", "kill", "busybox", "true"];
    daemon.insula(nothing).fails(125, &["health check"]);
}

#[test]
fn health_outlives_the_daemon() {
    let mut daemon = daemon!();
    let bind = format!("{}:/in", text(&daemon.folder()));
    let check = "test ! -e /in/hang || exec sleep 3456; test -e /in/well";
    let id = sleeper(&daemon, &["-v", &bind, "--health-cmd", check, "--health-timeout", "10m"]);
    becomes(&daemon, &id, "unhealthy");
    std::fs::write(daemon.folder().join("hang"), "").unwrap();
    // Not a shell that has yet to read its script, in which the word is too.
    let hangs = || {
        let top = daemon.insula(&["top", &id, "-eo", "args"]);
        top.ok().lines().any(|line| line.trim() == "sleep 3456")
    };
    holds("a check hangs", hangs);
    daemon.kill();
    std::fs::remove_file(daemon.folder().join("hang")).unwrap();
    daemon.restart();
    assert_eq!(daemon.inspect(&id, "/State/Health/Status"), "unhealthy");
    std::fs::write(daemon.folder().join("well"), "").unwrap();
    becomes(&daemon, &id, "healthy");
    let left = daemon.insula(&["top", &id, "-eo", "args"]);
    let hangs = left.ok().lines().any(|line| line.trim() == "sleep 3456");
    assert!(!hangs, "the former daemon's check: {}", left.stdout);
}

#[test]
fn unhealthy_containers_are_started_again_killed_or_stopped() {
    let daemon = daemon!();
    let flags = |action: &'static str| ["--health-cmd", "false", "--health-on-failure", action];
    let again = sleeper(&daemon, &["--restart", "unhealthy:2", "--health-cmd", "false"]);
    eventually("it was started twice more", || {
        (daemon.inspect(&again, "/RestartCount") == 2 && daemon.inspect(&again, "/State/Running") == true)
            .then_some(())
    });
    becomes(&daemon, &again, "unhealthy");
    assert_eq!(daemon.inspect(&again, "/State/Status"), "running", "no more is asked for");
    let killed = sleeper(&daemon, &flags("kill"));
    let stopped = sleeper(&daemon, &[&["--restart", "always"][..], &flags("stop")].concat());
    let restarted = sleeper(&daemon, &flags("restart"));
    daemon.reaches(&killed, "exited");
    assert_eq!(daemon.inspect(&killed, "/State/ExitCode"), 137);
    daemon.reaches(&stopped, "exited");
    assert_eq!(daemon.inspect(&stopped, "/State/ExitCode"), 143);
    eventually("it was started again", || {
        (daemon.inspect(&restarted, "/RestartCount").as_u64().unwrap() >= 1).then_some(())
    });
    daemon.insula(&["stop", "-t", "1", &restarted]).ok();
    assert_eq!(daemon.inspect(&restarted, "/State/Status"), "exited", "a user's word counts more");
}

#[test]
fn an_image_brings_its_check_and_users_override_it() {
    let daemon = daemon!();
    let mut image = images::busybox();
    image.name = "checked:latest".into();
    image.config = json!({
        "Cmd": ["sleep", "100"],
        "Healthcheck": {"Test": ["CMD-SHELL", "test -e /bin/sh"], "Interval": 50_000_000, "Retries": 7},
    });
    daemon.load(&image.docker_archive()).ok();
    let id = daemon.insula(&["run", "-d", "--network", "none", "--init", "checked"]).ok().to_owned();
    becomes(&daemon, &id, "healthy");
    let own = daemon
        .insula(&["run", "-d", "--network", "none", "--health-retries", "3", "checked"])
        .ok()
        .to_owned();
    let check = daemon.inspect(&own, "/Config/Healthcheck");
    assert_eq!((check["Retries"].as_i64(), check["Interval"].as_i64()), (Some(3), Some(50_000_000)));
    let none =
        daemon.insula(&["run", "-d", "--network", "none", "--no-healthcheck", "checked"]).ok().to_owned();
    let state = daemon.inspect(&none, "/State");
    assert_eq!(state.get("Health"), None::<&Value>);
}
