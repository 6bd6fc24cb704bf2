//! The hub's signing keys: the one that signs, and the chain of statements by which each vouches for the next.
//!
//! The database holds public keys and statements, `signing-key.pk8` (the first) or `signing-key-N.pk8` the private key. A
//! rotation writes the new file, then the row, which is what counts; then the old private key is destroyed, since nothing
//! is signed with it any more. Agents verify what it had signed with its public half until that is out of date by itself.
//! A file without its row is what a crash left; the next rotation writes over it.

use super::{
    Error, OpenError, Store,
    identity::{self, KEY_FILE},
    row::{ms, time},
    writer::Tx,
};
use crate::model::SigningKeyRecord;
use jiff::Timestamp;
use passerelle_protocol::{HubKey, KeyId, SigningKey, VerifyingKey};
use rusqlite::{Connection, params};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

/// How often a key is looked for that another process may be replacing just now.
const TRIES: usize = 3;

/// A key of the chain.
#[derive(Debug, Clone)]
struct Link {
    id: KeyId,
    statement: Option<String>,
}

/// The keys as they stand.
#[derive(Debug)]
pub(crate) struct HubKeys {
    /// The one that signs.
    pub(crate) current: Arc<SigningKey>,
    chain: Vec<Link>,
}

impl HubKeys {
    /// The statements that lead from what an agent trusts to the key that signs; `None` if none of its keys is known. An
    /// agent that does not tell gets the whole chain: it passes over what it knows.
    pub(crate) fn after(&self, known: &[KeyId]) -> Option<Vec<String>> {
        let from = match known {
            [] => 0,
            known => self.chain.iter().rposition(|link| known.contains(&link.id))? + 1,
        };
        Some(self.chain.iter().skip(from).filter_map(|link| link.statement.clone()).collect())
    }
}

/// The keys, shared; replaced whole when another process or this one changes them.
#[derive(Debug)]
pub(crate) struct Keyring {
    data: PathBuf,
    keys: RwLock<Arc<HubKeys>>,
}

impl Keyring {
    /// Reads the keys; makes the first if there is none. The caller holds the lock for that.
    pub(super) fn open(data: &Path, conn: &Connection) -> Result<Self, OpenError> {
        let told = |error: &Error| OpenError(format!("{}: signing keys: {error}", data.display()));
        let rows: i64 = conn
            .query_row("SELECT count(*) FROM signing_keys", [], |row| row.get(0))
            .map_err(|error| told(&error.into()))?;
        if rows == 0 {
            let first = identity::signing_key(data)?;
            conn.execute(
                "INSERT INTO signing_keys (seq, public_key, made_at) VALUES (1, ?1, ?2)",
                params![String::from(first.public().clone()), ms(crate::clock::now())],
            )
            .map_err(|error| told(&error.into()))?;
        }
        let keys = read(data, conn).map_err(|error| told(&error))?;
        Ok(Self { data: data.to_owned(), keys: RwLock::new(Arc::new(keys)) })
    }

    /// The keys as they stand.
    pub(crate) fn keys(&self) -> Arc<HubKeys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes up what was committed; whether the signing key is another one now.
    pub(super) fn reload(&self, conn: &Connection) -> Result<bool, Error> {
        let newest: String =
            conn.prepare_cached(NEWEST)?.query_row([], |row| row.get(0)).map_err(Error::from)?;
        if newest == String::from(self.keys().current.public().clone()) {
            return Ok(false);
        }
        let keys = Arc::new(read(&self.data, conn)?);
        tracing::info!(key = %keys.current.public().id(), "The hub signs with another key from now on");
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(true)
    }
}

const NEWEST: &str = "SELECT public_key FROM signing_keys ORDER BY seq DESC LIMIT 1";

/// The file of a private key.
pub(crate) fn key_file(seq: i64) -> String {
    if seq <= 1 { KEY_FILE.to_owned() } else { format!("signing-key-{seq}.pk8") }
}

/// The rows of the chain, oldest first.
pub(crate) fn records(conn: &Connection) -> Result<Vec<SigningKeyRecord>, Error> {
    let mut statement =
        conn.prepare_cached("SELECT seq, public_key, statement, made_at FROM signing_keys ORDER BY seq")?;
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get(2)?, time(row, 3)?))
    })?;
    let mut records: Vec<SigningKeyRecord> = Vec::new();
    for row in rows {
        let (seq, public_key, statement, made_at) = row?;
        let public_key = VerifyingKey::try_from(public_key)
            .map_err(|_| Error::Internal(format!("the signing key {seq} is unreadable")))?;
        let id = public_key.id().clone();
        records.push(SigningKeyRecord { seq, id, public_key, made_at, signs: false, statement });
    }
    if let Some(last) = records.last_mut() {
        last.signs = true;
    }
    Ok(records)
}

fn read(data: &Path, conn: &Connection) -> Result<HubKeys, Error> {
    let mut missing = String::new();
    for _ in 0..TRIES {
        let records = records(conn)?;
        let Some(newest) = records.last() else {
            return Err(Error::Internal("the database has no signing key".to_owned()));
        };
        let path = data.join(key_file(newest.seq));
        let wrong = |why: &dyn std::fmt::Display| {
            Error::Internal(format!(
                "{}: {why}: restore a backup with `passerelle-hub admin restore FILE`; agents take no jobs signed with \
                 another key",
                path.display()
            ))
        };
        match fs::read(&path) {
            Ok(document) => {
                let current = SigningKey::from_pkcs8(&document).map_err(|error| wrong(&error))?;
                if *current.public() != newest.public_key {
                    return Err(wrong(&"the key is not the one that the database names"));
                }
                let chain =
                    records.into_iter().map(|record| Link { id: record.id, statement: record.statement });
                return Ok(HubKeys { current: Arc::new(current), chain: chain.collect() });
            }
            // Replaced since the rows were read, perhaps: then they say something else now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing = wrong(&error).to_string(),
            Err(error) => return Err(wrong(&error)),
        }
    }
    Err(Error::Internal(missing))
}

/// Destroys the private keys that sign no more.
pub(super) fn destroy_old(data: &Path, conn: &Connection) -> Result<(), Error> {
    for record in records(conn)?.iter().filter(|record| !record.signs) {
        match fs::remove_file(data.join(key_file(record.seq))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

impl Store {
    /// The key that signs.
    #[must_use]
    pub fn signing_key(&self) -> Arc<SigningKey> {
        Arc::clone(&self.shared().keyring.keys().current)
    }

    /// All of the hub's signing keys, oldest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKeyRecord>, Error> {
        self.read(records).await
    }

    /// Makes a new signing key, vouched for by the one before, and destroys that one. Agents that are connected hear of it
    /// at once, the others when they come back.
    ///
    /// # Errors
    /// If the new key or its row cannot be stored; then the old one goes on.
    pub async fn rotate_signing_key(&self) -> Result<SigningKeyRecord, Error> {
        let (data, aud) = (self.data_dir().to_owned(), self.audience().to_owned());
        let made = self.write(move |tx| rotate(tx, &data, aud)).await?;
        let data = self.data_dir().to_owned();
        // The old key stays a file until here, so that no crash leaves the hub without one.
        if let Err(error) = self.read(move |conn| destroy_old(&data, conn)).await {
            tracing::warn!(%error, "The old signing key could not be destroyed; the next start tries again");
        }
        Ok(made)
    }
}

fn rotate(tx: &mut Tx<'_>, data: &Path, aud: String) -> Result<SigningKeyRecord, Error> {
    // Not from memory: another process may have been first.
    let (old, records) = (read(data, tx.conn)?, records(tx.conn)?);
    let seq = records.last().map_or(1, |newest| newest.seq + 1);
    let unusable = |error: passerelle_protocol::JwsError| Error::Internal(format!("a new key: {error}"));
    let (key, document) = SigningKey::generate().map_err(unusable)?;
    identity::write_new(&data.join(key_file(seq)), &document)?;
    let public_key = key.public().clone();
    let said = HubKey { aud, public_key: public_key.clone(), iat: whole_second(tx.now) };
    let statement = said.sign(&old.current).map_err(unusable)?;
    tx.conn.execute(
        "INSERT INTO signing_keys (seq, public_key, statement, made_at) VALUES (?1, ?2, ?3, ?4)",
        params![seq, String::from(public_key.clone()), statement, ms(tx.now)],
    )?;
    tx.effects.keys = true;
    let id = public_key.id().clone();
    Ok(SigningKeyRecord { seq, id, public_key, made_at: tx.now, signs: true, statement: Some(statement) })
}

/// Rounded up: what the old key signed within the second is older.
fn whole_second(now: Timestamp) -> i64 {
    now.as_second().saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Hub;

    fn files(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut keys: Vec<String> = names.filter(|name| name.starts_with("signing-key")).collect();
        keys.sort();
        keys
    }

    #[tokio::test]
    async fn each_key_vouches_for_the_next_and_the_old_private_key_is_destroyed() {
        let hub = Hub::new().await;
        let first = hub.store.signing_key().public().clone();
        let second = hub.store.rotate_signing_key().await.unwrap();
        let third = hub.store.rotate_signing_key().await.unwrap();
        assert_eq!((second.seq, third.seq), (2, 3));
        assert_eq!(*hub.store.signing_key().public(), third.public_key);
        assert_eq!(files(hub.dir.path()), ["signing-key-3.pk8"]);

        let keys = hub.store.shared().keyring.keys();
        let chain = keys.after(&[first.id().clone()]).unwrap();
        let (said, by) = HubKey::verify(std::slice::from_ref(&first), &chain[0]).unwrap();
        assert_eq!(
            (&said.public_key, &by, said.aud.as_str()),
            (&second.public_key, &first, hub.store.audience())
        );
        let (said, _) = HubKey::verify(&[second.public_key], &chain[1]).unwrap();
        assert_eq!(said.public_key, third.public_key);
        assert_eq!(keys.after(&[]).unwrap(), chain);
        assert_eq!(keys.after(&[first.id().clone(), second.id]).unwrap(), chain[1..]);
        assert_eq!(keys.after(&[third.id]).unwrap(), Vec::<String>::new());
        assert_eq!(keys.after(&[SigningKey::generate().unwrap().0.public().id().clone()]), None);

        let hub = hub.restart().await;
        assert_eq!(*hub.store.signing_key().public(), third.public_key);
        let listed = hub.store.signing_keys().await.unwrap();
        let signing: Vec<(i64, bool)> = listed.iter().map(|key| (key.seq, key.signs)).collect();
        assert_eq!(signing, [(1, false), (2, false), (3, true)]);
    }

    #[tokio::test]
    async fn what_a_crash_within_a_rotation_leaves_changes_nothing() {
        let hub = Hub::new().await;
        let first = hub.store.signing_key().public().clone();
        // The file is there, the row is not.
        let (_, document) = SigningKey::generate().unwrap();
        fs::write(hub.dir.path().join("signing-key-2.pk8"), document).unwrap();
        let hub = hub.restart().await;
        assert_eq!(*hub.store.signing_key().public(), first);
        let second = hub.store.rotate_signing_key().await.unwrap();
        // The row is there, and so is the old file still.
        fs::write(hub.dir.path().join(KEY_FILE), b"old").unwrap();
        let hub = hub.restart().await;
        assert_eq!(*hub.store.signing_key().public(), second.public_key);
        assert_eq!(files(hub.dir.path()), ["signing-key-2.pk8"]);
    }

    #[tokio::test]
    async fn a_key_that_the_database_does_not_name_is_refused_and_says_what_to_do() {
        let hub = Hub::new().await;
        let Hub { store, dir } = hub;
        store.close().await;
        drop(store);
        let (_, document) = SigningKey::generate().unwrap();
        fs::write(dir.path().join(KEY_FILE), document).unwrap();
        let error = Store::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("signing-key.pk8") && error.contains("admin restore"), "{error}");
        fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
        let error = Store::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("signing-key.pk8") && error.contains("admin restore"), "{error}");
    }
}
