//! What the operator writes for a `file` resource, checked; and how it becomes something that connects.

use super::{
    backend::Connect,
    ftp::{self, FtpSettings},
    local::LocalFolder,
    place::MARKER,
    s3::{self, S3Keys, S3Settings},
    sftp::{Login, SftpServer},
    smb::{self, SmbSettings},
    webdav::{self, WebDavKeys, WebDavSettings},
};
use crate::{
    BuildError,
    address::{BLOCKED_HERE, is_blocked_host, is_blocked_text},
};
use passerelle_config::{Diagnostics, HumanDuration, Secret, SecretError, SecretRef, Section};
use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use url::{Host, Url};

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const DEFAULT_SESSIONS: usize = 4;
const MAX_SESSIONS: usize = 64;
/// Local folders have no sessions to spare: as many threads as an agent runs jobs by default.
const LOCAL_THREADS: usize = 32;

/// What a url may begin with.
const SCHEMES: &str = "file://, sftp://, smb://, ftp://, ftps://, webdav://, webdavs:// and s3://";

/// The keys as they are written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    /// Where the files are: `file:///folder`, `sftp://host:port/folder`, `smb://host/share/folder`, `ftp://`, `ftps://`,
    /// `webdav://`, `webdavs://` or `s3://bucket/prefix`.
    #[schemars(required)]
    url: Option<String>,
    /// Name to log in with. SFTP and SMB need it (SMB also as `DOMAIN\user`); FTP takes `anonymous` without it.
    pub(super) username: Option<String>,
    /// Password to log in with. SFTP: this or `private_key`.
    pub(super) password: Option<SecretRef>,
    /// SFTP: an OpenSSH private key (Ed25519, RSA).
    pub(super) private_key: Option<SecretRef>,
    /// SFTP: the passphrase of `private_key`.
    pub(super) passphrase: Option<SecretRef>,
    /// SFTP, required there: file of host keys, as OpenSSH writes it. There is no way to accept every key.
    pub(super) known_hosts: Option<PathBuf>,
    /// `ftps://`: TLS by `AUTH TLS` on port 21, or from the first byte on port 990.
    #[schemars(extend("enum" = ["explicit", "implicit"], "default" = "explicit"))]
    pub(super) tls: Option<String>,
    /// S3: the store's `https://host:port`, or `http://…` where the network is protected. Default: Amazon's of the region.
    pub(super) endpoint: Option<String>,
    /// S3: the bucket's region; required without `endpoint`. Default with it: `us-east-1`.
    pub(super) region: Option<String>,
    /// S3: the bucket in the path (default with `endpoint`) or in the host's name (default without).
    #[schemars(extend("enum" = ["path", "virtual"]))]
    pub(super) addressing: Option<String>,
    /// S3, required there: the key's id. No other place is searched for keys.
    pub(super) access_key_id: Option<SecretRef>,
    /// S3, required there: the key.
    pub(super) secret_access_key: Option<SecretRef>,
    /// `ftps://`, `webdavs://`, S3 over HTTPS: PEM certificates trusted beside the system's own.
    pub(super) ca_file: Option<PathBuf>,
    /// SMB: domain or workgroup of the account.
    pub(super) domain: Option<String>,
    /// SMB: encrypted where server or share demand it, or always.
    #[schemars(extend("enum" = ["auto", "required"], "default" = "auto"))]
    pub(super) encryption: Option<String>,
    /// `file://`: nothing is done unless a file `.passerelle-share` lies in the folder, as in a share that is mounted there.
    #[schemars(extend("default" = false))]
    pub(super) require_marker: Option<bool>,
    /// Not for `file://`: how long connecting may take, 1s to 5m.
    #[schemars(extend("default" = "15s"))]
    pub(super) connect_timeout: Option<HumanDuration>,
    /// Not for `file://`: connections at once, kept open between jobs.
    #[schemars(range(min = 1, max = 64), extend("default" = DEFAULT_SESSIONS))]
    pub(super) max_sessions: Option<usize>,
}

/// Checked settings of a `file` resource.
#[derive(Debug)]
pub struct Settings {
    place: PlaceSettings,
}

#[derive(Debug)]
enum PlaceSettings {
    Local(LocalFolder),
    Sftp(SftpSettings),
    Smb(SmbSettings),
    Ftp(FtpSettings),
    WebDav(WebDavSettings),
    S3(S3Settings),
}

#[derive(Debug)]
struct SftpSettings {
    host: String,
    port: u16,
    root: String,
    username: String,
    password: Option<SecretRef>,
    private_key: Option<SecretRef>,
    passphrase: Option<SecretRef>,
    known_hosts: PathBuf,
    connect_timeout: Duration,
    max_sessions: usize,
}

/// The JSON Schema of the settings.
pub(super) fn settings_schema() -> serde_json::Value {
    schemars::schema_for!(Raw).to_value()
}

/// Checks the settings; all findings go to `diagnostics`.
pub(super) fn check(section: &Section, diagnostics: &mut Diagnostics) -> Option<Settings> {
    let raw: Raw = section.parse(diagnostics)?;
    let mut checker = Checker { section, diagnostics, good: true };
    let place = checker.place(raw);
    let good = checker.good;
    place.filter(|_| good).map(|place| Settings { place })
}

/// Collects findings.
pub(super) struct Checker<'a> {
    section: &'a Section,
    diagnostics: &'a mut Diagnostics,
    good: bool,
}

impl Checker<'_> {
    pub(super) fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.good = false;
        self.diagnostics.push(self.section.finding(key, message));
    }

    fn place(&mut self, raw: Raw) -> Option<PlaceSettings> {
        let Some(text) = &raw.url else {
            self.wrong(
                "url",
                "missing; write file:///folder, sftp://host:port/folder or webdavs://host/folder",
            );
            return None;
        };
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(error) => {
                self.wrong(
                    "url",
                    format!("not a URL ({error}); write file:///folder, sftp://host:port/folder or webdavs://host/folder"),
                );
                return None;
            }
        };
        if url.query().is_some() || url.fragment().is_some() {
            self.wrong("url", "no ? or # belongs here; write them in a folder's name as %3F and %23");
        }
        for (key, set) in [("domain", raw.domain.is_some()), ("encryption", raw.encryption.is_some())] {
            if set && url.scheme() != "smb" {
                self.wrong(key, format!("has no meaning for {}://; remove it", url.scheme()));
            }
        }
        if url.scheme() != "s3" {
            self.only_s3(&raw);
        }
        if url.scheme() != "file" && raw.require_marker.is_some() {
            self.wrong(
                "require_marker",
                format!("has a meaning for file:// only ({MARKER} in the folder); remove it"),
            );
        }
        match url.scheme() {
            "file" => self.local(&url, &raw),
            "sftp" => self.sftp(&url, raw),
            "ftp" | "ftps" => ftp::check(self, &url, raw).map(PlaceSettings::Ftp),
            "webdav" | "webdavs" => self.webdav(&url, raw),
            "s3" => self.s3(&url, raw),
            "smb" => smb::check(self, &url, raw).map(PlaceSettings::Smb),
            other => {
                self.wrong("url", format!("{other}:// is not known to the file connector; it has {SCHEMES}"));
                None
            }
        }
    }

    fn local(&mut self, url: &Url, raw: &Raw) -> Option<PlaceSettings> {
        let senseless = [
            ("username", raw.username.is_some()),
            ("password", raw.password.is_some()),
            ("private_key", raw.private_key.is_some()),
            ("passphrase", raw.passphrase.is_some()),
            ("known_hosts", raw.known_hosts.is_some()),
            ("tls", raw.tls.is_some()),
            ("ca_file", raw.ca_file.is_some()),
            ("connect_timeout", raw.connect_timeout.is_some()),
            ("max_sessions", raw.max_sessions.is_some()),
        ];
        for (key, set) in senseless {
            if set {
                self.wrong(key, "has no meaning for file://; remove it");
            }
        }
        match url.to_file_path() {
            Ok(path) => {
                Some(PlaceSettings::Local(LocalFolder { path, marked: raw.require_marker.unwrap_or(false) }))
            }
            Err(()) => {
                self.wrong(
                    "url",
                    "names a host; a local folder is written with three slashes, as file:///srv/exports",
                );
                None
            }
        }
    }

    /// The host of a server's url; the url holds no password.
    pub(super) fn host(&mut self, url: &Url, scheme: &str) -> Option<String> {
        let host = url.host_str().filter(|host| !host.is_empty()).map(|host| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            percent_decode_str(host).decode_utf8_lossy().to_lowercase()
        });
        if host.is_none() {
            self.wrong("url", format!("names no host; write {scheme}://host:port/folder"));
        }
        let blocked = match (url.host(), &host) {
            // Outside http the URL's parser leaves `2852039166` and the like as they are.
            (Some(Host::Domain(_)), Some(host)) => is_blocked_text(host),
            (Some(literal), _) => is_blocked_host(&literal),
            (None, _) => false,
        };
        if blocked {
            self.wrong("url", BLOCKED_HERE);
        }
        if url.password().is_some() {
            self.wrong("url", "a password is never written here; use password = { file = \"secrets/…\" }");
        }
        host
    }

    pub(super) fn max_sessions(&mut self, wanted: Option<usize>) -> usize {
        let max_sessions = wanted.unwrap_or(DEFAULT_SESSIONS);
        if !(1..=MAX_SESSIONS).contains(&max_sessions) {
            self.wrong("max_sessions", format!("is {max_sessions}; it must be from 1 to {MAX_SESSIONS}"));
        }
        max_sessions
    }

    pub(super) fn connect_timeout(&mut self, wanted: Option<HumanDuration>) -> Duration {
        let connect_timeout = wanted.map_or(DEFAULT_CONNECT_TIMEOUT, |duration| duration.0);
        if !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&connect_timeout) {
            self.wrong("connect_timeout", "must be from \"1s\" to \"5m\"");
        }
        connect_timeout
    }

    fn sftp(&mut self, url: &Url, raw: Raw) -> Option<PlaceSettings> {
        let host = self.host(url, "sftp");
        for (key, set) in [("tls", raw.tls.is_some()), ("ca_file", raw.ca_file.is_some())] {
            if set {
                self.wrong(key, "has no meaning for sftp://; remove it");
            }
        }
        let username = match (raw.username, url.username()) {
            (Some(name), "") if !name.is_empty() => Some(name),
            (None, name) if !name.is_empty() => {
                Some(percent_decode_str(name).decode_utf8_lossy().into_owned())
            }
            (None, _) | (Some(_), "") => {
                self.wrong("username", "missing; sftp:// needs the name to log in with");
                None
            }
            (Some(_), _) => {
                self.wrong("username", "the url names a user too; keep one of them");
                None
            }
        };
        let root = percent_decode_str(url.path()).decode_utf8().ok().filter(|path| !path.contains('\0'));
        if root.is_none() {
            self.wrong("url", "the folder is not UTF-8 text");
        }
        if raw.password.is_none() && raw.private_key.is_none() {
            self.wrong(
                "private_key",
                "missing; sftp:// needs private_key or password, as { file = \"secrets/…\" }",
            );
        }
        if raw.passphrase.is_some() && raw.private_key.is_none() {
            self.wrong("passphrase", "has no meaning without private_key");
        }
        if raw.known_hosts.is_none() {
            self.wrong(
                "known_hosts",
                "missing; sftp:// needs a file with the server's host key: make one with ssh-keyscan and compare the fingerprint with the server's owner",
            );
        }
        let max_sessions = self.max_sessions(raw.max_sessions);
        let connect_timeout = self.connect_timeout(raw.connect_timeout);
        Some(PlaceSettings::Sftp(SftpSettings {
            host: host?,
            port: url.port().unwrap_or(22),
            root: root?.into_owned(),
            username: username?,
            password: raw.password,
            private_key: raw.private_key,
            passphrase: raw.passphrase,
            known_hosts: raw.known_hosts?,
            connect_timeout,
            max_sessions,
        }))
    }

    /// Keys that other places than object stores know nothing of.
    fn only_s3(&mut self, raw: &Raw) {
        for (key, set) in [
            ("endpoint", raw.endpoint.is_some()),
            ("region", raw.region.is_some()),
            ("addressing", raw.addressing.is_some()),
            ("access_key_id", raw.access_key_id.is_some()),
            ("secret_access_key", raw.secret_access_key.is_some()),
        ] {
            if set {
                self.wrong(key, "has a meaning for s3:// only; remove it");
            }
        }
    }

    fn s3(&mut self, url: &Url, raw: Raw) -> Option<PlaceSettings> {
        let max_sessions = self.max_sessions(raw.max_sessions);
        let connect_timeout = self.connect_timeout(raw.connect_timeout);
        for (key, set) in [("username", raw.username.is_some()), ("password", raw.password.is_some())] {
            if set {
                self.wrong(key, "has no meaning for s3://; use access_key_id and secret_access_key");
            }
        }
        for (key, set) in [
            ("tls", raw.tls.is_some()),
            ("private_key", raw.private_key.is_some()),
            ("passphrase", raw.passphrase.is_some()),
            ("known_hosts", raw.known_hosts.is_some()),
        ] {
            if set {
                self.wrong(key, "has no meaning for s3://; remove it");
            }
        }
        let keys = S3Keys {
            endpoint: raw.endpoint,
            region: raw.region,
            addressing: raw.addressing,
            access_key_id: raw.access_key_id,
            secret_access_key: raw.secret_access_key,
            ca_file: raw.ca_file,
            connect_timeout,
            max_sessions,
        };
        s3::check(url, keys, &mut |key, message| self.wrong(key, message)).map(PlaceSettings::S3)
    }

    fn webdav(&mut self, url: &Url, raw: Raw) -> Option<PlaceSettings> {
        let max_sessions = self.max_sessions(raw.max_sessions);
        let connect_timeout = self.connect_timeout(raw.connect_timeout);
        let senseless = [
            ("tls", raw.tls.is_some()),
            ("private_key", raw.private_key.is_some()),
            ("passphrase", raw.passphrase.is_some()),
            ("known_hosts", raw.known_hosts.is_some()),
        ];
        for (key, set) in senseless {
            if set {
                self.wrong(key, format!("has no meaning for {}://; remove it", url.scheme()));
            }
        }
        let keys = WebDavKeys {
            username: raw.username,
            password: raw.password,
            ca_file: raw.ca_file,
            connect_timeout,
            max_sessions,
        };
        webdav::check(url, keys, &mut |key, message| self.wrong(key, message)).map(PlaceSettings::WebDav)
    }
}

impl Settings {
    /// How many connections there may be at once.
    pub(super) fn max_sessions(&self) -> usize {
        match &self.place {
            PlaceSettings::Local(_) => LOCAL_THREADS,
            PlaceSettings::Sftp(sftp) => sftp.max_sessions,
            PlaceSettings::Smb(smb) => smb.max_sessions,
            PlaceSettings::Ftp(ftp) => ftp.max_sessions,
            PlaceSettings::WebDav(webdav) => webdav.max_sessions(),
            PlaceSettings::S3(s3) => s3.max_sessions(),
        }
    }

    /// Reads the secrets; does not connect.
    pub(super) fn connect(&self, base: &Path) -> Result<Arc<dyn Connect>, BuildError> {
        match &self.place {
            PlaceSettings::Local(folder) => Ok(Arc::new(folder.clone())),
            PlaceSettings::Sftp(sftp) => sftp.connect(base),
            PlaceSettings::Smb(smb) => smb.connect(base),
            PlaceSettings::Ftp(ftp) => ftp.connect(base),
            PlaceSettings::WebDav(webdav) => webdav.connect(base),
            PlaceSettings::S3(s3) => s3.connect(base),
        }
    }
}

impl SftpSettings {
    fn connect(&self, base: &Path) -> Result<Arc<dyn Connect>, BuildError> {
        let secret = |key: &str, reference: &Option<SecretRef>| -> Result<Option<Secret>, BuildError> {
            let read = reference.as_ref().map(|reference| reference.read(base)).transpose();
            read.map_err(|SecretError(message)| BuildError::at(key, message))
        };
        let known_hosts = base.join(&self.known_hosts);
        // Read again at each connection, so that a line added after a first refusal counts at once.
        passerelle_config::open_file(&known_hosts).map_err(|error| {
            let message = format!(
                "{} cannot be read ({error}): make it with ssh-keyscan and compare the fingerprint with the server's owner",
                known_hosts.display()
            );
            BuildError::at("known_hosts", message)
        })?;
        let login = Login {
            username: self.username.clone(),
            private_key: secret("private_key", &self.private_key)?,
            passphrase: secret("passphrase", &self.passphrase)?,
            password: secret("password", &self.password)?,
        };
        Ok(Arc::new(SftpServer {
            host: self.host.clone(),
            port: self.port,
            root: self.root.clone(),
            login,
            known_hosts,
            connect_timeout: self.connect_timeout,
            naming: Arc::default(),
        }))
    }
}
