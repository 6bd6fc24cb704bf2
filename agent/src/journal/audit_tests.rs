//! The audit in the journal: what is in one transaction, what a crash and a broken file leave, the older format.

use super::*;
use crate::audit::{Kind, line, segments::Segments, verify};
use std::fs;
use tests::{denied, job, reopen, report, succeeded};

/// The kinds of all rows, after checking that they are a chain.
async fn kinds(journal: &Journal) -> Vec<String> {
    let mut walk = verify::Walk::default();
    let mut kinds = Vec::new();
    for (seq, text) in journal.audit_after(0, 1000).await.unwrap() {
        assert!(walk.step(&text, || seq.to_string()), "{walk:?}");
        kinds.push(line::read(&text).unwrap().0.kind);
    }
    kinds
}

async fn one_job(journal: &Journal, n: u8) {
    let job = job(n, 1);
    journal.accept(&job, true, None, 2).await.unwrap();
    journal.started(job.attempt, job.accepted_at);
    journal.note(Entry::about(Kind::Started, &job));
    let outcome = succeeded();
    let entry = Entry::ended(&job, &outcome);
    journal.finish(&report(&job, outcome), false, Some(entry)).await.unwrap();
}

#[tokio::test]
async fn each_decision_and_effect_is_a_row_of_the_same_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let before = journal.writer.commits();
    one_job(&journal, 1).await;
    assert_eq!(journal.writer.commits() - before, 2, "the audit cost a commit");
    let denied_job = job(2, 1);
    let outcome = denied();
    let entry = Entry::ended(&denied_job, &outcome).rule(&denied_job, 3);
    journal.accept_finished(&denied_job, &report(&denied_job, outcome), entry).await.unwrap();
    // A repeated offer is no second acceptance.
    journal.accept(&denied_job, true, None, 1).await.unwrap();
    assert_eq!(kinds(&journal).await, ["chain_started", "accepted", "started", "succeeded", "denied"]);
    let rows = journal.audit_after(1, 1).await.unwrap();
    let (accepted, _) = line::read(&rows[0].1).unwrap();
    assert_eq!(
        (accepted.rule.as_deref(), accepted.detail.as_deref()),
        (Some("compta#2"), Some("path \"a.csv\""))
    );
    assert_eq!(accepted.job, Some(job(1, 1).attempt.job.to_string()));
    // What was answered is there after a crash; the chain goes on.
    let journal = reopen(dir.path(), journal).await.journal;
    one_job(&journal, 3).await;
    assert_eq!(kinds(&journal).await.len(), 8);
}

#[tokio::test]
async fn refusals_cost_no_sync_each_and_a_failed_transaction_loses_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let before = journal.writer.commits();
    for _ in 0..5000 {
        journal.refused(Entry::new(Kind::OfferRefused).code(passerelle_protocol::Code::SignatureInvalid));
    }
    assert!(journal.needs_flush());
    journal.flush().await.unwrap();
    assert_eq!(journal.writer.commits() - before, 1);
    assert_eq!(kinds(&journal).await.len(), 21);
    // The end tells what was only counted.
    journal.close().await;
    let journal = Journal::open(dir.path()).unwrap().journal;
    let rows = journal.audit_after(21, 10).await.unwrap();
    let (row, _) = line::read(&rows[0].1).unwrap();
    assert_eq!((rows.len(), row.count), (1, Some(4980)));
}

#[tokio::test]
async fn rows_that_are_filed_leave_the_journal_but_for_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    for n in 0..10 {
        one_job(&journal, n).await;
    }
    let rows = journal.audit_after(0, 1000).await.unwrap();
    let mut segments = Segments::open(dir.path()).unwrap();
    segments.append(&rows, 2000).unwrap();
    segments.note_head().unwrap();
    journal.audit_filed(31);
    journal.flush().await.unwrap();
    assert_eq!(journal.audit_after(0, 1000).await.unwrap().len(), 1);
    one_job(&journal, 11).await;
    journal.close().await;
    let verdict = verify::state_folder(dir.path(), vec![segments.filed]).unwrap();
    assert!(verdict.ok && verdict.rows == 34, "{verdict:?}");
}

/// A state folder whose journal and files hold ten jobs.
async fn filled(dir: &Path) {
    let journal = Journal::open(dir).unwrap().journal;
    for n in 0..10 {
        one_job(&journal, n).await;
    }
    let mut segments = Segments::open(dir).unwrap();
    segments.append(&journal.audit_after(0, 25).await.unwrap(), 2000).unwrap();
    segments.note_head().unwrap();
    journal.close().await;
}

#[tokio::test]
async fn every_kind_of_tampering_is_found_at_its_place() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let verify = || verify::state_folder(dir.path(), Vec::new()).unwrap();
    assert!(verify().ok && verify().rows == 31, "{:?}", verify());
    let folder = dir.path().join("audit");
    let files = segments::list(&folder).unwrap();
    assert!(files.len() > 3);
    let path = &files[1].path;
    let whole = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let second = files[1].first;
    let without = [&lines[..1], &lines[2..]].concat();
    let swapped = [&[lines[1], lines[0]], &lines[2..]].concat();
    let doubled = [&lines[..1], &lines[..]].concat();
    for (what, text, row) in [
        ("changed", whole.replacen("compta", "compte", 1), second),
        ("removed", joined(&without), second + 2),
        ("swapped", joined(&swapped), second + 1),
        ("doubled", joined(&doubled), second),
        ("cut off", joined(&lines[..lines.len() - 1]), files[2].first),
        ("empty", String::new(), files[2].first),
        ("foreign", format!("{{}}\n{whole}"), second),
        ("half a line", format!("{}\n{whole}", &lines[0][..20]), second),
    ] {
        fs::write(path, text).unwrap();
        let verdict = verify();
        assert_eq!(verdict.broken.map(|broken| broken.seq), Some(row), "{what}");
    }
    fs::write(path, &whole).unwrap();
    // The beginning taken away.
    fs::rename(&files[0].path, dir.path().join("away")).unwrap();
    assert!(verify().broken.unwrap().why.contains("no row tells of a cut"));
    fs::rename(dir.path().join("away"), &files[0].path).unwrap();
    // The newest row of a running agent, half written.
    let newest = &files.last().unwrap().path;
    let text = fs::read_to_string(newest).unwrap();
    fs::write(newest, format!("{text}{{\"seq\":26")).unwrap();
    assert!(verify().ok);
    // A journal that was taken away together with its rows is not seen by the files alone, but by what is kept elsewhere.
    let head: line::Head = verify().head.parse().unwrap();
    fs::remove_file(dir.path().join(FILE)).unwrap();
    assert!(verify().ok);
    assert!(!verify::state_folder(dir.path(), vec![head]).unwrap().ok);
    // The end of the files cut off as well.
    fs::remove_file(newest).unwrap();
    assert!(verify().broken.unwrap().why.contains("had been written"));
}

#[tokio::test]
async fn a_lost_or_corrupt_journal_is_told_of_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    fs::remove_file(dir.path().join(FILE)).unwrap();
    let journal = Journal::open(dir.path()).unwrap().journal;
    let rows = journal.audit_after(0, 10).await.unwrap();
    let (row, head) = line::read(&rows[0].1).unwrap();
    assert_eq!((rows.len(), row.kind.as_str(), head.seq), (1, "journal_replaced", 26));
    journal.close().await;
    let verdict = verify::state_folder(dir.path(), Vec::new()).unwrap();
    assert!(verdict.ok, "{verdict:?}");
    // The files were cut too: the numbers of rows that had been seen are not used again.
    let files = segments::list(&dir.path().join("audit")).unwrap();
    fs::remove_file(&files.last().unwrap().path).unwrap();
    fs::write(dir.path().join(FILE), vec![7; 50_000]).unwrap();
    let opened = Journal::open(dir.path()).unwrap();
    assert!(opened.set_aside.is_some());
    assert_eq!(kinds_loosely(&opened.journal).await, ["rows_missing", "journal_replaced"]);
    opened.journal.close().await;
    let verdict = verify::state_folder(dir.path(), Vec::new()).unwrap();
    assert!(verdict.ok && verdict.head.starts_with("27:"), "{verdict:?}");
}

/// The kinds of the rows in the journal, which begin somewhere.
async fn kinds_loosely(journal: &Journal) -> Vec<String> {
    let rows = journal.audit_after(0, 1000).await.unwrap();
    rows.iter().map(|(_, text)| line::read(text).unwrap().0.kind).collect()
}

#[tokio::test]
async fn a_journal_of_the_second_format_gets_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let old = Connection::open(dir.path().join(FILE)).unwrap();
    schema::make_format_2(&old);
    old.execute_batch(
        "INSERT INTO attempts (job, attempt, state, resource, envelope, ticket, at_hub, expires, accepted_at, acked_at)
         VALUES (x'00112233445566778899aabbccddeeff', 1, 4, 'compta', '', '', 0, 99999999999, 0, 1)",
    )
    .unwrap();
    drop(old);
    let journal = Journal::open(dir.path()).unwrap().journal;
    assert_eq!(kinds(&journal).await, ["chain_started"]);
    let kept: i64 = journal
        .writer
        .read(|c| c.query_row("SELECT count(*) FROM attempts", [], |row| row.get(0)))
        .await
        .unwrap();
    assert_eq!(kept, 1);
}
