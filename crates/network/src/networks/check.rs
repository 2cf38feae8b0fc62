//! What there is, compared with the rows: for a check, and what sets it right.

use std::collections::HashSet;

use insula_base::ContainerId;
use insula_host::firewall;
use insula_host::netlink::Link;
use insula_spec::plan::InterfacePlan;
use insula_store::Allocation;

use super::plumbing::{forwards, guests, is_end};
use super::{Inner, Networks};
use crate::{Endpoint, Error, Network};

/// Something that is not as the rows say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deviation {
    /// The host's end of an interface that no container has.
    Interface {
        name: String,
        bridge: String,
    },
    /// A container that runs has no such interface any more.
    NoInterface {
        name: String,
        container: ContainerId,
    },
    /// The end of a container's interface is in no bridge, or in another one.
    Unplugged {
        name: String,
        bridge: String,
        container: ContainerId,
    },
    /// A bridge, or what a macvlan hangs on, of no network.
    Bridge {
        name: String,
    },
    /// The bridge of a network that containers are in.
    NoBridge {
        name: String,
        network: String,
    },
    Rules(firewall::Deviation),
    /// What a container was given that does not run.
    Endpoint {
        container: ContainerId,
    },
    /// A number of a pool whose owner does not have it.
    Address {
        pool: String,
        number: u64,
        owner: String,
    },
    /// An address of a container that another one could be given.
    NoAddress {
        address: std::net::IpAddr,
        container: ContainerId,
    },
}

impl Networks {
    /// What is not as it should be while these containers, and no others, live. It blocks for a millisecond.
    ///
    /// Interfaces of containers that have just ended go a moment later: what is found once need not be wrong.
    pub fn deviations(&self, live: &HashSet<ContainerId>) -> Result<Vec<Deviation>, Error> {
        let inner = self.lock();
        let endpoints = self.endpoints()?;
        let mut found = links(&inner, &endpoints, &self.links)?;
        found.extend(self.rules(&inner, &endpoints)?);
        let dead = endpoints.iter().filter(|endpoint| !live.contains(&endpoint.container));
        found.extend(dead.map(|endpoint| Deviation::Endpoint { container: endpoint.container.clone() }));
        found.extend(self.addresses(&inner, &endpoints)?);
        Ok(found)
    }

    /// Sets one right, and returns what was done.
    pub fn repair(&self, deviation: &Deviation) -> Result<&'static str, Error> {
        let mut inner = self.lock();
        match deviation {
            Deviation::Interface { name, .. } | Deviation::Bridge { name } => {
                inner.routes.delete(name)?;
                Ok("deleted")
            }
            Deviation::NoInterface { name, container } => {
                Err(Error::InterfaceLost { name: name.clone(), container: container.clone() })
            }
            Deviation::Unplugged { name, bridge, .. } => {
                inner.routes.set_master(name, Some(bridge))?;
                Ok("plugged in again")
            }
            Deviation::NoBridge { .. } | Deviation::Rules(_) => {
                self.bring_up(&mut inner)?;
                Ok("made again")
            }
            Deviation::Endpoint { container } => {
                self.withdraw(&mut inner, container)?;
                Ok("taken back")
            }
            Deviation::Address { pool, number, .. } => {
                self.store.state().allocations().release(pool, *number)?;
                Ok("free again")
            }
            Deviation::NoAddress { address, container } => {
                let endpoint = self.endpoint(container)?;
                let (pool, number) = endpoint
                    .iter()
                    .flat_map(|endpoint| &endpoint.attachments)
                    .find(|attachment| attachment.addresses().any(|own| own == *address))
                    .and_then(|attachment| inner.by_id(&attachment.network).ok())
                    .map(|network| network.place(*address))
                    .ok_or_else(|| Error::NetworkNotFound { reference: address.to_string() })?;
                let range = number..number.saturating_add(1);
                self.store.state().allocations().allocate(&pool, range, Some(number), container.as_str())?;
                Ok("kept for it again")
            }
        }
    }

    fn rules(&self, inner: &Inner, endpoints: &[Endpoint]) -> Result<Vec<Deviation>, Error> {
        let bridged = |network: &Network| network.bridge().is_some() && !network.predefined();
        let needed = endpoints.iter().any(|endpoint| endpoint.address().is_some());
        if !needed && !inner.networks.iter().any(bridged) && !self.firewall.installed()? {
            return Ok(Vec::new());
        }
        let forwards: Vec<_> = endpoints.iter().flat_map(forwards).collect();
        let guests: Vec<_> = endpoints.iter().flat_map(guests).collect();
        let found = self.firewall.deviations(&forwards, &guests)?;
        Ok(found.into_iter().map(Deviation::Rules).collect())
    }

    fn addresses(&self, inner: &Inner, endpoints: &[Endpoint]) -> Result<Vec<Deviation>, Error> {
        let mut wanted = Vec::new();
        for endpoint in endpoints {
            for attachment in &endpoint.attachments {
                let Ok(network) = inner.by_id(&attachment.network) else { continue };
                let of = |address| (network.place(address), address, endpoint.container.clone());
                wanted.extend(attachment.addresses().map(of));
            }
        }
        let mut given: Vec<Allocation> = Vec::new();
        for network in &inner.networks {
            let own = network.owner();
            for pool in HashSet::from([network.pool(), network.pool6()]) {
                let all = self.store.state().allocations().all(&pool)?;
                given.extend(all.into_iter().filter(|allocation| allocation.owner != own));
            }
        }
        let missing = wanted.iter().filter(|((pool, number), _, owner)| {
            !given.iter().any(|a| a.pool == *pool && a.number == *number && a.owner == owner.as_str())
        });
        let mut found: Vec<_> = missing
            .map(|(_, address, container)| Deviation::NoAddress {
                address: *address,
                container: container.clone(),
            })
            .collect();
        let has = |a: &Allocation| {
            wanted.iter().any(|((pool, number), _, owner)| {
                a.pool == *pool && a.number == *number && a.owner == owner.as_str()
            })
        };
        found.extend(given.into_iter().filter(|a| !has(a)).map(|a| Deviation::Address {
            pool: a.pool,
            number: a.number,
            owner: a.owner,
        }));
        Ok(found)
    }
}

fn links(inner: &Inner, endpoints: &[Endpoint], prefix: &str) -> Result<Vec<Deviation>, Error> {
    let links = inner.routes.links()?;
    let plans = || {
        let of = |endpoint: &Endpoint| {
            let container = endpoint.container.clone();
            endpoint.interfaces().into_iter().map(move |plan| (plan, container.clone()))
        };
        endpoints.iter().flat_map(of)
    };
    let ours: HashSet<&str> =
        inner.networks.iter().filter_map(Network::bridge).map(|bridge| bridge.link.as_str()).collect();
    let parents: HashSet<&str> =
        inner.networks.iter().filter_map(Network::macvlan).map(|macvlan| macvlan.parent.as_str()).collect();
    let there = |name: &str| links.iter().any(|link| link.name == name);
    let mut found = Vec::new();
    for network in &inner.networks {
        let Some(bridge) = network.bridge() else { continue };
        let used = endpoints.iter().any(|endpoint| endpoint.attachment(&network.id).is_some());
        if used && !there(&bridge.link) {
            found.push(Deviation::NoBridge { name: bridge.link.clone(), network: network.name.clone() });
        }
    }
    found.extend(plans().filter_map(|(plan, container)| end(&links, &ours, plan, container)));
    for link in &links {
        let bridge = links.iter().find(|bridge| Some(bridge.index) == link.master);
        match bridge.filter(|bridge| ours.contains(bridge.name.as_str())) {
            // Others may put what is theirs into a bridge; these names are ours.
            Some(bridge) if is_end(&link.name) && !plans().any(|(plan, _)| plan.host_name == link.name) => {
                found.push(Deviation::Interface { name: link.name.clone(), bridge: bridge.name.clone() });
            }
            _ => {}
        }
        if made_for_network(link, prefix)
            && !ours.contains(link.name.as_str())
            && !parents.contains(link.name.as_str())
        {
            found.push(Deviation::Bridge { name: link.name.clone() });
        }
    }
    Ok(found)
}

/// What is wrong with the host's end of a container's interface.
fn end(
    links: &[Link],
    bridges: &HashSet<&str>,
    plan: InterfacePlan,
    container: ContainerId,
) -> Option<Deviation> {
    let InterfacePlan { host_name: name, bridge, .. } = plan;
    if !bridges.contains(bridge.as_str()) {
        return None;
    }
    let Some(link) = links.iter().find(|link| link.name == name) else {
        return Some(Deviation::NoInterface { name, container });
    };
    let master = links.iter().find(|master| Some(master.index) == link.master);
    let plugged = master.is_some_and(|master| master.name == bridge);
    (!plugged).then_some(Deviation::Unplugged { name, bridge, container })
}

/// Whether its name is one that [`Networks::create`] chooses: the digits of a network's id behind the prefix.
fn made_for_network(link: &Link, prefix: &str) -> bool {
    let digits = link.name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
    digits.len() == 14 - prefix.len() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_of_others_are_not_ours() {
        let named = |name: &str| Link {
            index: 1,
            name: name.to_owned(),
            up: true,
            mtu: 1500,
            master: None,
            kind: "bridge".to_owned(),
        };
        for (prefix, name, ours) in [
            ("insula", "insula-0123abcd", true),
            // The default bridge of another root.
            ("insula", "insula-0123ab", false),
            ("insula", "insula0", false),
            ("insula", "insula-prod-net", false),
            ("in-01ab23", "in-01ab23-01234", true),
            ("in-01ab23", "in-01ab24-01234", false),
        ] {
            assert_eq!(made_for_network(&named(name), prefix), ours, "{name}");
        }
    }
}
