//! A container's place in networks: what is asked for and what was given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;

use insula_base::{ContainerId, NetworkId};
use insula_spec::plan::{GatewayPlan, InterfaceKind, InterfacePlan};
use serde::{Deserialize, Serialize};

use crate::network::PREDEFINED;
use crate::{PortRequest, PublishedPort};

/// How a container is connected: Docker's `NetworkMode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// A namespace of its own with loopback alone.
    None,
    /// The host's own namespace.
    Host,
    /// The namespace of another container, by the reference that the user gave.
    Container(String),
    /// A network by name or id.
    Network(String),
}

impl Mode {
    /// From Docker's `NetworkMode`; empty and `default` are the default bridge.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "" | "default" | "bridge" => Self::Network("bridge".to_owned()),
            "none" => Self::None,
            "host" => Self::Host,
            other => match other.strip_prefix("container:") {
                Some(reference) => Self::Container(reference.to_owned()),
                None => Self::Network(other.to_owned()),
            },
        }
    }
}

/// What a container that is about to start asks for.
#[derive(Debug, Clone)]
pub struct EndpointRequest {
    pub container: ContainerId,
    /// Its name, by which others find it.
    pub name: String,
    pub hostname: String,
    pub mode: Mode,
    /// The networks of [`Mode::Network`], in the order of interfaces; empty for the other modes.
    pub connections: Vec<ConnectRequest>,
    pub ports: Vec<PortRequest>,
    /// Bits a second, each way, on each interface.
    pub rate: Option<NonZeroU64>,
}

/// One network that a container is to be in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectRequest {
    /// By name or id.
    pub network: String,
    /// A fixed address of the network; `None` takes the next free one.
    pub address: Option<Ipv4Addr>,
    pub address6: Option<Ipv6Addr>,
    /// `02:42:ac:11:00:02`; `None` derives one from the address.
    pub mac: Option<String>,
    /// More names in this network.
    pub aliases: Vec<String>,
    /// Other containers and what they are called in here.
    pub links: Vec<(String, String)>,
    /// Of the networks of a container the highest has the default route.
    pub priority: i64,
}

/// What a container was given, as kept in the state until it is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub container: ContainerId,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub hostname: String,
    /// Empty for `container:`; one without an interface for `none` and `host`.
    pub attachments: Vec<Attachment>,
    pub ports: Vec<PublishedPort>,
    #[serde(default)]
    pub rate: Option<NonZeroU64>,
}

impl Endpoint {
    /// What the wall is to make, for [`insula_spec::plan::ContainerPlan::interfaces`].
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfacePlan> {
        let (gateway, gateway6) = (self.gateway(), self.gateway6());
        let here = |gateway: &Option<GatewayPlan>, name: &str| {
            gateway.as_ref().filter(|gateway| gateway.interface == name).map(|gateway| gateway.address)
        };
        let interfaces = self.attachments.iter().filter_map(|attachment| attachment.interface.clone());
        interfaces
            .map(|plan| InterfacePlan {
                gateway: here(&gateway, &plan.name),
                gateway6: here(&gateway6, &plan.name),
                ..plan
            })
            .collect()
    }

    /// The address that the container's own name resolves to, if it has one.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.attachments.iter().find_map(|attachment| attachment.address)
    }

    /// Whether a name server answers in it.
    #[must_use]
    pub fn named(&self) -> bool {
        self.attachments.iter().any(Attachment::named)
    }

    /// In one network.
    #[must_use]
    pub fn attachment(&self, network: &NetworkId) -> Option<&Attachment> {
        self.attachments.iter().find(|attachment| attachment.network == *network)
    }

    /// Where packets to elsewhere go.
    #[must_use]
    pub fn gateway(&self) -> Option<GatewayPlan> {
        self.outward(|attachment| attachment.gateway)
    }

    /// The same for IPv6.
    #[must_use]
    pub fn gateway6(&self) -> Option<GatewayPlan> {
        self.outward(|attachment| attachment.gateway6.map(IpAddr::V6))
    }

    /// The attachment that published ports lead to: the one with the default route, if that is on a bridge.
    #[must_use]
    pub fn published(&self) -> Option<&Attachment> {
        self.bridged(&self.gateway()?)
    }

    /// The same for ports of IPv6 addresses.
    #[must_use]
    pub fn published6(&self) -> Option<&Attachment> {
        self.bridged(&self.gateway6()?)
    }

    /// The address by which the host itself reaches it: where published ports lead, else on any bridge.
    #[must_use]
    pub fn reached(&self) -> Option<IpAddr> {
        let bridged = self.attachments.iter().find(|attachment| {
            attachment.interface.as_ref().is_some_and(|plan| plan.kind == InterfaceKind::Veth)
        });
        let [first, second] = [self.published(), self.published6()];
        [first, second, bridged].into_iter().flatten().find_map(|attachment| attachment.addresses().next())
    }

    /// What the host translates passes by a bridge of the host's; others are on the wire themselves.
    fn bridged(&self, gateway: &GatewayPlan) -> Option<&Attachment> {
        let found = self.attachments.iter().find(|attachment| attachment.is_on(&gateway.interface));
        found.filter(|attachment| {
            attachment.interface.as_ref().is_some_and(|plan| plan.kind == InterfaceKind::Veth)
        })
    }

    /// The highest priority counts, then the network's name, as Docker has it.
    fn outward(&self, gateway: impl Fn(&Attachment) -> Option<IpAddr>) -> Option<GatewayPlan> {
        let able = self.attachments.iter().filter_map(|attachment| {
            let interface = attachment.interface.as_ref()?.name.clone();
            Some((attachment, GatewayPlan { address: gateway(attachment)?, interface }))
        });
        able.min_by_key(|(attachment, _)| (std::cmp::Reverse(attachment.priority), &attachment.network_name))
            .map(|(_, gateway)| gateway)
    }
}

/// A container in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub network: NetworkId,
    pub network_name: String,
    /// 64 hexadecimal digits, new for each start.
    pub endpoint: String,
    pub interface: Option<InterfacePlan>,
    pub address: Option<Ipv4Addr>,
    /// Of the network's subnet; 0 without an address.
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
    /// Empty without an interface.
    pub mac: String,
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    #[serde(default)]
    pub prefix6: u8,
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    #[serde(default)]
    pub aliases: Vec<String>,
    #[serde(default)]
    pub links: Vec<(String, String)>,
    #[serde(default)]
    pub priority: i64,
    /// Packets from other addresses are dropped. Rows of the first version say nothing of it.
    #[serde(default)]
    pub guard: bool,
    /// It does not see its neighbours, but the bridge of this hardware address alone.
    #[serde(default)]
    pub apart: Option<[u8; 6]>,
}

impl Attachment {
    fn is_on(&self, interface: &str) -> bool {
        self.interface.as_ref().is_some_and(|plan| plan.name == interface)
    }

    /// Whether its network has names: every one but the predefined.
    #[must_use]
    pub fn named(&self) -> bool {
        self.address.is_some() && !PREDEFINED.contains(&self.network_name.as_str())
    }

    /// Every address.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.address.map(IpAddr::V4).into_iter().chain(self.address6.map(IpAddr::V6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_dockers() {
        for text in ["", "default", "bridge"] {
            assert_eq!(Mode::parse(text), Mode::Network("bridge".to_owned()));
        }
        assert_eq!(Mode::parse("none"), Mode::None);
        assert_eq!(Mode::parse("host"), Mode::Host);
        assert_eq!(Mode::parse("container:web"), Mode::Container("web".to_owned()));
        assert_eq!(Mode::parse("blue"), Mode::Network("blue".to_owned()));
    }

    #[test]
    fn rows_of_the_first_version_are_read() {
        let text = format!(
            r#"{{"container":"{0}","ports":[],"attachments":[{{"network":"{0}","network_name":"bridge","endpoint":"{0}",
            "interface":{{"name":"eth0","bridge":"insula0","host_name":"veth1","mac":"02:42:ac:1e:00:02","mtu":1500,
            "addresses":["172.30.0.2/16"],"gateway":"172.30.0.1"}},"address":"172.30.0.2","prefix":16,
            "gateway":"172.30.0.1","mac":"02:42:ac:1e:00:02"}}]}}"#,
            "ab".repeat(32)
        );
        let endpoint: Endpoint = serde_json::from_str(&text).unwrap();
        assert_eq!(endpoint.interfaces()[0].gateway, Some([172, 30, 0, 1].into()));
        assert_eq!(endpoint.published().unwrap().network_name, "bridge");
    }
}
