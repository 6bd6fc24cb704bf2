//! Upserts: once, whatever gets lost and whoever races.

use super::memory::{Job, Memory, Mishap, abilities, crm, run};
use crate::{Code, Effect, Failure, Verdict};
use serde_json::{Value, json};
use std::sync::Arc;

fn upsert(key: &str, email: &str) -> Value {
    json!({ "entity": "contact", "key": { "external_id": key }, "fields": { "email": email } })
}

fn outcome(result: &Value) -> &str {
    result["outcome"].as_str().unwrap()
}

fn refused(failure: &Failure) -> (Verdict, Effect, Code) {
    (failure.verdict, failure.effect, failure.code)
}

/// Without versions and unique keys, with both, and with each.
fn kinds() -> Vec<Arc<Memory>> {
    [(false, false), (true, false), (false, true), (true, true)]
        .map(|(versions, unique)| Arc::new(Memory::new(abilities(versions, unique, false))))
        .into()
}

#[tokio::test]
async fn twice_is_once_and_each_outcome_is_told() {
    for memory in kinds() {
        let crm = crm(&memory);
        let created = run(&crm, "upsert", &upsert("a", "a@x")).await.unwrap();
        assert_eq!((outcome(&created), created["id"].as_str()), ("created", Some("1")));
        assert_eq!(outcome(&run(&crm, "upsert", &upsert("a", "a@x")).await.unwrap()), "unchanged");
        let writes = *memory.writes.lock().unwrap();
        let updated = run(&crm, "upsert", &upsert("a", "b@x")).await.unwrap();
        assert_eq!((outcome(&updated), updated["id"].as_str()), ("updated", Some("1")));
        assert_eq!(*memory.writes.lock().unwrap(), writes + 1);
        assert_eq!(updated["version"].is_string(), memory.abilities.versions);
        assert_eq!(memory.emails(), ["1: b@x"]);
    }
}

#[tokio::test]
async fn many_at_once_of_one_new_key_make_one_record() {
    for memory in kinds() {
        let crm = Arc::new(crm(&memory));
        let tries: Vec<_> = (0..16).map(|i| upsert("a", &format!("{i}@x"))).collect();
        let runs = tries.iter().map(|params| run(&crm, "upsert", params));
        for done in futures_util::future::join_all(runs).await {
            done.unwrap();
        }
        assert_eq!(memory.records.lock().unwrap().len(), 1, "{:?}", memory.abilities);
    }
}

#[tokio::test]
async fn two_agents_that_race_leave_one_record() {
    for round in 0..20 {
        let memory = Arc::new(Memory::new(abilities(false, false, false)));
        memory.awake();
        // Each agent has locks of its own.
        let (one, two) = (crm(&memory), crm(&memory));
        let (a, b) = (upsert("a", &format!("{round}@one")), upsert("a", &format!("{round}@two")));
        let (first, second) = tokio::join!(run(&one, "upsert", &a), run(&two, "upsert", &b));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(memory.records.lock().unwrap().len(), 1);
        assert_eq!(first["id"], second["id"], "{first} {second}");
    }
}

#[tokio::test]
async fn a_race_is_settled_though_the_target_writes_values_in_its_own_way() {
    for round in 0..20 {
        let memory = Arc::new(Memory { trims: true, ..Memory::new(abilities(false, false, false)) });
        memory.awake();
        let (one, two) = (crm(&memory), crm(&memory));
        let (a, b) = (upsert("a", &format!(" {round}@one ")), upsert("a", &format!(" {round}@two ")));
        let (first, second) = tokio::join!(run(&one, "upsert", &a), run(&two, "upsert", &b));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(memory.records.lock().unwrap().len(), 1);
        assert_eq!(first["id"], second["id"], "{first} {second}");
    }
}

#[tokio::test]
async fn a_record_that_does_not_show_its_key_is_a_strangers() {
    for unique in [false, true] {
        let memory = Memory::new(abilities(false, unique, false));
        let memory = Arc::new(Memory { drops: Some("guid"), ignores_filter: true, ..memory });
        memory.awake();
        let crm = crm(&memory);
        let failure = run(&crm, "upsert", &upsert("a", "a@x")).await.unwrap_err();
        assert_eq!(refused(&failure), (Verdict::Permanent, Effect::NotApplied, Code::InvalidParams));
        assert!(failure.message.contains("fields.external_id"), "{failure}");
        assert!(memory.emails().is_empty(), "every repetition would make another one");
        memory.insert(&[("email", "stranger@x")]);
        let key = json!({ "entity": "contact", "key": { "external_id": "a" } });
        let mut dry = upsert("a", "a@x");
        dry["dry_run"] = json!(true);
        for (operation, params) in
            [("upsert", upsert("a", "a@x")), ("upsert", dry), ("get", key.clone()), ("delete", key)]
        {
            let failure = run(&crm, operation, &params).await.unwrap_err();
            assert_eq!(
                (failure.effect, failure.code),
                (Effect::NotApplied, Code::TargetProtocol),
                "{params}"
            );
            assert!(failure.message.contains("external_id gave a record that does not show it"), "{failure}");
        }
        assert_eq!(memory.emails(), ["2: stranger@x"]);
    }
}

#[tokio::test]
async fn a_person_who_was_quicker_keeps_the_record() {
    for memory in kinds() {
        memory.awake();
        *memory.mishap.lock().unwrap() = Some(Mishap::CreateFirst);
        let crm = crm(&memory);
        let done = run(&crm, "upsert", &upsert("a", "a@x")).await.unwrap();
        assert_eq!(outcome(&done), "updated");
        assert_eq!(memory.emails(), ["1: a@x"]);
    }
}

#[tokio::test]
async fn a_change_in_between_is_not_overwritten() {
    let memory = Arc::new(Memory::new(abilities(true, false, false)));
    memory.insert(&[("guid", "a"), ("email", "old@x"), ("phone", "1")]);
    *memory.mishap.lock().unwrap() = Some(Mishap::ChangeFirst);
    let crm = crm(&memory);
    let done = run(&crm, "upsert", &upsert("a", "new@x")).await.unwrap();
    assert_eq!(outcome(&done), "updated");
    let records = memory.records.lock().unwrap();
    assert_eq!(
        (&records[&1].fields["email"], &records[&1].fields["phone"]),
        (&json!("new@x"), &json!("555"))
    );
}

#[tokio::test]
async fn a_stale_version_is_a_conflict_and_changes_nothing() {
    let memory = Arc::new(Memory::new(abilities(true, false, false)));
    memory.insert(&[("guid", "a"), ("email", "old@x")]);
    memory.set(1, "email", "newer@x");
    let crm = crm(&memory);
    let mut stale = upsert("a", "mine@x");
    stale["if_version"] = json!("1");
    let failure = run(&crm, "upsert", &stale).await.unwrap_err();
    assert_eq!(refused(&failure), (Verdict::Permanent, Effect::NotApplied, Code::TargetConflict));
    stale["if_version"] = json!("2");
    *memory.mishap.lock().unwrap() = Some(Mishap::ChangeFirst);
    let failure = run(&crm, "upsert", &stale).await.unwrap_err();
    assert_eq!(failure.code, Code::TargetConflict);
    assert_eq!(memory.emails(), ["1: newer@x"]);
    stale["if_version"] = json!("3");
    assert_eq!(outcome(&run(&crm, "upsert", &stale).await.unwrap()), "updated");
    let mut delete = json!({ "entity": "contact", "id": "1", "if_version": "1" });
    assert_eq!(run(&crm, "delete", &delete).await.unwrap_err().code, Code::TargetConflict);
    delete["if_version"] = json!("4");
    assert_eq!(outcome(&run(&crm, "delete", &delete).await.unwrap()), "deleted");
}

#[tokio::test]
async fn versions_that_a_target_has_not_are_refused() {
    let memory = Arc::new(Memory::new(abilities(false, false, false)));
    memory.insert(&[("guid", "a"), ("email", "old@x")]);
    let mut params = upsert("a", "mine@x");
    params["if_version"] = json!("1");
    assert_eq!(run(&crm(&memory), "upsert", &params).await.unwrap_err().code, Code::TargetUnsupported);
}

#[tokio::test]
async fn two_records_of_a_key_are_reported_and_none_is_chosen() {
    let memory = Arc::new(Memory::new(abilities(false, false, false)));
    memory.insert(&[("guid", "a"), ("email", "1@x")]);
    memory.insert(&[("guid", "a"), ("email", "2@x")]);
    let crm = crm(&memory);
    for (operation, params) in [
        ("upsert", upsert("a", "3@x")),
        ("get", json!({ "entity": "contact", "key": { "external_id": "a" } })),
        ("delete", json!({ "entity": "contact", "key": { "external_id": "a" } })),
    ] {
        let failure = run(&crm, operation, &params).await.unwrap_err();
        assert_eq!(failure.code, Code::TargetConflict);
        assert!(failure.message.contains("ids 1, 2"), "{failure}");
    }
    assert_eq!(memory.emails(), ["1: 1@x", "2: 2@x"]);
}

#[tokio::test]
async fn a_lost_reply_is_cleared_up_by_the_key() {
    for memory in kinds() {
        let crm = crm(&memory);
        *memory.mishap.lock().unwrap() = Some(Mishap::LoseReply);
        assert_eq!(outcome(&run(&crm, "upsert", &upsert("a", "a@x")).await.unwrap()), "created");
        *memory.mishap.lock().unwrap() = Some(Mishap::LoseReply);
        assert_eq!(outcome(&run(&crm, "upsert", &upsert("a", "b@x")).await.unwrap()), "updated");
        *memory.mishap.lock().unwrap() = Some(Mishap::LoseReply);
        let gone = json!({ "entity": "contact", "key": { "external_id": "a" } });
        assert_eq!(outcome(&run(&crm, "delete", &gone).await.unwrap()), "deleted");
        assert_eq!(outcome(&run(&crm, "delete", &gone).await.unwrap()), "already_absent");
        assert!(memory.emails().is_empty());
    }
}

#[tokio::test]
async fn what_is_still_unknown_is_said_and_the_next_attempt_finds_out() {
    for memory in kinds() {
        let crm = crm(&memory);
        let job = Job::new();
        for email in ["a@x", "b@x"] {
            *memory.mishap.lock().unwrap() = Some(Mishap::LoseRequest);
            let failure = job.attempt(&crm, "upsert", &upsert("a", email), false).await.unwrap_err();
            assert_eq!((failure.verdict, failure.effect), (Verdict::Retry, Effect::Unknown));
            job.attempt(&crm, "upsert", &upsert("a", email), true).await.unwrap();
            assert_eq!(memory.emails(), [format!("1: {email}")]);
        }
    }
}

#[tokio::test]
async fn an_older_attempt_that_comes_back_leaves_newer_writes() {
    for memory in kinds() {
        let crm = crm(&memory);
        memory.insert(&[("guid", "a"), ("email", "0@x"), ("phone", "0")]);
        let older = Job::new();
        let params = json!({
            "entity": "contact", "key": { "external_id": "a" }, "fields": { "email": "older@x", "phone": "1" },
        });
        // Its write is lost on the way; it will come back.
        *memory.mishap.lock().unwrap() = Some(Mishap::LoseRequest);
        older.attempt(&crm, "upsert", &params, false).await.unwrap_err();
        run(&crm, "upsert", &upsert("a", "newer@x")).await.unwrap();
        let done = older.attempt(&crm, "upsert", &params, true).await.unwrap();
        assert_eq!((outcome(&done), &done["superseded"]), ("updated", &json!(["email"])));
        let records = memory.records.lock().unwrap();
        // The field that nobody else wrote is written, the other one left.
        assert_eq!(
            (&records[&1].fields["email"], &records[&1].fields["phone"]),
            (&json!("newer@x"), &json!("1"))
        );
    }
}

#[tokio::test]
async fn an_older_deletion_that_comes_back_leaves_a_newer_record() {
    let memory = Arc::new(Memory::new(abilities(false, false, false)));
    let crm = crm(&memory);
    run(&crm, "upsert", &upsert("a", "old@x")).await.unwrap();
    let older = Job::new();
    let delete = json!({ "entity": "contact", "key": { "external_id": "a" } });
    assert_eq!(outcome(&older.attempt(&crm, "delete", &delete, false).await.unwrap()), "deleted");
    run(&crm, "upsert", &upsert("a", "new@x")).await.unwrap();
    assert_eq!(outcome(&older.attempt(&crm, "delete", &delete, true).await.unwrap()), "already_absent");
    assert_eq!(memory.emails(), ["2: new@x"]);
}

#[tokio::test]
async fn a_dropped_field_is_named_and_a_dropped_key_leaves_nothing() {
    for memory in [abilities(false, false, false), abilities(true, true, false)] {
        let memory = Arc::new(Memory { drops: Some("phone"), ..Memory::new(memory) });
        let crm = crm(&memory);
        let params = json!({
            "entity": "contact", "key": { "external_id": "a" }, "fields": { "email": "a@x", "phone": "1" },
        });
        for _ in 0..2 {
            let failure = run(&crm, "upsert", &params).await.unwrap_err();
            assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::InvalidParams));
            assert!(failure.message.contains("fields.phone"), "{failure}");
        }
        assert_eq!(memory.emails(), ["1: a@x"]);
    }
    let memory = Arc::new(Memory { drops: Some("guid"), ..Memory::new(abilities(false, false, false)) });
    memory.awake();
    let failure = run(&crm(&memory), "upsert", &upsert("a", "a@x")).await.unwrap_err();
    assert!(failure.message.contains("fields.external_id"), "{failure}");
    assert!(memory.emails().is_empty(), "every repetition would make another one");
}

#[tokio::test]
async fn a_dry_run_says_what_would_happen_and_does_nothing() {
    let memory = Arc::new(Memory::new(abilities(true, false, false)));
    let crm = crm(&memory);
    let dry = |mut params: Value| {
        params["dry_run"] = json!(true);
        params
    };
    let would = |result: Value| result["would"].as_str().unwrap().to_owned();
    assert_eq!(would(run(&crm, "upsert", &dry(upsert("a", "a@x"))).await.unwrap()), "created");
    memory.insert(&[("guid", "a"), ("email", "a@x")]);
    assert_eq!(would(run(&crm, "upsert", &dry(upsert("a", "a@x"))).await.unwrap()), "unchanged");
    let result = run(&crm, "upsert", &dry(upsert("a", "b@x"))).await.unwrap();
    assert_eq!(
        (&result["dry_run"], &result["id"], &result["errors"]),
        (&json!(true), &json!("1"), &json!([]))
    );
    assert_eq!(would(result), "updated");
    let key = json!({ "entity": "contact", "key": { "external_id": "a" } });
    assert_eq!(would(run(&crm, "delete", &dry(key.clone())).await.unwrap()), "deleted");
    assert_eq!((memory.emails(), *memory.writes.lock().unwrap()), (vec!["1: a@x".to_owned()], 0));
}

#[tokio::test]
async fn wrong_parameters_are_refused_with_the_word_named() {
    let memory = Arc::new(Memory::new(abilities(false, false, false)));
    let crm = crm(&memory);
    let contact = |more: Value| {
        let mut params = json!({ "entity": "contact" });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    for (operation, params, says) in [
        (
            "upsert",
            json!({ "entity": "contacts", "key": {}, "fields": {} }),
            "entity: this resource has no entity \"contacts\"",
        ),
        ("upsert", contact(json!({ "key": {}, "fields": {} })), "key: expected one field"),
        ("upsert", contact(json!({ "key": { "email": "a" }, "fields": {} })), "key: \"email\" is no key"),
        (
            "upsert",
            contact(json!({ "key": { "external_id": "" }, "fields": {} })),
            "key.external_id: must not be empty",
        ),
        (
            "upsert",
            contact(json!({ "key": { "external_id": "a" }, "fields": { "emial": "x" } })),
            "\"emial\"",
        ),
        (
            "upsert",
            contact(json!({ "key": { "external_id": "a" }, "fields": { "email": 5 } })),
            "fields.email: expected a string",
        ),
        (
            "upsert",
            contact(json!({ "key": { "external_id": "a" }, "fields": { "external_id": "b" } })),
            "fields.external_id: differs",
        ),
        ("get", contact(json!({})), "id, key: give one of them"),
        ("get", contact(json!({ "id": "1", "key": { "external_id": "a" } })), "id, key: give one of them"),
        ("get", contact(json!({ "id": "1", "fields": ["x"] })), "\"x\""),
        ("get", contact(json!({ "id": "." })), "id: dots alone are no id"),
        ("delete", contact(json!({ "id": ".." })), "id: dots alone are no id"),
        ("find", contact(json!({ "where": { "name": "x" } })), "where: entity contact has no field \"name\""),
        ("find", contact(json!({ "where": {}, "limit": 0 })), "limit"),
        ("changes", contact(json!({ "since": "soon" })), "since"),
        ("changes", contact(json!({ "cursor": "AAAA" })), "cursor"),
        ("call", json!({ "name": "drop_all" }), "name: this resource has no call \"drop_all\""),
        ("drop", json!({}), "no operation drop"),
        ("get", json!([]), "params: expected an object"),
    ] {
        let failure = run(&crm, operation, &params).await.unwrap_err();
        assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::InvalidParams), "{params}");
        assert!(failure.message.contains(says), "{params}: {failure}");
    }
}
