//! Carries out accepted attempts: waits for their turn, fetches the payload, runs the connector under deadline, cancel
//! and progress watch, and journals the outcome. One task per attempt, all tracked.
//!
//! ```text
//! accepted ──► turn (concurrency, rate, deadline) ──► payload ──► connector ──► finished ──► upload ──► reportable
//!                  └ cancelled, late ────────────────────┴── failed ──►─┘
//! ```
//! A drain ends what has not started, and past its grace what runs: as to be tried again.

mod attempt;
pub mod call;
mod gate;
mod input;
mod keep;
pub mod limits;
mod outcome;
pub mod spool;
mod upload;

use crate::{
    agent::Agent,
    audit::Entry,
    dispatch::Judged,
    job::{Job, Payload},
    journal::Found,
    registry::StopHandle,
};
use passerelle_protocol::{Code, Effect, Failure, HeldState, Verdict};
use std::sync::Arc;
use tracing::{Instrument as _, Span, error, info, info_span, warn};

/// Starts an attempt.
pub fn spawn(agent: &Arc<Agent>, job: Job, judged: Judged, stop: StopHandle) {
    let span = agent.job_span(&job);
    let task = attempt::run(Arc::clone(agent), job, judged, stop);
    agent.tasks.spawn(task.instrument(span));
}

/// Goes on with what the journal held at the start.
pub fn resume(agent: &Arc<Agent>, found: Vec<Found>) {
    let (mut jobs, mut reports) = (0, 0);
    for one in found {
        match one {
            Found::Job(job, state) => {
                jobs += 1;
                let stop = agent.registry.resume(job.attempt, &job.envelope.resource, state);
                resume_job(agent, *job, stop);
            }
            Found::Upload(attempt, resource) => {
                reports += 1;
                agent.registry.resume(attempt, &resource, HeldState::Finished);
                agent.tasks.spawn(upload::run(Arc::clone(agent), attempt));
            }
            Found::Report(attempt, resource) => {
                reports += 1;
                agent.registry.resume(attempt, &resource, HeldState::Finished);
            }
        }
    }
    if jobs + reports > 0 {
        info!(jobs, reports, "Going on with what the journal holds");
    }
}

fn resume_job(agent: &Arc<Agent>, job: Job, stop: StopHandle) {
    match agent.judge(&job) {
        Ok(judged) => {
            if let Some(size) = judged.spooled(&job) {
                agent.spool.resume_input(job.attempt, size);
            }
            spawn(agent, job, judged, stop);
        }
        Err(failure) => {
            let failure = no_more(agent, &job, failure);
            let span = agent.job_span(&job);
            let (agent, tasks) = (Arc::clone(agent), agent.tasks.clone());
            let end = async move {
                agent.note_failure(&job, &failure, None);
                agent.finish(&job, failure.into(), job.started_at).await;
            };
            tasks.spawn(end.instrument(span));
        }
    }
}

/// The operator changed the rules since the attempt was accepted. Nothing more happens; but an effect that was begun may
/// have, and so may one that leaves no evidence in the journal, if an earlier run of this program held the attempt.
fn no_more(agent: &Agent, job: &Job, mut failure: Failure) -> Failure {
    let settings = agent.settings();
    let resource = settings.resources.get(&job.envelope.resource);
    let operation = resource.and_then(|resource| resource.operation(job.envelope.operation.as_str()));
    let evidence =
        operation.is_some_and(|operation| operation.repeat != passerelle_connectors::Repeat::WithKey);
    if job.intent.is_some() || job.resumed && !evidence {
        failure.effect = Effect::Unknown;
        failure.verdict = Verdict::Permanent;
    }
    failure
}

impl Agent {
    /// Names a job in the log, whatever connection it came over.
    pub fn job_span(&self, job: &Job) -> Span {
        info_span!(
            parent: &self.span, "job", job_id = %job.attempt.job, attempt = job.attempt.number,
            resource = %job.envelope.resource, operation = %job.envelope.operation
        )
    }

    /// Logs and counts a failed attempt, within its span.
    pub fn note_failure(&self, job: &Job, failure: &Failure, detail: Option<&str>) {
        let outcome = match failure.verdict {
            Verdict::Retry => "retry",
            Verdict::Permanent => "failed",
            Verdict::Denied => "denied",
            Verdict::Cancelled => "cancelled",
        };
        self.note(job, outcome);
        if failure.code == Code::TargetUnreachable {
            self.status.probed(&job.envelope.resource, Some(failure.message.clone()));
        }
        info!(outcome, code = %failure.code, effect = ?failure.effect, reason = failure.message, "Attempt failed");
        if let Some(detail) = detail {
            warn!(detail, "Cause of the failure");
        }
    }

    /// Counts an outcome and shows it on the status page.
    pub fn note(&self, job: &Job, outcome: &'static str) {
        let kind = self.settings().resources.get(&job.envelope.resource).map(|r| r.kind.to_string());
        self.metrics.job_finished(kind, outcome);
        self.status.job_finished(job, outcome);
    }

    /// Journals an outcome, however long the disk takes, and has it reported.
    pub async fn finish(self: &Arc<Self>, job: &Job, end: attempt::End, started_at: Option<jiff::Timestamp>) {
        let attempt::End { outcome, output, leaves } = end;
        let report = passerelle_protocol::Report {
            job: job.attempt.job,
            attempt: job.attempt.number,
            outcome,
            started_at,
            finished_at: crate::clock::now(),
        };
        let upload = matches!(output, Some(spool::Stored::File));
        let entry = Some(Entry::ended(job, &report.outcome));
        while let Err(error) = self.journal.finish_leaving(&report, upload, leaves, entry.clone()).await {
            error!(%error, "An outcome cannot be written to the journal; trying again");
            tokio::select! {
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
                () = self.halt.cancelled() => return,
            }
        }
        self.outbox.forget(job.attempt);
        if job.payload == Payload::AtHub {
            self.spool.forget_input(job.attempt);
        }
        self.registry.set(job.attempt, HeldState::Finished);
        if upload {
            upload::run(Arc::clone(self), job.attempt).await;
        } else {
            self.finished.notify_waiters();
        }
    }
}
