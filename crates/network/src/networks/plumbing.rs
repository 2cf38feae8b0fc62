//! What of the host is made and unmade: bridges, the table, the forwarding parameter.

use std::net::IpAddr;

use insula_host::firewall::{Forward, Zone};
use insula_host::netlink::{self, Bridge};

use super::{Inner, Networks, mac_of, rows};
use crate::network::BridgeNetwork;
use crate::{Driver, Endpoint, Error, Network, Subnet};

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

/// The firewall's view of an endpoint's ports.
pub(super) fn forwards(endpoint: &Endpoint) -> Vec<Forward> {
    let Some(to) = endpoint.address() else { return Vec::new() };
    let forward = |port: &crate::PublishedPort| Forward {
        proto: port.proto.number(),
        address: match port.host_ip {
            IpAddr::V4(address) if !address.is_unspecified() => Some(address),
            _ => None,
        },
        port: port.host_port,
        to,
        to_port: port.container_port,
    };
    endpoint.ports.iter().map(forward).collect()
}

impl Networks {
    /// Two look-ups of a few microseconds when all is there.
    pub(super) fn bring_up_if_needed(&self, inner: &mut Inner) -> Result<(), Error> {
        for bridge in inner.networks.iter().filter_map(Network::bridge) {
            if !inner.routes.link(&bridge.link)?.is_some_and(|link| link.up) {
                return self.bring_up(inner);
            }
        }
        if self.firewall.installed()? { Ok(()) } else { self.bring_up(inner) }
    }

    /// Bridges, forwarding, and the table with all that is published. May be repeated.
    pub(super) fn bring_up(&self, inner: &mut Inner) -> Result<(), Error> {
        self.settle_subnets(inner)?;
        for bridge in inner.networks.iter().filter_map(Network::bridge) {
            let gateway = bridge.subnet.gateway();
            inner.routes.ensure_bridge(&Bridge {
                name: bridge.link.clone(),
                mac: mac_of(gateway),
                mtu: bridge.mtu,
                addresses: vec![(IpAddr::V4(gateway), bridge.subnet.prefix())],
            })?;
            netlink::route_loopback(&bridge.link)?;
        }
        let forwards: Vec<_> = self.endpoints()?.iter().flat_map(forwards).collect();
        self.firewall.install(&zones(&inner.networks), &forwards)?;
        // Last, so that nothing is forwarded before the rules stand.
        if !netlink::forwarding()? {
            rows::note_forwarding(self.store.state())?;
            netlink::enable_forwarding()?;
        }
        Ok(())
    }

    /// A subnet that the host meanwhile uses otherwise is replaced while no container has an address of it.
    fn settle_subnets(&self, inner: &mut Inner) -> Result<(), Error> {
        for index in 0..inner.networks.len() {
            let network = &inner.networks[index];
            let Driver::Bridge(bridge) = &network.driver else { continue };
            let own = inner.routes.link(&bridge.link)?.map(|link| link.index);
            let routes = inner.routes.routes()?;
            if bridge.subnet.is_free(&routes, own) || rows::in_use(self.store.state(), network)? {
                continue;
            }
            let subnet = Subnet::choose(&self.options.pools, &routes, own)?;
            tracing::warn!(network = network.name, old = %bridge.subnet, new = %subnet, "the host uses the subnet");
            if own.is_some() {
                inner.routes.delete(&bridge.link)?;
            }
            let changed = Network {
                driver: Driver::Bridge(BridgeNetwork { subnet, ..bridge.clone() }),
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
        if rows::take_forwarding(self.store.state())? {
            let links = inner.routes.links()?;
            let masters: Vec<u32> = links
                .iter()
                .filter(|link| ours.contains(&link.name.as_str()))
                .map(|link| link.index)
                .collect();
            let needed = links.iter().any(|link| {
                FORWARDED.contains(&link.kind.as_str())
                    && !masters.contains(&link.index)
                    && !link.master.is_some_and(|master| masters.contains(&master))
            });
            if !needed {
                netlink::disable_forwarding()?;
            }
        }
        self.firewall.uninstall()?;
        ours.into_iter().try_for_each(|link| inner.routes.delete(link))?;
        Ok(())
    }
}

fn zones(networks: &[Network]) -> Vec<Zone> {
    let bridges = networks.iter().filter_map(Network::bridge);
    bridges
        .map(|bridge| Zone {
            bridge: bridge.link.clone(),
            subnet: bridge.subnet.address(),
            prefix: bridge.subnet.prefix(),
        })
        .collect()
}
