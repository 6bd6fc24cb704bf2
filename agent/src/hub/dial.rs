//! Dials the hub: TCP with `TCP_NODELAY` and happy eyeballs, through an HTTP CONNECT proxy if there is one, then TLS.

use super::{CONNECT_TIMEOUT, Hub, proxy::Proxy, words::Trouble};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::Uri;
use hyper::service::Service as _;
use hyper_util::{client::legacy::connect::HttpConnector, service::TowerToHyperService};
use passerelle_connectors::causes::chain;
use rustls_pki_types::ServerName;
use std::{error::Error, io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

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
        /// Whether somebody answered, and said no; else packets are lost, or there is no way or no name.
        refused: bool,
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
    /// TLS failed, with the hub or with the proxy.
    #[error("no TLS with {to}: {cause}")]
    Tls {
        /// Host and port.
        to: String,
        /// Why, and what to do.
        cause: String,
    },
}

impl DialError {
    /// Whether nobody answered at all: the network is away rather than the hub.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Tcp { refused: false, .. })
    }
}

impl Hub {
    /// Host and port of the hub.
    pub fn address(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        format!("{host}:{}", self.url.port_or_known_default().unwrap_or(443))
    }

    /// The hub's host without brackets.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// Opens a connection to the hub.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self) -> Result<Box<dyn Connection>, DialError> {
        let way = self.way().await?;
        if self.url.scheme() != "https" {
            return Ok(way);
        }
        Ok(Box::new(self.handshake(self.host(), &self.address(), way).await?))
    }

    /// A connection that leads to the hub, without TLS: direct, or through the proxy.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn way(&self) -> Result<Box<dyn Connection>, DialError> {
        let Some(proxy) = &self.proxy else {
            return Ok(Box::new(tcp(self.url.scheme(), &self.address(), &self.address()).await?));
        };
        let mut way = self.to_proxy(proxy).await?;
        self.through(proxy, &mut way).await?;
        Ok(way)
    }

    /// A connection to the proxy itself.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn to_proxy(&self, proxy: &Proxy) -> Result<Box<dyn Connection>, DialError> {
        let named = format!("the proxy {}", proxy.address());
        let stream = tcp("http", &proxy.address(), &named).await?;
        if !proxy.speaks_tls() {
            return Ok(Box::new(stream));
        }
        Ok(Box::new(self.handshake(proxy.host(), &named, Box::new(stream)).await?))
    }

    /// Lets the proxy open the way to the hub.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn through(&self, proxy: &Proxy, way: &mut Box<dyn Connection>) -> Result<(), DialError> {
        let to = self.address();
        // The proxy has to resolve a name and to connect in its turn.
        let limit = CONNECT_TIMEOUT * 2;
        let connected = match timeout(limit, proxy.connect(way, &to)).await {
            Ok(connected) => connected,
            Err(_) => Err(Trouble::Silence { seconds: limit.as_secs() }.to_string()),
        };
        connected.map_err(|cause| DialError::Proxy { proxy: proxy.address(), to, cause })
    }

    /// TLS over a connection; `to` is for messages.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn handshake(
        &self,
        host: &str,
        to: &str,
        way: Box<dyn Connection>,
    ) -> Result<TlsStream<Box<dyn Connection>>, DialError> {
        let failed = |cause: String| DialError::Tls { to: to.to_owned(), cause };
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(e.to_string()))?;
        match timeout(CONNECT_TIMEOUT, TlsConnector::from(self.tls.clone()).connect(name, way)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(e)) => Err(failed(tls_cause(&e))),
            Err(_) => Err(failed(Trouble::Silence { seconds: CONNECT_TIMEOUT.as_secs() }.to_string())),
        }
    }

    /// An error of the HTTP client in words. One on the way is dialled again, so that it is told as exactly as the
    /// tunnel tells it.
    pub async fn diagnose(&self, error: &reqwest::Error) -> String {
        if error.is_connect()
            && let Err(told) = self.dial().await
        {
            return told.to_string();
        }
        self.explain(error)
    }
}

/// How long a connection attempt may hang before another one is made beside it. The kernel asks again after 1, 3, 7, 15 s:
/// without it a network that comes back in between is noticed late.
const BESIDE: Duration = Duration::from_secs(2);

/// TCP to an address that is written as host and port: all its addresses, the two families side by side.
async fn tcp(scheme: &str, address: &str, named: &str) -> Result<TcpStream, DialError> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let failed = |cause: String, refused: bool| DialError::Tcp { to: named.to_owned(), cause, refused };
    let target: Uri = format!("{scheme}://{address}/").parse().map_err(|e| failed(format!("{e}"), true))?;
    let mut attempts = FuturesUnordered::new();
    let first = async {
        loop {
            attempts.push(TowerToHyperService::new(connector.clone()).call(target.clone()));
            tokio::select! {
                Some(ended) = attempts.next() => return ended,
                () = sleep(BESIDE) => {}
            }
        }
    };
    match timeout(CONNECT_TIMEOUT, first).await {
        Ok(Ok(stream)) => Ok(stream.into_inner()),
        Ok(Err(e)) => {
            let error: &(dyn Error + 'static) = &e;
            let cause = Trouble::of_tcp(error).map_or_else(|| chain(error), |trouble| trouble.to_string());
            Err(failed(cause, is_refused(error)))
        }
        Err(_) => Err(failed(Trouble::Silence { seconds: CONNECT_TIMEOUT.as_secs() }.to_string(), false)),
    }
}

fn is_refused(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        next = cause.source();
    }
    false
}

fn tls_cause(error: &io::Error) -> String {
    if let Some(trouble) = Trouble::of_tls(error) {
        return trouble.to_string();
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Trouble::TlsClosed.to_string(),
        _ => chain(error),
    }
}
