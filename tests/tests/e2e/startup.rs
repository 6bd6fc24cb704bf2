//! Bad input at the start: each has a message that says what to do, and its documented exit code.

use crate::common::{SITE, Site, drop_job};
use passerelle_tests::{Agent, Hub, Nginx, SmallDisk, is_root, resources, shifted_clock};
use serde_json::Value;
use std::{fs, process::Output, time::Duration};

const CONFIGURATION: i32 = 64;
const REFUSED: i32 = 69;
const SOON: Duration = Duration::from_secs(30);

/// What a program said, on either stream.
fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Starts an agent that must end by itself, and gives what it said.
async fn ends_with(agent: &mut Agent, code: i32) -> String {
    let process = agent.process();
    let ended = process.exit_code(SOON).await;
    let log = process.log();
    assert_eq!(ended, Some(code), "{log}");
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn all_mistakes_of_a_configuration_are_told_at_once_with_their_places() {
    let mut agent = Agent::at("http://127.0.0.1:1", "paris-1");
    agent.file(
        "agent.toml",
        "[hub]\nurl = \"http://hub.example.com\"\nenrolment_token = \"literal-secret-4711\"\n\
         [agent]\nname = 7\nmax_jobs = \"many\"\ncolour = \"blue\"\nshutdown_grace = \"soon\"\n",
    );
    agent.file(
        "resources.d/a.toml",
        "[resources.compta]\nconnector = \"file\"\nurl = \"file:///tmp\"\nusrname = \"x\"\n\
         [[resources.compta.allow]]\noperations = [\"drop\"]\n",
    );
    agent.file("resources.d/b.toml", "[resources.compta]\nconnector = \"file\"\nurl = \"file:///tmp\"\n");
    agent.file("resources.d/c.toml", "[resources.other]\nconnector = \"carrier-pigeon\"\n");
    agent.spawn_as_it_is();
    let log = ends_with(&mut agent, CONFIGURATION).await;
    for place in [
        "agent.toml:2:",
        "hub.url",
        "agent.toml:3:",
        "enrolment_token",
        "agent.toml:5:",
        "agent.name",
        "agent.toml:6:",
        "max_jobs",
        "agent.toml:7:",
        "colour",
        "agent.toml:8:",
        "shutdown_grace",
        "a.toml:4:",
        "usrname",
        "a.toml:5:",
        "paths",
        "b.toml:1:",
        "compta",
        "c.toml:1:",
        "carrier-pigeon",
    ] {
        assert!(log.contains(place), "{place} is not among the findings:\n{log}");
    }
    assert!(!log.contains("4711"), "the secret is printed:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_unreadable_configuration_is_told() {
    let mut agent = Agent::at("http://127.0.0.1:1", "paris-1");
    agent.spawn_as_it_is();
    let log = ends_with(&mut agent, CONFIGURATION).await;
    assert!(log.contains("agent.toml"), "{log}");
    agent.file("agent.toml", "[hub\nurl = 1");
    agent.spawn_as_it_is();
    let log = ends_with(&mut agent, CONFIGURATION).await;
    assert!(log.contains("agent.toml:1:"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_cannot_be_read_is_told_with_its_place() {
    let mut site = Site::prepared(|_, _| passerelle_tests::Reply::status(200)).await;
    let auth = "auth = { kind = \"bearer\", token = { file = \"secrets/none\" } }";
    site.agent.resource("orders-app", &resources::application_with("orders-app", &site.app.url, auth));
    site.agent.spawn();
    let log = ends_with(&mut site.agent, CONFIGURATION).await;
    assert!(log.contains("secrets/none") && log.contains("orders-app"), "{log}");
    site.agent.secret("none", "");
    site.agent.spawn();
    let log = ends_with(&mut site.agent, CONFIGURATION).await;
    assert!(log.contains("empty"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_folder_that_cannot_be_written_stops_the_start_and_says_how_to_mend_it() {
    let mut site = Site::prepared(|_, _| passerelle_tests::Reply::status(200)).await;
    site.agent.file("state", "a file in the folder's place");
    site.agent.spawn();
    let log = ends_with(&mut site.agent, CONFIGURATION).await;
    assert!(log.contains("state"), "{log}");
    fs::remove_file(site.agent.folder().join("state")).unwrap();
    if is_root() {
        let disk = SmallDisk::mount("4m");
        disk.read_only(true);
        let state = format!("state_dir = \"{}\"", disk.path().join("state").display());
        site.agent.agent_key(&state).spawn();
        let log = ends_with(&mut site.agent, CONFIGURATION).await;
        assert!(log.contains(&*disk.path().to_string_lossy()), "{log}");
        assert!(log.to_lowercase().contains("read-only"), "{log}");
        site.agent.process().kill();
    } else {
        eprintln!("not root: the read-only disk is left out");
    }
    assert_eq!(site.hub.api.get("/v1/agents").await.body["items"], serde_json::json!([]), "it enrolled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_same_state_folder_is_refused() {
    let site = Site::start().await;
    let second = site.agent.output(&["run"]);
    assert_eq!(second.status.code(), Some(CONFIGURATION), "{}", said(&second));
    assert!(said(&second).contains("state"), "{}", said(&second));
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_is_not_there_is_waited_for() {
    let mut site = Site::prepared(|_, _| passerelle_tests::Reply::status(200)).await;
    site.hub.process.kill();
    site.agent.spawn();
    let address = format!("127.0.0.1:{}", site.hub.port());
    site.agent.process().logged(&address, SOON).await;
    assert_eq!(site.agent.readiness().await, Some(503));
    site.hub.restart().await;
    site.agent.ready().await;
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn something_that_is_not_a_hub_is_told_as_such() {
    let nginx = Nginx::start().await;
    let mut agent = Agent::at(nginx.url.trim_end_matches('/'), "paris-1");
    agent.spawn();
    agent.process().logged("does not answer as a Passerelle hub", SOON).await;
    assert_ne!(agent.readiness().await, Some(200));
    // An enrolled agent whose hub's address now leads elsewhere keeps its jobs and keeps trying.
    let mut site = Site::start().await;
    site.agent.kill();
    site.agent.through(nginx.url.trim_end_matches('/')).spawn();
    site.agent.process().logged("does not answer as a Passerelle hub", SOON).await;
    assert!(site.agent.process().is_running());
    let url = site.hub.url.clone();
    site.agent.through(&url).restart().await;
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_told_with_the_difference() {
    let mut site = Site::start().await;
    site.agent.kill();
    site.agent.shift_clock("+15m");
    // What the hub still believes to be connected would be offered the job.
    site.hub.api.agents_online(SITE, 0).await;
    let id = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    site.agent.spawn();
    let line = site.agent.process().logged("clock", SOON).await;
    let told = line
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .any(|n: u64| (890..=910).contains(&n) || n == 15 || n == 14);
    assert!(told, "the difference of 900 s is not told: {line}");
    assert_eq!(site.agent.readiness().await, Some(503));
    assert_eq!(site.hub.api.job(&id).await["state"], "queued");
    assert!(site.agent.process().is_running(), "a wrong clock may be put right: the agent goes on trying");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_wait_while_the_clock_is_too_far_behind_for_what_is_signed() {
    let mut site = Site::start().await;
    site.agent.kill();
    let clock = tempfile::NamedTempFile::new().unwrap();
    fs::write(clock.path(), "-90").unwrap();
    // Unlike a fixed difference, one that is read from a file can be put right while the agent runs.
    for (name, value) in shifted_clock("").into_iter().filter(|(name, _)| name != "FAKETIME") {
        site.agent.env(name, value);
    }
    site.agent.env("FAKETIME_TIMESTAMP_FILE", clock.path()).env("FAKETIME_NO_CACHE", "1");
    site.hub.api.agents_online(SITE, 0).await;
    let id = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    site.agent.spawn();
    // The hub still believes its token. What it signs now is of the future, for longer than is tolerated.
    let line = site.agent.process().logged("Declined an offer", SOON).await;
    assert!(line.contains("s behind the hub's; set it right (NTP)"), "{line}");
    assert_eq!(site.agent.readiness().await, Some(503));
    let status = site.agent.status().await;
    assert_eq!(status["connection"]["state"], "connected");
    assert!(status["clock"].as_str().unwrap().contains("s behind the hub's"), "{status}");
    // No fault of the job's, which goes on waiting: not one of the few times that it may be refused so.
    site.agent.counted("passerelle_agent_offers_declined_total{code=\"busy\"}", 2.0).await;
    assert_eq!(site.hub.api.job(&id).await["state"], "queued");
    fs::write(clock.path(), "+0").unwrap();
    site.hub.api.reach(&id, &["succeeded"]).await;
    site.agent.ready().await;
    assert_eq!(site.agent.status().await["clock"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_says_what_is_wrong_with_its_own_start() {
    let hub = Hub::start().await;
    let program = passerelle_tests::binary("passerelle-hub");
    let serve = |arguments: &[&str]| {
        passerelle_tests::run(std::process::Command::new(&program).arg("serve").args(arguments))
    };
    let data = hub.data().to_string_lossy().into_owned();
    let free = format!("127.0.0.1:{}", passerelle_tests::free_port());
    let second = serve(&["--data", &data, "--listen", &free]);
    assert!(!second.status.success() && said(&second).contains(&data), "{}", said(&second));
    let fresh = tempfile::tempdir().unwrap();
    let fresh = fresh.path().to_string_lossy().into_owned();
    let taken = serve(&["--data", &fresh, "--listen", &format!("127.0.0.1:{}", hub.port())]);
    assert!(!taken.status.success() && said(&taken).contains(&hub.port().to_string()), "{}", said(&taken));
    let open = serve(&["--data", &fresh, "--listen", "0.0.0.0:1"]);
    assert!(!open.status.success() && said(&open).contains("--behind-proxy"), "{}", said(&open));
    let file = tempfile::NamedTempFile::new().unwrap();
    let in_place = serve(&["--data", &file.path().to_string_lossy(), "--listen", &free]);
    assert!(!in_place.status.success() && said(&in_place).contains("data"), "{}", said(&in_place));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_for_good_exits_69_once_and_then_waits_unready() {
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.secret("enrolment-token", "wrong");
    agent.spawn();
    let log = ends_with(&mut agent, REFUSED).await;
    assert!(log.contains("token"), "{log}");
    // Restarted by its supervisor it does not hammer the hub: it waits, unready, and says why.
    agent.spawn();
    passerelle_tests::until("the waiting agent's port", SOON, async || agent.readiness().await).await;
    assert_eq!(agent.readiness().await, Some(503));
    assert!(agent.process().is_running());
}
