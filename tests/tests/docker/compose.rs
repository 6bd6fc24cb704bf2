//! The Compose files, with docker-compose 1.29, which reads what Compose v2 reads too.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::places::{EDGE, build, root};
use passerelle_tests::{
    Api, PATIENCE,
    docker::{
        ACCOUNT, AGENT, Bridge, CLIENT, Container, Folder, HUB, docker, docker_output, give, said, unique,
    },
    free_port, http_client, http_client_trusting, until,
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

/// From nothing to healthy; where the images have to be built, they come out of the layers that `tests/docker` has made.
const UP: Duration = Duration::from_secs(300);
const SITE: &str = "paris";

/// A project of its own. It goes with its volumes when this value goes.
struct Project {
    name: String,
    files: Vec<&'static str>,
    environment: Vec<(String, String)>,
}

impl Project {
    fn new(files: &[&'static str], environment: &[(&'static str, String)]) -> Self {
        let images = [("HUB", HUB), ("AGENT", AGENT), ("CLIENT", CLIENT)];
        let variable = |(name, image): (&str, &str)| (format!("PASSERELLE_{name}_IMAGE"), image.to_owned());
        let mut all: Vec<(String, String)> = images.into_iter().map(variable).collect();
        all.extend(environment.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        Self { name: unique("compose"), files: files.to_vec(), environment: all }
    }

    fn output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("docker-compose");
        command.current_dir(root()).args(["--no-ansi", "-p", &self.name]);
        self.files.iter().for_each(|file| {
            command.args(["-f", file]);
        });
        command.args(arguments);
        // Built by the client and the builder of `tests/docker`, whose layers no other one finds again.
        let client = passerelle_tests::docker::command();
        let folder = Path::new(client.get_program()).parent().unwrap_or(Path::new(""));
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
        command.env("PATH", path).env("COMPOSE_DOCKER_CLI_BUILD", "1").env("DOCKER_BUILDKIT", "0");
        command.env_remove("COMPOSE_FILE");
        passerelle_tests::run(command.envs(self.environment.iter().map(|(key, value)| (key, value))))
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "docker-compose {arguments:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The container of a service.
    fn container(&self, service: &str) -> String {
        self.run(&["ps", "-q", service]).trim().to_owned()
    }

    fn inspect(&self, service: &str) -> Value {
        let text = docker(&["inspect", &self.container(service)]);
        let mut all: Vec<Value> = serde_json::from_str(&text).unwrap();
        all.pop().unwrap()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("──── logs of {}\n{}", self.name, said(&self.output(&["logs", "--tail", "40"])));
        }
        let _ended = self.output(&["down", "--volumes", "--remove-orphans", "--timeout", "5"]);
    }
}

/// The files of a container's folder.
fn copied(container: &str, path: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    docker(&["cp", &format!("{container}:{path}/."), folder.path().to_str().unwrap()]);
    folder
}

/// Whether `tests/docker` has built the images, so that their layers are there.
fn built() -> bool {
    docker_output(&["image", "inspect", "passerelle/build:dev"]).status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn up_with_no_edit_delivers_the_samples_and_a_hub_whose_api_answers() {
    let (hub, agent) = (free_port(), free_port());
    // Under names of their own: other tests look at what is in the images at the same time.
    let image = |name: &str| if built() { name.replace(":dev", ":compose-test") } else { name.to_owned() };
    let project = Project::new(
        &[],
        &[
            ("PASSERELLE_HUB_PORT", hub.to_string()),
            ("PASSERELLE_AGENT_PORT", agent.to_string()),
            ("PASSERELLE_HUB_IMAGE", image(HUB)),
            ("PASSERELLE_AGENT_IMAGE", image(AGENT)),
            ("PASSERELLE_CLIENT_IMAGE", image(CLIENT)),
        ],
    );
    let up: &[&str] = if built() { &["up", "--build", "-d"] } else { &["up", "-d"] };
    project.run(up);

    let submitted = || {
        let samples = project.container("samples");
        assert_eq!(docker(&["wait", &samples]), "0", "{}", said(&project.output(&["logs", "samples"])));
        let text = project.run(&["logs", "--no-color", "samples"]);
        for delivered in ["Accounting export: succeeded", "Order-validated notification: succeeded"] {
            assert!(text.contains(delivered), "{text}");
        }
    };
    submitted();
    // The file server has it as it was sent.
    let sent = fs::read(root().join("cli/samples/123456789FEC20261031.txt")).unwrap();
    let got = copied(&project.container("sftp"), "/srv/exports");
    assert_eq!(fs::read(got.path().join("2026/10/123456789FEC20261031.txt")).unwrap(), sent);
    assert_eq!(fs::read_dir(copied(&project.container("app"), "/data").path()).unwrap().count(), 1);

    // The hub's API is reached with what its bootstrap wrote, and lists both jobs; so does the client.
    let bootstrap = copied(&project.container("hub"), "/bootstrap");
    let read = |name: &str| fs::read_to_string(bootstrap.path().join(name)).unwrap();
    let client = http_client_trusting(Some(&read("ca.pem")));
    let api = Api::new(&format!("https://localhost:{hub}"), read("api-key").trim(), client);
    let jobs = api.get("/v1/jobs").await.body;
    assert_eq!(jobs["items"].as_array().unwrap().len(), 2, "{jobs}");
    let listed = project.run(&["run", "--rm", "client", "jobs", "list"]);
    assert_eq!(listed.matches("succeeded").count(), 2, "{listed}");
    let status = http_client().get(format!("http://127.0.0.1:{agent}/readyz")).send().await.unwrap();
    assert_eq!(status.status(), 200);

    // Stopped and started again: drained, the same agent, and the samples arrive once more.
    project.run(&["stop"]);
    assert_eq!(project.inspect("agent")["State"]["ExitCode"], 0);
    project.run(&["up", "-d"]);
    submitted();
    until("the agent to be back", PATIENCE, async || {
        let agents = api.get("/v1/agents").await.body;
        let agents = agents["items"].as_array().unwrap().clone();
        assert_eq!(agents.len(), 1, "{agents:?}");
        (agents[0]["online"] == true).then_some(())
    })
    .await;
    assert_eq!(api.get("/v1/jobs").await.body["items"].as_array().unwrap().len(), 4);
}

#[test]
fn without_the_override_nothing_is_published_and_the_agent_connects() {
    let project = Project::new(&["compose.yaml"], &[]);
    project.run(&["up", "-d", "--no-build"]);
    for service in ["hub", "agent"] {
        let told = project.inspect(service);
        assert!(
            told["HostConfig"]["PortBindings"].as_object().is_none_or(serde_json::Map::is_empty),
            "{told}"
        );
        assert_eq!(told["HostConfig"]["ReadonlyRootfs"], true);
        assert_eq!(told["HostConfig"]["CapDrop"][0], "ALL");
    }
    let connected = project.container("agent");
    let health = ["exec", &connected, "/usr/bin/passerelle-agent", "health"];
    let begin = std::time::Instant::now();
    while !docker_output(&health).status.success() {
        assert!(begin.elapsed() < PATIENCE, "{}", said(&docker_output(&health)));
    }
}

/// What stands before the hub in production, here without certificates of a public authority.
const NGINX: &str = "
user root;
events {}
http {
  resolver 127.0.0.11 valid=1s;
  client_max_body_size 0;
  map $http_upgrade $connection_upgrade { default upgrade; '' close; }
  server {
    listen 443 ssl;
    ssl_certificate /etc/edge/cert.pem;
    ssl_certificate_key /etc/edge/key.pem;
    location / {
      set $hub http://hub:8080;
      proxy_pass $hub;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_read_timeout 1h;
    }
  }
}
";

/// The folder of the production files: the example, as an operator edits it for this place.
fn production(ca: &str, token: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("passerelle-prod-").tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let example = |name: &str| fs::read_to_string(root().join("deploy/compose/prod").join(name)).unwrap();
    let agent = example("agent.toml").replace("#ca_file = \"corporate-ca.pem\"", "ca_file = \"ca.pem\"");
    assert!(agent.contains("\nca_file"), "{agent}");
    write("config/agent.toml", &agent);
    write("config/ca.pem", ca);
    // In the place of the example's file server.
    write(
        "config/resources.d/accounting.toml",
        "[resources.accounting]\nconnector = \"file\"\nurl = \"file:///logs/exports\"\n\
         [[resources.accounting.allow]]\noperations = [\"drop\"]\npaths = [\"**/*.txt\"]\n",
    );
    write("secrets/enrolment-token", token);
    write("secrets/sftp-key", "none is needed here");
    fs::create_dir_all(folder.path().join("logs/exports")).unwrap();
    give(folder.path(), ACCOUNT);
    folder
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn production_is_bounded_keeps_classic_logs_and_works_through_a_reverse_proxy() {
    build(EDGE, "tests/docker.d/edge");
    let proxy = Bridge::new(&[]);
    let pair = rcgen::generate_simple_self_signed(vec!["hub.example.com".to_owned()]).unwrap();
    let edge = Folder::of_root();
    edge.file("cert.pem", pair.cert.pem()).file("key.pem", pair.signing_key.serialize_pem());
    edge.file("nginx.conf", NGINX);
    let mapped = edge.at("/etc/edge:ro");
    let _nginx = Container::run(
        "nginx",
        &[
            "--network",
            proxy.name(),
            "--network-alias",
            "hub.example.com",
            "-v",
            &mapped,
            EDGE,
            "nginx",
            "-c",
            "/etc/edge/nginx.conf",
            "-g",
            "daemon off;",
        ],
    );
    // What the agent lacks yet is made with the hub's own commands.
    let empty = production(&pair.cert.pem(), "");
    let mut project = Project::new(
        &["compose.yaml", "compose.prod.yaml"],
        &[
            ("PASSERELLE_PROXY_NETWORK", proxy.name().to_owned()),
            ("PASSERELLE_DIR", empty.path().display().to_string()),
        ],
    );
    project.run(&["up", "-d", "--no-build", "--no-deps", "hub"]);
    let hub = project.container("hub");
    let admin = |arguments: &[&str]| -> Value {
        let text =
            docker(&[&["exec", &hub, "/usr/bin/passerelle-hub", "admin", "--json"], arguments].concat());
        serde_json::from_str(&text).unwrap_or_default()
    };
    until("the hub", UP, async || {
        docker_output(&["exec", &hub, "/usr/bin/passerelle-hub", "health"]).status.success().then_some(())
    })
    .await;
    admin(&["tenant", "create", "acme", "--tier", "enterprise"]);
    let key = admin(&["api-key", "create", "--tenant", "acme", "--scopes", "all"]);
    let token = admin(&[
        "enrolment-token",
        "create",
        "--tenant",
        "acme",
        "--site",
        SITE,
        "--application",
        "orchestrator",
    ]);
    let token = token["token"].as_str().unwrap();
    let folder = production(&pair.cert.pem(), token);
    project.environment.push(("PASSERELLE_DIR".to_owned(), folder.path().display().to_string()));
    project.run(&["up", "-d", "--no-build", "--no-deps", "agent"]);

    // Through the reverse proxy, as everybody.
    let client = [
        "run",
        "--rm",
        "--network",
        proxy.name(),
        "-v",
        &format!("{}/config:/c:ro", folder.path().display()),
        "-e",
        "PASSERELLE_URL=https://hub.example.com",
        "-e",
        "PASSERELLE_CA_FILE=/c/ca.pem",
        "-e",
        &format!("PASSERELLE_API_KEY={}", key["key"].as_str().unwrap()),
        CLIENT,
        "jobs",
        "submit",
        "--site",
        SITE,
        "--resource",
        "accounting",
        "--operation",
        "drop",
        "--param",
        "path=a.txt",
        "--payload",
        "/c/agent.toml",
        "--wait",
        "60",
    ];
    until("the agent's site to be known", PATIENCE, async || {
        let output = docker_output(&client);
        let unknown = said(&output).contains("site_unknown");
        assert!(output.status.success() || unknown, "{}", said(&output));
        (!unknown).then_some(())
    })
    .await;
    let sent = fs::read(folder.path().join("config/agent.toml")).unwrap();
    assert_eq!(fs::read(folder.path().join("logs/exports/a.txt")).unwrap(), sent);

    let logs = names(&folder.path().join("logs"));
    assert!(logs.iter().any(|name| name.starts_with("infos_") && name.ends_with(".log")), "{logs:?}");
    for (service, memory) in [("hub", 512), ("agent", 128)] {
        let told = project.inspect(service);
        let host = &told["HostConfig"];
        assert_eq!(host["RestartPolicy"]["Name"], "unless-stopped");
        assert_eq!(host["Memory"], memory << 20);
        assert_eq!(host["LogConfig"]["Config"]["max-size"], "10m");
        assert!(host["PidsLimit"].as_u64().is_some_and(|most| most <= 256));
        assert!(host["PortBindings"].as_object().is_none_or(serde_json::Map::is_empty));
        assert!(!told.to_string().contains(token), "the token can be read in the engine's own words");
    }
    let labels = &project.inspect("hub")["Config"]["Labels"];
    assert_eq!(labels["traefik.http.services.passerelle.loadbalancer.server.port"], "8080");
}
