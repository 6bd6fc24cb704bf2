//! The requests of a dialect: to the resource's url alone, one at a time per call, bounded, followed nowhere.
//!
//! - A path is built of segments ([`request`]); a target's own link is followed only below the resource's url
//!   ([`Exchange::link`]).
//! - A write whose answer is lost is [`Problem::Ambiguous`]; a read that is lost is [`Problem::Unavailable`].
//! - Credentials that were refused twice are not tried again for a quarter of an hour ([`credentials`]).

pub(super) mod answer;
pub(super) mod credentials;
pub(super) mod request;

use super::error::{CrmError, Problem};
use crate::{
    Call, Code, Failure, Patience, Progress,
    address::{self, Blocked},
    apart::Client,
    causes, connecting,
    hiding::Secrets,
    http::{
        answer::http_date,
        fault,
        oauth::{Token, Tokens},
    },
};
use answer::Answer;
use bytes::{Bytes, BytesMut};
use credentials::Credentials;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use request::{Request, Target, astray, leads_astray, leads_out};
use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use url::Url;

/// How long to wait, whom to tell of progress, and what ends it.
#[derive(Debug, Clone)]
pub(crate) struct Talk {
    /// For each request.
    pub(crate) timeout: Duration,
    /// Looked at before each request; a write that was begun is finished.
    pub(crate) cancel: CancellationToken,
    /// Beats with each answer.
    pub(crate) progress: Progress,
    /// W3C trace context to pass on.
    pub(crate) traceparent: Option<String>,
}

impl From<&Call> for Talk {
    fn from(call: &Call) -> Self {
        Self {
            timeout: call.timeout,
            cancel: call.cancel.clone(),
            progress: call.progress.clone(),
            traceparent: call.traceparent.clone(),
        }
    }
}

impl From<&Patience> for Talk {
    fn from(patience: &Patience) -> Self {
        Self {
            timeout: patience.timeout,
            cancel: patience.cancel.clone(),
            progress: Progress::default(),
            traceparent: None,
        }
    }
}

impl Talk {
    /// For a probe, which nobody cancels.
    pub(crate) fn within(timeout: Duration) -> Self {
        Self { timeout, cancel: CancellationToken::new(), progress: Progress::default(), traceparent: None }
    }
}

/// The way to the target: one per resource.
pub(crate) struct Exchange {
    /// Its path ends with `/`.
    pub(crate) base: Url,
    /// The client: no redirects, checked addresses, the resource's CA and proxy.
    pub(crate) client: Client,
    /// The header that authenticates each request, for the kinds of `auth` that are no more than that.
    pub(crate) credentials: Option<(HeaderName, HeaderValue)>,
    /// The access tokens that stand in its place.
    pub(crate) tokens: Option<Tokens>,
    /// Whether they may be tried; dialects that log in put their log-in through it as well.
    pub(crate) trust: Credentials,
    /// What no failure may repeat of the target's words.
    pub(crate) secrets: Secrets,
    /// The largest answer.
    pub(crate) max_response: usize,
    /// How far the target's clock is ahead of ours, in milliseconds, by the `Date` of its last answer.
    pub(crate) ahead_ms: AtomicI64,
}

impl Exchange {
    /// The target's clock.
    pub(crate) fn target_now(&self) -> Timestamp {
        let ahead = jiff::SignedDuration::from_millis(self.ahead_ms.load(Ordering::Relaxed));
        Timestamp::now().checked_add(ahead).unwrap_or(Timestamp::now())
    }

    /// A target's own link (of a next page, say), if it leads below the resource's url. Relative ones start from the url.
    ///
    /// # Errors
    /// [`Problem::Protocol`] if it leads elsewhere.
    pub(crate) fn link(&self, link: &str) -> Result<Url, CrmError> {
        let url = self.below(link)?;
        match url.path().strip_prefix(self.base.path()) {
            Some(path) if !leads_out(path) => Ok(url),
            Some(_) | None => Err(elsewhere()),
        }
    }

    /// The address of what is below the resource's url.
    fn below(&self, link: &str) -> Result<Url, CrmError> {
        let url = self.base.join(link).map_err(|_| elsewhere())?;
        let below = url.origin() == self.base.origin()
            && url.path().starts_with(self.base.path())
            && !url.path().contains("%2e")
            && !url.path().contains("%2E")
            && url.username().is_empty()
            && url.password().is_none();
        if below { Ok(url) } else { Err(elsewhere()) }
    }

    /// A link as it may be kept in a cursor: what follows the resource's url.
    pub(crate) fn relative(&self, url: &Url) -> Option<String> {
        url.as_str().strip_prefix(self.base.as_str()).map(str::to_owned)
    }

    /// Sends a request and reads the whole answer, whatever its status; a 401 counts against the credentials
    /// unless the request is bare.
    ///
    /// # Errors
    /// [`Problem::Auth`] (also for a 401, and while the credentials rest), [`Problem::Unavailable`],
    /// [`Problem::Ambiguous`], [`Problem::Protocol`] (an answer that is too large), or one of ours.
    pub(crate) async fn send(&self, talk: &Talk, request: Request) -> Result<Answer, CrmError> {
        if request.bare || (self.credentials.is_none() && self.tokens.is_none()) {
            return self.once(talk, request, None).await;
        }
        let refused = async {
            let answer = match &self.tokens {
                Some(tokens) => self.with_token(talk, request, tokens).await?,
                None => self.once(talk, request, self.credentials.clone()).await?,
            };
            if answer.status == StatusCode::UNAUTHORIZED {
                return Err(CrmError::new(Problem::Auth).detail("status 401"));
            }
            Ok(answer)
        };
        self.trust.try_with(refused).await
    }

    /// A token that is refused though it looked good is replaced once: a 401 says that nothing was done.
    async fn with_token(&self, talk: &Talk, request: Request, tokens: &Tokens) -> Result<Answer, CrmError> {
        let header = |token: &Token| Some((header::AUTHORIZATION, token.header.clone()));
        let token = tokens.current().await.map_err(no_token)?;
        let answer = self.once(talk, request.clone(), header(&token)).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let Some(newer) = tokens.instead_of(&token).await.map_err(no_token)? else { return Ok(answer) };
        let answer = self.once(talk, request, header(&newer)).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            tokens.refused_again(&newer);
        }
        Ok(answer)
    }

    async fn once(
        &self,
        talk: &Talk,
        request: Request,
        credentials: Option<(HeaderName, HeaderValue)>,
    ) -> Result<Answer, CrmError> {
        if talk.cancel.is_cancelled() {
            return Err(CrmError::new(Problem::Ours(Code::Cancelled)));
        }
        let writes = request.writes;
        let built = self.build(talk, request, credentials)?;
        let exchange = async {
            let sending = connecting::within(talk.timeout, self.client.execute(built));
            let response = sending.await.map_err(|error| lost(error, writes))?;
            self.read(talk, response, writes).await
        };
        let limited = tokio::time::timeout(talk.timeout, exchange);
        let answer = if writes {
            limited.await
        } else {
            tokio::select! {
                biased;
                () = talk.cancel.cancelled() => return Err(CrmError::new(Problem::Ours(Code::Cancelled))),
                answer = limited => answer,
            }
        };
        match answer {
            Ok(answer) => {
                talk.progress.beat();
                answer
            }
            Err(_) if writes => Err(CrmError::new(Problem::Ambiguous).reason("no answer in time")),
            Err(_) => {
                Err(CrmError::new(Problem::Ours(Code::TargetTimeout))
                    .reason("the target did not answer in time"))
            }
        }
    }

    fn build(
        &self,
        talk: &Talk,
        request: Request,
        credentials: Option<(HeaderName, HeaderValue)>,
    ) -> Result<reqwest::Request, CrmError> {
        let mut url = match request.url {
            Target::Link(url) => url,
            Target::Path(path) => {
                // Parts may also have become dots together: a template of two arguments side by side.
                let steps = path.split(['?', '#']).next().unwrap_or_default();
                if steps.split(['/', '\\']).any(leads_astray) || path.contains(char::is_control) {
                    return Err(astray());
                }
                self.below(path.trim_start_matches('/'))?
            }
        };
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        let mut built = reqwest::Request::new(request.method, url);
        let headers = built.headers_mut();
        headers.extend(request.headers);
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        if let Some((name, value)) = credentials {
            headers.insert(name, value);
        }
        // Also what a dialect made itself, the key of a session, say.
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            self.secrets.note(value);
        }
        // A trace context that no header can carry is no reason to fail.
        if let Some(value) = talk.traceparent.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(HeaderName::from_static("traceparent"), value);
        }
        if let Some(body) = request.body {
            *built.body_mut() = Some(body.into());
        } else if request.writes {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        }
        Ok(built)
    }

    async fn read(
        &self,
        talk: &Talk,
        mut response: reqwest::Response,
        writes: bool,
    ) -> Result<Answer, CrmError> {
        let (status, headers) = (response.status(), response.headers().clone());
        self.note_clock(&headers);
        let mut answer = Answer { status, headers, body: Bytes::new(), writes };
        let too_large = |answer: &Answer| {
            answer.nonsense(&format!("an answer is larger than max_response of {} bytes", self.max_response))
        };
        if response.content_length().is_some_and(|length| length > self.max_response as u64) {
            return Err(too_large(&answer));
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| lost(error, writes))? {
            if body.len() + chunk.len() > self.max_response {
                return Err(too_large(&answer));
            }
            body.extend_from_slice(&chunk);
            talk.progress.beat();
        }
        answer.body = body.freeze();
        Ok(answer)
    }

    fn note_clock(&self, headers: &HeaderMap) {
        let date = headers.get(header::DATE).and_then(|value| value.to_str().ok()).and_then(http_date);
        if let Some(date) = date {
            let ahead = date.as_millisecond() - Timestamp::now().as_millisecond();
            // The header has whole seconds, and the way takes its time.
            self.ahead_ms.store(if ahead.abs() <= 2000 { 0 } else { ahead }, Ordering::Relaxed);
        }
    }
}

fn elsewhere() -> CrmError {
    CrmError::new(Problem::Protocol).reason("a link of the target leads away from the resource's url")
}

/// There is no token: nothing was asked of the target.
fn no_token(failure: Failure) -> CrmError {
    let problem = match failure.code {
        Code::TargetAuth => Problem::Auth,
        Code::TargetThrottled => Problem::Throttled { retry_after: failure.retry_after },
        Code::PolicyDenied => Problem::Ours(Code::PolicyDenied),
        _ => Problem::Unavailable,
    };
    CrmError { reason: Some(failure.message), ..problem.into() }.detail(failure.detail.unwrap_or_default())
}

/// What an error of the HTTP library means.
fn lost(error: reqwest::Error, writes: bool) -> CrmError {
    let error = error.without_url();
    let detail = causes::chain(&error);
    if causes::find::<Blocked>(&error).is_some() {
        return CrmError {
            reason: Some(address::BLOCKED.to_owned()),
            ..Problem::Ours(Code::PolicyDenied).into()
        }
        .detail(detail);
    }
    let problem = match (error.is_connect(), writes) {
        // It answered, and would do so again.
        (false, false) if fault::is_head_too_large(&detail) => Problem::Protocol,
        (true, _) | (false, false) => Problem::Unavailable,
        (false, true) => Problem::Ambiguous,
    };
    let reason = if error.is_connect() {
        fault::unreachable(&error, error.is_timeout())
    } else {
        fault::broken(&detail).to_owned()
    };
    CrmError { reason: Some(reason), ..problem.into() }.detail(detail)
}
