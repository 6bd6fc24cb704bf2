//! HTTP Basic as the vendor's clients use it: on `app/…` the id and secret of an application, on `api/…` a personal key,
//! which here is an API key of the tenant.

use super::error::{Failure, Refused};
use crate::api::{
    App,
    auth::{MediationsRead, MediationsWrite, Scope, secret_name},
    guard::Source,
    problem::Problem,
};
use axum::extract::FromRequestParts;
use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, StatusCode, header, request::Parts};
use passerelle_protocol::{ApiCode, Name};
use std::marker::PhantomData;

/// Some clients write base64 without its padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// The longest credentials that are looked at.
const MAX_CREDENTIALS: usize = 1024;

/// What a personal key needs to read.
pub(super) type Read = MediationsRead;
/// What it needs to change something.
pub(super) type Write = MediationsWrite;

/// A caller of the vendor's API. An application may do everything with its tenant's mediations.
pub(super) struct Vendor<S> {
    pub(super) tenant: Name,
    scope: PhantomData<S>,
}

impl<S: Scope> FromRequestParts<App> for Vendor<S> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        let Ok(source) = Source::from_request_parts(parts, app).await;
        let for_servers = parts.uri.path().starts_with("/app/");
        let tenant = match for_servers {
            true => application(app, source, &parts.headers).await,
            false => person::<S>(app, source, &parts.headers).await,
        };
        Ok(Self { tenant: tenant.map_err(Refused)?, scope: PhantomData })
    }
}

async fn application(app: &App, source: Source, headers: &HeaderMap) -> Result<Name, Failure> {
    let Some((id, secret)) = basic(headers) else {
        return Err(Failure::unauthorized("send the application's id and secret by HTTP Basic"));
    };
    app.guard.admit(source, &id)?;
    app.store.authenticate_app(&id, &secret).await?.ok_or_else(|| {
        let unknown =
            Problem::new(ApiCode::Unauthorized, "the application or its secret is unknown, or revoked");
        app.guard.failed(source, Some(&id), unknown).into()
    })
}

async fn person<S: Scope>(app: &App, source: Source, headers: &HeaderMap) -> Result<Name, Failure> {
    let Some((user, password)) = basic(headers) else {
        return Err(Failure::unauthorized("send a personal key as the password of HTTP Basic"));
    };
    // Some clients have one field for credentials: the key may stand in the place of the user's name.
    let key = if password.is_empty() { &user } else { &password };
    let name = secret_name(key);
    app.guard.admit(source, name)?;
    let caller = app.store.authenticate(key).await?.ok_or_else(|| {
        let unknown = Problem::new(ApiCode::Unauthorized, "the personal key is unknown or revoked");
        Failure::from(app.guard.failed(source, Some(name), unknown))
    })?;
    if !caller.scopes.iter().any(|scope| scope == S::NAME) {
        let lacks = format!("this personal key lacks the scope {}; make one that has it", S::NAME);
        return Err(Failure::new(StatusCode::FORBIDDEN, lacks));
    }
    Ok(caller.tenant.clone())
}

/// User name and password of `Authorization: Basic …`, also in the spelling `basic:…`.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, rest) = text.split_at_checked(5)?;
    let encoded = rest.strip_prefix([' ', ':', '\t'])?.trim_start_matches([' ', ':', '\t']);
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > MAX_CREDENTIALS {
        return None;
    }
    let pair = String::from_utf8(LENIENT.decode(encoded).ok()?).ok()?;
    let (user, password) = pair.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_is_read_in_the_spellings_that_clients_send() {
        let of = |text: &str| basic(&HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())]));
        let expected = Some(("id".to_owned(), "se:cret".to_owned()));
        for text in [
            "Basic aWQ6c2U6Y3JldA==",
            "basic:aWQ6c2U6Y3JldA==",
            "BASIC  aWQ6c2U6Y3JldA",
            "Basic: aWQ6c2U6Y3JldA==",
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
        for text in [
            "Bearer aWQ6c2U6Y3JldA==",
            "Basic",
            "Basic ",
            "basicaWQ6c2U6Y3JldA==",
            "Basic !!",
            "Basic aWQ=",
            "",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
