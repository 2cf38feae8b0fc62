//! The use cases: endpoints are prepared and released, and reconciled when a daemon starts.
//!
//! Rows come first. An endpoint's row names everything that is made for it (address, ports, the
//! link), so that whatever a crash leaves is found by it: [`Networks::prepare`] withdraws what a former
//! attempt left, [`Networks::reconcile`] what belongs to nobody. The bridge and the firewall's table
//! are looked for each time, which costs microseconds, and made again should somebody have removed them.

mod plumbing;
mod rows;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use insula_base::{ContainerId, Instance, random_hex};
use insula_host::firewall::{self, Firewall};
use insula_host::netlink::Routes;
use insula_spec::plan::InterfacePlan;
use insula_store::Store;

use crate::network::BridgeNetwork;
use crate::reserve::{Reservation, reserve, reserve_again};
use crate::{Attachment, Driver, Endpoint, EndpointRequest, Error, Mode, Network, PublishedPort, Subnet};

/// What an administrator may configure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where subnets are chosen from.
    pub pools: Vec<Subnet>,
    /// Of bridges and interfaces.
    pub mtu: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { pools: Subnet::defaults(), mtu: 1500 }
    }
}

/// All networks of one daemon. Its methods block for microseconds, the first `prepare` for milliseconds.
#[derive(Debug)]
pub struct Networks {
    store: Arc<Store>,
    firewall: Firewall,
    options: Options,
    inner: Mutex<Inner>,
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
            let subnet = Subnet::choose(&options.pools, &routes.routes()?, None)?;
            let bridge = BridgeNetwork { link: instance.bridge(), subnet, mtu: options.mtu };
            networks = rows::declare(store.state(), bridge)?;
        }
        let inner = Mutex::new(Inner { routes, networks, reserved: HashMap::new() });
        Ok(Self { store, firewall: Firewall::open(instance.table())?, options, inner })
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

    /// Gives a container its place: an address, its ports, the rules for them. What it had before is
    /// withdrawn first, so that a start may be tried again. Nothing is left of one that fails.
    pub fn prepare(&self, request: &EndpointRequest) -> Result<Endpoint, Error> {
        let mut inner = self.lock();
        self.withdraw(&mut inner, &request.container)?;
        let network = match &request.mode {
            Mode::Container(_) if !request.ports.is_empty() => return Err(Error::PublishShared),
            Mode::Container(_) => None,
            Mode::None => Some(inner.find("none")?.clone()),
            Mode::Host => Some(inner.find("host")?.clone()),
            Mode::Network(reference) => Some(inner.find(reference)?.clone()),
        };
        match network {
            Some(network) if network.bridge().is_some() => self.connect(&mut inner, request, &network.name),
            network => self.note(request, network.as_ref()),
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
            rows::forget(self.store.state(), endpoint, &inner.networks)?;
        }
        rows::free_orphans(self.store.state(), &inner.networks, &kept)?;
        let mut warnings = Vec::new();
        for endpoint in &kept {
            inner.hold_again(endpoint, &mut warnings);
        }
        let bridged = kept.iter().any(|endpoint| endpoint.address().is_some());
        if bridged || self.firewall.installed()? {
            self.bring_up(&mut inner)?;
        }
        Ok(warnings)
    }

    /// Makes bridge and rules ahead of the first container that needs them.
    pub fn warm(&self) -> Result<(), Error> {
        self.bring_up_if_needed(&mut self.lock())
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
        let mut warnings = Vec::new();
        for bridge in inner.networks.iter().filter_map(Network::bridge) {
            if inner.routes.link(&bridge.link)?.is_some() {
                warnings.extend(firewall::forward_warnings(self.firewall.table(), &bridge.link)?);
            }
        }
        Ok(warnings)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic leaves is at worst a row that is withdrawn later.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An endpoint without an interface, for inspection; ports mean nothing there.
    fn note(&self, request: &EndpointRequest, network: Option<&Network>) -> Result<Endpoint, Error> {
        if request.address.is_some() {
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
        });
        let endpoint = Endpoint {
            container: request.container.clone(),
            attachments: attachments.into_iter().collect(),
            ports: Vec::new(),
        };
        rows::note(self.store.state(), &endpoint)?;
        Ok(endpoint)
    }

    fn connect(&self, inner: &mut Inner, request: &EndpointRequest, name: &str) -> Result<Endpoint, Error> {
        if let Some(mac) = &request.mac {
            check_mac(mac)?;
        }
        let reserved = inner.reserve(request)?;
        // It may choose another subnet, which is why the network is looked up after it.
        self.bring_up_if_needed(inner)?;
        let network = inner.find(name)?.clone();
        let ports = reserved.iter().map(|reservation| reservation.published).collect();
        let endpoint =
            rows::give(self.store.state(), &network, request.address, &request.container, |address| {
                attach(request, &network, address, ports)
            })?;
        inner.reserved.insert(request.container.clone(), reserved);
        if let Err(error) = self.publish(inner, &endpoint) {
            self.withdraw(inner, &request.container)?;
            return Err(error);
        }
        Ok(endpoint)
    }

    fn publish(&self, inner: &mut Inner, endpoint: &Endpoint) -> Result<(), Error> {
        match self.firewall.add(&plumbing::forwards(endpoint)) {
            // Flushed since it was looked for: the whole table with this endpoint in it.
            Err(error) if error.is_missing() => self.bring_up(inner),
            result => Ok(result?),
        }
    }

    fn withdraw(&self, inner: &mut Inner, container: &ContainerId) -> Result<(), Error> {
        let Some(endpoint) = self.endpoint(container)? else { return Ok(()) };
        let forwards = plumbing::forwards(&endpoint);
        if !forwards.is_empty() {
            self.firewall.remove(&forwards)?;
        }
        inner.reserved.remove(container);
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

    /// All the ports of a request, or none.
    fn reserve(&self, request: &EndpointRequest) -> Result<Vec<Reservation>, Error> {
        let mut reserved: Vec<Reservation> = Vec::new();
        for port in &request.ports {
            let held = |wanted: &PublishedPort| {
                let all = self.reserved.values().flatten().chain(&reserved);
                all.map(|reservation| &reservation.published).any(|have| clashes(have, wanted))
            };
            let found = reserve(port, &held)?;
            reserved.push(found);
        }
        Ok(reserved)
    }

    fn hold_again(&mut self, endpoint: &Endpoint, warnings: &mut Vec<String>) {
        if self.reserved.contains_key(&endpoint.container) {
            return;
        }
        let mut reserved = Vec::new();
        for published in &endpoint.ports {
            match reserve_again(published) {
                Ok(reservation) => reserved.push(reservation),
                Err(error) => {
                    let PublishedPort { host_ip, host_port, proto, .. } = published;
                    let container = endpoint.container.short();
                    warnings.push(format!(
                        "port {host_ip}:{host_port}/{proto} of container {container} is published but not \
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
        && (anywhere || have.host_ip == wanted.host_ip)
}

/// Six bytes that are no multicast address.
fn check_mac(text: &str) -> Result<(), Error> {
    let bytes: Vec<_> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let shaped = text.len() == 17 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
    match bytes.as_slice() {
        [Some(first), rest @ ..]
            if shaped && first & 1 == 0 && rest.len() == 5 && rest.iter().all(Option::is_some) =>
        {
            Ok(())
        }
        _ => Err(Error::InvalidMac { text: text.to_owned() }),
    }
}

/// Locally administered, and the same whenever the address is.
fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

fn attach(
    request: &EndpointRequest,
    network: &Network,
    address: Ipv4Addr,
    ports: Vec<PublishedPort>,
) -> Endpoint {
    let endpoint = random_hex(32);
    let mac = request.mac.clone().unwrap_or_else(|| {
        mac_of(address).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
    });
    let bridge = match &network.driver {
        Driver::Bridge(bridge) => Some(bridge),
        Driver::Host | Driver::Null => None,
    };
    let interface = bridge.map(|bridge| InterfacePlan {
        name: "eth0".to_owned(),
        bridge: bridge.link.clone(),
        // New each time: the pair of a former start may still be on its way out.
        host_name: format!("veth{}", &endpoint[..10]),
        mac: mac.clone(),
        mtu: bridge.mtu,
        addresses: vec![format!("{address}/{}", bridge.subnet.prefix())],
        gateway: Some(IpAddr::V4(bridge.subnet.gateway())),
        gateway6: None,
        hairpin: !ports.is_empty(),
    });
    let attachment = Attachment {
        network: network.id.clone(),
        network_name: network.name.clone(),
        endpoint,
        address: Some(address),
        prefix: bridge.map_or(0, |bridge| bridge.subnet.prefix()),
        gateway: interface.as_ref().and_then(|interface| interface.gateway),
        interface,
        mac,
    };
    Endpoint { container: request.container.clone(), attachments: vec![attachment], ports }
}

#[cfg(test)]
mod tests;
