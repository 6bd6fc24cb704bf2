//! Real WebDAV servers in folders of their own, on free loopback ports, for tests: nginx and Apache. Needs Debian's
//! `nginx-light`, `libnginx-mod-http-dav-ext` and `apache2`. Another crate's library can include it as a
//! public module with `#[path]`, beside `server`.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use super::server::{Core, Server};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Who may log in.
pub const USER: &str = "svc";
/// And with what: characters that have to be quoted somewhere.
pub const PASSWORD: &str = "pass \"word\"\\";
/// `MD5(svc:files:PASSWORD)`.
const DIGEST: &str = "0b0ee5189301b5a2f1780c9c042d4dcc";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// nginx with `libnginx-mod-http-dav-ext`; Basic authentication.
    Nginx,
    /// Apache with `mod_dav_fs`; Digest authentication.
    Apache,
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, with those of its issuers after it.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Identity {
    /// A new one for `localhost`, which nobody has signed but itself.
    #[must_use]
    pub fn self_signed() -> Self {
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        Self { certificate: pair.cert.pem(), key: pair.signing_key.serialize_pem() }
    }
}

/// A running server, which serves the folders in `served`. Stopped when dropped.
pub struct Dav {
    kind: Kind,
    served: PathBuf,
    identity: Option<Identity>,
    extra: String,
    core: Core,
}

impl Dav {
    /// Starts a server that keeps its configuration and log in `dir`; with TLS if it is given an identity. `extra`
    /// are lines for its configuration: of the server in nginx, of the whole in Apache.
    pub fn start(kind: Kind, dir: &Path, served: &Path, identity: Option<Identity>, extra: &str) -> Self {
        let core = Core::new(dir);
        fs::create_dir_all(core.at("tmp")).unwrap();
        core.write("basic", format!("{USER}:{{PLAIN}}{PASSWORD}\n"));
        core.write("digest", format!("{USER}:files:{DIGEST}\n"));
        let mut server = Self { kind, served: served.to_owned(), identity, extra: extra.to_owned(), core };
        server.write_identity();
        server.start_somewhere();
        server
    }

    fn write_identity(&self) {
        if let Some(identity) = &self.identity {
            self.core.write("cert.pem", &identity.certificate);
            self.core.write("key.pem", &identity.key);
        }
    }

    /// The URL of a served folder, as resources write it.
    #[must_use]
    pub fn url(&self, folder: &str) -> String {
        let (scheme, host) = match self.identity {
            Some(_) => ("webdavs", "localhost"),
            None => ("webdav", "127.0.0.1"),
        };
        format!("{scheme}://{host}:{}/{folder}", self.port())
    }

    fn nginx(&self) -> String {
        let (dir, served, port) = (self.core.dir().display(), self.served.display(), self.port());
        let (tls, certificate) = match self.identity {
            Some(_) => {
                (" ssl", format!("ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;"))
            }
            None => ("", String::new()),
        };
        format!(
            "load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;\n\
             daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n  access_log {dir}/access.log;\n  client_body_temp_path {dir}/tmp/body;\n  \
             proxy_temp_path {dir}/tmp/proxy;\n  fastcgi_temp_path {dir}/tmp/fastcgi;\n  \
             uwsgi_temp_path {dir}/tmp/uwsgi;\n  scgi_temp_path {dir}/tmp/scgi;\n  client_max_body_size 0;\n  \
             server {{\n    listen 127.0.0.1:{port}{tls};\n    {certificate}\n    root {served};\n    \
             dav_methods PUT DELETE MKCOL MOVE;\n    dav_ext_methods PROPFIND OPTIONS;\n    \
             dav_access user:rw group:r all:r;\n    \
             auth_basic files;\n    auth_basic_user_file {dir}/basic;\n    {}\n  }}\n}}\n",
            self.extra,
        )
    }

    fn apache(&self) -> String {
        let (dir, served, port) = (self.core.dir().display(), self.served.display(), self.port());
        let modules: String = [
            "mpm_event",
            "authn_core",
            "authn_file",
            "authz_core",
            "authz_user",
            "auth_digest",
            "dav",
            "dav_fs",
            "setenvif",
            "ssl",
            "socache_shmcb",
        ]
        .iter()
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .collect();
        let tls = match self.identity {
            Some(_) => format!(
                "SSLEngine on\nSSLCertificateFile {dir}/cert.pem\nSSLCertificateKeyFile {dir}/key.pem\n\
                 SSLSessionCache none\n"
            ),
            None => String::new(),
        };
        format!(
            "ServerRoot {dir}\nServerName localhost:{port}\nListen 127.0.0.1:{port}\nPidFile {dir}/apache.pid\n\
             DefaultRuntimeDir {dir}/tmp\nMutex file:{dir}/tmp default\n{modules}\
             ErrorLog {dir}/error.log\nCustomLog {dir}/access.log \"%m %U %>s %u\"\n\
             StartServers 1\nServerLimit 4\nThreadsPerChild 16\nMaxRequestWorkers 64\n\
             DavLockDB {dir}/tmp/locks\nDocumentRoot {served}\n\
             <Directory {served}>\n  Dav On\n  Options FollowSymLinks\n  AuthType Digest\n  AuthName files\n  \
             AuthDigestProvider file\n  AuthUserFile {dir}/digest\n  Require valid-user\n</Directory>\n{tls}{}\n",
            self.extra,
        )
    }
}

impl Server for Dav {
    fn core(&self) -> &Core {
        &self.core
    }

    fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    fn command(&self) -> Command {
        let mut command = match self.kind {
            Kind::Nginx => {
                self.core.write("server.conf", self.nginx());
                let mut command = Command::new("/usr/sbin/nginx");
                command.arg("-p").arg(self.core.dir()).arg("-e").arg(self.core.at("error.log")).arg("-c");
                command
            }
            Kind::Apache => {
                self.core.write("server.conf", self.apache());
                let mut command = as_nobody_who_may_do_all("/usr/sbin/apache2");
                command.args(["-D", "FOREGROUND", "-f"]);
                command
            }
        };
        command.arg(self.core.at("server.conf"));
        command
    }

    fn become_another(&mut self) -> bool {
        if self.identity.is_some() {
            self.identity = Some(Identity::self_signed());
        }
        self.write_identity();
        self.identity.is_some()
    }
}

/// Apache refuses to serve as root. As another user it may still do in the tests' folders what root may.
fn as_nobody_who_may_do_all(program: &str) -> Command {
    let user = Command::new("id").arg("-u").output().unwrap();
    if user.stdout != b"0\n" {
        return Command::new(program);
    }
    let capabilities = "+dac_override,+fowner,+chown";
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=www-data", "--regid=www-data", "--clear-groups"])
        .args([format!("--inh-caps={capabilities}"), format!("--ambient-caps={capabilities}")])
        .arg(program);
    command
}
