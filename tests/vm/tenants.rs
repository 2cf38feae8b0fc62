//! Containers that share the machine of their tenant.

use std::fs;
use std::path::Path;

use insula_tests::{Daemon, OnDrop, get, guest};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::walls::daemon_with;

fn daemon() -> Option<Daemon> {
    daemon_with(&["--vm-templates", "off"])
}

fn start(daemon: &Daemon, tenant: &str, name: &str, more: &[&str]) {
    let isolation = format!("tenant:{tenant}");
    let run = ["run", "-d", "--name", name, "--isolation", &isolation];
    daemon.insula(&[&run[..], more].concat()).exits(0);
}

fn machine(daemon: &Daemon, tenant: &str) -> String {
    daemon
        .insula(&["tenant", "inspect", "-f", "{{with .Machine}}{{.Pid}}{{end}}", tenant])
        .ok()
        .trim()
        .to_owned()
}

fn boot_id(daemon: &Daemon, container: &str) -> String {
    daemon.exec(container, "cat /proc/sys/kernel/random/boot_id").ok().trim().to_owned()
}

#[test]
fn containers_of_a_tenant_share_a_kernel_and_nothing_else() {
    let Some(mut daemon) = daemon() else { return };
    let data = daemon.folder();
    std::fs::write(data.join("index.html"), "from the host\n").unwrap();
    let volume = format!("{}:/www", data.display());
    daemon.insula(&["tenant", "create", "acme", "-m", "256m", "--cards", "3"]).exits(0);
    daemon.insula(&["network", "create", "blue"]).exits(0);
    let blue = ["--network", "blue"];

    let script = "echo started; trap 'exit 3' TERM; httpd -f -p 80 -h /www & wait";
    let web = ["-p", "127.0.0.1::80", "-v", &volume, "-m", "64m", "busybox", "sh", "-c", script];
    start(&daemon, "acme", "web", &[&blue[..], &web].concat());
    start(&daemon, "acme", "box", &[&blue[..], &["busybox", "sleep", "1000"]].concat());
    // One kernel, which is the tenant's machine; each has its own files, processes, address and name.
    assert_eq!(boot_id(&daemon, "web"), boot_id(&daemon, "box"));
    for name in ["web", "box"] {
        assert_eq!(daemon.inspect(name, "/State/Pid").to_string(), machine(&daemon, "acme"), "{name}");
    }
    let listed = daemon.insula(&["ps", "--format", "{{.Names}} {{.Isolation}}"]);
    assert_eq!(listed.ok().lines().collect::<Vec<_>>(), ["box tenant:acme", "web tenant:acme"]);
    let inside = daemon.exec(
        "box",
        "touch /mine; ls /www 2>/dev/null; busybox pidof httpd || echo none; ping -c 1 -W 60 web",
    );
    assert!(inside.stdout.starts_with("none\n") && inside.ok().contains("1 packets received"), "{inside}");
    assert_eq!(
        daemon.exec("web", "ls /mine 2>/dev/null; cat /sys/fs/cgroup/memory.max").ok().trim(),
        "67108864"
    );
    let address = daemon.insula(&["port", "web", "80"]).ok().trim().to_owned();
    guest::eventually("the page is served", || {
        get(&address).filter(|page| page.text().contains("from the host"))
    });
    daemon.exec("web", "echo new >/www/new").exits(0);
    assert_eq!(std::fs::read_to_string(data.join("new")).unwrap(), "new\n");
    daemon.insula(&["cp", data.join("new").to_str().unwrap(), "box:/root/in"]).exits(0);
    assert_eq!(daemon.exec("box", "cat /root/in").ok().trim(), "new");
    let stats = daemon.insula(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "box"]);
    assert_eq!(stats.ok().trim(), "box 1");
    assert!(daemon.insula(&["top", "web"]).ok().contains("httpd -f -p 80"));

    // What all of them write is measured together.
    let rate = daemon.insula(&[
        "vm-dirty-rate",
        "--tenant",
        "acme",
        "--format",
        "{{.Name}} {{.Backend}} {{.Milliseconds}}",
    ]);
    assert_eq!(rate.ok().trim(), "acme qemu 1000ms");
    daemon.insula(&["vm-dirty-rate", "box"]).fails(1, &["shares the machine of tenant acme"]);

    // The daemon is killed: nothing ends, and the next one finds everything again.
    let before = machine(&daemon, "acme");
    daemon.kill();
    daemon.restart_with(&["--vm-templates", "off"]);
    assert_eq!(machine(&daemon, "acme"), before);
    daemon.insula(&["pause", "web"]).exits(0);
    assert_eq!(daemon.exec("box", "echo on").ok().trim(), "on", "only the other one is paused");
    daemon.insula(&["unpause", "web"]).exits(0);
    daemon.insula(&["stop", "web"]).exits(0);
    assert_eq!(daemon.inspect("web", "/State/ExitCode").to_string(), "3");
    assert_eq!(daemon.insula(&["logs", "web"]).ok().trim(), "started");
    // In again, with a card that comes back.
    daemon.insula(&["start", "web"]).exits(0);
    assert_eq!(boot_id(&daemon, "web"), boot_id(&daemon, "box"));
    guest::eventually("the page is served again", || get(&address_of(&daemon)));
    let used = daemon.insula(&["tenant", "rm", "acme"]);
    assert!(used.code == 1 && used.stderr.contains("has containers"), "{used}");
    daemon.insula(&["rm", "-f", "web", "box"]).exits(0);
    guest::eventually("the machine ends with its last container", || {
        (machine(&daemon, "acme").is_empty()).then_some(())
    });
    daemon.insula(&["vm-dirty-rate", "--tenant", "acme"]).fails(1, &["does not run"]);
    daemon.insula(&["tenant", "rm", "acme"]).exits(0);
    daemon.insula(&["network", "rm", "blue"]).exits(0);
}

fn address_of(daemon: &Daemon) -> String {
    daemon.insula(&["port", "web", "80"]).ok().trim().to_owned()
}

#[test]
fn tenants_are_apart_and_a_machine_that_breaks_takes_its_own_containers_alone() {
    let Some(daemon) = daemon() else { return };
    for tenant in ["acme", "other"] {
        daemon.insula(&["tenant", "create", tenant, "-m", "64m", "--cards", "1"]).exits(0);
    }
    let none = ["--network", "none"];
    let sleep = ["busybox", "sleep", "1000"];
    start(&daemon, "acme", "one", &[&none[..], &["--restart", "on-failure:1"], &sleep].concat());
    start(&daemon, "acme", "two", &[&none[..], &["-m", "48m"], &sleep].concat());
    start(&daemon, "other", "far", &[&none[..], &sleep].concat());
    assert_ne!(boot_id(&daemon, "one"), boot_id(&daemon, "far"));

    // Full: of memory that is promised, and of cards.
    let run = |more: &[&str]| {
        daemon.insula(
            &[&["run", "--rm", "--isolation", "tenant:acme"][..], more, &["busybox", "true"]].concat(),
        )
    };
    let full = run(&["--network", "none", "-m", "32m"]);
    assert!(full.code == 125 && full.stderr.contains("tenant acme is full"), "{full}");
    daemon.insula(&["network", "create", "blue"]).exits(0);
    daemon.insula(&["network", "create", "red"]).exits(0);
    let full = run(&["--network", "blue", "--network", "red"]);
    assert!(full.code == 125 && full.stderr.contains("1 network cards are in use"), "{full}");
    run(&["--network", "blue"]).exits(0);
    let wrong = run(&["--network", "none", "-m", "1g"]);
    assert!(wrong.code == 125 && wrong.stderr.contains("64 MiB of memory together"), "{wrong}");
    let missing = daemon.insula(&["run", "--rm", "--isolation", "tenant:nobody", "busybox", "true"]);
    assert!(missing.code == 125 && missing.stderr.contains("No such tenant: nobody"), "{missing}");
    let failed = daemon.insula(&[
        "run",
        "--rm",
        "--isolation",
        "tenant:acme",
        "--network",
        "none",
        "busybox",
        "/no/such",
    ]);
    assert_eq!(failed.code, 127, "{failed}");

    let pid = machine(&daemon, "acme").parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    lost_its_machine(&daemon, "two");
    is_started_again(&daemon, "one");
    assert_ne!(machine(&daemon, "acme"), pid.to_string());
    assert_eq!(daemon.exec("far", "echo on").ok().trim(), "on");
    daemon.insula(&["rm", "-f", "one", "two", "far"]).exits(0);
    daemon.insula(&["tenant", "rm", "acme", "other"]).exits(0);
    daemon.insula(&["network", "rm", "blue", "red"]).exits(0);
}

/// A container without a policy ends with its machine.
fn lost_its_machine(daemon: &Daemon, container: &str) {
    let state = guest::eventually("a container without a policy ends", || {
        let format = "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}";
        let state = daemon.insula(&["inspect", "-f", format, container]);
        Some(state.ok().to_owned()).filter(|state| state.starts_with("exited"))
    });
    assert!(state.starts_with("exited 137 ") && state.contains("machine ended"), "{state}");
}

fn is_started_again(daemon: &Daemon, container: &str) {
    guest::eventually("the other one is started again, in another machine", || {
        let state = daemon.insula(&["inspect", "-f", "{{.State.Running}} {{.RestartCount}}", container]);
        (state.ok().trim() == "true 1").then_some(())
    });
}

/// Kills the process that a record of the daemon's names.
fn kill_recorded(path: &Path, pointer: &str) {
    let record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let pid = record.pointer(pointer).and_then(Value::as_i64).unwrap();
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn a_machine_is_kept_and_what_is_killed_takes_no_more_along_than_it_must() {
    let Some(daemon) = daemon() else { return };
    let create = ["tenant", "create", "acme", "-m", "64m", "--cards", "1", "--keep"];
    daemon.insula(&create).exits(0);
    daemon.insula(&["network", "create", "blue"]).exits(0);
    let sleep = ["busybox", "sleep", "1000"];
    let none = ["--network", "none"];
    // The machine stays without containers: the next ones find it.
    start(&daemon, "acme", "first", &[&none[..], &sleep].concat());
    let kept = boot_id(&daemon, "first");
    daemon.insula(&["rm", "-f", "first"]).exits(0);
    start(&daemon, "acme", "one", &[&["--network", "blue"][..], &sleep].concat());
    start(&daemon, "acme", "two", &[&none[..], &["--restart", "on-failure:1"], &sleep].concat());
    assert_eq!(boot_id(&daemon, "one"), kept);

    // A monitor: its container is lost, also inside, where it had the only card. The other one goes on.
    let id = daemon.inspect("one", "/Id").as_str().unwrap().to_owned();
    let run = daemon.instance().run();
    kill_recorded(&run.join("sandboxes").join(id).join("launch.json"), "/monitor/pid");
    daemon.reaches("one", "exited");
    assert_eq!(daemon.inspect("one", "/State/ExitCode"), 255);
    assert_eq!(boot_id(&daemon, "two"), kept);
    daemon.insula(&["start", "one"]).exits(0);
    assert_eq!(boot_id(&daemon, "one"), kept);
    let interfaces = daemon.exec("one", "ls /sys/class/net");
    assert_eq!(interfaces.ok().split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);

    // The owner: the machine ends with it.
    kill_recorded(&run.join("tenants/acme/owner.json"), "/pid");
    lost_its_machine(&daemon, "one");
    is_started_again(&daemon, "two");
    assert_ne!(boot_id(&daemon, "two"), kept);

    let pid = machine(&daemon, "acme");
    daemon.insula(&["rm", "-f", "one", "two"]).exits(0);
    assert_eq!(machine(&daemon, "acme"), pid);
    daemon.insula(&["tenant", "rm", "acme"]).exits(0);
    assert!(!Path::new("/proc").join(pid).exists(), "the machine ends with its tenant");
    daemon.insula(&["network", "rm", "blue"]).exits(0);
}

#[test]
fn tenants_machines_are_copies_of_one_that_was_booted_before() {
    let Some(mut daemon) = daemon() else { return };
    // The same size and number of cards: one template is for both.
    for tenant in ["acme", "other"] {
        daemon.insula(&["tenant", "create", tenant, "-m", "64m", "--cards", "1"]).exits(0);
    }
    let warm = |tenant| daemon.insula(&["warm", "--tenant", tenant]).ok().trim().to_owned();
    let id = warm("acme");
    assert_eq!(warm("other"), id);
    let listed =
        daemon.insula(&["vm-template", "ls", "--format", "{{.ID}} {{.Networks}} {{.Tenant}} {{.Stale}}"]);
    assert_eq!(listed.ok().trim(), format!("{id} 1 true false"));
    let missing = daemon.insula(&["warm", "--tenant", "nobody"]);
    assert!(missing.code == 1 && missing.stderr.contains("No such tenant: nobody"), "{missing}");

    daemon.insula(&["network", "create", "blue"]).exits(0);
    let blue = ["--network", "blue", "busybox", "sleep", "1000"];
    start(&daemon, "acme", "one", &blue);
    start(&daemon, "acme", "near", &["--network", "none", "busybox", "sleep", "1000"]);
    start(&daemon, "other", "far", &blue);
    let copy = |tenant| daemon.insula(&["tenant", "inspect", "-f", "{{.Machine.Template}}", tenant]);
    for tenant in ["acme", "other"] {
        assert_eq!(copy(tenant).ok().trim(), "true", "{}", daemon.log());
    }
    // Kernels of their own, with random numbers, clocks and names of their own.
    assert_eq!(boot_id(&daemon, "one"), boot_id(&daemon, "near"));
    let seen = ["one", "far"].map(|name| {
        let script = "cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id; date +%s; echo kept >/f; cat /f";
        daemon.exec(name, script).ok().lines().map(str::to_owned).collect::<Vec<_>>()
    });
    assert!(seen[0][0] != seen[1][0] && seen[0][1] != seen[1][1] && seen[0][3] == "kept", "{seen:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(seen.iter().all(|seen| now.abs_diff(seen[2].parse().unwrap()) < 60), "{seen:?}");
    let ping = daemon.exec("one", "ping -c 1 -W 60 far");
    assert!(ping.ok().contains("1 packets received"), "{ping}");
    for (rate, limits) in [("10mbit", 1), ("-1", 0)] {
        daemon.insula(&["update", "--network-rate", rate, "one"]).exits(0);
        let seen = daemon.exec("one", "tc qdisc show dev eth0 | grep -c tbf");
        assert_eq!(seen.stdout.trim(), limits.to_string(), "{rate}: {seen}");
    }
    daemon.insula(&["rm", "-f", "one", "near", "far"]).exits(0);

    // One that cannot be used is no reason not to start.
    daemon.kill();
    let state = daemon.instance().root().join("templates").join(&id).join("state");
    let file = fs::File::options().write(true).open(state).unwrap();
    file.set_len(100).unwrap();
    daemon.restart_with(&["--vm-templates", "off"]);
    start(&daemon, "acme", "one", &blue);
    let copy = daemon.insula(&["tenant", "inspect", "-f", "{{.Machine.Template}}", "acme"]);
    assert_eq!(copy.ok().trim(), "false");
    assert!(daemon.log().contains("its state is not what was saved"), "{}", daemon.log());
    daemon.insula(&["rm", "-f", "one"]).exits(0);
    daemon.insula(&["tenant", "rm", "acme", "other"]).exits(0);
    daemon.insula(&["network", "rm", "blue"]).exits(0);
}

#[test]
fn a_tenants_machine_is_made_although_who_makes_it_is_killed() {
    let Some(mut daemon) = daemon() else { return };
    if !daemon.can_fail() {
        return;
    }
    let file = daemon.failpoint_file();
    let _disarm = OnDrop(move || drop(fs::remove_file(&file)));
    daemon.insula(&["tenant", "create", "acme", "-m", "64m"]).exits(0);
    let create = ["create", "--name", "box", "--isolation", "tenant:acme", "--network", "none"];
    daemon.insula(&[&create[..], &["busybox", "sleep", "1000"]].concat()).exits(0);
    for point in ["tenant.spawned", "owner.started", "owner.stands", "tenant.ordered"] {
        fs::write(daemon.failpoint_file(), point).unwrap();
        let outcome = daemon.insula(&["start", "box"]);
        assert!(!daemon.failpoint_file().exists(), "{point} was not passed: {outcome}");
        if point.starts_with("tenant.") {
            daemon.await_kill();
            daemon.restart();
        } else {
            assert!(
                outcome.code == 1 && outcome.stderr.contains("ended before it stood"),
                "{point}: {outcome}"
            );
        }
        assert_eq!(daemon.inspect("box", "/State/Status"), "created", "{point}");
    }
    daemon.insula(&["start", "box"]).exits(0);
    daemon.exec("box", "true").exits(0);
    daemon.insula(&["rm", "-f", "box"]).exits(0);
    daemon.insula(&["tenant", "rm", "acme"]).exits(0);
}
