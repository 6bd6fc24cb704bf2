//! What is kept of mediations no longer: runs whose days are over, with the content they made, and changes long told.

use crate::store::{
    Error, retention,
    retention::{AT_ONCE, Key, Removed},
    row::ms,
    writer::Tx,
};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

/// Runs whose days were over before `now`, by their row ids.
pub(crate) fn old_runs(conn: &Connection, _after: i64, now: Timestamp) -> Result<Vec<i64>, Error> {
    let sql = format!(
        "SELECT seq FROM mediation_runs INDEXED BY mediation_runs_old WHERE delete_after IS NOT NULL \
         AND delete_after < ?1 ORDER BY delete_after LIMIT {AT_ONCE}"
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map([ms(now)], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Removes them with all that hangs on them; of their jobs the job retention decides.
pub(crate) fn remove_runs(tx: &mut Tx<'_>, runs: &[i64], now: Timestamp) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    for seq in runs {
        let found: Option<(String, [u8; 16], u32)> = tx
            .conn
            .prepare_cached(
                "SELECT tenant, definition, version FROM mediation_runs WHERE seq = ?1 AND delete_after < ?2 \
                 AND finished_at IS NOT NULL",
            )?
            .query_row(params![seq, ms(now)], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((tenant, definition, version)) = found else { continue };
        let made: Vec<Key> = {
            let sql = "SELECT blob FROM mediation_flows WHERE run = ?1 AND source <> 'trigger'";
            let mut statement = tx.conn.prepare_cached(sql)?;
            statement.query_map([seq], |row| row.get(0))?.collect::<Result<_, _>>()?
        };
        for table in ["flows", "messages", "results", "jobs", "notes"] {
            tx.conn
                .prepare_cached(&format!("DELETE FROM mediation_{table} WHERE run = ?1"))?
                .execute([seq])?;
        }
        tx.conn.prepare_cached("DELETE FROM mediation_runs WHERE seq = ?1")?.execute([seq])?;
        removed.count += 1;
        // What the run made goes with it, unless a job of it may need it yet.
        removed.loose.extend(retention::remove_blobs(tx, &made, now)?.loose);
        forget_version(tx, &tenant, definition, version)?;
    }
    Ok(removed)
}

/// A version that no run has and that is not the newest goes; with the last one of a deleted definition so does that.
fn forget_version(tx: &Tx<'_>, tenant: &str, definition: Key, version: u32) -> Result<(), Error> {
    let used = tx
        .conn
        .prepare_cached(
            "SELECT 1 FROM mediation_runs INDEXED BY mediation_runs_by_definition \
             WHERE tenant = ?1 AND definition = ?2 AND version = ?3",
        )?
        .exists(params![tenant, definition, version])?;
    if used {
        return Ok(());
    }
    tx.conn
        .prepare_cached(
            "DELETE FROM mediation_versions WHERE tenant = ?1 AND guid = ?2 AND version = ?3 AND NOT EXISTS (SELECT 1 \
             FROM mediation_definitions d WHERE d.tenant = ?1 AND d.guid = ?2 AND d.version = ?3 \
             AND d.deleted_at IS NULL)",
        )?
        .execute(params![tenant, definition, version])?;
    tx.conn
        .prepare_cached(
            "DELETE FROM mediation_definitions WHERE tenant = ?1 AND guid = ?2 AND deleted_at IS NOT NULL \
             AND NOT EXISTS (SELECT 1 FROM mediation_runs r WHERE r.tenant = ?1 AND r.definition = ?2)",
        )?
        .execute(params![tenant, definition])?;
    Ok(())
}

/// Forgets changes from before `before`, a few; true if there may be more.
pub(crate) fn forget_changes(tx: &mut Tx<'_>, before: Timestamp) -> Result<bool, Error> {
    // Numbers grow with the time: the first that is young ends it.
    let sql = "DELETE FROM mediation_changes WHERE seq IN (SELECT seq FROM (SELECT seq, at FROM mediation_changes \
               ORDER BY seq LIMIT 500) WHERE at < ?1)";
    Ok(tx.conn.prepare_cached(sql)?.execute([ms(before)])? == 500)
}
