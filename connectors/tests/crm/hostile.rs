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
            assert_eq!(in_doubt, head.starts_with(['2', '3', '5']), "{head}: {write}");
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

/// An agent on such a server, with `auth` and the file `secret`.
fn agent(dialect: &str, port: u16, auth: &str, secret: &str) -> crate::place::Agent {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), secret).unwrap();
    let (target, dialect_settings) = match dialect {
        "odata" => ("target = \"contacts(id)\"\n", ""),
        "espocrm" => ("", ""),
        _ => ("target = \"contacts\"\n", "masked = [\"email\"]\n"),
    };
    let settings = format!(
        "connector = \"crm\"\ndialect = \"{dialect}\"\nurl = \"http://127.0.0.1:{port}/\"\n{auth}\n\
         [resources.crm.entities.contact]\n{target}fields = {{ external_id = \"guid\", email = \"email\" }}\n{dialect_settings}"
    );
    crate::place::Agent::of(build(dir.path(), &settings).unwrap(), dir)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_repeats_the_secret_tells_it_to_nobody() {
    let pair = "cGFzc2VyZWxsZTpTM0NSRVQtdG9rZW4tYWJj";
    let echoes = |text: String| {
        // The forms of the three dialects' refusals.
        let body = json!({ "detail": text, "message": text, "error": { "code": "x", "message": text } });
        let body = body.to_string().into_bytes();
        let head: &'static str =
            format!("400 Bad Request\r\nContent-Type: application/json\r\nX-Status-Reason: {text}").leak();
        answers(head, body)
    };
    let secret = "S3CRET-token-abc";
    let password = "auth = { kind = \"basic\", username = \"passerelle\", password = { file = \"secret\" } }";
    let token = "auth = { kind = \"bearer\", token = { file = \"secret\" } }";
    let key = "auth = { kind = \"api_key\", header = \"X-Api-Key\", value = { file = \"secret\" } }";
    for (dialect, auth) in [("rest", token), ("rest", key), ("odata", password), ("espocrm", key)] {
        let long = format!("{} {secret}", "no ".repeat(61));
        for text in [format!("bad {secret}"), "bad s3cret-TOKEN-abc".to_owned(), format!("bad {pair}"), long]
        {
            let agent = agent(dialect, echoes(text.clone()), auth, secret);
            let find = json!({ "entity": "contact", "where": {} });
            let failures = [
                agent.run("find", find).await.unwrap_err(),
                agent.run("get", json!({ "entity": "contact", "id": "7" })).await.unwrap_err(),
            ];
            for failure in failures {
                let all = format!("{failure} {:?}", failure.detail);
                let sent = auth == password || !text.contains(pair);
                for part in [secret, "S3CRET-tok", "TOKEN"] {
                    assert!(!all.contains(part), "{dialect} {text}: {all}");
                }
                assert!(!sent || !all.contains(pair), "{dialect} {text}: {all}");
            }
        }
    }
    let agent = agent("rest", echoes(format!("bad {secret}")), token, secret);
    let failure = agent.run("find", json!({ "entity": "contact", "where": {} })).await.unwrap_err();
    assert_eq!(failure.message, "the target refused the values: bad [secret]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_masked_value_is_found_as_the_server_writes_it() {
    for (says, told) in [
        ("DURAND-Secret@x.fr is bad", "[masked] is bad"),
        ("durand%2Dsecret%40x.fr is bad", "[masked] is bad"),
        ("durand\u{2011}secret@x.fr is bad", "[masked] is bad"),
    ] {
        let body = json!({ "detail": says }).to_string().into_bytes();
        let agent = agent("rest", answers("400 Bad Request", body), "", "x");
        let find = json!({ "entity": "contact", "where": { "email": "Durand-Secret@x.fr" } });
        let failure = agent.run("find", find).await.unwrap_err();
        assert_eq!(failure.message, format!("the target refused the values: {told}"), "{says}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_large_is_an_answer_all_the_same() {
    for fields in ["x-field: v\r\n".repeat(1100), format!("x-field: {}\r\n", "v".repeat(1 << 20))] {
        let head: &'static str = format!("200 OK\r\n{}", fields.trim_end()).leak();
        let agent = agent("rest", answers(head, b"[]".to_vec()), "", "x");
        let failure = agent.run("find", json!({ "entity": "contact", "where": {} })).await.unwrap_err();
        assert_eq!((failure.code, failure.effect), (Code::TargetProtocol, Effect::NotApplied), "{failure}");
        assert!(failure.message.contains("header fields"), "{failure}");
    }
}
