//! The payload of an attempt, whole and verified before the connector starts.

use crate::{
    agent::Agent,
    hub::payload::{Download, TransferError},
    job::{Job, Payload},
    registry::StopHandle,
    tunnel::backoff::{Backoff, random},
};
use passerelle_connectors::Input;
use passerelle_protocol::{Code, Effect, Failure, PayloadDigest, Verdict};
use std::{io::Cursor, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

/// How often wrong content is fetched again before the attempt fails.
const MISMATCHES: u32 = 2;

/// Opens the payload, downloading it first if it is at the hub. `Ok(None)` if there is none; `Err(None)` if stopped.
pub async fn open(
    agent: &Arc<Agent>,
    job: &Job,
    stop: &StopHandle,
) -> Result<Option<Input>, Option<Failure>> {
    let Some(expected) = job.envelope.payload.clone() else { return Ok(None) };
    let input = |reader: Box<dyn tokio::io::AsyncRead + Send + Unpin>, expected: PayloadDigest| {
        Input::new(reader, expected.size, *expected.sha256.bytes(), expected.media_type)
    };
    match &job.payload {
        Payload::None => Ok(None),
        Payload::Inline(bytes) => Ok(Some(input(Box::new(Cursor::new(bytes.clone())), expected))),
        Payload::AtHub => {
            let fetched = tokio::select! {
                fetched = download(agent, job, expected.clone()) => fetched,
                () = stop.token().cancelled() => return Err(None),
            };
            fetched.map_err(Some)?;
            let file =
                tokio::fs::File::open(agent.spool.input(job.attempt)).await.map_err(|e| Some(disk(&e)))?;
            Ok(Some(input(Box::new(file), expected)))
        }
    }
}

/// Downloads until the whole is here, however often the connection is cut, but not longer than the attempt's timeout
/// without a byte.
async fn download(agent: &Arc<Agent>, job: &Job, expected: PayloadDigest) -> Result<(), Failure> {
    let path = agent.spool.input(job.attempt);
    let timeout = Duration::from_secs(job.envelope.timeout_s.max(1).into());
    let mut download = Download::open(&path, expected).await.map_err(|e| disk(&e))?;
    let (mut backoff, mut mismatches, mut heard, mut have) =
        (Backoff::default(), 0, Instant::now(), download.have());
    loop {
        let counter = &agent.metrics.payload_bytes_in;
        let error = match download
            .go_on(&agent.hub, &agent.identity, job.attempt, |n| {
                counter.inc_by(n);
            })
            .await
        {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if download.have() > have {
            (backoff, heard) = (Backoff::default(), Instant::now());
        }
        have = download.have();
        match error {
            TransferError::Disk(e) => return Err(disk(&e)),
            TransferError::Refused(refused) => {
                warn!(error = %refused, "The payload cannot be downloaded");
                let message = "the payload is not at the hub any more";
                return Err(Failure::new(Verdict::Retry, Effect::NotApplied, Code::Internal, message));
            }
            TransferError::Mismatch if mismatches >= MISMATCHES => {
                let message =
                    "the payload at the hub does not have the size and digest that the job announces";
                return Err(Failure::new(
                    Verdict::Permanent,
                    Effect::NotApplied,
                    Code::DigestMismatch,
                    message,
                ));
            }
            TransferError::Mismatch => mismatches += 1,
            TransferError::Again(why) => debug!(error = why, have, "The download was cut"),
        }
        if heard.elapsed() >= timeout {
            let message = format!("the payload could not be downloaded within {} s", timeout.as_secs());
            return Err(Failure::new(Verdict::Retry, Effect::NotApplied, Code::Internal, message));
        }
        sleep(backoff.next(random(), None).min(timeout)).await;
    }
}

fn disk(error: &std::io::Error) -> Failure {
    warn!(%error, "The spool cannot be used");
    let message = "the payload could not be stored on the agent's disk";
    Failure::new(Verdict::Retry, Effect::NotApplied, Code::Internal, message)
}
