//! Published ports of IPv6 addresses.

use std::net::{TcpListener, UdpSocket};

use super::tests::{Lan, fetch, fetch_in_vain, lan, nft_script, serve_on, zone};
use super::*;
use crate::netlink::tests::{inside, isolated};
use crate::netlink::{
    Routes, advertised, before_forwarding6, disable_forwarding6, enable_forwarding6, forwarding6,
};

const OUTSIDE: &str = "2001:db8:5::1";

fn forward(port: u16, address: Option<&str>) -> Forward {
    let address = address.map(|address| address.parse().unwrap());
    Forward { proto: 6, address, port, to: "fd42::2".parse().unwrap(), to_port: 80 }
}

fn zone6() -> Zone {
    let v6 = Zone6 {
        subnet: "fd42::".parse().unwrap(),
        prefix: 64,
        gateway: "fd42::1".parse().unwrap(),
        masquerade: true,
    };
    Zone { v6: Some(v6), ..zone("insula-test-b", [172, 30, 0, 0].into()) }
}

/// Whose bridge filters by the rules of IPv6 as well, or does not.
fn dual(bridge_netfilter: bool) -> Lan {
    let value = if bridge_netfilter { "1" } else { "0" };
    // Not there: as with 0.
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-ip6tables", value);
    let lan = lan();
    enable_forwarding6(&[]).unwrap();
    Routes::open().unwrap().route_loopback6("insula-test-b").unwrap();
    Routes::open().unwrap().route_loopback6("insula-test-b").unwrap();
    lan.firewall.install(&[zone6()], &[], &super::tests::guests()).unwrap();
    lan
}

#[test]
fn a_published_port_is_reached_from_everywhere_by_ipv6() {
    for bridge_netfilter in [false, true] {
        isolated(move || {
            let lan = dual(bridge_netfilter);
            serve_on(&lan.first, "[::]:80");
            lan.firewall.add(&[forward(8080, None)], &[]).unwrap();
            lan.firewall.add(&[forward(8080, None)], &[]).unwrap();
            assert_eq!(fetch("[2001:db8:5::1]:8080").unwrap(), OUTSIDE);
            assert_eq!(fetch("[fd42::1]:8080").unwrap(), "fd42::1");
            // On a bridge that calls the rules of IPv6 the kernel drops answers to ::1.
            if !bridge_netfilter {
                assert_eq!(fetch("[::1]:8080").unwrap(), "fd42::1");
            }
            let remote = inside(&lan.elsewhere, || fetch("[2001:db8:5::1]:8080"));
            assert_eq!(remote.unwrap(), "2001:db8:5::2", "the client's address is kept");
            for namespace in [&lan.first, &lan.second] {
                let hairpin = inside(namespace, || fetch("[2001:db8:5::1]:8080"));
                assert_eq!(hairpin.unwrap(), "fd42::1");
            }
            assert_eq!(fetch_in_vain("127.0.0.1:8080"), None, "nothing of IPv4 is published");
            lan.firewall.remove(&[forward(8080, None), forward(8081, None)], &[]).unwrap();
            assert_eq!(fetch_in_vain("[2001:db8:5::1]:8080"), None);
            assert_eq!(inside(&lan.elsewhere, || fetch_in_vain("[2001:db8:5::1]:8080")), None);
        });
    }
}

#[test]
fn a_port_published_on_one_ipv6_address_is_not_on_others() {
    isolated(|| {
        let lan = dual(false);
        serve_on(&lan.first, "[::]:80");
        let both = [forward(8080, Some("::1")), forward(8081, Some(OUTSIDE))];
        lan.firewall.add(&both, &[]).unwrap();
        assert!(fetch("[::1]:8080").is_some());
        assert_eq!(fetch_in_vain("[2001:db8:5::1]:8080"), None);
        assert_eq!(fetch_in_vain("[::1]:8081"), None);
        let outside = |fetch: fn(&str) -> Option<String>, address: &'static str| {
            inside(&lan.elsewhere, move || fetch(address))
        };
        assert!(outside(fetch, "[2001:db8:5::1]:8081").is_some());
        assert_eq!(outside(fetch_in_vain, "[2001:db8:5::1]:8080"), None);
        // The same when the table is made with them.
        lan.firewall.install(&[zone6()], &both, &[]).unwrap();
        assert!(fetch("[::1]:8080").is_some() && outside(fetch, "[2001:db8:5::1]:8081").is_some());
    });
}

#[test]
fn the_input_chain_of_the_host_guards_published_ports_of_ipv6() {
    for (family, stops) in [("inet", true), ("ip6", true), ("ip", false)] {
        isolated(move || {
            let lan = dual(false);
            serve_on(&lan.first, "[::]:80");
            nft_script(&format!(
                "add table {family} theirs
                add chain {family} theirs input {{ type filter hook input priority 0; policy drop; }}
                add rule {family} theirs input meta l4proto icmpv6 accept"
            ));
            lan.firewall.install(&[zone6()], &[forward(8080, None)], &[]).unwrap();
            assert_eq!(lan.firewall.warnings(), [""; 0]);
            let attempt = if stops { fetch_in_vain } else { fetch };
            let reached = inside(&lan.elsewhere, move || attempt("[2001:db8:5::1]:8080"));
            assert_eq!(reached.is_none(), stops, "{family}");
        });
    }
}

#[test]
fn a_container_cannot_speak_to_the_hosts_ipv6_loopback() {
    isolated(|| {
        let lan = dual(false);
        let socket = UdpSocket::bind("[::1]:99").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        inside(&lan.first, || {
            for change in ["del local ::1 dev lo table local", "add ::1 via fd42::1 dev eth0"] {
                let status =
                    Command::new("ip").args(["-6", "route"]).args(change.split(' ')).status().unwrap();
                assert!(status.success(), "{change}");
            }
            let socket = UdpSocket::bind("[fd42::2]:0").unwrap();
            // The kernel may refuse to send it at all.
            let _ = socket.send_to(b"open up", "[::1]:99");
        });
        assert!(socket.recv(&mut [0; 16]).is_err());
        TcpListener::bind("[::1]:98").unwrap();
    });
}

#[test]
fn nobody_asks_its_neighbours_for_routers() {
    const SOLICITATION: u8 = 133;
    const ECHO: u8 = 128;
    isolated(|| {
        let lan = dual(false);
        let routers = "ff02::2".parse().unwrap();
        let index = || Routes::open().unwrap().link("eth0").unwrap().unwrap().index;
        let _member = inside(&lan.second, move || {
            let socket = UdpSocket::bind("[::]:0").unwrap();
            socket.join_multicast_v6(&routers, index()).unwrap();
            socket
        });
        inside(&lan.first, move || {
            use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
            let socket = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
            let to = std::net::SocketAddrV6::new(routers, 0, 0, index());
            for kind in [SOLICITATION, ECHO] {
                sendto(&socket, &[kind, 0, 0, 0, 0, 0, 0, 0], SendFlags::empty(), &to).unwrap();
            }
        });
        let heard = |counter: &'static str| {
            let text =
                inside(&lan.second, || std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap());
            let line = text.lines().find_map(|line| line.strip_prefix(counter));
            line.unwrap().trim().parse::<u64>().unwrap()
        };
        while heard("Icmp6InEchos ") == 0 {
            std::thread::yield_now();
        }
        assert_eq!(heard("Icmp6InRouterSolicits "), 0);
    });
}

#[test]
fn routers_are_heard_while_the_host_forwards_and_as_before_afterwards() {
    isolated(|| {
        let path = |name: &str| format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
        let value = |name: &str| std::fs::read_to_string(path(name)).unwrap().trim().to_owned();
        let routes = Routes::open().unwrap();
        for name in ["insula-test-1", "insula-test-2"] {
            let bridge = crate::netlink::tests::bridge();
            let bridge = crate::netlink::Bridge { name: name.to_owned(), addresses: Vec::new(), ..bridge };
            routes.ensure_bridge(&bridge).unwrap();
        }
        std::fs::write(path("insula-test-1"), "1").unwrap();
        std::fs::write(path("insula-test-2"), "2").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
        let (names, before) = (advertised().unwrap(), before_forwarding6().unwrap());
        assert!(names.contains(&"insula-test-1".to_owned()) && !names.contains(&"insula-test-2".to_owned()));
        enable_forwarding6(&names).unwrap();
        assert!(forwarding6().unwrap());
        assert_eq!((value("insula-test-1"), value("insula-test-2")), ("2".to_owned(), "2".to_owned()));
        disable_forwarding6(&names, &before).unwrap();
        assert!(!forwarding6().unwrap());
        assert_eq!((value("insula-test-1"), value("insula-test-2")), ("1".to_owned(), "2".to_owned()));
    });
}
