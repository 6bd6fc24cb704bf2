//! Name and TCP: the way to a file server, whatever it speaks, and the end of the time for it.

use super::backend::Interrupt;
use crate::{Code, Failure, address};
use std::{
    fmt::Display,
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

/// What a step that has all the time left may take beyond it: whoever waits in silence ends by itself, and says better what
/// was missing.
const SLACK: Duration = Duration::from_millis(200);

/// Until when connecting must be done, from TCP to the folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Instant);

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// What is left; never zero, which systems and libraries take for "wait for ever".
    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }
}

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

    /// Tries the host's addresses in turn.
    pub(super) fn dial(&self, addresses: &[SocketAddr], deadline: Deadline) -> Result<TcpStream, Failure> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match TcpStream::connect_timeout(address, deadline.left()) {
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

    /// Does the steps that follow, and cuts them off at the deadline. Their own time limits are for silence: a server that
    /// keeps sending, or sends byte by byte, would never let them end.
    pub(super) fn within<T>(
        &self,
        deadline: Deadline,
        interrupt: &Interrupt,
        steps: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (running, ended) = channel::<()>();
        thread::scope(|scope| {
            let watch = move || {
                let late = ended.recv_timeout(deadline.left() + SLACK) == Err(RecvTimeoutError::Timeout);
                if late {
                    interrupt.fire();
                }
                late
            };
            let watching =
                thread::Builder::new().name("file-deadline".to_owned()).spawn_scoped(scope, watch).map_err(
                    |error| Failure::retry(Code::Internal, "the agent cannot start a thread").detail(error),
                )?;
            let done = steps();
            drop(running);
            if !watching.join().unwrap_or(false) {
                return done;
            }
            match done {
                // What it sent until then tells more.
                Err(failure) if failure.code == Code::TargetProtocol => Err(failure),
                done => Err(self.unfinished(done.err())),
            }
        })
    }

    fn unfinished(&self, cause: Option<Failure>) -> Failure {
        let cause = cause.map_or_else(|| "done too late".to_owned(), |failure| failure.to_string());
        Failure::retry(
            Code::TargetTimeout,
            "the file server answers, but connecting to it was not done in time (connect_timeout)",
        )
        .detail(self.with_address(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    const DIAL: Dial<'static> = Dial { host: "127.0.0.1", port: 1 };

    #[test]
    fn what_takes_too_long_is_cut_off_whatever_comes_meanwhile() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let talking = thread::spawn(move || while server.write_all(&[0; 4096]).is_ok() {});
        let interrupt = Interrupt::default();
        interrupt.arm(stream.try_clone().unwrap());
        let listening = || {
            while stream.read(&mut [0]).is_ok_and(|n| n > 0) {}
            Ok(())
        };
        let cut = DIAL.within(Deadline::after(Duration::from_millis(50)), &interrupt, listening);
        assert_eq!(cut.unwrap_err().code, Code::TargetTimeout);
        talking.join().unwrap();
        // What is armed after that is cut at once.
        let late = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        interrupt.arm(late.try_clone().unwrap());
        assert_eq!((&late).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_is_done_in_time_stays_as_it_is() {
        let (deadline, interrupt) = (Deadline::after(Duration::from_secs(600)), Interrupt::default());
        assert_eq!(DIAL.within(deadline, &interrupt, || Ok(7)).unwrap(), 7);
        let refused = || Err::<(), _>(Failure::permanent(Code::TargetAuth, "no"));
        assert_eq!(DIAL.within(deadline, &interrupt, refused).unwrap_err().code, Code::TargetAuth);
        assert!(!interrupt.has_fired());
    }
}
