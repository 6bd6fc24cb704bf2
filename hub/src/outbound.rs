//! The hub's own requests to the outside, on behalf of tenants: webhooks to subscribers, files to fetch.
//!
//! A tenant names the URL, so it must not lead the hub into its own network (SSRF). Blocked addresses (link-local, cloud
//! metadata, no single host) are never reached. Private ones, this machine among them, only where the operator's
//! settings list them, and plain `http` only there. Names are resolved here, the addresses are judged, and those judged
//! are the ones connected to, so that a name which changes in between gains nothing. Redirects are not followed, proxies of
//! the environment are not used.

pub mod trouble;

use http::{HeaderMap, header::RETRY_AFTER};
use passerelle_config::ByteSize;
use passerelle_config::address::{is_blocked, is_blocked_host, is_private};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use url::{Host, Url};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// The longest URL that is taken.
pub const MAX_URL: usize = 2048;

/// How long an answer asks to be left alone (`Retry-After`, RFC 9110), if it says so in seconds.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Addresses that an operator lists: one, or those with a common prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether `address` is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix);
                let differs = network.to_bits() ^ address.to_bits();
                differs.checked_shr(shift).unwrap_or_default() == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix);
                let differs = network.to_bits() ^ address.to_bits();
                differs.checked_shr(shift).unwrap_or_default() == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no address or network; write the like of 10.1.2.3 or 10.1.0.0/16");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.trim().parse().map_err(|_| wrong())?,
            None => longest,
        };
        if prefix > longest {
            return Err(wrong());
        }
        Ok(Self { address, prefix })
    }
}

/// Why a URL is not asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is none that the hub can ask.
    #[error("{0}")]
    Malformed(String),
    /// Its host is one that the hub does not connect to.
    #[error("{0}")]
    Forbidden(String),
    /// Its name cannot be resolved.
    #[error("the host's name does not resolve")]
    NotResolved,
}

const FORBIDDEN: &str = "the host's address is private, link-local or a cloud's metadata service: choose a public one, or have the \
                         hub's operator list it in outbound.allow_addresses";
const PLAIN: &str = "http:// is taken for addresses alone that the hub's operator lists in outbound.allow_addresses: use https://";

/// The largest file that is fetched, unless configured.
pub const MAX_FETCH: u64 = 256 << 20;

/// What the operator allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Private addresses that may be reached.
    pub allow: Vec<Network>,
    /// What files may be fetched: all that begin with one of these.
    pub fetch: Vec<Url>,
    /// The largest file that is fetched, in bytes.
    pub max_fetch: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { allow: Vec::new(), fetch: Vec::new(), max_fetch: MAX_FETCH }
    }
}

impl Rules {
    fn allows(&self, address: IpAddr, plain: bool) -> bool {
        let address = address.to_canonical();
        if is_blocked(address) {
            return false;
        }
        let listed = self.allow.iter().any(|network| network.contains(address));
        listed || (!plain && !is_private(address))
    }

    fn may_fetch(&self, url: &Url) -> bool {
        let path = url.path().to_ascii_lowercase();
        // Servers differ in what they make of these: none may lead out of the folder that is allowed.
        let disguised = ["%2f", "%5c", "\\", "%00"].iter().any(|part| path.contains(part));
        self.fetch.iter().any(|allowed| {
            let same_place = allowed.scheme() == url.scheme()
                && allowed.host() == url.host()
                && allowed.port_or_known_default() == url.port_or_known_default();
            let below = match url.path().strip_prefix(allowed.path()) {
                Some("") => true,
                Some(rest) => allowed.path().ends_with('/') || rest.starts_with('/'),
                None => false,
            };
            same_place && below && (!disguised || allowed.path() == "/")
        })
    }

    /// The addresses of a name that may be connected to; `None` if there are some and none of them may.
    fn filter(&self, found: impl IntoIterator<Item = SocketAddr>, plain: bool) -> Option<Vec<SocketAddr>> {
        let mut any = false;
        let allowed: Vec<SocketAddr> = found
            .into_iter()
            .inspect(|_| any = true)
            .filter(|address| self.allows(address.ip(), plain))
            .collect();
        (!any || !allowed.is_empty()).then_some(allowed)
    }
}

/// `[outbound]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Section {
    /// Private addresses and networks (`10.1.2.3`, `10.1.0.0/16`) that tenants' URLs may lead to; nothing opens link-local
    /// ones and those of cloud metadata services.
    pub allow_addresses: Vec<String>,
    /// What files the vendor's API may have fetched: all whose URL begins with one of these. None: nothing is fetched.
    pub fetch_urls: Vec<String>,
    /// Largest file that is fetched.
    pub max_fetch: ByteSize,
}

impl Default for Section {
    fn default() -> Self {
        Self { allow_addresses: Vec::new(), fetch_urls: Vec::new(), max_fetch: ByteSize(MAX_FETCH) }
    }
}

impl Section {
    /// The same as it is used.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            allow: self.allow_addresses.iter().filter_map(|text| text.parse().ok()).collect(),
            fetch: self.fetch_urls.iter().filter_map(|text| read(text).ok()).collect(),
            max_fetch: self.max_fetch.0,
        }
    }

    /// What cannot be meant.
    #[must_use]
    pub fn finding(&self) -> Option<String> {
        let wrong = |text: &String| text.parse::<Network>().err();
        if let Some(wrong) = self.allow_addresses.iter().find_map(wrong) {
            return Some(format!("outbound.allow_addresses: {wrong}"));
        }
        self.fetch_urls.iter().find_map(|text| match read(text) {
            Ok(url) if url.query().is_some() => Some(format!(
                "outbound.fetch_urls: {text:?}: leave its query out; whatever follows is allowed"
            )),
            Ok(_) => None,
            Err(wrong) => Some(format!("outbound.fetch_urls: {text:?}: {wrong}")),
        })
    }
}

/// Reads a URL that somebody else names, as far as can be judged without resolving.
///
/// # Errors
/// What is wrong with it, for whoever named it.
pub fn read(text: &str) -> Result<Url, Refusal> {
    let wrong = |why: &str| Err(Refusal::Malformed(format!("url: {why}")));
    if text.len() > MAX_URL {
        return wrong("it is longer than 2048 characters");
    }
    let Ok(url) = Url::parse(text) else {
        return wrong("expected the like of https://hooks.example.com/path");
    };
    if !matches!(url.scheme(), "http" | "https") {
        return wrong("it begins with https://, or http:// where the hub's operator allows it");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return wrong("credentials do not belong into it");
    }
    if url.fragment().is_some() {
        return wrong("it has a fragment (#…), which is never sent: leave it out");
    }
    Ok(url)
}

/// A client for such requests; cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    rules: Arc<Rules>,
    /// Built at the first use, which reads the system's trusted certificates: by TLS, and without.
    clients: Arc<[OnceLock<Result<reqwest::Client, String>>; 2]>,
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Default for Outbound {
    fn default() -> Self {
        Self::new(Rules::default())
    }
}

impl Outbound {
    /// One that keeps to these rules.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules: Arc::new(rules), clients: Arc::default() }
    }

    /// Whether any file may be fetched.
    #[must_use]
    pub fn fetches(&self) -> bool {
        !self.rules.fetch.is_empty()
    }

    /// Whether the operator lists this file's URL.
    #[must_use]
    pub fn may_fetch(&self, url: &Url) -> bool {
        self.rules.may_fetch(url)
    }

    /// The largest file that is fetched.
    #[must_use]
    pub fn max_fetch(&self) -> u64 {
        self.rules.max_fetch
    }

    /// Judges where a URL leads, now.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn judge(&self, url: &Url) -> Result<(), Refusal> {
        let plain = url.scheme() == "http";
        let refused = || Refusal::Forbidden(if plain { PLAIN } else { FORBIDDEN }.to_owned());
        let addresses = match url.host() {
            None => return Err(Refusal::Malformed("url: it names no host".to_owned())),
            Some(host) if is_blocked_host(&host) => return Err(Refusal::Forbidden(FORBIDDEN.to_owned())),
            Some(Host::Ipv4(v4)) => vec![SocketAddr::new(v4.into(), 0)],
            Some(Host::Ipv6(v6)) => vec![SocketAddr::new(v6.into(), 0)],
            Some(Host::Domain(name)) => {
                let found = tokio::net::lookup_host((name, 0)).await.map_err(|_| Refusal::NotResolved)?;
                found.collect()
            }
        };
        let allowed = self.rules.filter(addresses, plain).ok_or_else(refused)?;
        if allowed.is_empty() { Err(Refusal::NotResolved) } else { Ok(()) }
    }

    /// A request to a URL that [`read`] took, judged anew.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn request(&self, method: http::Method, url: &Url) -> Result<reqwest::RequestBuilder, Refusal> {
        self.judge(url).await?;
        let plain = url.scheme() == "http";
        let [by_tls, without] = &*self.clients;
        let client =
            if plain { without } else { by_tls }.get_or_init(|| client(Arc::clone(&self.rules), plain));
        match client {
            Ok(client) => Ok(client.request(method, url.clone())),
            Err(cause) => {
                tracing::error!(%cause, "Could not make a client for requests to the outside");
                Err(Refusal::Forbidden("the hub cannot send requests: its log says why".to_owned()))
            }
        }
    }
}

fn client(rules: Arc<Rules>, plain: bool) -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .user_agent(concat!("passerelle-hub/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT)
        .pool_max_idle_per_host(4)
        .pool_idle_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .dns_resolver(Arc::new(Judging { rules, plain }))
        .build()
        .map_err(|error| error.to_string())
}

/// The system's resolver, without the addresses that may not be reached.
struct Judging {
    rules: Arc<Rules>,
    plain: bool,
}

impl Resolve for Judging {
    fn resolve(&self, name: Name) -> Resolving {
        let (rules, plain) = (Arc::clone(&self.rules), self.plain);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed = rules.filter(found, plain).ok_or(Refusal::Forbidden(FORBIDDEN.to_owned()))?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allow: &[&str]) -> Rules {
        Rules { allow: allow.iter().map(|text| text.parse().unwrap()).collect(), ..Rules::default() }
    }

    #[test]
    fn only_files_below_a_listed_url_are_fetched() {
        let section = Section {
            fetch_urls: vec![
                "https://files.example.com/exports/".to_owned(),
                "http://h:8080/one.csv".to_owned(),
            ],
            ..Section::default()
        };
        assert_eq!(section.finding(), None);
        let rules = section.rules();
        for (url, may) in [
            ("https://files.example.com/exports/stock.csv", true),
            ("https://files.example.com:443/exports/2026/stock.csv?token=1", true),
            ("https://files.example.com/exports/../secret.csv", false),
            ("https://files.example.com/exports/%2e%2e/secret.csv", false),
            ("https://files.example.com/exports/%2e%2e%2fsecret.csv", false),
            ("https://files.example.com/exports/..%5Csecret.csv", false),
            ("https://files.example.com/exportsecret.csv", false),
            ("https://files.example.com/", false),
            ("http://files.example.com/exports/stock.csv", false),
            ("https://files.example.com:8443/exports/stock.csv", false),
            ("https://files.example.com.evil.example/exports/stock.csv", false),
            ("http://h:8080/one.csv", true),
            ("http://h:8080/one.csv.bak", false),
        ] {
            assert_eq!(rules.may_fetch(&read(url).unwrap()), may, "{url}");
        }
        for wrong in ["files.example.com", "https://u:p@files.example.com/", "https://files.example.com/?x=1"]
        {
            let section = Section { fetch_urls: vec![wrong.to_owned()], ..Section::default() };
            assert!(section.finding().unwrap().starts_with("outbound.fetch_urls: "), "{wrong}");
        }
    }

    #[test]
    fn a_network_contains_what_shares_its_prefix() {
        let of = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };
        assert!(of("10.1.0.0/16", "10.1.255.255") && !of("10.1.0.0/16", "10.2.0.0"));
        assert!(
            of("10.1.2.3", "10.1.2.3") && of("10.1.2.3", "::ffff:10.1.2.3") && !of("10.1.2.3", "10.1.2.4")
        );
        assert!(of("0.0.0.0/0", "192.168.1.1") && !of("0.0.0.0/0", "fd00::1"));
        assert!(of("fd00::/8", "fdff::1") && !of("fd00::/8", "fe00::1") && of("::/0", "::1"));
        for wrong in ["10.0.0.0/33", "10.0.0", "host", "", "10.0.0.0/", "::/129", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn only_public_addresses_by_tls_and_listed_private_ones_are_reached() {
        for (url, allow, taken) in [
            ("https://9.9.9.9/hook", &[][..], true),
            ("http://9.9.9.9/hook", &[], false),
            ("https://10.0.0.1/", &[], false),
            ("https://10.0.0.1/", &["10.0.0.0/8"], true),
            ("http://10.0.0.1/", &["10.0.0.0/8"], true),
            ("https://127.0.0.1:8443/", &[], false),
            ("https://localhost/", &[], false),
            ("http://localhost:80/", &["127.0.0.1"], true),
            ("https://[::1]/", &["127.0.0.1"], false),
            ("https://2130706433/", &[], false),
            ("https://0x7f.1/", &[], false),
            ("https://169.254.169.254/latest", &["169.254.0.0/16"], false),
            ("https://metadata.google.internal/", &["0.0.0.0/0"], false),
            ("https://[::ffff:10.0.0.1]/", &[], false),
            ("https://[64:ff9b::a00:1]/", &[], false),
            ("https://100.64.1.1/", &[], false),
            ("https://0.0.0.0/", &["0.0.0.0/0"], false),
        ] {
            let judged = Outbound::new(rules(allow)).judge(&read(url).unwrap()).await;
            assert_eq!(judged.is_ok(), taken, "{url} {allow:?}: {judged:?}");
        }
    }

    #[test]
    fn urls_that_carry_more_than_a_place_are_refused() {
        for url in [
            "ftp://example.com/",
            "file:///etc/passwd",
            "example.com",
            "https://user:secret@example.com/",
            "https://example.com/#part",
            "",
        ] {
            assert!(matches!(read(url), Err(Refusal::Malformed(_))), "{url}");
        }
        let long = format!("https://example.com/{}", "x".repeat(MAX_URL));
        assert!(read(&long).is_err());
    }

    /// A name that resolves to a forbidden address at the moment of connecting, whatever it was judged before.
    #[tokio::test]
    async fn the_resolver_judges_again() {
        let resolver = Judging { rules: Arc::default(), plain: false };
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_err());
        let resolver = Judging { rules: Arc::new(rules(&["127.0.0.0/8", "::1"])), plain: true };
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_ok());
    }
}
