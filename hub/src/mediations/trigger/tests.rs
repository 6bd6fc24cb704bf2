//! Triggers over the store: what happens starts its runs once, across restarts, and what waits is kept.

use crate::{
    blobs::Blobs,
    clock,
    mediations::{DefinitionId, definition::file},
    model::{AgentRecord, NewBusinessEvent},
    store::{
        received::{CheckedEvent, Receipt, receive},
        retention::Retention,
        row::{ms, opt_json},
    },
    testing::{Hub, name},
};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::{Event, EventPayload, FileEvent, PICKUP, PayloadSource, Sha256};
use rusqlite::params;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Applies a definition named `m` with this trigger, and further keys.
async fn apply(hub: &Hub, keys: &str, trigger: &str) -> DefinitionId {
    apply_as(hub, "m", keys, trigger).await
}

async fn apply_as(hub: &Hub, name: &str, keys: &str, trigger: &str) -> DefinitionId {
    let text =
        format!("[[mediation]]\nname = \"{name}\"\n{keys}\n[mediation.trigger]\n{trigger}\n{TRANSFER}");
    let written = file::read(Path::new("m.toml"), &text).unwrap_or_else(|findings| panic!("{findings}"));
    hub.store.apply_definitions(crate::testing::name("acme"), written, false).await.unwrap()[0].guid
}

const TRANSFER: &str = "[[mediation.transfer]]\nsite = \"paris\"\nresource = \"compta\"\noperation = \"drop\"\n\
                        params = { path = \"x\" }\n";

/// The runs of a definition, oldest first: the kind, the data, and the labels of the first flows.
async fn runs(hub: &Hub, definition: DefinitionId) -> Vec<(String, Value, Vec<String>)> {
    let read = move |conn: &rusqlite::Connection| {
        let mut statement = conn.prepare(
            "SELECT kind, data, (SELECT json_group_array(label) FROM mediation_flows f WHERE f.run = r.seq) \
             FROM mediation_runs r WHERE definition = ?1 ORDER BY seq",
        )?;
        let rows = statement.query_map([definition.uuid().as_bytes()], |row| {
            let data: Value = opt_json(row, 1)?.unwrap_or_default();
            Ok((row.get(0)?, data, opt_json(row, 2)?.unwrap_or_default()))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    };
    hub.store.read(read).await.unwrap()
}

/// Waits until a definition has so many runs.
async fn wait_for_runs(
    hub: &Hub,
    definition: DefinitionId,
    count: usize,
) -> Vec<(String, Value, Vec<String>)> {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let runs = runs(hub, definition).await;
        if runs.len() >= count {
            return runs;
        }
        assert!(tokio::time::Instant::now() < until, "{} runs instead of {count}", runs.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn number(hub: &Hub, sql: &'static str) -> i64 {
    hub.store.read(move |conn| Ok(conn.query_row(sql, [], |row| row.get(0))?)).await.unwrap()
}

async fn send(hub: &Hub, key: &str, envelope: Value) -> bool {
    let event = NewBusinessEvent {
        tenant: name("acme"),
        key: Some(key.to_owned()),
        digest: Sha256::of(envelope.to_string().as_bytes()),
        kind: envelope["EventKind"].as_str().unwrap().to_owned(),
        category: envelope["EventCategory"].as_str().unwrap_or_default().to_owned(),
        envelope,
    };
    !hub.store.take_business_event(event).await.unwrap().duplicate
}

fn validated(total: f64) -> Value {
    json!({"EventKind": "CommandeValidee", "EventCategory": "e/commerce", "Data": {"CommandeMontantTotal": total}})
}

/// An agent that has announced the pickup `in` of `compta`.
async fn agent(hub: &Hub) -> Arc<AgentRecord> {
    let id = hub.agent().await.id;
    let sql = "INSERT INTO agent_triggers (agent, resource, name, kind, announced_at, current) \
               VALUES (?1, 'compta', 'in', 'pickup', 0, 1)";
    hub.store.write(move |tx| Ok(tx.conn.execute(sql, [id.uuid().as_bytes()])?)).await.unwrap();
    Arc::new(hub.store.agent(id).await.unwrap().unwrap())
}

/// The agent tells of a file; whether that was new.
async fn picked_up(hub: &Hub, agent: &Arc<AgentRecord>, path: &str, content: &[u8]) -> bool {
    let (resource, kind, sha256) = (name("compta"), name(PICKUP), Sha256::of(content));
    let size = content.len() as u64;
    let file = FileEvent { path: path.to_owned(), size, sha256, modified_at: None };
    let event = Event {
        id: file.id(&name("paris"), &resource, &kind),
        resource,
        trigger: name("in"),
        kind,
        lease: 1,
        occurred_at: clock::now(),
        data: serde_json::to_value(file).unwrap(),
        payload: Some(EventPayload {
            size,
            sha256,
            media_type: "text/csv".to_owned(),
            source: PayloadSource::Hub,
        }),
    };
    let checked = CheckedEvent { event, data: Some(Bytes::copy_from_slice(content)) };
    let agent = Arc::clone(agent);
    match hub.store.write(move |tx| receive(tx, &agent, &checked)).await.unwrap() {
        Receipt::Stored => true,
        Receipt::Duplicate => false,
        refused @ Receipt::Refused { .. } => panic!("{refused:?}"),
    }
}

#[tokio::test]
async fn planned_times_come_once_each_across_restarts_and_changes_of_other_things() {
    let mut hub = Hub::new().await;
    let id = apply(&hub, "", "kind = \"schedule\"\nevery = \"1s\"").await;
    wait_for_runs(&hub, id, 2).await;
    hub = hub.restart().await;
    wait_for_runs(&hub, id, 3).await;
    // Another version with the same schedule goes on with it.
    assert_eq!(apply(&hub, "label = \"other\"", "kind = \"schedule\"\nevery = \"1s\"").await, id);
    let seen = wait_for_runs(&hub, id, 5).await;
    let mut last: Option<Timestamp> = None;
    for (kind, data, flows) in seen {
        let planned: Timestamp = data["planned_at"].as_str().unwrap().parse().unwrap();
        assert!(kind == "schedule" && flows.is_empty() && planned.subsec_nanosecond() == 0, "{data}");
        if let Some(last) = last {
            assert_eq!(planned.duration_since(last), SignedDuration::from_secs(1), "after {last}: {data}");
        }
        last = Some(planned);
    }
    hub.store.enable_definition(name("acme"), id, false).await.unwrap();
    assert_eq!(number(&hub, "SELECT count(*) FROM trigger_times").await, 0);
    let before = runs(&hub, id).await.len();
    hub.store.enable_definition(name("acme"), id, true).await.unwrap();
    let after = wait_for_runs(&hub, id, before + 1).await;
    assert_eq!(after[before].1.get("missed_since"), None, "what passed while it was disabled is not missed");
}

/// Moves the plan of all schedules: as if the hub had not run, or its clock had been wrong.
async fn plan(hub: &Hub, last: Timestamp, due: Timestamp) {
    let write = move |tx: &mut crate::store::writer::Tx<'_>| {
        tx.effects.due_at(tx.now);
        Ok(tx
            .conn
            .execute("UPDATE trigger_times SET last_at = ?1, due_at = ?2", params![ms(last), ms(due)])?)
    };
    hub.store.write(write).await.unwrap();
}

#[tokio::test]
async fn missed_times_become_one_run_or_none_as_the_definition_says() {
    let hub = Hub::new().await;
    let now = clock::now();
    let hours = |hours| now.checked_sub(SignedDuration::from_hours(hours)).unwrap();
    let minute = |at: Timestamp| Timestamp::from_second(at.as_second() / 60 * 60).unwrap();
    // Due some minutes ago for the last time, and not again soon.
    let zoned = hours(0).to_zoned(jiff::tz::TimeZone::UTC).checked_sub(SignedDuration::from_mins(5)).unwrap();
    let hourly = format!("kind = \"schedule\"\ncron = \"{} * * * *\"", zoned.minute());
    let once = apply_as(&hub, "once", "missed = \"run_once\"", &hourly).await;
    let skip = apply_as(&hub, "skip", "missed = \"skip\"", &hourly).await;
    let first = minute(hours(5)).checked_sub(SignedDuration::from_mins(5)).unwrap();
    plan(&hub, hours(6), first).await;
    let seen = wait_for_runs(&hub, once, 1).await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    let last = minute(hours(0)).checked_sub(SignedDuration::from_mins(5)).unwrap();
    assert_eq!(seen[0].1, json!({"planned_at": last, "missed_since": first}));
    // Both were dealt with in one transaction.
    assert!(runs(&hub, skip).await.is_empty());
    let due = number(&hub, "SELECT min(due_at) FROM trigger_times").await;
    assert!(due > ms(now), "both go on with the next");

    // The clock had been a year ahead, and is right again: the schedule does not sleep for a year.
    let ahead = now.checked_add(SignedDuration::from_hours(24 * 365)).unwrap();
    plan(&hub, ahead, ahead.checked_add(SignedDuration::from_hours(1)).unwrap()).await;
    let until = tokio::time::Instant::now() + PATIENCE;
    while number(&hub, "SELECT max(due_at) FROM trigger_times").await > ms(ahead) {
        assert!(tokio::time::Instant::now() < until, "the plan stays in the future");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Back by an hour: planned again, but the run of that time is there already.
    plan(&hub, hours(1), last).await;
    let until = tokio::time::Instant::now() + PATIENCE;
    while number(&hub, "SELECT min(due_at) FROM trigger_times").await <= ms(now) {
        assert!(tokio::time::Instant::now() < until, "the plan does not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(runs(&hub, once).await.len(), 1, "a planned time came twice");
}

#[tokio::test]
async fn times_that_are_less_than_a_minute_late_are_not_missed() {
    let hub = Hub::new().await;
    let ago = |seconds: i64| clock::now().checked_sub(SignedDuration::from_secs(seconds)).unwrap();
    let every = "kind = \"schedule\"\nevery = \"20s\"";
    let once = apply_as(&hub, "once", "missed = \"run_once\"", every).await;
    let skip = apply_as(&hub, "skip", "missed = \"skip\"", every).await;
    let turn = |at: Timestamp| Timestamp::from_second(at.as_second() / 20 * 20).unwrap();
    let first = turn(ago(600));
    plan(&hub, first, first).await;
    let planned = |runs: &[(String, Value, Vec<String>)]| -> Vec<Timestamp> {
        runs.iter().map(|run| run.1["planned_at"].as_str().unwrap().parse().unwrap()).collect()
    };
    // The missed ones as one, and the two or three of the last minute.
    let seen = wait_for_runs(&hub, once, 3).await;
    let at = planned(&seen);
    assert_eq!(seen[0].1["missed_since"], json!(first), "{seen:?}");
    assert!(at[0] > first && at[0] < ago(59), "{seen:?}");
    for (i, pair) in at.windows(2).enumerate() {
        assert_eq!(pair[1].duration_since(pair[0]), SignedDuration::from_secs(20), "{seen:?}");
        assert_eq!(seen[i + 1].1.get("missed_since"), None, "{seen:?}");
    }
    let without = wait_for_runs(&hub, skip, at.len() - 1).await;
    assert!(without.iter().all(|run| run.1.get("missed_since").is_none()), "{without:?}");
    assert_eq!(planned(&without)[..2], at[1..3], "{without:?}");
}

#[tokio::test]
async fn a_business_event_starts_the_runs_whose_conditions_it_meets() {
    let hub = Hub::new().await;
    let large = "kind = \"event\"\nevent = \"CommandeValidee\"\ncategory = \"e/commerce\"\n\
                 when = \"event.Data.CommandeMontantTotal > 100\"";
    let large = apply_as(&hub, "large", "", large).await;
    let other =
        apply_as(&hub, "other", "", "kind = \"event\"\nevent = \"CommandeValidee\"\ncategory = \"e/rp\"")
            .await;
    let wrong = "kind = \"event\"\nevent = \"CommandeValidee\"\nwhen = \"event.Data.Nothing > 1\"";
    let wrong = apply_as(&hub, "wrong", "", wrong).await;
    let any = "kind = \"any\"\n[[mediation.trigger.of]]\nname = \"a\"\nkind = \"event\"\nevent = \"CommandeValidee\"\n\
               [[mediation.trigger.of]]\nname = \"b\"\nkind = \"event\"\nevent = \"CommandeValidee\"";
    let any = apply_as(&hub, "any", "", any).await;
    assert!(send(&hub, "1", validated(99.5)).await);
    assert!(send(&hub, "2", validated(100.5)).await);
    assert!(!send(&hub, "2", validated(100.5)).await);
    let expected = ("event".to_owned(), validated(100.5), Vec::<String>::new());
    assert_eq!(runs(&hub, large).await, [expected]);
    assert_eq!(runs(&hub, any).await.len(), 2, "one run for an event that fits two things");
    assert!(runs(&hub, other).await.is_empty() && runs(&hub, wrong).await.is_empty());
    let problem = hub.store.trigger_problem(name("acme"), wrong).await.unwrap().unwrap();
    assert!(
        problem.message.contains("could not be judged") && problem.message.contains("Nothing"),
        "{problem:?}"
    );
    assert_eq!((problem.times, hub.store.trigger_problem(name("acme"), large).await.unwrap()), (2, None));
    hub.store.delete_definition(name("acme"), large).await.unwrap();
    assert!(send(&hub, "3", validated(101.0)).await);
    assert_eq!((runs(&hub, large).await.len(), runs(&hub, any).await.len()), (1, 3));
}

#[tokio::test]
async fn two_tenants_whose_definitions_have_the_same_guid_do_not_meet() {
    let hub = Hub::new().await;
    hub.store.create_tenant(name("other"), crate::model::Tier::Enterprise).await.unwrap();
    let guid = clock::new_uuid7();
    let text = format!(
        "[[mediation]]\nguid = \"{guid}\"\nname = \"m\"\nmax_interval = \"1h\"\n[mediation.trigger]\nkind = \"any\"\n\
         [[mediation.trigger.of]]\nname = \"a\"\nkind = \"event\"\nevent = \"CommandeValidee\"\n\
         [[mediation.trigger.of]]\nname = \"b\"\nkind = \"schedule\"\ncron = \"@yearly\"\n{TRANSFER}"
    );
    for tenant in ["acme", "other"] {
        let written = file::read(Path::new("m.toml"), &text).unwrap_or_else(|findings| panic!("{findings}"));
        hub.store.apply_definitions(name(tenant), written, false).await.unwrap();
    }
    assert_eq!(number(&hub, "SELECT count(*) FROM trigger_times").await, 4);
    assert!(send(&hub, "1", validated(1.0)).await);
    let of = "SELECT count(*) FROM mediation_runs WHERE tenant = 'other'";
    assert_eq!((runs(&hub, guid.into()).await.len(), number(&hub, of).await), (1, 0));
    hub.store.delete_definition(name("acme"), guid.into()).await.unwrap();
    let left = "SELECT count(*) FROM trigger_times WHERE tenant = 'other'";
    assert_eq!((number(&hub, "SELECT count(*) FROM trigger_times").await, number(&hub, left).await), (2, 2));
}

#[tokio::test]
async fn a_file_that_an_agent_picked_up_starts_one_run_with_it() {
    let hub = Hub::new().await;
    let agent = agent(&hub).await;
    let trigger = "kind = \"resource\"\nsite = \"paris\"\nresource = \"compta\"\nevent = \"pickup\"\npath = \"in/*.csv\"\n\
                   when = \"event.data.size > 1 && event.stars[0] != 'skip'\"";
    let id = apply(&hub, "", trigger).await;
    for (path, content) in
        [("in/a.csv", "abc"), ("in/b.txt", "abc"), ("in/c.csv", "a"), ("in/skip.csv", "abc")]
    {
        assert!(picked_up(&hub, &agent, path, content.as_bytes()).await);
    }
    assert!(!picked_up(&hub, &agent, "in/a.csv", b"abc").await);
    let runs = runs(&hub, id).await;
    let [(kind, data, flows)] = runs.as_slice() else { panic!("{runs:?}") };
    assert_eq!((kind.as_str(), flows.as_slice()), ("resource", &["a.csv".to_owned()][..]));
    assert_eq!(
        (&data["name"], &data["stars"], &data["data"]["path"]),
        (&json!("a.csv"), &json!(["a"]), &json!("in/a.csv"))
    );
}

const PAIR: &str = "kind = \"all\"\nwithin = \"1h\"\n\
    [[mediation.trigger.of]]\nname = \"articles\"\nkind = \"resource\"\nsite = \"paris\"\nresource = \"compta\"\n\
    path = \"articles-*.csv\"\nkey = \"event.stars[0]\"\n\
    [[mediation.trigger.of]]\nname = \"prices\"\nkind = \"resource\"\nsite = \"paris\"\nresource = \"compta\"\n\
    path = \"prices-*.csv\"\nkey = \"event.stars[0]\"\n";

#[tokio::test]
async fn files_of_one_supplier_wait_for_each_other_and_all_that_waits_goes_into_one_run() {
    let mut hub = Hub::new().await;
    let agent = agent(&hub).await;
    let id = apply(&hub, "", PAIR).await;
    for path in ["articles-F1.csv", "prices-F2.csv"] {
        assert!(picked_up(&hub, &agent, path, path.as_bytes()).await);
    }
    assert!(runs(&hub, id).await.is_empty(), "the other supplier's file is no partner");
    hub = hub.restart().await;
    assert!(picked_up(&hub, &agent, "articles-F1.csv", b"a newer one").await);
    assert!(picked_up(&hub, &agent, "prices-F1.csv", b"prices").await);
    let started = runs(&hub, id).await;
    let [(kind, data, flows)] = started.as_slice() else { panic!("{started:?}") };
    assert_eq!(
        (kind.as_str(), flows.as_slice()),
        ("all", &["articles", "articles", "prices"].map(str::to_owned)[..])
    );
    assert_eq!(data["key"], "F1");
    assert_eq!(data["articles"]["data"]["size"], "a newer one".len(), "the last of them");
    assert_eq!(number(&hub, "SELECT count(*) FROM trigger_arrivals").await, 1, "that of F2 waits on");

    // Its content stays while it waits, whatever the retention of events says.
    let none = Duration::ZERO;
    let keep = Retention { events: none, blobs: none, ..Retention::default() };
    let later = clock::now().checked_add(SignedDuration::from_secs(60)).unwrap();
    Blobs::new(hub.store.clone()).collect(&keep, later).await.unwrap();
    assert!(picked_up(&hub, &agent, "articles-F2.csv", b"articles").await);
    assert_eq!(runs(&hub, id).await[1].2, ["prices", "articles"]);
    assert_eq!(number(&hub, "SELECT count(*) FROM trigger_arrivals").await, 0);
}

#[tokio::test]
async fn what_waits_for_too_long_is_left_out() {
    let hub = Hub::new().await;
    let agent = agent(&hub).await;
    let id = apply(&hub, "", &PAIR.replace("1h", "1s")).await;
    assert!(picked_up(&hub, &agent, "articles-F1.csv", b"articles").await);
    let until = tokio::time::Instant::now() + PATIENCE;
    while number(&hub, "SELECT count(*) FROM trigger_arrivals").await > 0 {
        assert!(tokio::time::Instant::now() < until, "it waits for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(picked_up(&hub, &agent, "prices-F1.csv", b"prices").await);
    assert!(runs(&hub, id).await.is_empty());
    let problem = hub.store.trigger_problem(name("acme"), id).await.unwrap().unwrap();
    assert!(problem.message.contains("did not come in time"), "{problem:?}");
    // Another trigger begins with nothing.
    apply(&hub, "", "kind = \"manual\"").await;
    for table in ["trigger_arrivals", "trigger_times", "trigger_topics", "trigger_problems"] {
        let sql = format!("SELECT count(*) FROM {table}");
        let left: i64 =
            hub.store.read(move |conn| Ok(conn.query_row(&sql, [], |row| row.get(0))?)).await.unwrap();
        assert_eq!(left, 0, "{table}");
    }
}

#[tokio::test]
async fn a_definition_is_late_once_until_a_run_succeeds() {
    let hub = Hub::new().await;
    let id = apply(&hub, "max_interval = \"1s\"", "kind = \"manual\"").await;
    let late = async |wanted: bool| {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let stored = hub.store.definition(name("acme"), id).await.unwrap();
            if stored.late_since.is_some() == wanted {
                return stored;
            }
            assert!(tokio::time::Instant::now() < until, "late_since: {:?}", stored.late_since);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let stored = late(true).await;
    let expected = stored.enabled_at.unwrap().checked_add(SignedDuration::from_secs(1)).unwrap();
    assert_eq!(stored.late_since, Some(expected));
    let told = "SELECT count(*) FROM mediation_changes WHERE kind = 'late' AND run IS NULL";
    assert_eq!(number(&hub, told).await, 1);
    // It is looked at again, and nothing is said a second time.
    let before = number(&hub, "SELECT due_at FROM trigger_times").await;
    let until = tokio::time::Instant::now() + PATIENCE;
    while number(&hub, "SELECT due_at FROM trigger_times").await == before {
        assert!(tokio::time::Instant::now() < until, "nobody looks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(number(&hub, told).await, 1);
    let succeeded = move |tx: &mut crate::store::writer::Tx<'_>| {
        let sql = "UPDATE mediation_definitions SET succeeded_at = ?1, late_since = NULL";
        Ok(tx.conn.execute(sql, [ms(tx.now)])?)
    };
    hub.store.write(succeeded).await.unwrap();
    let again = late(true).await;
    let since = again.succeeded_at.unwrap().checked_add(SignedDuration::from_secs(1)).unwrap();
    assert_eq!(again.late_since, Some(since));
    assert_eq!(number(&hub, told).await, 2);
    hub.store.enable_definition(name("acme"), id, false).await.unwrap();
    assert_eq!(number(&hub, "SELECT count(*) FROM trigger_times").await, 0);
    late(false).await;
}

#[test]
fn a_wrong_trigger_is_refused_with_its_places() {
    let findings = |trigger: &str| {
        let text = format!("[[mediation]]\nname = \"m\"\n[mediation.trigger]\n{trigger}\n{TRANSFER}");
        file::read(Path::new("m.toml"), &text).unwrap_err().to_string()
    };
    for (trigger, expected) in [
        ("kind = \"sometimes\"", "m.toml:4:8: mediation[1].trigger.kind: unknown value"),
        (
            "kind = \"schedule\"\nat = [\"6:00\"]",
            "m.toml:5:6: mediation[1].trigger.at: expected a time of day",
        ),
        (
            "kind = \"schedule\"\nevery = \"1h\"\ncron = \"@daily\"",
            "trigger.at: give exactly one of at, every and cron",
        ),
        (
            "kind = \"schedule\"\nevry = \"1h\"",
            "m.toml:5:1: mediation[1].trigger.evry: unknown key; did you mean \"every\"?",
        ),
        (
            "kind = \"event\"\nevent = \"A\"\nwhen = \"event.\"",
            "m.toml:6:8: mediation[1].trigger.when: not an expression",
        ),
        (
            "kind = \"event\"\nevent = \"A\"\nwhen = \"job.x == 1\"",
            "m.toml:6:8: mediation[1].trigger.when: \"job\" is not known here",
        ),
        (
            "kind = \"resource\"\nsite = \"paris\"\nresource = \"compta\"\npath = \"/x\"",
            "m.toml:7:8: mediation[1].trigger.path: never matches",
        ),
        (
            "kind = \"resource\"\nsite = \"paris\"\nresource = \"compta\"\nevent = \"x\"",
            "trigger.event: expected one of pickup",
        ),
        (
            "kind = \"url\"\nsite = \"paris\"\nresource = \"app\"\npath = \"x\"",
            "trigger.every: expected 1 s to 7 days",
        ),
        ("kind = \"all\"", "trigger.of: expected 2 to 20 tables"),
        (
            "kind = \"any\"\n[[mediation.trigger.of]]\nname = \"a\"\nkind = \"manual\"\n[[mediation.trigger.of]]\nname = \"b\"\n\
             kind = \"event\"\nevent = \"A\"\nkey = \"event.x\"",
            "m.toml:7:8: mediation[1].trigger.of[1].kind: unknown value",
        ),
        (&PAIR.replace("1h", "31d"), "trigger.within: expected 1 s to 30 days"),
        (&PAIR.replace("\"prices\"", "\"articles\""), "trigger.of[2].name: a clause before has this name"),
    ] {
        let found = findings(trigger);
        assert!(found.contains(expected), "{trigger}\n{found}");
    }
}

#[tokio::test]
async fn what_is_written_is_stored_and_read_back_the_same() {
    let hub = Hub::new().await;
    let url = "kind = \"url\"\nsite = \"paris\"\nresource = \"app\"\npath = \"x\"\nevery = \"5m\"\nquery = { a = \"1\" }";
    for trigger in
        [PAIR, url, "kind = \"schedule\"\nat = [\"06:00\"]\ndays = [\"mon\"]\ntimezone = \"Europe/Paris\""]
    {
        let id = apply(&hub, "", trigger).await;
        let stored = hub.store.definition(name("acme"), id).await.unwrap().definition;
        let again =
            crate::mediations::Definition::of_json(&stored.to_json()).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(again.definition, *stored);
    }
}
