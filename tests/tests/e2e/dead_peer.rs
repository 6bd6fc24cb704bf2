//! A network that loses every packet without a word: no RST, no FIN, no ICMP.

use crate::common::{SITE, drop_into};
use passerelle_tests::{Agent, Hub, Network, free_port, http_client, resources, until};
use serde_json::json;
use std::{
    io::Write as _,
    time::{Duration, Instant},
};

/// How long either side may take to notice.
const NOTICED: Duration = Duration::from_secs(30);
/// How long the agent may take to be back.
const BACK: Duration = Duration::from_secs(5);

/// How often it dials in vain before the network returns.
const DIALLED: f64 = 4.0;

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_packets_are_lost_is_noticed_by_both_sides_and_back_soon_after() {
    if let Some(why) = Network::missing() {
        eprintln!("{why}");
        return;
    }
    let network = Network::start();
    let hub = Hub::start_tls_at(&network.here().to_string()).await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.file("hub-ca.pem", hub.certificate().unwrap());
    // The local port is asked from here: only what goes to and comes from the hub is lost.
    let local = format!("{}:{}", network.there(), free_port());
    agent
        .hub_key("ca_file = \"hub-ca.pem\"")
        .env("PASSERELLE_LISTEN", &local)
        .behind(&["ip", "netns", "exec", network.name()])
        .spawn();
    let client = http_client();
    let ready = async || {
        let answer = client.get(format!("http://{local}/readyz")).send().await;
        answer.ok().map(|answer| answer.status().as_u16())
    };
    let is_ready = async || (ready().await == Some(200)).then_some(());
    until("the agent to be ready", passerelle_tests::PATIENCE, is_ready).await;
    hub.api.agents_online(SITE, 1).await;
    hub.api.succeed(&drop_into("compta", "before.csv", json!({"text": "x"}))).await;

    network.lose(hub.port(), true);
    let lost = Instant::now();
    let meanwhile = hub.api.submit(&drop_into("compta", "meanwhile.csv", json!({"text": "x"}))).await;
    let (at_agent, at_hub) = tokio::join!(
        async {
            let unready = async || (ready().await == Some(503)).then_some(());
            until("the agent to notice", NOTICED, unready).await;
            lost.elapsed()
        },
        async {
            hub.api.agents_online(SITE, 0).await;
            lost.elapsed()
        },
    );
    assert!(
        at_agent <= NOTICED && at_hub <= NOTICED,
        "noticed by the agent after {at_agent:?}, by the hub after {at_hub:?}"
    );

    // Long enough for the agent to have dialled in vain several times: its patience must not have grown with it.
    let dialled = async || {
        let metrics = client.get(format!("http://{local}/metrics")).send().await.ok()?.text().await.ok()?;
        let lost =
            metrics.lines().find_map(|line| line.strip_prefix("passerelle_agent_tunnel_reconnects_total "));
        lost?.parse::<f64>().ok().filter(|lost| *lost >= DIALLED)
    };
    until("the agent to dial in vain", 2 * passerelle_tests::PATIENCE, dialled).await;

    network.lose(hub.port(), false);
    let returned = Instant::now();
    until("the agent to be ready again", passerelle_tests::PATIENCE, is_ready).await;
    let back = returned.elapsed();
    // Past the capturing of the test runner: the figures belong into every log.
    writeln!(
        std::io::stderr(),
        "lost packets noticed by the agent after {at_agent:.1?}, by the hub after {at_hub:.1?}; back after {back:.1?}"
    )
    .unwrap();
    assert!(back <= BACK, "back {back:?} after the network");
    hub.api.reach(&meanwhile, &["succeeded"]).await;
}
