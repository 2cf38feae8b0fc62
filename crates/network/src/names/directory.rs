//! The names of all networks, in memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use insula_base::{ContainerId, NetworkId};

use crate::{Attachment, Endpoint};

/// Every endpoint that has names, by network and name. Names have no case.
#[derive(Debug, Default)]
pub struct Directory {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    networks: HashMap<NetworkId, Zone>,
    containers: HashMap<ContainerId, Endpoint>,
}

/// One network.
#[derive(Debug, Default)]
struct Zone {
    /// Who is called so; several may be.
    names: HashMap<String, Vec<ContainerId>>,
    addresses: HashMap<IpAddr, ContainerId>,
}

/// What one container may know.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    directory: &'a Directory,
    container: &'a ContainerId,
}

impl Directory {
    /// What the container sees.
    #[must_use]
    pub fn view<'a>(&'a self, container: &'a ContainerId) -> View<'a> {
        View { directory: self, container }
    }

    /// Whether the container is in a network that has names.
    #[must_use]
    pub fn has_names(&self, container: &ContainerId) -> bool {
        self.read().containers.get(container).is_some_and(Endpoint::named)
    }

    /// Notes an endpoint in place of what was known of its container.
    pub(crate) fn put(&self, endpoint: &Endpoint) {
        let mut inner = self.write();
        inner.remove(&endpoint.container);
        for attachment in endpoint.attachments.iter().filter(|attachment| attachment.named()) {
            let zone = inner.networks.entry(attachment.network.clone()).or_default();
            for name in names(endpoint, attachment) {
                zone.names.entry(name).or_default().push(endpoint.container.clone());
            }
            for address in attachment.addresses() {
                zone.addresses.insert(address, endpoint.container.clone());
            }
        }
        inner.containers.insert(endpoint.container.clone(), endpoint.clone());
    }

    /// Forgets a container.
    pub(crate) fn remove(&self, container: &ContainerId) {
        self.write().remove(container);
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lower-case names of a container in one network: its own, its aliases, its host name, its short id.
fn names(endpoint: &Endpoint, attachment: &Attachment) -> Vec<String> {
    let own = [endpoint.name.as_str(), endpoint.hostname.as_str(), endpoint.container.short()];
    let all = own.into_iter().chain(attachment.aliases.iter().map(String::as_str));
    let mut names: Vec<String> = all.filter(|name| !name.is_empty()).map(str::to_ascii_lowercase).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Inner {
    fn remove(&mut self, container: &ContainerId) {
        let Some(endpoint) = self.containers.remove(container) else { return };
        for attachment in &endpoint.attachments {
            let Some(zone) = self.networks.get_mut(&attachment.network) else { continue };
            for name in names(&endpoint, attachment) {
                if let Some(holders) = zone.names.get_mut(&name) {
                    holders.retain(|holder| holder != container);
                    if holders.is_empty() {
                        zone.names.remove(&name);
                    }
                }
            }
            for address in attachment.addresses() {
                zone.addresses.remove(&address);
            }
            if zone.names.is_empty() {
                self.networks.remove(&attachment.network);
            }
        }
    }

    /// The addresses of a container in one network.
    fn addresses(&self, container: &ContainerId, network: &NetworkId) -> Vec<IpAddr> {
        let attachment = self.containers.get(container).and_then(|endpoint| endpoint.attachment(network));
        attachment.into_iter().flat_map(Attachment::addresses).collect()
    }
}

impl View<'_> {
    /// The addresses that a name stands for in the container's networks; `None` when it is the name of
    /// nobody. A link's name comes before that of a container; `NAME.NETWORK` is in that network alone.
    #[must_use]
    pub fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let inner = self.directory.read();
        let endpoint = inner.containers.get(self.container)?;
        let mut found = Vec::new();
        let mut known = false;
        for attachment in endpoint.attachments.iter().filter(|attachment| attachment.named()) {
            let Some(zone) = inner.networks.get(&attachment.network) else { continue };
            let network = attachment.network_name.to_ascii_lowercase();
            let within = name.strip_suffix(network.as_str()).and_then(|rest| rest.strip_suffix('.'));
            let mut holders: Vec<&ContainerId> = Vec::new();
            for name in [Some(name.as_str()), within].into_iter().flatten() {
                let linked = attachment.links.iter().find(|(_, alias)| alias.eq_ignore_ascii_case(name));
                match linked.map(|(target, _)| target) {
                    Some(target) => {
                        holders.extend(inner.containers.keys().filter(|id| id.as_str() == target))
                    }
                    None => holders.extend(zone.names.get(name).into_iter().flatten()),
                }
            }
            known |= !holders.is_empty();
            found.extend(holders.iter().flat_map(|holder| inner.addresses(holder, &attachment.network)));
        }
        known.then_some(found)
    }

    /// `NAME.NETWORK` of who has the address in one of the container's networks.
    #[must_use]
    pub fn name(&self, address: IpAddr) -> Option<String> {
        let inner = self.directory.read();
        let endpoint = inner.containers.get(self.container)?;
        endpoint.attachments.iter().find_map(|attachment| {
            let holder = inner.networks.get(&attachment.network)?.addresses.get(&address)?;
            Some(format!("{}.{}", inner.containers.get(holder)?.name, attachment.network_name))
        })
    }

    /// Whether the container can reach anything outside of its networks; who cannot is not told of it either.
    #[must_use]
    pub fn reaches_out(&self) -> bool {
        let inner = self.directory.read();
        inner
            .containers
            .get(self.container)
            .is_some_and(|endpoint| endpoint.gateway().is_some() || endpoint.gateway6().is_some())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `blue`: web, db (alias sql), db2 (alias sql); `red`: db2 alone. `web` calls db by a link.
    pub(crate) fn directory() -> (Directory, Vec<ContainerId>) {
        let directory = Directory::default();
        let ids: Vec<ContainerId> = (0..3).map(|_| ContainerId::random()).collect();
        let blue = NetworkId::random();
        let attachment = |network: &NetworkId, name: &str, last: u8, aliases: &[&str]| Attachment {
            network: network.clone(),
            network_name: name.to_owned(),
            endpoint: "e".to_owned(),
            interface: None,
            address: Some([10, 9, 0, last].into()),
            prefix: 24,
            gateway: None,
            mac: String::new(),
            address6: (last == 2).then(|| "fd00::2".parse().unwrap()),
            prefix6: 64,
            gateway6: None,
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            links: Vec::new(),
            priority: 0,
            guard: false,
            apart: None,
        };
        let mut web = attachment(&blue, "blue", 2, &["WWW"]);
        web.links = vec![(ids[1].to_string(), "store".to_owned())];
        let all = [
            ("web", vec![web]),
            ("db", vec![attachment(&blue, "blue", 3, &["sql"])]),
            (
                "db2",
                vec![
                    attachment(&blue, "blue", 4, &["sql"]),
                    attachment(&NetworkId::random(), "red", 5, &["only-red"]),
                ],
            ),
        ];
        for (id, (name, attachments)) in ids.iter().zip(all) {
            directory.put(&Endpoint {
                container: id.clone(),
                name: name.to_owned(),
                hostname: format!("{name}-host"),
                attachments,
                ports: Vec::new(),
                rate: None,
            });
        }
        (directory, ids)
    }

    #[test]
    fn names_lead_to_addresses_in_shared_networks() {
        let (directory, ids) = directory();
        let view = directory.view(&ids[0]);
        let addresses = |name: &str| {
            view.addresses(name).map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(addresses("db").unwrap(), ["10.9.0.3"]);
        assert_eq!(addresses("DB.blue.").unwrap(), ["10.9.0.3"]);
        assert_eq!(addresses("sql").unwrap(), ["10.9.0.3", "10.9.0.4"]);
        assert_eq!(addresses("www").unwrap(), ["10.9.0.2", "fd00::2"]);
        assert_eq!(addresses("web-host").unwrap().len(), 2);
        assert_eq!(addresses("store").unwrap(), ["10.9.0.3"], "a link");
        assert_eq!(addresses(ids[2].short()).unwrap(), ["10.9.0.4"], "not its address in another network");
        for nobody in ["only-red", "db.red", "example.org", "", ".", "blue"] {
            assert_eq!(addresses(nobody), None, "{nobody}");
        }
        assert_eq!(directory.view(&ids[1]).addresses("store"), None, "links are private");
        assert_eq!(view.name("10.9.0.4".parse().unwrap()).unwrap(), "db2.blue");
        assert_eq!(view.name("10.9.0.5".parse().unwrap()), None);
    }

    #[test]
    fn what_goes_is_forgotten() {
        let (directory, ids) = directory();
        directory.remove(&ids[1]);
        directory.remove(&ids[1]);
        let view = directory.view(&ids[0]);
        assert_eq!(view.addresses("db"), None);
        assert_eq!(view.addresses("sql").unwrap().len(), 1);
        assert_eq!(view.addresses("store"), None);
        ids.iter().for_each(|id| directory.remove(id));
        let inner = directory.read();
        assert!(inner.networks.is_empty() && inner.containers.is_empty());
    }
}
