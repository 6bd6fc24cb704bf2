//! Has an output stored at the hub while its attempt still runs: an operation that takes away what the output was made
//! from waits for it. The spool keeps its copy until the report is acknowledged, in case the hub is restored from a backup
//! meanwhile.

use super::{
    spool::OutputSpool,
    upload::{Unstored, bring},
};
use crate::{agent::Agent, hub::payload::Source};
use passerelle_connectors::{Code, Failure, Keeper, Produced};
use passerelle_protocol::{OutputPayload, Sha256, session::Attempt};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Keeps the output of one run of an attempt.
pub struct HubKeeper {
    agent: Arc<Agent>,
    attempt: Attempt,
    spool: OutputSpool,
    cancel: CancellationToken,
    waiting: AtomicBool,
}

impl HubKeeper {
    /// What is written to `spool` is what is kept.
    pub fn new(agent: Arc<Agent>, attempt: Attempt, spool: OutputSpool, cancel: CancellationToken) -> Self {
        Self { agent, attempt, spool, cancel, waiting: AtomicBool::new(false) }
    }

    /// Whether the output is on its way, for as long as the hub is away: no progress is expected meanwhile.
    pub fn waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    async fn try_keep(&self, produced: &Produced) -> Result<(), Failure> {
        let spool = self.spool.clone();
        // Syncing a large file takes its time.
        let settled = tokio::task::spawn_blocking(move || spool.settle()).await;
        settled.map_err(std::io::Error::other).and_then(|settled| settled).map_err(|error| {
            Failure::retry(Code::Internal, "the output could not be stored on the agent's disk").detail(error)
        })?;
        let output = OutputPayload {
            size: produced.size,
            sha256: Sha256::from(produced.sha256),
            media_type: produced.media_type.clone(),
            data: None,
        };
        let source = Source::File(self.agent.spool.output(self.attempt));
        self.waiting.store(true, Ordering::Relaxed);
        let brought = tokio::select! {
            biased;
            () = self.cancel.cancelled() => None,
            brought = bring(&self.agent, self.attempt, &output, &source) => Some(brought),
        };
        self.waiting.store(false, Ordering::Relaxed);
        match brought {
            None => Err(Failure::cancelled()),
            Some(Ok(())) => Ok(()),
            Some(Err(Unstored::Unknown)) => {
                let message = "the hub does not know the attempt any more, so the file stays where it is";
                Err(Failure::retry(Code::Internal, message))
            }
            Some(Err(Unstored::Mismatch)) => {
                Err(Failure::retry(Code::DigestMismatch, "the output does not reach the hub unchanged"))
            }
            Some(Err(Unstored::Refused(refused))) => {
                warn!(error = %refused, "The hub does not take the output");
                let code = if refused.status == 413 { Code::TooLarge } else { Code::Internal };
                Err(Failure::permanent(
                    code,
                    format!("the hub does not take the output: {}", refused.message),
                ))
            }
            Some(Err(Unstored::Disk(error))) => {
                Err(Failure::retry(Code::Internal, "the output was lost on the agent's disk").detail(error))
            }
        }
    }
}

impl Keeper for HubKeeper {
    fn keep<'a>(
        &'a self,
        produced: &'a Produced,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(self.try_keep(produced))
    }
}
