//! Connecting: TCP, key exchange, host key, log-in, SFTP, root.

use super::{
    CHECK, Remote,
    known_hosts::{self, Verdict},
    milliseconds,
};
use crate::{
    Code, Failure,
    file::{
        backend::{Backend, Connect, Interrupt},
        dial::{Deadline, Dial},
    },
};
use libssh2_sys as raw;
use passerelle_config::Secret;
use ssh2::{Channel, Error, ErrorCode, KeyboardInteractivePrompt, MethodType, Prompt, Session, Sftp};
use std::{
    collections::HashMap,
    fmt::Display,
    io::Read as _,
    net::TcpStream,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use zeroize::Zeroizing;

/// The largest `known_hosts` file that is read.
const MAX_KNOWN_HOSTS: u64 = 4 * 1024 * 1024;

/// Who logs in, and with what.
pub(in crate::file) struct Login {
    pub(in crate::file) username: String,
    pub(in crate::file) private_key: Option<Secret>,
    pub(in crate::file) passphrase: Option<Secret>,
    pub(in crate::file) password: Option<Secret>,
}

/// A server that can be connected to.
pub(in crate::file) struct SftpServer {
    pub(in crate::file) host: String,
    pub(in crate::file) port: u16,
    /// The url's path: absolute, or `/~` and `/~/x` for the login folder and below.
    pub(in crate::file) root: String,
    pub(in crate::file) login: Login,
    pub(in crate::file) known_hosts: PathBuf,
    pub(in crate::file) connect_timeout: Duration,
    /// Held while a name is looked at and then taken, by any session.
    pub(in crate::file) naming: Arc<Mutex<()>>,
}

/// A session that was opened.
struct Open {
    // Dropped before the session that it belongs to.
    sftp: Sftp,
    session: Session,
    host_key: String,
    root: String,
}

impl Connect for SftpServer {
    fn links(&self) -> &'static [&'static str] {
        &["name", "connection", "host key", "log-in", "SFTP", "folder"]
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
        let socket = stream.try_clone().map_err(|error| self.unreachable(error))?;
        interrupt.arm(stream.try_clone().map_err(|error| self.unreachable(error))?);
        let Open { session, sftp, host_key, root } =
            self.address().within(deadline, interrupt, || self.open(stream, deadline, passed))?;
        let is_openssh = session.banner().is_some_and(|banner| banner.contains("OpenSSH"));
        Ok(Box::new(Remote {
            posix_rename: None,
            sftp,
            session,
            is_openssh,
            naming: Arc::clone(&self.naming),
            socket,
            interrupt: interrupt.clone(),
            root,
            host_key,
            resolved: HashMap::new(),
            timeout,
        }))
    }
}

impl SftpServer {
    /// Everything after TCP.
    fn open(
        &self,
        stream: TcpStream,
        deadline: Deadline,
        passed: &mut dyn FnMut(&'static str, String),
    ) -> Result<Open, Failure> {
        let mut session = Session::new().map_err(|error| self.unreachable(error))?;
        // Always a limit: without one libssh2 waits for ever.
        session.set_timeout(milliseconds(deadline.left()));
        session.set_tcp_stream(stream);
        let known_hosts = self.read_known_hosts()?;
        let preference = known_hosts::preference(&session, &known_hosts, &self.host, self.port);
        session.method_pref(MethodType::HostKey, &preference).map_err(|error| {
            Failure::permanent(Code::Internal, "no host key algorithm is available").detail(error)
        })?;
        session.handshake().map_err(|error| match session.banner() {
            // Whatever ended it: libssh2 passes over every line until one of SSH comes.
            Some(line) if !line.starts_with("SSH-") => self.no_ssh(&error),
            Some(_) | None => self.no_handshake(&error),
        })?;
        passed("connection", self.with_address("TCP and SSH"));
        let host_key = self.check_host_key(&session, &known_hosts)?;
        passed("host key", format!("{host_key} is in {}", self.known_hosts.display()));
        session.set_timeout(milliseconds(deadline.left()));
        self.log_in(&session)?;
        passed("log-in", format!("as {}", self.login.username));
        // Some of the time is kept to find out why there is none.
        let left = deadline.left();
        session.set_timeout(milliseconds(left - CHECK.min(left / 3)));
        let sftp = session.sftp().map_err(|error| self.no_sftp(&session, deadline, &error))?;
        passed("SFTP", "the account may use it".to_owned());
        session.set_timeout(milliseconds(deadline.left()));
        let root = self.find_root(&sftp)?;
        passed("folder", format!("{root} is there"));
        Ok(Open { session, sftp, host_key, root })
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

    fn read_known_hosts(&self) -> Result<String, Failure> {
        let path = self.known_hosts.display();
        let unusable = |cause: &dyn Display| {
            Failure::retry(Code::Internal, "the agent's known_hosts file cannot be used")
                .detail(format!("{path}: {cause}"))
        };
        let mut text = String::new();
        let opened = passerelle_config::open_file(&self.known_hosts);
        let read = opened.and_then(|file| file.take(MAX_KNOWN_HOSTS + 1).read_to_string(&mut text));
        match read {
            Ok(size) if size as u64 > MAX_KNOWN_HOSTS => Err(unusable(&"larger than 4 MiB")),
            Ok(_) => Ok(text),
            Err(error) => Err(unusable(&error)),
        }
    }

    fn no_handshake(&self, error: &Error) -> Failure {
        let failure = match error.code() {
            ErrorCode::Session(raw::LIBSSH2_ERROR_TIMEOUT | raw::LIBSSH2_ERROR_SOCKET_TIMEOUT) => {
                Failure::retry(Code::TargetTimeout, "the file server did not answer in time")
            }
            // Tried again, since libssh2 says the same of a server that dies while keys are exchanged.
            ErrorCode::Session(raw::LIBSSH2_ERROR_KEX_FAILURE) => Failure::retry(
                Code::TargetUnsupported,
                "the file server and the agent agreed on no keys: they have no cryptographic algorithm in common, or the \
                 connection broke",
            ),
            ErrorCode::Session(raw::LIBSSH2_ERROR_METHOD_NONE) => Failure::permanent(
                Code::TargetUnsupported,
                "the file server and the agent have no cryptographic algorithm in common",
            ),
            ErrorCode::Session(raw::LIBSSH2_ERROR_BANNER_RECV | raw::LIBSSH2_ERROR_PROTO) => {
                return self.no_ssh(error);
            }
            ErrorCode::Session(_) | ErrorCode::SFTP(_) => Failure::retry(
                Code::TargetUnreachable,
                "the connection to the file server broke while it was made",
            ),
        };
        failure.detail(self.with_address(error))
    }

    fn no_ssh(&self, error: &Error) -> Failure {
        let message = "what answers at the file server's address does not speak SSH";
        Failure::retry(Code::TargetProtocol, message).detail(self.with_address(error))
    }

    /// Why there is no SFTP after the log-in: refused, or begun by a shell or command that is none.
    fn no_sftp(&self, session: &Session, deadline: Deadline, error: &Error) -> Failure {
        let is_timeout = matches!(
            error.code(),
            ErrorCode::Session(raw::LIBSSH2_ERROR_TIMEOUT | raw::LIBSSH2_ERROR_SOCKET_TIMEOUT)
        );
        // libssh2 says the same of a server that dies at this moment: one that gives none still opens channels. And it waits for
        // the answer of a command that has ended.
        session.set_timeout(milliseconds(CHECK.min(deadline.left())));
        let is_given = session.channel_session().map(|channel| is_timeout && waits_to_be_asked(channel));
        match is_given {
            Ok(false) => {
                let message = "the server lets this account in but gives it no SFTP";
                Failure::permanent(Code::TargetUnsupported, message).detail(self.with_address(error))
            }
            Ok(true) | Err(_) if is_timeout => self.no_handshake(error),
            Ok(true) | Err(_) => self.unreachable(error),
        }
    }

    /// Its fingerprint, if the server may have this key.
    fn check_host_key(&self, session: &Session, known_hosts: &str) -> Result<String, Failure> {
        let Some((key, _)) = session.host_key() else {
            return Err(self.unreachable("the server showed no host key"));
        };
        let path = self.known_hosts.display();
        let offered = known_hosts::describe(key);
        let refused = |message: &str, detail: String| {
            tracing::warn!(host = %self.host, port = self.port, offered, "{message}: {detail}");
            Err(Failure::permanent(Code::TargetUnreachable, message).detail(self.with_address(detail)))
        };
        match known_hosts::check(session, known_hosts, &self.host, self.port, key) {
            Verdict::Known => Ok(known_hosts::fingerprint(key)),
            Verdict::Unknown => refused(
                "the file server's host key is not in the agent's known_hosts file",
                format!(
                    "it offers {offered}; compare that with the server's owner, then add this line to {path}: {}",
                    known_hosts::line(&self.host, self.port, key)
                ),
            ),
            Verdict::Changed => refused(
                "the file server's host key is not the one in the agent's known_hosts file: someone may be intercepting the connection, or the server was set up anew",
                format!(
                    "HOST KEY CHANGED: it offers {offered}; only if its owner confirms the change, replace its lines in {path} by: {}",
                    known_hosts::line(&self.host, self.port, key)
                ),
            ),
            Verdict::Revoked => refused(
                "the file server's host key is marked as revoked in the agent's known_hosts file",
                format!(
                    "it offers {offered}, which {path} marks @revoked; the server must get a new key: let its owner make one, compare \
                     its fingerprint, and put its line there"
                ),
            ),
        }
    }

    fn log_in(&self, session: &Session) -> Result<(), Failure> {
        let Login { username, private_key, passphrase, password } = &self.login;
        let mut refusals = Vec::new();
        if let Some(key) = private_key {
            // The trailing line end that a secret loses belongs to the format; the format knows no CR.
            let pem = Zeroizing::new(key.expose().replace('\r', "") + "\n");
            let passphrase = passphrase.as_ref().map(Secret::expose);
            match session.userauth_pubkey_memory(username, None, &pem, passphrase) {
                Ok(()) => {}
                Err(error) if matches!(error.code(), ErrorCode::Session(raw::LIBSSH2_ERROR_FILE)) => {
                    let message = "the agent's private key for the file server cannot be used: it is damaged, of an unknown format, or its passphrase is wrong or missing";
                    return Err(
                        Failure::permanent(Code::TargetAuth, message).detail(self.with_address(error))
                    );
                }
                Err(error) => refusals.push(self.refused("public key", &error)?),
            }
        }
        if let Some(password) = password
            && !session.authenticated()
        {
            if let Err(error) = session.userauth_password(username, password.expose()) {
                refusals.push(self.refused("password", &error)?);
            }
            if !session.authenticated()
                && let Err(error) = session.userauth_keyboard_interactive(username, &mut Answer(password))
            {
                refusals.push(self.refused("keyboard-interactive", &error)?);
            }
        }
        if session.authenticated() {
            return Ok(());
        }
        // libssh2 says the same of a server that dies at this moment: one that refuses still says what it takes.
        let methods = match session.auth_methods(username) {
            Ok(methods) => methods.to_owned(),
            Err(error) => self.refused("list of methods", &error)?,
        };
        Err(Failure::permanent(Code::TargetAuth, "the file server refused the agent's log-in").detail(
            self.with_address(format!(
                "user {username}: {}; the server takes: {methods}",
                refusals.join("; ")
            )),
        ))
    }

    /// A refusal in words; an error if it is not the log-in that failed but the connection.
    fn refused(&self, method: &str, error: &Error) -> Result<String, Failure> {
        match error.code() {
            ErrorCode::Session(
                raw::LIBSSH2_ERROR_AUTHENTICATION_FAILED
                | raw::LIBSSH2_ERROR_PUBLICKEY_UNVERIFIED
                | raw::LIBSSH2_ERROR_KEYFILE_AUTH_FAILED
                | raw::LIBSSH2_ERROR_PASSWORD_EXPIRED
                | raw::LIBSSH2_ERROR_METHOD_NONE
                | raw::LIBSSH2_ERROR_METHOD_NOT_SUPPORTED
                | raw::LIBSSH2_ERROR_ALGO_UNSUPPORTED,
            ) => Ok(format!("{method}: {error}")),
            ErrorCode::Session(_) | ErrorCode::SFTP(_) => Err(self.no_handshake(error)),
        }
    }

    /// The root, resolved by the server; it must be a folder.
    fn find_root(&self, sftp: &Sftp) -> Result<String, Failure> {
        let wanted = match self.root.strip_prefix("/~") {
            Some("" | "/") => ".".to_owned(),
            Some(rest) if rest.starts_with('/') => format!(".{rest}"),
            Some(_) | None if self.root.is_empty() => "/".to_owned(),
            Some(_) | None => self.root.clone(),
        };
        let missing = |cause: &dyn Display| {
            Failure::permanent(
                Code::TargetNotFound,
                "the resource's folder does not exist on the file server",
            )
            .detail(self.with_address(format!("{wanted}: {cause}")))
        };
        let refused = |error: Error| match error.code() {
            ErrorCode::SFTP(raw::LIBSSH2_FX_PERMISSION_DENIED) => Failure::permanent(
                Code::TargetRefused,
                "the account may not open the resource's folder on the file server",
            )
            .detail(self.with_address(format!("{wanted}: {error}"))),
            ErrorCode::SFTP(_) => missing(&error),
            ErrorCode::Session(_) => self.no_handshake(&error),
        };
        let real = sftp.realpath(Path::new(&wanted)).map_err(refused)?;
        let found = sftp.stat(&real).map_err(refused)?;
        if !found.is_dir() {
            return Err(missing(&"not a folder"));
        }
        match std::str::from_utf8(real.as_os_str().as_bytes()) {
            Ok(real) => Ok(real.to_owned()),
            Err(_) => Err(missing(&"its name is not UTF-8")),
        }
    }
}

/// Whether what the server starts for SFTP runs on in silence, as an SFTP server does until it is asked. A shell or command
/// that is none says something or ends.
fn waits_to_be_asked(mut channel: Channel) -> bool {
    channel.subsystem("sftp").is_ok() && channel.read(&mut [0; 64]).is_err()
}

/// Answers the hidden questions of a keyboard-interactive log-in with the password, and no others.
struct Answer<'a>(&'a Secret);

impl KeyboardInteractivePrompt for Answer<'_> {
    fn prompt<'a>(&mut self, _: &str, _: &str, prompts: &[Prompt<'a>]) -> Vec<String> {
        let answer =
            |prompt: &Prompt<'_>| if prompt.echo { String::new() } else { self.0.expose().to_owned() };
        prompts.iter().map(answer).collect()
    }
}
