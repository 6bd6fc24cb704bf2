//! What a hub is: its data folder, its job-signing key, its id. Made once, at the first start.

use super::OpenError;
use passerelle_protocol::SigningKey;
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

pub(crate) const KEY_FILE: &str = "signing-key.pk8";

/// Makes the data folder and the folders in it.
pub(crate) fn make_folders(data: &Path) -> Result<(), OpenError> {
    for dir in [data.to_owned(), data.join("blobs"), data.join("uploads")] {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| {
            OpenError(format!(
                "{}: cannot make the folder: {e}: give the hub's user the right to write there, or name another folder \
                 with --data",
                dir.display()
            ))
        })?;
    }
    Ok(())
}

/// Holds a lock file's lock until it is dropped (or the process dies).
pub(super) fn lock(path: &Path, wait: bool) -> Result<Option<File>, OpenError> {
    let told = |e: io::Error| OpenError(format!("{}: cannot lock it: {e}", path.display()));
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(told)?;
    if wait {
        file.lock().map_err(told)?;
        return Ok(Some(file));
    }
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(e)) => Err(told(e)),
    }
}

/// Makes the database's file before SQLite does, for the hub's user alone: SQLite gives its other files the same mode.
pub(crate) fn make_private(path: &Path) -> Result<(), OpenError> {
    let made = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    made.map(drop).map_err(|e| OpenError(format!("{}: cannot open it: {e}", path.display())))
}

/// Reads the job-signing key; makes it if there is none. The caller holds the lock for that.
pub(super) fn signing_key(data: &Path) -> Result<SigningKey, OpenError> {
    let path = data.join(KEY_FILE);
    let told = |e: &dyn std::fmt::Display| OpenError(format!("{}: {e}", path.display()));
    match std::fs::read(&path) {
        Ok(document) => SigningKey::from_pkcs8(&document).map_err(|e| {
            told(&format_args!(
                "{e}: restore the file from a backup; agents take no jobs signed with another key"
            ))
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let (key, document) = SigningKey::generate().map_err(|e| told(&e))?;
            write_new(&path, &document).map_err(|e| told(&e))?;
            Ok(key)
        }
        Err(e) => Err(told(&e)),
    }
}

/// Writes a file that is either there whole or not at all.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    match std::fs::remove_file(&part) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&part)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_key_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        make_folders(dir.path()).unwrap();
        let first = signing_key(dir.path()).unwrap();
        let again = signing_key(dir.path()).unwrap();
        assert_eq!(first.public(), again.public());
        let mode = std::fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(KEY_FILE), b"cut").unwrap();
        let error = signing_key(dir.path()).unwrap_err().to_string();
        assert!(error.contains("signing-key.pk8") && error.contains("backup"), "{error}");
        assert_eq!(std::fs::read(dir.path().join(KEY_FILE)).unwrap(), b"cut");
    }
}
