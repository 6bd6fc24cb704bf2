//! Servers that signed their certificates for themselves, as `openssl req -x509` does it.

use crate::common::{SITE, job, notify_job, with};
use passerelle_tests::{Agent, Content, Hub, Nginx, PATIENCE, binary, by_openssl, code, resources, run};
use serde_json::json;
use std::{fs, process::Command};

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_and_an_application_with_certificates_of_their_own_are_trusted_where_these_are_named() {
    let hub = Hub::start_tls_by_openssl().await;
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = by_openssl(folder.path(), "localhost");
    let nginx = Nginx::start_with(certificate, &key).await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.file("hub.pem", hub.certificate().unwrap()).file("app.pem", &nginx.certificate);
    agent.hub_key("ca_file = \"hub.pem\"");
    for (name, trust) in [("orders-app", "ca_file = \"app.pem\""), ("other", "ca_file = \"hub.pem\"")] {
        agent.resource(name, &resources::application_with(name, &nginx.tls_url, trust));
    }
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.start().await;
    hub.api.succeed(&notify_job("orders/42/validated")).await;
    // Another certificate for the same name says nothing for this one.
    let refused = with(notify_job("orders/43/validated"), json!({"resource": "other", "max_attempts": 1}));
    let done = hub.api.run(&refused).await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "target_unreachable"), "{done:#}");
    let message = done["error"]["message"].as_str().unwrap();
    assert!(message.contains("put exactly this certificate into the resource's ca_file"), "{message}");
    assert_eq!(nginx.requests().len(), 1);
    // A payload beside the tunnel goes to the same host.
    let blob = hub.api.upload(&Content::write(folder.path(), 400_000)).await;
    let drop =
        with(job("compta", "drop", json!({"path": "a.csv"})), json!({"payload": {"blob": blob["id"]}}));
    hub.api.succeed(&drop).await;
    assert_eq!(fs::metadata(files.path().join("a.csv")).unwrap().len(), 400_000);

    let file = folder.path().join("hub.pem");
    fs::write(&file, hub.certificate().unwrap()).unwrap();
    let client = |trust: &[&str]| {
        let mut command = Command::new(binary("passerelle"));
        command.arg("sites").args(trust).arg("--json");
        run(command.env("PASSERELLE_URL", &hub.url).env("PASSERELLE_API_KEY", hub.api.key()))
    };
    let told = client(&["--ca-file", file.to_str().unwrap()]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert!(!client(&[]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_not_told_of_the_hubs_own_certificate_names_who_issued_it() {
    let hub = Hub::start_tls_by_openssl().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    let folder = tempfile::tempdir().unwrap();
    let (another, _) = by_openssl(folder.path(), "localhost");
    agent.file("another.pem", &another);
    agent.hub_key("ca_file = \"another.pem\"");
    agent.spawn();
    agent.process().logged("which this machine does not trust; if that is your company", PATIENCE).await;
}
