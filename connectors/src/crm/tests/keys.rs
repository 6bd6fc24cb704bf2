//! Whose record is whose: keys that are nearly the same, searches of several pages, and creations that are answered with a
//! record that was there before.

use super::memory::{Job, Memory, Mishap, abilities, crm, run};
use crate::{Code, Effect, Verdict};
use serde_json::{Value, json};
use std::sync::Arc;

/// What is in it is old; what is written after [`Memory::awake`] is new.
fn memory() -> Memory {
    Memory::new(abilities(false, false, false))
}

fn upsert(key: &str, email: &str) -> Value {
    json!({ "entity": "contact", "key": { "external_id": key }, "fields": { "email": email } })
}

fn of_key(key: &str) -> Value {
    json!({ "entity": "contact", "key": { "external_id": key } })
}

#[tokio::test]
async fn a_record_that_was_there_before_is_never_taken_back() {
    // With another key, without one, and merged with all that was sent.
    for (stranger, keeps) in [
        (&[("guid", "OTHER"), ("email", "m@x")][..], &["guid", "email"][..]),
        (&[("guid", "OTHER"), ("email", "m@x")], &["guid"]),
        (&[("email", "m@x")], &["guid", "email"]),
        (&[("guid", ""), ("email", "m@x")], &["guid", "email"]),
        (&[("email", "m@x"), ("phone", "555")], &["guid"]),
    ] {
        for unique in [false, true] {
            let memory = Memory { abilities: abilities(false, unique, false), ..memory() };
            let id = memory.insert(stranger);
            memory.awake();
            let memory = Arc::new(Memory { merges: Some((id, keeps)), ..memory });
            let failure = run(&crm(&memory), "upsert", &upsert("NEW1", "n@x")).await.unwrap_err();
            assert_eq!(
                (failure.verdict, failure.effect, failure.code),
                (Verdict::Permanent, Effect::Unknown, Code::TargetConflict),
                "{stranger:?} {failure}"
            );
            assert!(failure.message.contains("(ids 1)") && failure.message.contains("stays"), "{failure}");
            assert_eq!(memory.emails().len(), 1, "{stranger:?}");
        }
    }
}

#[tokio::test]
async fn what_lost_its_key_is_taken_back_only_if_it_was_surely_made_now() {
    for (exists, tells_making) in [(true, true), (true, false), (false, false), (false, true)] {
        let memory = Memory { drops: Some("guid"), tells_making, ..memory() };
        // Merged, it looks just like a new one.
        let merges = exists.then(|| (memory.insert(&[("email", "n@x")]), &[][..]));
        memory.awake();
        let memory = Arc::new(Memory { merges, ..memory });
        let failure = run(&crm(&memory), "upsert", &upsert("NEW1", "n@x")).await.unwrap_err();
        assert!(failure.message.contains("misspelt"), "{failure}");
        if !exists && tells_making {
            assert_eq!(
                (failure.effect, failure.code),
                (Effect::NotApplied, Code::InvalidParams),
                "{failure}"
            );
            assert!(memory.emails().is_empty());
        } else {
            assert_eq!((failure.effect, failure.code), (Effect::Unknown, Code::TargetConflict), "{failure}");
            assert_eq!(memory.emails(), ["1: n@x"]);
        }
    }
}

#[tokio::test]
async fn a_race_takes_nobody_elses_record() {
    // One that was merged with what was sent, and one that the answer names by mistake.
    for (stranger, is_merged) in
        [(&[("email", "n@x")][..], true), (&[("guid", "OTHER"), ("email", "n@x")], false)]
    {
        let memory = memory();
        let id = memory.insert(stranger);
        memory.awake();
        let merges = is_merged.then_some((id, &[][..]));
        let memory = Arc::new(Memory { merges, misnames: Some(id), ..memory });
        *memory.mishap.lock().unwrap() = Some(Mishap::CreateFirst);
        let failure = run(&crm(&memory), "upsert", &upsert("NEW1", "n@x")).await.unwrap_err();
        assert_eq!((failure.effect, failure.code), (Effect::Unknown, Code::TargetConflict), "{failure}");
        assert_eq!(memory.emails()[..2], ["1: n@x", "2: other@x"]);
    }
}

#[tokio::test]
async fn a_search_is_followed_to_its_end() {
    let memory = Arc::new(Memory { sparse: true, ..memory() });
    let crm = crm(&memory);
    memory.insert(&[("guid", "a"), ("email", "1@x")]);
    let got = run(&crm, "get", &of_key("a")).await.unwrap();
    assert_eq!(got["id"], "1");
    let mut dry = upsert("a", "2@x");
    dry["dry_run"] = json!(true);
    assert_eq!(run(&crm, "upsert", &dry).await.unwrap()["would"], "updated");
    assert_eq!(run(&crm, "upsert", &upsert("a", "2@x")).await.unwrap()["outcome"], "updated");
    memory.insert(&[("guid", "a"), ("email", "3@x")]);
    for (operation, params) in [("upsert", upsert("a", "4@x")), ("get", of_key("a")), ("delete", of_key("a"))]
    {
        let failure = run(&crm, operation, &params).await.unwrap_err();
        assert_eq!(failure.code, Code::TargetConflict, "{operation}");
        assert!(failure.message.contains("ids 1, 2"), "{failure}");
    }
    assert_eq!(memory.emails(), ["1: 2@x", "2: 3@x"]);
    assert_eq!(
        run(&crm, "delete", &json!({ "entity": "contact", "id": "2" })).await.unwrap()["outcome"],
        "deleted"
    );
    assert_eq!(run(&crm, "delete", &of_key("a")).await.unwrap()["outcome"], "deleted");
}

#[tokio::test]
async fn a_search_without_end_is_refused_and_nothing_written() {
    let memory = Arc::new(Memory { sparse: true, ..memory() });
    for _ in 0..8 {
        memory.insert(&[("guid", "b"), ("email", "b@x")]);
    }
    memory.insert(&[("guid", "a"), ("email", "a@x")]);
    let crm = crm(&memory);
    for (operation, params) in [("upsert", upsert("a", "4@x")), ("get", of_key("a")), ("delete", of_key("a"))]
    {
        let failure = run(&crm, operation, &params).await.unwrap_err();
        assert_eq!((failure.code, failure.effect), (Code::TargetProtocol, Effect::NotApplied), "{operation}");
        assert!(failure.message.contains("has no end after 10 pages"), "{failure}");
    }
    assert_eq!(*memory.writes.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_key_that_differs_in_case_or_spaces_is_somebody_elses() {
    let memory = Arc::new(Memory { folds: true, ..memory() });
    memory.insert(&[("guid", "Ab3"), ("email", "theirs@x")]);
    let crm = crm(&memory);
    for key in ["aB3", "Ab3 "] {
        for (operation, params) in
            [("upsert", upsert(key, "ours@x")), ("get", of_key(key)), ("delete", of_key(key))]
        {
            let failure = run(&crm, operation, &params).await.unwrap_err();
            assert_eq!(
                (failure.verdict, failure.effect, failure.code),
                (Verdict::Permanent, Effect::NotApplied, Code::TargetConflict),
                "{operation} {key:?} {failure}"
            );
            assert!(failure.message.contains("only in case or spaces"), "{failure}");
        }
        let mut dry = upsert(key, "ours@x");
        dry["dry_run"] = json!(true);
        assert_eq!(run(&crm, "upsert", &dry).await.unwrap()["would"], "conflict");
    }
    assert_eq!(memory.emails(), ["1: theirs@x"]);
    assert_eq!(run(&crm, "upsert", &upsert("Ab3", "theirs2@x")).await.unwrap()["outcome"], "updated");
    // Where both are there, each is found by its own.
    memory.insert(&[("guid", "aB3"), ("email", "ours@x")]);
    assert_eq!(run(&crm, "get", &of_key("aB3")).await.unwrap()["id"], "2");
    assert_eq!(run(&crm, "delete", &of_key("Ab3")).await.unwrap()["outcome"], "deleted");
    assert_eq!(memory.emails(), ["2: ours@x"]);
}

#[tokio::test]
async fn two_spellings_of_a_uuid_are_one_key() {
    let memory = Arc::new(Memory { folds: true, ..memory() });
    memory.insert(&[("guid", "5236125b-1930-446b-adef-1fdcd94d6edf"), ("email", "1@x")]);
    let done =
        run(&crm(&memory), "upsert", &upsert("5236125B-1930-446B-ADEF-1FDCD94D6EDF", "2@x")).await.unwrap();
    assert_eq!((&done["outcome"], &done["id"]), (&json!("updated"), &json!("1")));
}

#[tokio::test]
async fn what_somebody_wrote_into_a_record_of_an_interrupted_creation_stays() {
    for unique in [false, true] {
        let memory = Arc::new(Memory { abilities: abilities(false, unique, false), ..memory() });
        let crm = crm(&memory);
        let job = Job::new();
        let mut params = upsert("a", "n@x");
        params["fields"]["phone"] = json!("1");
        // The creation happens, and the agent never learns it; the look that follows finds out, but is not kept either.
        *memory.mishap.lock().unwrap() = Some(Mishap::LoseReply);
        job.attempt(&crm, "upsert", &params, false).await.unwrap();
        memory.set(1, "email", "by-hand@x");
        memory.set(1, "phone", "");
        let again = job.attempt(&crm, "upsert", &params, true).await.unwrap();
        assert_eq!((&again["outcome"], &again["superseded"]), (&json!("updated"), &json!(["email"])));
        assert_eq!(memory.emails(), ["1: by-hand@x"]);
        // The third run is bound by what the first one saw.
        let again = job.attempt(&crm, "upsert", &params, true).await.unwrap();
        assert_eq!((&again["outcome"], &again["superseded"]), (&json!("unchanged"), &json!(["email"])));
    }
}

#[tokio::test]
async fn a_creation_whose_answer_names_another_record_is_found_by_its_key() {
    for unique in [false, true] {
        let memory = Memory { abilities: abilities(false, unique, false), ..memory() };
        let memory = Arc::new(Memory { misnames: Some(777), ..memory });
        let done = run(&crm(&memory), "upsert", &upsert("a", "a@x")).await.unwrap();
        assert_eq!((&done["outcome"], &done["id"]), (&json!("created"), &json!("1")));
        assert_eq!(memory.emails(), ["1: a@x"]);
    }
}
