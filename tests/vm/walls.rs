//! Containers with a kernel of their own, as their users meet them. Needs `root` too: the host's side is
//! that of every container.

use insula_tests::images::busybox;
use insula_tests::{Daemon, Outcome, get, guest, is_root};

/// A daemon whose containers boot Debian's kernel for clouds, each anew; none where that cannot be.
fn daemon() -> Option<Daemon> {
    daemon_with(&["--vm-templates", "off"])
}

pub(crate) fn daemon_with(arguments: &[&str]) -> Option<Daemon> {
    prepared_daemon(|_| arguments.iter().map(|&argument| argument.to_owned()).collect())
}

/// As [`daemon_with`], with arguments that name files in the daemon's folder.
pub(crate) fn prepared_daemon(arguments: impl FnOnce(&Daemon) -> Vec<String>) -> Option<Daemon> {
    if let Some(why) = guest::missing() {
        insula_tests::skip("tcg", why);
        return None;
    }
    if !is_root() {
        insula_tests::skip("root", "containers of the daemon need it");
        return None;
    }
    let mut daemon = Daemon::absent();
    let arguments = arguments(&daemon);
    daemon.restart_with(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    daemon.load(&busybox().docker_archive()).ok();
    daemon.insula(&["kernel", "use", guest::kernel_folder().to_str().unwrap()]).exits(0);
    Some(daemon)
}

fn run(daemon: &Daemon, more: &[&str]) -> Outcome {
    daemon.insula(&[&["run", "--rm", "--isolation", "vm"], more].concat())
}

#[test]
fn a_container_in_its_own_kernel_is_as_any_other() {
    let Some(daemon) = daemon() else { return };
    let listed = daemon.insula(&["kernel", "ls", "-q"]);
    let release = listed.ok().lines().next().unwrap().trim().to_owned();
    let seen = run(&daemon, &["--network", "none", "host", "uname", "-r"]);
    assert_eq!(seen.ok().trim(), release, "{seen}");

    // Streams, exit code, user, environment, limits, the image's files, a writable layer, and that the kernel tells
    // the host of memory that it does not use (VIRTIO_BALLOON_F_PAGE_REPORTING).
    let script = "cat; echo err >&2; echo $A; id -u; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; \
        touch /new && ls /new; head -c 300000 /dev/zero | wc -c; \
        cut -c6 /sys/bus/virtio/drivers/virtio_balloon/*/features; exit 7";
    let run = [
        "run",
        "--rm",
        "-i",
        "--isolation",
        "vm",
        "--network",
        "none",
        "-m",
        "64m",
        "--cpus",
        "0.5",
        "-e",
        "A=b",
    ];
    let outcome = daemon.insula_with(&[&run[..], &["busybox", "sh", "-c", script]].concat(), b"input\n");
    assert_eq!((outcome.code, outcome.stderr.trim()), (7, "err"), "{outcome}");
    assert_eq!(
        outcome.stdout.lines().collect::<Vec<_>>(),
        ["input", "b", "0", "67108864", "50000 100000", "/new", "300000", "1"],
        "{outcome}"
    );

    let missing =
        daemon.insula(&["run", "--rm", "--isolation", "vm", "--network", "none", "busybox", "/no/such"]);
    assert_eq!(missing.code, 127, "{missing}");
}

#[test]
fn a_service_in_its_own_kernel_is_reached_watched_and_stopped() {
    let Some(daemon) = daemon() else { return };
    let data = daemon.folder();
    std::fs::write(data.join("index.html"), "from the host\n").unwrap();
    let volume = format!("{}:/www", data.display());
    let program = "echo started; echo kept >/vol/kept; trap 'exit 3' TERM; httpd -f -p 80 -h /www & wait";
    let arguments = [
        "run",
        "-d",
        "--name",
        "web",
        "--isolation",
        "vm",
        "-p",
        "127.0.0.1::80",
        "-v",
        &volume,
        "-v",
        "vol:/vol",
        "--tmpfs",
        "/scratch",
        "busybox",
        "sh",
        "-c",
        program,
    ];
    daemon.insula(&arguments).exits(0);
    let address = daemon.insula(&["port", "web", "80"]).ok().trim().to_owned();
    guest::eventually("the page is served", || {
        get(&address).filter(|page| page.text().contains("from the host"))
    });
    let inside = daemon.insula(&[
        "exec",
        "web",
        "sh",
        "-c",
        "echo new >/www/new; cat /vol/kept; df /scratch | tail -n 1",
    ]);
    assert!(inside.ok().starts_with("kept\ntmpfs"), "{inside}");
    assert_eq!(std::fs::read_to_string(data.join("new")).unwrap(), "new\n");
    assert_eq!(daemon.insula(&["logs", "web"]).ok().trim(), "started");

    std::fs::write(data.join("copied"), "copied\n").unwrap();
    daemon.insula(&["cp", data.join("copied").to_str().unwrap(), "web:/root/in"]).exits(0);
    assert_eq!(daemon.insula(&["exec", "web", "cat", "/root/in"]).ok(), "copied");
    assert!(daemon.insula(&["diff", "web"]).ok().contains("A /root/in"));
    let stats = daemon.insula(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "web"]);
    assert!(stats.ok().trim().ends_with(" 2"), "{stats}");

    assert!(daemon.insula(&["top", "web"]).ok().contains("httpd -f -p 80"));
    assert_eq!(daemon.insula(&["ps", "--format", "{{.Names}} {{.Isolation}}"]).ok().trim(), "web vm");
    let machine = daemon.insula(&["inspect", "-f", "{{.Machine.Cpus}} {{.Machine.Kernel}}", "web"]);
    assert_eq!(
        machine.ok().trim(),
        format!("1 {}", daemon.insula(&["info", "-f", "{{.Machines.Kernel}}"]).ok().trim())
    );

    what_a_guest_writes_is_told(&daemon, "web");
    daemon.insula(&["pause", "web"]).exits(0);
    daemon.insula(&["unpause", "web"]).exits(0);
    daemon.insula(&["stop", "web"]).exits(0);
    daemon.insula(&["vm-dirty-rate", "web"]).fails(1, &["is not running"]);
    assert_eq!(daemon.insula(&["inspect", "-f", "{{.State.ExitCode}}", "web"]).ok().trim(), "3");
    daemon.insula(&["rm", "web"]).exits(0);
}

/// By samples of a machine of QEMU's; a process of the host's is refused.
fn what_a_guest_writes_is_told(daemon: &Daemon, name: &str) {
    let measure = |more: &[&str]| daemon.insula(&[&["vm-dirty-rate", "--format", "json"], more].concat());
    // Other bytes each time: a page that is written with what it had is not seen.
    let noise = "while [ ! -e /scratch/enough ]; do head -c 8m /dev/urandom >/scratch/noise; done";
    daemon.insula(&["exec", "-d", name, "sh", "-c", noise]).exits(0);
    let rate = guest::eventually("the guest writes", || {
        let rate: serde_json::Value = serde_json::from_str(measure(&["--period", "2s", name]).ok()).unwrap();
        rate["Bytes"].as_u64().is_some_and(|bytes| bytes > 0).then_some(rate)
    });
    daemon.exec(name, "touch /scratch/enough").exits(0);
    assert_eq!((&rate["Backend"], &rate["Sampled"]), (&"qemu".into(), &true.into()), "{rate}");
    assert_eq!(rate["Milliseconds"], 2000, "{rate}");
    assert_eq!(rate["Bytes"], rate["Pages"].as_u64().unwrap() * 4096, "{rate}");
    measure(&["--period", "1500ms", name]).fails(1, &["whole seconds"]);
    measure(&["--period", "61s", name]).fails(1, &["100 ms to 60 s"]);
    measure(&[]).fails(1, &["needs a container, or --tenant"]);
    let plain = daemon.sleeper(&["--network", "none"]);
    measure(&[&plain]).fails(1, &["runs behind the process wall"]);
    daemon.insula(&["rm", "-f", &plain]).exits(0);
}

#[test]
fn a_root_that_is_read_only_has_places_for_mounts_and_what_fails_is_started_again() {
    let Some(daemon) = daemon() else { return };
    let script = "id -u; touch /x 2>/dev/null || echo kept; touch /scratch/y && echo free";
    let words =
        ["--read-only", "--user", "1000", "--tmpfs", "/scratch", "--network", "none", "busybox", "sh", "-c"];
    let outcome = run(&daemon, &[&words[..], &[script]].concat());
    assert_eq!(outcome.ok().lines().collect::<Vec<_>>(), ["1000", "kept", "free"], "{outcome}");

    let words = [
        "run",
        "-d",
        "--name",
        "fails",
        "--isolation",
        "vm",
        "--network",
        "none",
        "--restart",
        "on-failure:1",
    ];
    daemon.insula(&[&words[..], &["busybox", "sh", "-c", "exit 3"]].concat()).exits(0);
    guest::eventually("it has failed twice", || {
        let format = "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}";
        (daemon.insula(&["inspect", "-f", format, "fails"]).ok().trim() == "exited 1 3").then_some(())
    });
    daemon.insula(&["rm", "fails"]).exits(0);
}

#[test]
fn containers_behind_both_walls_know_each_other_by_name() {
    let Some(daemon) = daemon() else { return };
    daemon.insula(&["network", "create", "blue"]).exits(0);
    daemon.insula(&["run", "-d", "--name", "near", "--network", "blue", "busybox", "sleep", "1000"]).exits(0);
    let far =
        ["run", "-d", "--name", "far", "--isolation", "vm", "--network", "blue", "busybox", "sleep", "1000"];
    daemon.insula(&far).exits(0);
    for (from, to) in [("far", "near"), ("near", "far")] {
        let outcome = daemon.insula(&["exec", from, "ping", "-c", "1", "-W", "30", to]);
        assert!(outcome.ok().contains("1 packets received"), "{outcome}");
    }
    daemon.insula(&["rm", "-f", "near", "far"]).exits(0);
    daemon.insula(&["network", "rm", "blue"]).exits(0);
}

#[test]
fn what_breaks_a_machine_is_said() {
    let Some(daemon) = daemon() else { return };
    let folder = daemon.folder();
    let none = daemon.insula(&["kernel", "use", folder.to_str().unwrap()]);
    assert!(none.code == 1 && none.stderr.contains("neither a kernel nor a folder with one"), "{none}");
    let shared = run(&daemon, &["--network", "host", "busybox", "true"]);
    assert!(shared.code == 125 && shared.stderr.contains("cannot share the network"), "{shared}");

    let sockets = run(&daemon, &["--device", "/dev/vsock", "busybox", "true"]);
    assert!(sockets.code == 125 && sockets.stderr.contains("machines are QEMU's here"), "{sockets}");
    let warm = daemon.insula(&["warm", "--device", "/dev/vsock"]);
    warm.fails(1, &["machines are QEMU's here"]);

    // The machine is killed: the container has failed and is started again, once.
    let start = ["run", "-d", "--name", "box", "--isolation", "vm", "--network", "none"];
    daemon
        .insula(&[&start[..], &["--restart", "on-failure:1", "busybox", "sleep", "1000"]].concat())
        .exits(0);
    kill_machine(&daemon, "box");
    guest::eventually("the container is started again", || {
        let format = "{{.State.Running}} {{.RestartCount}} {{.State.Pid}}";
        let state = daemon.insula(&["inspect", "-f", format, "box"]);
        state.ok().starts_with("true 1 ").then_some(())
    });
    // Once more, and it has ended, with the reason.
    kill_machine(&daemon, "box");
    let state = guest::eventually("the container ends", || {
        let state = daemon.insula(&[
            "inspect",
            "-f",
            "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}",
            "box",
        ]);
        Some(state.ok().to_owned()).filter(|state| state.starts_with("exited"))
    });
    assert!(state.starts_with("exited 137 ") && state.contains("machine"), "{state}");
    daemon.insula(&["start", "box"]).exits(0);
    daemon.insula(&["rm", "-f", "box"]).exits(0);
}

fn kill_machine(daemon: &Daemon, name: &str) {
    let pid: i32 = daemon.insula(&["inspect", "-f", "{{.State.Pid}}", name]).ok().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// What asks for the address of the container `near` by TCP, and prints the last bytes of the answer.
const ASK_BY_TCP: &str = r#"printf '\0\026\001\002\001\0\0\001\0\0\0\0\0\0\004near\0\0\001\0\001' | \
    nc -w 30 127.0.0.11 53 | tail -c 4 | hexdump -v -e '1/1 "%d."'"#;

/// What holds a container's interface back: in its guest, and at its tap.
fn rates(daemon: &Daemon, name: &str) -> [String; 2] {
    let inside = daemon.exec(name, "tc qdisc show dev eth0").ok().to_owned();
    let id = daemon.inspect(name, "/Id");
    let record = daemon.instance().run().join("sandboxes").join(id.as_str().unwrap()).join("machine.json");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let tap = record["taps"][0][1].as_str().unwrap();
    let mut tc = std::process::Command::new("tc");
    [inside, Outcome::of(tc.args(["qdisc", "show", "dev", tap]), b"").ok().to_owned()]
}

#[test]
fn a_person_and_networks_come_and_go_while_a_machine_runs() {
    let Some(daemon) = daemon() else { return };
    let start = ["run", "-dit", "--name", "far", "--isolation", "vm"];
    let health = ["--health-cmd", "test -f /tmp/well", "--health-interval", "1s", "--health-retries", "1"];
    let rate = ["--network-rate", "10mbit"];
    daemon.insula(&[&start[..], &health, &rate, &["busybox", "sh"]].concat()).exits(0);
    assert!(rates(&daemon, "far").iter().all(|text| text.contains("tbf")), "{:?}", rates(&daemon, "far"));
    daemon.insula(&["update", "--network-rate", "-1", "far"]).exits(0);
    assert!(!rates(&daemon, "far").iter().any(|text| text.contains("tbf")), "{:?}", rates(&daemon, "far"));
    let mut terminal = daemon.terminal(&["attach", "far"]);
    terminal.expect_size("24 80");
    terminal.send("\x10\x11");
    assert_eq!(terminal.wait(), 0);
    let healthy = |status: &str| {
        guest::eventually(status, || (daemon.inspect("far", "/State/Health/Status") == status).then_some(()));
    };
    healthy("unhealthy");
    daemon.exec("far", "touch /tmp/well").exits(0);
    healthy("healthy");

    for name in ["blue", "red", "green", "grey"] {
        daemon.insula(&["network", "create", name]).exits(0);
    }
    daemon.insula(&["run", "-d", "--name", "near", "--network", "blue", "busybox", "sleep", "1000"]).exits(0);
    daemon.insula(&["network", "connect", "--alias", "away", "blue", "far"]).exits(0);
    for (from, to) in [("far", "near"), ("near", "far"), ("near", "away")] {
        let outcome = daemon.exec(from, &format!("ping -c 1 -W 30 {to}"));
        assert!(outcome.ok().contains("1 packets received"), "{outcome}");
    }
    let address = daemon.inspect("near", "/NetworkSettings/Networks/blue/IPAddress");
    let answer = daemon.exec("far", ASK_BY_TCP);
    assert_eq!(answer.ok().trim().trim_end_matches('.'), address.as_str().unwrap(), "{answer}");

    let cards = || {
        let list = daemon.exec("far", "ls /sys/class/net");
        list.ok().split_whitespace().filter(|name| name.starts_with("eth")).count()
    };
    daemon.insula(&["network", "connect", "red", "far"]).exits(0);
    assert_eq!(cards(), 3);
    let full = daemon.insula(&["network", "connect", "green", "far"]);
    assert!(full.code == 1 && full.stderr.contains("3 network cards, and all are in use"), "{full}");
    daemon.insula(&["network", "disconnect", "blue", "far"]).exits(0);
    assert_eq!(cards(), 2);
    daemon.insula(&["network", "connect", "green", "far"]).exits(0);
    daemon.insula(&["network", "disconnect", "bridge", "far"]).exits(0);
    let route =
        daemon.exec("far", "ping -c 1 -W 30 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')");
    assert!(route.ok().contains("1 packets received"), "{route}");

    let mut again = daemon.terminal(&["attach", "far"]);
    again.send("exit 5\n");
    assert_eq!(daemon.insula(&["wait", "far"]).ok().trim(), "5");
    assert_eq!(again.wait(), 5);
    // It has them all from its start.
    daemon.insula(&["network", "connect", "grey", "far"]).exits(0);
    daemon.insula(&["start", "far"]).exits(0);
    assert_eq!(cards(), 3);
    daemon.insula(&["kill", "far"]).exits(0);
    assert_eq!(daemon.insula(&["wait", "far"]).ok().trim(), "137");
    daemon.insula(&["rm", "-f", "near", "far"]).exits(0);
}
