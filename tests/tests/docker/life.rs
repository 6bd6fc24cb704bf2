//! How an agent's container ends, and what the engine's restarts make of it.

use passerelle_tests::{
    App, PATIENCE, Reply,
    docker::{AGENT, Container, Folder, HubContainer},
    free_port, resources, until,
};
use serde_json::json;
use std::{fs, time::Duration};

const SITE: &str = "paris";
const HEALTH: [&str; 2] = ["/usr/bin/passerelle-agent", "health"];
const LIVE: [&str; 3] = ["/usr/bin/passerelle-agent", "health", "--live"];

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_ends_with_64_again_and_again_until_it_is_mended() {
    let hub = HubContainer::start().await;
    let folder = hub.folder(SITE, "paris-1", "");
    let good = fs::read_to_string(folder.path().join("agent.toml")).unwrap();
    folder.file("agent.toml", good.replace("name =", "nam ="));
    let config = folder.at("/config");
    let agent =
        Container::run("agent", &["--restart=always", "--network", hub.network.name(), "-v", &config, AGENT]);
    until("two restarts", PATIENCE, async || (agent.restarts() >= 2).then_some(())).await;
    let log = agent.log();
    assert!(log.contains("/config/agent.toml:7:1: agent.nam: unknown key; did you mean \"name\"?"), "{log}");
    folder.file("agent.toml", good);
    // The engine waits longer from one restart to the next.
    agent.running_answers(&HEALTH, PATIENCE).await;

    let once = Container::run("once", &["-v", &config, AGENT, "run", "--no-such-option"]);
    until("its end", PATIENCE, async || (!once.is_running()).then_some(())).await;
    assert_eq!(once.exit_code(), 64, "{}", once.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_for_good_is_not_repeated_by_every_restart() {
    let hub = HubContainer::start().await;
    let folder = hub.folder(SITE, "paris-1", "");
    let config = folder.at("/config");
    let agent =
        Container::run("agent", &["--restart=always", "--network", hub.network.name(), "-v", &config, AGENT]);
    agent.answers(&HEALTH, PATIENCE).await;
    let id = hub.agents().await[0]["id"].as_str().unwrap().to_owned();
    hub.admin(&["agent", "revoke", &id]);
    agent.logged("asking again in", PATIENCE).await;
    let log = agent.log();
    assert!(log.contains("the hub refused this agent"), "{log}");
    assert_eq!(agent.restarts(), 1, "{log}");
    // It lives, so the engine lets it wait; and it is not ready, and says why.
    assert!(agent.exec(&LIVE).status.success());
    let health = agent.exec(&HEALTH);
    let said = String::from_utf8_lossy(&health.stderr).into_owned();
    assert!(!health.status.success() && said.contains("asking again in"), "{said}");

    let other = hub.folder(SITE, "paris-2", "");
    other.file("secrets/enrolment-token", "pst_no_such_token");
    let config = other.at("/config");
    let once = Container::run("once", &["--network", hub.network.name(), "-v", &config, AGENT]);
    until("its end", PATIENCE, async || (!once.is_running()).then_some(())).await;
    assert_eq!(once.exit_code(), 69, "{}", once.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_the_running_job_finish_and_reports_it() {
    let app = App::with(|_, _| Reply::status(204).after(Duration::from_secs(4))).await;
    let hub = HubContainer::plain().await;
    let (folder, port) = (Folder::new(), free_port());
    let mut text = format!(
        "[hub]\nurl = \"http://127.0.0.1:{}\"\nenrolment_token = {{ file = \"secrets/enrolment-token\" }}\n",
        hub.url.rsplit(':').next().unwrap()
    );
    text.push_str(&resources::application("orders-app", &app.url));
    folder.file("agent.toml", text).file("secrets/enrolment-token", hub.token(SITE));
    let (config, listen) = (folder.at("/config"), format!("PASSERELLE_LISTEN=127.0.0.1:{port}"));
    // The application is on this host's loopback address.
    let arguments = ["--restart=always", "--network", "host", "-e", &listen, "-v", &config, AGENT];
    let agent = Container::run("agent", &arguments);
    agent.answers(&HEALTH, PATIENCE).await;
    let job = json!({"site": SITE, "resource": "orders-app", "operation": "notify",
        "params": {"path": "orders/1/validated"}, "payload": {"text": "{}"}});
    let job = hub.api.submit(&job).await;
    app.received(1).await;
    assert_eq!(agent.stop(40), 0, "{}", agent.log());
    let done = hub.api.end_of(&job, PATIENCE).await;
    assert_eq!((done["state"].as_str(), app.requests().len()), (Some("succeeded"), 1), "{done}");
    assert_eq!(done["attempts"].as_array().unwrap().len(), 1, "{done}");
    // Stopped by its operator, it stays so.
    assert_eq!((agent.restarts(), agent.is_running()), (0, false));
    agent.start();
    agent.answers(&HEALTH, PATIENCE).await;
    // Without a job it ends at once, well within the ten seconds that the engine gives by itself.
    assert_eq!(agent.stop(10), 0, "{}", agent.log());
}
