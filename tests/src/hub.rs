//! A real `passerelle-hub` process with a tenant and an API key.

use crate::{
    Api, PATIENCE, Process, binary, certificate::by_openssl, free_port, http_client_trusting, process, until,
};
use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};
use tempfile::TempDir;

/// The tenant that every test hub has.
pub const TENANT: &str = "acme";

const SCOPES: &str = "jobs:read,jobs:write,sites:read,agents:read,agents:write,blobs:write,events:read,\
    events:write,mediations:read,mediations:write,subscriptions:read,subscriptions:write";

/// A hub with the tenant `acme` (Enterprise tier) and an API key of all scopes.
pub struct Hub {
    /// The process.
    pub process: Process,
    /// Its address.
    pub url: String,
    /// Its API, with the key.
    pub api: Api,
    port: u16,
    listen: String,
    data: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    certificate: Option<String>,
    home: TempDir,
}

impl Hub {
    /// Starts a hub in a folder of its own.
    pub async fn start() -> Self {
        let home = home();
        let data = home.path().join("data");
        Self::launch(home, data, &[], &[], None).await
    }

    /// Starts a hub whose data lie in `data`.
    pub async fn start_in(data: &Path) -> Self {
        let home = home();
        Self::launch(home, data.to_owned(), &[], &[], None).await
    }

    /// Starts a hub on the data of another one, which has the tenant and this API key; with these variables in its
    /// environment.
    pub async fn start_on(data: &Path, key: &str, environment: &[(String, String)]) -> Self {
        let mut hub = Self::serve_in(home(), data.to_owned(), &[], environment, None).await;
        hub.api = hub.api.with_key(key);
        hub
    }

    /// Starts a hub whose leases on attempts last so long.
    pub async fn start_with_lease(lease: Duration) -> Self {
        let home = home();
        let data = home.path().join("data");
        let lease = format!("{}s", lease.as_secs());
        Self::launch(home, data, &[], &[("PASSERELLE_LEASE".to_owned(), lease)], None).await
    }

    /// Starts a hub with this configuration file.
    ///
    /// # Panics
    /// If it cannot be written.
    pub async fn start_with_settings(settings: &str) -> Self {
        let home = home();
        let (data, config) = (home.path().join("data"), home.path().join("hub.toml"));
        fs::write(&config, settings).expect("a configuration file");
        let arguments = ["--config".into(), config.into_os_string()];
        Self::launch(home, data, &arguments, &[], None).await
    }

    /// Starts a hub that logs by this filter.
    ///
    /// # Panics
    /// If its configuration cannot be written.
    pub async fn start_logging(level: &str) -> Self {
        let home = home();
        let (data, config) = (home.path().join("data"), home.path().join("hub.toml"));
        fs::write(&config, format!("[log]\nlevel = \"{level}\"\n")).expect("a configuration file");
        let arguments = ["--config".into(), config.into_os_string()];
        Self::launch(home, data, &arguments, &[], None).await
    }

    /// Starts a hub with this in its configuration file.
    ///
    /// # Panics
    /// If its configuration cannot be written.
    pub async fn start_configured(text: &str) -> Self {
        let home = home();
        let (data, config) = (home.path().join("data"), home.path().join("hub.toml"));
        fs::write(&config, text).expect("a configuration file");
        let arguments = ["--config".into(), config.into_os_string()];
        Self::launch(home, data, &arguments, &[], None).await
    }

    /// Starts a hub that speaks TLS with a certificate for `localhost`, which is its own authority.
    ///
    /// # Panics
    /// If the certificate cannot be made.
    pub async fn start_tls() -> Self {
        Self::start_tls_at("localhost").await
    }

    /// The same with a certificate for one more name, which somebody between may resolve.
    ///
    /// # Panics
    /// If the certificate cannot be made.
    pub async fn start_tls_also_for(name: &str) -> Self {
        Self::start_tls_with("localhost", &["localhost", name]).await
    }

    /// The same on another address of this machine, for which the certificate is then.
    ///
    /// # Panics
    /// If the certificate cannot be made.
    pub async fn start_tls_at(host: &str) -> Self {
        Self::start_tls_with(host, &[host]).await
    }

    /// The same with a certificate that `openssl req -x509` makes with its defaults: self-signed, and a CA.
    ///
    /// # Panics
    /// If the certificate cannot be made.
    pub async fn start_tls_by_openssl() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (certificate, key) = by_openssl(folder.path(), "localhost");
        Self::start_tls_by("localhost", certificate, &key).await
    }

    async fn start_tls_with(host: &str, names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let pair = rcgen::generate_simple_self_signed(names).expect("a certificate");
        Self::start_tls_by(host, pair.cert.pem(), &pair.signing_key.serialize_pem()).await
    }

    async fn start_tls_by(host: &str, certificate: String, key: &str) -> Self {
        let home = home();
        let (file, key_file) = (home.path().join("cert.pem"), home.path().join("key.pem"));
        fs::write(&file, &certificate).expect("a certificate file");
        fs::write(&key_file, key).expect("a key file");
        let arguments =
            ["--tls-cert".into(), file.into_os_string(), "--tls-key".into(), key_file.into_os_string()];
        let data = home.path().join("data");
        Self::launch(home, data, &arguments, &[], Some((host, certificate))).await
    }

    async fn launch(
        home: TempDir,
        data: PathBuf,
        arguments: &[OsString],
        environment: &[(String, String)],
        tls: Option<(&str, String)>,
    ) -> Self {
        let mut hub = Self::serve_in(home, data, arguments, environment, tls).await;
        hub.admin(&["tenant", "create", TENANT, "--tier", "enterprise"]);
        hub.api = hub.api.with_key(&hub.api_key(TENANT, SCOPES));
        hub
    }

    async fn serve_in(
        home: TempDir,
        data: PathBuf,
        arguments: &[OsString],
        environment: &[(String, String)],
        tls: Option<(&str, String)>,
    ) -> Self {
        let port = free_port();
        let host = tls.as_ref().map_or("127.0.0.1", |(host, _)| host);
        let listen = format!("{}:{port}", if host == "localhost" { "127.0.0.1" } else { host });
        let process = serve(&data, &listen, arguments, environment, home.path());
        let url = format!("{}://{host}:{port}", if tls.is_some() { "https" } else { "http" });
        let certificate = tls.map(|(_, certificate)| certificate);
        let client = http_client_trusting(certificate.as_deref());
        let api = Api::new(&url, "", client);
        let (arguments, environment) = (arguments.to_vec(), environment.to_vec());
        let mut hub =
            Self { process, url, api, port, listen, data, arguments, environment, certificate, home };
        hub.ready().await;
        hub
    }

    /// The certificate of a hub that speaks TLS, PEM.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its data.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Waits until it serves.
    ///
    /// # Panics
    /// If it ends or does not become ready.
    pub async fn ready(&mut self) {
        let client = http_client_trusting(self.certificate());
        let url = format!("{}/readyz", self.url);
        until("the hub to be ready", PATIENCE, async || {
            assert!(self.process.is_running(), "the hub ended at its start:\n{}", self.process.log());
            client.get(&url).send().await.ok().filter(|answer| answer.status() == 200)
        })
        .await;
    }

    /// Starts it again on the same data and port after it was killed or ended.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = serve(&self.data, &self.listen, &self.arguments, &self.environment, self.home.path());
        self.ready().await;
    }

    /// Runs an admin command as the operator would.
    #[must_use]
    pub fn admin_output(&self, arguments: &[&str]) -> Output {
        let data = self.data.as_os_str();
        process::run(
            Command::new(binary("passerelle-hub"))
                .arg("admin")
                .args(arguments)
                .arg("--data")
                .arg(data)
                .arg("--json"),
        )
    }

    /// Runs an admin command that must succeed, and gives its JSON.
    ///
    /// # Panics
    /// If it fails or prints something else.
    pub fn admin(&self, arguments: &[&str]) -> Value {
        let output = self.admin_output(arguments);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "admin {arguments:?} failed ({}):\n{said}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_str(&said)
            .unwrap_or_else(|e| panic!("admin {arguments:?} printed no JSON ({e}): {said:?}"))
    }

    /// Makes an API key.
    ///
    /// # Panics
    /// If the answer has none.
    #[must_use]
    pub fn api_key(&self, tenant: &str, scopes: &str) -> String {
        let made = self.admin(&["api-key", "create", "--tenant", tenant, "--scopes", scopes]);
        made["key"].as_str().unwrap_or_else(|| panic!("no key in {made}")).to_owned()
    }

    /// Makes an enrolment token for a site, with more arguments.
    ///
    /// # Panics
    /// If the answer has none.
    #[must_use]
    pub fn enrolment_token(&self, site: &str, more: &[&str]) -> String {
        let mut arguments = vec![
            "enrolment-token",
            "create",
            "--tenant",
            TENANT,
            "--site",
            site,
            "--application",
            "orchestrator",
        ];
        arguments.extend(more);
        let made = self.admin(&arguments);
        made["token"].as_str().unwrap_or_else(|| panic!("no token in {made}")).to_owned()
    }
}

fn home() -> TempDir {
    tempfile::Builder::new().prefix("passerelle-hub-").tempdir().expect("a temporary folder")
}

fn serve(
    data: &Path,
    listen: &str,
    arguments: &[OsString],
    environment: &[(String, String)],
    home: &Path,
) -> Process {
    let mut command = Command::new(binary("passerelle-hub"));
    command
        .arg("serve")
        .arg("--data")
        .arg(data)
        .arg("--listen")
        .arg(listen)
        .args(arguments)
        .envs(environment.iter().cloned());
    Process::spawn("the hub", &mut command, &home.join("hub.log"))
}
