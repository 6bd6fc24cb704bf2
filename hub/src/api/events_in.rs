//! `/v1/events/in`: business events that applications send in the vendor's envelope.
//!
//! A sender proves itself with HTTP Basic (an application's id and secret), with an API key, or with a signature by Standard
//! Webhooks. What an event starts is committed with the event, and only then it is answered with 200.

use super::{
    App, List,
    auth::{self, Allowed, EventsRead, EventsWrite},
    body::{self, JsonBytes, StrictQuery},
    guard::Source,
    id, page_size,
    problem::{Problem, ProblemDocument},
    signature::Signed,
    submission,
};
use crate::{
    clock,
    mediations::trigger::MAX_DATA,
    model::{BusinessEvent, BusinessFilter, NewBusinessEvent, TakenEvent},
};
use axum::{
    Json,
    extract::{FromRequest as _, FromRequestParts as _, Path, Request, State},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, header};
use passerelle_protocol::{ApiCode, Name, Sha256};
use serde::Deserialize;
use serde_json::Value;

/// The longest kind or category of an event, in characters.
const MAX_WORD: usize = 100;

/// The vendor's envelope. Further members are kept.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "the document describes it by this type; the body is kept as it came")]
pub struct Envelope {
    /// What happened, as `CommandeValidee`: 1 to 100 characters.
    event_kind: String,
    /// Its category, as `e/commerce`: at most 100 characters.
    event_category: Option<String>,
    /// What is known of it.
    #[schema(value_type = Value)]
    data: Option<Value>,
}

/// Who sends.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SendQuery {
    /// The id of the sender whose secret signed (`passerelle-hub admin sender create`); only where it is signed.
    sender: Option<String>,
}

/// Takes a business event in. An event that is sent again is known by `webhook-id` or `Idempotency-Key`; where neither is sent,
/// the same body within 24 hours is the same event.
#[utoipa::path(
    post, path = "/v1/events/in", tag = "events", request_body = Envelope,
    params(
        SendQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "At most 255 printable characters"),
        ("webhook-id" = Option<String>, Header, description = "The same, by Standard Webhooks"),
    ),
    responses(
        (status = 200, body = TakenEvent, description = "Stored, now or before, with all that it starts"),
        (status = 400, body = ProblemDocument, description = "`bad_request`, naming the member"),
        (status = 413, body = ProblemDocument, description = "`too_large`"),
        (status = 422, body = ProblemDocument, description = "`idempotency_mismatch`: another event has this id"),
        (status = 507, body = ProblemDocument, description = "`quota`"),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn send(
    State(app): State<App>,
    StrictQuery(query): StrictQuery<SendQuery>,
    request: Request,
) -> Result<Json<TakenEvent>, Problem> {
    let (mut parts, content) = request.into_parts();
    let Ok(source) = Source::from_request_parts(&mut parts, &app).await;
    let headers = parts.headers.clone();
    let signed = Signed::read(&headers, clock::unix());
    // Nothing of a body is read for who has wrong credentials; a signature is of the body.
    let known = match &signed {
        None => Some(sender(&app, source, &headers).await?),
        Some(_) => None,
    };
    let request = Request::from_parts(parts, content);
    let JsonBytes(bytes) = JsonBytes::from_request(request, &app).await?;
    let (tenant, signed_id) = match (known, signed) {
        (Some(tenant), _) => (tenant, None),
        (None, signed) => {
            let name = query.sender.as_deref().unwrap_or_default();
            let signed =
                signed.unwrap_or(Err("sign it")).map_err(|why| Problem::new(ApiCode::Unauthorized, why))?;
            app.guard.admit(source, name)?;
            let found = app.store.sender(name).await?;
            match found {
                Some((tenant, secret)) if signed.verifies(&secret, &bytes) => (tenant, Some(signed.id)),
                _ => {
                    let why = "no signature was made with the secret of the sender that ?sender= names";
                    let unknown = Problem::new(ApiCode::Unauthorized, why);
                    return Err(app.guard.failed(source, Some(name), unknown));
                }
            }
        }
    };
    let key = match signed_id {
        Some(id) => Some(id),
        None => match webhook_id(&headers)? {
            Some(id) => Some(id),
            None => submission::idempotency_key(&headers)?,
        },
    };
    let envelope: Value = body::parse(&bytes)?;
    let kind = word(&envelope, "EventKind")?.filter(|kind| !kind.is_empty()).ok_or_else(|| {
        Problem::bad_request("EventKind: missing; name what happened, as \"CommandeValidee\"")
    })?;
    let category = word(&envelope, "EventCategory")?.unwrap_or_default();
    // Written anew it may be longer than it came.
    let length = envelope.to_string().len().max(bytes.len());
    if length > MAX_DATA {
        let detail = format!("body: an event has at most {MAX_DATA} bytes, found {length}");
        return Err(Problem::new(ApiCode::TooLarge, detail));
    }
    let digest = Sha256::of(&bytes);
    let event = NewBusinessEvent { tenant, key, digest, kind, category, envelope };
    Ok(Json(app.store.take_business_event(event).await?))
}

/// The tenant of who sends, by HTTP Basic or an API key.
async fn sender(app: &App, source: Source, headers: &HeaderMap) -> Result<Name, Problem> {
    let Some((id, secret)) = basic(headers) else {
        let caller = auth::authenticate(headers, source, app).await?;
        return auth::allowed::<EventsWrite>(&caller);
    };
    app.guard.admit(source, &id)?;
    app.store.authenticate_app(&id, &secret).await?.ok_or_else(|| {
        let unknown =
            Problem::new(ApiCode::Unauthorized, "the application is unknown, revoked, or has another secret");
        app.guard.failed(source, Some(&id), unknown)
    })
}

/// User name and password of HTTP Basic; some senders write a colon after the word.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = text.split_at_checked(5)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let credentials = credentials.trim_start_matches([':', ' ']).trim_end();
    let text = STANDARD.decode(credentials).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    // What cannot be read is nobody's.
    let text = text.unwrap_or_default();
    let (id, secret) = text.split_once(':').unwrap_or((&text, ""));
    Some((id.to_owned(), secret.to_owned()))
}

fn webhook_id(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(id) = headers.get("webhook-id") else { return Ok(None) };
    match id.to_str() {
        Ok(id) if (1..=255).contains(&id.len()) => Ok(Some(id.to_owned())),
        _ => Err(Problem::bad_request("webhook-id: one id of 1 to 255 printable ASCII characters")),
    }
}

/// A short text of the envelope.
fn word(envelope: &Value, key: &str) -> Result<Option<String>, Problem> {
    if !envelope.is_object() {
        return Err(Problem::bad_request(
            "body: an object with EventKind, EventCategory and Data is expected",
        ));
    }
    match envelope.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text))
            if text.chars().count() <= MAX_WORD && !text.chars().any(char::is_control) =>
        {
            Ok(Some(text.clone()))
        }
        Some(_) => {
            Err(Problem::bad_request(format!("{key}: expected a text of at most {MAX_WORD} characters")))
        }
    }
}

/// Which events to list.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only of this kind: `EventKind`.
    kind: Option<String>,
    /// At most so many, 1 to 500; default 50.
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists business events, newest first.
#[utoipa::path(
    get, path = "/v1/events/in", tag = "events", params(ListQuery),
    responses((status = 200, body = List<BusinessEvent>), (status = "default", body = ProblemDocument))
)]
pub async fn list(
    caller: Allowed<EventsRead>,
    State(app): State<App>,
    StrictQuery(query): StrictQuery<ListQuery>,
) -> Result<Json<List<BusinessEvent>>, Problem> {
    let filter = BusinessFilter {
        tenant: caller.tenant,
        kind: query.kind,
        limit: page_size(query.limit)?,
        cursor: query.cursor,
    };
    let page = app.store.list_business_events(filter).await?;
    Ok(Json(List { items: page.items, next_cursor: page.next_cursor }))
}

/// One business event.
#[utoipa::path(
    get, path = "/v1/events/in/{id}", tag = "events", params(("id" = String, Path)),
    responses((status = 200, body = BusinessEvent), (status = "default", body = ProblemDocument))
)]
pub async fn show(
    caller: Allowed<EventsRead>,
    State(app): State<App>,
    Path(event): Path<String>,
) -> Result<Json<BusinessEvent>, Problem> {
    Ok(Json(app.store.business_event(caller.tenant, id("event", &event)?).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_is_read_in_the_spellings_of_real_senders() {
        let of = |text: &str| basic(&HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())]));
        let right = Some(("app".to_owned(), "s:cret".to_owned()));
        for text in ["Basic YXBwOnM6Y3JldA==", "basic:YXBwOnM6Y3JldA==", "BASIC : YXBwOnM6Y3JldA== "] {
            assert_eq!(of(text), right, "{text}");
        }
        assert_eq!(of("Bearer YXBwOnM6Y3JldA=="), None);
        assert_eq!(of("Basic ???"), Some((String::new(), String::new())));
        assert_eq!(basic(&HeaderMap::new()), None);
    }
}
