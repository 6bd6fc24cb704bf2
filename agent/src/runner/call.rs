//! One run of a call: that of an attempt, without the journal.

use super::{attempt, spool::Stored, upload};
use crate::{
    agent::Agent,
    dispatch::Judged,
    hub::payload::Source,
    job::{Job, Payload},
    registry::StopHandle,
};
use jiff::Timestamp;
use passerelle_protocol::{Code, Effect, Failure, Outcome, OutputPayload, Verdict};
use std::sync::Arc;
use tokio::time::sleep_until;
use tracing::warn;

/// Runs a call to its end; its large output is at the hub then.
pub async fn run(
    agent: &Arc<Agent>,
    job: &Job,
    mut judged: Judged,
    stop: &StopHandle,
) -> (Outcome, Option<Timestamp>) {
    let leaves = match expect_leftover(agent, job, &judged).await {
        Ok(leaves) => leaves,
        Err(failure) => return (Outcome::Failed(failure), None),
    };
    let mut started_at = None;
    let work = attempt::carry_out(agent, job, &mut judged, stop, &mut started_at);
    let attempt::End { mut outcome, output, leaves: left } = Box::pin(work).await;
    let source = output.and_then(|output| match output {
        Stored::Held(bytes) => Some(Source::Memory(bytes)),
        Stored::File => Some(Source::File(agent.spool.output(job.attempt))),
        Stored::Memory(_) | Stored::AtHub => None,
    });
    if let (Outcome::Succeeded { output: Some(told), .. }, Some(source)) = (&outcome, &source)
        && let Err(failure) = hand_over(agent, job, told, source, stop).await
    {
        warn!(code = %failure.code, reason = failure.message, "The output of a call cannot be handed over");
        outcome = Outcome::Failed(failure);
    }
    agent.spool.forget_output(job.attempt);
    if job.payload == Payload::AtHub {
        agent.spool.forget_input(job.attempt);
    }
    if leaves {
        agent
            .journal
            .leftover_of_call_decided(job.attempt, !left && matches!(outcome, Outcome::Succeeded { .. }));
    }
    (outcome, started_at)
}

/// What the call may leave at its target if this process dies is on disk before it begins, so that it is swept: the one
/// thing that is written for a call, and only for those that make such a thing.
async fn expect_leftover(agent: &Agent, job: &Job, judged: &Judged) -> Result<bool, Failure> {
    let (connector, envelope) = (&judged.resource.connector, &job.envelope);
    let (operation, id) = (envelope.operation.as_str(), job.attempt.job.uuid());
    let Some(part) = connector.leftover(operation, &envelope.params, id, job.attempt.number) else {
        return Ok(false);
    };
    match agent.journal.expect_leftover_of_call(job, part).await {
        Ok(()) => Ok(true),
        Err(error) => {
            warn!(%error, "What a call may leave behind cannot be written to the journal");
            let message = "the agent's journal cannot be written";
            Err(Failure::new(Verdict::Retry, Effect::NotApplied, Code::Busy, message))
        }
    }
}

/// Brings a large output to the hub while the caller waits.
async fn hand_over(
    agent: &Agent,
    job: &Job,
    output: &OutputPayload,
    source: &Source,
    stop: &StopHandle,
) -> Result<(), Failure> {
    let lost = |code: Code, message: &str| Failure::new(Verdict::Permanent, Effect::Unknown, code, message);
    let ends = job.call.map_or_else(tokio::time::Instant::now, |call| call.ends);
    let brought = tokio::select! {
        brought = upload::bring(agent, job.attempt, output, source) => brought,
        () = stop.token().cancelled() => return Err(lost(Code::Cancelled, "cancelled before the output was at the hub")),
        () = sleep_until(ends) => return Err(lost(Code::TargetTimeout, "the output did not reach the hub in time")),
    };
    match brought {
        Ok(()) => {
            agent.metrics.payload_bytes_out.inc_by(output.size);
            Ok(())
        }
        Err(upload::Unstored::Unknown) => Err(lost(Code::Cancelled, "nobody waits for the output any more")),
        Err(upload::Unstored::Mismatch) => {
            Err(lost(Code::DigestMismatch, "the output does not reach the hub unchanged"))
        }
        Err(upload::Unstored::Refused(refused)) => {
            let code = if refused.status == 413 { Code::TooLarge } else { Code::Internal };
            Err(lost(code, &format!("the hub does not take the output: {}", refused.message)))
        }
        Err(upload::Unstored::Disk(error)) => {
            warn!(%error, "The output of a call cannot be read from the spool");
            Err(lost(Code::Internal, "the output was lost on the agent's disk"))
        }
    }
}
