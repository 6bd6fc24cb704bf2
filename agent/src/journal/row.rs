//! An accepted attempt as it is written.

use super::{JournalError, Key, json, key};
use crate::job::{Job, Payload};
use bytes::Bytes;

/// A row to be inserted, owned, for the writer's thread.
pub(super) struct NewRow {
    pub(super) key: Key,
    pub(super) resource: String,
    pub(super) envelope: String,
    pub(super) signer: Option<String>,
    pub(super) ticket: String,
    pub(super) at_hub: bool,
    pub(super) payload: Option<Bytes>,
    pub(super) traceparent: Option<String>,
    pub(super) expires: i64,
    pub(super) max_attempts: u32,
    pub(super) accepted_at: i64,
    pub(super) intent: Option<String>,
    pub(super) leftover: Option<String>,
}

impl NewRow {
    pub(super) fn of(job: &Job) -> Result<Self, JournalError> {
        Ok(Self {
            key: key(job.attempt),
            resource: job.envelope.resource.to_string(),
            envelope: json(&job.envelope)?,
            signer: job.signer.as_ref().map(ToString::to_string),
            ticket: json(&job.ticket)?,
            at_hub: job.payload == Payload::AtHub,
            payload: match &job.payload {
                Payload::Inline(bytes) => Some(bytes.clone()),
                Payload::None | Payload::AtHub => None,
            },
            traceparent: job.traceparent.clone(),
            expires: job.envelope.exp.max(job.ticket.exp),
            max_attempts: job.envelope.max_attempts,
            accepted_at: job.accepted_at.as_millisecond(),
            intent: job.intent.as_ref().map(json).transpose()?,
            leftover: None,
        })
    }
}
