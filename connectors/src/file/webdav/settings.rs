//! What the operator writes for a `webdav://` or `webdavs://` resource, checked.

use super::{auth::Credentials, connect::WebDavServer, names::Root};
use crate::{
    BuildError,
    address::{BLOCKED_HERE, is_blocked_host},
    file::backend::Connect,
    http::client::tls_of,
};
use passerelle_config::{SecretError, SecretRef};
use percent_encoding::percent_decode_str;
use reqwest::Url;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

/// The keys of the resource that have a meaning here, as they are written.
pub(in crate::file) struct WebDavKeys {
    pub(in crate::file) username: Option<String>,
    pub(in crate::file) password: Option<SecretRef>,
    pub(in crate::file) ca_file: Option<PathBuf>,
    pub(in crate::file) connect_timeout: Duration,
    pub(in crate::file) max_sessions: usize,
}

/// Checked settings.
#[derive(Debug)]
pub(in crate::file) struct WebDavSettings {
    root: Root,
    url: Url,
    login: Option<(String, SecretRef)>,
    ca_file: Option<PathBuf>,
    connect_timeout: Duration,
    max_sessions: usize,
}

/// Checks them; findings go to `wrong`, each with the key it is about.
pub(in crate::file) fn check(
    url: &Url,
    keys: WebDavKeys,
    wrong: &mut dyn FnMut(&str, String),
) -> Option<WebDavSettings> {
    let speaks_tls = url.scheme() == "webdavs";
    // Read again as what it is on the wire: for other schemes the parser leaves hosts such as `2852039166` alone.
    let (from, to) = if speaks_tls { ("webdavs:", "https:") } else { ("webdav:", "http:") };
    let parsed = url.as_str().strip_prefix(from).and_then(|rest| Url::parse(&format!("{to}{rest}")).ok());
    let mut http = match parsed {
        Some(http) if url.host_str().is_some_and(|host| !host.is_empty()) => http,
        Some(_) | None => {
            wrong("url", format!("names no host; write {}://host:port/folder", url.scheme()));
            return None;
        }
    };
    if http.host().is_some_and(|host| is_blocked_host(&host)) {
        wrong("url", BLOCKED_HERE.to_owned());
    }
    if url.password().is_some() {
        wrong("url", "a password is never written here; use password = { file = \"secrets/…\" }".to_owned());
    }
    let username = match (keys.username, url.username()) {
        (Some(name), "") => Some(name).filter(|name| !name.is_empty()),
        (None, "") => None,
        (None, name) => Some(percent_decode_str(name).decode_utf8_lossy().into_owned()),
        (Some(_), _) => {
            wrong("username", "the url names a user too; keep one of them".to_owned());
            None
        }
    };
    if username.as_ref().is_some_and(|name| name.contains(':') || name.contains(char::is_control)) {
        wrong("username", "holds a colon or a control character, which HTTP cannot carry".to_owned());
    }
    let login = match (username, keys.password) {
        (Some(name), Some(password)) => Some((name, password)),
        (None, None) => None,
        (Some(_), None) => {
            wrong("password", "missing; a username needs password = { file = \"secrets/…\" }".to_owned());
            None
        }
        (None, Some(_)) => {
            wrong("username", "missing; the password needs a name to log in with".to_owned());
            None
        }
    };
    if keys.ca_file.is_some() && !speaks_tls {
        wrong("ca_file", "has no meaning without TLS; write webdavs:// in the url".to_owned());
    }
    let cleared = http.set_username("").and_then(|()| http.set_password(None));
    let root = Root::new(&http).filter(|_| cleared.is_ok());
    if root.is_none() {
        wrong("url", "the folder is not UTF-8 text".to_owned());
    }
    Some(WebDavSettings {
        root: root?,
        url: http,
        login,
        ca_file: keys.ca_file,
        connect_timeout: keys.connect_timeout,
        max_sessions: keys.max_sessions,
    })
}

impl WebDavSettings {
    /// How many connections there may be at once.
    pub(in crate::file) fn max_sessions(&self) -> usize {
        self.max_sessions
    }

    /// Reads the password and the CA file; does not connect.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub(in crate::file) fn connect(&self, base: &Path) -> Result<Arc<dyn Connect>, BuildError> {
        let speaks_tls = self.url.scheme() == "https";
        let ca_file = self.ca_file.as_ref().map(|file| base.join(file));
        let tls = tls_of(speaks_tls, ca_file.as_deref(), &[b"http/1.1"])
            .map_err(|(key, cause)| BuildError::at(key, cause))?;
        let credentials = match &self.login {
            None => None,
            Some((username, password)) => {
                let password = password
                    .read(base)
                    .map_err(|SecretError(message)| BuildError::at("password", message))?;
                Some(Arc::new(Credentials { username: username.clone(), password }))
            }
        };
        Ok(Arc::new(WebDavServer {
            url: self.url.clone(),
            root: self.root.clone(),
            credentials,
            tls,
            connect_timeout: self.connect_timeout,
            careful: Arc::new(Mutex::new(())),
        }))
    }
}
