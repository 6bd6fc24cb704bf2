//! The payload of an attempt.
//!
//! A file drop reads it as it comes from the hub: its part is renamed only after the last byte was verified, so nothing
//! has to lie on the agent's disk before. Every other operation gets it whole and verified, from the spool.

use crate::{
    agent::Agent,
    dispatch::Judged,
    hub::{
        payload::{Download, TransferError},
        stream::Stream,
    },
    job::{Job, Payload},
    registry::StopHandle,
    tunnel::backoff::{Backoff, random},
};
use bytes::Bytes;
use passerelle_connectors::Input;
use passerelle_protocol::{Code, Effect, Failure, PayloadDigest, Verdict, session::Attempt};
use std::{
    io::Cursor,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::AsyncRead,
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::io::StreamReader;
use tracing::{Instrument as _, debug, warn};

/// How often wrong content is fetched again before the attempt fails.
const MISMATCHES: u32 = 2;

/// Opens the payload, downloading it first if it is at the hub. `Ok(None)` if there is none; `Err(None)` if stopped.
pub async fn open(
    agent: &Arc<Agent>,
    job: &Job,
    judged: &Judged,
    stop: &StopHandle,
) -> Result<Option<Input>, Option<Failure>> {
    let Some(expected) = job.envelope.payload.clone() else { return Ok(None) };
    let input = |reader: Box<dyn AsyncRead + Send + Unpin>, expected: PayloadDigest| {
        Input::new(reader, expected.size, *expected.sha256.bytes(), expected.media_type)
    };
    match &job.payload {
        Payload::None => Ok(None),
        Payload::Inline(bytes) => {
            let bytes = bytes.clone();
            let again = bytes.clone();
            let input = input(Box::new(Cursor::new(bytes)), expected);
            Ok(Some(input.reopened_by(move || Ok(Box::new(Cursor::new(again.clone()))))))
        }
        Payload::AtHub if judged.streams(job) => {
            let reader = stream(agent, job, expected.size);
            Ok(Some(input(Box::new(reader), expected)))
        }
        Payload::AtHub => {
            let fetched = tokio::select! {
                fetched = download(agent, job, expected.clone()) => fetched,
                () = stop.token().cancelled() => return Err(None),
            };
            fetched.map_err(Some)?;
            let path = agent.spool.input(job.attempt);
            let file = tokio::fs::File::open(&path).await.map_err(|e| Some(disk(&e)))?;
            let reopen =
                move || Ok(Box::new(tokio::fs::File::from_std(std::fs::File::open(&path)?)) as Box<_>);
            Ok(Some(input(Box::new(file), expected).reopened_by(reopen)))
        }
    }
}

/// A way in which a payload comes, one try after the other.
trait Transfer {
    /// Bytes that have come.
    fn have(&self) -> u64;
    /// One try; goes on where the last one stopped.
    async fn go_on(&mut self, agent: &Agent, attempt: Attempt) -> Result<(), TransferError>;
}

impl Transfer for Download {
    fn have(&self) -> u64 {
        Download::have(self)
    }

    async fn go_on(&mut self, agent: &Agent, attempt: Attempt) -> Result<(), TransferError> {
        let counter = &agent.metrics.payload_bytes_in;
        Download::go_on(self, &agent.hub, &agent.identity, attempt, |n| {
            counter.inc_by(n);
        })
        .await
    }
}

impl Transfer for Stream {
    fn have(&self) -> u64 {
        Stream::have(self)
    }

    async fn go_on(&mut self, agent: &Agent, attempt: Attempt) -> Result<(), TransferError> {
        let counter = &agent.metrics.payload_bytes_in;
        Stream::go_on(self, &agent.hub, &agent.identity, attempt, |n| {
            counter.inc_by(n);
        })
        .await
    }
}

/// Brings the payload to the agent's spool, whole and verified.
async fn download(agent: &Arc<Agent>, job: &Job, expected: PayloadDigest) -> Result<(), Failure> {
    let path = agent.spool.input(job.attempt);
    let mut download = Download::open(&path, expected).await.map_err(|e| disk(&e))?;
    transfer(agent, job, &mut download).await
}

/// Starts a payload on its way to the connector; the reader fails if it does not come to its end.
fn stream(agent: &Arc<Agent>, job: &Job, size: u64) -> impl AsyncRead + Send + Unpin + use<> {
    let (mut stream, pieces) = Stream::new(size);
    let (agent, job) = (Arc::clone(agent), Job { payload: Payload::AtHub, ..job.clone() });
    let tasks = agent.tasks.clone();
    let work = async move {
        let sender = stream.sender();
        tokio::select! {
            ended = transfer(&agent, &job, &mut stream) => {
                if let Err(failure) = ended {
                    // A reader that is gone needs no reason.
                    drop(sender.send(Err(std::io::Error::other(failure.message))).await);
                }
            }
            () = sender.closed() => {}
        }
    };
    tasks.spawn(work.in_current_span());
    StreamReader::new(ReceiverStream(pieces))
}

/// The pieces as a stream, for the reader.
struct ReceiverStream(mpsc::Receiver<std::io::Result<Bytes>>);

impl futures_util::Stream for ReceiverStream {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// Goes on until the whole has come, however often the connection is cut, but not longer than the attempt's timeout
/// without a byte.
async fn transfer(agent: &Agent, job: &Job, transfer: &mut impl Transfer) -> Result<(), Failure> {
    let timeout = Duration::from_secs(job.envelope.timeout_s.max(1).into());
    let (mut backoff, mut mismatches, mut heard, mut have) =
        (Backoff::default(), 0, Instant::now(), transfer.have());
    loop {
        let Err(error) = transfer.go_on(agent, job.attempt).await else { return Ok(()) };
        if transfer.have() > have {
            (backoff, heard) = (Backoff::default(), Instant::now());
        }
        have = transfer.have();
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
