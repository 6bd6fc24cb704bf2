//! Databases that are cut, damaged, full, older, newer, or put back from a backup.

use super::*;
use crate::{
    admin::{backup, restore},
    clock,
    model::{JobState, NewJob, PayloadRef},
    testing::{Hub, job, name},
};
use passerelle_protocol::{BlobId, JobId, Sha256};
use std::fs;

/// Ends the hub; its folder stays, with all of the database in its one file.
async fn end(hub: Hub) -> tempfile::TempDir {
    hub.store.close().await;
    let Hub { store, dir } = hub;
    drop(store);
    let conn = Connection::open(dir.path().join(DATABASE)).unwrap();
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    dir
}

async fn state(store: &Store, id: JobId) -> JobState {
    store.job(name("acme"), id).await.unwrap().state
}

fn refused(dir: &Path) -> String {
    match Store::open_to_serve(dir) {
        Ok(_) => panic!("the store was opened"),
        Err(error) => error.to_string(),
    }
}

/// Overwrites pages in the middle of the database.
fn damage(dir: &Path) -> Vec<u8> {
    let path = dir.join(DATABASE);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[4096..middle].fill(0xa5);
    fs::write(&path, &bytes).unwrap();
    bytes
}

fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

#[tokio::test]
async fn a_truncated_wal_opens_with_all_that_was_before_the_cut() {
    let hub = Hub::new().await;
    let first = hub.store.submit(job()).await.unwrap().job.id;
    let before = fs::metadata(hub.dir.path().join("hub.sqlite-wal")).unwrap().len();
    let second = hub.store.submit(job()).await.unwrap().job.id;
    let crashed = tempfile::tempdir().unwrap();
    copy_files(hub.dir.path(), crashed.path());
    let wal = fs::OpenOptions::new().write(true).open(crashed.path().join("hub.sqlite-wal")).unwrap();
    assert!(wal.metadata().unwrap().len() > before, "the second job is not in the log");
    wal.set_len(before + 100).unwrap();
    let store = Store::open_to_serve(crashed.path()).unwrap();
    assert_eq!(state(&store, first).await, JobState::Queued);
    assert!(
        matches!(store.job(name("acme"), second).await, Err(Error::NotFound(_))),
        "half a commit is none"
    );
    assert!(store.submit(job()).await.unwrap().created);
}

#[tokio::test]
async fn a_damaged_database_is_not_served_from_and_a_backup_brings_it_back() {
    let hub = Hub::new().await;
    let mut known = Vec::new();
    for _ in 0..20 {
        known.push(hub.store.submit(job()).await.unwrap().job.id);
    }
    let backups = tempfile::tempdir().unwrap();
    let file = backups.path().join("hub.backup");
    backup::backup(hub.dir.path(), &file).unwrap();
    let after = hub.store.submit(job()).await.unwrap().job.id;
    let told = hub.store.last_event().await.unwrap();
    let key = hub.store.signing_key().public().clone();
    let audience = hub.store.audience().to_owned();
    let served = restore::restore(hub.dir.path(), &file).unwrap_err().to_string();
    assert!(served.contains("another hub serves"), "{served}");
    let dir = end(hub).await;
    let damaged = damage(dir.path());
    let said = refused(dir.path());
    assert!(
        said.contains("hub.sqlite") && said.contains("damaged") && said.contains("admin restore"),
        "{said}"
    );
    assert!(fs::read(dir.path().join(DATABASE)).unwrap() == damaged, "the damaged file was changed");
    // The key went with it.
    fs::remove_file(dir.path().join("signing-key.pk8")).unwrap();
    let done = restore::restore(dir.path(), &file).unwrap();
    assert_eq!((done.jobs, done.missing_files), (20, 0));
    assert!(done.kept.iter().any(|kept| fs::read(kept).unwrap() == damaged), "{:?}", done.kept);
    let store = Store::open_to_serve(dir.path()).unwrap();
    assert_eq!((store.signing_key().public(), store.audience()), (&key, audience.as_str()));
    for id in known {
        assert_eq!(state(&store, id).await, JobState::Queued);
    }
    assert!(matches!(store.job(name("acme"), after).await, Err(Error::NotFound(_))));
    assert!(store.submit(job()).await.unwrap().created);
    // No number that a client has seen since the backup is given again.
    let again = store.last_event().await.unwrap();
    assert!(again > told + 1_000_000, "{told}, then {again}");
    assert!(store.last_event().await.unwrap() < 1 << 53, "a number that JavaScript can hold");
}

#[tokio::test]
async fn what_is_no_sound_backup_is_not_restored_and_changes_nothing() {
    let hub = Hub::new().await;
    let id = hub.store.submit(job()).await.unwrap().job.id;
    let backups = tempfile::tempdir().unwrap();
    let path = |name: &str| backups.path().join(name);
    backup::backup(hub.dir.path(), &path("good")).unwrap();
    let dir = end(hub).await;
    fs::copy(dir.path().join(DATABASE), path("database")).unwrap();
    fs::write(path("text"), "no database at all, but long enough to be looked at".repeat(100)).unwrap();
    let whole = fs::read(path("good")).unwrap();
    fs::write(path("cut"), &whole[..whole.len() / 2]).unwrap();
    fs::copy(path("good"), path("newer")).unwrap();
    Connection::open(path("newer")).unwrap().pragma_update(None, "user_version", 99).unwrap();
    for (file, says) in [
        ("database", "not written by `passerelle-hub admin backup`"),
        ("text", "no backup that can be used"),
        ("cut", "backup"),
        ("newer", "schema has version 99"),
        ("absent", "no backup that can be used"),
    ] {
        let said = restore::restore(dir.path(), &path(file)).unwrap_err().to_string();
        assert!(said.contains(says) && said.contains(file), "{file}: {said}");
    }
    let store = Store::open_to_serve(dir.path()).unwrap();
    assert_eq!(state(&store, id).await, JobState::Queued);
}

#[tokio::test]
async fn a_restore_that_was_cut_short_is_told_and_can_be_run_again() {
    let hub = Hub::new().await;
    let id = hub.store.submit(job()).await.unwrap().job.id;
    let backups = tempfile::tempdir().unwrap();
    let file = backups.path().join("hub.backup");
    backup::backup(hub.dir.path(), &file).unwrap();
    let dir = end(hub).await;
    // Killed after the old database was put aside.
    fs::write(dir.path().join("hub.sqlite.restoring"), "half").unwrap();
    fs::rename(dir.path().join(DATABASE), dir.path().join("hub.sqlite.before-1")).unwrap();
    let said = refused(dir.path());
    assert!(said.contains("cut short") && said.contains("admin restore"), "{said}");
    assert!(!dir.path().join(DATABASE).exists(), "an empty database took its place");
    restore::restore(dir.path(), &file).unwrap();
    assert_eq!(state(&Store::open_to_serve(dir.path()).unwrap(), id).await, JobState::Queued);
}

#[tokio::test]
async fn a_full_disk_refuses_whole_submissions_and_loses_none() {
    let hub = Hub::new().await;
    let kept = hub.store.submit(job()).await.unwrap().job.id;
    let limit = |pages: i64| {
        hub.store.write(move |tx| {
            Ok(tx
                .conn
                .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))?)
        })
    };
    limit(1).await.unwrap();
    let large = || NewJob { params: serde_json::json!({"x": "y".repeat(100_000)}), ..job() };
    let data = Bytes::from_static(b"content");
    let payload = PayloadRef {
        blob: BlobId::from(clock::new_uuid7()),
        size: 7,
        sha256: Sha256::of(&data),
        media_type: "text/csv".to_owned(),
        data: Some(data),
    };
    let refused = NewJob { payload: Some(payload), ..large() };
    let id = refused.id;
    assert_eq!(hub.store.submit(refused).await, Err(Error::Full));
    assert!(matches!(hub.store.job(name("acme"), id).await, Err(Error::NotFound(_))));
    let half: i64 = hub
        .store
        .read(|conn| Ok(conn.query_row("SELECT count(*) FROM blobs", [], |row| row.get(0))?))
        .await
        .unwrap();
    assert_eq!(half, 0, "a payload without its job was stored");
    assert_eq!(state(&hub.store, kept).await, JobState::Queued);
    limit(1 << 20).await.unwrap();
    let later = hub.store.submit(large()).await.unwrap().job.id;
    let hub = hub.restart().await;
    for id in [kept, later] {
        assert_eq!(state(&hub.store, id).await, JobState::Queued);
    }
}

#[tokio::test]
async fn a_database_of_an_older_schema_is_migrated_with_what_its_content_is_for() {
    let dir = tempfile::tempdir().unwrap();
    let (with_file, with_content) = (JobId::from(clock::new_uuid7()), JobId::from(clock::new_uuid7()));
    {
        let conn = Connection::open(dir.path().join(DATABASE)).unwrap();
        conn.execute_batch(include_str!("schema_v1.sql")).unwrap();
        conn.pragma_update(None, "user_version", 1).unwrap();
        conn.execute_batch(
            "INSERT INTO tenants VALUES ('acme', 'enterprise', 0); INSERT INTO sites VALUES ('acme', 'paris', 0);
             INSERT INTO blobs VALUES (x'01010101010101010101010101010101', 'acme', 1, zeroblob(32), NULL, 0);
             INSERT INTO blobs VALUES (x'02020202020202020202020202020202', 'acme', 1, zeroblob(32), NULL, 0);
             INSERT INTO contents VALUES (x'02020202020202020202020202020202', x'00');",
        )
        .unwrap();
        for (id, blob) in [(with_file, 1_u8), (with_content, 2)] {
            conn.execute(
                "INSERT INTO jobs (id, tenant, site, resource, operation, state, priority, created_at, deadline, allowed, \
                 deadline_s, timeout_s, max_attempts, payload, params) VALUES \
                 (?1, 'acme', 'paris', 'compta', 'drop', 'queued', 4, 0, ?3, 5, 60, 60, 5, ?2, '{}')",
                rusqlite::params![id.uuid().as_bytes(), [blob; 16], i64::MAX / 1_000_000],
            )
            .unwrap();
        }
    }
    let store = Store::open_to_serve(dir.path()).unwrap();
    assert_eq!(state(&store, with_file).await, JobState::Queued);
    let rows =
        |sql: &'static str| store.read(move |conn| Ok(conn.query_row(sql, [], |row| row.get::<_, i64>(0))?));
    assert_eq!(
        rows("SELECT count(*) FROM files WHERE owner = x'01010101010101010101010101010101'").await.unwrap(),
        1
    );
    assert_eq!(rows("SELECT count(*) FROM files").await.unwrap(), 1);
    assert_eq!(rows("SELECT count(*) FROM uses").await.unwrap(), 2);
    // Neither is collected: their jobs are queued.
    let blobs = crate::blobs::Blobs::new(store.clone());
    let later = clock::now().checked_add(std::time::Duration::from_secs(8 * 24 * 3600)).unwrap();
    let done = blobs.collect(&retention::Retention::default(), later).await.unwrap();
    assert_eq!((done.blobs, done.jobs), (0, 0));
}
