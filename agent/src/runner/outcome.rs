//! Turns what a connector gave back into the outcome that is journalled and reported.

use super::spool::{OutputSpool, Stored};
use crate::{agent::Agent, clock, dispatch::Judged, job::Job};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_connectors::{Outcome as Done, Produced};
use passerelle_protocol::{
    Code, Effect, Failure, Outcome, OutputPayload, Receipt, Sha256, Verdict,
    limits::{self, MAX_JSON, MAX_JSON_DEPTH},
};
use serde_json::{Value, json};
use tracing::error;

/// The longest result that a receipt holds itself; of a longer one it holds the digest.
const MAX_RECEIPT_RESULT: usize = 16 * 1024;

/// A success, with receipt and output.
pub async fn success(
    agent: &Agent,
    job: &Job,
    judged: &Judged,
    done: Done,
    produced: Option<Produced>,
    spool: OutputSpool,
    recalled: bool,
) -> (Outcome, Option<Stored>) {
    if limits::depth(&done.result) > MAX_JSON_DEPTH {
        spool.discard();
        let message = format!("the result nests deeper than the {MAX_JSON_DEPTH} levels allowed");
        return (failed(Code::TooLarge, message), None);
    }
    let text = done.result.to_string();
    if text.len() > MAX_JSON {
        spool.discard();
        let message = format!("the result is longer than the {MAX_JSON} bytes allowed; ask for less at once");
        return (failed(Code::TooLarge, message), None);
    }
    // A call has its row of the audit.
    let receipt = if job.is_call() { None } else { receipt(agent, job, judged, &done, &text) };
    let Some(produced) = produced else {
        spool.discard();
        return (Outcome::Succeeded { result: done.result, output: None, receipt }, None);
    };
    let stored = if !recalled && (job.is_call() || !spool.is_in_file()) {
        // What is in memory needs no thread of its own, what somebody waits for no sync.
        Ok(spool.store_as_it_is())
    } else {
        // Syncing a large file takes its time.
        let store = move || if recalled { Ok(spool.recall()) } else { spool.store() };
        tokio::task::spawn_blocking(store).await.map_err(std::io::Error::other).and_then(|stored| stored)
    };
    let stored = match stored {
        Ok(stored) => stored,
        Err(cause) => {
            error!(error = %cause, "The output cannot be kept");
            return (failed(Code::Internal, "the output could not be stored on the agent's disk"), None);
        }
    };
    let data = match &stored {
        Stored::Memory(bytes) => Some(STANDARD.encode(bytes)),
        Stored::Held(_) | Stored::File | Stored::AtHub => None,
    };
    let output = OutputPayload {
        size: produced.size,
        sha256: Sha256::from(produced.sha256),
        media_type: produced.media_type,
        data,
    };
    (Outcome::Succeeded { result: done.result, output: Some(output), receipt }, Some(stored))
}

fn failed(code: Code, message: impl Into<String>) -> Outcome {
    Outcome::Failed(Failure::new(Verdict::Permanent, Effect::Unknown, code, message))
}

fn receipt(agent: &Agent, job: &Job, judged: &Judged, done: &Done, text: &str) -> Option<String> {
    let result: Value = if text.len() <= MAX_RECEIPT_RESULT {
        done.result.clone()
    } else {
        json!({ "sha256": Sha256::of(text.as_bytes()) })
    };
    let receipt = Receipt {
        agent: agent.identity.enrolled.agent,
        job: job.attempt.job,
        attempt: job.attempt.number,
        resource: job.envelope.resource.clone(),
        operation: job.envelope.operation.clone(),
        rule: format!("{}#{}", job.envelope.resource, judged.rule),
        iat: clock::unix_seconds(),
        result,
        durability: done.synced.map(|synced| if synced { "synced" } else { "unsynced" }.to_owned()),
    };
    let signed = agent.identity.key().sign(Receipt::TYP, &receipt);
    signed.map_err(|error| error!(%error, "A receipt cannot be signed")).ok()
}
