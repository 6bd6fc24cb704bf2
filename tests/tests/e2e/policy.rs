//! The owner's policy: explained, compared, tested, and kept to the day's limits; what it says is what happens.

use crate::common::{Site, drop_into, drop_job, job};
use passerelle_tests::{Agent, App, FakeHub, Reply, code, resources};
use serde_json::{Value, json};
use std::{fs, process::Output};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An agent's folder that no agent runs on, and whose hub is nowhere.
fn alone(rule: &str) -> (Agent, tempfile::TempDir) {
    let files = tempfile::tempdir().expect("a temporary folder");
    let agent = Agent::at("http://127.0.0.1:9", "paris-1");
    agent.resource("compta", &resources::folder_with("compta", files.path(), "", rule));
    agent.write();
    (agent, files)
}

const CSV: &str = "operations = [\"drop\"]\npaths = [\"**/*.csv\"]\nmax_size = \"4B\"\n";

#[test]
fn the_whole_power_of_the_cloud_is_explained_without_network_or_agent() {
    let (agent, files) = alone(CSV);
    agent.resource("app", "[resources.app]\nconnector = \"http\"\nurl = \"https://app.intra/api/\"\n");
    let explained = agent.output(&["policy", "explain"]);
    assert!(explained.status.success(), "{explained:?}");
    let words = text(&explained);
    for line in
        ["drop: put whole files there", "on paths **/*.csv", "up to 4B each", "Nothing: it has no allow rule"]
    {
        assert!(words.contains(line), "{line:?} is not in\n{words}");
    }
    assert!(words.contains(&*files.path().to_string_lossy()), "the owner is shown where it leads:\n{words}");
    let data: Value = serde_json::from_slice(&agent.output(&["policy", "explain", "--json"]).stdout).unwrap();
    assert_eq!(data["resources"][1]["rules"][0]["at"], "resources.d/compta.toml:5", "{data:#}");
    assert_eq!(data["resources"][0]["rules"], json!([]));
    // A folder with a mistake is explained all the same, and the mistake told.
    agent.resource("wrong", "[resources.wrong]\nconnector = \"file\"\nurl = \"file:///x\"\nlimit = 1\n");
    let explained = agent.output(&["policy", "explain"]);
    assert_eq!(explained.status.code(), Some(64));
    assert!(text(&explained).contains("drop: put whole files there"), "{explained:?}");
    let told = String::from_utf8_lossy(&explained.stderr).into_owned();
    assert!(told.contains("wrong.toml:4:1: resources.wrong.limit: unknown key"), "{told}");
}

#[test]
fn two_folders_are_compared_in_words() {
    let (old, _files) = alone(CSV);
    let new = Agent::at("http://127.0.0.1:9", "paris-1");
    let before = fs::read_to_string(old.folder().join("resources.d/compta.toml")).unwrap();
    new.resource(
        "compta",
        &before.replace("\"4B\"", "\"1KiB\"").replace("[\"drop\"]", "[\"drop\", \"delete\"]"),
    );
    new.write();
    let diff = new.output(&["policy", "explain", "--diff", old.folder().to_str().unwrap()]);
    assert!(diff.status.success(), "{diff:?}");
    let words = text(&diff);
    assert_eq!(
        words,
        "The cloud can do more:\n+ compta: delete on **/*.csv, up to 1KiB\n\
         + compta: drop on **/*.csv: size 1KiB (before: 4B)\n"
    );
    let back = old.output(&["policy", "explain", "--json", "--diff", new.folder().to_str().unwrap()]);
    let back: Value = serde_json::from_slice(&back.stdout).unwrap();
    assert_eq!((&back["more"], back["less"].as_array().unwrap().len()), (&json!([]), 2), "{back:#}");
}

#[test]
fn a_job_is_tested_against_the_rules_with_file_and_line() {
    let (agent, _files) = alone(CSV);
    let test = |job: Value, more: &[&str]| {
        agent.file("job.json", job.to_string());
        let path = agent.folder().join("job.json");
        let output = agent.output(&[&["policy", "test", path.to_str().unwrap(), "--json"], more].concat());
        let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), verdict)
    };
    let (status, verdict) = test(drop_job("a.csv", "x"), &[]);
    assert_eq!(status, Some(0), "{verdict:#}");
    assert_eq!(
        (&verdict["allowed"], &verdict["rule"], &verdict["at"]),
        (&json!(true), &json!(1), &json!("resources.d/compta.toml:5"))
    );
    let (status, verdict) = test(drop_job("a.txt", "x"), &[]);
    assert_eq!(
        (status, &verdict["code"], &verdict["at"]),
        (Some(1), &json!("policy_denied"), &json!("resources.d/compta.toml:5"))
    );
    assert!(verdict["message"].as_str().unwrap().contains("\"a.txt\""), "{verdict:#}");
    for (job, code) in [
        (drop_job("a.csv", "12345"), "too_large"),
        (drop_job("../a.csv", "x"), "path_invalid"),
        (job("compta", "drop", json!({"file": "a.csv"})), "invalid_params"),
        (job("compta", "delete", json!({"path": "a.csv"})), "policy_denied"),
        (job("payroll", "stat", json!({"path": "a.csv"})), "policy_denied"),
        (drop_into("compta", "a.csv", json!({"base64": "MTIzNDU="})), "too_large"),
    ] {
        let (status, verdict) = test(job.clone(), &[]);
        assert_eq!((status, &verdict["code"]), (Some(1), &json!(code)), "{job:#}\n{verdict:#}");
    }
    // A blob's size is not in the job.
    let blob = drop_into("compta", "a.csv", json!({"blob": "01a1fcb0-9b78-7000-8000-000000000001"}));
    assert!(test(blob.clone(), &[]).1["notes"][0].as_str().unwrap().contains("--size"));
    assert_eq!(test(blob, &["--size", "1KiB"]).1["code"], "too_large");
    for bad in [
        json!([]),
        json!({"resource": "compta"}),
        json!({"envelope": "x"}),
        json!({"resource": "../x", "operation": "stat"}),
    ] {
        assert_eq!(test(bad.clone(), &[]).0, Some(64), "{bad}");
    }
    let missing = agent.output(&["policy", "test", "/no/such/job.json"]);
    assert_eq!(missing.status.code(), Some(64));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_test_says_is_what_happens_to_a_signed_job() {
    let mut fake = FakeHub::start().await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::at(&fake.url, "paris-1");
    agent.resource("compta", &resources::folder_with("compta", files.path(), "", CSV));
    agent.spawn();
    let mut session = fake.welcomed().await;
    for (path, content) in [("a.csv", &b"x"[..]), ("b.txt", b"x"), ("c.csv", b"12345")] {
        let offer = fake.draft("compta", "drop", json!({"path": path})).with_payload(content).message();
        agent.file("job.json", json!({"envelope": offer["envelope"]}).to_string());
        let path = agent.folder().join("job.json");
        let tested = agent.output(&["policy", "test", path.to_str().unwrap(), "--json"]);
        let tested: Value = serde_json::from_slice(&tested.stdout).unwrap();
        session.send(&offer).await;
        let report = session.receive(&["report"]).await;
        session
            .send(&json!({"type": "report_ack", "job": report["job"], "attempt": report["attempt"]}))
            .await;
        let outcome = &report["outcome"];
        assert_eq!(tested["allowed"] == true, outcome["outcome"] == "succeeded", "{tested:#}\n{report:#}");
        if tested["allowed"] == false {
            assert_eq!(
                (&tested["code"], &tested["message"]),
                (&outcome["code"], &outcome["message"]),
                "{report:#}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_offers_all_the_same_gets_the_pause_as_its_answer() {
    let mut fake = FakeHub::start().await;
    let app =
        App::with(|_, before| if before == 0 { Reply::status(200).held() } else { Reply::status(200) }).await;
    let mut agent = Agent::at(&fake.url, "paris-1");
    agent.resource("app", &resources::application_with("app", &app.url, "limits = { max_concurrent = 1 }"));
    agent.spawn();
    let mut session = fake.welcomed().await;
    let [running, waiting, late] = ["orders/1", "orders/2", "orders/3"]
        .map(|path| fake.draft("app", "notify", json!({"path": path})).with_payload(b"{}").message());
    session.send(&running).await;
    app.received(1).await;
    // Accepted, and waiting for the only place.
    session.send(&waiting).await;
    while session.receive(&["accept"]).await["job"] != waiting["job"] {}
    let paused = agent.output(&["pause", "app", "--reason", "closed today"]);
    assert!(paused.status.success(), "{paused:?}");

    let mut session = fake.welcomed().await;
    assert_eq!(session.hello["resources"][0]["paused"]["reason"], "closed today", "{:#}", session.hello);
    let report = session.receive(&["report"]).await;
    assert_eq!(report["job"], waiting["job"], "{report:#}");
    let outcome = &report["outcome"];
    assert_eq!(
        (&outcome["verdict"], &outcome["code"], &outcome["effect"]),
        (&json!("retry"), &json!("paused"), &json!("not_applied"))
    );
    let message = outcome["message"].as_str().unwrap();
    assert!(message.contains("closed today"), "{message}");
    session.send(&json!({"type": "report_ack", "job": report["job"], "attempt": report["attempt"]})).await;
    // What runs finishes.
    app.release();
    let report = session.receive(&["report"]).await;
    assert_eq!(
        (&report["job"], &report["outcome"]["outcome"]),
        (&running["job"], &json!("succeeded")),
        "{report:#}"
    );
    session.send(&late).await;
    let declined = session.receive(&["decline"]).await;
    assert_eq!(declined["code"], "paused", "{declined:#}");
    assert_eq!(app.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_day_hold_over_restarts_and_the_rest_waits() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let rule = "operations = [\"drop\", \"fetch\"]\npaths = [\"day/**\"]\nmax_per_day = 4\ndaily_volume = \"10B\"\n\
                [[resources.compta.allow]]\noperations = [\"drop\"]\npaths = [\"free/**\"]\n";
    fs::create_dir_all(site.files.path().join("day")).unwrap();
    fs::create_dir_all(site.files.path().join("free")).unwrap();
    site.agent.resource("compta", &resources::folder_with("compta", site.files.path(), "", rule));
    let only = "operations = [\"fetch\"]\npaths = [\"*\"]\ndaily_volume = \"10B\"\n";
    site.agent.resource("archive", &resources::folder_with("archive", site.files.path(), "", only));
    fs::write(site.files.path().join("large"), "12345678901").unwrap();
    site.agent.start().await;
    // An output that is more than a day's worth is for no day either.
    let never = site.hub.api.run(&job("archive", "fetch", json!({"path": "large"}))).await;
    assert_eq!((&never["state"], code(&never)), (&json!("denied"), "too_large"), "{never:#}");
    site.hub.api.succeed(&drop_job("day/a", "12345")).await;
    site.agent.restart().await;
    // 5 and 6 are more than 10; the job waits for another day, and others do not wait for it.
    let waits = site.hub.api.submit(&drop_job("day/b", "123456")).await;
    let waiting = site.hub.api.reach(&waits, &["waiting"]).await;
    let attempt = &waiting["attempts"][0];
    assert_eq!(
        (&attempt["code"], &attempt["effect"]),
        (&json!("busy"), &json!("not_applied")),
        "{waiting:#}"
    );
    assert!(attempt["message"].as_str().unwrap().contains("per day is used up"), "{waiting:#}");
    site.hub.api.succeed(&drop_job("free/b", "1234567890123")).await;
    // Outputs count as payloads do.
    let fetch = job("compta", "fetch", json!({"path": "day/a"}));
    site.hub.api.succeed(&fetch).await;
    let waits = site.hub.api.submit(&fetch).await;
    site.hub.api.reach(&waits, &["waiting"]).await;
    // What is more than a day's worth is for no day.
    let never = site.hub.api.run(&drop_job("day/c", "12345678901")).await;
    assert_eq!((&never["state"], code(&never)), (&json!("denied"), "too_large"), "{never:#}");
    assert!(!site.files.path().join("day/b").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_shows_only_the_names_that_its_rule_allows() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let rule = "operations = [\"list\"]\npaths = [\"in/*.csv\"]\n";
    fs::create_dir_all(site.files.path().join("in/deep")).unwrap();
    for name in ["in/a.csv", "in/payroll.xls", "in/deep/b.csv", "c.csv"] {
        fs::write(site.files.path().join(name), "x").unwrap();
    }
    site.agent.resource("compta", &resources::folder_with("compta", site.files.path(), "", rule));
    site.agent.start().await;
    for params in [json!({"path": "in"}), json!({"recursive": true}), json!({"path": "in", "limit": 1})] {
        let listed = site.hub.api.succeed(&job("compta", "list", params.clone())).await;
        let names: Vec<&Value> =
            listed["result"]["items"].as_array().unwrap().iter().map(|item| &item["path"]).collect();
        assert_eq!(names, ["in/a.csv"], "{params}: {listed:#}");
        assert_eq!(listed["result"]["next_cursor"], Value::Null, "{params}: {listed:#}");
    }
    let denied = site.hub.api.run(&job("compta", "list", json!({"path": "in/deep"}))).await;
    assert_eq!((&denied["state"], code(&denied)), (&json!("denied"), "policy_denied"), "{denied:#}");
}
