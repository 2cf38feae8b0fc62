//! Tenants: containers of one share a machine, and so a kernel; those of two never do.
//!
//! The row says how large the machine is. The machine is made with the first container that starts, and owned by a
//! process of its own ([`machine`]), which ends with the last one; `keep` has it stay.

mod machine;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use insula_base::{ContainerId, Instance};
use insula_models::{HostConfig, Machine, Tenant, TenantCreateRequest};
use insula_spec::machine::{MOST_INTERFACES, TenantMachine};
use insula_store::{Collection, Error as StoreError, Record, Store};
use serde::{Deserialize, Serialize};

use crate::containers::create::{ID_POOL, IDS_RANGES, range};
use crate::containers::row::{IdRange, Row};
use crate::{Engine, Error, Result, blocking};

pub(crate) use self::machine::Lease;

/// Begins the value of `HostConfig.Isolation`.
const PREFIX: &str = "tenant:";
/// What a tenant has for whom nothing else is said: one processor, bytes, cards.
const NANO_CPUS: i64 = 1_000_000_000;
const MEMORY: i64 = 512 << 20;
const CARDS: u64 = 8;
/// Less than this no kernel and container have room in.
const LEAST_MEMORY: i64 = 64 << 20;
const LONGEST_NAME: usize = 63;

/// The tenant that an isolation means.
pub(crate) fn of(isolation: &str) -> Option<&str> {
    isolation.strip_prefix(PREFIX)
}

/// What is kept of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TenantRow {
    version: u32,
    pub(crate) name: String,
    /// Seconds since 1970.
    created: i64,
    pub(crate) nano_cpus: i64,
    /// Bytes that its containers have together.
    pub(crate) memory: u64,
    pub(crate) cards: u64,
    pub(crate) keep: bool,
    /// Of which its machine's process has the last.
    pub(crate) ids: IdRange,
}

/// All tenants of one engine.
#[derive(Debug)]
pub(crate) struct Tenants {
    store: Arc<Store>,
    /// Of their machines' run-time state.
    folder: PathBuf,
    /// Above those of containers and machines.
    cgroup: String,
    monitor: PathBuf,
    /// Who makes or ends a tenant's machine; one at a time.
    turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Containers that are about to run.
    admitted: Arc<Mutex<HashSet<ContainerId>>>,
}

impl Tenants {
    pub(crate) fn new(store: Arc<Store>, instance: &Instance, monitor: PathBuf) -> Self {
        Self {
            store,
            folder: instance.run().join("tenants"),
            cgroup: instance.cgroup(),
            monitor,
            turns: Mutex::default(),
            admitted: Arc::default(),
        }
    }

    /// The row of this tenant.
    pub(crate) fn get(&self, name: &str) -> Result<TenantRow> {
        let record = self.store.state().records(Collection::Tenants).get(name)?;
        let record = record.ok_or_else(|| {
            Error::NotFound(format!("No such tenant: {name} (insula tenant create makes one)"))
        })?;
        read(&record)
    }

    fn all(&self) -> Result<Vec<TenantRow>> {
        self.store.state().records(Collection::Tenants).all()?.iter().map(read).collect()
    }

    fn insert(&self, row: TenantRow) -> Result<()> {
        let name = row.name.clone();
        let inserted = self.store.state().transaction(|tx| {
            let mut row = row.clone();
            let number = tx.allocations().allocate(ID_POOL, 0..IDS_RANGES, None, &owner(&row.name))?;
            row.ids = range(number);
            let doc = serde_json::to_vec(&row)
                .map_err(|error| Error::Internal(format!("write a tenant: {error}")))?;
            let record = Record { id: row.name.clone(), name: Some(row.name), doc };
            tx.records(Collection::Tenants).insert(&record)?;
            Ok(())
        });
        match inserted {
            Err(Error::Store(StoreError::IdTaken { .. } | StoreError::NameTaken { .. })) => {
                Err(Error::Conflict(format!("tenant {name} exists already")))
            }
            inserted => inserted,
        }
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.store.state().transaction(|tx| {
            tx.records(Collection::Tenants).remove(name)?;
            tx.allocations().release_owner(Some(ID_POOL), &owner(name))?;
            Ok(())
        })
    }

    /// Owners of ids and names of control groups that are in use.
    pub(crate) fn known(&self) -> Result<Vec<String>> {
        let rows = self.all()?;
        Ok(rows.iter().flat_map(|row| [owner(&row.name), group(&row.name)]).collect())
    }

    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        lock(&self.turns).entry(name.to_owned()).or_default().clone()
    }
}

/// A place among a tenant's containers, until it is given back.
#[derive(Debug)]
struct Admission {
    admitted: Arc<Mutex<HashSet<ContainerId>>>,
    id: ContainerId,
}

impl Drop for Admission {
    fn drop(&mut self) {
        lock(&self.admitted).remove(&self.id);
    }
}

impl Engine {
    /// Makes a tenant; its machine comes with its first container.
    pub async fn create_tenant(&self, request: TenantCreateRequest) -> Result<Tenant> {
        let row = row(request)?;
        let (engine, name) = (self.clone(), row.name.clone());
        blocking(move || engine.0.tenants.insert(row)).await?;
        self.tenant(&name).await
    }

    /// All tenants, by name.
    pub async fn tenants(&self) -> Result<Vec<Tenant>> {
        let engine = self.clone();
        blocking(move || {
            let mut rows = engine.0.tenants.all()?;
            rows.sort_by(|one, other| one.name.cmp(&other.name));
            Ok(rows.into_iter().map(|row| engine.describe_tenant(row)).collect())
        })
        .await
    }

    /// One tenant.
    pub async fn tenant(&self, name: &str) -> Result<Tenant> {
        let (engine, name) = (self.clone(), name.to_owned());
        blocking(move || Ok(engine.describe_tenant(engine.0.tenants.get(&name)?))).await
    }

    /// Removes a tenant that no container belongs to, and its machine if it has been kept.
    pub async fn remove_tenant(&self, name: &str) -> Result<()> {
        let tenants = &self.0.tenants;
        let turn = tenants.turn(name);
        let _turn = turn.lock().await;
        let row = tenants.get(name)?;
        let used = self.of_tenant(name);
        if let Some(container) = used.first() {
            let more = if used.len() > 1 { format!(" and {} more", used.len() - 1) } else { String::new() };
            return Err(Error::Conflict(format!(
                "tenant {name} has containers: {}{more}: remove them first",
                container.name
            )));
        }
        let engine = self.clone();
        blocking(move || {
            let tenants = &engine.0.tenants;
            tenants.stop(&row)?;
            tenants.delete(&row.name)
        })
        .await
    }

    /// That an isolation means a tenant that there is, and a container that fits into its machine.
    pub(crate) fn check_tenant(&self, host: &HostConfig) -> Result<()> {
        let Some(name) = of(&host.isolation) else { return Ok(()) };
        let row = self.0.tenants.get(name)?;
        if u64::try_from(host.memory).is_ok_and(|wanted| wanted > row.memory) {
            return Err(Error::InvalidArgument(format!(
                "the containers of tenant {name} have {} of memory together: a limit of {} is more",
                mib(row.memory),
                mib(host.memory.unsigned_abs())
            )));
        }
        if host.nano_cpus > row.nano_cpus {
            return Err(Error::InvalidArgument(format!(
                "tenant {name} has {} CPUs: a limit of {} is more",
                cpus(row.nano_cpus),
                cpus(host.nano_cpus)
            )));
        }
        Ok(())
    }

    /// Rows of its containers, running or not.
    fn of_tenant(&self, name: &str) -> Vec<Arc<Row>> {
        let rows = self.0.containers.all().into_iter().map(|container| container.row());
        rows.filter(|row| of(&row.host.isolation) == Some(name)).collect()
    }

    /// A place among those that run, if the memory that is promised leaves room for it.
    fn admit(&self, tenant: &TenantRow, row: &Row) -> Result<Admission> {
        let mut admitted = lock(&self.0.tenants.admitted);
        self.check_room(tenant, row, &row.host, &admitted)?;
        admitted.insert(row.id.clone());
        Ok(Admission { admitted: self.0.tenants.admitted.clone(), id: row.id.clone() })
    }

    /// That a container's tenant has room for its new limits.
    pub(crate) fn check_tenant_again(&self, row: &Row, host: &HostConfig) -> Result<()> {
        let Some(name) = of(&host.isolation) else { return Ok(()) };
        self.check_tenant(host)?;
        if !row.running() {
            return Ok(());
        }
        self.check_room(&self.0.tenants.get(name)?, row, host, &lock(&self.0.tenants.admitted))
    }

    fn check_room(
        &self,
        tenant: &TenantRow,
        row: &Row,
        host: &HostConfig,
        admitted: &HashSet<ContainerId>,
    ) -> Result<()> {
        let promise = |host: &HostConfig| u64::try_from(host.memory).unwrap_or(0);
        let others = self.of_tenant(&tenant.name);
        let running = others
            .iter()
            .filter(|other| other.id != row.id && (other.running() || admitted.contains(&other.id)));
        let promised: u64 = running.map(|other| promise(&other.host)).sum();
        if promised.saturating_add(promise(host)) <= tenant.memory {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "tenant {} is full: its containers have {} of memory together, {} of them are promised to those that \
             run, and {} wants {}",
            tenant.name,
            mib(tenant.memory),
            mib(promised),
            row.name,
            mib(promise(host))
        )))
    }

    fn describe_tenant(&self, row: TenantRow) -> Tenant {
        let machine = self.0.tenants.status(&row.name).map(describe);
        let mut containers: Vec<String> =
            self.of_tenant(&row.name).iter().map(|container| container.name.clone()).collect();
        containers.sort();
        Tenant {
            name: row.name,
            created: row.created,
            nano_cpus: row.nano_cpus,
            memory: row.memory,
            cards: row.cards,
            keep: row.keep,
            containers,
            machine,
        }
    }
}

fn describe(machine: TenantMachine) -> Machine {
    Machine {
        backend: machine.backend.name().to_owned(),
        program: machine.program,
        pid: machine.pid.into(),
        cpus: machine.cpus,
        memory: machine.memory,
        kernel: machine.kernel,
        boot_milliseconds: machine.boot,
        template: machine.template,
        // Each of its containers has one.
        root: String::new(),
        vsock: String::new(),
    }
}

/// Fills in what is not asked for, and refuses what makes no sense.
fn row(request: TenantCreateRequest) -> Result<TenantRow> {
    let TenantCreateRequest { name, nano_cpus, memory, cards, keep } = request;
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let valid = name.len() <= LONGEST_NAME
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(sign);
    if !valid {
        return Err(Error::InvalidArgument(format!(
            "invalid tenant name {name:?}: at most {LONGEST_NAME} of [a-zA-Z0-9_.-], and the first of them a letter \
             or a digit"
        )));
    }
    let or = |value: i64, usual: i64| if value == 0 { usual } else { value };
    let (nano_cpus, memory) = (or(nano_cpus, NANO_CPUS), or(memory, MEMORY));
    let cards = cards.unwrap_or(CARDS);
    if nano_cpus < 10_000_000 {
        return Err(Error::InvalidArgument(format!("{} CPUs are too few for a tenant", cpus(nano_cpus))));
    }
    if memory < LEAST_MEMORY {
        return Err(Error::InvalidArgument(format!(
            "the minimum memory of a tenant is {}",
            mib(LEAST_MEMORY.unsigned_abs())
        )));
    }
    if cards > MOST_INTERFACES as u64 {
        return Err(Error::InvalidArgument(format!(
            "a tenant's machine has at most {MOST_INTERFACES} network cards, not {cards}"
        )));
    }
    Ok(TenantRow {
        version: 1,
        name,
        created: jiff::Timestamp::now().as_second(),
        nano_cpus,
        memory: memory.unsigned_abs(),
        cards,
        keep,
        ids: range(0),
    })
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

fn cpus(nano_cpus: i64) -> f64 {
    nano_cpus as f64 / 1e9
}

fn read(record: &Record) -> Result<TenantRow> {
    let row: TenantRow = serde_json::from_slice(&record.doc)
        .map_err(|error| Error::Internal(format!("read tenant {}: {error}", record.id)))?;
    match row.version {
        1 => Ok(row),
        version => Err(Error::Unsupported(format!("tenant {} is of version {version}, not 1", row.name))),
    }
}

/// Who its ids belong to.
fn owner(name: &str) -> String {
    format!("tenant:{name}")
}

/// Its machine's control group, below the instance's.
fn group(name: &str) -> String {
    format!("tenant-{name}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str) -> TenantCreateRequest {
        TenantCreateRequest { name: name.to_owned(), ..TenantCreateRequest::default() }
    }

    #[test]
    fn what_is_not_asked_for_is_filled_in_and_nonsense_refused() {
        let usual = row(request("acme")).unwrap();
        assert_eq!(
            (usual.nano_cpus, usual.memory, usual.cards, usual.keep),
            (1_000_000_000, 512 << 20, 8, false)
        );
        for name in ["", ".x", "a/b", "a b", &"x".repeat(64)] {
            assert!(row(request(name)).is_err(), "{name}");
        }
        for bad in [
            TenantCreateRequest { memory: 1 << 20, ..request("a") },
            TenantCreateRequest { memory: -1, ..request("a") },
            TenantCreateRequest { nano_cpus: -1, ..request("a") },
            TenantCreateRequest { cards: Some(17), ..request("a") },
        ] {
            assert!(matches!(row(bad.clone()), Err(Error::InvalidArgument(_))), "{bad:?}");
        }
        assert_eq!(row(TenantCreateRequest { cards: Some(0), ..request("a") }).unwrap().cards, 0);
    }
}
