//! One exchange with the application: the payload streams out, the answer streams back, nothing is held whole.

use super::{Http, answer, client::Shown, fault, params::Params, path};
use crate::{Call, Code, Failure, Input, Intent, Outcome, Output};
use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use reqwest::{Body, Response};
use serde_json::json;
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use url::Url;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// A payload up to this size goes out whole, a larger one in pieces of it.
const CHUNK: usize = 64 * 1024;
/// What is read of an answer that nobody wants, so that its connection can be used again.
const MAX_DISCARDED: usize = 64 * 1024;
/// Longer than a body that is there needs; a connection is not worth more.
const DISCARD: Duration = Duration::from_secs(1);

/// Performs the request and judges its answer.
pub(super) async fn run(
    http: &Http,
    call: &Call,
    params: &Params,
    input: Option<Input>,
    output: &mut Output,
) -> Result<Outcome, Failure> {
    let reading = params.is_reading();
    let (response, url) = send(http, call, params, input).await?;
    let status = response.status();
    let accepted = match (&params.expect, params.notify) {
        (_, true) => status.is_success(),
        (Some(expected), false) => expected.contains(&status.as_u16()),
        (None, false) => true,
    };
    if !accepted {
        let failure = answer::refusal(status, response.headers(), reading, params.notify);
        discard(call, response).await;
        return Err(failure.detail(format!("{} {url}", params.method)));
    }
    if params.notify {
        discard(call, response).await;
        return Ok(Outcome { result: json!({ "status": status.as_u16() }), synced: None });
    }
    let headers = answer::headers(response.headers(), &url, &http.base);
    // The request has had its effect: whatever goes wrong with its answer does not undo that.
    receive(http, call, params, response, output).await.map_err(|failure| after_effect(failure, reading))?;
    Ok(Outcome { result: json!({ "status": status.as_u16(), "headers": headers }), synced: None })
}

fn after_effect(failure: Failure, reading: bool) -> Failure {
    if reading { failure } else { failure.effect_unknown() }
}

/// Sends the request. A redirect is an answer like any other: what it leads to, no rule has allowed.
async fn send(
    http: &Http,
    call: &Call,
    params: &Params,
    input: Option<Input>,
) -> Result<(Response, Url), Failure> {
    let mut url = path::join(&http.base, &params.path)?;
    if !params.query.is_empty() {
        url.query_pairs_mut().extend_pairs(&params.query);
    }
    let shown = alive(call, http.credentials.shown()).await.map_err(|stopped| stopped.failure(true))??;
    let headers = headers(call, params, input.as_ref(), shown)?;
    let payload = prepare(call, params, input).await?;
    if !params.method.is_safe() || params.notify {
        pass_gate(call, params, payload.size).await?;
    }
    let response = once(http, call, params, url.clone(), headers, payload.body, &payload.fault).await?;
    Ok((response, url))
}

fn headers(
    call: &Call,
    params: &Params,
    input: Option<&Input>,
    shown: Option<Shown>,
) -> Result<HeaderMap, Failure> {
    let mut headers = params.headers.clone();
    if let Some(Shown { name, value, .. }) = shown {
        headers.insert(name, value);
    }
    if !params.is_reading() {
        let key = HeaderValue::from_str(&call.job.hyphenated().to_string())
            .map_err(|e| Failure::permanent(Code::Internal, "the job's id fits no header").detail(e))?;
        headers.insert(IDEMPOTENCY_KEY, key);
    }
    // A trace context that no header can carry is no reason to fail.
    if let Some(value) = call.traceparent.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
        headers.insert(TRACEPARENT, value);
    }
    if let Some(input) = input {
        if !headers.contains_key(CONTENT_TYPE) {
            let value = HeaderValue::from_str(input.media_type()).map_err(|_| {
                Failure::permanent(
                    Code::InvalidParams,
                    "payload.media_type contains a character that is not allowed",
                )
            })?;
            headers.insert(CONTENT_TYPE, value);
        }
        headers.insert(CONTENT_LENGTH, HeaderValue::from(input.size()));
    } else if matches!(params.method, Method::POST | Method::PUT | Method::PATCH) {
        // Servers that expect content want to hear that there is none (RFC 9110 §8.6).
        headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    }
    Ok(headers)
}

async fn pass_gate(call: &Call, params: &Params, size: Option<u64>) -> Result<(), Failure> {
    let intent = Intent {
        part: None,
        target: Some(params.path.clone()),
        size,
        sha256: None,
        state: json!({ "method": params.method.as_str() }),
    };
    tokio::select! {
        biased;
        () = call.cancel.cancelled() => Err(Failure::cancelled()),
        passed = call.gate.pass(&intent) => passed,
    }
}

/// Sends one request and waits for the head of its answer.
async fn once(
    http: &Http,
    call: &Call,
    params: &Params,
    url: Url,
    headers: HeaderMap,
    body: Body,
    fault: &Fault,
) -> Result<Response, Failure> {
    let reading = params.is_reading();
    let request = http.client.request(params.method.clone(), url).headers(headers).body(body).send();
    match alive(call, request).await {
        Ok(Ok(response)) => {
            call.progress.beat();
            Ok(response)
        }
        // The payload was at fault: its last piece was held back, so the target never got a whole request.
        Ok(Err(error)) => Err(fault.take().unwrap_or_else(|| fault::failure(error, reading))),
        Err(stopped) => Err(stopped.failure(reading)),
    }
}

/// Why waiting ended without an answer.
enum Stopped {
    Cancelled,
    Silent,
}

impl Stopped {
    fn failure(&self, reading: bool) -> Failure {
        let failure = match self {
            Self::Cancelled => Failure::cancelled(),
            Self::Silent => Failure::retry(Code::TargetTimeout, "the target did not answer in time"),
        };
        if reading {
            return failure;
        }
        match self {
            Self::Cancelled => {
                Failure { message: "cancelled while the target was working on it".to_owned(), ..failure }
                    .effect_unknown()
            }
            Self::Silent => failure.effect_unknown(),
        }
    }
}

/// Waits for `future` until the attempt is cancelled, or shows no sign of life for its timeout.
async fn alive<T>(call: &Call, future: impl Future<Output = T>) -> Result<T, Stopped> {
    let mut future = std::pin::pin!(future);
    loop {
        let beats = call.progress.beats();
        tokio::select! {
            biased;
            () = call.cancel.cancelled() => return Err(Stopped::Cancelled),
            done = &mut future => return Ok(done),
            () = tokio::time::sleep(call.timeout) => {
                if call.progress.beats() == beats {
                    return Err(Stopped::Silent);
                }
            }
        }
    }
}

/// Where the payload's stream leaves its failure: the HTTP library would only say that the body failed.
#[derive(Clone, Default)]
struct Fault(Arc<Mutex<Option<Failure>>>);

impl Fault {
    fn set(&self, failure: Failure) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    fn take(&self) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

struct Payload {
    body: Body,
    size: Option<u64>,
    fault: Fault,
}

/// Makes the request's body. A small payload is read and verified before anything is sent.
async fn prepare(call: &Call, params: &Params, input: Option<Input>) -> Result<Payload, Failure> {
    let fault = Fault::default();
    let Some(mut input) = input else {
        return Ok(Payload { body: Body::default(), size: None, fault });
    };
    if matches!(params.method, Method::GET | Method::HEAD) {
        let message = format!("a {} request takes no payload", params.method);
        return Err(Failure::permanent(Code::InvalidParams, message));
    }
    let size = input.size();
    call.progress.set_total(size);
    let first = alive(call, piece(&mut input)).await.map_err(|stopped| stopped.failure(true))??;
    let body = if first.len() < CHUNK {
        call.progress.add(size);
        Body::from(first)
    } else {
        Body::wrap_stream(pieces(input, first, call.clone(), fault.clone()))
    };
    Ok(Payload { body, size: Some(size), fault })
}

async fn piece(input: &mut Input) -> Result<Bytes, Failure> {
    let mut buffer = vec![0; CHUNK];
    let filled = input.fill(&mut buffer).await?;
    buffer.truncate(filled);
    Ok(Bytes::from(buffer))
}

/// The payload's pieces. Each is given out only when the next one has been read, the last one only when the payload
/// has proved to be the announced one: a target never holds a whole request with wrong content.
fn pieces(
    input: Input,
    first: Bytes,
    call: Call,
    fault: Fault,
) -> impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static {
    let state = Some((input, first));
    stream::unfold(state, move |state| {
        let (call, fault) = (call.clone(), fault.clone());
        async move {
            let (mut input, held) = state?;
            match piece(&mut input).await {
                Ok(next) => {
                    call.progress.add(held.len() as u64);
                    let rest = (!next.is_empty()).then_some((input, next));
                    Some((Ok(held), rest))
                }
                Err(failure) => {
                    fault.set(failure);
                    Some((Err(io::Error::other("the payload could not be read")), None))
                }
            }
        }
    })
}

/// Streams the answer's body into the output.
async fn receive(
    http: &Http,
    call: &Call,
    params: &Params,
    mut response: Response,
    output: &mut Output,
) -> Result<(), Failure> {
    let reading = params.is_reading();
    let bodiless = matches!(
        response.status(),
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
    );
    if params.method == Method::HEAD || bodiless {
        return Ok(());
    }
    let too_large = || {
        let message =
            format!("the response is larger than the resource's max_response of {} bytes", http.max_response);
        Failure::permanent(Code::TooLarge, message)
    };
    if response.content_length().is_some_and(|length| length > http.max_response) {
        return Err(too_large());
    }
    let media_type = media_type(response.headers());
    let mut size = 0;
    loop {
        let chunk = match alive(call, response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(fault::failure(error, reading)),
            Err(stopped) => return Err(stopped.failure(reading)),
        };
        size += chunk.len() as u64;
        if size > http.max_response {
            return Err(too_large());
        }
        output.write(&chunk).await?;
        call.progress.add(chunk.len() as u64);
    }
    output.finish(&media_type).await?;
    Ok(())
}

fn media_type(headers: &HeaderMap) -> String {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    given
        .filter(|text| !text.is_empty() && text.len() <= 256)
        .unwrap_or("application/octet-stream")
        .to_owned()
}

/// Reads a little of an answer that nobody wants. What fails here changes nothing.
async fn discard(call: &Call, mut response: Response) {
    let read = async {
        let mut read = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            read += chunk.len();
            if read > MAX_DISCARDED {
                break;
            }
        }
    };
    tokio::select! {
        () = call.cancel.cancelled() => {}
        () = tokio::time::sleep(DISCARD) => {}
        () = read => {}
    }
}

/// Asks the application's root whether it is there and takes the credentials.
pub(super) async fn probe(http: &Http, timeout: Duration) -> Result<(), Failure> {
    let look = async {
        let mut request = http.client.head(http.base.clone());
        if let Some(Shown { name, value, .. }) = http.credentials.shown().await? {
            request = request.header(name, value);
        }
        request.send().await.map_err(|error| fault::failure(error, true))
    };
    match tokio::time::timeout(timeout, look).await {
        Ok(Ok(response)) => match response.status().as_u16() {
            401 | 403 | 407 => Err(answer::refusal(response.status(), response.headers(), true, false)
                .detail(format!("HEAD {}", http.base))),
            // Whether there is something at the root is not known; that it answers is what counts.
            _ => Ok(()),
        },
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::retry(Code::TargetTimeout, "the target did not answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::media_type;
    use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};

    #[test]
    fn a_missing_or_overlong_media_type_becomes_octet_stream() {
        let mut headers = HeaderMap::new();
        assert_eq!(media_type(&headers), "application/octet-stream");
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8"));
        assert_eq!(media_type(&headers), "text/csv; charset=utf-8");
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(&"x".repeat(300)).unwrap());
        assert_eq!(media_type(&headers), "application/octet-stream");
    }
}
