//! Connecting: name, TCP, TLS, access key, bucket. All of it shows in the first question about the bucket.

use super::{
    Remote,
    exchange::{Bucket, NoAnswer, Request, Session, refused},
    list::LIST,
    sign::Keys,
    xml,
};
use crate::{
    BuildError, Code, Failure, address,
    apart::Background,
    causes::{chain, find},
    file::{
        backend::{Backend, Connect, FsError, Interrupt, Problem},
        over_http::{self, Idle, Waits as _},
    },
    http::fault::unreachable,
};
use reqwest::{Method, Url};
use rustls::ClientConfig;
use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    fmt::Display,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};
use tokio::net::lookup_host;

/// Connections that wait to be used again.
const MAX_IDLE: usize = 8;
/// Shorter than stores keep them.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// A store that can be connected to.
pub(super) struct ObjectStore {
    base: Url,
    bucket: Arc<Bucket>,
    connect_timeout: Duration,
}

impl ObjectStore {
    /// # Errors
    /// If there can be no HTTP client.
    pub(super) fn new(
        base: Url,
        name: &str,
        prefix: &str,
        keys: Keys,
        tls: ClientConfig,
        connect_timeout: Duration,
        runtime: Background,
    ) -> Result<Self, BuildError> {
        let client = over_http::client(tls, connect_timeout, Idle { most: MAX_IDLE, time: POOL_IDLE })
            .map_err(|error| BuildError::at("endpoint", chain(&error.without_url())))?;
        let host = match (base.host_str().unwrap_or_default(), base.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let path = base.path().trim_end_matches('/').to_owned();
        let bucket = Bucket {
            client,
            keys,
            base: base.as_str().trim_end_matches('/').to_owned(),
            host,
            path,
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            runtime,
            careful: Mutex::new(()),
            conditional: Mutex::new(None),
            reserved: Mutex::new(HashSet::new()),
        };
        Ok(Self { base, bucket: Arc::new(bucket), connect_timeout })
    }

    fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    fn with_address(&self, cause: impl Display) -> String {
        format!("{}: {cause}", self.base)
    }

    /// The addresses of the host, for those who want to know. The client looks again and checks what it connects to.
    fn resolve(&self, session: &Session, limit: Duration) -> Result<Vec<SocketAddr>, Failure> {
        let unresolved = |cause: &dyn Display| {
            Failure::retry(Code::TargetUnreachable, "the object store's name cannot be resolved")
                .detail(self.with_address(cause))
        };
        let port = self.base.port_or_known_default().unwrap_or(443);
        let found = session.wait("name resolution", async {
            tokio::time::timeout(limit, lookup_host((self.host(), port)))
                .await
                .map(|found| found.map(Vec::from_iter))
        });
        let found = match found {
            Ok(Ok(Ok(found))) => found,
            Ok(Ok(Err(error))) => return Err(unresolved(&error)),
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

    /// Asks for one key of the bucket, which shows all that can be wrong.
    fn greet(&self, session: &Session, passed: &mut dyn FnMut(&'static str, String)) -> Result<(), Failure> {
        let query = [("list-type", "2"), ("prefix", session.bucket.prefix.as_str()), ("max-keys", "1")];
        let request = Request { key: None, ..Request::new(Method::GET, "") }.query(&query);
        let response = match session.ask(&request) {
            Ok(response) => response,
            Err(NoAnswer::Http(error)) => {
                if find::<rustls::Error>(&error).is_some() {
                    passed("connection", self.with_address("TCP"));
                }
                return Err(self.unreached(error));
            }
            Err(NoAnswer::Other(error)) => return Err(self.failed(error, None)),
        };
        passed("connection", self.with_address("TCP and HTTP"));
        if self.base.scheme() == "https" {
            passed("TLS", format!("the certificate is good for {}", self.host()));
        }
        let status = response.status();
        if !status.is_success() {
            let error = session
                .wait("reading an answer", refused(&request.method, None, response))
                .map_err(|error| self.failed(error, None))?;
            if matches!(error.problem, Problem::NotFound) {
                passed("log-in", "the access key is known".to_owned());
            }
            return Err(self.failed(error, Some(status.as_u16())));
        }
        let mut listed = false;
        let body = session.body(response).map_err(|error| self.failed(error, None))?;
        let read = xml::read(&body, |path, _| {
            listed |= LIST.is_shown_by(path);
            Ok(())
        });
        if read.is_err() || !listed {
            let message = "what answers at the resource's endpoint is no S3-compatible object store";
            return Err(Failure::retry(Code::TargetProtocol, message).detail(self.with_address("no list")));
        }
        passed("log-in", "the access key is good".to_owned());
        passed("bucket", format!("{} is there", session.bucket.name));
        Ok(())
    }

    fn failed(&self, error: FsError, status: Option<u16>) -> Failure {
        let (problem, after) = (error.problem, error.retry_after);
        let said = self.with_address(&error.detail);
        let permanent = |code, message: &str| Failure::permanent(code, message).detail(&said);
        match (problem, status) {
            (Problem::NotFound, Some(_)) => {
                permanent(Code::TargetNotFound, "the resource's bucket does not exist in the object store")
            }
            // Asked in the wrong region, a store sends elsewhere, or refuses the signature for it.
            (Problem::Protocol, Some(300..400)) | (Problem::Auth, Some(400)) => permanent(
                Code::TargetRefused,
                "the bucket belongs to another region or endpoint than the resource names; the agent's log says which, if the store does",
            ),
            (Problem::Auth, _) => {
                permanent(Code::TargetAuth, "the object store refused the agent's access key")
            }
            (Problem::Refused, Some(_)) => {
                permanent(Code::TargetAuth, "the agent's access key may not list the resource's bucket")
            }
            _ => Failure::from(FsError::new(problem, said)).retry_after(after),
        }
    }

    fn unreached(&self, error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let said = self.with_address(chain(&error));
        if find::<address::Blocked>(&error).is_some() {
            return Failure::denied(Code::PolicyDenied, address::BLOCKED).detail(said);
        }
        if !error.is_connect() {
            let message = "what answers at the object store's address does not speak HTTP";
            return Failure::retry(Code::TargetProtocol, message).detail(said);
        }
        if error.is_timeout() {
            let message = "the object store did not accept a connection in time";
            return Failure::retry(Code::TargetTimeout, message).detail(said);
        }
        Failure::retry(Code::TargetUnreachable, unreachable(&error, false)).detail(said)
    }
}

impl Connect for ObjectStore {
    fn links(&self) -> &'static [&'static str] {
        match self.base.scheme() {
            "https" => &["name", "connection", "TLS", "log-in", "bucket"],
            _ => &["name", "connection", "log-in", "bucket"],
        }
    }

    fn connect_telling(
        &self,
        timeout: Duration,
        interrupt: &Interrupt,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<Box<dyn Backend>, Failure> {
        let session = Arc::new(Session {
            bucket: Arc::clone(&self.bucket),
            fired: interrupt.fired(),
            patience: AtomicU64::new(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
            sent: Mutex::new(HashMap::new()),
        });
        let addresses = self.resolve(&session, timeout.min(self.connect_timeout))?;
        let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
        passed("name", format!("{} is {}", self.host(), shown.join(", ")));
        self.greet(&session, passed)?;
        Ok(Box::new(Remote { session, mine: HashSet::new(), untidy: Cell::default() }))
    }
}
