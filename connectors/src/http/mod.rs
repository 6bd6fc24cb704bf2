//! The `http` connector: requests and notifications to in-house applications.
//!
//! The cloud names a path below the resource's URL, nothing else: host, credentials and proxy are the operator's. The
//! connector follows no redirect away from the resource, connects to no link-local or metadata address, and holds
//! neither payload nor answer in memory.

pub(crate) mod answer;
mod auth;
pub(crate) mod client;
mod content;
mod event;
mod examine;
mod exchange;
pub(crate) mod fault;
pub(crate) mod oauth;
mod params;
mod path;
mod requests;
mod settings;
mod sign;
mod unpack;
mod wait;

use crate::{
    BuildError, Call, Capabilities, Connector, Demands, Examine, Failure, Input, Kind, Link, OperationSpec,
    Outcome, Output, Repeat,
    apart::{Client, Lane},
    hiding::Secrets,
};
use client::Credentials;
use http::HeaderName;
use params::Params;
use passerelle_config::{Diagnostics, Section};
use requests::Requests;
use rustls::ClientConfig;
use serde_json::Value;
use settings::{Timeouts, Version};
use sign::Signer;
use std::{path::Path, sync::Arc, time::Duration};
use url::Url;

pub use settings::Settings;

/// `connector = "http"`.
pub struct HttpKind;

/// A configured application. Its connections are pooled and reused by its jobs alone.
pub struct Http {
    base: Url,
    version: Version,
    client: Client,
    /// What `client` speaks TLS with.
    tls: Arc<ClientConfig>,
    /// The resource's own proxy.
    proxy: Option<Url>,
    credentials: Credentials,
    signer: Option<Signer>,
    /// What no result may repeat of an answer's head.
    secrets: Secrets,
    /// Header fields that jobs leave alone.
    own_headers: Vec<HeaderName>,
    requests: Requests,
    timeouts: Timeouts,
    /// Whether answers may come compressed.
    compression: bool,
    max_response: u64,
}

impl Kind for HttpKind {
    const NAME: &'static str = "http";
    type Checked = Settings;
    type Connector = Http;

    fn operations() -> Vec<OperationSpec> {
        let operation = |name, params_schema, makes_output| OperationSpec {
            name,
            repeat: Repeat::WithKey,
            params_schema,
            takes_payload: true,
            makes_output,
            needs_paths: true,
        };
        vec![
            operation("request", params::request_schema(), true),
            operation("notify", params::notify_schema(), false),
        ]
    }

    fn settings_schema() -> Value {
        Settings::schema()
    }

    fn check(section: &Section, diagnostics: &mut Diagnostics) -> Option<Settings> {
        Settings::check(section, diagnostics)
    }

    fn build(checked: &Settings, base: &Path) -> Result<Http, BuildError> {
        let tls = client::tls(checked, base)?;
        let lane = Lane::default();
        let client = client::client(checked, base, tls.clone(), checked.version, &lane)?;
        // A token server need not speak what the application does.
        let fetching = match checked.version {
            Version::Auto => client.clone(),
            Version::One | Version::Two => client::client(checked, base, tls.clone(), Version::Auto, &lane)?,
        };
        Ok(Http {
            base: checked.url.clone(),
            credentials: client::credentials(checked, base, &fetching)?,
            signer: client::signer(checked, base)?,
            secrets: client::secrets(checked, base)?,
            client,
            version: checked.version,
            tls: Arc::new(tls),
            proxy: checked.proxy.as_ref().map(|proxy| proxy.url.clone()),
            own_headers: checked.own_headers(),
            requests: checked.requests.clone(),
            timeouts: checked.timeouts,
            compression: checked.compression,
            max_response: checked.max_response,
        })
    }
}

impl Http {
    fn params(&self, operation: &str, params: &Value) -> Result<Params, Failure> {
        Params::check(operation, params, &self.own_headers, &self.requests)
    }
}

impl Connector for Http {
    fn capabilities(&self) -> Capabilities {
        Capabilities { kind: HttpKind::NAME, operations: HttpKind::operations() }
    }

    fn demands(&self, operation: &str, params: &Value) -> Result<Demands, Failure> {
        self.params(operation, params).map(|params| params.demands())
    }

    async fn probe(&self, timeout: Duration) -> Result<(), Failure> {
        exchange::probe(self, timeout).await.map_err(|failure| self.secrets.leave(failure))
    }

    async fn examine(&self, what: Examine) -> Vec<Link> {
        examine::examine(self, what).await
    }

    async fn execute(
        &self,
        call: &Call,
        operation: &str,
        params: &Value,
        input: Option<Input>,
        output: &mut Output,
    ) -> Result<Outcome, Failure> {
        let params = self.params(operation, params)?;
        if call.cancel.is_cancelled() {
            return Err(Failure::cancelled());
        }
        let ran = exchange::run(self, call, params, input, output).await;
        ran.map_err(|failure| self.secrets.leave(failure))
    }
}
