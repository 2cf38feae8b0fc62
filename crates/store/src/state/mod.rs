//! The state database: what was declared, by whom which number is held. What *happened* is the
//! monitors' to write, not here.
//!
//! ```text
//! records      (collection, id) unique, (collection, name) unique where there is a name;
//!              `doc` is JSON that belongs to the caller. Rows keep their order of insertion.
//! allocations  (pool, number) unique, with an owner: id ranges of user namespaces, addresses
//! pools        the last number given of each pool, so that a freed number rests before it returns
//! layers, images, image_layers, image_names, image_uses: see `images::rows`
//! ```
//!
//! SQLite in WAL mode with `synchronous=NORMAL`: a commit survives `kill -9` at any point and is
//! never torn by power loss, though the last commits before a power loss may be missing; they
//! are then reconciled like the rest. One connection behind a mutex: commits take tens of
//! microseconds, and the daemon is the only writer.

mod allocations;
mod records;
mod schema;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

pub use allocations::{Allocation, Allocations};
pub use records::{Collection, Record, Records};

use crate::{Error, Result};

/// Bytes of the log's file that are written again instead of given back and taken anew.
const LOG_KEPT: u64 = 1 << 20;

/// The open database.
pub struct State {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// The thread inside [`State::transaction`], so that a nested use is an error and no deadlock.
    holder: AtomicU64,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("path", &self.path).finish_non_exhaustive()
    }
}

impl State {
    /// Opens or creates the database and brings its schema up to date.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |doing, source| failure(path, doing, source);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        // SQLite gives its other files the mode of the first.
        keep_private(path)?;
        let mut connection = Connection::open_with_flags(path, flags).map_err(|e| fail("open", e))?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(|e| fail("set the busy timeout", e))?;
        connection.set_prepared_statement_cache_capacity(64);
        // One daemon has the root, so the database is held for good: no lock is taken for each commit
        // and the log's index stays in memory. The daemon stays small: half a MiB of page cache holds
        // thousands of records. Moving the log into the database flushes the disk, which no commit should wait
        // for: it is left to `checkpoint`, and to a log of 32 MiB.
        connection
            .execute_batch(
                "PRAGMA locking_mode=EXCLUSIVE; PRAGMA wal_autocheckpoint=8192; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;
                 PRAGMA cache_size=-512; PRAGMA temp_store=MEMORY; PRAGMA journal_size_limit=1048576;",
            )
            .map_err(|e| fail("configure the connection", e))?;
        let verdict: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|e| fail("check", e))?;
        if verdict != "ok" {
            return Err(Error::Damaged { path: path.to_owned(), why: verdict });
        }
        schema::migrate(path, &mut connection)?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection), holder: AtomicU64::new(0) })
    }

    /// One collection of documents; each call is a commit of its own.
    #[must_use]
    pub fn records(&self, collection: Collection) -> Records<'_> {
        Records { access: Access::Each(self), collection }
    }

    /// Numbers with owners; each call is a commit of its own.
    #[must_use]
    pub fn allocations(&self) -> Allocations<'_> {
        Allocations { access: Access::Each(self) }
    }

    /// Does several things in one commit, or none of them if `work` fails. Inside, only the
    /// transaction may be used: using the state itself is an error.
    pub fn transaction<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let held = self.hold()?;
        let transaction =
            held.guard.unchecked_transaction().map_err(|e| failure(&self.path, "begin a transaction", e))?;
        let value = work(&Transaction { path: &self.path, connection: &transaction })?;
        transaction.commit().map_err(|e| failure(&self.path, "commit", e))?;
        Ok(value)
    }

    /// Moves the log into the database, which may wait for the disk, and gives back what a long one took. To be
    /// called now and then; without anything to move it costs next to nothing.
    pub fn checkpoint(&self) -> Result<()> {
        let held = self.hold()?;
        let log = self.path.with_extension("db-wal");
        let long = log.metadata().is_ok_and(|log| log.len() > LOG_KEPT);
        let mode = if long { "TRUNCATE" } else { "PASSIVE" };
        held.guard
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
            .map_err(|e| failure(&self.path, "checkpoint", e))
    }

    fn hold(&self) -> Result<Held<'_>> {
        let me = thread_number();
        if self.holder.load(Ordering::Relaxed) == me {
            return Err(Error::Defect("the state was used inside its own transaction"));
        }
        // A panic elsewhere rolled its transaction back when it unwound: the connection is sound.
        let guard = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        self.holder.store(me, Ordering::Relaxed);
        Ok(Held { guard, holder: &self.holder })
    }
}

struct Held<'a> {
    guard: MutexGuard<'a, Connection>,
    holder: &'a AtomicU64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.holder.store(0, Ordering::Relaxed);
    }
}

/// A number of this thread that is never 0 and that no other thread has.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static MINE: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
    MINE.with(|number| *number)
}

/// Several changes that are committed together.
#[derive(Debug)]
pub struct Transaction<'a> {
    path: &'a Path,
    connection: &'a Connection,
}

impl<'a> Transaction<'a> {
    /// One collection of documents.
    #[must_use]
    pub fn records(&self, collection: Collection) -> Records<'_> {
        Records { access: Access::Within(self), collection }
    }

    /// Numbers with owners.
    #[must_use]
    pub fn allocations(&self) -> Allocations<'_> {
        Allocations { access: Access::Within(self) }
    }

    pub(crate) fn sql(&self) -> Sql<'a> {
        Sql { path: self.path, connection: self.connection }
    }
}

/// By commits of their own, or within a transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Access<'a> {
    Each(&'a State),
    Within(&'a Transaction<'a>),
}

impl Access<'_> {
    /// For a single statement, which is a transaction of its own.
    fn statement<T>(&self, work: impl FnOnce(Sql<'_>) -> Result<T>) -> Result<T> {
        match self {
            Self::Each(state) => {
                let held = state.hold()?;
                work(Sql { path: &state.path, connection: &held.guard })
            }
            Self::Within(transaction) => work(transaction.sql()),
        }
    }

    /// For several statements that must be committed together.
    fn atomically<T>(&self, work: impl FnOnce(Sql<'_>) -> Result<T>) -> Result<T> {
        match self {
            Self::Each(state) => state.transaction(|transaction| work(transaction.sql())),
            Self::Within(transaction) => work(transaction.sql()),
        }
    }
}

/// Cached statements whose errors name the database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sql<'a> {
    path: &'a Path,
    connection: &'a Connection,
}

impl Sql<'_> {
    pub(crate) fn execute(
        &self,
        doing: &'static str,
        text: &str,
        params: impl rusqlite::Params,
    ) -> Result<usize> {
        self.connection
            .prepare_cached(text)
            .and_then(|mut statement| statement.execute(params))
            .map_err(|source| failure(self.path, doing, source))
    }

    pub(crate) fn row<T>(
        &self,
        doing: &'static str,
        text: &str,
        params: impl rusqlite::Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let row =
            self.connection.prepare_cached(text).and_then(|mut statement| statement.query_row(params, read));
        match row {
            Ok(value) => Ok(Some(value)),
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
            Err(source) => Err(failure(self.path, doing, source)),
        }
    }

    pub(crate) fn rows<T>(
        &self,
        doing: &'static str,
        text: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let all = || -> rusqlite::Result<Vec<T>> {
            self.connection.prepare_cached(text)?.query_map(params, read)?.collect()
        };
        all().map_err(|source| failure(self.path, doing, source))
    }
}

/// Makes the database root's alone, with what SQLite keeps beside it: environments hold passwords.
fn keep_private(path: &Path) -> Result<()> {
    let fail = |source| Error::io("open", path, source);
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(fail)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match fs::set_permissions(&file, fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("chmod", Path::new(&file), error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn failure(path: &Path, doing: &'static str, source: rusqlite::Error) -> Error {
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Error::Damaged { path: path.to_owned(), why: source.to_string() }
        }
        Some(ErrorCode::DiskFull) => Error::Full { doing, path: path.to_owned() },
        _ => Error::Database { doing, path: path.to_owned(), source },
    }
}
