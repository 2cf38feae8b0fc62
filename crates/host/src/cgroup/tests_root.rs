//! With real groups, on whatever hierarchies the host has. Each test needs root.

mod limits;
mod parents;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use insula_base::random_hex;
use insula_spec::bundle::{DeviceVerdict, Verdict};
use insula_spec::plan::{DeviceKind, DeviceRule, Resources};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let required = std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|need| need == "root"), "root is required and missing");
    eprintln!("skipped: needs root");
    false
}

/// A group that goes with the test, whatever is in it.
struct Owned(Group, Vec<String>, Layout, String);

impl Owned {
    fn new(layout: &Layout, resources: Resources, policy: &DevicePolicy) -> Self {
        let path = format!("insula-test-{}/c", random_hex(8));
        let group = Group::create(layout, &path, Purpose::Limit).unwrap();
        let mut owned = Self(group, Vec::new(), layout.clone(), path);
        owned.1 = owned.0.limit(&resources).unwrap();
        owned.0.allow_devices(policy).unwrap();
        owned
    }

    fn probed(resources: Resources) -> Self {
        Self::new(&Layout::probe().unwrap(), resources, &DevicePolicy::All)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let parent = self.3.trim_end_matches("/c");
        let _ = Group::open(&self.2, parent).and_then(Group::remove);
    }
}

/// A shell that waits for a line before it runs `script`, so that it can be put into a group first.
struct Shell(Child);

impl Shell {
    fn run(group: &Group, script: &str) -> Self {
        let child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut shell = Self(child);
        group.add(shell.0.id().cast_signed()).unwrap();
        shell.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        shell
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.0.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        byte[0]
    }

    fn output(mut self) -> String {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.0.wait().unwrap();
        text
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn readable(fd: impl AsFd, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

#[test]
fn the_process_limit_stops_fork() {
    if !is_root() {
        return;
    }
    let group = Owned::probed(Resources { pids: Some(3), ..Resources::default() });
    assert_eq!(group.1, [""; 0]);
    let output =
        Shell::run(&group.0, "sleep 60 & echo a; sleep 60 & echo b; sleep 60 & echo c").output_until_exit();
    assert_eq!(output, "a\nb\n");
    assert_eq!(group.0.stats().unwrap().pids_limit, Some(3));
    group.0.limit(&Resources { pids: Some(-1), ..Resources::default() }).unwrap();
    assert_eq!(group.0.stats().unwrap().pids_limit, None);
}

impl Shell {
    /// What it wrote until it ended; its background children hold the pipe, so lines are read.
    fn output_until_exit(mut self) -> String {
        self.0.wait().unwrap();
        let out = self.0.stdout.take().unwrap();
        let mut text = vec![0; 64];
        let length = rustix::io::read(&out, &mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }
}

#[test]
fn too_much_memory_is_an_oom_kill_that_is_told() {
    if !is_root() {
        return;
    }
    let memory = 16 << 20;
    let resources =
        Resources { memory: Some(memory), memory_swap: Some(memory as i64), ..Resources::default() };
    let group = Owned::probed(resources);
    let events = group.0.oom_descriptor().unwrap().unwrap();
    assert_eq!(group.0.oom_kills().unwrap(), 0);
    assert!(!readable(&events, Duration::ZERO));
    // `tail` keeps a last line of any length in memory.
    let mut shell = Shell::run(&group.0, "exec tail -n 1 /dev/zero");
    assert!(readable(&events, Duration::from_secs(20)), "no event");
    assert!(!shell.0.wait().unwrap().success());
    assert_eq!(group.0.oom_kills().unwrap(), 1);
    let stats = group.0.stats().unwrap();
    assert_eq!(stats.memory_limit, Some(memory));
    assert!(stats.memory.len() > 5);
}

#[test]
fn a_frozen_group_stands_still() {
    if !is_root() {
        return;
    }
    freeze_and_kill(&Layout::probe().unwrap());
}

#[test]
fn a_frozen_group_can_be_killed() {
    if !is_root() {
        return;
    }
    let group = Owned::probed(Resources::default());
    let mut shell = Shell::run(&group.0, "echo x; exec sleep 1000");
    assert_eq!(shell.byte(), b'x');
    group.0.freeze(true).unwrap();
    group.0.kill().unwrap();
    assert!(!shell.0.wait().unwrap().success());
}

#[test]
fn a_fork_bomb_is_killed() {
    if !is_root() {
        return;
    }
    let group = Owned::probed(Resources { pids: Some(30), ..Resources::default() });
    let mut shell = Shell::run(&group.0, "bomb() { printf x; bomb & bomb; }; while :; do bomb; done");
    assert_eq!(shell.byte(), b'x');
    group.0.kill().unwrap();
    shell.0.wait().unwrap();
    // Whoever is left in version 2 is on its way out.
    while !group.0.processes().unwrap().is_empty() {
        std::thread::yield_now();
    }
}

fn freeze_and_kill(layout: &Layout) {
    let group = Owned::new(layout, Resources::default(), &DevicePolicy::All);
    let mut shell = Shell::run(&group.0, "while :; do printf x; done");
    assert_eq!(shell.byte(), b'x');
    group.0.freeze(true).unwrap();
    // What was written before is at most a full pipe; then nothing comes.
    let pipe = shell.0.stdout.as_ref().unwrap();
    let mut bytes = vec![0; 1 << 20];
    while readable(pipe, Duration::ZERO) {
        rustix::io::read(pipe, &mut bytes).unwrap();
    }
    assert!(!readable(pipe, Duration::from_millis(100)));
    assert_eq!(group.0.processes().unwrap(), [shell.0.id().cast_signed()]);
    group.0.freeze(false).unwrap();
    assert!(readable(pipe, Duration::from_secs(60)));
    group.0.kill().unwrap();
    assert!(!shell.0.wait().unwrap().success());
    Group::open(layout, &group.3).unwrap().remove().unwrap();
    assert!(Group::open(layout, &group.3).unwrap().is_empty());
}

#[test]
fn cpu_limits_are_written() {
    if !is_root() {
        return;
    }
    let resources = Resources {
        nano_cpus: Some(500_000_000),
        cpu_shares: Some(512),
        cpuset_cpus: Some("0".into()),
        ..Resources::default()
    };
    let group = Owned::probed(resources);
    match group.0.v1("cpu") {
        Some(member) => {
            assert_eq!(member.read("cpu.cfs_quota_us").unwrap().unwrap().trim(), "50000");
            assert_eq!(member.read("cpu.shares").unwrap().unwrap().trim(), "512");
        }
        None => {
            let member = group.0.v2().unwrap();
            assert_eq!(member.read("cpu.max").unwrap().unwrap().trim(), "50000 100000");
            assert_eq!(member.read("cpu.weight").unwrap().unwrap().trim(), "20");
        }
    }
    let output = Shell::run(&group.0, "grep Cpus_allowed_list /proc/self/status").output();
    assert_eq!(output, "Cpus_allowed_list:\t0\n");
    assert!(group.0.stats().unwrap().cpu_total.unwrap() > 0);
}

fn null_rule() -> DeviceRule {
    let (read, write) = (true, true);
    DeviceRule { kind: DeviceKind::Char, major: Some(1), minor: Some(3), read, write, mknod: false }
}

fn only_null() -> DevicePolicy {
    DevicePolicy::Only(vec![null_rule()])
}

const TRY_DEVICES: &str = "(: < /dev/null) && echo null; (: < /dev/zero) || echo denied";

#[test]
fn devices_that_are_not_allowed_do_not_open() {
    if !is_root() {
        return;
    }
    let group = Owned::new(&Layout::probe().unwrap(), Resources::default(), &only_null());
    assert_eq!(Shell::run(&group.0, TRY_DEVICES).output(), "null\ndenied\n");
}

#[test]
fn the_program_of_version_2_denies_devices() {
    if !is_root() {
        return;
    }
    let mut layout = Layout::probe().unwrap();
    layout.hierarchies.retain(|each| each.version == Version::V2);
    if layout.hierarchies.is_empty() {
        eprintln!("skipped: needs cgroup2");
        return;
    }
    let group = Owned::new(&layout, Resources::default(), &only_null());
    assert_eq!(Shell::run(&group.0, TRY_DEVICES).output(), "null\ndenied\n");
    let any =
        DeviceRule { kind: DeviceKind::Any, major: None, minor: None, read: true, write: true, mknod: true };
    let open = Owned::new(&layout, Resources::default(), &DevicePolicy::Only(vec![any]));
    assert_eq!(Shell::run(&open.0, TRY_DEVICES).output(), "null\n");
}

/// From one form that a policy has to each other one.
fn change_devices(layout: &Layout) {
    let group = Owned::new(layout, Resources::default(), &only_null());
    let zero = DeviceRule { minor: Some(5), ..null_rule() };
    let all = DeviceRule { kind: DeviceKind::Any, major: None, minor: None, mknod: true, ..null_rule() };
    let verdict = |verdict, rule| DeviceVerdict { verdict, rule };
    let policies = [
        (only_null(), "null\ndenied\n"),
        (DevicePolicy::Only(vec![zero.clone()]), ""),
        (
            DevicePolicy::Listed(vec![verdict(Verdict::Allow, all), verdict(Verdict::Deny, zero)]),
            "null\ndenied\n",
        ),
        (DevicePolicy::All, "null\n"),
        (only_null(), "null\ndenied\n"),
    ];
    let try_devices = || Shell::run(&group.0, TRY_DEVICES).output();
    let mut stands = policies[0].0.clone();
    for (policy, expected) in &policies[1..] {
        let old = std::slice::from_ref(&stands);
        let is_another_default =
            matches!(stands, DevicePolicy::Only(_)) != matches!(policy, DevicePolicy::Only(_));
        if group.0.has_device_list() && is_another_default {
            let before = try_devices();
            assert!(matches!(group.0.check_device_change(old, policy), Err(Error::Unsupported(_))));
            assert!(matches!(group.0.change_devices(old, policy), Err(Error::Unsupported(_))));
            assert_eq!(try_devices(), before);
            continue;
        }
        group.0.check_device_change(old, policy).unwrap();
        group.0.change_devices(old, policy).unwrap();
        assert_eq!(try_devices(), *expected, "{policy:?}");
        stands = policy.clone();
    }
    // One of those that were tried stands, nobody knows which.
    let zero = DevicePolicy::Only(vec![DeviceRule { minor: Some(5), ..null_rule() }]);
    group.0.change_devices(&[stands.clone()], &zero).unwrap();
    group.0.change_devices(&[stands, zero.clone()], &only_null()).unwrap();
    assert_eq!(try_devices(), "null\ndenied\n");
    group.0.change_devices(&[only_null(), zero.clone()], &zero).unwrap();
    assert_eq!(try_devices(), "");
}

#[test]
fn a_device_program_without_its_name_is_not_beside_another() {
    let mut layout = Layout::probe().unwrap();
    layout.hierarchies.retain(|each| each.version == Version::V2);
    if !is_root() || layout.hierarchies.is_empty() {
        return eprintln!("skipped: needs root and cgroup2");
    }
    // As if an earlier version had made it: none by that name is there.
    let group = Owned::new(&layout, Resources::default(), &DevicePolicy::All);
    let error = group.0.change_devices(&[only_null()], &DevicePolicy::All).unwrap_err();
    assert!(error.to_string().contains("earlier version"), "{error}");
    group.0.change_devices(&[DevicePolicy::All], &only_null()).unwrap();
}

#[test]
fn devices_change_in_either_version() {
    if !is_root() {
        return;
    }
    let layout = Layout::probe().unwrap();
    change_devices(&layout);
    let second = Layout {
        hierarchies: layout.hierarchies.into_iter().filter(|each| each.version == Version::V2).collect(),
    };
    if second.hierarchies.is_empty() {
        return eprintln!("skipped: needs cgroup2");
    }
    change_devices(&second);
}

#[test]
fn a_kernel_without_device_programs_is_told() {
    use insula_sys::seccomp::{Instruction, set_filter};
    if !is_root() {
        return;
    }
    let mut layout = Layout::probe().unwrap();
    layout.hierarchies.retain(|each| each.version == Version::V2);
    if layout.hierarchies.is_empty() {
        eprintln!("skipped: needs cgroup2");
        return;
    }
    let group = Owned::new(&layout, Resources::default(), &DevicePolicy::All);
    // For this thread bpf(2), number 321, fails with ENOSYS.
    let instruction = |code, jump_false, k| Instruction { code, jump_true: 0, jump_false, k };
    let program = [
        instruction(0x20, 0, 0),
        instruction(0x15, 1, 321),
        instruction(0x06, 0, 0x0005_0000 | 38),
        instruction(0x06, 0, 0x7fff_0000),
    ];
    set_filter(&program, 0).unwrap();
    let error = group.0.allow_devices(&only_null()).unwrap_err();
    assert!(error.to_string().contains("CONFIG_CGROUP_BPF"), "{error}");
}
