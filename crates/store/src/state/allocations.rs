//! Numbers that one owner has at a time.

use std::ops::Range;

use super::{Access, Sql};
use crate::{Error, Result};

/// A number and who has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    pub pool: String,
    pub number: u64,
    pub owner: String,
}

/// All pools.
#[derive(Debug)]
pub struct Allocations<'a> {
    pub(super) access: Access<'a>,
}

impl Allocations<'_> {
    /// Gives a number of `range` to `owner`: the wanted one, or else the lowest free one after the
    /// last given, beginning anew at the end of the range. A wanted number that the same owner
    /// has already is given again, so that a step may be repeated.
    pub fn allocate(&self, pool: &str, range: Range<u64>, wanted: Option<u64>, owner: &str) -> Result<u64> {
        let (first, end) = bounds(pool, &range)?;
        self.access.atomically(|sql| match wanted {
            Some(number) => take_wanted(sql, pool, &range, number, owner),
            None => take_next(sql, pool, first, end, owner),
        })
    }

    /// Frees everything that `owner` has, in one pool or in all, and returns how many numbers.
    pub fn release_owner(&self, pool: Option<&str>, owner: &str) -> Result<usize> {
        self.access.statement(|sql| match pool {
            Some(pool) => sql.execute(
                "release numbers",
                "DELETE FROM allocations WHERE owner = ?1 AND pool = ?2",
                (owner, pool),
            ),
            None => sql.execute("release numbers", "DELETE FROM allocations WHERE owner = ?1", (owner,)),
        })
    }

    /// Frees one number, whoever has it, and returns whether somebody had it.
    pub fn release(&self, pool: &str, number: u64) -> Result<bool> {
        let Ok(number) = i64::try_from(number) else { return Ok(false) };
        self.access.statement(|sql| {
            let text = "DELETE FROM allocations WHERE pool = ?1 AND number = ?2";
            Ok(sql.execute("release a number", text, (pool, number))? == 1)
        })
    }

    /// What `owner` has in all pools.
    pub fn owned_by(&self, owner: &str) -> Result<Vec<Allocation>> {
        self.access.statement(|sql| {
            let text = "SELECT pool, number, owner FROM allocations WHERE owner = ?1 ORDER BY pool, number";
            sql.rows("read allocations", text, (owner,), allocation)
        })
    }

    /// What is given of one pool, lowest first.
    pub fn all(&self, pool: &str) -> Result<Vec<Allocation>> {
        self.access.statement(|sql| {
            let text = "SELECT pool, number, owner FROM allocations WHERE pool = ?1 ORDER BY number";
            sql.rows("read allocations", text, (pool,), allocation)
        })
    }
}

/// SQLite's integers are signed.
fn bounds(pool: &str, range: &Range<u64>) -> Result<(i64, i64)> {
    match (i64::try_from(range.start), i64::try_from(range.end)) {
        (Ok(first), Ok(end)) if first < end => Ok((first, end)),
        (Ok(_), Ok(_)) => Err(exhausted(pool, range.start, range.end)),
        _ => Err(Error::NumberOutside {
            pool: pool.to_owned(),
            number: range.end,
            first: 0,
            last: i64::MAX as u64,
        }),
    }
}

fn exhausted(pool: &str, first: u64, end: u64) -> Error {
    Error::PoolExhausted { pool: pool.to_owned(), first, last: end.saturating_sub(1) }
}

fn take_wanted(sql: Sql<'_>, pool: &str, range: &Range<u64>, number: u64, owner: &str) -> Result<u64> {
    if !range.contains(&number) {
        return Err(Error::NumberOutside {
            pool: pool.to_owned(),
            number,
            first: range.start,
            last: range.end.saturating_sub(1),
        });
    }
    let text = "SELECT owner FROM allocations WHERE pool = ?1 AND number = ?2";
    match sql.row("read an allocation", text, (pool, number as i64), |row| row.get::<_, String>(0))? {
        Some(holder) if holder == owner => Ok(number),
        Some(holder) => Err(Error::NumberTaken { pool: pool.to_owned(), number, owner: holder }),
        None => {
            insert(sql, pool, number as i64, owner)?;
            Ok(number)
        }
    }
}

fn take_next(sql: Sql<'_>, pool: &str, first: i64, end: i64, owner: &str) -> Result<u64> {
    let last: Option<i64> =
        sql.row("read a pool", "SELECT last FROM pools WHERE pool = ?1", (pool,), |row| row.get(0))?;
    let start =
        last.map(|last| last.saturating_add(1)).filter(|next| (first..end).contains(next)).unwrap_or(first);
    let number = match lowest_free(sql, pool, start, end)? {
        Some(number) => number,
        None => {
            lowest_free(sql, pool, first, start)?.ok_or_else(|| exhausted(pool, first as u64, end as u64))?
        }
    };
    insert(sql, pool, number, owner)?;
    let text = "INSERT INTO pools (pool, last) VALUES (?1, ?2) ON CONFLICT (pool) DO UPDATE SET last = ?2";
    sql.execute("advance a pool", text, (pool, number))?;
    Ok(number as u64)
}

fn lowest_free(sql: Sql<'_>, pool: &str, start: i64, end: i64) -> Result<Option<i64>> {
    if start >= end {
        return Ok(None);
    }
    let text = "SELECT 1 FROM allocations WHERE pool = ?1 AND number = ?2";
    if sql.row("read an allocation", text, (pool, start), |_| Ok(()))?.is_none() {
        return Ok(Some(start));
    }
    // The first number that is taken while its neighbour is not.
    let text = "SELECT number + 1 FROM allocations AS taken
                WHERE pool = ?1 AND number >= ?2 AND number + 1 < ?3
                  AND NOT EXISTS (SELECT 1 FROM allocations WHERE pool = ?1 AND number = taken.number + 1)
                ORDER BY number LIMIT 1";
    sql.row("find a free number", text, (pool, start, end), |row| row.get(0))
}

fn insert(sql: Sql<'_>, pool: &str, number: i64, owner: &str) -> Result<()> {
    let text = "INSERT INTO allocations (pool, number, owner) VALUES (?1, ?2, ?3)";
    sql.execute("allocate a number", text, (pool, number, owner)).map(drop)
}

fn allocation(row: &rusqlite::Row<'_>) -> rusqlite::Result<Allocation> {
    Ok(Allocation { pool: row.get(0)?, number: row.get::<_, i64>(1)? as u64, owner: row.get(2)? })
}
