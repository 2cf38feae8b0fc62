//! What can go wrong with networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use insula_base::{ContainerId, Kind, Kinded};

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
    /// A port of an IPv6 address leads to an IPv6 address.
    #[error(
        "cannot publish on [{address}]: the container is in no network with IPv6 and a way out \
         (make one with: insula network create --ipv6 NAME)"
    )]
    PublishWithoutV6 { address: Ipv6Addr },
    /// An address that no port can be published on.
    #[error("cannot publish on {address}: an address of this host that others can reach is expected")]
    PublishNowhere { address: IpAddr },
    /// A subnet that is none, or that nobody could use.
    #[error("invalid subnet {text}: a private or global subnet from /8 to /30 (IPv6: to /126) is expected")]
    InvalidSubnet { text: String },
    /// A subnet with bits of a host.
    #[error("invalid subnet {text}: it should be {subnet}")]
    SubnetHostBits { text: String, subnet: String },
    /// Something of a request that is no address.
    #[error("invalid {what} address {text:?}")]
    InvalidText { what: &'static str, text: String },
    /// Something that has to be in the subnet and is not.
    #[error("{what} {address} is not in subnet {subnet}")]
    OutsideSubnet { what: &'static str, address: String, subnet: String },
    /// More subnets of a family than are served.
    #[error("a network has one {family} subnet here")]
    ManySubnets { family: &'static str },
    /// A part of a subnet without the subnet.
    #[error("a subnet is needed where a gateway, a range or auxiliary addresses are given")]
    WithoutSubnet,
    /// A request that contradicts itself.
    #[error("{what}")]
    InvalidRequest { what: String },
    /// A driver that is not there.
    #[error("plugin \"{name}\" not found: bridge and macvlan are network drivers here")]
    UnknownDriver { name: String },
    /// An option of the driver with an impossible value.
    #[error("invalid value {value:?} of the network option {name}")]
    InvalidOption { name: String, value: String },
    /// An option that the driver has not.
    #[error("the {driver} driver has no option {name}")]
    UnknownOption { driver: &'static str, name: String },
    /// An interface that macvlans cannot hang on.
    #[error("invalid parent interface {parent}: {why}")]
    InvalidParent { parent: String, why: &'static str },
    /// A macvlan sends past the host.
    #[error("a network rate needs networks of the bridge driver: {network} is none")]
    RateWithoutBridge { network: String },
    /// One network for an interface.
    #[error("network {network} is already using parent interface {parent}")]
    ParentTaken { parent: String, network: String },
    /// Docker has it and this version not.
    #[error("{what} is not available in this version")]
    Unsupported { what: String },
    /// A name that a network cannot have.
    #[error("{name:?} is not a network name: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    InvalidName { name: String },
    /// Something that is not done to the predefined networks.
    #[error("operation is not permitted on predefined {name} network")]
    Predefined { name: String },
    /// A predefined network is not removed.
    #[error("{name} is a pre-defined network and cannot be removed")]
    PredefinedStays { name: String },
    /// Names are unique.
    #[error("network with name {name} already exists")]
    NameTaken { name: String },
    /// Another network has addresses of it.
    #[error("Pool overlaps with other one on this address space: {subnet} with {other} of network {network}")]
    Overlap { subnet: String, other: String, network: String },
    /// The host has routes into it.
    #[error(
        "Pool overlaps with other one on this address space: {subnet} with a route of this host to {route}"
    )]
    OverlapRoute { subnet: String, route: String },
    /// Somebody else's interface has the name.
    #[error("bridge name {link} is taken: this host has an interface of that name")]
    LinkTaken { link: String },
    /// What only a start makes.
    #[error("interface {name} is made by a start alone: restart the container {}", .container.short())]
    InterfaceLost { name: String, container: ContainerId },
    /// Containers are in it.
    #[error("error while removing network: network {name} has active endpoints ({containers})")]
    InUse { name: String, containers: String },
    /// The container is in it already.
    #[error("endpoint with name {container} already exists in network {network}")]
    AlreadyConnected { container: String, network: String },
    /// The container is not in it.
    #[error("container {container} is not connected to network {network}")]
    NotConnected { container: String, network: String },
    /// The network has no IPv6.
    #[error("invalid address {address}: network {network} has no IPv6 subnet")]
    NoV6 { address: Ipv6Addr, network: String },
    /// An address that a host of the network cannot have.
    #[error("invalid address {address}: network {network} hands out addresses of {subnet}")]
    InvalidAddress6 { address: Ipv6Addr, network: String, subnet: String },
    /// Another endpoint has the address.
    #[error("Address already in use: {address} in network {network}")]
    AddressInUse6 { address: Ipv6Addr, network: String },
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
    #[error("Bind for {} failed: port is already allocated{}", SocketAddr::new(*.address, *.port), by(.holder))]
    PortTaken {
        address: IpAddr,
        port: u16,
        proto: Proto,
        /// Who has it, if that can be told.
        holder: String,
    },
    /// More ports than one container may publish.
    #[error(
        "{count} published ports are more than the {most} of one container: name fewer, or use --network host"
    )]
    TooManyPorts { count: usize, most: usize },
    /// No port of a range is free.
    #[error("Bind for {}-{last} failed: all ports are allocated", SocketAddr::new(*.address, *.first))]
    PortsExhausted { address: IpAddr, first: u16, last: u16 },
    /// The host has no such address.
    #[error("Bind for {} failed: cannot assign requested address", SocketAddr::new(*.address, *.port))]
    NotOurAddress { address: IpAddr, port: u16 },
    /// Reserving failed for another reason.
    #[error("reserve {}/{proto}", SocketAddr::new(*.address, *.port))]
    Reserve { address: IpAddr, port: u16, proto: Proto, source: std::io::Error },
    /// One of those that are root's.
    #[error(
        "port {} is root's: publish it as another (-p 8080:80), or have root lower net.ipv4.ip_unprivileged_port_start",
        format_args!("{}/{proto}", SocketAddr::new(*.address, *.port))
    )]
    PrivilegedPort { address: IpAddr, port: u16, proto: Proto },
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
    Rootless(#[from] insula_host::rootless::Error),
    #[error(transparent)]
    Firewall(#[from] insula_host::firewall::Error),
}

fn by(holder: &str) -> String {
    if holder.is_empty() { String::new() } else { format!(" by {holder}") }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::InvalidProto { .. }
            | Self::InvalidPort { .. }
            | Self::PublishShared
            | Self::TooManyPorts { .. }
            | Self::InvalidAddress { .. }
            | Self::AddressWithoutNetwork
            | Self::InvalidMac { .. }
            | Self::NotOurAddress { .. }
            | Self::InvalidSubnet { .. }
            | Self::SubnetHostBits { .. }
            | Self::InvalidText { .. }
            | Self::OutsideSubnet { .. }
            | Self::WithoutSubnet
            | Self::InvalidRequest { .. }
            | Self::InvalidOption { .. }
            | Self::UnknownOption { .. }
            | Self::InvalidName { .. }
            | Self::NoV6 { .. }
            | Self::InvalidParent { .. }
            | Self::RateWithoutBridge { .. }
            | Self::PublishWithoutV6 { .. }
            | Self::PublishNowhere { .. }
            | Self::InvalidAddress6 { .. }
            | Self::InvalidPool { .. } => Kind::InvalidArgument,
            Self::ManySubnets { .. } | Self::Unsupported { .. } => Kind::Unsupported,
            Self::NetworkNotFound { .. } | Self::UnknownDriver { .. } | Self::NotConnected { .. } => {
                Kind::NotFound
            }
            // Docker answers 403 where a network forbids it.
            Self::Predefined { .. }
            | Self::PredefinedStays { .. }
            | Self::InUse { .. }
            | Self::Overlap { .. }
            | Self::OverlapRoute { .. }
            | Self::AlreadyConnected { .. } => Kind::Denied,
            Self::Ambiguous { .. }
            | Self::NameTaken { .. }
            | Self::ParentTaken { .. }
            | Self::LinkTaken { .. }
            | Self::AddressInUse6 { .. }
            | Self::AddressInUse { .. }
            | Self::PortTaken { .. }
            | Self::InterfaceLost { .. }
            | Self::PortsExhausted { .. } => Kind::Conflict,
            Self::AddressesExhausted { .. } | Self::PoolsExhausted { .. } => Kind::Unavailable,
            Self::PrivilegedPort { .. } => Kind::Denied,
            Self::Rootless(error) => error.kind(),
            Self::Reserve { .. } | Self::Damaged { .. } => Kind::Internal,
            Self::Store(error) => error.kind(),
            Self::Netlink(error) => error.kind(),
            Self::Firewall(error) => error.kind(),
        }
    }
}
