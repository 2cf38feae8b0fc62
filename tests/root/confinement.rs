//! The wall: what a container's root cannot do.

use std::os::unix::fs::MetadataExt;

use insula_tests::{daemon, text};

const ALONE: &[&str] = &["--network", "none"];

fn status(text: &str, field: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_else(|| panic!("{field} in {text}")).trim_matches([':', '\t', ' ']).to_owned()
}

#[test]
fn root_inside_is_nobody_outside() {
    let daemon = daemon!();
    let id = daemon.sleeper(ALONE);
    let map = daemon.exec(&id, "cat /proc/self/uid_map");
    let numbers: Vec<u64> = map.ok().split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!((numbers[0], numbers[2]), (0, 65536), "{map}");
    assert!(numbers[1] >= 65536, "{map}");
    let outside = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid_of(&id))).unwrap();
    assert!(status(&outside, "Uid").split_whitespace().all(|uid| uid == numbers[1].to_string()), "{outside}");
    // Another container has a range of its own.
    let other = daemon.sleeper(ALONE);
    let other = daemon.exec(&other, "cat /proc/self/uid_map");
    assert_ne!(other.ok(), map.ok());
}

#[test]
fn owners_look_the_same_inside_and_outside() {
    let daemon = daemon!();
    let folder = daemon.folder().join("bind");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("host"), "x").unwrap();
    let bind = format!("{}:/bind", text(&folder));
    let outcome = daemon.sh(
        &["--network", "none", "-v", &bind],
        "stat -c '%u %g' /data/seed /bind/host; touch /bind/mine; chown 1000:1000 /bind/host",
    );
    assert_eq!(outcome.ok(), "1000 1000\n0 0");
    assert_eq!(std::fs::metadata(folder.join("mine")).unwrap().uid(), 0);
    assert_eq!(std::fs::metadata(folder.join("host")).unwrap().uid(), 1000);
}

#[test]
fn user_namespace_of_the_host_is_visible_in_inspect() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--network", "none", "--userns", "host"]);
    assert_eq!(daemon.inspect(&id, "/HostConfig/UsernsMode"), "host");
    let map = daemon.exec(&id, "cat /proc/self/uid_map");
    assert!(map.ok().split_whitespace().eq(["0", "0", "4294967295"]), "{map}");
}

#[test]
fn capabilities_are_dockers() {
    let daemon = daemon!();
    let of = |flags: &[&str]| daemon.sh(&[ALONE, flags].concat(), "cat /proc/self/status").ok().to_owned();
    // Docker's fourteen: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
    // net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
    let default = of(&[]);
    assert_eq!(status(&default, "CapBnd"), "00000000a80425fb");
    assert_eq!(status(&default, "CapEff"), "00000000a80425fb");
    let dropped = of(&["--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"]);
    assert_eq!(status(&dropped, "CapBnd"), "0000000000000400");
    let added = of(&["--cap-add", "SYS_PTRACE", "--cap-drop", "CAP_MKNOD"]);
    assert_eq!(status(&added, "CapEff"), "00000000a00c25fb");
    let user = of(&["-u", "1000"]);
    assert_eq!(status(&user, "CapEff"), "0000000000000000");
    daemon.sh(&["--cap-add", "NO_SUCH"], "true").fails(125, &["NO_SUCH"]);
}

#[test]
fn system_calls_are_filtered() {
    let daemon = daemon!();
    let default = daemon.sh(ALONE, "cat /proc/self/status");
    assert_eq!(status(default.ok(), "Seccomp"), "2");
    let off =
        daemon.sh(&["--network", "none", "--security-opt", "seccomp=unconfined"], "cat /proc/self/status");
    assert_eq!(status(off.ok(), "Seccomp"), "0");
    let profile = daemon.folder().join("profile.json");
    let no_mkdir = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_AARCH64"],
        "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&profile, no_mkdir).unwrap();
    let option = format!("seccomp={}", text(&profile));
    daemon.sh(&["--network", "none", "--security-opt", &option], "mkdir /tmp/x").fails(1, &["not permitted"]);
    daemon.sh(ALONE, "mkdir /tmp/x").ok();
    std::fs::write(&profile, "{").unwrap();
    daemon.sh(&["--network", "none", "--security-opt", &option], "true").exits(125);
    // unshare(2) needs CAP_SYS_ADMIN in Docker's profile.
    daemon.sh(ALONE, "unshare -m true").exits(1);
}

#[test]
fn new_privileges_can_be_forbidden() {
    let daemon = daemon!();
    let outcome =
        daemon.sh(&["--network", "none", "--security-opt", "no-new-privileges"], "cat /proc/self/status");
    assert_eq!(status(outcome.ok(), "NoNewPrivs"), "1");
    assert_eq!(status(daemon.sh(ALONE, "cat /proc/self/status").ok(), "NoNewPrivs"), "0");
}

#[test]
fn paths_of_the_kernel_are_masked_or_read_only() {
    let daemon = daemon!();
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list; do test -e $f && cat $f | head -c 1 | wc -c; done; \
        ls -A /proc/scsi /sys/firmware 2>/dev/null | grep -v :; \
        for f in /proc/sys/kernel/domainname /proc/sysrq-trigger; do echo x 2>/dev/null > $f && echo wrote $f; done; \
        mkdir /sys/fs/x 2>/dev/null && echo wrote sys; true";
    let outcome = daemon.sh(ALONE, script);
    assert!(outcome.ok().lines().all(|line| line == "0" || line.is_empty()), "{outcome}");
    assert!(outcome.ok().contains('0'), "{outcome}");
}

#[test]
fn dev_has_what_docker_gives() {
    let daemon = daemon!();
    let outcome = daemon.sh(ALONE, "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
        echo x > /dev/null; head -c 4 /dev/zero | wc -c; for l in fd stdin ptmx; do readlink /dev/$l; done; test -d /dev/pts -a -d /dev/shm -a -d /dev/mqueue && echo ok");
    assert_eq!(outcome.ok(), "4\n/proc/self/fd\n/proc/self/fd/0\npts/ptmx\nok");
    // A message queue's folder is its file system's. What may be mapped from devices may be executed.
    let outcome = daemon.sh(
        ALONE,
        "find /dev ! -path /dev/mqueue ! -user 0; test -e /proc/kcore || test ! -L /dev/core || echo core; \
        cp /bin/busybox /dev && /dev/busybox echo runs",
    );
    assert_eq!(outcome.ok(), "runs");
    let shared = ["--network", "none", "--ipc", "host"];
    assert_eq!(daemon.sh(&shared, "grep -c ' /dev/mqueue mqueue ' /proc/mounts").ok(), "1");
}

#[test]
fn a_read_only_root() {
    let daemon = daemon!();
    let outcome = daemon.sh(
        &["--network", "none", "--read-only", "--tmpfs", "/run:size=64k,mode=700"],
        "touch /x; touch /run/y && stat -c %a /run && df -k /run | tail -1",
    );
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome}");
    assert!(outcome.ok().starts_with("700\n") && outcome.ok().contains(" 64 "), "{outcome}");
}

#[test]
fn privileged_has_everything_and_says_so() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--network", "none", "--privileged"]);
    assert_eq!(daemon.inspect(&id, "/HostConfig/Privileged"), true);
    let text = daemon.exec(&id, "cat /proc/self/status");
    assert_eq!(status(text.ok(), "Seccomp"), "0");
    assert!(daemon.exec(&id, "cat /proc/self/uid_map").ok().contains("4294967295"));
    daemon.exec(&id, "mount -t tmpfs none /tmp && touch /sys/fs/cgroup 2>/dev/null; mknod /tmp/full c 1 7 && head -c 1 /tmp/full | wc -c").shows(&["1"]);
    // The same is refused without.
    let other = daemon.sleeper(ALONE);
    daemon.exec(&other, "mount -t tmpfs none /tmp").exits(1);
}

#[test]
fn devices_are_allowed_one_by_one() {
    let daemon = daemon!();
    let flags = ["--network", "none", "--device", "/dev/full:/dev/other:r"];
    daemon.sh(&flags, "head -c 2 /dev/other | wc -c").shows(&["2"]);
    daemon.sh(&flags, "echo x > /dev/other").exits(1);
    let rule = ["--network", "none", "--userns", "host", "--device-cgroup-rule", "c 1:7 rm"];
    daemon.sh(&rule, "mknod /tmp/f c 1 7 && head -c 1 /tmp/f | wc -c").shows(&["1"]);
    // A node can be made without the rule, with CAP_MKNOD, but not one of a device that is not allowed.
    daemon.sh(&["--network", "none", "--userns", "host"], "mknod /tmp/kmsg c 1 11; cat /tmp/kmsg").exits(1);
    daemon.sh(&["--network", "none", "--device", "/dev/no-such"], "true").fails(125, &["/dev/no-such"]);
}

#[test]
fn namespaces_are_the_containers_own() {
    let daemon = daemon!();
    let id = daemon.sleeper(ALONE);
    let pid = daemon.pid_of(&id);
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap();
        assert_ne!(of("self"), of(&pid.to_string()), "{kind}");
    }
    assert_eq!(daemon.exec(&id, "cut -d: -f3 /proc/self/cgroup | sort -u").ok(), "/");
}

#[test]
fn working_folders_do_not_lead_to_the_host() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["--network", "none", "--userns", "host"]);
    for number in 0..32 {
        let folder = format!("/proc/self/fd/{number}/..");
        let flags = ["--network", "none", "--userns", "host", "-w", &folder];
        assert_ne!(daemon.sh(&flags, "pwd -P; ls -a").code, 0, "run in {folder}");
        let arguments = ["exec", "-w", &folder, &id, "sh", "-c", "pwd -P; ls -a"];
        assert_ne!(daemon.insula(&arguments).code, 0, "exec in {folder}");
    }
}

#[test]
fn an_absent_input_is_the_containers_own() {
    let daemon = daemon!();
    let before = std::fs::metadata("/dev/null").unwrap();
    let script = "stat -Lc %d:%i /proc/self/fd/0 /dev/null; chmod 600 /proc/self/fd/0";
    let id = daemon.detached(&["--network", "none", "--userns", "host"], &format!("{script}; sleep 1000"));
    let exec = daemon.exec(&id, script);
    let after = std::fs::metadata("/dev/null").unwrap();
    assert_eq!((before.mode(), before.uid()), (after.mode(), after.uid()));
    let devices: Vec<&str> = exec.ok().lines().collect();
    assert!(devices.len() == 2 && devices[0] == devices[1], "{exec}");
}

/// Numbers of the sockets that a process has open.
fn sockets(pid: u32) -> Vec<String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let number =
        |link: std::path::PathBuf| Some(text(&link).strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    links.filter_map(number).collect()
}

#[test]
fn no_way_leads_to_the_engine() {
    let daemon = daemon!();
    let folder = daemon.instance().run().to_owned();
    let id = daemon.sleeper(&[]);
    let monitor =
        status(&std::fs::read_to_string(format!("/proc/{}/status", daemon.pid_of(&id))).unwrap(), "PPid");
    // A name without a path is not held back by any wall of files, and a port not by one either.
    for pid in [daemon.pid(), monitor.parse().unwrap()] {
        let own = sockets(pid);
        let unix = std::fs::read_to_string("/proc/net/unix").unwrap();
        let lines = unix
            .lines()
            .filter(|line| own.iter().any(|number| line.split_whitespace().nth(6) == Some(number)));
        let names: Vec<&str> = lines.filter_map(|line| line.split_whitespace().nth(7)).collect();
        assert!(names.iter().all(|name| name.starts_with('/')), "{names:?}");
        for family in ["tcp", "tcp6"] {
            let table = std::fs::read_to_string(format!("/proc/net/{family}")).unwrap_or_default();
            let mut fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            // State 0A listens.
            assert!(
                !fields.any(|words| words[3] == "0A" && own.iter().any(|number| words[9] == number)),
                "{table}"
            );
        }
    }
    // Nor do files, whatever of the host a container shares but its users.
    let socket = folder.join("insula.sock");
    for shared in [&[][..], &["--network", "host"], &["--network", "host", "--pid", "host", "--ipc", "host"]]
    {
        let pid = daemon.pid();
        let script = format!(
            "test ! -e {socket} && test ! -e /proc/{pid}/root/{socket} && ! readlink /proc/{pid}/root && \
             ! readlink /proc/{pid}/fd/0 && echo apart",
            socket = text(&socket)
        );
        assert_eq!(daemon.sh(shared, &script).ok(), "apart", "{shared:?}");
    }
}
