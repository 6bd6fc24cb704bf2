//! Collection: what is kept and what is not, shared content, races with uploads and submissions, crashes.

use super::*;
use crate::{
    model::{NewJob, PayloadRef},
    store::retention::Retention,
    testing::{Hub, job, name},
};
use futures_util::stream;
use jiff::Timestamp;
use passerelle_protocol::{JobId, limits::MAX_INLINE_PAYLOAD};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

const KEEP: Retention = Retention {
    blobs: Duration::from_secs(7 * DAY),
    outputs: Duration::from_secs(30 * DAY),
    jobs: Duration::from_secs(90 * DAY),
    uploads: Duration::from_secs(DAY),
    events: Duration::from_secs(30 * DAY),
};
const DAY: u64 = 24 * 3600;

fn in_days(days: u64) -> Timestamp {
    clock::now().checked_add(Duration::from_secs(days * DAY + 60)).unwrap()
}

async fn put(blobs: &Blobs, content: &'static str) -> BlobInfo {
    let body = stream::iter([Ok::<_, Infallible>(Bytes::from_static(content.as_bytes()))]);
    blobs.put_stream(name("acme"), None, None, body).await.unwrap()
}

/// A job with this blob as its payload.
fn with(info: &BlobInfo) -> NewJob {
    let media_type = "text/csv".to_owned();
    let payload = PayloadRef { blob: info.id, size: info.size, sha256: info.sha256, media_type, data: None };
    NewJob { payload: Some(payload), ..job() }
}

/// A job whose payload comes with it.
fn inline(content: &'static [u8]) -> NewJob {
    let payload = PayloadRef {
        blob: BlobId::from(clock::new_uuid7()),
        size: content.len() as u64,
        sha256: Sha256::of(content),
        media_type: "text/csv".to_owned(),
        data: Some(Bytes::from_static(content)),
    };
    NewJob { payload: Some(payload), ..job() }
}

async fn submit(hub: &Hub, job: NewJob) -> JobId {
    hub.store.submit(job).await.unwrap().job.id
}

/// Ends a job now, as a report would.
async fn end(hub: &Hub, id: JobId, state: &'static str) {
    hub.store
        .write(move |tx| {
            let sql = "UPDATE jobs SET state = ?2, finished_at = ?3 WHERE id = ?1";
            Ok(tx.conn.execute(sql, params![id.uuid().as_bytes(), state, ms(tx.now)])?)
        })
        .await
        .unwrap();
}

async fn rows(hub: &Hub, table: &'static str) -> u32 {
    hub.store
        .read(move |conn| Ok(conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?))
        .await
        .unwrap()
}

fn there(hub: &Hub, info: &BlobInfo) -> bool {
    hub.store.files().content(info.sha256).exists()
}

#[tokio::test]
async fn a_blob_that_no_job_uses_goes_after_its_time_and_a_job_that_names_it_is_told() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let info = put(&blobs, "unused").await;
    assert!(blobs.collect(&KEEP, in_days(6)).await.unwrap().is_nothing());
    assert_eq!(hub.store.stats().blob_bytes, 6);
    let done = blobs.collect(&KEEP, in_days(7)).await.unwrap();
    assert_eq!(done, Collected { blobs: 1, files: 1, bytes: 6, ..Collected::default() });
    assert!(!there(&hub, &info));
    assert_eq!(hub.store.stats().blob_bytes, 0);
    let refused = hub.store.submit(with(&info)).await.unwrap_err();
    assert!(
        matches!(&refused, Error::NotFound(why) if why.contains("upload it with POST /v1/blobs")),
        "{refused}"
    );
    assert_eq!(rows(&hub, "jobs").await + rows(&hub, "uses").await, 0);
}

#[tokio::test]
async fn a_payload_stays_as_long_as_its_job_can_need_it() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let states = ["queued", "failed", "unknown", "cancelled", "expired", "succeeded", "denied"];
    let mut small = Vec::new();
    for state in states {
        let (with_blob, with_content) = (
            submit(&hub, with(&put(&blobs, state).await)).await,
            submit(&hub, inline(state.as_bytes())).await,
        );
        if state != "queued" {
            end(&hub, with_blob, state).await;
            end(&hub, with_content, state).await;
        }
        small.push(BlobId::from(with_content.uuid()));
    }
    assert!(blobs.collect(&KEEP, in_days(6)).await.unwrap().is_nothing());
    let done = blobs.collect(&KEEP, in_days(8)).await.unwrap();
    assert_eq!(done, Collected { blobs: 4, files: 2, bytes: 15, ..Collected::default() });
    for (state, id) in states.iter().zip(small) {
        let kept = blobs.open(name("acme"), id).await.is_ok();
        let content = hub.store.files().content(Sha256::of(state.as_bytes()));
        let wanted = !matches!(*state, "succeeded" | "denied");
        assert_eq!((kept, content.exists()), (wanted, wanted), "{state}");
    }
    assert_eq!((rows(&hub, "jobs").await, rows(&hub, "uses").await), (14, 5));
}

#[tokio::test]
async fn shared_content_goes_with_the_last_that_names_it() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let (first, second) = (put(&blobs, "shared").await, put(&blobs, "shared").await);
    let kept = submit(&hub, with(&first)).await;
    let (one, two) = (submit(&hub, with(&second)).await, submit(&hub, with(&second)).await);
    end(&hub, one, "succeeded").await;
    let done = blobs.collect(&KEEP, in_days(8)).await.unwrap();
    assert!(done.is_nothing(), "the second job of the second blob is queued: {done:?}");
    end(&hub, two, "succeeded").await;
    let done = blobs.collect(&KEEP, in_days(8)).await.unwrap();
    assert_eq!(done, Collected { blobs: 1, ..Collected::default() });
    assert!(there(&hub, &first));
    end(&hub, kept, "denied").await;
    let done = blobs.collect(&KEEP, in_days(8)).await.unwrap();
    assert_eq!((done.blobs, done.files), (1, 1));
    assert!(!there(&hub, &first));
}

#[tokio::test]
async fn what_a_look_found_is_judged_again_when_it_is_removed() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let info = put(&blobs, "about to be used").await;
    let before = in_days(1);
    let found = hub.store.read(move |conn| retention::unneeded_blobs(conn, [0; 16], before)).await.unwrap();
    assert_eq!(found, [*info.id.uuid().as_bytes()]);
    let failed = submit(&hub, with(&info)).await;
    let removed = hub.store.write(move |tx| retention::remove_blobs(tx, &found, before)).await.unwrap();
    assert_eq!(removed.count, 0);
    end(&hub, failed, "failed").await;
    let found = hub.store.read(move |conn| retention::old_jobs(conn, 0, before)).await.unwrap();
    assert_eq!(found.len(), 1);
    hub.store.retry(name("acme"), failed).await.unwrap();
    let removed = hub.store.write(move |tx| retention::remove_jobs(tx, &found, before)).await.unwrap();
    assert_eq!(removed.count, 0);
    assert!(there(&hub, &info) && hub.store.job(name("acme"), failed).await.is_ok());
}

#[tokio::test]
async fn content_that_is_being_uploaded_again_is_not_removed() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let info = put(&blobs, "again").await;
    let files = hub.store.files().clone();
    // An upload of the same content has found the file and is about to write its row.
    let naming = files.naming(info.sha256).await;
    let done = blobs.collect(&KEEP, in_days(8)).await.unwrap();
    assert_eq!((done.blobs, done.files), (1, 0));
    assert!(there(&hub, &info));
    drop(naming);
    // It failed: nobody names the file now. If it had succeeded, the row would keep it.
    let again = put(&blobs, "again").await;
    assert_eq!(blobs.remove_content(info.sha256).await.unwrap(), None);
    assert!(there(&hub, &again));
    // The other way round: an upload that comes while the file goes waits, and brings its own.
    let alone = files.alone(info.sha256).unwrap();
    let (later, other) = (
        blobs.clone(),
        tokio::spawn({
            let blobs = blobs.clone();
            async move { put(&blobs, "again").await }
        }),
    );
    while std::fs::read_dir(hub.dir.path().join("uploads")).unwrap().count() == 0 {
        tokio::task::yield_now().await;
    }
    files.remove(info.sha256).unwrap();
    drop(alone);
    let other = other.await.unwrap();
    assert!(there(&hub, &other));
    assert!(
        matches!(later.open(name("acme"), other.id).await.unwrap().1, Content::File(path) if path.exists())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_submissions_and_collections_at_once_never_lose_content() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let stop = CancellationToken::new();
    let collected = Arc::new(AtomicU64::new(0));
    let collecting = {
        let (blobs, stop, collected) = (blobs.clone(), stop.clone(), Arc::clone(&collected));
        // The uploads of the test are under way, whatever the clock of the collection says.
        let keep = Retention { uploads: KEEP.jobs, ..KEEP };
        tokio::spawn(async move {
            while !stop.is_cancelled() {
                let removed = blobs.collect(&keep, in_days(8)).await.unwrap().files;
                collected.fetch_add(removed, Ordering::Relaxed);
            }
        })
    };
    let mut uploading = tokio::task::JoinSet::new();
    // One uploader of each content, so that its last name goes all the time, just before the next upload.
    for content in ["one", "two", "three"] {
        let (blobs, store, collected) = (blobs.clone(), hub.store.clone(), Arc::clone(&collected));
        uploading.spawn(async move {
            let begun = Instant::now();
            // Until something was collected meanwhile: else nothing would have been shown.
            for round in 0.. {
                if round >= 8 && collected.load(Ordering::Relaxed) > 0 {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(60), "nothing was ever collected");
                let info = put(&blobs, content).await;
                // Collected at once, or kept by its job for good.
                match store.submit(with(&info)).await {
                    Ok(submitted) => {
                        let content = store.files().content(info.sha256);
                        assert!(content.exists(), "the payload of {} is gone", submitted.job.id);
                        store.cancel(name("acme"), submitted.job.id).await.unwrap();
                        store
                            .write(move |tx| {
                                let sql = "UPDATE jobs SET state = 'succeeded' WHERE id = ?1";
                                Ok(tx.conn.execute(sql, [submitted.job.id.uuid().as_bytes()])?)
                            })
                            .await
                            .unwrap();
                    }
                    Err(error) => assert!(matches!(error, Error::NotFound(_)), "{error}"),
                }
            }
        });
    }
    while let Some(done) = uploading.join_next().await {
        done.unwrap();
    }
    stop.cancel();
    collecting.await.unwrap();
}

#[tokio::test]
async fn a_file_that_a_crash_left_is_swept_and_a_young_one_is_not() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let (named, left) = (put(&blobs, "named").await, put(&blobs, "left behind").await);
    // A crash after the commit that took its last name.
    let id = *left.id.uuid().as_bytes();
    let before = in_days(1);
    let removed = hub.store.write(move |tx| retention::remove_blobs(tx, &[id], before)).await.unwrap();
    assert_eq!(removed.loose, [left.sha256]);
    let stranger = hub.dir.path().join("blobs").join("readme.txt");
    std::fs::write(&stranger, "none of ours").unwrap();
    let soon = SystemTime::now() + Duration::from_secs(60);
    assert!(blobs.sweep_files(KEEP.uploads, soon).await.unwrap().is_nothing());
    assert_eq!(hub.store.stats().blob_bytes, 16);
    let later = SystemTime::now() + Duration::from_secs(DAY + 60);
    let done = blobs.sweep_files(KEEP.uploads, later).await.unwrap();
    assert_eq!(done, Collected { files: 1, bytes: 11, ..Collected::default() });
    assert!(there(&hub, &named) && !there(&hub, &left) && stranger.exists());
    assert_eq!(hub.store.stats().blob_bytes, 5);
}

#[tokio::test]
async fn an_old_job_goes_with_all_of_its_own_and_its_idempotency_key_is_free_again() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let agent = hub.agent().await;
    let info = put(&blobs, "payload").await;
    let key = Some(("monthly".to_owned(), Sha256::of(b"body")));
    let old = submit(&hub, NewJob { idempotency: key.clone(), ..with(&info) }).await;
    let small = submit(&hub, inline(b"small")).await;
    let running = submit(&hub, inline(b"running")).await;
    hub.store
        .write(move |tx| {
            for id in [old, small] {
                tx.conn.execute(
                    "INSERT INTO attempts (job, number, agent, epoch, commit_mode, repeat, offered_at) \
                     SELECT seq, 1, ?2, 1, 'free', 'safe', 0 FROM jobs WHERE id = ?1",
                    params![id.uuid().as_bytes(), agent.id.uuid().as_bytes()],
                )?;
            }
            Ok(())
        })
        .await
        .unwrap();
    end(&hub, old, "failed").await;
    end(&hub, small, "unknown").await;
    assert_eq!(blobs.collect(&KEEP, in_days(89)).await.unwrap().jobs, 0);
    let done = blobs.collect(&KEEP, in_days(90)).await.unwrap();
    assert_eq!(done, Collected { jobs: 2, blobs: 1, files: 1, bytes: 7, ..Collected::default() });
    assert!(matches!(hub.store.job(name("acme"), old).await, Err(Error::NotFound(_))));
    assert!(hub.store.job(name("acme"), running).await.is_ok());
    for (table, left) in
        [("jobs", 1), ("attempts", 0), ("uses", 0), ("files", 0), ("contents", 1), ("blobs", 1)]
    {
        assert_eq!(rows(&hub, table).await, left, "{table}");
    }
    assert!(hub.store.submit(NewJob { idempotency: key, ..job() }).await.unwrap().created);
}

#[tokio::test]
async fn a_job_that_holds_its_line_stays_while_others_wait_behind_it() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let ordered = || NewJob { order_key: Some("invoices".to_owned()), ..job() };
    let (first, second) = (submit(&hub, ordered()).await, submit(&hub, ordered()).await);
    end(&hub, first, "failed").await;
    assert_eq!(blobs.collect(&KEEP, in_days(91)).await.unwrap().jobs, 0);
    end(&hub, second, "cancelled").await;
    assert_eq!(blobs.collect(&KEEP, in_days(91)).await.unwrap().jobs, 2);
}

#[tokio::test]
async fn outputs_go_before_their_jobs_and_say_so() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let (small, large) = (submit(&hub, job()).await, submit(&hub, job()).await);
    // As large outputs are: content like a blob's.
    let content = put(&blobs, "large output").await;
    hub.store
        .write(move |tx| {
            for (id, digest) in [(small, Sha256::of(b"small")), (large, content.sha256)] {
                tx.conn.execute(
                    "UPDATE jobs SET output_size = 5, output_sha256 = ?2, output_media_type = 'text/csv' WHERE id = ?1",
                    params![id.uuid().as_bytes(), digest.bytes()],
                )?;
            }
            tx.conn.execute(
                "INSERT INTO outputs (job, data) SELECT seq, x'736d616c6c' FROM jobs WHERE id = ?1",
                [small.uuid().as_bytes()],
            )?;
            retention::own(tx.conn, *large.uuid().as_bytes(), content.sha256, true)
        })
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    end(&hub, small, "succeeded").await;
    end(&hub, large, "succeeded").await;
    let done = blobs.collect(&KEEP, in_days(29)).await.unwrap();
    assert_eq!(done, Collected { blobs: 1, ..Collected::default() }, "the blob of the same content");
    for id in [small, large] {
        assert!(hub.store.output(name("acme"), id).await.is_ok());
    }
    let done = blobs.collect(&KEEP, in_days(30)).await.unwrap();
    assert_eq!(done, Collected { outputs: 2, files: 1, bytes: 12, ..Collected::default() });
    for id in [small, large] {
        let gone = hub.store.output(name("acme"), id).await.unwrap_err();
        assert!(matches!(&gone, Error::NotFound(why) if why.contains("retention")), "{gone}");
        assert!(hub.store.job(name("acme"), id).await.unwrap().output.is_some(), "what it was is still told");
    }
}

#[tokio::test]
async fn uploads_that_stood_still_are_given_up_with_what_no_report_claimed() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let old = blobs.create_upload(name("acme"), None, 6, None).await.unwrap();
    let fresh = blobs.create_upload(name("acme"), None, 6, None).await.unwrap();
    let tomorrow = in_days(1);
    let path = |id| hub.store.files().upload(id);
    let touched = std::fs::OpenOptions::new().write(true).open(path(fresh)).unwrap();
    touched.set_modified(SystemTime::from(tomorrow)).unwrap();
    std::fs::write(hub.dir.path().join("uploads").join("cut.part"), "cut").unwrap();
    // An output that came whole, of an attempt whose report never came.
    let output = put(&blobs, "output").await;
    let (id, job) = (BlobId::from(clock::new_uuid7()), submit(&hub, job()).await);
    hub.store
        .write(move |tx| {
            tx.conn.execute(
                "INSERT INTO uploads (id, tenant, length, sha256, created_at, job, attempt, complete) \
                 VALUES (?1, 'acme', 6, ?2, ?3, ?4, 1, 1)",
                params![id.uuid().as_bytes(), output.sha256.bytes(), ms(tx.now), job.uuid().as_bytes()],
            )?;
            retention::own(tx.conn, *job.uuid().as_bytes(), output.sha256, true)
        })
        .await
        .unwrap();
    let done = blobs.collect(&KEEP, tomorrow).await.unwrap();
    assert_eq!(done, Collected { uploads: 1, ..Collected::default() });
    assert!(matches!(blobs.upload_offset(name("acme"), old).await, Err(Error::NotFound(_))));
    assert_eq!(blobs.upload_offset(name("acme"), fresh).await.unwrap().offset, 0);
    assert_eq!(std::fs::read_dir(hub.dir.path().join("uploads")).unwrap().count(), 1);
    // The output may be the only copy of what its attempt took away: it stays while the job runs, and while nobody knows
    // what became of it.
    end(&hub, job, "unknown").await;
    effect(&hub, job, "unknown").await;
    let done = blobs.collect(&KEEP, in_days(31)).await.unwrap();
    assert_eq!(
        done,
        Collected { blobs: 1, uploads: 1, ..Collected::default() },
        "but the blob, and the other"
    );
    assert_eq!((rows(&hub, "files").await, rows(&hub, "uploads").await), (1, 1));
    effect(&hub, job, "not_applied").await;
    let done = blobs.collect(&KEEP, in_days(31)).await.unwrap();
    assert_eq!(done, Collected { outputs: 1, uploads: 1, files: 1, bytes: 6, ..Collected::default() });
}

/// Says what the job's last attempt did.
async fn effect(hub: &Hub, id: JobId, effect: &'static str) {
    hub.store
        .write(move |tx| {
            let sql = "UPDATE jobs SET error_effect = ?2 WHERE id = ?1";
            Ok(tx.conn.execute(sql, params![id.uuid().as_bytes(), effect])?)
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn many_are_removed_in_small_steps_and_the_disk_gets_its_room_back() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let content: &'static [u8] = vec![7; MAX_INLINE_PAYLOAD / 2].leak();
    let jobs = retention::AT_ONCE * 2 + 7;
    let mut submitting = tokio::task::JoinSet::new();
    for _ in 0..jobs {
        let store = hub.store.clone();
        submitting.spawn(async move { store.submit(inline(content)).await });
    }
    while let Some(submitted) = submitting.join_next().await {
        submitted.unwrap().unwrap();
    }
    hub.store
        .write(|tx| {
            let sql = "UPDATE jobs SET state = 'succeeded', finished_at = ?1";
            Ok(tx.conn.execute(sql, [ms(tx.now)])?)
        })
        .await
        .unwrap();
    let pages = || async {
        let count =
            |conn: &rusqlite::Connection| Ok(conn.pragma_query_value(None, "page_count", |r| r.get(0))?);
        hub.store.read(count).await.unwrap()
    };
    let (full, commits): (i64, u64) = (pages().await, hub.store.stats().commits);
    let done = blobs.collect(&KEEP, in_days(8)).await.unwrap();
    assert_eq!(done.blobs, jobs as u64);
    assert!(hub.store.stats().commits - commits >= 4, "all at once");
    let left: i64 = pages().await;
    assert!(left < full / 5, "{full} pages became {left}");
    let sound: String = hub
        .store
        .read(|conn| Ok(conn.pragma_query_value(None, "integrity_check", |row| row.get(0))?))
        .await
        .unwrap();
    assert_eq!(sound, "ok");
}
