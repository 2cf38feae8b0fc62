//! The schema and its history. A migration is never changed once released; a new one is added.

use std::path::Path;

use rusqlite::Connection;

use super::failure;
use crate::{Error, Result};

/// What brings version N to N + 1, N being the place in the list. The version is SQLite's
/// `user_version`.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE records (
        collection TEXT NOT NULL,
        id         TEXT NOT NULL,
        name       TEXT,
        doc        BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX records_id ON records (collection, id);
    CREATE UNIQUE INDEX records_name ON records (collection, name) WHERE name IS NOT NULL;

    CREATE TABLE allocations (
        pool   TEXT NOT NULL,
        number INTEGER NOT NULL,
        owner  TEXT NOT NULL,
        PRIMARY KEY (pool, number)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX allocations_owner ON allocations (owner, pool);
    CREATE TABLE pools (
        pool TEXT NOT NULL PRIMARY KEY,
        last INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE layers (
        chain_id TEXT NOT NULL PRIMARY KEY,
        diff_id  TEXT NOT NULL,
        size     INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX layers_diff ON layers (diff_id);
    CREATE TABLE images (
        id       TEXT NOT NULL PRIMARY KEY,
        manifest TEXT,
        size     INTEGER NOT NULL,
        unsynced TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE image_layers (
        image    TEXT NOT NULL,
        position INTEGER NOT NULL,
        chain_id TEXT NOT NULL REFERENCES layers (chain_id),
        PRIMARY KEY (image, position)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX image_layers_chain ON image_layers (chain_id);
    CREATE TABLE image_names (
        name  TEXT NOT NULL PRIMARY KEY,
        image TEXT NOT NULL REFERENCES images (id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX image_names_image ON image_names (image);
    CREATE TABLE image_uses (
        owner TEXT NOT NULL PRIMARY KEY,
        image TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX image_uses_image ON image_uses (image);
",
    "
    CREATE TABLE layer_places (
        diff_id    TEXT NOT NULL,
        registry   TEXT NOT NULL,
        repository TEXT NOT NULL,
        digest     TEXT NOT NULL,
        size       INTEGER NOT NULL,
        media_type TEXT NOT NULL,
        PRIMARY KEY (diff_id, registry, repository, digest)
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE layer_blobs (
        digest     TEXT NOT NULL PRIMARY KEY,
        diff_id    TEXT NOT NULL,
        size       INTEGER NOT NULL,
        media_type TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX layer_blobs_diff ON layer_blobs (diff_id);
",
    "
    ALTER TABLE image_names ADD COLUMN document TEXT;
    CREATE TABLE artifact_blobs (
        artifact TEXT NOT NULL,
        digest   TEXT NOT NULL,
        PRIMARY KEY (artifact, digest)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX artifact_blobs_digest ON artifact_blobs (digest);
",
    "
    CREATE TABLE index_parts (
        document TEXT NOT NULL,
        part     TEXT NOT NULL,
        PRIMARY KEY (document, part)
    ) STRICT, WITHOUT ROWID;
",
];

/// Brings the schema to the latest version, one transaction a step.
pub(super) fn migrate(path: &Path, connection: &mut Connection) -> Result<()> {
    let fail = |doing, source| failure(path, doing, source);
    let version = connection
        .query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0))
        .map_err(|e| fail("read the schema version", e))?;
    let version = version as usize;
    if version > MIGRATIONS.len() {
        return Err(Error::Newer {
            path: path.to_owned(),
            found: format!("schema {version}"),
            known: format!("schema {}", MIGRATIONS.len()),
        });
    }
    for (step, text) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = connection.transaction().map_err(|e| fail("begin a migration", e))?;
        transaction.execute_batch(text).map_err(|e| fail("migrate the schema", e))?;
        transaction
            .pragma_update(None, "user_version", (step + 1) as u32)
            .map_err(|e| fail("set the schema version", e))?;
        transaction.commit().map_err(|e| fail("commit a migration", e))?;
    }
    Ok(())
}
