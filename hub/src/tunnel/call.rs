//! Calls: an agent is chosen, the envelope signed, the answer waited for. Nothing is stored.
//!
//! A call that an agent did not take certainly did nothing, and may be tried at another one. Once it was sent and not
//! declined it is never tried again: without an answer its effect is not known.

use super::{
    Tunnel,
    registry::{CallPlace, Command, NoAgent, QueueKey},
    report::check_report,
    session::calls::{Answered, CallOrder},
};
use crate::{
    clock,
    model::BlobInfo,
    store::{Content, Error},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use passerelle_protocol::{
    AgentId, Call, CallDeclined, Code, CommitMode, Effect, Envelope, JobId, Name, Outcome, OutputPayload,
    PayloadDigest, PayloadSource, Report, Sha256, Ticket,
    limits::{CLOCK_SKEW, MAX_INLINE_PAYLOAD},
};
use serde_json::Value;
use std::{
    future::Future,
    pin::pin,
    time::{Duration, Instant},
};
use tokio::{sync::oneshot, time::sleep_until};

/// How long an envelope of ours lives: long enough for a slow line, since it is signed when it is sent.
const LIFE: i64 = 30;
/// How long after a call's end its answer is waited for: a connector may take a while to stop.
const ANSWER: Duration = Duration::from_secs(4);
/// When an agent that has not answered is given up, after that.
const GIVE_UP: Duration = Duration::from_secs(30);

/// A call to be made.
#[derive(Debug, Clone)]
pub struct NewCall {
    /// Its id.
    pub id: JobId,
    /// Whose resource, where.
    pub tenant: Name,
    /// The site.
    pub site: Name,
    /// The resource.
    pub resource: Name,
    /// The operation.
    pub operation: Name,
    /// Its parameters.
    pub params: Value,
    /// Its payload.
    pub payload: Option<CallPayload>,
    /// How long it may take in all.
    pub timeout_s: u32,
    /// How long it may wait for its start.
    pub deadline_s: u32,
    /// What the client signed, and only these agents may act if it says so.
    pub signed: Option<(String, Option<Vec<AgentId>>)>,
    /// W3C trace context of the client's request.
    pub traceparent: Option<String>,
}

/// A call's payload.
#[derive(Debug, Clone)]
pub struct CallPayload {
    /// What it is.
    pub info: BlobInfo,
    /// Where it is.
    pub content: Content,
    /// Its media type.
    pub media_type: String,
}

/// What a call gave back.
#[derive(Debug)]
pub struct CallDone {
    /// The operation's result.
    pub result: Value,
    /// The output payload.
    pub output: Option<(OutputPayload, CallOutput)>,
}

/// Where the output of a call is.
#[derive(Debug)]
pub enum CallOutput {
    /// Here.
    Inline(Bytes),
    /// To be fetched for some minutes.
    Blob(passerelle_protocol::BlobId),
}

/// Why a call gave nothing back.
#[derive(Debug)]
pub enum CallFailed {
    /// With a code of jobs.
    Code {
        /// The code.
        code: Code,
        /// A public sentence.
        message: String,
        /// What it did.
        effect: Effect,
        /// When to come back.
        retry_after: Option<Duration>,
    },
    /// The site's agents know nothing of calls.
    NotMade,
    /// The store says no.
    Store(Error),
}

impl From<Error> for CallFailed {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

fn failed(
    code: Code,
    message: impl Into<String>,
    effect: Effect,
    retry_after: Option<Duration>,
) -> CallFailed {
    CallFailed::Code { code, message: message.into(), effect, retry_after }
}

impl From<CallDeclined> for CallFailed {
    fn from(declined: CallDeclined) -> Self {
        // What was taken before may have happened then.
        let effect = if declined.code == Code::Replayed { Effect::Unknown } else { Effect::NotApplied };
        let after = declined.retry_after_ms.map(Duration::from_millis);
        failed(declined.code, declined.message, effect, after)
    }
}

/// Gives a place back that was not used: also when whoever called goes away before.
struct Reserved<'a> {
    tunnel: &'a Tunnel,
    place: CallPlace,
    call: JobId,
    unused: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.unused {
            let registry = &self.tunnel.store.shared().registry;
            registry.end_call(self.place.agent, self.place.session, self.call, None);
        }
    }
}

/// Asks the agent to stop, unless the answer came: also when whoever called goes away.
struct Pending<'a> {
    tunnel: &'a Tunnel,
    place: CallPlace,
    call: JobId,
    answered: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.tunnel.transfers.forget(self.call);
        if !self.answered {
            let registry = &self.tunnel.store.shared().registry;
            registry.send_to(self.place.agent, self.place.session, Command::CancelCall(self.call));
        }
    }
}

/// Looks at the jobs that wait for a resource once a call has left the line before them, with a place or without.
struct Leaving<'a> {
    tunnel: &'a Tunnel,
    key: QueueKey,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let store = &self.tunnel.store;
        if store.shared().registry.has_backlog(&self.key)
            && let Some(place) = store.try_place()
        {
            let key = self.key.clone();
            let look = move |tx: &mut crate::store::writer::Tx<'_>| {
                tx.effects.queues.push(key);
                Ok(())
            };
            // The store is closing: then nothing is dispatched any more.
            drop(store.order(place, true, look, drop));
        }
    }
}

impl Tunnel {
    /// Makes a call. Dropped, it is cancelled.
    ///
    /// # Errors
    /// See [`CallFailed`].
    pub async fn call(&self, call: NewCall) -> Result<CallDone, CallFailed> {
        let _under_way = self.calls.token();
        let ends = Instant::now() + Duration::from_secs(call.timeout_s.into());
        let mut declined: Option<(Vec<AgentId>, CallDeclined)> = None;
        loop {
            let tried = declined.as_ref().map(|(tried, _)| tried.as_slice()).unwrap_or_default();
            let place = match (self.place_for(&call, tried, ends).await, &mut declined) {
                (Ok(place), _) => place,
                // Nobody else is left: what the last one said counts.
                (Err(_), Some((_, last))) => return Err(last.clone().into()),
                (Err(error), None) => return Err(error),
            };
            match self.try_at(&call, place, ends).await? {
                Tried::Done(done) => return Ok(done),
                Tried::Declined(last) => {
                    let mut tried = declined.take().map(|(tried, _)| tried).unwrap_or_default();
                    tried.push(place.agent);
                    declined = Some((tried, last));
                }
            }
        }
    }

    /// Waits for a place at an agent that was not tried yet.
    async fn place_for(
        &self,
        call: &NewCall,
        tried: &[AgentId],
        ends: Instant,
    ) -> Result<CallPlace, CallFailed> {
        let registry = &self.store.shared().registry;
        let key = QueueKey {
            tenant: call.tenant.clone(),
            site: call.site.clone(),
            resource: call.resource.clone(),
        };
        let listed = call.signed.as_ref().and_then(|(_, agents)| agents.as_ref());
        let may = |agent| {
            !tried.contains(&agent) && listed.is_none_or(|agents: &Vec<AgentId>| agents.contains(&agent))
        };
        let starts_by = ends.min(Instant::now() + Duration::from_secs(call.deadline_s.into()));
        let mut leaving = None;
        // Left before the others are looked at.
        let mut line = None;
        loop {
            let turn =
                line.as_ref().map(|line: &super::registry::InLine<'_>| std::sync::Arc::clone(&line.turn));
            let mut told = pin!(turn.as_ref().map(|turn| turn.notified()));
            if let Some(told) = told.as_mut().as_pin_mut() {
                // From here on a turn is not missed.
                told.enable();
            }
            let none = match registry.begin_call(&key, &call.operation, call.id, line.is_some(), may) {
                Ok(place) => return Ok(place),
                Err(none) => none,
            };
            let NoAgent::Wait(at) = none else { return Err(self.nobody(call, none).await) };
            if line.is_none() {
                leaving.get_or_insert_with(|| Leaving { tunnel: self, key: key.clone() });
                line = registry.stand_in_line(&key, listed.is_some() || !tried.is_empty());
                if line.is_none() {
                    return Err(self.nobody(call, NoAgent::Busy).await);
                }
                continue;
            }
            let until = at.map_or(starts_by, |at| at.min(starts_by));
            tokio::select! {
                () = maybe(told.as_mut().as_pin_mut()) => {}
                () = sleep_until(until.into()) => {}
            }
            if Instant::now() >= starts_by {
                let message = format!("resource {} had no place for the call in time", call.resource);
                let after = Some(Duration::from_secs(1));
                return Err(failed(Code::Deadline, message, Effect::NotApplied, after));
            }
        }
    }

    /// Why there is no agent, in words.
    async fn nobody(&self, call: &NewCall, none: NoAgent) -> CallFailed {
        let NewCall { tenant, site, resource, .. } = call;
        let second = Some(Duration::from_secs(1));
        match none {
            NoAgent::Offline => match self.store.site_exists(tenant.clone(), site.clone()).await {
                Ok(true) => {
                    let message =
                        format!("no agent of site {site} that offers resource {resource} is connected");
                    failed(Code::AgentOffline, message, Effect::NotApplied, Some(Duration::from_secs(5)))
                }
                Ok(false) => Error::SiteUnknown(site.clone()).into(),
                Err(error) => error.into(),
            },
            NoAgent::NotMade => CallFailed::NotMade,
            NoAgent::Paused(pause) => {
                let left = pause.until.map(|until| until.duration_since(clock::now()));
                let left = left.and_then(|left| Duration::try_from(left).ok());
                let message = match (&pause.until, &pause.reason) {
                    (Some(until), Some(why)) => format!("resource {resource} is paused until {until}: {why}"),
                    (Some(until), None) => format!("resource {resource} is paused until {until}"),
                    (None, Some(why)) => format!("resource {resource} is paused by its operator: {why}"),
                    (None, None) => format!("resource {resource} is paused by its operator"),
                };
                failed(Code::Paused, message, Effect::NotApplied, left)
            }
            NoAgent::Broken(left) => {
                let message =
                    format!("resource {resource} failed too often in a row: its circuit breaker is open");
                failed(Code::BreakerOpen, message, Effect::NotApplied, Some(left))
            }
            NoAgent::Busy | NoAgent::Wait(_) => {
                let message = format!("the agents of site {site} take no more calls at the moment");
                failed(Code::Busy, message, Effect::NotApplied, second)
            }
        }
    }

    async fn try_at(&self, call: &NewCall, place: CallPlace, ends: Instant) -> Result<Tried, CallFailed> {
        let registry = &self.store.shared().registry;
        let (answer, answered) = oneshot::channel();
        let mut reserved = Reserved { tunnel: self, place, call: call.id, unused: true };
        let message = self.message(call, place, ends).await?;
        if !self.transfers.begin(call.id, place.agent, call.payload.as_ref(), &call.tenant) {
            let message = "a call with this envelope is under way".to_owned();
            return Err(failed(Code::Replayed, message, Effect::Unknown, None));
        }
        reserved.unused = false;
        let mut pending = Pending { tunnel: self, place, call: call.id, answered: false };
        let order = CallOrder { call: message, until: ends + ANSWER + GIVE_UP, answer };
        registry.send_to(place.agent, place.session, Command::Call(Box::new(order)));
        let lost = |message: &str| failed(Code::AgentLost, message, Effect::Unknown, None);
        let answer = tokio::select! {
            answer = answered => answer,
            () = sleep_until((ends + ANSWER).into()) => {
                let message = "the agent did not answer in time; whether the call took effect is not known";
                return Err(failed(Code::Deadline, message, Effect::Unknown, None));
            }
        };
        pending.answered = true;
        match answer {
            Err(_) => Err(lost(
                "the connection to the agent was lost during the call; whether it took effect is not known",
            )),
            Ok(Answered::Declined(declined)) if elsewhere(declined.code) => Ok(Tried::Declined(declined)),
            Ok(Answered::Declined(declined)) => Err(declined.into()),
            Ok(Answered::Ended(result)) => {
                let report = Report {
                    job: call.id,
                    attempt: 1,
                    outcome: result.outcome,
                    started_at: result.started_at,
                    finished_at: result.finished_at,
                };
                let checked = check_report(report);
                self.done(call, checked.report.outcome, checked.data).map(Tried::Done)
            }
        }
    }

    fn done(&self, call: &NewCall, outcome: Outcome, data: Option<Bytes>) -> Result<CallDone, CallFailed> {
        match outcome {
            Outcome::Failed(failure) => {
                let after = failure.retry_after_ms.map(Duration::from_millis);
                Err(failed(failure.code, failure.message, failure.effect, after))
            }
            Outcome::Succeeded { result, output: None, .. } => Ok(CallDone { result, output: None }),
            Outcome::Succeeded { result, output: Some(output), .. } => {
                let place = match data {
                    Some(bytes) => CallOutput::Inline(bytes),
                    None => match self.transfers.keep(call.id, &output) {
                        Some(blob) => CallOutput::Blob(blob),
                        None => {
                            let message = "the agent reported an output that it did not upload";
                            return Err(failed(Code::DigestMismatch, message, Effect::Unknown, None));
                        }
                    },
                };
                Ok(CallDone { result, output: Some((output, place)) })
            }
        }
    }

    /// The message: signed now, for this agent over this connection.
    async fn message(&self, call: &NewCall, place: CallPlace, ends: Instant) -> Result<Call, Error> {
        let key = std::sync::Arc::clone(&self.store.shared().keyring.keys().current);
        let unsigned = |e| Error::Internal(format!("cannot sign: {e}"));
        // The agent refuses what was issued before its process started, by its own clock.
        // It may be a little ahead of ours; one that is further away takes no calls.
        let now = clock::unix();
        let latest = now.saturating_add(CLOCK_SKEW.as_secs().cast_signed());
        let iat = now.max(place.issued_after.saturating_add(1)).min(latest);
        let envelope = match &call.signed {
            Some((text, _)) => text.clone(),
            None => {
                // Begun seconds count: the agent's answer is waited for a little longer than it takes.
                let left = ends.saturating_duration_since(Instant::now()).as_millis().div_ceil(1000);
                let left = u32::try_from(left).unwrap_or(u32::MAX).clamp(1, call.timeout_s.max(1));
                let claims = Envelope {
                    job: call.id,
                    tenant: call.tenant.clone(),
                    site: call.site.clone(),
                    resource: call.resource.clone(),
                    operation: call.operation.clone(),
                    params: call.params.clone(),
                    payload: call.payload.as_ref().map(|payload| PayloadDigest {
                        size: payload.info.size,
                        sha256: payload.info.sha256,
                        media_type: payload.media_type.clone(),
                    }),
                    timeout_s: left,
                    deadline: iat.saturating_add(left.min(call.deadline_s).into()),
                    max_attempts: 1,
                    repeat: None,
                    order_key: None,
                    agents: None,
                    iat,
                    nbf: iat,
                    exp: iat.saturating_add(LIFE),
                };
                claims.sign_call(&key).map_err(unsigned)?
            }
        };
        let ticket = Ticket {
            job: call.id,
            attempt: 1,
            agent: place.agent,
            epoch: place.epoch,
            commit: CommitMode::Free,
            envelope: Sha256::of(envelope.as_bytes()),
            granted: None,
            iat,
            exp: iat.saturating_add(LIFE),
        };
        let ticket = ticket.sign(&key).map_err(unsigned)?;
        let payload = match &call.payload {
            Some(payload) => Some(source(payload).await?),
            None => None,
        };
        Ok(Call { call: call.id, envelope, ticket, payload, traceparent: call.traceparent.clone() })
    }
}

enum Tried {
    Done(CallDone),
    Declined(CallDeclined),
}

/// Whether another agent may take what this one declined.
fn elsewhere(code: Code) -> bool {
    matches!(code, Code::Busy | Code::Paused | Code::BreakerOpen | Code::Internal)
}

async fn maybe<F: Future<Output = ()>>(told: Option<std::pin::Pin<&mut F>>) {
    match told {
        Some(told) => told.await,
        None => std::future::pending().await,
    }
}

/// Small payloads go with the call, larger ones are fetched beside the tunnel.
async fn source(payload: &CallPayload) -> Result<PayloadSource, Error> {
    if payload.info.size > MAX_INLINE_PAYLOAD as u64 {
        return Ok(PayloadSource::Hub);
    }
    let data = match &payload.content {
        Content::Bytes(bytes) => STANDARD.encode(bytes),
        Content::File(path) => STANDARD.encode(tokio::fs::read(path).await?),
    };
    Ok(PayloadSource::Inline { data })
}
