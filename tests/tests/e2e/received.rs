//! A real hub and the events of an agent without manners: nothing told is lost or kept twice while the hub is killed, and a
//! flood costs others nothing.

use crate::common::{SITE, with};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::{FileEvent, Name, Sha256};
use passerelle_tests::{FakeAgent, FakeIdentity, Hub};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// What a pickup makes of a file.
fn event(path: &str, content: &[u8]) -> Value {
    let (size, sha256) = (content.len() as u64, Sha256::of(content));
    let file = FileEvent { path: path.to_owned(), size, sha256, modified_at: None };
    json!({
        "type": "event", "id": file.id(&name(SITE), &name("compta"), &name("pickup")), "resource": "compta",
        "trigger": "incoming", "kind": "pickup", "lease": 1, "occurred_at": "2026-11-21T06:00:00Z", "data": file,
        "payload": {
            "size": size, "sha256": sha256, "media_type": "text/csv",
            "source": {"at": "inline", "data": STANDARD.encode(content)},
        },
    })
}

/// A session of an agent that has a trigger, and may run it.
async fn session(identity: &FakeIdentity) -> FakeAgent {
    let mut tunnel = identity.tunnel(&identity.token(0)).await.unwrap_or_else(|answer| panic!("{answer:?}"));
    let triggers = json!({"triggers": [{"resource": "compta", "name": "incoming", "kind": "pickup"}]});
    let hello = with(tunnel.hello(json!([])), triggers);
    tunnel.send(&hello).await;
    let leases = tunnel.receive(&["triggers", "refuse"]).await;
    assert_eq!(leases["leases"][0]["trigger"], "incoming", "{leases}");
    tunnel
}

/// The ids of all events at the hub, as often as they are there.
async fn stored(hub: &Hub) -> Vec<String> {
    let mut ids = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = hub.api.get(&format!("/v1/events/received?limit=50{cursor}")).await.body;
        let items = page["items"].as_array().expect("a list").iter();
        ids.extend(items.map(|item| item["id"].as_str().expect("an id").to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { return ids };
        cursor = format!("&cursor={next}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_told_to_a_hub_that_is_killed_again_and_again_are_each_stored_once() {
    let mut hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let events: Vec<Value> =
        (0..160).map(|n| event(&format!("in/{n}.csv"), format!("{n}").as_bytes())).collect();
    let mut spool: Vec<&Value> = events.iter().collect();
    let mut duplicates = 0;
    for killed in 0..8 {
        let mut tunnel = session(&identity).await;
        for event in spool.iter().take(16) {
            tunnel.send(event).await;
        }
        // Some are acknowledged; the hub dies between storing the others and saying so, or before.
        for _ in 0..=killed {
            let ack = tunnel.receive(&["event_ack", "event_refused"]).await;
            assert_eq!(ack["type"], "event_ack", "{ack}");
            duplicates += u32::from(ack["duplicate"] == true);
            spool.retain(|event| event["id"] != ack["id"]);
        }
        hub.restart().await;
    }
    while !spool.is_empty() {
        let mut tunnel = session(&identity).await;
        for event in spool.iter().take(16) {
            tunnel.send(event).await;
        }
        for _ in 0..spool.len().min(16) {
            let ack = tunnel.receive(&["event_ack", "event_refused"]).await;
            assert_eq!(ack["type"], "event_ack", "{ack}");
            duplicates += u32::from(ack["duplicate"] == true);
            spool.retain(|event| event["id"] != ack["id"]);
        }
    }
    assert!(duplicates > 0, "no acknowledgement was ever lost: the test shows nothing");
    let stored = stored(&hub).await;
    let wanted: BTreeSet<&str> = events.iter().map(|event| event["id"].as_str().expect("an id")).collect();
    assert_eq!(stored.len(), wanted.len(), "an event is there twice, or missing");
    assert_eq!(stored.iter().map(String::as_str).collect::<BTreeSet<_>>(), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_events_is_refused_and_costs_the_others_nothing() {
    let mut hub = Hub::start().await;
    let honest = FakeIdentity::enrol(&hub, SITE).await;
    let hostile = FakeIdentity::enrol(&hub, SITE).await;
    let mut tunnel = session(&honest).await;
    let mut flood = hostile.tunnel(&hostile.token(0)).await.ok().unwrap();
    let hello = flood.hello(json!([]));
    flood.send(&hello).await;
    flood.receive(&["welcome"]).await;
    // It has announced no trigger, reads nothing, and sends what would be 100 MB of payloads.
    for number in 0..300 {
        let text = event(&format!("flood/{number}"), &vec![b'x'; 256 * 1024]).to_string();
        if flood.send_raw(text.into()).await.is_err() {
            break;
        }
    }
    let good = event("in/good.csv", b"good");
    tunnel.send(&good).await;
    assert_eq!(tunnel.receive(&["event_ack", "event_refused"]).await["duplicate"], false);
    assert_eq!(stored(&hub).await, [good["id"].as_str().expect("an id")]);
    assert!(hub.process.is_running());
    assert!(hub.process.memory_kib("VmHWM") < 96 * 1024, "{} KiB", hub.process.memory_kib("VmHWM"));
}
