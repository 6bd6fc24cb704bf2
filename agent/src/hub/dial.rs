//! Dials the hub: TCP with `TCP_NODELAY` and happy eyeballs, through an HTTP CONNECT proxy if there is one, then TLS.

use super::{CONNECT_TIMEOUT, Hub, chain};
use crate::exit::Stop;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri};
use hyper::service::Service as _;
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
    service::TowerToHyperService,
};
use passerelle_config::HubSection;
use rustls_pki_types::ServerName;
use std::{fmt, path::Path};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// The proxy towards the hub.
#[derive(Clone)]
pub struct Proxy {
    uri: Uri,
    auth: Option<HeaderValue>,
    /// Where it is configured, for messages.
    source: &'static str,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address(), self.source)
    }
}

impl Proxy {
    /// The configured proxy, else that of the environment; none for plain HTTP, which stays on this machine.
    pub fn choose(section: &HubSection, base: &Path) -> Result<Option<Self>, Stop> {
        if section.url.scheme() != "https" {
            return Ok(None);
        }
        if let Some(proxy) = &section.proxy {
            let uri: Uri =
                proxy.url.as_str().parse().map_err(|e| Stop::Configuration(format!("hub.proxy.url: {e}")))?;
            let password = proxy.password.as_ref().map(|secret| secret.read(base)).transpose();
            let password = password.map_err(|e| Stop::Configuration(format!("hub.proxy.password: {e}")))?;
            let auth = proxy
                .username
                .as_ref()
                .map(|username| basic(username, password.as_ref().map_or("", |secret| secret.expose())));
            return Ok(Some(Self { uri, auth: auth.transpose()?, source: "hub.proxy" }));
        }
        let Ok(hub) = section.url.as_str().parse::<Uri>() else { return Ok(None) };
        let found = Matcher::from_env().intercept(&hub);
        Ok(found.map(|proxy| Self {
            uri: proxy.uri().clone(),
            auth: proxy.basic_auth().cloned(),
            source: "HTTPS_PROXY",
        }))
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("{}:{}", self.uri.host().unwrap_or_default(), self.uri.port_u16().unwrap_or(80))
    }

    /// The same proxy for the HTTP client.
    pub fn for_reqwest(&self) -> Result<reqwest::Proxy, Stop> {
        let url = format!("http://{}", self.address());
        let proxy = reqwest::Proxy::all(url)
            .map_err(|e| Stop::Configuration(format!("{}: {}", self.source, chain(&e))))?;
        Ok(match &self.auth {
            Some(auth) => proxy.custom_http_auth(auth.clone()),
            None => proxy,
        })
    }
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, Stop> {
    let mut value =
        HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            .map_err(|e| Stop::Bug(e.to_string()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A connection to the hub, TLS or (on this machine only) plain.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Why the hub could not be reached, and at which step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Name resolution or TCP, to the hub or to the proxy.
    #[error("{to} cannot be reached: {cause}")]
    Tcp {
        /// Host and port.
        to: String,
        /// Why.
        cause: String,
    },
    /// The proxy did not open the way.
    #[error("the proxy {proxy} does not connect to {to}: {cause}")]
    Proxy {
        /// Host and port of the proxy.
        proxy: String,
        /// Host and port of the hub.
        to: String,
        /// Why, and what to do.
        cause: String,
    },
    /// TLS failed.
    #[error("no TLS with {to}: {cause}")]
    Tls {
        /// Host and port.
        to: String,
        /// Why, and what to do.
        cause: String,
    },
}

impl Hub {
    /// Host and port of the hub.
    pub fn address(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        format!("{host}:{}", self.url.port_or_known_default().unwrap_or(443))
    }

    /// Opens a connection to the hub.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self) -> Result<Box<dyn Connection>, DialError> {
        let tcp = self.tcp().await?;
        if self.url.scheme() != "https" {
            return Ok(Box::new(tcp));
        }
        let tls = |cause: String| DialError::Tls { to: self.address(), cause };
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|e| tls(e.to_string()))?;
        let handshake = TlsConnector::from(self.tls.clone()).connect(name, tcp);
        match timeout(CONNECT_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(e)) => Err(tls(self.issuers.explain(&chain(&e)))),
            Err(_) => Err(tls("no answer within 10 s".to_owned())),
        }
    }

    /// The TCP connection, through the proxy if there is one.
    pub async fn tcp(&self) -> Result<TcpStream, DialError> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let to = self.address();
        let scheme = self.url.scheme();
        let failed = |cause: String| DialError::Tcp { to: to.clone(), cause };
        let target: Uri = format!("{scheme}://{to}/").parse().map_err(|e| failed(format!("{e}")))?;
        let Some(proxy) = &self.proxy else {
            let connected = timeout(CONNECT_TIMEOUT, TowerToHyperService::new(connector).call(target)).await;
            return match connected {
                Ok(Ok(stream)) => Ok(stream.into_inner()),
                Ok(Err(e)) => Err(failed(chain(&e))),
                Err(_) => Err(failed("no answer within 10 s".to_owned())),
            };
        };
        let failed = |cause: String| DialError::Proxy { proxy: proxy.address(), to: to.clone(), cause };
        let via: Uri = format!("http://{}/", proxy.address()).parse().map_err(|e| failed(format!("{e}")))?;
        let mut tunnel = Tunnel::new(via, connector);
        if let Some(auth) = &proxy.auth {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connected: Result<Result<TokioIo<TcpStream>, _>, _> =
            timeout(CONNECT_TIMEOUT * 2, TowerToHyperService::new(tunnel).call(target)).await;
        match connected {
            Ok(Ok(stream)) => Ok(stream.into_inner()),
            Ok(Err(e)) => Err(failed(proxy_cause(&chain(&e), proxy.source))),
            Err(_) => Err(failed("no answer within 20 s".to_owned())),
        }
    }
}

fn proxy_cause(error: &str, source: &str) -> String {
    if error.contains("authorization required") {
        format!("it wants credentials, or others than these: set user name and password in {source}")
    } else if error.contains("unsuccessful") {
        format!("it refused ({error}): ask for a rule that lets this machine reach the hub")
    } else {
        error.to_owned()
    }
}
