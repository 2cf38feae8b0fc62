//! Services from a distribution's packages.

use insula_tests::images::debian;
use insula_tests::{daemon, eventually, get, holds, text};

#[test]
fn nginx_serves_from_its_package() {
    let daemon = daemon!();
    daemon.insula(&["import", text(&debian(&["nginx-light"])), "web"]).ok();
    let id = daemon.insula(&[
        "run",
        "-d",
        "-p",
        "127.0.0.1::80",
        "--stop-signal",
        "QUIT",
        "web",
        "nginx",
        "-g",
        "daemon off;",
    ]);
    let port = daemon.inspect(id.ok(), "/NetworkSettings/Ports/80~1tcp/0/HostPort");
    let address = format!("127.0.0.1:{}", port.as_str().unwrap());
    eventually("nginx answers", || {
        get(&address).filter(|page| page.status == 200 && page.text().contains("nginx"))
    });
    daemon.insula(&["stop", id.ok()]).ok();
    assert_eq!(daemon.inspect(id.ok(), "/State/ExitCode"), 0);
}

#[test]
fn systemd_boots_as_the_first_process() {
    let daemon = daemon!();
    daemon.insula(&["import", text(&debian(&["systemd-sysv", "dbus"])), "os"]).ok();
    // Found from the command, without a flag.
    let id = daemon.insula(&["run", "-d", "--network", "none", "os", "/sbin/init"]).ok().to_owned();
    let state = || daemon.insula(&["exec", &id, "systemctl", "is-system-running"]).stdout.trim().to_owned();
    let mut last = String::new();
    holds("systemd has booted", || {
        last = state();
        matches!(last.as_str(), "running" | "degraded")
    });
    let failed =
        daemon.insula(&["exec", &id, "systemctl", "list-units", "--failed", "--no-legend", "--plain"]);
    assert_eq!((last.as_str(), failed.ok()), ("running", ""));
    assert_eq!(daemon.insula(&["exec", &id, "cat", "/proc/1/comm"]).ok(), "systemd");
    assert_eq!(daemon.insula(&["exec", &id, "systemd-detect-virt", "--container"]).ok(), "container-other");
    // Stopped in its own way: services end in order, and it is not killed.
    daemon.insula(&["stop", "-t", "20", &id]).ok();
    assert_ne!(daemon.inspect(&id, "/State/ExitCode"), 137);
}
