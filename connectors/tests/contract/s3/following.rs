//! What follows at a store once a file was taken or fetched: it is deleted or moved.

use crate::{
    cases::{self, failed},
    support::{Place, call, s3::Kind, sha256},
};
use passerelle_connectors::{Code, Effect, Patience, Seen, Settle, Settled, Verdict};
use serde_json::json;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What a store tells of an object.
async fn seen(place: &Place, path: &str) -> Seen {
    place.connector.triggers().unwrap().look(path, &patience()).await.unwrap().unwrap()
}

fn patience() -> Patience {
    Patience { timeout: Duration::from_secs(30), cancel: CancellationToken::new() }
}

async fn settle(place: &Place, file: &Seen, content: &[u8], move_to: Option<&str>) -> Settled {
    let (sha256, move_to) = (Some(sha256(content)), move_to.map(str::to_owned));
    let settle = Settle { id: Uuid::from_u128(7), file: file.clone(), sha256, move_to };
    place.connector.triggers().unwrap().settle(&settle, &patience()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_trigger_took_is_deleted_or_moved_unless_it_was_replaced() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, _store) = Place::s3(kind);
        let dropped = async |content: &[u8]| {
            place.drop(json!({"path": "in/a.csv"}), content).await.unwrap();
            seen(&place, "in/a.csv").await
        };
        let file = dropped(b"one").await;
        assert_eq!(settle(&place, &file, b"one", None).await, Settled::Deleted, "{kind:?}");
        assert!(!place.has("in/a.csv"));
        assert_eq!(settle(&place, &file, b"one", None).await, Settled::Gone);
        // A newer one of the same size stays, whatever its time.
        let old = dropped(b"old").await;
        dropped(b"new").await;
        for to in [None, Some("done/a.csv")] {
            assert_eq!(settle(&place, &old, b"old", to).await, Settled::Replaced, "{kind:?}");
        }
        assert_eq!(place.read("in/a.csv"), b"new");
        // Folders need not be there, and nothing is replaced.
        for (content, to) in [(b"two", "done/a.csv"), (b"tre", "done/a (2).csv")] {
            let file = dropped(content).await;
            assert_eq!(
                settle(&place, &file, content, Some("done/a.csv")).await,
                Settled::Moved(to.to_owned())
            );
            assert_eq!((place.read(to), place.has("in/a.csv")), (content.to_vec(), false));
            // A try that was cut off after the move: the copy says what it was, where the store keeps what is said of it.
            let again = settle(&place, &file, content, Some("done/a.csv")).await;
            let known = matches!(again, Settled::Moved(_)) && kind == Kind::S3s;
            assert!(known || again == Settled::Gone, "{kind:?}: {again:?}");
        }
        assert_eq!(place.parts(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_fetched_is_deleted_or_moved() {
    for kind in [Kind::Nanio, Kind::S3s] {
        let (place, _store) = Place::s3(kind);
        for (then, done) in [(json!("delete"), "deleted"), (json!({"move_to": "done/b.csv"}), "moved")] {
            place.drop(json!({"path": "a.csv"}), b"content").await.unwrap();
            let params = json!({"path": "a.csv", "then": then});
            let fetched = cases::then::fetch(&place, &call(), &params).await.unwrap();
            assert_eq!((&*fetched.then, fetched.content), (done, b"content".to_vec()), "{kind:?}");
            assert!(!place.has("a.csv"));
        }
        assert_eq!(place.read("done/b.csv"), b"content");
        // The place that it would move to is taken.
        place.drop(json!({"path": "a.csv"}), b"other").await.unwrap();
        let params = json!({"path": "a.csv", "then": {"move_to": "done/b.csv"}});
        let result = cases::then::fetch(&place, &call(), &params).await;
        failed(result.map(drop), Verdict::Permanent, Code::TargetConflict, Effect::NotApplied);
        assert_eq!((place.read("a.csv"), place.read("done/b.csv")), (b"other".to_vec(), b"content".to_vec()));
    }
}
