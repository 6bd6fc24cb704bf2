//! Connecting: name, TCP, log-in, share, folder.

use super::{
    Remote,
    files::Session,
    handshake::{Agreed, NoSession, enter, log_in, negotiate},
    wire::Wire,
};
use crate::{
    Code, Failure,
    file::{
        backend::{Backend, Connect, FsError, Interrupt, Problem},
        dial::{Deadline, Dial},
    },
};
use passerelle_config::Secret;
use smb2::{auth::NtlmCredentials, types::status::NtStatus};
use std::{
    fmt::Display,
    net::TcpStream,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A share that can be connected to.
pub(super) struct SmbServer {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) share: String,
    /// The folder in the share, with `\` between names.
    pub(super) root: String,
    pub(super) domain: String,
    pub(super) username: String,
    pub(super) password: Secret,
    /// Whether encryption is demanded, whatever the server thinks.
    pub(super) encrypt: bool,
    pub(super) connect_timeout: Duration,
    /// Held during renames, by any session.
    pub(super) naming: Arc<Mutex<()>>,
}

impl Connect for SmbServer {
    fn links(&self) -> &'static [&'static str] {
        &["name", "connection", "log-in", "share", "folder"]
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
        let armed = stream.try_clone().map_err(|error| self.address().unreachable(error))?;
        interrupt.arm(armed);
        let mut session =
            self.address().within(deadline, interrupt, || self.open(stream, deadline, interrupt, passed))?;
        session.wire.set_timeout(timeout);
        Ok(Box::new(Remote::new(session, Arc::clone(&self.naming))))
    }
}

fn protection(wire: &Wire) -> &'static str {
    if wire.is_encrypting() { "encrypted" } else { "signed" }
}

impl SmbServer {
    /// Everything after TCP.
    fn open(
        &self,
        stream: TcpStream,
        deadline: Deadline,
        interrupt: &Interrupt,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<Session, Failure> {
        let mut wire = Wire::new(stream, deadline.left());
        wire.set_timeout(deadline.left());
        let agreed = negotiate(&mut wire).map_err(|error| match interrupt.has_fired() {
            // It is not the server that has hung up.
            true => self.broken(&error),
            false => self.no_answer(&error),
        })?;
        passed("connection", self.with_address(agreed.dialect));
        wire.set_timeout(deadline.left());
        self.log_in(&mut wire, &agreed)?;
        passed("log-in", format!("as {}, {}", self.who(), protection(&wire)));
        wire.set_timeout(deadline.left());
        enter(&mut wire, &self.host, &self.share).map_err(|error| self.not_entered(error))?;
        passed("share", format!("{} is there, {}", self.share, protection(&wire)));
        let server = format!("{}:{}/{}", self.host, self.port, self.share);
        let mut session = Session::new(wire, &agreed, server, self.root.clone());
        session.wire.set_timeout(deadline.left());
        let found = session.look("").map_err(|error| self.no_folder(error))?;
        if !found.is_folder() {
            return Err(self.missing("it is a file"));
        }
        passed("folder", format!("\\{} is there", self.root));
        Ok(session)
    }

    fn address(&self) -> Dial<'_> {
        Dial { host: &self.host, port: self.port }
    }

    fn with_address(&self, cause: impl Display) -> String {
        self.address().with_address(cause)
    }

    fn who(&self) -> String {
        match self.domain.as_str() {
            "" => self.username.clone(),
            domain => format!("{domain}\\{}", self.username),
        }
    }

    fn log_in(&self, wire: &mut Wire, agreed: &Agreed) -> Result<(), Failure> {
        let credentials = NtlmCredentials {
            username: self.username.clone(),
            password: self.password.expose().to_owned(),
            domain: self.domain.clone(),
        };
        log_in(wire, agreed, credentials, self.encrypt).map_err(|error| self.not_logged_in(error))
    }

    /// The connection broke, or what answers says what makes no sense.
    fn broken(&self, error: &FsError) -> Failure {
        let failure = match error.problem {
            Problem::TimedOut => {
                Failure::retry(Code::TargetTimeout, "the file server did not answer in time")
            }
            Problem::Lost => Failure::retry(
                Code::TargetUnreachable,
                "the connection to the file server broke while it was made",
            ),
            _ => Failure::retry(
                Code::TargetProtocol,
                "the file server's answer makes no sense; see the agent's log",
            ),
        };
        failure.detail(self.with_address(error))
    }

    fn no_answer(&self, error: &FsError) -> Failure {
        match error.problem {
            Problem::TimedOut => self.broken(error),
            // Others hang up, or say something else.
            Problem::Lost | Problem::Protocol => Failure::retry(
                Code::TargetProtocol,
                "what answers at the file server's address does not speak SMB 2 or 3",
            )
            .detail(self.with_address(error)),
            _ => Failure::permanent(
                Code::TargetUnsupported,
                "the file server takes none of the dialects from SMB 2.0.2 to 3.1.1",
            )
            .detail(self.with_address(error)),
        }
    }

    fn no_cipher(&self) -> Failure {
        let message = "encryption is required, and the file server does not offer it: it needs SMB 3";
        Failure::permanent(Code::TargetUnsupported, message).detail(self.with_address("no cipher in common"))
    }

    fn not_logged_in(&self, error: NoSession) -> Failure {
        let (message, cause) = match error {
            NoSession::Broken(error) => return self.broken(&error),
            NoSession::NoCipher => return self.no_cipher(),
            NoSession::Guest => (
                "the file server took the agent's account for a guest, whose messages nobody can sign; check username and password, and that the server maps no bad log-in to a guest",
                "a guest's session".to_owned(),
            ),
            NoSession::NotAShare => ("the file server refused the agent's log-in", "no share".to_owned()),
            NoSession::Refused(status) => {
                let message = match status {
                    NtStatus::ACCOUNT_LOCKED_OUT => "the agent's account is locked on the file server",
                    NtStatus::ACCOUNT_DISABLED | NtStatus::ACCOUNT_EXPIRED => {
                        "the agent's account is disabled on the file server"
                    }
                    NtStatus::PASSWORD_EXPIRED | NtStatus::PASSWORD_MUST_CHANGE => {
                        "the password of the agent's account has to be changed on the file server"
                    }
                    NtStatus::INSUFFICIENT_RESOURCES | NtStatus::REQUEST_NOT_ACCEPTED => {
                        let message = "the file server turns connections away: it is too busy, or does not let this host in";
                        return Failure::retry(Code::TargetThrottled, message)
                            .detail(self.with_address(status));
                    }
                    _ => "the file server refused the agent's log-in",
                };
                (message, status.to_string())
            }
        };
        Failure::permanent(Code::TargetAuth, message)
            .detail(self.with_address(format!("as {}: {cause}", self.who())))
    }

    fn not_entered(&self, error: NoSession) -> Failure {
        let detail = |cause: &dyn Display| self.with_address(format!("share {}: {cause}", self.share));
        match error {
            NoSession::Broken(error) => self.broken(&error),
            NoSession::NoCipher => self.no_cipher(),
            NoSession::Guest | NoSession::NotAShare => {
                let message = "what the resource names on the file server is no share with files";
                Failure::permanent(Code::TargetUnsupported, message).detail(detail(&"a printer or a pipe"))
            }
            NoSession::Refused(status) => match super::error::from_status("", status).problem {
                Problem::NotFound => {
                    let message = "the resource's share does not exist on the file server";
                    Failure::permanent(Code::TargetNotFound, message).detail(detail(&status))
                }
                Problem::Refused => {
                    let message = "the account may not enter the resource's share on the file server";
                    Failure::permanent(Code::TargetAuth, message).detail(detail(&status))
                }
                problem => FsError::new(problem, detail(&status)).into(),
            },
        }
    }

    fn missing(&self, cause: impl Display) -> Failure {
        let message = "the resource's folder does not exist on the file server";
        Failure::permanent(Code::TargetNotFound, message)
            .detail(self.with_address(format!("{}\\{}: {cause}", self.share, self.root)))
    }

    fn no_folder(&self, error: FsError) -> Failure {
        match error.problem {
            Problem::NotFound | Problem::NotAFolder => self.missing(&error.detail),
            Problem::Refused => {
                let message = "the account may not open the resource's folder on the file server";
                Failure::permanent(Code::TargetAuth, message).detail(self.with_address(error))
            }
            Problem::Lost | Problem::TimedOut | Problem::Protocol => self.broken(&error),
            _ => error.into(),
        }
    }
}
