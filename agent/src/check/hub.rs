//! The way to the hub, link by link, and what the hub thinks of this agent.
//!
//! The tunnel is tried without opening one: a request that is a WebSocket upgrade in all but the subprotocol. The hub
//! answers 400 to it (`docs/protocol.md` §5) once it has taken the token, 426 if something in between took the upgrade
//! away, and in neither case a session that would fence the running agent's.

use super::{Item, State};
use crate::{
    clock,
    exit::Stop,
    hub::{CONNECT_TIMEOUT, Hub, Refused, body, certificate::Facts, dial::Connection, tls},
    identity::Identity,
    settings::Settings,
};
use jiff::Timestamp;
use passerelle_protocol::{http::TUNNEL_PATH, limits::CLOCK_SKEW};
use reqwest::{Method, StatusCode, header};
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{net::lookup_host, time::timeout};
use tokio_rustls::client::TlsStream;

/// The clock difference that is worth a word, in seconds.
const CLOCK: i64 = 10;
/// A certificate that expires within so many days is worth a word.
const EXPIRES_SOON: i64 = 14;

/// The links in their order; what depends on a failed one is skipped.
const LINKS: [&str; 7] = ["hub name", "proxy", "hub connection", "hub TLS", "hub", "clock", "tunnel"];

pub(super) async fn check(settings: &Settings, identity: Option<Identity>) -> Vec<Item> {
    let hub = match Hub::new(settings) {
        Ok(hub) => hub,
        Err(stop) => return vec![Item::fail("hub settings", stop.to_string(), "mend the named setting")],
    };
    let mut items = Vec::new();
    look(&hub, identity.as_ref(), &mut items).await;
    // Whatever was not reached.
    if let Some(broken) =
        items.iter().rev().find(|item| item.status == State::Fail).map(|item| item.link.clone())
    {
        for link in LINKS {
            let applies = match link {
                "proxy" => hub.proxy.is_some(),
                "hub TLS" => hub.url.scheme() == "https",
                _ => true,
            };
            if applies && !items.iter().any(|item| item.link == link) {
                items.push(Item::skipped(link, format!("{broken} failed")));
            }
        }
    }
    items
}

/// Looks at one link after the other, and stops at the first that nothing behind it can do without.
async fn look(hub: &Hub, identity: Option<&Identity>, items: &mut Vec<Item>) {
    let Some(way) = way(hub, items).await else { return };
    if hub.url.scheme() == "https" {
        match hub.handshake(hub.host(), &hub.address(), way).await {
            Ok(stream) => items.push(certificate(hub, &stream)),
            Err(error) => return items.push(Item::fail_with_fix("hub TLS", &error.to_string())),
        }
    }
    let answer = match hub.request(Method::GET, "/healthz").send().await {
        Ok(answer) => answer,
        Err(e) => {
            return items
                .push(Item::fail_with_fix("hub", &format!("{}; a proxy may interfere", hub.explain(&e))));
        }
    };
    let (status, headers) = (answer.status(), answer.headers().clone());
    let health = body(answer).await.unwrap_or_default();
    let is_hub = is_a_hub(hub).await;
    items.push(match (is_hub, status.is_success()) {
        (true, true) => {
            Item::ok("hub", format!("{} is a Passerelle hub{}, and healthy", hub.url, version(&health)))
        }
        (true, false) => Item::fail(
            "hub",
            format!("the hub is not healthy (HTTP status {status})"),
            "tell whoever runs the hub",
        ),
        (false, _) => Item::fail(
            "hub",
            format!("{} does not answer as a Passerelle hub (HTTP status {status})", hub.url),
            "check hub.url, and whether a proxy or login page answers in its place",
        ),
    });
    if !is_hub {
        return;
    }
    let date = headers.get(header::DATE).and_then(|v| v.to_str().ok());
    let mut clock_is_off = false;
    if let Some(server_time) = date.and_then(|d| jiff::fmt::rfc2822::parse(d).ok()).map(|at| at.timestamp()) {
        let item = clock_item(server_time);
        clock_is_off = item.status == State::Fail;
        items.push(item);
    }
    match identity {
        None => items.push(Item::skipped("tunnel", "this agent is not enrolled yet")),
        Some(_) if clock_is_off => {
            items.push(Item::skipped("tunnel", "the clocks differ: no credential would be taken"))
        }
        Some(identity) => items.push(tunnel(hub, identity).await),
    }
}

/// A connection that leads to the hub.
async fn way(hub: &Hub, items: &mut Vec<Item>) -> Option<Box<dyn Connection>> {
    let Some(proxy) = &hub.proxy else {
        items.push(name("hub name", &hub.address()).await);
        if items.last().is_some_and(|item| item.status == State::Fail) {
            return None;
        }
        return match hub.way().await {
            Ok(way) => {
                items.push(Item::ok("hub connection", format!("TCP to {}", hub.address())));
                Some(way)
            }
            Err(error) => {
                items.push(Item::fail_with_fix("hub connection", &error.to_string()));
                None
            }
        };
    };
    items.push(Item::ok("hub name", format!("{} is for the proxy to resolve", hub.host())));
    let from = proxy.source;
    let mut way = match hub.to_proxy(proxy).await {
        Ok(way) => {
            items.push(Item::ok("proxy", format!("{} ({from}) can be reached", proxy.address())));
            way
        }
        Err(error) => {
            items.push(Item::fail_with_fix("proxy", &error.to_string()));
            return None;
        }
    };
    match hub.through(proxy, &mut way).await {
        Ok(()) => {
            items.push(Item::ok("hub connection", format!("the proxy connects to {}", hub.address())));
            Some(way)
        }
        Err(error) => {
            items.push(Item::fail_with_fix("hub connection", &error.to_string()));
            None
        }
    }
}

async fn name(link: &str, address: &str) -> Item {
    let fix = "check the name in the configuration, and the DNS servers of this machine or container";
    match timeout(CONNECT_TIMEOUT, lookup_host(address)).await {
        Ok(Ok(found)) => {
            let found: Vec<String> = found.map(|address| address.ip().to_string()).collect();
            Item::ok(link, format!("{address} is {}", found.join(", ")))
        }
        Ok(Err(e)) => Item::fail(link, format!("{address}: {e}"), fix),
        Err(_) => Item::fail(link, format!("{address}: no answer of the DNS within 10 s"), fix),
    }
}

/// Chain, days to expiry, and whether it is trusted only through `hub.ca_file`.
fn certificate(hub: &Hub, stream: &TlsStream<Box<dyn Connection>>) -> Item {
    let (_, connection) = stream.get_ref();
    let chain = connection.peer_certificates().unwrap_or_default();
    let facts = chain.first().and_then(|leaf| Facts::read(leaf));
    let version = connection.protocol_version().map_or(String::new(), |v| format!("{v:?}").replace('_', "."));
    let Some(facts) = facts else { return Item::ok("hub TLS", version) };
    let through = if only_through_ca_file(hub, chain) {
        ", trusted only through hub.ca_file: your own CA, or TLS inspection"
    } else {
        ""
    };
    let issuers: Vec<String> =
        chain.iter().filter_map(|c| Facts::read(c)).map(|facts| facts.issuer()).collect();
    let found = format!("{version}, certificate issued by {}{through}", issuers.join(", itself by "));
    let left = facts.not_after.map(|end| (end.as_second() - clock::unix_seconds()) / 86_400);
    match left {
        Some(days) if days < EXPIRES_SOON => Item::warn(
            "hub TLS",
            format!("{found}, expires in {days} days"),
            "tell whoever runs the hub (or your TLS inspection) to renew it",
        ),
        Some(days) => Item::ok("hub TLS", format!("{found}, expires in {days} days")),
        None => Item::ok("hub TLS", found),
    }
}

fn only_through_ca_file(hub: &Hub, chain: &[CertificateDer<'_>]) -> bool {
    let (Some((leaf, rest)), Ok(name)) = (chain.split_first(), ServerName::try_from(hub.host().to_owned()))
    else {
        return false;
    };
    // It was verified just now: what the system's roots alone refuse is trusted through the file.
    tls::system_verifier()
        .is_none_or(|system| system.verify_server_cert(leaf, rest, &name, &[], UnixTime::now()).is_err())
}

/// An agent's call without a token: a hub answers with its own kind of problem document.
async fn is_a_hub(hub: &Hub) -> bool {
    let Ok(answer) = hub.request(Method::GET, TUNNEL_PATH).send().await else { return false };
    let (status, headers) = (answer.status(), answer.headers().clone());
    body(answer).await.is_ok_and(|body| Refused::read(status, &headers, &body).is_some())
}

fn version(health: &[u8]) -> String {
    let health: Option<serde_json::Value> = serde_json::from_slice(health).ok();
    let version = health.as_ref().and_then(|health| health.get("version")?.as_str());
    let fits = |v: &&str| v.len() <= 32 && v.chars().all(|c| c.is_ascii_graphic());
    version.filter(fits).map_or(String::new(), |version| format!(" of version {version}"))
}

fn clock_item(server_time: Timestamp) -> Item {
    let fix = "run an NTP client on this machine's host";
    let detail = |told: String| told.split_once("; ").map_or(told.clone(), |(detail, _)| detail.to_owned());
    match (
        clock::difference(server_time, CLOCK_SKEW.as_secs().cast_signed()),
        clock::difference(server_time, CLOCK),
    ) {
        (Some(told), _) => Item::fail("clock", detail(told), fix),
        (None, Some(told)) => Item::warn("clock", detail(told), fix),
        (None, None) => Item::ok("clock", "as the hub's"),
    }
}

/// Whether the hub takes this agent's identity, and whether an upgrade comes through.
async fn tunnel(hub: &Hub, identity: &Identity) -> Item {
    let request = match hub.authorised(identity, Method::GET, TUNNEL_PATH) {
        Ok(request) => request,
        Err(Stop::Failed(e) | Stop::Configuration(e) | Stop::Refused(e) | Stop::Bug(e)) => {
            return Item::fail("tunnel", e, "see the message");
        }
    };
    let request = request
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13");
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(e) => {
            return Item::fail_with_fix("tunnel", &format!("{}; a proxy may interfere", hub.explain(&e)));
        }
    };
    let (status, headers) = (answer.status(), answer.headers().clone());
    let Some(refused) = body(answer).await.ok().and_then(|body| Refused::read(status, &headers, &body))
    else {
        let detail = format!("what answers there is no hub (HTTP status {status})");
        return Item::fail(
            "tunnel",
            detail,
            "something in between answers to WebSocket upgrades: let them through",
        );
    };
    match status {
        StatusCode::BAD_REQUEST => {
            Item::ok("tunnel", "the hub takes this agent's identity, and WebSocket upgrades come through")
        }
        StatusCode::UPGRADE_REQUIRED => Item::fail(
            "tunnel",
            "the hub takes this agent's identity, but something in between removes WebSocket upgrades",
            "let `Upgrade: websocket` through to the hub, or exempt it from inspection",
        ),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Item::fail(
            "tunnel",
            format!("the hub refuses this agent: {}", refused.message),
            "ask whoever runs the hub why; to enrol anew: make a new token and run `passerelle-agent re-enrol`",
        ),
        _ => Item::warn("tunnel", format!("the hub says: {refused}"), "try again in a moment"),
    }
}
