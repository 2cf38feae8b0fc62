//! The use cases: endpoints are prepared and released, and reconciled when a daemon starts.
//!
//! Rows come first. An endpoint's row names everything that is made for it (address, ports, the
//! link), so that whatever a crash leaves is found by it: [`Networks::prepare`] withdraws what a former
//! attempt left, [`Networks::reconcile`] what belongs to nobody. The bridge and the firewall's table
//! are looked for each time, which costs microseconds, and made again should somebody have removed them.

mod check;
mod declare;
mod join;
mod outlets;
mod parent;
mod plumbing;
mod rows;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use insula_base::{ContainerId, Instance, NetworkId, random_hex};
use insula_host::firewall::Firewall;
use insula_host::netlink::Routes;
use insula_spec::outlets::Outlet;
use insula_store::Store;

pub use self::check::Deviation;
use self::parent::ensure_parent;
use crate::names::Directory;
use crate::network::BridgeNetwork;
use crate::reserve::{Reservation, reserve, reserve_again};
use crate::{
    Attachment, Endpoint, EndpointRequest, Error, Mode, Network, Pool, PortRequest, PublishedPort, Subnet,
};

/// Ports that one container may publish: each is a socket that the daemon holds.
pub const MOST_PORTS: usize = 4096;

/// What an administrator may configure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where subnets are chosen from.
    pub pools: Vec<Pool>,
    /// Of bridges and interfaces.
    pub mtu: u32,
    /// Where ports are published that name no address of the host; `None` is on all of them.
    pub publish: Option<Ipv4Addr>,
    /// Interfaces by which ports are reached that are published on all addresses; none is all.
    pub exposed: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { pools: Pool::defaults(), mtu: 1500, publish: None, exposed: Vec::new() }
    }
}

/// All networks of one daemon. Its methods block for microseconds, the first `prepare` for milliseconds.
#[derive(Debug)]
pub struct Networks {
    store: Arc<Store>,
    firewall: Firewall,
    options: Options,
    /// What names of bridges begin with.
    links: String,
    inner: Mutex<Inner>,
    names: Directory,
}

#[derive(Debug)]
struct Inner {
    routes: Routes,
    networks: Vec<Network>,
    /// Ports of endpoints, held while the endpoint is.
    reserved: HashMap<ContainerId, Vec<Reservation>>,
}

impl Networks {
    /// Reads the networks, and declares the three predefined ones on the first run. Nothing of the
    /// host is changed.
    pub fn open(instance: &Instance, store: Arc<Store>, options: Options) -> Result<Self, Error> {
        let routes = Routes::open()?;
        let mut networks = rows::networks(store.state())?;
        if networks.is_empty() {
            let subnet = Pool::choose(&options.pools, &routes.routes()?, None, &[])?;
            let bridge = BridgeNetwork::plain(instance.bridge(), subnet, options.mtu);
            networks = rows::declare(store.state(), bridge)?;
        }
        let inner = Mutex::new(Inner { routes, networks, reserved: HashMap::new() });
        let links = instance.tag().map_or_else(|| "insula".to_owned(), |tag| format!("in-{tag}"));
        let names = Directory::default();
        for endpoint in rows::endpoints(store.state())? {
            names.put(&endpoint);
        }
        Ok(Self {
            store,
            firewall: Firewall::open(instance.table(), options.exposed.clone())?,
            options,
            links,
            inner,
            names,
        })
    }

    /// Who is called what.
    #[must_use]
    pub fn names(&self) -> &Directory {
        &self.names
    }

    /// Every network.
    #[must_use]
    pub fn list(&self) -> Vec<Network> {
        self.lock().networks.clone()
    }

    /// A network by name, id or unique beginning of an id.
    pub fn get(&self, reference: &str) -> Result<Network, Error> {
        self.lock().find(reference).cloned()
    }

    /// What a container was given, if it has something.
    pub fn endpoint(&self, container: &ContainerId) -> Result<Option<Endpoint>, Error> {
        rows::endpoint(self.store.state(), container)
    }

    /// Everything that was given.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, Error> {
        rows::endpoints(self.store.state())
    }

    /// Whether these ports of the host could be published now.
    pub fn try_ports(&self, ports: &[PortRequest]) -> Result<(), Error> {
        let v6 = ports.iter().any(|port| port.host_ip.is_some_and(|address| address.is_ipv6()));
        let binding = self.options.publish.filter(|address| !address.is_unspecified());
        self.lock().reserve(ports, binding, v6).map(drop)
    }

    /// Gives a container its place: an address, its ports, the rules for them. What it had before is
    /// withdrawn first, so that a start may be tried again. Nothing is left of one that fails.
    pub fn prepare(&self, request: &EndpointRequest) -> Result<Endpoint, Error> {
        let mut inner = self.lock();
        self.withdraw(&mut inner, &request.container)?;
        match &request.mode {
            Mode::Container(_) if !request.ports.is_empty() => Err(Error::PublishShared),
            Mode::Container(_) => self.note(request, None),
            Mode::None => self.note(request, Some(&inner.find("none")?.clone())),
            Mode::Host => self.note(request, Some(&inner.find("host")?.clone())),
            Mode::Network(_) => self.join(&mut inner, request),
        }
    }

    /// Withdraws everything that a container was given. One that has nothing is fine.
    pub fn release(&self, container: &ContainerId) -> Result<(), Error> {
        self.withdraw(&mut self.lock(), container)
    }

    /// After the daemon's start: withdraws what containers that do not live have, holds the ports of
    /// those that do, and puts bridge and rules in place again. Returns texts for the log: ports
    /// that somebody else took meanwhile.
    pub fn reconcile(&self, live: &HashSet<ContainerId>) -> Result<Vec<String>, Error> {
        let mut inner = self.lock();
        let (kept, dead): (Vec<_>, Vec<_>) =
            self.endpoints()?.into_iter().partition(|endpoint| live.contains(&endpoint.container));
        for endpoint in &dead {
            self.firewall.remove(&plumbing::forwards(endpoint), &plumbing::guests(endpoint))?;
            rows::forget(self.store.state(), endpoint, &inner.networks)?;
            self.names.remove(&endpoint.container);
        }
        rows::free_orphans(self.store.state(), &inner.networks, &kept)?;
        let mut warnings = Vec::new();
        for macvlan in inner.networks.iter().filter_map(Network::macvlan) {
            if let Err(error) = ensure_parent(&inner, macvlan) {
                warnings.push(insula_base::chain(&error).to_string());
            }
        }
        let led = outlets::keep(&kept, &mut warnings)?;
        for endpoint in &kept {
            inner.hold_again(endpoint, &led, &mut warnings);
        }
        if kept.iter().any(|endpoint| endpoint.address().is_some())
            || inner.networks.iter().any(|network| network.bridge().is_some() && !network.predefined())
            || self.firewall.installed()?
        {
            self.bring_up(&mut inner)?;
        }
        for endpoint in &kept {
            if let Err(error) = outlets::lead(&mut inner, endpoint) {
                let container = endpoint.container.short();
                let error = insula_base::chain(&error);
                warnings.push(format!("ports of container {container} are published but not open: {error}"));
            }
        }
        Ok(warnings)
    }

    /// Follows what others have changed of the host's rules: their input chains guard published ports, and what
    /// they have removed of ours is made again.
    pub fn follow_rules(&self) -> Result<(), Error> {
        let mut inner = self.lock();
        if self.firewall.altered()? {
            tracing::warn!(
                table = self.firewall.table(),
                "another program removed or changed our rules: they are made again"
            );
            return self.bring_up(&mut inner);
        }
        if self.firewall.installed()? && self.firewall.outdated()? {
            tracing::info!("the host's filter has changed: it guards published ports anew");
            self.install_rules(&inner)?;
        }
        Ok(())
    }

    /// Makes bridge and rules ahead of the first container that needs them.
    pub fn warm(&self) -> Result<(), Error> {
        let mut inner = self.lock();
        let bridge = inner.find("bridge")?.id.clone();
        self.bring_up_if_needed(&mut inner, &[bridge])
    }

    /// Takes bridge, rules and the forwarding parameter back if no container is connected; for the
    /// daemon's orderly end. Returns whether it did.
    pub fn retire(&self) -> Result<bool, Error> {
        let inner = self.lock();
        if self.endpoints()?.iter().any(|endpoint| endpoint.address().is_some()) {
            return Ok(false);
        }
        self.take_down(&inner)?;
        Ok(true)
    }

    /// For `info`: what of the host's configuration is in containers' way, and how to change it.
    pub fn warnings(&self) -> Result<Vec<String>, Error> {
        let inner = self.lock();
        let mut warnings = self.firewall.warnings();
        for bridge in inner.networks.iter().filter_map(Network::bridge) {
            if inner.routes.link(&bridge.link)?.is_some() {
                let v6 = bridge.addressing.v6.is_some();
                warnings.extend(self.firewall.forward_warnings(&bridge.link, v6)?);
            }
        }
        Ok(warnings)
    }

    /// For who publishes `ports` of a container in these networks: what of the host's configuration will be in
    /// the way, and how to change it. Networks that are not there have no answer.
    pub fn foresee(&self, networks: &[&str], ports: &[PortRequest]) -> Result<Vec<String>, Error> {
        let inner = self.lock();
        let all = networks.iter().filter_map(|name| inner.find(name).ok());
        let bridges: Vec<_> = all.filter_map(Network::bridge).collect();
        let binding = self.options.publish.map(IpAddr::V4);
        let wanted = ports.iter().filter_map(|port| {
            // A port that is yet to be chosen cannot be told.
            let range = port
                .host_ports
                .as_ref()
                .filter(|range| *range.start() > 0 && range.start() == range.end())?;
            Some((port.host_ip.or(binding), port.proto.name(), *range.start()))
        });
        let wanted: Vec<_> = wanted.collect();
        if bridges.is_empty() || ports.is_empty() {
            return Ok(Vec::new());
        }
        let mut warnings = self.firewall.port_warnings(&wanted)?;
        for bridge in bridges {
            let v6 = bridge.addressing.v6.is_some();
            warnings.extend(self.firewall.forward_warnings(&bridge.link, v6)?);
        }
        Ok(warnings)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic leaves is at worst a row that is withdrawn later.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An endpoint without an interface, for inspection; ports mean nothing there.
    fn note(&self, request: &EndpointRequest, network: Option<&Network>) -> Result<Endpoint, Error> {
        if request.connections.iter().any(|wish| wish.address.is_some() || wish.address6.is_some()) {
            return Err(Error::AddressWithoutNetwork);
        }
        let attachments = network.map(|network| Attachment {
            network: network.id.clone(),
            network_name: network.name.clone(),
            endpoint: random_hex(32),
            interface: None,
            address: None,
            prefix: 0,
            gateway: None,
            mac: String::new(),
            address6: None,
            prefix6: 0,
            gateway6: None,
            aliases: Vec::new(),
            links: Vec::new(),
            priority: 0,
            guard: false,
            apart: None,
        });
        let endpoint = Endpoint {
            container: request.container.clone(),
            name: request.name.clone(),
            hostname: request.hostname.clone(),
            attachments: attachments.into_iter().collect(),
            ports: Vec::new(),
            rate: None,
        };
        rows::note(self.store.state(), &endpoint)?;
        Ok(endpoint)
    }

    fn publish(&self, inner: &mut Inner, endpoint: &Endpoint) -> Result<(), Error> {
        match self.firewall.add(&plumbing::forwards(endpoint), &plumbing::guests(endpoint)) {
            // Flushed since it was looked for: the whole table with this endpoint in it.
            Err(error) if error.is_missing() => self.bring_up(inner)?,
            result => result?,
        }
        outlets::lead(inner, endpoint)
    }

    fn withdraw(&self, inner: &mut Inner, container: &ContainerId) -> Result<(), Error> {
        let Some(endpoint) = self.endpoint(container)? else { return Ok(()) };
        self.firewall.remove(&plumbing::forwards(&endpoint), &plumbing::guests(&endpoint))?;
        outlets::close(&endpoint);
        inner.reserved.remove(container);
        self.names.remove(container);
        rows::forget(self.store.state(), &endpoint, &inner.networks)
    }
}

impl Inner {
    fn find(&self, reference: &str) -> Result<&Network, Error> {
        let exact = |network: &&Network| network.name == reference || network.id.as_str() == reference;
        if let Some(network) = self.networks.iter().find(exact) {
            return Ok(network);
        }
        let mut matching = self.networks.iter().filter(|network| network.id.as_str().starts_with(reference));
        match (matching.next(), matching.next()) {
            (Some(network), None) if !reference.is_empty() => Ok(network),
            (Some(_), Some(_)) if !reference.is_empty() => {
                Err(Error::Ambiguous { reference: reference.to_owned() })
            }
            _ => Err(Error::NetworkNotFound { reference: reference.to_owned() }),
        }
    }

    fn by_id(&self, id: &NetworkId) -> Result<&Network, Error> {
        let found = self.networks.iter().find(|network| network.id == *id);
        found.ok_or_else(|| Error::NetworkNotFound { reference: id.to_string() })
    }

    /// Subnets of all networks.
    fn subnets(&self) -> Vec<Subnet> {
        self.networks.iter().filter_map(Network::addressing).map(|addressing| addressing.subnet).collect()
    }

    /// All the ports of a request, or none. `v6` is whether they can lead to an IPv6 address, too.
    fn reserve(
        &self,
        ports: &[PortRequest],
        binding: Option<Ipv4Addr>,
        v6: bool,
    ) -> Result<Vec<Reservation>, Error> {
        if ports.len() > MOST_PORTS {
            return Err(Error::TooManyPorts { count: ports.len(), most: MOST_PORTS });
        }
        let mut reserved: Vec<Reservation> = Vec::new();
        for port in ports {
            let held = |wanted: &PublishedPort| {
                let all = self.reserved.values().flatten().chain(&reserved);
                all.map(|reservation| &reservation.published).any(|have| clashes(have, wanted))
            };
            let host_ip = port.host_ip.or(binding.map(IpAddr::V4));
            if let (Some(IpAddr::V6(address)), false) = (host_ip, v6) {
                return Err(Error::PublishWithoutV6 { address });
            }
            let found = reserve(&PortRequest { host_ip, ..port.clone() }, v6, &held);
            let found = found.map_err(|error| self.name_holder(error, port))?;
            reserved.extend(found);
        }
        Ok(reserved)
    }

    /// A port that a container of ours has: which one.
    fn name_holder(&self, error: Error, wanted: &PortRequest) -> Error {
        let Error::PortTaken { address, port, proto, holder } = error else { return error };
        let has = |reservation: &Reservation| {
            let have = &reservation.published;
            have.proto == wanted.proto && have.host_port == port
        };
        let mut all = self.reserved.iter();
        let ours = all.find(|(_, reserved)| reserved.iter().any(has)).map(|(id, _)| id);
        let holder = ours.map_or(holder, |id| format!("container {}", id.short()));
        Error::PortTaken { address, port, proto, holder }
    }

    /// `led` are those that are held for us.
    fn hold_again(&mut self, endpoint: &Endpoint, led: &[Outlet], warnings: &mut Vec<String>) {
        if self.reserved.contains_key(&endpoint.container) {
            return;
        }
        let mut reserved = Vec::new();
        for published in &endpoint.ports {
            if outlets::is_led(published, led) {
                reserved.push(Reservation { published: *published, socket: None });
                continue;
            }
            match reserve_again(published) {
                Ok(found) => reserved.extend(found),
                Err(error) => {
                    let PublishedPort { host_ip, host_port, proto, .. } = published;
                    let (container, port) =
                        (endpoint.container.short(), SocketAddr::new(*host_ip, *host_port));
                    warnings.push(format!(
                        "port {port}/{proto} of container {container} is published but not \
                         reserved: {}",
                        insula_base::chain(&error)
                    ));
                }
            }
        }
        self.reserved.insert(endpoint.container.clone(), reserved);
    }
}

/// Whether one packet could be meant by both.
fn clashes(have: &PublishedPort, wanted: &PublishedPort) -> bool {
    let anywhere = have.host_ip.is_unspecified() || wanted.host_ip.is_unspecified();
    have.proto == wanted.proto
        && have.host_port == wanted.host_port
        && have.host_ip.is_ipv4() == wanted.host_ip.is_ipv4()
        && (anywhere || have.host_ip == wanted.host_ip)
}

/// Locally administered, and the same whenever the address is.
fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_settings;
