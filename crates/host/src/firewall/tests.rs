use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use insula_spec::plan::InterfacePlan;

use super::*;
use crate::netlink::tests::{another, bridge, inside, isolated, plan};
use crate::netlink::{
    Bridge, Routes, configure, configure_loopback, enable_forwarding, plug, route_loopback,
};

/// A host with two containers on its bridge and another host on a second one, which plays the cable.
pub(super) struct Lan {
    pub(super) firewall: Firewall,
    pub(super) first: File,
    pub(super) second: File,
    pub(super) elsewhere: File,
}

pub(super) fn zone(bridge: &str, subnet: Ipv4Addr) -> Zone {
    Zone {
        bridge: bridge.to_owned(),
        subnet,
        prefix: 16,
        masquerade: true,
        internal: false,
        apart: false,
        gateway: Ipv4Addr::from(u32::from(subnet) | 1),
        v6: None,
    }
}

/// The two containers of a [`Lan`].
pub(super) fn guests() -> Vec<Guest> {
    let guest = |number: u8, address: &str| Guest {
        port: format!("insula-test-{number}"),
        mac: [0x02, 0x42, 0xac, 0x1e, 0, number],
        address: address.parse().unwrap(),
        guarded: true,
        apart: None,
    };
    vec![guest(2, "172.30.0.2"), guest(2, "fd42::2"), guest(3, "172.30.0.3"), guest(3, "fd42::3")]
}

const OUTSIDE: &str = "198.51.100.1";

pub(super) fn lan() -> Lan {
    configure_loopback().unwrap();
    let routes = Routes::open().unwrap();
    routes.ensure_bridge(&bridge()).unwrap();
    let cable = Bridge {
        name: "insula-test-up".to_owned(),
        mac: [2, 0x42, 198, 51, 100, 1],
        mtu: 0,
        addresses: vec![(OUTSIDE.parse().unwrap(), 24), ("2001:db8:5::1".parse().unwrap(), 64)],
    };
    routes.ensure_bridge(&cable).unwrap();
    enable_forwarding().unwrap();
    route_loopback("insula-test-b").unwrap();
    let firewall = Firewall::open("insula-test".to_owned(), Vec::new()).unwrap();
    let zone = zone("insula-test-b", [172, 30, 0, 0].into());
    firewall.install(&[zone], &[], &guests()).unwrap();
    let (first, second, elsewhere) = (another(), another(), another());
    let remote = InterfacePlan {
        bridge: cable.name,
        addresses: vec!["198.51.100.2/24".to_owned(), "2001:db8:5::2/64".to_owned()],
        gateway: None,
        gateway6: None,
        ..plan(9)
    };
    for (plan, namespace) in [(plan(2), &first), (plan(3), &second), (remote, &elsewhere)] {
        plug(&plan, namespace.as_fd()).unwrap();
        inside(namespace, move || configure(&plan).unwrap());
    }
    Lan { firewall, first, second, elsewhere }
}

/// Serves one page for ever in `namespace`, with the client's address in it.
fn serve(namespace: &File, port: u16) {
    serve_on(namespace, &format!("0.0.0.0:{port}"));
}

pub(super) fn serve_on(namespace: &File, address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = inside(namespace, move || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 256];
            let _ = stream.read(&mut request).unwrap();
            let body = stream.peer_addr().unwrap().ip().to_string();
            write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
}

/// The page, or nothing when it cannot be had.
/// What the server answers, however long a busy machine takes; who is said to come from where.
pub(super) fn fetch(address: &str) -> Option<String> {
    attempt(address, Duration::from_secs(10))
}

/// The same where no answer is expected: a dropped packet is never answered, so the wait is short.
pub(super) fn fetch_in_vain(address: &str) -> Option<String> {
    attempt(address, Duration::from_millis(300))
}

fn attempt(address: &str, patience: Duration) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n"), "{text}");
    Some(text.rsplit_once("\r\n").unwrap().1.to_owned())
}

fn forward(port: u16, address: Option<&str>) -> Forward {
    let address = address.map(|address| address.parse().unwrap());
    Forward { proto: 6, address, port, to: [172, 30, 0, 2].into(), to_port: 80 }
}

/// With `br_netfilter` bridged packets are translated on the bridge, which is another path.
#[test]
fn a_published_port_is_reached_from_everywhere() {
    for bridge_netfilter in ["0", "1"] {
        isolated(move || {
            let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
            let switched = std::fs::write(path, bridge_netfilter);
            if switched.is_err() && bridge_netfilter == "1" {
                eprintln!("skipped: no {path}");
                return;
            }
            reach_from_everywhere();
        });
    }
}

fn reach_from_everywhere() {
    let lan = lan();
    serve(&lan.first, 80);
    lan.firewall.add(&[forward(8080, None)], &[]).unwrap();
    lan.firewall.add(&[forward(8080, None)], &[]).unwrap();
    assert_eq!(fetch("127.0.0.1:8080").unwrap(), "172.30.0.1");
    assert_eq!(fetch("198.51.100.1:8080").unwrap(), OUTSIDE);
    assert_eq!(fetch("172.30.0.1:8080").unwrap(), "172.30.0.1");
    let remote = inside(&lan.elsewhere, || fetch("198.51.100.1:8080"));
    assert_eq!(remote.unwrap(), "198.51.100.2", "the client's address is kept");
    for namespace in [&lan.first, &lan.second] {
        let hairpin = inside(namespace, || fetch("198.51.100.1:8080"));
        assert_eq!(hairpin.unwrap(), "172.30.0.1");
    }
    let neighbour = inside(&lan.second, || fetch("172.30.0.2:80"));
    assert_eq!(neighbour.unwrap(), "172.30.0.3");
    lan.firewall.remove(&[forward(8080, None), forward(8081, None)], &[]).unwrap();
    assert_eq!(fetch_in_vain("127.0.0.1:8080"), None);
    assert_eq!(inside(&lan.elsewhere, || fetch_in_vain("198.51.100.1:8080")), None);
}

#[test]
fn a_port_published_on_one_address_is_not_on_others() {
    isolated(|| {
        let lan = lan();
        serve(&lan.first, 80);
        lan.firewall.add(&[forward(8080, Some("127.0.0.1")), forward(8081, Some(OUTSIDE))], &[]).unwrap();
        assert!(fetch("127.0.0.1:8080").is_some());
        assert_eq!(fetch_in_vain("198.51.100.1:8080"), None);
        assert_eq!(fetch_in_vain("127.0.0.1:8081"), None);
        assert!(inside(&lan.elsewhere, || fetch("198.51.100.1:8081")).is_some());
        assert_eq!(inside(&lan.elsewhere, || fetch_in_vain("198.51.100.1:8080")), None);
    });
}

#[test]
fn containers_reach_out_and_nobody_reaches_in() {
    isolated(|| {
        let lan = lan();
        serve(&lan.first, 80);
        serve(&lan.elsewhere, 80);
        let out = inside(&lan.first, || fetch("198.51.100.2:80"));
        assert_eq!(out.unwrap(), OUTSIDE, "masqueraded");
        let routes = || {
            let routes = Routes::open().unwrap();
            routes.add_default_route(OUTSIDE.parse().unwrap(), "eth0").unwrap();
            fetch_in_vain("172.30.0.2:80")
        };
        assert_eq!(inside(&lan.elsewhere, routes), None, "what is not published is not reached");
    });
}

#[test]
fn a_container_cannot_speak_to_the_hosts_loopback() {
    isolated(|| {
        let lan = lan();
        let socket = UdpSocket::bind("127.0.0.1:99").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let attack = || {
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            for change in [
                "del local 127.0.0.1 dev lo table local",
                "del local 127.0.0.0/8 dev lo table local",
                "add 127.0.0.0/8 via 172.30.0.1 src 172.30.0.2",
            ] {
                let status = Command::new("ip").arg("route").args(change.split(' ')).status().unwrap();
                assert!(status.success(), "{change}");
            }
            let socket = UdpSocket::bind("172.30.0.2:0").unwrap();
            socket.send_to(b"open up", "127.0.0.1:99").unwrap();
        };
        inside(&lan.first, attack);
        assert!(socket.recv(&mut [0; 16]).is_err(), "the guard let it in");
        lan.firewall.uninstall().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        inside(&lan.first, || {
            let socket = UdpSocket::bind("172.30.0.2:0").unwrap();
            socket.send_to(b"open up", "127.0.0.1:99").unwrap();
        });
        assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 7, "the attack works but for the guard");
    });
}

#[test]
fn a_container_speaks_to_the_host_by_its_own_bridge_alone() {
    isolated(|| {
        let lan = lan();
        serve(&File::open("/proc/thread-self/ns/net").unwrap(), 98);
        let cable = [198, 51, 100, 0].into();
        let other = Zone { prefix: 24, ..zone("insula-test-up", cable) };
        let own = zone("insula-test-b", [172, 30, 0, 0].into());
        lan.firewall.install(&[own, other], &[], &guests()).unwrap();
        assert!(inside(&lan.first, || fetch("172.30.0.1:98")).is_some());
        assert!(inside(&lan.elsewhere, || fetch("198.51.100.1:98")).is_some());
        assert_eq!(inside(&lan.first, || fetch_in_vain("198.51.100.1:98")), None);
        let around = || {
            let routes = Routes::open().unwrap();
            routes.add_default_route(OUTSIDE.parse().unwrap(), "eth0").unwrap();
            fetch_in_vain("172.30.0.1:98")
        };
        assert_eq!(inside(&lan.elsewhere, around), None);
    });
}

#[test]
fn what_was_spoken_to_an_address_ends_when_it_becomes_a_gateways() {
    isolated(|| {
        let lan = lan();
        let socket = UdpSocket::bind((OUTSIDE, 99)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let speak = || {
            let socket = UdpSocket::bind("172.30.0.2:97").unwrap();
            socket.send_to(b"open up", (OUTSIDE, 99)).unwrap();
        };
        inside(&lan.first, speak);
        assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 7);
        let other = Zone { prefix: 24, ..zone("insula-test-up", [198, 51, 100, 0].into()) };
        let own = zone("insula-test-b", [172, 30, 0, 0].into());
        lan.firewall.install(&[own, other], &[], &guests()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        inside(&lan.first, speak);
        assert!(socket.recv(&mut [0; 16]).is_err(), "conntrack knows it, the guard let it in");
    });
}

#[test]
fn the_administrators_drop_stands() {
    isolated(|| {
        let lan = lan();
        serve(&lan.first, 80);
        lan.firewall.add(&[forward(8080, None)], &[]).unwrap();
        let text =
            "table inet theirs { chain forward { type filter hook forward priority 10; policy drop; }\n}\n";
        assert!(nft(text).unwrap().status.success());
        assert_eq!(inside(&lan.elsewhere, || fetch_in_vain("198.51.100.1:8080")), None);
        let warnings = lan.firewall.forward_warnings("insula-test-b", true).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("inet theirs forward"), "{warnings:?}");
        let allow = "insert rule inet theirs forward iifname insula-test-b accept
                     insert rule inet theirs forward oifname insula-test-b accept";
        assert!(nft(allow).unwrap().status.success());
        assert!(inside(&lan.elsewhere, || fetch("198.51.100.1:8080")).is_some());
        assert_eq!(lan.firewall.forward_warnings("insula-test-b", false).unwrap(), [""; 0]);
    });
}

/// What dockerd does to the forward chain when it switches forwarding on, by either kind of iptables.
#[test]
fn a_dropping_policy_of_iptables_is_seen_and_the_advice_helps() {
    for program in ["iptables-nft", "iptables-legacy"] {
        isolated(move || {
            let run = |line: &str| {
                let (program, arguments) = line.split_once(' ').unwrap();
                Command::new(program).args(arguments.split(' ')).status()
            };
            if !run(&format!("{program} -P FORWARD DROP")).is_ok_and(|status| status.success()) {
                eprintln!("skipped: needs {program}");
                return;
            }
            let lan = lan();
            serve(&lan.first, 80);
            lan.firewall.add(&[forward(8080, None)], &[]).unwrap();
            assert_eq!(inside(&lan.elsewhere, || fetch_in_vain("198.51.100.1:8080")), None);
            let warnings = lan.firewall.forward_warnings("insula-test-b", false).unwrap();
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            let (_, advice) = warnings[0].split_once("allow them with: ").unwrap();
            for line in advice.split("; ") {
                // The advice names the program that the distribution has chosen.
                let (_, arguments) = line.split_once(' ').unwrap();
                assert!(run(&format!("{program} {arguments}")).unwrap().success());
            }
            assert!(inside(&lan.elsewhere, || fetch("198.51.100.1:8080")).is_some());
            assert_eq!(lan.firewall.forward_warnings("insula-test-b", false).unwrap(), [""; 0]);
        });
    }
}

#[test]
fn the_table_is_replaced_as_a_whole_and_goes() {
    isolated(|| {
        let firewall = Firewall::open("insula-test".to_owned(), Vec::new()).unwrap();
        assert!(!firewall.installed().unwrap());
        assert!(firewall.add(&[forward(80, None)], &[]).unwrap_err().is_missing());
        let many: Vec<_> = (1..=2500).map(|port| forward(port, None)).collect();
        firewall.install(&[], &many[..10], &[]).unwrap();
        assert!(firewall.installed().unwrap());
        firewall.add(&many[5..], &[]).unwrap();
        let other = Forward { to_port: 81, ..many[7] };
        assert!(!firewall.add(&[other], &[]).unwrap_err().is_missing(), "another target for the same port");
        firewall.install(&[], &many, &[]).unwrap();
        firewall.remove(&many, &[]).unwrap();
        firewall.remove(&many[..20], &[]).unwrap();
        firewall.uninstall().unwrap();
        firewall.uninstall().unwrap();
        assert!(!firewall.installed().unwrap());
    });
}

pub(super) fn nft_script(script: &str) {
    let output = nft(script).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What hosts have: a policy that drops, and rules for what is to come in.
#[test]
fn the_input_chain_of_the_host_guards_published_ports() {
    isolated(|| {
        let lan = lan();
        serve(&lan.first, 80);
        let reached = || inside(&lan.elsewhere, || fetch("198.51.100.1:8080")).is_some();
        let stopped = || inside(&lan.elsewhere, || fetch_in_vain("198.51.100.1:8080")).is_none();
        let install = |expected: usize| {
            assert!(lan.firewall.outdated().unwrap());
            let zone = zone("insula-test-b", [172, 30, 0, 0].into());
            lan.firewall.install(&[zone], &[forward(8080, None)], &guests()).unwrap();
            assert!(!lan.firewall.outdated().unwrap());
            assert_eq!(lan.firewall.warnings().len(), expected, "{:?}", lan.firewall.warnings());
        };
        lan.firewall.add(&[forward(8080, None)], &[]).unwrap();
        assert!(reached() && !lan.firewall.outdated().unwrap());
        nft_script(
            "table inet filter {
                set friends { type ipv4_addr; }
                chain services { tcp dport 22 accept; }
                chain input {
                    type filter hook input priority 0; policy drop;
                    iifname lo accept
                    ct state established,related accept
                    ip saddr @friends accept
                    jump services
                }
            }",
        );
        install(0);
        assert!(stopped(), "the policy drops it");
        assert!(fetch("127.0.0.1:8080").is_some(), "the host itself");
        assert!(inside(&lan.second, || fetch("198.51.100.1:8080")).is_some(), "containers");
        nft_script("add rule inet filter services tcp dport 8080 accept");
        install(0);
        assert!(reached(), "a rule for the published port lets it in");
        nft_script("flush chain inet filter services; add element inet filter friends { 198.51.100.2 }");
        install(0);
        assert!(reached(), "as does one for the client");
        nft_script(
            "flush table inet filter
            add chain inet filter input { policy accept; }
            add rule inet filter input ip saddr 198.51.100.2 tcp dport 8080 reject with tcp reset",
        );
        install(0);
        assert!(stopped(), "a rule that rejects");
        nft_script("delete table inet filter");
        install(0);
        assert!(reached());
        // iptables has words that cannot be copied; then it is said.
        let status = Command::new("iptables-nft")
            .args(["-A", "INPUT", "-m", "recent", "--name", "x", "--set", "-j", "DROP"])
            .status();
        if status.is_ok_and(|status| status.success()) {
            install(1);
        }
    });
}

#[test]
fn another_instance_is_not_in_the_way() {
    isolated(|| {
        let lan = lan();
        let beside = |table: &str| {
            let other = Firewall::open(table.to_owned(), Vec::new()).unwrap();
            other.install(&[zone("insula-test-up", [198, 51, 100, 0].into())], &[], &[]).unwrap();
            lan.firewall.forward_warnings("insula-test-b", false).unwrap().len()
        };
        assert_eq!((beside("insula-0a1b2c"), beside("insula")), (0, 0));
        // The same of who only sounds like one.
        assert_eq!(beside("insula-other"), 1);
    });
}

/// Each with a rule of its own that stops a published port, by either kind of iptables.
#[test]
fn forward_chains_of_the_host_guard_published_ports() {
    let lines: [(&str, &[&str]); 3] = [
        ("nft", &["add table inet f", "add chain inet f c { type filter hook forward priority 0; }"]),
        ("iptables-nft", &[]),
        ("iptables-legacy", &[]),
    ];
    for (program, before) in lines {
        isolated(move || {
            let lan = lan();
            serve(&lan.first, 80);
            lan.firewall.add(&[forward(8080, None)], &[]).unwrap();
            let reached = |fetch: fn(&str) -> Option<String>| {
                inside(&lan.elsewhere, move || fetch("198.51.100.1:8080")).is_some()
            };
            assert!(reached(fetch));
            before.iter().for_each(|line| nft_script(line));
            let rule = match program {
                "nft" => "add rule inet f c tcp dport 80 drop",
                _ => "-I FORWARD -p tcp --dport 80 -j DROP",
            };
            if !Command::new(program).args(rule.split(' ')).status().is_ok_and(|status| status.success()) {
                eprintln!("skipped: needs {program}");
                return;
            }
            assert!(!reached(fetch_in_vain), "{program}");
        });
    }
}

#[test]
fn a_container_cannot_pass_for_another() {
    isolated(|| {
        let lan = lan();
        serve(&lan.second, 80);
        let ip = |line: &'static str| {
            let line: Vec<_> = line.split(' ').collect();
            inside(&lan.first, move || Command::new("ip").args(line).status().unwrap().success())
        };
        let heard = |source: &'static str, patience| {
            inside(&lan.first, move || heard_from(source, "172.30.0.3:80", patience))
        };
        let from = |source| heard(source, Duration::from_millis(300));
        assert!(heard("172.30.0.2", Duration::from_secs(20)));
        assert!(ip("addr add 172.30.0.77/16 dev eth0"));
        assert!(!from("172.30.0.77"), "an address that it was not given");
        let neighbour = || Command::new("ip").args(["-br", "neigh", "show", "172.30.0.77"]).output().unwrap();
        let seen = inside(&lan.second, neighbour).stdout;
        assert!(!String::from_utf8_lossy(&seen).contains("02:42:ac:1e:00:02"), "nor by ARP");
        assert!(ip("link set eth0 address 02:42:ac:1e:00:03"));
        assert!(!from("172.30.0.2"), "a hardware address that it was not given");
        lan.firewall.remove(&[], &guests()).unwrap();
        lan.firewall.remove(&[], &guests()).unwrap();
        assert!(inside(&lan.second, || fetch_in_vain("172.30.0.1:80")).is_none());
    });
}

/// Whether a connection from this address is answered in time.
fn heard_from(source: &str, server: &str, patience: Duration) -> bool {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience)).unwrap();
    bind(&socket, &SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    connect(&socket, &server.parse::<SocketAddr>().unwrap()).is_ok()
}

#[test]
fn neighbours_are_apart_where_that_is_asked_for() {
    isolated(|| {
        let lan = lan();
        serve(&lan.first, 80);
        assert!(inside(&lan.second, || fetch("172.30.0.2:80")).is_some());
        let apart: Vec<_> =
            guests().into_iter().map(|guest| Guest { apart: Some(bridge().mac), ..guest }).collect();
        let zone = Zone { apart: true, ..zone("insula-test-b", [172, 30, 0, 0].into()) };
        lan.firewall.install(&[zone], &[forward(8080, None)], &[]).unwrap();
        lan.firewall.add(&[], &apart).unwrap();
        assert!(inside(&lan.second, || fetch_in_vain("172.30.0.2:80")).is_none());
        assert!(fetch("172.30.0.2:80").is_some(), "the host sees both");
        assert!(inside(&lan.second, || fetch("198.51.100.1:8080")).is_some(), "what is published is");
    });
}

#[test]
fn ports_may_be_reached_by_chosen_interfaces_alone() {
    isolated(|| {
        let lan = lan();
        serve(&lan.first, 80);
        let reached = |fetch: fn(&str) -> Option<String>, address: &'static str| {
            inside(&lan.elsewhere, move || fetch(address)).is_some()
        };
        for (interface, open) in [("insula-test-up", true), ("insula-test-x", false)] {
            let firewall = Firewall::open("insula-test".to_owned(), vec![interface.to_owned()]).unwrap();
            let zone = zone("insula-test-b", [172, 30, 0, 0].into());
            let ports = [forward(8080, None), forward(8081, Some(OUTSIDE))];
            firewall.install(&[zone], &ports, &guests()).unwrap();
            match open {
                true => assert!(reached(fetch, "198.51.100.1:8080")),
                false => assert!(!reached(fetch_in_vain, "198.51.100.1:8080")),
            }
            assert!(reached(fetch, "198.51.100.1:8081"), "an address that is named is meant");
            assert!(inside(&lan.second, || fetch("198.51.100.1:8080")).is_some(), "containers");
            assert!(fetch("127.0.0.1:8080").is_some(), "the host");
        }
    });
}

#[test]
fn tables_that_others_removed_emptied_or_replaced_are_told() {
    isolated(|| {
        let firewall = Firewall::open("insula-test".to_owned(), Vec::new()).unwrap();
        assert!(!firewall.altered().unwrap(), "there is none yet");
        let install = || firewall.install(&[], &[forward(80, None)], &guests()).unwrap();
        install();
        assert!(!firewall.altered().unwrap(), "as it was made");
        nft_script(
            "table inet theirs {
                 set s { type inet_service; elements = { 22, 80 }; }
                 chain other { accept; }
                 chain in { type filter hook input priority 0; tcp dport @s accept; jump other; drop; }
             }",
        );
        install();
        assert!(!firewall.altered().unwrap(), "with copies of others");
        let saved = Command::new("nft").args(["list", "ruleset"]).output().unwrap().stdout;
        let saved = format!("flush ruleset\n{}", String::from_utf8(saved).unwrap());
        for theirs in [
            "flush ruleset",
            "delete table bridge insula-test",
            "flush table inet insula-test",
            "flush chain inet insula-test forward",
            "insert rule inet insula-test forward accept",
            &saved,
        ] {
            install();
            firewall.add(&[forward(81, None)], &[]).unwrap();
            firewall.remove(&[forward(80, None)], &[]).unwrap();
            assert!(!firewall.altered().unwrap(), "what we add ourselves");
            nft_script("table inet other { chain c { accept; }\n}");
            assert!(!firewall.altered().unwrap(), "others' own tables");
            nft_script(theirs);
            assert!(firewall.altered().unwrap(), "{theirs}");
        }
        firewall.uninstall().unwrap();
        assert!(!firewall.altered().unwrap());
    });
}

/// Ends of chains by which firewalls drop although their policy accepts.
#[test]
fn a_chain_that_ends_in_a_drop_counts_as_one_that_drops() {
    for end in
        ["drop", "counter drop", "reject with icmpx admin-prohibited", "log prefix \"x\" counter reject"]
    {
        isolated(move || {
            let firewall = Firewall::open("insula-test".to_owned(), Vec::new()).unwrap();
            let chains = |end: &str| {
                nft_script(&format!(
                    "table inet theirs {{
                         chain in {{ type filter hook input priority 0; tcp dport 22 accept; {end}; }}
                         chain through {{ type filter hook forward priority 0; ct state new accept; {end}; }}
                     }}"
                ));
            };
            let ports = [(None, "tcp", 22), (None, "tcp", 8080), (Some([127, 0, 0, 1].into()), "tcp", 81)];
            let warnings = || {
                let mut all = firewall.port_warnings(&ports).unwrap();
                all.extend(firewall.forward_warnings("insula-test-b", false).unwrap());
                all
            };
            chains("tcp dport 1 drop");
            assert_eq!(warnings(), [""; 0]);
            nft_script("delete table inet theirs");
            chains(end);
            let found = warnings();
            assert_eq!(found.len(), 2, "{found:?}");
            assert!(found[0].contains("does not name 8080/tcp: "), "{found:?}");
            assert!(found[1].contains("inet theirs through"), "{found:?}");
            for warning in found {
                for line in warning.split_once("allow them with: ").unwrap().1.split("; ") {
                    nft_script(line.strip_prefix("nft ").unwrap());
                }
            }
            assert_eq!(warnings(), [""; 0]);
        });
    }
}

#[test]
fn changes_of_rules_are_told() {
    isolated(|| {
        let changes = Changes::listen().unwrap();
        let readable = |patience| {
            let mut descriptors = [rustix::event::PollFd::new(&changes, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: patience, tv_nsec: 0 };
            rustix::event::poll(&mut descriptors, Some(&limit)).unwrap() > 0
        };
        assert!(!readable(0) && !changes.take());
        nft_script("add table inet x");
        assert!(readable(10) && changes.take());
        assert!(!readable(0));
        let firewall = Firewall::open("insula-test".to_owned(), Vec::new()).unwrap();
        firewall.install(&[], &[], &[]).unwrap();
        changes.take();
        firewall.add(&[forward(80, None)], &[]).unwrap();
        assert!(readable(10) && !changes.take(), "what this process does is no news");
    });
}
