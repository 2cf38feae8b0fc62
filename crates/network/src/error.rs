//! What can go wrong with networks.

use std::net::{Ipv4Addr, Ipv6Addr};

use insula_base::{Kind, Kinded};

use crate::Proto;

/// An operation on networks that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A protocol that ports do not have.
    #[error("invalid proto: {text}")]
    InvalidProto { text: String },
    /// A port or a range that cannot be.
    #[error("invalid port {text}: a number from 1 to 65535 or an ascending range is expected")]
    InvalidPort { text: String },
    /// Publishing on IPv6 addresses is not there yet.
    #[error("publishing on the IPv6 address [{address}] is not supported yet: give an IPv4 address or none")]
    PublishV6 { address: Ipv6Addr },
    /// No such network.
    #[error("network {reference} not found")]
    NetworkNotFound { reference: String },
    /// A prefix of several ids.
    #[error("network {reference} is ambiguous: it begins several ids")]
    Ambiguous { reference: String },
    /// Ports are published on a namespace that belongs to another container.
    #[error("conflicting options: port publishing and the container type network mode")]
    PublishShared,
    /// An address that a host of the network cannot have, or a network that has none.
    #[error("invalid address {address}: network {network} hands out addresses of {subnet}")]
    InvalidAddress { address: Ipv4Addr, network: String, subnet: String },
    /// A fixed address for a mode that has no addresses.
    #[error("a fixed IP address needs a bridge network")]
    AddressWithoutNetwork,
    /// A hardware address that is none.
    #[error("invalid MAC address {text:?}: six unicast bytes as in 02:42:ac:11:00:02 are expected")]
    InvalidMac { text: String },
    /// Another endpoint has the address.
    #[error("Address already in use: {address} in network {network}")]
    AddressInUse { address: Ipv4Addr, network: String },
    /// No address is left.
    #[error(
        "no available IPv4 addresses on network {network} ({subnet}): remove containers or widen its subnet"
    )]
    AddressesExhausted { network: String, subnet: String },
    /// Somebody has the port.
    #[error("Bind for {address}:{port} failed: port is already allocated")]
    PortTaken { address: Ipv4Addr, port: u16, proto: Proto },
    /// No port of a range is free.
    #[error("Bind for {address}:{first}-{last} failed: all ports are allocated")]
    PortsExhausted { address: Ipv4Addr, first: u16, last: u16 },
    /// The host has no such address.
    #[error("Bind for {address}:{port} failed: cannot assign requested address")]
    NotOurAddress { address: Ipv4Addr, port: u16 },
    /// Reserving failed for another reason.
    #[error("reserve {address}:{port}/{proto}")]
    Reserve { address: Ipv4Addr, port: u16, proto: Proto, source: std::io::Error },
    /// The configuration's pools are unusable.
    #[error("invalid address pool {text:?}: an IPv4 subnet from /8 to /29 is expected")]
    InvalidPool { text: String },
    /// Every configured pool overlaps something.
    #[error("all predefined address pools overlap routes of this host ({pools}): configure others")]
    PoolsExhausted { pools: String },
    /// A record that is not ours.
    #[error("the state's record of {what} is damaged")]
    Damaged { what: String, source: serde_json::Error },
    #[error(transparent)]
    Store(#[from] insula_store::Error),
    #[error(transparent)]
    Netlink(#[from] insula_host::netlink::Error),
    #[error(transparent)]
    Firewall(#[from] insula_host::firewall::Error),
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::InvalidProto { .. }
            | Self::InvalidPort { .. }
            | Self::PublishShared
            | Self::InvalidAddress { .. }
            | Self::AddressWithoutNetwork
            | Self::InvalidMac { .. }
            | Self::NotOurAddress { .. }
            | Self::InvalidPool { .. } => Kind::InvalidArgument,
            Self::PublishV6 { .. } => Kind::Unsupported,
            Self::NetworkNotFound { .. } => Kind::NotFound,
            Self::Ambiguous { .. }
            | Self::AddressInUse { .. }
            | Self::PortTaken { .. }
            | Self::PortsExhausted { .. } => Kind::Conflict,
            Self::AddressesExhausted { .. } | Self::PoolsExhausted { .. } => Kind::Unavailable,
            Self::Reserve { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Kind::Denied
            }
            Self::Reserve { .. } | Self::Damaged { .. } => Kind::Internal,
            Self::Store(error) => error.kind(),
            Self::Netlink(error) => error.kind(),
            Self::Firewall(error) => error.kind(),
        }
    }
}
