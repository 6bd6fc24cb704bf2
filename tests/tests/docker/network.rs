//! A site as a company has it: the agents' network leads nowhere but to a proxy, the proxy knows one host outside, a
//! reverse proxy with TLS stands before the hub, and only the agents reach the file server and the application. Then
//! somebody pulls cables, kills and freezes containers and updates agents under load: nothing is lost, nothing repeated.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::{
    load::Load,
    places::{Application, EDGE, FileServer, SECRET, build},
};
use passerelle_tests::{
    Api, PATIENCE, TENANT,
    docker::{AGENT, Bridge, CLIENT, Container, Folder, HARDENED, HUB, Volume, docker, docker_output, said},
    free_port, http_client, until,
};
use serde_json::Value;
use std::time::Duration;

const SITE: &str = "paris";
/// How long the hub may take to notice that an agent is away, and the agents that they can come back.
const NOTICED: Duration = Duration::from_secs(120);

/// Passes on to whatever address the hub has.
const NGINX: &str = "
user root;
events { worker_connections 512; }
http {
  resolver 127.0.0.11 valid=1s;
  client_max_body_size 0;
  access_log off;
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

/// A company's proxy: CONNECT to port 443 of one host, and nothing else.
const SQUID: &str = "
http_port 3128
acl hub dstdomain hub.example.com
acl tls port 443
acl CONNECT method CONNECT
http_access allow CONNECT hub tls
http_access deny all
cache deny all
memory_cache_shared off
pid_filename none
shutdown_lifetime 0 seconds
access_log stdio:/var/log/squid/access.log
";

/// The cloud: hub and reverse proxy; and the proxy that stands between it and the site.
struct Cloud {
    hub: Container,
    nginx: Container,
    squid: Container,
    api: Api,
    certificate: String,
    _configuration: Folder,
    _data: Volume,
    outside: Bridge,
}

impl Cloud {
    async fn start(site: &Bridge) -> Self {
        build(EDGE, "tests/docker.d/edge");
        let (outside, data, configuration) = (Bridge::new(&[]), Volume::new(), Folder::of_root());
        let port = free_port();
        let (published, at_data) = (format!("127.0.0.1:{port}:8080"), data.at("/data"));
        let mut arguments = vec!["--network", outside.name(), "--network-alias", "hub", "-p", &published];
        arguments.extend(HARDENED);
        arguments.extend(["-v", &at_data, HUB, "serve", "--behind-proxy"]);
        let hub = Container::run("hub", &arguments);
        hub.answers(&["/usr/bin/passerelle-hub", "health"], PATIENCE).await;
        admin(&hub, &["tenant", "create", TENANT, "--tier", "enterprise"]);
        let key = admin(&hub, &["api-key", "create", "--tenant", TENANT, "--scopes", "all"]);
        let api = Api::new(&format!("http://127.0.0.1:{port}"), key["key"].as_str().unwrap(), http_client());

        let pair = rcgen::generate_simple_self_signed(vec!["hub.example.com".to_owned()]).unwrap();
        let certificate = pair.cert.pem();
        configuration.file("cert.pem", &certificate).file("key.pem", pair.signing_key.serialize_pem());
        configuration.file("nginx.conf", NGINX).file("squid.conf", SQUID);
        let mapped = configuration.at("/etc/edge:ro");
        let nginx = Container::run(
            "nginx",
            &[
                "--network",
                outside.name(),
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
        let squid = Container::run(
            "squid",
            &["--network", outside.name(), "-v", &mapped, EDGE, "squid", "-N", "-f", "/etc/edge/squid.conf"],
        );
        docker(&["network", "connect", "--alias", "proxy", site.name(), squid.name()]);
        Self { hub, nginx, squid, api, certificate, _configuration: configuration, _data: data, outside }
    }

    fn token(&self) -> String {
        let create = ["enrolment-token", "create", "--tenant", TENANT, "--site", SITE];
        let made = admin(&self.hub, &[&create[..], &["--application", "orchestrator"]].concat());
        made["token"].as_str().unwrap().to_owned()
    }

    async fn online(&self, count: usize) {
        until(&format!("{count} agents to be connected"), NOTICED, async || {
            let answer =
                self.api.try_send(self.api.request(reqwest::Method::GET, "/v1/agents")).await.ok()?;
            let items = answer.body["items"].as_array()?.iter();
            (items.filter(|agent| agent["online"] == true).count() == count).then_some(())
        })
        .await;
    }
}

fn admin(hub: &Container, arguments: &[&str]) -> Value {
    let output = hub.exec(&[&["/usr/bin/passerelle-hub", "admin", "--json"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// An agent with a state of its own, in the site's network and in that of the private systems.
struct Member {
    container: Container,
    folder: Folder,
    state: Volume,
}

impl Member {
    fn start(cloud: &Cloud, name: &str, networks: [&Bridge; 2], files: &FileServer) -> Self {
        let (folder, state) = (Folder::new(), Volume::new());
        let text = format!(
            "[hub]\nurl = \"https://hub.example.com\"\nenrolment_token = {{ file = \"secrets/enrolment-token\" }}\n\
             ca_file = \"ca.pem\"\nproxy = {{ url = \"http://proxy:3128\" }}\n\n\
             [agent]\nname = \"{name}\"\nstate_dir = \"/state\"\n\n{}\n{}",
            FileServer::resource("files"),
            Application::resource("orders"),
        );
        folder.file("agent.toml", text).file("ca.pem", &cloud.certificate);
        folder.file("known_hosts", files.known_hosts()).file("secrets/enrolment-token", cloud.token());
        let container = Self::run(&folder, &state, networks);
        Self { container, folder, state }
    }

    fn run(folder: &Folder, state: &Volume, [site, private]: [&Bridge; 2]) -> Container {
        let (config, state) = (folder.at("/config:ro"), state.at("/state"));
        let (token, password) =
            (format!("SAMPLE_APP_TOKEN={SECRET}"), format!("SAMPLE_SFTP_PASSWORD={SECRET}"));
        let mut arguments = vec!["--network", site.name(), "-v", &config, "-v", &state, "-e", &token];
        arguments.extend(["-e", &password]);
        arguments.extend(HARDENED);
        arguments.push(AGENT);
        let container = Container::run("agent", &arguments);
        docker(&["network", "connect", private.name(), container.name()]);
        container
    }

    /// As an operator updates it: drained, taken away, and started again from its image on the same folders.
    fn update(&mut self, networks: [&Bridge; 2]) {
        assert_eq!(self.container.stop(40), 0, "not drained:\n{}", self.container.log());
        self.container = Self::run(&self.folder, &self.state, networks);
    }
}

fn reaches(network: &Bridge, url: &str) -> bool {
    let ask = ["run", "--rm", "--network", network.name(), CLIENT, "sample", "health", url];
    docker_output(&ask).status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_behind_a_proxy_loses_nothing_while_cables_are_pulled_and_containers_killed() {
    let (site, private) = (Bridge::new(&["--internal"]), Bridge::new(&["--internal"]));
    let networks = [&site, &private];
    let cloud = Cloud::start(&site).await;
    let files = FileServer::start(&private, "files").await;
    let application = Application::start(private.name(), "orders").await;
    let mut members = ["paris-1", "paris-2"].map(|name| Member::start(&cloud, name, networks, &files));
    cloud.online(2).await;

    // What the walls are worth: each thing is reached from where it should be, and from nowhere else.
    assert!(reaches(&cloud.outside, "http://hub:8080/healthz"), "the hub is not reached in its own network");
    assert!(!reaches(&site, "http://hub:8080/healthz"), "the site reaches the hub past the proxy");
    assert!(reaches(&private, "http://orders:8080/healthz"), "the application is not reached");
    for outside in [&site, &cloud.outside] {
        assert!(
            !reaches(outside, "http://orders:8080/healthz"),
            "more than the agents reach the application"
        );
    }

    let load = Load::new(&cloud.api, SITE, true);
    let faults = async {
        load.goes_on().await;
        eprintln!("an agent loses its only way out");
        docker(&["network", "disconnect", site.name(), members[0].container.name()]);
        cloud.online(1).await;
        load.goes_on().await;
        docker(&["network", "connect", site.name(), members[0].container.name()]);
        cloud.online(2).await;

        eprintln!("an agent loses the private systems");
        docker(&["network", "disconnect", private.name(), members[1].container.name()]);
        load.goes_on().await;
        docker(&["network", "connect", private.name(), members[1].container.name()]);

        eprintln!("agent, hub, both proxies and the file server are killed");
        for victim in [&members[0].container, &cloud.hub, &cloud.squid, &cloud.nginx, &files.container] {
            docker(&["kill", victim.name()]);
            victim.start();
            load.goes_on().await;
        }
        cloud.online(2).await;

        eprintln!("an agent freezes until the hub has given it up, then hub and proxy");
        docker(&["pause", members[1].container.name()]);
        cloud.online(1).await;
        load.goes_on().await;
        docker(&["unpause", members[1].container.name()]);
        cloud.online(2).await;
        for victim in [&cloud.hub, &cloud.squid] {
            docker(&["pause", victim.name()]);
            // The hub has promised nothing meanwhile; the agents go on with what they have.
            for member in &members {
                member.container.answers(&["/usr/bin/passerelle-agent", "health", "--live"], PATIENCE).await;
            }
            docker(&["unpause", victim.name()]);
            load.goes_on().await;
        }

        eprintln!("the agents are updated, one after the other");
        for member in &mut members {
            member.update(networks);
            cloud.online(2).await;
            load.goes_on().await;
        }
        load.stop();
    };
    let ((), done) = tokio::join!(faults, load.run());

    assert_eq!(done.agents.len(), 2, "one agent did nothing");
    assert_eq!(application.received().await, done.notified);
    assert_eq!(files.files(), done.dropped);
    // All of it went through the one hole in the wall.
    let access = docker(&["exec", cloud.squid.name(), "cat", "/var/log/squid/access.log"]);
    assert!(access.lines().count() > 2, "{access}");
    for line in access.lines() {
        assert!(line.contains("CONNECT hub.example.com:443"), "{line}");
    }
}
