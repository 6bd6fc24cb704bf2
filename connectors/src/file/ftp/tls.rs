//! TLS for control and data connections, as `suppaftp` wants it: a connector and a stream over rustls.
//!
//! Many servers insist that a data connection resumes the TLS session of its control connection, so that nobody else
//! can take it (vsftpd's `require_ssl_reuse`, ProFTPD by default). Each FTP session therefore keeps a store of sessions
//! of its own, and a data connection is read to its end, where TLS 1.3 servers put the ticket for the next one.
//! Some put none there (seen: ProFTPD), and a ticket is good for one connection only: once a session has used up all its
//! tickets, the resource's next ones speak TLS 1.2, whose sessions are resumed any number of times.

use super::Limits;
use crate::{BuildError, file::backend::Interrupt, trust};
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, StreamOwned, SupportedProtocolVersion,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
    },
    crypto::CryptoProvider,
    version::TLS12,
};
use rustls_pki_types::ServerName;
use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use suppaftp::{FtpError, FtpResult, TlsConnector, TlsStream};

/// How long the end of a data connection may take once all is written or read.
const ENDING: Duration = Duration::from_secs(5);
/// How many tickets are kept for the data connections to come.
const SESSIONS: usize = 8;

/// What the sessions of a resource speak TLS with.
pub(super) struct Versions {
    newest: ClientConfig,
    tls12: ClientConfig,
    /// The server gives a session fewer tickets than it demands.
    too_few_tickets: AtomicBool,
}

impl Versions {
    /// # Errors
    /// If the CA file cannot be used.
    pub(super) fn new(ca_file: Option<&Path>) -> Result<Self, BuildError> {
        Ok(Self {
            newest: config(ca_file, rustls::DEFAULT_VERSIONS)?,
            tls12: config(ca_file, &[&TLS12])?,
            too_few_tickets: AtomicBool::new(false),
        })
    }

    fn for_next_session(&self) -> ClientConfig {
        if self.too_few_tickets.load(Ordering::Relaxed) { &self.tls12 } else { &self.newest }.clone()
    }

    /// How it went with the tickets, or that the server takes no TLS 1.2.
    pub(super) fn learn(&self, too_few_tickets: bool) {
        self.too_few_tickets.store(too_few_tickets, Ordering::Relaxed);
    }
}

fn config(
    ca_file: Option<&Path>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig, BuildError> {
    let provider: Arc<CryptoProvider> = rustls::crypto::aws_lc_rs::default_provider().into();
    let versions = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| BuildError::at("url", error))?;
    let named = ca_file.map(trust::certificates).transpose();
    let named = named.map_err(|error| BuildError::at("ca_file", error))?;
    let verifier = trust::verifier(named.unwrap_or_default(), provider).map_err(|error| {
        let key = if ca_file.is_some() { "ca_file" } else { "url" };
        BuildError::at(
            key,
            format!("{error}; install the system's CA certificates or name the server's CA in ca_file"),
        )
    })?;
    Ok(versions.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Where a failed handshake leaves its cause: the library turns errors into words.
pub(super) type Fault = Arc<Mutex<Option<io::Error>>>;

/// The TLS sessions that one FTP session can resume, counted.
#[derive(Debug)]
pub(super) struct Tickets {
    store: ClientSessionMemoryCache,
    left: AtomicUsize,
    used: AtomicBool,
}

impl Tickets {
    fn new() -> Self {
        let store = ClientSessionMemoryCache::new(SESSIONS);
        Self { store, left: AtomicUsize::new(0), used: AtomicBool::new(false) }
    }

    /// Whether the next data connection could not resume TLS 1.3 any more.
    pub(super) fn are_used_up(&self) -> bool {
        self.used.load(Ordering::Relaxed) && self.left.load(Ordering::Relaxed) == 0
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.store.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.store.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.store.set_tls12_session(server, value);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.store.tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.store.remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.store.insert_tls13_ticket(server, value);
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let ticket = self.store.take_tls13_ticket(server);
        match &ticket {
            Some(_) => {
                self.used.store(true, Ordering::Relaxed);
                self.left.fetch_sub(1, Ordering::Relaxed);
            }
            // The store forgets the oldest ones when there are many.
            None => self.left.store(0, Ordering::Relaxed),
        }
        ticket
    }
}

/// Makes the TLS connections of one FTP session.
pub(super) struct Connector {
    config: Arc<ClientConfig>,
    limits: Limits,
    fault: Fault,
    /// What the first connection is armed with.
    interrupt: Mutex<Option<Interrupt>>,
}

impl Connector {
    /// With the tickets that its connections will use.
    pub(super) fn new(versions: &Versions, limits: Limits, fault: Fault) -> (Self, Arc<Tickets>) {
        let tickets = Arc::new(Tickets::new());
        let mut config = versions.for_next_session();
        config.resumption = Resumption::store(Arc::clone(&tickets) as Arc<dyn ClientSessionStore>);
        (Self { config: Arc::new(config), limits, fault, interrupt: Mutex::new(None) }, tickets)
    }

    /// For a control connection that the library makes itself: in reach of the interrupt before its first byte.
    pub(super) fn arming(self, interrupt: Interrupt) -> Self {
        Self { interrupt: Mutex::new(Some(interrupt)), ..self }
    }

    fn handshake(&self, host: &str, mut socket: TcpStream) -> io::Result<Tls> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.limits.apply(&socket)?;
        if let Some(interrupt) = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner).take() {
            interrupt.arm(socket.try_clone()?);
        }
        let mut connection =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)?;
        // At once, not with the first byte: a server waits for it even where no byte follows.
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Tls { stream: StreamOwned::new(connection, socket), ended: false, wrote: false })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl TlsConnector for Connector {
    type Stream = Tls;

    fn connect(&self, domain: &str, stream: TcpStream) -> FtpResult<Tls> {
        self.handshake(domain, stream).map_err(|error| {
            let told = FtpError::SecureError(error.to_string());
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            told
        })
    }
}

/// One TLS connection.
#[derive(Debug)]
pub(super) struct Tls {
    stream: StreamOwned<ClientConnection, TcpStream>,
    ended: bool,
    wrote: bool,
}

impl Tls {
    /// Says that no more comes, and reads what the server says last: closing a socket with something unread would reset
    /// the connection, which can cost the server the last bytes; and a ticket may be among it.
    fn end(&mut self) -> io::Result<()> {
        self.stream.flush()?;
        self.stream.conn.send_close_notify();
        while self.stream.conn.wants_write() {
            self.stream.conn.write_tls(&mut self.stream.sock)?;
        }
        self.stream.sock.shutdown(Shutdown::Write)?;
        let deadline = Instant::now() + ENDING;
        while !self.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.stream.conn.wants_read() {
                break;
            }
            self.stream.sock.set_read_timeout(Some(left))?;
            self.ended = self.stream.conn.read_tls(&mut self.stream.sock)? == 0;
            self.stream.conn.process_new_packets().map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.stream.read(buffer) {
            // Servers often end a data connection without TLS's goodbye. The control connection says whether all was
            // sent, and the size whether all arrived.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            other => other,
        };
        self.ended |= matches!(read, Ok(0)) && !buffer.is_empty();
        read
    }
}

impl Write for Tls {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.wrote = true;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.wrote = true;
        self.stream.flush()
    }
}

impl TlsStream for Tls {
    type InnerStream = Self;

    fn tcp_stream(self) -> FtpResult<TcpStream> {
        self.stream.sock.try_clone().map_err(FtpError::ConnectionError)
    }

    fn get_ref(&self) -> &TcpStream {
        &self.stream.sock
    }

    fn mut_ref(&mut self) -> &mut Self {
        self
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        // A download given up half-way is not read to its end.
        if (self.ended || self.wrote)
            && let Err(error) = self.end()
        {
            tracing::debug!(%error, "a TLS connection to a file server did not end in order");
        }
    }
}
