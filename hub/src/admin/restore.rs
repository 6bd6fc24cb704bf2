//! `admin restore`: puts a backup in the place of the database and the signing key.
//!
//! The backup is checked and copied to `hub.sqlite.restoring` first; renaming that file is the last step. While it is
//! there no hub starts (a crash in between left the folder half old, half new), and the restore can be run again. What
//! was in the folder before is kept beside it.

use crate::{
    cli::Failure,
    clock,
    store::{DATABASE, OpenError, Store, identity, keyring::key_file, restored, schema},
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
    /// Of them, open ones of sites with several agents: they become `unknown` when the hub starts.
    pub(crate) doubtful_jobs: u64,
    /// Files of payloads and outputs that the database names and that are not there.
    pub(crate) missing_files: u64,
    /// Signing keys that are newer than the backup and were taken over from the folder.
    pub(crate) kept_keys: u64,
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
    let newer = newer_keys(data);
    let Prepared { key, seq, jobs, doubtful_jobs, missing_files, kept_keys } =
        prepare(&part, &data.join("blobs"), newer, made_at).map_err(|error| written(&error))?;
    let mut kept = Vec::new();
    let stamp = clock::now().as_millisecond();
    put_aside(data, stamp, &mut kept)?;
    if kept_keys == 0 {
        put_key(data, seq, &key, stamp, &mut kept)?;
    }
    fs::rename(&part, data.join(DATABASE))?;
    fs::File::open(data)?.sync_all()?;
    Ok(Restored { made_at, hub_version, jobs, kept, doubtful_jobs, missing_files, kept_keys })
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

/// The signing keys of the folder's own database, with the place of the last one, if its private key is there: agents that
/// heard of it trust no older one.
fn newer_keys(data: &Path) -> Option<(Vec<KeyRow>, i64)> {
    // Not read-only: the log of a hub that was killed has to be read too.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(data.join(DATABASE), flags).ok()?;
    let keys = key_rows(&conn).ok()?;
    let (seq, public_key) = keys.last().map(|(seq, public_key, ..)| (*seq, public_key.clone()))?;
    let private = SigningKey::from_pkcs8(&fs::read(data.join(key_file(seq))).ok()?).ok()?;
    (String::from(private.public().clone()) == public_key).then_some((keys, seq))
}

/// A row of `signing_keys`.
type KeyRow = (i64, String, Option<String>, i64);

fn key_rows(conn: &Connection) -> rusqlite::Result<Vec<KeyRow>> {
    if !conn.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'signing_keys'")?.exists([])? {
        return Ok(Vec::new());
    }
    let mut statement =
        conn.prepare("SELECT seq, public_key, statement, made_at FROM signing_keys ORDER BY seq")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    rows.collect()
}

/// What was found in the copy.
struct Prepared {
    key: Vec<u8>,
    seq: i64,
    jobs: u64,
    doubtful_jobs: u64,
    missing_files: u64,
    kept_keys: u64,
}

/// Adds to the copy the keys that follow its own.
fn take_over(conn: &Connection, newer: Option<(Vec<KeyRow>, i64)>) -> rusqlite::Result<u64> {
    let own = key_rows(conn)?;
    let (Some(last), Some((newer, seq))) = (own.last(), newer) else { return Ok(0) };
    // Only of the same chain: the folder may be another hub's.
    if seq <= last.0 || !newer.contains(last) {
        return Ok(0);
    }
    let mut taken = 0;
    for (seq, public_key, statement, made_at) in newer.into_iter().filter(|row| row.0 > last.0) {
        conn.execute(
            "INSERT INTO signing_keys (seq, public_key, statement, made_at) VALUES (?1, ?2, ?3, ?4)",
            rusqlite::params![seq, public_key, statement, made_at],
        )?;
        taken += 1;
    }
    Ok(taken)
}

/// Takes the key out of the copy, and counts what it holds and lacks.
fn prepare(
    part: &Path,
    blobs: &Path,
    newer: Option<(Vec<KeyRow>, i64)>,
    made_at: Timestamp,
) -> Result<Prepared, Box<dyn std::error::Error>> {
    let conn = Connection::open_with_flags(part, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let key: Vec<u8> = conn.query_row("SELECT signing_key FROM backup", [], |row| row.get(0))?;
    SigningKey::from_pkcs8(&key)?;
    // A backup of an older hub has no chain: its key is the first.
    let seq = key_rows(&conn)?.last().map_or(1, |row| row.0);
    let kept_keys = take_over(&conn, newer)?;
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
    let doubtful_jobs = restored::mark(&conn, made_at)?;
    conn.close().map_err(|(_, error)| error)?;
    let jobs = u64::try_from(jobs).unwrap_or_default();
    Ok(Prepared { key, seq, jobs, doubtful_jobs, missing_files: missing, kept_keys })
}

/// Puts the database aside with its log, which must not meet the new one.
fn put_aside(data: &Path, stamp: i64, kept: &mut Vec<String>) -> Result<(), Failure> {
    for suffix in ["-wal", "-shm", ""] {
        let name = format!("{DATABASE}{suffix}");
        move_aside(&data.join(&name), &data.join(format!("{DATABASE}.before-{stamp}{suffix}")), kept)?;
    }
    Ok(())
}

fn put_key(data: &Path, seq: i64, key: &[u8], stamp: i64, kept: &mut Vec<String>) -> Result<(), Failure> {
    // Those of another chain would be in the way of the keys to come.
    for other in fs::read_dir(data)?.flatten() {
        let name = other.file_name().to_string_lossy().into_owned();
        if name.starts_with("signing-key") && name.ends_with(".pk8") && name != key_file(seq) {
            move_aside(&other.path(), &data.join(format!("{name}.before-{stamp}")), kept)?;
        }
    }
    let path = data.join(key_file(seq));
    match fs::read(&path) {
        Ok(same) if same == key => return Ok(()),
        Ok(_) => move_aside(&path, &data.join(format!("{}.before-{stamp}", key_file(seq))), kept)?,
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
