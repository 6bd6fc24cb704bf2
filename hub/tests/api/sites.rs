//! Sites, resources and agents, with and without a tunnel.

use crate::{
    agent::{Agent, token},
    support::{Hub, eventually},
};
use serde_json::{Value, json};

#[tokio::test]
async fn sites_agents_and_resources_show_what_is_connected() {
    let hub = Hub::start().await;
    assert_eq!(
        hub.get("/v1/sites").await.expect(200).json(),
        json!({"items": [{"name": "paris", "agents": 0, "agents_online": 0, "jobs_queued": 0}], "next_cursor": null})
    );
    assert_eq!(hub.get("/v1/sites").await.header("passerelle-tenant"), "acme");
    let agent = Agent::enrol(&hub).await;
    let listed = hub.get("/v1/agents").await.expect(200).json();
    let shown = &listed["items"][0];
    assert_eq!(shown["id"], json!(agent.identity.agent));
    assert_eq!((&shown["name"], &shown["site"]), (&json!("paris-1"), &json!("paris")));
    assert_eq!((&shown["application"], &shown["version"]), (&json!("orchestrator"), &json!("0.1.0")));
    assert_eq!((&shown["online"], &shown["jobs_running"]), (&json!(false), &json!(0)));
    assert_eq!((&shown["connected_at"], &listed["next_cursor"]), (&Value::Null, &Value::Null));
    let resources = hub.get("/v1/sites/paris/resources").await.expect(200).json();
    assert_eq!(resources["items"], json!([]));

    let mut session = agent.connect(&hub).await;
    let shown = hub.get("/v1/agents?site=paris").await.json()["items"][0].clone();
    assert_eq!(shown["online"], true);
    assert!(shown["connected_at"].is_string() && shown["last_seen_at"].is_string(), "{shown}");
    let site = hub.get("/v1/sites").await.json()["items"][0].clone();
    assert_eq!((&site["agents"], &site["agents_online"]), (&json!(1), &json!(1)));
    assert_eq!(
        hub.get("/v1/sites/paris/resources").await.json()["items"],
        json!([{
            "name": "compta", "connector": "file",
            "operations": [{"name": "drop", "params_schema": {"type": "object"}, "repeat": "safe"}],
            "limits": {"max_concurrent": 4, "rate_per_minute": 600}, "paused": null, "breaker": "closed",
        }])
    );
    // Nobody announces this one: it waits.
    let waiting = hub.submit(json!({"resource": "elsewhere"})).await;
    assert_eq!(waiting["state"], "queued");
    assert_eq!(hub.get("/v1/sites").await.json()["items"][0]["jobs_queued"], 1);
    hub.submit(json!({})).await;
    let offer = session.offer().await;
    let busy = hub.get("/v1/agents").await.json()["items"][0]["jobs_running"].clone();
    assert_eq!(busy, 1, "{offer:?}");
    drop(session);
    eventually(|| async {
        (hub.get("/v1/agents").await.json()["items"][0]["online"] == false).then_some(())
    })
    .await;

    hub.get("/v1/sites/lyon/resources").await.expect_problem(404, "site_unknown");
    hub.get("/v1/sites/LYON/resources").await.expect_problem(404, "site_unknown");
    for site in ["lyon", "nice"] {
        token(&hub, "acme", site, 1).await;
    }
    let names = |page: &Value| {
        page["items"].as_array().unwrap().iter().map(|site| site["name"].clone()).collect::<Vec<_>>()
    };
    let first = hub.get("/v1/sites?limit=2").await.expect(200).json();
    assert_eq!(names(&first), ["lyon", "nice"]);
    let next = format!("/v1/sites?limit=2&cursor={}", first["next_cursor"].as_str().unwrap());
    let last = hub.get(&next).await.expect(200).json();
    assert_eq!((names(&last), &last["next_cursor"]), (vec![json!("paris")], &Value::Null));
    for wrong in ["limit=0", "limit=501", "cursor=A%20B", "color=red"] {
        hub.get(&format!("/v1/sites?{wrong}")).await.expect_problem(400, "bad_request");
    }
    hub.get("/v1/agents?limit=0").await.expect_problem(400, "bad_request");
    hub.get("/v1/agents?color=red").await.expect_problem(400, "bad_request");
    hub.end().await;
}

#[tokio::test]
async fn agents_are_listed_in_pages() {
    let hub = Hub::start().await;
    let mut enrolled = Vec::new();
    for _ in 0..5 {
        enrolled.push(json!(Agent::enrol(&hub).await.identity.agent).to_string());
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = hub.get(&format!("/v1/agents?limit=2{cursor}")).await.expect(200).json();
        assert!(page["items"].as_array().unwrap().len() <= 2);
        seen.extend(page["items"].as_array().unwrap().iter().map(|agent| agent["id"].to_string()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    seen.sort();
    enrolled.sort();
    assert_eq!(seen, enrolled);
    hub.end().await;
}
