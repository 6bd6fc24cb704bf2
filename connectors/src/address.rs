//! Addresses that no resource may reach, whatever its configuration says: link-local ones, the metadata services of clouds,
//! and those that are no single host (unspecified, multicast, broadcast). Loopback and private addresses are for the
//! operator to name.
//!
//! Names are resolved here, the addresses are checked, and the checked ones are those connected to, so a name that
//! changes between check and use (DNS rebinding) gains nothing. A literal address in a URL never comes to a resolver and
//! is checked with the settings.

pub(crate) use passerelle_config::address::{is_blocked, is_blocked_host};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use url::{Host, Url};

/// Reads an `http://` or `https://` URL of the configuration.
///
/// # Errors
/// What is wrong with it, for the finding at its key.
pub(crate) fn host_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .map_err(|e| format!("not a URL ({e}); expected the like of https://orders.intra:8443/api/"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("expected a URL with https:// or http://, found {}://", url.scheme()));
    }
    match url.host() {
        Some(host) if is_blocked_host(&host) => Err(BLOCKED_HERE.to_owned()),
        Some(_) | None => Ok(url),
    }
}

/// The same for a host that no URL parser has looked at.
pub(crate) fn is_blocked_text(host: &str) -> bool {
    match Host::parse(host) {
        Ok(Host::Domain(name)) => is_blocked_host(&Host::Domain(&name)),
        Ok(Host::Ipv4(v4)) => is_blocked_host(&Host::Ipv4(v4)),
        Ok(Host::Ipv6(v6)) => is_blocked_host(&Host::Ipv6(v6)),
        // What is no name shows when it is resolved.
        Err(_) => false,
    }
}

/// What the operator is told.
pub(crate) const BLOCKED_HERE: &str =
    "link-local, cloud metadata, multicast and unspecified addresses are always blocked; name another host";

/// The public sentence about it.
pub(crate) const BLOCKED: &str = "the resource's host has an address that is always blocked: link-local, cloud metadata, multicast or unspecified";

/// The name resolves only to forbidden addresses.
#[derive(Debug, thiserror::Error)]
#[error("{name} resolves to {address}, a link-local, cloud metadata, multicast or unspecified address")]
pub(crate) struct Blocked {
    name: String,
    address: IpAddr,
}

/// The name does not resolve.
#[derive(Debug, thiserror::Error)]
#[error("{name} does not resolve: {cause}")]
pub(crate) struct NotResolved {
    name: String,
    cause: String,
}

/// The system's resolver, without the forbidden addresses.
pub(crate) struct CheckedResolver;

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map(Vec::from_iter);
            let found = found.map_err(|e| NotResolved { name: name.clone(), cause: e.to_string() })?;
            let allowed = allowed(&name, &found)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The addresses of a name that may be connected to.
///
/// # Errors
/// [`Blocked`] or [`NotResolved`].
pub(crate) fn allowed(
    name: &str,
    found: &[SocketAddr],
) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
    let (blocked, allowed): (Vec<SocketAddr>, Vec<SocketAddr>) =
        found.iter().partition(|address| is_blocked(address.ip()));
    match (allowed.as_slice(), blocked.first()) {
        ([_, ..], _) => Ok(allowed),
        ([], Some(address)) => Err(Blocked { name: name.to_owned(), address: address.ip() }.into()),
        ([], None) => Err(NotResolved { name: name.to_owned(), cause: "no address".to_owned() }.into()),
    }
}

/// The resolver for a client.
pub(crate) fn resolver() -> Arc<CheckedResolver> {
    Arc::new(CheckedResolver)
}

#[cfg(test)]
mod tests {
    use super::{Blocked, NotResolved, allowed};
    use std::net::SocketAddr;

    #[test]
    fn a_name_keeps_its_allowed_addresses_only() {
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let both = [address("169.254.169.254:0"), address("10.0.0.1:0")];
        assert_eq!(allowed("app", &both).unwrap(), [address("10.0.0.1:0")]);
        assert!(allowed("app", &both[..1]).unwrap_err().is::<Blocked>());
        assert!(allowed("app", &[]).unwrap_err().is::<NotResolved>());
    }
}
