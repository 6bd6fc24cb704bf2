//! What is left of a taken file in the journal, whatever it was cut off after.

use super::{
    Journal,
    events::{Content, Counts, Follow, Key, Taken, file_event},
};
use crate::{
    audit::{Entry, Kind},
    clock,
};
use passerelle_connectors::Seen;
use passerelle_protocol::{EventId, Name, PICKUP, Sha256, WATCH};
use std::path::Path;
use uuid::Uuid;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn key() -> Key {
    Key { resource: name("compta"), trigger: name("in") }
}

fn seen(path: &str, size: u64) -> Seen {
    Seen { path: path.to_owned(), size, modified: Some(clock::now()), inode: Some((1, size)) }
}

fn taken(seen: &Seen, kind: &str, follow: Follow, content: Content) -> Taken {
    let sha256 = Sha256::of(seen.path.as_bytes());
    Taken {
        id: file_event(seen, sha256).id(&name("paris"), &name("compta"), &name(kind)),
        key: key(),
        kind: name(kind),
        lease: 3,
        occurred_at: clock::now(),
        seen: seen.clone(),
        sha256,
        content,
        marker: Some(self::seen("a.csv.done", 0)),
        follow,
        told: None,
    }
}

fn row(kind: Kind) -> Entry {
    Entry::new(kind)
}

fn open(dir: &Path) -> Journal {
    Journal::open(dir).unwrap().journal
}

/// Ends the process as far as the journal can tell, and starts it again.
async fn restart(journal: Journal, dir: &Path) -> Journal {
    journal.close().await;
    open(dir)
}

async fn counts(journal: &Journal) -> Counts {
    journal.trigger_counts().await.unwrap().get(&key()).copied().unwrap_or_default()
}

async fn is_known(journal: &Journal, seen: &Seen) -> bool {
    let unknown = journal.unknown(name("compta"), name(PICKUP), vec![seen.clone()]).await;
    unknown.unwrap().is_empty()
}

#[tokio::test]
async fn cut_off_after_any_step_a_file_goes_on_from_there_and_is_known_throughout() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    let file = seen("a.csv", 7);
    for (follow, content) in [
        (Follow::Delete, Content::Row(bytes::Bytes::from_static(b"content"))),
        (Follow::MoveTo("done/a.csv".to_owned()), Content::Spool(Uuid::from_u128(5))),
    ] {
        assert!(!is_known(&journal, &file).await);
        let event = taken(&file, PICKUP, follow.clone(), content.clone());
        assert!(journal.take(event.clone(), false, row(Kind::FileTaken)).await.unwrap());
        journal = restart(journal, dir.path()).await;
        // Taken again, as by another trigger, it is the same.
        assert!(!journal.take(event.clone(), false, row(Kind::FileTaken)).await.unwrap());
        assert!(is_known(&journal, &file).await);
        assert_eq!(counts(&journal).await, Counts { waiting: 1, bytes: 7, ..Counts::default() });
        let waiting = journal.waiting(key(), 0, 10).await.unwrap();
        let read = &waiting[0].taken;
        assert_eq!((waiting.len(), &read.content, &read.seen, &read.follow), (1, &content, &file, &follow));
        assert_eq!((read.id, read.sha256, &read.marker), (event.id, event.sha256, &event.marker));
        let spooled = journal.spooled_events().await.unwrap();
        let token = if let Content::Spool(token) = content { Some(token) } else { None };
        assert_eq!(spooled, [(event.id, token, 7)]);

        let answered = journal.event_acked(event.id).await.unwrap().unwrap();
        assert_eq!((answered.spool, answered.follows), (token, true));
        journal = restart(journal, dir.path()).await;
        assert_eq!(journal.event_acked(event.id).await.unwrap(), None, "a second answer says nothing");
        assert!(journal.waiting(key(), 0, 10).await.unwrap().is_empty());
        assert!(is_known(&journal, &file).await);
        let unsettled = journal.unsettled(key(), 0, 10).await.unwrap();
        assert_eq!(unsettled.len(), 1);
        assert!(journal.unsettled(key(), unsettled[0], 10).await.unwrap().is_empty());
        let found = journal.unsettled_at(unsettled[0]).await.unwrap().unwrap();
        assert_eq!((&found.follow, &found.seen), (&follow, &file));

        journal.settled(event.id, Some(row(Kind::FileDeleted))).await.unwrap();
        assert!(journal.unsettled_at(unsettled[0]).await.unwrap().is_none());
        journal = restart(journal, dir.path()).await;
        assert_eq!(counts(&journal).await, Counts::default());
    }
}

#[tokio::test]
async fn a_kept_file_is_remembered_until_it_is_gone_and_a_refused_one_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    let (kept, dead) = (seen("kept.csv", 1), seen("dead.csv", 2));
    let content = || Content::Row(bytes::Bytes::from_static(b"x"));
    let mut ids: Vec<EventId> = Vec::new();
    for file in [&kept, &dead] {
        let event = taken(file, PICKUP, Follow::Keep, content());
        ids.push(event.id);
        assert!(journal.take(event, false, row(Kind::FileTaken)).await.unwrap());
    }
    assert!(!journal.event_acked(ids[0]).await.unwrap().unwrap().follows);
    let refused =
        journal.event_refused(ids[1], "too_large".to_owned(), row(Kind::EventRefused)).await.unwrap();
    assert!(refused.is_some());
    journal = restart(journal, dir.path()).await;
    assert_eq!(counts(&journal).await, Counts { dead: 1, ..Counts::default() });
    assert!(is_known(&journal, &kept).await && is_known(&journal, &dead).await);
    assert!(!is_known(&journal, &seen("kept.csv", 9)).await, "another file of that name");
    fn hash(path: &str) -> u64 {
        u64::from(path.as_bytes()[0])
    }
    let there = [hash("kept.csv"), hash("dead.csv")].into();
    assert_eq!(journal.forget_gone(key(), name(PICKUP), there, hash).await.unwrap(), 1);
    assert!(is_known(&journal, &kept).await && is_known(&journal, &dead).await);
    assert_eq!(journal.forget_gone(key(), name(PICKUP), [].into(), hash).await.unwrap(), 0);
    assert!(!is_known(&journal, &kept).await && !is_known(&journal, &dead).await);
}

#[tokio::test]
async fn a_watched_content_is_remembered_from_the_moment_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    let file = seen("prices.csv", 3);
    let event = taken(&file, WATCH, Follow::Keep, Content::Row(bytes::Bytes::from_static(b"abc")));
    assert!(journal.take(event.clone(), true, row(Kind::FileTaken)).await.unwrap());
    // A newer content was taken before the hub answered for this one: that stays remembered.
    let newer = seen("prices.csv", 4);
    let second = taken(&newer, WATCH, Follow::Keep, Content::Row(bytes::Bytes::from_static(b"abcd")));
    assert!(journal.take(second, true, row(Kind::FileTaken)).await.unwrap());
    journal.event_acked(event.id).await.unwrap().unwrap();
    journal = restart(journal, dir.path()).await;
    let remembered = journal.remembered(name("compta"), name(WATCH), "prices.csv".to_owned()).await.unwrap();
    assert_eq!(remembered.unwrap().0, newer);
    assert_eq!(journal.event_place(event.id).await.unwrap().map(|place| place.seq), None);
}
