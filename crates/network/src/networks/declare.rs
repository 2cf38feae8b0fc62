//! Networks that users make and remove.

use std::time::SystemTime;

use insula_base::NetworkId;
use insula_host::netlink::Route6;

use super::{Inner, Networks, rows};
use crate::{Driver, Error, Network, NetworkRequest, Pool, Subnet};

impl Networks {
    /// Makes a network: its row, its bridge, its place in the firewall. Nothing is left of one that fails.
    pub fn create(&self, request: &NetworkRequest) -> Result<Network, Error> {
        let wanted = request.check()?;
        let mut inner = self.lock();
        if inner.networks.iter().any(|network| network.name == request.name) {
            return Err(Error::NameTaken { name: request.name.clone() });
        }
        let id = NetworkId::random();
        let link = match &wanted.options.link {
            Some(link) => link.clone(),
            // 15 bytes at most.
            None => format!("{}-{}", self.links, &id.as_str()[..14 - self.links.len()]),
        };
        if inner.routes.link(&link)?.is_some() {
            return Err(Error::LinkTaken { link });
        }
        let subnet = self.subnet(&inner, wanted.v4)?;
        if let Some(v6) = &wanted.v6 {
            for other in &inner.networks {
                if let Some(theirs) = other.bridge().and_then(|bridge| bridge.v6.as_ref())
                    && theirs.subnet.touches(v6.subnet)
                {
                    return Err(overlap(v6.subnet.to_string(), theirs.subnet.to_string(), other));
                }
            }
            let (subnet, routes) = (v6.subnet, inner.routes.routes6()?);
            if let Some(Route6 { destination, prefix }) = routes.iter().find(|route| !subnet.is_free(route)) {
                let route = format!("{destination}/{prefix}");
                return Err(Error::OverlapRoute { subnet: subnet.to_string(), route });
            }
        }
        let network = Network {
            id,
            name: request.name.clone(),
            driver: Driver::Bridge(wanted.finish(link, subnet, self.options.mtu)),
            created: SystemTime::now(),
            labels: request.labels.clone(),
            options: request.options.clone(),
            internal: request.internal,
            attachable: request.attachable,
        };
        rows::add_network(self.store.state(), &network)?;
        inner.networks.push(network.clone());
        if let Err(error) = self.bring_up(&mut inner) {
            self.drop_network(&mut inner, &network)?;
            return Err(error);
        }
        Ok(network)
    }

    /// Removes a network that nobody is in. With the last one goes everything that stands on the host.
    pub fn remove(&self, reference: &str) -> Result<Network, Error> {
        let mut inner = self.lock();
        let network = inner.find(reference)?.clone();
        if network.predefined() {
            return Err(Error::PredefinedStays { name: network.name });
        }
        let endpoints = self.endpoints()?;
        let within = endpoints.iter().filter(|endpoint| endpoint.attachment(&network.id).is_some());
        let names: Vec<_> = within
            .map(|endpoint| format!("name:{:?} id:{:?}", endpoint.name, endpoint.container.short()))
            .collect();
        if !names.is_empty() {
            return Err(Error::InUse { name: network.name, containers: names.join(", ") });
        }
        self.drop_network(&mut inner, &network)?;
        Ok(network)
    }

    fn drop_network(&self, inner: &mut Inner, network: &Network) -> Result<(), Error> {
        rows::remove_network(self.store.state(), network)?;
        inner.networks.retain(|other| other.id != network.id);
        if let Some(bridge) = network.bridge() {
            inner.routes.delete(&bridge.link)?;
        }
        let others = inner.networks.iter().any(|network| network.bridge().is_some() && !network.predefined());
        if others || self.endpoints()?.iter().any(|endpoint| endpoint.address().is_some()) {
            self.bring_up(inner)
        } else {
            self.take_down(inner)
        }
    }

    /// The subnet that was asked for, if nobody has addresses of it, or a free one.
    fn subnet(&self, inner: &Inner, wanted: Option<Subnet>) -> Result<Subnet, Error> {
        let routes = inner.routes.routes()?;
        let Some(subnet) = wanted else {
            return Pool::choose(&self.options.pools, &routes, None, &inner.subnets());
        };
        for other in &inner.networks {
            if let Some(theirs) = other.bridge()
                && theirs.subnet.touches(subnet)
            {
                return Err(overlap(subnet.to_string(), theirs.subnet.to_string(), other));
            }
        }
        let theirs = routes.iter().find(|route| !subnet.is_free(std::slice::from_ref(*route), None));
        match theirs {
            Some(route) => Err(Error::OverlapRoute {
                subnet: subnet.to_string(),
                route: format!("{}/{}", route.destination, route.prefix),
            }),
            None => Ok(subnet),
        }
    }
}

fn overlap(subnet: String, other: String, network: &Network) -> Error {
    Error::Overlap { subnet, other, network: network.name.clone() }
}
