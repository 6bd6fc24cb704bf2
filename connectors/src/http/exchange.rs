//! One exchange with the application: the payload streams out, the answer streams back, nothing is held whole.

use super::{
    Http, answer,
    client::Shown,
    content::{Content, Sent},
    fault,
    oauth::Token,
    params::Params,
    path,
    settings::{Timeouts, Version},
    unpack::Unpacker,
    wait::Waits,
};
use crate::{Call, Code, Failure, Input, Intent, Outcome, Output, Verdict, hiding::Secrets};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RANGE},
};
use jiff::Timestamp;
use reqwest::Response;
use serde_json::json;
use std::time::Duration;
use url::Url;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What is read of an answer that nobody wants, so that its connection can be used again.
const MAX_DISCARDED: usize = 64 * 1024;
/// Longer than a body that is there needs; a connection is not worth more.
const DISCARD: Duration = Duration::from_secs(1);

/// Performs the request and judges its answer.
pub(super) async fn run(
    http: &Http,
    call: &Call,
    mut params: Params,
    input: Option<Input>,
    output: &mut Output,
) -> Result<Outcome, Failure> {
    let reading = params.is_reading();
    let mut content = content(call, &mut params, input).await?;
    let url = url(http, &params)?;
    let shown = before(call, http.credentials.shown()).await??;
    if !params.method.is_safe() || params.notify {
        pass_gate(call, &params, content.size()).await?;
    }
    let waits = Waits::new(call, &http.timeouts, reading);
    let answered = send(http, &waits, &params, &url, &mut content, shown).await?;
    let Answered { mut response, unpacks } = answered;
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
        return Ok(Outcome { result: json!({ "status": status.as_u16() }), synced: None, leaves: false });
    }
    let unpacker = if unpacks { Unpacker::of(status, response.headers(), http.max_response) } else { None };
    if unpacker.is_some() && params.method != Method::HEAD {
        Unpacker::correct(response.headers_mut());
    }
    let headers = answer::headers(response.headers(), &url, &http.base, &http.own_headers, &http.secrets);
    // The request has had its effect: whatever goes wrong with its answer does not undo that.
    receive(http, &waits, &params, response, unpacker, output)
        .await
        .map_err(|failure| if reading { failure } else { failure.effect_unknown() })?;
    Ok(Outcome {
        result: json!({ "status": status.as_u16(), "headers": headers }),
        synced: None,
        leaves: false,
    })
}

/// Waits for something that comes before the exchange.
async fn before<T>(call: &Call, future: impl Future<Output = T>) -> Result<T, Failure> {
    let none = Timeouts { connect: Duration::ZERO, first_byte: None, whole: None };
    Waits::new(call, &none, true).before(future).await
}

/// The request's body: made of the parameters, or the job's payload.
async fn content(call: &Call, params: &mut Params, input: Option<Input>) -> Result<Content, Failure> {
    if input.is_some() && !params.takes_payload {
        let message = "payload: this request takes none; its body is made of the parameters, or it has none";
        return Err(Failure::permanent(Code::InvalidParams, message));
    }
    if input.is_none() && params.takes_payload && params.request.is_some() {
        let message = "payload: missing; this request sends the job's payload";
        return Err(Failure::permanent(Code::InvalidParams, message));
    }
    match params.made.take() {
        Some((text, media_type)) => Ok(Content::made(text, &media_type)),
        None => {
            let none = Timeouts { connect: Duration::ZERO, first_byte: None, whole: None };
            Content::of(&Waits::new(call, &none, true), &params.method, input).await
        }
    }
}

fn url(http: &Http, params: &Params) -> Result<Url, Failure> {
    let mut url = path::join(&http.base, &params.path)?;
    if !params.query.is_empty() {
        url.query_pairs_mut().extend_pairs(&params.query);
    }
    Ok(url)
}

/// The head of an answer.
struct Answered {
    response: Response,
    /// Whether a body in gzip is to be unpacked here: not where the job itself said what it wants.
    unpacks: bool,
}

/// Sends the request; once more with another token if the application does not take the first one. A redirect is an
/// answer like any other: what it leads to, no rule has allowed.
async fn send(
    http: &Http,
    waits: &Waits<'_>,
    params: &Params,
    url: &Url,
    content: &mut Content,
    mut shown: Option<Shown>,
) -> Result<Answered, Failure> {
    let mut replaced = false;
    loop {
        let token = shown.as_ref().and_then(|shown| shown.token.clone());
        if let Some(token) = &token {
            http.secrets.note(&token.header);
        }
        let mut headers = headers(waits.call, params, content, shown)?;
        let unpacks = !headers.contains_key(ACCEPT_ENCODING) && !headers.contains_key(RANGE);
        if unpacks && !params.notify {
            let wanted = if http.compression { "gzip" } else { "identity" };
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(wanted));
        }
        if let Some(signer) = &http.signer {
            let id = waits.call.job.hyphenated().to_string();
            headers.extend(signer.sign(&id, Timestamp::now().as_second(), content, waits).await?);
        }
        let response = once(http, waits, params, url.clone(), headers, content).await?;
        let Some(token) = token.filter(|_| response.status() == StatusCode::UNAUTHORIZED) else {
            return Ok(Answered { response, unpacks });
        };
        if replaced {
            http.credentials.refused_again(&token);
            return Ok(Answered { response, unpacks });
        }
        match other_token(http, waits, &token).await? {
            None => return Ok(Answered { response, unpacks }),
            Some(_) if !content.is_left() => {
                let message =
                    "the target did not take the access token; there is another one for the next attempt";
                return Err(Failure::retry(Code::TargetAuth, message));
            }
            Some(other) => {
                // A 401 is the application's word that it did nothing.
                discard(waits.call, response).await;
                (shown, replaced) = (Some(other), true);
            }
        }
    }
}

async fn other_token(http: &Http, waits: &Waits<'_>, refused: &Token) -> Result<Option<Shown>, Failure> {
    waits.before(http.credentials.instead_of(refused)).await?
}

fn headers(
    call: &Call,
    params: &Params,
    content: &Content,
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
    if let Some(media_type) = content.media_type()? {
        headers.entry(CONTENT_TYPE).or_insert(media_type);
    }
    if let Some(size) = content.size() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
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
    waits: &Waits<'_>,
    params: &Params,
    url: Url,
    headers: HeaderMap,
    content: &mut Content,
) -> Result<Response, Failure> {
    let Sent { body, fault } = content.body(waits).await?;
    let request = http.client.request(params.method.clone(), url).headers(headers).body(body);
    match waits.head(http.client.send(request)).await? {
        Ok(response) => {
            waits.call.progress.beat();
            Ok(response)
        }
        // The payload was at fault: its last piece was held back, so the target never got a whole request.
        Err(error) => Err(fault.take().unwrap_or_else(|| unanswered(http, error, params.is_reading()))),
    }
}

/// No head of an answer came. A target that does not speak the version that it is spoken to in just hangs up.
fn unanswered(http: &Http, error: reqwest::Error, reading: bool) -> Failure {
    let failure = fault::failure(error, reading);
    match (http.version, failure.code, failure.verdict) {
        (Version::Two, Code::TargetProtocol, Verdict::Retry) => {
            let message = "the connection ended without a whole HTTP/2 answer; where the target speaks HTTP/1.1 alone, take \
                           http_version = \"2\" away";
            Failure { message: message.to_owned(), ..failure }
        }
        _ => failure,
    }
}

/// Streams the answer's body into the output.
async fn receive(
    http: &Http,
    waits: &Waits<'_>,
    params: &Params,
    mut response: Response,
    mut unpacker: Option<Unpacker>,
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
    let media_type = media_type(response.headers(), &http.secrets);
    let progress = &waits.call.progress;
    let mut size = 0;
    while let Some(chunk) =
        waits.more(response.chunk()).await?.map_err(|error| fault::failure(error, reading))?
    {
        size += chunk.len() as u64;
        if size > http.max_response {
            return Err(too_large());
        }
        match &mut unpacker {
            None => output.write(&chunk).await?,
            Some(unpacker) => {
                for slice in Unpacker::slices(&chunk) {
                    output.write(&unpacker.unpack(slice)?).await?;
                    progress.beat();
                }
            }
        }
        progress.add(chunk.len() as u64);
    }
    if let Some(unpacker) = &mut unpacker {
        output.write(&unpacker.finish()?).await?;
    }
    output.finish(&media_type).await?;
    Ok(())
}

fn media_type(headers: &HeaderMap, secrets: &Secrets) -> String {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    given
        .filter(|text| !text.is_empty() && text.len() <= 256 && secrets.hide(text) == *text)
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
    look(http, timeout).await.map(drop)
}

/// The same; gives the status of its answer.
pub(super) async fn look(http: &Http, timeout: Duration) -> Result<StatusCode, Failure> {
    let look = async {
        let mut request = http.client.request(Method::HEAD, http.base.clone());
        if let Some(Shown { name, value, .. }) = http.credentials.shown().await? {
            request = request.header(name, value);
        }
        http.client.send(request).await.map_err(|error| unanswered(http, error, true))
    };
    match tokio::time::timeout(timeout, look).await {
        Ok(Ok(response)) => match response.status().as_u16() {
            401 | 403 | 407 => Err(answer::refusal(response.status(), response.headers(), true, false)
                .detail(format!("HEAD {}", http.base))),
            // Whether there is something at the root is not known; that it answers is what counts.
            _ => Ok(response.status()),
        },
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::retry(Code::TargetTimeout, "the target did not answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use crate::hiding::Secrets;
    use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};

    fn media_type(headers: &HeaderMap) -> String {
        super::media_type(headers, &Secrets::default())
    }

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
