//! One request to a token server, and what its answer means.

use super::{Ask, Fetched, Style};
use crate::{
    Code, Failure,
    address::{self, Blocked, NotResolved},
    apart::Client,
    causes::{chain, find},
    http::answer::retry_after,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
};
use jiff::Timestamp;
use reqwest::{Method, Response};
use serde_json::Value;
use std::time::Duration;
use url::form_urlencoded;
use zeroize::Zeroizing;

/// How long a token server may take for all of it.
const TIME: Duration = Duration::from_secs(30);
/// Tokens with many claims have some KiB.
const MAX_ANSWER: usize = 64 * 1024;
/// What a token may be at most, since it travels in a header.
const MAX_TOKEN: usize = 16 * 1024;

/// Asks for a token.
///
/// # Errors
/// `target_auth` (permanent) if the server refuses the client; else worth another try.
pub(super) async fn fetch(client: &Client, ask: &Ask) -> Result<Fetched, Failure> {
    let fetched = tokio::time::timeout(TIME, exchange(client, ask)).await.unwrap_or_else(|_| Err(too_slow()));
    match &fetched {
        Ok(Fetched { lifetime, .. }) => {
            tracing::debug!(
                lifetime_s = lifetime.map(|lifetime| lifetime.as_secs()),
                "Fetched an access token"
            );
        }
        Err(failure) => tracing::warn!(error = %failure, "No access token"),
    }
    fetched.map_err(|failure| {
        let detail = failure.detail.clone().unwrap_or_default();
        failure.detail(format!("POST {}: {detail}", ask.url))
    })
}

async fn exchange(client: &Client, ask: &Ask) -> Result<Fetched, Failure> {
    let request = client
        .request(Method::POST, ask.url.clone())
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    let request = match ask.style {
        Style::Basic => request.header(AUTHORIZATION, ask.basic()?),
        Style::Body => request,
    };
    let response = client.send(request.body(ask.form())).await.map_err(unanswered)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = read(response).await?;
    judge(status, &headers, &body)
}

impl Ask {
    /// The form; it holds secrets, and the HTTP library needs it as an ordinary string.
    fn form(&self) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(&self.form);
        if let Some((username, password)) = &self.user {
            form.append_pair("username", username).append_pair("password", password.expose());
        }
        if self.style == Style::Body {
            form.append_pair("client_id", &self.client_id)
                .append_pair("client_secret", self.client_secret.expose());
        }
        form.finish()
    }

    /// Both parts are form-encoded before they are joined (RFC 6749 §2.3.1).
    fn basic(&self) -> Result<HeaderValue, Failure> {
        let encode =
            |text: &str| Zeroizing::new(form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>());
        let pair =
            Zeroizing::new(format!("{}:{}", *encode(&self.client_id), *encode(self.client_secret.expose())));
        let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair.as_bytes())))
            .map_err(|e| Failure::permanent(Code::Internal, "the client's name fits no header").detail(e))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

async fn read(mut response: Response) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(unanswered)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(no_token(format!("an answer over {MAX_ANSWER} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The errors of RFC 6749 §5.2 and what an operator should look at. Any other word of the server is not passed on.
const REFUSALS: &[(&str, &str)] = &[
    ("invalid_client", "check client_id, client_secret and style"),
    ("unauthorized_client", "allow this client the grant at the token server"),
    ("invalid_grant", "check the user's name and password"),
    ("unsupported_grant_type", "the token server does not know this grant"),
    ("invalid_scope", "check scope"),
    ("invalid_target", "check audience"),
    ("invalid_request", "check scope, audience and style"),
    ("access_denied", "check what the token server allows this client"),
];

fn judge(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Fetched, Failure> {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let field = |name: &str| parsed.as_ref().and_then(|body| body.get(name));
    let error = field("error").and_then(Value::as_str);
    let known = REFUSALS.iter().find(|(name, _)| Some(*name) == error);
    let says = |what: &str| format!("the resource's token server {what} (status {})", status.as_u16());
    let busy = matches!(error, Some("temporarily_unavailable" | "slow_down"));
    match (status.as_u16(), known) {
        (_, None) if busy => Err(Failure::retry(Code::TargetThrottled, says("asks to come back later"))
            .retry_after(retry_after(headers, Timestamp::now()))),
        (425 | 429 | 503, _) => Err(Failure::retry(Code::TargetThrottled, says("asks to come back later"))
            .retry_after(retry_after(headers, Timestamp::now()))),
        (500..=599, _) => Err(Failure::retry(Code::TargetRefused, says("reports a fault of its own"))),
        (_, Some((name, look))) => {
            let message = format!("{}; {look}", says(&format!("refuses the client with {name}")));
            Err(Failure::permanent(Code::TargetAuth, message))
        }
        (200..=299, None) if field("access_token").is_some() => token(field),
        (200..=299, None) => Err(no_token("no access_token in the JSON".to_owned())),
        (300..=399, None) => {
            let message =
                says("answers with a redirect, which is not followed; set token_url to where it leads");
            Err(Failure::permanent(Code::TargetAuth, message))
        }
        (404 | 405 | 410, None) => {
            Err(Failure::permanent(Code::TargetAuth, says("knows no such address; check token_url")))
        }
        (408, None) => Err(Failure::retry(Code::TargetTimeout, says("reports a timeout"))),
        (_, None) => {
            let message = says("refuses the client");
            Err(Failure::permanent(Code::TargetAuth, format!("{message}; check client_id and client_secret")))
        }
    }
}

fn token<'a>(field: impl Fn(&str) -> Option<&'a Value>) -> Result<Fetched, Failure> {
    if let Some(kind) = field("token_type").and_then(Value::as_str)
        && !kind.eq_ignore_ascii_case("bearer")
    {
        let message = "the resource's token server gives a token of a type other than Bearer";
        return Err(Failure::permanent(Code::TargetUnsupported, message));
    }
    let text = field("access_token").and_then(Value::as_str).unwrap_or_default();
    let fits =
        !text.is_empty() && text.len() <= MAX_TOKEN && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits {
        return Err(no_token("an access_token that fits no header".to_owned()));
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {text}")).map_err(|e| no_token(e.to_string()))?;
    header.set_sensitive(true);
    // Some servers write the number as text.
    let seconds = field("expires_in").and_then(|value| match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    });
    let lifetime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.clamp(0.0, 1e9)).ok());
    Ok(Fetched { header, lifetime })
}

fn no_token(detail: String) -> Failure {
    Failure::retry(Code::TargetProtocol, "the resource's token server does not answer with a token")
        .detail(detail)
}

fn too_slow() -> Failure {
    Failure::retry(Code::TargetTimeout, "the resource's token server did not answer in time")
}

fn unanswered(error: reqwest::Error) -> Failure {
    let error = error.without_url();
    let detail = chain(&error);
    if find::<Blocked>(&error).is_some() {
        return Failure::denied(Code::PolicyDenied, address::BLOCKED).detail(detail);
    }
    let failure = if !error.is_connect() {
        if error.is_timeout() { too_slow() } else { no_token(String::new()) }
    } else if find::<NotResolved>(&error).is_some() {
        let message =
            "the name in the resource's token_url does not resolve; check the name and the agent's DNS";
        Failure::retry(Code::TargetUnreachable, message)
    } else if find::<rustls::Error>(&error).is_some() {
        let message = "no TLS connection to the resource's token server; check its certificate, ca_file and client_cert";
        Failure::retry(Code::TargetUnreachable, message)
    } else {
        let message = "no connection to the resource's token server; check that it runs, and token_url";
        Failure::retry(Code::TargetUnreachable, message)
    };
    failure.detail(detail)
}

#[cfg(test)]
mod tests {
    use super::judge;
    use crate::{Code, Verdict};
    use http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER};
    use std::time::Duration;

    fn check(status: u16, body: &str) -> Result<(String, Option<u64>), (Verdict, Code, String)> {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("7"))]);
        match judge(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes()) {
            Ok(fetched) => {
                assert!(fetched.header.is_sensitive());
                let seconds = fetched.lifetime.map(|lifetime| lifetime.as_secs());
                Ok((fetched.header.to_str().unwrap().to_owned(), seconds))
            }
            Err(failure) => {
                let hint = (failure.code == Code::TargetThrottled).then_some(Duration::from_secs(7));
                assert_eq!(failure.retry_after, hint);
                Err((failure.verdict, failure.code, failure.message))
            }
        }
    }

    #[test]
    fn tokens_are_read_as_servers_write_them() {
        for (body, seconds) in [
            (r#"{"access_token":"a.b-c","token_type":"Bearer","expires_in":3600}"#, Some(3600)),
            (r#"{"access_token":"a.b-c","token_type":"bearer","expires_in":"299"}"#, Some(299)),
            (r#"{"access_token":"a.b-c","expires_in":-5}"#, Some(0)),
            (r#"{"access_token":"a.b-c","expires_in":1e300}"#, Some(1_000_000_000)),
            (r#"{"access_token":"a.b-c","scope":"x","expires_in":null}"#, None),
            (r#"{"access_token":"a.b-c"}"#, None),
        ] {
            assert_eq!(check(200, body).unwrap(), ("Bearer a.b-c".to_owned(), seconds), "{body}");
        }
    }

    #[test]
    fn refusals_are_final_and_named_and_trouble_is_not() {
        use {Code as C, Verdict as V};
        for (status, body, verdict, code, says) in [
            (401, r#"{"error":"invalid_client"}"#, V::Permanent, C::TargetAuth, "client_secret"),
            (
                400,
                r#"{"error":"invalid_scope","error_description":"secret host"}"#,
                V::Permanent,
                C::TargetAuth,
                "check scope",
            ),
            (400, r#"{"error":"invalid_grant"}"#, V::Permanent, C::TargetAuth, "invalid_grant"),
            (200, r#"{"error":"invalid_client"}"#, V::Permanent, C::TargetAuth, "invalid_client"),
            (
                400,
                r#"{"error":"their own words"}"#,
                V::Permanent,
                C::TargetAuth,
                "refuses the client (status 400)",
            ),
            (401, "", V::Permanent, C::TargetAuth, "401"),
            (403, "<html>", V::Permanent, C::TargetAuth, "403"),
            (404, "", V::Permanent, C::TargetAuth, "token_url"),
            (302, "", V::Permanent, C::TargetAuth, "redirect"),
            (429, r#"{"error":"invalid_client"}"#, V::Retry, C::TargetThrottled, "later"),
            (503, "", V::Retry, C::TargetThrottled, "later"),
            (500, r#"{"error":"invalid_request"}"#, V::Retry, C::TargetRefused, "fault"),
            (200, "<html>", V::Retry, C::TargetProtocol, "token"),
            (200, "{}", V::Retry, C::TargetProtocol, "token"),
            (200, r#"{"access_token":"a b"}"#, V::Retry, C::TargetProtocol, "token"),
            (200, r#"{"access_token":"a\r\nb"}"#, V::Retry, C::TargetProtocol, "token"),
            (200, r#"{"access_token":5}"#, V::Retry, C::TargetProtocol, "token"),
            (200, r#"{"access_token":"x","token_type":"mac"}"#, V::Permanent, C::TargetUnsupported, "Bearer"),
        ] {
            let (got, of, message) = check(status, body).unwrap_err();
            assert_eq!((got, of), (verdict, code), "{status} {body}: {message}");
            assert!(message.contains(says), "{status} {body}: {message}");
            assert!(!message.contains("their own") && !message.contains("secret host"), "{message}");
        }
    }
}
