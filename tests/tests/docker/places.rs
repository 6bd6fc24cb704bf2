//! The private systems that containers of the tests reach: the sample SFTP server and the sample in-house application.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use passerelle_tests::{
    PATIENCE,
    docker::{Bridge, CLIENT, Container, Volume, docker, said},
    http_client,
};
use serde_json::Value;
use std::{collections::BTreeSet, path::PathBuf};

/// The image of the sample SFTP server.
pub const SFTP: &str = "passerelle/sample-sftp:dev";
/// The image with nginx and squid.
pub const EDGE: &str = "passerelle/test-edge:dev";
/// The application's token, and the SFTP account's password.
pub const SECRET: &str = "of-the-tests";

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Builds an image from a folder of the repository.
pub fn build(image: &str, folder: &str) {
    let mut command = passerelle_tests::docker::command();
    command.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--tag", image]).arg(root().join(folder));
    let output = passerelle_tests::run(&mut command);
    assert!(output.status.success(), "{}", said(&output));
}

/// The sample in-house application.
pub struct Application {
    pub container: Container,
    _received: Volume,
}

impl Application {
    /// Starts it in a network, where it has this name and listens on port 8080.
    pub async fn start(network: &str, name: &str) -> Self {
        let received = Volume::new();
        let token = format!("SAMPLE_APP_TOKEN={SECRET}");
        let volume = received.at("/data");
        let container = Container::run(
            "app",
            &[
                "--network",
                network,
                "--network-alias",
                name,
                "-v",
                &volume,
                "-e",
                &token,
                "-p",
                "127.0.0.1::8080",
                CLIENT,
                "sample",
                "app",
                "--listen",
                "0.0.0.0:8080",
                "--dir",
                "/data",
            ],
        );
        container.answers(&["/usr/bin/passerelle", "sample", "health"], PATIENCE).await;
        Self { container, _received: received }
    }

    /// The table of a resource that reaches it.
    pub fn resource(name: &str) -> String {
        format!(
            "[resources.orders-app]\nconnector = \"http\"\nurl = \"http://{name}:8080/api/\"\n\
             auth = {{ kind = \"bearer\", token = {{ env = \"SAMPLE_APP_TOKEN\" }} }}\n\n\
             [[resources.orders-app.allow]]\noperations = [\"notify\"]\nmethods = [\"POST\"]\n\
             paths = [\"orders/*/validated\"]\n"
        )
    }

    /// The idempotency keys of all that it was told.
    pub async fn received(&self) -> BTreeSet<String> {
        let told = self.container.inspect();
        let networks = told["NetworkSettings"]["Networks"].as_object().unwrap().values();
        // This host is in every network of its engine, also in those that lead nowhere.
        let address = networks.filter_map(|one| one["IPAddress"].as_str()).find(|ip| !ip.is_empty()).unwrap();
        let published = told["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostPort"].as_str();
        let url = match published {
            Some(port) => format!("http://127.0.0.1:{port}/api/received"),
            None => format!("http://{address}:8080/api/received"),
        };
        let answer = http_client().get(url).bearer_auth(SECRET).send().await.unwrap();
        let list: Value = answer.json().await.unwrap();
        let items = list["items"].as_array().unwrap();
        let keys: BTreeSet<String> =
            items.iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect();
        assert_eq!(keys.len(), items.len(), "a notification was taken twice");
        keys
    }
}

/// The sample SFTP server.
pub struct FileServer {
    pub container: Container,
    _keys: Volume,
    _files: Volume,
}

impl FileServer {
    /// Starts it in a network, where it has this name.
    pub async fn start(network: &Bridge, name: &str) -> Self {
        build(SFTP, "deploy/compose/sftp");
        let (keys, files) = (Volume::new(), Volume::new());
        let (known_as, password) =
            (format!("SAMPLE_SFTP_NAME={name}"), format!("SAMPLE_SFTP_PASSWORD={SECRET}"));
        let (at_keys, at_files) = (keys.at("/keys"), files.at("/srv/exports"));
        let container = Container::run(
            "sftp",
            &[
                "--network",
                network.name(),
                "--network-alias",
                name,
                "-v",
                &at_keys,
                "-v",
                &at_files,
                "-e",
                &known_as,
                "-e",
                &password,
                SFTP,
            ],
        );
        container.healthy(PATIENCE).await;
        Self { container, _keys: keys, _files: files }
    }

    /// What goes into the agent's `known_hosts`.
    pub fn known_hosts(&self) -> String {
        docker(&["exec", self.container.name(), "cat", "/keys/known_hosts"]) + "\n"
    }

    /// The table of a resource that drops there.
    pub fn resource(name: &str) -> String {
        format!(
            "[resources.accounting]\nconnector = \"file\"\nurl = \"sftp://{name}:22/exports\"\nusername = \"sample\"\n\
             password = {{ env = \"SAMPLE_SFTP_PASSWORD\" }}\nknown_hosts = \"known_hosts\"\n\n\
             [[resources.accounting.allow]]\noperations = [\"drop\"]\npaths = [\"**/*.txt\"]\n"
        )
    }

    /// The files that are there, parts and other leftovers included; each must hold its own name.
    pub fn files(&self) -> BTreeSet<String> {
        let script = "cd /srv/exports && find . -type f | while read -r f; do printf '%s %s\\n' \"${f#./}\" \
                      \"$(cat \"$f\")\"; done";
        let text = docker(&["exec", self.container.name(), "bash", "-c", script]);
        let read = |line: &str| {
            let (name, content) = line.split_once(' ').unwrap();
            assert_eq!(name, content, "the file {name} holds something else");
            name.to_owned()
        };
        text.lines().map(read).collect()
    }
}
