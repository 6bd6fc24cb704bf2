//! What becomes of an offer: verified, judged by the local policy, written to the journal, started. Or not.
//!
//! Signatures are checked before anything in the offer is believed. An offer that is wrong is declined: nothing is
//! journalled. A job that is right but not allowed here is an outcome like any other: journalled and reported.

mod verify;

pub use verify::{Rejected, Trust, Verified, verify, verify_call};

use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    clock,
    job::{Job, Payload},
    journal::Accepted,
    outbox::Answer,
    policy::{Daily, Question, Refused, Spent, volume},
    registry::Reserved,
    runner,
    settings::{Resource, Settings},
    state::free_bytes,
    translate,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_connectors::Visible;
use passerelle_protocol::{
    Code, Decline, Effect, Envelope, Failure, HeldState, Offer, Outcome, PayloadSource, Repeat, Report,
    Sha256, Verdict, VerifyingKey, is_traceparent,
    limits::{CLOCK_SKEW, MAX_INLINE_PAYLOAD},
    session::Attempt,
};
use std::{sync::Arc, time::Duration};
use tracing::{debug, info, warn};

/// Room on the disk that payloads do not use up.
const RESERVE: u64 = 64 * 1024 * 1024;
/// When to offer again what did not fit.
const BUSY_RETRY: Duration = Duration::from_secs(2);

/// Why nothing is taken or gone on with while the agent drains.
pub const STOPPING: &str = "the agent is being stopped";

/// Why an offer is not taken: code, public sentence, and when it may be offered again.
pub type NotTaken = (Code, String, Option<Duration>);

/// A job that may run here.
pub struct Judged {
    /// The resource.
    pub resource: Arc<Resource>,
    /// The rule that allows it, counted from 1.
    pub rule: usize,
    /// The largest payload or output it allows.
    pub max_size: Option<u64>,
    /// What it allows per day.
    pub daily: Daily,
    /// What a listing may show.
    pub visible: Visible,
}

impl Judged {
    /// How the operation may be repeated: what the connector says, or stricter if the job says so.
    pub fn repeat(&self, job: &Job) -> Repeat {
        let spec = self.resource.operation(job.envelope.operation.as_str());
        let own = spec.map_or(Repeat::Never, |spec| translate::repeat(spec.repeat));
        job.envelope.repeat.map_or(own, |stricter| own.max(stricter))
    }

    /// How many bytes of its payload go through the spool, if any do.
    pub fn spooled(&self, job: &Job) -> Option<u64> {
        let through = job.payload == Payload::AtHub && !self.streams(job);
        job.envelope.payload.as_ref().filter(|_| through).map(|payload| payload.size)
    }

    /// Whether the connector looks how far an earlier try came, instead of doing the whole again.
    pub fn looks_back(&self, job: &Job) -> bool {
        let spec = self.resource.operation(job.envelope.operation.as_str());
        spec.is_some_and(|spec| spec.repeat == passerelle_connectors::Repeat::Safe)
    }

    /// Whether the connector takes the payload as it comes: what it writes shows only once the last byte was verified.
    pub fn streams(&self, job: &Job) -> bool {
        self.looks_back(job)
    }
}

impl Agent {
    /// Whose jobs are taken over the connection of this epoch.
    pub fn trust<'a>(
        &'a self,
        settings: &'a Settings,
        hub_keys: &'a [VerifyingKey],
        epoch: u64,
    ) -> Trust<'a> {
        let (enrolled, pinned) = (&self.identity.enrolled, &settings.trusted_job_keys);
        Trust {
            job_keys: if pinned.is_empty() { hub_keys } else { pinned },
            pinned: !pinned.is_empty(),
            ticket_keys: hub_keys,
            agent: enrolled.agent,
            tenant: &enrolled.tenant,
            site: &enrolled.site,
            epoch,
        }
    }

    /// How far this machine's clock is off the hub's, if by more than what is signed may be off.
    pub fn wrong_clock(&self) -> Option<String> {
        self.status.clock(CLOCK_SKEW.as_secs().cast_signed())
    }

    /// Deals with an offer; the answer is for the hub. `None` if another task is at the same attempt.
    pub async fn dispatch(self: Arc<Self>, offer: Offer, epoch: u64) -> Option<Answer> {
        let attempt = Attempt::new(offer.job, offer.attempt);
        let decline = |code: Code, message: String, after: Option<Duration>| {
            self.metrics.declined(code);
            Some(Answer::Decline(Decline {
                job: offer.job,
                attempt: offer.attempt,
                code,
                message,
                retry_after_ms: after.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            }))
        };
        let settings = self.settings();
        let hub_keys = self.identity.hub_keys();
        let trust = self.trust(&settings, &hub_keys, epoch);
        let verified = match verify(&offer, &trust, clock::unix_seconds()) {
            Ok(verified) => verified,
            Err(Rejected { code, message }) => {
                let clock = self.wrong_clock().filter(|_| code == Code::EnvelopeExpired);
                let message = clock.as_ref().map_or(message.clone(), |clock| format!("{message}: {clock}"));
                warn!(job_id = %offer.job, attempt = offer.attempt, %code, reason = message, "Declined an offer");
                self.journal.refused(Entry::of(Kind::OfferRefused, attempt).code(code).detail(&message));
                return match clock {
                    // No fault of the job's: it waits until the clock is right.
                    Some(_) => decline(Code::Busy, message, Some(BUSY_RETRY * 5)),
                    None => decline(code, message, None),
                };
            }
        };
        if self.is_draining() {
            return decline(Code::Busy, STOPPING.to_owned(), Some(BUSY_RETRY));
        }
        let resource = verified.envelope.resource.clone();
        if let Some(paused) = self.pauses.of(&resource) {
            return decline(Code::Paused, paused.sentence(&resource), paused.left());
        }
        if let Some(full) = self.pressure.full(&self.journal) {
            return decline(Code::Busy, full.to_owned(), Some(BUSY_RETRY * 5));
        }
        let stop = match self.registry.reserve(attempt, &resource, settings.max_jobs() as usize) {
            Reserved::New(stop) => stop,
            Reserved::Held => return Some(Answer::Accept(attempt)),
            Reserved::Pending => return None,
            Reserved::Full => return decline(Code::Busy, "the agent is full".to_owned(), Some(BUSY_RETRY)),
        };
        // Once more: a drain that began since has not seen it among those to hand back.
        if self.is_draining() {
            self.registry.remove(attempt);
            return decline(Code::Busy, STOPPING.to_owned(), Some(BUSY_RETRY));
        }
        let answer = self.take(offer.clone(), attempt, verified, stop).await;
        match answer {
            Ok(()) => Some(Answer::Accept(attempt)),
            Err((code, message, after)) => {
                self.registry.remove(attempt);
                info!(job_id = %attempt.job, attempt = attempt.number, %code, reason = message, "Declined an offer");
                decline(code, message, after)
            }
        }
    }

    /// Judges and journals a verified offer whose place is reserved.
    async fn take(
        self: &Arc<Self>,
        offer: Offer,
        attempt: Attempt,
        Verified { envelope, signer, ticket }: Verified,
        stop: crate::registry::StopHandle,
    ) -> Result<(), NotTaken> {
        let (payload, broken) = match payload(&envelope, offer.payload) {
            Ok(payload) => (payload, None),
            Err(failure) => (Payload::None, Some(failure)),
        };
        let mut job = Job {
            attempt,
            envelope,
            signer: Some(signer),
            ticket,
            payload,
            traceparent: offer.traceparent.filter(|text| is_traceparent(text)),
            accepted_at: clock::now(),
            started_at: None,
            intent: None,
            resumed: false,
            call: None,
        };
        if let Some(granted) = &job.ticket.granted {
            match serde_json::to_value(translate::granted(granted)) {
                Ok(intent) => job.intent = Some(intent),
                Err(error) => {
                    let message = format!("what an earlier attempt was granted cannot be read: {error}");
                    return Err((Code::Internal, message, None));
                }
            }
        }
        let mut judged = match broken {
            Some(failure) => Err(failure),
            // What was granted before has begun: it is brought to its end.
            None if job.intent.is_none() && clock::until(job.envelope.deadline).is_zero() => Err(late()),
            None => self.judge_new(&job),
        };
        if let (Err(failure), true) = (&mut judged, job.intent.is_some()) {
            // Nothing more happens here; but what was granted before may have happened.
            failure.effect = Effect::Unknown;
            if failure.verdict != Verdict::Retry {
                failure.verdict = Verdict::Permanent;
            }
        }
        let judged = match judged {
            Ok(judged) => self.make_room(&job, judged)?,
            Err(failure) => Err(failure),
        };
        let judged = match judged {
            Ok(judged) => self.charge(&job, judged).await?,
            Err(failure) => Err(failure),
        };
        let accepted = match &judged {
            Ok(judged) => {
                let (connector, envelope) = (&judged.resource.connector, &job.envelope);
                let (operation, id) = (envelope.operation.as_str(), attempt.job.uuid());
                let leftover = connector.leftover(operation, &envelope.params, id, attempt.number);
                self.journal.accept(&job, judged.looks_back(&job), leftover, judged.rule).await
            }
            Err(failure) => {
                let report = Report {
                    job: attempt.job,
                    attempt: attempt.number,
                    outcome: Outcome::Failed(failure.clone()),
                    started_at: None,
                    finished_at: job.accepted_at,
                };
                let entry = Entry::ended(&job, &report.outcome);
                let entry = match self.nearest_rule(&job) {
                    Some(rule) if failure.verdict == Verdict::Denied => entry.rule(&job, rule),
                    Some(_) | None => entry,
                };
                self.journal.accept_finished(&job, &report, entry).await
            }
        };
        let taken = judged.is_ok() && matches!(accepted, Ok(Accepted::New | Accepted::Continues(_)));
        if !taken {
            self.spool.release_input(attempt);
            if let Some(judged) = judged.as_ref().ok().filter(|judged| judged.daily.is_limited()) {
                let size = job.envelope.payload.as_ref().map_or(0, |payload| payload.size);
                self.volume.give_back(&job.envelope.resource, judged.rule, size);
            }
        }
        let accepted = accepted.map_err(|error| {
            warn!(%error, "An offer could not be written to the journal");
            (Code::Busy, "the agent's journal cannot be written".to_owned(), Some(BUSY_RETRY * 5))
        })?;
        if let Accepted::Continues(intent) = &accepted {
            job.intent = Some(intent.clone());
        }
        match (accepted, judged) {
            (Accepted::New | Accepted::Continues(_), Ok(judged)) => {
                self.registry.set(attempt, HeldState::Accepted);
                self.metrics.accepted.inc();
                debug!(job_id = %attempt.job, attempt = attempt.number, "Accepted a job");
                runner::spawn(self, job, judged, stop);
                Ok(())
            }
            (Accepted::New | Accepted::Continues(_), Err(failure)) => {
                self.registry.set(attempt, HeldState::Finished);
                self.metrics.accepted.inc();
                self.job_span(&job).in_scope(|| self.note_failure(&job, &failure, None));
                self.finished.notify_waiters();
                Ok(())
            }
            (accepted @ (Accepted::Again | Accepted::Held | Accepted::Done), _) => {
                if accepted == Accepted::Done {
                    let message =
                        "an earlier attempt took effect here: its outcome is told, and nothing done";
                    let entry = Entry::of(Kind::OfferRefused, attempt).code(Code::Replayed);
                    self.journal.refused(entry.detail(message));
                }
                // Held without being in the registry: finished and about to be reported.
                self.registry.set(attempt, HeldState::Finished);
                self.finished.notify_waiters();
                Ok(())
            }
            (Accepted::Busy, _) => {
                let message = "an earlier attempt of the job is still under way here".to_owned();
                Err((Code::Busy, message, Some(BUSY_RETRY)))
            }
            (Accepted::Replayed { highest }, _) if highest < attempt.number => {
                let message = format!(
                    "attempt {highest} of the job took effect here, and its output is not kept any more"
                );
                let entry = Entry::of(Kind::OfferRefused, attempt).code(Code::Replayed);
                self.journal.refused(entry.detail(&message));
                Err((Code::Replayed, message, None))
            }
            (Accepted::Replayed { highest }, _) => {
                let message =
                    format!("attempt {} is not higher than {highest}, the highest seen", attempt.number);
                let entry = Entry::of(Kind::OfferRefused, attempt).code(Code::Replayed);
                self.journal.refused(entry.detail(&message));
                Err((Code::Replayed, message, None))
            }
            (Accepted::Spent { allowed }, _) => {
                let message = format!(
                    "the envelope allows {allowed} attempts, and this agent has accepted as many: sign a new one"
                );
                let entry = Entry::of(Kind::OfferRefused, attempt).code(Code::EnvelopeExpired);
                self.journal.refused(entry.detail(&message));
                Err((Code::EnvelopeExpired, message, None))
            }
        }
    }

    /// Promises a payload room in the spool, where it goes through it.
    pub fn make_room(&self, job: &Job, judged: Judged) -> Result<Result<Judged, Failure>, NotTaken> {
        let Some(size) = judged.spooled(job) else { return Ok(Ok(judged)) };
        let quota = self.spool.quota();
        if size > quota {
            let message =
                format!("the payload of {size} bytes is larger than the {quota} bytes of this agent's spool");
            let failure = Failure::new(Verdict::Permanent, Effect::NotApplied, Code::TooLarge, message);
            return Ok(Err(failure));
        }
        let full = |message: &str| Err((Code::Busy, message.to_owned(), Some(BUSY_RETRY * 15)));
        if free_bytes(self.spool.path()).is_ok_and(|free| free < size.saturating_add(RESERVE)) {
            return full("the agent's disk has no room for the payload");
        }
        if !self.spool.promise_input(job.attempt, size) {
            return full("the agent's spool has no room for the payload at the moment");
        }
        Ok(Ok(judged))
    }

    /// Asks connector and policy whether the job may run here.
    ///
    /// # Errors
    /// The outcome: `invalid_params`, `path_invalid`, `policy_denied` or `too_large`.
    pub fn judge(&self, job: &Job) -> Result<Judged, Failure> {
        // What it counts for was counted when it was accepted.
        self.judge_after(job, &Spent::new())
    }

    /// The same for what comes now: it counts towards the day.
    ///
    /// # Errors
    /// As [`Self::judge`].
    pub fn judge_new(&self, job: &Job) -> Result<Judged, Failure> {
        self.judge_after(job, &self.volume.spent(&job.envelope.resource))
    }

    fn judge_after(&self, job: &Job, spent: &Spent) -> Result<Judged, Failure> {
        let settings = self.settings();
        if !settings.still_trusts(job) {
            let message = "the job is signed with a key that is not, or no longer, among those that the agent's operator \
                           pinned (trust.job_keys)";
            return Err(Failure::new(Verdict::Denied, Effect::NotApplied, Code::SignatureInvalid, message));
        }
        let decided = settings.judge(Question::from(&job.envelope), spent);
        decided.map_err(|Refused { failure, nearest }| {
            debug!(job_id = %job.attempt.job, nearest, reason = failure.message, "The local policy says no");
            failure
        })
    }

    /// Counts an attempt for its rule's day, on disk, where the rule has a limit per day.
    pub async fn charge(&self, job: &Job, judged: Judged) -> Result<Result<Judged, Failure>, NotTaken> {
        if !judged.daily.is_limited() {
            return Ok(Ok(judged));
        }
        let Envelope { resource, operation, payload, .. } = &job.envelope;
        let size = payload.as_ref().map_or(0, |payload| payload.size);
        // Also what another agent is said to have begun: that is the hub's word, and a limit by the hub's leave is none.
        if !self.volume.take(resource, judged.rule, size, judged.daily) {
            // Others took the rest since it was judged.
            let message = volume::used_up(operation.as_str());
            let effect = if job.intent.is_some() { Effect::Unknown } else { Effect::NotApplied };
            let failure = Failure::new(Verdict::Retry, effect, Code::Busy, message);
            return Ok(Err(failure.retry_after(Some(volume::until_tomorrow()))));
        }
        if let Err(error) = self.volume.flush().await {
            warn!(%error, "What a rule was used for today cannot be written");
            self.volume.give_back(resource, judged.rule, size);
            self.spool.release_input(job.attempt);
            return Err((Code::Busy, "the agent's disk cannot be written".to_owned(), Some(BUSY_RETRY * 5)));
        }
        Ok(Ok(judged))
    }
}

impl Agent {
    /// The rule that came nearest to allowing a denied job, counted from 1, for the audit.
    pub fn nearest_rule(&self, job: &Job) -> Option<usize> {
        self.settings().judge(Question::from(&job.envelope), &Spent::new()).err()?.nearest
    }
}

/// The job was not started in time.
pub fn late() -> Failure {
    let message = "the deadline had passed before the job could start";
    Failure::new(Verdict::Permanent, Effect::NotApplied, Code::Deadline, message)
}

/// Reads the payload that came with the offer, if it did, and checks it against the envelope.
pub fn payload(envelope: &Envelope, source: Option<PayloadSource>) -> Result<Payload, Failure> {
    let mismatch = |message: &str| {
        Err(Failure::new(Verdict::Permanent, Effect::NotApplied, Code::DigestMismatch, message))
    };
    match (&envelope.payload, source) {
        (None, _) => Ok(Payload::None),
        (Some(_), Some(PayloadSource::Hub)) => Ok(Payload::AtHub),
        (Some(_), None) => mismatch("the offer lacks the payload that the job announces"),
        (Some(expected), Some(PayloadSource::Inline { data })) => match STANDARD.decode(data) {
            Ok(bytes)
                if bytes.len() <= MAX_INLINE_PAYLOAD
                    && bytes.len() as u64 == expected.size
                    && Sha256::of(&bytes) == expected.sha256 =>
            {
                Ok(Payload::Inline(bytes.into()))
            }
            Ok(_) | Err(_) => {
                mismatch("the payload does not have the size and digest that the job announces")
            }
        },
    }
}

#[cfg(test)]
mod tests;
