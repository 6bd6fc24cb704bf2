//! The listener: accepts connections, speaks TLS, serves HTTP/1.1 with upgrades, and ends politely.
//!
//! Every connection costs a permit for as long as its socket lives, upgraded ones too, and every wait on the peer
//! is bounded: the handshake, a request's head, and a write that does not move.

use axum::Router;
use http::Request;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{
    collections::HashMap,
    future::Future as _,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::util::MapRequest;

/// How many connections may be open, unless configured.
pub const MAX_CONNECTIONS: usize = 4096;
/// How many of them may come from one address, unless configured: a whole company may be behind it.
pub const MAX_PER_ADDRESS: usize = 2048;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Also how long an idle connection is kept for its next request.
const REQUEST_HEAD: Duration = Duration::from_secs(10);
const WRITE_STALLED: Duration = Duration::from_secs(30);
const MAX_HEADERS: usize = 100;
const HEAD_BUFFER: usize = 64 * 1024;
/// How long running requests may take after the signal to stop.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// How long connections that came after the signal may take to end.
const LATE: Duration = Duration::from_millis(500);
/// Out of file descriptors or memory: let some connections end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a certificate or key was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not readable as PEM.
    #[error("{}: {reason}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// rustls refuses the pair.
    #[error("{}: certificate and key are refused: {reason}", file.display())]
    Refused {
        /// The certificate's file.
        file: PathBuf,
        /// Why.
        reason: rustls::Error,
    },
}

/// Reads a certificate chain and its key: TLS 1.2 and 1.3, HTTP/1.1 by ALPN.
///
/// # Errors
/// See [`TlsError`].
pub fn tls(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let unreadable = |file: &Path, reason: String| TlsError::Unreadable { file: file.to_owned(), reason };
    let read = |file: &Path| passerelle_config::read_file(file).map_err(|e| unreadable(file, e.to_string()));
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| unreadable(certificate, format!("not a PEM certificate: {e}")))?;
    if chain.is_empty() {
        return Err(unreadable(certificate, "no certificate in it".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|e| unreadable(key, format!("not a PEM private key: {e}")))?;
    let refused = |reason| TlsError::Refused { file: certificate.to_owned(), reason };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(refused)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The address that a request's connection comes from, among the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// A bound listener.
pub struct Server {
    /// Where connections come in.
    pub listener: TcpListener,
    /// TLS, unless plain HTTP is served.
    pub tls: Option<TlsAcceptor>,
    /// How many connections may be open.
    pub max_connections: usize,
    /// How many of them may come from one address.
    pub per_address: usize,
}

impl Server {
    /// Serves until `stop`; then lets running requests finish within [`SHUTDOWN_GRACE`]. So long it accepts connections
    /// still, so that whoever asks hears from the router that the hub is ending.
    pub async fn run(self, router: Router, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(self.max_connections));
        let addresses = Arc::default();
        let connections = TaskTracker::new();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.accept_into(&connections, &permits, &addresses, &router, &stop) => {}
        }
        connections.close();
        let (late, end) = (TaskTracker::new(), CancellationToken::new());
        let finished = tokio::select! {
            finished = timeout(SHUTDOWN_GRACE, connections.wait()) => finished.is_ok(),
            () = self.accept_into(&late, &permits, &addresses, &router, &end) => false,
        };
        if !finished {
            tracing::warn!(connections = connections.len(), "Ended with requests still running");
        }
        drop(self.listener);
        end.cancel();
        late.close();
        // Their answers are written already, or not worth the wait.
        let _ = timeout(LATE, late.wait()).await;
    }

    /// Accepts connections for ever; each is served until it ends, or politely ended at `stop`.
    async fn accept_into(
        &self,
        connections: &TaskTracker,
        permits: &Arc<Semaphore>,
        addresses: &Arc<Addresses>,
        router: &Router,
        stop: &CancellationToken,
    ) {
        loop {
            match self.accept(permits, addresses).await {
                Ok(Some((socket, peer))) => {
                    let (tls, router, stop) = (self.tls.clone(), router.clone(), stop.clone());
                    connections.spawn(connection(socket, peer, tls, router, stop));
                }
                // Closed at once: whoever opens so many keeps the others out.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "Could not accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept(
        &self,
        permits: &Arc<Semaphore>,
        addresses: &Arc<Addresses>,
    ) -> io::Result<Option<(Bounded<TcpStream>, Peer)>> {
        let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
        let (socket, peer) = self.listener.accept().await?;
        let peer = peer.ip().to_canonical();
        let Some(place) = Addresses::take(addresses, peer, self.per_address) else {
            tracing::debug!(%peer, "Too many connections from one address");
            return Ok(None);
        };
        socket.set_nodelay(true)?;
        let places = (permit, Some(place));
        Ok(Some((Bounded { socket, stalled: None, within: WRITE_STALLED, _places: places }, Peer(peer))))
    }
}

/// How many connections are open, by address.
#[derive(Debug, Default)]
struct Addresses {
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Addresses {
    fn take(this: &Arc<Self>, address: IpAddr, most: usize) -> Option<AddressPlace> {
        let mut open = this.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(AddressPlace { addresses: Arc::clone(this), address })
    }
}

/// One of an address's connections, until it is dropped.
struct AddressPlace {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut open = self.addresses.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

async fn connection(
    socket: Bounded<TcpStream>,
    peer: Peer,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: CancellationToken,
) {
    let Some(tls) = tls else { return serve(socket, peer, router, stop).await };
    let shaken = tokio::select! {
        () = stop.cancelled() => return,
        shaken = timeout(HANDSHAKE, tls.accept(socket)) => shaken,
    };
    match shaken {
        Ok(Ok(stream)) => serve(stream, peer, router, stop).await,
        Ok(Err(error)) => tracing::debug!(%error, "A TLS handshake failed"),
        Err(_) => tracing::debug!("A TLS handshake did not end in time"),
    }
}

async fn serve<S>(stream: S, peer: Peer, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_HEAD)
        .max_headers(MAX_HEADERS)
        .max_buf_size(HEAD_BUFFER);
    let used = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&used);
    let service = TowerToHyperService::new(MapRequest::new(router, move |mut request: Request<Incoming>| {
        noted.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(peer);
        request
    }));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // hyper would wait for the first request of a connection that has had none.
        () = stop.cancelled() => if used.load(Ordering::Relaxed) {
            connection.as_mut().graceful_shutdown();
            connection.await
        } else {
            return;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "A connection ended with an error");
    }
}

/// A socket that holds its permit, and whose writes fail when the peer takes nothing for a while.
struct Bounded<S> {
    socket: S,
    stalled: Option<Pin<Box<Sleep>>>,
    within: Duration,
    _places: (OwnedSemaphorePermit, Option<AddressPlace>),
}

impl<S> Bounded<S> {
    fn watched<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let within = self.within;
        let timer =
            self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + within)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes no data")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, data);
        self.watched(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.watched(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, data);
        self.watched(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn a_write_that_does_not_move_fails() {
        let (near, _far) = tokio::io::duplex(16);
        let permits = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
        let within = Duration::from_millis(20);
        let mut socket = Bounded { socket: near, stalled: None, within, _places: (permit, None) };
        let error = socket.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(socket);
        assert_eq!(permits.available_permits(), 1);
    }

    #[test]
    fn a_wrong_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("server.pem");
        std::fs::write(&file, "nothing").unwrap();
        let message = tls(&file, &file).err().unwrap().to_string();
        assert!(message.contains("server.pem") && message.contains("no certificate"), "{message}");
    }
}
