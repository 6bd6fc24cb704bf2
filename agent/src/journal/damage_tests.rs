//! Journal files that are broken, or from another time.

use super::{
    tests::{denied, job, parts, reopen, report, row, succeeded, through},
    *,
};
use crate::clock;
use serde_json::json;
use std::fs;

#[tokio::test]
async fn a_journal_with_corrupt_pages_is_set_aside_and_the_rest_kept() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let (done, intended) = (job(200, 1), job(201, 1));
    for n in 0..100 {
        journal.accept(&job(n, 1), true, None, 1).await.unwrap();
    }
    journal.accept(&done, true, None, 1).await.unwrap();
    journal.finish(&report(&done, succeeded()), false, Some(row())).await.unwrap();
    journal.acked(done.attempt);
    journal.accept(&intended, true, None, 1).await.unwrap();
    journal.intent(intended.attempt, clock::now(), &json!({"part": "x"})).await.unwrap();
    // Where the rows of one page in the middle are: damage that leaves others.
    let path = dir.path().join(FILE);
    journal.close().await;
    drop(journal);
    let mut bytes = fs::read(&path).unwrap();
    let whole = bytes.clone();
    // In its envelope: the table has it as text, the index does not, and the audit has no tenant after it.
    let needle = format!("{}\",\"tenant", job(50, 1).attempt.job).into_bytes();
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap() / 4096 * 4096;
    assert!(at > 0, "the row is in the first page");
    bytes[at..at + 4096].fill(0xa5);
    assert_ne!(bytes, whole);
    fs::write(&path, bytes).unwrap();
    let opened = Journal::open(dir.path()).unwrap();
    let aside = opened.set_aside.unwrap();
    assert!(aside.file_name().unwrap().to_str().unwrap().starts_with("journal.corrupt-") && aside.exists());
    let kept = opened.found.len();
    assert!((90..101).contains(&kept), "{kept} of 101 open attempts are left");
    // No effect that was begun is forgotten, and nothing that is done is taken again.
    let intent = opened.found.iter().find_map(|found| match found {
        Found::Job(job, _) if job.attempt == intended.attempt => job.intent.clone(),
        _ => None,
    });
    assert_eq!(intent, Some(json!({"part": "x"})));
    assert_eq!(opened.journal.accept(&done, true, None, 1).await.unwrap(), Accepted::Again);
    assert_eq!(opened.journal.accept(&job(0, 1), true, None, 1).await.unwrap(), Accepted::Held);
    assert_eq!(opened.journal.accept(&job(50, 1), true, None, 1).await.unwrap(), Accepted::New);
    // And the successor is sound.
    let again = reopen(dir.path(), opened.journal).await;
    assert!(again.set_aside.is_none());
    assert_eq!(again.found.len(), kept + 2);
}

#[tokio::test]
async fn a_journal_restored_from_an_older_copy_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let (done, open) = (job(1, 1), job(2, 1));
    journal.accept(&done, true, None, 1).await.unwrap();
    journal.finish(&report(&done, succeeded()), false, Some(row())).await.unwrap();
    journal.acked(done.attempt);
    journal.accept(&open, true, None, 1).await.unwrap();
    journal.close().await;
    let copy = tempfile::tempdir().unwrap();
    fs::copy(dir.path().join(FILE), copy.path().join(FILE)).unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    journal.finish(&report(&open, succeeded()), false, Some(row())).await.unwrap();
    journal.accept(&job(3, 1), true, None, 1).await.unwrap();
    journal.close().await;
    let restored = Journal::open(copy.path()).unwrap();
    assert!(restored.set_aside.is_none());
    assert!(
        matches!(restored.found.as_slice(), [Found::Job(job, HeldState::Accepted)] if job.attempt == open.attempt)
    );
    assert_eq!(restored.journal.accept(&done, true, None, 1).await.unwrap(), Accepted::Again);
    // What came after the copy is not known: the hub hears that it is not held.
    assert_eq!(restored.journal.accept(&job(3, 1), true, None, 1).await.unwrap(), Accepted::New);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), "not a database at all, but long enough to be looked at ".repeat(100))
        .unwrap();
    let opened = Journal::open(dir.path()).unwrap();
    assert!(opened.set_aside.is_some() && opened.found.is_empty());
}

#[tokio::test]
async fn a_truncated_wal_loses_nothing_that_was_checkpointed_and_opens() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    journal.accept(&job(1, 1), true, None, 1).await.unwrap();
    journal.close().await;
    drop(journal);
    // A second life whose WAL a crash cuts in the middle of a frame.
    let journal = Journal::open(dir.path()).unwrap().journal;
    journal.accept(&job(2, 1), true, None, 1).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    fs::copy(dir.path().join(FILE), copy.path().join(FILE)).unwrap();
    let wal = fs::read(dir.path().join("journal.db-wal")).unwrap();
    fs::write(copy.path().join("journal.db-wal"), &wal[..wal.len() - 100]).unwrap();
    let opened = Journal::open(copy.path()).unwrap();
    assert!(opened.set_aside.is_none());
    assert_eq!(opened.found.len(), 1);
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", schema::FORMAT + 1).unwrap();
    drop(connection);
    let before = fs::read(&path).unwrap();
    let error = Journal::open(dir.path()).unwrap_err();
    assert!(
        matches!(error, JournalError::Newer { found, ours: schema::FORMAT, .. } if found == schema::FORMAT + 1),
        "{error}"
    );
    assert!(error.to_string().contains("run the newer agent again"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn an_older_format_is_brought_up_to_date_with_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let old = Connection::open(dir.path().join(FILE)).unwrap();
    schema::make_format_1(&old);
    old.execute(
        "INSERT INTO attempts (job, attempt, state, resource, envelope, ticket, at_hub, expires, accepted_at, report, seq)
         VALUES (?1, 1, 3, 'compta', '', '', 0, 0, 0, ?2, 1)",
        params![key(job(1, 1).attempt).0, json(&report(&job(1, 1), succeeded())).unwrap()],
    )
    .unwrap();
    drop(old);
    let opened = Journal::open(dir.path()).unwrap();
    assert!(matches!(opened.found.as_slice(), [Found::Report(..)]) && opened.set_aside.is_none());
    through(&opened.journal, &job(2, 1), false, denied()).await;
    assert_eq!(parts(&opened.journal).await, ["part-1"]);
    let again = reopen(dir.path(), opened.journal).await;
    assert_eq!(again.found.len(), 1);
}
