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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::state::State;

    fn new() -> (tempfile::TempDir, State) {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("state.db")).unwrap();
        (folder, state)
    }

    #[test]
    fn numbers_follow_the_last_given_and_wrap() {
        let (_folder, state) = new();
        let pool = state.allocations();
        let give = |owner| pool.allocate("p", 10..13, None, owner);
        assert_eq!((give("a").unwrap(), give("b").unwrap()), (10, 11));
        pool.release_owner(None, "a").unwrap();
        assert_eq!(give("c").unwrap(), 12, "a freed number must rest");
        assert_eq!(give("d").unwrap(), 10);
        let error = give("e").unwrap_err();
        assert_eq!(error.to_string(), "p is exhausted: all numbers from 10 to 12 are taken");
        assert_eq!(pool.allocate("q", 10..13, None, "e").unwrap(), 10, "pools are apart");
    }

    #[test]
    fn wanted_numbers_are_given_once() {
        let (_folder, state) = new();
        let pool = state.allocations();
        assert_eq!(pool.allocate("p", 0..9, Some(5), "a").unwrap(), 5);
        assert_eq!(pool.allocate("p", 0..9, Some(5), "a").unwrap(), 5);
        let taken = pool.allocate("p", 0..9, Some(5), "b").unwrap_err();
        assert!(matches!(&taken, Error::NumberTaken { owner, .. } if owner == "a"), "{taken}");
        assert!(matches!(pool.allocate("p", 0..9, Some(9), "b"), Err(Error::NumberOutside { last: 8, .. })));
        assert!(matches!(pool.allocate("p", 0..u64::MAX, None, "b"), Err(Error::NumberOutside { .. })));
        assert!(matches!(pool.allocate("p", 3..3, None, "b"), Err(Error::PoolExhausted { .. })));
        assert!(pool.release("p", 5).unwrap());
        assert!(!pool.release("p", 5).unwrap());
        assert_eq!(pool.allocate("p", 0..9, Some(5), "b").unwrap(), 5);
    }

    #[test]
    fn what_is_given_survives_the_daemon() {
        let (folder, state) = new();
        state.allocations().allocate("p", 0..9, None, "a").unwrap();
        // What a kill leaves behind: the files as they are, nothing closed.
        let left = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), left.path().join(entry.file_name())).unwrap();
        }
        let state = State::open(&left.path().join("state.db")).unwrap();
        assert_eq!(state.allocations().owned_by("a").unwrap().len(), 1);
        assert_eq!(state.allocations().allocate("p", 0..9, None, "b").unwrap(), 1);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Next(u8),
        Wanted(u8, u64),
        Release(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..4u8).prop_map(Step::Next),
            1 => (0..4u8, 0..14u64).prop_map(|(owner, number)| Step::Wanted(owner, number)),
            1 => (0..4u8).prop_map(Step::Release),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The database and a map agree: a number has one owner, the next one is the first free one after
        /// the last given, and the pool is exhausted only when every number is taken.
        #[test]
        fn allocations_are_unique_and_complete(steps in proptest::collection::vec(step(), 1..60)) {
            const RANGE: Range<u64> = 2..12;
            let (_folder, state) = new();
            let pool = state.allocations();
            let mut model: BTreeMap<u64, String> = BTreeMap::new();
            let mut last = None;
            for step in steps {
                match step {
                    Step::Next(owner) => {
                        let owner = owner.to_string();
                        let start = last.map_or(RANGE.start, |last: u64| last + 1);
                        let free = (start..RANGE.end).chain(RANGE).find(|number| !model.contains_key(number));
                        match (pool.allocate("p", RANGE, None, &owner), free) {
                            (Ok(number), Some(expected)) => {
                                prop_assert_eq!(number, expected);
                                last = Some(number);
                                model.insert(number, owner);
                            }
                            (Err(Error::PoolExhausted { .. }), None) => {}
                            (given, expected) => prop_assert!(false, "{:?} and not {:?}", given, expected),
                        }
                    }
                    Step::Wanted(owner, number) => {
                        let owner = owner.to_string();
                        let given = pool.allocate("p", RANGE, Some(number), &owner);
                        if !RANGE.contains(&number) {
                            prop_assert!(matches!(given, Err(Error::NumberOutside { .. })), "outside");
                        } else if model.get(&number).is_some_and(|holder| *holder != owner) {
                            prop_assert!(matches!(given, Err(Error::NumberTaken { .. })), "taken");
                        } else {
                            prop_assert_eq!(given.unwrap(), number);
                            model.insert(number, owner);
                        }
                    }
                    Step::Release(owner) => {
                        let owner = owner.to_string();
                        let before = model.len();
                        model.retain(|_, holder| *holder != owner);
                        prop_assert_eq!(pool.release_owner(Some("p"), &owner).unwrap(), before - model.len());
                    }
                }
                let all = pool.all("p").unwrap().into_iter().map(|given| (given.number, given.owner));
                prop_assert_eq!(all.collect::<BTreeMap<_, _>>(), model.clone());
            }
        }
    }
}
