//! Whatever a server answers: no panic, no endless wait, a failure of the closed set, and nothing of the body in it.

use crate::{
    crm_servers::Reply,
    place::{KINDS, Place},
};
use passerelle_connectors::Code;
use serde_json::json;

/// What must never be read in a public sentence.
const TELLTALES: &[&str] =
    &["127.0.0.1", "SELECT", "llx_", "<html", "Traceback", "s3cret", "/opt/", "api-key", "client-secret"];

fn answers() -> Vec<Reply> {
    let html = "<html><body>Fatal error: s3cret in /var/www/x.php</body></html>";
    let sql = json!({ "error": { "code": 503, "message": "Service Unavailable: SELECT * FROM llx_user" } });
    let trace = json!({ "name": "odoo.exceptions.X", "message": "Traceback File \"/opt/odoo.py\" s3cret", "debug": "s3cret" });
    let odoo = json!({ "jsonrpc": "2.0", "id": 1, "error": { "data": trace } });
    let mut answers = vec![
        Reply::text(302, "text/html", "").with("location", "http://169.254.169.254/"),
        Reply::text(200, "application/json", "[".repeat(100_000)),
        Reply::text(200, "application/json", "x".repeat(17 << 20)),
        Reply::text(200, "application/json", b"\xff\xfe\x00".to_vec()),
        Reply::text(200, "application/json", "{\"list\":[{\"id\":"),
        Reply::json(200, &odoo),
    ];
    for status in [200, 201, 400, 403, 404, 409, 422, 429, 500, 502, 503] {
        answers.push(Reply::text(status, "text/html", html));
        answers.push(Reply::text(status, "application/json", ""));
        answers.push(Reply::json(status, &sql));
        answers.push(Reply::json(status, &trace));
        for body in [
            json!(null),
            json!([]),
            json!([null]),
            json!("s3cret"),
            json!(-1),
            json!({ "list": 5, "data": 5, "ids": 5 }),
        ] {
            answers.push(Reply::json(status, &body));
        }
    }
    for body in [
        json!({ "list": [{}], "data": [{}], "result": [{}], "ids": [{}], "id": {} }),
        json!({ "list": [null, 5], "data": { "id": [], "attributes": 5 }, "result": 5 }),
        json!({ "result": { "ids": false, "messages": 5 } }),
        json!({ "result": { "ids": false, "messages": [{ "message": 5, "field": 5 }, null] } }),
        json!([{ "id": 1, "date_modification": "soon" }]),
        json!([{ "id": 1, "date_modification": i64::MAX }]),
    ] {
        answers.push(Reply::json(200, &body));
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_answers_end_in_a_failure_that_tells_nothing() {
    for &kind in KINDS {
        let place = Place::start(kind);
        let name = place.name();
        let operations = [
            (
                "upsert",
                json!({ "entity": "contact", "key": { "external_id": "E" }, "fields": { name: "x" } }),
            ),
            ("get", json!({ "entity": "contact", "id": "4711" })),
            ("find", json!({ "entity": "contact", "where": { "email": "a@b" } })),
            ("changes", json!({ "entity": "contact" })),
            ("delete", json!({ "entity": "contact", "id": "4711" })),
        ];
        let agent = place.agent();
        // Logged in, described and in possession of a token, so that the answers meet the operations themselves.
        agent.upsert("warm", json!({ name: "x" })).await.unwrap();
        for reply in answers() {
            for (operation, params) in &operations {
                // The first answer is the hostile one, or the first two, or all.
                for count in [1, 2, 40] {
                    if reply.body.len() > 1 << 20 && (count > 1 || *operation != "get") {
                        continue;
                    }
                    place.faults().instead(std::iter::repeat_n(reply.clone(), count));
                    let done = agent.run(operation, params.clone()).await;
                    place.faults().clear();
                    let said: String = match &done {
                        Ok(result) => serde_json::to_string(result).unwrap(),
                        Err(failure) => failure.message.clone(),
                    };
                    let wrong = TELLTALES.iter().find(|telltale| said.contains(**telltale));
                    assert_eq!(wrong, None, "{kind:?} {operation} {count}: {said}");
                    if let Err(failure) = done {
                        assert_ne!(
                            failure.code,
                            Code::Internal,
                            "{kind:?} {operation} {}: {failure:?}",
                            reply.status
                        );
                    }
                }
            }
        }
        let found = agent.run("get", json!({ "entity": "contact", "key": { "external_id": "warm" } })).await;
        let found = found.unwrap_or_else(|failure| panic!("{kind:?}: {failure:?}"));
        assert_eq!(found["fields"][name], json!("x"), "{kind:?}: it goes on");
        let redirected = place.asked().iter().any(|asked| asked.path.contains("169.254"));
        assert!(!redirected, "{kind:?}");
    }
}
