//! Request bodies: JSON that is read strictly and bounded, and streams that must keep flowing.

use super::problem::Problem;
use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Query, Request},
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, StatusCode, header, request::Parts};
use passerelle_protocol::ApiCode;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::{fmt, io, marker::PhantomData, time::Duration};

/// The longest JSON body.
pub const MAX_JSON_BODY: usize = 1024 * 1024;
/// A body from which nothing came for this long is given up.
pub const STALLED: Duration = Duration::from_secs(30);

/// A JSON body has to be whole by then, however steadily it drips.
const WHOLE: Duration = Duration::from_secs(60);

/// The raw JSON body: the right content type, not longer than [`MAX_JSON_BODY`].
pub struct JsonBytes(pub Bytes);

impl<S: Sync> FromRequest<S> for JsonBytes {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        json_type(request.headers())?;
        bounded(request, MAX_JSON_BODY).await.map(Self)
    }
}

/// A JSON body; an empty one is the default.
pub struct OptionalJson<T>(pub T);

impl<S: Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let typed = json_type(request.headers());
        let bytes = bounded(request, MAX_JSON_BODY).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        typed?;
        parse(&bytes).map(Self)
    }
}

/// The query, read strictly: unknown or mistyped keys are refused where `T` refuses them.
pub struct StrictQuery<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for StrictQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri).map(|Query(query)| Self(query)).map_err(|refused| {
            let text = refused.body_text();
            let reason = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            Problem::bad_request(format!("query: {reason}"))
        })
    }
}

/// Reads JSON; the message names the field.
///
/// # Errors
/// 400 `bad_request`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // Field by field in their order, which nobody can read: the library would take that too.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::bad_request("body: an object is expected, not an array"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        Problem::bad_request(match path.as_str() {
            "." | "?" => format!("body: {reason}"),
            path => format!("{path}: {reason}"),
        })
    })?;
    json.end()
        .map_err(|_| Problem::bad_request("body: one JSON object is expected, more follows after it"))?;
    Ok(value)
}

/// Reads a field that is an object or nothing; an array of its fields' values is refused.
///
/// # Errors
/// If it is neither.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    struct Object<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }
    }

    from.deserialize_any(Object(PhantomData))
}

/// A body as a stream that ends with `TimedOut` when nothing comes for [`STALLED`].
pub fn steady(body: Body) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
    steady_within(body, STALLED)
}

fn steady_within(
    body: Body,
    stalled: Duration,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
    Box::pin(futures_util::stream::unfold(Some(body.into_data_stream()), move |stream| async move {
        let mut stream = stream?;
        match tokio::time::timeout(stalled, stream.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(stream))),
            Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
            Err(_) => Some((Err(io::ErrorKind::TimedOut.into()), None)),
        }
    }))
}

/// The announced length of a body, if it has one.
#[must_use]
pub fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) async fn bounded(request: Request, limit: usize) -> Result<Bytes, Problem> {
    bounded_within(request, limit, WHOLE).await
}

async fn bounded_within(request: Request, limit: usize, within: Duration) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("body: at most {limit} bytes; send a larger payload as a blob (POST /v1/blobs)");
        Problem::new(ApiCode::TooLarge, detail)
    };
    if announced_length(request.headers()).is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    if let Some(coding) =
        request.headers().get(header::CONTENT_ENCODING).filter(|coding| *coding != "identity")
    {
        let detail = format!(
            "Content-Encoding: {} is not taken; send the body as it is",
            coding.to_str().unwrap_or("this")
        );
        return Err(Problem::bad_request(detail).status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    let stream = steady(request.into_body());
    match tokio::time::timeout(within, collect(stream, limit)).await {
        Ok(Ok(Some(whole))) => Ok(whole),
        Ok(Ok(None)) => Err(too_large()),
        Ok(Err(error)) => Err(cut(&error)),
        Err(_) => {
            let detail = format!("body: it was not here within {} s", within.as_secs());
            Err(Problem::bad_request(detail).status(StatusCode::REQUEST_TIMEOUT))
        }
    }
}

/// The whole stream, unless it is longer than `limit`.
async fn collect(
    mut stream: impl Stream<Item = io::Result<Bytes>> + Unpin,
    limit: usize,
) -> io::Result<Option<Bytes>> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if whole.len() + chunk.len() > limit {
            return Ok(None);
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(Some(whole.freeze()))
}

/// The answer to a body that broke off.
#[must_use]
pub fn cut(error: &io::Error) -> Problem {
    if error.kind() == io::ErrorKind::TimedOut {
        let detail = format!("body: nothing came for {} s", STALLED.as_secs());
        Problem::bad_request(detail).status(StatusCode::REQUEST_TIMEOUT)
    } else {
        Problem::bad_request("body: it broke off before its end")
    }
}

fn json_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    // The last one is what `curl -d` and many libraries say of whatever they send: it is read as JSON all the same.
    let known = ["application/json", "text/json", "application/x-www-form-urlencoded"];
    if known.contains(&essence.as_str()) || essence.ends_with("+json") {
        return Ok(());
    }
    Err(Problem::bad_request("content-type: send JSON as application/json")
        .status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[expect(dead_code, reason = "only its type matters")]
        limits: Option<Inner>,
    }
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only its type matters")]
        size: u32,
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (body, expected) in [
            (r#"{"limits":{"size":"x"}}"#, "limits.size: invalid type: string \"x\""),
            (r#"{"limits":{"sise":1}}"#, "limits.sise: unknown field `sise`, expected `size`"),
            (r#"{"other":1}"#, "other: unknown field `other`"),
            (r#"{"limits":{}}"#, "limits: missing field `size`"),
            ("[]", "body: an object is expected"),
            (" [null]", "body: an object is expected"),
            ("", "body: EOF"),
            ("{} {}", "body: one JSON object"),
        ] {
            let problem = parse::<Sample>(body.as_bytes()).unwrap_err();
            assert!(problem.detail().starts_with(expected), "{body}: {}", problem.detail());
        }
    }

    #[tokio::test]
    async fn a_body_that_drips_for_ever_is_given_up() {
        let drops = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b" ")), ()))
        });
        let request = Request::new(Body::from_stream(drops));
        let problem = bounded_within(request, 1 << 20, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(problem.status_code(), StatusCode::REQUEST_TIMEOUT);
    }

    #[tokio::test]
    async fn a_body_that_stalls_is_given_up() {
        let body = Body::from_stream(futures_util::stream::pending::<io::Result<Bytes>>());
        let error = steady_within(body, Duration::from_millis(5)).next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
