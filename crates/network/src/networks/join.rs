//! Containers come into networks and leave them, at their start and while they run.

use std::net::IpAddr;
use std::num::NonZeroU64;

use insula_base::{ContainerId, NetworkId, random_hex};
use insula_spec::plan::{InterfaceKind, InterfacePlan, NetworkChange};
use insula_store::Transaction;

use super::{Inner, Networks, mac_of, outlets, plumbing, rows};
use crate::{Attachment, ConnectRequest, Driver, Endpoint, EndpointRequest, Error, Network};

impl Networks {
    /// All networks of a container that is about to start.
    pub(super) fn join(&self, inner: &mut Inner, request: &EndpointRequest) -> Result<Endpoint, Error> {
        let ids = self.wanted(inner, &request.connections)?;
        let bindings = ids.iter().filter_map(|id| inner.by_id(id).ok()?.bridge()?.host_binding);
        let mut bindings = bindings.chain(self.options.publish);
        let binding = bindings.next().filter(|address| !address.is_unspecified());
        let v6 = ids.iter().filter_map(|id| inner.by_id(id).ok()).any(Network::routes6);
        let reserved = inner.reserve(&request.ports, binding, v6)?;
        // It may choose another subnet, which is why the networks are looked at after it.
        self.bring_up_if_needed(inner, &ids)?;
        let mut endpoint = Endpoint {
            container: request.container.clone(),
            name: request.name.clone(),
            hostname: request.hostname.clone(),
            attachments: Vec::with_capacity(ids.len()),
            ports: reserved.iter().map(|reservation| reservation.published).collect(),
            rate: request.rate,
        };
        rows::commit(self.store.state(), |transaction| {
            for (id, wish) in ids.iter().zip(&request.connections) {
                attach(transaction, inner.by_id(id)?, wish, &mut endpoint)?;
            }
            // Nothing of an internal network is published.
            let (v4, v6) = (endpoint.published().is_some(), endpoint.published6().is_some());
            endpoint.ports.retain(|port| if port.host_ip.is_ipv4() { v4 } else { v6 });
            rows::write(transaction, &endpoint)
        })?;
        if !endpoint.ports.is_empty() {
            inner.reserved.insert(request.container.clone(), reserved);
        }
        if let Err(error) = self.publish(inner, &endpoint) {
            self.withdraw(inner, &request.container)?;
            return Err(error);
        }
        self.names.put(&endpoint);
        Ok(endpoint)
    }

    /// Puts a container that runs into one more network. What its wall has to do is returned; should
    /// that fail, [`Networks::disconnect`] takes it back.
    pub fn connect(
        &self,
        container: &ContainerId,
        wish: &ConnectRequest,
    ) -> Result<(Endpoint, NetworkChange), Error> {
        let mut inner = self.lock();
        let ids = self.wanted(&inner, std::slice::from_ref(wish))?;
        let before = self.connected(container, &wish.network)?;
        let network = inner.by_id(&ids[0])?.clone();
        if before.attachment(&network.id).is_some() {
            return Err(Error::AlreadyConnected { container: before.name, network: network.name });
        }
        self.bring_up_if_needed(&mut inner, &ids)?;
        let mut endpoint = before.clone();
        rows::commit(self.store.state(), |transaction| {
            attach(transaction, inner.by_id(&ids[0])?, wish, &mut endpoint)?;
            rows::write(transaction, &endpoint)
        })?;
        self.republish(&mut inner, &before, &endpoint)?;
        self.names.put(&endpoint);
        let name =
            endpoint.attachments.last().and_then(|last| last.interface.as_ref()).map(|plan| &plan.name);
        let plug = endpoint.interfaces().into_iter().filter(|plan| Some(&plan.name) == name).collect();
        let change = NetworkChange {
            unplug: Vec::new(),
            plug,
            shape: Vec::new(),
            gateway: endpoint.gateway(),
            gateway6: endpoint.gateway6(),
        };
        Ok((endpoint, change))
    }

    /// What a container's wall has to do before [`Networks::disconnect`], which gives its address to others.
    pub fn departure(&self, container: &ContainerId, network: &NetworkId) -> Result<NetworkChange, Error> {
        let (_, endpoint, gone) = self.without(&self.lock(), container, network)?;
        Ok(NetworkChange {
            unplug: gone.interface.into_iter().map(|plan| plan.name).collect(),
            plug: Vec::new(),
            shape: Vec::new(),
            gateway: endpoint.gateway(),
            gateway6: endpoint.gateway6(),
        })
    }

    /// A container's endpoint before and after it is out of a network, and what it had there.
    fn without(
        &self,
        inner: &Inner,
        container: &ContainerId,
        network: &NetworkId,
    ) -> Result<(Endpoint, Endpoint, Attachment), Error> {
        let name = inner.by_id(network).map_or_else(|_| network.to_string(), |network| network.name.clone());
        let before = self.connected(container, &name)?;
        let Some(at) = before.attachments.iter().position(|attachment| attachment.network == *network) else {
            return Err(Error::NotConnected { container: before.name, network: name });
        };
        let mut endpoint = before.clone();
        let gone = endpoint.attachments.remove(at);
        Ok((before, endpoint, gone))
    }

    /// Takes a container out of a network, once its interface is gone.
    pub fn disconnect(&self, container: &ContainerId, network: &NetworkId) -> Result<Endpoint, Error> {
        let mut inner = self.lock();
        let (before, endpoint, gone) = self.without(&inner, container, network)?;
        rows::commit(self.store.state(), |transaction| {
            rows::free(transaction, &gone, &inner.networks)?;
            rows::write(transaction, &endpoint)
        })?;
        self.republish(&mut inner, &before, &endpoint)?;
        self.names.put(&endpoint);
        Ok(endpoint)
    }

    /// A container that runs sends and receives at another rate from now on. What its wall has to do is
    /// returned, if there is something; [`Networks::set_rate`] with the former rate takes it back.
    pub fn set_rate(
        &self,
        container: &ContainerId,
        rate: Option<NonZeroU64>,
    ) -> Result<Option<NetworkChange>, Error> {
        let _inner = self.lock();
        let Some(mut endpoint) = self.endpoint(container)? else { return Ok(None) };
        if endpoint.rate == rate {
            return Ok(None);
        }
        endpoint.rate = rate;
        for attachment in &mut endpoint.attachments {
            let Some(plan) = &mut attachment.interface else { continue };
            if plan.kind != InterfaceKind::Veth {
                return Err(Error::RateWithoutBridge { network: attachment.network_name.clone() });
            }
            plan.rate = rate;
        }
        rows::replace(self.store.state(), &endpoint)?;
        let (gateway, gateway6) = (endpoint.gateway(), endpoint.gateway6());
        let shape = endpoint.interfaces();
        Ok(Some(NetworkChange { unplug: Vec::new(), plug: Vec::new(), shape, gateway, gateway6 }))
    }

    /// A container has another name from now on.
    pub fn rename(&self, container: &ContainerId, name: &str) -> Result<(), Error> {
        let _inner = self.lock();
        match self.endpoint(container)? {
            Some(endpoint) => {
                let endpoint = Endpoint { name: name.to_owned(), ..endpoint };
                rows::replace(self.store.state(), &endpoint)?;
                self.names.put(&endpoint);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn connected(&self, container: &ContainerId, network: &str) -> Result<Endpoint, Error> {
        self.endpoint(container)?.ok_or_else(|| Error::NotConnected {
            container: container.short().to_owned(),
            network: network.to_owned(),
        })
    }

    /// The networks that are asked for, each once, and nothing about them that cannot be.
    fn wanted(&self, inner: &Inner, wishes: &[ConnectRequest]) -> Result<Vec<NetworkId>, Error> {
        let mut ids: Vec<NetworkId> = Vec::with_capacity(wishes.len());
        for wish in wishes {
            let network = inner.find(&wish.network)?;
            let Some(addressing) = network.addressing() else { return Err(Error::AddressWithoutNetwork) };
            if let Some(mac) = &wish.mac {
                check_mac(mac)?;
            }
            if let (Some(address), None) = (wish.address6, &addressing.v6) {
                return Err(Error::NoV6 { address, network: network.name.clone() });
            }
            if ids.contains(&network.id) {
                return Err(Error::InvalidRequest {
                    what: format!("network {} is specified multiple times", network.name),
                });
            }
            ids.push(network.id.clone());
        }
        Ok(ids)
    }

    /// Ports follow the default route.
    fn republish(&self, inner: &mut Inner, before: &Endpoint, after: &Endpoint) -> Result<(), Error> {
        let (old, new) = (plumbing::forwards(before), plumbing::forwards(after));
        let (there, stay) = (plumbing::guests(before), plumbing::guests(after));
        let gone: Vec<_> = there.into_iter().filter(|guest| !stay.contains(guest)).collect();
        let moved = if old == new { &[][..] } else { &old[..] };
        self.firewall.remove(moved, &gone)?;
        outlets::turn_away(before, after)?;
        self.publish(inner, after)
    }
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

/// Gives addresses and names, and adds what was given to the endpoint.
fn attach(
    transaction: &Transaction<'_>,
    network: &Network,
    wish: &ConnectRequest,
    endpoint: &mut Endpoint,
) -> Result<(), Error> {
    let Some(addressing) = network.addressing() else { return Err(Error::AddressWithoutNetwork) };
    if endpoint.rate.is_some() && network.bridge().is_none() {
        return Err(Error::RateWithoutBridge { network: network.name.clone() });
    }
    let owner = endpoint.container.as_str();
    let address = rows::allocate(transaction, network, addressing, wish.address, owner)?;
    let v6 = addressing.v6.as_ref();
    let address6 =
        v6.map(|v6| rows::allocate6(transaction, network, v6, wish.address6, owner)).transpose()?;
    let mac = wish.mac.clone().unwrap_or_else(|| {
        mac_of(address).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
    });
    let id = random_hex(32);
    let mut addresses = vec![format!("{address}/{}", addressing.subnet.prefix())];
    if let (Some(address6), Some(v6)) = (address6, v6) {
        addresses.push(format!("{address6}/{}", v6.subnet.prefix()));
    }
    let (kind, link, host_name) = match &network.driver {
        Driver::Macvlan(macvlan) => {
            let kind = InterfaceKind::Macvlan { mode: macvlan.mode };
            (kind, macvlan.parent.clone(), String::new())
        }
        _ => {
            let link = network.bridge().map(|bridge| bridge.link.clone()).unwrap_or_default();
            // New each time: the pair of a former start may still be on its way out.
            (InterfaceKind::Veth, link, format!("veth{}", &id[..10]))
        }
    };
    let interface = InterfacePlan {
        name: free_name(endpoint, &addressing.interface_prefix),
        kind,
        bridge: link,
        host_name,
        mac: mac.clone(),
        mtu: addressing.mtu,
        addresses,
        gateway: None,
        gateway6: None,
        hairpin: kind == InterfaceKind::Veth && !endpoint.ports.is_empty(),
        rate: endpoint.rate,
    };
    let outside = !network.internal;
    endpoint.attachments.push(Attachment {
        network: network.id.clone(),
        network_name: network.name.clone(),
        endpoint: id,
        interface: Some(interface),
        address: Some(address),
        prefix: addressing.subnet.prefix(),
        gateway: outside.then(|| IpAddr::V4(addressing.gateway())),
        mac,
        address6,
        prefix6: v6.map_or(0, |v6| v6.subnet.prefix()),
        gateway6: v6.filter(|_| outside).map(|v6| v6.gateway),
        aliases: wish.aliases.clone(),
        links: wish.links.clone(),
        priority: wish.priority,
        guard: network.bridge().is_some_and(|bridge| bridge.guard),
        apart: network.bridge().filter(|bridge| !bridge.icc).map(|_| mac_of(addressing.gateway())),
    });
    Ok(())
}

/// `eth0`, `eth1`: the first that no interface of the container has.
fn free_name(endpoint: &Endpoint, prefix: &str) -> String {
    let taken = |name: &String| {
        let mut plans = endpoint.attachments.iter().filter_map(|attachment| attachment.interface.as_ref());
        plans.any(|plan| plan.name == *name)
    };
    (0..=endpoint.attachments.len())
        .map(|number| format!("{prefix}{number}"))
        .find(|name| !taken(name))
        .unwrap_or_else(|| format!("{prefix}{}", endpoint.attachments.len()))
}
