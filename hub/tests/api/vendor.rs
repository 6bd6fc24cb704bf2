//! The vendor's HTTP API, as its existing clients speak it: every call, shape, quirk and error.

use crate::{
    receiver::{self, Receiver, fetching, quick},
    support::{Answer, Hub, all_scopes, eventually, name},
};
use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use passerelle_hub::{api::vendor, model::Tier, outbound::Outbound};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::net::TcpListener;

const ZERO: &str = "00000000-0000-0000-0000-000000000000";

/// A hub whose tenant has an application and a personal key.
struct Office {
    hub: Hub,
    id: String,
    secret: String,
    personal: String,
}

impl Office {
    async fn open(outbound: Outbound) -> Self {
        let hub = Hub::start_allowing(outbound).await;
        let (id, secret) = hub.store.create_app(name("acme")).await.unwrap();
        let scopes = vec!["mediations:read".to_owned(), "mediations:write".to_owned()];
        let (_, personal) = hub.store.create_api_key(name("acme"), scopes).await.unwrap();
        hub.app.tasks.spawn(vendor::fetch::run(hub.app.clone()));
        Self { hub, id, secret, personal }
    }

    /// As the prefix wants it: an application on `app/`, a person on `api/`.
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.hub.anonymous(method, path);
        if path.starts_with("/app/") {
            request.basic_auth(&self.id, Some(&self.secret))
        } else {
            request.basic_auth("claire@example.com", Some(&self.personal))
        }
    }

    async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    async fn put(&self, flow: &str, url: &str) -> Answer {
        let request = self.request(Method::PUT, &format!("/app/mediations/standard/{flow}"));
        Answer::of(request.json(&json!({"Url": url}))).await
    }

    async fn apply(&self, definition: Value) -> String {
        let body = json!({"definitions": [definition]});
        let applied = self.hub.post("/v1/mediations/definitions", &body).await.expect(200).json();
        applied["items"][0]["guid"].as_str().unwrap().to_owned()
    }

    /// A definition that does nothing, and does it well.
    async fn easy(&self, called: &str, extra: Value) -> String {
        let mut definition =
            json!({"name": called, "label": format!("La {called}"), "trigger": {"kind": "manual"}});
        definition.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        self.apply(definition).await
    }

    /// A definition whose one job waits for an agent that never comes.
    async fn waiting(&self, called: &str) -> String {
        let step = json!({
            "name": "drop", "kind": "job", "site": "paris", "resource": "compta", "operation": "drop",
            "params": {"path": "a.csv"}, "payload": "x",
        });
        self.easy(called, json!({"steps": [step]})).await
    }

    async fn start(&self, definition: &str) -> String {
        let path = format!("/v1/mediations/definitions/{definition}/run");
        let run = self.hub.post(&path, &json!({})).await.expect(201).json();
        run["guid"].as_str().unwrap().to_owned()
    }

    async fn until(&self, run: &str, state: &str) -> Value {
        eventually(|| async {
            let shown = self.get(&format!("/app/mediations/{run}/status")).await.expect(200).json();
            (shown["Etat"] == state).then_some(shown)
        })
        .await
    }

    /// Has the run fail: its job is cancelled.
    async fn fail(&self, run: &str) -> Value {
        eventually(|| async {
            let jobs = self.hub.get("/v1/jobs?state=queued").await.expect(200).json();
            for job in jobs["items"].as_array().unwrap() {
                self.hub.post(&format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap()), &json!({})).await;
            }
            let shown = self.get(&format!("/app/mediations/{run}/status")).await.expect(200).json();
            (shown["Etat"] == "failed").then_some(shown)
        })
        .await
    }
}

#[track_caller]
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect()
}

/// The vendor's error, whose code is the status.
#[track_caller]
fn refused(answer: Answer, status: u16) -> Value {
    let answer = answer.expect(status);
    let body = answer.json();
    assert_eq!(keys(&body), ["ErrorCode", "ErrorIdentifier", "Message"]);
    assert_eq!(body["ErrorCode"], status, "{body}");
    assert!(body["Message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    assert!(uuid_like(body["ErrorIdentifier"].as_str().unwrap()), "{body}");
    assert_eq!(answer.header("cache-control"), "no-store");
    body
}

fn uuid_like(text: &str) -> bool {
    text.len() == 36 && text.matches('-').count() == 4
}

#[track_caller]
fn is_status(status: &Value) {
    let all = [
        "Debut",
        "DefinitionGuid",
        "DefinitionLibelle",
        "DefinitionStandardGuid",
        "Etat",
        "EtatDetails",
        "IsCompleted",
        "MediationGuid",
        "Messages",
    ];
    assert_eq!(keys(status), all, "{status}");
    for never_null in ["Debut", "DefinitionGuid", "MediationGuid", "Etat", "EtatDetails", "IsCompleted"] {
        assert!(!status[never_null].is_null(), "{never_null}: {status}");
    }
    for message in status["Messages"].as_array().unwrap() {
        assert_eq!(keys(message), ["Date", "Kind", "Message"]);
        assert!(message["Kind"] == 0 || message["Kind"] == 1, "{message}");
    }
}

#[tokio::test]
async fn every_call_answers_in_the_vendors_shape_under_both_prefixes() {
    let office = Office::open(Outbound::default()).await;
    let system = "11111111-2222-4333-8444-555555555555";
    let easy = office.easy("easy", json!({"system": system})).await;
    let never = office.easy("never", json!({})).await;
    let waiting = office.waiting("waiting").await;
    let done = office.start("easy").await;
    office.until(&done, "succeeded").await;
    let failed = office.start("waiting").await;
    office.fail(&failed).await;

    for prefix in ["app", "api"] {
        let definitions = office.get(&format!("/{prefix}/mediations/definitions")).await.expect(200);
        assert_eq!(definitions.header("cache-control"), "no-store");
        assert!(definitions.header("content-type").starts_with("application/json"));
        let definitions = definitions.json();
        let all = definitions.as_array().unwrap();
        assert_eq!(all.len(), 3);
        let of = |guid: &str| all.iter().find(|found| found["Guid"] == guid).unwrap();
        for definition in all {
            assert_eq!(keys(definition), ["Guid", "Label", "LastRun", "LastRunResult", "LastRunStatus"]);
        }
        assert_eq!(
            (&of(&easy)["Label"], &of(&easy)["LastRunStatus"]),
            (&json!("La easy"), &json!("succeeded"))
        );
        assert_eq!(of(&easy)["LastRunResult"], "Terminée");
        assert!(of(&never)["LastRun"].is_null() && of(&never)["LastRunStatus"].is_null());
        assert_eq!(of(&waiting)["LastRunStatus"], "failed");

        let listed = office.get(&format!("/{prefix}/mediations/status")).await.expect(200);
        assert_eq!(listed.header("x-result-truncated"), "false");
        let listed = listed.json();
        let runs = listed.as_array().unwrap();
        assert_eq!(runs.len(), 2);
        runs.iter().for_each(is_status);
        // Newest first.
        assert_eq!((&runs[0]["MediationGuid"], &runs[1]["MediationGuid"]), (&json!(failed), &json!(done)));
        assert_eq!(
            (&runs[1]["DefinitionStandardGuid"], &runs[0]["IsCompleted"]),
            (&json!(system), &json!(true))
        );
        assert_eq!(runs[1]["EtatDetails"], "Terminée");
        let error = runs[0]["Messages"].as_array().unwrap().last().unwrap();
        assert_eq!(error["Kind"], 1, "{error}");
        assert_eq!(runs[0]["EtatDetails"], error["Message"]);

        let one = office.get(&format!("/{prefix}/mediations/{failed}/status")).await.expect(200).json();
        is_status(&one);
        assert_eq!(one["DefinitionLibelle"], "La waiting");
        for what in ["disable", "disable", "enable", "enable"] {
            let path = format!("/{prefix}/mediations/definitions/{never}/{what}");
            let answer = office.get(&path).await.expect(200);
            assert_eq!(
                (answer.text().as_str(), answer.header("cache-control")),
                ("true", "no-store"),
                "{path}"
            );
            let shown = office.hub.get("/v1/mediations/definitions/never").await.expect(200).json();
            assert_eq!(shown["definition"]["enabled"], what == "enable", "{shown}");
        }
    }
    office.hub.end().await;
}

#[tokio::test]
async fn what_real_clients_send_is_borne() {
    let office = Office::open(Outbound::default()).await;
    let guid = office.easy("easy", json!({})).await;
    let other = office.easy("other", json!({})).await;
    let run = office.start("easy").await;
    let run = office.until(&run, "succeeded").await;
    let began: jiff::Timestamp = run["Debut"].as_str().unwrap().parse().unwrap();
    let paris = jiff::tz::TimeZone::fixed(jiff::tz::offset(1));
    let at =
        |at: jiff::Timestamp| at.to_zoned(paris.clone()).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string();
    let ago = |seconds: i64| at(began.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap());

    for (query, found) in [
        (String::new(), 1),
        ("?minDate=&maxDate=&definitionGuid=".to_owned(), 1),
        (format!("?minDate={}&maxDate={}&definitionGuid={ZERO}", ago(60), ago(-60)), 1),
        // The plus of the offset is not escaped: it arrives as a space.
        (format!("?minDate={}", ago(60)), 1),
        (format!("?minDate={}", ago(60).replace('+', "%2B")), 1),
        (format!("?minDate={}", ago(60).replace('+', " ")), 1),
        (format!("?minDate={}", ago(-60)), 0),
        (format!("?maxDate={}", ago(60)), 0),
        // Both ends belong to the list.
        (format!("?minDate={}&maxDate={}", at(began), at(began)), 1),
        ("?minDate=0001-01-01T00:00:00&maxDate=9999-12-31T23:59:59.9999999".to_owned(), 1),
        (format!("?DEFINITIONGUID={}", guid.to_uppercase()), 1),
        (format!("?definitionGuid=%7B{guid}%7D&_=1700000000"), 1),
        (format!("?definitionGuid={other}"), 0),
        ("?definitionGuid=0193f0b2-7d5c-7f2e-8a46-3b1c5d7e9f10".to_owned(), 0),
    ] {
        let answer = office.get(&format!("/app/mediations/status{query}")).await.expect(200).json();
        assert_eq!(answer.as_array().unwrap().len(), found, "{query}");
    }
    let path = "/app/mediations/definitions";
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let pair = STANDARD.encode(format!("{}:{}", office.id.to_uppercase(), office.secret));
    for spelled in
        [format!("Basic {pair}"), format!("basic:{pair}"), format!("basic {pair}"), format!("Basic: {pair}")]
    {
        let request = office.hub.anonymous(Method::GET, path).header("authorization", &spelled);
        Answer::of(request).await.expect(200);
    }
    for content_type in ["application/json", "text/json", "text/json; charset=utf-8", "nonsense"] {
        let request = office.request(Method::GET, path).header("content-type", content_type);
        Answer::of(request).await.expect(200);
    }
    // A personal key also in the place of the user's name, where a client has one field for it.
    let request = office.hub.anonymous(Method::GET, "/api/mediations/definitions");
    Answer::of(request.basic_auth(&office.personal, None::<&str>)).await.expect(200);
    office.hub.end().await;
}

#[tokio::test]
async fn refusals_have_the_vendors_shape_and_codes() {
    let office = Office::open(Outbound::default()).await;
    let guid = office.easy("easy", json!({"standard_flow": "stock"})).await;
    office.easy("off", json!({"standard_flow": "off", "enabled": false})).await;
    let run = office.start("easy").await;
    office.until(&run, "succeeded").await;
    for prefix in ["app", "api"] {
        for (path, status) in [
            ("mediations/status?minDate=yesterday", 400),
            ("mediations/status?maxDate=2026-13-41", 400),
            ("mediations/status?definitionGuid=7", 400),
            ("mediations/definitions/7/enable", 404),
            ("mediations/definitions/0193f0b2-7d5c-7f2e-8a46-3b1c5d7e9f10/enable", 404),
            (&format!("mediations/definitions/{ZERO}/disable"), 404),
            ("mediations/0193f0b2-7d5c-7f2e-8a46-3b1c5d7e9f10/status", 404),
            ("mediations/0193f0b2-7d5c-7f2e-8a46-3b1c5d7e9f10/restart", 404),
            ("mediations/0193f0b2-7d5c-7f2e-8a46-3b1c5d7e9f10/ignore", 404),
            ("mediations/nothing/status", 404),
            (&format!("mediations/{guid}/status"), 404),
            // It succeeded: there is nothing to restart or ignore.
            (&format!("mediations/{run}/restart"), 405),
            (&format!("mediations/{run}/ignore"), 405),
            ("mediations/definitions/x/y/z", 404),
            ("nothing", 404),
        ] {
            refused(office.get(&format!("/{prefix}/{path}")).await, status);
        }
        let wrong = office.request(Method::POST, &format!("/{prefix}/mediations/definitions"));
        refused(Answer::of(wrong).await, 405);
    }
    let put = async |flow: &str, body: &str| {
        let request = office.request(Method::PUT, &format!("/app/mediations/standard/{flow}"));
        Answer::of(request.header("content-type", "text/json").body(body.to_owned())).await
    };
    for (flow, body, status) in [
        ("stock", "", 400),
        ("stock", "{}", 400),
        ("stock", "\"https://example.com/\"", 400),
        ("stock", "{\"Url\":\"stock.csv\"}", 400),
        ("stock", "{\"Url\":\"ftp://example.com/stock.csv\"}", 400),
        ("other", "{\"Url\":\"https://example.com/stock.csv\"}", 404),
        ("off", "{\"Url\":\"https://example.com/stock.csv\"}", 405),
        // Nothing may be fetched by this hub.
        ("stock", "{\"Url\":\"https://example.com/stock.csv\"}", 412),
    ] {
        refused(put(flow, body).await, status);
    }
    // For servers alone.
    let request =
        office.request(Method::PUT, "/api/mediations/standard/stock").json(&json!({"Url": "https://x/"}));
    refused(Answer::of(request).await, 404);

    // Credentials: none, wrong, of the wrong kind, without the right.
    for (path, user, password) in [
        ("/app/mediations/status", office.id.as_str(), "wrong"),
        ("/app/mediations/status", "nobody", office.secret.as_str()),
        ("/app/mediations/status", "claire", &office.personal),
        ("/api/mediations/status", &office.id, &office.secret),
        ("/api/mediations/status", "claire", "pk_1_2"),
    ] {
        let answer =
            Answer::of(office.hub.anonymous(Method::GET, path).basic_auth(user, Some(password))).await;
        assert!(answer.header("www-authenticate").starts_with("Basic "), "{path} {user}");
        refused(answer, 401);
    }
    for request in [
        office.hub.anonymous(Method::GET, "/app/mediations/status"),
        office.hub.anonymous(Method::GET, "/app/mediations/status").header("authorization", "basic"),
        office.hub.request(Method::GET, "/api/mediations/status"),
    ] {
        refused(Answer::of(request).await, 401);
    }
    let reading = vec!["mediations:read".to_owned()];
    let (_, reading) = office.hub.store.create_api_key(name("acme"), reading).await.unwrap();
    let by =
        |path: String| Answer::of(office.hub.anonymous(Method::GET, &path).basic_auth("x", Some(&reading)));
    by("/api/mediations/status".to_owned()).await.expect(200);
    refused(by(format!("/api/mediations/definitions/{guid}/disable")).await, 403);
    refused(by(format!("/api/mediations/{run}/restart")).await, 403);

    // Whoever guesses is told to wait.
    let guess =
        || Answer::of(office.hub.anonymous(Method::GET, "/app/mediations/status").basic_auth("7", Some("x")));
    let mut limited = None;
    for _ in 0..200 {
        let answer = guess().await;
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
    }
    let limited = limited.expect("guesses are limited");
    assert!(limited.header("retry-after").parse::<u64>().is_ok());
    refused(limited, 429);
    office.hub.store.revoke_app(&office.id).await.unwrap();
    let answer = office.get("/app/mediations/definitions").await;
    assert!([401, 429].contains(&answer.status), "{}", answer.text());
    office.hub.end().await;
}

#[tokio::test]
async fn restart_and_ignore_are_made_once_and_never_by_a_look_at_the_head() {
    let office = Office::open(Outbound::default()).await;
    office.waiting("waiting").await;
    for prefix in ["app", "api"] {
        let run = office.start("waiting").await;
        let status = office.get(&format!("/{prefix}/mediations/{run}/status")).await.expect(200).json();
        assert_eq!(status["IsCompleted"], false, "{status}");
        // Under way: to restart it is the same as to let it go on.
        let same = office.get(&format!("/{prefix}/mediations/{run}/restart")).await.expect(200).json();
        assert_eq!((&same["MediationGuid"], &same["IsCompleted"]), (&json!(run), &json!(false)));
        refused(office.get(&format!("/{prefix}/mediations/{run}/ignore")).await, 405);
        office.fail(&run).await;
        for what in ["restart", "ignore"] {
            let head = office.request(Method::HEAD, &format!("/{prefix}/mediations/{run}/{what}"));
            Answer::of(head).await.expect(405);
        }
        let still = office.get(&format!("/{prefix}/mediations/{run}/status")).await.expect(200).json();
        assert_eq!(still["Etat"], "failed");
        let restarted = office.get(&format!("/{prefix}/mediations/{run}/restart")).await.expect(200);
        assert_eq!(restarted.header("cache-control"), "no-store");
        is_status(&restarted.json());
        assert_eq!(restarted.json()["MediationGuid"], run.as_str());
        office.get(&format!("/{prefix}/mediations/{run}/restart")).await.expect(200);
        let shown = office.hub.get(&format!("/v1/mediations/runs/{run}")).await.expect(200).json();
        assert_eq!(shown["restarts"], 1, "{shown}");
        office.fail(&run).await;
        for _ in 0..2 {
            let ignored = office.get(&format!("/{prefix}/mediations/{run}/ignore")).await.expect(200);
            assert_eq!(ignored.text(), "true");
        }
        let status = office.get(&format!("/{prefix}/mediations/{run}/status")).await.expect(200).json();
        assert_eq!((&status["Etat"], &status["EtatDetails"]), (&json!("ignored"), &json!("Ignorée")));
        refused(office.get(&format!("/{prefix}/mediations/{run}/restart")).await, 405);
    }
    office.hub.end().await;
}

/// A server with files: one that is there, one that is after two failures, one too large, one that leads elsewhere.
async fn files() -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    async fn flaky(State(asked): State<Arc<AtomicUsize>>) -> axum::response::Response {
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            _ => "flaky;1\r\n".into_response(),
        }
    }
    let router = Router::new()
        .route("/files/stock.csv", get(|| async { ([("content-type", "text/csv")], "sku;qty\r\n1;7\r\n") }))
        .route("/files/flaky.csv", get(flaky))
        .route("/files/large.csv", get(|| async { "x".repeat(5000) }))
        .route("/files/elsewhere.csv", get(|| async { axum::response::Redirect::to("/files/stock.csv") }))
        .with_state(Arc::clone(&asked));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/files/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, asked)
}

#[tokio::test]
async fn a_file_that_a_client_names_is_fetched_and_run() {
    let (files, asked) = files().await;
    let office = Office::open(fetching(&[&files], 4096)).await;
    let guid = office.easy("stock", json!({"standard_flow": "stock"})).await;
    let poll =
        async |guid: &str| office.get(&format!("/app/mediations/status/{guid}")).await.expect(200).json();
    let ended = async |guid: &str| {
        eventually(|| async { Some(poll(guid).await).filter(|status| status["IsCompleted"] == true) }).await
    };

    let answer = office.put("stock", &format!("{files}stock.csv")).await.expect(200);
    assert!(answer.text().starts_with('"') && answer.text().len() == 38, "{}", answer.text());
    let request = answer.json().as_str().unwrap().to_owned();
    let status = ended(&request).await;
    is_status(&status);
    assert_eq!((&status["Etat"], &status["MediationGuid"]), (&json!("succeeded"), &json!(request)));
    assert_eq!(status["DefinitionGuid"], guid.as_str());
    // The run has a guid of its own, under which it is listed; its file is its first flow.
    let runs = office.get("/app/mediations/status").await.json();
    let run = runs[0]["MediationGuid"].as_str().unwrap().to_owned();
    let shown = office.hub.get(&format!("/v1/mediations/runs/{run}")).await.expect(200).json();
    let flow = &shown["flows"][0];
    assert_eq!((&flow["label"], &flow["media_type"]), (&json!("stock.csv"), &json!("text/csv")));
    let path = format!("/v1/mediations/runs/{run}/flows/{}", flow["guid"].as_str().unwrap());
    assert_eq!(office.hub.get(&path).await.expect(200).text(), "sku;qty\r\n1;7\r\n");
    assert_eq!(shown["occurrence"]["data"]["flow"], "stock");
    // What is known by the one guid is known by the other.
    office.get(&format!("/app/mediations/{request}/status")).await.expect(200);
    refused(office.get(&format!("/app/mediations/{request}/restart")).await, 405);

    // Asked for again and again until it is there; meanwhile the same call is the same request.
    let flaky = office.put("stock", &format!("{files}flaky.csv")).await.expect(200).json();
    let again = office.put("stock", &format!("{files}flaky.csv")).await.expect(200).json();
    assert_eq!(flaky, again);
    assert_eq!(ended(flaky.as_str().unwrap()).await["Etat"], "succeeded");
    assert_eq!(asked.load(Ordering::SeqCst), 3);

    for (file, says) in [
        ("missing.csv", "answered 404"),
        ("large.csv", "larger than 4096 bytes"),
        ("elsewhere.csv", "redirections are not followed"),
    ] {
        let request = office.put("stock", &format!("{files}{file}")).await.expect(200).json();
        let status = ended(request.as_str().unwrap()).await;
        is_status(&status);
        assert_eq!(status["Etat"], "failed", "{status}");
        assert!(status["EtatDetails"].as_str().unwrap().contains(says), "{status}");
        assert_eq!(status["Messages"][0]["Kind"], 1);
    }
    assert_eq!(office.get("/app/mediations/status").await.json().as_array().unwrap().len(), 2);

    // Not on the list, whatever it looks like.
    let host = files.trim_end_matches("files/");
    for url in [
        format!("{host}secret.csv"),
        format!("{files}../secret.csv"),
        format!("{files}%2e%2e%2fsecret.csv"),
        "http://127.0.0.1:1/files/stock.csv".to_owned(),
        "https://169.254.169.254/latest".to_owned(),
    ] {
        refused(office.put("stock", &url).await, 418);
    }
    refused(office.put("stock", &files.replace("http://", "http://u:p@")).await, 400);
    // With the mark that some systems put before UTF-8, and another spelling of the field.
    let body = format!("\u{feff}{{\"url\":\"{files}stock.csv\",\"More\":1}}");
    let put =
        office.request(Method::PUT, "/app/mediations/standard/stock").header("content-type", "text/json");
    Answer::of(put.body(body)).await.expect(200);
    office.hub.end().await;
}

#[tokio::test]
async fn no_call_shows_or_changes_anything_of_another_tenant() {
    let (files, _) = files().await;
    let office = Office::open(fetching(&[&files], 4096)).await;
    let guid = office.waiting("secret-mediation").await;
    office.easy("stock", json!({"standard_flow": "stock", "label": "secret-stock"})).await;
    let run = office.start("secret-mediation").await;
    office.fail(&run).await;
    let fetched = office.put("stock", &format!("{files}stock.csv")).await.expect(200).json();
    let fetched = fetched.as_str().unwrap();
    let before = office.get(&format!("/app/mediations/{run}/status")).await.expect(200).json();

    let store = &office.hub.store;
    store.create_tenant(name("other"), Tier::Enterprise).await.unwrap();
    let (id, secret) = store.create_app(name("other")).await.unwrap();
    let (_, personal) = store.create_api_key(name("other"), all_scopes()).await.unwrap();
    let as_other = |method: Method, path: String| {
        let request = office.hub.anonymous(method, &path);
        match path.starts_with("/app/") {
            true => request.basic_auth(&id, Some(&secret)),
            false => request.basic_auth("x", Some(&personal)),
        }
    };
    for prefix in ["app", "api"] {
        for list in ["definitions", "status", &format!("status?definitionGuid={guid}")] {
            let answer = Answer::of(as_other(Method::GET, format!("/{prefix}/mediations/{list}"))).await;
            assert_eq!(answer.expect(200).json(), json!([]), "{list}");
        }
        for call in [
            format!("definitions/{guid}/enable"),
            format!("definitions/{guid}/disable"),
            format!("{run}/status"),
            format!("{run}/restart"),
            format!("{run}/ignore"),
            format!("{fetched}/status"),
        ] {
            let answer = Answer::of(as_other(Method::GET, format!("/{prefix}/mediations/{call}"))).await;
            assert!(!refused(answer, 404).to_string().contains("secret"), "{call}");
        }
    }
    refused(Answer::of(as_other(Method::GET, format!("/app/mediations/status/{fetched}"))).await, 404);
    let put = as_other(Method::PUT, "/app/mediations/standard/stock".to_owned());
    refused(Answer::of(put.json(&json!({"Url": format!("{files}stock.csv")}))).await, 404);
    let after = office.get(&format!("/app/mediations/{run}/status")).await.expect(200).json();
    assert_eq!(before, after);
    office.hub.end().await;
}

#[tokio::test]
async fn runs_are_told_to_subscribers_in_the_vendors_shapes() {
    let hub = receiver::hub(quick(), None).await;
    let endpoint = Receiver::start().await;
    endpoint.answers([500]);
    let kinds = ["MediationCreation", "MediationTerminee", "MediationTermineeOk", "MediationTermineeErr"];
    hub.post("/v1/subscriptions", &json!({"url": endpoint.url, "kinds": kinds})).await.expect(201);
    let definition = json!({
        "name": "export", "label": "Export comptable", "trigger": {"kind": "manual"},
        "steps": [{
            "name": "drop", "kind": "job", "site": "paris", "resource": "compta", "operation": "drop",
            "params": {"path": "a.csv"}, "payload": "x",
        }],
    });
    let easy = json!({"name": "easy", "label": "Facile", "trigger": {"kind": "manual"}});
    let body = json!({"definitions": [definition, easy]});
    hub.post("/v1/mediations/definitions", &body).await.expect(200);
    let flows = json!({"flows": [{"label": "in.csv", "payload": {"text": "x"}}]});
    let started = hub.post("/v1/mediations/definitions/easy/run", &flows).await.expect(201).json();
    let came = endpoint.wait_for(4).await;
    let taken: Vec<&receiver::Received> = came.iter().filter(|delivery| delivery.answered == 200).collect();
    let told: Vec<Value> = taken.iter().map(|delivery| delivery.json()["EventKind"].clone()).collect();
    assert_eq!(told, ["MediationCreation", "MediationTerminee", "MediationTermineeOk"]);
    for delivery in &taken {
        let body = delivery.json();
        assert_eq!(body["EventCategory"], "e/rp");
        let data = &body["Data"];
        let all =
            ["DateCreation", "Definition", "DerniersMessages", "EtatCode", "EtatLibelle", "Flux", "Guid"];
        assert_eq!(keys(data), all);
        assert_eq!(keys(&data["Definition"]), ["Guid", "Libelle", "StandardGuid"]);
        assert_eq!((&data["Guid"], &data["Definition"]["Libelle"]), (&started["guid"], &json!("Facile")));
        assert_eq!(keys(&data["Flux"][0]), ["EstTraite", "Guid", "Libelle", "Sens"]);
        assert_eq!(
            (&data["Flux"][0]["Sens"], &data["Flux"][0]["Libelle"]),
            (&json!("Entree"), &json!("in.csv"))
        );
    }
    let last = taken[2].json();
    assert_eq!(
        (&last["Data"]["EtatCode"], &last["Data"]["EtatLibelle"]),
        (&json!("succeeded"), &json!("Terminée"))
    );

    let started = hub.post("/v1/mediations/definitions/export/run", &json!({})).await.expect(201).json();
    eventually(|| async {
        let jobs = hub.get("/v1/jobs?state=queued").await.expect(200).json();
        let id = jobs["items"][0]["id"].as_str()?.to_owned();
        Some(hub.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await.status)
    })
    .await;
    let came = endpoint.wait_for(7).await;
    let of_run: Vec<Value> = came[4..].iter().map(receiver::Received::json).collect();
    let told: Vec<&Value> = of_run.iter().map(|body| &body["EventKind"]).collect();
    assert_eq!(json!(told), json!(["MediationCreation", "MediationTerminee", "MediationTermineeErr"]));
    assert_eq!(of_run[2]["Data"]["Guid"], started["guid"]);
    let message = of_run[2]["Data"]["DerniersMessages"].as_array().unwrap().last().unwrap();
    assert_eq!(message["Kind"], 1, "{message}");
    hub.end().await;
}
