//! Bridge, published ports, and the other modes.

use insula_tests::{
    Daemon, Lan, Neighbour, daemon, echo_datagrams, echoes, eventually, get, holds, host_address,
    own_loopback,
};

/// A web server on port 80 that answers every request with `page`.
fn server(daemon: &Daemon, flags: &[&str], page: &str) -> String {
    let script = format!("mkdir /www; echo {page} > /www/index.html; exec httpd -f -p 80 -h /www");
    daemon.detached(&[&["--init"], flags].concat(), &script)
}

/// The host's port for the container's port 80.
fn published(daemon: &Daemon, container: &str) -> String {
    let port = daemon.inspect(container, "/NetworkSettings/Ports/80~1tcp/0/HostPort");
    port.as_str().unwrap().to_owned()
}

/// A script that prints a page's body. The static busybox's wget dies of the C library's resolver.
fn fetch(host: &str, port: &str) -> String {
    format!(r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 {host} {port} | tail -n 1")
}

fn serves(address: &str, page: &str) {
    eventually(&format!("{address} serves {page}"), || {
        get(address).filter(|response| response.text().trim() == page)
    });
}

#[test]
fn a_container_reaches_the_host_and_has_names() {
    let daemon = daemon!();
    let outcome = daemon
        .sh(&["--hostname", "box"], "ip -4 -o addr show eth0; ip route; cat /etc/hosts /etc/resolv.conf");
    outcome.shows(&["inet ", "default via ", "box", "localhost"]);
    let gateway = daemon.sh(&[], "ip route | awk '/default/ {print $3}'");
    daemon.sh(&[], &format!("ping -c 1 -W 5 {}", gateway.ok())).ok();
}

#[test]
fn packets_leave_the_host_translated() {
    let daemon = daemon!();
    let neighbour = Neighbour::new();
    // The neighbour has no route to the container's network: only translated packets come back.
    daemon.sh(&[], &format!("ping -c 1 -W 5 {}", neighbour.address)).ok();
}

#[test]
fn a_published_port_is_reached_from_everywhere() {
    let daemon = daemon!();
    let id = server(&daemon, &["-p", "80"], "hello");
    let port = published(&daemon, &id);
    serves(&format!("127.0.0.1:{port}"), "hello");
    serves(&format!("{}:{port}", host_address()), "hello");
    let neighbour = Neighbour::new();
    assert_eq!(neighbour.fetch(&neighbour.host, &port), "hello");
    // And from another container, by the host's address.
    daemon.sh(&[], &fetch(&host_address(), &port)).shows(&["hello"]);
    daemon.insula(&["port", &id]).shows(&["80/tcp -> 0.0.0.0:"]);
    daemon.insula(&["rm", "-f", &id]).ok();
    assert!(get(&format!("127.0.0.1:{port}")).is_none());
}

#[test]
fn datagrams_reach_a_published_port() {
    let daemon = daemon!();
    let id = daemon.sleeper(&["-p", "5353/udp"]);
    echo_datagrams(daemon.pid_of(&id), 5353);
    let port = daemon.inspect(&id, "/NetworkSettings/Ports/5353~1udp/0/HostPort");
    let port = port.as_str().unwrap();
    holds("by loopback", || echoes(&format!("127.0.0.1:{port}")));
    holds("by the host's address", || echoes(&format!("{}:{port}", host_address())));
    daemon.insula(&["port", &id]).shows(&[&format!("5353/udp -> 0.0.0.0:{port}")]);
}

#[test]
fn an_address_limits_who_reaches_a_port() {
    let daemon = daemon!();
    let id = server(&daemon, &["-p", "127.0.0.1::80"], "private");
    let port = published(&daemon, &id);
    serves(&format!("127.0.0.1:{port}"), "private");
    assert!(get(&format!("{}:{port}", host_address())).is_none());
    let neighbour = Neighbour::new();
    assert_eq!(neighbour.fetch(&neighbour.host, &port), "");
}

#[test]
fn a_port_is_published_by_both_families_where_the_container_has_both() {
    let daemon = daemon!();
    daemon.insula(&["network", "create", "--ipv6", "dual"]).ok();
    let id = server(&daemon, &["--network", "dual", "-p", "80"], "hello");
    let port = published(&daemon, &id);
    let gateway = daemon.inspect(&id, "/NetworkSettings/Networks/dual/IPv6Gateway");
    serves(&format!("127.0.0.1:{port}"), "hello");
    serves(&format!("[{}]:{port}", gateway.as_str().unwrap()), "hello");
    let both = [format!("80/tcp -> 0.0.0.0:{port}"), format!("80/tcp -> [::]:{port}")];
    daemon.insula(&["port", &id]).shows(&[&both[0], &both[1]]);
    daemon.insula(&["ps"]).shows(&[&format!("0.0.0.0:{port}->80/tcp"), &format!("[::]:{port}->80/tcp")]);
    daemon.sh(&["-p", "[::1]::80"], "true").fails(125, &["cannot publish on [::1]", "--ipv6"]);
    daemon.sh(&["-p", "[fe80::1]:8080:80"], "true").fails(125, &["cannot publish on fe80::1"]);
}

#[test]
fn a_port_is_published_once() {
    let daemon = daemon!();
    // Where the kernel gives nobody a port while this one has it free.
    let taken = format!("{}:8079", own_loopback());
    let listener = std::net::TcpListener::bind(&taken).unwrap();
    let flag = format!("{taken}:80");
    daemon.sh(&["-p", &flag], "true").fails(125, &[&taken]);
    drop(listener);
    let first = server(&daemon, &["-p", &flag], "one");
    serves(&taken, "one");
    daemon.sh(&["-p", &flag], "true").fails(125, &[&taken, "already allocated"]);
    // The failed ones hold nothing; the port is free again with its container's end.
    daemon.insula(&["stop", "-t", "1", &first]).ok();
    let second = server(&daemon, &["-p", &flag], "two");
    serves(&taken, "two");
    daemon.insula(&["rm", "-f", &second]).ok();
    for bad in ["x:80", "80:x", "70000:80", "1:2:3:4:5"] {
        daemon.sh(&["-p", bad], "true").exits(125);
    }
}

#[test]
fn containers_reach_each_other_by_address() {
    let daemon = daemon!();
    let id = server(&daemon, &[], "neighbours");
    let address = daemon.inspect(&id, "/NetworkSettings/IPAddress");
    let address = address.as_str().unwrap();
    holds("the server answers", || daemon.sh(&[], &fetch(address, "80")).stdout.trim() == "neighbours");
    let second = daemon.sleeper(&[]);
    assert_ne!(daemon.inspect(&second, "/NetworkSettings/IPAddress"), address);
}

#[test]
fn no_network() {
    let daemon = daemon!();
    let outcome = daemon.sh(
        &["--network", "none"],
        "ip -o link; ip -o addr show lo; ping -c 1 127.0.0.1 >/dev/null && echo loopback",
    );
    assert!(!outcome.ok().contains("eth0") && outcome.ok().ends_with("loopback"), "{outcome}");
}

#[test]
fn the_hosts_network() {
    let daemon = daemon!();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let outcome =
        daemon.sh(&["--network", "host", "--add-host", "gate:host-gateway"], "cat /proc/net/tcp /etc/hosts");
    outcome.shows(&[&format!("0100007F:{port:04X}"), "127.0.0.1\tgate\n"]);
    // What the host knows by name its containers know as well.
    outcome.shows(&[std::fs::read_to_string("/etc/hosts").unwrap().trim()]);
}

#[test]
fn the_network_of_another_container() {
    let daemon = daemon!();
    let id = server(&daemon, &["--name", "web"], "shared");
    holds("the server answers on loopback", || {
        daemon.sh(&["--network", "container:web"], &fetch("127.0.0.1", "80")).stdout.trim() == "shared"
    });
    daemon.sh(&["--network", "container:nosuch"], "true").fails(125, &["nosuch"]);
    daemon.sh(&["--network", "container:web", "-p", "81"], "true").exits(125);
    daemon.insula(&["stop", "-t", "1", &id]).ok();
    daemon.sh(&["--network", "container:web"], "true").fails(125, &["non running"]);
    daemon.sh(&["--network", "nosuch"], "true").fails(125, &["nosuch"]);
}

#[test]
fn rules_of_others_stay_as_they_are() {
    let daemon = daemon!();
    let name = format!("insula-test-{}", insula_tests::tag());
    let nft = |arguments: &[&str]| {
        insula_tests::Outcome::of(std::process::Command::new("nft").args(arguments), b"")
            .exits(0)
            .stdout
            .clone()
    };
    nft(&["add", "table", "inet", &name]);
    let _end = insula_tests::OnDrop(|| {
        let _ = std::process::Command::new("nft").args(["delete", "table", "inet", &name]).output();
    });
    nft(&["add", "chain", "inet", &name, "box", "{ type filter hook input priority 0 ; }"]);
    let before = nft(&["list", "table", "inet", &name]);
    let id = server(&daemon, &["-p", "80"], "hello");
    serves(&format!("127.0.0.1:{}", published(&daemon, &id)), "hello");
    daemon.insula(&["rm", "-f", &id]).ok();
    assert_eq!(nft(&["list", "table", "inet", &name]), before);
}

#[test]
fn networks_of_users_come_and_go() {
    let mut daemon = daemon!();
    let id = daemon.insula(&["network", "create", "--subnet", "10.123.4.0/24", "blue"]).ok().to_owned();
    daemon.insula(&["network", "create", "--label", "tier=db", "red"]).ok();
    daemon.insula(&["network", "create", "blue"]).fails(1, &["network with name blue already exists"]);
    let list = |flags: &[&str]| daemon.insula(&[&["network", "ls"], flags].concat()).ok().to_owned();
    assert_eq!(list(&["-q", "--no-trunc", "-f", "name=^blue$"]), id);
    assert_eq!(list(&["-f", "label=tier=db", "--format", "{{.Name}}"]), "red");
    let web = server(&daemon, &["--name", "web", "--network", "blue", "--ip", "10.123.4.77"], "hello");
    holds("it serves", || {
        daemon.sh(&["--network", "blue"], &fetch("10.123.4.77", "80")).stdout.trim() == "hello"
    });
    // Another network does not reach it until the container is in both.
    let client = daemon.sleeper(&["--network", "red"]);
    let unheard = daemon.exec(&client, &fetch("10.123.4.77", "80").replace("-w 5", "-w 1"));
    assert!(!unheard.stdout.contains("hello"), "{unheard}");
    daemon.insula(&["network", "connect", "blue", &client]).ok();
    daemon.exec(&client, &fetch("10.123.4.77", "80")).shows(&["hello"]);
    assert_eq!(daemon.inspect(&client, "/NetworkSettings/Networks").as_object().unwrap().len(), 2);
    daemon.insula(&["network", "connect", "blue", &client]).fails(1, &["already exists in network blue"]);
    // A daemon that died knows all of it.
    daemon.kill();
    daemon.restart();
    daemon.exec(&client, &fetch("10.123.4.77", "80")).shows(&["hello"]);
    daemon.insula(&["network", "disconnect", "blue", &client]).ok();
    let left = daemon.exec(&client, "ip -o -4 addr");
    assert!(!left.ok().contains("10.123.4."), "{left}");
    daemon.insula(&["network", "rm", "blue"]).fails(1, &["network blue has active endpoints", "web"]);
    daemon.insula(&["rm", "-f", &web, &client]).ok();
    daemon.insula(&["network", "prune", "-f"]).shows(&["Deleted Networks:", "blue", "red"]);
    assert_eq!(daemon.insula(&["network", "ls", "-q", "-f", "type=custom"]).ok(), "");
}

#[test]
fn macvlans_have_addresses_of_their_own() {
    let daemon = daemon!();
    daemon
        .insula(&["network", "create", "-d", "macvlan", "-o", "parent=nosuch0", "lost"])
        .fails(1, &["invalid parent interface nosuch0", "no interface of that name"]);
    daemon.insula(&["network", "create", "-d", "ipvlan", "lost"]).fails(1, &["ipvlan", "not available"]);
    daemon.insula(&["network", "create", "-d", "macvlan", "--subnet", "10.123.5.0/24", "alone"]).ok();
    daemon.insula(&["network", "inspect", "alone"]).shows(&["\"Driver\": \"macvlan\"", "10.123.5.0/24"]);
    let web = server(&daemon, &["--network", "alone", "--ip", "10.123.5.77"], "hello");
    let client = daemon.sleeper(&[]);
    daemon.insula(&["network", "connect", "alone", &client]).ok();
    holds("it serves", || daemon.exec(&client, &fetch("10.123.5.77", "80")).stdout.trim() == "hello");
    // With the hardware address of its former self.
    daemon.insula(&["restart", "-t", "0", &web]).ok();
    let again = "until wget -qO- http://10.123.5.77/ 2>/dev/null; do sleep 0.1; done";
    daemon.exec(&client, again).shows(&["hello"]);
    daemon.insula(&["network", "disconnect", "alone", &client]).ok();
    assert!(!daemon.exec(&client, "ip -o -4 addr").ok().contains("10.123.5."));
    daemon.insula(&["rm", "-f", &web, &client]).ok();
    daemon.insula(&["network", "rm", "alone"]).ok();
}

#[test]
fn networks_that_cannot_be_are_refused_by_name() {
    if !insula_tests::is_root() {
        return insula_tests::skip("root", "a host of the test's own needs namespaces");
    }
    // Where nobody else has these subnets.
    let lan = Lan::new();
    let daemon = lan.daemon();
    daemon.insula(&["network", "create", "--subnet", "10.123.6.0/24", "blue"]).ok();
    let listed = || daemon.insula(&["network", "ls", "--format", "{{.ID}} {{.Name}}"]).ok().to_owned();
    let before = listed();
    for (words, why) in [
        ("--subnet 10.123.6.128/25 red", "10.123.6.128/25 with 10.123.6.0/24 of network blue"),
        (
            "--subnet 10.123.7.0/24 --gateway 10.123.8.1 red",
            "gateway 10.123.8.1 is not in subnet 10.123.7.0/24",
        ),
        (
            "--subnet 10.123.7.0/24 --ip-range 10.123.8.0/28 red",
            "10.123.8.0/28 is not in subnet 10.123.7.0/24",
        ),
        ("--subnet 10.123.7.1/24 red", "it should be 10.123.7.0/24"),
        ("--subnet 300.1.1.0/24 red", "invalid subnet 300.1.1.0/24"),
        ("--subnet fd00::/129 red", "invalid subnet fd00::/129"),
        ("--gateway 10.123.7.1 red", "--gateway 10.123.7.1 needs a --subnet"),
        ("-d macvlan -o parent=nosuch0 red", "invalid parent interface nosuch0"),
        ("-d overlay red", "plugin \"overlay\" not found"),
        ("-o com.docker.network.driver.mtu=x red", "invalid value \"x\" of the network option"),
        ("-o nosuch=1 red", "the bridge driver has no option nosuch"),
        ("blue", "network with name blue already exists"),
        ("host", "predefined host network"),
    ] {
        let words: Vec<&str> = ["network", "create"].into_iter().chain(words.split(' ')).collect();
        daemon.insula(&words).fails(1, &[why]);
    }
    assert_eq!(listed(), before);
}

#[test]
fn a_hundred_thousand_ports_are_refused_before_anything_is_made() {
    let daemon = daemon!();
    let words = "100000 published ports are more than the 4096 of one container";
    daemon.sh(&["-p", "1-50000:1-50000", "-p", "1-50000:1-50000/udp"], "true").fails(125, &[words]);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}

#[test]
fn a_container_sends_and_receives_at_its_rate() {
    let daemon = daemon!();
    daemon.sh(&["--network-rate", "10mb"], "true").fails(125, &["--network-rate", "10mbit"]);
    daemon
        .sh(&["--network-rate", "10mbit", "--network", "host"], "true")
        .fails(125, &["conflicting options"]);
    let id = daemon.sleeper(&["--network-rate", "10mbit"]);
    assert_eq!(daemon.inspect(&id, "/HostConfig/NetworkRate"), 10_000_000);
    let rates = || {
        let pid = daemon.inspect(&id, "/State/Pid").to_string();
        let inside = ["-t", &pid, "-n", "tc", "qdisc", "show", "dev", "eth0"];
        let inside = insula_tests::Outcome::of(std::process::Command::new("nsenter").args(inside), b"");
        let peer = daemon.exec(&id, "cat /sys/class/net/eth0/iflink").ok().to_owned();
        let all = insula_tests::Outcome::of(std::process::Command::new("ip").args(["-o", "link"]), b"");
        let found =
            all.stdout.lines().find(|line| line.starts_with(&format!("{peer}: "))).unwrap().to_owned();
        let name = found.split([' ', '@']).nth(1).unwrap().to_owned();
        let outside = ["qdisc", "show", "dev", &name];
        let outside = insula_tests::Outcome::of(std::process::Command::new("tc").args(outside), b"");
        [inside.stdout.clone(), outside.stdout.clone()]
    };
    let limited = |words: &str| rates().iter().all(|text| text.contains(words));
    assert!(limited("rate 10Mbit"), "{:?}", rates());
    daemon.insula(&["update", "--network-rate", "20mbit", &id]).ok();
    assert!(limited("rate 20Mbit"), "{:?}", rates());
    daemon.insula(&["restart", "-t", "0", &id]).ok();
    assert!(limited("rate 20Mbit"), "{:?}", rates());
    daemon.insula(&["update", "--network-rate", "-1", &id]).ok();
    assert!(!limited("tbf"), "{:?}", rates());
    assert!(daemon.inspect(&id, "/HostConfig").get("NetworkRate").is_none());
}

#[test]
fn names_lead_to_containers() {
    let mut daemon = daemon!();
    daemon.insula(&["network", "create", "blue"]).ok();
    let folder = daemon.folder();
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mount = format!("{}:/shared", folder.display());
    let first = daemon.sleeper(&["--network", "blue", "--name", "db", "--network-alias", "sql"]);
    daemon.sleeper(&["--network", "blue", "--network-alias", "sql"]);
    let address = daemon.inspect(&first, "/NetworkSettings/Networks/blue/IPAddress");
    let address = address.as_str().unwrap();
    let asker = daemon.detached(
        &["--network", "blue", "--link", "db:store", "-v", &mount],
        "until [ -e /shared/go ]; do sleep 0.1; done; nslookup -timeout=60 -retry=24 db && touch /shared/found; sleep 1000",
    );
    let ask = |name: &str| daemon.exec(&asker, &format!("nslookup {name} 127.0.0.11"));
    for name in ["db", "DB.blue", "store", &first[..12]] {
        ask(name).shows(&[&format!("Address: {address}")]);
    }
    assert_eq!(ask("sql").ok().matches("Name:").count(), 2);
    ask(address).shows(&["name = db.blue"]);
    daemon.exec(&asker, "cat /etc/resolv.conf").shows(&["nameserver 127.0.0.11", "ndots:0"]);
    daemon.insula(&["rename", "db", "oracle"]).ok();
    ask("oracle").shows(&[address]);
    daemon.insula(&["rename", "oracle", "db"]).ok();

    // What is asked while there is no daemon is answered by the next one.
    daemon.kill();
    std::fs::write(folder.join("go"), "").unwrap();
    daemon.restart();
    eventually("the query is answered", || folder.join("found").exists().then_some(()));
    // A container that comes later into a network with names asks there, too.
    let late = daemon.sleeper(&[]);
    daemon.insula(&["network", "connect", "blue", &late]).ok();
    daemon.exec(&late, "nslookup db").shows(&[address]);
    // In a closed network nobody is asked about the world.
    daemon.insula(&["network", "create", "--internal", "closed"]).ok();
    let outcome = daemon.sh(&["--network", "closed"], "nslookup example.org 127.0.0.11");
    assert!(outcome.stdout.contains("REFUSED"), "{outcome}");
}
