//! One test per trap of a product.

use crate::place::{Agent, Kind, Place};
use passerelle_config::Diagnostics;
use passerelle_connectors::{Code, REGISTRY, Verdict};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

async fn get(agent: &Agent, key: &str) -> Value {
    agent.run("get", json!({ "entity": "contact", "key": { "external_id": key } })).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn espocrm_refuses_a_stale_version_and_keeps_the_newer_one() {
    let place = Place::start(Kind::EspoCrmSigned);
    let agent = place.agent();
    let made = agent.upsert("EXT-1", json!({ "last_name": "a" })).await.unwrap();
    place.edit(made["id"].as_str().unwrap(), "by hand");
    let mut params =
        json!({ "entity": "contact", "key": { "external_id": "EXT-1" }, "fields": { "last_name": "b" } });
    params["if_version"] = made["version"].clone();
    assert!(made["version"].is_string(), "{made}");
    let failure = agent.run("upsert", params.clone()).await.unwrap_err();
    assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TargetConflict), "{failure:?}");
    let now = get(&agent, "EXT-1").await;
    assert_eq!(now["fields"]["last_name"], json!("by hand"));
    params["if_version"] = now["version"].clone();
    assert_eq!(agent.run("upsert", params).await.unwrap()["outcome"], json!("updated"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn espocrms_look_for_duplicates_is_asked_only_if_the_operator_wants_it() {
    let place = Place::start(Kind::EspoCrm);
    place.add("other", "Durand");
    let done = place.agent().upsert("EXT-1", json!({ "last_name": "Durand" })).await.unwrap();
    assert_eq!(done["outcome"], json!("created"), "two people may have one name");
    let skipped = place
        .asked()
        .iter()
        .filter(|asked| asked.method == "POST")
        .all(|asked| asked.header("x-skip-duplicate-check") == Some("true"));
    assert!(skipped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_address_of_espocrm_is_told_as_such() {
    let place = Place::start(Kind::EspoCrm);
    for _ in 0..6 {
        // Each a new start of the agent, which tries again.
        let agent = place.agent_with("bad", "");
        for _ in 0..2 {
            agent.upsert("x", json!({ "last_name": "x" })).await.unwrap_err();
        }
    }
    let failure = place.agent().upsert("x", json!({ "last_name": "x" })).await.unwrap_err();
    assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TargetAuth));
    assert!(failure.message.contains("locked"), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_differ_in_case_alone_are_two_and_any_character_is_just_a_character() {
    for kind in [Kind::Dolibarr, Kind::EspoCrm, Kind::SuiteCrm, Kind::Odoo18] {
        let place = Place::start(kind);
        let agent = place.agent();
        let keys = [
            "ext-1",
            "EXT-1",
            "a:b",
            "a_b",
            "a b",
            "O'Brien",
            "x') or (1:=:1",
            "(t.rowid:>:0)",
            "100%",
            "50\\%",
            "é",
            "__NOW__",
            "<b>&amp;",
        ];
        for key in keys {
            let made = agent.upsert(key, json!({ place.name(): format!("of {key}") })).await;
            assert_eq!(
                made.as_ref().map(|made| &made["outcome"]).ok(),
                Some(&json!("created")),
                "{kind:?} {key}: {made:?}"
            );
        }
        for key in keys {
            let again = agent.upsert(key, json!({ place.name(): format!("of {key}") })).await.unwrap();
            assert_eq!(again["outcome"], json!("unchanged"), "{kind:?} {key}");
        }
        assert_eq!(place.contacts().rows().len(), keys.len(), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_records_of_one_key_are_a_conflict_that_names_them() {
    for kind in [Kind::Dolibarr, Kind::EspoCrm, Kind::SuiteCrm] {
        let place = Place::start(kind);
        let ids = [place.add("EXT-1", "a"), place.add("EXT-1", "b")];
        let failure = place.agent().upsert("EXT-1", json!({ "last_name": "c" })).await.unwrap_err();
        assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TargetConflict), "{kind:?}");
        assert!(ids.iter().all(|id| failure.message.contains(id)), "{kind:?}: {}", failure.message);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dolibarr_is_read_in_the_zone_of_its_server() {
    for offset in [0, 3600, -12_600, 49_500] {
        let place = Place::start(Kind::Dolibarr);
        place.dolibarr().offset_s.store(offset, Ordering::SeqCst);
        let agent = place.agent();
        place.clock().hold("2026-11-21T23:59:58Z");
        let mut ids = Vec::new();
        for i in 0..12 {
            ids.push(place.add(&format!("K{i}"), "a"));
            place.clock().forward(1_000_000);
        }
        let (all, cursor) = agent.changes(None, 5).await;
        assert_eq!(all.len(), 12, "{offset}");
        place.edit(&ids[0], "b");
        let (later, _) = agent.changes(Some(cursor), 5).await;
        assert_eq!(later.len(), 1, "{offset}: {later:?}");
        let params = json!({ "entity": "contact", "since": "2026-11-22T00:00:04Z", "limit": 100 });
        let since = agent.run("changes", params).await.unwrap();
        assert_eq!(since["items"].as_array().unwrap().len(), 7, "{offset}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dolibarr_is_read_across_a_change_of_its_clocks() {
    let place = Place::start(Kind::Dolibarr);
    let dolibarr = place.dolibarr();
    dolibarr.offset_s.store(7200, Ordering::SeqCst);
    let back: jiff::Timestamp = "2026-10-25T01:00:00Z".parse().unwrap();
    dolibarr.clocks_back.store(back.as_microsecond(), Ordering::SeqCst);
    place.clock().hold("2026-10-24T23:30:00Z");
    let mut ids = Vec::new();
    for i in 0..360 {
        ids.push(place.add(&format!("K{i}"), "a"));
        place.clock().forward(30_000_000);
    }
    let agent = place.agent();
    let id = |item: &Value| item["id"].as_str().unwrap().to_owned();
    let (all, cursor) = agent.changes(None, 90).await;
    assert_eq!(all.iter().map(id).collect::<Vec<_>>(), ids);
    place.edit(&ids[0], "b");
    let (later, _) = agent.changes(Some(cursor), 5).await;
    assert_eq!(later.iter().map(id).collect::<Vec<_>>(), ids[..1]);
    place.contacts().lock()[0].modified -= 3 * 3_600_000_000;
    for (since, first) in [
        ("2026-10-24T23:45:00Z", 30),
        ("2026-10-25T00:30:00Z", 120),
        ("2026-10-25T00:59:30Z", 179),
        ("2026-10-25T01:00:00Z", 180),
        ("2026-10-25T01:45:00Z", 270),
    ] {
        // Another agent, which knows nothing of the zone yet.
        let params = json!({ "entity": "contact", "since": since, "limit": 20 });
        let page = place.agent().run("changes", params).await.unwrap();
        let told: Vec<String> = page["items"].as_array().unwrap().iter().map(id).collect();
        assert_eq!(told, ids[first..first + 20], "{since}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dolibarr_that_ignores_filters_is_not_searched_for_ever() {
    let place = Place::start(Kind::Dolibarr);
    for i in 0..5300 {
        place.add(&format!("K{i}"), "a");
    }
    place.dolibarr().ignores_filters.store(true, Ordering::SeqCst);
    let failure = place.agent().upsert("EXT-1", json!({ "last_name": "x" })).await.unwrap_err();
    assert_eq!(failure.code, Code::TargetProtocol, "{failure:?}");
    assert!(failure.message.contains("ignores the filter"), "{failure:?}");
    assert!(place.asked().len() <= 60, "{}", place.asked().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dolibarr_that_misreads_times_ends_no_feed_without_a_word() {
    let place = Place::start(Kind::Dolibarr);
    place.clock().hold("2026-11-21T12:00:00Z");
    for i in 0..40 {
        place.add(&format!("K{i}"), "a");
        place.clock().forward(1_000_000);
    }
    let agent = place.agent();
    let page = agent.run("changes", json!({ "entity": "contact", "limit": 10 })).await.unwrap();
    assert_eq!(page["more"], json!(true));
    place.dolibarr().misreads_times.store(true, Ordering::SeqCst);
    let next = json!({ "entity": "contact", "limit": 10, "cursor": page["next_cursor"] });
    let failure = agent.run("changes", next.clone()).await.unwrap_err();
    assert_eq!(failure.code, Code::TargetProtocol, "{failure:?}");
    place.dolibarr().misreads_times.store(false, Ordering::SeqCst);
    assert_eq!(agent.run("changes", next).await.unwrap()["items"].as_array().unwrap().len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_make_one_record_of_a_second_key_of_suitecrm() {
    let place = Place::start(Kind::SuiteCrm);
    let keys = "key = [\"external_id\", \"email\"]";
    let (one, two) = (place.agent_with("good", keys), place.agent_with("good", keys));
    for round in 0..5 {
        let key = format!("{round}@example.com");
        let params = json!({ "entity": "contact", "key": { "email": key }, "fields": { "last_name": "x" } });
        let (a, b) = tokio::join!(one.run("upsert", params.clone()), two.run("upsert", params));
        assert_eq!(a.unwrap()["id"], b.unwrap()["id"], "{round}");
    }
    assert_eq!(place.contacts().rows().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suitecrm_gets_a_new_token_when_the_old_one_is_worthless() {
    let place = Place::start(Kind::SuiteCrm);
    let agent = place.agent();
    agent.upsert("EXT-1", json!({ "last_name": "a" })).await.unwrap();
    agent.upsert("EXT-2", json!({ "last_name": "a" })).await.unwrap();
    assert_eq!(place.suitecrm().token_requests.load(Ordering::SeqCst), 1);
    place.suitecrm().revoke();
    agent.upsert("EXT-1", json!({ "last_name": "b" })).await.unwrap();
    assert_eq!(place.suitecrm().token_requests.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suitecrm_finds_the_key_in_the_id_alone_and_after_deletions() {
    let place = Place::start(Kind::SuiteCrm);
    let agent = place.agent_with("good", "fields = { external_id = \"id\" }");
    for round in 0..3 {
        let made = agent.upsert("EXT-1", json!({ "last_name": format!("{round}") })).await.unwrap();
        assert_eq!(made["outcome"], json!("created"), "{round}");
        let again = agent.upsert("EXT-1", json!({ "last_name": "x" })).await.unwrap();
        assert_eq!((&again["outcome"], &again["id"]), (&json!("updated"), &made["id"]), "{round}");
        let params = json!({ "entity": "contact", "key": { "external_id": "EXT-1" } });
        assert_eq!(agent.run("delete", params).await.unwrap()["outcome"], json!("deleted"), "{round}");
    }
    assert_eq!(place.contacts().rows().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odoo_leads_from_contacts_to_countries_and_companies_and_tells_the_archived() {
    for kind in [Kind::Odoo18, Kind::Odoo19] {
        let place = Place::start(kind);
        let agent = place.agent();
        let company = json!({ "entity": "company", "key": { "external_id": "C-1" }, "fields": { "name": "Durand SA" } });
        agent.run("upsert", company).await.unwrap();
        let fields = json!({ "name": "Anne", "country": "FR", "company": "C-1" });
        agent.upsert("P-1", fields.clone()).await.unwrap();
        assert_eq!(agent.upsert("P-1", fields).await.unwrap()["outcome"], json!("unchanged"), "{kind:?}");
        let got = get(&agent, "P-1").await;
        assert_eq!(
            (&got["fields"]["country"], &got["fields"]["company"]),
            (&json!("FR"), &json!("C-1")),
            "{kind:?}"
        );
        agent.upsert("P-1", json!({ "country": "DE", "archived": true })).await.unwrap();
        let got = get(&agent, "P-1").await;
        assert_eq!(
            (&got["fields"]["country"], &got["fields"]["archived"]),
            (&json!("DE"), &json!(true)),
            "{kind:?}"
        );
        let (changes, _) = agent.changes(None, 100).await;
        let names: Vec<&Value> = changes.iter().map(|item| &item["fields"]["name"]).collect();
        assert_eq!(names, [&json!("Anne")], "{kind:?}: archived ones too, companies not");
        let row =
            place.contacts().rows().into_iter().find(|row| row.fields["name"] == json!("Durand SA")).unwrap();
        assert_eq!(row.fields["is_company"], json!(true), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odoo_never_turns_a_company_into_a_person_and_archives_where_the_operator_wants_it() {
    let place = Place::start(Kind::Odoo18);
    let agent = place.agent_by("{ database = \"crm\", delete = \"archive\" }");
    let company =
        json!({ "entity": "company", "key": { "external_id": "X-1" }, "fields": { "name": "Durand SA" } });
    agent.run("upsert", company).await.unwrap();
    let failure = agent.upsert("X-1", json!({ "name": "Anne" })).await.unwrap_err();
    assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::TargetConflict), "{failure:?}");
    assert_eq!(place.contacts().rows()[0].fields["name"], json!("Durand SA"));

    agent.upsert("P-1", json!({ "name": "Anne" })).await.unwrap();
    let params = json!({ "entity": "contact", "key": { "external_id": "P-1" } });
    assert_eq!(agent.run("delete", params).await.unwrap()["outcome"], json!("deleted"));
    assert_eq!(get(&agent, "P-1").await["fields"]["archived"], json!(true));
    let back = agent.upsert("P-1", json!({ "archived": false })).await.unwrap();
    assert_eq!(back["outcome"], json!("updated"), "the same record, not another one");
    assert_eq!(place.contacts().rows().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odoo_is_asked_what_it_needs_before_a_dry_run() {
    for kind in [Kind::Odoo18, Kind::Odoo19] {
        let place = Place::start(kind);
        place.odoo().needs_names.store(true, Ordering::SeqCst);
        let params = json!({ "entity": "contact", "key": { "external_id": "K" }, "fields": { "email": "a@example.com" }, "dry_run": true });
        let would = place.agent().run("upsert", params).await.unwrap();
        assert_eq!(would["would"], json!("refused"), "{kind:?}: {would}");
        assert_eq!(
            would["errors"],
            json!([{ "field": "name", "reason": "the target needs it" }]),
            "{kind:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_of_odoo_that_is_misspelt_in_the_mapping_is_named_by_our_word() {
    for kind in [Kind::Odoo18, Kind::Odoo19] {
        let place = Place::start(kind);
        place.agent().upsert("K", json!({ "name": "x" })).await.unwrap();
        let agent = place.agent_with("good", "fields = { bogus = \"nosuch\" }");
        for (operation, params) in [
            ("get", json!({ "entity": "contact", "key": { "external_id": "K" }, "fields": ["bogus"] })),
            ("find", json!({ "entity": "contact", "where": {}, "fields": ["bogus"] })),
            ("find", json!({ "entity": "contact", "where": { "bogus": "x" }, "fields": ["name"] })),
            ("changes", json!({ "entity": "contact", "fields": ["bogus"] })),
        ] {
            let failure = agent.run(operation, params).await.unwrap_err();
            assert_eq!(failure.code, Code::InvalidParams, "{kind:?} {operation}: {failure:?}");
            assert!(failure.message.contains("fields.bogus (the target has no such field"), "{failure}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_the_product_does_not_have_is_no_missing_record() {
    let place = Place::start(Kind::EspoCrm);
    let agent = place.agent_with("good", "target = \"Nosuch\"");
    for (operation, params) in [
        ("find", json!({ "entity": "contact", "where": {} })),
        ("changes", json!({ "entity": "contact" })),
        (
            "upsert",
            json!({ "entity": "contact", "key": { "external_id": "K" }, "fields": { "last_name": "x" } }),
        ),
    ] {
        let failure = agent.run(operation, params).await.unwrap_err();
        assert!(failure.message.contains("entities.contact.target"), "{operation}: {failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odoo_logs_in_once_and_speaks_what_the_version_speaks() {
    let place = Place::start(Kind::Odoo18);
    let agent = place.agent();
    for i in 0..5 {
        agent.upsert(&format!("K{i}"), json!({ "name": "x" })).await.unwrap();
    }
    assert_eq!(place.odoo().logins.load(Ordering::SeqCst), 1);
    assert!(place.asked().iter().all(|asked| asked.path == "/jsonrpc"));

    for major in [19, 22] {
        let place = Place::start(Kind::Odoo19);
        place.odoo().major.store(major, Ordering::SeqCst);
        place.agent().upsert("K", json!({ "name": "x" })).await.unwrap();
        let by_rpc = place.asked().iter().filter(|asked| asked.path == "/jsonrpc").count();
        assert_eq!(by_rpc, 1, "{major}: only the question for the version");
        let carried = place.asked().iter().filter(|asked| asked.path.starts_with("/json/2/")).all(|asked| {
            asked.header("x-odoo-database") == Some("crm") && asked.header("authorization").is_some()
        });
        assert!(carried, "{major}");
    }
}

/// The resources that the documentation shows are sound ones.
#[test]
fn the_resource_that_each_page_shows_is_a_sound_one() {
    for page in ["odoo", "espocrm", "dolibarr", "suitecrm"] {
        let path = format!("{}/../docs/connectors/crm/{page}.md", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let block = text.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let agent = format!("[hub]\nurl = \"https://hub.example.com\"\n{block}");
        std::fs::write(dir.path().join("agent.toml"), agent).unwrap();
        let config =
            passerelle_config::load(dir.path()).unwrap_or_else(|findings| panic!("{page}: {findings}"));
        let kind = REGISTRY.iter().find(|entry| entry.name == "crm").unwrap();
        let mut diagnostics = Diagnostics::default();
        assert!(
            kind.check(&config.resources[0].section, &mut diagnostics).is_some(),
            "{page}: {diagnostics}"
        );
    }
}

/// What an operator is told whose settings of a dialect are wrong.
#[test]
fn wrong_options_are_refused_with_what_is_right() {
    let contact = "[resources.crm.entities.contact]\n";
    let basic = "auth = { kind = \"basic\", username = \"u\", password = { env = \"P\" } }";
    let key = "auth = { kind = \"api_key\", header = \"X-Api-Key\", value = { env = \"P\" } }";
    for (dialect, lines, says) in [
        ("odoo", basic.to_owned(), "needs database"),
        ("odoo", format!("{basic}\noptions = {{ database = \"x\", api = \"soap\" }}"), "options.api"),
        ("odoo", "auth = { kind = \"bearer\", token = { env = \"P\" } }".to_owned(), "auth.kind"),
        (
            "odoo",
            format!("{basic}\noptions = {{ database = \"x\", xmlid_module = \"a b\" }}"),
            "options.xmlid_module",
        ),
        ("odoo", format!("{basic}\noptions = {{ database = \"x\", delete = \"hide\" }}"), "options.delete"),
        ("espocrm", String::new(), "resources.crm.auth"),
        ("espocrm", format!("{key}\noptions = {{ versions = \"yes\" }}"), "options.versions"),
        ("espocrm", format!("{key}\noptions = {{ colour = \"red\" }}"), "options.colour"),
        ("dolibarr", basic.to_owned(), "auth.kind"),
        ("dolibarr", format!("{key}\noptions = {{ utc_offset = \"Paris\" }}"), "options.utc_offset"),
        ("suitecrm", key.to_owned(), "auth.kind"),
        ("suitecrm", "options = { namespace = \"ours\" }".to_owned(), "options.namespace"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[hub]\nurl = \"https://hub.example.com\"\n[resources.crm]\nconnector = \"crm\"\ndialect = \"{dialect}\"\n\
             url = \"https://crm.example.com/\"\n{lines}\n{contact}"
        );
        std::fs::write(dir.path().join("agent.toml"), text).unwrap();
        let config = passerelle_config::load(dir.path()).unwrap_or_else(|findings| panic!("{findings}"));
        let kind = REGISTRY.iter().find(|entry| entry.name == "crm").unwrap();
        let mut diagnostics = Diagnostics::default();
        assert!(kind.check(&config.resources[0].section, &mut diagnostics).is_none(), "{dialect} {lines}");
        assert!(diagnostics.to_string().contains(says), "{dialect}: {diagnostics}");
    }
}
