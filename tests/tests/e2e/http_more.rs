//! The http connector's own means through hub and agent: tokens, client certificates, HTTP/2, signatures, events, named
//! requests, compressed answers, and large bodies in little memory.

use crate::common::{SITE, Site, job, notify_job, with};
use passerelle_tests::{Agent, App, Content, Hub, Nginx, Reply, code, resources};
use serde_json::{Value, json};
use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const WEBHOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A token server that gives `token-1`, `token-2`, …
async fn token_server() -> App {
    App::with(|_, before| {
        let body =
            format!(r#"{{"access_token":"token-{}","token_type":"Bearer","expires_in":3600}}"#, before + 1);
        Reply::status(200).header("content-type", "application/json").body(body)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_jobs_share_one_token_and_a_revoked_one_is_replaced_once() {
    let tokens = token_server().await;
    let least = Arc::new(AtomicUsize::new(1));
    let taken = Arc::clone(&least);
    let mut site = Site::prepared(move |request, _| {
        let number =
            request.header("authorization").strip_prefix("Bearer token-").and_then(|n| n.parse().ok());
        let good = number.is_some_and(|number: usize| number >= taken.load(Ordering::SeqCst));
        Reply::status(if good { 200 } else { 401 })
    })
    .await;
    let auth = format!(
        "auth = {{ kind = \"oauth2\", token_url = \"{}token\", client_id = \"passerelle\", scope = \"orders\", \
         client_secret = {{ file = \"secrets/client\" }} }}\nlimits = {{ max_concurrent = 32 }}",
        tokens.url
    );
    site.agent.secret("client", "client-secret-4711");
    site.agent.resource("orders-app", &resources::application_with("orders-app", &site.app.url, &auth));
    site.agent.start().await;
    let api = &site.hub.api;
    let run_all = async |from: usize| {
        let mut ids = Vec::new();
        for n in 0..32 {
            ids.push(api.submit(&notify_job(&format!("orders/{}/validated", from + n))).await);
        }
        for id in ids {
            let done = api.end_of(&id, Duration::from_secs(60)).await;
            assert_eq!(done["state"], "succeeded", "{done:#}");
            assert_eq!(done["attempts"].as_array().map(Vec::len), Some(1), "{done:#}");
        }
    };
    run_all(0).await;
    assert_eq!((tokens.requests().len(), site.app.requests().len()), (1, 32));
    least.store(2, Ordering::SeqCst);
    run_all(100).await;
    assert_eq!(tokens.requests().len(), 2, "the revoked token cost more than one new one");
    let granted =
        site.app.requests().iter().filter(|r| r.header("authorization") == "Bearer token-2").count();
    assert_eq!(granted, 32, "each job of the second round took effect once");
    let log = site.agent.process().log();
    assert!(
        !log.contains("client-secret-4711") && !log.contains("token-1") && !log.contains("token-2"),
        "a secret is in the log"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_the_token_server_refuses_is_told_and_not_asked_for_again() {
    let tokens = App::with(|_, _| Reply::status(401).body(r#"{"error":"invalid_client"}"#)).await;
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let auth = format!(
        "auth = {{ kind = \"oauth2\", token_url = \"{}token\", client_id = \"x\", client_secret = {{ file = \"secrets/client\" }} }}",
        tokens.url
    );
    site.agent.secret("client", "wrong");
    site.agent.resource("orders-app", &resources::application_with("orders-app", &site.app.url, &auth));
    site.agent.start().await;
    for n in 0..3 {
        let done = site.hub.api.run(&notify_job(&format!("orders/{n}"))).await;
        assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "target_auth"), "{done:#}");
        assert!(done["error"]["message"].as_str().unwrap().contains("client_secret"), "{done:#}");
    }
    assert_eq!(
        (tokens.requests().len(), site.app.requests().len()),
        (1, 0),
        "the first look and all jobs together"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_gets_the_client_certificate_and_speaks_http_2() {
    let (hub, nginx) = (Hub::start().await, Nginx::start().await);
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.file("app-ca.pem", &nginx.certificate).file("client.pem", &nginx.client.0);
    agent.secret("client_key", &nginx.client.1);
    let trust = "ca_file = \"app-ca.pem\"";
    let shown =
        format!("{trust}\nclient_cert = \"client.pem\"\nclient_key = {{ file = \"secrets/client_key\" }}");
    agent.resource("orders-app", &resources::application_with("orders-app", &nginx.mutual_url, &shown));
    agent.resource("bare", &resources::application_with("bare", &nginx.mutual_url, trust));
    agent.resource("two", &resources::application_with("two", &nginx.tls_url, trust));
    let one = format!("{trust}\nhttp_version = \"1.1\"");
    agent.resource("one", &resources::application_with("one", &nginx.tls_url, &one));
    agent.start().await;
    hub.api.succeed(&notify_job("orders/1")).await;
    let refused = with(notify_job("orders/2"), json!({"resource": "bare"}));
    let done = hub.api.run(&refused).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "target_refused"), "{done:#}");
    for resource in ["two", "one"] {
        hub.api.succeed(&with(notify_job("orders/3"), json!({"resource": resource}))).await;
    }
    let seen = nginx.received(3).await;
    let facts: Vec<(&str, &str)> = seen
        .iter()
        .filter(|r| r["status"] == json!(200))
        .map(|r| (r["protocol"].as_str().unwrap(), r["client"].as_str().unwrap()))
        .collect();
    assert_eq!(facts, [("HTTP/1.1", "SUCCESS"), ("HTTP/2.0", "NONE"), ("HTTP/1.1", "NONE")]);
    let checked = agent.output(&["check", "--json", "orders-app"]);
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let found = |link: &str| {
        let link = format!("resource orders-app: {link}");
        report["items"].as_array().unwrap().iter().find(|item| item["link"] == json!(link)).unwrap().clone()
    };
    let tls = found("TLS")["detail"].as_str().unwrap().to_owned();
    assert!(tls.starts_with("TLSv1.") && tls.ends_with(", client_cert at hand"), "{tls}");
    assert_eq!(found("answer")["status"], "ok", "{report:#}");
    assert!(found("answer")["detail"].as_str().unwrap().starts_with("status 204 to HEAD"), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_answers_come_back_unpacked_and_a_bomb_does_no_harm() {
    let (hub, nginx) = (Hub::start().await, Nginx::start().await);
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    let settings = "max_response = \"1GiB\"";
    agent.resource("catalogue", &resources::application_with("catalogue", &nginx.url, settings));
    agent.start().await;
    let rows: String =
        (0..300_000_u64).map(|i| format!("{i};article {};{}\n", i * 7919 % 1000, i % 97)).collect();
    nginx.publish_in("packed", "articles.csv", rows.as_bytes());
    let request = |path: &str| job("catalogue", "request", json!({"method": "GET", "path": path}));
    let done = hub.api.succeed(&request("packed/articles.csv")).await;
    assert_eq!(done["output"]["sha256"], json!(Content::digest(rows.as_bytes())), "{done:#}");
    assert!(done["result"]["headers"].get("content-encoding").is_none(), "{done:#}");
    assert!(done["result"]["headers"]["vary"].is_null() || done["result"]["status"] == json!(200));

    // 512 MiB of zeros in half a megabyte.
    let mut gzip =
        Command::new("gzip").args(["-9", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut into = gzip.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        let zeros = vec![0; 1 << 20];
        (0..512).try_for_each(|_| into.write_all(&zeros))
    });
    let bomb = gzip.wait_with_output().unwrap().stdout;
    feeder.join().unwrap().unwrap();
    assert!(bomb.len() < 1 << 20);
    nginx.publish_in("bomb", "zeros", &bomb);
    let done = hub.api.run(&request("bomb/zeros")).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "too_large"), "{done:#}");
    let peak = agent.process().peak_kib();
    assert!(peak < 64 << 10, "the agent's memory peaked at {peak} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_megabytes_go_either_way_over_http_in_little_memory() {
    const SIZE: u64 = 300_000_000;
    let (hub, nginx) = (Hub::start().await, Nginx::start().await);
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.secret("webhook", WEBHOOK_SECRET);
    // Signed as well: the payload is read twice, from the disk.
    let settings = "max_response = \"1GiB\"\nsign = { kind = \"standard_webhooks\", secret = { file = \"secrets/webhook\" } }";
    agent.resource("archive", &resources::application_with("archive", &nginx.url, settings));
    agent.start().await;
    let source = tempfile::tempdir().unwrap();
    let content = Content::write(source.path(), SIZE);
    let blob = hub.api.upload(&content).await;
    let patience = Duration::from_secs(600);
    let put = json!({"method": "PUT", "path": "store/grand.bin", "expect": [201, 204]});
    let put = with(job("archive", "request", put), json!({"payload": {"blob": blob["id"]}}));
    let id = hub.api.submit(&put).await;
    let done = hub.api.end_of(&id, patience).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    let arrived = Content::of_file(&nginx.folder("store").join("grand.bin"));
    assert_eq!((arrived.size, &arrived.sha256), (content.size, &content.sha256));
    let get = json!({"method": "GET", "path": "store/grand.bin", "expect": [200]});
    let id = hub.api.submit(&job("archive", "request", get)).await;
    let done = hub.api.end_of(&id, patience).await;
    assert_eq!(done["output"]["sha256"], json!(content.sha256), "{done:#}");
    let peaks = [agent.process().peak_kib(), hub.process.peak_kib()];
    println!("the most memory of agent and hub: {peaks:?} KiB");
    assert!(peaks.iter().all(|peak| *peak < 64 << 10), "memory of agent and hub peaked at {peaks:?} KiB");
}

/// The Python of the folder where `tests/run` installs the reference library of Standard Webhooks.
fn python() -> PathBuf {
    let me = std::env::current_exe().expect("the path of this program");
    let installed =
        me.ancestors().map(|dir| dir.join("test-webhooks/bin/python3")).find(|path| path.exists());
    installed.expect("target/test-webhooks; bash tests/run installs it")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arrives_in_the_vendors_envelope_and_the_reference_library_takes_its_signature() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    site.agent.secret("webhook", WEBHOOK_SECRET);
    let sign = "sign = { kind = \"standard_webhooks\", secret = { file = \"secrets/webhook\" } }";
    site.agent.resource("orders-app", &resources::application_with("orders-app", &site.app.url, sign));
    site.agent.start().await;
    let data = json!({
        "CommandeGuid": "20818d87-34bb-5c4e-b14d-e3674b9f022c", "ClientGuid": "8eae9eda-1f81-55d5-9724-180e8e2287bb",
        "CommandeNumero": "CMD-2026-000042", "CommandeIP": "203.0.113.7", "ClientEmail": "camille.lefevre@example.fr",
        "CommandeMontantTotal": 129.9, "ModeLivraisonGuid": "82e3b904-77d6-55d6-a751-c530a1c14e62",
        "PointLivraisonGuid": null, "MagasinAssocieGuid": "b8ff81e4-78ca-5754-972d-4494b0872aea",
    });
    let event = |data: &Value| {
        job(
            "orders-app",
            "notify",
            json!({"path": "events", "event": {"kind": "CommandeValidee", "data": data}}),
        )
    };
    let done = site.hub.api.succeed(&event(&data)).await;
    let [got] = site.app.received(1).await.try_into().unwrap();
    let body: Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(body, json!({"EventKind": "CommandeValidee", "EventCategory": "e/commerce", "Data": data}));
    assert_eq!(got.header("webhook-id"), done["id"].as_str().unwrap());

    let verify = "import json, sys\nfrom standardwebhooks import Webhook, WebhookVerificationError\n\
                  secret, headers, body = json.load(sys.stdin)\n\
                  try:\n    Webhook(secret).verify(body, headers)\n    print('good')\n\
                  except WebhookVerificationError as error:\n    print('bad', error)";
    let headers = json!({
        "webhook-id": got.header("webhook-id"), "webhook-timestamp": got.header("webhook-timestamp"),
        "webhook-signature": got.header("webhook-signature"),
    });
    let text = String::from_utf8(got.body.to_vec()).unwrap();
    for (body, expected) in [(text.clone(), "good"), (text.replace("129.9", "1.0"), "bad")] {
        let mut child = Command::new(python())
            .args(["-c", verify])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let given = json!([WEBHOOK_SECRET, headers, body]).to_string();
        child.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
        let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert!(said.starts_with(expected), "{said}");
    }

    let mut wrong = data.clone();
    wrong.as_object_mut().unwrap().remove("ClientEmail");
    let done = site.hub.api.run(&event(&wrong)).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "invalid_params"), "{done:#}");
    assert_eq!(done["error"]["message"], "event.data.ClientEmail: missing");
    assert_eq!(site.app.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_request_is_all_that_its_rule_allows_and_policy_tells_it() {
    let mut site = Site::prepared(|_, _| Reply::status(200).body("ready")).await;
    let url = &site.app.url;
    let text = format!(
        r#"[resources.orders-app]
connector = "http"
url = "{url}"
[resources.orders-app.requests.order-status]
method = "GET"
path = "orders/{{{{ order }}}}/status"
query = {{ lang = "{{{{ lang }}}}" }}
expect = [200]
[resources.orders-app.requests.order-status.parameters]
order = {{ pattern = "CMD-[0-9]{{4}}-[0-9]{{6}}" }}
lang = {{ values = ["fr", "en"], required = false }}
[resources.orders-app.requests.close]
method = "DELETE"
path = "orders"
[[resources.orders-app.allow]]
operations = ["request"]
requests = ["order-status"]
"#
    );
    site.agent.resource("orders-app", &text);
    site.agent.start().await;
    let api = &site.hub.api;
    let named =
        |name: &str, args: Value| job("orders-app", "request", json!({"request": name, "args": args}));
    let good = named("order-status", json!({"order": "CMD-2026-000042", "lang": "fr"}));
    let done = api.succeed(&good).await;
    assert_eq!(api.output(done["id"].as_str().unwrap()).await, b"ready");
    assert_eq!(site.app.requests()[0].uri, "/orders/CMD-2026-000042/status?lang=fr");
    for (job, state, expected) in [
        (named("close", json!({})), "denied", "policy_denied"),
        (named("order-status", json!({"order": "../admin"})), "failed", "invalid_params"),
        (named("order-status", json!({"order": "CMD-2026-000042", "x": 1})), "failed", "invalid_params"),
        (
            job("orders-app", "request", json!({"method": "GET", "path": "orders/1/status"})),
            "denied",
            "policy_denied",
        ),
        (
            job(
                "orders-app",
                "notify",
                json!({"request": "order-status", "args": {"order": "CMD-2026-000042"}}),
            ),
            "denied",
            "policy_denied",
        ),
    ] {
        let done = api.run(&job).await;
        assert_eq!((done["state"].as_str(), code(&done)), (Some(state), expected), "{done:#}");
    }
    assert_eq!(site.app.requests().len(), 1);

    let explained = String::from_utf8(site.agent.output(&["policy", "explain"]).stdout).unwrap();
    let line = "as its requests say: order-status (GET orders/{{ order }}/status)";
    assert!(explained.contains(line), "{explained}");
    let folder = tempfile::tempdir().unwrap();
    for (job, exit) in [(good, 0), (named("close", json!({})), 1)] {
        let path = folder.path().join("job.json");
        std::fs::write(&path, job.to_string()).unwrap();
        let tested = site.agent.output(&["policy", "test", path.to_str().unwrap()]);
        assert_eq!(tested.status.code(), Some(exit), "{}", String::from_utf8_lossy(&tested.stdout));
    }
}
