//! Records of a local CRM through hub and agent: a real Tryton, and an OData service that answers like Dynamics.

use crate::common::{SITE, job, with};
use futures_util::future::join_all;
use passerelle_tests::{
    Agent, Api, Hub, Proxy, Random, code,
    odata::{self, Kind, OData},
    server::Server as _,
    tryton::{self, Release, Tryton},
};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A `crm` resource on which everything is allowed. Its password is `secrets/crm`.
fn resource(dialect: &str, url: &str, username: &str, more: &str, entity: &str) -> String {
    format!(
        "[resources.crm]\nconnector = \"crm\"\ndialect = \"{dialect}\"\nurl = \"{url}\"\n\
         auth = {{ kind = \"basic\", username = '{username}', password = {{ file = \"secrets/crm\" }} }}\n\
         limits = {{ max_concurrent = 8 }}\n{more}\n[resources.crm.entities.contact]\n{entity}\n\
         [[resources.crm.allow]]\noperations = [\"upsert\", \"get\", \"find\", \"changes\", \"delete\"]\n\
         entities = [\"contact\"]\nfields = [\"*\"]\n"
    )
}

fn on_tryton(agent: &Agent, server: &Tryton) {
    agent.secret("crm", tryton::PASSWORD);
    agent.resource("crm", &resource("tryton", &server.url(), tryton::USER, "", ""));
}

fn on_odata(agent: &Agent, server: &OData) {
    agent.secret("crm", odata::PASSWORD);
    let options = "options = { upsert = \"alternate_key\", changes = \"track\" }";
    let entity = "fields = { external_id = \"new_externalid\", name = \"lastname\" }";
    agent.resource("crm", &resource("odata", &server.url(), odata::USER, options, entity));
}

fn upsert(key: &str, fields: Value) -> Value {
    let params = json!({ "entity": "contact", "key": { "external_id": key }, "fields": fields });
    with(job("crm", "upsert", params), json!({ "max_attempts": 50 }))
}

/// The same in a line with the other writes of its key.
fn in_line(key: &str, fields: Value) -> Value {
    with(upsert(key, fields), json!({ "order_key": key }))
}

/// Submits a job until a hub that may be away has taken it.
async fn submit(api: &Api, job: &Value, key: &str) -> String {
    passerelle_tests::until("the hub to take a job", Duration::from_secs(120), async || {
        let request = api.request(reqwest::Method::POST, "/v1/jobs").header("Idempotency-Key", key).json(job);
        let answer = api.try_send(request).await.ok()?;
        matches!(answer.status, 200 | 201).then(|| answer.body["id"].as_str().expect("a job's id").to_owned())
    })
    .await
}

/// Two writes of each key by 16 clients, while agent and hub are killed and the tunnel is cut.
async fn storm(hub: &mut Hub, agent: &mut Agent, tunnel: &Proxy, keys: usize) {
    let mut random = Random::from_environment();
    let over = Cell::new(false);
    let api = hub.api.clone();
    let clients = (0..16).map(|client| {
        let api = api.clone();
        async move {
            let mut ids = Vec::new();
            for write in ["first", "last"] {
                for n in (client..keys).step_by(16) {
                    let job = in_line(&format!("STORM-{n}"), json!({ "name": format!("{write} {n}") }));
                    ids.push(submit(&api, &job, &format!("storm-{write}-{n}")).await);
                }
            }
            for id in &ids {
                passerelle_tests::until("an upsert to succeed", Duration::from_secs(600), async || {
                    let request = api.request(reqwest::Method::GET, &format!("/v1/jobs/{id}"));
                    // The hub may be away just now.
                    let job = api.try_send(request).await.ok()?.body;
                    let state = job["state"].as_str().unwrap_or_default();
                    assert!(!matches!(state, "failed" | "unknown" | "denied" | "expired"), "{job:#}");
                    (state == "succeeded").then_some(())
                })
                .await;
            }
        }
    });
    let submitting = async {
        join_all(clients).await;
        over.set(true);
    };
    let disturbing = async {
        let mut faults = 0;
        while !over.get() {
            // The moment of a fault is chance.
            tokio::time::sleep(Duration::from_millis(500 + random.below(2500))).await;
            if faults < 12 {
                match random.below(3) {
                    0 => drop(agent.restart_without_waiting()),
                    1 => hub.restart().await,
                    _ => tunnel.cut(),
                }
                faults += 1;
            }
        }
        faults
    };
    let ((), faults) = tokio::join!(submitting, disturbing);
    assert!(faults > 0, "nothing was disturbed");
}

#[tokio::test(flavor = "multi_thread")]
async fn crm_upserts_of_many_clients_at_random_faults_leave_one_party_a_key() {
    let keys = match std::env::var("PASSERELLE_TEST_UPSERTS") {
        Ok(upserts) => upserts.parse::<usize>().expect("a number of upserts") / 2,
        Err(_) => 60,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let server = Tryton::start(Release::V8_2, folder.path());
    let mut hub = Hub::start().await;
    let tunnel = Proxy::start(hub.port()).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.through(&tunnel.url());
    on_tryton(&agent, &server);
    agent.start().await;
    storm(&mut hub, &mut agent, &tunnel, keys).await;
    let counted = server.sql("SELECT count(*), count(DISTINCT code), sum(name LIKE 'last %') FROM party_party WHERE code LIKE 'STORM-%'");
    assert_eq!(counted.trim(), format!("{keys}|{keys}|{keys}"));
    let right = server.sql("SELECT count(*) FROM party_party WHERE name = 'last ' || substr(code, 7)");
    assert_eq!(right.trim(), keys.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn crm_a_thousand_upserts_at_random_faults_leave_five_hundred_contacts() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = OData::start(Kind::Dynamics, folder.path());
    let mut hub = Hub::start().await;
    let tunnel = Proxy::start(hub.port()).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.through(&tunnel.url());
    on_odata(&agent, &server);
    agent.start().await;
    storm(&mut hub, &mut agent, &tunnel, 500).await;
    agent.ready().await;
    let (told, _) = changes(&hub.api, Value::Null).await;
    let mut names = BTreeMap::new();
    for item in &told {
        let key = item["key"]["external_id"].as_str().expect("a key").to_owned();
        let twice = names.insert(key, item["fields"]["name"].clone());
        assert_eq!(twice, None, "two contacts of one key: {item}");
    }
    assert_eq!(names.len(), 500);
    for n in 0..500 {
        assert_eq!(names[&format!("STORM-{n}")], json!(format!("last {n}")));
    }
}

/// All changes from a cursor on.
async fn changes(api: &Api, mut cursor: Value) -> (Vec<Value>, Value) {
    let mut all = Vec::new();
    loop {
        let mut params = json!({ "entity": "contact", "limit": 500, "fields": ["external_id", "name"] });
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        let done = api.succeed(&job("crm", "changes", params)).await;
        let page = &done["result"];
        all.extend(page["items"].as_array().expect("items").iter().cloned());
        cursor = page["next_cursor"].clone();
        if page["more"] == json!(false) {
            return (all, cursor);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crm_changes_of_ten_thousand_parties_are_all_told_while_they_are_edited() {
    // 200 of them to a moment.
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) \
        INSERT INTO party_party (id, code, name, active, create_date, write_date) \
        SELECT 1000 + i, 'BULK-' || i, 'Old', 1, '2026-01-01 00:00:00.000000', \
        strftime('%Y-%m-%d %H:%M:%S', '2026-01-01 00:00:00', '+' || (i / 200) || ' seconds') || '.000000' FROM n";
    let folder = tempfile::tempdir().expect("a folder");
    let server = Arc::new(Tryton::start_after(Release::V8_2, folder.path(), sql));
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    on_tryton(&agent, &server);
    agent.start().await;
    let reading = Arc::new(AtomicBool::new(true));
    let editing = {
        let (server, reading) = (server.clone(), reading.clone());
        tokio::task::spawn_blocking(move || {
            let mut random = Random::from_environment();
            let mut edited = BTreeMap::new();
            for round in 0..400 {
                // Five parties of one moment at once.
                let ids: Vec<u64> = (0..5).map(|_| 1 + random.below(10_000)).collect();
                let list: Vec<String> = ids.iter().map(|id| (1000 + id).to_string()).collect();
                server.sql(&format!(
                    "UPDATE party_party SET name = 'Edit {round}', write_date = strftime('%Y-%m-%d %H:%M:%f000', 'now') \
                     WHERE id IN ({})",
                    list.join(", ")
                ));
                edited.extend(ids.into_iter().map(|id| (format!("BULK-{id}"), format!("Edit {round}"))));
                if !reading.load(Ordering::SeqCst) {
                    break;
                }
            }
            edited
        })
    };
    let (mut told, cursor) = changes(&hub.api, Value::Null).await;
    reading.store(false, Ordering::SeqCst);
    let edited = editing.await.expect("the edits");
    let (late, cursor) = changes(&hub.api, cursor).await;
    told.extend(late);
    let mut last = BTreeMap::new();
    for item in &told {
        let key = item["key"]["external_id"].as_str().expect("a key").to_owned();
        last.insert(key, item["fields"]["name"].as_str().expect("a name").to_owned());
    }
    assert_eq!(last.len(), 10_000, "every party was told");
    assert!(edited.len() >= 20, "edited meanwhile: {}", edited.len());
    let missed: Vec<_> = edited.iter().filter(|(key, name)| last.get(*key) != Some(name)).collect();
    assert!(missed.is_empty(), "{} last changes were missed: {missed:?}", missed.len());
    let (quiet, _) = changes(&hub.api, cursor).await;
    assert_eq!(quiet, Vec::<Value>::new(), "a quiet feed repeats nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn crm_a_reading_waits_for_a_server_that_was_stopped_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Tryton::start(Release::V8_2, folder.path());
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    on_tryton(&agent, &server);
    agent.start().await;
    for n in 0..6 {
        hub.api.succeed(&upsert(&format!("WAIT-{n}"), json!({ "name": "x" }))).await;
    }
    let page = |cursor: Value| {
        let mut params = json!({ "entity": "contact", "limit": 4 });
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        // A busy machine needs its time to start the server again.
        with(job("crm", "changes", params), json!({ "max_attempts": 50 }))
    };
    let first = hub.api.succeed(&page(Value::Null)).await;
    assert_eq!(first["result"]["items"].as_array().map(Vec::len), Some(4), "{first:#}");
    server.stop();
    let id = hub.api.submit(&page(first["result"]["next_cursor"].clone())).await;
    hub.api.reach(&id, &["waiting"]).await;
    server.restart();
    let done = hub.api.end_of(&id, Duration::from_secs(120)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(done["result"]["items"].as_array().map(Vec::len), Some(2), "{done:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn crm_a_wrong_password_stops_after_two_tries_and_nothing_private_reaches_the_hub() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Tryton::start(Release::V8_2, folder.path());
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    on_tryton(&agent, &server);
    agent.start().await;
    let made =
        hub.api.succeed(&upsert("KEY-1", json!({ "name": "Known", "email": "known@example.com" }))).await;
    assert_eq!(made["result"]["outcome"], "created", "{made:#}");
    // Refusals of the target's own: a country that it has not, a stale version, an archived party.
    let country = hub.api.run(&upsert("KEY-1", json!({ "country": "XX" }))).await;
    assert_eq!(code(&country), "invalid_params", "{country:#}");
    let stale = json!({ "entity": "contact", "key": { "external_id": "KEY-1" }, "fields": { "name": "y" }, "if_version": "1/1.5" });
    let stale = hub.api.run(&job("crm", "upsert", stale)).await;
    assert_eq!(code(&stale), "target_conflict", "{stale:#}");
    hub.api.succeed(&upsert("KEY-1", json!({ "archived": true }))).await;
    let archived = hub.api.run(&upsert("KEY-1", json!({ "name": "z" }))).await;
    assert_eq!(code(&archived), "invalid_params", "{archived:#}");
    agent.kill();
    agent.secret("crm", "not the password");
    agent.start().await;
    for n in 0..5 {
        let refused = hub.api.run(&upsert(&format!("NEW-{n}"), json!({ "name": "x" }))).await;
        assert_eq!(
            (refused["state"].as_str(), code(&refused)),
            (Some("failed"), "target_auth"),
            "{refused:#}"
        );
    }
    let tries = server.log().matches("login failed").count();
    assert!((1..=2).contains(&tries), "{tries} log-ins were tried");
    let mut hub = hub;
    hub.process.kill();
    // Where this hub itself listens, for its health check.
    fs::remove_file(hub.data().join("serving.json")).expect("the hub says where it listens");
    for hidden in [tryton::PASSWORD, "not the password", "Traceback", "<!doctype", "sqlite3.", "127.0.0.1"] {
        assert!(!holds(hub.data(), hidden), "the hub's store holds {hidden:?}");
    }
    assert!(holds(hub.data(), "KEY-1"), "the search looks where jobs are");
}

/// Whether a file below a folder holds a text.
fn holds(folder: &Path, text: &str) -> bool {
    fs::read_dir(folder).expect("a readable folder").flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return holds(&path, text);
        }
        let content = fs::read(&path).unwrap_or_default();
        content.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

/// What the trigger on changes has told the hub: each event's key and name, oldest first.
async fn told(api: &Api) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = api.get(&format!("/v1/events/received?limit=500{cursor}")).await.body;
        for event in page["items"].as_array().expect("items") {
            assert_eq!(
                (&event["kind"], &event["trigger"]),
                (&json!("change"), &json!("contacts")),
                "{event}"
            );
            let data = &event["data"];
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            all.push((text(&data["key"]["external_id"]), text(&data["fields"]["name"])));
        }
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    all.reverse();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn crm_changes_are_one_event_each_while_the_agents_of_a_site_are_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) \
        INSERT INTO party_party (id, code, name, active, create_date, write_date) \
        SELECT 1000 + i, 'KEY-' || i, 'Old', 1, '2026-01-01 00:00:00.000001', '2026-01-01 00:00:00.000001' FROM n";
    let server = Tryton::start_after(Release::V8_2, folder.path(), sql);
    let hub = Hub::start_with_lease(Duration::from_secs(2)).await;
    let mut agents = Vec::new();
    for name in ["paris-1", "paris-2"] {
        let mut agent = Agent::new(&hub, SITE, name);
        agent.secret("crm", tryton::PASSWORD);
        let trigger = "[[resources.crm.changes]]\nname = \"contacts\"\nentity = \"contact\"\nstart = \"beginning\"\n\
            every = \"1s\"\nfields = [\"name\"]\n";
        let settings = resource("tryton", &server.url(), tryton::USER, "", "") + trigger;
        agent.resource("crm", &settings);
        agent.start().await;
        agents.push(agent);
    }
    let mut random = Random::from_environment();
    let mut last: BTreeMap<String, String> =
        (1..=300).map(|n| (format!("KEY-{n}"), "Old".to_owned())).collect();
    for round in 0..30 {
        let ids: Vec<u64> = (0..5).map(|_| 1 + random.below(300)).collect();
        let list: Vec<String> = ids.iter().map(|id| (1000 + id).to_string()).collect();
        server.sql(&format!(
            "UPDATE party_party SET name = 'Edit {round}', write_date = strftime('%Y-%m-%d %H:%M:%f000', 'now') \
             WHERE id IN ({})",
            list.join(", ")
        ));
        last.extend(ids.into_iter().map(|id| (format!("KEY-{id}"), format!("Edit {round}"))));
        // The moment of a fault is chance.
        tokio::time::sleep(Duration::from_millis(random.below(300))).await;
        if round % 3 == 0 {
            agents[round / 3 % 2].restart_without_waiting();
        }
    }
    let all =
        passerelle_tests::until("the last change of each party", Duration::from_secs(120), async || {
            let all = told(&hub.api).await;
            let known: BTreeMap<&String, &String> = all.iter().map(|(key, name)| (key, name)).collect();
            last.iter().all(|(key, name)| known.get(key) == Some(&name)).then_some(all)
        })
        .await;
    let mut seen = std::collections::BTreeSet::new();
    for change in &all {
        assert!(seen.insert(change), "told twice: {change:?}");
    }
}
