//! A document to begin with.

use super::VERSION;
use super::document::{
    Capabilities, Config, DeviceCgroup, Linux, Mount, Namespace, Process, Resources, Rlimit, Root, User,
};

/// What `spec` writes: a shell on a terminal with a read-only root.
#[must_use]
pub fn template() -> Config {
    Config {
        oci_version: Some(VERSION.to_owned()),
        process: Some(process()),
        root: Some(Root { path: Some("rootfs".to_owned()), readonly: Some(true) }),
        hostname: Some("insula".to_owned()),
        mounts: Some(mounts()),
        linux: Some(linux()),
        ..Config::default()
    }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn process() -> Process {
    let capabilities = || Some(texts(&["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]));
    Process {
        terminal: Some(true),
        user: Some(User { uid: Some(0), gid: Some(0), ..User::default() }),
        args: Some(texts(&["sh"])),
        env: Some(texts(&[
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM=xterm",
        ])),
        cwd: Some("/".to_owned()),
        capabilities: Some(Capabilities {
            bounding: capabilities(),
            effective: capabilities(),
            permitted: capabilities(),
            ..Capabilities::default()
        }),
        rlimits: Some(vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), soft: 1024, hard: 1024 }]),
        no_new_privileges: Some(true),
        ..Process::default()
    }
}

fn mounts() -> Vec<Mount> {
    let one = |destination: &str, kind: &str, source: &str, options: &[&str]| Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(source.to_owned()),
        options: Some(texts(options)).filter(|options| !options.is_empty()),
        ..Mount::default()
    };
    vec![
        one("/proc", "proc", "proc", &[]),
        one("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        one(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        one("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        one("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        one("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        one("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
}

fn linux() -> Linux {
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let none = DeviceCgroup { access: Some("rwm".to_owned()), ..DeviceCgroup::default() };
    Linux {
        namespaces: Some(
            namespaces.iter().map(|kind| Namespace { kind: (*kind).to_owned(), path: None }).collect(),
        ),
        resources: Some(Resources { devices: Some(vec![none]), ..Resources::default() }),
        masked_paths: Some(texts(&[
            "/proc/acpi",
            "/proc/asound",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/sys/firmware",
            "/proc/scsi",
        ])),
        readonly_paths: Some(texts(&[
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ])),
        ..Linux::default()
    }
}
