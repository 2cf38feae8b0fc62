//! Documents by id and name.

use std::fmt;

use super::{Access, Sql};
use crate::{Error, Result};

/// What kind of object a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Collection {
    Containers,
    Networks,
    /// What networks gave to containers.
    Endpoints,
    Volumes,
    Execs,
    /// What steps of builds made.
    BuildCache,
    /// What of a workload's file is made, as long as not all of it is.
    Unbundles,
    /// Who shares machines.
    Tenants,
    /// Facts about the engine itself.
    Meta,
}

impl Collection {
    fn key(self) -> &'static str {
        match self {
            Self::Containers => "containers",
            Self::Networks => "networks",
            Self::Endpoints => "endpoints",
            Self::Volumes => "volumes",
            Self::Execs => "execs",
            Self::BuildCache => "build_cache",
            Self::Unbundles => "unbundles",
            Self::Tenants => "tenants",
            Self::Meta => "meta",
        }
    }
}

/// One object of the collection, as messages name it.
impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containers => "container",
            Self::Networks => "network",
            Self::Endpoints => "endpoint",
            Self::Volumes => "volume",
            Self::Execs => "exec",
            Self::BuildCache => "build cache record",
            Self::Unbundles => "unbundle",
            Self::Tenants => "tenant",
            Self::Meta => "meta record",
        })
    }
}

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Unique in its collection.
    pub id: String,
    /// Unique in its collection where there is one.
    pub name: Option<String>,
    /// JSON; the store does not read it.
    pub doc: Vec<u8>,
}

/// One collection.
#[derive(Debug)]
pub struct Records<'a> {
    pub(super) access: Access<'a>,
    pub(super) collection: Collection,
}

impl Records<'_> {
    /// Adds a record; [`Error::IdTaken`] or [`Error::NameTaken`] (with the owner's id) if there is
    /// one with this id or name.
    pub fn insert(&self, record: &Record) -> Result<()> {
        self.access.statement(|sql| {
            let added = sql.execute(
                "insert a record",
                "INSERT OR IGNORE INTO records (collection, id, name, doc) VALUES (?1, ?2, ?3, ?4)",
                (self.collection.key(), &record.id, &record.name, &record.doc),
            )?;
            if added == 1 { Ok(()) } else { Err(self.taken(sql, record)?) }
        })
    }

    /// Replaces the document of the record with this id, and its name.
    pub fn replace(&self, record: &Record) -> Result<()> {
        self.access.statement(|sql| {
            let changed = sql.execute(
                "replace a record",
                "UPDATE OR IGNORE records SET name = ?3, doc = ?4 WHERE collection = ?1 AND id = ?2",
                (self.collection.key(), &record.id, &record.name, &record.doc),
            )?;
            if changed == 1 {
                Ok(())
            } else {
                Err(self.missing_or_taken(sql, &record.id, record.name.as_deref())?)
            }
        })
    }

    /// Gives the record another name, or none.
    pub fn rename(&self, id: &str, name: Option<&str>) -> Result<()> {
        self.access.statement(|sql| {
            let changed = sql.execute(
                "rename a record",
                "UPDATE OR IGNORE records SET name = ?3 WHERE collection = ?1 AND id = ?2",
                (self.collection.key(), id, name),
            )?;
            if changed == 1 { Ok(()) } else { Err(self.missing_or_taken(sql, id, name)?) }
        })
    }

    /// Removes the record with this id, and returns whether there was one.
    pub fn remove(&self, id: &str) -> Result<bool> {
        self.access.statement(|sql| {
            let text = "DELETE FROM records WHERE collection = ?1 AND id = ?2";
            Ok(sql.execute("remove a record", text, (self.collection.key(), id))? == 1)
        })
    }

    /// The record with this id.
    pub fn get(&self, id: &str) -> Result<Option<Record>> {
        self.access.statement(|sql| {
            let text = "SELECT id, name, doc FROM records WHERE collection = ?1 AND id = ?2";
            sql.row("read a record", text, (self.collection.key(), id), record)
        })
    }

    /// The record with this name.
    pub fn by_name(&self, name: &str) -> Result<Option<Record>> {
        self.access.statement(|sql| {
            let text = "SELECT id, name, doc FROM records WHERE collection = ?1 AND name = ?2";
            sql.row("read a record", text, (self.collection.key(), name), record)
        })
    }

    /// Every record, in order of insertion.
    pub fn all(&self) -> Result<Vec<Record>> {
        self.access.statement(|sql| {
            let text = "SELECT id, name, doc FROM records WHERE collection = ?1 ORDER BY rowid";
            sql.rows("read records", text, (self.collection.key(),), record)
        })
    }

    fn missing_or_taken(&self, sql: Sql<'_>, id: &str, name: Option<&str>) -> Result<Error> {
        let text = "SELECT 1 FROM records WHERE collection = ?1 AND id = ?2";
        if sql.row("read a record", text, (self.collection.key(), id), |_| Ok(()))?.is_none() {
            return Ok(Error::NoRecord { collection: self.collection, id: id.to_owned() });
        }
        self.name_taken(sql, name)?.ok_or(Error::Defect("a record was refused for no reason"))
    }

    fn taken(&self, sql: Sql<'_>, record: &Record) -> Result<Error> {
        Ok(self
            .name_taken(sql, record.name.as_deref())?
            .unwrap_or_else(|| Error::IdTaken { collection: self.collection, id: record.id.clone() }))
    }

    fn name_taken(&self, sql: Sql<'_>, name: Option<&str>) -> Result<Option<Error>> {
        let Some(name) = name else { return Ok(None) };
        let text = "SELECT id FROM records WHERE collection = ?1 AND name = ?2";
        let owner = sql.row("read a record", text, (self.collection.key(), name), |row| row.get(0))?;
        Ok(owner.map(|owner| Error::NameTaken { collection: self.collection, name: name.to_owned(), owner }))
    }
}

fn record(row: &rusqlite::Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record { id: row.get(0)?, name: row.get(1)?, doc: row.get(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;

    fn new() -> (tempfile::TempDir, State) {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("state.db")).unwrap();
        (folder, state)
    }

    fn record(id: &str, name: Option<&str>) -> Record {
        Record { id: id.into(), name: name.map(Into::into), doc: format!("{{\"id\":{id:?}}}").into_bytes() }
    }

    #[test]
    fn records_are_found_by_id_and_name_in_their_collection() {
        let (_folder, state) = new();
        let containers = state.records(Collection::Containers);
        containers.insert(&record("1", Some("web"))).unwrap();
        containers.insert(&record("2", None)).unwrap();
        containers.insert(&record("0", None)).unwrap();
        assert_eq!(containers.get("1").unwrap().unwrap(), record("1", Some("web")));
        assert_eq!(containers.by_name("web").unwrap().unwrap().id, "1");
        assert!(state.records(Collection::Networks).get("1").unwrap().is_none());
        let ids: Vec<_> = containers.all().unwrap().into_iter().map(|r| r.id).collect();
        assert_eq!(ids, ["1", "2", "0"]);
        assert!(containers.remove("1").unwrap());
        assert!(!containers.remove("1").unwrap());
        assert!(containers.by_name("web").unwrap().is_none());
    }

    #[test]
    fn taken_ids_and_names_are_told_apart() {
        let (_folder, state) = new();
        let containers = state.records(Collection::Containers);
        containers.insert(&record("1", Some("web"))).unwrap();
        containers.insert(&record("2", Some("db"))).unwrap();
        let taken = containers.insert(&record("3", Some("web"))).unwrap_err();
        assert!(matches!(&taken, Error::NameTaken { owner, .. } if owner == "1"));
        assert_eq!(taken.to_string(), "the container name \"web\" is already in use by 1");
        assert!(matches!(containers.insert(&record("1", None)), Err(Error::IdTaken { .. })));
        assert!(matches!(containers.rename("2", Some("web")), Err(Error::NameTaken { .. })));
        assert!(matches!(containers.rename("9", Some("x")), Err(Error::NoRecord { .. })));
        assert!(matches!(containers.replace(&record("9", None)), Err(Error::NoRecord { .. })));
        containers.rename("2", Some("db2")).unwrap();
        containers.replace(&record("2", Some("db3"))).unwrap();
        assert_eq!(containers.by_name("db3").unwrap().unwrap().id, "2");
    }

    #[test]
    fn a_failed_transaction_changes_nothing() {
        let (_folder, state) = new();
        let failed: Result<()> = state.transaction(|tx| {
            tx.records(Collection::Containers).insert(&record("1", None))?;
            tx.allocations().allocate("pool", 0..10, None, "1")?;
            tx.records(Collection::Containers).insert(&record("1", None))
        });
        assert!(matches!(failed, Err(Error::IdTaken { .. })));
        assert!(state.records(Collection::Containers).all().unwrap().is_empty());
        assert!(state.allocations().all("pool").unwrap().is_empty());
        state
            .transaction(|tx| {
                tx.records(Collection::Containers).insert(&record("1", None))?;
                tx.records(Collection::Networks).insert(&record("1", None))
            })
            .unwrap();
        assert_eq!(state.records(Collection::Networks).all().unwrap().len(), 1);
    }

    #[test]
    fn the_state_inside_its_own_transaction_is_an_error_and_no_deadlock() {
        let (_folder, state) = new();
        let nested: Result<()> = state.transaction(|_| state.records(Collection::Meta).all().map(drop));
        assert!(matches!(nested, Err(Error::Defect(_))));
        assert!(state.records(Collection::Meta).all().unwrap().is_empty());
    }
}
