//! Hosts and file systems that cannot map ids. ramfs cannot, with any kernel so far.

use insula_tests::{daemon, images, text};

const SAID: &str = "WARNING: No ids can be mapped: the file system of ";

/// Prints who it is outside, and whose files the image's are.
const WHO: &str =
    "awk '{print $2}' /proc/self/uid_map; stat -c '%u %a' /data/seed; touch /own && stat -c %u /own";

#[test]
fn containers_have_the_hosts_ids_where_the_root_cannot_map_them_and_it_is_said_once() {
    let mut daemon = daemon!(absent);
    let root = daemon.instance().root().to_owned();
    daemon.mount("ramfs", &root);
    daemon.restart();
    assert!(daemon.log().contains("No ids can be mapped"), "{}", daemon.log());
    daemon.load(&images::busybox().docker_archive()).ok();
    let flags = ["--network", "none"];
    let first = daemon.sh(&flags, WHO);
    assert_eq!(first.ok(), "0\n1000 640\n0");
    assert!(first.stderr.starts_with(SAID), "{first}");
    let second = daemon.sh(&flags, WHO);
    assert_eq!((second.ok(), second.stderr.as_str()), ("0\n1000 640\n0", ""));
    // It is confined all the same, and nothing else is missing.
    daemon.sh(&flags, "mount -t tmpfs none /mnt").fails(1, &["denied"]);
    let box_ = daemon.sleeper(&["--network", "none", "-v", "store:/data", "-v", "/scratch", "--name", "box"]);
    assert_eq!(
        daemon.exec(&box_, "stat -c %u /data/seed; touch /scratch/x && stat -c %u /scratch/x").ok(),
        "1000\n0"
    );
    assert_eq!(daemon.inspect("box", "/HostConfig/UsernsMode"), "host");
    let info = daemon.insula(&["info", "-f", "{{json .Warnings}} {{json .SecurityOptions}}"]);
    assert!(info.ok().contains("No ids can be mapped") && !info.ok().contains("userns"), "{info}");
    daemon.kill();
    daemon.restart();
    assert_eq!(daemon.exec("box", "cat /proc/1/comm").ok(), "insula-init");
    daemon.insula(&["restart", "-t", "1", "box"]).ok();
    assert_eq!(daemon.exec("box", "id -u").ok(), "0");
}

#[test]
fn one_image_whose_layers_cannot_be_mapped_is_run_with_the_hosts_ids() {
    let mut daemon = daemon!(absent);
    let layers = daemon.instance().root().join("layers");
    daemon.mount("ramfs", &layers);
    daemon.restart();
    daemon.load(&images::busybox().docker_archive()).ok();
    let outcome = daemon.sh(&["--network", "none"], WHO);
    assert_eq!(outcome.ok(), "0\n1000 640\n0");
    assert!(
        outcome.stderr.starts_with("WARNING: No ids can be mapped: the file system of the image's layer"),
        "{outcome}"
    );
    // The host's own root file system can.
    let host =
        daemon.insula(&["run", "--rm", "--network", "none", "host", "cut", "-c1-10", "/proc/self/uid_map"]);
    assert_eq!((host.ok(), host.stderr.as_str()), ("0", ""));
}

#[test]
fn what_is_mounted_from_such_a_file_system_belongs_to_nobody() {
    let mut daemon = daemon!();
    let other = daemon.folder().join("other");
    daemon.mount("ramfs", &other);
    std::fs::write(other.join("seed"), "seen").unwrap();
    let bind = format!("{}:/other", text(&other));
    let flags = ["--network", "none", "-v", &bind];
    let outcome = daemon.sh(&flags, "stat -c %u /other/seed; cat /other/seed; touch /other/x");
    outcome.fails(1, &["/other/x: Permission denied"]);
    assert_eq!(outcome.stdout, "65534\nseen");
    assert!(
        outcome.stderr.starts_with("WARNING: The file system of what is mounted at /other cannot map ids"),
        "{outcome}"
    );
    let host =
        daemon.sh(&[&flags[..], &["--userns", "host"]].concat(), "stat -c %u /other/seed; touch /other/x");
    assert_eq!((host.ok(), host.stderr.as_str()), ("0", ""));
    // Nobody is told of file systems in which the kernel shows itself.
    let kernel =
        daemon.sh(&["--network", "none", "-v", "/sys/fs/cgroup:/groups:ro"], "ls /groups >/dev/null");
    assert_eq!((kernel.ok(), kernel.stderr.as_str()), ("", ""));
}
