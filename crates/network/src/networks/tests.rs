use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use insula_base::{Kind, Kinded};
use insula_host::netlink;

use super::*;
use crate::{ConnectRequest, NetworkRequest, PortRequest, Proto, SubnetRequest};

/// Runs in a network namespace of its own, on a thread of its own.
pub(super) fn isolated(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        return as_a_user();
    }
    std::thread::spawn(|| {
        insula_sys::netlink::unshare_network().unwrap();
        netlink::configure_loopback().unwrap();
        // A new namespace begins with what the host's has, which daemons beside this test may have changed.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
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

fn another() -> File {
    std::thread::spawn(|| {
        insula_sys::netlink::unshare_network().unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}

fn inside<T: Send + 'static>(namespace: &File, run: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = namespace.try_clone().unwrap();
    std::thread::spawn(move || {
        insula_sys::netlink::enter_network(namespace.as_fd()).unwrap();
        run()
    })
    .join()
    .unwrap()
}

/// One root; opening it again is a restart of the daemon.
pub(super) struct Root(tempfile::TempDir);

impl Root {
    pub(super) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("insula-test-").tempdir().unwrap())
    }

    fn instance(&self) -> Instance {
        Instance::new(self.0.path().join("root"), self.0.path().join("run"))
    }

    pub(super) fn open(&self, options: Options) -> Networks {
        let instance = self.instance();
        let store = Arc::new(Store::open(instance.root()).unwrap());
        Networks::open(&instance, store, options).unwrap()
    }
}

fn request(ports: Vec<PortRequest>) -> EndpointRequest {
    EndpointRequest {
        container: ContainerId::random(),
        name: "web".to_owned(),
        hostname: "web".to_owned(),
        mode: Mode::parse("default"),
        connections: vec![wish("bridge")],
        ports,
        rate: None,
    }
}

fn wish(network: &str) -> ConnectRequest {
    ConnectRequest { network: network.to_owned(), ..ConnectRequest::default() }
}

/// A container in these networks.
pub(super) fn within(networks: &[&str]) -> EndpointRequest {
    EndpointRequest { connections: networks.iter().map(|name| wish(name)).collect(), ..request(vec![]) }
}

pub(super) fn named(name: &str, subnet: &str) -> NetworkRequest {
    NetworkRequest {
        name: name.to_owned(),
        subnets: vec![SubnetRequest { subnet: subnet.to_owned(), ..SubnetRequest::default() }],
        ..NetworkRequest::default()
    }
}

pub(super) fn port(host: u16) -> PortRequest {
    PortRequest { container_port: 80, proto: Proto::Tcp, host_ip: None, host_ports: Some(host..=host) }
}

/// The same on an address.
fn port_on(host: u16, address: &str) -> PortRequest {
    PortRequest { host_ip: Some(address.parse().unwrap()), ..port(host) }
}

/// A container in the way of the monitor and its first process, that greets whoever connects to port 80.
fn start(endpoint: &Endpoint) -> File {
    let namespace = another();
    let plan = endpoint.interfaces().remove(0);
    netlink::plug(&plan, namespace.as_fd()).unwrap();
    let listener = inside(&namespace, move || {
        netlink::configure(&plan).unwrap();
        TcpListener::bind("[::]:80").unwrap()
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").unwrap();
        }
    });
    namespace
}

/// However long a busy machine takes; where nobody listens the answer is a reset.
fn greeted(address: &str) -> bool {
    let limit = Duration::from_secs(10);
    let Ok(mut stream) = TcpStream::connect_timeout(&address.parse().unwrap(), limit) else { return false };
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("hello"), "{text}");
    true
}

fn forwarding() -> bool {
    netlink::forwarding().unwrap()
}

#[test]
fn a_container_is_connected_and_everything_is_taken_back() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        assert!(!forwarding());
        let request = request(vec![port(8080)]);
        let endpoint = networks.prepare(&request).unwrap();
        let attachment = &endpoint.attachments[0];
        assert_eq!(attachment.address.unwrap().to_string(), "172.30.0.2");
        assert_eq!((attachment.mac.as_str(), attachment.prefix), ("02:42:ac:1e:00:02", 16));
        let namespace = start(&endpoint);
        assert!(forwarding() && greeted("127.0.0.1:8080"));
        assert!(TcpListener::bind("0.0.0.0:8080").is_err(), "the port is held");
        assert!(!networks.retire().unwrap(), "a container is connected");
        assert_eq!(networks.endpoint(&request.container).unwrap().unwrap(), endpoint);
        assert_eq!(networks.warnings().unwrap(), [""; 0]);

        networks.release(&request.container).unwrap();
        networks.release(&request.container).unwrap();
        assert!(!greeted("127.0.0.1:8080"));
        TcpListener::bind("0.0.0.0:8080").unwrap();
        assert_eq!(networks.endpoint(&request.container).unwrap(), None);
        assert!(networks.retire().unwrap());
        assert!(!forwarding());
        let routes = Routes::open().unwrap();
        assert_eq!(routes.link(&root.instance().bridge()).unwrap(), None);
        assert!(!Firewall::open(root.instance().table(), Vec::new()).unwrap().installed().unwrap());
        drop(namespace);
    });
}

#[test]
fn a_daemon_that_died_finds_its_endpoints_again() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let (lives, dies) = (request(vec![port(8080)]), request(vec![port(8081)]));
        let endpoint = networks.prepare(&lives).unwrap();
        networks.prepare(&dies).unwrap();
        let _namespace = start(&endpoint);
        let ids: Vec<_> = networks.list().into_iter().map(|network| network.id).collect();
        drop(networks);
        assert!(greeted("127.0.0.1:8080"), "served without a daemon");

        let networks = root.open(Options::default());
        assert_eq!(networks.list().into_iter().map(|network| network.id).collect::<Vec<_>>(), ids);
        let warnings = networks.reconcile(&HashSet::from([lives.container.clone()])).unwrap();
        assert_eq!(warnings, [""; 0]);
        assert!(greeted("127.0.0.1:8080"));
        assert!(TcpListener::bind("0.0.0.0:8080").is_err(), "held again");
        TcpListener::bind("0.0.0.0:8081").unwrap();
        assert_eq!(networks.endpoints().unwrap(), [endpoint]);
        networks.release(&lives.container).unwrap();
        drop(networks);

        let networks = root.open(Options::default());
        let again = networks.prepare(&lives).unwrap();
        drop(networks);
        let taken = TcpListener::bind("0.0.0.0:8080").unwrap();
        let networks = root.open(Options::default());
        let warnings = networks.reconcile(&HashSet::from([again.container])).unwrap();
        assert!(warnings[0].contains("0.0.0.0:8080/tcp"), "{warnings:?}");
        drop(taken);
    });
}

#[test]
fn what_others_flush_comes_back() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let first = networks.prepare(&request(vec![port(8080)])).unwrap();
        let _first = start(&first);
        Firewall::open(root.instance().table(), Vec::new()).unwrap().uninstall().unwrap();
        assert!(!greeted("127.0.0.1:8080"));
        let second = networks.prepare(&request(vec![port(8081)])).unwrap();
        let _second = start(&second);
        assert!(greeted("127.0.0.1:8080") && greeted("127.0.0.1:8081"));
        Routes::open().unwrap().delete(&root.instance().bridge()).unwrap();
        let third = networks.prepare(&request(vec![port(8082)])).unwrap();
        let _third = start(&third);
        assert!(greeted("127.0.0.1:8082"));
    });
}

#[test]
fn taken_ports_and_addresses_are_refused_and_nothing_stays() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let first = request(vec![port(8080)]);
        let given = networks.prepare(&first).unwrap();
        let error = networks.prepare(&request(vec![port(8079), port(8080)])).unwrap_err();
        let holder = format!("port is already allocated by container {}", first.container.short());
        assert_eq!(error.to_string(), format!("Bind for 0.0.0.0:8080 failed: {holder}"));
        assert_eq!(error.kind(), Kind::Conflict);
        let many: Vec<_> = (1..=5000).map(port).collect();
        let error = networks.prepare(&request(many)).unwrap_err();
        assert!(error.to_string().starts_with("5000 published ports are more than"), "{error}");
        TcpListener::bind("0.0.0.0:8079").unwrap();
        let wanted = EndpointRequest {
            connections: vec![ConnectRequest { address: given.address(), ..wish("bridge") }],
            ..request(vec![])
        };
        let error = networks.prepare(&wanted).unwrap_err();
        assert_eq!(error.to_string(), "Address already in use: 172.30.0.2 in network bridge");
        let outside = EndpointRequest {
            connections: vec![ConnectRequest { address: Some([10, 0, 0, 1].into()), ..wish("bridge") }],
            ..request(vec![])
        };
        assert_eq!(networks.prepare(&outside).unwrap_err().kind(), Kind::InvalidArgument);
        for mac in ["", "02:42", "01:00:5e:00:00:01", "02:42:ac:11:00:2g", "0242:ac:11:00:02"] {
            let wish = ConnectRequest { mac: Some(mac.to_owned()), ..wish("bridge") };
            let wanted = EndpointRequest { connections: vec![wish], ..request(vec![]) };
            assert!(matches!(networks.prepare(&wanted), Err(Error::InvalidMac { .. })), "{mac}");
        }
        let lost = within(&["blue"]);
        assert_eq!(networks.prepare(&lost).unwrap_err().to_string(), "network blue not found");
        let shared = EndpointRequest { mode: Mode::parse("container:x"), ..request(vec![port(1)]) };
        assert!(matches!(networks.prepare(&shared), Err(Error::PublishShared)));
        assert_eq!(networks.endpoints().unwrap(), [given]);
        // The same container anew: its own port is free for it.
        networks.prepare(&first).unwrap();
    });
}

#[test]
fn modes_without_a_bridge_change_nothing_of_the_host() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        for (mode, name) in [("none", "none"), ("host", "host")] {
            let wanted =
                EndpointRequest { mode: Mode::parse(mode), connections: vec![], ..request(vec![port(8080)]) };
            let endpoint = networks.prepare(&wanted).unwrap();
            assert!(endpoint.interfaces().is_empty() && endpoint.ports.is_empty());
            assert_eq!(endpoint.attachments[0].network_name, name);
            networks.release(&wanted.container).unwrap();
        }
        let id = networks.get("bridge").unwrap().id;
        assert_eq!(networks.get(&id.as_str()[..12]).unwrap().name, "bridge");
        assert!(networks.get("").is_err());
        assert_eq!(Routes::open().unwrap().link(&root.instance().bridge()).unwrap(), None);
        assert!(!forwarding());
    });
}

#[test]
fn a_subnet_that_the_host_takes_is_given_up_while_unused() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let theirs = netlink::Bridge {
            name: "insula-test-x".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 0,
            addresses: vec![("172.30.7.1".parse().unwrap(), 24)],
        };
        Routes::open().unwrap().ensure_bridge(&theirs).unwrap();
        let endpoint = networks.prepare(&request(vec![])).unwrap();
        assert_eq!(endpoint.address().unwrap().to_string(), "172.31.0.2");
        networks.release(&endpoint.container).unwrap();
        networks.retire().unwrap();
        assert!(forwarding(), "somebody else's bridge is there");
        let small = Options { pools: vec!["172.30.7.0/29".parse().unwrap()], ..Options::default() };
        let root = Root::new();
        let store = Arc::new(Store::open(root.instance().root()).unwrap());
        let error = Networks::open(&root.instance(), store, small).unwrap_err();
        assert!(matches!(error, Error::PoolsExhausted { .. }), "{error}");
    });
}

#[test]
fn addresses_run_out_clearly_and_return() {
    isolated(|| {
        let root = Root::new();
        let small = Options { pools: vec!["10.77.0.0/29".parse().unwrap()], ..Options::default() };
        let networks = root.open(small);
        let given: Vec<_> = (0..5).map(|_| networks.prepare(&request(vec![])).unwrap()).collect();
        let error = networks.prepare(&request(vec![port(8080)])).unwrap_err();
        assert!(error.to_string().contains("bridge (10.77.0.0/29)"), "{error}");
        TcpListener::bind("0.0.0.0:8080").unwrap();
        networks.release(&given[3].container).unwrap();
        assert_eq!(networks.prepare(&request(vec![])).unwrap().address(), given[3].address());
    });
}

#[test]
fn networks_are_made_and_everything_goes_with_the_last() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let blue = networks.create(&named("blue", "10.9.0.0/24")).unwrap();
        let red = networks.create(&NetworkRequest { name: "red".to_owned(), ..Default::default() }).unwrap();
        let links =
            |network: &Network| Routes::open().unwrap().link(&network.bridge().unwrap().link).unwrap();
        assert!(links(&blue).unwrap().up && links(&red).unwrap().up && forwarding());
        assert_eq!(red.addressing().unwrap().subnet.to_string(), "172.31.0.0/16");
        let given = networks.prepare(&within(&["red", "blue"])).unwrap();
        let interfaces = given.interfaces();
        assert_eq!((interfaces[0].name.as_str(), interfaces[1].name.as_str()), ("eth0", "eth1"));
        // The first by name has the default route, whatever the order of interfaces.
        assert_eq!((interfaces[0].gateway, interfaces[1].gateway), (None, Some([10, 9, 0, 1].into())));
        assert_eq!(interfaces[1].addresses, ["10.9.0.2/24"]);
        let error = networks.remove("blue").unwrap_err();
        assert!(error.to_string().contains("network blue has active endpoints (name:\"web\""), "{error}");
        assert_eq!(error.kind(), Kind::Denied);
        drop(networks);

        let networks = root.open(Options::default());
        assert_eq!(networks.get("blue").unwrap(), blue);
        networks.reconcile(&HashSet::from([given.container.clone()])).unwrap();
        networks.release(&given.container).unwrap();
        networks.remove("blue").unwrap();
        assert!(links(&blue).is_none() && links(&red).is_some() && forwarding());
        networks.remove(red.id.as_str()).unwrap();
        assert!(links(&red).is_none() && !forwarding());
        assert!(!Firewall::open(root.instance().table(), Vec::new()).unwrap().installed().unwrap());
        assert_eq!(networks.remove("red").unwrap_err().kind(), Kind::NotFound);
        let error = networks.remove("bridge").unwrap_err();
        assert_eq!(error.to_string(), "bridge is a pre-defined network and cannot be removed");
        drop(networks);
        assert!(root.open(Options::default()).list().iter().all(Network::predefined));
    });
}

#[test]
fn networks_that_cannot_be_leave_nothing() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let theirs = netlink::Bridge {
            name: "insula-test-y".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 0,
            addresses: vec![("10.44.7.1".parse().unwrap(), 24)],
        };
        Routes::open().unwrap().ensure_bridge(&theirs).unwrap();
        networks.create(&named("blue", "10.9.0.0/16")).unwrap();
        let taken = NetworkRequest {
            options: [("com.docker.network.bridge.name".to_owned(), "insula-test-y".to_owned())].into(),
            ..named("red", "10.10.0.0/16")
        };
        for (request, text) in [
            (named("blue", "10.10.0.0/16"), "network with name blue already exists"),
            (named("red", "10.9.4.0/24"), "10.9.4.0/24 with 10.9.0.0/16 of network blue"),
            (named("red", "10.44.0.0/16"), "with a route of this host to 10.44.7.0/24"),
            (taken, "bridge name insula-test-y is taken"),
        ] {
            let error = networks.create(&request).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        assert_eq!(networks.list().len(), 4);
        let links = Routes::open().unwrap().links().unwrap();
        assert_eq!(links.iter().filter(|link| link.kind == "bridge").count(), 3);
    });
}

#[test]
fn addresses_are_given_once_within_their_range() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let subnet = SubnetRequest {
            subnet: "10.9.0.0/24".to_owned(),
            range: "10.9.0.64/29".to_owned(),
            gateway: "10.9.0.65".to_owned(),
            auxiliary: [("router".to_owned(), "10.9.0.66".to_owned())].into(),
        };
        let v6 = SubnetRequest { subnet: "fd00:9::/64".to_owned(), ..SubnetRequest::default() };
        networks.create(&NetworkRequest { subnets: vec![subnet, v6], ..named("blue", "") }).unwrap();
        let given: Vec<_> = (0..6).map(|_| networks.prepare(&within(&["blue"])).unwrap()).collect();
        let mut last: Vec<u8> = given.iter().map(|one| one.address().unwrap().octets()[3]).collect();
        last.sort_unstable();
        assert_eq!(last, [64, 67, 68, 69, 70, 71], "neither the gateway nor what was set aside");
        let sixth: HashSet<_> = given.iter().map(|one| one.attachments[0].address6.unwrap()).collect();
        assert_eq!(sixth.len(), 6);
        assert!(matches!(networks.prepare(&within(&["blue"])), Err(Error::AddressesExhausted { .. })));
        let fixed = |v4: &str, v6: &str| {
            let connection = ConnectRequest {
                address: Some(v4.parse().unwrap()),
                address6: Some(v6.parse().unwrap()),
                ..wish("blue")
            };
            networks.prepare(&EndpointRequest { connections: vec![connection], ..request(vec![]) })
        };
        let kept = fixed("10.9.0.5", "fd00:9::ffff:0:0:5").unwrap();
        assert_eq!(kept.attachments[0].interface.as_ref().unwrap().addresses[1], "fd00:9::ffff:0:0:5/64");
        for (v4, v6) in [
            ("10.9.0.5", "fd00:9::a6"),
            ("10.9.0.65", "fd00:9::a6"),
            ("10.9.0.66", "fd00:9::a6"),
            ("10.9.0.6", "fd00:9::1"),
            ("10.9.0.6", "fd00:9::ffff:0:0:5"),
        ] {
            let error = fixed(v4, v6).unwrap_err();
            assert!(error.to_string().starts_with("Address already in use"), "{v4} {v6}: {error}");
        }
        assert_eq!(fixed("10.9.1.5", "fd00:9::a6").unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(fixed("10.9.0.6", "fd00:8::6").unwrap_err().kind(), Kind::InvalidArgument);
        networks.release(&kept.container).unwrap();
        fixed("10.9.0.5", "fd00:9::ffff:0:0:5").unwrap();
        fixed("10.9.0.6", "fd00:9::a6").unwrap();
    });
}

#[test]
fn a_container_that_runs_comes_and_goes() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        networks.create(&named("blue", "10.9.0.0/24")).unwrap();
        let request = request(vec![port(8080)]);
        let endpoint = networks.prepare(&request).unwrap();
        let namespace = start(&endpoint);
        assert!(greeted("127.0.0.1:8080"));
        let plain = ConnectRequest { aliases: vec!["db".to_owned()], ..wish("blue") };
        let (after, change) = networks.connect(&request.container, &plain).unwrap();
        assert!(matches!(networks.connect(&request.container, &plain), Err(Error::AlreadyConnected { .. })));
        netlink::change(&change, namespace.as_fd()).unwrap();
        assert!(greeted("127.0.0.1:8080") && greeted("10.9.0.2:80"));
        let bridge = networks.get("bridge").unwrap().id;
        let change = networks.departure(&request.container, &bridge).unwrap();
        let last = networks.disconnect(&request.container, &bridge).unwrap();
        assert_eq!(change.unplug, ["eth0"]);
        netlink::change(&change, namespace.as_fd()).unwrap();
        assert!(greeted("127.0.0.1:8080"), "the port leads to the network that is left");
        assert_eq!(after.attachments.len(), 2);
        assert_eq!(networks.endpoint(&request.container).unwrap().unwrap(), last);
        let links = inside(&namespace, || Routes::open().unwrap().links().unwrap());
        assert_eq!(links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["lo", "eth1"]);
        assert!(matches!(networks.disconnect(&request.container, &bridge), Err(Error::NotConnected { .. })));
    });
}

#[test]
fn nothing_enters_or_leaves_an_internal_network() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let closed = NetworkRequest { internal: true, ..named("closed", "10.9.0.0/24") };
        networks.create(&closed).unwrap();
        networks.create(&named("open", "10.8.0.0/24")).unwrap();
        let request = EndpointRequest { ports: vec![port(8080)], ..within(&["closed"]) };
        let endpoint = networks.prepare(&request).unwrap();
        assert!(endpoint.ports.is_empty() && endpoint.gateway().is_none());
        TcpListener::bind("0.0.0.0:8080").unwrap();
        let _closed = start(&endpoint);
        let (other, neighbour) =
            (networks.prepare(&within(&["open"])).unwrap(), networks.prepare(&within(&["closed"])).unwrap());
        let (other, neighbour) = (start(&other), start(&neighbour));
        let reach = |from: &File, limit| {
            inside(from, move || TcpStream::connect_timeout(&"10.9.0.2:80".parse().unwrap(), limit).is_ok())
        };
        assert!(reach(&neighbour, Duration::from_secs(10)), "neighbours see each other");
        assert!(!reach(&other, NO_ANSWER), "from another network");
        let out = inside(&neighbour, || {
            TcpStream::connect_timeout(&"10.8.0.2:80".parse().unwrap(), NO_ANSWER).is_ok()
        });
        assert!(!out);
    });
}

#[test]
fn ports_are_published_by_either_family() {
    isolated(|| {
        // Where the bridge calls the rules of IPv6 the kernel drops answers to ::1.
        let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "0");
        let all = "/proc/sys/net/ipv6/conf/all/forwarding";
        std::fs::write(all, "0").unwrap();
        let accept_ra = "/proc/sys/net/ipv6/conf/lo/accept_ra";
        std::fs::write(accept_ra, "1").unwrap();
        let root = Root::new();
        let networks = root.open(Options::default());
        let v6 = SubnetRequest { subnet: "fd00:9::/64".to_owned(), ..SubnetRequest::default() };
        networks.create(&NetworkRequest { subnets: vec![v6], ..named("dual", "") }).unwrap();
        let ports = vec![port(8080), port_on(8081, "::1"), port_on(8082, "127.0.0.1")];
        let request = EndpointRequest { ports, ..within(&["dual"]) };
        let endpoint = networks.prepare(&request).unwrap();
        let listed: Vec<_> =
            endpoint.ports.iter().map(|port| format!("{} {}", port.host_ip, port.host_port)).collect();
        assert_eq!(listed, ["0.0.0.0 8080", ":: 8080", "::1 8081", "127.0.0.1 8082"]);
        let _namespace = start(&endpoint);
        assert!(greeted("127.0.0.1:8080") && greeted("[::1]:8080") && greeted("[::1]:8081"));
        assert!(greeted("127.0.0.1:8082") && !greeted("[::1]:8082") && !greeted("127.0.0.1:8081"));
        assert!(TcpListener::bind("[::1]:8080").is_err(), "held");
        let error = networks.prepare(&EndpointRequest { ports: vec![port(8080)], ..within(&["dual"]) });
        assert!(error.unwrap_err().to_string().starts_with("Bind for 0.0.0.0:8080 failed"));
        let plain = EndpointRequest { ports: vec![port_on(8083, "::")], ..within(&["bridge"]) };
        let error = networks.prepare(&plain).unwrap_err();
        assert!(error.to_string().starts_with("cannot publish on [::]: the container is in no"), "{error}");
        drop(networks);

        let networks = root.open(Options::default());
        let kept = HashSet::from([request.container.clone()]);
        assert_eq!(networks.reconcile(&kept).unwrap(), [""; 0]);
        assert!(greeted("127.0.0.1:8080") && greeted("[::1]:8080"));
        assert!(TcpListener::bind("[::1]:8080").is_err(), "held again");
        let read = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
        assert_eq!((read(all), read(accept_ra)), ("1".to_owned(), "2".to_owned()));
        networks.release(&request.container).unwrap();
        networks.remove("dual").unwrap();
        assert_eq!((read(all), read(accept_ra)), ("0".to_owned(), "1".to_owned()));
    });
}

#[test]
fn ipv6_subnets_keep_clear_of_the_hosts_routes() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let theirs = netlink::Bridge {
            name: "insula-test-z".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 0,
            addresses: vec![("fd00:77:1::1".parse().unwrap(), 64)],
        };
        Routes::open().unwrap().ensure_bridge(&theirs).unwrap();
        let wanted = |subnet: &str| {
            let v6 = SubnetRequest { subnet: subnet.to_owned(), ..SubnetRequest::default() };
            NetworkRequest { subnets: vec![v6], ..named("dual", "") }
        };
        for subnet in ["fd00:77::/32", "fd00:77:1::/64", "fd00:77:1::8000/120"] {
            let error = networks.create(&wanted(subnet)).unwrap_err().to_string();
            assert!(error.contains("with a route of this host to fd00:77:1::/64"), "{error}");
        }
        networks.create(&wanted("fd00:77:2::/64")).unwrap();
        let error = networks.create(&NetworkRequest { name: "b".to_owned(), ..wanted("fd00:77:2::/80") });
        assert!(error.unwrap_err().to_string().contains("of network dual"));
    });
}

/// A network of macvlans.
fn macvlan(name: &str, subnet: &str, options: &[(&str, &str)]) -> NetworkRequest {
    let option = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let options = options.iter().map(option).collect();
    NetworkRequest { driver: "macvlan".to_owned(), options, ..named(name, subnet) }
}

#[test]
fn macvlans_are_on_the_hosts_own_network() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let routes = Routes::open().unwrap();
        routes.ensure_alone("insula-test-n").unwrap();
        let on = |parent: &'static str| [("parent", parent)];
        let lan = networks.create(&macvlan("lan", "10.44.7.0/24", &on("insula-test-n"))).unwrap();
        assert_eq!((lan.driver.name(), lan.internal), ("macvlan", false));
        assert!(!forwarding(), "nothing of the host is changed");
        let request = EndpointRequest { ports: vec![port(8080)], ..within(&["lan"]) };
        let first = networks.prepare(&request).unwrap();
        assert_eq!(first.gateway().unwrap().address.to_string(), "10.44.7.1");
        assert!(first.ports.is_empty(), "it is on the wire with all its ports");
        let _first = start(&first);
        let neighbour = start(&networks.prepare(&within(&["lan"])).unwrap());
        assert!(inside(&neighbour, || greeted("10.44.7.2:80")));
        assert!(!Firewall::open(root.instance().table(), Vec::new()).unwrap().installed().unwrap());
        drop(networks);

        let networks = root.open(Options::default());
        assert_eq!(networks.get("lan").unwrap(), lan);
        let alone = networks.create(&macvlan("alone", "10.45.0.0/24", &[])).unwrap();
        let parent = alone.macvlan().unwrap().parent.clone();
        assert!(alone.internal && routes.link(&parent).unwrap().is_some_and(|link| link.up));
        let endpoint = networks.prepare(&within(&["alone"])).unwrap();
        assert_eq!(endpoint.gateway(), None);
        let _alone = start(&endpoint);
        // What was made goes and comes with its network; what was there stays.
        routes.delete(&parent).unwrap();
        networks.release(&endpoint.container).unwrap();
        networks.prepare(&within(&["alone"])).unwrap();
        assert!(routes.link(&parent).unwrap().is_some());
        networks.reconcile(&HashSet::new()).unwrap();
        networks.remove("alone").unwrap();
        networks.remove("lan").unwrap();
        assert!(routes.link(&parent).unwrap().is_none());
        assert!(routes.link("insula-test-n").unwrap().is_some());
    });
}

#[test]
fn macvlans_that_cannot_be_leave_nothing() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let routes = Routes::open().unwrap();
        for name in ["insula-test-n", "insula-test-o"] {
            routes.ensure_alone(name).unwrap();
        }
        networks.create(&macvlan("lan", "10.44.7.0/24", &[("parent", "insula-test-n")])).unwrap();
        let before = routes.links().unwrap().len();
        for (request, text) in [
            (macvlan("x", "", &[("parent", "lo")]), "invalid parent interface lo: the loopback"),
            (macvlan("x", "", &[("parent", "insula-no")]), "interface insula-no: this host has no interface"),
            (macvlan("x", "", &[("parent", "insula-no.7")]), "interface insula-no.7: this host has no"),
            (macvlan("x", "", &[("parent", "lo.4095")]), "a VLAN has a number from 1 to 4094"),
            (macvlan("x", "", &[("parent", "insula-test-n")]), "network lan is already using parent"),
            (macvlan("x", "10.44.0.0/16", &[("parent", "insula-test-o")]), "of network lan"),
            (macvlan("x", "", &[("macvlan_mode", "loud")]), "invalid value \"loud\""),
            (
                macvlan("x", "", &[("com.docker.network.bridge.name", "b")]),
                "the macvlan driver has no option",
            ),
            (
                NetworkRequest { driver: "ipvlan".to_owned(), ..macvlan("x", "", &[]) },
                "the network driver ipvlan (there are bridge and macvlan) is not available",
            ),
        ] {
            let error = networks.create(&request).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        assert_eq!(routes.links().unwrap().len(), before);
        routes.delete("insula-test-n").unwrap();
        let error = networks.prepare(&within(&["lan"])).unwrap_err().to_string();
        assert!(error.contains("insula-test-n: this host has no interface of that name any more"), "{error}");
        assert_eq!(networks.endpoints().unwrap(), []);
    });
}

#[test]
fn a_rate_is_that_of_every_interface() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        networks.create(&named("blue", "10.9.0.0/24")).unwrap();
        let rate = |bits| std::num::NonZeroU64::new(bits);
        let request = EndpointRequest { rate: rate(8000), ..within(&["bridge"]) };
        networks.prepare(&request).unwrap();
        let (_, change) = networks.connect(&request.container, &wish("blue")).unwrap();
        assert_eq!(change.plug[0].rate, rate(8000));
        assert_eq!(networks.set_rate(&request.container, rate(8000)).unwrap(), None);
        let change = networks.set_rate(&request.container, rate(9000)).unwrap().unwrap();
        assert_eq!(change.shape.iter().map(|plan| plan.rate).collect::<Vec<_>>(), [rate(9000); 2]);
        assert!(change.gateway.is_some());
        let kept = networks.endpoint(&request.container).unwrap().unwrap();
        assert!(kept.interfaces().iter().all(|plan| plan.rate == rate(9000)));
        let lan = NetworkRequest { driver: "macvlan".to_owned(), ..named("lan", "10.8.0.0/24") };
        networks.create(&lan).unwrap();
        let error = networks.connect(&request.container, &wish("lan")).unwrap_err();
        assert_eq!(error.to_string(), "a network rate needs networks of the bridge driver: lan is none");
        networks.release(&request.container).unwrap();
    });
}

/// A dropped packet is never answered: the wait is short where that is expected.
const NO_ANSWER: Duration = Duration::from_millis(300);

/// Not a timed test: it prints what a start pays.
#[test]
fn warm_starts_are_measured() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        networks.warm().unwrap();
        let requests: Vec<_> = (0..50).map(|n| request(vec![port(20_000 + n)])).collect();
        let begin = std::time::Instant::now();
        let endpoints: Vec<_> = requests.iter().map(|request| networks.prepare(request).unwrap()).collect();
        let prepare = begin.elapsed() / 50;
        let namespaces: Vec<_> = endpoints.iter().map(|_| another()).collect();
        let begin = std::time::Instant::now();
        for (endpoint, namespace) in endpoints.iter().zip(&namespaces) {
            netlink::plug(&endpoint.interfaces()[0], namespace.as_fd()).unwrap();
        }
        let plug = begin.elapsed() / 50;
        let begin = std::time::Instant::now();
        endpoints.iter().for_each(|endpoint| networks.release(&endpoint.container).unwrap());
        eprintln!("prepare {prepare:?}, plug {plug:?}, release {:?}", begin.elapsed() / 50);
        assert_eq!(networks.endpoints().unwrap(), []);
    });
}

#[test]
fn what_differs_from_the_rows_is_found_and_set_right() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        let request = request(vec![port(18_091)]);
        let endpoint = networks.prepare(&request).unwrap();
        let _namespace = start(&endpoint);
        let live = HashSet::from([request.container.clone()]);
        assert_eq!(networks.deviations(&live).unwrap(), []);
        let (bridge, end) = {
            let plan = endpoint.interfaces().remove(0);
            (plan.bridge, plan.host_name)
        };
        let network = networks.get("bridge").unwrap();
        let allocations = networks.store.state().allocations();
        let address = IpAddr::V4(endpoint.address().unwrap());
        let (pool, number) = network.place(address);
        // One of each kind, by hand.
        allocations.release(&pool, number).unwrap();
        allocations.allocate(&pool, number + 1..number + 2, None, "nobody").unwrap();
        {
            let inner = networks.lock();
            let lost = netlink::Bridge {
                name: format!("{}-01234", networks.links),
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1500,
                addresses: Vec::new(),
            };
            inner.routes.ensure_bridge(&lost).unwrap();
            inner.routes.set_master(&end, None).unwrap();
        }
        networks.firewall.remove(&plumbing::forwards(&endpoint), &[]).unwrap();
        let found = networks.deviations(&live).unwrap();
        let has = |wanted: &Deviation| assert!(found.contains(wanted), "{wanted:?} is not in {found:?}");
        has(&Deviation::NoAddress { address, container: request.container.clone() });
        has(&Deviation::Address { pool, number: number + 1, owner: "nobody".to_owned() });
        has(&Deviation::Bridge { name: format!("{}-01234", networks.links) });
        has(&Deviation::Unplugged {
            name: end,
            bridge: bridge.clone(),
            container: request.container.clone(),
        });
        assert!(
            found
                .iter()
                .any(|one| matches!(one, Deviation::Rules(insula_host::firewall::Deviation::Missing(_))))
        );
        for deviation in &found {
            networks.repair(deviation).unwrap();
        }
        assert_eq!(networks.deviations(&live).unwrap(), []);
        assert!(greeted(&format!("{address}:80")) && greeted("127.0.0.1:18091"));
        // A bridge that is gone, with the container's end of it.
        networks.lock().routes.delete(&bridge).unwrap();
        let found = networks.deviations(&live).unwrap();
        assert!(matches!(&found[..], [Deviation::NoBridge { .. }, Deviation::Unplugged { .. }]), "{found:?}");
        for deviation in &found {
            networks.repair(deviation).unwrap();
        }
        assert!(greeted(&format!("{address}:80")));
        // What a container has that does not run.
        let found = networks.deviations(&HashSet::new()).unwrap();
        assert_eq!(found, [Deviation::Endpoint { container: request.container }]);
        networks.repair(&found[0]).unwrap();
        let left = networks.deviations(&HashSet::new()).unwrap();
        // Its end is still in the bridge, as its namespace is still there.
        assert!(matches!(&left[..], [Deviation::Interface { .. }]), "{left:?}");
        networks.repair(&left[0]).unwrap();
        assert_eq!(networks.deviations(&HashSet::new()).unwrap(), []);
        assert!(networks.retire().unwrap());
        assert_eq!(networks.deviations(&HashSet::new()).unwrap(), []);
    });
}
