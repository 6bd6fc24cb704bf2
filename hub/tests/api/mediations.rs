//! Mediations: definitions and runs through the API, their jobs carried out by a small agent.

use crate::{
    agent::{Agent, Session},
    support::{Answer, Hub, eventually},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::{Code, Effect, Failure, Outcome, OutputPayload, Sha256, Verdict};
use reqwest::Method;
use serde_json::{Value, json};

const DEFINITIONS: &str = "/v1/mediations/definitions";

fn job_step(name: &str) -> Value {
    json!({
        "name": name, "kind": "job", "site": "paris", "resource": "compta", "operation": "drop",
        "params": {"path": format!("{name}.csv")},
    })
}

/// Two steps and a transfer of what the second one gave.
fn definition(extra: Value) -> Value {
    let mut definition = json!({
        "name": "export", "label": "Export comptable", "trigger": {"kind": "manual"},
        "steps": [job_step("one"), job_step("two")],
        "transfer": [{
            "name": "out", "site": "paris", "resource": "compta", "operation": "drop",
            "params": {"path": "out/{{ flow.label }}"},
        }],
    });
    definition.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    definition
}

async fn apply(hub: &Hub, definition: &Value) -> String {
    let answer = hub.post(DEFINITIONS, &json!({"definitions": [definition]})).await.expect(200).json();
    answer["items"][0]["guid"].as_str().unwrap().to_owned()
}

async fn start(hub: &Hub, body: Value) -> String {
    let run = hub.post(&format!("{DEFINITIONS}/export/run"), &body).await.expect(201).json();
    run["guid"].as_str().unwrap().to_owned()
}

async fn show(hub: &Hub, run: &str) -> Value {
    hub.get(&format!("/v1/mediations/runs/{run}")).await.expect(200).json()
}

async fn until(hub: &Hub, run: &str, state: &str) -> Value {
    eventually(|| async {
        let shown = show(hub, run).await;
        (shown["state"] == state).then_some(shown)
    })
    .await
}

async fn act(hub: &Hub, run: &str, what: &str) -> Answer {
    hub.post(&format!("/v1/mediations/runs/{run}/{what}"), &json!({})).await
}

fn output(content: &[u8]) -> OutputPayload {
    OutputPayload {
        size: content.len() as u64,
        sha256: Sha256::of(content),
        media_type: "text/csv".to_owned(),
        data: Some(STANDARD.encode(content)),
    }
}

fn failed(code: Code, verdict: Verdict, effect: Effect) -> Outcome {
    Outcome::Failed(Failure {
        verdict,
        effect,
        code,
        message: "it did not go".to_owned(),
        retry_after_ms: None,
    })
}

/// Takes the next offer, which has to be for this path, and reports.
async fn carry_out(session: &mut Session, path: &str, outcome: Outcome) -> String {
    let offer = session.offer().await;
    let shown = serde_json::to_value(&offer).unwrap();
    let envelope = shown["envelope"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(envelope).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["params"]["path"], path, "{claims}");
    session.finish(&offer, outcome).await;
    offer.job.to_string()
}

fn done(path: &str, content: Option<&[u8]>) -> Outcome {
    Outcome::Succeeded { result: json!({"path": path}), output: content.map(output), receipt: None }
}

#[tokio::test]
async fn a_run_goes_through_its_steps_and_transfers_what_they_gave() {
    let hub = Hub::start().await;
    let mut session = Agent::enrol(&hub).await.connect(&hub).await;
    let mut steps = vec![job_step("one"), job_step("two")];
    steps[1]["watermarks"] = json!({"last": "{{ result.path }}"});
    steps[1]["params"]["path"] = json!("{{ trigger.data.day }}/{{ steps.one.result.path }}");
    steps[1]["input"] = json!("one");
    let guid = apply(&hub, &definition(json!({"steps": steps}))).await;
    let body =
        json!({"data": {"day": "22"}, "key": "a", "flows": [{"label": "in.csv", "payload": {"text": "x"}}]});
    let run = start(&hub, body.clone()).await;
    let again = hub.post(&format!("{DEFINITIONS}/{guid}/run"), &body).await.expect(200).json();
    assert_eq!(again["guid"], run.as_str(), "the same key is the same run");

    carry_out(&mut session, "one.csv", done("made/one.csv", Some(b"one"))).await;
    carry_out(&mut session, "22/made/one.csv", done("two.csv", Some(b"two"))).await;
    let job = carry_out(&mut session, "out/two.csv", done("out/two.csv", None)).await;
    let shown = until(&hub, &run, "succeeded").await;
    assert_eq!(shown["label"], json!({"en": "Completed", "fr": "Terminée"}));
    assert_eq!(shown["last_finished_step"], "out");
    assert_eq!(shown["watermarks"], json!({"last": "two.csv"}));
    assert_eq!(shown["occurrence"]["data"], json!({"day": "22"}));
    let units: Vec<_> =
        shown["steps"].as_array().unwrap().iter().map(|s| (&s["name"], &s["state"])).collect();
    assert_eq!(json!(units), json!([["one", "finished"], ["two", "finished"], ["out", "finished"]]));
    assert_eq!(shown["steps"][2]["jobs"][0], json!({"id": job, "state": "succeeded", "error": null}));
    let flows: Vec<_> = shown["flows"].as_array().unwrap().iter().collect();
    let told: Vec<_> = flows.iter().map(|f| json!([f["label"], f["source"], f["processed"]])).collect();
    assert_eq!(
        json!(told),
        json!([["in.csv", "trigger", false], ["one.csv", "one", true], ["two.csv", "two", true]])
    );
    let flow = format!("/v1/mediations/runs/{run}/flows/{}", flows[2]["guid"].as_str().unwrap());
    assert_eq!(hub.get(&flow).await.expect(200).text(), "two");
    // The transferred payload is the flow.
    let labels = &hub.get(&format!("/v1/jobs/{job}")).await.json()["labels"];
    assert_eq!(labels["mediation_run"], run.as_str());
    assert_eq!(shown["messages"].as_array().unwrap().len(), 3, "{shown}");

    // What it remembered is there for the next run, and a definition shows its last one.
    let seen = hub.get(&format!("{DEFINITIONS}/export")).await.expect(200).json();
    assert_eq!(seen["last_run"]["guid"], run.as_str());
    assert!(seen["succeeded_at"].is_string() && seen["late_since"].is_null(), "{seen}");
    let kinds: Vec<_> = hub
        .store
        .run_changes(None, 0, 100)
        .await
        .unwrap()
        .iter()
        .map(|change| change.kind.as_str())
        .collect();
    assert_eq!(kinds, ["created", "succeeded"]);
    hub.end().await;
}

#[tokio::test]
async fn a_restart_goes_on_after_the_last_finished_step_with_the_same_job() {
    let hub = Hub::start().await;
    let mut session = Agent::enrol(&hub).await.connect(&hub).await;
    apply(&hub, &definition(json!({}))).await;
    let run = start(&hub, json!({})).await;
    carry_out(&mut session, "one.csv", done("one.csv", Some(b"one"))).await;
    let refused = failed(Code::TargetRefused, Verdict::Permanent, Effect::NotApplied);
    let job = carry_out(&mut session, "two.csv", refused).await;
    let shown = until(&hub, &run, "failed").await;
    assert_eq!(shown["last_finished_step"], "one");
    let detail = shown["detail"].as_str().unwrap();
    assert!(detail.starts_with("two: drop on compta at paris ended failed: it did not go"), "{detail}");
    assert_eq!(shown["messages"][1]["kind"], "error");
    act(&hub, &run, "restart").await.expect(200);
    act(&hub, &run, "restart").await.expect_problem(409, "conflict");
    let second = carry_out(&mut session, "two.csv", done("two.csv", Some(b"two"))).await;
    assert_eq!(second, job, "the target still knows its key");
    // Denied is final for a job: what is meant anew is a new one.
    let denied = failed(Code::PolicyDenied, Verdict::Denied, Effect::NotApplied);
    let first = carry_out(&mut session, "out/two.csv", denied).await;
    until(&hub, &run, "failed").await;
    act(&hub, &run, "restart").await.expect(200);
    let second = carry_out(&mut session, "out/two.csv", done("out/two.csv", None)).await;
    assert_ne!(first, second);
    let shown = until(&hub, &run, "succeeded").await;
    assert_eq!((&shown["restarts"], &shown["guid"]), (&json!(2), &json!(run)));
    hub.end().await;
}

#[tokio::test]
async fn a_transfer_of_unknown_effect_is_never_repeated_blindly() {
    let hub = Hub::start().await;
    let mut session = Agent::enrol(&hub).await.connect(&hub).await;
    apply(&hub, &definition(json!({"steps": []}))).await;
    for (outcome, repeated) in [("applied", false), ("skipped", false), ("not_applied", true)] {
        let run = start(&hub, json!({"flows": [{"label": "a.csv", "payload": {"text": "a"}}]})).await;
        let unknown = failed(Code::TargetTimeout, Verdict::Permanent, Effect::Unknown);
        let job = carry_out(&mut session, "out/a.csv", unknown).await;
        let shown = until(&hub, &run, "unknown").await;
        assert_eq!(shown["label"]["fr"], "Effet inconnu");
        let refused = act(&hub, &run, "restart").await.expect_problem(409, "conflict").text();
        assert!(refused.contains(&format!("/v1/jobs/{job}/resolve")), "{refused}");
        hub.post(&format!("/v1/jobs/{job}/resolve"), &json!({"outcome": outcome})).await.expect(200);
        act(&hub, &run, "restart").await.expect(200);
        if repeated {
            assert_eq!(carry_out(&mut session, "out/a.csv", done("out/a.csv", None)).await, job);
        }
        let shown = until(&hub, &run, "succeeded").await;
        assert_eq!(shown["steps"][0]["jobs"].as_array().unwrap().len(), 1, "{shown}");
    }
    hub.end().await;
}

#[tokio::test]
async fn a_failed_run_is_ignored_or_closed_by_a_newer_one() {
    let hub = Hub::start().await;
    let mut session = Agent::enrol(&hub).await.connect(&hub).await;
    let one = definition(json!({"steps": [job_step("one")], "transfer": [], "ignore_old_errors": true}));
    apply(&hub, &one).await;
    let refused = || failed(Code::TargetRefused, Verdict::Permanent, Effect::NotApplied);
    let first = start(&hub, json!({})).await;
    carry_out(&mut session, "one.csv", refused()).await;
    until(&hub, &first, "failed").await;
    let second = start(&hub, json!({})).await;
    let shown = until(&hub, &first, "superseded").await;
    assert_eq!(shown["label"]["fr"], "Fermeture pour cause de médiation plus récente.");
    act(&hub, &first, "restart").await.expect_problem(409, "conflict");
    act(&hub, &second, "ignore").await.expect_problem(409, "conflict");
    carry_out(&mut session, "one.csv", refused()).await;
    until(&hub, &second, "failed").await;
    act(&hub, &second, "ignore").await.expect(200);
    act(&hub, &second, "ignore").await.expect(200);
    assert_eq!(show(&hub, &second).await["state"], "ignored");
    let list = |query: &str| format!("/v1/mediations/runs?{query}");
    for (query, count) in [
        ("", 2),
        ("state=ignored", 1),
        ("state=superseded&definition=export", 1),
        ("state=failed", 0),
        ("definition=export&limit=500", 2),
        ("since=2100-01-01T00:00:00Z", 0),
        ("until=2100-01-01T00:00:00Z", 2),
    ] {
        let listed = hub.get(&list(query)).await.expect(200).json();
        assert_eq!(listed["items"].as_array().unwrap().len(), count, "{query}: {listed}");
    }
    let page = hub.get(&list("limit=1")).await.expect(200).json();
    assert_eq!(page["items"][0]["guid"], second.as_str());
    let next =
        hub.get(&list(&format!("limit=1&cursor={}", page["next_cursor"].as_str().unwrap()))).await.json();
    assert_eq!((&next["items"][0]["guid"], &next["next_cursor"]), (&json!(first), &Value::Null));
    hub.end().await;
}

#[tokio::test]
async fn the_file_of_a_failed_run_is_replaced_unless_the_old_one_arrived() {
    let hub = Hub::start().await;
    let mut session = Agent::enrol(&hub).await.connect(&hub).await;
    apply(&hub, &definition(json!({"steps": []}))).await;
    let start_one = || start(&hub, json!({"flows": [{"label": "a.csv", "payload": {"text": "old"}}]}));
    let run = start_one().await;
    let refused = failed(Code::TargetRefused, Verdict::Permanent, Effect::NotApplied);
    let old = carry_out(&mut session, "out/a.csv", refused).await;
    let shown = until(&hub, &run, "failed").await;
    let flow = shown["flows"][0]["guid"].as_str().unwrap().to_owned();
    let path = format!("/v1/mediations/runs/{run}/flows/{flow}");
    let replaced = Answer::of(hub.request(Method::PUT, &path).body("new")).await.expect(200).json();
    assert_eq!(replaced["flows"][0]["guid"], flow.as_str());
    assert!(replaced["flows"][0]["replaced_at"].is_string());
    assert_eq!(hub.get(&path).await.expect(200).text(), "new");
    act(&hub, &run, "restart").await.expect(200);
    let offer = session.offer().await;
    let shown = serde_json::to_value(&offer).unwrap().to_string();
    assert!(shown.contains(&STANDARD.encode("new")), "{shown}");
    assert_ne!(offer.job.to_string(), old, "other content is another job");
    session.finish(&offer, done("out/a.csv", None)).await;
    until(&hub, &run, "succeeded").await;
    Answer::of(hub.request(Method::PUT, &path).body("late")).await.expect_problem(409, "conflict");

    let run = start_one().await;
    let unknown = failed(Code::TargetTimeout, Verdict::Permanent, Effect::Unknown);
    carry_out(&mut session, "out/a.csv", unknown).await;
    let shown = until(&hub, &run, "unknown").await;
    let path = format!("/v1/mediations/runs/{run}/flows/{}", shown["flows"][0]["guid"].as_str().unwrap());
    let told = Answer::of(hub.request(Method::PUT, &path).body("new")).await.expect_problem(409, "conflict");
    assert!(told.text().contains("may have brought the old file"), "{}", told.text());
    hub.end().await;
}

#[tokio::test]
async fn runs_of_a_definition_queue_skip_or_run_side_by_side() {
    let hub = Hub::start().await;
    let mut session = Agent::enrol(&hub).await.connect(&hub).await;
    let with =
        |overlap: &str| definition(json!({"steps": [job_step("one")], "transfer": [], "overlap": overlap}));
    apply(&hub, &with("queue")).await;
    let (first, second) = (start(&hub, json!({})).await, start(&hub, json!({})).await);
    until(&hub, &first, "running").await;
    assert_eq!(show(&hub, &second).await["state"], "queued");
    apply(&hub, &with("skip")).await;
    let skipped = hub.post(&format!("{DEFINITIONS}/export/run"), &json!({})).await.expect(200).json();
    assert_eq!(skipped["state"], "skipped");
    carry_out(&mut session, "one.csv", done("one.csv", None)).await;
    until(&hub, &first, "succeeded").await;
    carry_out(&mut session, "one.csv", done("one.csv", None)).await;
    until(&hub, &second, "succeeded").await;
    apply(&hub, &with("parallel")).await;
    let (first, second) = (start(&hub, json!({})).await, start(&hub, json!({})).await);
    let offers = [session.offer().await, session.offer().await];
    for offer in &offers {
        session.finish(offer, done("one.csv", None)).await;
    }
    until(&hub, &first, "succeeded").await;
    until(&hub, &second, "succeeded").await;
    hub.post(&format!("{DEFINITIONS}/export/disable"), &json!({})).await.expect(200);
    hub.post(&format!("{DEFINITIONS}/export/run"), &json!({})).await.expect_problem(409, "conflict");
    hub.end().await;
}

#[tokio::test]
async fn a_file_of_definitions_is_applied_whole_or_told_what_is_wrong_with_it() {
    let hub = Hub::start().await;
    let good = "[[mediation]]\nname = \"stock\"\nlabel = \"Stock\"\nmax_interval = \"1h\"\ntimezone = \"Europe/Paris\"\n\
                [mediation.trigger]\nkind = \"manual\"\n[[mediation.transfer]]\nsite = \"paris\"\nresource = \"compta\"\n\
                operation = \"drop\"\nparams = { path = \"{{ run.guid }}.csv\" }\ntimeout = \"30s\"\n";
    let apply = async |text: &str, query: &str| {
        let body = json!({"toml": text, "file": "stock.toml"});
        hub.post(&format!("{DEFINITIONS}{query}"), &body).await
    };
    let planned = apply(good, "?dry_run=true").await.expect(200).json();
    assert_eq!((&planned["dry_run"], &planned["items"][0]["outcome"]), (&json!(true), &json!("created")));
    assert_eq!(hub.get(DEFINITIONS).await.json()["items"], json!([]));
    let guid = apply(good, "").await.expect(200).json()["items"][0]["guid"].clone();
    assert_eq!(apply(good, "").await.expect(200).json()["items"][0]["outcome"], "unchanged");
    let changed = apply(&good.replace("30s", "60s"), "").await.expect(200).json();
    assert_eq!((&changed["items"][0]["guid"], &changed["items"][0]["version"]), (&guid, &json!(2)));
    assert_eq!(
        changed["items"][0]["differences"],
        json!([{"path": "transfer[1].timeout_s", "before": 30, "after": 60}])
    );
    let shown = hub.get(&format!("{DEFINITIONS}/stock")).await.expect(200).json();
    assert_eq!(shown["definition"]["transfer"][0]["name"], "transfer-1");
    assert_eq!(shown["definition"]["max_interval_s"], 3600);
    // What is shown can be put again.
    let path = format!("{DEFINITIONS}/{}", guid.as_str().unwrap());
    let put = Answer::of(hub.request(Method::PUT, &path).json(&shown["definition"])).await.expect(200).json();
    assert_eq!(put["outcome"], "unchanged");
    let by_name =
        |name: &str| hub.request(Method::PUT, &format!("{DEFINITIONS}/{name}")).json(&shown["definition"]);
    let put = Answer::of(by_name("stock")).await.expect(200).json();
    assert_eq!((&put["outcome"], &put["guid"]), (&json!("unchanged"), &guid));
    Answer::of(by_name("nobody")).await.expect_problem(404, "not_found");

    let bad = "[[mediation]]\nname = \"Stock\"\nretention_days = 31\ntimezone = \"Mars\"\ncolour = \"red\"\n[mediation.trigger]\n\
               kind = \"manual\"\nat = 1\n[[mediation.steps]]\nname = \"a\"\nkind = \"jobs\"\n[[mediation.steps]]\n\
               kind = \"job\"\nsite = \"paris\"\nresource = \"compta\"\noperation = \"drop\"\ntimeout_s = 0\n\
               params = { path = \"{{ 1 + \" }\n[[mediation]]\n";
    let told = apply(bad, "").await.expect_problem(400, "bad_request").json();
    let told: Vec<&str> = told["detail"].as_str().unwrap().lines().collect();
    for expected in [
        "stock.toml:2:8: mediation[1].name: a name is 1 to 64 of a-z",
        "stock.toml:3:18: mediation[1].retention_days: must be 1 to 30, found 31",
        "stock.toml:4:12: mediation[1].timezone: no time zone",
        "stock.toml:5:1: mediation[1].colour: unknown key",
        "stock.toml:8:1: mediation[1].trigger.at: unknown key",
        "stock.toml:11:8: mediation[1].steps[1].kind: unknown value; did you mean \"job\"?",
        "stock.toml:12:1: mediation[1].steps[2].name: missing",
        "stock.toml:17:13: mediation[1].steps[2].timeout_s: must be 1 to 3600, found 0",
        "stock.toml:18:19: mediation[1].steps[2].params.path: not a template",
        "stock.toml:19:1: mediation[2].trigger: missing",
        "stock.toml:19:1: mediation[2].name: missing",
    ] {
        assert!(told.iter().any(|line| line.starts_with(expected)), "{expected}: {told:#?}");
    }
    let twice = format!("{good}{good}");
    let told = apply(&twice, "").await.expect_problem(400, "bad_request").text();
    assert!(told.contains("a definition before has this name already"), "{told}");
    let list = json!({"definitions": [
        definition(json!({"label": 7})),
        definition(json!({})),
        definition(json!({"steps": [{"name": "a", "kind": "nothing"}]})),
        definition(json!({"retention_days": 31})),
    ]});
    let told = hub.post(DEFINITIONS, &list).await.expect_problem(400, "bad_request").json();
    let told: Vec<&str> = told["detail"].as_str().unwrap().lines().collect();
    for expected in
        ["definitions[1].label: ", "definitions[3].steps[1].kind: ", "definitions[4].retention_days: "]
    {
        assert!(told.iter().any(|line| line.starts_with(expected)), "{expected}: {told:#?}");
    }
    let twice = json!({"definitions": [definition(json!({})), definition(json!({}))]});
    let told = hub.post(DEFINITIONS, &twice).await.expect_problem(400, "bad_request").text();
    assert!(told.contains("definitions[2].name: a definition before has this name already"), "{told}");
    let order = json!({"definitions": [definition(json!({"steps": [
        {"name": "a", "kind": "job", "input": "b", "site": "paris", "resource": "x", "operation": "y"}, job_step("b"),
        job_step("b"),
    ]}))]});
    let told = hub.post(DEFINITIONS, &order).await.expect_problem(400, "bad_request").text();
    assert!(told.contains("steps[1].input: step b does not come before this one"), "{told}");
    assert!(told.contains("steps[3].name: a step or transfer before has the name b already"), "{told}");
    hub.end().await;
}

#[tokio::test]
async fn a_run_keeps_the_version_that_it_began_with() {
    let hub = Hub::start().await;
    let mut session = Agent::enrol(&hub).await.connect(&hub).await;
    apply(&hub, &definition(json!({}))).await;
    let run = start(&hub, json!({})).await;
    apply(&hub, &definition(json!({"steps": [job_step("other")], "transfer": []}))).await;
    carry_out(&mut session, "one.csv", done("one.csv", Some(b"1"))).await;
    carry_out(&mut session, "two.csv", done("two.csv", Some(b"2"))).await;
    carry_out(&mut session, "out/two.csv", done("out/two.csv", None)).await;
    let shown = until(&hub, &run, "succeeded").await;
    assert_eq!(shown["definition"]["version"], 1);
    let guid = shown["definition"]["guid"].as_str().unwrap();
    Answer::of(hub.request(Method::DELETE, &format!("{DEFINITIONS}/{guid}"))).await.expect(204);
    hub.get(&format!("{DEFINITIONS}/{guid}")).await.expect_problem(404, "not_found");
    assert_eq!(show(&hub, &run).await["state"], "succeeded");
    hub.end().await;
}

#[tokio::test]
async fn a_system_mediation_is_partly_read_only() {
    let hub = Hub::start().await;
    let system = json!({"system": "0193a1b2-0000-7000-8000-000000000001"});
    apply(&hub, &definition(system.clone())).await;
    let mut changed = definition(system.clone());
    changed["label"] = json!("Autre");
    changed["retention_days"] = json!(7);
    apply(&hub, &changed).await;
    changed["steps"] = json!([]);
    let refused = hub.post(DEFINITIONS, &json!({"definitions": [changed]})).await;
    assert!(
        refused.expect_problem(409, "conflict").text().contains("steps: mediation export is a system one")
    );
    let delete = hub.request(Method::DELETE, &format!("{DEFINITIONS}/export"));
    Answer::of(delete).await.expect_problem(409, "conflict");
    hub.end().await;
}

#[tokio::test]
async fn a_run_goes_after_its_days_with_all_that_it_held() {
    let hub = Hub::start().await;
    let mut session = Agent::enrol(&hub).await.connect(&hub).await;
    let steps = json!([job_step("one")]);
    apply(&hub, &definition(json!({"steps": steps, "transfer": [], "retention_days": 2}))).await;
    let run = start(&hub, json!({"data": {"MainEMail": "a@example.com"}})).await;
    carry_out(&mut session, "one.csv", done("one.csv", Some(b"personal"))).await;
    let shown = until(&hub, &run, "succeeded").await;
    let flow = format!("/v1/mediations/runs/{run}/flows/{}", shown["flows"][0]["guid"].as_str().unwrap());
    let days = |days: i64| jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
    let keep = passerelle_hub::store::retention::Retention::default();
    let removed = hub.app.blobs.collect(&keep, days(1)).await.unwrap();
    assert_eq!(removed.runs, 0);
    assert_eq!(hub.get(&flow).await.expect(200).text(), "personal");
    // Blobs of the same age are kept for a week: what a run made goes with it all the same.
    let removed = hub.app.blobs.collect(&keep, days(3)).await.unwrap();
    assert_eq!(removed.runs, 1);
    hub.get(&flow).await.expect_problem(404, "not_found");
    hub.get(&format!("/v1/mediations/runs/{run}")).await.expect_problem(404, "not_found");
    let again = start(&hub, json!({})).await;
    carry_out(&mut session, "one.csv", done("one.csv", None)).await;
    until(&hub, &again, "succeeded").await;
    hub.end().await;
}

#[tokio::test]
async fn a_definition_is_late_until_a_run_succeeds() {
    let hub = Hub::start().await;
    let mut session = Agent::enrol(&hub).await.connect(&hub).await;
    let steps = json!([job_step("one")]);
    let guid =
        apply(&hub, &definition(json!({"steps": steps, "transfer": [], "max_interval_s": 3600}))).await;
    let late = || hub.store.mark_late("acme".parse().unwrap(), guid.parse().unwrap(), jiff::Timestamp::now());
    assert!(late().await.unwrap());
    assert!(!late().await.unwrap(), "it is told once");
    let path = format!("{DEFINITIONS}/export");
    assert!(hub.get(&path).await.json()["late_since"].is_string());
    let run = start(&hub, json!({})).await;
    let refused = failed(Code::TargetRefused, Verdict::Permanent, Effect::NotApplied);
    carry_out(&mut session, "one.csv", refused).await;
    until(&hub, &run, "failed").await;
    assert!(hub.get(&path).await.json()["late_since"].is_string(), "a failure is no success");
    act(&hub, &run, "restart").await.expect(200);
    carry_out(&mut session, "one.csv", done("one.csv", None)).await;
    until(&hub, &run, "succeeded").await;
    assert!(hub.get(&path).await.json()["late_since"].is_null());
    let changes = hub.store.run_changes(Some("acme".parse().unwrap()), 0, 100).await.unwrap();
    let kinds: Vec<_> = changes.iter().map(|change| change.kind.as_str()).collect();
    assert_eq!(kinds, ["late", "created", "failed", "restarted", "succeeded"]);
    assert!(changes.is_sorted_by_key(|change| change.seq) && changes[0].run.is_none());
    hub.end().await;
}

#[tokio::test]
async fn a_replaced_file_goes_through_the_steps_again_and_spares_what_did_not_read_it() {
    let hub = Hub::start().await;
    let mut session = Agent::enrol(&hub).await.connect(&hub).await;
    let mut read = job_step("read");
    read["input"] = json!("trigger");
    apply(&hub, &definition(json!({"steps": [job_step("prices"), read], "transfer": []}))).await;
    let run = start(&hub, json!({"flows": [{"label": "a.csv", "payload": {"text": "old"}}]})).await;
    carry_out(&mut session, "prices.csv", done("prices.csv", Some(b"1"))).await;
    let refused = failed(Code::TargetRefused, Verdict::Permanent, Effect::NotApplied);
    carry_out(&mut session, "read.csv", refused).await;
    let shown = until(&hub, &run, "failed").await;
    let flow = shown["flows"][0]["guid"].as_str().unwrap();
    let path = format!("/v1/mediations/runs/{run}/flows/{flow}");
    Answer::of(hub.request(Method::PUT, &path).body("new")).await.expect(200);
    act(&hub, &run, "restart").await.expect(200);
    // No second job for the prices: the next offer is for the file.
    carry_out(&mut session, "read.csv", done("read.csv", None)).await;
    let shown = until(&hub, &run, "succeeded").await;
    let jobs: Vec<_> =
        shown["steps"].as_array().unwrap().iter().map(|s| s["jobs"].as_array().unwrap().len()).collect();
    assert_eq!(jobs, [1, 1]);
    hub.end().await;
}
