//! The settings of a `crm` resource: the dialect and its options, the way to the target, the entities and calls that
//! jobs may name.

mod read;

use super::{
    dialects::Product,
    rest::shape::Shape,
    vocabulary::{Entity, FieldType},
};
use crate::http::oauth::OauthSettings;
use http::HeaderName;
use passerelle_config::{Diagnostics, SecretRef, Section};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};
use url::Url;

/// Checked settings of a `crm` resource.
#[derive(Debug)]
pub struct Settings {
    pub(super) resource: String,
    pub(super) product: &'static Product,
    /// Its path ends with `/`.
    pub(super) url: Url,
    pub(super) auth: Option<Auth>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) proxy: Option<Proxy>,
    pub(super) connect_timeout: Duration,
    pub(super) max_response: u64,
    pub(super) cursor_key: Option<SecretRef>,
    /// Of the dialect; their names are checked, their values are the dialect's to check.
    pub(super) options: BTreeMap<String, String>,
    pub(super) entities: Vec<Entity>,
    pub(super) calls: Vec<CallSpec>,
    /// How the interface of the dialect `rest` looks, by our names of the entities.
    pub(super) shapes: BTreeMap<String, Shape>,
}

/// How the agent authenticates to the target. What a kind looks like on the wire may be the dialect's.
#[derive(Debug)]
pub(crate) enum Auth {
    /// `Authorization: Bearer …`, or another word in its place.
    Bearer { token: SecretRef, scheme: String },
    /// A user's name and password: sent as HTTP Basic, or what a dialect logs in with.
    Basic { username: String, password: SecretRef },
    /// A key in a header of its own.
    ApiKey { header: HeaderName, value: SecretRef },
    /// A key whose secret signs each request.
    Hmac { key: String, secret: SecretRef },
    /// An access token of a token server: client credentials, or the password grant with a user's name and password.
    Oauth { settings: Box<OauthSettings>, client_secret: SecretRef },
}

impl Auth {
    /// As operators write the kind.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Bearer { .. } => "bearer",
            Self::Basic { .. } => "basic",
            Self::ApiKey { .. } => "api_key",
            Self::Hmac { .. } => "hmac",
            Self::Oauth { .. } => "oauth2",
        }
    }

    /// The key that holds the secret, and where the secret is.
    pub(crate) fn secret(&self) -> (&'static str, &SecretRef) {
        match self {
            Self::Bearer { token, .. } => ("auth.token", token),
            Self::Basic { password, .. } => ("auth.password", password),
            Self::ApiKey { value, .. } => ("auth.value", value),
            Self::Hmac { secret, .. } => ("auth.secret", secret),
            Self::Oauth { client_secret, .. } => ("auth.client_secret", client_secret),
        }
    }
}

/// The proxy on the way to the target.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) url: Url,
    pub(super) username: Option<String>,
    pub(super) password: Option<SecretRef>,
}

/// A call that the operator declared: the cloud names it and gives its arguments, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallSpec {
    /// Its name, for jobs and policy.
    pub(crate) name: String,
    /// What it calls, in the dialect's words (`res.partner.recalculate`, say).
    pub(crate) target: Option<String>,
    /// The HTTP method, upper case.
    pub(crate) method: Option<String>,
    /// The path below the resource's url; `{arg}` stands for an argument, as one segment.
    pub(crate) path: Option<String>,
    /// The arguments it takes, with their types.
    pub(crate) args: BTreeMap<String, FieldType>,
    /// Those that must be given.
    pub(crate) required: BTreeSet<String>,
}

impl Settings {
    /// An option of the dialect.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }
}

/// Where a dialect's own check of the settings reports.
pub(crate) struct Findings<'a> {
    section: &'a Section,
    diagnostics: &'a mut Diagnostics,
    sound: bool,
}

impl Findings<'_> {
    /// A finding at a key, such as `options.database`.
    pub(crate) fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.sound = false;
        self.diagnostics.push(self.section.finding(key, message));
    }
}
