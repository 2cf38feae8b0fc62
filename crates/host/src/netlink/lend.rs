//! An interface that somebody has configured for processes of its namespace, and that a machine is to have
//! instead: the container network plugins of Kubernetes know nothing of machines.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use insula_spec::plan::{InterfaceKind, InterfacePlan};

use super::bridge::Bridge;
use super::link::{IFLA_ADDRESS, RTM_NEWADDR, RTM_NEWLINK, link_header};
use super::message::{Batch, DUMP, attributes, word};
use super::{Error, Routes, octets};

const RTM_GETLINK: u16 = 18;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const AF_INET: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const TABLE_MAIN: u8 = 254;
const BY_THE_KERNEL: u8 = 2;
const UNIVERSE: u8 = 0;
const UNICAST: u8 = 1;

/// An address of an interface as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address {
    address: IpAddr,
    prefix: u8,
    scope: u8,
}

impl Routes {
    /// Takes what the interface `name` of the caller's namespace has, and makes it a port of a new `bridge`: a
    /// machine whose card has the returned plan is then what the interface was, for whoever is at its other
    /// end. `host_name` is what the machine's tap is called. Routes that a plan cannot say are refused.
    pub fn lend(&self, name: &str, bridge: &str, host_name: &str) -> Result<InterfacePlan, Error> {
        let link = self.link(name)?.ok_or_else(|| Error::NoLink { name: name.to_owned() })?;
        let mac = self.hardware_address(link.index, name)?;
        let addresses = self.addresses(link.index, name)?;
        let (gateway, gateway6) = self.gateways(link.index, name)?;
        let own = |address: &&Address| address.scope == UNIVERSE;
        let text = |address: &Address| format!("{}/{}", address.address, address.prefix);
        let plan = InterfacePlan {
            name: name.to_owned(),
            kind: InterfaceKind::Veth,
            bridge: bridge.to_owned(),
            host_name: host_name.to_owned(),
            mac: mac.map(|byte| format!("{byte:02x}")).join(":"),
            mtu: link.mtu,
            addresses: addresses.iter().filter(own).map(text).collect(),
            gateway,
            gateway6,
            hairpin: false,
            rate: None,
        };
        self.ensure_bridge(&Bridge {
            name: bridge.to_owned(),
            mac: another(mac, 2),
            mtu: link.mtu,
            addresses: Vec::new(),
        })?;
        self.set_up(name, false)?;
        for address in &addresses {
            self.remove(link.index, address, name)?;
        }
        // What comes for the address of before is the machine's.
        let other = another(mac, 1).map(|byte| format!("{byte:02x}")).join(":");
        self.set_hardware(name, &InterfacePlan { mac: other, ..plan.clone() })?;
        self.set_master(name, Some(bridge))?;
        self.set_up(name, true)?;
        Ok(plan)
    }

    fn hardware_address(&self, index: u32, name: &str) -> Result<[u8; 6], Error> {
        let mut batch = Batch::new();
        batch.begin(RTM_GETLINK, 0, &link_header(index, 0, 0), "find link", name);
        let mut found = None;
        batch.exchange(&self.socket, |kind, payload| {
            if kind == RTM_NEWLINK {
                let address = attributes(payload.get(16..).unwrap_or_default());
                found =
                    address.filter(|(kind, _)| *kind == IFLA_ADDRESS).last().map(|(_, value)| value.to_vec());
            }
        })?;
        let address = found.unwrap_or_default();
        address.as_slice().try_into().map_err(|_| Error::Malformed {
            name: name.to_owned(),
            what: "hardware address",
            text: format!("{address:02x?}"),
        })
    }

    fn addresses(&self, index: u32, name: &str) -> Result<Vec<Address>, Error> {
        let mut batch = Batch::new();
        batch.begin(RTM_GETADDR, DUMP, &[0; 8], "list addresses of", name);
        let mut found = Vec::new();
        batch.exchange(&self.socket, |kind, payload| {
            if kind == RTM_NEWADDR && word(payload, 4) == Some(index) {
                found.extend(parse_address(payload));
            }
        })?;
        Ok(found)
    }

    fn remove(&self, index: u32, address: &Address, name: &str) -> Result<(), Error> {
        let (bytes, length) = octets(address.address);
        let mut header = [if length == 4 { AF_INET } else { 10 }, address.prefix, 0, 0, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut batch = Batch::new();
        batch.begin(RTM_DELADDR, 0, &header, "remove an address of", name);
        batch.attribute(IFA_LOCAL, &bytes[..length]);
        batch.acknowledge();
        match batch.run(&self.socket) {
            // Of version 6 they go with the link.
            Err(error) if error.errno() == Some(99) => Ok(()),
            removed => removed,
        }
    }

    /// Gateways of the default routes by a link.
    fn gateways(&self, index: u32, name: &str) -> Result<(Option<IpAddr>, Option<IpAddr>), Error> {
        let mut batch = Batch::new();
        // Of both versions.
        batch.begin(RTM_GETROUTE, DUMP, &[0; 12], "list routes of", name);
        let (mut gateways, mut odd) = ((None, None), None);
        batch.exchange(&self.socket, |kind, payload| {
            if kind != RTM_NEWROUTE {
                return;
            }
            match parse_route(payload).filter(|route| route.link == Some(index)) {
                Some(Route { destination: None, gateway: Some(gateway), .. }) => match gateway {
                    IpAddr::V4(_) => gateways.0 = Some(gateway),
                    IpAddr::V6(_) => gateways.1 = Some(gateway),
                },
                Some(route) => odd = Some(route),
                None => {}
            }
        })?;
        match odd {
            Some(route) => Err(Error::Malformed {
                name: name.to_owned(),
                what: "for a machine, its route",
                text: route.to_string(),
            }),
            None => Ok(gateways),
        }
    }
}

/// Another one that is nobody's: locally administered, apart by a bit.
fn another(mac: [u8; 6], bit: u8) -> [u8; 6] {
    let [first, rest @ ..] = mac;
    let [a, b, c, d, e] = rest;
    [(first | 2) & 0xfe, a ^ 0x80, b ^ (bit << 6), c, d, e]
}

fn parse_address(payload: &[u8]) -> Option<Address> {
    let header: &[u8; 8] = payload.first_chunk()?;
    let (mut local, mut address) = (None, None);
    for (kind, value) in attributes(&payload[8..]) {
        match kind {
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => address = ip(value),
            _ => {}
        }
    }
    Some(Address { address: local.or(address)?, prefix: header[1], scope: header[3] })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into()),
        16 => bytes.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

/// One that somebody has made, not the kernel by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Route {
    /// None for the default.
    destination: Option<(IpAddr, u8)>,
    gateway: Option<IpAddr>,
    link: Option<u32>,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.destination {
            Some((address, prefix)) => write!(f, "{address}/{prefix}")?,
            None => write!(f, "default")?,
        }
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))
    }
}

fn parse_route(payload: &[u8]) -> Option<Route> {
    let header: &[u8; 12] = payload.first_chunk()?;
    let (prefix, table, by, kind) = (header[1], header[4], header[5], header[7]);
    if table != TABLE_MAIN || by == BY_THE_KERNEL || kind != UNICAST {
        return None;
    }
    let mut route = Route { destination: None, gateway: None, link: None };
    for (kind, value) in attributes(&payload[12..]) {
        match kind {
            RTA_DST => route.destination = Some((ip(value)?, prefix)),
            RTA_GATEWAY => route.gateway = ip(value),
            RTA_OIF => route.link = word(value, 0),
            _ => {}
        }
    }
    Some(route)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::netlink::tests::{another, bridge, inside, isolated, plan};

    #[test]
    fn an_interface_gives_up_what_it_has_and_stays_connected() {
        isolated(|| {
            let routes = Routes::open().unwrap();
            routes.ensure_bridge(&bridge()).unwrap();
            let (pod, plan) = (another(), plan(7));
            routes.plug(&plan, pod.as_fd()).unwrap();
            let asked = plan.clone();
            let (lent, left) = inside(&pod, move || {
                let routes = Routes::open().unwrap();
                routes.configure(&[asked]).unwrap();
                let lent = routes.lend("eth0", "machine", "card").unwrap();
                let link = routes.link("eth0").unwrap().unwrap();
                assert!(link.up && link.master == routes.link("machine").unwrap().map(|link| link.index));
                let mac = routes.hardware_address(link.index, "eth0").unwrap();
                assert_ne!(mac.map(|byte| format!("{byte:02x}")).join(":"), lent.mac);
                (lent, routes.addresses(link.index, "eth0").unwrap())
            });
            assert!(left.iter().all(|address| address.scope != UNIVERSE), "{left:?}");
            assert_eq!((&lent.mac, lent.mtu), (&plan.mac, plan.mtu));
            assert_eq!(lent.addresses, plan.addresses);
            assert_eq!((lent.gateway, lent.gateway6), (plan.gateway, plan.gateway6));
            assert_eq!((lent.bridge.as_str(), lent.host_name.as_str()), ("machine", "card"));
        });
    }

    #[test]
    fn a_route_that_no_plan_can_say_is_refused() {
        isolated(|| {
            let routes = Routes::open().unwrap();
            routes.ensure_bridge(&bridge()).unwrap();
            let (pod, plan) = (another(), plan(7));
            routes.plug(&plan, pod.as_fd()).unwrap();
            inside(&pod, move || {
                Routes::open().unwrap().configure(&[plan]).unwrap();
                let mut ip = std::process::Command::new("ip");
                let made = ip.args(["route", "add", "10.9.0.0/16", "via", "172.30.0.3"]).status();
                assert!(made.unwrap().success());
                let refused = Routes::open().unwrap().lend("eth0", "machine", "card").unwrap_err();
                assert!(refused.to_string().contains("10.9.0.0/16 via 172.30.0.3"), "{refused}");
            });
        });
    }
}
