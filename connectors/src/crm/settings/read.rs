//! Reads the settings of a `crm` resource from its section, with all findings at once.

mod auth;
mod entities;

use super::{Findings, Proxy, Settings};
use crate::{
    address::{BLOCKED_HERE, is_blocked_host},
    crm::{
        dialects::{self, Product},
        rest::shape::{RawShape, Shape},
        vocabulary::Entity,
    },
};
use auth::RawAuth;
use entities::{RawCall, RawEntity};
use passerelle_config::{ByteSize, Diagnostics, HumanDuration, SecretRef, Section};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use url::Url;

/// How long a connection may take to be made, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);
/// The largest answer taken: a page of records.
const MAX_RESPONSE: u64 = 16 * 1024 * 1024;
const MAX_MAX_RESPONSE: u64 = 256 * 1024 * 1024;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Raw {
    /// The product's interface.
    #[schemars(extend("enum" = dialects::names()))]
    dialect: String,
    /// `https://…` or `http://…` of the product's interface; every request stays below it.
    url: String,
    /// How the agent shows the product who it is; which kinds a dialect takes is said on its page.
    auth: Option<RawAuth>,
    /// PEM certificates trusted beside the system's own.
    ca_file: Option<PathBuf>,
    /// HTTP proxy towards the product. `HTTPS_PROXY` never counts here.
    proxy: Option<RawProxy>,
    /// How long connecting may take, TLS included; at most 120s.
    #[schemars(extend("default" = "10s"))]
    connect_timeout: Option<HumanDuration>,
    /// The largest answer that is taken, up to 256MiB.
    #[schemars(extend("default" = "16MiB"))]
    max_response: Option<ByteSize>,
    /// Signs the cursors of change feeds. Without it the credentials do, and cursors end when those change.
    cursor_key: Option<SecretRef>,
    /// Texts that only a certain dialect knows.
    options: Option<BTreeMap<String, String>>,
    /// The records that jobs may name: `contact`, `account`, …
    #[schemars(required)]
    entities: Option<BTreeMap<String, RawEntity>>,
    /// Calls that jobs may name.
    calls: Option<BTreeMap<String, RawCall>>,
    /// Dialect `rest`: how the interface pages, searches and answers, for all entities.
    rest: Option<RawShape>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawProxy {
    /// `http://host:port` or `https://host:port`.
    url: String,
    /// User name for Basic authentication.
    username: Option<String>,
    /// Password for Basic authentication.
    password: Option<SecretRef>,
}

impl Settings {
    /// The JSON Schema of the settings.
    pub(in crate::crm) fn schema() -> serde_json::Value {
        schemars::schema_for!(Raw).to_value()
    }

    /// Reads and checks the settings; findings go to `diagnostics`.
    pub(in crate::crm) fn check(section: &Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let raw: Raw = section.parse(diagnostics)?;
        let mut reader = Reader { section, diagnostics, sound: true };
        let product = reader.product(&raw.dialect);
        let url = reader.url(&raw.url);
        let auth = raw.auth.and_then(|auth| reader.auth(auth));
        let proxy = raw.proxy.and_then(|proxy| reader.proxy(proxy));
        let connect_timeout = raw.connect_timeout.map_or(CONNECT_TIMEOUT, |given| given.0);
        if connect_timeout.is_zero() || connect_timeout > MAX_CONNECT_TIMEOUT {
            reader.wrong("connect_timeout", "must be longer than 0 and at most 120s");
        }
        let max_response = raw.max_response.map_or(MAX_RESPONSE, |given| given.0);
        if max_response == 0 || max_response > MAX_MAX_RESPONSE {
            reader.wrong("max_response", "must be larger than 0 and at most 256MiB");
        }
        let (url, product) = (url?, product?);
        if let Some(auth) = &auth
            && !product.auth.contains(&auth.kind())
        {
            let message =
                format!("dialect {:?} takes auth of kind {}", product.name, product.auth.join(" or "));
            reader.wrong("auth.kind", message);
        }
        let options = raw.options.unwrap_or_default();
        for name in options.keys().filter(|name| !product.options.contains(&name.as_str())) {
            let message = match product.options {
                [] => format!("dialect {:?} has no options; remove it", product.name),
                known => {
                    format!("dialect {:?} has no such option; it knows {}", product.name, known.join(", "))
                }
            };
            reader.wrong(&format!("options.{name}"), message);
        }
        let mut raw_entities = raw.entities.unwrap_or_default();
        let own: BTreeMap<String, Option<RawShape>> =
            raw_entities.iter_mut().map(|(name, entity)| (name.clone(), entity.rest.take())).collect();
        let entities = reader.entities(product, raw_entities);
        let shapes = reader.shapes(product, &entities, raw.rest, own);
        let calls = reader.calls(raw.calls.unwrap_or_default());
        let sound = reader.sound;
        let settings = Self {
            resource: section.name().to_owned(),
            product,
            url,
            auth,
            ca_file: raw.ca_file,
            proxy,
            connect_timeout,
            max_response,
            cursor_key: raw.cursor_key,
            options,
            entities,
            calls,
            shapes,
        };
        if !sound {
            return None;
        }
        let mut findings = Findings { section, diagnostics, sound: true };
        (product.check)(&settings, &mut findings);
        findings.sound.then_some(settings)
    }
}

struct Reader<'a> {
    section: &'a Section,
    diagnostics: &'a mut Diagnostics,
    sound: bool,
}

impl Reader<'_> {
    fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.sound = false;
        self.diagnostics.push(self.section.finding(key, message));
    }

    fn product(&mut self, name: &str) -> Option<&'static Product> {
        let product = dialects::PRODUCTS.iter().find(|product| product.name == name);
        if product.is_none() {
            let names = dialects::names().join(", ");
            self.wrong("dialect", format!("unknown dialect {name:?}; there are {names}"));
        }
        product
    }

    fn url(&mut self, text: &str) -> Option<Url> {
        let mut url = self.host_url("url", text)?;
        if !url.username().is_empty() || url.password().is_some() {
            self.wrong("url", "must not contain credentials; put them into auth");
        }
        if url.query().is_some() || url.fragment().is_some() {
            self.wrong("url", "must end with the path, without ? or #");
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Some(url)
    }

    fn host_url(&mut self, key: &str, text: &str) -> Option<Url> {
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(e) => {
                let message = format!("not a URL ({e}); expected the like of https://crm.intra/api/v1/");
                self.wrong(key, message);
                return None;
            }
        };
        if !matches!(url.scheme(), "http" | "https") {
            self.wrong(key, format!("expected a URL with https:// or http://, found {}://", url.scheme()));
            return None;
        }
        if url.host().is_some_and(|host| is_blocked_host(&host)) {
            self.wrong(key, BLOCKED_HERE);
            return None;
        }
        Some(url)
    }

    fn proxy(&mut self, raw: RawProxy) -> Option<Proxy> {
        let url = self.host_url("proxy.url", &raw.url)?;
        if !url.username().is_empty() || url.password().is_some() {
            self.wrong("proxy.url", "must not contain credentials; use username and password");
        }
        if raw.username.is_some() != raw.password.is_some() {
            self.wrong("proxy", "username and password go together");
        }
        Some(Proxy { url, username: raw.username, password: raw.password })
    }

    fn shapes(
        &mut self,
        product: &Product,
        entities: &[Entity],
        base: Option<RawShape>,
        mut own: BTreeMap<String, Option<RawShape>>,
    ) -> BTreeMap<String, Shape> {
        if product.name != "rest" {
            let given = own.iter().find(|(_, shape)| shape.is_some());
            let at =
                given.map(|(name, _)| format!("entities.{name}.rest")).or(base.map(|_| "rest".to_owned()));
            if let Some(at) = at {
                self.wrong(&at, format!("dialect {:?} knows its interface; remove it", product.name));
            }
            return BTreeMap::new();
        }
        let base = base.unwrap_or_default();
        let mut shapes = BTreeMap::new();
        for entity in entities {
            let own = own.remove(&entity.name).flatten();
            let at = match own {
                Some(_) => format!("entities.{}.rest", entity.name),
                None => "rest".to_owned(),
            };
            let raw = own.unwrap_or_default().over(&base);
            let shape =
                raw.check(&entity.target, &mut |key, message| self.wrong(&format!("{at}.{key}"), message));
            shapes.insert(entity.name.clone(), shape);
        }
        shapes
    }
}
