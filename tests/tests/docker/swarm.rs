//! `stack.yaml` and `stack.hub.yaml` on a swarm of one node, from a private registry, and rolling updates under load.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::{
    load::Load,
    places::{Application, SECRET, root},
};
use passerelle_tests::{
    Api, PATIENCE, Process, TENANT,
    docker::{AGENT, HUB, docker, docker_output, said, unique},
    free_port, http_client, http_client_trusting, until,
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

const SITE: &str = "paris";
/// The port that is documented: an engine speaks plain HTTP with a registry of its own machine.
const REGISTRY: &str = "localhost:5000";
/// From a deployment to healthy tasks; their health is asked for every ten seconds.
const DEPLOYED: Duration = Duration::from_secs(240);

/// This engine as a swarm; it leaves if it was none before.
struct Swarm {
    made: bool,
}

impl Swarm {
    fn join() -> Self {
        let made = docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]) == "inactive";
        if made {
            docker(&["swarm", "init", "--advertise-addr", "127.0.0.1"]);
        }
        Self { made }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if self.made {
            docker_output(&["swarm", "leave", "--force"]);
        }
    }
}

/// Something of the swarm that goes with this value: a secret, network, volume or image.
struct Thing {
    kind: &'static str,
    name: String,
}

impl Drop for Thing {
    fn drop(&mut self) {
        // A task that ends holds on to it for a moment.
        let begin = std::time::Instant::now();
        let force: &[&str] = if self.kind == "image" { &["--force"] } else { &[] };
        let remove = [&[self.kind, "rm"], force, &[&self.name]].concat();
        while !docker_output(&remove).status.success() && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn secret(name: &str, content: &str) -> Thing {
    let name = unique(name);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, content).unwrap();
    docker(&["secret", "create", &name, file.to_str().unwrap()]);
    Thing { kind: "secret", name }
}

/// A deployed stack. It is removed when this value goes.
struct Stack {
    name: String,
    environment: Vec<(&'static str, String)>,
    volumes: &'static [&'static str],
}

impl Stack {
    fn deploy(file: &str, environment: &[(&'static str, &str)], volumes: &'static [&'static str]) -> Self {
        let environment = environment.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        let stack = Self { name: unique("stack"), environment, volumes };
        let mut command = passerelle_tests::docker::command();
        command.current_dir(root()).args(["stack", "deploy", "-c", file, &stack.name]);
        command.envs(stack.environment.iter().map(|(key, value)| (key, value)));
        let output = passerelle_tests::run(&mut command);
        assert!(output.status.success(), "{}", said(&output));
        stack
    }

    fn service(&self, service: &str) -> String {
        format!("{}_{service}", self.name)
    }

    /// The running container of a service, if it is healthy.
    fn healthy(&self, service: &str) -> Option<String> {
        let filter = format!("label=com.docker.swarm.service.name={}", self.service(service));
        let found = docker(&["ps", "-q", "--filter", &filter, "--filter", "health=healthy"]);
        found.lines().next().map(str::to_owned)
    }

    async fn up(&self, service: &str) -> String {
        until(&format!("the service {service}"), DEPLOYED, async || self.healthy(service)).await
    }

    /// `docker service update`, which waits until the new task has stayed well.
    async fn update(&self, service: &str, image: &str) {
        let service = self.service(service);
        let image = image.to_owned();
        let update = move || docker(&["service", "update", "--quiet", "--image", &image, &service]);
        tokio::task::spawn_blocking(update).await.unwrap();
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for service in ["hub", "agent-1", "agent-2"] {
                let service = self.service(service);
                eprintln!("──── {service}");
                eprintln!("{}", said(&docker_output(&["service", "ps", "--no-trunc", &service])));
                eprintln!("{}", said(&docker_output(&["service", "logs", "--tail", "30", &service])));
            }
        }
        docker_output(&["stack", "rm", &self.name]);
        for volume in self.volumes {
            drop(Thing { kind: "volume", name: format!("{}_{volume}", self.name) });
        }
    }
}

/// A registry of images on this machine, and its folder.
async fn registry(folder: &Path) -> Process {
    let configuration = format!(
        "version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: \"{}\"}}\n",
        folder.display(),
        REGISTRY.replace("localhost", "127.0.0.1")
    );
    let file = folder.join("registry.yml");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new("docker-registry");
    let mut process =
        Process::spawn("docker-registry", command.arg("serve").arg(file), &folder.join("registry.log"));
    until("the registry", PATIENCE, async || {
        assert!(process.is_running(), "{}", process.log());
        let answer = http_client().get(format!("http://{REGISTRY}/v2/")).send().await.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
    process
}

/// Gives an image another name, pushes it there and takes the name away again: what runs came from the registry.
fn push(image: &str, name: &str) -> Thing {
    docker(&["tag", image, name]);
    docker(&["push", "--quiet", name]);
    Thing { kind: "image", name: name.to_owned() }
}

/// The next version of an image, as far as the engine can tell: another label.
fn next(image: &str, name: &str) -> Thing {
    let mut build = passerelle_tests::docker::command();
    build.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--tag", name, "-"]);
    let mut build = build.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let text = format!("FROM {image}\nLABEL org.opencontainers.image.version=next\n");
    std::io::Write::write_all(&mut build.stdin.take().unwrap(), text.as_bytes()).unwrap();
    assert!(build.wait().unwrap().success());
    docker(&["push", "--quiet", name]);
    Thing { kind: "image", name: name.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_from_a_private_registry_is_updated_under_load_and_loses_nothing() {
    let _swarm = Swarm::join();
    let folder = tempfile::tempdir().unwrap();
    let _registry = registry(folder.path()).await;
    let name = |image: &str, tag: &str| format!("{REGISTRY}/{}:{tag}", image.split(':').next().unwrap());
    let (hub_image, agent_image) = (name(HUB, "one"), name(AGENT, "one"));
    let _images = [push(HUB, &hub_image), push(AGENT, &agent_image)];

    let network = Thing { kind: "network", name: unique("overlay") };
    docker(&["network", "create", "--driver", "overlay", "--attachable", &network.name]);
    let application = Application::start(&network.name, "orders.example.com").await;
    let pair = rcgen::generate_simple_self_signed(vec!["hub.example.com".to_owned(), "localhost".to_owned()])
        .unwrap();
    let (certificate, key) =
        (secret("cert", &pair.cert.pem()), secret("key", &pair.signing_key.serialize_pem()));
    let port = free_port().to_string();
    let hub = Stack::deploy(
        "stack.hub.yaml",
        &[
            ("PASSERELLE_HUB_IMAGE", &hub_image),
            ("PASSERELLE_HUB_PORT", &port),
            ("PASSERELLE_SITE_NETWORK", &network.name),
            ("PASSERELLE_CERT_SECRET", &certificate.name),
            ("PASSERELLE_KEY_SECRET", &key.name),
        ],
        &["hub-data"],
    );
    let container = hub.up("hub").await;
    let admin = |arguments: &[&str]| -> Value {
        let command = ["exec", &container, "/usr/bin/passerelle-hub", "admin", "--json"];
        serde_json::from_str(&docker(&[&command[..], arguments].concat())).unwrap_or_default()
    };
    admin(&["tenant", "create", TENANT, "--tier", "enterprise"]);
    let api_key = admin(&["api-key", "create", "--tenant", TENANT, "--scopes", "all"]);
    let create = ["enrolment-token", "create", "--tenant", TENANT, "--site", SITE, "--uses", "2"];
    let token = admin(&[&create[..], &["--application", "orchestrator"]].concat());
    let client = http_client_trusting(Some(&pair.cert.pem()));
    let api = Api::new(&format!("https://localhost:{port}"), api_key["key"].as_str().unwrap(), client);

    let token = secret("token", token["token"].as_str().unwrap());
    let (authority, orders) = (secret("ca", &pair.cert.pem()), secret("orders", SECRET));
    // As the documents say: the folder of the stack's configuration, edited for this place.
    let configuration = tempfile::tempdir().unwrap();
    for file in ["agent.toml", "resources.toml"] {
        let text = fs::read_to_string(root().join("deploy/swarm").join(file)).unwrap();
        let text = text.replace("https://hub.example.com", "https://hub.example.com:8443");
        fs::write(configuration.path().join(file), text).unwrap();
    }
    let agents = Stack::deploy(
        "stack.yaml",
        &[
            ("PASSERELLE_AGENT_IMAGE", &agent_image),
            ("PASSERELLE_SITE", SITE),
            ("PASSERELLE_SITE_NETWORK", &network.name),
            ("PASSERELLE_CONFIG_DIR", configuration.path().to_str().unwrap()),
            ("PASSERELLE_CONFIG_VERSION", &unique("version")),
            ("PASSERELLE_TOKEN_SECRET", &token.name),
            ("PASSERELLE_CA_SECRET", &authority.name),
            ("PASSERELLE_ORDERS_SECRET", &orders.name),
        ],
        &["agent-1-state", "agent-2-state"],
    );
    let before = [agents.up("agent-1").await, agents.up("agent-2").await];
    api.agents_online(SITE, 2).await;
    let known = api.get("/v1/agents").await.body;
    let mut names: Vec<&str> =
        known["items"].as_array().unwrap().iter().map(|agent| agent["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["paris-1", "paris-2"]);

    let load = Load::new(&api, SITE, false);
    let updates = async {
        load.goes_on().await;
        let agent_image = name(AGENT, "two");
        let new_agent = next(AGENT, &agent_image);
        for service in ["agent-1", "agent-2"] {
            agents.update(service, &agent_image).await;
            load.goes_on().await;
        }
        let hub_image = name(HUB, "two");
        let new_hub = next(HUB, &hub_image);
        hub.update("hub", &hub_image).await;
        load.goes_on().await;
        load.stop();
        [new_agent, new_hub]
    };
    let (_new_images, done) = tokio::join!(updates, load.run());
    assert_eq!(application.received().await, done.notified);
    assert_eq!(done.agents.len(), 2, "one agent did nothing");

    let after = [agents.up("agent-1").await, agents.up("agent-2").await];
    assert!(before.iter().all(|old| !after.contains(old)), "an agent was not replaced");
    api.agents_online(SITE, 2).await;
    let still = api.get("/v1/agents").await.body;
    assert_eq!(still["items"].as_array().unwrap().len(), 2, "an agent lost its identity: {still}");
}
