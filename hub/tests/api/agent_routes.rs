//! What agents call before they have a tunnel: enrolment and the upgrade, and how they are refused.

use crate::{
    agent::{Agent, enrol_request, token},
    support::{Answer, Hub, name},
};
use passerelle_hub::model::Tier;
use passerelle_protocol::{SUBPROTOCOL, SigningKey};
use reqwest::Method;
use serde_json::{Value, json};

async fn enrol(hub: &Hub, body: &Value) -> Answer {
    Answer::of(hub.anonymous(Method::POST, "/agent/v1/enrol").json(body)).await
}

#[tokio::test]
async fn a_token_enrols_one_agent_and_repeats_its_answer() {
    let hub = Hub::start().await;
    let text = token(&hub, "acme", "paris", 1).await;
    let (key, _) = SigningKey::generate().unwrap();
    let request = json!(enrol_request(&text, &key));
    let first = enrol(&hub, &request).await.expect(201).json();
    assert_eq!((&first["tenant"], &first["site"]), (&json!("acme"), &json!("paris")));
    assert_eq!(first["application"], "orchestrator");
    assert_eq!(first["job_keys"], json!([hub.store.signing_key().public()]));
    // The answer was lost: the same request again has the same answer.
    assert_eq!(enrol(&hub, &request).await.expect(201).json()["agent"], first["agent"]);

    let (another, _) = SigningKey::generate().unwrap();
    let used = enrol(&hub, &json!(enrol_request(&text, &another))).await.expect_problem(401, "unauthorized");
    assert!(used.json()["server_time"].is_string());
    let unknown = enrol(&hub, &json!(enrol_request("et_nobody_secret", &another))).await;
    assert!(unknown.expect_problem(401, "unauthorized").json()["server_time"].is_string());
    let revoked = token(&hub, "acme", "paris", 1).await;
    let id = hub.store.list_enrolment_tokens(Some(name("acme"))).await.unwrap();
    let id = id.iter().find(|token| revoked.contains(&token.id)).unwrap().id.clone();
    hub.store.revoke_enrolment_token(&id).await.unwrap();
    enrol(&hub, &json!(enrol_request(&revoked, &another))).await.expect_problem(401, "unauthorized");
    for body in [json!({}), json!({"token": 7}), json!([])] {
        enrol(&hub, &body).await.expect_problem(400, "bad_request");
    }
    hub.end().await;
}

#[tokio::test]
async fn a_tier_without_hybrid_mode_is_refused() {
    let hub = Hub::start().await;
    let text = token(&hub, "acme", "paris", 1).await;
    hub.store.set_tier(name("acme"), Tier::Professional).await.unwrap();
    let (key, _) = SigningKey::generate().unwrap();
    let refused = enrol(&hub, &json!(enrol_request(&text, &key))).await.expect_problem(403, "tier_required");
    assert!(refused.json()["detail"].as_str().unwrap().contains("Enterprise"));
    hub.store.set_tier(name("acme"), Tier::Enterprise).await.unwrap();
    enrol(&hub, &json!(enrol_request(&text, &key))).await.expect(201);
    hub.end().await;
}

#[tokio::test]
async fn the_tunnel_says_why_it_does_not_open() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let upgrade = |bearer: &str| {
        hub.anonymous(Method::GET, "/agent/v1/tunnel")
            .bearer_auth(bearer)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", SUBPROTOCOL)
    };
    let plain = hub.anonymous(Method::GET, "/agent/v1/tunnel").bearer_auth(agent.bearer());
    Answer::of(plain).await.expect_problem(426, "bad_request");
    for wrong in ["x", "a.b.c", &hub.key] {
        let refused = Answer::of(upgrade(wrong)).await.expect_problem(401, "unauthorized");
        assert!(refused.json()["server_time"].is_string());
    }
    let bearer = agent.bearer();
    let open = upgrade(&bearer).send().await.unwrap();
    assert_eq!(open.status(), 101);
    assert_eq!(open.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    drop(open);
    // A token is good for one request.
    Answer::of(upgrade(&bearer)).await.expect_problem(401, "unauthorized");
    hub.store.revoke_agent(agent.identity.agent).await.unwrap();
    let revoked = Answer::of(upgrade(&agent.bearer())).await;
    assert!([401, 403].contains(&revoked.status), "{}", revoked.text());
    hub.end().await;
}
