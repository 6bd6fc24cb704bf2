//! A look at an application for the operator: its name, TCP, TLS, the access token if there is one, and what it answers to
//! a HEAD of its URL. No other request is sent: to an application whose ways nobody here knows, it could be an effect.

use super::{Http, client::Credentials, exchange, fault};
use crate::{Code, Examine, Failure, Link, address, causes::chain, examine::Links};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use std::{
    error::Error,
    io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::lookup_host;
use url::Url;

/// Where the first connection goes: to the application, or to the resource's own proxy.
struct Way {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    /// Whether it is the proxy.
    proxy: bool,
}

/// Looks at every link up to the first that fails.
pub(super) async fn examine(http: &Http, what: Examine) -> Vec<Link> {
    let mut links = Links::default();
    let way = way(http);
    let fetches = matches!(http.credentials, Credentials::Oauth(_));
    let later: Vec<&'static str> = fetches.then_some("token").into_iter().chain(["answer"]).collect();
    let addresses = match resolve(&way, what.timeout).await {
        Ok(addresses) => addresses,
        Err(failure) => {
            links.failed("name", failure);
            links.skipped(["connection"]);
            links.skipped(way.tls.as_ref().map(|_| "TLS"));
            links.skipped(later);
            return links.finish();
        }
    };
    let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let whose = if way.proxy { "the resource's proxy " } else { "" };
    links.passed("name", format!("{whose}{} is {}", way.host, shown.join(", ")));
    let (name, timeout) = (format!("{whose}{}:{}", way.host, way.port), what.timeout);
    let speaks_tls = way.tls.is_some();
    let looked = tokio::task::spawn_blocking(move || connect(&way, &addresses, timeout));
    match looked.await {
        Ok(Ok(tls)) => {
            links.passed("connection", format!("TCP to {name}"));
            if let Some(version) = tls {
                links.passed("TLS", version);
            }
            requests(http, what.timeout, fetches, &mut links).await;
        }
        Ok(Err((link, failure))) => {
            if link == "TLS" {
                links.passed("connection", format!("TCP to {name}"));
            }
            let detail = failure.detail.clone().unwrap_or_default();
            links.failed(link, failure.detail(format!("{name}: {detail}")));
            links.skipped((link == "connection" && speaks_tls).then_some("TLS"));
            links.skipped(later);
        }
        Err(e) => {
            links.failed(
                "connection",
                Failure::retry(Code::Internal, "the connecting thread ended early").detail(e),
            );
            links.skipped(later);
        }
    }
    links.finish()
}

/// What is asked for over the connection: the token, and whether the application is there and takes it.
async fn requests(http: &Http, timeout: Duration, fetches: bool, links: &mut Links) {
    if fetches {
        let fetched = tokio::time::timeout(timeout, http.credentials.shown()).await;
        let late =
            || Failure::retry(Code::TargetTimeout, "the resource's token server did not answer in time");
        if let Err(failure) = fetched.unwrap_or_else(|_| Err(late())) {
            links.failed("token", failure);
            links.skipped(["answer"]);
            return;
        }
        links.passed("token", "the token server gives one");
    }
    match exchange::look(http, timeout).await {
        Ok(status) => {
            let taken =
                if matches!(http.credentials, Credentials::None) { "" } else { ", credentials not refused" };
            links.passed("answer", format!("status {} to HEAD {}{taken}", status.as_u16(), http.base));
        }
        Err(failure) => links.failed("answer", failure),
    }
}

fn way(http: &Http) -> Way {
    let (url, proxy): (&Url, bool) = match &http.proxy {
        Some(proxy) => (proxy, true),
        None => (&http.base, false),
    };
    Way {
        host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
        port: url.port_or_known_default().unwrap_or(80),
        tls: (url.scheme() == "https").then(|| Arc::clone(&http.tls)),
        proxy,
    }
}

async fn resolve(way: &Way, timeout: Duration) -> Result<Vec<SocketAddr>, Failure> {
    let unresolved = |cause: &dyn std::fmt::Display| {
        let message = "the name in the resource's url does not resolve; check the name and the agent's DNS";
        Failure::retry(Code::TargetUnreachable, message).detail(format!("{}: {cause}", way.host))
    };
    let found = match tokio::time::timeout(timeout, lookup_host((way.host.as_str(), way.port))).await {
        Ok(found) => found.map(Vec::from_iter).map_err(|e| unresolved(&e))?,
        Err(_) => return Err(unresolved(&"no answer of the DNS in time")),
    };
    // The proxy is the operator's own word; the application's name is held to the same rule as a job's connection.
    if way.proxy {
        return Ok(found);
    }
    let allowed: Vec<_> = found.iter().copied().filter(|a| !address::is_blocked(a.ip())).collect();
    match (allowed.is_empty(), found.first()) {
        (false, _) => Ok(allowed),
        (true, Some(blocked)) => {
            let message =
                "the resource's host has a link-local or cloud metadata address, which is always blocked";
            Err(Failure::denied(Code::PolicyDenied, message).detail(format!(
                "{} is {}",
                way.host,
                blocked.ip()
            )))
        }
        (true, None) => Err(unresolved(&"no address")),
    }
}

/// TCP, then TLS if it is spoken: its version, or the link that failed.
fn connect(
    way: &Way,
    addresses: &[SocketAddr],
    timeout: Duration,
) -> Result<Option<String>, (&'static str, Failure)> {
    let deadline = Instant::now() + timeout;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    let mut stream = None;
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(address, left) {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(e) => last = e,
        }
    }
    let Some(mut stream) = stream else {
        let timed_out = last.kind() == io::ErrorKind::TimedOut;
        let failure = Failure::retry(Code::TargetUnreachable, fault::unreachable(&last, timed_out));
        return Err(("connection", failure.detail(last)));
    };
    let Some(config) = &way.tls else { return Ok(None) };
    let failed = |error: &(dyn Error + 'static)| {
        (
            "TLS",
            Failure::retry(Code::TargetUnreachable, fault::unreachable(error, false)).detail(chain(error)),
        )
    };
    let name = ServerName::try_from(way.host.clone()).map_err(|e| failed(&e))?;
    let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(|e| failed(&e))?;
    stream
        .set_read_timeout(Some(timeout))
        .and_then(|()| stream.set_write_timeout(Some(timeout)))
        .map_err(|e| failed(&e))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).map_err(|e| failed(&e))?;
    }
    let shows = if config.client_auth_cert_resolver.has_certs() { ", client_cert at hand" } else { "" };
    let version = tls.protocol_version();
    let version = version.map_or("TLS".to_owned(), |version| format!("{version:?}").replace('_', "."));
    Ok(Some(format!("{version}{shows}")))
}
