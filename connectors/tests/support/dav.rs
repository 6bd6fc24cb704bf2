//! Real WebDAV servers in folders of their own, on free loopback ports, for tests: nginx and Apache. Needs Debian's
//! `nginx-light`, `libnginx-mod-http-dav-ext` and `apache2`. Self-contained: another crate's library can include it as
//! a public module with `#[path]`.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
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

/// A running server, which serves the folders in `served`. Stopped when dropped.
pub struct Dav {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    kind: Kind,
    dir: PathBuf,
    served: PathBuf,
    identity: Option<Identity>,
    extra: String,
    child: Option<Child>,
}

impl Dav {
    /// Starts a server that keeps its configuration and log in `dir`; with TLS if it is given an identity. `extra`
    /// are lines for its configuration: of the server in nginx, of the whole in Apache.
    pub fn start(kind: Kind, dir: &Path, served: &Path, identity: Option<Identity>, extra: &str) -> Self {
        fs::create_dir_all(dir.join("tmp")).unwrap();
        if let Some(identity) = &identity {
            fs::write(dir.join("cert.pem"), &identity.certificate).unwrap();
            fs::write(dir.join("key.pem"), &identity.key).unwrap();
        }
        fs::write(dir.join("basic"), format!("{USER}:{{PLAIN}}{PASSWORD}\n")).unwrap();
        fs::write(dir.join("digest"), format!("{USER}:files:{DIGEST}\n")).unwrap();
        let mut server = Self {
            port: free_port(),
            kind,
            dir: dir.to_owned(),
            served: served.to_owned(),
            identity,
            extra: extra.to_owned(),
            child: None,
        };
        for _ in 0..5 {
            if server.try_start() {
                return server;
            }
            // Someone took the port between looking and listening.
            server.port = free_port();
        }
        panic!("{kind:?} does not start: {}", server.log());
    }

    /// The URL of a served folder, as resources write it.
    #[must_use]
    pub fn url(&self, folder: &str) -> String {
        let (scheme, host) = match self.identity {
            Some(_) => ("webdavs", "localhost"),
            None => ("webdav", "127.0.0.1"),
        };
        format!("{scheme}://{host}:{}/{folder}", self.port)
    }

    /// Starts it again after [`Self::stop`], on the same port.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.try_start(), "{:?} does not start again: {}", self.kind, self.log());
    }

    /// Kills the server, as a power cut would.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.signal(&child, "KILL");
            drop(child.kill());
            drop(child.wait());
            // Its other processes go a moment later; until then they hold the port.
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline
                && TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
            {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Freezes the server: connections stay, nothing answers.
    pub fn freeze(&self) {
        self.signal(self.child.as_ref().unwrap(), "STOP");
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.signal(self.child.as_ref().unwrap(), "CONT");
    }

    /// To all processes of the server: it leads a group of its own.
    fn signal(&self, child: &Child, signal: &str) {
        let group = format!("-{}", child.id());
        drop(Command::new("kill").args([&format!("-{signal}"), "--", &group]).stderr(Stdio::null()).status());
    }

    /// What it logged, requests among it.
    #[must_use]
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        read("error.log") + &read("access.log")
    }

    fn try_start(&mut self) -> bool {
        let mut command = match self.kind {
            Kind::Nginx => {
                fs::write(self.dir.join("server.conf"), self.nginx()).unwrap();
                let mut command = Command::new("/usr/sbin/nginx");
                command.arg("-p").arg(&self.dir).arg("-e").arg(self.dir.join("error.log")).arg("-c");
                command
            }
            Kind::Apache => {
                fs::write(self.dir.join("server.conf"), self.apache()).unwrap();
                let mut command = as_nobody_who_may_do_all("/usr/sbin/apache2");
                command.args(["-D", "FOREGROUND", "-f"]);
                command
            }
        };
        let log = fs::File::options().create(true).append(true).open(self.dir.join("error.log")).unwrap();
        let mut child = command
            .arg(self.dir.join("server.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("no WebDAV server: apt-get install nginx-light libnginx-mod-http-dav-ext apache2");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
                self.child = Some(child);
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.signal(&child, "KILL");
        drop(child.wait());
        false
    }

    fn nginx(&self) -> String {
        let (dir, served, port) = (self.dir.display(), self.served.display(), self.port);
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
        let (dir, served, port) = (self.dir.display(), self.served.display(), self.port);
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

impl Drop for Dav {
    fn drop(&mut self) {
        self.stop();
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

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
