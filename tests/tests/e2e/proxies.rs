//! Getting out of a real company: squid with Basic authentication, and mitmproxy, which inspects TLS.

use crate::common::{SITE, drop_into, drop_job, job};
use passerelle_tests::{
    Agent, Content, FORBIDDEN_NAME, Front, FrontOptions, Hub, Mitmproxy, PROXY_ONLY_NAME, PROXY_PASSWORD,
    PROXY_USER, Squid, resources, until,
};
use serde_json::json;
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

/// An agent of the hub with the folder `compta`, not started.
fn agent(hub: &Hub, files: &TempDir) -> Agent {
    let agent = Agent::new(hub, SITE, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent
}

/// `[hub] proxy` with the account of the test's squid.
fn account(agent: &mut Agent, url: &str, password: &str) {
    agent.secret("proxy_password", password);
    agent.hub_key(&format!(
        "proxy = {{ url = \"{url}\", username = \"{PROXY_USER}\", password = {{ file = \"secrets/proxy_password\" }} }}"
    ));
}

/// A job each way with a payload that travels beside the tunnel.
async fn payloads_go_both_ways(hub: &Hub, files: &Path, name: &str) {
    let source = tempfile::tempdir().expect("a temporary folder");
    let content = Content::write(source.path(), 700_000);
    let blob = hub.api.upload(&content).await;
    let done = hub.api.succeed(&drop_into("compta", name, json!({"blob": blob["id"]}))).await;
    assert_eq!(done["result"]["sha256"], json!(content.sha256));
    assert_eq!(Content::of_file(&files.join(name)).sha256, content.sha256);
    let done = hub.api.succeed(&job("compta", "fetch", json!({"path": name}))).await;
    assert_eq!(done["output"]["sha256"], json!(content.sha256), "{done:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn squid_with_a_password_and_a_dns_of_its_own_lets_everything_through() {
    let (hub, mut squid) = (Hub::start_tls_also_for(PROXY_ONLY_NAME).await, Squid::start().await);
    let files = tempfile::tempdir().unwrap();
    let mut agent = agent(&hub, &files);
    let address = format!("{PROXY_ONLY_NAME}:{}", hub.port());
    assert!(
        tokio::net::lookup_host(&address).await.is_err(),
        "{PROXY_ONLY_NAME} resolves here: the test shows nothing"
    );
    agent.file("ca.pem", hub.certificate().unwrap());
    account(&mut agent, &squid.url(), PROXY_PASSWORD);
    agent.through(&format!("https://{address}")).hub_key("ca_file = \"ca.pem\"").start().await;
    payloads_go_both_ways(&hub, files.path(), "a.bin").await;
    // Squid closes what is idle for 18 s; the heartbeat keeps the tunnel.
    let reconnects = agent.metric("passerelle_agent_tunnel_reconnects_total").await;
    let start = Instant::now();
    until("an idle time to pass", SOON, async || {
        assert_eq!(agent.readiness().await, Some(200));
        (start.elapsed() > Duration::from_secs(24)).then_some(())
    })
    .await;
    assert_eq!(agent.metric("passerelle_agent_tunnel_reconnects_total").await, reconnects);
    // The proxy is restarted, as every night.
    squid.kill();
    until("the agent to notice", SOON, async || (agent.readiness().await == Some(503)).then_some(())).await;
    let id = hub.api.submit(&drop_job("b.csv", "x")).await;
    squid.restart().await;
    agent.ready().await;
    hub.api.reach(&id, &["succeeded"]).await;
    // Once more beside the tunnel, and everything with the account.
    payloads_go_both_ways(&hub, files.path(), "c.bin").await;
    agent.kill();
    let log = until("the connections in squid's log", SOON, async || {
        Some(squid.log()).filter(|log| log.lines().filter(|line| line.contains("/200 ")).count() >= 2)
    })
    .await;
    for line in log.lines().filter(|line| line.contains("CONNECT")) {
        assert!(line.contains(&format!("CONNECT {address} {PROXY_USER} ")), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_no_of_squid_is_told_word_for_word() {
    let (hub, squid) = (Hub::start_tls().await, Squid::start().await);
    let files = tempfile::tempdir().unwrap();
    let mut agent = agent(&hub, &files);
    agent.file("ca.pem", hub.certificate().unwrap());
    agent.hub_key("ca_file = \"ca.pem\"");
    let (proxy, to) = (format!("127.0.0.1:{}", squid.port), format!("localhost:{}", hub.port()));
    let refused = format!("the proxy {proxy} does not connect to {to}: ");
    // By the environment, first without an account.
    agent.env("HTTPS_PROXY", squid.url()).spawn();
    let wants = "it wants a user name and a password (HTTP status 407); set them in HTTPS_PROXY";
    agent.process().logged(&format!("{refused}{wants}"), SOON).await;
    agent.env("HTTPS_PROXY", format!("http://{PROXY_USER}:wrong@{proxy}")).restart_without_waiting();
    let wrong =
        "it does not take the user name and the password of HTTPS_PROXY (HTTP status 407); check them";
    agent.process().logged(&format!("{refused}{wrong}"), SOON).await;
    // Exempt from the proxy the way is free.
    agent.env("NO_PROXY", "intra.test, localhost").restart().await;
    hub.api.succeed(&drop_job("a.csv", "x")).await;
    agent.env("NO_PROXY", "intra.test").restart_without_waiting();
    // Enrolled by now: the tunnel says the same, and so does `check`.
    until("the agent's port", SOON, async || agent.readiness().await).await;
    until("the agent to say why it is not ready", SOON, async || {
        let status = agent.status().await;
        status["connection"]["why"].as_str().filter(|why| *why == format!("{refused}{wrong}")).map(drop)
    })
    .await;
    let check = agent.output(&["check", "--json"]);
    assert_eq!(check.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    let item =
        |link: &str| report["items"].as_array().unwrap().iter().find(|i| i["link"] == link).unwrap().clone();
    let (detail, fix) = (format!("{refused}{wrong}"), "check them");
    let expected = json!({
        "link": "hub connection", "status": "fail", "fix": fix,
        "detail": detail.strip_suffix("; check them").unwrap(),
    });
    assert_eq!(item("hub connection"), expected);
    assert_eq!(item("tunnel")["detail"], "skipped because hub connection failed");
    agent.kill();
    let log = agent.process().log();
    assert!(
        !log.contains("wrong@") && !log.contains("c3ZjLXBhc3NlcmVsbGU6"),
        "credentials of the proxy in the log"
    );
    // A right account, but a rule against the hub; and a port on which nothing listens.
    let account = |agent: &mut Agent| {
        let password = PROXY_PASSWORD.replace('@', "%40").replace(':', "%3A");
        agent.env("HTTPS_PROXY", format!("http://{PROXY_USER}:{password}@{proxy}"));
    };
    account(&mut agent);
    agent.through(&format!("https://{FORBIDDEN_NAME}")).spawn();
    let refuses = format!(
        "the proxy {proxy} does not connect to {FORBIDDEN_NAME}:443: it refuses (HTTP status 403); \
         ask its administrator for a rule that lets this machine reach {FORBIDDEN_NAME}:443"
    );
    agent.process().logged(&refuses, SOON).await;
    agent.through("https://localhost:1").restart_without_waiting();
    let cannot = format!(
        "the proxy {proxy} does not connect to localhost:1: it cannot reach the hub itself (HTTP status 503, \
         ERR_CONNECT_FAIL); check hub.url, and ask its administrator about its DNS and its way out"
    );
    agent.process().logged(&cannot, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_itself_spoken_to_in_tls_is_one_like_any_other() {
    let (hub, squid) = (Hub::start_tls().await, Squid::start().await);
    let files = tempfile::tempdir().unwrap();
    let mut agent = agent(&hub, &files);
    // Two authorities in one file: the hub's and the proxy's.
    agent.file("ca.pem", format!("{}\n{}", hub.certificate().unwrap(), squid.certificate));
    account(&mut agent, &format!("https://localhost:{}", squid.tls_port), PROXY_PASSWORD);
    agent.hub_key("ca_file = \"ca.pem\"").start().await;
    payloads_go_both_ways(&hub, files.path(), "a.bin").await;
    agent.kill();
    // Spoken to in plain text it is no HTTP proxy.
    let text = std::fs::read_to_string(agent.folder().join("agent.toml")).unwrap();
    let port = squid.tls_port;
    agent.file(
        "agent.toml",
        text.replace(&format!("https://localhost:{port}"), &format!("http://localhost:{port}")),
    );
    agent.spawn_as_it_is();
    let line = agent
        .process()
        .logged(&format!("the proxy localhost:{} does not connect to", squid.tls_port), SOON)
        .await;
    assert!(
        line.contains("what answers there does not speak HTTP; check the address in hub.proxy")
            || line.contains("it closed the connection without an answer; "),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_inspects_tls_is_named_without_its_ca_and_works_with_it() {
    let (hub, inspector) = (Hub::start_tls().await, Mitmproxy::start().await);
    let files = tempfile::tempdir().unwrap();
    let mut agent = agent(&hub, &files);
    agent.hub_key(&format!("proxy = {{ url = \"{}\" }}", inspector.url())).spawn();
    let named = format!(
        "no TLS with localhost:{}: the certificate was issued by \"mitmproxy\", which this machine does not trust; if that \
         is your company's TLS inspection or your own CA, put its CA certificate into a file and set hub.ca_file",
        hub.port()
    );
    // A line of the log escapes the quotes of what it quotes.
    agent.process().logged(&named.replace('"', "\\\""), SOON).await;
    agent.kill();
    agent.file("corporate-ca.pem", &inspector.ca);
    agent.hub_key("ca_file = \"corporate-ca.pem\"");
    agent.start().await;
    payloads_go_both_ways(&hub, files.path(), "a.bin").await;
    assert!(inspector.log().contains("/agent/v1/"), "it did not go through mitmproxy:\n{}", inspector.log());
    // An interception that works is told all the same.
    let check = agent.output(&["check"]);
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success(), "{text}");
    assert!(
        text.contains("issued by \"mitmproxy\"")
            && text.contains("trusted only through hub.ca_file: your own CA, or TLS inspection"),
        "{text}"
    );
    assert!(text.contains("WebSocket upgrades come through"), "{text}");
}

/// What an agent says that finds this in the place of its hub, with the front's CA in its `ca_file`.
async fn refusal(options: FrontOptions, host: &str, expected: &str) {
    let hub = Hub::start().await;
    let front = Front::start(hub.port(), options).await;
    let files = tempfile::tempdir().expect("a temporary folder");
    let mut agent = agent(&hub, &files);
    agent.file("ca.pem", &front.ca);
    agent.hub_key("ca_file = \"ca.pem\"");
    agent.through(&front.url(host)).spawn();
    agent.process().logged(&format!("no TLS with {host}:{}: {expected}", front.port), SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_told_with_its_day_and_the_clock() {
    let options = FrontOptions { valid: (2020, 2024), ..FrontOptions::default() };
    refusal(options, "localhost", "the certificate expired on 2024-01-01 (this machine's clock says 20")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_tomorrow_and_one_for_another_name_are_told() {
    let options = FrontOptions { valid: (2055, 2060), ..FrontOptions::default() };
    refusal(
        options,
        "localhost",
        "the certificate is valid from 2055-01-01 on only (this machine's clock says 20",
    )
    .await;
    let options = FrontOptions { name: "hub.example.com".to_owned(), ..FrontOptions::default() };
    let other = "the certificate is for hub.example.com, not for localhost; write a name of the certificate in the URL, or \
                 have one issued for this name";
    refusal(options, "localhost", other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_protocols_and_weak_ciphers_are_refused() {
    let options = FrontOptions {
        protocols: "TLSv1.1".to_owned(),
        ciphers: "ALL:@SECLEVEL=0".to_owned(),
        ..FrontOptions::default()
    };
    refusal(options, "localhost", "it offers no TLS 1.2 or newer; have it updated").await;
    let options = FrontOptions {
        protocols: "TLSv1.2".to_owned(),
        ciphers: "ECDHE-ECDSA-AES128-SHA:AES128-SHA:@SECLEVEL=0".to_owned(),
        ..FrontOptions::default()
    };
    let weak = "it offers none of the cipher suites that are taken here (TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM or \
                ChaCha20-Poly1305); have it updated";
    refusal(options, "localhost", weak).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_that_wants_a_certificate_gets_it_over_ipv6_too() {
    let hub = Hub::start().await;
    let options = FrontOptions {
        address: std::net::Ipv6Addr::LOCALHOST.into(),
        name: "::1".to_owned(),
        client_certificate: true,
        ..FrontOptions::default()
    };
    let front = Front::start(hub.port(), options).await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = agent(&hub, &files);
    let (certificate, key) = front.client_certificate();
    agent.file("ca.pem", &front.ca).file("agent.pem", certificate).secret("agent-tls-key", &key);
    agent.through(&front.url("[::1]")).hub_key("ca_file = \"ca.pem\"");
    agent.spawn();
    // nginx takes the connection and refuses the request.
    agent.process().logged("does not answer as a Passerelle hub (HTTP status 400", SOON).await;
    agent.kill();
    agent.hub_key("client_cert = \"agent.pem\"\nclient_key = { file = \"secrets/agent-tls-key\" }");
    agent.start().await;
    payloads_go_both_ways(&hub, files.path(), "a.bin").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_takes_the_connection_and_never_answers_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let mut agent = Agent::at("https://hub.test", "paris-1");
    agent.hub_key(&format!("proxy = {{ url = \"http://{address}\" }}")).write();
    let start = Instant::now();
    let check = agent.output(&["check"]);
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    let told = format!("the proxy {address} does not connect to hub.test:443: no answer within 20 s");
    assert!(text.contains(&told), "{text}");
    assert!(text.contains("fix: a firewall may drop the packets without a word"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}
