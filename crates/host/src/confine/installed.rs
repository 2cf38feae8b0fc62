//! Real filters and capabilities in real processes: the test executable runs itself with one of
//! the scenes below in a process of its own, since neither can be taken back.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use insula_base::{Kind, Kinded};
use rustix::net::{AddressFamily, SocketType};
use serde_json::{Value, json};

use super::capabilities::{self, Set, Sets};
use super::seccomp::{self, Program};

const SCENE: &str = "INSULA_TEST_SCENE";

/// Runs a scene; what it printed lies between two marks of the test harness' own output.
fn play(scene: &str) -> Output {
    let executable = std::env::current_exe().unwrap();
    Command::new(executable)
        .args(["--exact", "confine::installed::a_scene_of_its_own", "--nocapture", "--test-threads=1"])
        .env(SCENE, scene)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}{errors}", output.status);
    let begin = text.find("<<").unwrap_or_else(|| panic!("{text}{errors}"));
    text[begin + 2..text.find(">>").unwrap()].to_owned()
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    let required = std::env::var("INSULA_TEST_REQUIRE").is_ok_and(|list| list.contains("root"));
    assert!(root || !required, "root is required");
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Does nothing but in the process that [`play`] makes.
#[test]
fn a_scene_of_its_own() {
    let Ok(scene) = std::env::var(SCENE) else { return };
    let text = match scene.as_str() {
        "default" => default_scene(),
        "busybox" => busybox_scene(),
        "errno" => errno_scene(),
        "kill" => kill_scene("SCMP_ACT_KILL_PROCESS"),
        "trap" => kill_scene("SCMP_ACT_TRAP"),
        "log" => kill_scene("SCMP_ACT_LOG"),
        "unprivileged" => unprivileged_scene(),
        "before-drop" => before_drop_scene(),
        "caps-root" => capabilities_scene(Sets::docker(Set::DEFAULT, true), 0),
        "caps-user" => capabilities_scene(Sets::docker(Set::DEFAULT, false), 65_534),
        "caps-ambient" => {
            let one = Set::of(&["CAP_NET_BIND_SERVICE"]);
            let sets = Sets {
                bounding: Set::DEFAULT,
                effective: one,
                permitted: one,
                inheritable: one,
                ambient: one,
            };
            capabilities_scene(sets, 65_534)
        }
        other => panic!("no scene {other}"),
    };
    println!("<<{text}>>");
    // The harness has no business in a process that is confined.
    std::process::exit(0);
}

fn confine(program: &Program) {
    rustix::thread::set_no_new_privs(true).unwrap();
    program.install().unwrap();
}

fn compile(profile: Value) -> Program {
    seccomp::compile(&profile, Set::DEFAULT).unwrap()
}

fn answer<T>(result: rustix::io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.raw_os_error().to_string(),
    }
}

fn socket(family: AddressFamily) -> String {
    answer(rustix::net::socket(family, SocketType::DGRAM, None))
}

fn default_scene() -> String {
    confine(&seccomp::default_program(Set::DEFAULT).unwrap());
    let mount = rustix::mount::unmount("/nonexistent", rustix::mount::UnmountFlags::empty());
    let thread = std::thread::spawn(|| 7).join().unwrap();
    [
        ("unix", socket(AddressFamily::UNIX)),
        ("alg", socket(AddressFamily::from_raw(38))),
        ("vsock", socket(AddressFamily::from_raw(40))),
        ("umount", answer(mount)),
        ("thread", thread.to_string()),
    ]
    .map(|(name, text)| format!("{name}={text}"))
    .join(" ")
}

fn busybox_scene() -> String {
    confine(&seccomp::default_program(Set::DEFAULT).unwrap());
    let output = Command::new("/bin/busybox").args(["ls", "-l", "/"]).output().unwrap();
    format!("{} {}", output.status, String::from_utf8_lossy(&output.stdout).contains("proc"))
}

fn errno_scene() -> String {
    confine(&compile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["dup"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
                "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
        ],
    })));
    let dup = rustix::io::dup(std::io::stderr());
    let cwd = rustix::process::getcwd(Vec::new());
    format!("{} {} {} {}", answer(cwd), answer(dup), socket(AddressFamily::UNIX), socket(AddressFamily::INET))
}

fn kill_scene(action: &str) -> String {
    confine(&compile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["getppid"], "action": action}],
    })));
    println!("before");
    format!("{}", rustix::process::getppid().is_some())
}

/// Without privileges and without `no_new_privs` a filter is refused.
fn unprivileged_scene() -> String {
    Sets::default().apply().unwrap();
    let error = seccomp::default_program(Set::DEFAULT).unwrap().install().unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    insula_base::chain(&error)
}

/// The order for a container without `no_new_privileges`: the filter, then everything else.
fn before_drop_scene() -> String {
    let last = capabilities::last().unwrap();
    seccomp::default_program(Set::DEFAULT).unwrap().install().unwrap();
    let text = capabilities_after(Sets::docker(Set::DEFAULT, false), 65_534, last);
    let again = rustix::thread::set_thread_uid(rustix::process::Uid::ROOT);
    format!("{text} {}", answer(again))
}

fn capabilities_scene(sets: Sets, user: u32) -> String {
    capabilities_after(sets, user, capabilities::last().unwrap())
}

fn capabilities_after(sets: Sets, user: u32, last: u8) -> String {
    sets.drop_bounding(last).unwrap();
    sets.keep_over_setuid().unwrap();
    if user != 0 {
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(user)).unwrap();
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(user)).unwrap();
    }
    sets.apply().unwrap();
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let bits = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"].map(|key| format!("{:x}", bits(key))).join(" ")
}

#[test]
fn the_default_filter_denies_for_real() {
    assert_eq!(said(&play("default")), "unix=ok alg=1 vsock=1 umount=1 thread=7");
}

#[test]
fn a_program_works_below_the_default_filter() {
    if !std::path::Path::new("/bin/busybox").exists() {
        eprintln!("skipped: needs /bin/busybox");
        return;
    }
    assert_eq!(said(&play("busybox")), "exit status: 0 true");
}

#[test]
fn errors_are_those_of_the_profile() {
    assert_eq!(said(&play("errno")), "38 1 13 ok");
}

#[test]
fn actions_that_kill_do() {
    for scene in ["kill", "trap"] {
        let output = play(scene);
        assert!(String::from_utf8_lossy(&output.stdout).contains("before"));
        assert_eq!(output.status.signal(), Some(31), "{scene}: not SIGSYS: {}", output.status);
    }
    assert!(said(&play("log")).ends_with("true"));
}

#[test]
fn installing_needs_privileges_or_their_renunciation() {
    let text = said(&play("unprivileged"));
    assert_eq!(text, "seccomp SECCOMP_SET_MODE_FILTER: Permission denied");
}

#[test]
fn capabilities_reach_the_process() {
    if !root() {
        return;
    }
    let default = format!("{:x}", Set::DEFAULT.bits());
    assert_eq!(said(&play("caps-root")), format!("0 {default} {default} {default} 0"));
    assert_eq!(said(&play("caps-user")), format!("0 0 0 {default} 0"));
    assert_eq!(said(&play("caps-ambient")), format!("400 400 400 {default} 400"));
}

#[test]
fn a_filter_before_the_drop_lets_the_drop_happen() {
    if !root() {
        return;
    }
    let default = format!("{:x}", Set::DEFAULT.bits());
    assert_eq!(said(&play("before-drop")), format!("0 0 0 {default} 0 1"));
}
