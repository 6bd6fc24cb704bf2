//! Events in the vendor's envelope, and requests that the operator wrote.

use crate::http_server::{Resource, Server, answer, check, payload, serve, status};
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::{Value, json};

/// The requests of an operator, of which each uses something else.
const REQUESTS: &str = r#"
[resources.app.requests.order]
method = "GET"
path = "orders/{{ order }}/status"
query = { lang = "{{ lang }}", fixed = "1", shop = "{{ shop }}" }
headers = { x-shop = "{{ shop }}" }
expect = [200]
[resources.app.requests.order.parameters]
order = { max_length = 20 }
lang = { values = ["fr", "en"] }
shop = { required = false }

[resources.app.requests.note]
method = "POST"
path = "notes"
body = '''{"order": {{ order }}, "lines": [{% for line in lines %}{{ line.sku }}{% if not loop.last %},{% endif %}{% endfor %}],
"note": {{ note }}, "by": "passerelle"}'''
[resources.app.requests.note.parameters]
order = {}
note = { required = false }
lines = { type = "json" }

[resources.app.requests.legacy]
method = "PUT"
path = "legacy"
media_type = "application/xml; charset=utf-8"
body = "<Note to=\"{{ to }}\">{{ to }}</Note>"
parameters = { to = {} }

[resources.app.requests.upload]
method = "POST"
path = "files/{{ name }}"
payload = true
parameters = { name = { pattern = "[a-z]+[.]csv" } }
"#;

fn resource(server: &Server) -> Resource {
    Resource::new(&format!("url = \"{}\"\n{REQUESTS}", server.url("/api/")))
}

fn named(request: &str, args: Value) -> Value {
    json!({ "request": request, "args": args })
}

#[tokio::test]
async fn a_request_that_sends_the_payload_needs_one() {
    let server = serve(|_| status(200)).await;
    for operation in ["request", "notify"] {
        let params = named("upload", json!({ "name": "a.csv" }));
        let failure = resource(&server).run(operation, params, None).await.failure();
        assert_eq!((failure.code, failure.effect), (Code::InvalidParams, Effect::NotApplied), "{failure}");
        assert!(failure.message.starts_with("payload: missing"), "{failure}");
    }
    assert!(server.received().is_empty());
}

#[tokio::test]
async fn a_job_fills_the_places_of_a_request_and_nothing_else() {
    let server = serve(|_| answer(200, &[], "ready")).await;
    let resource = resource(&server);
    let args = json!({ "order": "a b?c#d%2f;e", "lang": "fr", "shop": "Lyon & Cie=x" });
    let (result, output) = resource.run("request", named("order", args), None).await.success();
    assert_eq!((&result["status"], output.unwrap().1), (&json!(200), b"ready".to_vec()));
    let args = json!({ "order": "1", "lang": "en" });
    resource.run("notify", named("order", args), None).await.success();
    let got = server.received();
    assert_eq!(got[0].uri, "/api/orders/a%20b%3Fc%23d%252f;e/status?fixed=1&lang=fr&shop=Lyon+%26+Cie%3Dx");
    assert_eq!(got[0].header("x-shop"), Some("Lyon & Cie=x"));
    assert_eq!(got[1].uri, "/api/orders/1/status?fixed=1&lang=en", "what is not given is left out");
    assert_eq!(got[1].header("x-shop"), None);
    let missing = resource.run("request", named("order", json!({ "order": "1", "lang": "fr" })), None);
    missing.await.success();
}

#[tokio::test]
async fn bodies_are_made_so_that_no_value_breaks_out() {
    let server = serve(|_| status(204)).await;
    let resource = resource(&server);
    let hostile = "\",\"admin\":true,\"x\":\"\\";
    let args = json!({ "order": hostile, "lines": [{ "sku": hostile }, { "sku": 5 }] });
    resource.run("notify", named("note", args), None).await.success();
    let args = json!({ "to": "</Note><Admin to=\"x\"/>" });
    resource.run("notify", named("legacy", args), None).await.success();
    let csv = Some(payload("a;b\n", "text/csv"));
    resource.run("notify", named("upload", json!({ "name": "stock.csv" })), csv).await.success();
    let got = server.received();
    let body: Value = serde_json::from_slice(&got[0].body).unwrap();
    assert_eq!(body, json!({ "order": hostile, "lines": [hostile, 5], "note": null, "by": "passerelle" }));
    assert_eq!((got[0].method.as_str(), got[0].header("content-type")), ("POST", Some("application/json")));
    assert_eq!(got[0].header("content-length"), Some(got[0].body.len().to_string().as_str()));
    let escaped = "&lt;/Note&gt;&lt;Admin to=&quot;x&quot;/&gt;";
    assert_eq!(got[1].body, format!("<Note to=\"{escaped}\">{escaped}</Note>"));
    assert_eq!(got[1].header("content-type"), Some("application/xml; charset=utf-8"));
    assert_eq!((got[2].uri.as_str(), &got[2].body[..]), ("/api/files/stock.csv", &b"a;b\n"[..]));
}

#[tokio::test]
async fn values_that_do_not_fit_are_refused_before_anything_is_sent() {
    let server = serve(|_| status(200)).await;
    let resource = resource(&server);
    let order = |order: &str| named("order", json!({ "order": order, "lang": "fr" }));
    for (operation, params, code, says) in [
        ("request", named("other", json!({})), Code::InvalidParams, "no request \"other\""),
        ("request", named("order", json!({ "order": "1" })), Code::InvalidParams, "args.lang: missing"),
        ("request", named("order", json!({ "order": "1", "lang": "de" })), Code::InvalidParams, "args.lang"),
        (
            "request",
            named("order", json!({ "order": "1", "lang": "fr", "admin": 1 })),
            Code::InvalidParams,
            "args.admin",
        ),
        ("request", order(&"x".repeat(21)), Code::InvalidParams, "args.order"),
        ("request", order("1/../../admin"), Code::InvalidParams, "slash"),
        ("request", order("..\\x"), Code::InvalidParams, "slash"),
        ("request", order("1\r\nHost: x"), Code::InvalidParams, "line end"),
        ("request", order(".."), Code::PathInvalid, ".."),
        ("request", order("..;x"), Code::PathInvalid, ".."),
        ("request", order(""), Code::PathInvalid, "empty"),
        ("request", json!({ "request": "order", "args": {}, "path": "x" }), Code::InvalidParams, "path"),
        (
            "request",
            json!({ "request": "order", "args": {}, "headers": { "a": "b" } }),
            Code::InvalidParams,
            "headers",
        ),
        (
            "notify",
            json!({ "request": "order", "args": {}, "method": "DELETE" }),
            Code::InvalidParams,
            "method",
        ),
        ("notify", named("upload", json!({ "name": "a.csv.exe" })), Code::InvalidParams, "args.name"),
        ("notify", json!({ "request": "order", "args": [] }), Code::InvalidParams, "map"),
    ] {
        let failure = resource.demands(operation, &params).unwrap_err();
        assert_eq!(failure.code, code, "{params}: {failure}");
        assert!(failure.message.contains(says), "{params}: {failure}");
    }
    let beside = Some(payload("x", "text/plain"));
    let params = named("note", json!({ "order": "1", "lines": [] }));
    let failure = resource.run("notify", params, beside).await.failure();
    assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::InvalidParams));
    assert!(server.received().is_empty());
    let demands = resource.demands("request", &order("1")).unwrap();
    assert_eq!((demands.request.as_deref(), demands.paths.len(), demands.method), (Some("order"), 0, None));
}

#[tokio::test]
async fn a_request_of_the_operator_says_which_answers_are_good() {
    let server = serve(|_| status(404)).await;
    let params = named("order", json!({ "order": "1", "lang": "fr" }));
    let failure = resource(&server).run("request", params, None).await.failure();
    assert_eq!((failure.code, failure.effect), (Code::TargetNotFound, Effect::NotApplied));
}

#[tokio::test]
async fn an_event_goes_out_in_the_vendors_envelope() {
    let server = serve(|_| status(200)).await;
    let resource = Resource::of(&server);
    let sample: Value = json!({
        "CommandeGuid": "20818d87-34bb-5c4e-b14d-e3674b9f022c", "ClientGuid": "8eae9eda-1f81-55d5-9724-180e8e2287bb",
        "CommandeNumero": "CMD-2026-000042", "CommandeIP": "203.0.113.7", "ClientEmail": "camille.lefevre@example.fr",
        "CommandeMontantTotal": 129.9, "ModeLivraisonGuid": "82e3b904-77d6-55d6-a751-c530a1c14e62",
        "PointLivraisonGuid": null, "MagasinAssocieGuid": "b8ff81e4-78ca-5754-972d-4494b0872aea",
    });
    let params = json!({ "path": "events", "event": { "kind": "CommandeValidee", "data": sample } });
    let (result, _) = resource.run("notify", params.clone(), None).await.success();
    assert_eq!(result, json!({ "status": 200 }));
    let [got] = server.received().try_into().unwrap();
    assert_eq!((got.method.as_str(), got.header("content-type")), ("POST", Some("application/json")));
    let text = String::from_utf8(got.body.to_vec()).unwrap();
    assert!(
        text.starts_with(r#"{"EventKind":"CommandeValidee","EventCategory":"e/commerce","Data":{"#),
        "{text}"
    );
    let body: Value = serde_json::from_str(&text).unwrap();
    let expected = json!({ "EventKind": "CommandeValidee", "EventCategory": "e/commerce", "Data": sample });
    assert_eq!(body, expected, "our id travels in a header alone");

    let beside = Some(payload("x", "text/plain"));
    assert_eq!(resource.run("notify", params.clone(), beside).await.failure().code, Code::InvalidParams);
    let mut wrong = params;
    wrong["event"]["data"]["ClientGuid"] = json!("x");
    let failure = resource.demands("notify", &wrong).unwrap_err();
    assert!(failure.message.contains("event.data.ClientGuid: expected a GUID"), "{failure}");
}

#[test]
fn wrong_requests_are_found_at_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let base = "url = \"http://h/\"\nsign = { kind = \"standard_webhooks\", secret = { env = \"S\" } }\n[resources.app.requests.r]\n";
    for (keys, line, says) in [
        ("path = \"x\"", 5, "requests.r.method: missing"),
        ("method = \"get\"\npath = \"x\"", 6, "GET"),
        ("method = \"GET\"", 5, "requests.r.path: missing"),
        ("method = \"GET\"\npath = \"/x\"", 7, "relative"),
        ("method = \"GET\"\npath = \"x?y=1\"", 7, "query"),
        ("method = \"GET\"\npath = \"{{ id }}\"", 7, "\"id\" is not among the parameters"),
        ("method = \"GET\"\npath = \"{{ id\"", 7, "not a template"),
        (
            "method = \"GET\"\npath = \"{{ id }}\"\nparameters = { id = { required = false } }",
            7,
            "cannot be optional",
        ),
        ("method = \"GET\"\npath = \"x\"\nbody = '{}'", 6, "no body"),
        (
            "method = \"POST\"\npath = \"x\"\nbody = 'a: {{ v }}'\nmedia_type = \"text/yaml\"\nparameters = { v = {} }",
            9,
            "application/json",
        ),
        (
            "method = \"POST\"\npath = \"x\"\nbody = '{\"a\": \"{{ v }}\"}'\nparameters = { v = {} }",
            8,
            "without quotes",
        ),
        ("method = \"POST\"\npath = \"x\"\nbody = '{'", 8, "not JSON"),
        ("method = \"POST\"\npath = \"x\"\nheaders = { Authorization = \"x\" }", 8, "may not set"),
        ("method = \"POST\"\npath = \"x\"\nheaders = { Webhook-Id = \"x\" }", 8, "may not set"),
        ("method = \"POST\"\npath = \"x\"\npayload = true\nbody = '{}'", 8, "one of the two"),
        ("method = \"POST\"\npath = \"x\"\nexpect = [9]", 8, "not an HTTP status"),
        ("method = \"POST\"\npath = \"x\"\nparameters = { v = { type = \"text\" } }", 8, "unknown type"),
        ("method = \"POST\"\npath = \"x\"\nbodies = \"x\"", 8, "bodies"),
    ] {
        let Err(findings) = check(dir.path(), &format!("{base}{keys}")) else { panic!("{keys} was taken") };
        assert!(findings.contains(&format!("app.toml:{line}:")), "{keys}: {findings}");
        assert!(findings.contains(says), "{keys}: {findings}");
    }
}
