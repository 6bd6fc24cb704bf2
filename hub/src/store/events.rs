//! The newest changes, one row per thing and transaction; what the server-sent events are made from.

use super::Error;
use crate::{
    model::{Change, ChangeKind},
    store::row::{from_uuid, name},
};
use passerelle_protocol::Name;
use rusqlite::{Connection, Row, params};
use std::collections::HashSet;

/// How many are kept.
const KEPT: i64 = 10_000;
/// How many numbers a restore leaves out: more than are given from one backup to the next.
const LEFT_OUT: i64 = 1_000_000_000;

/// The highest number given so far.
pub(super) fn last(conn: &Connection) -> Result<i64, Error> {
    Ok(conn.query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| row.get(0))?)
}

/// Goes on with numbers that were never given, in the copy of a backup: a client that has seen some of those which were
/// given since the backup would pass over what gets them now.
pub(super) fn leave_numbers_out(copy: &Connection) -> rusqlite::Result<()> {
    copy.execute("UPDATE events SET seq = seq + ?1 WHERE seq = (SELECT max(seq) FROM events)", [LEFT_OUT])
        .map(drop)
}

/// Stores the changes of a transaction. The answer also holds those of other processes that came in between.
pub(super) fn store(
    conn: &Connection,
    last: &mut i64,
    changes: &[(Name, ChangeKind)],
) -> Result<Vec<Change>, Error> {
    let mut seen = HashSet::new();
    let mut stored = Vec::new();
    let mut insert = conn.prepare_cached("INSERT INTO events (tenant, kind, id) VALUES (?1, ?2, ?3)")?;
    for (tenant, kind) in changes.iter().filter(|(_, kind)| seen.insert(*kind)) {
        let (text, id) = match kind {
            ChangeKind::Job(id) => ("job", id.uuid()),
            ChangeKind::Agent(id) => ("agent", id.uuid()),
            ChangeKind::Received(id) => ("received", id.uuid()),
            ChangeKind::Run(id) => ("run", id.uuid()),
            ChangeKind::Definition(id) => ("definition", id.uuid()),
            ChangeKind::Notice(id) => ("notice", *id),
        };
        let seq = insert.insert(params![tenant.as_str(), text, id.as_bytes()])?;
        if stored.is_empty() && seq > *last + 1 {
            stored = after(conn, *last)?;
        } else {
            let number = u64::try_from(seq).unwrap_or_default();
            stored.push(Change { seq: number, tenant: tenant.clone(), kind: *kind });
        }
        if seq % 1000 == 0 {
            // Counted, since numbers may be left out.
            conn.prepare_cached(
                "DELETE FROM events WHERE seq <= (SELECT seq FROM events ORDER BY seq DESC LIMIT 1 OFFSET ?1)",
            )?
            .execute([KEPT])?;
        }
        *last = seq;
    }
    Ok(stored)
}

/// Those after `seq`, of all tenants.
pub(super) fn after(conn: &Connection, seq: i64) -> Result<Vec<Change>, Error> {
    let mut statement =
        conn.prepare_cached("SELECT seq, tenant, kind, id FROM events WHERE seq > ?1 ORDER BY seq")?;
    let rows = statement.query_map([seq], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Those of a tenant after `seq`.
pub(super) fn of_tenant(
    conn: &Connection,
    tenant: &Name,
    seq: u64,
    limit: usize,
) -> Result<Vec<Change>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, tenant, kind, id FROM events WHERE tenant = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    let seq = i64::try_from(seq).unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![tenant.as_str(), seq, limit], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Change> {
    let kind = match row.get_ref(2)?.as_str()? {
        "job" => ChangeKind::Job(from_uuid(row, 3)?),
        "received" => ChangeKind::Received(from_uuid(row, 3)?),
        "run" => ChangeKind::Run(from_uuid(row, 3)?),
        "definition" => ChangeKind::Definition(from_uuid(row, 3)?),
        "notice" => ChangeKind::Notice(from_uuid(row, 3)?),
        _ => ChangeKind::Agent(from_uuid(row, 3)?),
    };
    Ok(Change { seq: u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(), tenant: name(row, 1)?, kind })
}
