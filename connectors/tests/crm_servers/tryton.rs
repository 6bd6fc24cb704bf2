//! Tryton: 8.2, and 6.0 with its older wire.

use crate::{
    cases::{self, Abilities},
    site::Site,
    support::{
        line::{Cut, Line},
        server::Server as _,
        tryton::{PASSWORD, Release, Tryton, USER},
    },
};
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::json;
use tempfile::TempDir;

fn settings(url: &str, entities: &str) -> String {
    format!(
        "connector = \"crm\"\ndialect = \"tryton\"\nurl = \"{url}\"\n\
         auth = {{ kind = \"basic\", username = \"{USER}\", password = {{ file = \"secret\" }} }}\n\
         entities = {entities}"
    )
}

fn site(server: &Tryton) -> Site {
    Site::new(&settings(&server.url(), "{ contact = {} }"), PASSWORD)
}

fn start(release: Release) -> (Tryton, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Tryton::start(release, dir.path()), dir)
}

const ABILITIES: Abilities = Abilities { complete_deletes: false, changes: true, name: "name" };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tryton_8_2_passes_every_case() {
    let (server, _dir) = start(Release::V8_2);
    cases::all(&site(&server), &site(&server), &ABILITIES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tryton_6_0_passes_every_case() {
    let (server, _dir) = start(Release::V6_0);
    cases::all(&site(&server), &site(&server), &ABILITIES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_tryton_refuses_is_told_by_field() {
    let (server, _dir) = start(Release::V8_2);
    let entities = "{ contact = { fields = { nope = \"nope\", nested = \"addresses[].nope\", digits = \"code_digit\" } }, \
                    thing = { target = \"party.thing\", key = [\"code\"], fields = { code = \"code\" } } }";
    let site = Site::new(&settings(&server.url(), entities), PASSWORD);
    for (fields, named) in [
        (json!({ "nope": "x" }), "fields.nope"),
        (json!({ "nested": "x" }), "fields.nested"),
        (json!({ "country": "XX" }), "fields.country"),
        (json!({ "digits": 7 }), "fields.digits"),
    ] {
        let failure = site.upsert("FIELD-1", fields).await.unwrap_err();
        assert_eq!((failure.code, failure.effect), (Code::InvalidParams, Effect::NotApplied), "{failure}");
        assert!(failure.message.contains(named), "{failure}");
    }
    let found = site
        .run(
            "find",
            json!({ "entity": "contact", "where": { "external_id": "FIELD-1" }, "fields": ["name"] }),
        )
        .await;
    assert_eq!(found.unwrap()["items"], json!([]), "nothing was written");
    let failure = site.run("get", json!({ "entity": "thing", "key": { "code": "x" } })).await.unwrap_err();
    assert_eq!((failure.code, failure.verdict), (Code::TargetUnsupported, Verdict::Permanent), "{failure}");
    // A party's language is found by its code; an archived party is found, and told as archived.
    let made = site.upsert("FIELD-2", json!({ "name": "Zoé", "language": "fr" })).await.unwrap();
    assert_eq!(made["outcome"], "created");
    site.upsert("FIELD-2", json!({ "archived": true })).await.unwrap();
    let params = json!({ "entity": "contact", "key": { "external_id": "FIELD-2" }, "fields": ["language", "archived"] });
    let got = site.run("get", params).await.unwrap();
    assert_eq!(got["fields"], json!({ "language": "fr", "archived": true }));
    // Tryton lets nobody change an archived party: its own words, with the field's.
    let failure = site.upsert("FIELD-2", json!({ "name": "Other" })).await.unwrap_err();
    assert_eq!(failure.code, Code::InvalidParams, "{failure}");
    assert!(failure.message.contains("fields.name"), "{failure}");
    cases::nothing_private_is_told(&site);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_makes_no_second_party() {
    let (server, _dir) = start(Release::V8_2);
    let line = Line::cut_at(server.port(), "model.party.party.create", Cut::BeforeItsAnswer);
    let url = format!("http://127.0.0.1:{}/crm/", line.port);
    let site = Site::new(&settings(&url, "{ contact = {} }"), PASSWORD);
    let done = site.upsert("LOST-1", json!({ "name": "Lost" })).await;
    assert!(line.was_cut());
    if let Err(failure) = done {
        assert_eq!((failure.verdict, failure.effect), (Verdict::Retry, Effect::Unknown), "{failure}");
    }
    site.upsert("LOST-1", json!({ "name": "Lost" })).await.unwrap();
    assert_eq!(server.sql("SELECT count(*) FROM party_party WHERE code = 'LOST-1'").trim(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_tried_twice_at_most() {
    let (server, _dir) = start(Release::V8_2);
    let site = Site::new(&settings(&server.url(), "{ contact = {} }"), "not the password");
    let attempts = (0..6).map(|n| site.upsert("NO-1", json!({ "name": format!("{n}") })));
    for done in futures_util::future::join_all(attempts).await {
        let failure = done.unwrap_err();
        assert_eq!((failure.code, failure.effect), (Code::TargetAuth, Effect::NotApplied), "{failure}");
        assert!(!failure.message.contains("not the password"), "{failure}");
    }
    let refused = server.log().matches("login failed").count();
    assert!((1..=2).contains(&refused), "{refused} log-ins were tried");
    // So the right password still works.
    let right = self::site(&server);
    right.upsert("NO-1", json!({ "name": "Yes" })).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reading_goes_on_after_a_restart_and_a_lost_session() {
    let (mut server, _dir) = start(Release::V8_2);
    let site = site(&server);
    for n in 0..9 {
        site.upsert(&format!("RESTART-{n}"), json!({ "name": "Still there" })).await.unwrap();
    }
    let first = site.changes(None, 4).await.unwrap();
    assert_eq!((first["items"].as_array().unwrap().len(), &first["more"]), (4, &json!(true)));
    let cursor = first["next_cursor"].as_str().unwrap().to_owned();
    server.stop();
    let failure = site.changes(Some(&cursor), 4).await.unwrap_err();
    assert_eq!((failure.code, failure.verdict), (Code::TargetUnreachable, Verdict::Retry), "{failure}");
    server.sql("DELETE FROM ir_session");
    server.restart();
    let (rest, _) = site.all_changes(Some(cursor), 4).await;
    assert_eq!(rest.len(), 5, "{rest:?}");
    cases::nothing_private_is_told(&site);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_parties_of_one_moment_are_told_once_while_they_are_edited() {
    // 10,000 parties, 100 to a moment.
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) \
        INSERT INTO party_party (id, code, name, active, create_date, write_date) \
        SELECT 1000 + i, 'BULK-' || i, 'Old', 1, \
        strftime('%Y-%m-%d %H:%M:%S', '2026-01-01 00:00:00', '+' || (i / 100) || ' seconds') || '.000000', \
        strftime('%Y-%m-%d %H:%M:%S', '2026-01-01 00:00:00', '+' || (i / 100) || ' seconds') || '.000000' FROM n";
    let dir = tempfile::tempdir().unwrap();
    let server = Tryton::start_after(Release::V8_2, dir.path(), sql);
    let (site, writer) = (site(&server), site(&server));
    let editing = async {
        for n in 0..30 {
            let key = format!("BULK-{}", 1 + (n * 331) % 10_000);
            writer.upsert(&key, json!({ "name": format!("Edited {n}") })).await.unwrap();
        }
    };
    let ((), (mut told, cursor)) = tokio::join!(editing, site.all_changes(None, 1000));
    let (late, _) = site.all_changes(Some(cursor), 1000).await;
    told.extend(late);
    let mut last = std::collections::BTreeMap::new();
    for item in &told {
        last.insert(item["key"]["external_id"].to_string(), item["fields"]["name"].clone());
    }
    assert_eq!(last.len(), 10_000, "every party was told");
    for n in 0..30 {
        let key = json!(format!("BULK-{}", 1 + (n * 331) % 10_000)).to_string();
        assert_eq!(last[&key], json!(format!("Edited {n}")), "the last change of {key} was told");
    }
    assert!(told.len() <= 10_000 + 30, "nothing was told for nothing: {}", told.len());
}

#[test]
fn what_tryton_has_not_is_found_in_the_settings() {
    for (text, at) in [
        (
            settings("http://127.0.0.1/crm/", "{ contact = { fields = { x = \"a b\" } } }"),
            "entities.contact.fields.x",
        ),
        (
            settings("http://127.0.0.1/crm/", "{ contact = { target = \"party party\" } }"),
            "entities.contact.target",
        ),
        (
            settings("http://127.0.0.1/crm/", "{ contact = {} }\ncalls = { x = { target = \"no call\" } }"),
            "calls.x.target",
        ),
        (settings("http://127.0.0.1/crm/", "{ contact = {} }").replace("auth = ", "# auth = "), "auth"),
        (settings("http://127.0.0.1/crm/", "{ contact = {} }\noptions = { x = \"y\" }"), "options.x"),
    ] {
        let findings = Site::try_new(&text, "x").err().unwrap();
        assert!(findings.contains(at), "{findings}");
    }
}
