//! What of the host is made and unmade: bridges, the table, the forwarding parameter.

use std::net::IpAddr;

use insula_base::NetworkId;
use insula_host::firewall::{Forward, Guest, Zone, Zone6};
use insula_host::netlink::{self, Bridge, Claim, Link};

use super::parent::{drop_parent, ensure_parent};
use super::{Inner, Networks, mac_of, rows};
use crate::network::{Addressing, BridgeNetwork};
use crate::{Attachment, Driver, Endpoint, Error, Network, Pool};

/// Kinds of links that other programs forward between.
const FORWARDED: [&str; 11] = [
    "bridge",
    "veth",
    "tun",
    "wireguard",
    "macvlan",
    "ipvlan",
    "vxlan",
    "geneve",
    "gre",
    "ipip",
    "openvswitch",
];

/// The bridges of all networks, with their addresses.
fn ensure_bridges(inner: &Inner) -> Result<(), Error> {
    for bridge in inner.networks.iter().filter_map(Network::bridge) {
        let addressing = &bridge.addressing;
        let gateway = addressing.gateway();
        let mut addresses = vec![(IpAddr::V4(gateway), addressing.subnet.prefix())];
        addresses.extend(addressing.v6.iter().map(|v6| (IpAddr::V6(v6.gateway), v6.subnet.prefix())));
        inner.routes.ensure_bridge(&Bridge {
            name: bridge.link.clone(),
            mac: mac_of(gateway),
            mtu: addressing.mtu,
            addresses,
        })?;
        netlink::route_loopback(&bridge.link)?;
        netlink::ignore_advertisements(&bridge.link)?;
        if addressing.v6.is_some() {
            inner.routes.route_loopback6(&bridge.link)?;
        }
    }
    Ok(())
}

/// The firewall's view of an endpoint's ports. Each leads to the container's address of its own family.
pub(super) fn forwards(endpoint: &Endpoint) -> Vec<Forward> {
    let v4 = endpoint.published().and_then(|attachment| attachment.address).map(IpAddr::V4);
    let v6 = endpoint.published6().and_then(|attachment| attachment.address6).map(IpAddr::V6);
    let forward = |port: &crate::PublishedPort| {
        Some(Forward {
            proto: port.proto.number(),
            address: Some(port.host_ip).filter(|address| !address.is_unspecified()),
            port: port.host_port,
            to: if port.host_ip.is_ipv4() { v4 } else { v6 }?,
            to_port: port.container_port,
        })
    };
    endpoint.ports.iter().filter_map(forward).collect()
}

/// Who sends from where, as the firewall sees it.
pub(super) fn guests(endpoint: &Endpoint) -> Vec<Guest> {
    let of = |attachment: &Attachment| {
        let port = attachment.interface.as_ref().map(|plan| plan.host_name.clone()).unwrap_or_default();
        let mac = mac_bytes(&attachment.mac).filter(|_| !port.is_empty());
        let (guarded, apart) = (attachment.guard, attachment.apart);
        let guest = move |(mac, address)| Guest { port: port.clone(), mac, address, guarded, apart };
        let addresses: Vec<IpAddr> = attachment.addresses().collect();
        mac.into_iter().flat_map(move |mac| addresses.clone().into_iter().map(move |ip| (mac, ip))).map(guest)
    };
    endpoint.attachments.iter().flat_map(of).collect()
}

fn mac_bytes(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split(':').map_while(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.try_into().ok()
}

impl Networks {
    /// A look-up of a few microseconds for each network when all is there.
    pub(super) fn bring_up_if_needed(&self, inner: &mut Inner, needed: &[NetworkId]) -> Result<(), Error> {
        let needed = |network: &&Network| needed.contains(&network.id);
        for macvlan in inner.networks.iter().filter(needed).filter_map(Network::macvlan) {
            ensure_parent(inner, macvlan)?;
        }
        if !inner.networks.iter().filter(needed).any(|network| network.bridge().is_some()) {
            return Ok(());
        }
        for bridge in inner.networks.iter().filter(needed).filter_map(Network::bridge) {
            if !inner.routes.link(&bridge.link)?.is_some_and(|link| link.up) {
                return self.bring_up(inner);
            }
        }
        if self.firewall.installed()? { Ok(()) } else { self.bring_up(inner) }
    }

    /// Bridges, forwarding, and the table with all that is published. May be repeated.
    pub(super) fn bring_up(&self, inner: &mut Inner) -> Result<(), Error> {
        let claim = netlink::claim()?;
        self.bring_up_claimed(inner, claim)
    }

    /// As [`Networks::bring_up`], for who has chosen a subnet: no other daemon chooses it before its bridge stands.
    pub(super) fn bring_up_claimed(&self, inner: &mut Inner, claim: Claim) -> Result<(), Error> {
        self.settle_subnets(inner)?;
        ensure_bridges(inner)?;
        drop(claim);
        self.install_rules(inner)?;
        // Last, so that nothing is forwarded before the rules stand.
        if !netlink::forwarding()? {
            rows::note_forwarding(self.store.state(), rows::FORWARDING, netlink::before_forwarding()?)?;
            netlink::enable_forwarding()?;
        }
        if inner.networks.iter().any(Network::routes6) && !netlink::forwarding6()? {
            let advertised = netlink::advertised()?;
            rows::note_advertised(self.store.state(), &advertised)?;
            rows::note_forwarding(self.store.state(), rows::FORWARDING6, netlink::before_forwarding6()?)?;
            netlink::enable_forwarding6(&advertised)?;
        }
        Ok(())
    }

    /// The table with all that is published and all who are in a network.
    pub(super) fn install_rules(&self, inner: &Inner) -> Result<(), Error> {
        let endpoints = self.endpoints()?;
        let forwards: Vec<_> = endpoints.iter().flat_map(forwards).collect();
        let guests: Vec<_> = endpoints.iter().flat_map(guests).collect();
        self.firewall.install(&zones(&inner.networks), &forwards, &guests)?;
        for warning in self.firewall.warnings() {
            tracing::warn!(warning, "firewall");
        }
        Ok(())
    }

    /// A subnet that the host meanwhile uses otherwise is replaced while no container has an address of it.
    fn settle_subnets(&self, inner: &mut Inner) -> Result<(), Error> {
        for index in 0..inner.networks.len() {
            let network = &inner.networks[index];
            let Driver::Bridge(bridge) = &network.driver else { continue };
            // What a user has made is what it was made as.
            if !network.predefined() {
                continue;
            }
            let own = inner.routes.link(&bridge.link)?.map(|link| link.index);
            let routes = inner.routes.routes()?;
            if bridge.addressing.subnet.is_free(&routes, own) || rows::in_use(self.store.state(), network)? {
                continue;
            }
            let subnet = Pool::choose(&self.options.pools, &routes, own, &inner.subnets())?;
            tracing::warn!(network = network.name, old = %bridge.addressing.subnet, new = %subnet, "the host uses the subnet");
            if own.is_some() {
                inner.routes.delete(&bridge.link)?;
            }
            let changed = Network {
                driver: Driver::Bridge(BridgeNetwork {
                    addressing: Addressing { subnet, ..bridge.addressing.clone() },
                    ..bridge.clone()
                }),
                ..network.clone()
            };
            rows::replace_network(self.store.state(), &changed)?;
            inner.networks[index] = changed;
        }
        Ok(())
    }

    /// Forwarding first, for the same reason. It stays on when another program seems to need it.
    pub(super) fn take_down(&self, inner: &Inner) -> Result<(), Error> {
        let ours: Vec<&str> =
            inner.networks.iter().filter_map(Network::bridge).map(|bridge| bridge.link.as_str()).collect();
        let (v4, v6) = (
            rows::take_forwarding(self.store.state(), rows::FORWARDING)?,
            rows::take_forwarding(self.store.state(), rows::FORWARDING6)?,
        );
        if (v4.is_some() || v6.is_some()) && !others_forward(inner, &ours)? {
            if let Some(before) = v4 {
                netlink::disable_forwarding(&before)?;
            }
            if let Some(before) = v6 {
                netlink::disable_forwarding6(&rows::advertised(self.store.state())?, &before)?;
                rows::forget_advertised(self.store.state())?;
            }
        }
        self.firewall.uninstall()?;
        ours.into_iter().try_for_each(|link| inner.routes.delete(link))?;
        inner.networks.iter().try_for_each(|network| drop_parent(inner, network))
    }
}

/// Whether another program seems to need forwarding.
fn others_forward(inner: &Inner, ours: &[&str]) -> Result<bool, Error> {
    let links = inner.routes.links()?;
    let masters: Vec<u32> =
        links.iter().filter(|link| ours.contains(&link.name.as_str())).map(|link| link.index).collect();
    let parents: Vec<&str> =
        inner.networks.iter().filter_map(Network::macvlan).map(|macvlan| macvlan.parent.as_str()).collect();
    let made = |name: &str| parents.iter().any(|parent| *parent == name || netlink::peer_of(parent) == name);
    let ours = |link: &Link| match link.master {
        _ if masters.contains(&link.index) || made(&link.name) => true,
        Some(master) => masters.contains(&master),
        None => is_end(&link.name),
    };
    Ok(links.iter().any(|link| FORWARDED.contains(&link.kind.as_str()) && !ours(link)))
}

/// Whether it is the host's end of a container's interface, by its name. Its bridge may be gone before it.
pub(super) fn is_end(name: &str) -> bool {
    let digits = name.strip_prefix("veth").unwrap_or_default();
    digits.len() == 10 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn zones(networks: &[Network]) -> Vec<Zone> {
    let zone = |network: &Network| {
        let bridge = network.bridge()?;
        let addressing = &bridge.addressing;
        Some(Zone {
            bridge: bridge.link.clone(),
            subnet: addressing.subnet.address(),
            prefix: addressing.subnet.prefix(),
            masquerade: bridge.masquerade,
            internal: network.internal,
            apart: !bridge.icc,
            gateway: addressing.gateway(),
            v6: addressing.v6.as_ref().map(|v6| Zone6 {
                subnet: v6.subnet.address(),
                prefix: v6.subnet.prefix(),
                gateway: v6.gateway,
                masquerade: v6.masquerade,
            }),
        })
    };
    networks.iter().filter_map(zone).collect()
}
