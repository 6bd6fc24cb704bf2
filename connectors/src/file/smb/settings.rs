//! What the operator writes for `smb://`, checked; and how it becomes something that connects.

use super::{connect::SmbServer, names};
use crate::{
    BuildError,
    file::{
        backend::Connect,
        settings::{Checker, Raw},
    },
};
use passerelle_config::{SecretError, SecretRef};
use percent_encoding::percent_decode_str;
use std::{path::Path, sync::Arc, time::Duration};
use url::Url;

/// Checked settings of a folder on an SMB share.
#[derive(Debug)]
pub(in crate::file) struct SmbSettings {
    host: String,
    port: u16,
    share: String,
    /// The folder in the share in the form of the protocol; `""` is the share itself.
    root: String,
    domain: String,
    username: String,
    password: SecretRef,
    encrypt: bool,
    connect_timeout: Duration,
    pub(in crate::file) max_sessions: usize,
}

/// Checks the settings of a resource whose url is `smb://`.
pub(in crate::file) fn check(checker: &mut Checker<'_>, url: &Url, raw: Raw) -> Option<SmbSettings> {
    for (key, set) in [
        ("private_key", raw.private_key.is_some()),
        ("passphrase", raw.passphrase.is_some()),
        ("known_hosts", raw.known_hosts.is_some()),
        ("tls", raw.tls.is_some()),
        ("ca_file", raw.ca_file.is_some()),
    ] {
        if set {
            checker.wrong(key, "has no meaning for smb://; remove it");
        }
    }
    let host = checker.host(url, "smb");
    let place = place(checker, url);
    let who = who(checker, url, raw.username, raw.domain);
    let encrypt = match raw.encryption.as_deref() {
        None | Some("auto") => false,
        Some("required") => true,
        Some(other) => {
            let message = format!(
                "is {other:?}; write \"auto\" (where server or share demand it) or \"required\" (always)"
            );
            checker.wrong("encryption", message);
            false
        }
    };
    if raw.password.is_none() {
        checker.wrong("password", "missing; smb:// needs one, as { file = \"secrets/…\" }");
    }
    let max_sessions = checker.max_sessions(raw.max_sessions);
    let connect_timeout = checker.connect_timeout(raw.connect_timeout);
    let (share, root) = place?;
    let (domain, username) = who?;
    Some(SmbSettings {
        host: host?,
        port: url.port().unwrap_or(445),
        share,
        root,
        domain,
        username,
        password: raw.password?,
        encrypt,
        connect_timeout,
        max_sessions,
    })
}

/// The share and the folder in it.
fn place(checker: &mut Checker<'_>, url: &Url) -> Option<(String, String)> {
    let Ok(path) = percent_decode_str(url.path()).decode_utf8() else {
        checker.wrong("url", "the folder is not UTF-8 text");
        return None;
    };
    let mut names = path.split('/').filter(|name| !name.is_empty());
    let Some(share) = names.next() else {
        checker.wrong("url", "names no share; write smb://host/share/folder");
        return None;
    };
    let folders: Vec<&str> = names.collect();
    let is_unfit = |name: &&str| matches!(*name, "." | "..") || names::check(name).is_err();
    let unfit = std::iter::once(share).chain(folders.iter().copied()).find(is_unfit);
    if let Some(name) = unfit {
        let message = format!(
            "{name:?} is no name on a file share: none holds \\ : * ? \" < > | or a control character, ends with a dot or a space, or is a device's such as CON"
        );
        checker.wrong("url", message);
        return None;
    }
    Some((share.to_owned(), folders.join("\\")))
}

/// Domain and user. `DOMAIN\user` says both; `user@domain` is left as it is, which is what a domain expects.
fn who(
    checker: &mut Checker<'_>,
    url: &Url,
    username: Option<String>,
    domain: Option<String>,
) -> Option<(String, String)> {
    let name = match (username, url.username()) {
        (Some(_), named) if !named.is_empty() => {
            checker.wrong("username", "the url names a user too; keep one of them");
            return None;
        }
        (Some(name), _) => name,
        (None, named) => percent_decode_str(named).decode_utf8_lossy().into_owned(),
    };
    if name.is_empty() {
        checker.wrong("username", "missing; smb:// needs the name to log in with: guests are not signed for");
        return None;
    }
    match (name.split_once('\\'), domain) {
        (Some(_), Some(_)) => {
            checker.wrong("domain", "the username names a domain too; keep one of them");
            None
        }
        (Some((_, "")), None) => {
            checker.wrong("username", "names a domain and no user; write DOMAIN\\\\user");
            None
        }
        (Some((domain, user)), None) => Some((domain.to_owned(), user.to_owned())),
        (None, domain) => Some((domain.unwrap_or_default(), name)),
    }
}

impl SmbSettings {
    /// Reads the password; does not connect.
    pub(in crate::file) fn connect(&self, base: &Path) -> Result<Arc<dyn Connect>, BuildError> {
        let password =
            self.password.read(base).map_err(|SecretError(message)| BuildError::at("password", message))?;
        Ok(Arc::new(SmbServer {
            host: self.host.clone(),
            port: self.port,
            share: self.share.clone(),
            root: self.root.clone(),
            domain: self.domain.clone(),
            username: self.username.clone(),
            password,
            encrypt: self.encrypt,
            connect_timeout: self.connect_timeout,
            naming: Arc::default(),
        }))
    }
}
