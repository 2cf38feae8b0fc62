//! What the state keeps: networks, endpoints, addresses, and that forwarding was switched on.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use insula_base::{ContainerId, NetworkId};
use insula_host::netlink::Former;
use insula_store::{Collection, Record, State, Transaction};
use serde::de::DeserializeOwned;

use crate::network::{Addressing, BridgeNetwork, BridgeV6};
use crate::{Attachment, Driver, Endpoint, Error, Network};

/// Record of [`Collection::Meta`]: the boot in which we switched forwarding on.
pub(super) const FORWARDING: &str = "forwarding";
/// The same for IPv6.
pub(super) const FORWARDING6: &str = "forwarding6";

fn read<T: DeserializeOwned>(what: &str, record: &Record) -> Result<T, Error> {
    serde_json::from_slice(&record.doc)
        .map_err(|source| Error::Damaged { what: format!("{what} {}", record.id), source })
}

fn document<T: serde::Serialize>(what: &str, id: &str, value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|source| Error::Damaged { what: format!("{what} {id}"), source })
}

fn network_record(network: &Network) -> Result<Record, Error> {
    let doc = document("network", network.id.as_str(), network)?;
    Ok(Record { id: network.id.to_string(), name: Some(network.name.clone()), doc })
}

fn endpoint_record(endpoint: &Endpoint) -> Result<Record, Error> {
    let doc = document("endpoint", endpoint.container.as_str(), endpoint)?;
    Ok(Record { id: endpoint.container.to_string(), name: None, doc })
}

pub(super) fn networks(state: &State) -> Result<Vec<Network>, Error> {
    state.records(Collection::Networks).all()?.iter().map(|record| read("network", record)).collect()
}

/// The three predefined networks, all or none.
pub(super) fn declare(state: &State, bridge: BridgeNetwork) -> Result<Vec<Network>, Error> {
    let predefined = [("bridge", Driver::Bridge(bridge)), ("host", Driver::Host), ("none", Driver::Null)];
    let created = SystemTime::now();
    let networks = predefined.map(|(name, driver)| Network {
        id: NetworkId::random(),
        name: name.to_owned(),
        driver,
        created,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        internal: false,
        attachable: false,
    });
    state.transaction(|transaction| {
        networks.iter().try_for_each(|network| {
            Ok::<_, Error>(transaction.records(Collection::Networks).insert(&network_record(network)?)?)
        })
    })?;
    Ok(networks.into())
}

pub(super) fn replace_network(state: &State, network: &Network) -> Result<(), Error> {
    Ok(state.records(Collection::Networks).replace(&network_record(network)?)?)
}

pub(super) fn endpoint(state: &State, container: &ContainerId) -> Result<Option<Endpoint>, Error> {
    let record = state.records(Collection::Endpoints).get(container.as_str())?;
    record.map(|record| read("endpoint", &record)).transpose()
}

pub(super) fn endpoints(state: &State) -> Result<Vec<Endpoint>, Error> {
    state.records(Collection::Endpoints).all()?.iter().map(|record| read("endpoint", record)).collect()
}

pub(super) fn note(state: &State, endpoint: &Endpoint) -> Result<(), Error> {
    Ok(state.records(Collection::Endpoints).insert(&endpoint_record(endpoint)?)?)
}

pub(super) fn replace(state: &State, endpoint: &Endpoint) -> Result<(), Error> {
    Ok(state.records(Collection::Endpoints).replace(&endpoint_record(endpoint)?)?)
}

/// A new network with the addresses that it keeps for itself.
pub(super) fn add_network(state: &State, network: &Network) -> Result<(), Error> {
    state.transaction(|transaction| {
        match transaction.records(Collection::Networks).insert(&network_record(network)?) {
            Err(insula_store::Error::NameTaken { name, .. }) => return Err(Error::NameTaken { name }),
            result => result?,
        }
        let kept: HashSet<IpAddr> = network.addressing().into_iter().flat_map(Addressing::kept).collect();
        for address in kept {
            let (pool, number) = network.place(address);
            let range = number..number.saturating_add(1);
            transaction.allocations().allocate(&pool, range, Some(number), &network.owner())?;
        }
        Ok(())
    })
}

/// The network's row, and the addresses that it kept.
pub(super) fn remove_network(state: &State, network: &Network) -> Result<(), Error> {
    state.transaction(|transaction| {
        transaction.records(Collection::Networks).remove(network.id.as_str())?;
        transaction.allocations().release_owner(None, &network.owner())?;
        Ok(())
    })
}

/// Whether some container has an address of the network.
pub(super) fn in_use(state: &State, network: &Network) -> Result<bool, Error> {
    let owner = network.owner();
    Ok(state.allocations().all(&network.pool())?.iter().any(|given| given.owner != owner))
}

/// Runs `change` in one commit.
pub(super) fn commit<T>(
    state: &State,
    change: impl FnOnce(&Transaction<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    state.transaction(change)
}

/// Writes an endpoint within a commit, over the one there may be.
pub(super) fn write(transaction: &Transaction<'_>, endpoint: &Endpoint) -> Result<(), Error> {
    let record = endpoint_record(endpoint)?;
    let records = transaction.records(Collection::Endpoints);
    match records.insert(&record) {
        Err(insula_store::Error::IdTaken { .. }) => Ok(records.replace(&record)?),
        result => Ok(result?),
    }
}

/// An IPv4 address of the network: the wanted one, or the next free one.
pub(super) fn allocate(
    transaction: &Transaction<'_>,
    network: &Network,
    addressing: &Addressing,
    wanted: Option<Ipv4Addr>,
    owner: &str,
) -> Result<Ipv4Addr, Error> {
    let name = || network.name.clone();
    let subnet = || addressing.subnet.to_string();
    let number = wanted.map(|address| u64::from(u32::from(address)));
    let range = if wanted.is_some() { addressing.subnet.addresses() } else { addressing.numbers() };
    let given = transaction.allocations().allocate(&network.pool(), range, number, owner);
    let number = given.map_err(|error| match (error, wanted) {
        (insula_store::Error::NumberTaken { .. }, Some(address)) => {
            Error::AddressInUse { address, network: name() }
        }
        (insula_store::Error::NumberOutside { .. }, Some(address)) => {
            Error::InvalidAddress { address, network: name(), subnet: subnet() }
        }
        (insula_store::Error::PoolExhausted { .. }, _) => {
            Error::AddressesExhausted { network: name(), subnet: subnet() }
        }
        (error, _) => error.into(),
    })?;
    let address = Ipv4Addr::from(u32::try_from(number).unwrap_or_default());
    if addressing.gateway() == address {
        return Err(Error::AddressInUse { address, network: name() });
    }
    Ok(address)
}

/// An IPv6 address of the network: the wanted one, or the next free one.
pub(super) fn allocate6(
    transaction: &Transaction<'_>,
    network: &Network,
    v6: &BridgeV6,
    wanted: Option<Ipv6Addr>,
    owner: &str,
) -> Result<Ipv6Addr, Error> {
    let name = || network.name.clone();
    let subnet = || v6.subnet.to_string();
    let Some(address) = wanted else {
        let numbers = v6.subnet.numbers(v6.range);
        let number = transaction.allocations().allocate(&network.pool6(), numbers, None, owner);
        let number = number.map_err(|error| match error {
            insula_store::Error::PoolExhausted { .. } => {
                Error::AddressesExhausted { network: name(), subnet: subnet() }
            }
            error => error.into(),
        })?;
        return Ok(v6.subnet.at(number));
    };
    if !v6.subnet.holds(address) {
        return Err(Error::InvalidAddress6 { address, network: name(), subnet: subnet() });
    }
    let (pool, number) = network.place(IpAddr::V6(address));
    let range = number..number.saturating_add(1);
    match transaction.allocations().allocate(&pool, range, Some(number), owner) {
        Ok(_) => Ok(address),
        Err(insula_store::Error::NumberTaken { .. }) => {
            Err(Error::AddressInUse6 { address, network: name() })
        }
        Err(error) => Err(error.into()),
    }
}

/// Frees the addresses of one attachment.
pub(super) fn free(
    transaction: &Transaction<'_>,
    attachment: &Attachment,
    networks: &[Network],
) -> Result<(), Error> {
    let Some(network) = networks.iter().find(|network| network.id == attachment.network) else {
        return Ok(());
    };
    for address in attachment.addresses() {
        let (pool, number) = network.place(address);
        transaction.allocations().release(&pool, number)?;
    }
    Ok(())
}

/// Removes an endpoint and frees its addresses, in one commit.
pub(super) fn forget(state: &State, endpoint: &Endpoint, networks: &[Network]) -> Result<(), Error> {
    state.transaction(|transaction| {
        transaction.records(Collection::Endpoints).remove(endpoint.container.as_str())?;
        endpoint.attachments.iter().try_for_each(|attachment| free(transaction, attachment, networks))
    })
}

/// Frees addresses of containers that have no endpoint.
pub(super) fn free_orphans(state: &State, networks: &[Network], kept: &[Endpoint]) -> Result<(), Error> {
    let owners: HashSet<&str> = kept.iter().map(|endpoint| endpoint.container.as_str()).collect();
    let of = |network: &Network| [(network.pool(), network.owner()), (network.pool6(), network.owner())];
    for (pool, own) in networks.iter().flat_map(of) {
        for allocation in state.allocations().all(&pool)? {
            if allocation.owner != own && !owners.contains(allocation.owner.as_str()) {
                state.allocations().release_owner(Some(&pool), &allocation.owner)?;
            }
        }
    }
    Ok(())
}

/// Record of [`Collection::Meta`]: interfaces that take router advertisements although the host forwards,
/// and did so without being told before.
const ADVERTISED: &str = "advertised";

/// Notes what [`insula_host::netlink::enable_forwarding6`] is about to change, beside what a former attempt
/// of this boot has.
pub(super) fn note_advertised(state: &State, names: &[String]) -> Result<(), Error> {
    let mut all = advertised(state)?;
    all.extend(names.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
    let doc = document("meta record", ADVERTISED, &(boot(), all))?;
    let meta = state.records(Collection::Meta);
    meta.remove(ADVERTISED)?;
    Ok(meta.insert(&Record { id: ADVERTISED.to_owned(), name: None, doc })?)
}

/// What was noted in this boot.
pub(super) fn advertised(state: &State) -> Result<Vec<String>, Error> {
    let Some(record) = state.records(Collection::Meta).get(ADVERTISED)? else { return Ok(Vec::new()) };
    let (then, names): (String, Vec<String>) = read("meta record", &record)?;
    Ok(if then == boot() { names } else { Vec::new() })
}

/// Once it is as it was.
pub(super) fn forget_advertised(state: &State) -> Result<(), Error> {
    state.records(Collection::Meta).remove(ADVERTISED)?;
    Ok(())
}

/// What [`FORWARDING`] says: the boot, and what else the kernel changes. Daemons of former versions wrote the boot alone.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum Switched {
    In(String),
    From(String, Former),
}

/// Notes that forwarding is about to be switched on in this boot, and what the kernel changes with it.
pub(super) fn note_forwarding(state: &State, what: &str, before: Former) -> Result<(), Error> {
    let doc = document("meta record", what, &Switched::From(boot(), before))?;
    let meta = state.records(Collection::Meta);
    meta.remove(what)?;
    Ok(meta.insert(&Record { id: what.to_owned(), name: None, doc })?)
}

/// If forwarding was switched on by us in this boot, what it changed; the note is removed.
pub(super) fn take_forwarding(state: &State, what: &str) -> Result<Option<Former>, Error> {
    let meta = state.records(Collection::Meta);
    let Some(record) = meta.get(what)? else { return Ok(None) };
    meta.remove(what)?;
    let (then, before) = match read("meta record", &record)? {
        Switched::In(then) => (then, Former::new()),
        Switched::From(then, before) => (then, before),
    };
    Ok((then == boot()).then_some(before))
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
