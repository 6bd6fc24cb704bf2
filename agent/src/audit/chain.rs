//! The newest part of the chain, in the journal's database. Everything here runs on the journal's thread.

use super::{
    Entry, Kind,
    line::{self, Head},
};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// The chain's table. Lines leave it once they are in a file; the newest stays.
pub const TABLE: &str = "
CREATE TABLE audit (
  seq  INTEGER PRIMARY KEY,
  hash BLOB NOT NULL,         -- 32 bytes
  line TEXT NOT NULL          -- the row as docs/audit.md tells, its hash included
);
";

/// What writing the chain has cost.
#[derive(Debug, Default)]
pub struct Cost {
    /// Rows written.
    pub rows: AtomicU64,
    /// The time it took on the journal's thread, without the commit.
    pub nanoseconds: AtomicU64,
}

/// The newest row; [`Head::START`] if there is none.
pub fn head(c: &Connection) -> rusqlite::Result<Head> {
    let newest = c
        .prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| Ok(Head { seq: row.get::<_, i64>(0)?.cast_unsigned(), hash: row.get(1)? }))
        .optional()?;
    Ok(newest.unwrap_or(Head::START))
}

/// Adds a row to the chain.
pub fn append(c: &Connection, entry: &Entry, cost: &Cost) -> rusqlite::Result<()> {
    let begun = Instant::now();
    let head = head(c)?;
    put(c, entry, head, head.seq + 1)?;
    cost.rows.fetch_add(1, Ordering::Relaxed);
    let spent = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    cost.nanoseconds.fetch_add(spent, Ordering::Relaxed);
    Ok(())
}

fn put(c: &Connection, entry: &Entry, head: Head, seq: u64) -> rusqlite::Result<Head> {
    let (line, head) = line::write(entry, head, seq)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    c.prepare_cached("INSERT INTO audit (seq, hash, line) VALUES (?1, ?2, ?3)")?.execute(params![
        head.seq.cast_signed(),
        head.hash,
        line
    ])?;
    Ok(head)
}

/// The rows after `seq`, oldest first.
pub fn after(c: &Connection, seq: u64, limit: usize) -> rusqlite::Result<Vec<(u64, String)>> {
    c.prepare_cached("SELECT seq, line FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2")?
        .query_map(params![seq.cast_signed(), i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?))
        })?
        .collect()
}

/// Forgets rows that are safe in a file, but for the newest.
pub fn forget(c: &Connection, through: u64) -> rusqlite::Result<usize> {
    c.prepare_cached("DELETE FROM audit WHERE seq <= ?1 AND seq < (SELECT max(seq) FROM audit)")?
        .execute([through.cast_signed()])
}

/// What is known of the chain beside the database, at the start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known {
    /// The newest row in a file.
    pub filed: Option<Head>,
    /// The newest row that was ever seen.
    pub seen: Option<u64>,
}

/// Begins the chain, or has it go on where its newest row is: here or in a file.
pub fn begin(c: &Connection, known: Known, set_aside: Option<&PathBuf>) -> rusqlite::Result<()> {
    let mut head = head(c)?;
    let filed = known.filed.unwrap_or(Head::START);
    let replaced = filed.seq > head.seq || (set_aside.is_some() && head != Head::START);
    if filed.seq > head.seq {
        // What is here is in the files as well, or is of another chain.
        c.execute("DELETE FROM audit", [])?;
        head = filed;
    }
    if let Some(missing) = known.seen.and_then(|seen| seen.checked_sub(head.seq)).filter(|n| *n > 0) {
        let row = Entry { count: Some(missing), ..Entry::new(Kind::RowsMissing) };
        let row = row.detail("rows that had been written are gone: the state folder was changed or restored");
        head = put(c, &row, head, head.seq + missing + 1)?;
    }
    if replaced {
        let why = if set_aside.is_some() {
            "the journal was corrupt and set aside; rows that only it held are in the file set aside"
        } else {
            "the journal is a new or an older one; the chain goes on from the files"
        };
        put(c, &Entry::new(Kind::JournalReplaced).detail(why), head, head.seq + 1)?;
    } else if head == Head::START {
        let first =
            Entry::new(Kind::ChainStarted).detail("before it there was no audit in this state folder");
        put(c, &first, head, 1)?;
    }
    Ok(())
}
