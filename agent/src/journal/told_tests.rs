//! Posts and changes in the journal: each once, and nothing of a page without its cursor.

use super::{
    Journal,
    events::{Content, Follow, Key, Taken, Told},
    told::{KEPT, Posted, Read},
};
use crate::{
    audit::{Entry, Kind},
    clock,
};
use bytes::Bytes;
use passerelle_connectors::Seen;
use passerelle_protocol::{CHANGE, EventId, NOTIFICATION, Name, Sha256};
use std::path::Path;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn open(dir: &Path) -> Journal {
    Journal::open(dir).unwrap().journal
}

fn event(kind: &str, of: &str, content: &str) -> Taken {
    Taken {
        id: EventId::of_digest(&Sha256::of(of.as_bytes())),
        key: Key { resource: name("orders"), trigger: name("orders") },
        kind: name(kind),
        lease: 0,
        occurred_at: clock::now(),
        seen: Seen { path: of.to_owned(), size: content.len() as u64, modified: None, inode: None },
        sha256: Sha256::of(content.as_bytes()),
        content: Content::Row(Bytes::copy_from_slice(content.as_bytes())),
        marker: None,
        follow: Follow::Keep,
        told: Some(Told { data: "{\"key\":1}".to_owned(), media_type: Some("text/plain".to_owned()) }),
    }
}

async fn post(journal: &Journal, key: &str, content: &str) -> Posted {
    let entry = Entry::new(Kind::PostTaken);
    journal.post(event(NOTIFICATION, key, content), key.to_owned(), entry).await.unwrap()
}

#[tokio::test]
async fn a_key_is_taken_once_also_after_its_event_is_gone_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    assert_eq!(post(&journal, "a", "1").await, Posted::New);
    assert_eq!(post(&journal, "a", "1").await, Posted::Known);
    assert_eq!(post(&journal, "a", "2").await, Posted::Other);
    let id = event(NOTIFICATION, "a", "").id;
    let waiting = journal.waiting(event(NOTIFICATION, "a", "").key, 0, 9).await.unwrap();
    let [one] = waiting.as_slice() else { panic!("{waiting:?}") };
    assert_eq!(one.taken.told, event(NOTIFICATION, "a", "1").told);
    assert_eq!(journal.waiting_listeners().await.unwrap(), [name("orders")]);
    assert_eq!(one.taken.content, Content::Row(Bytes::from_static(b"1")));
    journal.event_acked(id).await.unwrap().unwrap();
    assert_eq!(journal.event_place(id).await.unwrap().map(|place| place.seq), None);
    journal.close().await;
    let journal = open(dir.path());
    assert!(journal.waiting_listeners().await.unwrap().is_empty());
    assert_eq!(post(&journal, "a", "1").await, Posted::Known);
    assert_eq!(journal.posted(id, name("orders"), "a".to_owned()).await.unwrap(), Some(Sha256::of(b"1")));
    assert_eq!(journal.posted(id, name("tills"), "b".to_owned()).await.unwrap(), None);
}

#[tokio::test]
async fn keys_are_forgotten_when_they_are_old_or_room_is_short_but_not_while_their_event_waits() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    for (key, content) in [("a", "1"), ("b", "2")] {
        assert_eq!(post(&journal, key, content).await, Posted::New);
    }
    journal.event_acked(event(NOTIFICATION, "a", "").id).await.unwrap().unwrap();
    assert!(!journal.forget_posted(clock::now(), false).await.unwrap());
    assert_eq!(post(&journal, "a", "x").await, Posted::Other);
    let later = clock::now().checked_add(KEPT).unwrap().checked_add(KEPT).unwrap();
    assert!(!journal.forget_posted(later, false).await.unwrap());
    assert_eq!(post(&journal, "b", "x").await, Posted::Other, "its event waits");
    assert_eq!(post(&journal, "a", "x").await, Posted::New);
    assert!(!journal.forget_posted(clock::now(), true).await.unwrap());
    journal.event_acked(event(NOTIFICATION, "a", "").id).await.unwrap().unwrap();
    assert_eq!(post(&journal, "a", "1").await, Posted::New, "there was no room for its key");
}

#[tokio::test]
async fn a_page_is_journalled_with_its_cursor_and_once_however_often_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let key = event(CHANGE, "a", "").key;
    assert_eq!(journal.cursor(key.clone()).await.unwrap(), None);
    let page = |names: &[&str]| {
        names.iter().map(|of| (event(CHANGE, of, of), Entry::new(Kind::ChangeTaken))).collect::<Vec<_>>()
    };
    let read = |lease, cursor: &str| Read { lease, cursor: cursor.to_owned() };
    let new = journal.changes(key.clone(), page(&["a", "b"]), read(1, "one")).await.unwrap();
    assert_eq!(new, [event(CHANGE, "a", "").id, event(CHANGE, "b", "").id]);
    let new = journal.changes(key.clone(), page(&["b", "c"]), read(1, "two")).await.unwrap();
    assert_eq!(new, [event(CHANGE, "c", "").id]);
    journal.close().await;
    let journal = open(dir.path());
    assert_eq!(journal.cursor(key.clone()).await.unwrap(), Some(read(1, "two")));
    assert_eq!(journal.waiting(key.clone(), 0, 9).await.unwrap().len(), 3);
    assert!(journal.changes(key.clone(), Vec::new(), read(2, "three")).await.unwrap().is_empty());
    assert_eq!(journal.cursor(key).await.unwrap(), Some(read(2, "three")));
}
