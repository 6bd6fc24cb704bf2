//! `admin restore`: puts a backup in the place of the database and the signing key.
//!
//! The backup is checked and copied to `hub.sqlite.restoring` first; renaming that file is the last step. While it is
//! there no hub starts (a crash in between left the folder half old, half new), and the restore can be run again. What
//! was in the folder before is kept beside it.

use crate::{
    cli::Failure,
    clock,
    store::{
        DATABASE, OpenError, Store,
        identity::{self, KEY_FILE},
        schema,
    },
};
use jiff::Timestamp;
use passerelle_protocol::{Sha256, SigningKey};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use serde::Serialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The copy, until it takes the database's place.
const RESTORING: &str = "hub.sqlite.restoring";

/// What a restore did.
#[derive(Debug, Serialize)]
pub(crate) struct Restored {
    /// When the backup was made.
    pub(crate) made_at: Timestamp,
    /// The version of the hub that made it.
    hub_version: String,
    /// How many jobs it holds.
    pub(crate) jobs: u64,
    /// What was there before, under its new names.
    pub(crate) kept: Vec<String>,
    /// Files of payloads and outputs that the database names and that are not there.
    pub(crate) missing_files: u64,
}

/// Refuses a folder in which a restore was cut short.
///
/// # Errors
/// Which, and what to do.
pub(crate) fn refuse_unfinished(data: &Path) -> Result<(), OpenError> {
    let part = data.join(RESTORING);
    if part.exists() {
        return Err(OpenError(format!(
            "{}: a restore into this folder was cut short: run `passerelle-hub admin restore FILE` again",
            part.display()
        )));
    }
    Ok(())
}

/// Restores the backup `from` into the folder `data`.
pub(crate) fn restore(data: &Path, from: &Path) -> Result<Restored, Failure> {
    let said = |error: OpenError| Failure::Configuration(format!("restore: {error}"));
    identity::make_folders(data).map_err(said)?;
    let _alone = Store::lock_to_serve(data).map_err(said)?;
    let (made_at, hub_version) = check(from)?;
    let part = data.join(RESTORING);
    let written = |error: &dyn std::fmt::Display| {
        Failure::Configuration(format!("restore: cannot write {}: {error}", part.display()))
    };
    remove(&part).map_err(|error| written(&error))?;
    identity::make_private(&part).map_err(said)?;
    fs::copy(from, &part).and_then(|_| fs::File::open(&part)?.sync_all()).map_err(|error| written(&error))?;
    let (key, jobs, missing_files) = prepare(&part, &data.join("blobs")).map_err(|error| written(&error))?;
    let mut kept = Vec::new();
    let stamp = clock::now().as_millisecond();
    put_aside(data, stamp, &mut kept)?;
    put_key(data, &key, stamp, &mut kept)?;
    fs::rename(&part, data.join(DATABASE))?;
    fs::File::open(data)?.sync_all()?;
    Ok(Restored { made_at, hub_version, jobs, kept, missing_files })
}

/// Looks through the whole of a backup.
fn check(from: &Path) -> Result<(Timestamp, String), Failure> {
    let shown = from.display();
    let refused = |why: &str| Failure::Configuration(format!("restore: {shown}: {why}"));
    let unreadable =
        |error: rusqlite::Error| refused(&format!("{error}: this is no backup that can be used"));
    let conn = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(unreadable)?;
    let is_backup = conn
        .query_row("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'backup'", [], |_| Ok(()))
        .optional()
        .map_err(unreadable)?;
    if is_backup.is_none() {
        return Err(refused("not written by `passerelle-hub admin backup`"));
    }
    schema::version(&conn, from).map_err(|error| Failure::Configuration(format!("restore: {error}")))?;
    let verdict: String =
        conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(unreadable)?;
    if verdict != "ok" {
        return Err(refused(&format!("the backup is damaged ({verdict}): use an older one")));
    }
    let (at, version): (i64, String) = conn
        .query_row("SELECT made_at, hub_version FROM backup", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(unreadable)?;
    Ok((Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH), version))
}

/// Takes the key out of the copy, and counts what it holds and lacks.
fn prepare(part: &Path, blobs: &Path) -> Result<(Vec<u8>, u64, u64), Box<dyn std::error::Error>> {
    let conn = Connection::open_with_flags(part, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let key: Vec<u8> = conn.query_row("SELECT signing_key FROM backup", [], |row| row.get(0))?;
    SigningKey::from_pkcs8(&key)?;
    let jobs: i64 = conn.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))?;
    let mut missing = 0;
    {
        let has_files = conn.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'files'")?.exists([])?;
        let sql =
            if has_files { "SELECT DISTINCT sha256 FROM files" } else { "SELECT sha256 FROM blobs WHERE 0" };
        let mut statement = conn.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name = Sha256::from(row.get::<_, [u8; 32]>(0)?).to_string();
            let folder = name.get(..2).unwrap_or_default();
            missing += u64::from(!blobs.join(folder).join(&name).exists());
        }
    }
    conn.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON; DROP TABLE backup;")?;
    conn.close().map_err(|(_, error)| error)?;
    Ok((key, u64::try_from(jobs).unwrap_or_default(), missing))
}

/// Puts the database aside with its log, which must not meet the new one.
fn put_aside(data: &Path, stamp: i64, kept: &mut Vec<String>) -> Result<(), Failure> {
    for suffix in ["-wal", "-shm", ""] {
        let name = format!("{DATABASE}{suffix}");
        move_aside(&data.join(&name), &data.join(format!("{DATABASE}.before-{stamp}{suffix}")), kept)?;
    }
    Ok(())
}

fn put_key(data: &Path, key: &[u8], stamp: i64, kept: &mut Vec<String>) -> Result<(), Failure> {
    let path = data.join(KEY_FILE);
    match fs::read(&path) {
        Ok(same) if same == key => return Ok(()),
        Ok(_) => move_aside(&path, &data.join(format!("{KEY_FILE}.before-{stamp}")), kept)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(identity::write_new(&path, key)?)
}

fn move_aside(from: &Path, to: &PathBuf, kept: &mut Vec<String>) -> Result<(), Failure> {
    match fs::rename(from, to) {
        Ok(()) => kept.push(to.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Failure::Configuration(format!(
                "restore: cannot rename {}: {error}",
                from.display()
            )));
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
