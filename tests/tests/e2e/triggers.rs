//! What starts mediations, on real processes: planned times, business events, files that an agent picks up, a URL that it
//! asks for, two files of one supplier; each once, though the hub is killed in between. And a mediation that is late.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::common::{SITE, files_below};
use passerelle_tests::{Agent, App, Hub, PATIENCE, Reply, resources, until};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

/// Everything that one tenant's mediations may begin with. A drop that came twice would fail: nothing is replaced.
const DEFINITIONS: &str = r#"
[[mediation]]
name = "ticks"
[mediation.trigger]
kind = "schedule"
every = "1s"
[[mediation.transfer]]
site = "paris"
resource = "compta"
operation = "drop"
params = { path = "ticks/{{ trigger.data.planned_at | replace(':', '-') }}.txt", on_conflict = "fail", create_dirs = true }
payload = "{{ trigger.data.planned_at }}"

[[mediation]]
name = "orders"
[mediation.trigger]
kind = "event"
event = "CommandeValidee"
when = "event.Data.CommandeMontantTotal > 100"
[[mediation.transfer]]
site = "paris"
resource = "orders-app"
operation = "notify"
params = { path = "orders/{{ trigger.data.Data.CommandeNumero }}/validated" }
payload = "{{ trigger.data.Data.CommandeNumero }}"

[[mediation]]
name = "pickup"
[mediation.trigger]
kind = "resource"
site = "paris"
resource = "compta"
trigger = "incoming"
path = "in/*.txt"
[[mediation.transfer]]
site = "paris"
resource = "compta"
operation = "drop"
params = { path = "picked/{{ trigger.data.name }}", on_conflict = "fail", create_dirs = true }

[[mediation]]
name = "suppliers"
[mediation.trigger]
kind = "all"
within = "10m"
[[mediation.trigger.of]]
name = "articles"
kind = "resource"
site = "paris"
resource = "compta"
path = "in/articles-*.csv"
key = "event.stars[0]"
[[mediation.trigger.of]]
name = "prices"
kind = "resource"
site = "paris"
resource = "compta"
path = "in/prices-*.csv"
key = "event.stars[0]"
[[mediation.transfer]]
input = ["articles"]
site = "paris"
resource = "compta"
operation = "drop"
params = { path = "both/{{ trigger.data.key }}/{{ trigger.data.articles.name }}", on_conflict = "fail", create_dirs = true }
[[mediation.transfer]]
input = ["prices"]
site = "paris"
resource = "compta"
operation = "drop"
params = { path = "both/{{ trigger.data.key }}/{{ trigger.data.prices.name }}", on_conflict = "fail", create_dirs = true }

[[mediation]]
name = "stock"
[mediation.trigger]
kind = "url"
site = "paris"
resource = "orders-app"
path = "export/stock.csv"
every = "1s"
[[mediation.transfer]]
site = "paris"
resource = "compta"
operation = "drop"
params = { path = "stock/{{ run.guid }}.csv", on_conflict = "fail", create_dirs = true }
"#;

async fn apply(hub: &Hub, toml: &str) {
    let answer = hub.api.post("/v1/mediations/definitions", &json!({"toml": toml})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// The runs of a definition, oldest first.
async fn runs(hub: &Hub, definition: &str) -> Vec<Value> {
    let answer = hub.api.get(&format!("/v1/mediations/runs?limit=500&definition={definition}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut items = answer.body["items"].as_array().expect("items").clone();
    items.reverse();
    items
}

/// Waits until a definition has so many runs, all of which succeeded.
async fn succeeded(hub: &Hub, definition: &str, count: usize) -> Vec<Value> {
    until(&format!("{count} runs of {definition}"), PATIENCE, async || {
        let runs = runs(hub, definition).await;
        let failed = runs
            .iter()
            .find(|run| ["failed", "unknown"].contains(&run["state"].as_str().unwrap_or_default()));
        if let Some(failed) = failed {
            let run = hub.api.get(&format!("/v1/mediations/runs/{}", failed["guid"].as_str().unwrap())).await;
            panic!("{:#}", run.body);
        }
        (runs.len() >= count && runs.iter().all(|run| run["state"] == "succeeded")).then_some(runs)
    })
    .await
}

async fn event(hub: &Hub, number: u32, total: f64) -> Value {
    let envelope = json!({
        "EventKind": "CommandeValidee", "EventCategory": "e/commerce",
        "Data": {"CommandeNumero": number, "CommandeMontantTotal": total},
    });
    let answer = hub.api.post("/v1/events/in", &envelope).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// A file appears whole, as a careful program makes it.
fn put(root: &Path, path: &str, content: &str) {
    let part = root.join("part");
    fs::write(&part, content).unwrap();
    fs::rename(part, root.join(path)).unwrap();
}

fn triggers() -> String {
    "[[resources.compta.pickup]]\nname = \"incoming\"\nfolder = \"in\"\npattern = \"*\"\nevery = \"1s\"\nstable = \"rename\"\n\
     after = \"delete\"\n"
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_trigger_starts_its_runs_once_though_the_hub_is_killed() {
    let (mut hub, root) = (Hub::start().await, TempDir::new().unwrap());
    let stock = Arc::new(AtomicUsize::new(1));
    let served = Arc::clone(&stock);
    let app = App::with(move |request, _| match request.method.as_str() {
        "GET" => Reply::status(200).body(format!("sku;stock\r\nA;{}\r\n", served.load(Ordering::Relaxed))),
        _ => Reply::status(200),
    })
    .await;
    fs::create_dir(root.path().join("in")).unwrap();
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &format!("{}{}", resources::folder("compta", root.path()), triggers()));
    agent.resource("orders-app", &resources::application("orders-app", &app.url));
    agent.start().await;
    apply(&hub, DEFINITIONS).await;

    event(&hub, 1, 129.9).await;
    event(&hub, 2, 12.5).await;
    put(root.path(), "in/a.txt", "a");
    put(root.path(), "in/articles-F1.csv", "articles of F1");
    put(root.path(), "in/articles-F2.csv", "articles of F2");
    succeeded(&hub, "orders", 1).await;
    succeeded(&hub, "pickup", 1).await;
    succeeded(&hub, "stock", 1).await;
    succeeded(&hub, "ticks", 2).await;
    until("the files to be taken", PATIENCE, async || {
        (files_below(&root.path().join("in")).is_empty()).then_some(())
    })
    .await;

    hub.restart().await;
    put(root.path(), "in/prices-F1.csv", "prices of F1");
    put(root.path(), "in/b.txt", "b");
    assert_eq!(event(&hub, 1, 129.9).await["duplicate"], true);
    event(&hub, 3, 500.0).await;
    stock.store(2, Ordering::Relaxed);
    let before = runs(&hub, "ticks").await.len();
    for (definition, count) in
        [("orders", 2), ("pickup", 2), ("stock", 2), ("suppliers", 1), ("ticks", before + 2)]
    {
        succeeded(&hub, definition, count).await;
    }
    hub.api.post("/v1/mediations/definitions/ticks/disable", &json!({})).await;
    let ticks = succeeded(&hub, "ticks", 1).await;

    // What arrived where is what happened, no more and no less.
    let below = |folder: &str| files_below(&root.path().join(folder));
    assert_eq!(below("picked"), ["a.txt", "b.txt"]);
    assert_eq!(below("both"), ["F1/articles-F1.csv", "F1/prices-F1.csv"]);
    assert_eq!(fs::read_to_string(root.path().join("both/F1/prices-F1.csv")).unwrap(), "prices of F1");
    let mut stocks: Vec<String> = below("stock")
        .iter()
        .map(|file| fs::read_to_string(root.path().join("stock").join(file)).unwrap())
        .collect();
    stocks.sort();
    assert_eq!(stocks, ["sku;stock\r\nA;1\r\n", "sku;stock\r\nA;2\r\n"]);
    assert_eq!(below("ticks").len(), ticks.len(), "each planned time made one file");
    let mut told: Vec<String> = app
        .requests()
        .iter()
        .filter(|request| request.method == "POST")
        .map(|request| request.uri.clone())
        .collect();
    told.sort();
    assert_eq!(told, ["/orders/1/validated", "/orders/3/validated"]);
    agent.kill();
}

/// An hourly export of the stock, an hour being a second here.
const HOURLY: &str = r#"
[[mediation]]
name = "stock-export"
max_interval = "4s"
overlap = "skip"
[mediation.trigger]
kind = "schedule"
every = "1s"
[[mediation.transfer]]
site = "paris"
resource = "compta"
operation = "drop"
params = { path = "stock.csv" }
payload = "sku;stock\r\nA;1\r\n"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_does_not_come_in_time_is_late_until_it_comes() {
    let (mut hub, root) = (Hub::start().await, TempDir::new().unwrap());
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &resources::folder("compta", root.path()));
    agent.start().await;
    apply(&hub, HOURLY).await;
    let late = async |hub: &Hub, wanted: bool| {
        until(&format!("late: {wanted}"), PATIENCE + Duration::from_secs(10), async || {
            let answer = hub.api.get("/v1/mediations/definitions/stock-export").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let succeeded = !answer.body["succeeded_at"].is_null();
            (succeeded && answer.body["late_since"].is_string() == wanted).then_some(answer.body)
        })
        .await
    };
    let in_time = late(&hub, false).await;
    agent.kill();
    let is_late = late(&hub, true).await;
    let time =
        |value: &Value| -> jiff::Timestamp { value.as_str().expect("a time").parse().expect("a time") };
    let since = time(&is_late["late_since"]).duration_since(time(&is_late["succeeded_at"]));
    assert_eq!(since, jiff::SignedDuration::from_secs(4), "{is_late:#}");
    assert!(time(&is_late["succeeded_at"]) >= time(&in_time["succeeded_at"]));
    // It stays late over a restart, and the next success ends it.
    hub.restart().await;
    assert_eq!(late(&hub, true).await["late_since"], is_late["late_since"]);
    agent.restart().await;
    late(&hub, false).await;
    // One run waited for the agent, and those behind it were skipped.
    assert!(runs(&hub, "stock-export").await.iter().any(|run| run["state"] == "skipped"));
}
