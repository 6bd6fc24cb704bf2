//! What is kept no longer: old jobs, and content that no job needs. Each function looks for a few, or removes them in one
//! transaction; `blobs/collect.rs` goes through them all, in small steps.
//!
//! A removal judges again what a look found, because jobs are submitted and retried in between. The file of content
//! goes after the commit, by the caller: a crash leaves at worst a file that nobody names, which a later sweep finds.

use super::{Error, attempts::JobRow, lines, row, row::ms, writer::Tx};
use jiff::Timestamp;
use passerelle_protocol::{BlobId, Sha256};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::time::Duration;

/// How many are removed in one transaction: submissions wait behind it.
pub(crate) const AT_ONCE: usize = 64;
/// How many pages are given back to the disk in one transaction.
const PAGES_AT_ONCE: i64 = 256;

/// How long things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// An uploaded blob that no job uses, counted from its upload, and the payload of a job that succeeded or was denied,
    /// counted from its end. Other jobs can be retried: they keep their payload.
    pub blobs: Duration,
    /// Outputs, counted from the end of their job.
    pub outputs: Duration,
    /// Settled jobs with their attempts and idempotency keys, counted from their end.
    pub jobs: Duration,
    /// Uploads that stand still.
    pub uploads: Duration,
    /// Events of triggers, with their payloads.
    pub events: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        Self { blobs: days(7), outputs: days(30), jobs: days(90), uploads: days(1), events: days(30) }
    }
}

/// What a removal removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) count: u64,
    /// Content that nobody names any more: its file can go.
    pub(crate) loose: Vec<Sha256>,
}

/// The id of a blob or job, as stored: its first six bytes are its time.
pub(crate) type Key = [u8; 16];

/// The smallest id of that time.
fn floor(at: Timestamp) -> Key {
    let mut key = [0; 16];
    let time = u64::try_from(ms(at)).unwrap_or_default().to_be_bytes();
    for (to, from) in key.iter_mut().zip(time.iter().skip(2)) {
        *to = *from;
    }
    key
}

/// The row id below which all jobs were submitted before `at`: row ids grow with the time, so no index is needed.
fn first_since(conn: &Connection, at: Timestamp) -> Result<i64, Error> {
    let edge = |sql: &str| -> Result<Option<i64>, Error> {
        Ok(conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    };
    let Some(mut low) = edge("SELECT min(seq) FROM jobs")? else { return Ok(0) };
    let mut high = edge("SELECT max(seq) FROM jobs")?.map_or(low, |seq| seq + 1);
    let mut probe =
        conn.prepare_cached("SELECT seq, created_at FROM jobs WHERE seq >= ?1 ORDER BY seq LIMIT 1")?;
    while low < high {
        let middle = low + (high - low) / 2;
        let (seq, created_at): (i64, i64) =
            probe.query_row([middle], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if created_at < ms(at) {
            low = seq + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

fn many<T: rusqlite::types::FromSql>(
    conn: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<T>, Error> {
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params, |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A job `j` that can go: settled before ?1, and no unfinished one of its line waits behind it.
const OLD_JOB: &str = "j.finished_at < ?1 AND j.state NOT IN ('queued', 'offered', 'running', 'waiting') \
    AND (j.blocks = 0 OR NOT EXISTS (SELECT 1 FROM jobs l INDEXED BY jobs_line \
         WHERE l.tenant = j.tenant AND l.site = j.site AND l.resource = j.resource AND l.order_key = j.order_key \
         AND l.blocks = 1 AND l.ready = 0 AND l.finished_at IS NULL))";

/// Settled jobs that ended before `before`, by their row ids.
pub(crate) fn old_jobs(conn: &Connection, after: i64, before: Timestamp) -> Result<Vec<i64>, Error> {
    let sql = format!(
        "SELECT j.seq FROM jobs j WHERE {OLD_JOB} AND j.seq > ?2 AND j.seq < ?3 ORDER BY j.seq LIMIT {AT_ONCE}"
    );
    many(conn, &sql, params![ms(before), after, first_since(conn, before)?])
}

/// Removes them with all that hangs on them.
pub(crate) fn remove_jobs(tx: &mut Tx<'_>, jobs: &[i64], before: Timestamp) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    let sql = format!("SELECT j.id, j.payload FROM jobs j WHERE {OLD_JOB} AND j.seq = ?2");
    for seq in jobs {
        let found: Option<(Key, Option<Key>)> = tx
            .conn
            .prepare_cached(&sql)?
            .query_row(params![ms(before), seq], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((id, payload)) = found else { continue };
        if let Some(job) = JobRow::by_seq(tx.conn, *seq)?
            && let Some(line) = job.line.as_ref().filter(|line| line.blocks)
        {
            lines::leave(tx, &job, &line.key)?;
        }
        for sql in ["DELETE FROM attempts WHERE job = ?1", "DELETE FROM outputs WHERE job = ?1"] {
            tx.conn.prepare_cached(sql)?.execute([seq])?;
        }
        tx.conn.prepare_cached("DELETE FROM uploads WHERE job = ?1")?.execute([id])?;
        if let Some(blob) = payload {
            tx.conn
                .prepare_cached("DELETE FROM uses WHERE blob = ?1 AND job = ?2")?
                .execute(params![blob, id])?;
        }
        // Content that came with it is no one else's.
        remove_blob(tx, id, &mut removed)?;
        disown(tx, id, &mut removed)?;
        tx.conn.prepare_cached("DELETE FROM jobs WHERE seq = ?1")?.execute([seq])?;
        removed.count += 1;
    }
    Ok(removed)
}

/// Small outputs of jobs that ended before `before`.
pub(crate) fn old_outputs(conn: &Connection, after: i64, before: Timestamp) -> Result<Vec<i64>, Error> {
    let sql = format!(
        "SELECT o.job FROM outputs o CROSS JOIN jobs j ON j.seq = o.job \
         WHERE o.job > ?2 AND o.job < ?3 AND j.finished_at < ?1 ORDER BY o.job LIMIT {AT_ONCE}"
    );
    many(conn, &sql, params![ms(before), after, first_since(conn, before)?])
}

/// Removes them; their jobs stay.
pub(crate) fn remove_outputs(tx: &mut Tx<'_>, jobs: &[i64], before: Timestamp) -> Result<Removed, Error> {
    let mut statement = tx.conn.prepare_cached(
        "DELETE FROM outputs WHERE job = ?2 AND (SELECT finished_at FROM jobs WHERE seq = ?2) < ?1",
    )?;
    let mut removed = Removed::default();
    for seq in jobs {
        removed.count += statement.execute(params![ms(before), seq])? as u64;
    }
    Ok(removed)
}

/// An output's row `f` in `files` that can go: its job is gone, or settled before ?1 and cannot need it any more.
const OLD_OUTPUT: &str = "f.output = 1 AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = f.owner \
    AND (j.finished_at IS NULL OR j.finished_at >= ?1 OR (j.output_sha256 IS NULL AND j.error_effect = 'unknown')))";

/// An upload `u` is a whole output that its job may need yet: an attempt may have taken away what it was made from, so that
/// it is the only copy, which a later attempt or an operator's word makes the job's own.
const NEEDED: &str = "u.complete = 1 AND EXISTS (SELECT 1 FROM jobs j WHERE j.id = u.job AND j.output_sha256 IS NULL \
    AND (j.finished_at IS NULL OR j.error_effect = 'unknown'))";

/// Jobs with outputs in files that ended before `before`.
pub(crate) fn old_output_files(conn: &Connection, after: Key, before: Timestamp) -> Result<Vec<Key>, Error> {
    let sql = format!(
        "SELECT DISTINCT f.owner FROM files f WHERE f.owner > ?2 AND f.owner < ?3 AND {OLD_OUTPUT} \
         ORDER BY f.owner LIMIT {AT_ONCE}"
    );
    many(conn, &sql, params![ms(before), after, floor(before)])
}

/// Lets go of their outputs; the jobs stay.
pub(crate) fn remove_output_files(
    tx: &mut Tx<'_>,
    jobs: &[Key],
    before: Timestamp,
) -> Result<Removed, Error> {
    let sql = format!("SELECT 1 FROM files f WHERE f.owner = ?2 AND {OLD_OUTPUT}");
    let mut removed = Removed::default();
    for job in jobs {
        if tx.conn.prepare_cached(&sql)?.exists(params![ms(before), job])? {
            disown(tx, *job, &mut removed)?;
            removed.count += 1;
        }
    }
    Ok(removed)
}

/// A blob `b` that can go: it is older than ?1, no event has it as its payload, and each job that uses it is final and
/// ended before ?1.
fn unneeded() -> String {
    let keeps = "(j.state NOT IN ('succeeded', 'denied') OR j.finished_at IS NULL OR j.finished_at >= ?1)";
    format!(
        "b.created_at < ?1 AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = b.id AND {keeps}) \
         AND NOT EXISTS (SELECT 1 FROM received_events e INDEXED BY received_payloads WHERE e.payload = b.id) \
         AND NOT EXISTS (SELECT 1 FROM mediation_flows m INDEXED BY mediation_flows_by_blob WHERE m.blob = b.id) \
         AND NOT EXISTS (SELECT 1 FROM trigger_arrivals a INDEXED BY trigger_arrivals_blobs WHERE a.blob = b.id) \
         AND NOT EXISTS (SELECT 1 FROM uses u CROSS JOIN jobs j ON j.id = u.job WHERE u.blob = b.id AND {keeps})"
    )
}

/// Blobs that no job needs since `before`.
pub(crate) fn unneeded_blobs(conn: &Connection, after: Key, before: Timestamp) -> Result<Vec<Key>, Error> {
    let sql = format!(
        "SELECT b.id FROM blobs b WHERE b.id > ?2 AND b.id < ?3 AND {} ORDER BY b.id LIMIT {AT_ONCE}",
        unneeded()
    );
    many(conn, &sql, params![ms(before), after, floor(before)])
}

/// Removes them.
pub(crate) fn remove_blobs(tx: &mut Tx<'_>, blobs: &[Key], before: Timestamp) -> Result<Removed, Error> {
    let sql = format!("SELECT 1 FROM blobs b WHERE b.id = ?2 AND {}", unneeded());
    let mut removed = Removed::default();
    for blob in blobs {
        if tx.conn.prepare_cached(&sql)?.exists(params![ms(before), blob])? {
            remove_blob(tx, *blob, &mut removed)?;
            removed.count += 1;
        }
    }
    Ok(removed)
}

fn remove_blob(tx: &Tx<'_>, blob: Key, removed: &mut Removed) -> Result<(), Error> {
    for sql in [
        "DELETE FROM contents WHERE blob = ?1",
        "DELETE FROM uses WHERE blob = ?1",
        "DELETE FROM blobs WHERE id = ?1",
    ] {
        tx.conn.prepare_cached(sql)?.execute([blob])?;
    }
    disown(tx, blob, removed)
}

/// Takes the names of an owner's files away.
fn disown(tx: &Tx<'_>, owner: Key, removed: &mut Removed) -> Result<(), Error> {
    let mut statement = tx.conn.prepare_cached("DELETE FROM files WHERE owner = ?1 RETURNING sha256")?;
    let digests: Vec<[u8; 32]> = statement.query_map([owner], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for digest in digests {
        if !is_named(tx.conn, digest)? {
            removed.loose.push(Sha256::from(digest));
        }
    }
    Ok(())
}

fn is_named(conn: &Connection, digest: [u8; 32]) -> Result<bool, Error> {
    Ok(conn.prepare_cached("SELECT 1 FROM files WHERE sha256 = ?1")?.exists([digest])?)
}

/// Those of these digests whose file nobody names.
pub(crate) fn unnamed(conn: &Connection, digests: &[Sha256]) -> Result<Vec<Sha256>, Error> {
    let mut found = Vec::new();
    for digest in digests {
        if !is_named(conn, *digest.bytes())? {
            found.push(*digest);
        }
    }
    Ok(found)
}

/// Notes that a file is the content of this blob or upload's output.
pub(crate) fn own(conn: &Connection, owner: Key, sha256: Sha256, output: bool) -> Result<(), Error> {
    conn.prepare_cached("INSERT OR IGNORE INTO files (owner, sha256, output) VALUES (?1, ?2, ?3)")?
        .execute(params![owner, sha256.bytes(), output])?;
    Ok(())
}

/// Forgets an upload that is given up; what was whole but that no report or event claimed loses its name.
pub(crate) fn forget_upload(tx: &mut Tx<'_>, upload: BlobId) -> Result<Removed, Error> {
    let id = *upload.uuid().as_bytes();
    let unclaimed: Option<(Key, [u8; 32])> = tx
        .conn
        .prepare_cached(
            "SELECT coalesce(u.job, u.id), u.sha256 FROM uploads u WHERE u.id = ?1 AND u.complete = 1 AND NOT EXISTS \
             (SELECT 1 FROM jobs j WHERE j.id = u.job AND j.output_sha256 = u.sha256)",
        )?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let count = tx.conn.prepare_cached("DELETE FROM uploads WHERE id = ?1")?.execute([id])?;
    let mut removed = Removed { count: count as u64, loose: Vec::new() };
    if let Some((job, digest)) = unclaimed {
        tx.conn
            .prepare_cached("DELETE FROM files WHERE owner = ?1 AND sha256 = ?2")?
            .execute(params![job, digest])?;
        if !is_named(tx.conn, digest)? {
            removed.loose.push(Sha256::from(digest));
        }
    }
    Ok(removed)
}

/// Whether an upload is an output that its job may need.
pub(crate) fn is_needed(conn: &Connection, upload: BlobId) -> Result<bool, Error> {
    let sql = format!("SELECT 1 FROM uploads u WHERE u.id = ?1 AND {NEEDED}");
    Ok(conn.prepare_cached(&sql)?.exists([upload.uuid().as_bytes()])?)
}

/// Uploads opened before `before`, but for outputs that their jobs may need.
pub(crate) fn old_uploads(conn: &Connection, before: Timestamp) -> Result<Vec<BlobId>, Error> {
    let sql = format!("SELECT u.id FROM uploads u WHERE u.created_at < ?1 AND NOT ({NEEDED})");
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map([ms(before)], |found| row::from_uuid(found, 0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Gives pages that hold nothing back to the disk, a few; true if there are more. Some stay, for the next jobs.
pub(crate) fn give_back(tx: &mut Tx<'_>) -> Result<bool, Error> {
    let pragma = |name| tx.conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let spare = pragma("page_count")? / 8 + PAGES_AT_ONCE;
    let free = pragma("freelist_count")?;
    if free <= spare {
        return Ok(false);
    }
    tx.conn.execute_batch(&format!("PRAGMA incremental_vacuum({PAGES_AT_ONCE})"))?;
    Ok(free - PAGES_AT_ONCE > spare)
}
