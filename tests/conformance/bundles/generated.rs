//! Bundles that nobody has thought of: what is asked for in a valid one is what its program finds, and one with a
//! mistake in it is refused by the name of the field and leaves nothing.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::{Bundle, Runtime};

/// A container takes some tens of milliseconds.
const VALID: u32 = 40;
const INVALID: u32 = 60;

/// What a bundle asks for, and what can be seen of it from inside.
#[derive(Debug, Clone)]
struct Asked {
    uid: u32,
    groups: BTreeSet<u32>,
    umask: u32,
    cwd: &'static str,
    value: String,
    hostname: String,
    files: u64,
    score: i32,
    readonly: bool,
    no_new_privileges: bool,
    /// Of the kinds that are not always there.
    namespaces: Vec<&'static str>,
    /// KiB of a tmpfs.
    size: u64,
    options: Vec<&'static str>,
    masked: bool,
    pids: i64,
    capabilities: Vec<&'static str>,
}

const SCRIPT: &str = "id -u; echo $(id -G); umask; pwd; printf '%s\\n' \"$VALUE\"; hostname; ulimit -n; cat /proc/self/oom_score_adj; \
                      touch /new 2>/dev/null && echo writable || echo not; \
                      grep -E 'NoNewPrivs|CapBnd' /proc/self/status; \
                      grep ' /scratch ' /proc/mounts; cat /etc/secret 2>/dev/null | grep -c secret; \
                      ls /sys/class/net";

fn asked() -> impl Strategy<Value = Asked> {
    // Root, who has rights of its own, and the group that the process has anyway, are rare among so many.
    let user = prop_oneof![1 => Just(0), 3 => 0..70_000u32];
    let group = prop_oneof![1 => Just(7), 7 => 1..70_000u32];
    let identity = (user, proptest::collection::btree_set(group, 0..4), 0..0o1000u32);
    let words = (
        "[ -~]{0,40}",
        "[a-z][a-z0-9-]{0,30}",
        prop::sample::select(vec!["/", "/bin", "/tmp", "/made/here"]),
    );
    let numbers = (16..512u64, 0..1001i32, 1..64u64, 20..200i64);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let lists = (
        subsequence(vec!["ipc", "uts", "network", "cgroup"], 0..=4),
        subsequence(vec!["nosuid", "nodev", "noexec", "ro", "noatime"], 0..=5),
        subsequence(vec!["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_NET_BIND_SERVICE"], 0..=4),
    );
    (identity, words, numbers, flags, lists).prop_map(|(identity, words, numbers, flags, lists)| Asked {
        uid: identity.0,
        groups: identity.1,
        umask: identity.2,
        value: words.0,
        hostname: words.1,
        cwd: words.2,
        files: numbers.0,
        score: numbers.1,
        size: numbers.2 * 4,
        pids: numbers.3,
        readonly: flags.0,
        no_new_privileges: flags.1,
        masked: flags.2,
        namespaces: lists.0,
        options: lists.1,
        capabilities: lists.2,
    })
}

impl Asked {
    fn has(&self, namespace: &str) -> bool {
        self.namespaces.contains(&namespace)
    }

    fn bundle<'a>(&self, runtime: &'a Runtime) -> Bundle<'a> {
        let mut bundle = Bundle::new(runtime, SCRIPT);
        std::fs::create_dir(bundle.path("rootfs/etc")).unwrap();
        std::fs::create_dir(bundle.path("rootfs/tmp")).unwrap();
        std::fs::create_dir_all(bundle.path("rootfs/made/here")).unwrap();
        std::fs::create_dir(bundle.path("rootfs/scratch")).unwrap();
        std::fs::write(bundle.path("rootfs/etc/secret"), "secret\n").unwrap();
        let config = &mut bundle.config;
        let process = &mut config["process"];
        process["user"] =
            json!({"uid": self.uid, "gid": 7, "additionalGids": self.groups, "umask": self.umask});
        process["cwd"] = json!(self.cwd);
        process["env"] = json!(["PATH=/bin", format!("VALUE={}", self.value)]);
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": self.files, "hard": self.files}]);
        process["oomScoreAdj"] = json!(self.score);
        process["noNewPrivileges"] = json!(self.no_new_privileges);
        process["capabilities"] = json!({"bounding": self.capabilities});
        config["root"]["readonly"] = json!(self.readonly);
        let kinds = ["mount", "pid"].iter().chain(&self.namespaces);
        config["linux"]["namespaces"] = kinds.map(|kind| json!({"type": kind})).collect();
        config["hostname"] = json!(if self.has("uts") { self.hostname.as_str() } else { "" });
        config["linux"]["resources"] = json!({"pids": {"limit": self.pids}});
        config["linux"]["maskedPaths"] = if self.masked { json!(["/etc/secret"]) } else { json!([]) };
        let size = format!("size={}k", self.size);
        let options: Vec<&str> = self.options.iter().copied().chain([size.as_str()]).collect();
        bundle.add_mount(
            json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": options}),
        );
        bundle
    }

    /// What the script finds.
    fn check(&self, output: &str) -> Result<(), TestCaseError> {
        let lines: Vec<&str> = output.lines().collect();
        let groups = std::iter::once(7).chain(self.groups.iter().copied().filter(|group| *group != 7));
        let groups: Vec<String> = groups.map(|group| group.to_string()).collect();
        prop_assert_eq!(lines[0], self.uid.to_string());
        prop_assert_eq!(lines[1], groups.join(" "));
        prop_assert_eq!(lines[2], format!("{:04o}", self.umask));
        prop_assert_eq!(lines[3], self.cwd);
        prop_assert_eq!(lines[4], &self.value);
        if self.has("uts") {
            prop_assert_eq!(lines[5], &self.hostname);
        }
        prop_assert_eq!(lines[6], self.files.to_string());
        prop_assert_eq!(lines[7], self.score.to_string());
        prop_assert_eq!(lines[8] == "writable", !self.readonly && self.uid == 0);
        let bits = [("CAP_CHOWN", 0), ("CAP_KILL", 5), ("CAP_SETUID", 7), ("CAP_NET_BIND_SERVICE", 10)];
        let bounding = bits.iter().filter(|(name, _)| self.capabilities.contains(name));
        let bounding: u64 = bounding.map(|(_, bit)| 1 << bit).sum();
        prop_assert_eq!(lines[9], format!("CapBnd:\t{bounding:016x}"));
        prop_assert_eq!(lines[10], format!("NoNewPrivs:\t{}", u8::from(self.no_new_privileges)));
        let told: Vec<&str> = lines[11].split(' ').nth(3).unwrap_or_default().split(',').collect();
        for option in &self.options {
            prop_assert!(told.contains(option), "{} in {:?}", option, told);
        }
        prop_assert!(told.contains(&format!("size={}k", self.size).as_str()), "{:?}", told);
        prop_assert_eq!(lines[12], if self.masked { "0" } else { "1" });
        if self.has("network") {
            prop_assert_eq!(&lines[13..], &["lo"]);
        }
        Ok(())
    }
}

/// A mistake: where, what is there instead, and the field that is named.
type Mistake = (&'static str, Value, &'static str);

fn mistakes() -> Vec<Mistake> {
    let of = |at, value, field| (at, value, field);
    vec![
        of("/ociVersion", json!("0.9.0"), "ociVersion"),
        of("/ociVersion", json!("new"), "ociVersion"),
        of("/ociVersion", json!(1), "ociVersion"),
        of("/process/args", json!([]), "process.args"),
        of("/process/args", json!(["sh", 3]), "process.args[1]"),
        of("/process/args", json!(["/no/such/program"]), "/no/such/program"),
        of("/process/cwd", json!("bin"), "process.cwd"),
        of("/process/env", json!(["PATH=/bin", "alone"]), "process.env[1]"),
        of("/process/env", json!(["=x"]), "process.env[0]"),
        of("/process/user", json!({"uid": -1}), "process.user"),
        of("/process/user", json!({"uid": 4_294_967_296u64}), "process.user"),
        of("/process/rlimits", json!([{"type": "NOFILE", "soft": 1, "hard": 1}]), "process.rlimits[0]"),
        of("/process/rlimits", json!([{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]), "none"),
        of("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        of("/process/capabilities", json!(["CAP_KILL"]), "process.capabilities"),
        of("/process/selinuxLabel", json!("label"), "process.selinuxLabel"),
        of("/root", json!({}), "root.path"),
        of("/root", json!({"path": "nowhere"}), "nowhere"),
        of("/root", json!({"path": "config.json"}), "config.json"),
        of("/mounts", json!([{"destination": "proc", "type": "proc"}]), "mounts[0].destination"),
        of("/mounts", json!([{"destination": "/x", "type": "nosuchfs"}]), "nosuchfs"),
        of("/mounts", json!([{"destination": "/x", "options": ["bind"]}]), "mounts[0].source"),
        of("/mounts", json!([{"destination": "/x", "source": "/no/such", "options": ["bind"]}]), "/no/such"),
        of("/mounts", json!([{"destination": "/x", "type": "tmpfs", "options": ["size=much"]}]), "size"),
        of("/hooks", json!({"prestart": [{"path": "bin/true"}]}), "hooks.prestart[0].path"),
        of("/hooks", json!({"createRuntime": [{"path": "/bin/false"}]}), "/bin/false"),
        of("/hooks", json!({"poststop": [{"path": "/bin/true", "timeout": 0}]}), "hooks.poststop[0].timeout"),
        of("/linux/namespaces", json!([{"type": "mount"}, {"type": "disk"}]), "linux.namespaces[1]"),
        of("/linux/namespaces", json!([{"type": "mount"}, {"type": "mount"}]), "linux.namespaces[1]"),
        of("/linux/namespaces", json!([{"type": "mount"}, {"type": "pid", "path": "/no/such"}]), "/no/such"),
        of("/linux/uidMappings", json!([{"containerID": 0, "hostID": 5, "size": 1}]), "linux.uidMappings"),
        of("/linux/cgroupsPath", json!("/a/../b"), "linux.cgroupsPath"),
        of("/linux/resources", json!({"memory": {"limit": -2}}), "linux.resources.memory.limit"),
        of("/linux/resources", json!({"unified": {"memory.high": "1"}}), "linux.resources.unified"),
        of("/linux/devices", json!([{"type": "q", "path": "/dev/q"}]), "linux.devices[0].type"),
        of("/linux/devices", json!([{"type": "c", "path": "/dev/q"}]), "linux.devices[0].major"),
        of("/linux/sysctl", json!({"kernel.panic": "1"}), "linux.sysctl.kernel.panic"),
        of("/linux/rootfsPropagation", json!("sideways"), "linux.rootfsPropagation"),
        of("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_MAYBE"}), "defaultAction"),
        of("/linux/personality", json!({"domain": "LINUX64"}), "linux.personality.domain"),
        of("/process/scheduler", json!({"policy": "SCHED_BEST"}), "process.scheduler.policy"),
        of(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            "process.ioPriority.priority",
        ),
    ]
}

fn runner(cases: u32) -> TestRunner {
    // A seed that failed is in the message; nothing is written beside the source.
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

#[test]
fn a_valid_bundle_gets_what_it_asks_for() {
    let Some(runtime) = Runtime::insula() else { return };
    let tried = runner(VALID).run(&asked(), |asked| {
        let bundle = asked.bundle(&runtime);
        let (code, output, errors) = bundle.outcome();
        prop_assert_eq!(code, 0, "{}{}", output, errors);
        asked.check(&output)?;
        prop_assert!(!bundle.path("state").join(&bundle.id).exists() && !bundle.has_groups());
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn an_invalid_bundle_is_refused_by_name_and_leaves_nothing() {
    let Some(runtime) = Runtime::insula() else { return };
    let mistakes = (asked(), prop::sample::select(mistakes()));
    let tried = runner(INVALID).run(&mistakes, |(asked, (at, value, field))| {
        let mut bundle = asked.bundle(&runtime);
        let (parent, name) = at.rsplit_once('/').unwrap();
        bundle.config.pointer_mut(parent).unwrap()[name] = value;
        if at == "/linux/namespaces" {
            bundle.config["hostname"] = json!("");
        }
        let (code, output, errors) = bundle.outcome();
        prop_assert!(code != 0 && output.is_empty(), "{} {}", code, output);
        prop_assert!(errors.contains(field), "{} is not in {}", field, errors);
        prop_assert!(!bundle.path("state").join(&bundle.id).exists() && !bundle.has_groups(), "{}", errors);
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        prop_assert!(!mounts.contains(bundle.path("").to_str().unwrap()), "{}", errors);
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
}
