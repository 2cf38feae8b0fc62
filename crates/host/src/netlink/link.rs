//! The requests: links, addresses, routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use insula_spec::plan::{GatewayPlan, InterfaceKind, InterfacePlan};
use insula_sys::netlink::{Family, Socket};

use super::message::{Batch, CREATE, DUMP, EXCLUSIVE, REPLACE, attributes, text_of, word};
use super::{Error, octets, parse_address, parse_mac};

pub(super) const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
pub(super) const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_EXT_MASK: u16 = 29;
pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
pub(super) const VETH_INFO_PEER: u16 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// No duplicate address detection: the address comes from our own books, and is usable at once.
const IFA_F_NODAD: u32 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;
const TYPE_LOCAL: u8 = 2;
const SCOPE_HOST: u8 = 254;
const PROTOCOL_STATIC: u8 = 4;
const TYPE_UNICAST: u8 = 1;

pub(super) const UP: u32 = 1;
const LOOPBACK: u32 = 1;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub mtu: u32,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// `bridge`, `veth`, `tun`; empty for hardware and loopback.
    pub kind: String,
}

/// Where IPv4 packets to a destination go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub destination: Ipv4Addr,
    /// 0 is a default route.
    pub prefix: u8,
    pub link: Option<u32>,
}

/// Where IPv6 packets to a destination go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route6 {
    pub destination: Ipv6Addr,
    /// 0 is a default route.
    pub prefix: u8,
}

/// An rtnetlink socket, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Routes {
    pub(super) socket: Socket,
}

/// `ifinfomsg`: any family and type, then index, flags, and which of the flags change.
pub(super) fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

impl Routes {
    /// Opens the socket.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(Family::Route)
            .map_err(|source| Error::Socket { call: "open a route socket", source })?;
        Ok(Self { socket })
    }

    /// Every interface of the namespace.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        let mut batch = Batch::new();
        batch.begin(RTM_GETLINK, DUMP, &link_header(0, 0, 0), "list", "links");
        batch.attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        let mut links = Vec::new();
        batch.exchange(&self.socket, |kind, payload| {
            if kind == RTM_NEWLINK {
                links.extend(parse_link(payload));
            }
        })?;
        Ok(links)
    }

    /// The interface of this name, if there is one.
    pub fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut batch = Batch::new();
        batch.begin(RTM_GETLINK, 0, &link_header(0, 0, 0), "find link", name);
        batch.attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        batch.text(IFLA_IFNAME, name);
        let mut found = None;
        let result = batch.exchange(&self.socket, |kind, payload| {
            if kind == RTM_NEWLINK {
                found = parse_link(payload);
            }
        });
        match result {
            Ok(()) => Ok(found),
            Err(error) if error.errno() == Some(ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn index(&self, name: &str) -> Result<u32, Error> {
        let link = self.link(name)?.ok_or_else(|| Error::NoLink { name: name.to_owned() })?;
        Ok(link.index)
    }

    /// IPv4 routes of all tables to networks and hosts (not the host's own and broadcast addresses).
    pub fn routes(&self) -> Result<Vec<Route>, Error> {
        let mut header = [0; 12];
        header[0] = AF_INET;
        let mut batch = Batch::new();
        batch.begin(RTM_GETROUTE, DUMP, &header, "list", "routes");
        let mut routes = Vec::new();
        batch.exchange(&self.socket, |kind, payload| {
            if kind == RTM_NEWROUTE {
                routes.extend(parse_route(payload));
            }
        })?;
        Ok(routes)
    }

    /// IPv6 routes of all tables to networks and hosts (not the host's own, link-local and multicast
    /// addresses).
    pub fn routes6(&self) -> Result<Vec<Route6>, Error> {
        let mut header = [0; 12];
        header[0] = AF_INET6;
        let mut batch = Batch::new();
        batch.begin(RTM_GETROUTE, DUMP, &header, "list", "IPv6 routes");
        let mut routes = Vec::new();
        batch.exchange(&self.socket, |kind, payload| {
            if kind == RTM_NEWROUTE {
                routes.extend(parse_route6(payload));
            }
        })?;
        Ok(routes)
    }

    /// Lets answers to `::1` come in by a bridge, so that ports published on the host's loopback reach
    /// containers; `::1` is looked for by interface (RFC 4291 keeps it within one). What claims to
    /// be for `::1` on the wire is dropped by the kernel before any route. Goes with the bridge.
    pub fn route_loopback6(&self, bridge: &str) -> Result<(), Error> {
        /// After the loopback's own.
        const METRIC: u32 = 2048;
        let index = self.index(bridge)?;
        let header = [AF_INET6, 128, 0, 0, TABLE_LOCAL, PROTOCOL_STATIC, SCOPE_HOST, TYPE_LOCAL, 0, 0, 0, 0];
        let mut batch = Batch::new();
        batch.begin(RTM_NEWROUTE, CREATE | REPLACE, &header, "add the route to ::1 of", bridge);
        batch.attribute(RTA_DST, &Ipv6Addr::LOCALHOST.octets());
        batch.attribute(RTA_OIF, &index.to_ne_bytes());
        batch.attribute(RTA_PRIORITY, &METRIC.to_ne_bytes());
        batch.acknowledge();
        batch.run(&self.socket)
    }

    /// Deletes an interface; one that is gone already is fine. For bridges: see the module's word on veth.
    pub fn delete(&self, name: &str) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.begin(RTM_DELLINK, 0, &link_header(0, 0, 0), "delete link", name);
        batch.text(IFLA_IFNAME, name);
        batch.acknowledge();
        match batch.run(&self.socket) {
            Err(error) if error.errno() == Some(ENODEV) => Ok(()),
            result => result,
        }
    }

    /// Brings an interface up or down.
    pub fn set_up(&self, name: &str, up: bool) -> Result<(), Error> {
        let mut batch = Batch::new();
        let flags = if up { UP } else { 0 };
        batch.begin(RTM_NEWLINK, 0, &link_header(0, flags, UP), "bring up or down", name);
        batch.text(IFLA_IFNAME, name);
        batch.acknowledge();
        batch.run(&self.socket)
    }

    /// Makes an interface a port of a bridge, or of none.
    pub fn set_master(&self, name: &str, bridge: Option<&str>) -> Result<(), Error> {
        let master = bridge.map_or(Ok(0), |bridge| self.index(bridge))?;
        let mut batch = Batch::new();
        batch.begin(RTM_NEWLINK, 0, &link_header(0, 0, 0), "plug", name);
        batch.text(IFLA_IFNAME, name);
        batch.attribute(IFLA_MASTER, &master.to_ne_bytes());
        batch.acknowledge();
        batch.run(&self.socket)
    }

    /// See [`super::plug`].
    pub fn plug(&self, plan: &InterfacePlan, namespace: BorrowedFd<'_>) -> Result<(), Error> {
        match plan.kind {
            InterfaceKind::Veth => self.plug_veth(plan, namespace),
            InterfaceKind::Macvlan { mode } => self.plug_macvlan(plan, mode, namespace),
        }
    }

    fn plug_veth(&self, plan: &InterfacePlan, namespace: BorrowedFd<'_>) -> Result<(), Error> {
        let mac = parse_mac(plan)?;
        let bridge = self.index(&plan.bridge)?;
        let mut batch = Batch::new();
        let flags = CREATE | EXCLUSIVE;
        batch.begin(RTM_NEWLINK, flags, &link_header(0, UP, UP), "create veth pair", &plan.host_name);
        batch.text(IFLA_IFNAME, &plan.host_name);
        mtu(&mut batch, plan.mtu);
        batch.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        single_queue(&mut batch);
        let info = batch.nest(IFLA_LINKINFO);
        batch.text(IFLA_INFO_KIND, "veth");
        let data = batch.nest(IFLA_INFO_DATA);
        let peer = batch.nest(VETH_INFO_PEER);
        batch.raw(&link_header(0, 0, 0));
        batch.text(IFLA_IFNAME, &plan.name);
        batch.attribute(IFLA_ADDRESS, &mac);
        single_queue(&mut batch);
        mtu(&mut batch, plan.mtu);
        batch.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        batch.close(&peer);
        batch.close(&data);
        batch.close(&info);
        if plan.hairpin {
            allow_hairpin(&mut batch, &plan.host_name);
        }
        batch.acknowledge();
        batch.run(&self.socket)?;
        self.keep_silent(&plan.host_name)
    }

    /// Makes an interface that exists, a machine's tap, what [`super::plug`] makes of a veth: up, and a port
    /// of its bridge.
    pub fn plug_existing(&self, plan: &InterfacePlan) -> Result<(), Error> {
        let bridge = self.index(&plan.bridge)?;
        let index = self.index(&plan.host_name)?;
        self.keep_silent(&plan.host_name)?;
        let mut batch = Batch::new();
        batch.begin(RTM_NEWLINK, 0, &link_header(index, UP, UP), "plug", &plan.host_name);
        mtu(&mut batch, plan.mtu);
        batch.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        if plan.hairpin {
            allow_hairpin(&mut batch, &plan.host_name);
        }
        batch.acknowledge();
        batch.run(&self.socket)
    }

    /// Has the kernel give an interface that has no carrier yet no link-local address. With one it asks for routers,
    /// again and again, and tells of its groups: on a bridge with a thousand ports each such packet is copied a
    /// thousand times. A kernel without IPv6, or an interface whose packets are too small for it, says nothing anyway.
    fn keep_silent(&self, name: &str) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.begin(RTM_NEWLINK, 0, &link_header(0, 0, 0), "give no link-local address to", name);
        batch.text(IFLA_IFNAME, name);
        let families = batch.nest(IFLA_AF_SPEC);
        let family = batch.nest(u16::from(AF_INET6));
        batch.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
        batch.close(&family);
        batch.close(&families);
        batch.acknowledge();
        match batch.run(&self.socket) {
            Err(error) if error.errno() == Some(EAFNOSUPPORT) => Ok(()),
            result => result,
        }
    }

    /// Gives an interface that is down another name.
    pub fn rename(&self, name: &str, new: &str) -> Result<(), Error> {
        let index = self.index(name)?;
        let mut batch = Batch::new();
        batch.begin(RTM_NEWLINK, 0, &link_header(index, 0, 0), "rename", name);
        batch.text(IFLA_IFNAME, new);
        batch.acknowledge();
        batch.run(&self.socket)
    }

    /// Moves an interface into another network namespace, where it is down and without addresses.
    pub fn hand_over(&self, name: &str, namespace: BorrowedFd<'_>) -> Result<(), Error> {
        let index = self.index(name)?;
        let mut batch = Batch::new();
        batch.begin(RTM_NEWLINK, 0, &link_header(index, 0, 0), "move to another namespace", name);
        batch.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        batch.acknowledge();
        batch.run(&self.socket)
    }

    /// Gives an interface of a machine that is down the hardware address and the largest packet of a plan.
    pub fn set_hardware(&self, name: &str, plan: &InterfacePlan) -> Result<(), Error> {
        let index = self.index(name)?;
        let mut batch = Batch::new();
        batch.begin(RTM_NEWLINK, 0, &link_header(index, 0, 0), "set the hardware address of", name);
        batch.attribute(IFLA_ADDRESS, &parse_mac(plan)?);
        mtu(&mut batch, plan.mtu);
        batch.acknowledge();
        batch.run(&self.socket)
    }

    /// See [`super::configure_all`].
    pub fn configure(&self, plans: &[InterfacePlan]) -> Result<(), Error> {
        for plan in plans {
            match plan.kind {
                InterfaceKind::Veth if !plan.addresses.iter().any(|address| address.contains(':')) => {
                    self.keep_silent(&plan.name)?;
                }
                InterfaceKind::Veth => {}
                InterfaceKind::Macvlan { .. } => self.set_up_patiently(&plan.name)?,
            }
        }
        let mut batch = Batch::new();
        batch.begin(RTM_NEWLINK, 0, &link_header(LOOPBACK, UP, UP), "bring up", "lo");
        for plan in plans {
            let index = self.index(&plan.name)?;
            for text in &plan.addresses {
                let (address, prefix) = parse_address(plan, text)?;
                add_address(&mut batch, index, address, prefix, text);
            }
            batch.begin(RTM_NEWLINK, 0, &link_header(index, UP, UP), "bring up", &plan.name);
            for gateway in plan.gateway.iter().chain(&plan.gateway6) {
                add_default_route(&mut batch, index, *gateway, &plan.name);
            }
        }
        batch.acknowledge();
        batch.run(&self.socket)?;
        let mut limited = plans.iter().filter(|plan| plan.rate.is_some());
        limited.try_for_each(|plan| self.shape(&plan.name, plan.rate))
    }

    /// Adds a default route by an interface.
    pub fn add_default_route(&self, gateway: IpAddr, link: &str) -> Result<(), Error> {
        let index = self.index(link)?;
        let mut batch = Batch::new();
        add_default_route(&mut batch, index, gateway, link);
        batch.acknowledge();
        batch.run(&self.socket)
    }
}

impl Routes {
    /// Makes the one default route of a family be this one, or none. Those that others made go as well.
    pub fn set_default_route(&self, wanted: Option<&GatewayPlan>, v6: bool) -> Result<(), Error> {
        let family = if v6 { AF_INET6 } else { AF_INET };
        let header = [family, 0, 0, 0, TABLE_MAIN, 0, 0, 0, 0, 0, 0, 0];
        // The kernel deletes one at a time.
        for _ in 0..MOST_DEFAULT_ROUTES {
            let mut batch = Batch::new();
            batch.begin(RTM_DELROUTE, 0, &header, "delete", "a default route");
            batch.acknowledge();
            match batch.run(&self.socket) {
                Err(error) if matches!(error.errno(), Some(ESRCH | ENOENT)) => break,
                result => result?,
            }
        }
        match wanted {
            Some(gateway) => self.add_default_route(gateway.address, &gateway.interface),
            None => Ok(()),
        }
    }
}

const EAFNOSUPPORT: i32 = 97;
const ENODEV: i32 = 19;
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const MOST_DEFAULT_ROUTES: usize = 16;

pub(super) fn mtu(batch: &mut Batch<'_>, mtu: u32) {
    if mtu != 0 {
        batch.attribute(IFLA_MTU, &mtu.to_ne_bytes());
    }
}

/// A veth uses one queue, whatever it has; without a word it gets one for each processor, each with
/// its own objects in sysfs.
fn single_queue(batch: &mut Batch<'_>) {
    batch.attribute(IFLA_NUM_TX_QUEUES, &1u32.to_ne_bytes());
    batch.attribute(IFLA_NUM_RX_QUEUES, &1u32.to_ne_bytes());
}

/// A bridge sends nothing back by the port that it came from, unless told.
fn allow_hairpin<'a>(batch: &mut Batch<'a>, name: &'a str) {
    batch.begin(RTM_NEWLINK, 0, &link_header(0, 0, 0), "allow hairpins on", name);
    batch.text(IFLA_IFNAME, name);
    let info = batch.nest(IFLA_LINKINFO);
    batch.text(IFLA_INFO_SLAVE_KIND, "bridge");
    let data = batch.nest(IFLA_INFO_SLAVE_DATA);
    batch.attribute(IFLA_BRPORT_MODE, &[1]);
    batch.close(&data);
    batch.close(&info);
}

/// `ifaddrmsg` and its attributes; an address that is there already is fine.
pub(super) fn add_address<'a>(
    batch: &mut Batch<'a>,
    index: u32,
    address: IpAddr,
    prefix: u8,
    operand: &'a str,
) {
    let (bytes, length) = octets(address);
    let mut header = [if length == 4 { AF_INET } else { AF_INET6 }, prefix, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    batch.begin(RTM_NEWADDR, CREATE | REPLACE, &header, "add address", operand);
    batch.attribute(IFA_LOCAL, &bytes[..length]);
    batch.attribute(IFA_ADDRESS, &bytes[..length]);
    match address {
        IpAddr::V4(address) if prefix < 31 => {
            let host_part = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            batch.attribute(IFA_BROADCAST, &(u32::from(address) | host_part).to_be_bytes());
        }
        IpAddr::V4(_) => {}
        IpAddr::V6(_) => batch.attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes()),
    }
}

/// `rtmsg` and its attributes.
fn add_default_route<'a>(batch: &mut Batch<'a>, index: u32, gateway: IpAddr, operand: &'a str) {
    let (bytes, length) = octets(gateway);
    let family = if length == 4 { AF_INET } else { AF_INET6 };
    let header = [family, 0, 0, 0, TABLE_MAIN, PROTOCOL_STATIC, 0, TYPE_UNICAST, 0, 0, 0, 0];
    batch.begin(RTM_NEWROUTE, CREATE | EXCLUSIVE, &header, "add the default route of", operand);
    batch.attribute(RTA_OIF, &index.to_ne_bytes());
    batch.attribute(RTA_GATEWAY, &bytes[..length]);
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let index = word(payload, 4)?;
    let up = word(payload, 8)? & UP != 0;
    let mut link = Link { index, name: String::new(), up, mtu: 0, master: None, kind: String::new() };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text_of(value),
            IFLA_MTU => link.mtu = word(value, 0)?,
            IFLA_MASTER => link.master = word(value, 0),
            IFLA_LINKINFO => {
                let info = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = info.map(|(_, text)| text_of(text)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

fn parse_route(payload: &[u8]) -> Option<Route> {
    let header: &[u8; 12] = payload.first_chunk()?;
    let (family, prefix, kind) = (header[0], header[1], header[7]);
    if family != AF_INET || kind != TYPE_UNICAST || prefix > 32 {
        return None;
    }
    let mut route = Route { destination: Ipv4Addr::UNSPECIFIED, prefix, link: None };
    for (kind, value) in attributes(&payload[12..]) {
        match kind {
            RTA_DST => route.destination = Ipv4Addr::from(*value.first_chunk::<4>()?),
            RTA_OIF => route.link = word(value, 0),
            _ => {}
        }
    }
    Some(route)
}

fn parse_route6(payload: &[u8]) -> Option<Route6> {
    let header: &[u8; 12] = payload.first_chunk()?;
    let (family, prefix, kind) = (header[0], header[1], header[7]);
    if family != AF_INET6 || kind != TYPE_UNICAST || prefix > 128 {
        return None;
    }
    let destination = attributes(&payload[12..]).find(|(kind, _)| *kind == RTA_DST);
    let destination = match destination {
        Some((_, value)) => Ipv6Addr::from(*value.first_chunk::<16>()?),
        None => Ipv6Addr::UNSPECIFIED,
    };
    let shared = destination.is_unicast_link_local() || destination.is_multicast();
    (!shared).then_some(Route6 { destination, prefix })
}
