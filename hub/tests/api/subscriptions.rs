//! Subscriptions: who is told what, in which order, how often it is tried, and where the hub does not go.

use crate::{
    agent::Agent,
    events::Stream,
    receiver::{Receiver, hub, quick},
    support::{Answer, Hub, eventually},
};
use passerelle_hub::notices::{Settings, Watched};
use passerelle_protocol::Sha256;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

async fn subscribe(hub: &Hub, wish: Value) -> (String, String) {
    let made = hub.post("/v1/subscriptions", &wish).await.expect(201).json();
    (made["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned())
}

async fn shown(hub: &Hub, id: &str) -> Value {
    hub.get(&format!("/v1/subscriptions/{id}")).await.expect(200).json()
}

/// A job that is cancelled at once: the shortest life that a job can have.
async fn ended_job(hub: &Hub) -> String {
    let id = hub.submit(json!({"labels": {"order": "7"}})).await["id"].as_str().unwrap().to_owned();
    hub.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await.expect(200);
    id
}

#[tokio::test]
async fn a_job_that_ended_is_told_signed_and_once_more_after_each_failure() {
    let hub = hub(quick(), None).await;
    let endpoint = Receiver::start().await;
    endpoint.answers([500, 302, 429]);
    let auth = json!({"kind": "basic", "username": "svc", "password": "geheim"});
    let wish = json!({"url": endpoint.url, "kinds": ["JobTermine"], "label": "erp", "auth": auth});
    let (id, secret) = subscribe(&hub, wish).await;
    let job = ended_job(&hub).await;

    let came = endpoint.wait_for(4).await;
    for delivery in &came {
        delivery.is_signed_with(&secret);
        assert_eq!(delivery.header("webhook-id"), came[0].header("webhook-id"));
        assert_eq!(delivery.header("authorization"), "Basic c3ZjOmdlaGVpbQ==");
        assert_eq!(delivery.header("content-type"), "application/json; charset=utf-8");
        assert_eq!(delivery.body, came[0].body);
    }
    let body = came[0].json();
    assert_eq!((&body["EventKind"], &body["EventCategory"]), (&json!("JobTermine"), &json!("passerelle")));
    assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
    assert_eq!((&body["Data"]["Guid"], &body["Data"]["EtatCode"]), (&json!(job), &json!("cancelled")));
    assert_eq!(body["Data"]["Etiquettes"], json!({"order": "7"}));
    assert!(body["Data"].get("Params").is_none() && !body.to_string().contains("FEC.txt"), "{body}");

    let after = eventually(|| async {
        Some(shown(&hub, &id).await).filter(|shown| !shown["delivered_at"].is_null())
    })
    .await;
    assert_eq!((&after["pending"], &after["dead"], &after["label"]), (&json!(0), &json!(0), &json!("erp")));
    assert_eq!((&after["auth"], &after["failure"]), (&json!("basic"), &json!("the subscriber answered 429")));
    // Nothing tells its secrets again.
    let listed = hub.get("/v1/subscriptions").await.expect(200).text();
    assert!(!listed.contains("geheim") && !listed.contains(&secret), "{listed}");
    // Other kinds are not told there, and nothing came twice.
    assert_eq!(endpoint.received().len(), 4);
    hub.end().await;
}

#[tokio::test]
async fn what_is_given_up_is_listed_and_can_be_sent_again() {
    let settings = Settings { give_up: Duration::from_millis(150), ..quick() };
    let hub = hub(settings, None).await;
    let endpoint = Receiver::start().await;
    endpoint.always_answers(503);
    let (id, _) = subscribe(&hub, json!({"url": endpoint.url})).await;
    let jobs = [ended_job(&hub).await, ended_job(&hub).await];
    eventually(|| async { (shown(&hub, &id).await["dead"] == 2).then_some(()) }).await;
    assert_eq!(shown(&hub, &id).await["pending"], 0);

    let first = hub.get(&format!("/v1/subscriptions/{id}/deliveries?limit=1")).await.expect(200).json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let second =
        hub.get(&format!("/v1/subscriptions/{id}/deliveries?cursor={cursor}")).await.expect(200).json();
    assert!(second["next_cursor"].is_null(), "{second}");
    let dead = [&first["items"][0], &second["items"][0]];
    for (dead, job) in dead.iter().zip(&jobs) {
        assert_eq!((&dead["state"], &dead["status"]), (&json!("dead"), &json!(503)));
        assert_eq!(dead["failure"], "the subscriber answered 503");
        assert_eq!(dead["body"]["Data"]["Guid"], json!(job));
        assert!(dead["attempts"].as_u64().unwrap() >= 2 && dead["next_attempt_at"].is_null(), "{dead}");
    }
    let pending = hub.get(&format!("/v1/subscriptions/{id}/deliveries?state=pending")).await.expect(200);
    assert_eq!(pending.json()["items"], json!([]));

    endpoint.always_answers(200);
    let one = format!("/v1/subscriptions/{id}/deliveries/{}/resend", dead[0]["id"]);
    assert_eq!(hub.post(&one, &json!({})).await.expect(202).json(), json!({"resent": 1}));
    eventually(|| async { (shown(&hub, &id).await["pending"] == 0).then_some(()) }).await;
    let rest = hub.post(&format!("/v1/subscriptions/{id}/resend"), &json!({})).await.expect(202).json();
    assert_eq!(rest, json!({"resent": 1}));
    eventually(|| async { (shown(&hub, &id).await["pending"] == 0).then_some(()) }).await;
    assert_eq!(shown(&hub, &id).await["dead"], 0);
    let all = endpoint.received();
    for job in &jobs {
        let of = |delivery: &&crate::receiver::Received| delivery.json()["Data"]["Guid"] == json!(job);
        let ids: std::collections::BTreeSet<_> =
            all.iter().filter(of).map(|delivery| delivery.header("webhook-id").to_owned()).collect();
        assert_eq!(ids.len(), 1, "the same notice has one id, however often it is sent");
        assert_eq!(all.iter().filter(of).filter(|delivery| delivery.answered == 200).count(), 1);
    }
    // A number that is gone does not come again for another delivery.
    endpoint.always_answers(503);
    ended_job(&hub).await;
    eventually(|| async { (shown(&hub, &id).await["dead"] == 1).then_some(()) }).await;
    let gone =
        hub.post(&format!("/v1/subscriptions/{id}/deliveries/{}/resend", dead[0]["id"]), &json!({})).await;
    gone.expect_problem(404, "not_found");
    hub.end().await;
}

#[tokio::test]
async fn within_a_line_the_order_holds_and_one_endpoint_holds_up_no_other() {
    let hub = hub(quick(), None).await;
    let (slow, quick) = (Receiver::start().await, Receiver::start().await);
    let (kept, _) = subscribe(&hub, json!({"url": slow.url, "kinds": ["JobTermine"]})).await;
    subscribe(&hub, json!({"url": quick.url, "kinds": ["JobTermine"]})).await;
    slow.answers(std::iter::repeat_n(500, 6));
    // One job that settles again and again: cancelled, retried, cancelled.
    let job = ended_job(&hub).await;
    for _ in 0..3 {
        hub.post(&format!("/v1/jobs/{job}/retry"), &json!({})).await.expect(200);
        hub.post(&format!("/v1/jobs/{job}/cancel"), &json!({})).await.expect(200);
    }
    quick.wait_for(4).await;
    eventually(|| async { (shown(&hub, &kept).await["pending"] == 0).then_some(()) }).await;
    for endpoint in [&slow, &quick] {
        let taken: Vec<String> = endpoint
            .received()
            .iter()
            .filter(|delivery| delivery.answered == 200)
            .map(|delivery| delivery.header("webhook-id").to_owned())
            .collect();
        // The ids grow with time.
        assert!(taken.len() == 4 && taken.is_sorted(), "{taken:?}");
    }
    hub.end().await;
}

#[tokio::test]
async fn an_endpoint_can_be_tried_and_a_subscription_ended() {
    let hub = hub(quick(), None).await;
    let endpoint = Receiver::start().await;
    let own = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let wish = json!({"url": endpoint.url, "secret": own, "auth": {"kind": "bearer", "token": "t0ken"}});
    let (id, secret) = subscribe(&hub, wish).await;
    assert_eq!(secret, own);
    let tested = hub.post(&format!("/v1/subscriptions/{id}/test"), &json!({})).await.expect(200).json();
    assert_eq!(tested, json!({"delivered": true, "status": 200, "failure": null}));
    endpoint.answers([401]);
    let tested = hub.post(&format!("/v1/subscriptions/{id}/test"), &json!({})).await.expect(200).json();
    assert_eq!((&tested["delivered"], &tested["status"]), (&json!(false), &json!(401)));
    let came = endpoint.received();
    assert_eq!((came[0].json()["EventKind"].as_str(), came.len()), (Some("Test"), 2));
    assert_eq!(came[0].header("authorization"), "Bearer t0ken");
    came[0].is_signed_with(own);

    let deleted = Answer::of(hub.request(Method::DELETE, &format!("/v1/subscriptions/{id}"))).await;
    deleted.expect(204);
    hub.get(&format!("/v1/subscriptions/{id}")).await.expect_problem(404, "not_found");
    ended_job(&hub).await;
    let (next, _) = subscribe(&hub, json!({"url": endpoint.url, "kinds": ["JobTermine"]})).await;
    let job = ended_job(&hub).await;
    let came = endpoint.wait_for(3).await;
    assert_eq!(came[2].json()["Data"]["Guid"], json!(job), "what an ended subscription missed");
    assert_ne!(next, id);
    hub.end().await;
}

#[tokio::test]
async fn a_test_waits_as_long_as_a_delivery() {
    let hub = hub(Settings { timeout: Duration::from_secs(1), ..quick() }, None).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (id, _) =
        subscribe(&hub, json!({"url": format!("http://{}/hook", silent.local_addr().unwrap())})).await;
    let tested = hub.post(&format!("/v1/subscriptions/{id}/test"), &json!({})).await.expect(200).json();
    let failure = "the subscriber did not answer within 1 s";
    assert_eq!(tested, json!({"delivered": false, "status": null, "failure": failure}));
    hub.end().await;
}

/// More than there were places for all tenants together, to subscribers that accept and never answer.
#[tokio::test]
async fn a_tenant_whose_subscribers_never_answer_holds_up_no_other_tenant() {
    let hub = hub(quick(), None).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", silent.local_addr().unwrap());
    for _ in 0..50 {
        subscribe(&hub, json!({"url": url})).await;
    }
    for _ in 0..6 {
        ended_job(&hub).await;
    }
    let endpoint = Receiver::start().await;
    let other = hub.other_tenant().await;
    let post = |path: String, body: Value| {
        Answer::of(hub.anonymous(Method::POST, &path).bearer_auth(&other).json(&body))
    };
    post("/v1/subscriptions".to_owned(), json!({"url": endpoint.url})).await.expect(201);
    let job = post("/v1/jobs".to_owned(), crate::support::job(json!({}))).await.expect(201).json();
    let job = job["id"].as_str().unwrap().to_owned();
    let asked = tokio::time::Instant::now();
    post(format!("/v1/jobs/{job}/cancel"), json!({})).await.expect(200);
    assert_eq!(endpoint.wait_for(1).await[0].json()["Data"]["Guid"], json!(job));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    // The tenant itself has no more than its share under way.
    let mut connected = Vec::new();
    while let Ok(accepted) = tokio::time::timeout(Duration::from_millis(300), silent.accept()).await {
        connected.push(accepted.unwrap());
    }
    assert_eq!(connected.len(), 16);
}

#[tokio::test]
async fn wishes_are_read_strictly_and_lead_nowhere_private() {
    let hub = Hub::start().await;
    let ok = "https://9.9.9.9/hook";
    for (wish, names) in [
        (json!({"url": "http://127.0.0.1:1/"}), "outbound.allow_addresses"),
        (json!({"url": "https://127.0.0.1/"}), "outbound.allow_addresses"),
        (json!({"url": "https://localhost/"}), "outbound.allow_addresses"),
        (json!({"url": "https://10.1.2.3/"}), "outbound.allow_addresses"),
        (json!({"url": "https://[::1]/"}), "outbound.allow_addresses"),
        (json!({"url": "https://169.254.169.254/latest"}), "metadata"),
        (json!({"url": "https://0x7f000001/"}), "private"),
        (json!({"url": "https://nobody.invalid/"}), "does not resolve"),
        (json!({"url": "http://9.9.9.9/"}), "use https://"),
        (json!({"url": "ftp://9.9.9.9/"}), "https://"),
        (json!({"url": "https://me:pw@9.9.9.9/"}), "credentials"),
        (json!({"kinds": []}), "missing field `url`"),
        (json!({"url": ok, "kinds": ["Nothing"]}), "kinds[0]"),
        (json!({"url": ok, "secret": "short"}), "secret: "),
        (json!({"url": ok, "auth": {"kind": "digest"}}), "auth"),
        (json!({"url": ok, "auth": {"kind": "basic", "username": "a:b", "password": "c"}}), "auth.username"),
        (json!({"url": ok, "auth": {"kind": "bearer", "token": "a b"}}), "auth.token"),
        (json!({"url": ok, "colour": 1}), "colour"),
    ] {
        let answer = hub.post("/v1/subscriptions", &wish).await.expect_problem(400, "bad_request").json();
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains(names), "{wish}: {detail}");
    }
    for _ in 0..50 {
        subscribe(&hub, json!({"url": ok})).await;
    }
    hub.post("/v1/subscriptions", &json!({"url": ok})).await.expect_problem(507, "quota");
    let reading =
        hub.store.create_api_key(crate::support::name("acme"), vec!["subscriptions:read".to_owned()]);
    let reading = reading.await.unwrap().1;
    let request = hub.anonymous(Method::POST, "/v1/subscriptions").bearer_auth(&reading);
    Answer::of(request.json(&json!({"url": ok}))).await.expect_problem(403, "forbidden");
    let request = hub.anonymous(Method::GET, "/v1/subscriptions").bearer_auth(&reading);
    assert_eq!(Answer::of(request).await.expect(200).json()["items"].as_array().unwrap().len(), 50);
    hub.end().await;
}

#[tokio::test]
async fn an_agent_that_stays_away_and_comes_back_is_told_once_each_on_the_stream_as_well() {
    let settings = Settings { agent_away: Duration::from_millis(300), ..quick() };
    let hub = hub(settings, None).await;
    let endpoint = Receiver::start().await;
    subscribe(&hub, json!({"url": endpoint.url, "kinds": ["AgentAbsent", "AgentRevenu"]})).await;
    let mut stream = Stream::open(&hub, None).await;
    let agent = Agent::enrol(&hub).await;
    drop(agent.connect(&hub).await);
    let came = endpoint.wait_for(1).await;
    let away = came[0].json();
    assert_eq!((away["EventKind"].as_str(), &away["Data"]["Site"]), (Some("AgentAbsent"), &json!("paris")));
    assert_eq!(away["Data"]["Guid"], json!(agent.identity.agent));
    let _session = agent.connect(&hub).await;
    let came = endpoint.wait_for(2).await;
    assert_eq!(came[1].json()["EventKind"], "AgentRevenu");
    assert!(!came[1].json()["Data"]["AbsentDepuis"].is_null());
    let mut told = Vec::new();
    while told.len() < 2 {
        let event = stream.next().await;
        if event.kind == "notice" {
            assert_eq!(event.data["id"], json!(came[told.len()].header("webhook-id")));
            told.push(event.data["EventKind"].clone());
        }
    }
    assert_eq!(told, ["AgentAbsent", "AgentRevenu"]);
    assert_eq!(endpoint.received().len(), 2);
    hub.end().await;
}

#[tokio::test]
async fn a_certificate_that_ends_soon_is_told() {
    let not_after = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(50)).unwrap();
    let certificate = Watched { sha256: Sha256::of(b"certificate"), not_after };
    let hub = hub(quick(), Some(certificate)).await;
    let mut stream = Stream::open(&hub, Some(0)).await;
    loop {
        let event = stream.next().await;
        if event.kind == "notice" {
            assert_eq!(event.data["EventKind"], "CertificatBientotExpire");
            assert_eq!(event.data["Data"]["JoursRestants"], 2);
            break;
        }
    }
    hub.end().await;
}
