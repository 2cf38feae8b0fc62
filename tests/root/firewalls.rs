//! Beside other firewalls, each in a network of the test's own. What they say holds; what is in the way of
//! published ports is told together with the way to allow it; their rules stay as they are; what they
//! do when they load their rules anew is survived; and nothing of ours is left.

use insula_tests::{Daemon, Lan, Outcome, holds, images, is_root, skip};

/// The port that the tests publish.
const PORT: u16 = 8080;

/// A host, or the end of the test where one of the programs is missing.
fn lan(programs: &[&str]) -> Option<Lan> {
    if !is_root() {
        skip("root", "a firewall of the test's own needs namespaces");
        return None;
    }
    let lan = Lan::new();
    let missing =
        programs.iter().find(|program| lan.run(&["sh", "-c", &format!("command -v {program}")]).code != 0);
    if let Some(missing) = missing {
        skip("root", &format!("{missing} is missing"));
        return None;
    }
    Some(lan)
}

/// Starts a web server on a published port; what is said about it.
fn publish(daemon: &Daemon) -> Outcome {
    let script = "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www";
    let publish = format!("{PORT}:80");
    let run = ["run", "-d", "--init", "--name", "web", "-p", &publish, "busybox", "sh", "-c", script];
    daemon.insula(&run).exits(0).clone()
}

/// The commands that a warning with all of `words` advises.
#[track_caller]
fn advice(said: &str, words: &[&str]) -> String {
    let meant = |line: &&str| words.iter().all(|word| line.contains(word));
    let line = said.lines().find(meant).unwrap_or_else(|| panic!("{words:?} are not in one line of {said}"));
    line.split_once("allow them with: ").unwrap().1.replace("; ", "\n")
}

fn reached(lan: &Lan, why: &str) {
    holds(&format!("it is reached: {why}"), || lan.fetched(PORT) == "hello");
}

fn closed(lan: &Lan, why: &str) {
    holds(&format!("it is not reached: {why}"), || lan.fetched(PORT).is_empty());
}

/// What the container gets from the host beside ours.
fn got(daemon: &Daemon) -> String {
    let script = format!(r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 1 {} 80 | tail -n 1", Lan::OUTSIDE);
    daemon.exec("web", &script).stdout.trim().to_owned()
}

fn reaches_out(daemon: &Daemon) {
    holds("the container reaches out", || got(daemon) == "outside");
}

fn warnings(daemon: &Daemon) -> String {
    let info = daemon.api("GET", "/info", "").json();
    info["Warnings"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|text| format!("{}\n", text.as_str().unwrap()))
        .collect()
}

/// Ends the daemon with its container: what is left are the rules `theirs`.
fn ends(lan: &Lan, daemon: Daemon, theirs: &str) {
    drop(daemon);
    assert_eq!(lan.rules(&[]), theirs);
    lan.run(&["ip", "-o", "link"]).shows(&["eth0"]);
    assert!(!lan.run(&["ip", "-o", "link"]).stdout.contains("in-"), "a bridge is left");
}

#[test]
fn beside_ufw() {
    let Some(lan) = lan(&["ufw"]) else { return };
    lan.lines("ufw --force enable");
    let before = lan.rules(&[]);
    let daemon = lan.daemon();
    let bridge = daemon.instance().bridge();
    let said = publish(&daemon).stderr;
    let both = || format!("{}{}", lan.rules(&["ip", "filter"]), lan.rules(&["ip6", "filter"]));
    assert_eq!(both(), before);
    closed(&lan, "incoming and routed packets are denied by default");
    assert_eq!(got(&daemon), "");

    let (route, open) = (advice(&said, &["FORWARD", &bridge]), advice(&said, &["INPUT", "8080/tcp"]));
    assert_eq!(open, "ufw allow 8080/tcp");
    lan.lines(&route);
    reaches_out(&daemon);
    closed(&lan, "the port is not allowed yet");
    lan.lines(&open);
    reached(&lan, "what the warnings advised is done");
    holds("nothing is in the way", || warnings(&daemon).is_empty());
    lan.lines("ufw delete allow 8080/tcp");
    closed(&lan, "the port is allowed no longer");
    lan.lines(&format!("ufw allow from {} to any port 8080 proto tcp", Lan::OUTSIDE));
    reached(&lan, "it is allowed for this host");
    lan.lines("ufw reload");
    reached(&lan, "ufw has loaded its rules anew");
    // A rule that nftables has no words for costs nobody the others.
    lan.lines("ufw limit 22/tcp");
    holds("it is said", || warnings(&daemon).contains("cannot be copied"));
    lan.lines(&format!("ufw delete allow from {} to any port 8080 proto tcp", Lan::OUTSIDE));
    closed(&lan, "the other rules hold");
    lan.lines("ufw disable");
    reached(&lan, "ufw is switched off");
    let theirs = format!("{}{}", lan.rules(&["ip", "filter"]), lan.rules(&["ip6", "filter"]));
    ends(&lan, daemon, &theirs);
}

/// A bus that lets everybody do everything.
const BUS: &str = "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\"
 \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_type=\"*\"/><allow receive_type=\"*\"/>
</policy></busconfig>
";

#[test]
fn beside_firewalld() {
    let Some(mut lan) = lan(&[]) else { return };
    if lan.run(&["sh", "-c", "command -v firewalld && command -v dbus-daemon"]).code != 0 {
        // `make test` does not install it: its package switches it on for the whole machine.
        return skip("firewalld", "it is not installed");
    }
    lan.run(&["mkdir", "/run/dbus"]).ok();
    let bus = lan.path("bus.conf");
    std::fs::write(&bus, BUS).unwrap();
    let bus = format!("--config-file={}", bus.display());
    lan.serve(&["dbus-daemon", &bus, "--nofork"], &["test", "-S", "/run/dbus/system_bus_socket"]);
    lan.serve(&["firewalld", "--nofork", "--nopid"], &["firewall-cmd", "--state"]);
    let before = lan.rules(&[]);
    let daemon = lan.daemon();
    let bridge = daemon.instance().bridge();
    let said = publish(&daemon).stderr;
    assert_eq!(lan.rules(&["inet", "firewalld"]), before);
    closed(&lan, "the zone does not allow the port");
    assert_eq!(got(&daemon), "");

    lan.lines(&advice(&said, &["filter_INPUT", "8080/tcp"]));
    reached(&lan, "the zone allows the port");
    lan.lines(&advice(&said, &["filter_FORWARD", &bridge]));
    reaches_out(&daemon);
    reached(&lan, "firewalld has loaded its rules anew");
    holds("nothing is in the way", || warnings(&daemon).is_empty());
    lan.lines("firewall-cmd --complete-reload");
    reached(&lan, "firewalld has loaded everything anew");
    lan.lines("firewall-cmd --permanent --remove-port=8080/tcp\nfirewall-cmd --reload");
    closed(&lan, "the zone allows the port no longer");
    let theirs = lan.rules(&["inet", "firewalld"]);
    ends(&lan, daemon, &theirs);
}

/// What dockerd and many an administrator do to the filter, by either kind of iptables.
#[test]
fn beside_iptables() {
    for program in ["iptables-nft", "iptables-legacy"] {
        let Some(lan) = lan(&[program]) else { return };
        let iptables = |lines: &str| {
            for line in lines.lines() {
                // The advice names the program that the distribution has chosen.
                lan.lines(&line.replace("iptables -", &format!("{program} -")));
            }
        };
        iptables("iptables -P INPUT DROP\niptables -P FORWARD DROP\niptables -A INPUT -i lo -j ACCEPT");
        iptables(
            "iptables -A INPUT -p tcp --dport 22 -j ACCEPT\niptables -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        );
        let saved = || lan.run(&[program, "-S"]).ok().to_owned();
        let before = saved();
        let daemon = lan.daemon();
        let bridge = daemon.instance().bridge();
        let said = publish(&daemon).stderr;
        assert_eq!(saved(), before);
        closed(&lan, "forwarded packets are dropped by default");
        iptables(&advice(&said, &["FORWARD", &bridge]));
        reaches_out(&daemon);
        if program == "iptables-nft" {
            closed(&lan, "incoming packets are dropped by default");
            iptables(&advice(&said, &["INPUT", "8080/tcp"]));
        } else {
            let said = warnings(&daemon);
            assert!(
                said.contains("the input rules of iptables-legacy do not guard published ports"),
                "{said}"
            );
        }
        reached(&lan, "it is allowed");
        // Nothing of ours is among their rules.
        iptables(
            "iptables -P INPUT ACCEPT\niptables -P FORWARD ACCEPT\niptables -F\niptables -t nat -F\niptables -X",
        );
        reached(&lan, "all rules of iptables are gone");
        holds("nothing is in the way", || warnings(&daemon).is_empty());
        let theirs =
            lan.run(&["sh", "-c", "nft -s list ruleset | sed '/^table [a-z]* in/,/^}/d'"]).ok().to_owned();
        drop(daemon);
        assert_eq!(lan.rules(&[]).trim(), theirs);
    }
}

/// A reload of `/etc/nftables.conf` begins with it.
#[test]
fn a_flushed_ruleset_is_repaired() {
    let Some(lan) = lan(&[]) else { return };
    let mut daemon = lan.daemon();
    let table = daemon.instance().table();
    assert_eq!(publish(&daemon).stderr, "");
    reached(&lan, "nobody is in the way");
    let tables = |wanted: &str| holds(wanted, || lan.run(&["nft", "list", "tables"]).stdout.contains(wanted));
    let whole = || {
        for family in ["inet", "bridge"] {
            tables(&format!("table {family} {table}"));
        }
        reached(&lan, "the rules are there again");
    };
    std::fs::write(lan.path("saved"), format!("flush ruleset\n{}", lan.rules(&[]))).unwrap();
    lan.lines("nft flush ruleset");
    whole();
    lan.lines(&format!("nft delete table bridge {table}"));
    whole();
    lan.lines(&format!("nft flush table inet {table}"));
    whole();
    // What was saved while another container had the port.
    daemon.insula(&["rm", "-f", "web"]).ok();
    daemon.sleeper(&[]);
    publish(&daemon);
    lan.lines(&format!("nft -f {}", lan.path("saved").display()));
    reached(&lan, "the port leads to the container that has it now");
    // While there is no daemon nobody repairs; the next one does.
    daemon.kill();
    lan.lines("nft flush ruleset");
    assert_eq!(lan.fetched(PORT), "");
    daemon.restart();
    whole();
    ends(&lan, daemon, "");
}

#[test]
fn beside_dockerd() {
    let Some(mut lan) = lan(&["dockerd", "containerd"]) else { return };
    let Some(client) = insula_tests::docker() else { return skip("root", "docker.io is missing") };
    let at = |lan: &Lan, name: &str| lan.path(name).display().to_string();
    let socket = format!("unix://{}", at(&lan, "docker.sock"));
    let client = [client.to_str().unwrap(), "-H", &socket];
    let docker = |lan: &Lan, words: &[&str]| lan.run(&[&client[..], words].concat()).exits(0).stdout.clone();
    let key = format!("{{\"deprecated-key-path\": {:?}}}", at(&lan, "key.json"));
    std::fs::write(lan.path("daemon.json"), key).unwrap();
    std::fs::write(lan.path("busybox.tar"), images::busybox().docker_archive()).unwrap();
    let (config, pid) = (at(&lan, "daemon.json"), at(&lan, "pid"));
    let (data, exec) = (at(&lan, "data"), at(&lan, "exec"));
    let dockerd =
        ["dockerd", "-H", &socket, "--config-file", &config, "--pidfile", &pid, "--data-root", &data];
    let more = ["--exec-root", &exec, "--storage-driver", "vfs"];
    lan.serve(&[&dockerd[..], &more].concat(), &[&client[..], &["version"]].concat());
    let before = lan.rules(&[]);

    let daemon = lan.daemon();
    let bridge = daemon.instance().bridge();
    let said = publish(&daemon).stderr;
    let theirs = |lan: &Lan| ["filter", "nat"].map(|table| lan.rules(&["ip", table]));
    for table in theirs(&lan) {
        assert!(before.contains(&table), "{table} is not in {before}");
    }
    closed(&lan, "dockerd drops forwarded packets by default");
    let advice = advice(&said, &["FORWARD", &bridge]);
    assert!(advice.contains("DOCKER-USER"), "{advice}");
    lan.lines(&advice);
    reached(&lan, "what the warning advised is done");
    reaches_out(&daemon);

    // A container of dockerd's, on a subnet of its own, is reached as before.
    docker(&lan, &["load", "-i", &at(&lan, "busybox.tar")]);
    let group = format!("/insula-test-{}", insula_tests::tag());
    let script = "mkdir /www; echo docked > /www/index.html; exec httpd -f -p 80 -h /www";
    let run = ["run", "-d", "--init=false", "--name", "docked", "--cgroup-parent", &group, "-p", "8081:80"];
    docker(&lan, &[&run[..], &["busybox", "sh", "-c", script]].concat());
    holds("dockerd's port is reached", || lan.fetched(8081) == "docked");
    reached(&lan, "dockerd has published a port");
    let taken = ["run", "--rm", "-p", "8081:80", "busybox", "true"];
    daemon.insula(&taken).fails(125, &["8081"]);
    docker(&lan, &["rm", "-f", "docked"]);
    for root in insula_tests::cgroups_called(&group[1..]) {
        insula_tests::remove_cgroups(&root);
    }
    let theirs =
        lan.run(&["sh", "-c", "nft -s list ruleset | sed '/^table [a-z]* insula/,/^}/d'"]).ok().to_owned();
    drop(daemon);
    assert_eq!(lan.rules(&[]).trim(), theirs);
}
