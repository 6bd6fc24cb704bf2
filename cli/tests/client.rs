//! The client commands as a user runs them: the real program against a server that plays a hub's part, including the
//! parts that a healthy hub does not play: cuts, refusals, wrong digests. The end-to-end tests use a real hub.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::stream;
use serde_json::{Value, json};
use std::{
    io,
    net::SocketAddr,
    process::{Command, Output},
    sync::{Arc, Mutex},
};
use tokio::net::TcpListener;

const ID: &str = "0193a5c2-7f3a-7c4e-8a51-0d9f6b2e4c11";

/// A request as the hub got it; a body that broke off is what came of it.
#[derive(Debug, Clone)]
struct Got {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Status, header fields and body; `None` cuts the connection.
type Reply = Option<(u16, Vec<(&'static str, String)>, Vec<u8>)>;

/// Answers a request; the number counts them from 1.
type Play = dyn Fn(&Got, usize) -> Reply + Send + Sync;

#[derive(Clone)]
struct Hub {
    address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    play: Arc<Play>,
}

impl Hub {
    async fn start(play: impl Fn(&Got, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hub = Self { address: listener.local_addr().unwrap(), got: Arc::default(), play: Arc::new(play) };
        let router = Router::new().fallback(answer).with_state(hub.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        hub
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// Runs the program against this hub.
    async fn run(&self, line: &[&str]) -> Output {
        let mut command = program(line);
        command.env("PASSERELLE_URL", format!("http://{}", self.address)).env("PASSERELLE_API_KEY", "key-1");
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }
}

async fn answer(State(hub): State<Hub>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let headers = parts
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned()))
        .collect();
    let body: Bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let got = Got { line: format!("{} {}", parts.method, parts.uri), headers, body: body.to_vec() };
    let number = {
        let mut all = hub.got.lock().unwrap();
        all.push(got.clone());
        all.len()
    };
    let Some((status, headers, body)) = (hub.play)(&got, number) else {
        // The server drops a connection whose answer breaks before its first byte.
        let broken = stream::iter([Err::<Bytes, _>(io::Error::other("cut"))]);
        return Response::builder().header("content-length", "1").body(Body::from_stream(broken)).unwrap();
    };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Body::from(body)).unwrap()
}

fn program(line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_passerelle"));
    command
        .args(line)
        .env_remove("PASSERELLE_URL")
        .env_remove("PASSERELLE_API_KEY")
        .env_remove("PASSERELLE_API_KEY_FILE")
        .env("NO_COLOR", "1");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn job(state: &str) -> Value {
    let error = json!({ "code": "target_full", "message": "no space left", "effect": "not_applied" });
    json!({
        "id": ID, "site": "paris", "resource": "compta", "operation": "drop", "state": state,
        "created_at": "2026-11-21T06:00:00Z", "attempts": [], "result": null, "output": null,
        "error": if state == "failed" { error } else { Value::Null },
    })
}

fn ok(status: u16, body: &Value) -> Reply {
    Some((status, vec![("content-type", "application/json".to_owned())], body.to_string().into_bytes()))
}

const SUBMIT: &[&str] = &["jobs", "submit", "--site", "paris", "--resource", "compta", "--operation", "drop"];

fn submit<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SUBMIT.iter().chain(more).copied().collect()
}

#[test]
fn help_version_and_completions_are_there() {
    let help = program(&["--help"]).output().unwrap();
    assert!(help.status.success());
    for part in ["Examples:", "Exit codes:", "dev", "jobs", "sites", "agents", "completions"] {
        assert!(stdout(&help).contains(part), "{part}");
    }
    assert!(!stdout(&help).contains("__hub"));
    let version = program(&["--version"]).output().unwrap();
    assert_eq!(stdout(&version), format!("passerelle {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let script = program(&["completions", shell]).output().unwrap();
        assert!(script.status.success() && stdout(&script).contains("passerelle"), "{shell}");
    }
    for command in ["submit", "show", "list", "cancel", "retry", "resolve"] {
        assert!(program(&["jobs", command, "--help"]).output().unwrap().status.success());
    }
}

#[test]
fn usage_faults_end_with_2_and_say_what_to_do() {
    let with_hub = ["--url", "http://127.0.0.1:1", "--api-key", "k"];
    let file = tempfile::NamedTempFile::new().unwrap();
    let folder = file.path().parent().unwrap().to_str().unwrap().to_owned();
    for (line, says) in [
        (vec!["jobs", "frobnicate"], "frobnicate"),
        (vec!["sites"], "PASSERELLE_URL"),
        (vec!["sites", "--url", "http://127.0.0.1:1"], "PASSERELLE_API_KEY"),
        (vec!["sites", "--url", "http://127.0.0.1:1", "--api-key-file", "/no/such/key"], "/no/such/key"),
        (vec!["sites", "--url", "hub", "--api-key", "k"], "no hub address"),
        ([&["jobs", "show", "nothing"], &with_hub[..]].concat(), "no job id"),
        ([submit(&["--params", "[]"]), with_hub.to_vec()].concat(), "--params"),
        ([submit(&["--payload", "/no/such/file"]), with_hub.to_vec()].concat(), "/no/such/file"),
        ([submit(&["--payload", &folder]), with_hub.to_vec()].concat(), "not a regular file"),
        (vec!["dev", "--listen", "0.0.0.0:0"], "loopback"),
    ] {
        let output = program(&line).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{line:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn an_api_key_may_come_from_a_file() {
    let hub = Hub::start(|_, _| Some((200, Vec::new(), br#"{"items":[]}"#.to_vec()))).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "key-of-a-file\n").unwrap();
    let url = format!("http://{}", hub.address);
    let mut command = program(&["sites", "--url", &url]);
    command.env("PASSERELLE_API_KEY_FILE", file.path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(hub.got.lock().unwrap()[0].header("authorization"), "Bearer key-of-a-file");
}

#[tokio::test]
async fn a_hub_that_is_not_there_or_says_no_ends_with_3() {
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let line = ["sites", "--url", &format!("http://{nobody}"), "--api-key", "k"];
    let output = program(&line).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains(&nobody.to_string()) && stderr(&output).contains("cannot be reached"));

    let problem = json!({ "type": "about:blank", "title": "Not Found", "status": 404, "code": "site_unknown", "detail": "there is no site paris" });
    let hub = Hub::start(move |_, _| ok(404, &problem)).await;
    let output = hub.run(&submit(&[])).await;
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(stderr(&output), "error: site_unknown: there is no site paris\n");
    assert_eq!(hub.got().len(), 1, "a refusal is not asked for again");

    let stranger = Hub::start(|_, _| Some((200, Vec::new(), b"<html>".to_vec()))).await;
    let output = stranger.run(&["sites"]).await;
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("is the address that of a hub"));
}

#[tokio::test]
async fn a_submission_is_sent_whole_and_repeated_under_its_key_after_a_lost_answer() {
    let hub = Hub::start(|_, number| match number {
        1 => None,
        2 => ok(503, &json!({ "title": "busy", "status": 503, "code": "busy" })),
        _ => ok(201, &job("queued")),
    })
    .await;
    let file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
    std::fs::write(file.path(), "é;1\r\n").unwrap();
    let path = file.path().to_str().unwrap();
    let output = hub.run(&submit(&["--param", "path=a/b.csv", "--payload", path, "--label", "run=7"])).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains(ID) && stdout(&output).contains("state      queued"));
    let got = hub.got();
    assert_eq!(got.len(), 3);
    for request in &got {
        assert_eq!(request.line, "POST /v1/jobs");
        assert_eq!(request.header("authorization"), "Bearer key-1");
        assert_eq!(request.header("idempotency-key"), got[0].header("idempotency-key"));
        let expected = json!({
            "site": "paris", "resource": "compta", "operation": "drop", "params": { "path": "a/b.csv" },
            "payload": { "text": "é;1\r\n", "media_type": "text/csv" }, "labels": { "run": "7" },
        });
        assert_eq!(request.json(), expected);
    }
    assert_ne!(got[0].header("idempotency-key"), "");
}

#[tokio::test]
async fn waiting_tells_how_the_job_ended() {
    for (end, code) in [("succeeded", 0), ("failed", 1), ("denied", 1), ("unknown", 1), ("running", 1)] {
        let hub = Hub::start(move |got, _| {
            if got.line.starts_with("POST") { ok(202, &job("running")) } else { ok(200, &job(end)) }
        })
        .await;
        let output = hub.run(&submit(&["--wait", "1", "--json", "--idempotency-key", "mine"])).await;
        assert_eq!(output.status.code(), Some(code), "{end}: {}", stderr(&output));
        assert_eq!(serde_json::from_str::<Value>(&stdout(&output)).unwrap(), job(end));
        let got = hub.got();
        assert_eq!(got[0].line, "POST /v1/jobs?wait=1");
        assert_eq!(got[0].header("idempotency-key"), "mine");
        assert!(got.iter().skip(1).all(|request| request.line == format!("GET /v1/jobs/{ID}")));
    }
}

#[tokio::test]
async fn a_large_payload_is_uploaded_first_and_continues_after_cuts() {
    let content: Vec<u8> = (0..20_000_000_u32).map(|i| (i % 253) as u8).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    let stored: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (kept, cuts) = (stored.clone(), Arc::new(Mutex::new(0)));
    let hub = Hub::start(move |got, _| {
        let mut kept = kept.lock().unwrap();
        if got.line == "POST /v1/blobs" {
            return ok(201, &json!({ "id": ID, "size": 20_000_000, "sha256": null }));
        } else if got.line.starts_with("HEAD") {
            return Some((200, vec![("upload-offset", kept.len().to_string())], Vec::new()));
        } else if got.line.starts_with("PATCH") {
            assert_eq!(got.header("upload-offset"), kept.len().to_string());
            let mut cuts = cuts.lock().unwrap();
            *cuts += 1;
            // Every second piece is cut off after half of it.
            if *cuts % 2 == 1 {
                kept.extend_from_slice(&got.body[..got.body.len() / 2]);
                return None;
            }
            kept.extend_from_slice(&got.body);
            return Some((204, vec![("upload-offset", kept.len().to_string())], Vec::new()));
        }
        ok(201, &job("queued"))
    })
    .await;
    let path = file.path().to_str().unwrap();
    let output = hub.run(&submit(&["--payload", path, "--media-type", "application/x-big"])).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(*stored.lock().unwrap() == content, "every byte arrived once");
    let got = hub.got();
    assert_eq!(got[0].header("upload-length"), "20000000");
    assert_eq!(got[0].header("content-type"), "application/x-big");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &content);
    assert_eq!(got[0].header("repr-digest"), format!("sha-256=:{}:", STANDARD.encode(digest)));
    assert!(got.iter().any(|request| request.line.starts_with("HEAD")));
    let submitted = got.last().unwrap().json();
    assert_eq!(submitted["payload"], json!({ "blob": ID, "media_type": "application/x-big" }));
}

#[tokio::test]
async fn an_output_is_written_only_if_it_is_the_announced_one() {
    let digest = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
    for (content, code) in [("hello world", 0), ("hello w0rld", 3)] {
        let hub = Hub::start(move |got, _| {
            if got.line.ends_with("/output") {
                return Some((200, Vec::new(), content.as_bytes().to_vec()));
            }
            let mut job = job("succeeded");
            job["output"] = json!({ "size": 11, "sha256": digest, "media_type": "text/plain" });
            ok(200, &job)
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("answer.txt");
        let output = hub.run(&["jobs", "show", ID, "--output", file.to_str().unwrap()]).await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let there: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        if code == 0 {
            assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
            assert!(stdout(&output).contains(digest));
        } else {
            assert!(there.is_empty(), "{there:?}");
        }
    }
}

#[tokio::test]
async fn lists_are_tables_of_all_pages_and_jobs_are_filtered() {
    let hub = Hub::start(|got, _| {
        let page = |names: &[&str], next: Value| {
            let items: Vec<Value> = names
                .iter()
                .map(|name| json!({ "name": name, "agents": 2, "agents_online": 1, "jobs_queued": 0 }))
                .collect();
            ok(200, &json!({ "items": items, "next_cursor": next }))
        };
        match got.line.as_str() {
            "GET /v1/sites" => page(&["lyon"], json!("c 2")),
            "GET /v1/sites?cursor=c+2" => page(&["paris"], Value::Null),
            "GET /v1/jobs?site=paris&state=failed&limit=5" => {
                ok(200, &json!({ "items": [job("failed")], "next_cursor": "next" }))
            }
            other => {
                ok(404, &json!({ "title": "Not Found", "status": 404, "code": "not_found", "detail": other }))
            }
        }
    })
    .await;
    let output = hub.run(&["sites"]).await;
    assert_eq!(
        stdout(&output),
        "SITE   AGENTS  ONLINE  QUEUED\nlyon   2       1       0\nparis  2       1       0\n"
    );
    let output = hub.run(&["jobs", "list", "--site", "paris", "--state", "failed", "--limit", "5"]).await;
    assert!(stdout(&output).contains("target_full"), "{}", stderr(&output));
    assert!(stdout(&output).ends_with("more with --cursor next\n"));
}

#[tokio::test]
async fn cancel_retry_and_resolve_ask_once() {
    let hub = Hub::start(|_, _| ok(200, &job("cancelled"))).await;
    assert!(hub.run(&["jobs", "cancel", ID, "--force"]).await.status.success());
    assert!(hub.run(&["jobs", "retry", ID]).await.status.success());
    let seen = ["jobs", "resolve", ID, "--outcome", "applied", "--note", "seen on the share"];
    assert!(hub.run(&seen).await.status.success());
    assert!(hub.run(&["jobs", "resolve", ID, "--outcome", "skipped"]).await.status.success());
    let wrong = hub.run(&["jobs", "resolve", ID, "--outcome", "perhaps"]).await;
    assert!(stderr(&wrong).contains("not_applied"), "{}", stderr(&wrong));
    let got = hub.got();
    assert_eq!(got[0].line, format!("POST /v1/jobs/{ID}/cancel"));
    assert_eq!(got[0].json(), json!({ "force": true }));
    assert_eq!(
        (got[1].line.as_str(), got[1].json()),
        (format!("POST /v1/jobs/{ID}/retry").as_str(), json!({}))
    );
    assert_eq!(got[2].line, format!("POST /v1/jobs/{ID}/resolve"));
    assert_eq!(got[2].json(), json!({ "outcome": "applied", "note": "seen on the share" }));
    assert_eq!(got[3].json(), json!({ "outcome": "skipped" }));
    assert_eq!(got.len(), 4);
}

const EVENT: &str = "a89cd353-0b7a-8a51-bd26-aeab567b8e14";

fn event(path: &str) -> Value {
    let sha256 = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
    json!({
        "id": EVENT, "tenant": "acme", "site": "paris", "resource": "compta", "trigger": "incoming", "kind": "pickup",
        "agent": ID, "occurred_at": "2026-11-21T06:00:00Z", "received_at": "2026-11-21T06:00:01Z",
        "data": { "path": path, "size": 11, "sha256": sha256 },
        "payload": { "size": 11, "sha256": sha256, "media_type": "text/plain" }, "jobs": [ID],
    })
}

#[tokio::test]
async fn events_are_listed_shown_and_their_payload_is_written_whole() {
    let hub = Hub::start(|got, _| match got.line.as_str() {
        "GET /v1/events/received?site=paris&kind=pickup&limit=2" => {
            ok(200, &json!({ "items": [event("in/a\u{1b}[31m.csv")], "next_cursor": "next" }))
        }
        line if line == format!("GET /v1/events/received/{EVENT}") => ok(200, &event("in/a.csv")),
        line if line == format!("GET /v1/events/received/{EVENT}/payload") => {
            Some((200, Vec::new(), b"hello world".to_vec()))
        }
        "POST /v1/jobs" => ok(201, &job("queued")),
        other => {
            ok(404, &json!({ "title": "Not Found", "status": 404, "code": "not_found", "detail": other }))
        }
    })
    .await;
    let list = hub.run(&["events", "list", "--site", "paris", "--kind", "pickup", "--limit", "2"]).await;
    let text = stdout(&list);
    assert!(text.starts_with("ID ") && text.contains("in/a") && !text.contains('\u{1b}'), "{text}");
    assert!(text.ends_with("more with --cursor next\n"), "{text}");
    let shown = hub.run(&["events", "show", EVENT]).await;
    for part in ["incoming (pickup) on compta at paris", "11 bytes, text/plain, SHA-256 b94d27b9", ID] {
        assert!(stdout(&shown).contains(part), "{part}: {}", stdout(&shown));
    }
    let json = hub.run(&["events", "show", EVENT, "--json"]).await;
    assert_eq!(serde_json::from_slice::<Value>(&json.stdout).unwrap(), event("in/a.csv"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.csv");
    let written = hub.run(&["events", "payload", EVENT, "--output", file.to_str().unwrap()]).await;
    assert!(written.status.success(), "{}", stderr(&written));
    assert_eq!(std::fs::read(&file).unwrap(), b"hello world");
    assert_eq!(hub.run(&["events", "show", "x"]).await.status.code(), Some(2));

    let started = hub.run(&submit(&["--param", "path=a.csv", "--event", EVENT])).await;
    assert!(started.status.success(), "{}", stderr(&started));
    assert_eq!(hub.got().last().unwrap().json()["payload"], json!({ "event": EVENT }));
    let both = hub.run(&submit(&["--event", EVENT, "--payload", "x"])).await;
    assert_eq!(both.status.code(), Some(2));
}

#[tokio::test]
async fn a_followed_stream_goes_on_after_a_cut_where_it_was() {
    let hub = Hub::start(|got, number| {
        let told = |id: u64, path: &str| format!("event: received\nid: {id}\ndata: {}\n\n", event(path));
        let other = "event: job\nid: 6\ndata: {}\n\n";
        let text = match number {
            // It breaks off within an event.
            1 => format!(": connected\nretry: 2000\n\n{}{}{other}event: rec", told(4, "a"), told(5, "b")),
            2 => return None,
            3 if got.header("last-event-id") == "6" => format!(": connected\n\n{}", told(7, "c")),
            _ => return ok(404, &json!({ "title": "x", "status": 404, "code": "not_found" })),
        };
        Some((200, vec![("content-type", "text/event-stream".to_owned())], text.into_bytes()))
    })
    .await;
    let output = hub.run(&["events", "follow", "--count", "3", "--resource", "compta", "--json"]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let told = stdout(&output);
    let paths: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["data"]["path"].clone())
        .collect();
    assert_eq!(paths, ["a", "b", "c"]);
    // A hub that says no at first is told at once.
    let refused = hub.run(&["events", "follow"]).await;
    assert_eq!(refused.status.code(), Some(3), "{}", stderr(&refused));
}
