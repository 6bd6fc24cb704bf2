//! The proxy towards the hub: which one, and how it is asked for a connection (RFC 9110 §9.3.6).
//!
//! The proxy gets the hub's name as it stands in `hub.url` and resolves it itself: nothing here asks DNS for the hub
//! when there is a proxy, so an internal DNS that knows only internal names is enough. Its answer is bounded in bytes
//! here and in time by the caller.

use super::{no_proxy, words::Trouble};
use crate::exit::Stop;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use passerelle_config::HubSection;
use passerelle_connectors::causes::chain;
use percent_encoding::percent_decode_str;
use std::{fmt, path::Path};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use url::Url;

/// The longest head of an answer to CONNECT.
const MAX_HEAD: usize = 16 * 1024;
/// The variables that name a proxy, the first one that is set counts.
const VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// The proxy towards the hub.
#[derive(Clone)]
pub struct Proxy {
    /// `http` or `https`, host and port; no credentials.
    url: Url,
    auth: Option<HeaderValue>,
    /// Where it is configured, for messages.
    pub source: &'static str,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address(), self.source)
    }
}

impl Proxy {
    /// The configured proxy, else that of the environment; none for plain HTTP, which stays on this machine.
    ///
    /// # Errors
    /// If the configured password cannot be read, or the environment names something that is no proxy.
    pub fn choose(
        section: &HubSection,
        base: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, Stop> {
        if section.url.scheme() != "https" {
            return Ok(None);
        }
        if let Some(proxy) = &section.proxy {
            let password = proxy.password.as_ref().map(|secret| secret.read(base)).transpose();
            let password = password.map_err(|e| Stop::Configuration(format!("hub.proxy.password: {e}")))?;
            let auth = proxy
                .username
                .as_ref()
                .map(|username| basic(username, password.as_ref().map_or("", |secret| secret.expose())));
            return Ok(Some(Self { url: proxy.url.clone(), auth: auth.transpose()?, source: "hub.proxy" }));
        }
        let found = VARIABLES.into_iter().find_map(|name| Some((name, env(name)?)));
        let Some((source, text)) = found.filter(|(_, text)| !text.trim().is_empty()) else { return Ok(None) };
        let exempt = env("NO_PROXY").or_else(|| env("no_proxy")).unwrap_or_default();
        let port = section.url.port_or_known_default().unwrap_or(443);
        if no_proxy::lists(&exempt, section.url.host_str().unwrap_or_default(), port) {
            return Ok(None);
        }
        Self::from_text(source, text.trim()).map(Some)
    }

    /// A proxy as environment variables write it: `http://user:password@host:port`, or without the scheme. The text is
    /// never repeated in a message: it may hold a password.
    fn from_text(source: &'static str, text: &str) -> Result<Self, Stop> {
        let wrong = |what: &str| {
            let example = "write http://host:port, or http://user:password@host:port";
            Stop::Configuration(format!("environment variable {source}: {what}: {example}"))
        };
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let mut url = Url::parse(&text).map_err(|e| wrong(&format!("not a URL ({e})")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(wrong("not the address of an HTTP proxy"));
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (username, password) = (decoded(url.username()), url.password().map(decoded));
        let auth = match (username.as_str(), password) {
            ("", None) => None,
            (username, password) => Some(basic(username, password.as_deref().unwrap_or_default())?),
        };
        if url.set_username("").is_err() || url.set_password(None).is_err() {
            return Err(wrong("not the address of an HTTP proxy"));
        }
        url.set_path("");
        url.set_query(None);
        Ok(Self { url, auth, source })
    }

    /// Its host, without brackets.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// Host and port.
    pub fn address(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        format!("{host}:{}", self.url.port_or_known_default().unwrap_or(80))
    }

    /// Whether it is itself spoken to in TLS.
    pub fn speaks_tls(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// The same proxy for the HTTP client.
    pub fn for_reqwest(&self) -> Result<reqwest::Proxy, Stop> {
        let proxy = reqwest::Proxy::all(self.url.as_str())
            .map_err(|e| Stop::Configuration(format!("{}: {}", self.source, chain(&e.without_url()))))?;
        Ok(match &self.auth {
            Some(auth) => proxy.custom_http_auth(auth.clone()),
            None => proxy,
        })
    }

    /// Asks for a connection to `to` (host and port).
    ///
    /// # Errors
    /// What the proxy's answer means, and what to do; an I/O error in words.
    pub async fn connect<S>(&self, stream: &mut S, to: &str) -> Result<(), String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n").into_bytes();
        if let Some(auth) = &self.auth {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(auth.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(
            concat!("User-Agent: passerelle-agent/", env!("CARGO_PKG_VERSION"), "\r\n\r\n").as_bytes(),
        );
        let broken = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => {
                Trouble::ProxyClosed.to_string()
            }
            _ => format!("the connection broke: {e}"),
        };
        stream.write_all(&request).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let mut head = Vec::with_capacity(512);
        // One byte at a time: what follows the head belongs to TLS. It is short, and asked for once per connection.
        loop {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    let trouble = if head.is_empty() { Trouble::ProxyClosed } else { self.no_http() };
                    return Err(trouble.to_string());
                }
                Err(e) => return Err(broken(e)),
            }
            if !b"HTTP/1.".starts_with(head.get(..7).unwrap_or(&head)) {
                return Err(self.no_http().to_string());
            }
            if head.ends_with(b"\r\n\r\n") || head.ends_with(b"\n\n") {
                break;
            }
            if head.len() >= MAX_HEAD {
                return Err(
                    Trouble::ProxyTooLong { kib: MAX_HEAD / 1024, source_key: self.source }.to_string()
                );
            }
        }
        self.judge(&String::from_utf8_lossy(&head), to).map_err(|trouble| trouble.to_string())
    }

    fn no_http(&self) -> Trouble {
        Trouble::ProxyNoHttp { source_key: self.source }
    }

    /// What the head of the proxy's answer means.
    fn judge(&self, head: &str, to: &str) -> Result<(), Trouble> {
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<u16>().ok());
        let Some(status) = status else { return Err(self.no_http()) };
        let values = |wanted: &str| {
            let found = head.lines().skip(1).filter_map(|line| line.split_once(':'));
            let found = found.filter(|(name, _)| name.trim().eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.trim().to_owned()).collect::<Vec<_>>()
        };
        Err(match status {
            200..=299 => return Ok(()),
            407 => {
                let schemes = values("proxy-authenticate");
                let mut schemes: Vec<&str> =
                    schemes.iter().filter_map(|value| value.split_ascii_whitespace().next()).collect();
                schemes.dedup();
                let basic = schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic"));
                if !basic && !schemes.is_empty() {
                    Trouble::ProxyScheme { schemes: clean(&schemes.join(" or ")) }
                } else if self.auth.is_some() {
                    Trouble::ProxyPassword { source_key: self.source }
                } else {
                    Trouble::ProxyWantsPassword { source_key: self.source }
                }
            }
            401 | 403 | 451 => Trouble::ProxyRefuses { status, to: to.to_owned() },
            500..=599 => {
                // Squid's word for it: `ERR_DNS_FAIL`, `ERR_CONNECT_FAIL`.
                let why = values("x-squid-error");
                let why = why.first().and_then(|value| value.split_ascii_whitespace().next());
                Trouble::ProxyCannot {
                    status,
                    why: why.map_or(String::new(), |why| format!(", {}", clean(why))),
                }
            }
            _ => Trouble::ProxyOther { status, source_key: self.source },
        })
    }
}

/// Words of a stranger, fit for a log.
fn clean(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(64).collect()
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, Stop> {
    let mut value =
        HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            .map_err(|e| Stop::Bug(e.to_string()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
