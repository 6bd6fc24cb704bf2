//! Blobs: whole and resumed uploads, digests, disk full, isolation.

use super::*;
use crate::testing::{Hub, name};
use futures_util::stream;
use std::convert::Infallible;

fn body(chunks: &[&str]) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
    let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from((*chunk).to_owned()))).collect();
    stream::iter(chunks)
}

/// A body whose connection breaks after `chunk`.
fn broken(chunk: &str) -> impl Stream<Item = Result<Bytes, String>> + Send + use<> {
    stream::iter([Ok(Bytes::from(chunk.to_owned())), Err("connection reset".to_owned())])
}

fn files_in(folder: std::path::PathBuf) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

async fn content(blobs: &Blobs, id: BlobId) -> Vec<u8> {
    match blobs.open(name("acme"), id).await.unwrap().1 {
        Content::File(path) => std::fs::read(path).unwrap(),
        Content::Bytes(bytes) => bytes.to_vec(),
    }
}

#[tokio::test]
async fn the_same_content_is_stored_once_under_two_ids() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let put = |media: Option<&str>| {
        let (blobs, media) = (blobs.clone(), media.map(str::to_owned));
        async move {
            let expected = Some(Sha256::of(b"one two"));
            blobs.put_stream(name("acme"), media, expected, body(&["one", " two"])).await.unwrap()
        }
    };
    let (first, second) = (put(Some("text/plain")).await, put(None).await);
    assert_ne!(first.id, second.id);
    assert_eq!((first.size, first.sha256), (7, Sha256::of(b"one two")));
    assert_eq!(content(&blobs, second.id).await, b"one two");
    let digest = first.sha256.to_string();
    assert_eq!(files_in(hub.dir.path().join("blobs").join(&digest[..2])), 1);
    assert_eq!(files_in(hub.dir.path().join("uploads")), 0);
    assert!(matches!(blobs.info(name("other"), first.id).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_wrong_digest_or_a_broken_body_leaves_nothing() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let wrong = blobs.put_stream(name("acme"), None, Some(Sha256::of(b"x")), body(&["y"])).await;
    assert_eq!(wrong, Err(Error::DigestMismatch { expected: Sha256::of(b"x"), actual: Sha256::of(b"y") }));
    let cut = blobs.put_stream(name("acme"), None, None, broken("half")).await;
    assert!(matches!(cut, Err(Error::BadRequest(_))), "{cut:?}");
    assert_eq!(files_in(hub.dir.path().join("uploads")), 0);
    assert_eq!(files_in(hub.dir.path().join("blobs")), 0);
}

#[tokio::test]
async fn an_upload_goes_on_where_it_stood_after_a_cut_and_a_restart() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let expected = Some(Sha256::of(b"onetwothree"));
    let id = blobs.create_upload(name("acme"), None, 11, expected).await.unwrap();
    let stands = blobs.append(name("acme"), id, 0, None, broken("one")).await.unwrap();
    assert_eq!(stands, UploadOffset { offset: 3, length: 11, blob: None });
    assert_eq!(blobs.append(name("acme"), id, 0, None, body(&["one"])).await, Err(Error::Offset(3)));
    drop(blobs);
    let hub = hub.restart().await;
    let blobs = Blobs::new(hub.store.clone());
    assert_eq!(blobs.upload_offset(name("acme"), id).await.unwrap().offset, 3);
    assert_eq!(blobs.append(name("acme"), id, 3, None, body(&["two"])).await.unwrap().offset, 6);
    let done = blobs.append(name("acme"), id, 6, None, body(&["th", "ree"])).await.unwrap();
    let blob = done.blob.clone().unwrap();
    assert_eq!((done.offset, blob.id, blob.sha256), (11, id, Sha256::of(b"onetwothree")));
    assert_eq!(blobs.upload_offset(name("acme"), id).await.unwrap(), done);
    assert_eq!(content(&blobs, id).await, b"onetwothree");
    assert_eq!(files_in(hub.dir.path().join("uploads")), 0);
}

#[tokio::test]
async fn a_wrong_upload_begins_anew_and_a_longer_one_is_refused() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let id = blobs.create_upload(name("acme"), None, 3, Some(Sha256::of(b"abc"))).await.unwrap();
    let wrong = blobs.append(name("acme"), id, 0, None, body(&["abx"])).await;
    assert!(matches!(wrong, Err(Error::DigestMismatch { .. })));
    assert_eq!(blobs.upload_offset(name("acme"), id).await.unwrap().offset, 0);
    assert!(matches!(
        blobs.append(name("acme"), id, 0, None, body(&["abcd"])).await,
        Err(Error::TooLarge(_))
    ));
    assert!(blobs.append(name("acme"), id, 0, None, body(&["abc"])).await.unwrap().blob.is_some());
    for (tenant, id) in [("other", id), ("acme", BlobId::from(clock::new_uuid7()))] {
        assert!(matches!(blobs.upload_offset(name(tenant), id).await, Err(Error::NotFound(_))));
    }
}

#[tokio::test]
async fn an_empty_upload_is_complete_at_once() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let id = blobs.create_upload(name("acme"), None, 0, None).await.unwrap();
    assert_eq!(blobs.info(name("acme"), id).await.unwrap().sha256, Sha256::of(b""));
}

#[tokio::test]
async fn a_newer_request_ends_one_that_hangs() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let id = blobs.create_upload(name("acme"), None, 6, None).await.unwrap();
    let (sent, hanging) = tokio::sync::mpsc::channel::<Result<Bytes, Infallible>>(1);
    sent.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
    let stream = stream::unfold(hanging, |mut rx| async { rx.recv().await.map(|item| (item, rx)) });
    let older = blobs.clone();
    let older = tokio::spawn(async move { older.append(name("acme"), id, 0, None, stream).await });
    // Taken: the channel of one place is empty again.
    let _place = sent.reserve().await.unwrap();
    let stands = blobs.upload_offset(name("acme"), id).await.unwrap();
    assert_eq!(stands.offset, 3);
    // Who still listens learns that not all was taken, and from where to go on.
    assert!(matches!(older.await.unwrap(), Err(Error::Offset(3))));
    assert!(blobs.append(name("acme"), id, 3, None, body(&["def"])).await.unwrap().blob.is_some());
}

/// Bytes that come one by one, as from a slow line.
fn slow(count: u64) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold(0, move |at| async move {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        (at < count).then(|| (Ok(Bytes::from_static(b"x")), at + 1))
    })
}

#[tokio::test]
async fn of_several_requests_that_are_alive_one_goes_on() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let id = blobs.create_upload(name("acme"), None, 30, None).await.unwrap();
    let one = || blobs.append(name("acme"), id, 0, None, slow(30));
    let asked = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        blobs.upload_offset(name("acme"), id).await.unwrap()
    };
    let (a, b, c, d, stands) = tokio::join!(one(), one(), one(), one(), asked);
    let (done, refused): (Vec<_>, Vec<_>) = [a, b, c, d].into_iter().partition(Result::is_ok);
    assert_eq!((done.len(), refused.len()), (1, 3), "{refused:?}");
    assert!(done[0].as_ref().unwrap().blob.is_some());
    for answer in refused {
        assert!(matches!(answer, Err(Error::Busy(1..30))), "{answer:?}");
    }
    // Nor does a question end it.
    assert!((1..30).contains(&stands.offset), "{stands:?}");
}

#[tokio::test]
async fn of_two_that_are_silent_the_newer_has_its_turn() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let id = blobs.create_upload(name("acme"), None, 3, None).await.unwrap();
    let silent = stream::pending::<Result<Bytes, Infallible>>();
    let older = blobs.clone();
    let older = tokio::spawn(async move { older.append(name("acme"), id, 0, None, silent).await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    // One that is wrong about the offset ends nobody.
    assert_eq!(blobs.append(name("acme"), id, 2, None, body(&["abc"])).await, Err(Error::Offset(0)));
    assert!(!older.is_finished());
    assert!(blobs.append(name("acme"), id, 0, None, body(&["abc"])).await.unwrap().blob.is_some());
    assert_eq!(older.await.unwrap(), Err(Error::Busy(0)));
}

#[tokio::test]
async fn whoever_asks_while_an_upload_completes_is_told_where_it_stands() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    for _ in 0..40 {
        let id = blobs.create_upload(name("acme"), None, 6, None).await.unwrap();
        blobs.append(name("acme"), id, 0, None, body(&["abcde"])).await.unwrap();
        let last = blobs.clone();
        let last = tokio::spawn(async move { last.append(name("acme"), id, 5, None, body(&["f"])).await });
        loop {
            let stands = blobs.upload_offset(name("acme"), id).await.unwrap();
            assert!([5, 6].contains(&stands.offset), "{stands:?}");
            if stands.blob.is_some() {
                break;
            }
            // The request may have been ended before it began.
            if last.is_finished() && stands.offset == 5 {
                blobs.append(name("acme"), id, 5, None, body(&["f"])).await.unwrap();
            }
        }
        assert!(matches!(last.await.unwrap(), Ok(_) | Err(Error::Offset(5))));
        // Twice at once: one of them finds it complete.
        let id = blobs.create_upload(name("acme"), None, 3, None).await.unwrap();
        let one = || blobs.append(name("acme"), id, 0, None, body(&["abc"]));
        for answer in <[_; 2]>::from(tokio::join!(one(), one())) {
            assert!(matches!(answer, Ok(_) | Err(Error::Offset(0 | 3))), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn nothing_is_added_to_what_is_complete() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    for length in [0, 3] {
        let id = blobs.create_upload(name("acme"), None, length, None).await.unwrap();
        if length > 0 {
            blobs.append(name("acme"), id, 0, None, body(&["abc"])).await.unwrap();
        }
        let more = blobs.append(name("acme"), id, length, None, body(&["d"])).await;
        assert!(matches!(more, Err(Error::TooLarge(_))), "{more:?}");
        let nothing = blobs.append(name("acme"), id, length, None, body(&[])).await.unwrap();
        assert_eq!((nothing.offset, nothing.blob.is_some()), (length, true));
    }
}

#[tokio::test]
async fn a_full_disk_is_told_as_such() {
    let mut receiver = Receiver::open(std::path::Path::new("/dev/full")).await.unwrap();
    let taken = receiver.take_all(body(&["some bytes"]), 100).await;
    let synced = receiver.sync().await;
    assert!(taken == Err(Error::Full) || synced == Err(Error::Full), "{taken:?} {synced:?}");
}

#[tokio::test]
async fn a_tenant_has_so_many_open_uploads_at_most() {
    let hub = Hub::new().await;
    let blobs = Blobs::new(hub.store.clone());
    let most = 10_000;
    let rows = format!(
        "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {most})
         INSERT INTO uploads (id, tenant, length, created_at) SELECT randomblob(16), 'acme', 1, 0 FROM n"
    );
    hub.store.write(move |tx| Ok(tx.conn.execute_batch(&rows)?)).await.unwrap();
    blobs.create_upload(name("acme"), None, 1, None).await.unwrap();
    let refused = blobs.create_upload(name("acme"), None, 1, None).await.unwrap_err();
    assert!(matches!(&refused, Error::Quota(said) if said.contains("retention.uploads")), "{refused}");
    // Whole bodies are no open uploads, and what is given up makes room.
    put_small(&blobs).await;
    hub.store.write(|tx| Ok(tx.conn.execute("DELETE FROM uploads", [])?)).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while blobs.create_upload(name("acme"), None, 1, None).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

async fn put_small(blobs: &Blobs) {
    blobs.put_stream(name("acme"), None, None, body(&["x"])).await.unwrap();
}
