//! Subscribers of a hub process that is killed again and again: what happens is told to a server that fails and comes back.

use crate::{
    commands::{Serving, admin_json, client},
    receiver::{Received, Receiver},
    support::{Answer, eventually},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

const SETTINGS: &str = "\
[outbound]
allow_addresses = [\"127.0.0.1\"]
[notices]
timeout = \"5s\"
first_retry = \"100ms\"
longest_retry = \"1s\"
";

fn told(delivery: &Received) -> (String, String) {
    let body = delivery.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&body["Data"]["Guid"]), text(&body["EventKind"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_notice_reaches_a_subscriber_that_comes_back_in_order_though_the_hub_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (data, config) = (folder.path().join("data"), folder.path().join("hub.toml"));
    fs::write(&config, SETTINGS).unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let mut hub = Serving::start(&data, &arguments);
    admin_json(&data, &["tenant", "create", "acme", "--tier", "enterprise"]);
    let made = admin_json(&data, &["api-key", "create", "--tenant", "acme", "--scopes", "all"]);
    let key = made["key"].as_str().unwrap().to_owned();
    let client = client();
    let get = async |url: &str, path: &str| {
        Answer::of(client.get(format!("{url}{path}")).bearer_auth(&key)).await.expect(200).json()
    };
    let post = async |url: &str, path: &str, body: Value| {
        let answer = Answer::of(client.post(format!("{url}{path}")).bearer_auth(&key).json(&body)).await;
        assert!(answer.status < 300, "{path}: {}", answer.text());
        answer.json()
    };

    let endpoint = Receiver::start().await;
    endpoint.always_answers(503);
    let kinds = ["MediationCreation", "MediationTerminee", "MediationTermineeOk"];
    let made = post(&hub.url, "/v1/subscriptions", json!({"url": endpoint.url, "kinds": kinds})).await;
    let secret = made["secret"].as_str().unwrap().to_owned();
    let subscription = format!("/v1/subscriptions/{}", made["id"].as_str().unwrap());
    let easy =
        json!({"name": "easy", "label": "Facile", "trigger": {"kind": "manual"}, "overlap": "parallel"});
    post(&hub.url, "/v1/mediations/definitions", json!({"definitions": [easy]})).await;

    let mut runs = BTreeSet::new();
    for killed in 0..4 {
        for _ in 0..4 {
            let run = post(&hub.url, "/v1/mediations/definitions/easy/run", json!({})).await;
            runs.insert(run["guid"].as_str().unwrap().to_owned());
        }
        // It dies with requests under way: first while nothing is taken, then while some are.
        endpoint.wait_for(endpoint.received().len() + 3).await;
        hub.kill();
        endpoint.always_answers(200);
        endpoint.answers([500, 200, 429, 200, 500].repeat(killed));
        hub = Serving::start(&data, &arguments);
    }
    let url = hub.url.clone();
    eventually(|| async {
        let ended = get(&url, "/v1/mediations/runs?state=succeeded").await;
        let all = ended["items"].as_array().unwrap().len() == runs.len();
        (all && get(&url, &subscription).await["pending"] == 0).then_some(())
    })
    .await;
    let shown = get(&url, &subscription).await;
    assert_eq!((&shown["dead"], &shown["dropped"]), (&json!(0), &json!(0)), "{shown}");

    let mut ids: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut taken: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for delivery in endpoint.received() {
        delivery.is_signed_with(&secret);
        let (run, kind) = told(&delivery);
        let known =
            ids.entry(delivery.header("webhook-id").to_owned()).or_insert((run.clone(), kind.clone()));
        assert_eq!(*known, (run.clone(), kind.clone()), "an id names one notice, however often it is sent");
        if delivery.answered == 200 {
            taken.entry(run).or_default().push(kind);
        }
    }
    assert_eq!(ids.len(), runs.len() * kinds.len(), "each notice has one id");
    for run in &runs {
        // What was taken, and its answer lost with the hub, comes again before the next.
        let mut order = taken[run].clone();
        order.dedup();
        assert_eq!(order, kinds, "{run}");
    }
    hub.end();
}
