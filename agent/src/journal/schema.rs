//! Opens the journal's file: format, settings, and what is done with a file that is broken or from another time.

use super::{JournalError, events, salvage::salvage, told};
use crate::audit::chain;
use rusqlite::{Connection, ErrorCode, config::DbConfig};
use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// The format of this agent, in `PRAGMA user_version`.
pub const FORMAT: i64 = STEPS.len() as i64;

/// How many prepared statements are kept: more than there are in the code.
const STATEMENTS: usize = 64;

/// After how many pages the WAL is copied into the file and begins anew.
const WAL_PAGES: u32 = 1000;

/// How many bytes the WAL grows to, with the heads of its pages, beside what one transaction adds.
pub const WAL: u64 = WAL_PAGES as u64 * (4096 + 24);

/// `PRAGMA application_id`: "PaJ1".
const APPLICATION: i64 = 0x5061_4a31;

/// What leads from each format to the next one. A step that was ever released is never changed.
const STEPS: [&str; 6] = [TABLES, LEFTOVERS, chain::TABLE, events::TABLES, told::TABLES, SIGNER];

const TABLES: &str = "
CREATE TABLE attempts (
  job         BLOB NOT NULL,     -- 16 bytes
  attempt     INTEGER NOT NULL,
  state       INTEGER NOT NULL,  -- 0 accepted, 1 running, 2 finished (output to be uploaded), 3 reportable, 4 acked
  resource    TEXT NOT NULL,
  envelope    TEXT NOT NULL,     -- verified claims as JSON; empty once acked
  ticket      TEXT NOT NULL,     -- verified claims as JSON; empty once finished
  at_hub      INTEGER NOT NULL,  -- 1: the payload is downloaded from the hub
  payload     BLOB,              -- inline payload, until finished
  traceparent TEXT,
  expires     INTEGER NOT NULL,  -- Unix seconds: envelope and ticket cannot be replayed after it
  accepted_at INTEGER NOT NULL,  -- Unix milliseconds, as the next two
  started_at  INTEGER,
  finished_at INTEGER,
  intent      TEXT,              -- the connector's intent as JSON
  granted     INTEGER NOT NULL DEFAULT 0,
  report      TEXT,              -- the report as JSON
  seq         INTEGER,           -- order of reporting
  acked_at    INTEGER,           -- Unix seconds
  UNIQUE (job, attempt)
);
CREATE INDEX open_attempts ON attempts (state) WHERE state < 4;
CREATE INDEX reportable ON attempts (seq) WHERE state = 3;
CREATE INDEX tombstones ON attempts (acked_at) WHERE state = 4;
";

const LEFTOVERS: &str = "
ALTER TABLE attempts ADD COLUMN part TEXT;                           -- what it may leave at its target; NULL once gone
ALTER TABLE attempts ADD COLUMN sweep_at INTEGER NOT NULL DEFAULT 0; -- Unix seconds: when to look for it
CREATE INDEX leftovers ON attempts (sweep_at) WHERE part IS NOT NULL AND state >= 2;
";

const SIGNER: &str = "
ALTER TABLE attempts ADD COLUMN signer TEXT;  -- the name of the key that signed the envelope; NULL: accepted before this column
";

/// Opens or makes the journal; also says where a corrupt one was put.
pub fn open(path: &Path) -> Result<(Connection, Option<PathBuf>), JournalError> {
    match try_open(path) {
        Ok(connection) => Ok((connection, None)),
        Err(TryOpen::Unusable(error)) => Err(error),
        Err(TryOpen::Corrupt(why)) => {
            let aside = set_aside(path).map_err(|e| {
                JournalError::Storage(format!(
                    "{} is corrupt ({why}) and cannot be set aside: {e}",
                    path.display()
                ))
            })?;
            match try_open(path) {
                Ok(mut connection) => {
                    let saved = salvage(&aside, &mut connection).unwrap_or_else(|error| {
                        tracing::warn!(%error, "Nothing of the corrupt journal can be read");
                        0
                    });
                    tracing::error!(
                        journal = %path.display(), set_aside = %aside.display(), why, saved,
                        "The journal is corrupt and was set aside; the attempts that could be read go on, the others are \
                         offered again or must be resolved at the hub"
                    );
                    Ok((connection, Some(aside)))
                }
                Err(TryOpen::Unusable(error)) => Err(error),
                Err(TryOpen::Corrupt(why)) => Err(JournalError::Storage(why)),
            }
        }
    }
}

enum TryOpen {
    Corrupt(String),
    Unusable(JournalError),
}

impl From<rusqlite::Error> for TryOpen {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(error.to_string()),
            _ => Self::Unusable(error.into()),
        }
    }
}

fn try_open(path: &Path) -> Result<Connection, TryOpen> {
    // SQLite gives its WAL file the mode of the database, so the mode is set before the first byte.
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| TryOpen::Unusable(JournalError::Storage(format!("{}: {e}", path.display()))))?;
    let mut connection = Connection::open(path)?;
    // Exclusive before WAL: then SQLite needs no shared memory, which network folders do not offer.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    // Looked at before anything is changed: a newer agent's file stays as it is.
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > FORMAT {
        let newer = JournalError::Newer { path: path.to_owned(), found, ours: FORMAT };
        return Err(TryOpen::Unusable(newer));
    }
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Statements keep their plan whatever is bound: else SQLite prepares one anew at each use when a bound value might
    // decide whether a partial index serves (its *query planner stability guarantee*).
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // A page cache of 1 MiB is plenty for rows that are read once.
    connection.pragma_update(None, "cache_size", -1024)?;
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        return Err(TryOpen::Corrupt(check));
    }
    if found < FORMAT {
        let transaction = connection.transaction()?;
        for step in STEPS.iter().skip(usize::try_from(found).unwrap_or(0)) {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        transaction.commit()?;
    }
    Ok(connection)
}

/// Makes a file as the first format had it.
#[cfg(test)]
pub(super) fn make_format_1(connection: &Connection) {
    connection.execute_batch(TABLES).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
}

/// Makes a file as the second format had it.
#[cfg(test)]
pub(super) fn make_format_2(connection: &Connection) {
    make_format_1(connection);
    connection.execute_batch(LEFTOVERS).unwrap();
    connection.pragma_update(None, "user_version", 2).unwrap();
}

/// Renames the journal and its WAL out of the way.
fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    let stamp = crate::clock::now().as_millisecond();
    let aside = path.with_file_name(format!("journal.corrupt-{stamp}"));
    let suffixed = |base: &Path, suffix: &str| {
        let mut name = OsString::from(base);
        name.push(suffix);
        PathBuf::from(name)
    };
    for suffix in ["-wal", "-shm"] {
        let from = suffixed(path, suffix);
        if from.exists() {
            fs::rename(from, suffixed(&aside, suffix))?;
        }
    }
    fs::rename(path, &aside)?;
    Ok(aside)
}
