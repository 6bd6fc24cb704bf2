//! The vendor's HTTP API, as its existing clients speak it: every call, shape, quirk and error.

mod files;
mod told;

use crate::support::{Answer, Hub, eventually, name};
use passerelle_hub::{api::vendor, outbound::Outbound};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

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
