//! Calls: what is carried out at once for somebody who waits at the hub. Verified, judged and run like a job; only the
//! journal and the report are left out. What remains of a call is its row of the audit.
//!
//! A call belongs to the connection that it came over: when that ends nobody can hear its result any more, and it is
//! stopped.

mod seen;

use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    clock,
    dispatch::{self, NotTaken, Rejected, STOPPING, Verified},
    job::{CallTimes, Job, Payload},
    outbox::CallAnswer,
    registry::{Cause, StopHandle},
    runner,
};
use jiff::Timestamp;
use passerelle_protocol::{
    Call, CallDeclined, CallResult, Code, Envelope, JobId, Outcome, Verdict, is_traceparent,
    limits::CALL_LIFE, session::Attempt,
};
use seen::{Replay, Seen};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{Instrument as _, debug, info, info_span, warn};

/// When to come back to an agent that takes no more calls just now.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// The calls of this process.
#[derive(Debug)]
pub struct Calls {
    seen: Mutex<Seen>,
    running: Mutex<BTreeMap<JobId, StopHandle>>,
    count: watch::Sender<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Calls {
    /// None yet; those that were issued before now, in Unix milliseconds, are refused.
    pub fn since(started: i64) -> Self {
        Self {
            seen: Mutex::new(Seen::since(started)),
            running: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }

    /// Envelopes that were issued later than in this second are not refused as too old.
    pub fn issued_after(&self) -> i64 {
        lock(&self.seen).floor().div_euclid(1000)
    }

    /// A call has come: from here on it can be stopped.
    pub fn begin(&self, call: JobId) -> StopHandle {
        let stop = StopHandle::default();
        let mut running = lock(&self.running);
        running.insert(call, stop.clone());
        self.count.send_replace(running.len());
        stop
    }

    fn end(&self, call: JobId) {
        let mut running = lock(&self.running);
        running.remove(&call);
        self.count.send_replace(running.len());
    }

    /// Nobody waits for this one any more.
    pub fn stop(&self, call: JobId) {
        if let Some(stop) = lock(&self.running).get(&call) {
            stop.stop(Cause::Hub);
        }
    }

    /// Stops all; says how many.
    pub fn stop_all(&self, cause: Cause) -> usize {
        lock(&self.running).values().inspect(|stop| stop.stop(cause)).count()
    }

    /// Watches how many there are.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }
}

impl Agent {
    /// Starts a call; its answer goes to the hub over the connection that it came over.
    pub fn called(self: &Arc<Self>, call: Call, epoch: u64) {
        let (agent, id) = (Arc::clone(self), call.call);
        let stop = self.calls.begin(id);
        self.tasks.spawn(async move {
            let answer = match agent.carry_call_out(call, epoch, &stop).await {
                Ok(result) => CallAnswer::Ended(result),
                Err((code, message, after)) => {
                    agent.metrics.call_declined(code);
                    let retry_after_ms = after.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
                    CallAnswer::Declined(CallDeclined { call: id, code, message, retry_after_ms })
                }
            };
            agent.calls.end(id);
            agent.outbox.answer_call(answer);
        });
    }

    async fn carry_call_out(
        self: &Arc<Self>,
        call: Call,
        epoch: u64,
        stop: &StopHandle,
    ) -> Result<CallResult, NotTaken> {
        let begun = Instant::now();
        let id = call.call;
        let Verified { envelope, signer, ticket } = self.verified_call(&call, epoch).await?;
        self.takes_calls(&envelope)?;
        let (payload, broken) = match dispatch::payload(&envelope, call.payload) {
            Ok(payload) => (payload, None),
            Err(failure) => (Payload::None, Some(failure)),
        };
        let seconds = |number: i64| Duration::from_secs(u64::try_from(number).unwrap_or(0));
        let ends = begun + Duration::from_secs(envelope.timeout_s.max(1).into());
        let wait = seconds(envelope.deadline.saturating_sub(envelope.iat)).min(CALL_LIFE);
        let times = CallTimes { starts_by: ends.min(begun + wait), ends };
        let job = Job {
            attempt: Attempt::new(id, 1),
            call: Some(times),
            envelope,
            signer: Some(signer),
            ticket,
            payload,
            traceparent: call.traceparent.filter(|text| is_traceparent(text)),
            accepted_at: clock::now(),
            started_at: None,
            intent: None,
            resumed: false,
        };
        let judged = match broken {
            Some(failure) => Err(failure),
            None if wait.is_zero() => Err(dispatch::late()),
            None => self.judge_new(&job),
        };
        let judged = match judged {
            Ok(judged) => self.make_room(&job, judged)?,
            Err(failure) => Err(failure),
        };
        let judged = match judged {
            Ok(judged) => self.charge(&job, judged).await?,
            Err(failure) => Err(failure),
        };
        let span = info_span!(
            parent: &self.span, "call", call_id = %id, resource = %job.envelope.resource,
            operation = %job.envelope.operation
        );
        let ended = async {
            let (rule, outcome, started_at) = match judged {
                Ok(judged) => {
                    let rule = judged.rule;
                    let (outcome, started_at) = runner::call::run(self, &job, judged, stop).await;
                    (Some(rule), outcome, started_at)
                }
                Err(failure) => {
                    let nearest = match failure.verdict {
                        Verdict::Denied => self.nearest_rule(&job),
                        Verdict::Retry | Verdict::Permanent | Verdict::Cancelled => None,
                    };
                    (nearest, Outcome::Failed(failure), None)
                }
            };
            self.call_ended(&job, rule, &outcome, begun);
            (outcome, started_at)
        };
        let (outcome, started_at): (Outcome, Option<Timestamp>) = ended.instrument(span).await;
        Ok(CallResult { call: id, outcome, started_at, finished_at: clock::now() })
    }

    /// What is verified of a call before anything in it is believed: the same as of an offer, and that it is short-lived
    /// and comes for the first time.
    async fn verified_call(&self, call: &Call, epoch: u64) -> Result<Verified, NotTaken> {
        let settings = self.settings();
        let hub_keys = self.identity.hub_keys();
        let trust = self.trust(&settings, &hub_keys, epoch);
        let now = clock::unix_seconds();
        let verified = dispatch::verify_call(call, &trust, now).and_then(|verified| {
            let issued = verified.envelope.issued_ms();
            let taken = lock(&self.calls.seen).take(call.call, issued, clock::now().as_millisecond());
            match taken {
                Ok(()) => Ok(verified),
                Err(replay) => Err(replayed(replay)),
            }
        });
        let verified = verified.map_err(|Rejected { code, message }| {
            warn!(call_id = %call.call, %code, reason = message, "Declined a call");
            let row = Entry::of(Kind::OfferRefused, Attempt::new(call.call, 1)).code(code);
            self.journal.refused(row.detail(&format!("a call: {message}")));
            (code, message, None)
        })?;
        // What another than the hub signed is not acted upon before its time by this clock: so a process that starts later
        // knows for certain what this one cannot have taken.
        let early = verified.envelope.issued_ms().saturating_sub(clock::now().as_millisecond());
        if trust.pinned && early > 0 {
            sleep(Duration::from_millis(u64::try_from(early).unwrap_or(0))).await;
        }
        Ok(verified)
    }

    /// Whether a call is taken now.
    fn takes_calls(&self, envelope: &Envelope) -> Result<(), NotTaken> {
        if self.is_draining() {
            return Err((Code::Busy, STOPPING.to_owned(), Some(BUSY_RETRY)));
        }
        if let Some(paused) = self.pauses.of(&envelope.resource) {
            return Err((Code::Paused, paused.sentence(&envelope.resource), paused.left()));
        }
        if let Some(full) = self.pressure.full(&self.journal) {
            return Err((Code::Busy, full.to_owned(), Some(BUSY_RETRY * 10)));
        }
        if self.journal.audit_is_behind() {
            let message = "the agent's audit cannot be written as fast as calls come".to_owned();
            return Err((Code::Busy, message, Some(BUSY_RETRY)));
        }
        Ok(())
    }

    /// Counts, logs and audits the end of a call.
    fn call_ended(&self, job: &Job, rule: Option<usize>, outcome: &Outcome, begun: Instant) {
        let kind = self.settings().resources.get(&job.envelope.resource).map(|r| r.kind.to_string());
        let word = match outcome {
            Outcome::Succeeded { .. } => {
                debug!(elapsed_ms = begun.elapsed().as_secs_f64() * 1000.0, rule, "Call succeeded");
                "succeeded"
            }
            Outcome::Failed(failure) => {
                info!(code = %failure.code, effect = ?failure.effect, reason = failure.message, "Call failed");
                match failure.verdict {
                    Verdict::Retry | Verdict::Permanent => "failed",
                    Verdict::Denied => "denied",
                    Verdict::Cancelled => "cancelled",
                }
            }
        };
        self.metrics.call_finished(kind, word);
        self.metrics.call_seconds.observe(begun.elapsed().as_secs_f64());
        self.journal.note_call(Entry::called(job, rule, outcome));
    }
}

fn replayed(replay: Replay) -> Rejected {
    let (code, message) = match replay {
        Replay::Again => (Code::Replayed, "the call was taken before: make a new one"),
        Replay::TooOld => (
            Code::Replayed,
            "the call was issued before this agent's process started, or too long ago to tell whether it was taken: make \
             a new one",
        ),
        Replay::Flood => (Code::Busy, "more calls were issued in this second than the agent can remember"),
    };
    Rejected { code, message: message.to_owned() }
}
