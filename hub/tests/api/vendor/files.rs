//! Files that a client names by their URL: fetched and run, and no business of another tenant.

use super::{Office, is_status, refused};
use crate::{
    receiver::fetching,
    support::{Answer, all_scopes, eventually, name},
};
use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use passerelle_hub::model::Tier;
use reqwest::Method;
use serde_json::json;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::net::TcpListener;

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
