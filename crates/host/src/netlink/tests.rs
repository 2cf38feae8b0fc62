use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use insula_base::Kinded;
use insula_spec::plan::{GatewayPlan, InterfaceKind, MacvlanMode};

use super::*;

/// Runs in a network namespace of its own, on a thread of its own.
pub(crate) fn isolated(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        return as_a_user();
    }
    std::thread::spawn(|| {
        insula_sys::netlink::unshare_network().unwrap();
        test();
    })
    .join()
    .unwrap();
}

/// The same test once more, by an ordinary user: as root of a user and a network namespace of its own, where users may
/// have such.
fn as_a_user() {
    let namespaces = ["--user", "--map-root-user", "--net", "--"];
    let unshare = |words: &[&str]| {
        let mut command = std::process::Command::new("unshare");
        command.args(namespaces).args(words).status().is_ok_and(|status| status.success())
    };
    let required = std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default();
    if required.contains("root") || !unshare(&["true"]) {
        assert!(!required.contains("root"), "root is required");
        return eprintln!("skipped: needs root, or namespaces of a user's own");
    }
    // One that runs alone runs on the first thread.
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    let name = std::iter::once(thread).chain(std::env::args()).find(|word| word.contains("::"));
    let (name, program) = (name.expect("the name of a test"), std::env::current_exe().unwrap());
    assert!(unshare(&[program.to_str().unwrap(), "--exact", &name, "--nocapture"]), "{name} by a user");
}

pub(crate) fn here() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

/// A namespace that lives as long as its file.
pub(crate) fn another() -> File {
    std::thread::spawn(|| {
        insula_sys::netlink::unshare_network().unwrap();
        here()
    })
    .join()
    .unwrap()
}

/// Runs in another namespace.
pub(crate) fn inside<T: Send + 'static>(namespace: &File, run: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = namespace.try_clone().unwrap();
    std::thread::spawn(move || {
        insula_sys::netlink::enter_network(namespace.as_fd()).unwrap();
        run()
    })
    .join()
    .unwrap()
}

pub(crate) fn bridge() -> Bridge {
    Bridge {
        name: "insula-test-b".to_owned(),
        mac: [2, 0x42, 172, 30, 0, 1],
        mtu: 1450,
        addresses: vec![("172.30.0.1".parse().unwrap(), 16), ("fd42::1".parse().unwrap(), 64)],
    }
}

pub(crate) fn plan(number: u8) -> InterfacePlan {
    InterfacePlan {
        name: "eth0".to_owned(),
        kind: InterfaceKind::Veth,
        bridge: "insula-test-b".to_owned(),
        host_name: format!("insula-test-{number}"),
        mac: format!("02:42:ac:1e:00:{number:02x}"),
        mtu: 1450,
        addresses: vec![format!("172.30.0.{number}/16"), format!("fd42::{number}/64")],
        gateway: Some("172.30.0.1".parse().unwrap()),
        gateway6: Some("fd42::1".parse().unwrap()),
        hairpin: true,
        rate: None,
    }
}

#[test]
fn a_container_reaches_its_gateway_and_its_neighbour() {
    isolated(|| {
        let routes = Routes::open().unwrap();
        routes.ensure_bridge(&bridge()).unwrap();
        routes.ensure_bridge(&bridge()).unwrap();
        let (first, second) = (another(), another());
        for (number, namespace) in [(2, &first), (3, &second)] {
            plug(&plan(number), namespace.as_fd()).unwrap();
            inside(namespace, move || configure(&plan(number)).unwrap());
        }
        let found = routes.link("insula-test-2").unwrap().unwrap();
        let bridge = routes.link("insula-test-b").unwrap().unwrap();
        assert_eq!((found.up, found.mtu, found.kind.as_str()), (true, 1450, "veth"));
        assert_eq!((found.master, bridge.kind.as_str()), (Some(bridge.index), "bridge"));
        assert!(routes.routes().unwrap().contains(&Route {
            destination: "172.30.0.0".parse().unwrap(),
            prefix: 16,
            link: Some(bridge.index),
        }));
        let places = [("172.30.0.1:7", None), ("[fd42::1]:7", None)];
        let neighbours = [("172.30.0.3:7", Some(&second)), ("[fd42::3]:7", Some(&second))];
        for (address, server) in places.into_iter().chain(neighbours) {
            let listen = move || TcpListener::bind(address).unwrap();
            let listener = match server {
                Some(namespace) => inside(namespace, listen),
                None => listen(),
            };
            let client = inside(&first, move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"hello").unwrap();
                stream
            });
            drop(client);
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello", "{address}");
        }
    });
}

#[test]
fn who_has_no_ipv6_does_not_ask_for_routers() {
    isolated(|| {
        let routes = Routes::open().unwrap();
        routes.ensure_bridge(&bridge()).unwrap();
        let modes = |plan: InterfacePlan| {
            let namespace = another();
            plug(&plan, namespace.as_fd()).unwrap();
            let mode = |name: String| {
                std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode")).ok()
            };
            let host = mode(plan.host_name.clone());
            (host, inside(&namespace, move || configure(&plan).map(|()| mode(plan.name)).unwrap()))
        };
        let (derived, none) = (Some("0\n".to_owned()), Some("1\n".to_owned()));
        assert_eq!(modes(plan(2)), (none.clone(), derived));
        let addresses = vec!["172.30.0.3/16".to_owned()];
        assert_eq!(
            modes(InterfacePlan { addresses: addresses.clone(), gateway6: None, ..plan(3) }),
            (none.clone(), none)
        );
        // Below the least that IPv6 carries an interface has none.
        assert_eq!(modes(InterfacePlan { addresses, gateway6: None, mtu: 1200, ..plan(4) }), (None, None));
    });
}

#[test]
fn macvlans_have_a_place_of_their_own_on_their_parent() {
    isolated(|| {
        let routes = Routes::open().unwrap();
        routes.ensure_alone("insula-test-d").unwrap();
        routes.set_up("insula-test-d", false).unwrap();
        routes.ensure_alone("insula-test-d").unwrap();
        for (mode, seen) in [(MacvlanMode::Bridge, true), (MacvlanMode::Private, false)] {
            let (first, second) = (another(), another());
            for (number, namespace) in [(2, &first), (3, &second)] {
                let plan = InterfacePlan {
                    kind: InterfaceKind::Macvlan { mode },
                    bridge: "insula-test-d".to_owned(),
                    host_name: String::new(),
                    mtu: 0,
                    ..plan(number)
                };
                plug(&plan, namespace.as_fd()).unwrap();
                inside(namespace, move || configure(&plan).unwrap());
            }
            let _listener = inside(&second, || TcpListener::bind("172.30.0.3:7").unwrap());
            let reached = inside(&first, move || {
                let patience = std::time::Duration::from_millis(if seen { 10_000 } else { 300 });
                TcpStream::connect_timeout(&"172.30.0.3:7".parse().unwrap(), patience).is_ok()
            });
            assert_eq!(reached, seen, "{mode:?}");
        }
        let lost = InterfacePlan {
            kind: InterfaceKind::Macvlan { mode: MacvlanMode::Bridge },
            bridge: "insula-test-x".to_owned(),
            ..plan(2)
        };
        let error = plug(&lost, another().as_fd()).unwrap_err();
        assert_eq!(error.to_string(), "no network interface is named insula-test-x");
    });
}

#[test]
fn a_vlan_is_a_part_of_an_interface() {
    isolated(|| {
        let routes = Routes::open().unwrap();
        let parent = Bridge { name: "insula-test-d".to_owned(), addresses: Vec::new(), ..bridge() };
        routes.ensure_bridge(&parent).unwrap();
        match routes.ensure_vlan("insula-test-d.7", "insula-test-d", 7) {
            Err(error) if error.kind() == insula_base::Kind::Unsupported => {
                eprintln!("skipped: this kernel has no VLAN interfaces");
                return;
            }
            result => result.unwrap(),
        }
        routes.set_up("insula-test-d.7", false).unwrap();
        routes.ensure_vlan("insula-test-d.7", "insula-test-d", 7).unwrap();
        let link = routes.link("insula-test-d.7").unwrap().unwrap();
        assert_eq!((link.kind.as_str(), link.up), ("vlan", true));
        let error = routes.ensure_vlan("insula-test-x.7", "insula-test-x", 7).unwrap_err();
        assert_eq!(error.to_string(), "no network interface is named insula-test-x");
    });
}

#[test]
fn an_interface_sends_and_receives_what_its_rate_allows() {
    isolated(|| {
        let routes = Routes::open().unwrap();
        routes.ensure_bridge(&bridge()).unwrap();
        let namespace = another();
        let rate = |bits| std::num::NonZeroU64::new(bits);
        let limited = InterfacePlan { rate: rate(10_000_000), ..plan(2) };
        plug(&limited, namespace.as_fd()).unwrap();
        let plan = limited.clone();
        inside(&namespace, move || configure(&plan).unwrap());
        let shown = |link: &'static str| {
            let show =
                std::process::Command::new("tc").args(["qdisc", "show", "dev", link]).output().unwrap();
            String::from_utf8(show.stdout).unwrap()
        };
        let both = || [shown("insula-test-2"), inside(&namespace, move || shown("eth0"))];
        for text in both() {
            assert!(text.contains("tbf") && text.contains("rate 10Mbit burst 64Kb"), "{text}");
        }
        for (bits, words) in [(100_000_000_000, "rate 100Gbit"), (64_000, "rate 64Kbit")] {
            let shape = vec![InterfacePlan { rate: rate(bits), ..limited.clone() }];
            let gateway =
                Some(GatewayPlan { address: "172.30.0.1".parse().unwrap(), interface: "eth0".to_owned() });
            let again = NetworkChange { shape, gateway, ..NetworkChange::default() };
            change(&again, namespace.as_fd()).unwrap();
            for text in both() {
                assert!(text.contains(words), "{text}");
            }
        }
        for _ in 0..2 {
            let shape = vec![InterfacePlan { rate: None, ..limited.clone() }];
            change(&NetworkChange { shape, ..NetworkChange::default() }, namespace.as_fd()).unwrap();
            for text in both() {
                assert!(!text.contains("tbf"), "{text}");
            }
        }
    });
}

#[test]
fn errors_name_their_operands() {
    isolated(|| {
        let namespace = another();
        let error = plug(&plan(2), namespace.as_fd()).unwrap_err();
        assert_eq!(error.to_string(), "no network interface is named insula-test-b");
        let routes = Routes::open().unwrap();
        routes.ensure_bridge(&bridge()).unwrap();
        plug(&plan(2), namespace.as_fd()).unwrap();
        let error = plug(&plan(2), namespace.as_fd()).unwrap_err();
        assert!(error.to_string().starts_with("create veth pair insula-test-2"), "{error}");
        assert_eq!(error.errno(), Some(17));
        let bad = InterfacePlan { addresses: vec!["172.30.0.2/33".to_owned()], ..plan(2) };
        let error = inside(&namespace, move || configure(&bad)).unwrap_err();
        assert_eq!(error.to_string(), "interface eth0: address \"172.30.0.2/33\" is malformed");
        let bad = InterfacePlan { mac: "02:42:ac:1e:00".to_owned(), ..plan(2) };
        assert!(plug(&bad, namespace.as_fd()).is_err());
        let lost = InterfacePlan { gateway: Some("10.9.9.9".parse().unwrap()), ..plan(2) };
        let error = inside(&namespace, move || configure(&lost)).unwrap_err();
        assert!(error.to_string().starts_with("add the default route of eth0"), "{error}");
    });
}

#[test]
fn a_bridge_is_deleted_once_and_again() {
    isolated(|| {
        let routes = Routes::open().unwrap();
        routes.ensure_bridge(&bridge()).unwrap();
        assert!(routes.links().unwrap().iter().any(|link| link.name == "insula-test-b"));
        routes.delete("insula-test-b").unwrap();
        routes.delete("insula-test-b").unwrap();
        assert_eq!(routes.link("insula-test-b").unwrap(), None);
    });
}

#[test]
fn loopback_comes_up() {
    isolated(|| {
        assert!(!Routes::open().unwrap().link("lo").unwrap().unwrap().up);
        configure_loopback().unwrap();
        // A new namespace begins with what the host's has, which daemons beside this test may have changed.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        assert!(Routes::open().unwrap().link("lo").unwrap().unwrap().up);
    });
}

#[test]
fn one_at_a_time_chooses_in_a_namespace() {
    isolated(|| {
        let first = claim().unwrap();
        // Nobody waits for those elsewhere.
        drop(inside(&another(), || claim().unwrap()));
        let (sender, receiver) = std::sync::mpsc::channel();
        let namespace = here();
        let second = std::thread::spawn(move || {
            insula_sys::netlink::enter_network(namespace.as_fd()).unwrap();
            sender.send("waits").unwrap();
            let claim = claim().unwrap();
            sender.send("has it").unwrap();
            drop(claim);
        });
        assert_eq!(receiver.recv().unwrap(), "waits");
        assert!(rustix::fs::flock(here(), rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err());
        assert!(receiver.try_recv().is_err());
        drop(first);
        assert_eq!(receiver.recv().unwrap(), "has it");
        second.join().unwrap();
    });
}
