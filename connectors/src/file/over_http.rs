//! What the places behind HTTP (`webdav`, `s3`) have in common: their client, and the bodies of answers.

use super::backend::{FsError, Problem};
use crate::{address, causes::chain};
use bytes::{Buf as _, Bytes};
use reqwest::{Client, Response};
use rustls::ClientConfig;
use std::{io, sync::Arc, time::Duration};

const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// Connections that wait to be used again.
pub(super) struct Idle {
    pub(super) most: usize,
    /// Shorter than servers keep them.
    pub(super) time: Duration,
}

/// A client that asks the one address that was checked, follows nobody, and repeats nothing by itself.
pub(super) fn client(tls: ClientConfig, connect_timeout: Duration, idle: Idle) -> reqwest::Result<Client> {
    Client::builder()
        .user_agent(concat!("passerelle-agent/", env!("CARGO_PKG_VERSION")))
        // A resource's requests ignore HTTPS_PROXY and the like.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .http1_only()
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(idle.most)
        .pool_idle_timeout(idle.time)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        // A target that is slow to take what is sent has the attempt's own time, not the library's thirty seconds.
        .tcp_user_timeout(None)
        .dns_resolver(address::resolver())
        .tls_backend_preconfigured(tls)
        .build()
}

/// An error of the exchange itself.
pub(super) fn lost(error: reqwest::Error) -> FsError {
    let problem = if error.is_timeout() { Problem::TimedOut } else { Problem::Lost };
    FsError::new(problem, chain(&error.without_url()))
}

/// A session whose blocking calls wait for the network with a limit.
pub(super) trait Waits {
    /// Waits for something of the network; `what` is for the error.
    fn wait<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, FsError>;
}

/// The body of an answer, read as it comes.
pub(super) struct Body<S> {
    session: Arc<S>,
    response: Response,
    chunk: Bytes,
    /// What ended it, to be told once all that came before has been taken.
    failed: Option<FsError>,
}

impl<S: Waits> Body<S> {
    pub(super) fn new(session: Arc<S>, response: Response) -> Self {
        Self { session, response, chunk: Bytes::new(), failed: None }
    }

    /// Some bytes; 0 only at the end.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, FsError> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.chunk.is_empty() {
                if let Some(failed) = self.failed.take() {
                    return Err(failed);
                }
                match self.session.wait("reading an answer", self.response.chunk()) {
                    Ok(Ok(Some(chunk))) => self.chunk = chunk,
                    Ok(Ok(None)) => break,
                    Ok(Err(error)) => self.failed = Some(lost(error)),
                    Err(error) => self.failed = Some(error),
                }
                if self.failed.is_some() && filled > 0 {
                    break;
                }
                continue;
            }
            let room = buffer.get_mut(filled..).unwrap_or_default();
            let n = self.chunk.len().min(room.len());
            if let Some(room) = room.get_mut(..n) {
                self.chunk.copy_to_slice(room);
            }
            filled += n;
        }
        Ok(filled)
    }
}

impl<S: Waits> io::Read for Body<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(buffer).map_err(io::Error::other)
    }
}
