//! A hub in a container, with a tenant, an API key and a published port on this host's loopback address.

use super::{Bridge, Container, Folder, HUB, docker, said};
use crate::{Api, PATIENCE, TENANT, http_client, http_client_trusting};
use serde_json::Value;
use std::fs;

/// A hub in a network of its own, where it is `hub`. Within its network it speaks TLS at `https://hub:8443`, or, started
/// with [`HubContainer::plain`], plain HTTP for who shares its loopback address.
pub struct HubContainer {
    /// The container.
    pub container: Container,
    /// Its API, from this host.
    pub api: Api,
    /// Its address, from this host.
    pub url: String,
    /// Its network.
    pub network: Bridge,
    bootstrap: Folder,
}

impl HubContainer {
    /// Starts one that speaks TLS with a certificate for `hub` and `localhost`.
    pub async fn start() -> Self {
        Self::launch(true).await
    }

    /// Starts one that speaks plain HTTP at `http://127.0.0.1:8080`, for agents with `--network container:…`.
    pub async fn plain() -> Self {
        Self::launch(false).await
    }

    async fn launch(tls: bool) -> Self {
        let (network, bootstrap) = (Bridge::new(&[]), Folder::new());
        let mapped = bootstrap.at("/bootstrap");
        let port = if tls { "8443" } else { "8080" };
        let published = format!("127.0.0.1::{port}");
        let listen = format!("0.0.0.0:{port}");
        let mut arguments = vec!["--network", network.name(), "--network-alias", "hub", "-p", &published];
        arguments.extend(super::HARDENED);
        arguments.extend(["-v", &mapped, "--tmpfs", "/data:uid=10001,gid=10001,mode=0700", HUB, "serve"]);
        arguments.extend(["--listen", &listen]);
        let own = ["--bootstrap", "/bootstrap", "--bootstrap-tenant", TENANT, "--uses", "100"];
        arguments.extend(own);
        if !tls {
            arguments.push("--behind-proxy");
        }
        let container = Container::run("hub", &arguments);
        container.answers(&["/usr/bin/passerelle-hub", "health"], PATIENCE).await;
        let read = |name: &str| {
            fs::read_to_string(bootstrap.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let mapping = docker(&["port", container.name(), port]);
        let address = mapping.lines().next().unwrap_or_default().replace("0.0.0.0", "127.0.0.1");
        let (url, client) = if tls {
            (format!("https://{address}"), http_client_trusting(Some(&read("ca.pem"))))
        } else {
            (format!("http://{address}"), http_client())
        };
        let api = Api::new(&url, read("api-key").trim(), client);
        Self { container, api, url, network, bootstrap }
    }

    /// The certificate of its authority, PEM.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn ca(&self) -> String {
        fs::read_to_string(self.bootstrap.path().join("ca.pem")).expect("the CA's certificate")
    }

    /// Runs an admin command in its container and gives its JSON.
    ///
    /// # Panics
    /// If it fails.
    pub fn admin(&self, arguments: &[&str]) -> Value {
        let output =
            self.container.exec(&[&["/usr/bin/passerelle-hub", "admin", "--json"], arguments].concat());
        assert!(output.status.success(), "admin {arguments:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&output)))
    }

    /// Makes an enrolment token for a site.
    ///
    /// # Panics
    /// If the answer has none.
    #[must_use]
    pub fn token(&self, site: &str) -> String {
        let made = self.admin(&[
            "enrolment-token",
            "create",
            "--tenant",
            TENANT,
            "--site",
            site,
            "--application",
            "orchestrator",
        ]);
        made["token"].as_str().unwrap_or_else(|| panic!("no token in {made}")).to_owned()
    }

    /// The agents that it knows.
    ///
    /// # Panics
    /// If it does not answer.
    pub async fn agents(&self) -> Vec<Value> {
        let answer = self.api.get("/v1/agents").await;
        answer.body["items"].as_array().unwrap_or_else(|| panic!("no agents in {}", answer.body)).clone()
    }

    /// A folder with `agent.toml`, a token and the hub's CA, for an agent in this hub's network. `more` are further
    /// tables of `agent.toml`.
    #[must_use]
    pub fn folder(&self, site: &str, name: &str, more: &str) -> Folder {
        let folder = Folder::new();
        let text = format!(
            "[hub]\nurl = \"https://hub:8443\"\nenrolment_token = {{ file = \"secrets/enrolment-token\" }}\n\
             ca_file = \"ca.pem\"\n\n[agent]\nname = \"{name}\"\n{more}"
        );
        folder.file("agent.toml", text).file("ca.pem", self.ca());
        folder.file("secrets/enrolment-token", self.token(site));
        folder
    }
}
