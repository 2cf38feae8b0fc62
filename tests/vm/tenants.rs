//! Containers that share the machine of their tenant.

use insula_tests::{Daemon, get, guest};

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
    daemon.insula(&["tenant", "inspect", "-f", "{{.Machine.Pid}}", tenant]).ok().trim().to_owned()
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
        (machine(&daemon, "acme") == "<no value>").then_some(())
    });
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
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let state = guest::eventually("a container without a policy ends", || {
        let format = "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}";
        let state = daemon.insula(&["inspect", "-f", format, "two"]);
        Some(state.ok().to_owned()).filter(|state| state.starts_with("exited"))
    });
    assert!(state.starts_with("exited 137 ") && state.contains("machine ended"), "{state}");
    guest::eventually("the other one is started again, in another machine", || {
        let state = daemon.insula(&["inspect", "-f", "{{.State.Running}} {{.RestartCount}}", "one"]);
        (state.ok().trim() == "true 1").then_some(())
    });
    assert_ne!(machine(&daemon, "acme"), pid.to_string());
    assert_eq!(daemon.exec("far", "echo on").ok().trim(), "on");
    daemon.insula(&["rm", "-f", "one", "two", "far"]).exits(0);
    daemon.insula(&["tenant", "rm", "acme", "other"]).exits(0);
    daemon.insula(&["network", "rm", "blue", "red"]).exits(0);
}
