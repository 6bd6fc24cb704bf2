//! A real nginx: an in-house application server that logs what it is asked.

use crate::{PATIENCE, Process, free_port, until};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// nginx in a folder of its own: `orders/…` answers 200, `busy/…` 503 with `Retry-After`, `static/…` serves files,
/// `packed/…` compresses them, `bomb/…` says that they are compressed, `store/…` takes files by PUT.
pub struct Nginx {
    /// Plain HTTP, with a final `/`.
    pub url: String,
    /// HTTPS, with a final `/`.
    pub tls_url: String,
    /// HTTPS for clients that show [`Self::client`] alone, with a final `/`.
    pub mutual_url: String,
    /// The certificate of the HTTPS side, PEM.
    pub certificate: String,
    /// A client's certificate and key, PEM.
    pub client: (String, String),
    home: TempDir,
    _process: Process,
}

impl Nginx {
    /// Starts it.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start() -> Self {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let pair = rcgen::generate_simple_self_signed(names).expect("a certificate");
        Self::start_with(pair.cert.pem(), &pair.signing_key.serialize_pem()).await
    }

    /// Starts it with a certificate for `localhost` and its key, PEM.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_with(certificate: String, key: &str) -> Self {
        let home =
            tempfile::Builder::new().prefix("passerelle-nginx-").tempdir().expect("a temporary folder");
        let (port, tls_port, mutual_port) = (free_port(), free_port(), free_port());
        let client =
            rcgen::generate_simple_self_signed(vec!["agent".to_owned()]).expect("a client's certificate");
        let client = (client.cert.pem(), client.signing_key.serialize_pem());
        let write =
            |name: &str, text: &str| fs::write(home.path().join(name), text).expect("a file for nginx");
        write("cert.pem", &certificate);
        write("key.pem", key);
        write("client.pem", &client.0);
        for folder in ["static", "packed", "bomb", "store"] {
            fs::create_dir(home.path().join(folder)).expect("a folder for nginx");
        }
        write("nginx.conf", &configuration(home.path(), port, tls_port, mutual_port));
        let mut command = Command::new("nginx");
        command.arg("-p").arg(home.path()).args(["-e", "stderr", "-c"]).arg(home.path().join("nginx.conf"));
        let mut process = Process::spawn("nginx", &mut command, &home.path().join("nginx.log"));
        until("nginx to listen", PATIENCE, async || {
            assert!(process.is_running(), "nginx ended:\n{}", process.log());
            tokio::net::TcpStream::connect(("127.0.0.1", tls_port)).await.ok()
        })
        .await;
        Self {
            url: format!("http://127.0.0.1:{port}/"),
            tls_url: format!("https://localhost:{tls_port}/"),
            mutual_url: format!("https://localhost:{mutual_port}/"),
            certificate,
            client,
            home,
            _process: process,
        }
    }

    /// Puts a file below `static/`.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn publish(&self, name: &str, content: &[u8]) {
        self.publish_in("static", name, content);
    }

    /// Puts a file into one of its folders.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn publish_in(&self, folder: &str, name: &str, content: &[u8]) {
        fs::write(self.folder(folder).join(name), content).expect("a file for nginx");
    }

    /// One of its folders: `static`, `packed`, `bomb`, `store`.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The requests below `orders/` and `busy/` so far: `method`, `uri`, `key` (`Idempotency-Key`), `type`, `body`,
    /// `protocol`, `client` (what was found of a client's certificate).
    ///
    /// # Panics
    /// If the log is not what it should be.
    #[must_use]
    pub fn requests(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.home.path().join("requests.log")).unwrap_or_default();
        log.lines().map(|line| serde_json::from_str(line).expect("a line of nginx's log")).collect()
    }

    /// Waits until `count` requests are in the log.
    pub async fn received(&self, count: usize) -> Vec<Value> {
        until(&format!("{count} requests at nginx"), PATIENCE, async || {
            Some(self.requests()).filter(|requests| requests.len() >= count)
        })
        .await
    }
}

/// The body of a request is known to nginx (and its log) only where it is passed on: hence the second server.
fn configuration(home: &Path, port: u16, tls_port: u16, mutual_port: u16) -> String {
    let home = home.display();
    format!(
        r#"
daemon off;
master_process off;
pid {home}/nginx.pid;
events {{ worker_connections 512; }}
http {{
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  client_max_body_size 0;
  client_body_buffer_size 1m;
  access_log off;
  log_format requests escape=json '{{"method":"$request_method","uri":"$request_uri","key":"$http_idempotency_key",'
    '"type":"$content_type","body":"$request_body","status":$status,'
    '"protocol":"$server_protocol","client":"$ssl_client_verify"}}';
  server {{
    listen 127.0.0.1:{port};
    listen 127.0.0.1:{tls_port} ssl http2;
    ssl_certificate {home}/cert.pem;
    ssl_certificate_key {home}/key.pem;
    location /orders/ {{ access_log {home}/requests.log requests; proxy_pass http://unix:{home}/app.sock; }}
    location /busy/ {{ access_log {home}/requests.log requests; add_header Retry-After 1 always; return 503; }}
    location /static/ {{ root {home}; }}
    location /packed/ {{ root {home}; gzip on; gzip_types *; gzip_min_length 1; gzip_comp_level 1; }}
    location /bomb/ {{ root {home}; add_header Content-Encoding gzip; }}
    location /store/ {{ root {home}; dav_methods PUT; }}
  }}
  server {{
    listen 127.0.0.1:{mutual_port} ssl;
    ssl_certificate {home}/cert.pem;
    ssl_certificate_key {home}/key.pem;
    ssl_client_certificate {home}/client.pem;
    ssl_verify_client on;
    location /orders/ {{ access_log {home}/requests.log requests; proxy_pass http://unix:{home}/app.sock; }}
    location = / {{ return 204; }}
  }}
  server {{
    listen unix:{home}/app.sock;
    location / {{ return 200 'noted'; }}
  }}
}}
"#
    )
}
