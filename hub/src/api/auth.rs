//! Who calls: an API key in `Authorization: Bearer KEY`, and the scope that a call needs.

use super::{App, guard::Source, problem::Problem};
use crate::model::Caller;
use axum::extract::FromRequestParts;
use http::{HeaderMap, header, request::Parts};
use passerelle_protocol::{ApiCode, Name};
use std::{marker::PhantomData, sync::Arc};

/// A right that an API key can have.
pub trait Scope {
    /// Its name.
    const NAME: &str;
}

macro_rules! scopes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        $($(#[$doc])* pub struct $name;
        impl Scope for $name { const NAME: &str = $text; })*

        /// All scopes by name.
        pub const SCOPES: &[&str] = &[$($name::NAME,)*];
    };
}

scopes! {
    /// Reading jobs and their outputs.
    JobsRead = "jobs:read",
    /// Submitting, cancelling and retrying jobs.
    JobsWrite = "jobs:write",
    /// Reading sites and their resources.
    SitesRead = "sites:read",
    /// Reading agents.
    AgentsRead = "agents:read",
    /// Revoking agents.
    AgentsWrite = "agents:write",
    /// Uploading blobs, and reading them back.
    BlobsWrite = "blobs:write",
    /// Following the event stream, and reading the events of triggers.
    EventsRead = "events:read",
    /// Sending business events in.
    EventsWrite = "events:write",
    /// Reading mediation definitions and runs.
    MediationsRead = "mediations:read",
    /// Changing mediation definitions; starting, restarting and ignoring runs.
    MediationsWrite = "mediations:write",
    /// Reading subscriptions and their deliveries.
    SubscriptionsRead = "subscriptions:read",
    /// Subscribing, and having deliveries sent again.
    SubscriptionsWrite = "subscriptions:write",
    /// Reading the hub's metrics, which are of all tenants: never part of `all`.
    MetricsRead = "metrics:read",
}

/// The scopes that `all` stands for: everything inside one tenant.
pub fn tenant_scopes() -> impl Iterator<Item = &'static str> {
    SCOPES.iter().copied().filter(|scope| *scope != MetricsRead::NAME)
}

/// A caller that has the scope `S`. Put it first among a handler's arguments: nothing is read before.
pub struct Allowed<S> {
    /// The caller's tenant: all that it can see.
    pub tenant: Name,
    scope: PhantomData<S>,
}

impl<S: Scope> FromRequestParts<App> for Allowed<S> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Ok(source) = Source::from_request_parts(parts, app).await;
        let caller = authenticate(&parts.headers, source, app).await?;
        Ok(Self { tenant: allowed::<S>(&caller)?, scope: PhantomData })
    }
}

/// The tenant of a caller that has the scope.
///
/// # Errors
/// 403 `forbidden`.
pub(super) fn allowed<S: Scope>(caller: &Caller) -> Result<Name, Problem> {
    if caller.scopes.iter().any(|scope| scope == S::NAME) {
        return Ok(caller.tenant.clone());
    }
    let detail = format!("this API key lacks the scope {}; make one that has it", S::NAME);
    Err(Problem::new(ApiCode::Forbidden, detail))
}

/// Who holds the API key of a request.
///
/// # Errors
/// 401 `unauthorized`, 429 `rate_limited`.
pub(super) async fn authenticate(
    headers: &HeaderMap,
    source: Source,
    app: &App,
) -> Result<Arc<Caller>, Problem> {
    let key = bearer(headers)
        .ok_or_else(|| Problem::new(ApiCode::Unauthorized, "send an API key as Authorization: Bearer KEY"))?;
    let name = secret_name(key);
    app.guard.admit(source, name)?;
    app.store.authenticate(key).await.map_err(Problem::from)?.ok_or_else(|| {
        let unknown = Problem::new(ApiCode::Unauthorized, "the API key is unknown or revoked");
        app.guard.failed(source, Some(name), unknown)
    })
}

/// The part of `pk_<id>_<secret>` or `et_<id>_<secret>` that is no secret; of anything else nothing.
#[must_use]
pub fn secret_name(text: &str) -> &str {
    let mut parts = text.splitn(3, '_');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(id), Some(_)) => id,
        _ => "",
    }
}

/// The credentials of `Authorization: Bearer …`; the scheme's case does not matter (RFC 9110 §11.1).
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, credentials) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let credentials = credentials.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !credentials.is_empty()).then_some(credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_credential_is_taken() {
        let of = |text: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())]);
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer pk_1").as_deref(), Some("pk_1"));
        assert_eq!(of("bearer  pk_1 ").as_deref(), Some("pk_1"));
        for bad in ["pk_1", "Bearer", "Bearer ", "Basic pk_1", ""] {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn all_stands_for_every_scope_of_a_tenant() {
        assert!(tenant_scopes().all(|scope| scope != "metrics:read"));
        assert_eq!(tenant_scopes().count(), SCOPES.len() - 1);
    }
}
