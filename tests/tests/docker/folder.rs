//! One mapped folder is all that an agent needs.

use passerelle_tests::{
    PATIENCE,
    docker::{
        ACCOUNT, AGENT, CLIENT, Container, Folder, HARDENED, HubContainer, Volume, docker, docker_output,
        give, said,
    },
};
use serde_json::{Value, json};
use std::fs;

const SITE: &str = "paris";
const HEALTH: [&str; 2] = ["/usr/bin/passerelle-agent", "health"];

/// A resource: the folder that is mapped to /srv/exports.
const EXPORTS: &str = "\n[resources.compta]\nconnector = \"file\"\nurl = \"file:///srv/exports\"\n\
    [[resources.compta.allow]]\noperations = [\"drop\", \"stat\"]\npaths = [\"**\"]\n";

async fn drop_file(hub: &HubContainer, path: &str) -> Value {
    let job = json!({"site": SITE, "resource": "compta", "operation": "drop", "params": {"path": path},
        "payload": {"text": format!("content of {path}")}});
    let done = hub.api.run(&job).await;
    assert_eq!(done["state"], "succeeded", "{done}");
    done
}

async fn only_agent(hub: &HubContainer) -> String {
    let agents = hub.agents().await;
    assert_eq!(agents.len(), 1, "{agents:?}");
    agents[0]["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_toml_and_a_token_are_enough_and_the_folder_outlives_the_container() {
    let hub = HubContainer::plain().await;
    let (folder, exports) = (Folder::new(), Folder::new());
    let text = format!(
        "[hub]\nurl = \"http://127.0.0.1:8080\"\nenrolment_token = {{ file = \"secrets/enrolment-token\" }}\n{EXPORTS}"
    );
    folder.file("agent.toml", text).file("secrets/enrolment-token", hub.token(SITE));
    assert_eq!(folder.names(), ["agent.toml", "secrets/", "secrets/enrolment-token"]);
    let network = format!("container:{}", hub.container.name());
    let (config, mapped) = (folder.at("/config"), exports.at("/srv/exports"));
    let run = || {
        Container::run(
            "agent",
            &["--restart=always", "--network", &network, "-v", &config, "-v", &mapped, AGENT],
        )
    };
    let agent = run();
    // By the image's own check, as `docker ps` shows it.
    agent.healthy(PATIENCE).await;
    let id = only_agent(&hub).await;
    drop_file(&hub, "2026/10/one.csv").await;
    agent.remove();
    fs::remove_file(folder.path().join("secrets/enrolment-token")).unwrap();
    let agent = run();
    agent.answers(&HEALTH, PATIENCE).await;
    assert_eq!(only_agent(&hub).await, id, "another agent after the container was replaced");
    drop_file(&hub, "2026/10/two.csv").await;
    let two = fs::read_to_string(exports.path().join("2026/10/two.csv")).unwrap();
    assert_eq!(two, "content of 2026/10/two.csv");
    let state = fs::metadata(folder.path().join("state")).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((state.uid(), state.mode() & 0o777), (ACCOUNT, 0o700));
    // The client's image talks to the same hub.
    let url = format!("http://127.0.0.1:{}", hub.url.rsplit(':').next().unwrap());
    let listed = docker(&[
        "run",
        "--rm",
        "--network",
        "host",
        CLIENT,
        "agents",
        "--url",
        &url,
        "--api-key",
        hub.api.key(),
        "--json",
    ]);
    assert!(listed.contains(&id), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_folder_does_with_a_state_volume_of_its_own() {
    let hub = HubContainer::start().await;
    let (folder, exports) = (hub.folder(SITE, "paris-1", "state_dir = \"/state\"\n"), Folder::new());
    folder.file("resources.d/compta.toml", EXPORTS);
    let state = Volume::new();
    let (config, at, mapped) = (folder.at("/config:ro"), state.at("/state"), exports.at("/srv/exports"));
    let run = || {
        let mut arguments = vec!["--network", hub.network.name(), "-v", &config, "-v", &at, "-v", &mapped];
        arguments.extend(HARDENED);
        arguments.push(AGENT);
        Container::run("agent", &arguments)
    };
    let before = folder.names();
    let agent = run();
    agent.answers(&HEALTH, PATIENCE).await;
    let id = only_agent(&hub).await;
    drop_file(&hub, "one.csv").await;
    agent.remove();
    let agent = run();
    agent.answers(&HEALTH, PATIENCE).await;
    assert_eq!(only_agent(&hub).await, id);
    drop_file(&hub, "two.csv").await;
    assert_eq!(folder.names(), before, "the agent wrote into the read-only folder");
    assert_eq!(agent.stop(40), 0, "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_below_the_read_only_folder_does_too() {
    let hub = HubContainer::start().await;
    let folder = hub.folder(SITE, "paris-1", "");
    // The engine mounts on what is there; it makes nothing in a read-only folder.
    fs::create_dir(folder.path().join("state")).unwrap();
    give(folder.path(), ACCOUNT);
    let volume = Folder::new();
    let (config, at) = (folder.at("/config:ro"), volume.at("/config/state"));
    let arguments = ["--network", hub.network.name(), "-v", &config, "-v", &at, AGENT];
    let agent = Container::run("agent", &arguments);
    agent.answers(&HEALTH, PATIENCE).await;
    assert!(volume.names().contains(&"identity.json".to_owned()), "{:?}", volume.names());
    assert_eq!(fs::read_dir(folder.path().join("state")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_account_will_do() {
    const OTHER: u32 = 4242;
    let hub = HubContainer::start().await;
    let folder = hub.folder(SITE, "paris-1", "");
    give(folder.path(), OTHER);
    let (config, account) = (folder.at("/config"), format!("{OTHER}:{OTHER}"));
    let mut arguments = vec!["--user", &account, "--network", hub.network.name(), "-v", &config];
    arguments.extend(HARDENED);
    arguments.push(AGENT);
    let agent = Container::run("agent", &arguments);
    agent.answers(&HEALTH, PATIENCE).await;
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(folder.path().join("state/identity.json")).unwrap().uid(), OTHER);
}

#[tokio::test(flavor = "multi_thread")]
async fn init_writes_a_folder_and_check_looks_at_every_link() {
    let hub = HubContainer::start().await;
    let folder = Folder::new();
    let config = folder.at("/config");
    let wrote = docker(&[
        "run",
        "--rm",
        "-v",
        &config,
        AGENT,
        "init",
        "--hub",
        "https://hub:8443",
        "--name",
        "lyon-1",
    ]);
    assert!(wrote.contains("agent.toml") && wrote.contains("next:"), "{wrote}");
    let names = folder.names();
    for name in ["agent.toml", "resources.d/files.toml.example", "secrets/README.md"] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
    let text = fs::read_to_string(folder.path().join("agent.toml")).unwrap();
    assert!(
        text.contains("url = \"https://hub:8443/\"") || text.contains("url = \"https://hub:8443\""),
        "{text}"
    );
    let again = docker_output(&["run", "--rm", "-v", &config, AGENT, "init"]);
    assert_eq!(again.status.code(), Some(64), "{}", said(&again));

    let check = |more: &[&str]| {
        let arguments = ["run", "--rm", "--network", hub.network.name(), "-v", &config, AGENT, "check"];
        docker_output(&[&arguments[..], more].concat())
    };
    let without_ca = check(&[]);
    assert_eq!(without_ca.status.code(), Some(1), "{}", said(&without_ca));
    assert!(said(&without_ca).contains("ca_file"), "{}", said(&without_ca));
    folder.file("ca.pem", hub.ca()).file("secrets/enrolment-token", hub.token(SITE));
    let text = text.replacen("#ca_file = \"corporate-ca.pem\"", "ca_file = \"ca.pem\"", 1);
    folder.file("agent.toml", text);
    let output = check(&["--json"]);
    let found: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&output)));
    assert_eq!((output.status.code(), &found["ok"]), (Some(0), &json!(true)), "{found:#}");
    let links: Vec<&str> =
        found["items"].as_array().unwrap().iter().filter_map(|one| one["link"].as_str()).collect();
    for link in ["state folder", "hub DNS", "hub TLS", "clock"] {
        assert!(links.contains(&link), "{links:?}");
    }
    // Inside the container that runs, the same command looks without disturbing.
    let arguments = ["--network", hub.network.name(), "-v", &config, AGENT];
    let agent = Container::run("agent", &arguments);
    agent.answers(&HEALTH, PATIENCE).await;
    let inside = agent.exec(&["/usr/bin/passerelle-agent", "check"]);
    assert!(inside.status.success(), "{}", said(&inside));
    assert!(said(&inside).contains("in use by the running agent"), "{}", said(&inside));
}
