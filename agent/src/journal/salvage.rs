//! What can still be read of a corrupt journal goes into its successor.
//!
//! A damaged page hides some rows only. Each of the others keeps an intent or a tombstone from being forgotten, and with
//! it an effect from happening twice. Rows are read from both ends up to the first damage; one that does not look like
//! ours is left out.

use rusqlite::{
    Connection, OpenFlags,
    config::DbConfig,
    params_from_iter,
    types::{Type, Value},
};
use std::path::Path;

const COLUMNS: &str = "job, attempt, state, resource, envelope, ticket, at_hub, payload, traceparent, expires, \
    accepted_at, started_at, finished_at, intent, granted, report, seq, acked_at";

/// From the oldest on, and from the newest on.
const ENDS: [&str; 2] = ["ASC", "DESC"];

/// Copies the readable rows of the journal at `corrupt`, which stays as it is; how many.
///
/// # Errors
/// If the new journal cannot be written, or nothing of the old one can be read.
pub(super) fn salvage(corrupt: &Path, into: &mut Connection) -> rusqlite::Result<usize> {
    let from = Connection::open_with_flags(corrupt, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    from.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    from.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    let places = vec!["?"; COLUMNS.split(',').count()].join(", ");
    let transaction = into.transaction()?;
    let mut saved = 0;
    for end in ENDS {
        let sql = format!("SELECT {COLUMNS} FROM attempts NOT INDEXED ORDER BY rowid {end}");
        let mut statement = from.prepare(&sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        // An error is the damage: no row beyond it can be trusted.
        while let Ok(Some(row)) = rows.next() {
            let row: rusqlite::Result<Vec<Value>> = (0..columns).map(|column| row.get(column)).collect();
            let Ok(row) = row else { break };
            if is_ours(&row) {
                let sql = format!("INSERT OR IGNORE INTO attempts ({COLUMNS}) VALUES ({places})");
                saved += transaction.prepare_cached(&sql)?.execute(params_from_iter(row))?;
            }
        }
    }
    save_chain(&from, &transaction)?;
    transaction.commit()?;
    Ok(saved)
}

/// The audit's rows up to the first damage. Those after it cannot follow them and stay in the file that was set aside.
fn save_chain(from: &Connection, into: &Connection) -> rusqlite::Result<()> {
    // A journal of an older format has none.
    let Ok(mut statement) = from.prepare("SELECT seq, hash, line FROM audit ORDER BY seq") else {
        return Ok(());
    };
    let mut rows = statement.query([])?;
    let mut before: Option<i64> = None;
    while let Ok(Some(row)) = rows.next() {
        let Ok((seq, hash, line)): rusqlite::Result<(i64, [u8; 32], String)> =
            (|| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))()
        else {
            break;
        };
        if before.is_some_and(|before| before + 1 != seq) || crate::audit::line::read(&line).is_err() {
            break;
        }
        before = Some(seq);
        into.prepare_cached("INSERT OR IGNORE INTO audit (seq, hash, line) VALUES (?1, ?2, ?3)")?
            .execute(rusqlite::params![seq, hash, line])?;
    }
    Ok(())
}

/// Whether a row has the form of one that was written here.
fn is_ours(row: &[Value]) -> bool {
    let id = matches!(row.first(), Some(Value::Blob(id)) if id.len() == 16);
    let attempt = matches!(row.get(1), Some(Value::Integer(1..)));
    let state = matches!(row.get(2), Some(Value::Integer(0..=4)));
    let texts = row.get(3..6).is_some_and(|texts| texts.iter().all(|text| text.data_type() == Type::Text));
    id && attempt && state && texts
}
