//! Runtime specification, "Runtime and Lifecycle".

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use insula_tests::{holds, is_root};
use serde_json::json;

use super::{Bundle, Runtime, for_each_runtime};

for_each_runtime!(
    a_container_goes_through_its_life,
    the_exit_code_is_the_programs,
    hooks_run_in_their_order,
    hooks_of_the_start_have_no_more_rights_than_the_program,
    a_hook_that_fails_leaves_nothing,
    a_paused_container_stands_still,
    limits_are_in_force_and_change,
    another_program_is_executed_inside,
    a_running_container_is_deleted_by_force_only,
    nothing_is_left_of_what_cannot_be_executed,
    events_are_told_until_the_end,
);

fn a_container_goes_through_its_life(runtime: &Runtime) {
    let mut bundle = Bundle::new(runtime, "echo begun; exec sleep 1000");
    bundle.config["annotations"] = json!({"org.test": "value"});
    assert!(bundle.create(&["--pid-file", bundle.path("pid").to_str().unwrap()]).success());
    let state = bundle.state();
    assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!(bundle.id)));
    assert_eq!(state["annotations"], json!({"org.test": "value"}));
    assert_eq!(bundle.said("pid"), state["pid"].to_string());
    assert_eq!(bundle.said("output"), "");
    assert!(!bundle.create(&[]).success());
    bundle.done(&["start", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    holds("the program says so", || bundle.said("output") == "begun\n");
    bundle.refused(&["start", &bundle.id]);
    bundle.done(&["kill", &bundle.id, "KILL"]);
    holds("it stops", || bundle.status() == "stopped");
    assert!(bundle.refused(&["kill", &bundle.id, "KILL"]).contains("container not running"));
    bundle.done(&["delete", &bundle.id]);
    assert!(bundle.refused(&["state", &bundle.id]).contains("does not exist"));
    assert!(bundle.refused(&["delete", &bundle.id]).contains("does not exist"));
    assert!(!bundle.has_groups());
}

fn the_exit_code_is_the_programs(runtime: &Runtime) {
    assert_eq!(Bundle::new(runtime, "exit 42").outcome().0, 42);
}

fn hooks_run_in_their_order(runtime: &Runtime) {
    let mut bundle = Bundle::new(runtime, "cat /trace");
    for phase in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        bundle.add_hook(phase);
    }
    bundle.config["root"]["readonly"] = json!(false);
    bundle.config["hooks"]["startContainer"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo inside >/trace"]}]);
    assert_eq!(bundle.run(), "inside\n");
    let journal = bundle.said("journal");
    let names: Vec<&str> = journal.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]);
    let states: Vec<&str> = journal
        .lines()
        .map(|line| line.split("\"status\":\"").nth(1).unwrap().split('"').next().unwrap())
        .collect();
    assert_eq!(states[..2], ["creating", "creating"]);
    // The standard says "running"; runc 1.1 has not noticed yet.
    assert!(["created", "running"].contains(&states[3]), "{journal}");
    assert_eq!(states[4], "stopped");
}

/// Their programs are files of the container.
fn hooks_of_the_start_have_no_more_rights_than_the_program(runtime: &Runtime) {
    let rights = "grep -E '^(Cap|Uid|NoNewPrivs|Seccomp:)' /proc/self/status";
    let mut bundle = Bundle::new(runtime, &format!("cat /dev/shm/hook; {rights}"));
    bundle.config["hooks"]["startContainer"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("{rights} >/dev/shm/hook")]}]);
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bundle.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    let output = bundle.run();
    let lines: Vec<&str> = output.lines().collect();
    let (hook, program) = lines.split_at(lines.len() / 2);
    assert!(hook == program && hook.len() > 6, "{output}");
    assert!(hook[0].contains("1000") && output.contains("CapEff:\t0000000000000000"), "{output}");
}

fn events_are_told_until_the_end(runtime: &Runtime) {
    let script = "while ! test -e /go; do sleep 0.05; done; busybox tail -n 1 /dev/zero; exec sleep 1000";
    let mut bundle = Bundle::new(runtime, script);
    bundle.config["linux"]["resources"] = json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
    bundle.start();
    let mut command = bundle.command();
    command.args(["events", "--interval", "50ms", &bundle.id]).stdout(Stdio::piped());
    let mut events = command.spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<serde_json::Value>(&lines.next()?.unwrap()).ok();
    let first = next().unwrap();
    assert_eq!((&first["type"], &first["id"]), (&json!("stats"), &json!(bundle.id)));
    assert!(first["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{first}");
    fs::write(bundle.path("rootfs/go"), "").unwrap();
    while next().unwrap()["type"] != "oom" {}
    bundle.done(&["delete", "--force", &bundle.id]);
    while next().is_some() {}
    assert!(events.wait().unwrap().success());
}

/// Whatever CRIU can do on this host; that it works is seen where it does.
#[test]
fn a_checkpoint_that_fails_leaves_the_container_running() {
    let Some(runtime) = Runtime::insula() else { return };
    let bundle = Bundle::new(&runtime, "exec sleep 1000");
    bundle.start();
    let criu = bundle.path("criu");
    let script = "#!/bin/sh\nfor part; do test \"$before\" = --work-dir && work=$part; before=$part; done\n\
                  echo '(0.1) Error (some.c:7): some reason' >$work/dump.log; exit 1\n";
    fs::write(&criu, script).unwrap();
    fs::set_permissions(&criu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", bundle.path("").display());
    let checkpoint = |path: &str| {
        let mut command = bundle.command();
        command.arg("checkpoint").arg("--image-path").arg(bundle.path("images")).arg(&bundle.id);
        let output = command.env("PATH", path).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = checkpoint(&path);
    assert!(
        said.contains("criu dump: exit status: 1: (0.1) Error (some.c:7): some reason (in full:"),
        "{said}"
    );
    assert_eq!(bundle.status(), "running");
    bundle.done(&["pause", &bundle.id]);
    assert!(checkpoint(&path).contains("some reason"));
    assert_eq!(bundle.status(), "paused");
}

/// CRIU follows whatever it finds under a name.
#[test]
fn a_restore_goes_by_no_links() {
    let Some(runtime) = Runtime::insula() else { return };
    let mut bundle = Bundle::new(&runtime, "exec sleep 1000");
    let criu = bundle.path("criu");
    fs::write(&criu, "#!/bin/sh\ntouch \"${0%/*}/asked\"; exit 1\n").unwrap();
    fs::set_permissions(&criu, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let images = bundle.path("images");
    fs::create_dir(&images).unwrap();
    fs::write(images.join("descriptors.json"), "[]").unwrap();
    let source = bundle.path("volume");
    fs::create_dir(&source).unwrap();
    bundle
        .add_mount(json!({"destination": "/volume", "type": "bind", "source": source, "options": ["bind"]}));
    bundle.write();
    let restore = || {
        let mut command = bundle.command();
        command.arg("restore").arg("--image-path").arg(&images).arg("--bundle").arg(bundle.path(""));
        let path = format!("{}:/usr/bin:/bin", bundle.path("").display());
        let output = command.args(["--detach", &bundle.id]).env("PATH", path).output().unwrap();
        assert!(
            !output.status.success()
                && !bundle.path("state").join(&bundle.id).exists()
                && !bundle.has_groups()
        );
        (String::from_utf8(output.stderr).unwrap(), bundle.path("asked").exists())
    };
    let link = bundle.path("rootfs/volume");
    std::os::unix::fs::symlink("/etc", &link).unwrap();
    let (said, asked) = restore();
    assert!(said.contains("mounts: /volume: a link of the container's files") && !asked, "{said}");
    fs::remove_file(link).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", images.join("stats-restore")).unwrap();
    let (said, asked) = restore();
    assert!(said.contains("stats-restore: a link, which no checkpoint has") && !asked, "{said}");
    fs::remove_file(images.join("stats-restore")).unwrap();
    assert!(restore().1, "it is asked to restore");
}

fn a_hook_that_fails_leaves_nothing(runtime: &Runtime) {
    let mut bundle = Bundle::new(runtime, "true");
    bundle.config["hooks"] =
        json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo broken >&2; exit 1"]}]});
    let (code, _, errors) = bundle.outcome();
    assert!(code != 0 && errors.contains("broken"), "{code} {errors}");
    assert!(bundle.refused(&["state", &bundle.id]).contains("does not exist"));
    assert!(!bundle.has_groups());
}

fn a_paused_container_stands_still(runtime: &Runtime) {
    let bundle = Bundle::new(runtime, "exec sleep 1000");
    bundle.start();
    bundle.done(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    bundle.refused(&["exec", &bundle.id, "true"]);
    bundle.done(&["resume", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    let pids: Vec<i64> = serde_json::from_str(&bundle.done(&["ps", "--format", "json", &bundle.id])).unwrap();
    assert_eq!(json!(pids), json!([bundle.state()["pid"]]));
    bundle.done(&["pause", &bundle.id]);
    bundle.done(&["delete", "--force", &bundle.id]);
    assert!(!bundle.has_groups());
}

fn limits_are_in_force_and_change(runtime: &Runtime) {
    let script = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; \
                  cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; exec sleep 1000";
    let mut bundle = Bundle::new(runtime, script);
    bundle.config["linux"]["resources"]["pids"] = json!({"limit": 17});
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    bundle.start();
    holds("both limits", || bundle.said("output") == "17\n67108864\n");
    bundle.done(&["update", "--pids-limit", "23", &bundle.id]);
    let read = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true";
    assert_eq!(bundle.done(&["exec", &bundle.id, "sh", "-c", read]), "23\n");
    // Kubernetes sends what there was, the devices too, with other limits.
    let mut resources = bundle.config["linux"]["resources"].clone();
    resources["pids"] = json!({"limit": 24});
    fs::write(bundle.path("resources"), resources.to_string()).unwrap();
    bundle.done(&["update", "--resources", bundle.path("resources").to_str().unwrap(), &bundle.id]);
    assert_eq!(bundle.done(&["exec", &bundle.id, "sh", "-c", read]), "24\n");
    let stats: serde_json::Value =
        serde_json::from_str(&bundle.done(&["events", "--stats", &bundle.id])).unwrap();
    assert_eq!(stats["data"]["pids"]["limit"], json!(24));
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], json!(64 << 20));
}

fn another_program_is_executed_inside(runtime: &Runtime) {
    let bundle = Bundle::new(runtime, "exec sleep 1000");
    bundle.start();
    let first = format!("/proc/{}/comm", bundle.state()["pid"]);
    holds("the shell has become another program", || fs::read_to_string(&first).unwrap() == "sleep\n");
    let script =
        "echo $(id -u):$(id -g) $MORE $(readlink /proc/self/cwd) $(hostname); cat /proc/1/comm; exit 7";
    let output = bundle.call(&[
        "exec", "--user", "12:34", "--env", "MORE=yes", "--cwd", "/bin", &bundle.id, "sh", "-c", script,
    ]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "12:34 yes /bin insula\nsleep\n");
    assert_eq!(output.status.code(), Some(7));
    let process =
        json!({"args": ["id", "-u"], "cwd": "/", "user": {"uid": 5, "gid": 0}, "env": ["PATH=/bin"]});
    fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    let file = bundle.path("process.json");
    assert_eq!(bundle.done(&["exec", "--process", file.to_str().unwrap(), &bundle.id]), "5\n");
}

fn a_running_container_is_deleted_by_force_only(runtime: &Runtime) {
    let bundle = Bundle::new(runtime, "exec sleep 1000");
    bundle.start();
    let said = bundle.refused(&["delete", &bundle.id]);
    assert!(said.contains("that is not stopped: running"), "{said}");
    bundle.done(&["delete", "--force", &bundle.id]);
    bundle.done(&["delete", "--force", &bundle.id]);
    assert!(!bundle.has_groups());
}

fn nothing_is_left_of_what_cannot_be_executed(runtime: &Runtime) {
    let mut bundle = Bundle::new(runtime, "");
    bundle.config["process"]["args"] = json!(["/no/such/program"]);
    let (code, _, errors) = bundle.outcome();
    assert!(code != 0 && errors.contains("no such file or directory"), "{code} {errors}");
    assert!(bundle.refused(&["state", &bundle.id]).contains("does not exist"));
    assert!(!bundle.has_groups());
}

/// Whoever creates may be killed at any time: what it leaves is found by its folder and goes with a delete.
#[test]
fn what_a_killed_create_leaves_is_deleted() {
    let Some(runtime) = is_root().then(Runtime::insula).flatten() else { return };
    let mut bundle = Bundle::new(&runtime, "exec sleep 1000");
    let begun = bundle.path("begun");
    let script = format!("echo >{}; exec sleep 1000", begun.display());
    bundle.config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    bundle.write();
    let mut command = bundle.command();
    command.args(["create", "--bundle"]).arg(bundle.path("")).arg(&bundle.id);
    command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().unwrap();
    holds("the hook runs", || begun.exists());
    assert_eq!(bundle.status(), "creating");
    assert!(bundle.has_groups());
    // With its hook, which is in its process group.
    let group = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    child.wait().unwrap();
    bundle.done(&["delete", &bundle.id]);
    assert!(bundle.refused(&["state", &bundle.id]).contains("does not exist"));
    assert!(!bundle.has_groups());
}
