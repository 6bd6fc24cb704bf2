//! The hub as seen over plain HTTPS: enrolment, health, payloads. Same host, trust and proxy as the tunnel.

pub mod certificate;
pub mod dial;
mod no_proxy;
pub mod payload;
pub mod proxy;
pub mod stream;
pub mod tls;
pub mod words;

#[cfg(test)]
#[path = "tests.rs"]
mod transfers;

use crate::{clock, exit::Stop, identity::Identity, settings::Settings};
use passerelle_connectors::causes::chain;
use passerelle_protocol::http::Problem;
use proxy::Proxy;
use reqwest::{Response, StatusCode, header::HeaderMap};
use rustls::ClientConfig;
use std::{error::Error, sync::Arc, time::Duration};
use url::Url;

/// How long a connection to the hub may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection that is older may have died unseen: a transfer over it would wait in vain for as long as it may.
const POOL_IDLE: Duration = Duration::from_secs(5);
/// How long the hub may stay silent within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest body of an answer that is no payload.
const MAX_BODY: usize = 64 * 1024;
/// How much of what a refusal says is shown.
const MAX_DETAIL: usize = 1000;

/// How the hub is reached.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Its base URL.
    pub url: Url,
    /// Trust and protocol settings of TLS.
    pub tls: Arc<ClientConfig>,
    /// The proxy in between.
    pub proxy: Option<Proxy>,
    client: reqwest::Client,
}

impl Hub {
    /// Prepares the client; connects to nothing.
    pub fn new(settings: &Settings) -> Result<Self, Stop> {
        let section = &settings.config.hub;
        let base = &settings.config.dir;
        let tls = tls::client_config(section, base)?;
        let proxy = Proxy::choose(section, base, &|name| std::env::var(name).ok())?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(&tls))
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .pool_max_idle_per_host(8)
            .pool_idle_timeout(POOL_IDLE)
            .user_agent(concat!("passerelle-agent/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = &proxy {
            builder = builder.proxy(proxy.for_reqwest()?);
        }
        let client = builder.build().map_err(|e| Stop::Bug(format!("no HTTP client: {}", chain(&e))))?;
        Ok(Self { url: section.url.clone(), tls, proxy, client })
    }

    /// The URL of a path at the hub.
    pub fn at(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{path}", self.url.path().trim_end_matches('/')));
        url.set_query(None);
        url
    }

    /// A request without credentials.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, self.at(path))
    }

    /// A request with a fresh token of the agent.
    pub fn authorised(
        &self,
        identity: &Identity,
        method: reqwest::Method,
        path: &str,
    ) -> Result<reqwest::RequestBuilder, Stop> {
        Ok(self.request(method, path).header(reqwest::header::AUTHORIZATION, identity.bearer()?))
    }

    /// An error in words; what TLS has to say comes with what to do.
    pub fn explain(&self, error: &(dyn Error + 'static)) -> String {
        match words::Trouble::of_tls(error) {
            Some(trouble) => format!("no TLS with {}: {trouble}", self.address()),
            None => chain(error),
        }
    }
}

/// The hub's no, as a problem document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: String,
    /// What is wrong; with the clock difference if there is one.
    pub message: String,
    /// The clocks differ by more than is tolerated: an expired credential may be due to that.
    pub clock: bool,
    /// When to come back.
    pub retry_after: Option<Duration>,
}

impl Refused {
    /// Reads a problem document; `None` if it is none (then the answer is not a hub's).
    pub fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let problem: Problem = serde_json::from_slice(body).ok()?;
        let tolerated = passerelle_protocol::limits::CLOCK_SKEW.as_secs().cast_signed();
        let clock = problem.server_time.and_then(|time| clock::difference(time, tolerated));
        // It goes to terminals and logs, whatever a hub or something between writes into it.
        let detail = problem.detail.unwrap_or(problem.title);
        let detail: String =
            detail.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_DETAIL).collect();
        Some(Self {
            status: status.as_u16(),
            code: problem.code,
            message: clock.as_ref().map_or_else(|| detail.clone(), |clock| format!("{detail}; {clock}")),
            clock: clock.is_some(),
            retry_after: retry_after(headers),
        })
    }
}

/// The `Retry-After` header in seconds (RFC 9110 §10.2.3; dates are ignored).
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Reads a small body, bounded.
pub async fn body(mut response: Response) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = MAX_BODY - body.len();
        body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        if body.len() >= MAX_BODY {
            break;
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_document_is_read_with_the_clock_difference() {
        let body = format!(
            r#"{{"type":"about:blank","title":"Unauthorized","status":401,"code":"unauthorized","detail":"the token is out of date","server_time":"{}"}}"#,
            clock::now() + jiff::SignedDuration::from_secs(3600)
        );
        let refused = Refused::read(StatusCode::UNAUTHORIZED, &HeaderMap::new(), body.as_bytes()).unwrap();
        assert!(refused.clock && refused.code == "unauthorized");
        assert!(refused.message.contains("out of date; this machine's clock is 3"), "{}", refused.message);
        assert_eq!(Refused::read(StatusCode::NOT_FOUND, &HeaderMap::new(), b"<html>"), None);
        let long = "x".repeat(5000);
        let body = format!(
            r#"{{"type":"about:blank","title":"","status":403,"code":"x","detail":"red \u001b[31m\n{long}"}}"#
        );
        let refused = Refused::read(StatusCode::FORBIDDEN, &HeaderMap::new(), body.as_bytes()).unwrap();
        assert!(refused.message.starts_with("red  [31m x") && refused.message.len() == MAX_DETAIL);
    }
}
