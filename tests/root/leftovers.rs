//! What belongs to nobody on the host is found, and taken away where that is asked for.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use insula_base::random_hex;
use insula_tests::{Daemon, OnDrop, Outcome, cgroups_called, daemon, eventually, text};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Runs a program of the host.
#[track_caller]
fn host(program: &str, arguments: &[&str]) {
    Outcome::of(Command::new(program).args(arguments), b"").exits(0);
}

/// What a look finds: kind and subject.
fn found(daemon: &Daemon) -> Vec<(String, String)> {
    let outcome = daemon.insula(&["system", "check", "--format", "json"]);
    let field = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let lines = outcome.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let found: Vec<_> = lines.map(|line| (field(&line, "Kind"), field(&line, "Subject"))).collect();
    outcome.exits(if found.is_empty() { 0 } else { 1 });
    found
}

#[track_caller]
fn finds(daemon: &Daemon, wanted: &[(&str, &str)]) {
    let wanted: BTreeSet<_> =
        wanted.iter().map(|(kind, what)| (kind.to_string(), what.to_string())).collect();
    let found: BTreeSet<_> = found(daemon).into_iter().collect();
    assert_eq!(found, wanted);
}

/// Every finding is repaired, and then there is none.
#[track_caller]
fn repairs(daemon: &Daemon) {
    daemon.insula(&["system", "check", "--repair"]).shows(&["all repaired"]);
    finds(daemon, &[]);
}

/// A repair that cannot repair everything, and says this.
#[track_caller]
fn repairs_not(daemon: &Daemon, words: &[&str]) {
    let outcome = daemon.insula(&["system", "check", "--repair"]);
    outcome.exits(1);
    assert!(words.iter().all(|word| outcome.stdout.contains(word)), "{words:?} are not in {outcome}");
}

fn monitor_of(sandbox: &Path) -> i32 {
    let launch: Value = serde_json::from_slice(&fs::read(sandbox.join("launch.json")).unwrap()).unwrap();
    i32::try_from(launch["monitor"]["pid"].as_i64().unwrap()).unwrap()
}

fn sandbox(daemon: &Daemon, id: &str) -> PathBuf {
    daemon.instance().run().join("sandboxes").join(id)
}

struct Stray(Child);

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn processes_and_mounts_of_nobody() {
    let mut daemon = daemon!();
    let nobody = random_hex(32);
    let kept = daemon.sleeper(&["--name", "kept", "--network", "none"]);
    let lost = daemon.sleeper(&["--name", "lost", "--network", "none"]);
    finds(&daemon, &[]);
    // A monitor that neither hears nor ends, and that the next daemon can never ask.
    let monitor = monitor_of(&sandbox(&daemon, &lost));
    kill_process(Pid::from_raw(monitor).unwrap(), Signal::STOP).unwrap();
    let pid = daemon.pid_of("lost");
    daemon.kill();
    fs::remove_dir_all(sandbox(&daemon, &lost)).unwrap();
    daemon.restart();
    assert_eq!(daemon.inspect("lost", "/State/ExitCode"), 255);
    for process in [i64::from(monitor), pid as i64] {
        assert!(!Path::new(&format!("/proc/{process}/exe")).exists());
    }
    for parent in cgroups_called(&daemon.instance().cgroup()) {
        fs::create_dir(parent.join(&nobody)).unwrap();
    }
    let folder = sandbox(&daemon, &nobody);
    let (mount, namespace) = (folder.join("m"), folder.join("netns"));
    fs::create_dir_all(&mount).unwrap();
    let listens = UnixListener::bind(folder.join("task.sock")).unwrap();
    let stray = Command::new("sleep").arg("1000").stdin(OwnedFd::from(listens)).spawn().unwrap();
    let stray = Stray(stray);
    let monitor = stray.0.id();
    fs::write(&namespace, "").unwrap();
    let detach = |path: &Path| {
        let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
    };
    let _unmount = OnDrop(|| [&mount, &namespace].into_iter().for_each(|path| detach(path)));
    host("mount", &["-t", "tmpfs", "insula-test", text(&mount)]);
    host("unshare", &[&format!("--net={}", text(&namespace)), "true"]);
    let group = format!("{}/{nobody}", daemon.instance().cgroup());
    let leaks = [
        ("monitor", monitor.to_string()),
        ("cgroup", group),
        ("sandbox", text(&folder).to_owned()),
        ("mount", text(&mount).to_owned()),
        ("namespace", text(&namespace).to_owned()),
    ];
    let leaks = leaks.each_ref().map(|(kind, subject)| (*kind, subject.as_str()));
    finds(&daemon, &leaks);
    finds(&daemon, &leaks);
    repairs(&daemon);
    assert!(!folder.exists() && !Path::new(&format!("/proc/{monitor}/exe")).exists());
    daemon.exec("kept", "true").ok();
    // What the next daemon needs, of one that runs.
    let launch = sandbox(&daemon, &kept).join("launch.json");
    let record = fs::read(&launch).unwrap();
    fs::remove_file(&launch).unwrap();
    repairs_not(&daemon, &["stop container", "1 not repaired"]);
    fs::write(&launch, record).unwrap();
    finds(&daemon, &[]);
}

#[test]
fn a_spare_that_has_ended() {
    let daemon = daemon!(bare);
    let spares = || daemon.children();
    let waiting = eventually("spares wait", || Some(spares()).filter(|spares| spares.len() == 2));
    finds(&daemon, &[]);
    kill_process(Pid::from_raw(waiting[0]).unwrap(), Signal::KILL).unwrap();
    eventually("it has ended", || (!spares().contains(&waiting[0])).then_some(()));
    finds(&daemon, &[("spare", &waiting[0].to_string())]);
    repairs(&daemon);
    eventually("another one waits", || (spares().len() == 2).then_some(()));
    assert_eq!(daemon.leaks().cgroups, Vec::<PathBuf>::new(), "what the one had made is gone");
}

/// A container finds its group made, by its own name; whoever comes otherwise makes one, and nothing is left of the
/// other.
#[test]
fn groups_of_containers_to_come() {
    let mut daemon = daemon!();
    let groups = || -> BTreeSet<String> {
        let roots = cgroups_called(&daemon.instance().cgroup());
        let below = roots.iter().flat_map(|root| fs::read_dir(root).unwrap().flatten());
        let folders = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    let wait =
        |many: usize| eventually("groups are ready", || Some(groups()).filter(|all| all.len() == many));
    let group_of = |container: &str| {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", daemon.pid_of(container))).unwrap();
        let groups: BTreeSet<_> =
            text.lines().filter(|line| line.contains(&daemon.instance().cgroup())).collect();
        groups.into_iter().map(|line| line.rsplit('/').next().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let ready = wait(2);
    let flags = ["create", "--network", "none", "--name", "box", "busybox", "sleep", "1000"];
    let id = daemon.insula(&flags).ok().trim().to_owned();
    assert!(ready.contains(&id), "{id} is not one of {ready:?}");
    finds(&daemon, &[]);
    daemon.insula(&["start", "box"]).ok();
    assert_eq!(group_of("box"), [id.clone()].into());
    // Its name was given away with its first start: it makes its group itself, and the one that was ready goes.
    for _ in 0..3 {
        daemon.insula(&["restart", "-t", "0", "box"]).ok();
        assert_eq!(group_of("box"), [id.clone()].into());
        assert!(wait(3).contains(&id));
    }
    // More than what every container has.
    let shows = ["--network", "none", "--device", "/dev/full:/dev/other:r"];
    daemon.sh(&shows, "head -c 2 /dev/other | wc -c; head -c 1 /dev/zero | wc -c").shows(&["2", "1"]);
    wait(3);
    daemon
        .sh(&["--network", "none", "--privileged"], "mknod /k c 1 11 && head -c 0 /k && echo all")
        .shows(&["all"]);
    let never = wait(3);
    let id = daemon.insula(&["create", "--name", "never", "busybox", "true"]).ok().trim().to_owned();
    assert!(never.contains(&id));
    daemon.insula(&["rm", "never"]).ok();
    eventually("its group goes", || (!groups().contains(&id)).then_some(()));
    daemon.insula(&["rm", "-f", "box"]).ok();
    wait(2);
    finds(&daemon, &[]);
    assert_eq!(daemon.stop(), Some(0));
    assert!(cgroups_called(&daemon.instance().cgroup()).is_empty());
}

#[test]
fn interfaces_and_rules_of_nobody() {
    let daemon = daemon!();
    let instance = daemon.instance();
    let (table, bridge) = (instance.table(), instance.bridge());
    let web = daemon.sleeper(&["--name", "web", "-p", "127.0.0.1::80"]);
    finds(&daemon, &[]);
    let end = Path::new("/sys/class/net").join(&bridge).join("brif");
    let end = fs::read_dir(&end).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    let (pair, peer) = (format!("veth{}", random_hex(5)), format!("it-{}", random_hex(3)));
    let _delete = OnDrop(|| drop(Command::new("ip").args(["link", "delete", &pair]).output()));
    host("ip", &["link", "add", &pair, "type", "veth", "peer", "name", &peer]);
    host("ip", &["link", "set", &pair, "master", &bridge]);
    let lost = format!("in-{}-0abcd", instance.tag().unwrap());
    host("ip", &["link", "add", &lost, "type", "bridge"]);
    host("nft", &["add", "element", "inet", &table, "published", "{ tcp . 9 }"]);
    host("nft", &["flush", "set", "bridge", &table, "guarded"]);
    host("ip", &["link", "set", &end, "nomaster"]);
    finds(
        &daemon,
        &[
            ("interface", &pair),
            ("interface", &end),
            ("bridge", &lost),
            ("rule", &format!("{table} published 9/tcp")),
            ("rule", &format!("{table} guarded {end}")),
        ],
    );
    repairs(&daemon);
    let net = Path::new("/sys/class/net");
    assert!(!net.join(&pair).exists() && !net.join(&lost).exists());
    assert!(fs::read_link(net.join(&end).join("master")).unwrap().ends_with(&bridge));
    // A bridge with all that is in it. Tables that somebody removes come back by themselves.
    host("ip", &["link", "delete", &bridge]);
    finds(&daemon, &[("bridge", &bridge), ("interface", &end)]);
    repairs(&daemon);
    // The interface is only made by a start.
    host("ip", &["link", "delete", &end]);
    repairs_not(&daemon, &["used by:  web", "restart the container"]);
    daemon.insula(&["rm", "-f", &web]).ok();
    eventually("it is as it should be", || found(&daemon).is_empty().then_some(()));
}

#[test]
fn rows_without_folders_and_folders_without_rows() {
    let daemon = daemon!();
    let root = daemon.instance().root();
    let made = daemon.insula(&["create", "--name", "made", "busybox", "true"]).ok().to_owned();
    daemon.insula(&["volume", "create", "emptied"]).ok();
    daemon.sh(&["-v", "kept:/data"], "echo precious >/data/file").ok();
    eventually("it is as it should be", || found(&daemon).is_empty().then_some(()));
    let nobody = random_hex(32);
    fs::create_dir_all(root.join("containers").join(&nobody).join("upper/etc")).unwrap();
    fs::remove_dir_all(root.join("containers").join(&made)).unwrap();
    fs::remove_dir_all(root.join("volumes/emptied")).unwrap();
    fs::create_dir_all(root.join("volumes/found/_data")).unwrap();
    fs::write(root.join("volumes/found/_data/file"), "somebody's").unwrap();
    finds(
        &daemon,
        &[
            ("container", text(&root.join("containers").join(&nobody))),
            ("container", &made[..12]),
            ("volume", "emptied"),
            ("volume", "found"),
        ],
    );
    assert!(root.join("containers").join(&nobody).exists(), "a look changes nothing");
    repairs(&daemon);
    assert!(!root.join("containers").join(&nobody).exists());
    daemon.insula(&["start", "-a", "made"]).exits(0);
    let read = |volume: &str| daemon.sh(&["-v", &format!("{volume}:/data:ro")], "cat /data/file");
    assert_eq!(read("kept").ok(), "precious");
    assert_eq!(read("found").ok(), "somebody's");
    daemon.insula(&["volume", "rm", "found", "emptied", "kept"]).ok();
}
