//! The places that are measured: each with its real server, as the contract suite of the connectors starts it.

use std::{
    fs,
    path::{Path, PathBuf},
};
use support::{dav, sshd::Options, vsftpd::Tls};

#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "made for the contract suite, which uses all of it and panics to fail"
)]
#[path = "../../../../../connectors/tests/support/mod.rs"]
pub mod support;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Local,
    Sftp,
    /// The same server without `fsync@openssh.com`: nobody syncs.
    SftpUnsynced,
    Smb,
    Ftp,
    Ftps,
    WebDav,
}

impl Kind {
    pub const ALL: [Self; 7] =
        [Self::Local, Self::Sftp, Self::SftpUnsynced, Self::Smb, Self::Ftp, Self::Ftps, Self::WebDav];

    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Sftp => "sftp",
            Self::SftpUnsynced => "sftp_unsynced",
            Self::Smb => "smb",
            Self::Ftp => "ftp",
            Self::Ftps => "ftps",
            Self::WebDav => "webdav",
        }
    }

    /// Whether a drop is on the server's disk before it succeeds.
    pub fn syncs(self) -> bool {
        matches!(self, Self::Local | Self::Sftp | Self::Smb)
    }

    /// The least that the connector alone should reach of its peer.
    pub fn target(self, large: bool) -> Option<f64> {
        match (self, large) {
            (Self::Local | Self::Smb, true) => Some(0.8),
            (Self::Local, false) | (Self::Ftps, _) => None,
            (Self::Sftp | Self::SftpUnsynced | Self::Smb, false) => Some(2.0),
            (Self::Sftp | Self::SftpUnsynced, true) | (Self::Ftp | Self::WebDav, _) => Some(1.0),
        }
    }

    pub fn has_target(self) -> bool {
        self != Self::Ftps
    }
}

/// A running server, its folder, and a resource for it.
pub struct Place {
    kind: Kind,
    inner: support::Place,
    scratch: tempfile::TempDir,
}

/// Starts what `kind` needs.
pub fn start(kind: Kind) -> Place {
    let inner = match kind {
        Kind::Local => support::Place::local(),
        Kind::Sftp => support::Place::sftp(),
        Kind::SftpUnsynced => {
            let options = Options { sftp: "internal-sftp -P fsync".to_owned(), ..Options::default() };
            support::Place::sftp_with(options, "")
        }
        Kind::Smb => support::Place::smb(false),
        Kind::Ftp => support::Place::ftp(Tls::None),
        Kind::Ftps => support::Place::ftp(Tls::Explicit),
        Kind::WebDav => support::Place::webdav(dav::Kind::Nginx),
    };
    Place { kind, inner, scratch: tempfile::tempdir().expect("a temporary folder") }
}

impl Place {
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where the files arrive, as this machine sees it.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The configuration folder of its resource.
    pub fn config(&self) -> &Path {
        &self.inner.base
    }

    /// For files that go with it.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The resource's settings as they are written.
    pub fn settings(&self) -> String {
        fs::read_to_string(self.config().join("resources.d/test.toml")).expect("the resource")
    }

    /// One of the settings that is a text.
    pub fn setting(&self, key: &str) -> String {
        let settings = self.settings();
        let value = settings.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
        value.unwrap_or_else(|| panic!("{key} is not in {settings}")).trim().trim_matches('"').to_owned()
    }

    /// The file that a secret comes from.
    pub fn secret(&self, key: &str) -> PathBuf {
        let reference = self.setting(key);
        let file = reference.split('"').nth(1).unwrap_or_else(|| panic!("{key} = {reference}"));
        self.config().join(file)
    }

    /// The host, port and path behind the scheme of its url.
    pub fn address(&self) -> (String, u16, String) {
        let url = self.setting("url");
        let (authority, path) = url
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once('/'))
            .unwrap_or_else(|| panic!("{url} has no folder"));
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "0"));
        (host.to_owned(), port.parse().expect("a port"), format!("/{path}"))
    }

    /// Removes what arrived.
    pub fn empty(&self) {
        for entry in fs::read_dir(self.root()).expect("the folder") {
            fs::remove_file(entry.expect("an entry").path()).expect("a file");
        }
    }
}
