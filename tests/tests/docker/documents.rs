//! What the documents about Docker tell a reader to type is typed, as it stands there, in containers of this engine.
//!
//! What stands for the reader's own surroundings is put in its place: folders of the host by temporary ones, the image by the
//! one that was built here, and `docker run` adds the network in which the hub has its name and its certificate is trusted.

use passerelle_tests::{
    PATIENCE, TENANT,
    docker::{AGENT, Bridge, Container, Folder, HUB, docker, docker_output, said},
    documents::{Block, typed},
    run, until,
};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};
use tempfile::TempDir;

/// The name that the documents give to the hub, and the one of the container.
const HUB_NAME: &str = "hub.example.com";
const NAME: &str = "passerelle";

/// A hub of the name that documents give it, and a place to type in.
struct Desk {
    hub: Container,
    _network: Bridge,
    _certificates: Folder,
    home: TempDir,
}

impl Desk {
    async fn set_up() -> Self {
        let taken = docker_output(&["container", "inspect", NAME]).status.success();
        assert!(!taken, "there is a container {NAME} already: the documents' commands would replace it");
        let (network, certificates) = (Bridge::new(&[]), Folder::new());
        let pair = rcgen::generate_simple_self_signed(vec![HUB_NAME.to_owned()]).expect("a certificate");
        certificates.file("hub.pem", pair.cert.pem()).file("hub-key.pem", pair.signing_key.serialize_pem());
        let mapped = certificates.at("/certificates:ro");
        let arguments = [
            "--network",
            network.name(),
            "--network-alias",
            HUB_NAME,
            "-v",
            &mapped,
            "--tmpfs",
            "/data:uid=10001,gid=10001,mode=0700",
            HUB,
            "serve",
            "--listen",
            "0.0.0.0:443",
            "--tls-cert",
            "/certificates/hub.pem",
            "--tls-key",
            "/certificates/hub-key.pem",
        ];
        let hub = Container::run("hub", &arguments);
        hub.answers(&["/usr/bin/passerelle-hub", "health"], PATIENCE).await;
        let home = tempfile::tempdir().expect("a temporary folder");
        let real = docker_program();
        let certificate = certificates.path().join("hub.pem");
        let script = format!(
            "#!/usr/bin/env bash\nset -eu\nif [[ $1 == run ]]; then\n  shift\n  set -- run --network {} \
             -v {}:/etc/ssl/certs/ca-certificates.crt:ro \"$@\"\nfi\nexec {real} \"$@\"\n",
            network.name(),
            certificate.display(),
        );
        let shim = home.path().join("bin/docker");
        fs::create_dir(home.path().join("bin")).expect("a folder");
        fs::write(&shim, script).expect("a script");
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).expect("its rights");
        let desk = Self { hub, _network: network, _certificates: certificates, home };
        desk.admin(&["tenant", "create", TENANT, "--tier", "enterprise"]);
        desk
    }

    fn admin(&self, arguments: &[&str]) -> Value {
        let output = self.hub.exec(&[&["/usr/bin/passerelle-hub", "admin", "--json"], arguments].concat());
        assert!(output.status.success(), "admin {arguments:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The token that the hub's operator hands out.
    fn token(&self) -> String {
        let made = self.admin(&[
            "enrolment-token",
            "create",
            "--tenant",
            TENANT,
            "--site",
            "paris",
            "--application",
            "orchestrator",
        ]);
        made["token"].as_str().expect("a token").to_owned()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// Types one block.
    fn type_in(&self, block: &Block) {
        let home = self.home.path().display();
        let text = block
            .text
            .replace("/srv/", &format!("{home}/srv/"))
            .replace("c:\\programdata\\cpoint", &format!("{home}/cpoint"))
            .replace("passerelle/agent ", &format!("{AGENT} "))
            .replace("passerelle/agent\n", &format!("{AGENT}\n"));
        eprintln!("──── {}:{}\n{}", block.document, block.line, block.text);
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        let output = run(Command::new("bash")
            .args(["-euo", "pipefail", "-c", &text])
            .current_dir(self.home.path())
            .env("PATH", path));
        assert!(
            output.status.success(),
            "{}:{}: {}\n{}",
            block.document,
            block.line,
            output.status,
            said(&output)
        );
    }

    /// A reader goes on when the agent is up.
    async fn wait_for_the_agent(&self) {
        let running = docker(&["ps", "--quiet", "--filter", &format!("name=^{NAME}$")]);
        if !running.is_empty() {
            until("the agent to be ready", PATIENCE, async || {
                docker_output(&["exec", NAME, "passerelle-agent", "health"]).status.success().then_some(())
            })
            .await;
        }
    }

    async fn follow(&self, document: &str) {
        for block in typed(document) {
            self.type_in(&block);
            self.wait_for_the_agent().await;
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("──── log of {NAME}\n{}", said(&docker_output(&["logs", NAME])));
        }
        docker_output(&["rm", "--force", NAME]);
    }
}

fn docker_program() -> String {
    passerelle_tests::docker::command().get_program().to_string_lossy().into_owned()
}

/// Who the agent of a folder is.
fn identity(folder: &Path) -> Value {
    let text = fs::read(folder.join("state/identity.json")).expect("an identity");
    serde_json::from_slice(&text).expect("JSON")
}

/// One test, since all of them have the documents' one name for the container.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_documents_say_of_docker_works_as_it_stands_there() {
    let desk = Desk::set_up().await;
    fs::create_dir(desk.path("srv")).expect("a folder");
    fs::write(desk.path("token.txt"), desk.token()).expect("the token");
    desk.follow("docs/en/install.md").await;
    assert!(!desk.path("token.txt").exists(), "the token is left lying about");
    let first = identity(&desk.path("srv/passerelle"));
    desk.follow("docs/en/docker-commands.md").await;
    assert_eq!(identity(&desk.path("srv/passerelle")), first, "the agent enrolled anew");

    // A Windows host: any account of the container may write what Docker Desktop maps.
    let document = "docs/en/install-windows.md";
    let blocks = typed(document);
    assert_eq!(blocks.len(), 2, "{document} has other blocks now");
    for block in &blocks {
        assert_eq!(block.language, "powershell");
        for command in block.commands() {
            desk.type_in(&Block { text: format!("{command}\n"), ..block.clone() });
            if command.starts_with("mkdir") {
                fs::set_permissions(desk.path("cpoint"), fs::Permissions::from_mode(0o777))
                    .expect("its rights");
            }
            if command.contains(" run -d ") {
                desk.wait_for_the_agent().await;
            }
        }
        if block.line == blocks[0].line {
            // As Notepad saves it.
            let token = format!("\u{feff}{}\r\n", desk.token());
            fs::write(desk.path("cpoint/secrets/enrolment-token"), token).expect("the token");
        }
    }
    assert_ne!(identity(&desk.path("cpoint")), first);
}
