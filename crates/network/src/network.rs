//! A network as the state keeps it.

use std::time::SystemTime;

use insula_base::NetworkId;
use serde::{Deserialize, Serialize};

use crate::Subnet;

/// Containers that see each other, or one of the two kinds of none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub name: String,
    pub driver: Driver,
    pub created: SystemTime,
}

/// What makes a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "driver")]
pub enum Driver {
    /// A bridge of the host behind NAT.
    Bridge(BridgeNetwork),
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
            Self::Host => "host",
            Self::Null => "null",
        }
    }
}

/// A bridge of the host and its subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeNetwork {
    /// Name of the link.
    pub link: String,
    pub subnet: Subnet,
    /// Of the bridge and the containers' interfaces.
    pub mtu: u32,
}

impl Network {
    /// The pool of the state from which addresses are given.
    pub(crate) fn pool(&self) -> String {
        format!("network:{}", self.id)
    }

    pub(crate) fn bridge(&self) -> Option<&BridgeNetwork> {
        match &self.driver {
            Driver::Bridge(bridge) => Some(bridge),
            Driver::Host | Driver::Null => None,
        }
    }
}
