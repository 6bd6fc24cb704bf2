//! Business events: who may send them, what is one, and that each is taken once.

use crate::support::{Answer, Hub, name};
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_hub::store::quota::Quotas;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

const IN: &str = "/v1/events/in";

fn validated(number: u32) -> Value {
    json!({
        "EventKind": "CommandeValidee", "EventCategory": "e/commerce",
        "Data": {"CommandeNumero": number, "CommandeMontantTotal": 129.9, "PointLivraisonGuid": null},
    })
}

fn signed(request: RequestBuilder, id: &str, at: i64, secret: &str, body: &[u8]) -> RequestBuilder {
    let secret = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &secret));
    context.update(format!("{id}.{at}.").as_bytes());
    context.update(body);
    request
        .header("webhook-id", id)
        .header("webhook-timestamp", at.to_string())
        .header("webhook-signature", format!("v1,{}", STANDARD.encode(context.sign())))
        .body(body.to_vec())
}

#[tokio::test]
async fn an_event_is_taken_from_whoever_proves_to_be_of_the_tenant() {
    let hub = Hub::start().await;
    let (app, secret) = hub.store.create_app(name("acme")).await.unwrap();
    let basic = STANDARD.encode(format!("{app}:{secret}"));
    for (number, authorization) in
        [format!("Basic {basic}"), format!("basic:{basic}"), format!("Bearer {}", hub.key)].iter().enumerate()
    {
        let request = hub
            .anonymous(Method::POST, IN)
            .header("authorization", authorization)
            // As the vendor's own clients say it.
            .header("content-type", "text/json")
            .body(validated(u32::try_from(number).unwrap()).to_string());
        let taken = Answer::of(request).await.expect(200).json();
        assert_eq!(taken["duplicate"], false, "{authorization}: {taken}");
        let shown = hub.get(&format!("{IN}/{}", taken["id"].as_str().unwrap())).await.expect(200).json();
        assert_eq!(shown["envelope"]["Data"]["CommandeNumero"], number);
        assert_eq!(shown["tenant"], "acme");
    }
    let listed = hub.get(&format!("{IN}?kind=CommandeValidee&limit=2")).await.expect(200).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    assert_eq!(listed["items"][0]["envelope"]["Data"]["CommandeNumero"], 2, "the newest is first");
    let rest = format!("{IN}?limit=2&cursor={}", listed["next_cursor"].as_str().unwrap());
    assert_eq!(hub.get(&rest).await.json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(hub.get(&format!("{IN}?kind=Other")).await.json()["items"], json!([]));

    let (_, reader) = hub.store.create_api_key(name("acme"), vec!["events:read".to_owned()]).await.unwrap();
    let request = hub.anonymous(Method::POST, IN).bearer_auth(reader).json(&validated(9));
    Answer::of(request).await.expect_problem(403, "forbidden");
    for authorization in [
        format!("Basic {}", STANDARD.encode(format!("{app}:wrong"))),
        "Basic ???".to_owned(),
        "Bearer x".to_owned(),
    ] {
        let request =
            hub.anonymous(Method::POST, IN).header("authorization", authorization).json(&validated(9));
        Answer::of(request).await.expect_problem(401, "unauthorized");
    }
    Answer::of(hub.anonymous(Method::POST, IN).json(&validated(9))).await.expect_problem(401, "unauthorized");
    hub.store.revoke_app(&app).await.unwrap();
    let request =
        hub.anonymous(Method::POST, IN).header("authorization", format!("Basic {basic}")).json(&validated(9));
    Answer::of(request).await.expect_problem(401, "unauthorized");
    hub.end().await;
}

#[tokio::test]
async fn a_signature_counts_for_its_body_its_time_and_its_sender_alone() {
    let hub = Hub::start().await;
    let (sender, secret) = hub.store.create_sender(name("acme")).await.unwrap();
    let (other, _) = hub.store.create_sender(name("acme")).await.unwrap();
    let now = jiff::Timestamp::now().as_second();
    let body = validated(1).to_string();
    let to = |sender: &str| hub.anonymous(Method::POST, &format!("{IN}?sender={sender}"));
    let send =
        |request: RequestBuilder, at, body: &str| signed(request, "evt_1", at, &secret, body.as_bytes());
    let taken = Answer::of(send(to(&sender), now, &body)).await.expect(200).json();
    assert_eq!(taken["duplicate"], false);
    let again = Answer::of(send(to(&sender), now + 1, &body)).await.expect(200).json();
    assert_eq!(again, json!({"id": taken["id"], "duplicate": true}));
    let changed = send(to(&sender), now, &validated(2).to_string());
    Answer::of(changed).await.expect_problem(422, "idempotency_mismatch");

    let forged = send(to(&sender), now, &body).body(validated(2).to_string());
    Answer::of(forged).await.expect_problem(401, "unauthorized");
    Answer::of(send(to(&sender), now - 301, &body)).await.expect_problem(401, "unauthorized");
    Answer::of(send(to(&other), now, &body)).await.expect_problem(401, "unauthorized");
    let unnamed = send(hub.anonymous(Method::POST, IN), now, &body);
    Answer::of(unnamed).await.expect_problem(401, "unauthorized");
    hub.store.revoke_sender(&sender).await.unwrap();
    Answer::of(send(to(&sender), now, &body)).await.expect_problem(401, "unauthorized");
    assert_eq!(hub.get(IN).await.json()["items"].as_array().unwrap().len(), 1);
    hub.end().await;
}

#[tokio::test]
async fn an_event_that_is_sent_again_is_taken_once() {
    let hub = Hub::start().await;
    let send = async |header: Option<(&str, &str)>, body: &Value| {
        let request = hub.request(Method::POST, IN).json(body);
        Answer::of(header.into_iter().fold(request, |request, (name, value)| request.header(name, value)))
            .await
    };
    let first = send(None, &validated(1)).await.expect(200).json();
    let again = send(None, &validated(1)).await.expect(200).json();
    assert_eq!((&first["id"], first["duplicate"].as_bool()), (&again["id"], Some(false)));
    assert_eq!(again["duplicate"], true);
    assert_eq!(send(None, &validated(2)).await.json()["duplicate"], false);

    let key = Some(("idempotency-key", "order 1"));
    let by_key = send(key, &validated(1)).await.expect(200).json();
    assert_eq!(by_key["duplicate"], false, "an id makes the same body another event");
    let webhook = Some(("webhook-id", "order 1"));
    assert_eq!(send(webhook, &validated(1)).await.json(), json!({"id": by_key["id"], "duplicate": true}));
    send(key, &validated(3)).await.expect_problem(422, "idempotency_mismatch");
    // All at once.
    let (hook, body) = (Some(("webhook-id", "many")), validated(4));
    let many = futures_util::future::join_all((0..20).map(|_| send(hook, &body))).await;
    let new = many.into_iter().filter(|answer| answer.json()["duplicate"] == false).count();
    assert_eq!(new, 1);
    hub.end().await;
}

#[tokio::test]
async fn what_is_no_envelope_is_refused_with_its_member() {
    let hub = Hub::start().await;
    for (body, expected) in [
        (json!([]), "body: an object"),
        (json!({}), "EventKind: missing"),
        (json!({"EventKind": ""}), "EventKind: missing"),
        (json!({"EventKind": 7}), "EventKind: expected a text"),
        (json!({"EventKind": "x".repeat(101)}), "EventKind: expected"),
        (json!({"EventKind": "a\nb"}), "EventKind: expected"),
        (json!({"EventKind": "a", "EventCategory": {}}), "EventCategory: expected"),
    ] {
        let answer =
            Answer::of(hub.request(Method::POST, IN).json(&body)).await.expect_problem(400, "bad_request");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with(expected), "{body}: {detail}");
    }
    for body in ["", "{", "null", "{} {}"] {
        let request = hub.request(Method::POST, IN).header("content-type", "application/json").body(body);
        Answer::of(request).await.expect_problem(400, "bad_request");
    }
    let large = json!({"EventKind": "a", "Data": "x".repeat(1 << 20)});
    Answer::of(hub.request(Method::POST, IN).json(&large)).await.expect_problem(413, "too_large");
    hub.store.set_quotas(Quotas { events: 1, ..Quotas::default() });
    Answer::of(hub.request(Method::POST, IN).json(&validated(1))).await.expect(200);
    Answer::of(hub.request(Method::POST, IN).json(&validated(2))).await.expect_problem(507, "quota");
    hub.end().await;
}
