//! One run of one attempt, from its turn to its outcome.

use super::{
    gate::AttemptGate,
    input,
    keep::HubKeeper,
    no_more, outcome,
    spool::{OutputSpool, Stored},
};
use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    clock,
    dispatch::{Judged, STOPPING, late},
    job::{CallTimes, Job},
    pause::Paused,
    policy::volume::{self, Metered, Stopped},
    registry::{Cause, StopHandle},
    translate,
};
use jiff::Timestamp;
use passerelle_connectors::{self as connectors, Call, Input, Intent, Output};
use passerelle_protocol::{Code, CommitMode, Effect, Failure, Outcome, Progress, Repeat, Verdict};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    io::AsyncWrite,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

/// A job that ends sooner is not worth telling of.
const FIRST_PROGRESS: Duration = Duration::from_millis(20);
/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);
/// How long a connector may take to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Somebody waits for a call.
const CALL_GRACE: Duration = Duration::from_secs(2);
/// A drain leaves less time: the process is about to end.
const DRAIN_GRACE: Duration = Duration::from_secs(4);

/// How a run ended.
pub struct End {
    /// With what outcome.
    pub outcome: Outcome,
    /// Where its output is.
    pub output: Option<Stored>,
    /// Whether something of it is left at the target, though it succeeded.
    pub leaves: bool,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self { outcome: Outcome::Failed(failure), output: None, leaves: false }
    }
}

/// Runs an attempt to its end.
pub async fn run(agent: Arc<Agent>, job: Job, mut judged: Judged, stop: StopHandle) {
    let begun = std::time::Instant::now();
    let mut started_at = job.started_at;
    let end = Box::pin(carry_out(&agent, &job, &mut judged, &stop, &mut started_at)).await;
    let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    if let Outcome::Succeeded { .. } = &end.outcome {
        agent.note(&job, "succeeded");
        agent.status.probed(&job.envelope.resource, None);
        info!(elapsed_ms, rule = judged.rule, "Job succeeded");
    }
    agent.metrics.job_seconds.observe(begun.elapsed().as_secs_f64());
    agent.finish(&job, end, started_at).await;
}

/// The run itself: of an attempt, or of a call, which has no journal behind it.
pub(super) async fn carry_out(
    agent: &Arc<Agent>,
    job: &Job,
    judged: &mut Judged,
    stop: &StopHandle,
    started_at: &mut Option<Timestamp>,
) -> End {
    let resumed = job.started_at.is_some() || job.intent.is_some();
    let fail = |failure: Failure| {
        agent.note_failure(job, &failure, None);
        failure.into()
    };
    if job.intent.is_some() && judged.repeat(job) == Repeat::Never && !judged.looks_back(job) {
        let message = "the agent was stopped in the middle; whether it took effect cannot be told";
        return fail(Failure::new(Verdict::Permanent, Effect::Unknown, Code::Internal, message));
    }
    // What has started before may go on after its deadline: it is about starting.
    let deadline = Instant::now() + if resumed { GRACE * 3600 } else { clock::until(job.envelope.deadline) };
    let deadline = job.call.map_or(deadline, |call| call.starts_by);
    let limits = Arc::clone(&judged.resource.limits);
    // Whatever may have had its effect is brought to its end; nothing else starts.
    let begun = job.intent.is_some();
    let resource = &job.envelope.resource;
    let _turn = tokio::select! {
        biased;
        () = called_off(stop, begun && judged.looks_back(job)) => return stopped(agent, job, judged, stop),
        paused = agent.pauses.begun(resource), if !begun => return fail(held_back(job, judged, &paused)),
        turn = limits.turn() => turn,
        () = sleep_until(deadline), if !resumed => return fail(undecided(job, late())),
    };
    // Where another agent may have been told to go on, what is found at the target means something else: the hub says so.
    if begun && job.resumed && job.ticket.commit == CommitMode::Ask {
        tokio::select! {
            () = agent.registry.until_heard() => {}
            () = called_off(stop, true) => return stopped(agent, job, judged, stop),
        }
    }
    // While it waited the operator may have changed the resource, what is allowed, or whose jobs are taken.
    let settings = agent.settings();
    let now = settings.resources.get(&job.envelope.resource);
    if now.is_none_or(|now| !Arc::ptr_eq(now, &judged.resource)) || !settings.still_trusts(job) {
        match agent.judge(job) {
            Ok(again) => *judged = again,
            Err(failure) => return fail(no_more(agent, job, failure)),
        }
    }
    let judged = &*judged;
    let input = tokio::select! {
        input = input::open(agent, job, judged, stop) => input,
        paused = agent.pauses.begun(resource), if !begun => return fail(held_back(job, judged, &paused)),
        () = sleep_until(deadline), if !resumed => return fail(undecided(job, late())),
    };
    let input = match input {
        Ok(input) => input,
        Err(Some(failure)) => return fail(undecided(job, failure)),
        Err(None) => return stopped(agent, job, judged, stop),
    };
    let at = *started_at.get_or_insert_with(clock::now);
    if !job.is_call() {
        agent.registry.started(job.attempt, at);
        agent.journal.started(job.attempt, at);
        agent.journal.note(Entry::about(Kind::Started, job).rule(job, judged.rule));
    }
    execute(agent, job, judged, stop, input, at).await
}

/// Waits until the attempt is not to start any more. What may have had its effect is looked at even if the hub cancels it:
/// whoever cancelled wants to know.
async fn called_off(stop: &StopHandle, looks: bool) {
    stop.token().cancelled().await;
    if looks && stop.cause() == Some(Cause::Hub) {
        std::future::pending().await
    }
}

/// A failure before the connector could look what an earlier attempt did: that stays as unknown as it was.
fn undecided(job: &Job, failure: Failure) -> Failure {
    if job.intent.is_some() { Failure { effect: Effect::Unknown, ..failure } } else { failure }
}

/// Stopped before the connector started.
fn stopped(agent: &Agent, job: &Job, judged: &Judged, stop: &StopHandle) -> End {
    let effect = before_start(job, judged);
    let failure = match stop.cause() {
        Some(Cause::Drain) => handed_back(effect),
        Some(Cause::Hub) | None => {
            Failure { effect, ..translate::failure(&connectors::Failure::cancelled()) }
        }
    };
    agent.note_failure(job, &failure, None);
    failure.into()
}

/// What an attempt may have done that this run has not started.
fn before_start(job: &Job, judged: &Judged) -> Effect {
    // Without evidence of how far the earlier run came, it may have come to its effect.
    let unknown = job.intent.is_some() || (job.resumed && !leaves_evidence(job, judged));
    if unknown { Effect::Unknown } else { Effect::NotApplied }
}

/// The owner paused the resource before the attempt started.
fn held_back(job: &Job, judged: &Judged, paused: &Paused) -> Failure {
    paused.handed_back(&job.envelope.resource, before_start(job, judged))
}

/// The agent stops: the job is to be tried again, here after the restart or elsewhere.
fn handed_back(effect: Effect) -> Failure {
    Failure::new(Verdict::Retry, effect, Code::Busy, STOPPING)
}

/// Whether an effect leaves its intent in the journal. What is done again as a whole, under the same key, needs no
/// evidence of how far the first try came.
fn leaves_evidence(job: &Job, judged: &Judged) -> bool {
    judged.looks_back(job) || judged.repeat(job) == Repeat::Never
}

async fn execute(
    agent: &Arc<Agent>,
    job: &Job,
    judged: &Judged,
    stop: &StopHandle,
    input: Option<Input>,
    started_at: Timestamp,
) -> End {
    let timeout = match job.call {
        Some(CallTimes { ends, .. }) => {
            ends.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
        }
        None => Duration::from_secs(job.envelope.timeout_s.max(1).into()),
    };
    let cancel = stop.token().child_token();
    let evidence = leaves_evidence(job, judged);
    let gate = Arc::new(AttemptGate::new(Arc::clone(agent), job, started_at, (stop, &cancel), evidence));
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
        visible: judged.visible.clone(),
    };
    let spool = if job.is_call() {
        OutputSpool::of_call(&agent.spool, job.attempt)
    } else {
        OutputSpool::new(&agent.spool, job.attempt)
    };
    let largest = judged.max_size.unwrap_or(u64::MAX).min(agent.spool.quota());
    let daily = judged.daily.bytes;
    let (writer, stopped) = metered(agent, job, judged, spool.clone());
    let keeper = Arc::new(HubKeeper::new(Arc::clone(agent), job.attempt, spool.clone(), cancel.clone()));
    let mut output = Output::new(writer, largest);
    // Nothing keeps the output of a call for good: so nothing that it was made from is taken away.
    if !job.is_call() {
        output = output.kept_by(Arc::clone(&keeper) as Arc<dyn connectors::Keeper>);
    }
    let operation = job.envelope.operation.as_str();
    let mut watch = Watch::new(timeout, job.call.map(|call| call.ends));
    let result = {
        let connector = &judged.resource.connector;
        let mut work = connector.execute(&call, operation, &job.envelope.params, input, &mut output);
        loop {
            tokio::select! {
                biased;
                result = &mut work => break Some(result),
                () = cancel.cancelled(), if watch.give_up.is_none() => watch.give_up = Some(Instant::now() + grace(job, stop)),
                () = sleep(watch.tick()) => {
                    watch.look(&progress, gate.waiting() || keeper.waiting(), || {
                        if !job.is_call() {
                            tell(agent, job, &progress, started_at);
                        }
                    });
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
    let passed = gate.close();
    let (produced, recalled) = (output.produced().cloned(), output.is_recalled());
    drop(output);
    if daily.is_some()
        && let Err(error) = agent.volume.flush().await
    {
        warn!(%error, "What a rule was used for today cannot be written");
    }
    let repeat = judged.repeat(job);
    let failure = match result {
        Some(Ok(done)) => {
            let leaves = done.leaves;
            let (mut outcome, output) =
                outcome::success(agent, job, judged, done, produced, spool, recalled).await;
            if let Outcome::Failed(failure) = &mut outcome {
                if !passed {
                    // It only read: that its answer cannot be had changed nothing.
                    failure.effect = Effect::NotApplied;
                }
                agent.note_failure(job, failure, None);
            }
            return End { outcome, output, leaves };
        }
        Some(Err(failure)) => {
            let mut told = translate::failure(&failure);
            if told.verdict == Verdict::Retry && spool.was_refused() {
                told.code = Code::Busy;
                "the agent's spool has no room for the output at the moment".clone_into(&mut told.message);
            }
            if told.verdict == Verdict::Retry && stopped.too_large.load(Ordering::SeqCst) {
                told.code = Code::TooLarge;
                told.verdict = match told.effect {
                    Effect::NotApplied => Verdict::Denied,
                    Effect::Applied | Effect::Unknown => Verdict::Permanent,
                };
                "the output is larger than what is allowed here in a whole day (daily_volume)"
                    .clone_into(&mut told.message);
            }
            if told.verdict == Verdict::Retry && stopped.used_up.load(Ordering::SeqCst) {
                told = Failure { code: Code::Busy, message: volume::used_up(operation), ..told }
                    .retry_after(Some(volume::until_tomorrow()));
            }
            if told.verdict == Verdict::Cancelled {
                match stop.cause() {
                    // The connector knows best what it did.
                    Some(Cause::Drain) => told = handed_back(told.effect),
                    None if watch.timed_out => told = no_progress(job, repeat, told.effect),
                    Some(Cause::Hub) | None => {}
                }
            }
            agent.note_failure(job, &told, failure.detail.as_deref());
            told
        }
        None => {
            // Given up: whatever still runs cannot pass the gate any more, but what had passed may have happened.
            let effect = if passed { Effect::Unknown } else { Effect::NotApplied };
            let failure = match stop.cause() {
                None => no_progress(job, repeat, effect),
                Some(Cause::Drain) => handed_back(effect),
                Some(Cause::Hub) => {
                    let message = "cancelled; the connector did not stop in time";
                    Failure::new(Verdict::Cancelled, effect, Code::Cancelled, message)
                }
            };
            agent.note_failure(job, &failure, None);
            failure
        }
    };
    spool.discard();
    still_granted(job, failure).into()
}

/// Where the output goes: past the meter, if the rule has a daily volume. The flags tell whether the meter stopped it.
fn metered(
    agent: &Agent,
    job: &Job,
    judged: &Judged,
    spool: OutputSpool,
) -> (Box<dyn AsyncWrite + Send + Unpin>, Arc<Stopped>) {
    match judged.daily.bytes {
        Some(most) => {
            let (volume, resource) = (Arc::clone(&agent.volume), job.envelope.resource.clone());
            let (metered, stopped) = Metered::new(spool, volume, resource, judged.rule, most);
            (Box::new(metered), stopped)
        }
        None => (Box::new(spool), Arc::default()),
    }
}

/// Another agent was granted the effect before and may yet wake up and have it: that this attempt did not is no proof.
fn still_granted(job: &Job, failure: Failure) -> Failure {
    match (&job.ticket.granted, failure.verdict) {
        (Some(_), Verdict::Retry | Verdict::Cancelled) => Failure { effect: Effect::Unknown, ..failure },
        (Some(_), Verdict::Permanent | Verdict::Denied) | (None, _) => failure,
    }
}

fn grace(job: &Job, stop: &StopHandle) -> Duration {
    match stop.cause() {
        _ if job.is_call() => CALL_GRACE,
        Some(Cause::Drain) => DRAIN_GRACE,
        Some(Cause::Hub) | None => GRACE,
    }
}

/// Watches an attempt's signs of life.
struct Watch {
    timeout: Duration,
    ends: Option<Instant>,
    beats: u64,
    heard: Instant,
    told: Option<(u64, Instant)>,
    begun: Instant,
    timed_out: bool,
    give_up: Option<Instant>,
}

impl Watch {
    fn new(timeout: Duration, ends: Option<Instant>) -> Self {
        let now = Instant::now();
        Self { timeout, ends, beats: 0, heard: now, told: None, begun: now, timed_out: false, give_up: None }
    }

    /// How long until the next look.
    fn tick(&self) -> Duration {
        let first = self.begun + FIRST_PROGRESS;
        let now = Instant::now();
        let next = first.checked_duration_since(now).filter(|d| !d.is_zero()).unwrap_or(PROGRESS / 4);
        let end = self.ends.and_then(|ends| ends.checked_duration_since(now)).filter(|d| !d.is_zero());
        end.map_or(next, |end| next.min(end))
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
        if now >= self.heard + self.timeout || self.ends.is_some_and(|ends| now >= ends) {
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

fn no_progress(job: &Job, repeat: Repeat, effect: Effect) -> Failure {
    let (what, timeout) =
        (if job.is_call() { "not finished within" } else { "no progress for" }, job.envelope.timeout_s);
    let message = format!("{what} {} s", timeout.max(1));
    let verdict = match (repeat, effect) {
        (Repeat::Never, Effect::Unknown) => Verdict::Permanent,
        (Repeat::Safe | Repeat::WithKey | Repeat::Never, _) => Verdict::Retry,
    };
    Failure::new(verdict, effect, Code::TargetTimeout, message)
}
