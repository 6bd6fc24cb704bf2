//! Name and TCP: the way to a file server, whatever it speaks.

use crate::{Code, Failure, address};
use std::{
    fmt::Display,
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

/// A file server's address as the operator wrote it.
pub(super) struct Dial<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
}

impl Dial<'_> {
    /// A cause for the local log, with the address.
    pub(super) fn with_address(&self, cause: impl Display) -> String {
        format!("{}:{}: {cause}", self.host, self.port)
    }

    pub(super) fn unreachable(&self, cause: impl Display) -> Failure {
        Failure::retry(Code::TargetUnreachable, "the file server cannot be reached")
            .detail(self.with_address(cause))
    }

    /// All addresses of the host that may be connected to.
    pub(super) fn resolve(&self) -> Result<Vec<SocketAddr>, Failure> {
        let found = (self.host, self.port).to_socket_addrs().map_err(|error| {
            Failure::retry(Code::TargetUnreachable, "the file server's name cannot be resolved")
                .detail(self.with_address(error))
        })?;
        // Checked once resolved, whatever notation the name is in; no second look-up follows.
        address::allowed(self.host, &found.collect::<Vec<_>>()).map_err(|error| {
            match error.downcast_ref::<address::Blocked>() {
                Some(_) => Failure::denied(Code::PolicyDenied, address::BLOCKED).detail(&error),
                None => self.unreachable(error),
            }
        })
    }

    /// Tries the host's addresses in turn, all within `limit`.
    pub(super) fn dial(&self, addresses: &[SocketAddr], limit: Duration) -> Result<TcpStream, Failure> {
        let deadline = Instant::now() + limit;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                last = io::ErrorKind::TimedOut.into();
                break;
            }
            match TcpStream::connect_timeout(address, left) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(|error| self.unreachable(error))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        if last.kind() == io::ErrorKind::TimedOut {
            return Err(Failure::retry(
                Code::TargetTimeout,
                "the file server did not accept a connection in time",
            )
            .detail(self.with_address(last)));
        }
        Err(self.unreachable(last))
    }
}
