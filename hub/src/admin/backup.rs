//! `admin backup`: a consistent copy of the database while the hub serves.
//!
//! `VACUUM INTO` reads one snapshot and writes a new, compact database; writers go on meanwhile.

use crate::{cli::Failure, store::DATABASE};
use rusqlite::{Connection, OpenFlags};
use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

/// How long a busy database is waited for.
const BUSY: Duration = Duration::from_secs(10);

/// Copies the database in `data` to the new file `to`; returns its size.
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
    let copied = |name: &str| -> rusqlite::Result<()> {
        let database = Connection::open_with_flags(data.join(DATABASE), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        database.busy_timeout(BUSY)?;
        database.execute("VACUUM INTO ?1", [name])?;
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
