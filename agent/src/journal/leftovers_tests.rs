//! Which parts of attempts that ended are swept, and which stay.

use super::{
    tests::{denied, failed, job, parts, reopen, report, row, succeeded, through},
    *,
};
use crate::clock;
use passerelle_protocol::{Effect, Verdict};
use serde_json::json;

#[tokio::test]
async fn only_what_ended_without_success_and_without_an_open_intent_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    through(&journal, &job(1, 1), true, succeeded()).await;
    assert_eq!(parts(&journal).await, Vec::<String>::new(), "a success leaves no part");

    through(&journal, &job(2, 1), false, failed(Verdict::Cancelled, Effect::NotApplied)).await;
    assert_eq!(parts(&journal).await, ["part-1"]);
    // The next attempt may be at work: it tidies up itself.
    journal.accept(&job(2, 2), true, Some("part-2".into()), 1).await.unwrap();
    assert_eq!(parts(&journal).await, Vec::<String>::new());
    journal
        .finish(&report(&job(2, 2), failed(Verdict::Permanent, Effect::NotApplied)), false, Some(row()))
        .await
        .unwrap();
    assert_eq!(parts(&journal).await, ["part-1", "part-2"]);
    journal.swept(job(2, 1).attempt);
    journal.sweep_again(job(2, 2).attempt, clock::unix_seconds() + 60);
    journal.flush().await.unwrap();
    assert_eq!(parts(&journal).await, Vec::<String>::new());
    assert_eq!(journal.leftovers(clock::unix_seconds() + 61).await.unwrap()[0].attempt, job(2, 2).attempt);
    // A start is worth a look.
    let journal = reopen(dir.path(), journal).await.journal;
    assert_eq!(parts(&journal).await, ["part-2"]);
}

#[tokio::test]
async fn a_part_with_an_open_intent_stays_until_a_later_attempt_has_decided() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    through(&journal, &job(1, 1), true, failed(Verdict::Retry, Effect::Unknown)).await;
    assert_eq!(parts(&journal).await, Vec::<String>::new());
    // Handed back without having looked: it knows no more than the one before.
    let second = job(1, 2);
    let intent = json!({"of": 1});
    assert_eq!(
        journal.accept(&second, true, Some("part-2".into()), 1).await.unwrap(),
        Accepted::Continues(intent.clone())
    );
    journal
        .finish(&report(&second, failed(Verdict::Retry, Effect::Unknown)), false, Some(row()))
        .await
        .unwrap();
    journal.acked(second.attempt);
    // Denied, so it never looked; its journal row has no intent of its own.
    let third = job(1, 3);
    journal.accept_finished(&third, &report(&third, denied()), row()).await.unwrap();
    journal.acked(third.attempt);
    journal.flush().await.unwrap();
    assert_eq!(parts(&journal).await, Vec::<String>::new());
    assert_eq!(journal.accept(&job(1, 4), true, None, 1).await.unwrap(), Accepted::Continues(intent));
    journal.finish(&report(&job(1, 4), succeeded()), false, Some(row())).await.unwrap();
    journal.acked(job(1, 4).attempt);
    journal.flush().await.unwrap();
    assert_eq!(parts(&journal).await, ["part-1", "part-2"]);
    assert_eq!(journal.accept(&job(1, 5), true, None, 1).await.unwrap(), Accepted::Done);
}

#[tokio::test]
async fn an_unknown_effect_keeps_its_part_as_long_as_its_tombstone_would_live() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    through(&journal, &job(1, 1), true, failed(Verdict::Permanent, Effect::Unknown)).await;
    let now = clock::unix_seconds();
    journal.maintain(now + 3600).await.unwrap();
    assert_eq!(parts(&journal).await, Vec::<String>::new());
    journal.maintain(now + 2 * 86_400).await.unwrap();
    assert_eq!(parts(&journal).await, ["part-1"]);
    journal.swept(job(1, 1).attempt);
    journal.maintain(now + 2 * 86_400).await.unwrap();
    assert_eq!(journal.accept(&job(1, 1), true, None, 1).await.unwrap(), Accepted::New);

    // A resource that is never there again does not keep its rows for ever.
    through(&journal, &job(2, 1), false, failed(Verdict::Permanent, Effect::NotApplied)).await;
    journal.maintain(now + 40 * 86_400).await.unwrap();
    assert_eq!(parts(&journal).await, Vec::<String>::new());
    assert_eq!(journal.accept(&job(2, 1), true, None, 1).await.unwrap(), Accepted::New);
}
