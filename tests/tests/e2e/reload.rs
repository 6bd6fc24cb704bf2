//! A configuration that changes while the agent runs: what is good counts at once, what is bad changes nothing, and no
//! running job notices.

use crate::common::{SITE, Site, drop_into, drop_job, job, notify_job, with};
use passerelle_tests::{Agent, App, Hub, Reply, code, resources};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, time::Duration};

const APPLIED: &str = r#"passerelle_agent_config_reloads_total{result="applied"}"#;
const REFUSED: &str = r#"passerelle_agent_config_reloads_total{result="refused"}"#;

/// Replaces text in the agent's `agent.toml`.
fn edit(agent: &Agent, from: &str, to: &str) {
    let text = fs::read_to_string(agent.folder().join("agent.toml")).expect("agent.toml");
    assert!(text.contains(from), "{text}");
    agent.file("agent.toml", text.replace(from, to));
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_come_change_and_go_and_no_running_job_notices() {
    let mut site = Site::with_app(|_, before| {
        let reply = Reply::status(200);
        if before == 0 { reply.held() } else { reply }
    })
    .await;
    let running = site.hub.api.submit(&notify_job("orders/1")).await;
    site.app.received(1).await;

    // A job may wait for a resource that is not there yet.
    let early = site.hub.api.submit(&drop_into("late", "a.csv", json!({"text": "x"}))).await;
    let late = tempfile::tempdir().unwrap();
    site.agent.resource("late", &resources::folder("late", late.path()));
    let done = site.hub.api.end_of(&early, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(fs::read_to_string(late.path().join("a.csv")).unwrap(), "x");

    // A rule taken away counts for the next job.
    site.hub.api.succeed(&drop_job("allowed.csv", "x")).await;
    let rule = "operations = [\"stat\"]\npaths = [\"**/*\"]\n";
    let before = site.agent.metric(APPLIED).await;
    site.agent.resource("compta", &resources::folder_with("compta", site.files.path(), "", rule));
    site.agent.counted(APPLIED, before + 1.0).await;
    site.agent.ready().await;
    let denied = site.hub.api.run(&drop_job("forbidden.csv", "x")).await;
    assert_eq!((denied["state"].as_str(), code(&denied)), (Some("denied"), "policy_denied"), "{denied:#}");
    site.hub.api.succeed(&job("compta", "stat", json!({"path": "allowed.csv"}))).await;

    // A resource taken away is gone from the status page, and its jobs wait for somebody who has it.
    fs::remove_file(site.agent.folder().join("resources.d/late.toml")).unwrap();
    site.agent.counted(APPLIED, before + 2.0).await;
    site.agent.ready().await;
    assert!(site.agent.status().await["resources"].get("late").is_none());

    site.app.release();
    let done = site.hub.api.end_of(&running, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(done["attempts"].as_array().unwrap().len(), 1, "{done:#}");
    assert_eq!(site.app.requests().len(), 1);
    assert!(site.agent.process().is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_changes_nothing_and_is_reported() {
    let mut site = Site::start().await;
    let good = fs::read_to_string(site.agent.folder().join("resources.d/compta.toml")).unwrap();
    let bad = good.replace("connector = \"file\"", "connector = \"file\"\nusrname = \"x\"");
    site.agent.file("resources.d/compta.toml", &bad);
    site.agent.counted(REFUSED, 1.0).await;
    let status = site.agent.status().await;
    let findings = status["configuration"]["refused"].as_array().unwrap();
    let told = |text: &Value| {
        let text = text.as_str().unwrap();
        text.contains("resources.d/compta.toml:3:1: resources.compta.usrname: unknown key")
    };
    assert!(findings.len() == 1 && findings.iter().all(told), "{findings:?}");
    let log = site.agent.process().log();
    assert!(log.contains("compta.toml:3:1") && log.contains("The changed configuration is refused"), "{log}");
    // Whoever asks the running agent is not kept from it by the bad configuration: a container goes on being healthy.
    for (command, says) in [("status", "compta.usrname: unknown key"), ("health", "ready")] {
        let shown = site.agent.output(&[command]);
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.status.success() && text.contains(says), "{command}: {shown:?}");
    }
    assert_eq!(site.agent.output(&["check"]).status.code(), Some(64));
    site.hub.api.succeed(&drop_job("still.csv", "x")).await;

    // Half a file is as bad, and a second bad state is told as well.
    site.agent.file("resources.d/compta.toml", &good[..good.len() / 2]);
    site.agent.counted(REFUSED, 2.0).await;
    site.hub.api.succeed(&drop_job("still2.csv", "x")).await;

    site.agent.file("resources.d/compta.toml", good.replace("[\"**/*\"]", "[\"**/*.csv\"]"));
    site.agent.counted(APPLIED, 1.0).await;
    assert_eq!(site.agent.status().await["configuration"]["refused"], json!([]));
    site.agent.ready().await;
    let denied = site.hub.api.run(&drop_job("a.txt", "x")).await;
    assert_eq!(denied["state"], "denied", "{denied:#}");

    // Not even where it listens can be read now.
    let main = site.agent.folder().join("agent.toml");
    fs::write(&main, "x = ").unwrap();
    for command in ["status", "health"] {
        let output = site.agent.output(&[command]);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reloads_at_once_and_names_what_needs_a_restart() {
    let mut site = Site::start().await;
    edit(&site.agent, "level = \"info\"", "level = \"debug\"\nformat = \"json\"");
    edit(&site.agent, "name = \"paris-1\"", "name = \"paris-2\"\nmax_jobs = 3");
    site.agent.process().signal(Signal::HUP);
    site.agent.counted(APPLIED, 1.0).await;
    let status = site.agent.status().await;
    assert_eq!(status["configuration"]["needs_restart"], json!(["agent.name", "log.format"]));
    assert_eq!(status["name"], "paris-1");
    let process = site.agent.process();
    process.logged("take effect at the next start", Duration::from_secs(10)).await;
    site.agent.ready().await;
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
    site.agent.process().logged("DEBUG", Duration::from_secs(30)).await;

    // Nothing changed, but asked for: read again all the same, and nobody is disturbed.
    let sessions = site.agent.status().await["connection"]["session"].clone();
    site.agent.process().signal(Signal::HUP);
    site.agent.counted(APPLIED, 2.0).await;
    assert_eq!(site.agent.status().await["connection"]["session"], sessions);
    site.agent.restart_without_waiting();
    site.agent.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_secret_is_used_from_the_next_job_on() {
    let hub = Hub::start().await;
    let app = App::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.secret("app-token", "first");
    let auth = "auth = { kind = \"bearer\", token = { file = \"secrets/app-token\" } }";
    agent.resource("orders-app", &resources::application_with("orders-app", &app.url, auth));
    agent.start().await;
    hub.api.succeed(&notify_job("orders/1")).await;
    agent.secret("app-token", "secnd");
    agent.counted(APPLIED, 1.0).await;
    hub.api.succeed(&notify_job("orders/2")).await;
    let tokens: Vec<String> =
        app.requests().iter().map(|request| request.header("authorization").to_owned()).collect();
    assert_eq!(tokens, ["Bearer first", "Bearer secnd"]);

    // Gone for a moment, as some tools replace files: refused, and the one before goes on.
    fs::remove_file(agent.folder().join("secrets/app-token")).unwrap();
    agent.counted(REFUSED, 1.0).await;
    hub.api.succeed(&notify_job("orders/3")).await;
    agent.secret("app-token", "third");
    agent.counted(APPLIED, 2.0).await;
    hub.api.succeed(&notify_job("orders/4")).await;
    assert_eq!(app.requests()[3].header("authorization"), "Bearer third");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_for_its_turn_is_judged_by_the_rules_of_its_start() {
    let mut site = Site::prepared(|_, before| {
        let reply = Reply::status(200);
        if before == 0 { reply.held() } else { reply }
    })
    .await;
    let settings = "limits = { max_concurrent = 1 }";
    let text = resources::application_with("orders-app", &site.app.url, settings);
    site.agent.resource("orders-app", &text);
    site.agent.start().await;
    let first = site.hub.api.submit(&with(notify_job("orders/1"), json!({}))).await;
    site.app.received(1).await;
    let second = site.hub.api.submit(&notify_job("orders/2")).await;
    site.agent.resource("orders-app", &text.replace("[\"**/*\"]", "[\"customers/*\"]"));
    site.agent.counted(APPLIED, 1.0).await;
    site.app.release();
    let done = site.hub.api.end_of(&first, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    let denied = site.hub.api.end_of(&second, Duration::from_secs(60)).await;
    assert_eq!((denied["state"].as_str(), code(&denied)), (Some("denied"), "policy_denied"), "{denied:#}");
    assert_eq!(site.app.requests().len(), 1);
}
