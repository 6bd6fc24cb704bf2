//! `admin backup`: a consistent copy of the database while the hub serves, and with it the signing key.
//!
//! `VACUUM INTO` reads one snapshot and writes a new, compact database; writers go on meanwhile. A table `backup` is
//! added to the copy: it holds the key that signs jobs, without which agents would refuse the restored hub. Older private
//! keys are destroyed when the next one is made; their public halves and the chain of statements are in the database.

use crate::{
    cli::Failure,
    clock,
    store::{DATABASE, keyring::key_file},
};
use rusqlite::{Connection, OpenFlags, params};
use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

/// How long a busy database is waited for.
const BUSY: Duration = Duration::from_secs(10);

/// What makes a database a backup.
const TABLE: &str = "CREATE TABLE backup (
  made_at INTEGER NOT NULL,            -- milliseconds since the Unix epoch
  hub_version TEXT NOT NULL,
  signing_key BLOB NOT NULL            -- PKCS#8
) STRICT";

/// Copies the database and the signing key in `data` to the new file `to`; returns its size.
pub fn backup(data: &Path, to: &Path) -> Result<u64, Failure> {
    let shown = to.display();
    let unwritable = |error: &dyn std::fmt::Display| {
        Failure::Configuration(format!(
            "backup: cannot write {shown}: {error}; name a new file in a folder that is there"
        ))
    };
    // Made first, so that the copy is never readable by others; SQLite takes an empty file as new.
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let file = file.map_err(|error| unwritable(&error))?;
    let name = to.to_str().ok_or_else(|| unwritable(&"its name is not UTF-8"));
    let copied = |name: &str| -> Result<(), Box<dyn std::error::Error>> {
        let database = Connection::open_with_flags(data.join(DATABASE), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        database.busy_timeout(BUSY)?;
        database.execute("VACUUM INTO ?1", [name])?;
        let copy = Connection::open_with_flags(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // The key that this snapshot signs with: a rotation may come in between.
        let seq = copy.query_row("SELECT max(seq) FROM signing_keys", [], |row| row.get(0))?;
        let key = data.join(key_file(seq));
        let signing_key = fs::read(&key).map_err(|error| {
            format!("{}: {error}: if the signing key was rotated just now, run it again", key.display())
        })?;
        copy.execute_batch(&format!("PRAGMA journal_mode = MEMORY; {TABLE}"))?;
        copy.execute(
            "INSERT INTO backup (made_at, hub_version, signing_key) VALUES (?1, ?2, ?3)",
            params![clock::now().as_millisecond(), env!("CARGO_PKG_VERSION"), signing_key],
        )?;
        copy.close().map_err(|(_, error)| error)?;
        Ok(())
    };
    if let Err(failure) = name.and_then(|name| copied(name).map_err(|error| unwritable(&error))) {
        // What there is of it is no backup.
        let _ = fs::remove_file(to);
        return Err(failure);
    }
    file.sync_all().map_err(|error| unwritable(&error))?;
    Ok(fs::metadata(to)?.len())
}
