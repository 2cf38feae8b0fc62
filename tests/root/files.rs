//! Bind mounts, tmpfs, and files in and out.

use std::process::Command;

use insula_tests::images::Layer;
use insula_tests::{Daemon, OnDrop, Outcome, daemon, holds, text};

fn folder(daemon: &Daemon, name: &str) -> String {
    let path = daemon.folder().join(name);
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("f"), "of the host\n").unwrap();
    text(&path).to_owned()
}

#[test]
fn a_folder_of_the_host() {
    let daemon = daemon!();
    let host = folder(&daemon, "bind");
    let outcome =
        daemon.sh(&["-v", &format!("{host}:/in"), "--network", "none"], "cat /in/f; echo new > /in/g");
    assert_eq!(outcome.ok(), "of the host");
    assert_eq!(std::fs::read_to_string(format!("{host}/g")).unwrap(), "new\n");
    let read_only =
        daemon.sh(&["-v", &format!("{host}:/in:ro"), "--network", "none"], "cat /in/f; touch /in/h");
    read_only.fails(1, &["Read-only"]);
    let mount = format!("type=bind,source={host},target=/in,readonly");
    daemon.sh(&["--mount", &mount, "--network", "none"], "touch /in/h").fails(1, &["Read-only"]);
    let file = format!("{host}/f:/etc/one:ro");
    assert_eq!(daemon.sh(&["-v", &file, "--network", "none"], "cat /etc/one").ok(), "of the host");
}

#[test]
fn missing_sources() {
    let daemon = daemon!();
    let host = format!("{}/made", text(&daemon.folder()));
    // -v makes the folder, --mount does not: Docker's difference.
    let mount = format!("type=bind,source={host},target=/in");
    daemon.sh(&["--mount", &mount], "true").fails(125, &[&host]);
    daemon.sh(&["-v", &format!("{host}:/in"), "--network", "none"], "ls /in").ok();
    assert!(std::path::Path::new(&host).is_dir());
    daemon.sh(&["-v", "relative/path:/in"], "true").exits(125);
    daemon.sh(&["-v", &format!("{host}:in")], "true").fails(125, &["in"]);
    daemon.sh(&["--mount", "type=nosuch,target=/in"], "true").fails(125, &["nosuch"]);
}

#[test]
fn a_target_that_climbs_stays_below_the_root() {
    let daemon = daemon!();
    let host = folder(&daemon, "bind");
    daemon
        .sh(&["-v", &format!("{host}:/a/../../../../b"), "--network", "none"], "cat /b/f")
        .shows(&["of the host"]);
}

#[test]
fn mounts_of_the_host_propagate_when_asked() {
    let daemon = daemon!();
    let host = folder(&daemon, "shared");
    let mount = |arguments: &[&str]| Outcome::of(Command::new("mount").args(arguments), b"").exits(0).clone();
    mount(&["--bind", &host, &host]);
    let _end = OnDrop(|| drop(Command::new("umount").args(["-R", "-l", &host]).output()));
    mount(&["--make-rshared", &host]);
    std::fs::create_dir(format!("{host}/sub")).unwrap();
    let slave = daemon.sleeper(&["-v", &format!("{host}:/in:rslave"), "--network", "none"]);
    let private = daemon.sleeper(&["-v", &format!("{host}:/in"), "--network", "none"]);
    mount(&["-t", "tmpfs", "insula-test", &format!("{host}/sub")]);
    std::fs::write(format!("{host}/sub/late"), "x").unwrap();
    daemon.exec(&slave, "cat /in/sub/late").ok();
    daemon.exec(&private, "cat /in/sub/late").exits(1);
    let id = daemon.inspect(&slave, "/Mounts/0/Propagation");
    assert_eq!(id, "rslave");
}

#[test]
fn shm_and_tmpfs_have_their_size() {
    let daemon = daemon!();
    let size = "df -k /dev/shm | tail -1 | awk '{print $2}'";
    assert_eq!(daemon.sh(&["--network", "none"], size).ok(), "65536");
    assert_eq!(daemon.sh(&["--network", "none", "--shm-size", "1m"], size).ok(), "1024");
    let outcome = daemon.sh(
        &["--network", "none", "--mount", "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770"],
        "stat -c '%a %u' /t; dd if=/dev/zero of=/t/x bs=1k count=2000",
    );
    assert!(outcome.stdout.starts_with("1770 0"), "{outcome}");
    assert!(outcome.stderr.contains("No space left"), "{outcome}");
}

#[test]
fn copy_in_and_out() {
    let daemon = daemon!();
    let host = folder(&daemon, "src");
    let id = daemon.sleeper(&["--network", "none"]);
    daemon.insula(&["cp", &host, &format!("{id}:/tmp/dst")]).ok();
    assert_eq!(daemon.exec(&id, "cat /tmp/dst/f; stat -c %u /tmp/dst/f").ok(), "of the host\n0");
    daemon.exec(&id, "echo inside > /tmp/out; ln -s /etc/passwd /tmp/link").ok();
    let back = format!("{}/back", text(&daemon.folder()));
    daemon.insula(&["cp", &format!("{id}:/tmp/out"), &back]).ok();
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "inside\n");
    // The same of a stopped container; a link that points out stays inside.
    daemon.insula(&["kill", &id]).ok();
    daemon.reaches(&id, "exited");
    daemon.insula(&["cp", "-L", &format!("{id}:/tmp/link"), &format!("{back}2")]).ok();
    assert!(std::fs::read_to_string(format!("{back}2")).unwrap().contains("alice"));
    daemon.insula(&["cp", &format!("{id}:/no/such"), &back]).fails(1, &["/no/such"]);
    let archive = daemon.insula(&["cp", &format!("{id}:/tmp/out"), "-"]);
    assert!(archive.stdout.contains("ustar") && archive.stdout.contains("inside"), "{}", archive.stderr);
}

#[test]
fn marks_of_a_container_are_there_and_are_no_change() {
    let daemon = daemon!();
    let id = daemon.detached(
        &["--network", "none"],
        "stat -c %a:%s /.dockerenv; readlink /etc/mtab; grep -c ' / ' /etc/mtab",
    );
    daemon.insula(&["wait", &id]).ok();
    assert_eq!(daemon.insula(&["logs", &id]).ok(), "755:0\n/proc/mounts\n1");
    assert_eq!(daemon.insula(&["diff", &id]).ok(), "");
}

#[test]
fn diff_lists_what_changed() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--network", "none"]);
    daemon.exec(&id, "echo x > /tmp/added; rm /etc/plain; echo x >> /etc/group").ok();
    let outcome = daemon.insula(&["diff", &id]);
    for line in ["A /tmp/added", "D /etc/plain", "C /etc/group", "C /etc", "C /tmp"] {
        assert!(outcome.ok().lines().any(|have| have == line), "{line}: {outcome}");
    }
}

#[test]
fn what_the_engine_mounts_on_takes_no_room_in_the_writable_layer() {
    let daemon = daemon!();
    // It has nothing to mount on.
    let program = std::fs::read("/bin/busybox").or_else(|_| std::fs::read("/usr/bin/busybox")).unwrap();
    daemon
        .insula_with(&["import", "-", "bare"], &Layer::default().file("busybox", 0o755, &program).bytes())
        .ok();
    let id = daemon
        .insula(&["run", "-d", "--network", "none", "bare", "/busybox", "sleep", "1000"])
        .ok()
        .to_owned();
    let exec = |script: &str| daemon.insula(&["exec", &id, "/busybox", "sh", "-c", script]);
    let upper = daemon.instance().root().join("containers").join(&id).join("upper");
    assert_eq!(std::fs::read_dir(&upper).unwrap().count(), 0);
    let script = "/busybox ls /; /busybox grep -c localhost /etc/hosts; /busybox test -d /proc/1 && /busybox ls -d /sys/kernel";
    assert_eq!(exec(script).ok(), "busybox\ndev\netc\nproc\nsys\n2\n/sys/kernel");
    // What is the engine's does not become the image's, what is the container's does.
    exec("echo x > /etc/own; echo x > /etc/motd; /busybox rm /etc/motd").ok();
    assert_eq!(daemon.insula(&["diff", &id]).ok(), "A /etc\nA /etc/own");
    daemon.insula(&["commit", &id, "more"]).ok();
    let both = [
        "run",
        "--rm",
        "--network",
        "none",
        "more",
        "/busybox",
        "sh",
        "-c",
        "/busybox ls /etc; echo y > /etc/own",
    ];
    assert_eq!(daemon.insula(&both).ok(), "hostname\nhosts\nmtab\nown\nresolv.conf");
}

#[test]
fn the_writable_layer_survives_a_restart() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--network", "none"]);
    daemon.exec(&id, "echo kept > /kept").ok();
    daemon.insula(&["restart", "-t", "1", &id]).ok();
    assert_eq!(daemon.exec(&id, "cat /kept").ok(), "kept");
    daemon.insula(&["stop", "-t", "1", &id]).ok();
    daemon.insula(&["start", &id]).ok();
    holds("it runs again", || daemon.exec(&id, "cat /kept").code == 0);
}

#[test]
fn a_tree_with_kernel_file_systems_below_it_can_be_bound() {
    let daemon = daemon!();
    let flags = ["-v", "/:/host:ro", "-v", "/sys/fs/cgroup:/groups", "--network", "none"];
    let script = "stat -c %u /host/etc/passwd; grep -q Linux /host/proc/version && test -d /groups && echo there; \
                  touch /host/dev/shm/x 2>/dev/null || echo readonly";
    assert_eq!(daemon.sh(&flags, script).ok(), "0\nthere\nreadonly");
}
