//! Which name leads where, as things are now.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use insula_base::ContainerId;
use insula_network::Mode;
use insula_spec::sites::{HostName, Served, Speech};

use crate::containers::container::Container;
use crate::containers::health::{self, STARTING, UNHEALTHY};
use crate::containers::row::Row;
use crate::{Engine, Result};

/// How able a container is to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ability {
    Able,
    /// Asked only if nobody else is there: its health is not known yet.
    Perhaps,
}

#[derive(Debug)]
struct Name {
    speech: Speech,
    targets: Vec<(Ability, SocketAddr)>,
}

impl Engine {
    /// Nothing where no container has a host name.
    pub(super) fn site_table(&self) -> Result<Option<Vec<Served>>> {
        let mut containers = self.0.containers.all();
        containers.retain(|container| !container.row().sites.is_empty());
        if containers.is_empty() {
            return Ok(None);
        }
        containers.sort_by_key(|container| container.row().created);
        let reached = self.reached()?;
        let mut names: BTreeMap<HostName, Name> = BTreeMap::new();
        for container in containers {
            let row = container.row();
            let up = ability(&container).zip(address(&row, &reached));
            for site in &row.sites {
                let name = names
                    .entry(site.name.clone())
                    .or_insert_with(|| Name { speech: site.speech, targets: Vec::new() });
                if let Some((ability, address)) = up.filter(|_| name.speech == site.speech) {
                    name.targets.push((ability, SocketAddr::new(address, site.port)));
                }
            }
        }
        Ok(Some(names.into_iter().map(|(name, found)| served(name, found)).collect()))
    }

    fn reached(&self) -> Result<HashMap<ContainerId, IpAddr>> {
        let endpoints = self.networks().endpoints()?.into_iter();
        Ok(endpoints.filter_map(|endpoint| Some((endpoint.container.clone(), endpoint.reached()?))).collect())
    }

    /// Where the sites of a container lead.
    pub(super) fn site_targets(&self, row: &Row) -> Result<Vec<SocketAddr>> {
        let address = address(row, &self.reached()?);
        Ok(address.map_or_else(Vec::new, |address| {
            row.sites.iter().map(|site| SocketAddr::new(address, site.port)).collect()
        }))
    }
}

fn address(row: &Row, reached: &HashMap<ContainerId, IpAddr>) -> Option<IpAddr> {
    match Mode::parse(&row.host.network_mode) {
        Mode::Host => Some(Ipv4Addr::LOCALHOST.into()),
        _ => reached.get(&row.id).copied(),
    }
}

/// Nothing for one that is down, about to end, paused or unhealthy.
fn ability(container: &Container) -> Option<Ability> {
    let leaves = {
        let state = container.state();
        state.paused || state.told_to_end
    };
    if leaves || !container.row().running() {
        return None;
    }
    match health::word(container).as_str() {
        UNHEALTHY => None,
        STARTING => Some(Ability::Perhaps),
        _ => Some(Ability::Able),
    }
}

fn served(name: HostName, found: Name) -> Served {
    let best = found.targets.iter().map(|(ability, _)| *ability).min();
    let best = found.targets.iter().filter(|(ability, _)| Some(*ability) == best);
    Served { name, speech: found.speech, targets: best.map(|(_, address)| *address).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_be_able_waits_for_who_is() {
        let targets = |found: &[(Ability, u16)]| {
            let targets = found.iter().map(|(able, port)| (*able, ([127, 0, 0, 1], *port).into())).collect();
            let served = served("a".parse().unwrap(), Name { speech: Speech::Http, targets });
            served.targets.iter().map(SocketAddr::port).collect::<Vec<_>>()
        };
        assert_eq!(targets(&[(Ability::Perhaps, 1), (Ability::Able, 2), (Ability::Able, 3)]), [2, 3]);
        assert_eq!(targets(&[(Ability::Perhaps, 1)]), [1]);
        assert_eq!(targets(&[]), Vec::<u16>::new());
    }
}
