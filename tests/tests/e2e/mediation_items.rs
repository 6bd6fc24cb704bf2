//! The items of a `for_each` on real processes: whoever dies among them, each job is submitted once, and each request to the
//! cloud keeps its id.

use crate::common::{SITE, Site};
use passerelle_tests::{App, Hub, PATIENCE, Reply, Request, until};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Mutex, time::Duration};

/// The items of a run.
const ITEMS: usize = 6;
/// For how long the application, or the cloud, thinks about the item in whose middle the kill comes.
const THINKS: Duration = Duration::from_millis(400);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Hub,
    Agent,
}

/// The case and the item that a request is about, of a job or of an event.
fn subject(request: &Request) -> Option<(String, usize)> {
    let body: Value = serde_json::from_slice(&request.body).ok()?;
    let said = if body["Data"].is_object() { &body["Data"] } else { &body };
    let item = said["item"].as_u64().or_else(|| said["item"].as_str()?.parse().ok())?;
    Some((said["case"].as_str()?.to_owned(), usize::try_from(item).ok()?))
}

/// Answers late what is about the item that the case is named after.
fn reply(request: &Request) -> Reply {
    match subject(request) {
        Some((case, item)) if case.starts_with(&format!("late-{item}-")) => Reply::status(200).after(THINKS),
        _ => Reply::status(200),
    }
}

/// Two notifications at a time for six records, and an event of each to the cloud.
fn definition(subscription: &str) -> Value {
    let records: String = (1..=ITEMS).map(|item| format!("{{\"item\":{item}}}\n")).collect();
    let from = json!({"format": "ndjson"});
    json!({
        "name": "items", "trigger": {"kind": "manual"},
        "steps": [
            {"name": "records", "kind": "render", "flow": "records.ndjson", "media_type": "application/x-ndjson",
             "template": records},
            {"name": "jobs", "kind": "for_each", "from": from, "parallel": 2, "job": {
                "site": SITE, "resource": "orders-app", "operation": "notify",
                "params": {"path": "orders/{{ trigger.data.case }}-{{ item.item }}"},
                "payload": r#"{"case":"{{ trigger.data.case }}","item":{{ item.item }}}"#,
                "media_type": "application/json", "max_attempts": 20,
            }},
            {"name": "events", "kind": "for_each", "input": ["records"], "from": from, "parallel": 2, "webhook": {
                "subscription": subscription, "event": "Item",
                "data": {"case": "{{ trigger.data.case }}", "item": "{{ item.item }}"},
            }},
        ],
    })
}

/// The requests of a case about one item, and the different values of a header among them.
fn about(requests: &[Request], case: &str, item: usize, header: &str) -> (usize, BTreeSet<String>) {
    let wanted = Some((case.to_owned(), item));
    let own: Vec<_> = requests.iter().filter(|request| subject(request) == wanted).collect();
    let values = own.iter().map(|request| request.header(header).to_owned()).collect();
    (own.len(), values)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_among_the_items_of_a_step_a_run_does_each_of_them_once() {
    let hub = Hub::start_configured("[outbound]\nallow_addresses = [\"127.0.0.1\"]\n").await;
    let cloud = App::with(|request, _| reply(request)).await;
    let mut site = Site::at(hub, |request, _| reply(request)).await;
    site.agent.start().await;
    let wish = json!({"url": format!("{}hook", cloud.url), "kinds": ["MediationTermineeErr"]});
    let subscribed = site.hub.api.post("/v1/subscriptions", &wish).await;
    assert_eq!(subscribed.status, 201, "{:#}", subscribed.body);
    let subscription = subscribed.body["id"].as_str().unwrap();
    let definitions = "/v1/mediations/definitions";
    let made = site.hub.api.post(definitions, &json!({"definitions": [definition(subscription)]})).await;
    assert!(made.status < 300, "{:#}", made.body);
    let mut cases = Vec::new();
    for item in 1..=ITEMS {
        // In the middle of a job, by either; in the middle of a request to the cloud, by the hub that sends it.
        for (victim, step) in [(Victim::Hub, "jobs"), (Victim::Agent, "jobs"), (Victim::Hub, "events")] {
            let case = format!("late-{item}-{step}-{victim:?}").to_lowercase();
            let started = site
                .hub
                .api
                .post(&format!("{definitions}/items/run"), &json!({"key": case, "data": {"case": case}}))
                .await;
            assert_eq!(started.status, 201, "{:#}", started.body);
            let run = started.body["guid"].as_str().unwrap().to_owned();
            let server = if step == "jobs" { &site.app } else { &cloud };
            until("the request about the item", PATIENCE, async || {
                (about(&server.requests(), &case, item, "content-type").0 > 0).then_some(())
            })
            .await;
            match victim {
                Victim::Hub => site.hub.restart().await,
                Victim::Agent => {
                    site.agent.restart().await;
                }
            }
            let path = format!("/v1/mediations/runs/{run}");
            let ended = until("the run to end", PATIENCE, async || {
                let shown = site.hub.api.get(&path).await.body;
                shown["finished_at"].is_string().then_some(shown)
            })
            .await;
            assert_eq!(ended["state"], "succeeded", "{case}: {ended:#}");
            cases.push((case, victim));
        }
    }
    for (case, victim) in &cases {
        for item in 1..=ITEMS {
            let (asked, keys) = about(&site.app.requests(), case, item, "idempotency-key");
            assert_eq!(keys.len(), 1, "{case}: item {item} was more than one job: {keys:?}");
            assert!(asked == 1 || *victim == Victim::Agent, "{case}: item {item} was asked {asked} times");
            // Only a hub that dies with the answer on its way tells again, under the same id.
            let (told, ids) = about(&cloud.requests(), case, item, "webhook-id");
            assert_eq!(ids.len(), 1, "{case}: item {item} was told under {ids:?}");
            assert!(told == 1 || case.contains("events"), "{case}: item {item} was told {told} times");
        }
    }
    let listed = site.hub.api.get("/v1/jobs?limit=500").await.body;
    assert_eq!(listed["items"].as_array().unwrap().len(), cases.len() * ITEMS, "a job was submitted twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_whose_endpoint_asks_to_wait_is_sent_again_then_and_the_others_are_not() {
    let hub = Hub::start_configured("[outbound]\nallow_addresses = [\"127.0.0.1\"]\n").await;
    let refused = Mutex::new(BTreeSet::new());
    let cloud = App::with(move |request, _| match subject(request) {
        Some((_, item)) if item % 3 == 2 && refused.lock().unwrap().insert(item) => {
            Reply::status(429).header("retry-after", "2")
        }
        _ => Reply::status(200),
    })
    .await;
    let wish = json!({"url": format!("{}hook", cloud.url), "kinds": ["MediationTermineeErr"]});
    let subscribed = hub.api.post("/v1/subscriptions", &wish).await;
    let mut definition = definition(subscribed.body["id"].as_str().unwrap());
    definition["steps"].as_array_mut().unwrap().remove(1);
    let definitions = "/v1/mediations/definitions";
    let made = hub.api.post(definitions, &json!({"definitions": [definition]})).await;
    assert!(made.status < 300, "{:#}", made.body);
    let started = hub
        .api
        .post(&format!("{definitions}/items/run"), &json!({"key": "k", "data": {"case": "wait"}}))
        .await;
    let path = format!("/v1/mediations/runs/{}", started.body["guid"].as_str().unwrap());
    let ended = until("the run to end", PATIENCE, async || {
        let shown = hub.api.get(&path).await.body;
        shown["finished_at"].is_string().then_some(shown)
    })
    .await;
    assert_eq!(ended["state"], "succeeded", "{ended:#}");
    for item in 1..=ITEMS {
        let (told, ids) = about(&cloud.requests(), "wait", item, "webhook-id");
        assert_eq!((told, ids.len()), (if item % 3 == 2 { 2 } else { 1 }, 1), "item {item}: {ids:?}");
    }
    // A wait of its own would be of one second.
    let said = ended["messages"].to_string();
    assert!(
        said.contains("4 of 6 items done, 2 failed; item 2") && said.contains("tried again in 2 s"),
        "{said}"
    );
}
