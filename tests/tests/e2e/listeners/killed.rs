//! Posts while agent and hub are killed at random and the tunnel is cut.

use super::{Till, all_events, listener};
use crate::common::SITE;
use passerelle_tests::{Agent, Hub, Proxy, Random, free_port, until};
use reqwest::StatusCode;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

/// 64 clients post each of 2,000 keys three times while agent and hub are killed and the tunnel is cut.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_every_key_is_one_event() {
    const KEYS: usize = 2000;
    const COPIES: usize = 3;
    const CLIENTS: usize = 64;
    const FAULTS: u64 = 10;
    let mut random = Random::from_environment();
    let mut hub = Hub::start().await;
    let proxy = Proxy::start(hub.port()).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.through(&format!("http://127.0.0.1:{}", proxy.port()));
    let port = free_port();
    listener(&agent, "orders", port, "rate_per_minute = 1000000\nmax_concurrent = 32");
    agent.start().await;
    let orders = Till::new(port, "orders");
    orders.ready().await;
    // Each copy at a place of its own, so that copies of a key meet each other and the faults.
    let mut posts: Vec<usize> = (0..KEYS * COPIES).map(|n| n % KEYS).collect();
    for at in (1..posts.len()).rev() {
        let other = usize::try_from(random.below(at as u64 + 1)).unwrap();
        posts.swap(at, other);
    }
    let posts = Arc::new(Mutex::new(posts));
    let ids = Arc::new(Mutex::new(BTreeMap::<String, String>::new()));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (orders, posts, ids) = (orders.clone(), Arc::clone(&posts), Arc::clone(&ids));
            tokio::spawn(async move {
                loop {
                    let Some(n) = posts.lock().unwrap().pop() else { return };
                    let key = format!("order-{n}");
                    let body = format!("{{\"EventKind\":\"CommandeValidee\",\"n\":{n}}}");
                    // As an application does: again until it is taken.
                    let id = loop {
                        let Ok(answer) = orders.post(&key, body.clone()).send().await else {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            continue;
                        };
                        let status = answer.status();
                        let Ok(body) = answer.json::<Value>().await else { continue };
                        assert!(matches!(status.as_u16(), 202 | 503), "{status} {body}");
                        if status == StatusCode::ACCEPTED {
                            break body["id"].as_str().unwrap().to_owned();
                        }
                    };
                    let before = ids.lock().unwrap().insert(key, id.clone());
                    assert!(before.is_none_or(|before| before == id), "another id for the same key");
                }
            })
        })
        .collect();
    for fault in 0..FAULTS {
        // Spread over the posts, however fast they go.
        let left =
            KEYS * COPIES * usize::try_from(FAULTS - fault).unwrap() / usize::try_from(FAULTS + 1).unwrap();
        until("the next fault's turn", Duration::from_secs(120), async || {
            (posts.lock().unwrap().len() <= left).then_some(())
        })
        .await;
        match random.below(4) {
            0 => {
                hub.process.kill();
                hub.restart().await;
            }
            1 => proxy.cut(),
            _ => drop(agent.restart_without_waiting()),
        }
    }
    for client in clients {
        tokio::time::timeout(Duration::from_secs(120), client).await.expect("all posts are taken").unwrap();
    }
    agent.ready().await;
    let ids = ids.lock().unwrap().clone();
    assert_eq!(ids.len(), KEYS);
    let items = all_events(&hub, KEYS).await;
    for item in &items {
        let key = item["data"]["key"].as_str().unwrap();
        assert_eq!(item["id"].as_str(), ids.get(key).map(String::as_str), "{key}");
    }
}
