//! Each crash point, replay, group commit, pruning, and a disk or journal that is full.

use super::*;
use crate::{clock, job::Payload};
use bytes::Bytes;
use passerelle_protocol::{
    AgentId, Code, CommitMode, Effect, Envelope, Failure, JobId, KeyId, OutputPayload, PayloadDigest, Sha256,
    Ticket, Verdict,
};
use serde_json::json;

pub(super) fn job(n: u8, attempt: u32) -> Job {
    let id = JobId::new(1_700_000_000_000, &[n; 10]);
    let now = clock::unix_seconds();
    let name = |n: &str| n.parse::<Name>().unwrap();
    let envelope = Envelope {
        job: id,
        tenant: name("acme"),
        site: name("paris"),
        resource: name("compta"),
        operation: name("drop"),
        params: json!({"path": "a.csv"}),
        payload: Some(PayloadDigest { size: 3, sha256: Sha256::of(b"abc"), media_type: "text/csv".into() }),
        timeout_s: 300,
        deadline: now + 3600,
        max_attempts: 5,
        repeat: None,
        order_key: None,
        agents: None,
        iat: now,
        nbf: now,
        exp: now + 900,
    };
    let ticket = Ticket {
        job: id,
        attempt,
        agent: AgentId::new(1, &[9; 10]),
        epoch: 1,
        commit: CommitMode::Free,
        granted: None,
        envelope: Sha256::of(b"envelope"),
        iat: now,
        exp: now + 900,
    };
    Job {
        attempt: Attempt::new(id, attempt),
        envelope,
        signer: Some(KeyId("signer".into())),
        ticket,
        payload: Payload::Inline(Bytes::from_static(b"abc")),
        traceparent: Some("00-1-2-01".into()),
        accepted_at: Timestamp::from_millisecond(clock::now().as_millisecond()).unwrap(),
        started_at: None,
        intent: None,
        resumed: false,
        call: None,
    }
}

pub(super) fn report(job: &Job, outcome: Outcome) -> Report {
    Report {
        job: job.attempt.job,
        attempt: job.attempt.number,
        outcome,
        started_at: None,
        finished_at: clock::now(),
    }
}

/// What the audit is told; these tests are about the other tables.
pub(super) fn row() -> Entry {
    Entry::new(crate::audit::Kind::Succeeded)
}

pub(super) fn succeeded() -> Outcome {
    Outcome::Succeeded { result: json!({"path": "a.csv"}), output: None, receipt: Some("r".into()) }
}

pub(super) fn denied() -> Outcome {
    Outcome::Failed(Failure::new(
        Verdict::Denied,
        Effect::NotApplied,
        Code::PolicyDenied,
        "no rule allows it",
    ))
}

/// Closes without flushing what is lazy, as a kill would: what was answered must be there all the same.
pub(super) async fn reopen(dir: &Path, journal: Journal) -> Opened {
    drop(journal.writer.shared_for_test().take_lazy());
    journal.close().await;
    Journal::open(dir).unwrap()
}

#[tokio::test]
async fn an_accepted_attempt_is_found_again_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { journal, found, set_aside } = Journal::open(dir.path()).unwrap();
    assert!(found.is_empty() && set_aside.is_none());
    let job = job(1, 1);
    assert_eq!(journal.accept(&job, true, None, 1).await.unwrap(), Accepted::New);
    assert_eq!(journal.accept(&job, true, None, 1).await.unwrap(), Accepted::Held);
    let found = reopen(dir.path(), journal).await.found;
    let [Found::Job(again, HeldState::Accepted)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(again.envelope, job.envelope);
    assert_eq!(again.ticket, job.ticket);
    assert_eq!((&again.payload, &again.traceparent), (&job.payload, &job.traceparent));
    assert_eq!((again.accepted_at, again.started_at, &again.intent), (job.accepted_at, None, &None));
}

#[tokio::test]
async fn an_intent_is_found_again_even_when_the_start_was_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let job = job(1, 1);
    journal.accept(&job, true, None, 1).await.unwrap();
    journal.started(job.attempt, job.accepted_at);
    journal.intent(job.attempt, job.accepted_at, &json!({"part": "x"})).await.unwrap();
    journal.granted(job.attempt);
    let found = reopen(dir.path(), journal).await.found;
    let [Found::Job(again, HeldState::Running)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(again.intent, Some(json!({"part": "x"})));
    assert_eq!(again.started_at, Some(job.accepted_at));
}

#[tokio::test]
async fn a_finished_attempt_is_reported_until_acknowledged_and_survives_a_lost_ack() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let job = job(1, 1);
    journal.accept(&job, true, None, 1).await.unwrap();
    let report = report(&job, succeeded());
    journal.finish(&report, false, Some(row())).await.unwrap();
    let (reports, next) = journal.reports_after(None, 10).await.unwrap();
    assert_eq!(reports.iter().map(|r| &**r).collect::<Vec<_>>(), [&report]);
    assert_eq!(journal.reports_after(Some(next), 10).await.unwrap(), (vec![], next));
    // Read by one that follows, it comes from memory and is the same.
    assert_eq!(journal.reports_after(Some(next - 1), 10).await.unwrap(), (reports, next));
    // The ack is lazy: killed before it is written, the row is reported again.
    journal.acked(job.attempt);
    let opened = reopen(dir.path(), journal).await;
    assert!(matches!(opened.found.as_slice(), [Found::Report(a, _)] if *a == job.attempt));
    opened.journal.acked(job.attempt);
    opened.journal.flush().await.unwrap();
    let opened = reopen(dir.path(), opened.journal).await;
    assert!(opened.found.is_empty());
    assert_eq!(opened.journal.reports_after(None, 10).await.unwrap().0, []);
}

#[tokio::test]
async fn a_report_that_cannot_be_read_is_told_as_unknown_and_keeps_no_other_back() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let (one, other) = (job(1, 1), job(2, 1));
    for job in [&one, &other] {
        journal.accept(job, true, None, 1).await.unwrap();
        journal.finish(&report(job, succeeded()), false, Some(row())).await.unwrap();
    }
    drop(journal);
    let deep = format!("{{\"outcome\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let damaged = Connection::open(dir.path().join(FILE)).unwrap();
    damaged
        .execute("UPDATE attempts SET report = ?1 WHERE job = ?2", params![deep, key(one.attempt).0])
        .unwrap();
    drop(damaged);
    let journal = Journal::open(dir.path()).unwrap().journal;
    let (reports, _) = journal.reports_after(None, 10).await.unwrap();
    let [told, whole] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((told.job, told.attempt), (one.attempt.job, 1));
    let Outcome::Failed(failure) = &told.outcome else { panic!("{told:?}") };
    assert_eq!(
        (failure.verdict, failure.effect, failure.code),
        (Verdict::Permanent, Effect::Unknown, Code::Internal)
    );
    assert_eq!((whole.job, &whole.outcome), (other.attempt.job, &succeeded()));
}

#[tokio::test]
async fn an_output_is_uploaded_before_it_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let job = job(1, 1);
    journal.accept(&job, true, None, 1).await.unwrap();
    let output =
        OutputPayload { size: 9, sha256: Sha256::of(b"x"), media_type: "text/plain".into(), data: None };
    let outcome = Outcome::Succeeded { result: json!({}), output: Some(output), receipt: None };
    let report = report(&job, outcome);
    journal.finish(&report, true, Some(row())).await.unwrap();
    assert_eq!(journal.reports_after(None, 10).await.unwrap().0, []);
    let opened = reopen(dir.path(), journal).await;
    assert!(matches!(opened.found.as_slice(), [Found::Upload(a, _)] if *a == job.attempt));
    assert_eq!(opened.journal.unsent_report(job.attempt).await.unwrap(), Some(report.clone()));
    opened.journal.finish(&report, false, Some(row())).await.unwrap();
    assert_eq!(opened.journal.unsent_report(job.attempt).await.unwrap(), None);
    assert_eq!(opened.journal.reports_after(None, 10).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn no_more_attempts_are_accepted_than_the_envelope_allows_whatever_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let allowed = |attempt, max_attempts| {
        let mut job = job(1, attempt);
        job.envelope.max_attempts = max_attempts;
        job
    };
    {
        let journal = Journal::open(dir.path()).unwrap().journal;
        for attempt in [3, 9] {
            let job = allowed(attempt, 2);
            assert_eq!(journal.accept(&job, true, None, 1).await.unwrap(), Accepted::New);
            journal.finish(&report(&job, denied()), false, Some(row())).await.unwrap();
        }
        journal.close().await;
    }
    let journal = Journal::open(dir.path()).unwrap().journal;
    let spent = Accepted::Spent { allowed: 2 };
    assert_eq!(journal.accept(&allowed(10, 2), true, None, 1).await.unwrap(), spent);
    assert_eq!(journal.accept(&allowed(9, 2), true, None, 1).await.unwrap(), Accepted::Held);
    assert_eq!(journal.accept(&allowed(10, 3), true, None, 1).await.unwrap(), Accepted::New);
}

#[tokio::test]
async fn a_replayed_attempt_is_refused_and_a_known_outcome_is_told_again() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let second = job(1, 2);
    assert_eq!(journal.accept(&second, true, None, 1).await.unwrap(), Accepted::New);
    assert_eq!(journal.accept(&job(1, 1), true, None, 1).await.unwrap(), Accepted::Replayed { highest: 2 });
    journal.finish(&report(&second, succeeded()), false, Some(row())).await.unwrap();
    journal.acked(second.attempt);
    journal.flush().await.unwrap();
    assert_eq!(journal.reports_after(None, 10).await.unwrap().0, []);
    // A hub that forgot (restored from a backup) offers it again: the tombstone answers.
    assert_eq!(journal.accept(&second, true, None, 1).await.unwrap(), Accepted::Again);
    assert_eq!(journal.reports_after(None, 10).await.unwrap().0.len(), 1);
    // One that forgot more offers another attempt: its outcome is the same, and nothing happens again.
    assert_eq!(journal.accept(&job(1, 3), true, None, 1).await.unwrap(), Accepted::Done);
    let reports = journal.reports_after(None, 10).await.unwrap().0;
    let told: Vec<u32> = reports.iter().map(|report| report.attempt).collect();
    assert_eq!(told, [2, 3]);
    assert!(reports.iter().all(|report| report.outcome == succeeded()));
    // An outcome too large to keep is not known any more, but the attempt is not run twice.
    let large = job(2, 1);
    journal.accept(&large, true, None, 1).await.unwrap();
    let outcome = Outcome::Succeeded { result: json!("x".repeat(KEPT_REPORT)), output: None, receipt: None };
    journal.finish(&report(&large, outcome), false, Some(row())).await.unwrap();
    journal.acked(large.attempt);
    assert_eq!(journal.accept(&large, true, None, 1).await.unwrap(), Accepted::Replayed { highest: 1 });
    assert_eq!(journal.accept(&job(2, 2), false, None, 1).await.unwrap(), Accepted::Replayed { highest: 1 });
    assert_eq!(journal.accept(&job(2, 2), true, None, 1).await.unwrap(), Accepted::New, "it changes nothing");
}

#[tokio::test]
async fn another_attempt_waits_until_the_one_before_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let (first, second) = (job(1, 1), job(1, 2));
    journal.accept(&first, true, None, 1).await.unwrap();
    assert_eq!(journal.accept(&second, true, None, 1).await.unwrap(), Accepted::Busy);
    journal.started(first.attempt, clock::now());
    assert_eq!(journal.accept(&second, true, None, 1).await.unwrap(), Accepted::Busy);
    let output =
        OutputPayload { size: 9, sha256: Sha256::of(b"x"), media_type: "text/plain".into(), data: None };
    let outcome = Outcome::Succeeded { result: json!({}), output: Some(output), receipt: None };
    let report = report(&first, outcome);
    journal.finish(&report, true, Some(row())).await.unwrap();
    assert_eq!(
        journal.accept(&second, true, None, 1).await.unwrap(),
        Accepted::Busy,
        "its output is under way"
    );
    journal.finish(&report, false, Some(row())).await.unwrap();
    journal.acked(first.attempt);
    // Its output is gone: what changes nothing is done again for it, all else is not.
    let lost = Accepted::Replayed { highest: 1 };
    assert_eq!(journal.accept(&second, false, None, 1).await.unwrap(), lost);
    assert_eq!(journal.accept(&second, true, None, 1).await.unwrap(), Accepted::New);
}

#[tokio::test]
async fn a_later_attempt_learns_the_intent_of_one_that_failed_and_not_of_one_that_succeeded() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let intent = json!({"part": ".passerelle-x-1.part"});
    let lost =
        Outcome::Failed(Failure::new(Verdict::Retry, Effect::Unknown, Code::TargetTimeout, "no answer"));
    for (n, outcome) in [(1, lost), (2, succeeded())] {
        let first = job(n, 1);
        journal.accept(&first, true, None, 1).await.unwrap();
        journal.intent(first.attempt, clock::now(), &intent).await.unwrap();
        journal.finish(&report(&first, outcome), false, Some(row())).await.unwrap();
        journal.acked(first.attempt);
    }
    assert_eq!(journal.accept(&job(1, 2), true, None, 1).await.unwrap(), Accepted::Continues(intent.clone()));
    assert_eq!(journal.accept(&job(2, 2), true, None, 1).await.unwrap(), Accepted::Done);
    // And it is still known after a crash.
    let found = reopen(dir.path(), journal).await.found;
    let [Found::Job(again, HeldState::Accepted), Found::Report(..)] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(again.intent, Some(intent));
}

#[tokio::test]
async fn a_denied_job_is_accepted_and_finished_in_one() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let job = job(1, 1);
    let report = report(&job, denied());
    assert_eq!(journal.accept_finished(&job, &report, row()).await.unwrap(), Accepted::New);
    let opened = reopen(dir.path(), journal).await;
    assert!(matches!(opened.found.as_slice(), [Found::Report(..)]));
    assert_eq!(opened.journal.reports_after(None, 10).await.unwrap().0, [report.into()]);
}

#[tokio::test]
async fn writes_that_come_together_share_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let mut accepts = tokio::task::JoinSet::new();
    for n in 0..200 {
        let journal = journal.clone();
        accepts.spawn(async move { journal.accept(&job(n, 1), true, None, 1).await });
    }
    while let Some(accepted) = accepts.join_next().await {
        assert_eq!(accepted.unwrap().unwrap(), Accepted::New);
    }
    let commits = journal.writer.commits();
    assert!(commits < 100, "{commits} commits for 200 writes");
    assert_eq!(reopen(dir.path(), journal).await.found.len(), 200);
}

#[tokio::test]
async fn old_tombstones_are_pruned_once_their_envelope_has_expired() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let (mut short, mut long) = (job(1, 1), job(2, 1));
    let now = clock::unix_seconds();
    (short.envelope.exp, long.envelope.exp) = (now + 900, now + 7 * 86_400);
    for job in [&mut short, &mut long] {
        journal.accept(job, true, None, 1).await.unwrap();
        journal.finish(&report(job, denied()), false, Some(row())).await.unwrap();
        journal.acked(job.attempt);
    }
    let open = job(3, 1);
    journal.accept(&open, true, None, 1).await.unwrap();
    journal.maintain(now + 3600).await.unwrap();
    assert_eq!(journal.accept(&short, true, None, 1).await.unwrap(), Accepted::Again);
    journal.acked(short.attempt);
    journal.maintain(now + 2 * 86_400).await.unwrap();
    assert_eq!(journal.accept(&short, true, None, 1).await.unwrap(), Accepted::New);
    assert_eq!(journal.accept(&long, true, None, 1).await.unwrap(), Accepted::Again);
    assert_eq!(journal.accept(&open, true, None, 1).await.unwrap(), Accepted::Held);
}

#[tokio::test]
async fn a_disk_that_takes_no_writes_is_told_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let pages: i64 =
        journal.writer.read(|c| c.query_row("PRAGMA page_count", [], |r| r.get(0))).await.unwrap();
    let limit = move |journal: Journal, pages: i64| async move {
        journal
            .writer
            .read(move |c| c.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())))
            .await
    };
    limit(journal.clone(), pages).await.unwrap();
    let mut big = job(1, 1);
    big.payload = Payload::Inline(vec![7; 200 * 1024].into());
    let error = journal.accept(&big, true, None, 1).await.unwrap_err();
    assert!(matches!(error, JournalError::Storage(_)), "{error}");
    limit(journal.clone(), 1 << 20).await.unwrap();
    assert_eq!(journal.accept(&big, true, None, 1).await.unwrap(), Accepted::New);
    assert!(journal.writable());
    assert_eq!(reopen(dir.path(), journal).await.found.len(), 1);
}

pub(super) fn failed(verdict: Verdict, effect: Effect) -> Outcome {
    Outcome::Failed(Failure::new(verdict, effect, Code::TargetTimeout, "no answer"))
}

/// Accepts, journals an intent if `intent`, ends and has acknowledged an attempt that may leave `part-N`.
pub(super) async fn through(journal: &Journal, job: &Job, intent: bool, outcome: Outcome) {
    let part = Some(format!("part-{}", job.attempt.number));
    journal.accept(job, true, part, 1).await.unwrap();
    if intent {
        journal.intent(job.attempt, clock::now(), &json!({"of": job.attempt.number})).await.unwrap();
    }
    journal.finish(&report(job, outcome), false, Some(row())).await.unwrap();
    journal.acked(job.attempt);
    journal.flush().await.unwrap();
}

pub(super) async fn parts(journal: &Journal) -> Vec<String> {
    let mut parts: Vec<String> =
        journal.leftovers(clock::unix_seconds()).await.unwrap().into_iter().map(|l| l.part).collect();
    parts.sort();
    parts
}

#[tokio::test]
async fn a_withdrawn_intent_is_not_gone_on_with_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    through(&journal, &job(1, 1), true, failed(Verdict::Retry, Effect::Unknown)).await;
    let second = job(1, 2);
    assert!(matches!(journal.accept(&second, true, None, 1).await.unwrap(), Accepted::Continues(_)));
    journal.withdraw(second.attempt).await.unwrap();
    let opened = reopen(dir.path(), journal).await;
    let [Found::Job(again, _)] = opened.found.as_slice() else { panic!("{:?}", opened.found) };
    assert_eq!(again.intent, None);
    opened
        .journal
        .finish(&report(&second, failed(Verdict::Retry, Effect::NotApplied)), false, Some(row()))
        .await
        .unwrap();
    opened.journal.acked(second.attempt);
    assert_eq!(opened.journal.accept(&job(1, 3), true, None, 1).await.unwrap(), Accepted::New);
}

#[tokio::test]
async fn a_full_journal_forgets_what_it_only_remembers_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    journal.measure().await.unwrap();
    let empty = journal.bytes();
    let filled = |mut job: Job| {
        job.payload = Payload::Inline(vec![7; 100_000].into());
        job.envelope.exp = clock::unix_seconds() + 10;
        job.ticket.exp = job.envelope.exp;
        job
    };
    for n in 0..20 {
        journal.accept(&filled(job(n, 1)), true, None, 1).await.unwrap();
    }
    assert!(journal.bytes() >= empty + 20 * 100_000, "what was accepted counts before it is measured");
    journal.measure().await.unwrap();
    assert!(journal.bytes() >= empty + 20 * 100_000);
    let big =
        |n| Outcome::Succeeded { result: json!({"x": "x".repeat(7_000)}), output: None, receipt: Some(n) };
    for n in 2..20 {
        journal.finish(&report(&job(n, 1), big(String::new())), false, Some(row())).await.unwrap();
    }
    // Acknowledged, but not these: one's effect is unknown, one has a part to be removed, one runs, one is reportable.
    through(&journal, &filled(job(20, 1)), true, failed(Verdict::Permanent, Effect::Unknown)).await;
    through(&journal, &filled(job(21, 1)), false, failed(Verdict::Permanent, Effect::NotApplied)).await;
    (3..20).for_each(|n| journal.acked(job(n, 1).attempt));
    let now = clock::unix_seconds();
    assert_eq!(journal.relieve(now).await.unwrap(), 0, "their envelopes could still be replayed");
    assert_eq!(journal.relieve(now + 60).await.unwrap(), 17);
    let pages = journal.bytes();
    let opened = reopen(dir.path(), journal).await;
    assert_eq!(opened.found.len(), 3, "{:?}", opened.found);
    assert_eq!(parts(&opened.journal).await, ["part-1"]);
    assert!(matches!(
        opened.journal.accept(&job(20, 2), true, None, 1).await.unwrap(),
        Accepted::Continues(_)
    ));
    opened.journal.measure().await.unwrap();
    assert!(opened.journal.bytes() < pages + 1_000_000, "{} after {pages}", opened.journal.bytes());
}
