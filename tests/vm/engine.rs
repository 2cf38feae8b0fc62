//! The engine in a container with a kernel of its own.

use insula_tests::images::busybox;
use insula_tests::{program, text};

use crate::walls::daemon_with;

/// Starts a daemon and a container of it. Files of these tests are at /files, the programs at /programs.
const WITHIN: &str = "
export PATH=/programs:$PATH
insulad >/tmp/log 2>&1 &
tries=0
until [ -S /run/insula/insula.sock ] || [ $tries -gt 1200 ]; do tries=$((tries + 1)); sleep 0.1; done
echo kernel $(uname -r)
insula load -q -i /files/busybox.tar || cat /tmp/log
run='insula run --rm'
$run --network none -m 32m busybox sh -c 'echo inner $(id -u) $(cat /sys/fs/cgroup/memory.max) $(uname -r)' 2>/tmp/err
$run busybox sh -c 'ping -c 1 -W 60 $(ip route | sed -n \"s/default via \\([^ ]*\\).*/\\1/p\") | grep -c \"1 packets received\"'
insula run -d --name box busybox sleep 1000 >/dev/null && insula exec box echo exec && insula rm -f box
";

#[test]
fn an_engine_runs_in_a_container_with_its_own_kernel() {
    let Some(daemon) = daemon_with(&["--vm-templates", "off"]) else { return };
    let folder = daemon.folder();
    std::fs::write(folder.join("busybox.tar"), busybox().docker_archive()).unwrap();
    std::fs::write(folder.join("within"), WITHIN).unwrap();
    let files = format!("{}:/files:ro", text(&folder));
    let programs = program("insulad").parent().unwrap().canonicalize().unwrap();
    let programs = format!("{}:/programs:ro", text(&programs));
    let run = ["run", "--rm", "--isolation", "vm", "--privileged", "-m", "512m", "--tmpfs", "/run"];
    let mounts = ["--tmpfs", "/var/lib/insula", "-v", &files, "-v", &programs];
    let outcome = daemon.insula(&[&run[..], &mounts, &["host", "sh", "/files/within"]].concat());
    let release = daemon.insula(&["kernel", "ls", "-q"]).ok().lines().next().unwrap().trim().to_owned();
    let seen: Vec<&str> = outcome.stdout.lines().map(str::trim).collect();
    for line in [&format!("kernel {release}"), &format!("inner 0 33554432 {release}"), "1", "exec", "box"] {
        assert!(seen.contains(&line), "{line}: {outcome}");
    }
    outcome.exits(0);
}
