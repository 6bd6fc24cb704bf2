//! Brings a finished attempt's large output to the hub; only then it is reported.

use crate::{
    agent::Agent,
    audit::Entry,
    hub::{
        Refused,
        payload::{Source, TransferError, upload},
    },
    tunnel::backoff::{Backoff, random},
};
use passerelle_protocol::{Code, Effect, Failure, Outcome, OutputPayload, Report, Verdict, session::Attempt};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tracing::{debug, error, warn};

/// How often the hub may say that the content is not the announced one.
const MISMATCHES: u32 = 3;

/// Uploads until the hub has it or refuses it, then makes the report ready.
pub async fn run(agent: Arc<Agent>, attempt: Attempt) {
    let work = async {
        match agent.journal.unsent_report(attempt).await {
            Ok(Some(report)) => until_done(&agent, attempt, report).await,
            Ok(None) => {}
            Err(error) => error!(%error, "A finished attempt cannot be read from the journal"),
        }
    };
    tokio::select! {
        () = work => {}
        () = agent.halt.cancelled() => debug!("An upload goes on at the next start"),
    }
}

async fn until_done(agent: &Arc<Agent>, attempt: Attempt, mut report: Report) {
    if let Outcome::Succeeded { output: Some(output), .. } = &report.outcome {
        let lost = |code: Code, message: &str| {
            // The operation itself succeeded, but its output cannot be had.
            Outcome::Failed(Failure::new(Verdict::Permanent, Effect::Unknown, code, message))
        };
        let source = Source::File(agent.spool.output(attempt));
        match bring(agent, attempt, output, &source).await {
            Ok(()) => {
                agent.metrics.payload_bytes_out.inc_by(output.size);
            }
            // The hub does not know the job: it acknowledges the report all the same.
            Err(Unstored::Unknown) => {}
            Err(Unstored::Mismatch) => {
                report.outcome = lost(Code::DigestMismatch, "the output does not reach the hub unchanged");
            }
            Err(Unstored::Refused(refused)) => {
                warn!(error = %refused, "The hub does not take the output");
                let code = if refused.status == 413 { Code::TooLarge } else { Code::Internal };
                report.outcome =
                    lost(code, &format!("the hub does not take the output: {}", refused.message));
            }
            Err(Unstored::Disk(error)) => {
                error!(%error, "The output is not in the spool any more");
                report.outcome = lost(Code::Internal, "the output was lost on the agent's disk");
            }
        }
    }
    let entry = match &report.outcome {
        // That it succeeded was written when it did.
        Outcome::Succeeded { .. } => None,
        Outcome::Failed(failure) => Some(Entry::output_lost(attempt, failure)),
    };
    while let Err(error) = agent.journal.finish(&report, false, entry.clone()).await {
        error!(%error, "An upload cannot be noted in the journal; trying again");
        sleep(Duration::from_secs(1)).await;
    }
    agent.finished.notify_waiters();
}

/// Why an output is not at the hub.
pub(super) enum Unstored {
    /// The hub does not know the attempt, or that it is under way.
    Unknown,
    /// It arrives there as something else, time and again.
    Mismatch,
    /// The hub does not take it.
    Refused(Refused),
    /// It cannot be read from the spool.
    Disk(std::io::Error),
}

/// Uploads an output until the hub has stored it, however long the hub is away. What is there already is not
/// sent again.
pub(super) async fn bring(
    agent: &Agent,
    attempt: Attempt,
    output: &OutputPayload,
    source: &Source,
) -> Result<(), Unstored> {
    let (mut backoff, mut mismatches) = (Backoff::default(), 0);
    loop {
        match upload(&agent.hub, &agent.identity, attempt, output, source).await {
            Ok(()) => return Ok(()),
            Err(TransferError::Again(why)) => debug!(error = why, "The upload was cut"),
            Err(TransferError::Mismatch) if mismatches < MISMATCHES => mismatches += 1,
            Err(TransferError::Mismatch) => return Err(Unstored::Mismatch),
            Err(TransferError::Refused(refused)) if refused.status == 404 => return Err(Unstored::Unknown),
            Err(TransferError::Refused(refused)) => return Err(Unstored::Refused(refused)),
            Err(TransferError::Disk(error)) => return Err(Unstored::Disk(error)),
        }
        sleep(backoff.next(random(), None)).await;
    }
}
