//! What every dialect must pass.

use crate::place::{KINDS, Kept, Kind, Place, call, call_with};
use futures_util::future::join_all;
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

fn by_key(operation: &str, key: &str) -> (String, Value) {
    (operation.to_owned(), json!({ "entity": "contact", "key": { "external_id": key } }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_made_once_changed_found_and_deleted() {
    for &kind in KINDS {
        let place = Place::start(kind);
        let agent = place.agent();
        agent.connector.probe(std::time::Duration::from_secs(10)).await.unwrap();
        let name = place.name();
        let fields = json!({ name: "O'Brien & <Söhne>", "email": "o@ex.org", "phone": "+33 1 23" });
        let made = agent.upsert("EXT-1", fields.clone()).await.unwrap();
        assert_eq!(made["outcome"], json!("created"), "{kind:?}");
        let again = agent.upsert("EXT-1", fields).await.unwrap();
        assert_eq!((&again["outcome"], &again["id"]), (&json!("unchanged"), &made["id"]), "{kind:?}");
        let other = agent.upsert("EXT-1", json!({ "email": "p@ex.org" })).await.unwrap();
        assert_eq!((&other["outcome"], &other["id"]), (&json!("updated"), &made["id"]), "{kind:?}");
        assert_eq!(place.contacts().rows().len(), 1, "{kind:?}");

        let (get, params) = by_key("get", "EXT-1");
        let got = agent.run(&get, params).await.unwrap();
        assert_eq!(got["fields"][name], json!("O'Brien & <Söhne>"), "{kind:?}");
        assert_eq!(got["fields"]["email"], json!("p@ex.org"), "{kind:?}");
        assert_eq!(got["fields"]["external_id"], json!("EXT-1"), "{kind:?}");
        let by_id = agent.run("get", json!({ "entity": "contact", "id": made["id"] })).await.unwrap();
        assert_eq!(by_id["fields"], got["fields"], "{kind:?}");
        let found = agent
            .run("find", json!({ "entity": "contact", "where": { "email": "p@ex.org" } }))
            .await
            .unwrap();
        assert_eq!(found["items"].as_array().unwrap().len(), 1, "{kind:?}");
        let none = agent
            .run("find", json!({ "entity": "contact", "where": { "email": "x@ex.org" } }))
            .await
            .unwrap();
        assert_eq!(none["items"], json!([]), "{kind:?}: an empty page is none of the errors");

        let (delete, params) = by_key("delete", "EXT-1");
        let gone = agent.run(&delete, params.clone()).await.unwrap();
        assert_eq!(gone["outcome"], json!("deleted"), "{kind:?}");
        let gone = agent.run(&delete, params).await.unwrap();
        assert_eq!(gone["outcome"], json!("already_absent"), "{kind:?}");
        let by_id = agent.run("delete", json!({ "entity": "contact", "id": made["id"] })).await.unwrap();
        assert_eq!(by_id["outcome"], json!("already_absent"), "{kind:?}");
        let (get, params) = by_key("get", "EXT-1");
        assert_eq!(agent.run(&get, params).await.unwrap_err().code, Code::TargetNotFound, "{kind:?}");
        let anew = agent.upsert("EXT-1", json!({ name: "Anew" })).await.unwrap();
        assert_eq!(anew["outcome"], json!("created"), "{kind:?}: after a deletion");
        let (get, params) = by_key("get", "EXT-1");
        assert_eq!(agent.run(&get, params).await.unwrap()["fields"][name], json!("Anew"), "{kind:?}");
        assert_eq!(place.contacts().rows().len(), 1, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upserts_of_one_key_at_once_make_one_record_even_from_two_agents() {
    for &kind in KINDS {
        let place = Place::start(kind);
        let agents = [place.agent(), place.agent()];
        let name = place.name();
        let all = (0..8).map(|i| agents[i % 2].upsert("EXT-1", json!({ name: format!("N{i}") })));
        let done = join_all(all).await;
        for outcome in &done {
            let fine = outcome.as_ref().is_ok_and(|done| done["id"].is_string())
                || outcome.as_ref().is_err_and(|failure| failure.verdict == Verdict::Retry);
            assert!(fine, "{kind:?}: {outcome:?}");
        }
        assert!(done.iter().any(Result::is_ok), "{kind:?}");
        assert_eq!(place.contacts().rows().len(), 1, "{kind:?}: {done:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_and_another_attempt_make_one_record() {
    for &kind in KINDS {
        let place = Place::start(kind);
        let agent = place.agent();
        let params = json!({
            "entity": "contact", "key": { "external_id": "EXT-1" }, "fields": { place.name(): "Durand" },
        });
        place.faults().lose(1, place.create());
        let gate = Arc::new(Kept::default());
        let first = agent.run_as(&call_with(gate.clone()), "upsert", params.clone()).await;
        if let Err(failure) = &first {
            assert_eq!((failure.verdict, failure.effect), (Verdict::Retry, Effect::Unknown), "{kind:?}");
        }
        assert_eq!(place.contacts().rows().len(), 1, "{kind:?}: the write happened");
        let mut second = call();
        second.attempt = 2;
        second.prior_intent = gate.0.lock().unwrap().clone();
        let done = agent.run_as(&second, "upsert", params).await.unwrap();
        assert_eq!(done["outcome"], json!("unchanged"), "{kind:?}");
        assert_eq!(place.contacts().rows().len(), 1, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_one_second_come_once_each_and_a_quiet_feed_is_quiet() {
    for &kind in KINDS {
        let place = Place::start(kind);
        let agent = place.agent();
        place.clock().hold("2026-11-21T21:05:21.302623Z");
        let ids: Vec<String> = (0..25).map(|i| place.add(&format!("K{i}"), "first")).collect();
        let (items, cursor) = agent.changes(None, 7).await;
        let mut told: Vec<&str> = items.iter().map(|item| item["id"].as_str().unwrap()).collect();
        told.sort_unstable();
        let mut expected: Vec<&str> = ids.iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(told, expected, "{kind:?}");
        assert!(items.iter().all(|item| item["key"]["external_id"].is_string()), "{kind:?}");

        let (quiet, cursor) = agent.changes(Some(cursor), 7).await;
        assert_eq!(quiet, Vec::<Value>::new(), "{kind:?}");
        // The same second again, and a later one; another agent goes on with the cursor.
        place.clock().forward(100_000);
        place.clock().forward(1_000_000);
        place.edit(&ids[3], "second");
        let (later, cursor) = place.agent().changes(Some(cursor), 7).await;
        assert_eq!(later.len(), 1, "{kind:?}: {later:?}");
        assert_eq!((&later[0]["id"], &later[0]["fields"][place.name()]), (&json!(ids[3]), &json!("second")));
        let (quiet, _) = agent.changes(Some(cursor), 7).await;
        assert_eq!(quiet, Vec::<Value>::new(), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_is_edited_and_stopped_while_it_is_read_loses_nothing() {
    for &kind in KINDS {
        let place = Place::start(kind);
        let agent = place.agent();
        place.clock().hold("2026-11-21T21:05:21.000001Z");
        let ids: Vec<String> = (0..60)
            .map(|i| {
                place.clock().forward(130_000);
                place.add(&format!("K{i}"), "0")
            })
            .collect();
        let mut last: BTreeMap<String, String> = BTreeMap::new();
        let mut cursor: Option<String> = None;
        let mut edits = 0;
        for round in 0..400 {
            if round == 5 {
                place.stop();
                let mut params = json!({ "entity": "contact", "limit": 7 });
                params["cursor"] = json!(cursor.clone().unwrap());
                let failure = agent.run("changes", params).await.unwrap_err();
                assert_eq!(failure.verdict, Verdict::Retry, "{kind:?}: {failure:?}");
                place.restart();
            }
            let mut params = json!({ "entity": "contact", "limit": 7 });
            if let Some(cursor) = &cursor {
                params["cursor"] = json!(cursor);
            }
            let page = agent.run("changes", params).await.unwrap();
            for item in page["items"].as_array().unwrap() {
                let name = item["fields"][place.name()].as_str().unwrap().to_owned();
                last.insert(item["id"].as_str().unwrap().to_owned(), name);
            }
            cursor = Some(page["next_cursor"].as_str().unwrap().to_owned());
            if edits < 30 {
                // Several a second, in front of and behind the place that is read.
                for step in 0..3 {
                    place.clock().forward(90_000);
                    place.edit(
                        &ids[(edits * 17 + step * 23) % ids.len()],
                        &format!("{}", edits * 3 + step + 1),
                    );
                }
                edits += 1;
            } else if page["more"] == json!(false) {
                break;
            }
        }
        assert_eq!(last.len(), ids.len(), "{kind:?}");
        let name = match kind {
            Kind::Odoo18 | Kind::Odoo19 => "name",
            Kind::EspoCrm | Kind::EspoCrmSigned => "lastName",
            Kind::Dolibarr => "lastname",
            Kind::SuiteCrm => "last_name",
        };
        for row in place.contacts().rows() {
            assert_eq!(json!(last[&row.id]), row.fields[name], "{kind:?}: {}", row.id);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_field_is_named_and_nothing_is_written_where_the_target_can_tell() {
    for &kind in KINDS {
        let place = Place::start(kind);
        let misspelt = "fields = { odd = \"no_such_field_at_all\" }\ntypes = { odd = \"text\" }";
        let agent = place.agent_with("good", misspelt);
        let failure = agent.upsert("EXT-1", json!({ place.name(): "Durand", "odd": "x" })).await.unwrap_err();
        assert_eq!(
            (failure.verdict, failure.code),
            (Verdict::Permanent, Code::InvalidParams),
            "{kind:?}: {failure:?}"
        );
        assert!(failure.message.contains("odd"), "{kind:?}: {}", failure.message);
        let expected = usize::from(kind == Kind::Dolibarr);
        assert_eq!(
            place.contacts().rows().len(),
            expected,
            "{kind:?}: only Dolibarr has to be asked afterwards"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_tried_twice_at_most() {
    for &kind in KINDS {
        let place = Place::start(kind);
        let agent = place.agent_with("bad", "");
        let keys: Vec<String> = (0..6).map(|i| format!("K{i}")).collect();
        let tries = join_all(keys.iter().map(|key| agent.upsert(key, json!({ place.name(): "x" })))).await;
        for failure in tries {
            let failure = failure.unwrap_err();
            assert_eq!(
                (failure.verdict, failure.code),
                (Verdict::Permanent, Code::TargetAuth),
                "{kind:?}: {failure:?}"
            );
            assert!(!failure.message.contains("no-such-secret"), "{kind:?}");
        }
        let refused = match kind {
            // Its log-in says false, with a 200.
            Kind::Odoo18 => place.odoo().logins.load(std::sync::atomic::Ordering::SeqCst),
            _ => place.refused(),
        };
        assert!((1..=2).contains(&refused), "{kind:?}: {refused}");
        assert!(place.contacts().rows().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_the_target_refuses_come_back_with_the_field_where_it_names_one() {
    for &kind in KINDS {
        let place = Place::start(kind);
        let agent = place.agent();
        let (fields, says) = match kind {
            Kind::Odoo18 | Kind::Odoo19 => (json!({ "name": "x", "country": "XX" }), "fields.country"),
            Kind::EspoCrm | Kind::EspoCrmSigned => {
                (json!({ "last_name": "x", "email": "nope" }), "fields.email")
            }
            Kind::Dolibarr => (json!({ "first_name": "x" }), "fields.last_name"),
            // It takes anything.
            Kind::SuiteCrm => continue,
        };
        let failure = agent.upsert("EXT-1", fields).await.unwrap_err();
        assert_eq!(
            (failure.verdict, failure.code),
            (Verdict::Permanent, Code::InvalidParams),
            "{kind:?}: {failure:?}"
        );
        assert!(failure.message.contains(says), "{kind:?}: {}", failure.message);
        assert!(place.contacts().rows().is_empty(), "{kind:?}");
    }
}
