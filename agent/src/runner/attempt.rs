//! One run of one attempt, from its turn to its outcome.

use super::{
    gate::AttemptGate,
    input, outcome,
    spool::{OutputSpool, Stored},
};
use crate::{
    agent::Agent,
    clock,
    dispatch::{Judged, late},
    job::Job,
    registry::{Cause, StopHandle},
    translate,
};
use jiff::Timestamp;
use passerelle_connectors::{self as connectors, Call, Input, Intent, Output};
use passerelle_protocol::{Code, Effect, Failure, Outcome, Progress, Repeat, Verdict};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

/// A job that ends sooner is not worth telling of.
const FIRST_PROGRESS: Duration = Duration::from_millis(20);
/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);
/// How long a connector may take to stop.
const GRACE: Duration = Duration::from_secs(10);

/// A drain leaves less time: the process is about to end.
const DRAIN_GRACE: Duration = Duration::from_secs(4);

/// How a run ended.
enum End {
    /// With an outcome.
    Outcome(Outcome, Option<Stored>),
    /// The agent stops first: the journal knows where it was.
    Left,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Outcome(Outcome::Failed(failure), None)
    }
}

/// Runs an attempt to its end.
pub async fn run(agent: Arc<Agent>, job: Job, judged: Judged, stop: StopHandle) {
    let begun = std::time::Instant::now();
    let mut started_at = job.started_at;
    match Box::pin(carry_out(&agent, &job, &judged, &stop, &mut started_at)).await {
        End::Left => {
            warn!("The agent stops before the job has ended; it goes on at the next start");
            agent.outbox.forget(job.attempt);
            agent.registry.remove(job.attempt);
        }
        End::Outcome(outcome, output) => {
            let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            if let Outcome::Succeeded { .. } = &outcome {
                agent.note(&job, "succeeded");
                info!(elapsed_ms, rule = judged.rule, "Job succeeded");
            }
            agent.metrics.job_seconds.observe(begun.elapsed().as_secs_f64());
            agent.finish(&job, outcome, started_at, output).await;
        }
    }
}

async fn carry_out(
    agent: &Arc<Agent>,
    job: &Job,
    judged: &Judged,
    stop: &StopHandle,
    started_at: &mut Option<Timestamp>,
) -> End {
    let resumed = job.started_at.is_some() || job.intent.is_some();
    let fail = |failure: Failure| {
        agent.note_failure(job, &failure, None);
        End::from(failure)
    };
    if job.intent.is_some() && judged.repeat(job) == Repeat::Never && !judged.looks_back(job) {
        let message = "the agent was stopped in the middle; whether it took effect cannot be told";
        return fail(Failure::new(Verdict::Permanent, Effect::Unknown, Code::Internal, message));
    }
    // What has started before may go on after its deadline: it is about starting.
    let deadline = Instant::now() + if resumed { GRACE * 3600 } else { clock::until(job.envelope.deadline) };
    let turn = async {
        match agent.limits.get(&job.envelope.resource) {
            Some(limits) => Some(limits.turn().await),
            None => None,
        }
    };
    let _place = tokio::select! {
        biased;
        () = stop.token().cancelled() => return stopped(agent, job, judged, stop),
        place = turn => place,
        () = sleep_until(deadline), if !resumed => return fail(late()),
    };
    let input = tokio::select! {
        input = input::open(agent, job, judged, stop) => input,
        () = sleep_until(deadline), if !resumed => return fail(late()),
    };
    let input = match input {
        Ok(input) => input,
        Err(Some(mut failure)) => {
            if job.intent.is_some() {
                failure.effect = Effect::Unknown;
            }
            return fail(failure);
        }
        Err(None) => return stopped(agent, job, judged, stop),
    };
    let at = *started_at.get_or_insert_with(clock::now);
    agent.registry.started(job.attempt, at);
    agent.journal.started(job.attempt, at);
    execute(agent, job, judged, stop, input, at).await
}

/// Stopped before the connector started.
fn stopped(agent: &Agent, job: &Job, judged: &Judged, stop: &StopHandle) -> End {
    match stop.cause() {
        Some(Cause::Drain) => End::Left,
        Some(Cause::Hub) | None => {
            let mut failure = translate::failure(&connectors::Failure::cancelled());
            // Without evidence of how far the earlier run came, it may have come to its effect.
            if job.intent.is_some() || (job.resumed && !judged.looks_back(job)) {
                failure.effect = Effect::Unknown;
            }
            agent.note_failure(job, &failure, None);
            failure.into()
        }
    }
}

async fn execute(
    agent: &Arc<Agent>,
    job: &Job,
    judged: &Judged,
    stop: &StopHandle,
    input: Option<Input>,
    started_at: Timestamp,
) -> End {
    let timeout = Duration::from_secs(job.envelope.timeout_s.max(1).into());
    let cancel = stop.token().child_token();
    // What is done again as a whole, under the same key, needs no evidence of how far the first try came.
    let evidence = judged.looks_back(job) || judged.repeat(job) == Repeat::Never;
    let gate = Arc::new(AttemptGate::new(Arc::clone(agent), job, started_at, cancel.clone(), evidence));
    let progress = connectors::Progress::default();
    let call = Call {
        job: job.attempt.job.uuid(),
        attempt: job.attempt.number,
        timeout,
        cancel: cancel.clone(),
        progress: progress.clone(),
        gate: Arc::clone(&gate) as Arc<dyn connectors::Gate>,
        prior_intent: job.intent.clone().and_then(|value| serde_json::from_value::<Intent>(value).ok()),
        traceparent: job.traceparent.clone(),
    };
    let spool = OutputSpool::new(agent.spool.output(job.attempt));
    let mut output = Output::new(Box::new(spool.clone()), judged.max_size.unwrap_or(u64::MAX));
    let operation = job.envelope.operation.as_str();
    let mut watch = Watch::new(timeout);
    let result = {
        let connector = &judged.resource.connector;
        let mut work = connector.execute(&call, operation, &job.envelope.params, input, &mut output);
        loop {
            tokio::select! {
                biased;
                result = &mut work => break Some(result),
                () = cancel.cancelled(), if watch.give_up.is_none() => watch.give_up = Some(Instant::now() + grace(stop)),
                () = sleep(watch.tick()) => {
                    watch.look(&progress, gate.waiting(), || tell(agent, job, &progress, started_at));
                    if watch.timed_out && !cancel.is_cancelled() {
                        cancel.cancel();
                    }
                    if watch.give_up.is_some_and(|at| Instant::now() >= at) {
                        break None;
                    }
                }
            }
        }
    };
    gate.close();
    let produced = output.produced().cloned();
    drop(output);
    let repeat = judged.repeat(job);
    let failure = match result {
        Some(Ok(done)) => {
            let (outcome, stored) = outcome::success(agent, job, judged, done, produced, spool).await;
            if let Outcome::Failed(failure) = &outcome {
                agent.note_failure(job, failure, None);
            }
            return End::Outcome(outcome, stored);
        }
        Some(Err(failure)) => {
            if failure.verdict == connectors::Verdict::Cancelled && stop.cause() == Some(Cause::Drain) {
                spool.discard();
                return End::Left;
            }
            let mut told = translate::failure(&failure);
            if told.verdict == Verdict::Cancelled && watch.timed_out && stop.cause().is_none() {
                told = no_progress(timeout, repeat, told.effect);
            }
            agent.note_failure(job, &told, failure.detail.as_deref());
            told
        }
        None if stop.cause() == Some(Cause::Drain) => {
            spool.discard();
            return End::Left;
        }
        None => {
            // Given up: whatever still runs cannot pass the gate any more, but what had passed may have happened.
            let effect = if gate.passed() { Effect::Unknown } else { Effect::NotApplied };
            let failure = match stop.cause() {
                None => no_progress(timeout, repeat, effect),
                Some(_) => {
                    let message = "cancelled; the connector did not stop in time";
                    Failure::new(Verdict::Cancelled, effect, Code::Cancelled, message)
                }
            };
            agent.note_failure(job, &failure, None);
            failure
        }
    };
    spool.discard();
    failure.into()
}

fn grace(stop: &StopHandle) -> Duration {
    match stop.cause() {
        Some(Cause::Drain) => DRAIN_GRACE,
        Some(Cause::Hub) | None => GRACE,
    }
}

/// Watches an attempt's signs of life.
struct Watch {
    timeout: Duration,
    beats: u64,
    heard: Instant,
    told: Option<(u64, Instant)>,
    begun: Instant,
    timed_out: bool,
    give_up: Option<Instant>,
}

impl Watch {
    fn new(timeout: Duration) -> Self {
        let now = Instant::now();
        Self { timeout, beats: 0, heard: now, told: None, begun: now, timed_out: false, give_up: None }
    }

    /// How long until the next look.
    fn tick(&self) -> Duration {
        let first = self.begun + FIRST_PROGRESS;
        first.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()).unwrap_or(PROGRESS / 4)
    }

    fn look(&mut self, progress: &connectors::Progress, waiting: bool, tell: impl FnOnce()) {
        let (now, beats) = (Instant::now(), progress.beats());
        if beats != self.beats || waiting {
            (self.beats, self.heard) = (beats, now);
        }
        let due = self.told.is_none_or(|(told, at)| told != beats && now >= at + PROGRESS);
        if due {
            self.told = Some((beats, now));
            tell();
        }
        if now >= self.heard + self.timeout {
            self.timed_out = true;
        }
    }
}

fn tell(agent: &Agent, job: &Job, progress: &connectors::Progress, started_at: Timestamp) {
    let (done, total) = (progress.done(), progress.total());
    debug!(bytes = done, "Progress");
    agent.outbox.progress(Progress {
        job: job.attempt.job,
        attempt: job.attempt.number,
        started_at,
        bytes_done: done,
        bytes_total: (total > 0).then_some(total),
    });
}

fn no_progress(timeout: Duration, repeat: Repeat, effect: Effect) -> Failure {
    let message = format!("no progress for {} s", timeout.as_secs());
    let verdict = match (repeat, effect) {
        (Repeat::Never, Effect::Unknown) => Verdict::Permanent,
        (Repeat::Safe | Repeat::WithKey | Repeat::Never, _) => Verdict::Retry,
    };
    Failure::new(verdict, effect, Code::TargetTimeout, message)
}
