//! Connecting: name, TCP, TLS, log-in, root. All of it shows in the first question about the root.

use super::{
    Remote,
    auth::Credentials,
    exchange::{NoAnswer, Session},
    names::Root,
};
use crate::{
    Code, Failure, address,
    causes::{chain, find},
    file::{
        backend::{Backend, Connect, FsError, Interrupt, Problem},
        over_http::{self, Idle, Waits as _},
    },
    http::fault::unreachable,
};
use reqwest::{Method, StatusCode, Url, header::HeaderMap};
use rustls::ClientConfig;
use std::{
    collections::HashSet,
    fmt::Display,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};
use tokio::{net::lookup_host, runtime};

/// Connections that wait to be used again: one for questions beside one that carries a file.
const MAX_IDLE: usize = 2;
/// Shorter than the keep-alive of common servers; Apache's is 5 s, but then the runtime sees its end.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// A server that can be connected to.
pub(super) struct WebDavServer {
    /// With `http` or `https`, without user and password.
    pub(super) url: Url,
    pub(super) root: Root,
    pub(super) credentials: Option<Arc<Credentials>>,
    pub(super) tls: ClientConfig,
    pub(super) connect_timeout: Duration,
    pub(super) careful: Arc<Mutex<()>>,
}

impl Connect for WebDavServer {
    fn links(&self) -> &'static [&'static str] {
        match self.url.scheme() {
            "https" => &["name", "connection", "TLS", "log-in", "folder"],
            _ => &["name", "connection", "log-in", "folder"],
        }
    }

    fn connect_telling(
        &self,
        timeout: Duration,
        interrupt: &Interrupt,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<Box<dyn Backend>, Failure> {
        let limit = timeout.min(self.connect_timeout);
        let session = Arc::new(self.session(limit, timeout, interrupt)?);
        let addresses = self.resolve(&session)?;
        let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
        passed("name", format!("{} is {}", self.host(), shown.join(", ")));
        self.greet(&session, passed)?;
        Ok(Box::new(Remote {
            session,
            careful: Arc::clone(&self.careful),
            folders: HashSet::new(),
            free: HashSet::new(),
        }))
    }
}

impl WebDavServer {
    fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    fn with_address(&self, cause: impl Display) -> String {
        format!("{}: {cause}", self.url)
    }

    fn session(&self, limit: Duration, timeout: Duration, interrupt: &Interrupt) -> Result<Session, Failure> {
        let failed = |cause: &dyn Display| {
            Failure::retry(Code::Internal, "the agent cannot set up an HTTP client")
                .detail(self.with_address(cause))
        };
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
        let client = over_http::client(self.tls.clone(), limit, Idle { most: MAX_IDLE, time: POOL_IDLE })
            .map_err(|error| failed(&error))?;
        Ok(Session {
            runtime,
            client,
            root: self.root.clone(),
            credentials: self.credentials.clone(),
            challenge: Mutex::new(None),
            fired: interrupt.fired(),
            patience: AtomicU64::new(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
        })
    }

    /// The addresses of the host, for those who want to know. The client looks again and checks what it connects to.
    fn resolve(&self, session: &Session) -> Result<Vec<SocketAddr>, Failure> {
        let unresolved = |cause: &dyn Display| {
            Failure::retry(Code::TargetUnreachable, "the file server's name cannot be resolved")
                .detail(self.with_address(cause))
        };
        let port = self.url.port_or_known_default().unwrap_or(80);
        let found = session
            .wait("name resolution", async { lookup_host((self.host(), port)).await.map(Vec::from_iter) });
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(unresolved(&error)),
            Err(error) => return Err(unresolved(&error.detail)),
        };
        address::allowed(self.host(), &found).map_err(|error| {
            match error.downcast_ref::<address::Blocked>() {
                Some(_) => Failure::denied(Code::PolicyDenied, address::BLOCKED).detail(&error),
                None => unresolved(&error),
            }
        })
    }

    /// Asks for the root, which shows all that can be wrong.
    fn greet(
        &self,
        session: &Arc<Session>,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<(), Failure> {
        let url = self.root.folder("").map_err(Failure::from)?;
        // Whatever it answers, it answers.
        let answer = session.ask(&Method::OPTIONS, &url, &HeaderMap::new(), None);
        let response = match answer {
            Ok(response) => response,
            Err(NoAnswer::Http(error)) => {
                let tls = find::<rustls::Error>(&error).is_some();
                if tls {
                    passed("connection", self.with_address("TCP"));
                }
                return Err(self.unreached(error));
            }
            Err(NoAnswer::Other(error)) => return Err(self.failed(error)),
        };
        passed("connection", self.with_address("TCP and HTTP"));
        if self.url.scheme() == "https" {
            passed("TLS", format!("the certificate is good for {}", self.host()));
        }
        let offered = response.headers().get("dav").and_then(|dav| dav.to_str().ok()).map(str::to_owned);
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(self.failed(session.refused(&Method::OPTIONS, &url, response)));
        }
        session.drain(response);
        let root = match session.look_at("", &url) {
            Ok(root) => root,
            Err(error) => {
                if !matches!(error.problem, Problem::Auth | Problem::Lost | Problem::TimedOut) {
                    passed("log-in", self.who());
                }
                return Err(self.no_root(error, offered.is_some()));
            }
        };
        passed("log-in", self.who());
        if !root.collection {
            return Err(self.missing("it is a file"));
        }
        passed("folder", format!("{} is there", url.path()));
        Ok(())
    }

    fn who(&self) -> String {
        match &self.credentials {
            Some(who) => format!("as {}", who.username),
            None => "none is asked for".to_owned(),
        }
    }

    fn missing(&self, cause: impl Display) -> Failure {
        let message = "the resource's folder does not exist on the file server";
        Failure::permanent(Code::TargetNotFound, message).detail(self.with_address(cause))
    }

    fn no_root(&self, error: FsError, speaks_webdav: bool) -> Failure {
        let said = self.with_address(&error.detail);
        match error.problem {
            Problem::NotFound => self.missing(&error.detail),
            Problem::Refused => {
                let message = "the account may not open the resource's folder on the file server";
                Failure::permanent(Code::TargetAuth, message).detail(said)
            }
            Problem::Unsupported | Problem::Other if !speaks_webdav => {
                let message = "the server at the resource's address does not speak WebDAV there";
                Failure::permanent(Code::TargetUnsupported, message).detail(said)
            }
            _ => self.failed(error),
        }
    }

    fn failed(&self, error: FsError) -> Failure {
        let (problem, after) = (error.problem, error.retry_after);
        let said = self.with_address(&error.detail);
        if problem == Problem::Auth {
            let message = match self.credentials {
                Some(_) => "the file server refused the agent's log-in",
                None => "the file server asks for a log-in; set username and password of the resource",
            };
            return Failure::permanent(Code::TargetAuth, message).detail(said);
        }
        Failure::from(FsError::new(problem, said)).retry_after(after)
    }

    fn unreached(&self, error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let said = self.with_address(chain(&error));
        if find::<address::Blocked>(&error).is_some() {
            return Failure::denied(Code::PolicyDenied, address::BLOCKED).detail(said);
        }
        if !error.is_connect() {
            let message = "what answers at the file server's address does not speak HTTP";
            return Failure::retry(Code::TargetProtocol, message).detail(said);
        }
        if error.is_timeout() {
            let message = "the file server did not accept a connection in time";
            return Failure::retry(Code::TargetTimeout, message).detail(said);
        }
        let failure = match find::<rustls::Error>(&error) {
            Some(rustls::Error::InvalidCertificate(_)) => Failure::permanent,
            Some(_) | None => Failure::retry,
        };
        failure(Code::TargetUnreachable, unreachable(&error, false)).detail(said)
    }
}
