//! OData v4: a service that answers as Dynamics is documented to, and one as odatapy is.

use crate::{
    cases::{self, Abilities},
    site::Site,
    support::{
        line::{Cut, Line},
        odata::{Kind, OData, PASSWORD, USER},
        server::Server as _,
    },
};
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::json;
use std::time::Duration;
use tempfile::TempDir;

const ENTITIES: &str = "{ contact = { fields = { external_id = \"new_externalid\", children = \"numberofchildren\", \
    credit = \"creditlimit\", birthday = \"birthdate\", no_mail = \"donotemail\" }, \
    types = { children = \"integer\", credit = \"decimal\", birthday = \"date\", no_mail = \"boolean\" } } }";

fn settings(url: &str, options: &str, entities: &str) -> String {
    let user = USER.replace('\\', "\\\\");
    format!(
        "connector = \"crm\"\ndialect = \"odata\"\nurl = \"{url}\"\noptions = {{ {options} }}\n\
         auth = {{ kind = \"basic\", username = \"{user}\", password = {{ file = \"secret\" }} }}\n\
         entities = {entities}"
    )
}

const BY_KEY: &str = "upsert = \"alternate_key\"";
const TRACKED: &str = "upsert = \"alternate_key\", changes = \"track\"";
const FOUND: &str = "upsert = \"find\", changes = \"time\"";

fn site(server: &OData, options: &str) -> Site {
    Site::new(&settings(&server.url(), options, ENTITIES), PASSWORD)
}

fn start(kind: Kind) -> (OData, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (OData::start(kind, dir.path()), dir)
}

const BY_TIME: Abilities = Abilities { complete_deletes: false, changes: true, name: "last_name" };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alternate_keys_and_deltas_pass_every_case() {
    let (server, _dir) = start(Kind::Dynamics);
    let abilities = Abilities { complete_deletes: true, ..BY_TIME };
    cases::all(&site(&server, TRACKED), &site(&server, TRACKED), &abilities).await;
    let asked = server.asked();
    assert!(asked.iter().any(|line| line.starts_with("201 PATCH")), "an upsert is one request");
    assert!(asked.iter().any(|line| line.contains("$deltatoken")), "changes are the service's own deltas");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alternate_keys_and_times_pass_every_case() {
    let (server, _dir) = start(Kind::Dynamics);
    cases::all(&site(&server, BY_KEY), &site(&server, BY_KEY), &BY_TIME).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searching_first_passes_every_case() {
    let (server, _dir) = start(Kind::Dynamics);
    cases::all(&site(&server, FOUND), &site(&server, FOUND), &BY_TIME).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_service_passes_every_case_but_those_of_times_it_does_not_keep() {
    let (server, _dir) = start(Kind::Plain);
    let abilities = Abilities { changes: false, ..BY_TIME };
    cases::all(&site(&server, FOUND), &site(&server, FOUND), &abilities).await;
    // It has no alternate keys, and that is said.
    let failure = site(&server, BY_KEY).upsert("X-1", json!({ "last_name": "X" })).await.unwrap_err();
    assert_eq!((failure.verdict, failure.effect), (Verdict::Permanent, Effect::NotApplied), "{failure}");
    // It tells no time of change, and that is said too.
    let failure = site(&server, FOUND).changes(None, 5).await.unwrap_err();
    assert_eq!(failure.code, Code::TargetUnsupported, "{failure}");
    assert!(failure.message.contains("options.modified"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_every_type_go_out_and_come_back() {
    let (server, _dir) = start(Kind::Dynamics);
    let site = site(&server, BY_KEY);
    let fields = json!({ "children": 3, "credit": "1234.5", "birthday": "1990-02-28", "no_mail": true });
    site.upsert("TYPE-1", fields.clone()).await.unwrap();
    let got = site.get("TYPE-1").await.unwrap();
    for (field, value) in fields.as_object().unwrap() {
        assert_eq!(&got["fields"][field], value, "{field}");
    }
    for filter in [
        json!({ "credit": "1234.50" }),
        json!({ "birthday": "1990-02-28" }),
        json!({ "no_mail": true, "children": 3 }),
    ] {
        let found = site.run("find", json!({ "entity": "contact", "where": filter })).await.unwrap();
        assert_eq!(found["items"].as_array().unwrap().len(), 1, "{filter}");
    }
    let failure = site.upsert("TYPE-1", json!({ "credit": "12345678901234567.25" })).await.unwrap_err();
    assert_eq!(failure.code, Code::InvalidParams, "a digit would be lost: {failure}");
    assert!(failure.message.contains("fields.credit"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_field_is_named_before_anything_is_written() {
    for kind in [Kind::Dynamics, Kind::Plain] {
        let (server, _dir) = start(kind);
        let entities = ENTITIES.replace("credit = \"creditlimit\"", "credit = \"creditlimitt\"");
        let site = Site::new(&settings(&server.url(), FOUND, &entities), PASSWORD);
        let failure = site.upsert("TYPO-1", json!({ "credit": "1" })).await.unwrap_err();
        assert_eq!((failure.code, failure.effect), (Code::InvalidParams, Effect::NotApplied), "{failure}");
        assert!(failure.message.contains("fields.credit"), "{failure}");
        assert!(!server.asked().iter().any(|line| line.contains("POST") || line.contains("PATCH")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_makes_no_second_contact() {
    for (kind, options, words) in [
        (Kind::Dynamics, BY_KEY, "PATCH /api"),
        (Kind::Dynamics, FOUND, "POST /api"),
        (Kind::Plain, FOUND, "POST /api"),
    ] {
        let (server, _dir) = start(kind);
        let line = Line::cut_at(server.port(), words, Cut::BeforeItsAnswer);
        let url = format!("http://127.0.0.1:{}/api/data/v9.1/", line.port);
        let cut = Site::new(&settings(&url, options, ENTITIES), PASSWORD);
        let done = cut.upsert("LOST-1", json!({ "last_name": "Lost" })).await;
        assert!(line.was_cut());
        if let Err(failure) = done {
            assert_eq!((failure.verdict, failure.effect), (Verdict::Retry, Effect::Unknown), "{failure}");
        }
        cut.upsert("LOST-1", json!({ "last_name": "Lost" })).await.unwrap();
        let params = json!({ "entity": "contact", "where": { "external_id": "LOST-1" } });
        let found = site(&server, options).run("find", params).await.unwrap();
        assert_eq!(found["items"].as_array().unwrap().len(), 1, "{kind:?} {options}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_asks_to_wait_is_not_pressed() {
    let (server, _dir) = start(Kind::Dynamics);
    let site = site(&server, BY_KEY);
    site.upsert("BUSY-1", json!({ "last_name": "Before" })).await.unwrap();
    server.throttle(1);
    let failure = site.upsert("BUSY-1", json!({ "last_name": "Busy" })).await.unwrap_err();
    assert_eq!(
        (failure.code, failure.verdict, failure.effect, failure.retry_after),
        (Code::TargetThrottled, Verdict::Retry, Effect::NotApplied, Some(Duration::from_secs(1))),
        "{failure}"
    );
    site.upsert("BUSY-1", json!({ "last_name": "After" })).await.unwrap();
    assert_eq!(site.get("BUSY-1").await.unwrap()["fields"]["last_name"], "After");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_tried_twice_at_most() {
    let (server, _dir) = start(Kind::Dynamics);
    let site = Site::new(&settings(&server.url(), BY_KEY, ENTITIES), "not the password");
    let attempts = (0..6).map(|n| site.upsert("NO-1", json!({ "last_name": format!("{n}") })));
    for done in futures_util::future::join_all(attempts).await {
        let failure = done.unwrap_err();
        assert_eq!((failure.code, failure.effect), (Code::TargetAuth, Effect::NotApplied), "{failure}");
    }
    let refused = server.asked().iter().filter(|line| line.starts_with("401")).count();
    assert!((1..=2).contains(&refused), "{refused} requests with wrong credentials");
    cases::nothing_private_is_told(&site);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reading_goes_on_after_a_restart() {
    for options in [TRACKED, BY_KEY] {
        let (mut server, _dir) = start(Kind::Dynamics);
        let site = site(&server, options);
        for n in 0..9 {
            site.upsert(&format!("RESTART-{n}"), json!({ "last_name": "Still there" })).await.unwrap();
        }
        let first = site.changes(None, 4).await.unwrap();
        let begun = first["items"].as_array().unwrap().len();
        assert_eq!(first["more"], json!(true), "{options}");
        let cursor = first["next_cursor"].as_str().unwrap().to_owned();
        server.stop();
        let failure = site.changes(Some(&cursor), 4).await.unwrap_err();
        assert_eq!((failure.code, failure.verdict), (Code::TargetUnreachable, Verdict::Retry), "{failure}");
        server.restart();
        let (rest, _) = site.all_changes(Some(cursor), 4).await;
        assert_eq!(begun + rest.len(), 9, "{options}: {rest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_leads_elsewhere_is_not_followed() {
    let (server, _dir) = start(Kind::Dynamics);
    let line = Line::whole(server.port());
    // The service believes to be at its own port; its links name that one.
    let url = format!("http://127.0.0.1:{}/api/data/v9.1/", line.port);
    let elsewhere = Site::new(&settings(&url, TRACKED, ENTITIES), PASSWORD);
    for n in 0..4 {
        elsewhere.upsert(&format!("LINK-{n}"), json!({ "last_name": "x" })).await.unwrap();
    }
    let failure = elsewhere.changes(None, 2).await.unwrap_err();
    assert_eq!(failure.code, Code::TargetProtocol, "{failure}");
    assert!(failure.message.contains("leads away"), "{failure}");
    cases::nothing_private_is_told(&elsewhere);
}

#[test]
fn what_odata_has_not_is_found_in_the_settings() {
    let url = "https://crm.intra/api/data/v9.1/";
    for (text, at) in [
        (settings(url, "upsert = \"maybe\"", ENTITIES), "options.upsert"),
        (settings(url, "modified = \"a b\"", ENTITIES), "options.modified"),
        (settings(url, "", "{ contact = { target = \"contacts\" } }"), "entities.contact.target"),
        (settings(url, "", "{ contact = { fields = { x = \"a/b\" } } }"), "entities.contact.fields.x"),
        (settings(url, "", "{ contact = {} }\ncalls = { x = {} }"), "calls.x"),
    ] {
        let findings = Site::try_new(&text, "x").err().unwrap();
        assert!(findings.contains(at), "{findings}");
    }
}
