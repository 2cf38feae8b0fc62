//! What the state keeps: networks, endpoints, addresses, and that forwarding was switched on.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use insula_base::{ContainerId, NetworkId};
use insula_store::{Collection, Record, State};
use serde::de::DeserializeOwned;

use crate::network::BridgeNetwork;
use crate::{Driver, Endpoint, Error, Network};

/// Record of [`Collection::Meta`]: the boot in which we switched forwarding on.
const FORWARDING: &str = "forwarding";

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

/// Whether some container has an address of the network.
pub(super) fn in_use(state: &State, network: &Network) -> Result<bool, Error> {
    Ok(!state.allocations().all(&network.pool())?.is_empty())
}

/// Allocates an address and writes the endpoint that `make` builds on it, in one commit.
pub(super) fn give(
    state: &State,
    network: &Network,
    wanted: Option<Ipv4Addr>,
    container: &ContainerId,
    make: impl FnOnce(Ipv4Addr) -> Endpoint,
) -> Result<Endpoint, Error> {
    let Some(bridge) = network.bridge() else { return Err(Error::AddressWithoutNetwork) };
    let number = wanted.map(|address| u64::from(u32::from(address)));
    state.transaction(|transaction| {
        let allocations = transaction.allocations();
        let number = allocations
            .allocate(&network.pool(), bridge.subnet.hosts(), number, container.as_str())
            .map_err(|error| refused(error, network, bridge, wanted))?;
        let endpoint = make(Ipv4Addr::from(u32::try_from(number).unwrap_or_default()));
        transaction.records(Collection::Endpoints).insert(&endpoint_record(&endpoint)?)?;
        Ok(endpoint)
    })
}

fn refused(
    error: insula_store::Error,
    network: &Network,
    bridge: &BridgeNetwork,
    wanted: Option<Ipv4Addr>,
) -> Error {
    let (name, subnet) = (network.name.clone(), bridge.subnet.to_string());
    match (error, wanted) {
        (insula_store::Error::NumberTaken { .. }, Some(address)) => {
            Error::AddressInUse { address, network: name }
        }
        (insula_store::Error::NumberOutside { .. }, Some(address)) => {
            Error::InvalidAddress { address, network: name, subnet }
        }
        (insula_store::Error::PoolExhausted { .. }, _) => Error::AddressesExhausted { network: name, subnet },
        (error, _) => error.into(),
    }
}

/// Removes an endpoint and frees its addresses, in one commit.
pub(super) fn forget(state: &State, endpoint: &Endpoint, networks: &[Network]) -> Result<(), Error> {
    let container = endpoint.container.as_str();
    state.transaction(|transaction| {
        transaction.records(Collection::Endpoints).remove(container)?;
        for attachment in endpoint.attachments.iter().filter(|attachment| attachment.address.is_some()) {
            if let Some(network) = networks.iter().find(|network| network.id == attachment.network) {
                transaction.allocations().release_owner(Some(&network.pool()), container)?;
            }
        }
        Ok(())
    })
}

/// Frees addresses of containers that have no endpoint.
pub(super) fn free_orphans(state: &State, networks: &[Network], kept: &[Endpoint]) -> Result<(), Error> {
    let owners: HashSet<&str> = kept.iter().map(|endpoint| endpoint.container.as_str()).collect();
    for pool in networks.iter().map(Network::pool) {
        for allocation in state.allocations().all(&pool)? {
            if !owners.contains(allocation.owner.as_str()) {
                state.allocations().release_owner(Some(&pool), &allocation.owner)?;
            }
        }
    }
    Ok(())
}

/// Notes that forwarding is about to be switched on in this boot.
pub(super) fn note_forwarding(state: &State) -> Result<(), Error> {
    let doc = document("meta record", FORWARDING, &boot())?;
    let meta = state.records(Collection::Meta);
    meta.remove(FORWARDING)?;
    Ok(meta.insert(&Record { id: FORWARDING.to_owned(), name: None, doc })?)
}

/// Whether forwarding was switched on by us in this boot; the note is removed.
pub(super) fn take_forwarding(state: &State) -> Result<bool, Error> {
    let meta = state.records(Collection::Meta);
    let Some(record) = meta.get(FORWARDING)? else { return Ok(false) };
    meta.remove(FORWARDING)?;
    Ok(read::<String>("meta record", &record)? == boot())
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
