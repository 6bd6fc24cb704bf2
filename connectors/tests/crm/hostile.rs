//! What else the dialect `rest` meets: calls, and servers that answer anything.

use crate::{
    place::{Server as _, build},
    rest::{Rest, place},
};
use passerelle_connectors::{Code, Effect, Verdict};
use serde_json::json;
use std::{
    io::{Read as _, Write as _},
    time::Duration,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_call_is_made_with_its_arguments_in_their_places() {
    let place = place("people/");
    let id = place.server.insert("call-1", "c@example.com").await;
    let agent = place.connector();
    let called =
        agent.run("call", json!({ "name": "greet", "args": { "id": id, "word": "Salut" } })).await.unwrap();
    assert_eq!(called, json!({ "greeting": "Salut Made elsewhere" }));
    // An argument is one segment of the path, whatever is in it.
    let out =
        agent.run("call", json!({ "name": "greet", "args": { "id": "../../counters" } })).await.unwrap_err();
    assert_eq!((out.verdict, out.code), (Verdict::Permanent, Code::TargetNotFound), "{out}");
    for id in [".", ".."] {
        let out = agent.run("call", json!({ "name": "greet", "args": { "id": id } })).await.unwrap_err();
        assert_eq!((out.verdict, out.code), (Verdict::Permanent, Code::InvalidParams), "{out}");
        assert!(!out.message.contains("the target"), "it was not asked: {out}");
        let out = agent.run("delete", json!({ "entity": "contact", "id": id })).await.unwrap_err();
        assert_eq!((out.verdict, out.code), (Verdict::Permanent, Code::InvalidParams), "{out}");
    }
    let missing = agent.run("call", json!({ "name": "greet", "args": {} })).await.unwrap_err();
    assert!(missing.message.contains("args.id: missing"), "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_the_server_ignores_is_found_out() {
    let rest = Rest::start("people/");
    rest.insert("ignored-1", "one@example.com").await;
    rest.insert("ignored-2", "two@example.com").await;
    let dir = tempfile::tempdir().unwrap();
    // Parameters that Django's filters do not know: it gives everything then.
    let settings = rest.settings(None, false).replace("modified__gte", "changed_since");
    let settings =
        settings.replace("[resources.crm.rest]", "[resources.crm.rest]\nfilter_param = \"x_{field}\"");
    let connector = build(dir.path(), &settings).unwrap();
    let agent = crate::place::Agent::of(connector, dir);
    let params = json!({ "entity": "contact", "key": { "external_id": "ignored-2" }, "fields": { "email": "x@example.com" } });
    for (operation, params) in [
        ("upsert", params),
        ("get", json!({ "entity": "contact", "key": { "external_id": "ignored-2" } })),
        ("changes", json!({ "entity": "contact", "since": "2100-01-01T00:00:00Z" })),
    ] {
        let failure = agent.run(operation, params).await.unwrap_err();
        assert_eq!(
            (failure.code, failure.effect),
            (Code::TargetProtocol, Effect::NotApplied),
            "{operation}: {failure}"
        );
    }
    let emails: Vec<String> = rest.records("ignored").await.into_iter().map(|record| record.email).collect();
    assert_eq!(emails, ["one@example.com", "two@example.com"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_key_makes_nobody_a_stranger() {
    let rest = Rest::start("people/");
    let dir = tempfile::tempdir().unwrap();
    // Django drops the field and ignores the filter: every record looks like the one of the key.
    let settings = rest.settings(None, false).replace("\"guid\"", "\"guidd\"");
    let agent = crate::place::Agent::of(build(dir.path(), &settings).unwrap(), dir);
    let fields = json!({ "last_name": "Ours", "email": "ours@example.com" });
    let upsert = json!({ "entity": "contact", "key": { "external_id": "K1" }, "fields": fields });
    let failure = agent.run("upsert", upsert.clone()).await.unwrap_err();
    assert_eq!((failure.verdict, failure.code), (Verdict::Permanent, Code::InvalidParams), "{failure}");
    assert!(failure.message.contains("fields.external_id"), "{failure}");
    assert!(rest.records("").await.is_empty(), "every repetition would make another one");
    rest.insert("stranger", "stranger@example.com").await;
    let key = json!({ "entity": "contact", "key": { "external_id": "NOPE" } });
    for (operation, params) in [("upsert", upsert), ("get", key.clone()), ("delete", key)] {
        let failure = agent.run(operation, params).await.unwrap_err();
        assert_eq!((failure.code, failure.effect), (Code::TargetProtocol, Effect::NotApplied), "{failure}");
    }
    let found = agent.run("find", json!({ "entity": "contact", "where": { "external_id": "NOPE" } })).await;
    assert_eq!(found.unwrap_err().code, Code::TargetProtocol);
    let emails: Vec<String> = rest.records("").await.into_iter().map(|record| record.email).collect();
    assert_eq!(emails, ["stranger@example.com"]);
}

/// A server that gives every connection one answer.
fn answers(head: &'static str, body: Vec<u8>) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let mut buffer = [0; 16384];
            // The whole request fits into one read on loopback.
            drop(stream.read(&mut buffer));
            let head =
                format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)));
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_every_kind_become_one_of_the_codes_and_tell_nothing() {
    let sql = b"{\"error\":\"You have an error in your SQL syntax: SELECT secret FROM llx_user\"}".to_vec();
    let html = b"<html><body>Traceback at /srv/app/crm.py</body></html>".to_vec();
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    for (head, body, reading, writing) in [
        ("200 OK\r\nContent-Type: text/html", html.clone(), Code::TargetProtocol, Code::TargetProtocol),
        ("200 OK", Vec::new(), Code::TargetProtocol, Code::TargetProtocol),
        ("200 OK", b"[{\"x\":1}]".to_vec(), Code::TargetProtocol, Code::TargetProtocol),
        ("200 OK", b"[{\"id\":1,".to_vec(), Code::TargetProtocol, Code::TargetProtocol),
        ("200 OK", deep, Code::TargetProtocol, Code::TargetProtocol),
        ("200 OK", vec![b' '; 3 << 20], Code::TargetProtocol, Code::TargetProtocol),
        (
            "302 Found\r\nLocation: http://169.254.169.254/",
            Vec::new(),
            Code::TargetProtocol,
            Code::TargetProtocol,
        ),
        ("400 Bad Request", sql.clone(), Code::InvalidParams, Code::InvalidParams),
        ("401 Unauthorized", html.clone(), Code::TargetAuth, Code::TargetAuth),
        ("403 Forbidden", html.clone(), Code::TargetAuth, Code::TargetAuth),
        ("404 Not Found", html.clone(), Code::TargetNotFound, Code::TargetNotFound),
        ("429 Too Many Requests\r\nRetry-After: 7", Vec::new(), Code::TargetThrottled, Code::TargetThrottled),
        ("500 Internal Server Error", html, Code::TargetUnreachable, Code::TargetProtocol),
        ("503 Service Unavailable", sql, Code::TargetThrottled, Code::TargetProtocol),
    ] {
        let port = answers(head, body);
        let dir = tempfile::tempdir().unwrap();
        let settings = format!(
            "connector = \"crm\"\ndialect = \"rest\"\nurl = \"http://127.0.0.1:{port}/\"\nmax_response = \"2MiB\"\n\
             [resources.crm.entities.contact]\ntarget = \"contacts\"\nfields = {{ external_id = \"guid\", email = \"email\" }}\n\
             [resources.crm.calls.write]\nmethod = \"POST\"\npath = \"write\"\n"
        );
        let agent = crate::place::Agent::of(build(dir.path(), &settings).unwrap(), dir);
        let read = agent.run("find", json!({ "entity": "contact", "where": {} })).await.unwrap_err();
        assert_eq!((read.code, read.effect), (reading, Effect::NotApplied), "{head}: {read}");
        if let Err(write) = agent.run("call", json!({ "name": "write" })).await {
            assert_eq!(write.code, writing, "{head}: {write}");
            let in_doubt = write.effect == Effect::Unknown;
            assert_eq!(in_doubt, head.starts_with('5') || head.starts_with('2'), "{head}: {write}");
        }
        for secret in ["SELECT", "Traceback", "<", "169.254", "/srv", "127.0.0.1"] {
            assert!(!read.message.contains(secret), "{head}: {}", read.message);
        }
        if head.starts_with("429") {
            assert_eq!(read.retry_after.map(|after| after.as_secs()), Some(7));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_takes_the_connection_was_told_nothing() {
    let (url, _full) = crate::full::full().await;
    let dir = tempfile::tempdir().unwrap();
    let settings = format!(
        "connector = \"crm\"\ndialect = \"rest\"\nurl = \"{url}\"\n\
         [resources.crm.entities.contact]\ntarget = \"contacts\"\nfields = {{ external_id = \"guid\", email = \"email\" }}\n\
         [resources.crm.calls.write]\nmethod = \"POST\"\npath = \"write\"\n"
    );
    let agent = crate::place::Agent::of(build(dir.path(), &settings).unwrap(), dir);
    for (operation, params) in [
        ("find", json!({ "entity": "contact", "where": {} })),
        ("call", json!({ "name": "write" })),
        (
            "upsert",
            json!({ "entity": "contact", "key": { "external_id": "K" }, "fields": { "email": "x@example.com" } }),
        ),
    ] {
        // The time for connecting is 10 s: the attempt's own ends first.
        let mut job = crate::place::Job::new();
        job.timeout = Duration::from_secs(1);
        let failure = job.attempt(&agent, operation, &params, false).await.unwrap_err();
        assert_eq!(
            (failure.verdict, failure.code, failure.effect),
            (Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied),
            "{operation}: {failure}"
        );
    }
}
