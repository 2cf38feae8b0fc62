//! What becomes of the parameters of the kernel's network while there are networks of ours, and afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::tests::{Root, isolated, named, port, within};
use super::*;
use crate::{NetworkRequest, SubnetRequest};

const ROOT: &str = "/proc/sys/net";

/// All parameters of these names below `/proc/sys/net` with their values, those that cannot be read left out.
fn settings() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<_> = ["core", "ipv4", "ipv6", "bridge", "netfilter"]
        .iter()
        .map(|name| Path::new(ROOT).join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(value) = fs::read_to_string(&path) {
                let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
                found.insert(name, value.trim().to_owned());
            }
        }
    }
    // How many connections are known at the moment.
    found.remove("netfilter/nf_conntrack_count");
    found
}

/// Names of what differs, but for interfaces that are in one of both only.
fn changed(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> BTreeSet<String> {
    let differs = |(name, value): &(&String, &String)| after.get(*name).is_some_and(|now| now != *value);
    before.iter().filter(differs).map(|(name, _)| name.clone()).collect()
}

fn set(name: &str, value: &str) {
    fs::write(Path::new(ROOT).join(name), value).unwrap();
}

#[test]
fn parameters_of_the_kernel_are_what_they_were_once_the_last_network_is_gone() {
    isolated(|| {
        // A host that has been hardened, and where one interface forwards by itself.
        for (name, value) in [
            ("ipv6/conf/all/forwarding", "0"),
            ("ipv6/conf/default/accept_ra", "1"),
            ("ipv6/conf/lo/forwarding", "1"),
            ("ipv4/conf/all/accept_redirects", "0"),
            ("ipv4/conf/default/forwarding", "1"),
            ("ipv4/conf/lo/forwarding", "1"),
        ] {
            set(name, value);
        }
        let root = Root::new();
        let before = settings();
        let networks = root.open(Options::default());
        let v6 = SubnetRequest { subnet: "fd00:9::/64".to_owned(), ..SubnetRequest::default() };
        networks.create(&NetworkRequest { subnets: vec![v6], ..named("dual", "") }).unwrap();
        networks.create(&NetworkRequest { driver: "macvlan".to_owned(), ..named("lan", "") }).unwrap();
        let request = EndpointRequest { ports: vec![port(8080)], ..within(&["bridge", "dual", "lan"]) };
        networks.prepare(&request).unwrap();
        let during = changed(&before, &settings());
        // Forwarding, what the kernel lets follow from it, and that routers are still heard.
        let needed = |name: &&String| {
            matches!(name.as_str(), "ipv4/ip_forward" | "ipv4/conf/all/accept_redirects")
                || name.starts_with("ipv") && name.ends_with("/forwarding")
                || name.starts_with("ipv6/") && name.ends_with("/accept_ra")
        };
        let others: Vec<_> = during.iter().filter(|name| !needed(name)).collect();
        assert!(others.is_empty(), "{others:?}");
        assert!(
            during.contains("ipv4/ip_forward") && during.contains("ipv6/conf/all/forwarding"),
            "{during:?}"
        );

        networks.release(&request.container).unwrap();
        for name in ["dual", "lan"] {
            networks.remove(name).unwrap();
        }
        networks.retire().unwrap();
        let after = settings();
        assert_eq!(changed(&before, &after), BTreeSet::new());
        let names = |all: &BTreeMap<String, String>| all.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&before), names(&after));
    });
}

#[test]
fn a_daemon_of_a_former_version_has_noted_the_boot_alone() {
    isolated(|| {
        let root = Root::new();
        let networks = root.open(Options::default());
        networks.create(&named("blue", "")).unwrap();
        let meta = networks.store.state().records(insula_store::Collection::Meta);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        meta.remove(rows::FORWARDING).unwrap();
        let doc = serde_json::to_vec(boot.trim()).unwrap();
        meta.insert(&insula_store::Record { id: rows::FORWARDING.to_owned(), name: None, doc }).unwrap();
        networks.remove("blue").unwrap();
        assert!(!insula_host::netlink::forwarding().unwrap());
    });
}
