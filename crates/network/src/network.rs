//! A network as the state keeps it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::time::SystemTime;

use insula_base::NetworkId;
use insula_spec::plan::MacvlanMode;
use serde::{Deserialize, Serialize};

use crate::{Subnet, Subnet6};

/// Names that are there from the beginning.
pub(crate) const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

/// Containers that see each other, or one of the two kinds of none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub name: String,
    pub driver: Driver,
    pub created: SystemTime,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Options of the driver, as asked for.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Nothing goes in or out.
    #[serde(default)]
    pub internal: bool,
    /// Docker's word for swarm networks that plain containers may join. Every one may be joined here.
    #[serde(default)]
    pub attachable: bool,
}

/// What makes a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "driver")]
pub enum Driver {
    /// A bridge of the host behind NAT.
    Bridge(BridgeNetwork),
    /// Addresses of their own on an interface of the host.
    Macvlan(MacvlanNetwork),
    /// The host's own namespace.
    Host,
    /// Loopback alone.
    Null,
}

impl Driver {
    /// Docker's name of it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bridge(_) => "bridge",
            Self::Macvlan(_) => "macvlan",
            Self::Host => "host",
            Self::Null => "null",
        }
    }
}

/// A bridge of the host and its subnets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeNetwork {
    /// Name of the link.
    pub link: String,
    #[serde(flatten)]
    pub addressing: Addressing,
    /// Whether what leaves the network gets the host's address.
    #[serde(default = "yes")]
    pub masquerade: bool,
    /// Whether containers in it see each other.
    #[serde(default = "yes")]
    pub icc: bool,
    /// Whether packets from addresses that a container was not given are dropped.
    #[serde(default = "yes")]
    pub guard: bool,
    /// Where ports are published that name no address of the host.
    #[serde(default)]
    pub host_binding: Option<Ipv4Addr>,
}

/// An interface of the host on which containers have hardware addresses of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacvlanNetwork {
    /// Name of the interface.
    pub parent: String,
    pub origin: ParentOrigin,
    pub mode: MacvlanMode,
    #[serde(flatten)]
    pub addressing: Addressing,
}

/// Who made the interface that a macvlan hangs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "origin")]
pub enum ParentOrigin {
    /// Somebody else: it stays as it is.
    Host,
    /// We: the part of `device` that has this VLAN number.
    Vlan { device: String, number: u16 },
    /// We: one that leads nowhere, for a network without a parent.
    Alone,
}

/// What addresses containers of a network have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addressing {
    pub subnet: Subnet,
    /// Of the containers' interfaces, and of a bridge; 0 is the parent's.
    pub mtu: u32,
    /// The way out: the host's address on a bridge, a router's otherwise. `None` is the first one of the subnet.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// The part of the subnet that addresses are given from; `None` is all of it.
    #[serde(default)]
    pub range: Option<Subnet>,
    /// Addresses that are given to nobody, by the names that the user has for them.
    #[serde(default)]
    pub auxiliary: BTreeMap<String, IpAddr>,
    #[serde(default)]
    pub v6: Option<BridgeV6>,
    /// What interfaces inside are called, before their number.
    #[serde(default = "eth")]
    pub interface_prefix: String,
}

/// The second half of a dual stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeV6 {
    pub subnet: Subnet6,
    pub gateway: Ipv6Addr,
    pub range: Option<Subnet6>,
    pub masquerade: bool,
}

fn yes() -> bool {
    true
}

fn eth() -> String {
    "eth".to_owned()
}

impl BridgeNetwork {
    /// A network of a subnet with nothing special.
    #[must_use]
    pub fn plain(link: String, subnet: Subnet, mtu: u32) -> Self {
        let addressing = Addressing {
            subnet,
            mtu,
            gateway: None,
            range: None,
            auxiliary: BTreeMap::new(),
            v6: None,
            interface_prefix: eth(),
        };
        Self { link, addressing, masquerade: true, icc: true, guard: true, host_binding: None }
    }
}

impl Addressing {
    /// The way out, which on a bridge is the host.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway.unwrap_or_else(|| self.subnet.gateway())
    }

    /// Numbers of the addresses that are given when nobody asks for a certain one.
    pub(crate) fn numbers(&self) -> Range<u64> {
        match (self.gateway, self.range) {
            (_, Some(range)) => {
                let (all, first) = (self.subnet.addresses(), u64::from(u32::from(range.address())));
                let end = first + (1u64 << (32 - u32::from(range.prefix())));
                first.max(all.start)..end.min(all.end)
            }
            (Some(_), None) => self.subnet.addresses(),
            (None, None) => self.subnet.hosts(),
        }
    }

    /// Addresses that the books keep for the network itself.
    pub(crate) fn kept(&self) -> impl Iterator<Item = IpAddr> {
        let gateway = self.gateway.map(IpAddr::V4);
        let gateway6 = self.v6.as_ref().map(|v6| IpAddr::V6(v6.gateway));
        gateway.into_iter().chain(gateway6).chain(self.auxiliary.values().copied())
    }
}

impl Network {
    /// Whether it was there from the beginning and cannot go.
    #[must_use]
    pub fn predefined(&self) -> bool {
        PREDEFINED.contains(&self.name.as_str())
    }

    /// The bridge, if it is one.
    #[must_use]
    pub fn bridge(&self) -> Option<&BridgeNetwork> {
        match &self.driver {
            Driver::Bridge(bridge) => Some(bridge),
            Driver::Macvlan(_) | Driver::Host | Driver::Null => None,
        }
    }

    /// The interface that it hangs on, if it is of that kind.
    pub(crate) fn macvlan(&self) -> Option<&MacvlanNetwork> {
        match &self.driver {
            Driver::Macvlan(macvlan) => Some(macvlan),
            Driver::Bridge(_) | Driver::Host | Driver::Null => None,
        }
    }

    /// What addresses its containers have, if it gives them some.
    #[must_use]
    pub fn addressing(&self) -> Option<&Addressing> {
        match &self.driver {
            Driver::Bridge(bridge) => Some(&bridge.addressing),
            Driver::Macvlan(macvlan) => Some(&macvlan.addressing),
            Driver::Host | Driver::Null => None,
        }
    }

    /// Whether IPv6 packets go in and out of it.
    pub(crate) fn routes6(&self) -> bool {
        !self.internal && self.bridge().is_some_and(|bridge| bridge.addressing.v6.is_some())
    }

    /// The pool of the state from which addresses are given.
    pub(crate) fn pool(&self) -> String {
        format!("network:{}", self.id)
    }

    /// The pool and the number that stand for an address.
    pub(crate) fn place(&self, address: IpAddr) -> (String, u64) {
        match (address, self.addressing().and_then(|addressing| addressing.v6.as_ref())) {
            (IpAddr::V6(address), Some(v6)) => {
                let (high, number) = v6.subnet.place(address);
                (format!("{}{high}", self.pool6()), number)
            }
            (IpAddr::V4(address), _) => (self.pool(), u64::from(u32::from(address))),
            // There is no such address in a network without IPv6.
            (IpAddr::V6(_), None) => (self.pool6(), 0),
        }
    }

    pub(crate) fn pool6(&self) -> String {
        format!("network6:{}", self.id)
    }

    /// Owner of the addresses that the network keeps for itself.
    pub(crate) fn owner(&self) -> String {
        format!("network:{}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_first_version_are_read() {
        let text = format!(
            r#"{{"id":"{}","name":"blue","created":{{"secs_since_epoch":1,"nanos_since_epoch":0}},
            "driver":{{"driver":"bridge","link":"insula-blue","subnet":"10.9.0.0/24","mtu":1450,
            "gateway":"10.9.0.7","v6":{{"subnet":"fd00:9::/64","gateway":"fd00:9::1","range":null,
            "masquerade":true}},"icc":false}}}}"#,
            "ab".repeat(32)
        );
        let network: Network = serde_json::from_str(&text).unwrap();
        let bridge = network.bridge().unwrap();
        assert_eq!((bridge.link.as_str(), bridge.icc, bridge.guard), ("insula-blue", false, true));
        assert_eq!((bridge.addressing.mtu, bridge.addressing.gateway().octets()[3]), (1450, 7));
        assert_eq!(bridge.addressing.v6.as_ref().unwrap().subnet.prefix(), 64);
        let again = serde_json::to_string(&network).unwrap();
        assert_eq!(serde_json::from_str::<Network>(&again).unwrap(), network);
    }
}
