//! Containers whose machines are copies of one that was booted before.

use std::path::Path;

use insula_tests::Daemon;
use rustix::process::Signal;

use crate::walls::daemon_with;

const START: [&str; 4] = ["run", "-d", "--isolation", "vm"];

fn templates(daemon: &Daemon) -> Vec<String> {
    daemon.insula(&["vm-template", "ls", "-q"]).ok().lines().map(str::to_owned).collect()
}

fn is_copy(daemon: &Daemon, container: &str) -> bool {
    daemon.inspect(container, "/Machine/Template").as_bool().unwrap()
}

fn start(daemon: &Daemon, name: &str, volume: &str) {
    let more =
        ["--network", "blue", "--name", name, "--hostname", name, "-v", volume, "busybox", "sleep", "1000"];
    daemon.insula(&[&START[..], &more].concat()).exits(0);
}

#[test]
fn copies_of_a_template_are_machines_of_their_own() {
    let Some(daemon) = daemon_with(&[]) else { return };
    let data = daemon.folder();
    // As large as some messages with files in them.
    let content: Vec<u8> = (0..1_000_003u32).flat_map(|number| (number % 251).to_le_bytes()).collect();
    std::fs::write(data.join("large"), &content).unwrap();
    let volume = format!("{}:/data", data.display());

    daemon.insula(&["network", "create", "blue"]).exits(0);
    // The first one boots, and a template for those like it is made meanwhile.
    start(&daemon, "first", &volume);
    assert!(!is_copy(&daemon, "first"));
    let id = daemon.insula(&["warm", "--networks", "1"]).ok().trim().to_owned();
    assert_eq!(templates(&daemon), [id.as_str()]);
    let counted = || daemon.insula(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"]);
    counted().shows(&["VM Templates 1 1"]);
    daemon.insula(&["rm", "-f", "first"]).exits(0);

    for name in ["one", "two"] {
        start(&daemon, name, &volume);
        assert!(is_copy(&daemon, name), "{name}: {}", daemon.log());
    }
    let seen = ["one", "two"].map(|name| {
        let script = "hostname; cat /sys/class/net/eth0/address; cat /proc/sys/kernel/random/uuid; \
            cat /proc/sys/kernel/random/boot_id; cat /data/large | md5sum; cp /data/large /data/$(hostname); \
            mkdir /new && echo kept >/new/file && cat /new/file";
        daemon.exec(name, script).ok().lines().map(str::to_owned).collect::<Vec<_>>()
    });
    for (name, seen) in ["one", "two"].iter().zip(&seen) {
        let mac = daemon.inspect(name, "/NetworkSettings/Networks/blue/MacAddress");
        assert_eq!((seen[0].as_str(), seen[1].as_str()), (*name, mac.as_str().unwrap()));
        assert_eq!(std::fs::read(data.join(name)).unwrap(), content);
        assert_eq!(seen.last().unwrap(), "kept");
    }
    assert!((1..4).all(|line| seen[0][line] != seen[1][line]), "{seen:?}");
    assert_eq!(seen[0][4], seen[1][4]);
    let ping = daemon.exec("one", "ping -c 1 -W 30 two");
    assert!(ping.ok().contains("1 packets received"), "{ping}");
    // Into another network while they run, with cards that the template had.
    daemon.insula(&["network", "create", "red"]).exits(0);
    for name in ["one", "two"] {
        daemon.insula(&["network", "connect", "red", name]).exits(0);
    }
    daemon.insula(&["network", "disconnect", "blue", "two"]).exits(0);
    let ping = daemon.exec("one", "ping -c 1 -W 30 two");
    assert!(ping.ok().contains("1 packets received"), "{ping}");
    daemon.insula(&["rm", "-f", "one", "two"]).exits(0);
    daemon.insula(&["network", "rm", "blue", "red"]).exits(0);
    // One that new machines are made of stays, unless all is to go.
    assert!(!daemon.insula(&["system", "prune", "-f"]).ok().contains("Templates"));
    daemon.insula(&["system", "prune", "-af"]).shows(&["Deleted VM Templates:", &id]);
    assert!(templates(&daemon).is_empty() && !counted().ok().contains("VM Templates"));
}

/// Stops the first machine in these control groups, which would go on from a template.
fn stop_first_machine(cgroup: &str) {
    let groups = format!("/{}/", cgroup.trim_matches('/'));
    let of = |process: &Path, file: &str| std::fs::read_to_string(process.join(file)).unwrap_or_default();
    insula_tests::eventually("a machine", || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let mut machines = processes.filter(|process| {
            of(process, "comm").starts_with("qemu-system") && of(process, "cgroup").contains(&groups)
        });
        let pid = machines.next()?.file_name()?.to_str()?.parse().ok()?;
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid)?, Signal::STOP).ok()
    });
}

#[test]
fn a_template_whose_copies_do_not_answer_goes() {
    let Some(daemon) = daemon_with(&["--vm-templates", "off"]) else { return };
    daemon.insula(&["warm", "--networks", "0", "-m", "64m"]).exits(0);
    let cgroup = daemon.instance().cgroup();
    std::thread::scope(|scope| {
        scope.spawn(|| stop_first_machine(&cgroup));
        let more = ["--network", "none", "-m", "64m", "--name", "box", "busybox", "sleep", "1000"];
        daemon.insula(&[&START[..], &more].concat()).exits(0);
    });
    // Another one has booted in its place.
    assert!(!is_copy(&daemon, "box"));
    let log = daemon.log();
    assert!(log.contains("since its template is of no use: "), "{log}");
    // Whoever had to answer next: QEMU's control, or the agent.
    assert!(log.contains("does not answer within 15 s"), "{log}");
    assert!(templates(&daemon).is_empty());
    daemon.insula(&["rm", "-f", "box"]).exits(0);
}

#[test]
fn a_damaged_template_is_not_used() {
    let Some(mut daemon) = daemon_with(&["--vm-templates", "off"]) else { return };
    let id = daemon.insula(&["warm", "--networks", "0", "-m", "64m"]).ok().trim().to_owned();
    assert_eq!(templates(&daemon), [id.as_str()]);
    let start = |daemon: &Daemon, name| {
        let more = ["--network", "none", "-m", "64m", "--name", name, "busybox", "sleep", "1000"];
        daemon.insula(&[&START[..], &more].concat()).exits(0);
        let copy = is_copy(daemon, name);
        daemon.insula(&["rm", "-f", name]).exits(0);
        copy
    };
    assert!(start(&daemon, "good"), "{}", daemon.log());
    let unknown = daemon.insula(&["vm-template", "rm", "nonsense"]);
    assert!(unknown.code == 1 && unknown.stderr.contains("No such template: nonsense"), "{unknown}");

    let path = daemon.instance().root().join("templates").join(&id).join("memory");
    let mut bytes = std::fs::read(&path).unwrap();
    let place = bytes.iter().position(|byte| *byte != 0).unwrap();
    bytes[place] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    // It was read before, and is read anew.
    daemon.kill();
    daemon.restart_with(&["--vm-templates", "off"]);
    assert!(!start(&daemon, "damaged"));
    assert!(daemon.log().contains("its memory is not what was saved"), "{}", daemon.log());
    assert!(templates(&daemon).is_empty());
    assert_eq!(daemon.insula(&["vm-template", "prune", "-af"]).ok().trim(), "Total reclaimed space: 0B");
}
