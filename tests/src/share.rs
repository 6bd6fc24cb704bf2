//! Real file servers beside OpenSSH's, and a folder on each, for agents: FTP and WebDAV, plain and with TLS.

use crate::{
    Agent,
    dav::{self, Dav, Identity, Kind},
    resources,
    server::Server,
    vsftpd::{self, Tls, Vsftpd},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// How a share is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// vsftpd in the clear; as root only.
    Ftp,
    /// vsftpd that demands TLS; as root only.
    Ftps,
    /// nginx in the clear.
    WebDav,
    /// Apache with TLS.
    WebDavs,
}

/// A running server with a root folder for the files.
pub struct Share {
    server: Box<dyn Server>,
    /// The body of a resource's settings, without the names of the agent's files.
    settings: String,
    /// What its CA file holds.
    certificate: String,
    root: PathBuf,
    // Last, so that the server ends before its folder goes.
    _home: TempDir,
}

impl Share {
    /// Starts it.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(protocol: Protocol) -> Self {
        let home =
            tempfile::Builder::new().prefix("passerelle-share-").tempdir().expect("a temporary folder");
        let (dir, root) = (home.path().join("server"), home.path().join("served/root"));
        fs::create_dir_all(&root).expect("a root folder");
        // So that a server that is another user gets there.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("rights");
        let certificate: String;
        let (server, settings): (Box<dyn Server>, String) = match protocol {
            Protocol::Ftp | Protocol::Ftps => {
                let tls = if protocol == Protocol::Ftp { Tls::None } else { Tls::Explicit };
                let server = Vsftpd::start(&dir, tls, "");
                certificate = server.core().read("trusted.pem");
                let trusted = server.core().at("trusted.pem").display().to_string();
                let settings = server.settings(&root, "").replace(&trusted, "CA");
                (Box::new(server), settings.replace("ftp-password", "secrets/PASSWORD"))
            }
            Protocol::WebDav | Protocol::WebDavs => {
                let (kind, identity) = match protocol {
                    Protocol::WebDav => (Kind::Nginx, None),
                    _ => (Kind::Apache, Some(Identity::self_signed())),
                };
                certificate = identity.as_ref().map(|own| own.certificate.clone()).unwrap_or_default();
                let trust = if identity.is_some() { "ca_file = \"CA\"\n" } else { "" };
                let server = Dav::start(kind, &dir, &home.path().join("served"), identity, "");
                let settings = format!(
                    "connector = \"file\"\nurl = \"{}\"\nusername = \"{}\"\n\
                     password = {{ file = \"secrets/PASSWORD\" }}\n{trust}",
                    server.url("root"),
                    dav::USER,
                );
                (Box::new(server), settings)
            }
        };
        Self { server, settings, certificate, root, _home: home }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The folder that the resources of [`Self::serve_to`] show.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Kills the server with all its sessions.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Kills the server with all its sessions, as a power cut would, and starts it again on the same port.
    pub fn restart(&mut self) {
        self.server.restart();
    }

    /// Gives an agent the resource `name` on this server.
    pub fn serve_to(&self, agent: &Agent, name: &str) {
        self.serve_through(agent, name, self.port());
    }

    /// The same through another port, that of a fault proxy for example.
    pub fn serve_through(&self, agent: &Agent, name: &str, port: u16) {
        let is_dav = self.settings.contains("url = \"webdav");
        let password = if is_dav { dav::PASSWORD } else { vsftpd::PASSWORD };
        let (secret, ca) = (format!("{name}-password"), format!("{name}.pem"));
        agent.secret(&secret, password);
        agent.file(&ca, &self.certificate);
        let settings = self.settings.replace("secrets/PASSWORD", &format!("secrets/{secret}"));
        let settings = settings.replace("\"CA\"", &format!("\"{ca}\""));
        let settings = settings.replace(&format!(":{}/", self.port()), &format!(":{port}/"));
        agent.resource(name, &resources::everything_allowed(name, &settings));
    }
}
