//! Reads the settings of a `crm` resource from its section, with all findings at once.

use super::{Auth, CallSpec, Findings, Proxy, Settings};
use crate::{
    address::{BLOCKED_HERE, is_blocked_host},
    crm::{
        dialects::{self, Product},
        rest::shape::{RawShape, Shape},
        vocabulary::{Entity, Field, FieldType, neutral_type},
    },
    http::oauth::RawOauth,
};
use http::HeaderName;
use passerelle_config::{ByteSize, Diagnostics, HumanDuration, SecretRef, Section};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};
use url::Url;

/// How long a connection may take to be made, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);
/// The largest answer taken: a page of records.
const MAX_RESPONSE: u64 = 16 * 1024 * 1024;
const MAX_MAX_RESPONSE: u64 = 256 * 1024 * 1024;
/// More entities, fields or calls are a mistake.
const MAX_ENTITIES: usize = 100;
const MAX_FIELDS: usize = 500;

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

/// The keys of every kind of `auth`; which belong to which kind is checked below, so that a finding has its position.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawAuth {
    /// How the agent shows who it is.
    #[schemars(extend("enum" = ["bearer", "basic", "api_key", "hmac", "oauth2"]))]
    kind: String,
    /// Token: for `bearer`.
    token: Option<SecretRef>,
    /// The word before the token: for `bearer`.
    #[schemars(extend("default" = "Bearer"))]
    scheme: Option<String>,
    /// User name: for `basic`, and for the password grant of `oauth2`.
    username: Option<String>,
    /// Password: for `basic`, and for the password grant of `oauth2`.
    password: Option<SecretRef>,
    /// Name of the header that carries the key, such as `X-Api-Key`: for `api_key`.
    header: Option<String>,
    /// The key: for `api_key`.
    value: Option<SecretRef>,
    /// Id of the key: for `hmac`.
    key: Option<String>,
    /// The key that signs each request: for `hmac`.
    secret: Option<SecretRef>,
    /// Address of the token server: for `oauth2`.
    token_url: Option<String>,
    /// The agent's id there: for `oauth2`.
    client_id: Option<String>,
    /// The secret that belongs to it: for `oauth2`.
    client_secret: Option<SecretRef>,
    /// Scopes to ask for, separated by spaces: for `oauth2`.
    scope: Option<String>,
    /// Audience to ask for: for `oauth2`.
    audience: Option<String>,
    /// How the client shows who it is: for `oauth2`.
    #[schemars(extend("enum" = ["basic", "body"], "default" = "basic"))]
    style: Option<String>,
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

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawEntity {
    /// What the product calls it: a model, a module, a collection.
    target: Option<String>,
    /// The fields that a record can be found by. Default: `external_id`.
    key: Option<Vec<String>>,
    /// Our name = the product's name, for every field that may ever be named; `""` takes one of the dialect's away.
    fields: Option<BTreeMap<String, String>>,
    /// Types of fields: `text`, `integer`, `decimal`, `boolean`, `date`, `datetime`, `any`, `json`.
    types: Option<BTreeMap<String, String>>,
    /// Fields that jobs may read, not write.
    read_only: Option<Vec<String>>,
    /// Personal data: taken out of every failure's message and of the agent's log.
    masked: Option<Vec<String>>,
    /// Dialect `rest`: what differs for this entity.
    rest: Option<RawShape>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawCall {
    /// What it calls, in the dialect's words.
    target: Option<String>,
    /// The HTTP method.
    #[schemars(extend("enum" = ["GET", "POST", "PUT", "PATCH", "DELETE"]))]
    method: Option<String>,
    /// The path below `url`; `{arg}` stands for an argument.
    path: Option<String>,
    /// The arguments and their types.
    args: Option<BTreeMap<String, String>>,
    /// Those that must be given.
    required: Option<Vec<String>>,
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

    fn auth(&mut self, raw: RawAuth) -> Option<Auth> {
        let RawAuth { kind, token, scheme, username, password, header, value, key, secret, .. } = raw;
        let (token_url, client_id, client_secret) = (raw.token_url, raw.client_id, raw.client_secret);
        let (scope, audience, style) = (raw.scope, raw.audience, raw.style);
        let given = [
            ("token", token.is_some()),
            ("scheme", scheme.is_some()),
            ("username", username.is_some()),
            ("password", password.is_some()),
            ("header", header.is_some()),
            ("value", value.is_some()),
            ("key", key.is_some()),
            ("secret", secret.is_some()),
            ("token_url", token_url.is_some()),
            ("client_id", client_id.is_some()),
            ("client_secret", client_secret.is_some()),
            ("scope", scope.is_some()),
            ("audience", audience.is_some()),
            ("style", style.is_some()),
        ];
        let (needed, optional): (&[&str], &[&str]) = match kind.as_str() {
            "bearer" => (&["token"], &["scheme"]),
            "basic" => (&["username", "password"], &[]),
            "api_key" => (&["header", "value"], &[]),
            "hmac" => (&["key", "secret"], &[]),
            "oauth2" => (
                &["token_url", "client_id", "client_secret"],
                &["scope", "audience", "style", "username", "password"],
            ),
            other => {
                let message =
                    format!("unknown kind {other:?}; expected bearer, basic, api_key, hmac or oauth2");
                self.wrong("auth.kind", message);
                return None;
            }
        };
        for (key, is_given) in given {
            match (is_given, needed.contains(&key)) {
                (true, false) if !optional.contains(&key) => {
                    let message = format!("not a key of kind {kind:?}, which takes {}", needed.join(" and "));
                    self.wrong(&format!("auth.{key}"), message);
                }
                (false, true) => self.wrong("auth", format!("kind {kind:?} needs the key {key}")),
                (true, _) | (false, false) => {}
            }
        }
        match kind.as_str() {
            "bearer" => {
                let scheme = scheme.unwrap_or_else(|| "Bearer".to_owned());
                if HeaderName::from_bytes(scheme.as_bytes()).is_err() {
                    self.wrong(
                        "auth.scheme",
                        "not a word that can stand before a token; write \"Token\", say",
                    );
                }
                Some(Auth::Bearer { token: token?, scheme })
            }
            "basic" => {
                let username = username?;
                if username.contains(':') || username.chars().any(char::is_control) {
                    self.wrong("auth.username", "must not contain a colon or control characters");
                }
                Some(Auth::Basic { username, password: password? })
            }
            "hmac" => Some(Auth::Hmac { key: key?, secret: secret? }),
            "oauth2" => {
                let own = client_secret.clone();
                let raw = RawOauth {
                    token_url,
                    client_id,
                    client_secret,
                    scope,
                    audience,
                    style,
                    username,
                    password,
                };
                let settings = raw.check(&mut |key, message| self.wrong(&format!("auth.{key}"), message));
                Some(Auth::Oauth { settings: Box::new(settings?), client_secret: own? })
            }
            _ => {
                let (name, value) = (header?, value?);
                let known = HeaderName::from_bytes(name.as_bytes()).ok();
                let header = known
                    .filter(|header| !matches!(header.as_str(), "host" | "content-length" | "connection"));
                if header.is_none() {
                    let message = format!("{name:?} cannot carry a key; expected the like of \"X-Api-Key\"");
                    self.wrong("auth.header", message);
                }
                Some(Auth::ApiKey { header: header?, value })
            }
        }
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

    fn entities(&mut self, product: &Product, raw: BTreeMap<String, RawEntity>) -> Vec<Entity> {
        if raw.is_empty() {
            self.wrong(
                "entities",
                "missing; write [resources.NAME.entities.contact] for each entity jobs may name",
            );
        }
        if raw.len() > MAX_ENTITIES {
            self.wrong("entities", format!("expected at most {MAX_ENTITIES}, found {}", raw.len()));
        }
        raw.into_iter().map(|(name, raw)| self.entity(product, name, raw)).collect()
    }

    fn entity(&mut self, product: &Product, name: String, raw: RawEntity) -> Entity {
        let at = format!("entities.{name}");
        if !is_word(&name) {
            self.wrong(&at, format!("not an entity's name: {WORD_RULE}"));
        }
        let known = product.entities.iter().find(|known| known.name == name);
        let target = raw.target.or_else(|| known.map(|known| known.target.to_owned()));
        if target.as_ref().is_none_or(String::is_empty) {
            let message = format!(
                "missing; dialect {:?} does not know what {name} is called at the target",
                product.name
            );
            self.wrong(&format!("{at}.target"), message);
        }
        let mut names: BTreeMap<String, String> = known
            .iter()
            .flat_map(|known| known.fields.iter())
            .map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned()))
            .collect();
        for (ours, theirs) in raw.fields.unwrap_or_default() {
            if !is_word(&ours) {
                self.wrong(&format!("{at}.fields.{ours}"), format!("not a field's name: {WORD_RULE}"));
            }
            if theirs.is_empty() {
                // An empty name takes a field of the dialect away.
                names.remove(&ours);
            } else {
                names.insert(ours, theirs);
            }
        }
        if names.is_empty() || names.len() > MAX_FIELDS {
            let message = format!(
                "expected 1 to {MAX_FIELDS} fields, such as {{ email = \"email\" }}, found {}",
                names.len()
            );
            self.wrong(&format!("{at}.fields"), message);
        }
        let types = raw.types.unwrap_or_default();
        let (read_only, masked) = (raw.read_only.unwrap_or_default(), raw.masked.unwrap_or_default());
        let mut known_here = |key: &str, field: &String| {
            if !names.contains_key(field) {
                self.wrong(&format!("{at}.{key}"), format!("{field:?} is not one of its fields"));
            }
        };
        types.keys().for_each(|field| known_here("types", field));
        read_only.iter().for_each(|field| known_here("read_only", field));
        masked.iter().for_each(|field| known_here("masked", field));
        let keys = raw.key.unwrap_or_else(|| {
            let link = "external_id".to_owned();
            if names.contains_key(&link) { vec![link] } else { Vec::new() }
        });
        keys.iter().for_each(|field| known_here("key", field));
        let fields = names
            .into_iter()
            .map(|(ours, theirs)| {
                let kind = types.get(&ours).map(|text| {
                    FieldType::named(text).unwrap_or_else(|| {
                        let all: Vec<_> = FieldType::NAMES.iter().map(|(name, _)| *name).collect();
                        let message = format!("unknown type {text:?}; there are {}", all.join(", "));
                        self.wrong(&format!("{at}.types.{ours}"), message);
                        FieldType::Any
                    })
                });
                Field {
                    kind: kind.or_else(|| neutral_type(&name, &ours)).unwrap_or(FieldType::Any),
                    read_only: read_only.contains(&ours),
                    masked: masked.contains(&ours),
                    name: ours,
                    target: theirs,
                }
            })
            .collect();
        Entity { name, target: target.unwrap_or_default(), fields, keys }
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

    fn calls(&mut self, raw: BTreeMap<String, RawCall>) -> Vec<CallSpec> {
        if raw.len() > MAX_ENTITIES {
            self.wrong("calls", format!("expected at most {MAX_ENTITIES}, found {}", raw.len()));
        }
        raw.into_iter().map(|(name, raw)| self.one_call(name, raw)).collect()
    }

    fn one_call(&mut self, name: String, raw: RawCall) -> CallSpec {
        let at = format!("calls.{name}");
        if !is_word(&name) {
            self.wrong(&at, format!("not a call's name: {WORD_RULE}"));
        }
        let mut args = BTreeMap::new();
        for (arg, kind) in raw.args.unwrap_or_default() {
            match FieldType::named(&kind) {
                Some(kind) if is_word(&arg) => drop(args.insert(arg, kind)),
                Some(_) => self.wrong(&format!("{at}.args.{arg}"), format!("not a name: {WORD_RULE}")),
                None => {
                    let all: Vec<_> = FieldType::NAMES.iter().map(|(name, _)| *name).collect();
                    let message = format!("unknown type {kind:?}; there are {}", all.join(", "));
                    self.wrong(&format!("{at}.args.{arg}"), message);
                }
            }
        }
        let required: BTreeSet<String> = raw.required.unwrap_or_default().into_iter().collect();
        for arg in required.iter().filter(|arg| !args.contains_key(*arg)) {
            self.wrong(&format!("{at}.required"), format!("{arg:?} is not one of its args"));
        }
        let method = raw.method;
        if method
            .as_deref()
            .is_some_and(|method| !matches!(method, "GET" | "POST" | "PUT" | "PATCH" | "DELETE"))
        {
            self.wrong(&format!("{at}.method"), "expected GET, POST, PUT, PATCH or DELETE");
        }
        CallSpec { name, target: raw.target, method, path: raw.path, args, required }
    }
}

const WORD_RULE: &str = "1 to 64 of a–z, 0–9 and _, beginning with a letter";

/// Whether a name of ours is one that jobs and rules can write without doubt.
fn is_word(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
