//! The sockets of the listeners: who connects gets HTTP/1.1, with TLS if the operator says so. Every wait on a peer is
//! bounded: the handshake, a request's head, the body (`post`), and the whole connection.

use super::{Listener, post};
use crate::agent::Agent;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use passerelle_config::SecretRef;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::Path,
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{Instrument as _, debug, info, warn};

/// Connections for each post at once: some wait for their next post.
const PER_PLACE: usize = 4;
/// The least number of connections: whoever opens some and says nothing has to open many to keep others out.
const LEAST: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Also how long an idle connection is kept for its next post.
const REQUEST_HEAD: Duration = Duration::from_secs(10);
const MAX_HEADERS: usize = 64;
const HEAD_BUFFER: usize = 16 * 1024;
/// How long a connection lives, and how long its last post may take then: also of a peer that does not read its answers.
const LIFE: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(75));
/// How long posts may take after the signal to stop.
const GRACE: Duration = Duration::from_secs(4);
/// Out of file descriptors or memory: let some connections end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Reads a certificate chain and its key: TLS 1.2 and 1.3.
///
/// # Errors
/// Why they cannot be used.
pub fn tls(cert: &Path, key: &SecretRef, base: &Path) -> Result<TlsAcceptor, String> {
    let opened = passerelle_config::open_file(cert).map_err(|e| format!("{}: {e}", cert.display()))?;
    let chain = CertificateDer::pem_reader_iter(io::BufReader::new(opened))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("{}: not a PEM certificate: {e}", cert.display()))?;
    if chain.is_empty() {
        return Err(format!("{}: no certificate in it", cert.display()));
    }
    let text = key.read(base).map_err(|e| e.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(text.expose().as_bytes())
        .map_err(|_| "tls_key is not a PEM private key".to_owned())?;
    let refused = |e: rustls::Error| format!("{}: certificate and key are refused: {e}", cert.display());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(refused)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A socket that is served.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    current: Arc<RwLock<Arc<Listener>>>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Running {
    /// Binds the address and serves it.
    ///
    /// # Errors
    /// If it is taken, not of this machine, or not allowed.
    pub async fn start(agent: &Arc<Agent>, listener: &Arc<Listener>) -> io::Result<Self> {
        let address = listener.config.listen;
        let socket = TcpListener::bind(address).await?;
        let (current, stop) = (Arc::new(RwLock::new(Arc::clone(listener))), CancellationToken::new());
        let serving = accept(socket, Arc::clone(agent), Arc::clone(&current), stop.clone()).in_current_span();
        let task = AbortOnDropHandle::new(tokio::spawn(serving));
        Ok(Self { address, current, stop, task })
    }

    /// What is posted from now on is judged by this configuration.
    pub fn follow(&self, listener: &Arc<Listener>) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&current, listener) {
            *current = Arc::clone(listener);
            info!(listener = %listener.name, "A listener goes on with its changed configuration");
        }
    }

    /// Takes no connection any more, and lets posts finish.
    pub async fn stop(self) {
        self.stop.cancel();
        drop(self.task.await);
    }
}

fn now(current: &RwLock<Arc<Listener>>) -> Arc<Listener> {
    Arc::clone(&current.read().unwrap_or_else(PoisonError::into_inner))
}

async fn accept(
    socket: TcpListener,
    agent: Arc<Agent>,
    current: Arc<RwLock<Arc<Listener>>>,
    stop: CancellationToken,
) {
    let most = (now(&current).config.max_concurrent as usize * PER_PLACE).max(LEAST);
    let (permits, connections) = (Arc::new(Semaphore::new(most)), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = socket.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "A connection to a listener cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Closed at once: whoever opens so many must not keep others waiting without a word.
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            debug!("Too many connections to a listener");
            continue;
        };
        let (agent, current, stop) = (Arc::clone(&agent), Arc::clone(&current), stop.clone());
        let serving = async move {
            connection(stream, &agent, &current, &stop).await;
            drop(permit);
        };
        connections.spawn(serving.in_current_span());
    }
    drop(socket);
    connections.close();
    if timeout(GRACE, connections.wait()).await.is_err() {
        warn!(
            connections = connections.len(),
            "A listener ended with posts still coming in; nothing of them counts"
        );
    }
}

async fn connection(
    stream: TcpStream,
    agent: &Arc<Agent>,
    current: &Arc<RwLock<Arc<Listener>>>,
    stop: &CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "A connection to a listener is gone already");
        return;
    }
    let Some(tls) = now(current).tls.clone() else { return serve(stream, agent, current, stop).await };
    let shaken = tokio::select! {
        () = stop.cancelled() => return,
        shaken = timeout(HANDSHAKE, tls.accept(stream)) => shaken,
    };
    match shaken {
        Ok(Ok(stream)) => serve(stream, agent, current, stop).await,
        Ok(Err(error)) => debug!(%error, "A TLS handshake with a listener failed"),
        Err(_) => debug!("A TLS handshake with a listener did not end in time"),
    }
}

async fn serve<S>(
    stream: S,
    agent: &Arc<Agent>,
    current: &Arc<RwLock<Arc<Listener>>>,
    stop: &CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_HEAD)
        .max_headers(MAX_HEADERS)
        .max_buf_size(HEAD_BUFFER);
    let service = service_fn(|request: http::Request<Incoming>| {
        let (agent, listener) = (Arc::clone(agent), now(current));
        async move { Ok::<_, Infallible>(post::answer(&agent, &listener, request).await) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let (ended, grace) = tokio::select! {
        ended = connection.as_mut() => (Some(ended), GRACE),
        () = stop.cancelled() => (None, GRACE),
        () = sleep(LIFE.0) => (None, LIFE.1),
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            match timeout(grace, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "A connection to a listener ended with an error");
    }
}
