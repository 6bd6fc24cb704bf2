//! One tenant sees nothing of another, on any call: the OpenAPI document says which calls there are, so that a new one
//! cannot be forgotten here.

use crate::{
    agent::{Agent, enrol_request, token},
    signed::new_id,
    support::{Answer, Hub, all_scopes, job, name},
};
use futures_util::StreamExt as _;
use passerelle_hub::model::Tier;
use passerelle_protocol::{AgentKey, Envelope, JobId, SigningKey, http::KeyRequest};
use reqwest::Method;
use serde_json::{Value, json};

/// Of tenant `acme`: a site of its own, an agent, a job that is offered to it, a blob, and words that are nobody else's.
struct Theirs {
    agent: String,
    job: String,
    blob: String,
    event: String,
    definition: String,
    run: String,
    flow: String,
    told: String,
    subscription: String,
}

const WORDS: [&str; 3] = ["secret-path", "secret-label", "lyon"];

async fn theirs(hub: &Hub) -> (Theirs, crate::agent::Session) {
    token(hub, "acme", "lyon", 1).await;
    let agent = Agent::enrol(hub).await;
    let mut session = crate::received::connect(&agent, hub).await;
    let event = crate::received::event("secret-path-of-an-event.csv", b"theirs");
    let received = event.id.to_string();
    session.send(event).await;
    session.event_ack().await;
    let extra = json!({"params": {"path": "secret-path.csv"}, "labels": {"secret-label": "x"}});
    let job = hub.submit(extra).await["id"].as_str().unwrap().to_owned();
    session.offer().await;
    let blob = Answer::of(hub.request(Method::POST, "/v1/blobs").body("theirs")).await.expect(201).json();
    let blob = blob["id"].as_str().unwrap().to_owned();
    let wish = json!({"url": "https://9.9.9.9/secret-path", "label": "secret-label"});
    let subscription = hub.post("/v1/subscriptions", &wish).await.expect(201).json();
    let subscription = subscription["id"].as_str().unwrap().to_owned();
    let told = json!({"EventKind": "secret-label"});
    let told = Answer::of(hub.request(Method::POST, "/v1/events/in").json(&told)).await.expect(200).json();
    let told = told["id"].as_str().unwrap().to_owned();
    let (definition, run, flow) = mediation(hub).await;
    let agent = agent.identity.agent.to_string();
    (Theirs { agent, job, blob, event: received, definition, run, flow, told, subscription }, session)
}

/// A definition, a run of it, and a flow of that.
async fn mediation(hub: &Hub) -> (String, String, String) {
    let definition = json!({"name": "theirs", "label": "secret-label", "trigger": {"kind": "manual"}});
    let definitions = "/v1/mediations/definitions";
    let applied = hub.post(definitions, &json!({"definitions": [definition]})).await.expect(200).json();
    let flows = json!([{"label": "secret-path-of-a-flow.csv", "payload": {"text": "theirs"}}]);
    let started = hub.post(&format!("{definitions}/theirs/run"), &json!({"flows": flows})).await;
    let run = started.expect(201).json()["guid"].as_str().unwrap().to_owned();
    let shown = hub.get(&format!("/v1/mediations/runs/{run}")).await.expect(200).json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&applied["items"][0]["guid"]), run, text(&shown["flows"][0]["guid"]))
}

/// An agent of tenant `other`.
async fn other_agent(hub: &Hub) -> Agent {
    let (key, _) = SigningKey::generate().unwrap();
    let token = token(hub, "other", "paris", 1).await;
    let request = hub.anonymous(Method::POST, "/agent/v1/enrol").json(&enrol_request(&token, &key));
    let identity = serde_json::from_value(Answer::of(request).await.expect(201).json()).unwrap();
    Agent { key, identity }
}

fn no_word_of(theirs: &Theirs, call: &str, text: &str) {
    let ids = [
        theirs.agent.as_str(),
        &theirs.job,
        &theirs.blob,
        &theirs.event,
        &theirs.run,
        &theirs.told,
        &theirs.subscription,
    ];
    for word in WORDS.iter().copied().chain(ids) {
        // What the call itself named may come back in the refusal.
        assert!(call.contains(word) || !text.contains(word), "{call} tells of {word}: {text}");
    }
}

#[tokio::test]
async fn no_call_shows_or_changes_anything_of_another_tenant() {
    let hub = Hub::start().await;
    let (theirs, _session) = theirs(&hub).await;
    hub.store.create_tenant(name("other"), Tier::Enterprise).await.unwrap();
    token(&hub, "other", "paris", 1).await;
    let (_, key) = hub.store.create_api_key(name("other"), all_scopes()).await.unwrap();
    let agent = other_agent(&hub).await;
    let before =
        [hub.get(&format!("/v1/jobs/{}", theirs.job)).await.json(), hub.get("/v1/agents").await.json()];
    let document = serde_json::to_value(passerelle_hub::api::openapi()).unwrap();
    let mut calls = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let method: Method = method.to_uppercase().parse().unwrap();
            let id = if path.starts_with("/v1/agents") {
                &theirs.agent
            } else if path.starts_with("/v1/blobs") {
                &theirs.blob
            } else if path.starts_with("/v1/events/in") {
                &theirs.told
            } else if path.starts_with("/v1/events") {
                &theirs.event
            } else if path.starts_with("/v1/mediations") {
                &theirs.run
            } else if path.starts_with("/v1/subscriptions") {
                &theirs.subscription
            } else {
                &theirs.job
            };
            let real = path
                .replace("{id}", id)
                .replace("{job}", &theirs.job)
                .replace("{site}", "lyon")
                .replace("{event}", &theirs.event)
                .replace("{guid}", &theirs.definition)
                .replace("{flow}", &theirs.flow)
                .replace("{attempt}", "1")
                .replace("{delivery}", "1");
            let call = match path.as_str() {
                // Their bodies name the site.
                "/v1/jobs" | "/v1/calls" if method == Method::POST => format!("{method} {real} for lyon"),
                _ => format!("{method} {real}"),
            };
            let of_agents = path.starts_with("/agent/");
            let bearer = if of_agents { agent.bearer() } else { key.clone() };
            let request = hub.anonymous(method.clone(), &real).bearer_auth(bearer);
            let request = match (method.as_str(), path.as_str()) {
                // Of no tenant, or an identity is what they make.
                ("GET", "/healthz" | "/readyz" | "/metrics" | "/v1/openapi.json" | "/agent/v1/tunnel")
                | ("POST", "/agent/v1/enrol") => continue,
                // A stream: below.
                ("GET", "/v1/events") => continue,
                // A guid is a name in one tenant alone: the other's own definition is made.
                ("PUT", "/v1/mediations/definitions/{guid}") => {
                    let own = json!({"name": "theirs", "trigger": {"kind": "manual"}});
                    no_word_of(&theirs, &call, &Answer::of(request.json(&own)).await.expect(201).text());
                    let delete = hub.anonymous(Method::DELETE, &real).bearer_auth(&key);
                    Answer::of(delete).await.expect(204);
                    calls += 1;
                    continue;
                }
                ("POST", "/v1/mediations/definitions") => {
                    let own = json!({"definitions": [{"name": "own", "trigger": {"kind": "manual"}}]});
                    no_word_of(&theirs, &call, &Answer::of(request.json(&own)).await.expect(200).text());
                    let stolen = json!({"flows": [{"label": "x", "payload": {"blob": theirs.blob}}]});
                    let start = hub.anonymous(Method::POST, "/v1/mediations/definitions/own/run");
                    let start = start.bearer_auth(&key).json(&stolen);
                    Answer::of(start).await.expect_problem(404, "not_found");
                    calls += 1;
                    continue;
                }
                (
                    "GET",
                    "/v1/jobs"
                    | "/v1/agents"
                    | "/v1/sites"
                    | "/v1/events/received"
                    | "/v1/events/in"
                    | "/v1/mediations/definitions"
                    | "/v1/mediations/runs"
                    | "/v1/subscriptions",
                ) => {
                    let listed = Answer::of(request).await.expect(200);
                    no_word_of(&theirs, &call, &listed.text());
                    calls += 1;
                    continue;
                }
                ("POST", "/v1/blobs") => {
                    no_word_of(&theirs, &call, &Answer::of(request.body("theirs")).await.expect(201).text());
                    calls += 1;
                    continue;
                }
                // The tenant's own; the same body as theirs is no duplicate of it.
                ("POST", "/v1/events/in") => {
                    let taken = Answer::of(request.json(&json!({"EventKind": "secret-label"}))).await;
                    assert_eq!(taken.json()["duplicate"], false);
                    no_word_of(&theirs, &call, &taken.text());
                    calls += 1;
                    continue;
                }
                ("POST", "/v1/calls") => {
                    let call = |more| {
                        let mut call =
                            json!({"site": "paris", "resource": "compta", "operation": "drop", "params": {}});
                        call.as_object_mut().unwrap().extend(json!(more).as_object().unwrap().clone());
                        call
                    };
                    let own = hub.anonymous(Method::POST, "/v1/calls").bearer_auth(&key);
                    let stolen = call(json!({"payload": {"blob": theirs.blob}}));
                    Answer::of(own.json(&stolen)).await.expect_problem(404, "not_found");
                    let own = hub.anonymous(Method::POST, "/v1/calls").bearer_auth(&key);
                    let stolen = call(json!({"payload": {"event": theirs.event}}));
                    Answer::of(own.json(&stolen)).await.expect_problem(404, "not_found");
                    request.json(&call(json!({"site": "lyon"})))
                }
                ("POST", "/v1/jobs") => {
                    let stolen = job(json!({"payload": {"blob": theirs.blob}}));
                    let own = hub.anonymous(Method::POST, "/v1/jobs").bearer_auth(&key);
                    Answer::of(own.json(&stolen)).await.expect_problem(404, "not_found");
                    let stolen = job(json!({"payload": {"event": theirs.event}}));
                    let own = hub.anonymous(Method::POST, "/v1/jobs").bearer_auth(&key);
                    Answer::of(own.json(&stolen)).await.expect_problem(404, "not_found");
                    request.json(&job(json!({"site": "lyon"})))
                }
                // It names nothing that is there.
                ("POST", "/v1/subscriptions") => {
                    let wish = json!({"url": "https://9.9.9.9/"});
                    no_word_of(&theirs, &call, &Answer::of(request.json(&wish)).await.expect(201).text());
                    calls += 1;
                    continue;
                }
                ("POST", "/v1/jobs/{id}/resolve") => request.json(&json!({"outcome": "applied"})),
                ("PATCH", _) => request
                    .header("content-type", "application/offset+octet-stream")
                    .header("upload-offset", "0")
                    .body("x"),
                (
                    "POST",
                    "/agent/v1/jobs/{job}/attempts/{attempt}/output" | "/agent/v1/events/{event}/payload",
                ) => request
                    .header("upload-length", "1")
                    .header("repr-digest", "sha-256=:LXEWQrcmsEQBYnyp+6wy9cuGMQaL7aiOCl1Q5LdT8ek=:"),
                // Signed as it must be, but about the other tenant's agent.
                ("POST", "/agent/v1/keys") => {
                    let next = SigningKey::generate().unwrap().0;
                    let (victim, now) = (theirs.agent.parse().unwrap(), jiff::Timestamp::now().as_second());
                    let audience = agent.identity.audience.clone();
                    let said = AgentKey::new(victim, audience, next.public().clone(), now);
                    let body = KeyRequest {
                        by_old: said.sign(&agent.key).unwrap(),
                        by_new: said.sign(&next).unwrap(),
                    };
                    let refused = Answer::of(request.json(&body)).await;
                    no_word_of(&theirs, &call, &refused.text());
                    refused.expect_problem(400, "bad_request");
                    calls += 1;
                    continue;
                }
                _ => {
                    assert!(path.contains('{'), "{call} is new: say here what another tenant may see of it");
                    request
                }
            };
            let answer = Answer::of(request).await;
            assert!(answer.status == 404, "{call}: {} {}", answer.status, answer.text());
            no_word_of(&theirs, &call, &answer.text());
            calls += 1;
        }
    }
    assert!(calls >= 48, "only {calls} calls were looked at");

    let events = hub.anonymous(Method::GET, "/v1/events").bearer_auth(&key).header("last-event-id", "0");
    let mut stream = events.send().await.unwrap().bytes_stream();
    hub.submit(json!({"params": {"path": "secret-path-2.csv"}})).await;
    let own = hub.anonymous(Method::POST, "/v1/jobs").bearer_auth(&key);
    let own = Answer::of(own.json(&job(json!({})))).await.expect(201).json();
    let mut heard = String::new();
    while !heard.contains(own["id"].as_str().unwrap()) {
        heard.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
    }
    no_word_of(&theirs, "GET /v1/events", &heard);
    drop(stream);

    let after =
        [hub.get(&format!("/v1/jobs/{}", theirs.job)).await.json(), hub.get("/v1/agents").await.json()];
    let still = |value: &Value| {
        let mut value = value.clone();
        // Heard again meanwhile.
        for item in value["items"].as_array_mut().into_iter().flatten() {
            item["last_seen_at"] = Value::Null;
            item["jobs_running"] = Value::Null;
        }
        value
    };
    assert_eq!(before.each_ref().map(still), after.each_ref().map(still));
    hub.end().await;
}

#[tokio::test]
async fn an_id_that_another_tenant_uses_is_answered_as_one_that_nobody_uses() {
    let hub = Hub::start().await;
    let (key, _) = SigningKey::generate().unwrap();
    let mut claims = crate::signed::envelope();
    claims.job = new_id();
    hub.post("/v1/jobs", &json!({"envelope": claims.sign(&key).unwrap()})).await.expect(201);
    let other = hub.other_tenant().await;
    claims.tenant = name("other");
    let submit = |claims: &Envelope| {
        let body = json!({"envelope": claims.sign(&key).unwrap()});
        Answer::of(hub.anonymous(Method::POST, "/v1/jobs").bearer_auth(&other).json(&body))
    };
    // All else that is wrong is told before.
    let site = std::mem::replace(&mut claims.site, name("nowhere"));
    let (used, fresh) = (submit(&claims).await, submit(&Envelope { job: new_id(), ..claims.clone() }).await);
    assert_eq!(
        used.expect_problem(404, "site_unknown").json(),
        fresh.expect_problem(404, "site_unknown").json()
    );
    claims.site = site;
    // Of the id alone no more is told than of one that no job may have.
    let far: JobId = "ffffffff-ffff-7fff-bfff-ffffffffffff".parse().unwrap();
    let (used, fresh) = (submit(&claims).await, submit(&Envelope { job: far, ..claims.clone() }).await);
    assert_eq!(
        used.expect_problem(400, "bad_request").json(),
        fresh.expect_problem(400, "bad_request").json()
    );
    hub.end().await;
}
