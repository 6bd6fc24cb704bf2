//! The owner's pause: jobs are held, and shown with who, why and until when; nothing of them is counted.

use crate::common::{SITE, Site, drop_job, notify_job, with};
use passerelle_tests::{Agent, Reply, code, resources, until};
use serde_json::{Value, json};
use std::{
    fs::Permissions,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(60);

/// Runs a command of the agent that must succeed; what it printed as JSON.
fn command(agent: &Agent, arguments: &[&str]) -> Value {
    let output = agent.output(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {output:?}"))
}

/// Waits until the hub shows a resource as wanted; the view of it.
async fn shown(site: &Site, resource: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until(what, SOON, async || {
        let resources = site.hub.api.get(&format!("/v1/sites/{SITE}/resources")).await;
        let items = resources.body["items"].as_array()?.clone();
        items.into_iter().find(|item| item["name"] == resource && wanted(item))
    })
    .await
}

fn only_attempt_counts(job: &Value) {
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let failed: Vec<&Value> = job["attempts"]
        .as_array()
        .expect("attempts")
        .iter()
        .filter(|attempt| !attempt["code"].is_null() && attempt["code"] != "paused")
        .collect();
    assert!(failed.is_empty(), "{job:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_the_jobs_shows_who_and_why_survives_a_restart_and_ends_at_resume() {
    let mut site = Site::start().await;
    let said = command(
        &site.agent,
        &["pause", "compta", "--until", "2h", "--reason", "stock-taking", "--by", "anna"],
    );
    assert_eq!(said["paused"]["by"], "anna", "{said:#}");
    let view = shown(&site, "compta", "the pause at the hub", |item| !item["paused"].is_null()).await;
    let paused = &view["paused"];
    assert_eq!((&paused["reason"], &paused["by"]), (&json!("stock-taking"), &json!("anna")), "{view:#}");
    assert_eq!(paused["until"], said["paused"]["until"], "{view:#}");
    shown(&site, "orders-app", "the other resource", |item| item["paused"].is_null()).await;

    // Held, of one attempt only; the other resource goes on.
    let held = site.hub.api.submit(&with(drop_job("held.csv", "x"), json!({"max_attempts": 1}))).await;
    site.hub.api.succeed(&notify_job("orders/1")).await;
    let job = site.hub.api.job(&held).await;
    assert_eq!((&job["state"], &job["attempts"]), (&json!("queued"), &json!([])), "{job:#}");

    let status = site.agent.output(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(
        text.contains("resource compta is paused until") && text.contains("by anna: stock-taking"),
        "{text}"
    );

    site.agent.restart().await;
    shown(&site, "compta", "the pause after the restart", |item| item["paused"]["by"] == "anna").await;
    site.hub.api.succeed(&notify_job("orders/2")).await;
    assert_eq!(site.hub.api.job(&held).await["state"], "queued");
    assert!(!site.files.path().join("held.csv").exists());

    let resumed = command(&site.agent, &["resume", "compta"]);
    assert_eq!((&resumed["paused"], &resumed["was"]["by"]), (&Value::Null, &json!("anna")), "{resumed:#}");
    only_attempt_counts(&site.hub.api.end_of(&held, SOON).await);
    shown(&site, "compta", "the end of the pause", |item| item["paused"].is_null()).await;
    assert_eq!(command(&site.agent, &["resume", "compta"])["was"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_ends_by_itself_at_its_time() {
    let site = Site::start().await;
    command(&site.agent, &["pause", "compta", "--until", "3s"]);
    shown(&site, "compta", "the pause at the hub", |item| !item["paused"].is_null()).await;
    let job = site.hub.api.submit(&drop_job("later.csv", "x")).await;
    assert_eq!(site.hub.api.job(&job).await["state"], "queued");
    only_attempt_counts(&site.hub.api.end_of(&job, SOON).await);
    let view = shown(&site, "compta", "the end of the pause", |item| item["paused"].is_null()).await;
    assert!(view.get("pauses").is_none(), "{view:#}");
    assert_eq!(site.agent.status().await["pauses"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_finishes_and_what_waits_is_held() {
    let mut site = Site::prepared(|_, before| {
        let reply = Reply::status(200);
        if before == 0 { reply.held() } else { reply }
    })
    .await;
    let one = resources::application_with("orders-app", &site.app.url, "limits = { rate_per_minute = 1 }");
    site.agent.resource("orders-app", &one);
    site.agent.start().await;
    let running = site.hub.api.submit(&with(notify_job("orders/1"), json!({"max_attempts": 1}))).await;
    site.app.received(1).await;
    let waiting = site.hub.api.submit(&with(notify_job("orders/2"), json!({"max_attempts": 1}))).await;

    command(&site.agent, &["pause", "orders-app", "--reason", "migration"]);
    shown(&site, "orders-app", "the pause at the hub", |item| {
        item["paused"]["until"].is_null() && !item["paused"].is_null()
    })
    .await;
    site.app.release();
    assert_eq!(site.hub.api.end_of(&running, SOON).await["state"], "succeeded");
    assert_eq!(site.app.requests().len(), 1);

    site.agent.resource("orders-app", &resources::application("orders-app", &site.app.url));
    site.agent.counted(r#"passerelle_agent_config_reloads_total{result="applied"}"#, 1.0).await;
    command(&site.agent, &["resume", "orders-app"]);
    only_attempt_counts(&site.hub.api.end_of(&waiting, SOON).await);
    assert_eq!(site.app.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_of_a_held_job_passes_all_the_same() {
    let site = Site::start().await;
    command(&site.agent, &["pause", "compta"]);
    shown(&site, "compta", "the pause at the hub", |item| !item["paused"].is_null()).await;
    let job = site.hub.api.submit(&with(drop_job("late.csv", "x"), json!({"deadline_s": 1}))).await;
    let job = site.hub.api.end_of(&job, SOON).await;
    assert_eq!((&job["state"], code(&job)), (&json!("expired"), "deadline"), "{job:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_can_be_said_without_a_running_agent_and_only_of_what_there_is() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    site.agent.write();
    let said = command(&site.agent, &["pause", "compta", "--reason", "not yet"]);
    assert!(said["paused"].get("until").is_none(), "{said:#}");
    site.agent.start().await;
    shown(&site, "compta", "the pause at the hub", |item| item["paused"]["reason"] == "not yet").await;
    let socket = site.agent.folder().join("state/control.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

    for (arguments, status, word) in [
        (&["pause", "payroll"][..], 1, "there are compta, orders-app"),
        (&["pause", "compta", "--until", "soon"][..], 64, "expected a time such as"),
        (&["pause", "compta", "--until", "2020-01-01T00:00:00Z"][..], 64, "has passed"),
        (&["pause", "compta", "--reason", "two\nlines"][..], 1, "one line of text"),
    ] {
        let output = site.agent.output(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        assert!(error.contains(word), "{arguments:?}: {error}");
    }
    command(&site.agent, &["resume", "compta"]);
    site.hub.api.succeed(&drop_job("now.csv", "x")).await;
}

/// Needs root, which alone can be somebody else for a moment. The agent refuses without reading: what is asked may find the
/// other end closed.
#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_refused_at_the_control_socket_even_where_it_can_be_reached() {
    const NOBODY: u32 = 65_534;
    const ASK: &str = "use IO::Socket::UNIX; $SIG{PIPE} = \"IGNORE\"; my $s = IO::Socket::UNIX->new($ARGV[0]) or die \"$!\\n\"; print $s \"$ARGV[1]\\n\"; print <$s>;";
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let site = Site::start().await;
    let state = site.agent.folder().join("state");
    let socket = state.join("control.sock");
    let ask = |command: &str| {
        let mut perl = std::process::Command::new("perl");
        perl.args(["-e", ASK]).arg(&socket).arg(command).uid(NOBODY).gid(NOBODY);
        perl.output().expect("perl")
    };
    let pause = r#"{"command":"pause","resource":"compta"}"#;
    assert!(!ask(pause).status.success(), "its rights keep others away");
    // Somebody opened all doors.
    let doors = [site.agent.folder().parent().expect("a home"), site.agent.folder(), &state];
    for (path, mode) in doors.map(|folder| (folder, 0o755)).into_iter().chain([(socket.as_path(), 0o666)]) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("rights");
    }
    for command in [pause, r#"{"command":"resume","resource":"compta"}"#, "nonsense"] {
        let answer: Value = serde_json::from_slice(&ask(command).stdout).expect("an answer");
        assert_eq!(answer, json!({"refused": "uid 65534 may not ask: run this as uid 0 or as root"}));
    }
    site.hub.api.succeed(&drop_job("now.csv", "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_agent_of_the_site_takes_the_jobs_of_a_paused_one() {
    let site = Site::start().await;
    let mut other = Agent::new(&site.hub, SITE, "paris-2");
    other.resource("compta", &resources::folder("compta", site.files.path()));
    other.start().await;
    command(&site.agent, &["pause", "compta", "--by", "anna"]);
    // The resource still takes jobs, and who has paused it is shown.
    let view =
        shown(&site, "compta", "the pause of one agent", |item| item["pauses"][0]["by"] == "anna").await;
    assert_eq!(view["paused"], Value::Null, "{view:#}");
    let agents = site.hub.api.get("/v1/agents").await.body;
    let id = |name: &str| {
        let items = agents["items"].as_array().unwrap();
        items.iter().find(|agent| agent["name"] == name).unwrap()["id"].clone()
    };
    assert_eq!(view["pauses"][0]["agent"], id("paris-1"), "{view:#}");
    for n in 0..4 {
        let job = site.hub.api.succeed(&drop_job(&format!("{n}.csv"), "x")).await;
        assert_eq!(job["attempts"][0]["agent"], id("paris-2"), "{job:#}");
    }

    // Both: now it is held, and shown with the pause that ends first.
    command(&other, &["pause", "compta", "--by", "paul", "--until", "1h"]);
    // While the second one opens its session anew, the first alone is there.
    let both = |item: &Value| item["pauses"].as_array().is_some_and(|pauses| pauses.len() == 2);
    let view = shown(&site, "compta", "the pause of both", both).await;
    assert_eq!(view["paused"]["by"], "paul", "{view:#}");
    let held = site.hub.api.submit(&drop_job("held.csv", "x")).await;
    assert_eq!(site.hub.api.job(&held).await["state"], "queued");
    command(&site.agent, &["resume", "compta"]);
    let done = site.hub.api.end_of(&held, SOON).await;
    assert_eq!(done["attempts"][0]["agent"], id("paris-1"), "{done:#}");
}
