//! The hub's API call by call: what it answers, to whom, and how it refuses.

use crate::common::{SITE, Site, drop_job, job, notify_job, with};
use passerelle_tests::{Content, Hub, Reply, code, events, http_client};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_shown_as_the_contract_says() {
    let site = Site::start().await;
    let labels = json!({"labels": {"export": "fec"}, "priority": 7});
    let done = site.hub.api.succeed(&with(drop_job("a.csv", "écritures"), labels)).await;
    for (field, expected) in [
        ("tenant", json!("acme")),
        ("site", json!(SITE)),
        ("resource", json!("compta")),
        ("operation", json!("drop")),
        ("params", json!({"path": "a.csv"})),
        ("state", json!("succeeded")),
        ("labels", json!({"export": "fec"})),
        ("output", Value::Null),
        ("error", Value::Null),
    ] {
        assert_eq!(done[field], expected, "{field} of {done:#}");
    }
    // A job may be faster than the first word on its progress.
    let told = [Value::Null, json!({"bytes_done": 10, "bytes_total": 10})];
    assert!(told.contains(&done["progress"]), "{done:#}");
    let sha256 = Content::digest("écritures".as_bytes());
    assert_eq!(done["result"], json!({"path": "a.csv", "size": 10, "sha256": sha256}));
    let attempt = &done["attempts"][0];
    assert_eq!((&attempt["number"], &attempt["effect"]), (&json!(1), &json!("applied")));
    assert_eq!(
        (&attempt["verdict"], &attempt["code"], &attempt["message"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let times = [
        &done["created_at"],
        &attempt["accepted_at"],
        &attempt["started_at"],
        &attempt["finished_at"],
        &done["finished_at"],
    ];
    for time in times {
        let time: jiff::Timestamp =
            time.as_str().and_then(|t| t.parse().ok()).unwrap_or_else(|| panic!("{done:#}"));
        assert!((time.as_second() - jiff::Timestamp::now().as_second()).abs() < 600);
    }
    let id = done["id"].as_str().unwrap();
    assert_eq!(&id[14..15], "7", "ids are UUID v7: {id}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_submission_is_refused_with_the_field_named() {
    let hub = Hub::start().await;
    let _site_exists = hub.enrolment_token(SITE, &[]);
    let good = drop_job("a.csv", "x");
    for (spoilt, field) in [
        (with(good.clone(), json!({"unknown": 1})), "unknown"),
        (with(good.clone(), json!({"params": "text"})), "params"),
        (with(good.clone(), json!({"site": 7})), "site"),
        (with(good.clone(), json!({"deadline_s": 0})), "deadline_s"),
        (with(good.clone(), json!({"timeout_s": "30s"})), "timeout_s"),
        (with(good.clone(), json!({"max_attempts": 0})), "max_attempts"),
        (with(good.clone(), json!({"priority": 10})), "priority"),
        (with(good.clone(), json!({"payload": {"base64": "%%%"}})), "payload"),
        (with(good.clone(), json!({"payload": {"text": "a", "base64": "YQ=="}})), "payload"),
        (with(good.clone(), json!({"resource": "No Such Name"})), "resource"),
        (json!({"site": SITE}), "resource"),
    ] {
        let answer = hub.api.post("/v1/jobs", &spoilt).await;
        assert_eq!((answer.status, code(&answer.body)), (400, "bad_request"), "{spoilt}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        let detail = answer.body["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(field), "{field} is not named in {detail:?}");
    }
    for (body, kind) in
        [("not json", "application/json"), ("[]", "application/json"), ("", "application/json")]
    {
        let request = hub.api.request(Method::POST, "/v1/jobs").header("content-type", kind).body(body);
        let answer = hub.api.send(request).await;
        assert_eq!((answer.status, code(&answer.body)), (400, "bad_request"), "{body:?}");
    }
    let answer = hub.api.post("/v1/jobs", &with(good, json!({"site": "nowhere"}))).await;
    assert_eq!((answer.status, code(&answer.body)), (404, "site_unknown"));
    let big = drop_job("a.csv", &"x".repeat(1 << 20));
    let answer = hub.api.post("/v1/jobs", &big).await;
    assert_eq!(answer.status, 413, "{:?}", answer.body);
    assert_eq!(code(&answer.body), "too_large");
    assert_eq!(hub.api.get("/v1/jobs").await.body["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_further_than_the_key_allows() {
    let site = Site::start().await;
    let id = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    for key in ["", "wrong", "Bearer"] {
        let answer = site.hub.api.with_key(key).get("/v1/jobs").await;
        assert_eq!((answer.status, code(&answer.body)), (401, "unauthorized"), "{key:?}");
    }
    let reader = site.hub.api.with_key(&site.hub.api_key("acme", "jobs:read"));
    assert_eq!(reader.get(&format!("/v1/jobs/{id}")).await.status, 200);
    for answer in [
        reader.post("/v1/jobs", &drop_job("b.csv", "x")).await,
        reader.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await,
        reader.post(&format!("/v1/jobs/{id}/retry"), &json!({})).await,
        reader.get("/v1/sites").await,
        reader.get("/v1/agents").await,
        reader.get(&format!("/v1/sites/{SITE}/resources")).await,
        reader.send(reader.request(Method::POST, "/v1/blobs").body("x")).await,
        reader.send(reader.request(Method::GET, "/v1/events")).await,
    ] {
        assert_eq!((answer.status, code(&answer.body)), (403, "forbidden"), "{answer:?}");
    }
    let made = site.hub.admin(&["api-key", "create", "--tenant", "acme", "--scopes", "jobs:read"]);
    let revoked = site.hub.api.with_key(made["key"].as_str().unwrap());
    assert_eq!(revoked.get("/v1/jobs").await.status, 200);
    site.hub.admin(&["api-key", "revoke", made["id"].as_str().expect("the key's id")]);
    passerelle_tests::until("the revoked key to be refused", passerelle_tests::PATIENCE, async || {
        (revoked.get("/v1/jobs").await.status == 401).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_do_not_see_each_other() {
    let site = Site::start().await;
    let done = site.hub.api.succeed(&job("compta", "list", json!({}))).await;
    let id = done["id"].as_str().unwrap();
    site.hub.admin(&["tenant", "create", "other", "--tier", "enterprise"]);
    let all = "jobs:read,jobs:write,sites:read,agents:read,agents:write,blobs:write,events:read";
    let other = site.hub.api.with_key(&site.hub.api_key("other", all));
    for path in
        [format!("/v1/jobs/{id}"), format!("/v1/jobs/{id}/output"), format!("/v1/sites/{SITE}/resources")]
    {
        assert_eq!(other.get(&path).await.status, 404, "{path}");
    }
    for action in ["cancel", "retry"] {
        assert_eq!(other.post(&format!("/v1/jobs/{id}/{action}"), &json!({})).await.status, 404);
    }
    for path in ["/v1/jobs", "/v1/sites", "/v1/agents"] {
        assert_eq!(other.get(path).await.body["items"], json!([]), "{path}");
    }
    let answer = other.post("/v1/jobs", &drop_job("a.csv", "x")).await;
    assert_eq!((answer.status, code(&answer.body)), (404, "site_unknown"));
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_uploaded_whole_or_in_pieces_and_checked() {
    let site = Site::start().await;
    let api = &site.hub.api;
    let folder = tempfile::tempdir().unwrap();
    let content = Content::write(folder.path(), 700_000);
    let bytes = std::fs::read(&content.path).unwrap();

    let wrong = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
    let request = api.request(Method::POST, "/v1/blobs").header("repr-digest", wrong).body(bytes.clone());
    let refused = api.send(request).await;
    assert_eq!((refused.status, code(&refused.body)), (422, "digest_mismatch"), "{refused:?}");

    let opened = api.send(api.request(Method::POST, "/v1/blobs").header("upload-length", bytes.len())).await;
    assert_eq!(opened.status, 201, "{opened:?}");
    let place = opened.headers["location"].to_str().unwrap().to_owned();
    let place = place.strip_prefix(&site.hub.url).unwrap_or(&place).to_owned();
    let patch = |offset: usize, part: Vec<u8>| {
        let request = api.request(Method::PATCH, &place).header("upload-offset", offset);
        api.send(request.header("content-type", "application/offset+octet-stream").body(part))
    };
    assert!(patch(0, bytes[..300_000].to_vec()).await.status < 300);
    let head = api.send(api.request(Method::HEAD, &place)).await;
    assert_eq!(head.headers["upload-offset"], "300000", "{head:?}");
    assert_eq!(head.headers["upload-length"], "700000");
    let again = patch(0, bytes[..300_000].to_vec()).await;
    assert_eq!(again.status, 409, "a piece at the wrong offset was taken: {again:?}");
    let last = patch(300_000, bytes[300_000..].to_vec()).await;
    assert!(last.status < 300, "{last:?}");
    let id =
        opened.body["id"].as_str().or_else(|| last.body["id"].as_str()).expect("the blob's id").to_owned();
    let drop = with(drop_job("pieces.bin", ""), json!({"payload": {"blob": id}}));
    let done = api.succeed(&drop).await;
    assert_eq!(done["result"]["sha256"], json!(content.sha256));
    let unknown = with(drop, json!({"payload": {"blob": "01936b0c-7e6a-7000-8000-000000000001"}}));
    let answer = api.post("/v1/jobs", &unknown).await;
    assert!((400..500).contains(&answer.status), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_continues_where_it_stopped_even_after_a_crash() {
    let mut site = Site::start().await;
    let bytes = vec![42u8; 500_000];
    let api = site.hub.api.clone();
    let opened = api.send(api.request(Method::POST, "/v1/blobs").header("upload-length", bytes.len())).await;
    let place = opened.headers["location"].to_str().unwrap().to_owned();
    let place = place.strip_prefix(&site.hub.url).unwrap_or(&place).to_owned();
    let patch = |offset: usize, part: Vec<u8>| {
        let request = api.request(Method::PATCH, &place).header("upload-offset", offset);
        api.send(request.header("content-type", "application/offset+octet-stream").body(part))
    };
    patch(0, bytes[..200_000].to_vec()).await;
    site.hub.process.kill();
    site.hub.restart().await;
    let head = api.send(api.request(Method::HEAD, &place)).await;
    let offset: usize = head.headers["upload-offset"].to_str().unwrap().parse().unwrap();
    assert!(offset <= 200_000, "{offset}");
    let last = patch(offset, bytes[offset..].to_vec()).await;
    assert!(last.status < 300, "{last:?}");
    let id =
        opened.body["id"].as_str().or_else(|| last.body["id"].as_str()).expect("the blob's id").to_owned();
    let done = api.succeed(&with(drop_job("a.bin", ""), json!({"payload": {"blob": id}}))).await;
    assert_eq!(done["result"]["sha256"], json!(Content::digest(&bytes)));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_by_filter_and_page_by_page() {
    let site = Site::with_app(|_, _| Reply::status(404)).await;
    let api = &site.hub.api;
    let mut all = BTreeSet::new();
    for n in 0..7 {
        all.insert(api.succeed(&drop_job(&format!("{n}.csv"), "x")).await["id"].as_str().unwrap().to_owned());
    }
    let failed = api.run(&notify_job("a")).await;
    let failed_id = failed["id"].as_str().unwrap().to_owned();
    let ids = |body: &Value| -> Vec<String> {
        body["items"].as_array().unwrap().iter().map(|j| j["id"].as_str().unwrap().to_owned()).collect()
    };
    let only_failed = api.get("/v1/jobs?state=failed").await;
    assert_eq!(ids(&only_failed.body), [failed_id.as_str()]);
    assert_eq!(ids(&api.get("/v1/jobs?resource=orders-app").await.body), [failed_id.as_str()]);
    assert_eq!(ids(&api.get(&format!("/v1/jobs?site={SITE}&state=succeeded")).await.body).len(), 7);
    assert_eq!(ids(&api.get("/v1/jobs?until=2020-01-01T00:00:00Z").await.body).len(), 0);
    assert_eq!(ids(&api.get("/v1/jobs?since=2020-01-01T00:00:00Z").await.body).len(), 8);
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = api.get(&format!("/v1/jobs?state=succeeded&limit=3{cursor}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        assert!(ids(&page.body).len() <= 3);
        seen.extend(ids(&page.body));
        match page.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 7, "a job twice or not at all: {seen:?}");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), all);
    for wrong in ["state=happy", "limit=0", "limit=many", "since=yesterday", "cursor=%20", "colour=blue"] {
        let answer = api.get(&format!("/v1/jobs?{wrong}")).await;
        assert_eq!((answer.status, code(&answer.body)), (400, "bad_request"), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_agents_and_resources_are_shown_without_a_host_path_or_secret() {
    let mut site = Site::start().await;
    site.hub.api.agents_online(SITE, 1).await;
    let sites = site.hub.api.get("/v1/sites").await.body;
    assert_eq!(sites["items"], json!([{"name": SITE, "agents": 1, "agents_online": 1, "jobs_queued": 0}]));
    let agents = site.hub.api.get("/v1/agents").await.body;
    let agent = &agents["items"][0];
    assert_eq!((&agent["name"], &agent["site"]), (&json!("paris-1"), &json!(SITE)));
    assert_eq!((&agent["application"], &agent["online"]), (&json!("orchestrator"), &json!(true)));
    assert_eq!(agent["jobs_running"], json!(0));
    assert!(
        agent["version"].is_string()
            && agent["connected_at"].is_string()
            && agent["last_seen_at"].is_string()
    );
    let resources = site.hub.api.get(&format!("/v1/sites/{SITE}/resources")).await.body;
    let names: Vec<&str> =
        resources["items"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["compta", "orders-app"]);
    let compta = &resources["items"][0];
    assert_eq!(compta["connector"], "file");
    let drop = compta["operations"].as_array().unwrap().iter().find(|o| o["name"] == "drop").expect("drop");
    assert_eq!(drop["repeat"], "safe");
    assert!(drop["params_schema"]["properties"]["path"].is_object(), "{drop:#}");
    let text = resources.to_string();
    let port = site.app.url.rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    for secret in [&*site.files.path().to_string_lossy(), "127.0.0.1", &port] {
        assert!(!text.contains(secret), "{secret} is shown to the cloud");
    }
    site.agent.kill();
    site.hub.api.agents_online(SITE, 0).await;
    let queued = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    assert_eq!(site.hub.api.get("/v1/sites").await.body["items"][0]["jobs_queued"], json!(1));
    site.agent.start().await;
    site.hub.api.reach(&queued, &["succeeded"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_of_jobs_and_continue_after_the_last_one_seen() {
    let site = Site::start().await;
    let api = &site.hub.api;
    let stream = api.request(Method::GET, "/v1/events").send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let first = api.submit(&drop_job("1.csv", "x")).await;
    let ended = |id: &str, seen: &[(String, String, Value)]| {
        seen.iter().any(|(_, kind, data)| kind == "job" && data["id"] == id && data["state"] == "succeeded")
    };
    let seen = events(stream, |seen| ended(&first, seen)).await;
    let (last_id, _, data) = seen.last().unwrap().clone();
    assert_eq!(data["result"]["path"], "1.csv", "the event is the job as GET shows it: {data:#}");
    assert!(!last_id.is_empty());
    let second = api.succeed(&drop_job("2.csv", "x")).await["id"].as_str().unwrap().to_owned();
    let again =
        api.request(Method::GET, "/v1/events").header("last-event-id", &last_id).send().await.unwrap();
    let missed = events(again, |seen| ended(&second, seen)).await;
    assert!(missed.iter().all(|(id, _, _)| *id != last_id), "an event came twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_describes_itself() {
    let hub = Hub::start().await;
    let answer = hub.api.send(http_client().get(format!("{}/v1/openapi.json", hub.url))).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body["openapi"].as_str().is_some_and(|v| v.starts_with("3.")));
    let paths = answer.body["paths"].as_object().unwrap();
    for (path, method) in [
        ("/v1/jobs", "post"),
        ("/v1/jobs", "get"),
        ("/v1/jobs/{id}", "get"),
        ("/v1/jobs/{id}/cancel", "post"),
        ("/v1/jobs/{id}/retry", "post"),
        ("/v1/jobs/{id}/output", "get"),
        ("/v1/blobs", "post"),
        ("/v1/sites", "get"),
        ("/v1/agents", "get"),
        ("/v1/events", "get"),
    ] {
        assert!(paths.get(path).is_some_and(|p| p[method].is_object()), "{method} {path} is not described");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_says_so() {
    let site = Site::start().await;
    let api = &site.hub.api;
    let nowhere = api.get("/v1/nowhere").await;
    assert_eq!((nowhere.status, code(&nowhere.body)), (404, "not_found"));
    let absent = api.get("/v1/jobs/01936b0c-7e6a-7000-8000-000000000001").await;
    assert_eq!((absent.status, code(&absent.body)), (404, "not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_metrics_are_open_and_true() {
    let mut site = Site::start().await;
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
    let client = http_client();
    for base in [site.hub.url.clone(), site.agent.url("")] {
        for path in ["/healthz", "/readyz"] {
            let answer = client.get(format!("{base}{path}")).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{base}{path}");
        }
        let metrics = client.get(format!("{base}/metrics")).send().await.unwrap().text().await.unwrap();
        assert!(metrics.contains("# TYPE passerelle_"), "{base}: {metrics}");
        assert!(metrics.trim_end().ends_with("# EOF"), "{base}: not whole");
    }
    site.hub.process.kill();
    passerelle_tests::until("the agent to be unready", passerelle_tests::PATIENCE, async || {
        (site.agent.readiness().await == Some(503)).then_some(())
    })
    .await;
    let health = client.get(site.agent.url("/healthz")).send().await.unwrap();
    assert_eq!(health.status(), 200, "an agent without its hub is healthy");
    site.hub.restart().await;
    site.agent.ready().await;
}
