//! Limits, and what is counted.

use std::path::PathBuf;

use insula_tests::{Daemon, daemon, holds, images, skip};
use serde_json::Value;

const ALONE: &[&str] = &["--network", "none"];

/// The file of a running container's cgroup, by its name in version 1 and in version 2.
fn limit(daemon: &Daemon, container: &str, v1: &str, v2: &str) -> String {
    let pid = daemon.pid_of(container);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let controller = v1.split('.').next().unwrap();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (name, path) = (parts.next().unwrap(), parts.next().unwrap());
        let (folder, file) = match name {
            "" => (if PathBuf::from("/sys/fs/cgroup/unified").is_dir() { "unified" } else { "" }, v2),
            name if name.split(',').any(|one| one == controller) => (name, v1),
            _ => continue,
        };
        let file = PathBuf::from("/sys/fs/cgroup").join(folder).join(path.trim_start_matches('/')).join(file);
        if let Ok(text) = std::fs::read_to_string(&file) {
            return text.trim().to_owned();
        }
    }
    panic!("neither {v1} nor {v2} for {groups}");
}

#[test]
fn memory_that_runs_out_is_said() {
    let daemon = daemon!();
    let flags = ["-m", "16m", "--memory-swap", "16m", "--network", "none", "--name", "big"];
    let script = ["busybox", "sh", "-c", "exec dd if=/dev/zero of=/dev/null bs=64M count=1"];
    daemon.insula(&[&["run"], &flags[..], &script].concat()).exits(137);
    assert_eq!(daemon.inspect("big", "/State/OOMKilled"), true);
    assert_eq!(daemon.inspect("big", "/HostConfig/Memory"), 16 << 20);
    let events = daemon.insula(&[
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "event=oom",
        "--format",
        "{{.Action}}",
    ]);
    assert_eq!(events.ok(), "oom");
    // Inside the limit nothing is killed.
    daemon.sh(&["-m", "64m", "--network", "none"], "dd if=/dev/zero of=/dev/null bs=8M count=1").ok();
}

#[test]
fn of_what_wants_too_much_memory_only_that_dies() {
    let daemon = daemon!();
    let other = daemon.sleeper(&["--network", "none"]);
    let pid = daemon.pid_of(&other);
    let flags = ["-m", "16m", "--memory-swap", "16m", "--network", "none", "--name", "home"];
    let script = "dd if=/dev/zero of=/dev/null bs=64M count=1; echo code $?; sleep 1000";
    let home = daemon.detached(&flags, script);
    // The shell that started it goes on, and so does everybody else.
    holds("it is killed", || daemon.insula(&["logs", "home"]).stdout.contains("code 137"));
    assert_eq!(daemon.inspect(&home, "/State/Status"), "running");
    assert_eq!(daemon.exec("home", "echo alive").ok(), "alive");
    assert_eq!((daemon.pid_of(&other), daemon.exec(&other, "echo alive").code), (pid, 0));
}

#[test]
fn limits_reach_the_cgroup_and_can_be_updated() {
    let daemon = daemon!();
    let id = daemon.sleeper(&[
        "-m",
        "64m",
        "--cpus",
        "0.5",
        "--cpu-shares",
        "512",
        "--pids-limit",
        "33",
        "--cpuset-cpus",
        "0",
        "--network",
        "none",
    ]);
    assert_eq!(limit(&daemon, &id, "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(limit(&daemon, &id, "pids.max", "pids.max"), "33");
    assert_eq!(limit(&daemon, &id, "cpuset.cpus", "cpuset.cpus"), "0");
    let quota = limit(&daemon, &id, "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
    daemon
        .insula(&["update", "-m", "32m", "--memory-swap", "32m", "--cpus", "1.5", "--pids-limit", "44", &id])
        .shows(&[&id]);
    assert_eq!(limit(&daemon, &id, "memory.limit_in_bytes", "memory.max"), (32 << 20).to_string());
    assert_eq!(limit(&daemon, &id, "pids.max", "pids.max"), "44");
    let quota = limit(&daemon, &id, "cpu.cfs_quota_us", "cpu.max");
    assert!(quota.starts_with("150000"), "{quota}");
    assert_eq!(daemon.inspect(&id, "/HostConfig/Memory"), 32 << 20);
}

#[test]
fn the_number_of_processes_is_limited() {
    let daemon = daemon!();
    let outcome = daemon.sh(
        &["--pids-limit", "8", "--network", "none"],
        "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done",
    );
    assert_ne!(outcome.code, 0, "{outcome}");
    assert!(outcome.stderr.contains("fork"), "{outcome}");
}

#[test]
fn nonsense_is_refused_before_anything_is_made() {
    let daemon = daemon!();
    for flags in [
        &["-m", "1k"][..],
        &["--cpus", "-1"],
        &["--cpus", "9999"],
        &["--cpuset-cpus", "999"],
        &["--memory-swap", "1m", "-m", "64m"],
        &["--blkio-weight", "5"],
    ] {
        daemon.sh(flags, "true").exits(125);
    }
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}

#[test]
fn a_paused_container_does_nothing() {
    let daemon = daemon!();
    let id = daemon.detached(ALONE, "n=0; while :; do n=$((n+1)); echo $n > /n; sleep 0.01; done");
    holds("it counts", || daemon.exec(&id, "cat /n").stdout.trim().parse().is_ok_and(|n: u32| n > 2));
    daemon.insula(&["pause", &id]).ok();
    let root = format!("/proc/{}/root/n", daemon.pid_of(&id));
    let before = std::fs::read_to_string(&root).unwrap();
    // Other processes of the host go on meanwhile: a whole other container is run.
    daemon.sh(ALONE, "sleep 0.2").ok();
    assert_eq!(std::fs::read_to_string(&root).unwrap(), before);
    daemon.insula(&["unpause", &id]).ok();
    holds("it counts again", || std::fs::read_to_string(&root).unwrap() != before);
    daemon.insula(&["unpause", &id]).fails(1, &["not paused"]);
}

#[test]
fn stats_are_of_the_container() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["-m", "64m", "--name", "box", "--network", "none"]);
    daemon.insula(&["stats", "--no-stream"]).shows(&[
        "CPU %",
        "MEM USAGE / LIMIT",
        "PIDS",
        &id[..12],
        "64MiB",
    ]);
    let line: Value =
        serde_json::from_str(daemon.insula(&["stats", "--no-stream", "--format", "json", "box"]).ok())
            .unwrap();
    assert_eq!((line["Name"].as_str(), line["PIDs"].as_str()), (Some("box"), Some("2")), "{line}");
    let stats = daemon.api("GET", "/containers/box/stats?stream=false&one-shot=true", "").json();
    assert_eq!(stats["memory_stats"]["limit"], 64 << 20);
    assert!(stats["memory_stats"]["usage"].as_u64().unwrap() > 0);
    assert!(stats["cpu_stats"]["cpu_usage"]["total_usage"].as_u64().unwrap() > 0);
}

#[test]
fn a_host_with_version_1_alone() {
    let mut daemon = daemon!(absent);
    let second = "/sys/fs/cgroup/unified";
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    if !table.contains(&format!(" {second} ")) {
        return skip("hybrid", "version 2 is not mounted beside version 1");
    }
    let hide = format!("umount {second}; ! grep -q cgroup2 /proc/self/mounts");
    daemon.restart_with_mounts(&hide);
    daemon.load(&images::busybox().docker_archive()).ok();
    assert_eq!(daemon.insula(&["info", "-f", "{{.CgroupVersion}}"]).ok(), "1");
    let limits = ["--network", "none", "-m", "64m", "--cpus", "0.5", "--pids-limit", "33", "--name", "box"];
    daemon.sleeper(&limits);
    let file = |name: &str| daemon.exec("box", &format!("cat /sys/fs/cgroup/{name}")).ok().to_owned();
    assert_eq!(file("memory/memory.limit_in_bytes"), "67108864");
    assert_eq!((file("cpu/cpu.cfs_quota_us"), file("pids/pids.max")), ("50000".to_owned(), "33".to_owned()));
    daemon.insula(&["update", "-m", "32m", "--memory-swap", "32m", "box"]).ok();
    assert_eq!(file("memory/memory.limit_in_bytes"), "33554432");
    daemon.insula(&["pause", "box"]).ok();
    daemon.reaches("box", "paused");
    // Another daemon finds it as it is.
    daemon.kill();
    daemon.restart_with_mounts(&hide);
    daemon.reaches("box", "paused");
    daemon.insula(&["unpause", "box"]).ok();
    let stats =
        daemon.insula(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", "box"]);
    assert!(stats.ok().contains("/ 32MiB 2"), "{stats}");
    let denied = daemon.exec("box", "mknod /tmp/zero c 1 5");
    denied.fails(1, &["Operation not permitted"]);
    let big = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";
    let flags = ["--network", "none", "-m", "16m", "--memory-swap", "16m", "--name", "big"];
    daemon.insula(&[&["run"], &flags[..], &["busybox", "sh", "-c", big]].concat()).exits(137);
    assert_eq!(daemon.inspect("big", "/State/OOMKilled"), true);
    // Its whole group ends with it, whoever has left its first process.
    daemon.detached(&["--network", "none", "--name", "stub"], "trap '' TERM; sleep 1000 & sleep 1000 & wait");
    daemon.insula(&["kill", "stub"]).ok();
    daemon.reaches("stub", "exited");
}
