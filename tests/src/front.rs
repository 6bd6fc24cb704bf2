//! A real nginx in front of a hub: what stands there in a cloud, with any certificate, protocol and cipher.

use crate::{PATIENCE, Process, free_port, until};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair, date_time_ymd};
use std::{fs, net::IpAddr, process::Command};
use tempfile::TempDir;

/// How a front differs from the ordinary one.
#[derive(Debug, Clone)]
pub struct FrontOptions {
    /// Where it listens.
    pub address: IpAddr,
    /// The name or address in its certificate.
    pub name: String,
    /// The years of the first of January between which its certificate is valid.
    pub valid: (i32, i32),
    /// Instead of the second year: midnight so many days from now.
    pub expires_in_days: Option<i64>,
    /// `ssl_protocols`
    pub protocols: String,
    /// `ssl_ciphers`
    pub ciphers: String,
    /// Whether it wants a certificate of the client, issued by [`Front::ca`].
    pub client_certificate: bool,
}

impl Default for FrontOptions {
    fn default() -> Self {
        Self {
            address: IpAddr::from([127, 0, 0, 1]),
            name: "localhost".to_owned(),
            valid: (2020, 2060),
            expires_in_days: None,
            protocols: "TLSv1.2 TLSv1.3".to_owned(),
            ciphers: "HIGH".to_owned(),
            client_certificate: false,
        }
    }
}

impl FrontOptions {
    /// The day on which the certificate ends.
    fn end(&self) -> (i32, u8, u8) {
        let Some(days) = self.expires_in_days else { return (self.valid.1, 1, 1) };
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
        let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
        let part = |part: i8| u8::try_from(part).expect("a part of a date");
        (i32::from(date.year()), part(date.month()), part(date.day()))
    }
}

/// nginx that speaks TLS and passes everything on to a hub.
pub struct Front {
    /// Its port.
    pub port: u16,
    /// The CA that issued its certificate, PEM.
    pub ca: String,
    issuer: Issuer<'static, KeyPair>,
    _process: Process,
    _home: TempDir,
}

impl Front {
    /// The common name of the CA that issued its certificate.
    pub const CA_NAME: &str = "Example Corp Inspection CA";

    /// Starts it in front of what listens on `hub_port`.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(hub_port: u16, options: FrontOptions) -> Self {
        let home =
            tempfile::Builder::new().prefix("passerelle-front-").tempdir().expect("a temporary folder");
        let port = free_port();
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, Self::CA_NAME);
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let ca_certificate = ca.self_signed(&key).expect("a CA").pem();
        let issuer = Issuer::new(ca, key);
        let (certificate, key) = issued(&issuer, &options.name, options.valid.0, options.end());
        let write =
            |name: &str, text: &str| fs::write(home.path().join(name), text).expect("a file for nginx");
        write("cert.pem", &certificate);
        write("key.pem", &key);
        write("ca.pem", &ca_certificate);
        let folder = home.path().display();
        let client = match options.client_certificate {
            true => format!("ssl_client_certificate {folder}/ca.pem; ssl_verify_client on;"),
            false => String::new(),
        };
        let FrontOptions { address, protocols, ciphers, .. } = &options;
        let listen = std::net::SocketAddr::new(*address, port);
        write(
            "nginx.conf",
            &format!(
                r#"
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{ worker_connections 512; }}
http {{
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  access_log off;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  server {{
    listen {listen} ssl;
    ssl_certificate {folder}/cert.pem;
    ssl_certificate_key {folder}/key.pem;
    ssl_protocols {protocols};
    ssl_ciphers "{ciphers}";
    {client}
    location / {{
      proxy_pass http://127.0.0.1:{hub_port};
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"#
            ),
        );
        let mut command = Command::new("nginx");
        command.arg("-p").arg(home.path()).args(["-e", "stderr", "-c"]).arg(home.path().join("nginx.conf"));
        let mut process = Process::spawn("the front", &mut command, &home.path().join("nginx.log"));
        until("the front to listen", PATIENCE, async || {
            assert!(process.is_running(), "nginx ended:\n{}", process.log());
            tokio::net::TcpStream::connect(listen).await.ok()
        })
        .await;
        Self { port, ca: ca_certificate, issuer, _process: process, _home: home }
    }

    /// Its address under the name of its certificate.
    #[must_use]
    pub fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.port)
    }

    /// A certificate for a client and its key, PEM.
    #[must_use]
    pub fn client_certificate(&self) -> (String, String) {
        issued(&self.issuer, "agent", 2020, (2060, 1, 1))
    }
}

fn issued(
    issuer: &Issuer<'static, KeyPair>,
    name: &str,
    from: i32,
    (year, month, day): (i32, u8, u8),
) -> (String, String) {
    let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(year, month, day);
    let key = KeyPair::generate().expect("a key");
    (params.signed_by(&key, issuer).expect("a certificate").pem(), key.serialize_pem())
}
