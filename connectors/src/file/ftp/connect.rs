//! Connecting: TCP, TLS, log-in, what the server can do, root.

use super::{
    Limits, Mode, Remote,
    error::{from_ftp, refusal},
    session::{Client, Lister, Session},
    tls::{Connector, Fault, Tickets, Versions},
};
use crate::{
    Code, Failure, address,
    causes::chain,
    file::{
        backend::{Backend, Connect, Interrupt, Problem},
        dial::{Deadline, Dial},
    },
    http::fault,
};
use passerelle_config::Secret;
use std::{
    collections::HashMap,
    fmt::Display,
    io,
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use suppaftp::{FtpError, FtpResult, Status, types::FileType};

/// A server that can be connected to.
pub(super) struct FtpServer {
    pub(super) host: String,
    pub(super) port: u16,
    /// The url's path: absolute, or `/~` and `/~/x` for the login folder and below.
    pub(super) root: String,
    pub(super) username: String,
    pub(super) password: Option<Secret>,
    pub(super) mode: Mode,
    pub(super) tls: Option<Arc<Versions>>,
    pub(super) connect_timeout: Duration,
    /// Held while a name is looked at and then taken, by any session.
    pub(super) naming: Arc<Mutex<()>>,
}

impl Connect for FtpServer {
    fn links(&self) -> &'static [&'static str] {
        match self.mode {
            Mode::Plain => &["name", "connection", "log-in", "folder"],
            Mode::Explicit | Mode::Implicit => &["name", "connection", "certificate", "log-in", "folder"],
        }
    }

    fn connect_telling(
        &self,
        timeout: Duration,
        interrupt: &Interrupt,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<Box<dyn Backend>, Failure> {
        let addresses = self.address().resolve()?;
        let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
        passed("name", format!("{} is {}", self.host, shown.join(", ")));
        let deadline = Deadline::after(timeout.min(self.connect_timeout));
        let stream = self.address().dial(&addresses, deadline)?;
        interrupt.arm(stream.try_clone().map_err(|error| self.unreachable(error))?);
        let limits = Limits::new(deadline.left());
        let remote = self
            .address()
            .within(deadline, interrupt, || self.open(stream, limits, deadline, interrupt, passed))?;
        Ok(Box::new(remote))
    }
}

/// Opens data connections: to the host of the control connection, within the time limit, and in reach of an interrupt.
fn data_dialler(
    limits: Limits,
    interrupt: Interrupt,
) -> impl Fn(SocketAddr) -> FtpResult<TcpStream> + Send + Sync + 'static {
    move |address| {
        if address::is_blocked(address.ip()) {
            return Err(FtpError::ConnectionError(io::Error::other(address::BLOCKED)));
        }
        let open = || {
            let stream = TcpStream::connect_timeout(&address, limits.get())?;
            stream.set_nodelay(true)?;
            limits.apply(&stream)?;
            interrupt.arm_data(Some(stream.try_clone()?));
            Ok(stream)
        };
        open().map_err(FtpError::ConnectionError)
    }
}

impl FtpServer {
    /// Everything after TCP.
    fn open(
        &self,
        stream: TcpStream,
        limits: Limits,
        deadline: Deadline,
        interrupt: &Interrupt,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<Remote, Failure> {
        limits.apply(&stream).map_err(|error| self.unreachable(error))?;
        let (client, tickets) = match (&self.tls, self.mode) {
            (Some(versions), Mode::Implicit) => {
                let (client, tickets) = self.open_implicit(stream, versions, &limits, interrupt, passed)?;
                (client, Some(tickets))
            }
            (tls, _) => {
                let client = Client::connect_with_stream(stream).map_err(|error| self.no_greeting(&error))?;
                passed("connection", self.with_address("TCP and FTP"));
                match tls {
                    Some(versions) => {
                        limits.set(deadline.left());
                        let (client, tickets) = self.secure(client, versions, &limits, passed)?;
                        (client, Some(tickets))
                    }
                    None => (client, None),
                }
            }
        };
        let mut client = client.passive_stream_builder(data_dialler(limits.clone(), interrupt.clone()));
        // The address in a PASV answer is never used: behind NAT it is a wrong one, and a hostile server could name any.
        client.set_passive_nat_workaround(true);
        let socket = client.get_ref().try_clone().map_err(|error| self.unreachable(error))?;
        let what_is_left = || {
            limits.set(deadline.left());
            limits.apply(&socket).map_err(|error| self.unreachable(error))
        };
        what_is_left()?;
        self.log_in(&mut client)?;
        passed("log-in", format!("as {}", self.username));
        what_is_left()?;
        let (lister, extended) = self.settle(&mut client, &socket).map_err(|error| self.broken(&error))?;
        let mut session = Session { ftp: client, interrupt: interrupt.clone(), lister, extended, here: None };
        what_is_left()?;
        let root = self.find_root(&mut session)?;
        passed("folder", format!("{root} is there"));
        Ok(Remote {
            session: Arc::new(Mutex::new(session)),
            socket,
            limits,
            root,
            account: format!("{}@{}:{}", self.username, self.host, self.port),
            resolved: HashMap::new(),
            naming: Arc::clone(&self.naming),
            tickets: tickets.zip(self.tls.clone()),
        })
    }

    fn address(&self) -> Dial<'_> {
        Dial { host: &self.host, port: self.port }
    }

    fn with_address(&self, cause: impl Display) -> String {
        self.address().with_address(cause)
    }

    fn unreachable(&self, cause: impl Display) -> Failure {
        self.address().unreachable(cause)
    }

    /// The connection broke, or the server says what makes no sense here.
    fn broken(&self, error: &FtpError) -> Failure {
        let failure = match from_ftp("", error).problem {
            Problem::TimedOut => {
                Failure::retry(Code::TargetTimeout, "the file server did not answer in time")
            }
            Problem::Lost => Failure::retry(
                Code::TargetUnreachable,
                "the connection to the file server broke while it was made",
            ),
            _ => Failure::retry(Code::TargetProtocol, "the file server refused an ordinary FTP command"),
        };
        failure.detail(self.with_address(error))
    }

    fn no_greeting(&self, error: &FtpError) -> Failure {
        let failure = match error {
            FtpError::UnexpectedResponse(_) => Failure::retry(
                Code::TargetThrottled,
                "the file server turns connections away: it is too busy, or does not let this host in",
            ),
            FtpError::BadResponse => Failure::retry(
                Code::TargetProtocol,
                "what answers at the file server's address does not speak FTP",
            ),
            other if self.mode == Mode::Plain || from_ftp("", other).problem != Problem::TimedOut => {
                return self.broken(other);
            }
            _ => Failure::retry(
                Code::TargetTimeout,
                "the file server sent no greeting in time; where it begins with TLS at once, write tls = \"implicit\"",
            ),
        };
        failure.detail(self.with_address(error))
    }

    /// `AUTH TLS`, and the data connections too.
    fn secure(
        &self,
        client: Client,
        versions: &Versions,
        limits: &Limits,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<(Client, Arc<Tickets>), Failure> {
        // Known for it: its first session need not find out. One that hides its name costs one attempt.
        if client.get_welcome_msg().is_some_and(|greeting| greeting.contains("ProFTPD")) {
            versions.learn(true);
        }
        let fault = Fault::default();
        let (connector, tickets) = Connector::new(versions, limits.clone(), Arc::clone(&fault));
        let secured = client.into_secure(connector, &self.host).map_err(|error| match refusal(&error) {
            Some(code) if code >= 500 => Failure::permanent(
                Code::TargetUnsupported,
                "the file server offers no TLS for commands and content; only ftp without the s reaches it, unprotected",
            )
            .detail(self.with_address(error)),
            _ => self.no_tls(&error, &fault),
        })?;
        passed("certificate", format!("it is valid for {}", self.host));
        Ok((secured, tickets))
    }

    /// TLS from the first byte.
    fn open_implicit(
        &self,
        stream: TcpStream,
        versions: &Versions,
        limits: &Limits,
        interrupt: &Interrupt,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<(Client, Arc<Tickets>), Failure> {
        let address = stream.peer_addr().map_err(|error| self.unreachable(error))?;
        passed("connection", self.with_address("TCP"));
        // The library connects for itself here, and without a time limit: to the address that has just answered.
        drop(stream.shutdown(Shutdown::Both));
        drop(stream);
        let fault = Fault::default();
        let (connector, tickets) = Connector::new(versions, limits.clone(), Arc::clone(&fault));
        let connector = connector.arming(interrupt.clone());
        let mut client = Client::connect_secure_implicit(address, connector, &self.host)
            .map_err(|error| self.no_tls(&error, &fault))?;
        for command in ["PBSZ 0", "PROT P"] {
            let done = client.custom_command(command, &[Status::CommandOk]);
            done.map_err(|error| self.broken(&error))?;
        }
        passed("certificate", format!("it is valid for {}", self.host));
        Ok((client, tickets))
    }

    fn no_tls(&self, error: &FtpError, fault: &Fault) -> Failure {
        let Some(cause) = fault.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return self.broken(error);
        };
        // If it was TLS 1.2 that the server does not take, the next session comes with all versions again.
        if let Some(versions) = &self.tls {
            versions.learn(false);
        }
        let tls = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let failure = match (tls, cause.kind()) {
            (Some(rustls::Error::InvalidCertificate(_)), _) => {
                Failure::permanent(Code::TargetUnreachable, fault::unreachable(&cause, false))
            }
            (Some(_), _) => Failure::retry(
                Code::TargetProtocol,
                "the TLS handshake with the file server failed; check tls = \"explicit\" or \"implicit\"",
            ),
            (None, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Failure::retry(
                Code::TargetTimeout,
                "the file server did not answer the TLS handshake in time; check tls = \"explicit\" or \"implicit\"",
            ),
            (None, _) => Failure::retry(
                Code::TargetUnreachable,
                "the file server ended the connection during the TLS handshake",
            ),
        };
        failure.detail(self.with_address(chain(&cause)))
    }

    fn log_in(&self, client: &mut Client) -> Result<(), Failure> {
        let password = self.password.as_ref().map_or("passerelle@", Secret::expose);
        let Err(error) = client.login(self.username.as_str(), password) else { return Ok(()) };
        let failure = match refusal(&error) {
            None => return Err(self.broken(&error)),
            Some(421) => Failure::retry(
                Code::TargetThrottled,
                "the file server turns connections away: it is too busy, or does not let this host in",
            ),
            Some(_) if self.mode == Mode::Plain && wants_tls(&error) => Failure::permanent(
                Code::TargetAuth,
                "the file server wants TLS before the log-in; write ftps instead of ftp in the resource's url",
            ),
            // No word about user and password, but that something else is wrong: vsftpd's `500 OOPS` about its own settings.
            Some(500..530 | 550..560) => Failure::retry(
                Code::TargetRefused,
                "the file server fails while it lets the agent in, which no other password mends; what it says is in the agent's log",
            ),
            Some(_) => Failure::permanent(Code::TargetAuth, "the file server refused the agent's log-in"),
        };
        Err(failure.detail(self.with_address(format!("user {}: {error}", self.username))))
    }

    /// Names in UTF-8, content as it is, and how folders are listed and data connections opened.
    fn settle(&self, client: &mut Client, socket: &TcpStream) -> FtpResult<(Lister, bool)> {
        let features = match client.feat() {
            Ok(features) => features,
            Err(error) if refusal(&error).is_some() => HashMap::new(),
            Err(error) => return Err(error),
        };
        let has = |wanted: &str| features.keys().any(|feature| feature.trim().eq_ignore_ascii_case(wanted));
        if has("UTF8") {
            match client.custom_command("OPTS UTF8 ON", &[Status::CommandOk, Status::CommandNotImplemented]) {
                // Always on there, mostly.
                Err(error) if refusal(&error).is_none() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        client.transfer_type(FileType::Binary)?;
        let v6 = socket.peer_addr().is_ok_and(|peer| peer.is_ipv6());
        let extended = has("EPSV");
        if v6 || extended {
            client.set_mode(suppaftp::Mode::ExtendedPassive);
        }
        // `PASV` knows no addresses of IPv6.
        Ok((if has("MLST") { Lister::Facts } else { Lister::All }, extended && !v6))
    }

    /// The root, as the server names it; it must be a folder.
    fn find_root(&self, session: &mut Session) -> Result<String, Failure> {
        let home = match self.root.strip_prefix("/~") {
            Some("" | "/") => Some(""),
            Some(rest) => rest.strip_prefix('/'),
            None => None,
        };
        let wanted = match home {
            Some("") => ".",
            Some(rest) => rest,
            None if self.root.is_empty() => "/",
            None => &self.root,
        };
        let found = session.real(wanted).map_err(|error| {
            let detail = self.with_address(&error.detail);
            Failure::from(error).detail(detail)
        })?;
        found.ok_or_else(|| {
            Failure::permanent(
                Code::TargetNotFound,
                "the resource's folder does not exist on the file server, or the account may not enter it",
            )
            .detail(self.with_address(wanted))
        })
    }
}

/// Whether a refused log-in says that it would do over TLS.
fn wants_tls(error: &FtpError) -> bool {
    let words = error.to_string().to_lowercase();
    ["encrypt", "tls", "ssl", "secure"].iter().any(|word| words.contains(word))
}
