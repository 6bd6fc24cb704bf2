//! What becomes of jobs when their agent is told to stop: handed back, finished, or cut off and said so; never lost,
//! never done behind the hub's back.

use crate::common::{SITE, drop_into, files_below};
use passerelle_tests::{Agent, App, Content, FakeHub, Hub, Proxy, Reply, Session, SshServer, resources};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// A fake hub, an application that answers the first request when released, and an agent that may tell it one thing at a
/// time.
async fn one_at_a_time(grace: &str) -> (FakeHub, App, Agent) {
    let hub = FakeHub::start().await;
    let app =
        App::with(|_, before| if before == 0 { Reply::status(200).held() } else { Reply::status(200) }).await;
    let mut agent = Agent::at(&hub.url, "paris-1");
    let settings = "limits = { max_concurrent = 1 }";
    agent.resource("orders-app", &resources::application_with("orders-app", &app.url, settings));
    agent.agent_key(&format!("shutdown_grace = \"{grace}\"")).spawn();
    (hub, app, agent)
}

fn notify(hub: &FakeHub, path: &str) -> Value {
    hub.draft("orders-app", "notify", json!({"path": path})).message()
}

fn acknowledge(report: &Value) -> Value {
    json!({"type": "report_ack", "job": report["job"], "attempt": report["attempt"]})
}

async fn accepted(session: &mut Session, offer: &Value) {
    session.send(offer).await;
    assert_eq!(session.receive(&["accept", "decline"]).await["type"], "accept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_started_is_handed_back_at_once_and_what_runs_goes_on() {
    let (mut hub, app, mut agent) = one_at_a_time("60s").await;
    let mut session = hub.welcomed().await;
    let (running, waiting) = (notify(&hub, "orders/1"), notify(&hub, "orders/2"));
    accepted(&mut session, &running).await;
    app.received(1).await;
    accepted(&mut session, &waiting).await;
    agent.process().signal(Signal::TERM);
    assert_eq!(session.receive(&["draining"]).await["grace_s"], 60);
    let back = session.receive(&["report"]).await;
    assert_eq!((&back["job"], &back["attempt"]), (&waiting["job"], &json!(1)));
    let outcome = &back["outcome"];
    assert_eq!(
        (&outcome["verdict"], &outcome["effect"], &outcome["code"]),
        (&json!("retry"), &json!("not_applied"), &json!("busy")),
        "{back:#}"
    );
    assert_eq!(outcome["message"], "the agent is being stopped");
    session.send(&acknowledge(&back)).await;
    // What crossed on the wire is not taken.
    session.send(&notify(&hub, "orders/3")).await;
    let declined = session.receive(&["accept", "decline"]).await;
    assert_eq!((&declined["type"], &declined["code"]), (&json!("decline"), &json!("busy")));
    assert!(agent.process().is_running(), "it did not wait for what runs");
    app.release();
    let done = session.receive(&["report"]).await;
    assert_eq!(done["job"], running["job"]);
    assert!(done["outcome"].get("verdict").is_none(), "{done:#}");
    session.send(&acknowledge(&done)).await;
    session.closed().await;
    assert_eq!(agent.process().exit_code(SOON).await, Some(0));
    assert_eq!(app.requests().len(), 1, "what was handed back was done all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_grace_time_cuts_off_is_reported_before_the_goodbye() {
    let (mut hub, app, mut agent) = one_at_a_time("1s").await;
    let mut session = hub.welcomed().await;
    let running = notify(&hub, "orders/1");
    accepted(&mut session, &running).await;
    app.received(1).await;
    agent.process().signal(Signal::TERM);
    let cut = session.receive(&["report"]).await;
    let outcome = &cut["outcome"];
    // The application may have acted on what it was told.
    assert_eq!(
        (&outcome["verdict"], &outcome["effect"], &outcome["code"]),
        (&json!("retry"), &json!("unknown"), &json!("busy")),
        "{cut:#}"
    );
    session.send(&acknowledge(&cut)).await;
    session.closed().await;
    assert_eq!(agent.process().exit_code(SOON).await, Some(0));

    // Acknowledged, so it is not the next start's.
    agent.spawn_as_it_is();
    let session = hub.session().await;
    assert_eq!(session.hello["held"], json!([]), "{:#}", session.hello);
    assert_eq!(app.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_job_that_nobody_took_back_is_reported_at_the_next_start_and_not_repeated() {
    let (mut hub, app, mut agent) = one_at_a_time("1s").await;
    let mut session = hub.welcomed().await;
    let running = notify(&hub, "orders/1");
    accepted(&mut session, &running).await;
    app.received(1).await;
    agent.process().signal(Signal::TERM);
    let cut = session.receive(&["report"]).await;
    // The hub takes it, but its acknowledgement never comes.
    assert_eq!(agent.process().exit_code(SOON).await, Some(0));
    agent.process().logged("not acknowledged", SOON).await;
    agent.spawn_as_it_is();
    let mut session = hub.session().await;
    assert_eq!(session.hello["held"][0]["state"], "finished", "{:#}", session.hello);
    session.welcome().await;
    let again = session.receive(&["report"]).await;
    assert_eq!(again, cut, "the outcome changed");
    session.send(&acknowledge(&again)).await;
    // It does nothing more until it is offered as another attempt.
    let mut next = hub.draft("orders-app", "notify", json!({"path": "orders/2"}));
    next.attempt = 2;
    accepted(&mut session, &next.message()).await;
    assert_eq!(session.receive(&["report"]).await["job"], next.message()["job"]);
    let told: Vec<String> = app.requests().iter().map(|request| request.uri.clone()).collect();
    assert_eq!(told, ["/orders/1", "/orders/2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_cut_off_by_the_grace_time_waits_and_arrives_once_after_the_restart() {
    let (hub, ssh) = (Hub::start().await, SshServer::start());
    let slow = Proxy::start(ssh.port()).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    ssh.serve_through(&agent, "sftp", slow.port());
    agent.agent_key("shutdown_grace = \"1s\"").start().await;
    let source = tempfile::tempdir().unwrap();
    let content = Content::write(source.path(), 8_000_000);
    let blob = hub.api.upload(&content).await;
    slow.slow(Some(500_000));
    let id = hub.api.submit(&drop_into("sftp", "a.bin", json!({"blob": blob["id"]}))).await;
    let moving = |j: &Value| j["state"] == "running" && j["progress"]["bytes_done"].as_u64() > Some(0);
    hub.api.job_where(&id, "moves bytes", Duration::from_secs(60), moving).await;
    agent.process().signal(Signal::TERM);
    assert_eq!(agent.process().exit_code(SOON).await, Some(0));
    let waiting = hub.api.job(&id).await;
    // Queued once the wait before the next attempt is over.
    assert!(waiting["state"] == "waiting" || waiting["state"] == "queued", "{waiting:#}");
    assert_eq!(waiting["attempts"].as_array().unwrap().len(), 1, "{waiting:#}");
    assert_eq!(waiting["attempts"][0]["effect"], "not_applied", "{waiting:#}");
    slow.slow(None);
    agent.start().await;
    let done = hub.api.end_of(&id, Duration::from_secs(60)).await;
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(Content::of_file(&ssh.root().join("a.bin")).sha256, content.sha256);
    passerelle_tests::until("the cut off attempt's part to go", Duration::from_secs(60), async || {
        (files_below(ssh.root()) == ["a.bin"]).then_some(())
    })
    .await;
}
