//! A container's place in networks: what is asked for and what was given.

use std::net::{IpAddr, Ipv4Addr};

use insula_base::{ContainerId, NetworkId};
use insula_spec::plan::InterfacePlan;
use serde::{Deserialize, Serialize};

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
    pub mode: Mode,
    /// A fixed address of the network; `None` takes the next free one.
    pub address: Option<Ipv4Addr>,
    /// `02:42:ac:11:00:02`; `None` derives one from the address.
    pub mac: Option<String>,
    pub ports: Vec<PortRequest>,
}

/// What a container was given, as kept in the state until it is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub container: ContainerId,
    /// Empty for `container:`; one without an interface for `none` and `host`.
    pub attachments: Vec<Attachment>,
    pub ports: Vec<PublishedPort>,
}

impl Endpoint {
    /// What the wall is to make, for [`insula_spec::plan::ContainerPlan::interfaces`].
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfacePlan> {
        self.attachments.iter().filter_map(|attachment| attachment.interface.clone()).collect()
    }

    /// The address that the container's own name resolves to, if it has one.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.attachments.iter().find_map(|attachment| attachment.address)
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
}
