//! The cases. Each has keys of its own, so that they do not meet.

use crate::place::{Agent, Job, Place};
use passerelle_connectors::{Code, Effect, Failure, Verdict};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        /// Every case, one after the other.
        pub async fn all(place: &mut Place) {
            $(
                eprintln!("{}: {}", place.name, stringify!($case));
                $case(place).await;
            )+
        }
    };
}

cases! {
    upserts_tell_what_they_did,
    every_type_of_value_comes_back_as_it_was,
    many_at_once_of_one_key_make_one_record,
    agents_that_race_make_one_record,
    an_agent_that_is_killed_and_starts_again_makes_one_record,
    reading_by_id_by_key_and_by_search,
    deleting_twice_is_a_success,
    a_stale_version_is_a_conflict,
    two_records_of_one_key_are_a_conflict,
    a_refused_value_is_named,
    a_misspelt_field_is_named,
    a_feed_over_edits_misses_nothing_and_comes_to_rest,
    a_deletion_is_told_or_said_not_to_be,
    a_server_that_is_away_is_a_retry_and_cursors_go_on,
    // Last: some products lock whoever tries too often.
    wrong_credentials_are_tried_twice_at_most,
}

fn upsert(key: &str, email: &str) -> Value {
    json!({
        "entity": "contact", "key": { "external_id": key }, "fields": { "last_name": "Durand", "email": email },
    })
}

fn outcome(result: &Value) -> &str {
    result["outcome"].as_str().unwrap()
}

/// Nothing of the target's inside gets out.
fn discreet(place: &Place, failure: &Failure) {
    for secret in place.traits.secrets {
        assert!(!failure.message.contains(secret), "{secret:?} in {:?}", failure.message);
    }
    assert!(!failure.message.contains("127.0.0.1"), "{:?}", failure.message);
    assert!(failure.message.chars().count() < 700, "{:?}", failure.message);
}

async fn upserts_tell_what_they_did(place: &mut Place) {
    let agent = place.connector();
    agent.connector.probe(Duration::from_secs(10)).await.unwrap();
    let created = agent.run("upsert", upsert("u-1", "a@example.com")).await.unwrap();
    assert_eq!(outcome(&created), "created");
    let again = agent.run("upsert", upsert("u-1", "a@example.com")).await.unwrap();
    assert_eq!((outcome(&again), &again["id"]), ("unchanged", &created["id"]));
    let updated = agent.run("upsert", upsert("u-1", "b@example.com")).await.unwrap();
    assert_eq!((outcome(&updated), &updated["id"]), ("updated", &created["id"]));
    assert_eq!(updated["version"].is_string(), place.traits.versions, "{updated}");
    let records = place.server.records("u-1").await;
    assert_eq!(records.len(), 1);
    assert_eq!(
        (records[0].id.as_str(), records[0].email.as_str()),
        (created["id"].as_str().unwrap(), "b@example.com")
    );
    // A dry run changes nothing.
    let mut dry = upsert("u-1", "c@example.com");
    dry["dry_run"] = json!(true);
    assert_eq!(agent.run("upsert", dry).await.unwrap()["would"], "updated");
    assert_eq!(place.server.records("u-1").await, records);
}

async fn every_type_of_value_comes_back_as_it_was(place: &mut Place) {
    let agent = place.connector();
    for (index, name) in ["O'Brien \"x\" \\ & Söhne", "名前", "a%b_c", "x; --", "<b>"].iter().enumerate() {
        let key = format!("v-{index}'é&=+ %");
        let mut params = upsert(&key, "v@example.com");
        params["fields"]["last_name"] = json!(name);
        let created = agent.run("upsert", params.clone()).await.unwrap();
        assert_eq!(outcome(&created), "created", "{name}");
        assert_eq!(outcome(&agent.run("upsert", params).await.unwrap()), "unchanged", "{name}");
        let read =
            agent.run("get", json!({ "entity": "contact", "key": { "external_id": key } })).await.unwrap();
        assert_eq!((&read["id"], &read["fields"]["last_name"]), (&created["id"], &json!(name)));
        assert_eq!(read["fields"]["external_id"], json!(key));
    }
}

async fn many_at_once_of_one_key_make_one_record(place: &mut Place) {
    let agent = place.connector();
    let emails: Vec<String> = (0..8).map(|index| format!("m{index}@example.com")).collect();
    let runs = emails.iter().map(|email| agent.run("upsert", upsert("m-1", email)));
    for done in futures_util::future::join_all(runs).await {
        done.unwrap();
    }
    let records = place.server.records("m-1").await;
    assert_eq!(records.len(), 1, "{records:?}");
    assert!(emails.contains(&records[0].email));
}

async fn agents_that_race_make_one_record(place: &mut Place) {
    let agents: Vec<Agent> = (0..3).map(|_| place.connector()).collect();
    for round in 0..4 {
        let key = format!("r-{round}");
        let runs = agents.iter().enumerate().map(|(index, agent)| {
            let params = upsert(&key, &format!("r{index}@example.com"));
            // Each agent repeats what was a retry, as the hub has it do.
            async move {
                for _ in 0..10 {
                    match agent.run("upsert", params.clone()).await {
                        Ok(done) => return done,
                        Err(failure) => assert_eq!(failure.verdict, Verdict::Retry, "{failure}"),
                    }
                }
                panic!("the race does not end");
            }
        });
        let done = futures_util::future::join_all(runs).await;
        let records = place.server.records(&key).await;
        assert_eq!(records.len(), 1, "{records:?} {done:?}");
    }
}

async fn an_agent_that_is_killed_and_starts_again_makes_one_record(place: &mut Place) {
    for round in 0..12_u64 {
        let key = format!("k-{round:02}");
        let params = upsert(&key, "k@example.com");
        let job = Job::new();
        let agent = place.connector();
        // Cut off somewhere between the first request and the last answer.
        let cut = Duration::from_millis(3 + round * 4);
        drop(tokio::time::timeout(cut, job.attempt(&agent, "upsert", &params, false)).await);
        drop(agent);
        let agent = place.connector();
        let mut done = job.attempt(&agent, "upsert", &params, true).await;
        while done.as_ref().is_err_and(|failure| failure.verdict == Verdict::Retry) {
            done = job.attempt(&agent, "upsert", &params, true).await;
        }
        done.unwrap();
        // What the server was still doing when the agent died shows as well.
        let done = job.attempt(&agent, "upsert", &params, true).await.unwrap();
        assert_eq!(outcome(&done), "unchanged");
        let records = place.server.records(&key).await;
        assert_eq!(records.len(), 1, "{records:?}");
    }
}

async fn reading_by_id_by_key_and_by_search(place: &mut Place) {
    let agent = place.connector();
    let mut ids = BTreeSet::new();
    for index in 0..7 {
        let params = json!({
            "entity": "contact", "key": { "external_id": format!("s-{index}") },
            "fields": { "last_name": "Seeker", "email": "s@example.com", "phone": "0123" },
        });
        ids.insert(agent.run("upsert", params).await.unwrap()["id"].as_str().unwrap().to_owned());
    }
    let id = ids.first().unwrap().clone();
    let get = json!({ "entity": "contact", "id": id, "fields": ["last_name"] });
    let record = agent.run("get", get).await.unwrap();
    assert_eq!((&record["id"], &record["fields"]), (&json!(id), &json!({ "last_name": "Seeker" })));
    let mut find = json!({ "entity": "contact", "where": { "last_name": "Seeker" }, "limit": 3, "fields": ["external_id"] });
    let (mut found, mut pages) = (BTreeSet::new(), 0);
    loop {
        let page = agent.run("find", find.clone()).await.unwrap();
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 3);
        for item in items {
            assert!(found.insert(item["id"].as_str().unwrap().to_owned()), "{item} came twice");
            assert!(item["fields"]["external_id"].as_str().unwrap().starts_with("s-"));
        }
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(cursor) => find["cursor"] = json!(cursor),
            None => break,
        }
    }
    assert_eq!((&found, pages >= 3), (&ids, true));
    for params in [
        json!({ "entity": "contact", "id": "99999999" }),
        json!({ "entity": "contact", "key": { "external_id": "s-none" } }),
    ] {
        let failure = agent.run("get", params).await.unwrap_err();
        assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TargetNotFound), "{failure}");
        discreet(place, &failure);
    }
    let none = json!({ "entity": "contact", "where": { "last_name": "Nobody" } });
    assert_eq!(agent.run("find", none).await.unwrap()["items"], json!([]));
}

async fn deleting_twice_is_a_success(place: &mut Place) {
    let agent = place.connector();
    let by_key = json!({ "entity": "contact", "key": { "external_id": "d-1" } });
    let id = agent.run("upsert", upsert("d-1", "d@example.com")).await.unwrap()["id"].clone();
    assert_eq!(outcome(&agent.run("delete", by_key.clone()).await.unwrap()), "deleted");
    assert_eq!(outcome(&agent.run("delete", by_key).await.unwrap()), "already_absent");
    let by_id = json!({ "entity": "contact", "id": id });
    assert_eq!(outcome(&agent.run("delete", by_id).await.unwrap()), "already_absent");
    assert!(place.server.records("d-1").await.is_empty());
}

async fn a_stale_version_is_a_conflict(place: &mut Place) {
    let agent = place.connector();
    let id =
        agent.run("upsert", upsert("c-1", "c@example.com")).await.unwrap()["id"].as_str().unwrap().to_owned();
    let read = agent.run("get", json!({ "entity": "contact", "id": id })).await.unwrap();
    let mut params = upsert("c-1", "mine@example.com");
    if !place.traits.versions {
        params["if_version"] = json!("1");
        let failure = agent.run("upsert", params).await.unwrap_err();
        assert_eq!(failure.code, Code::TargetUnsupported, "{failure}");
        return;
    }
    params["if_version"] = read["version"].clone();
    place.server.edit(&id, "theirs@example.com").await;
    let failure = agent.run("upsert", params.clone()).await.unwrap_err();
    assert_eq!(
        (failure.verdict, failure.effect, failure.code),
        (Verdict::Permanent, Effect::NotApplied, Code::TargetConflict)
    );
    let delete = json!({ "entity": "contact", "id": id, "if_version": read["version"] });
    assert_eq!(agent.run("delete", delete).await.unwrap_err().code, Code::TargetConflict);
    assert_eq!(place.server.records("c-1").await[0].email, "theirs@example.com");
    let read = agent.run("get", json!({ "entity": "contact", "id": id })).await.unwrap();
    params["if_version"] = read["version"].clone();
    assert_eq!(outcome(&agent.run("upsert", params).await.unwrap()), "updated");
}

async fn two_records_of_one_key_are_a_conflict(place: &mut Place) {
    if place.traits.unique_keys {
        return;
    }
    let (one, two) = (
        place.server.insert("t-1", "1@example.com").await,
        place.server.insert("t-1", "2@example.com").await,
    );
    let before = place.server.records("t-1").await;
    let agent = place.connector();
    let failure = agent.run("upsert", upsert("t-1", "3@example.com")).await.unwrap_err();
    assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TargetConflict));
    assert!(failure.message.contains(&one) && failure.message.contains(&two), "{failure}");
    assert_eq!(place.server.records("t-1").await, before);
}

async fn a_refused_value_is_named(place: &mut Place) {
    if !place.traits.checks_email {
        return;
    }
    let failure = place.connector().run("upsert", upsert("e-1", "no address")).await.unwrap_err();
    assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::InvalidParams), "{failure}");
    assert!(failure.message.contains("fields.email"), "{failure}");
    discreet(place, &failure);
    assert!(place.server.records("e-1").await.is_empty());
}

async fn a_misspelt_field_is_named(place: &mut Place) {
    let agent = place.agent(Some("nickname"), false);
    let mut params = upsert("x-1", "x@example.com");
    params["fields"]["nickname"] = json!("Dudu");
    let failure = agent.run("upsert", params).await.unwrap_err();
    assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::InvalidParams), "{failure}");
    assert!(failure.message.contains("fields.nickname"), "{failure}");
    discreet(place, &failure);
}

/// Reads pages until there are no more, into the last state of each record; how many came.
async fn catch_up(agent: &Agent, cursor: &mut Option<String>, state: &mut BTreeMap<String, Value>) -> usize {
    let mut count = 0;
    loop {
        let mut params = json!({ "entity": "contact", "limit": 7 });
        if let Some(cursor) = cursor.as_ref() {
            params["cursor"] = json!(cursor);
        }
        let page = agent.run("changes", params).await.unwrap();
        for item in page["items"].as_array().unwrap() {
            let state = state.entry(item["id"].as_str().unwrap().to_owned()).or_default();
            *state = if item["op"] == "delete" { Value::Null } else { item["fields"]["email"].clone() };
            count += 1;
        }
        *cursor = Some(page["next_cursor"].as_str().unwrap().to_owned());
        if page["more"] == false {
            return count;
        }
    }
}

async fn a_feed_over_edits_misses_nothing_and_comes_to_rest(place: &mut Place) {
    let mut ids = Vec::new();
    for index in 0..25 {
        ids.push(place.server.insert(&format!("f-{index}"), "0@example.com").await);
    }
    let (mut cursor, mut state) = (None, BTreeMap::new());
    let editing = async {
        for round in 1..=30 {
            for step in 0..3 {
                let id = &ids[(round * 7 + step * 11) % ids.len()];
                place.server.edit(id, &format!("{round}@example.com")).await;
            }
        }
    };
    let reading = async {
        for _ in 0..12 {
            // A new agent each time: cursors outlive restarts.
            catch_up(&place.connector(), &mut cursor, &mut state).await;
        }
    };
    tokio::join!(editing, reading);
    let agent = place.connector();
    catch_up(&agent, &mut cursor, &mut state).await;
    for record in place.server.records("f-").await {
        assert_eq!(state.get(&record.id), Some(&json!(record.email)), "{record:?}");
    }
    assert_eq!(catch_up(&agent, &mut cursor, &mut state).await, 0, "nothing has changed since");
    place.server.edit(&ids[3], "last@example.com").await;
    assert_eq!(catch_up(&agent, &mut cursor, &mut state).await, 1);
    let forged = cursor.unwrap().chars().rev().collect::<String>();
    let failure = agent.run("changes", json!({ "entity": "contact", "cursor": forged })).await.unwrap_err();
    assert_eq!(failure.code, Code::InvalidParams);
}

async fn a_deletion_is_told_or_said_not_to_be(place: &mut Place) {
    let agent = place.connector();
    let id =
        agent.run("upsert", upsert("g-1", "g@example.com")).await.unwrap()["id"].as_str().unwrap().to_owned();
    let (mut cursor, mut state) = (None, BTreeMap::new());
    catch_up(&agent, &mut cursor, &mut state).await;
    assert_eq!(state.get(&id), Some(&json!("g@example.com")));
    agent.run("delete", json!({ "entity": "contact", "id": id })).await.unwrap();
    catch_up(&agent, &mut cursor, &mut state).await;
    let told = state.get(&id) == Some(&Value::Null);
    let page = agent.run("changes", json!({ "entity": "contact", "cursor": cursor })).await.unwrap();
    assert_eq!(
        (told, page["complete_deletes"].as_bool()),
        (place.traits.tells_deletions, Some(place.traits.tells_deletions))
    );
}

async fn a_server_that_is_away_is_a_retry_and_cursors_go_on(place: &mut Place) {
    for index in 0..20 {
        place.server.insert(&format!("a-{index}"), "a@example.com").await;
    }
    let agent = place.connector();
    let page = agent.run("changes", json!({ "entity": "contact", "limit": 5 })).await.unwrap();
    assert_eq!(page["more"], true);
    place.server.stop();
    let next = json!({ "entity": "contact", "limit": 5, "cursor": page["next_cursor"] });
    let failure = agent.run("changes", next).await.unwrap_err();
    assert_eq!((failure.verdict, failure.effect), (Verdict::Retry, Effect::NotApplied), "{failure}");
    discreet(place, &failure);
    let failure = agent.run("upsert", upsert("a-away", "a@example.com")).await.unwrap_err();
    assert_eq!((failure.verdict, failure.effect), (Verdict::Retry, Effect::NotApplied), "{failure}");
    place.server.start();
    let mut state = BTreeMap::new();
    for item in page["items"].as_array().unwrap() {
        state.insert(item["id"].as_str().unwrap().to_owned(), item["fields"]["email"].clone());
    }
    let mut cursor = page["next_cursor"].as_str().map(str::to_owned);
    catch_up(&agent, &mut cursor, &mut state).await;
    for record in place.server.records("a-").await {
        assert!(state.contains_key(&record.id), "{record:?}");
    }
}

async fn wrong_credentials_are_tried_twice_at_most(place: &mut Place) {
    let before = place.server.refusals().await;
    let agent = place.agent(None, true);
    let get = json!({ "entity": "contact", "id": "1" });
    let runs = (0..10).map(|_| agent.run("get", get.clone()));
    for done in futures_util::future::join_all(runs).await {
        let failure = done.unwrap_err();
        assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TargetAuth), "{failure}");
        discreet(place, &failure);
    }
    assert_eq!(agent.connector.probe(Duration::from_secs(5)).await.unwrap_err().code, Code::TargetAuth);
    if let (Some(before), Some(after)) = (before, place.server.refusals().await) {
        assert!(after - before <= 2, "{} attempts", after - before);
    }
    // The right ones still work.
    place.connector().connector.probe(Duration::from_secs(10)).await.unwrap();
}
