//! Networks that users make and remove.

use std::time::SystemTime;

use insula_base::NetworkId;
use insula_host::netlink::{self, Route6};
use insula_spec::plan::MacvlanMode;

use super::parent::{choose_parent, drop_parent, ensure_parent};
use super::{Inner, Networks, rows};
use crate::network::{MacvlanNetwork, ParentOrigin};
use crate::request::{BridgeOptions, OptionsOf, Wanted};
use crate::{BridgeNetwork, Driver, Error, Network, NetworkRequest, Pool, Subnet};

impl Networks {
    /// Makes a network: its row, its bridge, its place in the firewall. Nothing is left of one that fails.
    pub fn create(&self, request: &NetworkRequest) -> Result<Network, Error> {
        self.create_as(NetworkId::random(), request)
    }

    /// The same with an id that the caller has written down.
    pub fn create_as(&self, id: NetworkId, request: &NetworkRequest) -> Result<Network, Error> {
        let wanted = request.check()?;
        let mut inner = self.lock();
        if inner.networks.iter().any(|network| network.name == request.name) {
            return Err(Error::NameTaken { name: request.name.clone() });
        }
        let place = self.place(&inner, &wanted.options.driver, &id)?;
        let routed = matches!(place, Place::Bridge(..));
        let claim = netlink::claim()?;
        let subnet = self.subnet(&inner, wanted.v4, routed)?;
        if let Some(v6) = &wanted.v6 {
            for other in &inner.networks {
                if let Some(theirs) = other.addressing().and_then(|addressing| addressing.v6.as_ref())
                    && theirs.subnet.touches(v6.subnet)
                {
                    return Err(overlap(v6.subnet.to_string(), theirs.subnet.to_string(), other));
                }
            }
            let (subnet, routes) = (v6.subnet, inner.routes.routes6()?);
            let theirs = routes.iter().find(|route| routed && !subnet.is_free(route));
            if let Some(Route6 { destination, prefix }) = theirs {
                let route = format!("{destination}/{prefix}");
                return Err(Error::OverlapRoute { subnet: subnet.to_string(), route });
            }
        }
        let internal = request.internal || place.leads_nowhere();
        let network = Network {
            id,
            name: request.name.clone(),
            driver: place.finish(wanted, subnet, self.options.mtu),
            created: SystemTime::now(),
            labels: request.labels.clone(),
            options: request.options.clone(),
            internal,
            attachable: request.attachable,
        };
        rows::add_network(self.store.state(), &network)?;
        inner.networks.push(network.clone());
        let made = match network.macvlan() {
            Some(macvlan) => {
                drop(claim);
                ensure_parent(&inner, macvlan)
            }
            None => self.bring_up_claimed(&mut inner, claim),
        };
        if let Err(error) = made {
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
        match network.bridge() {
            Some(bridge) => inner.routes.delete(&bridge.link)?,
            None => return drop_parent(inner, network),
        }
        let others = inner.networks.iter().any(|network| network.bridge().is_some() && !network.predefined());
        if others || self.endpoints()?.iter().any(|endpoint| endpoint.address().is_some()) {
            self.bring_up(inner)
        } else {
            self.take_down(inner)
        }
    }

    fn place(&self, inner: &Inner, options: &OptionsOf, id: &NetworkId) -> Result<Place, Error> {
        let options = match options {
            OptionsOf::Bridge(options) => options,
            OptionsOf::Macvlan { parent, mode } => {
                let (parent, origin) = choose_parent(inner, parent.as_deref(), &self.links, id)?;
                return Ok(Place::Macvlan(parent, origin, *mode));
            }
        };
        let link = match &options.link {
            Some(link) => link.clone(),
            // 15 bytes at most.
            None => format!("{}-{}", self.links, &id.as_str()[..14 - self.links.len()]),
        };
        match inner.routes.link(&link)? {
            Some(_) => Err(Error::LinkTaken { link }),
            None => Ok(Place::Bridge(link, options.clone())),
        }
    }

    /// The subnet that was asked for, if nobody has addresses of it, or a free one.
    /// Of a macvlan it is that of a network around the host, where the host has a route, too: `routed` is false.
    fn subnet(&self, inner: &Inner, wanted: Option<Subnet>, routed: bool) -> Result<Subnet, Error> {
        let routes = inner.routes.routes()?;
        let Some(subnet) = wanted else {
            return Pool::choose(&self.options.pools, &routes, None, &inner.subnets());
        };
        for other in &inner.networks {
            if let Some(theirs) = other.addressing()
                && theirs.subnet.touches(subnet)
            {
                return Err(overlap(subnet.to_string(), theirs.subnet.to_string(), other));
            }
        }
        let theirs =
            routes.iter().find(|route| routed && !subnet.is_free(std::slice::from_ref(*route), None));
        match theirs {
            Some(route) => Err(Error::OverlapRoute {
                subnet: subnet.to_string(),
                route: format!("{}/{}", route.destination, route.prefix),
            }),
            None => Ok(subnet),
        }
    }
}

/// What of the host a new network stands on.
enum Place {
    Bridge(String, BridgeOptions),
    Macvlan(String, ParentOrigin, MacvlanMode),
}

impl Place {
    fn leads_nowhere(&self) -> bool {
        matches!(self, Self::Macvlan(_, ParentOrigin::Alone, _))
    }

    fn finish(self, wanted: Wanted, subnet: Subnet, mtu: u32) -> Driver {
        match self {
            Self::Bridge(link, BridgeOptions { masquerade, icc, guard, host_binding, .. }) => {
                let addressing = wanted.finish(subnet, mtu);
                Driver::Bridge(BridgeNetwork { link, addressing, masquerade, icc, guard, host_binding })
            }
            Self::Macvlan(parent, origin, mode) => {
                // That of the parent.
                let addressing = wanted.finish(subnet, 0);
                Driver::Macvlan(MacvlanNetwork { parent, origin, mode, addressing })
            }
        }
    }
}

fn overlap(subnet: String, other: String, network: &Network) -> Error {
    Error::Overlap { subnet, other, network: network.name.clone() }
}
