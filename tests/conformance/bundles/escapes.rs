//! Ways out of containers that others' runtimes had, each as a test of what closes it here.

use std::fs;
use std::process::{Command, Stdio};

use insula_tests::holds;
use serde_json::json;

use super::{Bundle, Runtime, for_each_runtime};

for_each_runtime!(the_executable_cannot_be_overwritten, descriptors_do_not_leak);

/// CVE-2019-5736: who holds `/proc/PID/exe` of a process that is the runtime still could write to it when that
/// had ended.
fn the_executable_cannot_be_overwritten(runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let copy = Runtime(folder.path().join(runtime.0.file_name().unwrap()));
    fs::copy(&runtime.0, &copy.0).unwrap();
    // No process of the runtime's may be left that executes the file: then nobody can write to it anyway.
    let script = "until test -s /pid; do sleep 0.1; done; exec 9</proc/$(cat /pid)/exe && echo held; \
                  until test -e /now; do sleep 0.1; done; \
                  if echo overwritten 2>/dev/null >/proc/self/fd/9; then echo done; else echo refused; fi";
    let mut attacker = Bundle::new(&copy, script);
    attacker.config["root"]["readonly"] = json!(false);
    for set in ["bounding", "effective", "permitted"] {
        attacker.config["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
    }
    attacker.start();
    // It is the runtime until it is started, and the attacker sees it.
    let mut victim = Bundle::new(&copy, "true");
    let namespaces = victim.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    let path = format!("/proc/{}/ns/pid", attacker.state()["pid"]);
    namespaces.push(json!({"type": "pid", "path": path}));
    assert!(victim.create(&[]).success(), "{}", victim.said("errors"));
    let status = fs::read_to_string(format!("/proc/{}/status", victim.state()["pid"])).unwrap();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    let pid = pids.split_whitespace().last().unwrap();

    fs::write(attacker.path("rootfs/pid"), pid).unwrap();
    holds("it is held", || attacker.said("output") == "held\n");
    victim.done(&["delete", "--force", &victim.id]);
    fs::write(attacker.path("rootfs/now"), "").unwrap();
    holds("it was tried", || attacker.said("output").lines().count() == 2);
    assert_eq!(attacker.said("output"), "held\nrefused\n");
    assert!(fs::read(&copy.0).unwrap() == fs::read(&runtime.0).unwrap());
}

/// CVE-2024-21626: a descriptor of the host's leads out of the container, as the working folder most easily.
fn descriptors_do_not_leak(runtime: &Runtime) {
    let leaking = |bundle: &Bundle<'_>, arguments: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "exec 7</ 8</etc/passwd; exec \"$0\" \"$@\""]).arg(&runtime.0);
        command.arg("--root").arg(bundle.path("state")).args(arguments).stdin(Stdio::null());
        command.output().unwrap()
    };
    let listing = "cd /proc/self/fd && echo *";
    let folder = |bundle: &Bundle<'_>| bundle.path("").display().to_string();
    let bundle = Bundle::new(runtime, listing);
    bundle.write();
    let run = leaking(&bundle, &["run", "--bundle", &folder(&bundle), &bundle.id]);
    // The shell's own is the folder that it reads.
    assert_eq!(String::from_utf8_lossy(&run.stdout), "0 1 2 3\n");

    let mut outside = Bundle::new(runtime, "echo out");
    outside.config["process"]["cwd"] = json!("/proc/self/fd/7");
    outside.write();
    let run = leaking(&outside, &["run", "--bundle", &folder(&outside), &outside.id]);
    assert!(!run.status.success() && run.stdout.is_empty(), "{run:?}");

    let bundle = Bundle::new(runtime, "exec sleep 1000");
    bundle.start();
    let exec = leaking(&bundle, &["exec", &bundle.id, "sh", "-c", listing]);
    assert_eq!(String::from_utf8_lossy(&exec.stdout), "0 1 2 3\n");
    for descriptor in 3..20 {
        let cwd = format!("/proc/self/fd/{descriptor}");
        let exec = leaking(&bundle, &["exec", "--cwd", &cwd, &bundle.id, "ls"]);
        assert!(!exec.status.success() && exec.stdout.is_empty(), "{cwd}: {exec:?}");
    }
}

/// CVE-2025-31133: what covers a masked path must not come from a place that another container can change.
/// Here it was changed already.
#[test]
fn masks_do_not_come_from_the_containers_devices() {
    let Some(runtime) = Runtime::insula() else { return };
    let mut bundle = Bundle::new(&runtime, "stat -c %t:%T /proc/keys; cat /victim");
    fs::write(bundle.path("rootfs/victim"), "as it was\n").unwrap();
    fs::create_dir(bundle.path("devices")).unwrap();
    std::os::unix::fs::symlink("/victim", bundle.path("devices/null")).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    let source = bundle.path("devices");
    bundle.add_mount(json!({"destination": "/dev", "source": source, "options": ["bind", "ro"]}));
    assert_eq!(bundle.run(), "1:3\nas it was\n");
}

/// CVE-2025-52881: what is meant for a kernel parameter must not be written to what is mounted over it.
#[test]
fn kernel_parameters_are_not_written_elsewhere() {
    let Some(runtime) = Runtime::insula() else { return };
    let mut bundle = Bundle::new(&runtime, "true");
    let victim = bundle.path("victim");
    fs::write(&victim, "as it was\n").unwrap();
    bundle.config["linux"]["sysctl"] = json!({"kernel.domainname": "written"});
    let target = "/proc/sys/kernel/domainname";
    bundle.add_mount(json!({"destination": target, "source": victim, "options": ["bind"]}));
    let (code, _, errors) = bundle.outcome();
    assert!(code != 0 && errors.contains("kernel.domainname"), "{code} {errors}");
    assert_eq!(bundle.said("victim"), "as it was\n");
}
