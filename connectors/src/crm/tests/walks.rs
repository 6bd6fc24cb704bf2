//! Searches and change feeds: everything, in order, once.

use super::memory::{Memory, abilities, crm, run};
use crate::{
    Code, Patience, Start,
    crm::{Crm, dialect::Feed},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// What a consumer of the feed has seen.
#[derive(Default)]
struct Reader {
    cursor: Option<String>,
    /// How often each state of each record came: `id email`.
    seen: BTreeMap<String, usize>,
    state: BTreeMap<String, String>,
}

impl Reader {
    /// Reads one page; whether there is more.
    async fn page(&mut self, crm: &Crm, limit: usize) -> bool {
        let mut params = json!({ "entity": "contact", "limit": limit });
        if let Some(cursor) = &self.cursor {
            params["cursor"] = json!(cursor);
        }
        let page = run(crm, "changes", &params).await.unwrap();
        assert!(page["items"].as_array().unwrap().len() <= limit);
        assert_eq!(page["complete_deletes"], false);
        for item in page["items"].as_array().unwrap() {
            let (id, email) = (item["id"].as_str().unwrap(), item["fields"]["email"].as_str().unwrap());
            *self.seen.entry(format!("{id} {email}")).or_default() += 1;
            self.state.insert(id.to_owned(), email.to_owned());
        }
        let cursor = page["next_cursor"].as_str().unwrap().to_owned();
        assert!(cursor.len() <= 4096);
        self.cursor = Some(cursor);
        page["more"].as_bool().unwrap()
    }

    async fn catch_up(&mut self, crm: &Crm, limit: usize) {
        for _ in 0..10_000 {
            if !self.page(crm, limit).await {
                return;
            }
        }
        panic!("the feed does not end");
    }

    fn agrees_with(&self, memory: &Memory) {
        let records = memory.records.lock().unwrap();
        for (id, stored) in records.iter() {
            let seen = self.state.get(&id.to_string()).map(String::as_str);
            assert_eq!(seen, stored.fields["email"].as_str(), "record {id}");
        }
    }

    fn most(&self) -> usize {
        self.seen.values().copied().max().unwrap_or(0)
    }
}

#[tokio::test]
async fn a_quiet_feed_tells_each_record_once_and_then_nothing() {
    for keyset in [false, true] {
        for (step, limit) in [(0, 3), (0, 50), (300_000, 1), (300_000, 7), (5_000_000, 4)] {
            let memory = Arc::new(Memory::new(abilities(false, false, keyset)));
            memory.clock.lock().unwrap().1 = step;
            for i in 0..43 {
                memory.insert(&[("guid", &format!("k{i}")), ("email", "a@x")]);
            }
            let crm = crm(&memory);
            let mut reader = Reader::default();
            for _ in 0..3 {
                reader.catch_up(&crm, limit).await;
            }
            reader.agrees_with(&memory);
            assert_eq!(
                (reader.seen.len(), reader.most()),
                (43, 1),
                "keyset {keyset}, step {step}, limit {limit}"
            );
        }
    }
}

#[tokio::test]
async fn edits_while_it_reads_are_never_missed() {
    for keyset in [false, true] {
        for (step, limit) in [(20_000, 3), (100_000, 4), (100_000, 13), (1_000_000, 5)] {
            let memory = Arc::new(Memory::new(abilities(false, false, keyset)));
            memory.clock.lock().unwrap().1 = step;
            for i in 0..60 {
                memory.insert(&[("guid", &format!("k{i}")), ("email", "0@x")]);
            }
            let crm = crm(&memory);
            let mut reader = Reader::default();
            let mut random = 12_345_u64;
            for round in 0..150 {
                for _ in 0..3 {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    memory.set((random >> 33) % 60 + 1, "email", &format!("{round}@x"));
                }
                reader.page(&crm, limit).await;
            }
            reader.catch_up(&crm, limit).await;
            reader.agrees_with(&memory);
            let told = reader.seen.clone();
            reader.catch_up(&crm, limit).await;
            assert_eq!(reader.seen, told, "nothing more comes when nothing changes");
        }
    }
}

#[tokio::test]
async fn a_late_commit_with_an_old_time_is_told() {
    for (keyset, links) in [(false, false), (true, false), (false, true)] {
        let memory = Arc::new(Memory { links, ..Memory::new(abilities(false, false, keyset)) });
        memory.clock.lock().unwrap().1 = 1_000_000;
        for i in 0..20 {
            memory.insert(&[("guid", &format!("k{i}")), ("email", "a@x")]);
        }
        let crm = crm(&memory);
        let mut reader = Reader::default();
        reader.catch_up(&crm, 6).await;
        let late = memory.insert(&[("guid", "late"), ("email", "late@x")]);
        memory.records.lock().unwrap().get_mut(&late).unwrap().modified -= 12_000_000;
        reader.catch_up(&crm, 6).await;
        reader.agrees_with(&memory);
        assert_eq!((reader.seen.len(), reader.most()), (21, 1));
        assert_eq!(
            *memory.skipped.lock().unwrap() == 0,
            links,
            "where links lead on, nothing is read to be skipped"
        );
    }
}

#[tokio::test]
async fn more_of_one_time_than_a_cursor_remembers_is_told_whole() {
    for keyset in [false, true] {
        let memory = Arc::new(Memory {
            abilities: abilities(false, false, keyset),
            ..Memory::new(abilities(false, false, keyset))
        });
        memory.clock.lock().unwrap().1 = 0;
        for i in 0..1500 {
            memory.insert(&[("guid", &format!("k{i}")), ("email", "a@x")]);
        }
        let crm = crm(&memory);
        let mut reader = Reader::default();
        reader.catch_up(&crm, 100).await;
        reader.catch_up(&crm, 100).await;
        assert_eq!((reader.seen.len(), reader.most()), (1500, 1), "keyset {keyset}");
    }
}

#[tokio::test]
async fn a_record_dated_ahead_is_told_once_and_hides_nothing() {
    for keyset in [false, true] {
        for (limit, before) in [(1, 10), (3, 10), (50, 10), (3, 0)] {
            let memory = Arc::new(Memory::new(abilities(false, false, keyset)));
            memory.clock.lock().unwrap().1 = 1_000_000;
            for i in 0..before {
                memory.insert(&[("guid", &format!("k{i}")), ("email", "a@x")]);
            }
            for i in 0..7 {
                let ahead = memory.insert(&[("guid", &format!("ahead{i}")), ("email", "ahead@x")]);
                memory.records.lock().unwrap().get_mut(&ahead).unwrap().modified = 4_000_000_000_000_000 + i;
            }
            let crm = crm(&memory);
            let mut reader = Reader::default();
            reader.catch_up(&crm, limit).await;
            reader.agrees_with(&memory);
            for round in 0..6 {
                // Longer than what was told of late is remembered for.
                memory.clock.lock().unwrap().0 += 200_000_000;
                memory.insert(&[("guid", &format!("later{round}")), ("email", "later@x")]);
                if before > 0 {
                    memory.set(3, "email", &format!("{round}@x"));
                }
                reader.catch_up(&crm, limit).await;
                reader.agrees_with(&memory);
            }
            assert_eq!(reader.most(), 1, "keyset {keyset}, limit {limit}, before {before}");
        }
    }
}

#[tokio::test]
async fn more_records_dated_ahead_than_a_cursor_remembers_are_told_when_their_time_has_come() {
    let memory = Arc::new(Memory::new(abilities(false, false, false)));
    for i in 0..130 {
        let ahead = memory.insert(&[("guid", &format!("k{i}")), ("email", "a@x")]);
        memory.records.lock().unwrap().get_mut(&ahead).unwrap().modified = 4_000_000_000_000_000;
    }
    let crm = crm(&memory);
    let mut reader = Reader::default();
    reader.catch_up(&crm, 40).await;
    reader.catch_up(&crm, 40).await;
    assert_eq!((reader.seen.len(), reader.most()), (100, 1));
    let target_is_ahead = 4_000_000_000_000 - jiff::Timestamp::now().as_millisecond();
    crm.exchange.ahead_ms.store(target_is_ahead, std::sync::atomic::Ordering::Relaxed);
    reader.catch_up(&crm, 40).await;
    assert_eq!((reader.seen.len(), reader.most()), (130, 1));
}

#[tokio::test]
async fn a_cursor_that_stands_ahead_of_the_targets_clock_comes_back() {
    let memory = Arc::new(Memory::new(abilities(false, false, false)));
    let ahead = memory.insert(&[("guid", "a"), ("email", "a@x")]);
    memory.records.lock().unwrap().get_mut(&ahead).unwrap().modified = 4_000_000_000_000_000;
    let crm = crm(&memory);
    let clock = |ahead_ms| crm.exchange.ahead_ms.store(ahead_ms, std::sync::atomic::Ordering::Relaxed);
    let mut reader = Reader::default();
    // Its clock was wrong once, so that the cursor went there.
    clock(4_000_000_000_000 - jiff::Timestamp::now().as_millisecond());
    reader.catch_up(&crm, 5).await;
    clock(0);
    reader.catch_up(&crm, 5).await;
    memory.clock.lock().unwrap().0 = jiff::Timestamp::now().as_microsecond() + 2_000_000;
    memory.insert(&[("guid", "b"), ("email", "b@x")]);
    reader.catch_up(&crm, 5).await;
    reader.agrees_with(&memory);
}

#[tokio::test]
async fn records_of_one_time_in_another_order_each_time_are_all_told() {
    for limits in [[2, 7, 3, 4], [1, 2, 1, 4], [7, 3, 2, 1]] {
        let abilities = crate::crm::dialect::Abilities {
            feed: Feed::Time { granularity: Duration::from_secs(1), keyset: false, ties_ordered: false },
            ..abilities(false, false, false)
        };
        let memory = Arc::new(Memory { shuffles: true, ..Memory::new(abilities) });
        for step in [0, 1_000_000, 0] {
            memory.clock.lock().unwrap().1 = step;
            for i in 0..12 {
                memory.insert(&[("guid", &format!("{step} {i}")), ("email", "a@x")]);
            }
        }
        let crm = crm(&memory);
        let mut reader = Reader::default();
        let mut quiet = 0;
        for limit in limits.into_iter().cycle().take(1000) {
            quiet = if reader.page(&crm, limit).await { 0 } else { quiet + 1 };
            if quiet == 4 {
                break;
            }
        }
        assert_eq!(quiet, 4, "the feed ends");
        reader.agrees_with(&memory);
        assert_eq!((reader.seen.len(), reader.most()), (36, 1), "{limits:?}");
    }
}

#[tokio::test]
async fn a_server_that_ignores_the_filter_is_not_synced_from() {
    let memory = Arc::new(Memory { ignores_filter: true, ..Memory::new(abilities(false, false, false)) });
    for i in 0..3 {
        memory.insert(&[("guid", &format!("k{i}")), ("email", "a@x")]);
    }
    let crm = crm(&memory);
    let params = json!({ "entity": "contact", "since": "2030-01-01T00:00:00Z" });
    let failure = run(&crm, "changes", &params).await.unwrap_err();
    assert_eq!(failure.code, Code::TargetProtocol);
    assert!(failure.message.contains("refuses to sync"), "{failure}");
}

#[tokio::test]
async fn since_and_now_tell_nothing_older() {
    let memory = Arc::new(Memory::new(abilities(false, false, false)));
    memory.clock.lock().unwrap().1 = 10_000_000;
    for i in 0..8 {
        memory.insert(&[("guid", &format!("k{i}")), ("email", "a@x")]);
    }
    let crm = crm(&memory);
    // The fifth one, to the second.
    let params = json!({ "entity": "contact", "since": "2023-11-14T22:14:10Z" });
    let page = run(&crm, "changes", &params).await.unwrap();
    let ids: Vec<_> =
        page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["5", "6", "7", "8"]);
    assert_eq!(page["items"][0]["key"], json!({ "external_id": "k4" }));

    let patience = Patience { timeout: Duration::from_secs(5), cancel: CancellationToken::new() };
    let feeds: &dyn crate::Feeds = &crm;
    let start = feeds.changes("contact", Start::Now, 10, &patience).await.unwrap();
    assert!(start.items.is_empty() && !start.more);
    memory.clock.lock().unwrap().0 = jiff::Timestamp::now().as_microsecond();
    memory.set(3, "email", "new@x");
    let page = feeds.changes("contact", Start::Cursor(&start.next_cursor), 10, &patience).await.unwrap();
    let changes: Vec<_> = page.items.iter().map(|change| change.id.as_str()).collect();
    assert_eq!(changes, ["3"]);
    assert!(!page.items[0].stamp.is_empty());
}

#[tokio::test]
async fn a_cursor_serves_only_what_it_was_made_for() {
    let memory = Arc::new(Memory::new(abilities(false, false, false)));
    for i in 0..12 {
        memory.insert(&[("guid", &format!("k{i}")), ("email", if i % 2 == 0 { "even@x" } else { "odd@x" })]);
    }
    let crm = crm(&memory);
    let mut params = json!({ "entity": "contact", "where": { "email": "even@x" }, "limit": 4 });
    let page = run(&crm, "find", &params).await.unwrap();
    let ids = |page: &Value| -> Vec<String> {
        page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&page), ["1", "3", "5", "7"]);
    params["cursor"] = page["next_cursor"].clone();
    let last = run(&crm, "find", &params).await.unwrap();
    assert_eq!((ids(&last), &last["next_cursor"]), (vec!["9".to_owned(), "11".to_owned()], &Value::Null));
    params["where"] = json!({ "email": "odd@x" });
    assert_eq!(run(&crm, "find", &params).await.unwrap_err().code, Code::InvalidParams);
    let as_changes = json!({ "entity": "contact", "cursor": params["cursor"] });
    assert_eq!(run(&crm, "changes", &as_changes).await.unwrap_err().code, Code::InvalidParams);
}
