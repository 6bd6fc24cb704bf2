//! Mediation runs on real processes: whoever dies at whatever boundary, the run comes to its end and nothing happens twice.

use crate::common::{SITE, Site};
use passerelle_tests::{PATIENCE, Reply, until};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

/// The steps before the transfer.
const STEPS: usize = 5;
/// For how long the application thinks about the first request of a case that is to be cut in the middle.
const THINKS: Duration = Duration::from_millis(500);

/// Five notifications, one after the other, and a file at the end.
fn five_steps() -> Value {
    let step = |number: usize| {
        json!({
            "name": format!("s{number}"), "kind": "job", "site": SITE, "resource": "orders-app",
            "operation": "notify", "params": {"path": format!("orders/{{{{ trigger.data.case }}}}-s{number}")},
            "payload": r#"{"case":"{{ trigger.data.case }}"}"#, "media_type": "application/json",
            "max_attempts": 20,
        })
    };
    json!({
        "name": "five", "trigger": {"kind": "manual"}, "steps": (1..=STEPS).map(step).collect::<Vec<_>>(),
        "transfer": [{
            "name": "out", "site": SITE, "resource": "compta", "operation": "drop", "input": [],
            "params": {"path": "{{ trigger.data.case }}.csv", "on_conflict": "fail"},
            "payload": "{{ trigger.data.case }} {{ steps.s5.result.status }}", "max_attempts": 20,
        }],
    })
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Hub,
    Agent,
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_boundary_a_run_comes_to_its_end_and_does_nothing_twice() {
    // Of a case whose name says so, the first request of one step is answered late: the kill comes in the middle of it.
    let mut site = Site::with_app(|request, _| {
        let late = request.uri.split_once("-slow").and_then(|(_, rest)| rest.split_once("-s"));
        match late {
            Some((wanted, step)) if wanted == step => Reply::status(200).after(THINKS),
            _ => Reply::status(200),
        }
    })
    .await;
    let definitions = "/v1/mediations/definitions";
    site.hub.api.post(definitions, &json!({"definitions": [five_steps()]})).await;
    let mut cases = Vec::new();
    for boundary in 1..=STEPS + 1 {
        for victim in [Victim::Hub, Victim::Agent] {
            for slow in [false, true] {
                // The file is dropped in one go: there is no middle of it that the application could prolong.
                if slow && boundary > STEPS {
                    continue;
                }
                let speed = if slow { format!("slow{boundary}") } else { "fast".to_owned() };
                let case = format!("{boundary}-{victim:?}-{speed}").to_lowercase();
                let started = site
                    .hub
                    .api
                    .post(&format!("{definitions}/five/run"), &json!({"key": case, "data": {"case": case}}))
                    .await;
                assert_eq!(started.status, 201, "{:#}", started.body);
                let run = started.body["guid"].as_str().unwrap().to_owned();
                if boundary <= STEPS {
                    let path = format!("orders/{case}-s{boundary}");
                    until("the request of the boundary", PATIENCE, async || {
                        site.app.requests().iter().any(|request| request.uri.contains(&path)).then_some(())
                    })
                    .await;
                } else {
                    let file = site.files.path().join(format!("{case}.csv"));
                    until("the file of the transfer", PATIENCE, async || file.exists().then_some(())).await;
                }
                match victim {
                    Victim::Hub => site.hub.restart().await,
                    Victim::Agent => {
                        site.agent.restart().await;
                    }
                }
                let path = format!("/v1/mediations/runs/{run}");
                let ended = until("the run to end", Duration::from_secs(60), async || {
                    let shown = site.hub.api.get(&path).await.body;
                    shown["finished_at"].is_string().then_some(shown)
                })
                .await;
                assert_eq!(ended["state"], "succeeded", "{case}: {ended:#}");
                assert_eq!(ended["restarts"], 0, "{case}: nobody had to restart it");
                assert_eq!(site.read(&format!("{case}.csv")), format!("{case} 200"));
                cases.push((case, victim, ended));
            }
        }
    }
    let requests = site.app.requests();
    for (case, victim, ended) in &cases {
        for (index, unit) in ended["steps"].as_array().unwrap().iter().enumerate() {
            let jobs = unit["jobs"].as_array().unwrap();
            assert_eq!(jobs.len(), 1, "{case}: {unit}");
            if index == STEPS {
                continue;
            }
            let path = format!("orders/{case}-s{}", index + 1);
            let own: Vec<_> = requests.iter().filter(|request| request.uri.ends_with(&path)).collect();
            let keys: BTreeSet<_> = own.iter().map(|request| request.header("idempotency-key")).collect();
            assert_eq!(keys, BTreeSet::from([jobs[0]["id"].as_str().unwrap()]), "{path}");
            // Only an agent that dies with the answer on its way asks again, with the same key.
            assert!(own.len() == 1 || *victim == Victim::Agent, "{path} was asked {} times", own.len());
        }
    }
    // No job beside those that the runs know: none was submitted twice.
    let listed = site.hub.api.get("/v1/jobs?limit=500").await.body;
    assert_eq!(listed["items"].as_array().unwrap().len(), cases.len() * (STEPS + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_fetched_is_transferred_whole_and_a_failed_run_is_restarted() {
    let site = Site::start().await;
    std::fs::create_dir(site.files.path().join("in")).unwrap();
    // Larger than what travels inside the tunnel: the flow is a file of the hub's.
    let content = "01;Écriture;12,50\r\n".repeat(40_000);
    let definition = json!({
        "name": "copy", "trigger": {"kind": "manual"},
        "steps": [{
            "name": "take", "kind": "job", "site": SITE, "resource": "compta", "operation": "fetch",
            "params": {"path": "in/{{ trigger.data.file }}"}, "max_attempts": 1,
        }],
        "transfer": [{
            "site": SITE, "resource": "compta", "operation": "drop", "params": {"path": "out-{{ flow.label }}"},
        }],
    });
    site.hub.api.post("/v1/mediations/definitions", &json!({"definitions": [definition]})).await;
    let started =
        site.hub.api.post("/v1/mediations/definitions/copy/run", &json!({"data": {"file": "a.csv"}})).await;
    let path = format!("/v1/mediations/runs/{}", started.body["guid"].as_str().unwrap());
    let end = async || {
        until("the run to end", PATIENCE, async || {
            let shown = site.hub.api.get(&path).await.body;
            shown["finished_at"].is_string().then_some(shown)
        })
        .await
    };
    let failed = end().await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    let said = failed["detail"].as_str().unwrap();
    assert!(
        said.starts_with("take: fetch on compta at paris ended failed") && said.contains("target_not_found"),
        "{said}"
    );
    std::fs::write(site.files.path().join("in/a.csv"), &content).unwrap();
    assert_eq!(site.hub.api.post(&format!("{path}/restart"), &json!({})).await.status, 200);
    let done = end().await;
    assert_eq!((&done["state"], &done["restarts"]), (&json!("succeeded"), &json!(1)), "{done:#}");
    assert_eq!(site.read("out-a.csv"), content);
    assert_eq!(done["flows"][0]["size"], content.len());
}
