//! What the operator writes for `ftp://` and `ftps://`, checked; and how it becomes something that connects.

use super::{connect::FtpServer, tls};
use crate::{
    BuildError,
    file::{
        backend::Connect,
        settings::{Checker, Raw},
    },
};
use passerelle_config::{SecretError, SecretRef};
use percent_encoding::percent_decode_str;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use url::Url;

/// Whether and when TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::file) enum Mode {
    Plain,
    /// After `AUTH TLS`, on the ordinary port.
    Explicit,
    /// With the first byte, on a port of its own.
    Implicit,
}

/// Checked settings of a folder on an FTP server.
#[derive(Debug)]
pub(in crate::file) struct FtpSettings {
    host: String,
    port: u16,
    root: String,
    username: String,
    password: Option<SecretRef>,
    mode: Mode,
    ca_file: Option<PathBuf>,
    connect_timeout: Duration,
    pub(in crate::file) max_sessions: usize,
}

/// Checks the settings of a resource whose url is `ftp://` or `ftps://`.
pub(in crate::file) fn check(checker: &mut Checker<'_>, url: &Url, raw: Raw) -> Option<FtpSettings> {
    let scheme = url.scheme();
    for (key, set) in [
        ("private_key", raw.private_key.is_some()),
        ("passphrase", raw.passphrase.is_some()),
        ("known_hosts", raw.known_hosts.is_some()),
    ] {
        if set {
            checker.wrong(key, format!("has no meaning for {scheme}://; remove it"));
        }
    }
    let mode = match (scheme, raw.tls.as_deref()) {
        ("ftp", None) => Mode::Plain,
        ("ftp", Some(_)) => {
            checker.wrong("tls", "has no meaning for ftp://; write ftps:// in the url for TLS");
            Mode::Plain
        }
        (_, None | Some("explicit")) => Mode::Explicit,
        (_, Some("implicit")) => Mode::Implicit,
        (_, Some(other)) => {
            checker.wrong(
                "tls",
                format!(
                    "is {other:?}; write \"explicit\" (AUTH TLS) or \"implicit\" (TLS from the first byte)"
                ),
            );
            Mode::Explicit
        }
    };
    if mode == Mode::Plain && raw.ca_file.is_some() {
        checker.wrong("ca_file", "has no meaning for ftp://; write ftps:// in the url for TLS");
    }
    let host = checker.host(url, scheme);
    let username = match (raw.username, url.username()) {
        (Some(_), name) if !name.is_empty() => {
            checker.wrong("username", "the url names a user too; keep one of them");
            None
        }
        (Some(name), _) if !name.is_empty() => Some(name),
        (Some(_), _) => {
            checker.wrong("username", "is empty; leave it out to log in as anonymous");
            None
        }
        (None, "") => Some("anonymous".to_owned()),
        (None, name) => Some(percent_decode_str(name).decode_utf8_lossy().into_owned()),
    };
    if username.as_ref().is_some_and(|name| name.contains(['\r', '\n', '\0'])) {
        checker.wrong("username", "has a line end or a NUL, which no FTP command can carry");
    }
    if username.as_ref().is_some_and(|name| !matches!(name.as_str(), "anonymous" | "ftp"))
        && raw.password.is_none()
    {
        checker.wrong(
            "password",
            format!("missing; {scheme}:// needs one for a named user, as {{ file = \"secrets/…\" }}"),
        );
    }
    let root = percent_decode_str(url.path()).decode_utf8().ok().map(std::borrow::Cow::into_owned);
    match &root {
        None => checker.wrong("url", "the folder is not UTF-8 text"),
        Some(root) if root.contains(['\r', '\n', '\0']) => {
            checker.wrong("url", "the folder has a line end or a NUL, which no FTP command can carry");
        }
        Some(_) => {}
    }
    let max_sessions = checker.max_sessions(raw.max_sessions);
    let connect_timeout = checker.connect_timeout(raw.connect_timeout);
    let ordinary = if mode == Mode::Implicit { 990 } else { 21 };
    Some(FtpSettings {
        host: host?,
        port: url.port().unwrap_or(ordinary),
        root: root?,
        username: username?,
        password: raw.password,
        mode,
        ca_file: raw.ca_file,
        connect_timeout,
        max_sessions,
    })
}

impl FtpSettings {
    /// Reads the secrets; does not connect.
    pub(in crate::file) fn connect(&self, base: &Path) -> Result<Arc<dyn Connect>, BuildError> {
        let read = self.password.as_ref().map(|reference| reference.read(base)).transpose();
        let password = read.map_err(|SecretError(message)| BuildError::at("password", message))?;
        if password.as_ref().is_some_and(|secret| secret.expose().contains(['\r', '\n', '\0'])) {
            return Err(BuildError::at(
                "password",
                "has a line end or a NUL, which no FTP command can carry",
            ));
        }
        let tls = match self.mode {
            Mode::Plain => None,
            Mode::Explicit | Mode::Implicit => {
                let ca_file = self.ca_file.as_ref().map(|file| base.join(file));
                Some(Arc::new(tls::Versions::new(ca_file.as_deref())?))
            }
        };
        Ok(Arc::new(FtpServer {
            host: self.host.clone(),
            port: self.port,
            root: self.root.clone(),
            username: self.username.clone(),
            password,
            mode: self.mode,
            tls,
            connect_timeout: self.connect_timeout,
            naming: Arc::default(),
        }))
    }
}
