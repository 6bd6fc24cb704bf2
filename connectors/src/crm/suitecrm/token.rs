//! `SuiteCRM`'s access tokens: OAuth 2 client credentials, for an hour each.

use super::SuiteCrm;
use crate::{
    BuildError, Code, Failure,
    crm::{
        error::{CrmError, Problem},
        exchange::{Answer, Exchange, Request, Talk},
        settings::{Auth, Settings},
    },
    http::oauth::{OauthSettings, RawOauth, Token, Tokens},
};
use http::header::AUTHORIZATION;
use passerelle_config::SecretRef;
use std::path::Path;

/// The settings of the token, from those of the resource.
pub(super) fn settings(
    settings: &Settings,
    client_id: &str,
    client_secret: &SecretRef,
    wrong: &mut dyn FnMut(&str, String),
) -> Option<OauthSettings> {
    let token_url = settings.url.join("access_token").ok()?;
    let raw = RawOauth {
        token_url: Some(token_url.to_string()),
        client_id: Some(client_id.to_owned()),
        client_secret: Some(client_secret.clone()),
        style: Some("body".to_owned()),
        ..RawOauth::default()
    };
    raw.check(wrong)
}

/// Reads the secret.
pub(super) fn build(resource: &Settings, base: &Path, exchange: &Exchange) -> Result<Tokens, BuildError> {
    let failed =
        |key: &str, why: &str| BuildError(format!("resources.{}.auth.{key}: {why}", resource.resource));
    let Some(Auth::Basic { username, password }) = &resource.auth else {
        return Err(failed("kind", "expected \"basic\""));
    };
    let checked = settings(resource, username, password, &mut |_, _| {});
    let checked = checked.ok_or_else(|| failed("username", "is no id of an OAuth2 client"))?;
    Tokens::build(&checked, exchange.client.clone(), base)
        .map_err(|(key, why)| failed(if key == "client_secret" { "password" } else { key }, &why))
}

impl SuiteCrm {
    /// Sends a request with a token; a token that is refused is replaced once.
    pub(super) async fn send(&self, talk: &Talk, request: Request) -> Result<Answer, CrmError> {
        let token = self.tokens.current().await.map_err(no_token)?;
        let answer = self.once(talk, request.clone(), &token).await?;
        if answer.status.as_u16() != 401 {
            return Ok(answer);
        }
        // A 401 says that nothing was done.
        let refused = || CrmError::new(Problem::Auth).detail("status 401 with a token");
        let newer = self.tokens.instead_of(&token).await.map_err(no_token)?.ok_or_else(refused)?;
        let answer = self.once(talk, request, &newer).await?;
        if answer.status.as_u16() == 401 {
            self.tokens.refused_again(&newer);
            return Err(refused());
        }
        Ok(answer)
    }

    async fn once(&self, talk: &Talk, request: Request, token: &Token) -> Result<Answer, CrmError> {
        let value = token.header.to_str().unwrap_or_default();
        self.exchange.send(talk, request.bare().header(AUTHORIZATION, value)).await
    }
}

/// Why there is no token.
fn no_token(failure: Failure) -> CrmError {
    let problem = match failure.code {
        Code::TargetAuth => Problem::Auth,
        Code::TargetThrottled => Problem::Throttled { retry_after: failure.retry_after },
        Code::TargetUnreachable | Code::TargetTimeout => Problem::Unavailable,
        other => Problem::Ours(other),
    };
    CrmError { problem, reason: Some(failure.message), detail: failure.detail }
}
