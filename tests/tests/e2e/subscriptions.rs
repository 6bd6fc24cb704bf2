//! Subscribers of a real hub: what happens is told to a server that fails, while the hub is killed again and again.

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_tests::{App, Hub, PATIENCE, Reply, Request, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

const SETTINGS: &str = "\
[outbound]
allow_addresses = [\"127.0.0.1\"]
[notices]
timeout = \"5s\"
first_retry = \"100ms\"
longest_retry = \"1s\"
";

/// Checks the signature as the Standard Webhooks specification says.
fn is_signed(request: &Request, secret: &str) {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").expect("a prefix")).expect("base64");
    let mut signed =
        format!("{}.{}.", request.header("webhook-id"), request.header("webhook-timestamp")).into_bytes();
    signed.extend_from_slice(&request.body);
    let tag = request.header("webhook-signature").strip_prefix("v1,").expect("a version");
    let tag = STANDARD.decode(tag).expect("base64");
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed, &tag).expect("the hub's signature");
}

fn told(request: &Request) -> (String, String) {
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    (text(&body["Data"]["Guid"]), text(&body["EventKind"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_notice_reaches_a_subscriber_that_comes_back_in_order_though_the_hub_is_killed() {
    let mut hub = Hub::start_with_settings(SETTINGS).await;
    let well = Arc::new(AtomicBool::new(false));
    let answers = Arc::clone(&well);
    // Down at first; then every third request still fails.
    let app = App::with(move |_, before| match answers.load(Ordering::SeqCst) && before % 3 != 0 {
        true => Reply::status(200).header("x-taken", "yes"),
        false => Reply::status(503),
    })
    .await;
    let key = hub.api_key("acme", "all");
    let api = hub.api.with_key(&key);
    let post = async |path: &str, body: Value| {
        let answer = api.try_send(api.request(Method::POST, path).json(&body)).await.expect("an answer");
        assert!(answer.status < 300, "{path}: {:?}", answer.body);
        answer.body
    };
    let kinds = ["MediationCreation", "MediationTerminee", "MediationTermineeOk"];
    let made = post("/v1/subscriptions", json!({"url": format!("{}hook", app.url), "kinds": kinds})).await;
    let secret = made["secret"].as_str().expect("a secret").to_owned();
    let subscription = format!("/v1/subscriptions/{}", made["id"].as_str().expect("an id"));
    let definition = json!({
        "name": "easy", "label": "Facile", "trigger": {"kind": "manual"}, "overlap": "parallel",
    });
    post("/v1/mediations/definitions", json!({"definitions": [definition]})).await;

    let mut runs = BTreeSet::new();
    for killed in 0..4 {
        for _ in 0..4 {
            let run = post("/v1/mediations/definitions/easy/run", json!({})).await;
            runs.insert(run["guid"].as_str().expect("a guid").to_owned());
        }
        // It dies with requests under way, once before the subscriber takes anything and then while it does.
        app.received(app.requests().len() + 3).await;
        well.store(killed > 0, Ordering::SeqCst);
        hub.restart().await;
    }
    until("all to be delivered", PATIENCE, async || {
        let shown = api.get(&subscription).await.body;
        let ended = api.get("/v1/mediations/runs?state=succeeded").await.body;
        let all = ended["items"].as_array().is_some_and(|items| items.len() == runs.len());
        (all && shown["pending"] == 0).then_some(())
    })
    .await;
    let shown = api.get(&subscription).await.body;
    assert_eq!((&shown["dead"], &shown["dropped"]), (&json!(0), &json!(0)), "{shown}");

    let requests = app.requests();
    let mut ids: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut taken: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (place, request) in requests.iter().enumerate() {
        is_signed(request, &secret);
        let (run, kind) = told(request);
        let id = request.header("webhook-id").to_owned();
        let known = ids.entry(id).or_insert_with(|| (run.clone(), kind.clone()));
        assert_eq!(*known, (run.clone(), kind.clone()), "an id names one notice, however often it is sent");
        // What it was answered: see above. Before the subscriber was well nothing was taken.
        if place % 3 != 0 {
            taken.entry(run).or_default().push(kind);
        }
    }
    assert_eq!(ids.len(), runs.len() * 3, "each notice once, with an id of its own");
    for run in &runs {
        let mut order = taken[run].clone();
        order.dedup();
        // Failures while it was down come first, and only of the first of the line.
        assert_eq!(order, kinds, "{run}");
    }
}
