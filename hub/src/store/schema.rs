//! Opening connections, and bringing the database to the schema of this version.
//!
//! Migrations are steps from one `user_version` to the next, each in one transaction. A database that a newer hub wrote
//! is refused before anything in it is changed: its meaning is not known here. So is a damaged one, as far as a look of
//! bounded length tells: serving from it might offer a job twice.

use super::OpenError;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, config::DbConfig};
use std::{
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

/// One step per version, from 0. A step that some database has taken is never changed: what comes later is a step of its
/// own, at the end, whose tables and indices are made `IF NOT EXISTS`.
const MIGRATIONS: &[&str] = &[
    include_str!("schema_v1.sql"),
    include_str!("schema_v2.sql"),
    include_str!("schema_v3.sql"),
    include_str!("schema_mediations.sql"),
    include_str!("schema_notices.sql"),
    include_str!("schema_triggers.sql"),
    include_str!("schema_grants.sql"),
];

/// How long a connection waits for a writer of another process (an admin command).
const BUSY: Duration = Duration::from_secs(5);

/// How long the look for damage at the start may take: about a gigabyte of a database that is not in memory yet.
const CHECK: Duration = Duration::from_secs(10);

/// How many prepared statements a connection keeps: more than there are in the code.
const STATEMENTS: usize = 192;

/// Has statements keep their plan whatever is bound. Otherwise SQLite prepares one anew at each use when a bound value
/// might decide whether a partial index serves: a fifth of the hub's time under load. See SQLite's *query planner
/// stability guarantee*; our queries name their index where it matters.
fn keep_plans(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Opens the one connection that writes; creates and migrates the database.
pub(super) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    open(path, false)
}

/// The same, after a look for damage.
pub(super) fn open_to_serve(path: &Path) -> Result<Connection, OpenError> {
    open(path, true)
}

fn open(path: &Path, look: bool) -> Result<Connection, OpenError> {
    let told = |error: rusqlite::Error| OpenError::database(path, &error);
    let mut conn = Connection::open(path).map_err(told)?;
    conn.busy_timeout(BUSY).map_err(told)?;
    // A newer hub's file stays as it is, and a damaged one too: not even its log is written back into it.
    let no_checkpoint = |on| conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, on);
    no_checkpoint(true).map_err(told)?;
    let found = version(&conn, path)?;
    if look {
        check(&conn, path)?;
    }
    no_checkpoint(false).map_err(told)?;
    if found == 0 {
        // Before the first table: it cannot be changed later without rewriting the file.
        conn.execute_batch("PRAGMA auto_vacuum = INCREMENTAL;").map_err(told)?;
    }
    conn.execute_batch("PRAGMA journal_mode = WAL;").map_err(told)?;
    conn.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;
         PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -8192;",
    )
    .map_err(told)?;
    keep_plans(&conn).map_err(told)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    migrate(&mut conn, path)?;
    Ok(conn)
}

/// Opens a connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY)?;
    conn.execute_batch("PRAGMA query_only = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -2048;")?;
    keep_plans(&conn)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(conn)
}

/// Looks for damage before the hub serves; for [`CHECK`] at most.
fn check(conn: &Connection, path: &Path) -> Result<(), OpenError> {
    check_within(conn, path, CHECK)
}

fn check_within(conn: &Connection, path: &Path, limit: Duration) -> Result<(), OpenError> {
    let started = Instant::now();
    let interrupt = conn.get_interrupt_handle();
    let (done, ended) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            interrupt.interrupt();
        }
    });
    let found = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    drop(done);
    // It only waits; an interrupt that comes late must not hit the next statement.
    let _ = watch.join();
    match found {
        Ok(verdict) if verdict == "ok" => {
            tracing::debug!(elapsed_ms = started.elapsed().as_millis() as u64, "The database is sound");
            Ok(())
        }
        Ok(damage) => Err(OpenError::damaged(path, &damage)),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            tracing::warn!(
                limit_s = limit.as_secs(),
                "The database is large: it was not looked through for damage to its end"
            );
            Ok(())
        }
        Err(error) => Err(OpenError::database(path, &error)),
    }
}

/// The schema's version, if it is known here.
pub(crate) fn version(conn: &Connection, path: &Path) -> Result<usize, OpenError> {
    let known = MIGRATIONS.len();
    let found = conn
        .pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0))
        .map_err(|error| OpenError::database(path, &error))? as usize;
    if found > known {
        return Err(OpenError(format!(
            "{}: its schema has version {found}, this hub knows up to {known}: start the newer hub that wrote it, or \
             restore a backup made by this version",
            path.display()
        )));
    }
    Ok(found)
}

fn migrate(conn: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let told = |error: rusqlite::Error| OpenError::database(path, &error);
    if version(conn, path)? == MIGRATIONS.len() {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(told)?;
    // Another process may have been first.
    let from = version(&tx, path)?;
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(from) {
        tx.execute_batch(sql).map_err(told)?;
        let version = u32::try_from(step + 1).unwrap_or(u32::MAX);
        tx.pragma_update(None, "user_version", version).map_err(told)?;
    }
    tx.commit().map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_a_newer_hub_is_refused_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.sqlite");
        let conn = open_writer(&path).unwrap();
        conn.pragma_update(None, "user_version", 99).unwrap();
        drop(conn);
        let before = std::fs::read(&path).unwrap();
        let error = open_writer(&path).unwrap_err().to_string();
        let known = MIGRATIONS.len();
        assert!(error.contains(&format!("schema has version 99, this hub knows up to {known}")), "{error}");
        assert!(error.contains("hub.sqlite") && error.contains("restore a backup"), "{error}");
        assert!(std::fs::read(&path).unwrap() == before, "the newer hub's file was changed");
    }

    /// As the second version was written, and as it was for a while with a table of the third.
    #[test]
    fn a_database_of_version_2_gets_what_came_later_whether_it_has_it_or_not() {
        for has_it in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("hub.sqlite");
            let conn = Connection::open(&path).unwrap();
            let given = if has_it { 3 } else { 2 };
            MIGRATIONS.iter().take(given).for_each(|sql| conn.execute_batch(sql).unwrap());
            conn.pragma_update(None, "user_version", 2).unwrap();
            drop(conn);
            let conn = open_writer(&path).unwrap();
            let cursors: i64 =
                conn.query_row("SELECT count(*) FROM trigger_cursors", [], |row| row.get(0)).unwrap();
            assert_eq!((cursors, version(&conn, &path).unwrap()), (0, MIGRATIONS.len()));
        }
    }

    #[test]
    fn a_look_that_takes_too_long_is_cut_and_the_connection_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.sqlite");
        let conn = open_writer(&path).unwrap();
        conn.execute_batch(
            "CREATE TABLE large (x TEXT); INSERT INTO large WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 \
             FROM n WHERE i < 100000) SELECT printf('%0100d', i) FROM n;",
        )
        .unwrap();
        check_within(&conn, &path, Duration::ZERO).unwrap();
        let rows: i64 = conn.query_row("SELECT count(*) FROM large", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 100_000);
        check(&conn, &path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.sqlite");
        std::fs::write(&path, "not a database, but longer than one hundred bytes".repeat(10)).unwrap();
        let error = open_writer(&path).unwrap_err().to_string();
        assert!(error.contains("not a database") && error.contains("admin restore"), "{error}");
    }

    #[test]
    fn the_writer_syncs_every_commit_and_space_can_be_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let conn = open_writer(&dir.path().join("hub.sqlite")).unwrap();
        let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(pragma("synchronous"), 2);
        assert_eq!(pragma("auto_vacuum"), 2);
        assert_eq!(pragma("foreign_keys"), 1);
    }

    #[test]
    fn a_statement_is_prepared_once_whatever_is_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.sqlite");
        let writer = open_writer(&path).unwrap();
        for conn in [&writer, &open_reader(&path).unwrap()] {
            let mut statement = conn
                .prepare("SELECT number FROM attempts WHERE job = ?1 AND withdrawn = 0 ORDER BY number")
                .unwrap();
            for job in 0..5 {
                assert!(!statement.exists([job]).unwrap());
            }
            assert_eq!(statement.get_status(rusqlite::StatementStatus::RePrepare), 0);
        }
    }

    #[test]
    fn no_list_or_queue_query_scans_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let conn = open_writer(&dir.path().join("hub.sqlite")).unwrap();
        for sql in super::super::tests::hot_queries() {
            let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let nulls = vec![rusqlite::types::Null; statement.parameter_count()];
            let plan: Vec<String> = statement
                .query_map(rusqlite::params_from_iter(nulls), |row| row.get(3))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            // The first entry of an index that holds unfinished jobs alone is no scan.
            let scans = |step: &&String| {
                let first = ["jobs_deadline", "jobs_waiting", "trigger_times_due"]
                    .iter()
                    .any(|index| step.contains(index));
                step.contains("TEMP B-TREE") || step.contains("SCAN") && !(first && sql.ends_with("LIMIT 1"))
            };
            assert_eq!(plan.iter().find(scans), None, "{sql}");
        }
    }
}
