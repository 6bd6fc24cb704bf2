//! `[listeners.NAME]`: where in-house applications post to the agent what the cloud is to hear of.

use crate::{
    ByteSize, Diagnostics, Finding, SecretRef, Section, check, defaults,
    tree::{Node, Source, Value, join},
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where in-house applications post to the agent what the cloud is to hear of. Each post becomes one event at the hub.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawListener {
    /// Address and port: of this machine (`127.0.0.1:9470`) or of the private network.
    #[schemars(required)]
    pub(crate) listen: Option<String>,
    /// Whether `listen` may be an address outside private networks, or all of them (`0.0.0.0`), as inside a container.
    #[schemars(extend("default" = false))]
    pub(crate) any_address: Option<bool>,
    /// PEM file of the certificate, with its chain: then the listener speaks TLS.
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of `tls_cert`, in PEM.
    pub(crate) tls_key: Option<SecretRef>,
    /// The one path that is posted to. Default: `/` and the listener's name.
    pub(crate) path: Option<String>,
    /// Who may post: `{ kind = "token", token = { file = "…" } }`, `{ kind = "basic", username = "…", password = { … } }`
    /// or `{ kind = "hmac", secrets = [{ file = "…" }] }` (Standard Webhooks).
    #[schemars(required)]
    pub(crate) auth: Option<RawListenerAuth>,
    /// The largest body.
    #[schemars(extend("default" = "1MiB"))]
    pub(crate) max_size: Option<ByteSize>,
    /// Posts accepted per minute; more are answered 429.
    #[schemars(range(min = 1, max = 1_000_000), extend("default" = defaults::LISTENER_RATE))]
    pub(crate) rate_per_minute: Option<i64>,
    /// Posts at once; more are answered 503.
    #[schemars(range(min = 1, max = 1000), extend("default" = defaults::LISTENER_CONCURRENT))]
    pub(crate) max_concurrent: Option<i64>,
    /// Whether a post without `Idempotency-Key` is refused. Otherwise the agent makes up a key, and each such post is a
    /// new event.
    #[schemars(extend("default" = false))]
    pub(crate) require_key: Option<bool>,
    /// The content types taken, such as `application/json`; without it any.
    pub(crate) content_types: Option<Vec<String>>,
    /// The `EventKind`s taken; what else is posted is refused. Without it any.
    pub(crate) event_kinds: Option<Vec<String>>,
}

/// Who may post.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawListenerAuth {
    /// `token`, `basic` or `hmac`.
    #[schemars(required)]
    pub(crate) kind: Option<String>,
    /// For `token`: what is sent as `Authorization: Bearer …` or `X-Api-Key: …`.
    pub(crate) token: Option<SecretRef>,
    /// For `basic`.
    pub(crate) username: Option<String>,
    /// For `basic`.
    pub(crate) password: Option<SecretRef>,
    /// For `hmac`: the secrets that sign, in base64, mostly with `whsec_` before it. Any of them counts, so that one can
    /// follow another.
    pub(crate) secrets: Option<Vec<SecretRef>>,
}

/// How a listener knows who may post.
#[derive(Debug, Clone)]
pub enum ListenerAuth {
    /// A bearer token.
    Token(SecretRef),
    /// User name and password.
    Basic {
        /// The user name.
        username: String,
        /// The password.
        password: SecretRef,
    },
    /// Signatures by Standard Webhooks, with any of these secrets.
    Hmac(Vec<SecretRef>),
}

/// `[listeners.NAME]`
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// PEM files of certificate and key, if it speaks TLS; absolute, and by reference.
    pub tls: Option<(PathBuf, SecretRef)>,
    /// The path, with its slash.
    pub path: String,
    /// Who may post.
    pub auth: ListenerAuth,
    /// The largest body.
    pub max_size: ByteSize,
    /// Posts per minute.
    pub rate_per_minute: u32,
    /// Posts at once.
    pub max_concurrent: u32,
    /// Whether each post needs a key.
    pub require_key: bool,
    /// The content types taken, lower case; empty: any.
    pub content_types: Vec<String>,
    /// The event kinds taken; empty: any.
    pub event_kinds: Vec<String>,
    /// Where it stands, for messages.
    pub at: Finding,
    /// All that the table says, without places and spelling: the same settings have the same text.
    pub text: String,
    /// The files that it names, absolute: secrets and certificates.
    pub files: BTreeSet<PathBuf>,
}

/// Checks a listener. `None` if it cannot be used; findings say why.
pub(crate) fn check(
    name: &str,
    node: Node,
    source: &Arc<Source>,
    dir: &Path,
    diagnostics: &mut Diagnostics,
) -> Option<ListenerConfig> {
    let path = join("listeners", name);
    if !matches!(node.value, Value::Table(_)) {
        let message = format!("expected a table: write [{path}] and its keys below");
        diagnostics.push(source.finding(node.at, &path, message));
        return None;
    }
    let (mut text, mut files) = (String::new(), BTreeSet::new());
    node.write_canonical(&mut text);
    node.named_files(dir, &mut files);
    let section = Section::new(name, path, node, Arc::clone(source), &[]);
    let raw: RawListener = section.parse_leniently(diagnostics)?;
    let before = diagnostics.findings().len();
    let mut checker = Checker { section: &section, diagnostics };
    if !check::is_name(name) {
        checker.wrong("", format!("not a listener's name: {}", check::NAME_RULE));
    }
    let listen = checker.listen(raw.listen.as_deref(), raw.any_address.unwrap_or(false));
    let tls = checker.tls(raw.tls_cert, raw.tls_key, dir);
    if let Some(listen) = listen
        && !listen.ip().to_canonical().is_loopback()
        && tls.is_none()
    {
        let message = "other machines reach it without TLS: whoever listens in on the network reads tokens and events; \
                       add tls_cert and tls_key";
        let warning = section.finding("listen", message);
        checker.diagnostics.warn(warning);
    }
    let url_path = checker.path(raw.path.unwrap_or_else(|| format!("/{name}")));
    let auth = checker.auth(raw.auth);
    let max_size = raw.max_size.unwrap_or(ByteSize(defaults::LISTENER_SIZE));
    if max_size.0 == 0 {
        checker.wrong("max_size", "must be larger than 0");
    }
    let rate_per_minute = raw.rate_per_minute.map_or(defaults::LISTENER_RATE, |value| {
        check::in_range(&section, "rate_per_minute", value, 1..=defaults::RATE_LIMIT, checker.diagnostics)
    });
    let max_concurrent = raw.max_concurrent.map_or(defaults::LISTENER_CONCURRENT, |value| {
        let range = 1..=defaults::MAX_CONCURRENT_LIMIT;
        check::in_range(&section, "max_concurrent", value, range, checker.diagnostics)
    });
    let content_types = checker.content_types(raw.content_types);
    let event_kinds = checker.event_kinds(raw.event_kinds);
    let at = section.finding("", "");
    let sound = diagnostics.findings().len() == before;
    let checked = ListenerConfig {
        name: name.to_owned(),
        listen: listen?,
        tls,
        path: url_path,
        auth: auth?,
        max_size,
        rate_per_minute,
        max_concurrent,
        require_key: raw.require_key.unwrap_or(false),
        content_types,
        event_kinds,
        at,
        text,
        files,
    };
    sound.then_some(checked)
}

/// What the listeners may not be to each other, to the resources and to the agent's own port.
pub(crate) fn check_together(
    listeners: &[ListenerConfig],
    resources: &[String],
    own: Option<SocketAddr>,
    diagnostics: &mut Diagnostics,
) {
    let mut addresses: Vec<(SocketAddr, &str)> = Vec::new();
    for listener in listeners {
        let mut wrong = |key: &str, message: String| {
            let path =
                if key.is_empty() { listener.at.path.clone() } else { format!("{}.{key}", listener.at.path) };
            diagnostics.push(Finding { path, message, ..listener.at.clone() });
        };
        if resources.contains(&listener.name) {
            let message =
                "there is a resource of this name: the cloud could not tell their events apart; rename one";
            wrong("", message.to_owned());
        }
        // Port 0 is a new one each time.
        if listener.listen.port() == 0 {
            wrong("listen", "port 0 is none that an application could be told; name one".to_owned());
        } else if own == Some(listener.listen) {
            wrong("listen", "is agent.listen, the agent's own status port; choose another port".to_owned());
        } else if let Some((_, other)) = addresses.iter().find(|(address, _)| *address == listener.listen) {
            wrong("listen", format!("listener {other:?} has this address; choose another port"));
        }
        addresses.push((listener.listen, &listener.name));
    }
    if let Some(one) = listeners.get(defaults::MAX_LISTENERS) {
        let message =
            format!("expected at most {} listeners, found {}", defaults::MAX_LISTENERS, listeners.len());
        diagnostics.push(Finding { message, ..one.at.clone() });
    }
}

struct Checker<'a> {
    section: &'a Section,
    diagnostics: &'a mut Diagnostics,
}

impl Checker<'_> {
    fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.diagnostics.push(self.section.finding(key, message));
    }

    /// A required key that is missing, unless it is there and was refused already.
    fn missing(&mut self, key: &str, message: &str) {
        if !self.section.has(key) {
            self.wrong(key, message);
        }
    }

    fn listen(&mut self, text: Option<&str>, any_address: bool) -> Option<SocketAddr> {
        let Some(text) = text else {
            self.missing("listen", "missing; write an address and a port such as \"127.0.0.1:9470\"");
            return None;
        };
        let Ok(listen) = text.parse::<SocketAddr>() else {
            self.wrong("listen", "expected an address and a port such as \"127.0.0.1:9470\"");
            return None;
        };
        if !any_address && !is_private(listen.ip()) {
            let message = "is not an address of this machine alone or of a private network: everybody who reaches it may \
                           try; name a private address, or add any_address = true (inside a container, say)";
            self.wrong("listen", message);
            return None;
        }
        Some(listen)
    }

    fn tls(
        &mut self,
        cert: Option<PathBuf>,
        key: Option<SecretRef>,
        dir: &Path,
    ) -> Option<(PathBuf, SecretRef)> {
        match (cert, key) {
            (Some(cert), Some(key)) => {
                check::not_empty(self.section, "tls_cert", cert.as_os_str().is_empty(), self.diagnostics);
                return Some((dir.join(cert), key));
            }
            (Some(_), None) => {
                self.missing(
                    "tls_key",
                    "a certificate without its key; add tls_key = { file = \"secrets/…\" }",
                );
            }
            (None, Some(_)) => {
                self.missing("tls_cert", "a key without its certificate; add tls_cert = \"listener.pem\"")
            }
            (None, None) => {}
        }
        None
    }

    fn path(&mut self, path: String) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
        let parts = || path.split('/').skip(1);
        if !path.starts_with('/')
            || path.len() > defaults::MAX_LISTENER_PATH
            || !path.chars().all(plain)
            || (path != "/" && parts().any(|part| matches!(part, "" | "." | "..")))
        {
            self.wrong(
                "path",
                "expected a path such as \"/orders\": letters, digits, '-', '.', '_', '~' and '/'",
            );
        }
        path
    }

    fn auth(&mut self, raw: Option<RawListenerAuth>) -> Option<ListenerAuth> {
        const CHOICE: &str = "{ kind = \"token\", token = { file = \"secrets/…\" } }";
        let Some(raw) = raw else {
            self.missing("auth", &format!("missing; say who may post, such as auth = {CHOICE}"));
            return None;
        };
        let Some(kind) = raw.kind.as_deref() else {
            self.missing("auth.kind", "missing; expected \"token\", \"basic\" or \"hmac\"");
            return None;
        };
        let keys: &[&str] = match kind {
            "token" => &["token"],
            "basic" => &["username", "password"],
            "hmac" => &["secrets"],
            _ => {
                self.wrong("auth.kind", "expected \"token\", \"basic\" or \"hmac\"");
                return None;
            }
        };
        for key in ["token", "username", "password", "secrets"] {
            let at = format!("auth.{key}");
            match (keys.contains(&key), self.section.has(&at)) {
                (true, false) => self.wrong(&at, format!("missing; kind = {kind:?} needs it")),
                (false, true) => self.wrong(&at, format!("does not belong to kind = {kind:?}")),
                (true, true) | (false, false) => {}
            }
        }
        match kind {
            "token" => Some(ListenerAuth::Token(raw.token?)),
            "basic" => {
                let username = raw.username?;
                if username.is_empty() || username.contains(':') {
                    self.wrong(
                        "auth.username",
                        "a user name for Basic authentication is not empty and has no ':'",
                    );
                }
                Some(ListenerAuth::Basic { username, password: raw.password? })
            }
            _ => {
                let secrets = raw.secrets?;
                if secrets.is_empty() || secrets.len() > defaults::MAX_LISTENER_SECRETS {
                    let most = defaults::MAX_LISTENER_SECRETS;
                    self.wrong("auth.secrets", format!("expected 1 to {most} secrets"));
                }
                Some(ListenerAuth::Hmac(secrets))
            }
        }
    }

    fn content_types(&mut self, raw: Option<Vec<String>>) -> Vec<String> {
        let types = raw.unwrap_or_default();
        for (index, text) in types.iter().enumerate() {
            let is_type =
                text.split_once('/').is_some_and(|(kind, sub)| check::is_token(kind) && check::is_token(sub));
            if !is_type {
                let key = format!("content_types[{}]", index + 1);
                self.wrong(&key, "expected a type such as \"application/json\", without parameters");
            }
        }
        types.iter().map(|text| text.to_ascii_lowercase()).collect()
    }

    fn event_kinds(&mut self, raw: Option<Vec<String>>) -> Vec<String> {
        let kinds = raw.unwrap_or_default();
        for (index, kind) in kinds.iter().enumerate() {
            if kind.is_empty() || kind.len() > defaults::MAX_EVENT_KIND {
                let key = format!("event_kinds[{}]", index + 1);
                self.wrong(&key, format!("expected 1 to {} bytes", defaults::MAX_EVENT_KIND));
            }
        }
        kinds
    }
}

/// Whether only this machine, or a private network, can reach an address.
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private(),
        IpAddr::V6(ip) => ip == Ipv6Addr::LOCALHOST || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_or_a_private_network_are_private() {
        for private in
            ["127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "::1", "fd00::1", "fe80::1"]
        {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in
            ["0.0.0.0", "::", "8.8.8.8", "172.32.0.1", "169.254.169.254", "2001:db8::1", "::ffff:8.8.8.8"]
        {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }
}
