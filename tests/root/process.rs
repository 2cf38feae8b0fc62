//! What the process finds: identity, environment, limits.

use insula_tests::{daemon, holds, text};

const ALONE: &[&str] = &["--network", "none"];

fn with<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [ALONE, flags].concat()
}

#[test]
fn users_and_groups() {
    let daemon = daemon!();
    assert_eq!(daemon.sh(ALONE, "id -u; id -g").ok(), "0\n0");
    // Supplementary groups of the image's /etc/group come along.
    assert_eq!(
        daemon.sh(&with(&["-u", "alice"]), "id -u; id -g; id -G; echo $HOME").ok(),
        "1000\n1000\n1000 50\n/home/alice"
    );
    assert_eq!(daemon.sh(&with(&["-u", "1000:44"]), "id -u; id -g").ok(), "1000\n44");
    assert_eq!(daemon.sh(&with(&["-u", "4321"]), "id -u; id -g").ok(), "4321\n0");
    assert_eq!(
        daemon.sh(&with(&["-u", "alice", "--group-add", "video", "--group-add", "777"]), "id -G").ok(),
        "1000 44 50 777"
    );
    daemon.sh(&with(&["-u", "alice:nosuchgroup"]), "true").fails(125, &["nosuchgroup"]);
    // No group is asked for: those of the user are kept.
    assert_eq!(daemon.sh(&with(&["-u", "alice:"]), "id -g; id -G").ok(), "1000\n1000 50");
    // Ids of a directory's users may be larger than a container's namespace.
    let has =
        |id: &str| format!("{id} is not among the ids of the container's user namespace: it has 0 to 65535");
    daemon.sh(&with(&["-u", "99999"]), "id").fails(125, &[&has("user 99999")]);
    daemon.sh(&with(&["-u", "1:88888"]), "id").fails(125, &[&has("group 88888")]);
    daemon.sh(&with(&["--group-add", "88888"]), "id").fails(125, &[&has("group 88888")]);
    let large = with(&["-u", "99999:88888", "--userns", "host"]);
    assert_eq!(daemon.sh(&large, "id -u; id -g").ok(), "99999\n88888");
}

#[test]
fn no_signal_is_ignored_or_blocked() {
    let daemon = daemon!();
    let found = daemon.sh(ALONE, "exec grep -E 'Sig(Ign|Blk)' /proc/self/status");
    assert_eq!(found.ok(), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000");
}

#[test]
fn environment() {
    let daemon = daemon!();
    let file = daemon.folder().join("env");
    std::fs::write(&file, "# a comment\nFROM_FILE=one two\nBOTH=file\n").unwrap();
    let flags = with(&[
        "-e",
        "A=b=c",
        "-e",
        "BOTH=flag",
        "-e",
        "EMPTY=",
        "--env-file",
        text(&file),
        "--hostname",
        "box",
    ]);
    let outcome = daemon.sh(&flags, "env");
    for line in [
        "A=b=c",
        "BOTH=flag",
        "FROM_FILE=one two",
        "EMPTY=",
        "HOSTNAME=box",
        "HOME=/root",
        "PATH=/usr/local/bin:/usr/bin:/bin",
    ] {
        assert!(outcome.ok().lines().any(|have| have == line), "{line}: {outcome}");
    }
    let mut command = daemon.command(&[
        "run",
        "--rm",
        "--network",
        "none",
        "-e",
        "PASSED",
        "-e",
        "ABSENT",
        "busybox",
        "env",
    ]);
    let outcome = insula_tests::Outcome::of(command.env("PASSED", "on").env_remove("ABSENT"), b"");
    assert!(outcome.ok().contains("PASSED=on") && !outcome.stdout.contains("ABSENT"), "{outcome}");
}

#[test]
fn working_folder_and_host_name() {
    let daemon = daemon!();
    let outcome =
        daemon.sh(&with(&["-w", "/made/on/demand", "-h", "box.example"]), "pwd; hostname; cat /etc/hostname");
    assert_eq!(outcome.ok(), "/made/on/demand\nbox.example\nbox.example");
    let id = daemon.sleeper(ALONE);
    assert_eq!(daemon.exec(&id, "hostname").ok(), &id[..12]);
}

#[test]
fn added_hosts() {
    let daemon = daemon!();
    let outcome = daemon
        .sh(&["--add-host", "db.example:192.0.2.7", "--add-host", "gate:host-gateway"], "cat /etc/hosts");
    assert!(
        outcome.ok().lines().any(|line| line.split_whitespace().eq(["192.0.2.7", "db.example"])),
        "{outcome}"
    );
    assert!(
        outcome.ok().lines().any(|line| line.ends_with("gate") && !line.contains("host-gateway")),
        "{outcome}"
    );
    // Without a way to the host there is a name for it all the same.
    let alone = ["--network", "none", "--add-host", "gate:host-gateway"];
    daemon.sh(&alone, "cat /etc/hosts").shows(&["\tgate\n"]);
    // With Docker it is the bridge's address there, too, which nothing leads to.
    daemon.insula(&["network", "create", "--internal", "inner"]).ok();
    let inner = daemon.sh(&["--network", "inner", "--add-host", "gate:host-gateway"], "cat /etc/hosts");
    let bridge = daemon.insula(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge"]);
    assert!(inner.ok().contains(&format!("{}\tgate", bridge.ok())), "{inner}");
    let named = ["--hostname", "web.example.org"];
    daemon.sh(&named, "cat /etc/hosts").shows(&["\tweb.example.org web\n"]);
    daemon.sh(&["--add-host", "nocolon"], "true").fails(125, &["nocolon"]);
}

#[test]
fn entrypoint() {
    let daemon = daemon!();
    let of = |flags: &[&str], command: &[&str]| {
        daemon.insula(&[&["run", "--rm", "--network", "none"], flags, &["busybox"], command].concat())
    };
    assert_eq!(of(&["--entrypoint", "echo"], &["a", "b"]).ok(), "a b");
    assert_eq!(of(&["--entrypoint", ""], &["echo", "box"]).ok(), "box");
}

#[test]
fn init_reaps_and_forwards_signals() {
    let daemon = daemon!();
    // An orphan becomes a child of PID 1, which is not the command with --init.
    let script = "(sleep 0.1 &); trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let id = daemon.detached(&with(&["--init"]), script);
    holds("the trap is set", || daemon.insula(&["logs", &id]).stdout.contains("ready"));
    holds("the orphan is reaped", || {
        let list = daemon.exec(&id, "ps -o pid,stat,comm").stdout;
        list.contains("sh") && !list.lines().any(|line| line.contains(" Z "))
    });
    assert_ne!(daemon.exec(&id, "cat /proc/1/comm").ok(), "sh");
    daemon.insula(&["stop", &id]).ok();
    assert_eq!(daemon.inspect(&id, "/State/ExitCode"), 9);
}

#[test]
fn limits_of_resources() {
    let daemon = daemon!();
    assert_eq!(daemon.sh(&with(&["--ulimit", "nofile=123:456"]), "ulimit -n; ulimit -Hn").ok(), "123\n456");
    // A hard limit above the host's own is clamped where the host forbids raising it, not fatal.
    daemon.sh(&with(&["--ulimit", "nofile=99999999:99999999"]), "ulimit -n").exits(0);
    // Fewer files than it takes to build a container, and none for who comes later.
    let tight = with(&["--ulimit", "nofile=3", "--ulimit", "fsize=0", "-v", "/scratch", "--name", "tight"]);
    assert_eq!(daemon.sh(&tight, "ulimit -n").ok(), "3");
    daemon.sh(&with(&["--ulimit", "nosuch=1"]), "true").fails(125, &["nosuch"]);
}

#[test]
fn oom_score_is_set() {
    let daemon = daemon!();
    assert_eq!(daemon.sh(&with(&["--oom-score-adj", "321"]), "cat /proc/self/oom_score_adj").ok(), "321");
}

#[test]
fn kernel_parameters() {
    let daemon = daemon!();
    let flags = with(&["--sysctl", "net.ipv4.ip_forward=1", "--sysctl", "kernel.msgmax=9999"]);
    assert_eq!(
        daemon.sh(&flags, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax").ok(),
        "1\n9999"
    );
    daemon.sh(&with(&["--sysctl", "vm.swappiness=1"]), "true").fails(125, &["vm.swappiness"]);
    // Nobody else's ports are in a network of its own. Only the listener speaks: busybox's nc ends with
    // what it hears, and would drop what it has not yet said.
    let listen = "nc -l -p 80 -e echo hello &
        until grep -q ':0050 ' /proc/net/tcp /proc/net/tcp6; do kill -0 $! || exit 9; done
        nc 127.0.0.1 80 </dev/null; wait";
    for namespace in ["private", "host"] {
        assert_eq!(
            daemon.sh(&with(&["--userns", namespace, "-u", "1000"]), listen).ok(),
            "hello",
            "{namespace}"
        );
    }
    let flags = with(&["--sysctl", "net.ipv4.ip_unprivileged_port_start=81", "-u", "1000"]);
    daemon.sh(&flags, listen).fails(9, &["ermission denied"]);
}

#[test]
fn stop_signal_and_timeout() {
    let daemon = daemon!();
    let script = "trap 'echo usr1; exit 7' USR1; trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let id = daemon.detached(&with(&["--stop-signal", "USR1"]), script);
    holds("the traps are set", || daemon.insula(&["logs", &id]).stdout.contains("ready"));
    daemon.insula(&["stop", &id]).ok();
    assert_eq!(daemon.inspect(&id, "/State/ExitCode"), 7);
    let deaf = daemon
        .detached(&with(&["--stop-timeout", "1"]), "trap '' TERM; echo ready; while :; do sleep 0.05; done");
    holds("the trap is set", || daemon.insula(&["logs", &deaf]).stdout.contains("ready"));
    daemon.insula(&["stop", &deaf]).ok();
    assert_eq!(daemon.inspect(&deaf, "/State/ExitCode"), 137);
}

#[test]
fn first_process_has_id_1_and_sees_only_its_own() {
    let daemon = daemon!();
    assert_eq!(daemon.sh(ALONE, "echo $$").ok(), "1");
    let list = daemon.insula(&["run", "--rm", "--network", "none", "busybox", "ps", "-o", "pid"]);
    assert_eq!(list.ok().lines().count(), 2, "{list}");
    let of_host =
        daemon.insula(&["run", "--rm", "--network", "none", "--pid", "host", "busybox", "ps", "-o", "pid"]);
    assert!(of_host.ok().lines().count() > 5, "{of_host}");
}

#[test]
fn exec_has_a_context_of_its_own() {
    let daemon = daemon!();
    let id = daemon.sleeper(&with(&["-e", "A=one", "-w", "/tmp"]));
    assert_eq!(daemon.exec(&id, "pwd; echo $A; id -u").ok(), "/tmp\none\n0");
    let other = daemon.insula(&[
        "exec",
        "-e",
        "A=two",
        "-w",
        "/etc",
        "-u",
        "alice",
        &id,
        "sh",
        "-c",
        "pwd; echo $A; id -u",
    ]);
    assert_eq!(other.ok(), "/etc\ntwo\n1000");
    daemon.insula(&["exec", &id, "sh", "-c", "exit 9"]).exits(9);
    daemon.insula(&["exec", &id, "/no/such"]).fails(127, &["/no/such"]);
    // Only the container's own working folder is made.
    daemon.insula(&["exec", "-w", "/no/such", &id, "pwd"]).fails(126, &["chdir /no/such"]);
    daemon.insula(&["exec", &id, "ls", "-d", "/no"]).exits(1);
    daemon.insula(&["exec", &id, "/etc/plain"]).fails(126, &["/etc/plain"]);
    assert_eq!(daemon.insula_with(&["exec", "-i", &id, "cat"], b"through").stdout, "through");
    daemon.insula(&["exec", "-d", &id, "touch", "/tmp/later"]).ok();
    holds("a detached exec runs", || daemon.exec(&id, "test -e /tmp/later").code == 0);
    daemon.insula(&["stop", "-t", "1", &id]).ok();
    daemon.insula(&["exec", &id, "true"]).fails(1, &["not running"]);
}
