//! Calls: an operation carried out at once for somebody who waits. Nothing of a call is stored, sent again or retried.
//!
//! Its envelope is that of a job, but of a type of its own, so that neither ever passes for the other: what is signed as a
//! job is done once by the journal, what is signed as a call by the short life of its envelope and the agent's memory.

use crate::{Code, JobId, Outcome, PayloadSource, code::lenient};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What an agent that takes calls says of them in [`crate::Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallsAnnouncement {
    /// How many it takes at once, at most [`crate::limits::MAX_CALLS`].
    pub max: u32,
    /// Envelopes that were issued in this second of its clock may be refused as replayed, earlier ones are.
    pub issued_after: i64,
}

/// Hub to agent: do this now. Sent once; answered with [`CallResult`] or [`CallDeclined`] while the connection lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The call's id: the `job` of envelope and ticket.
    pub call: JobId,
    /// [`crate::Envelope`] as a compact JWS of the type [`crate::Envelope::CALL_TYP`].
    pub envelope: String,
    /// [`crate::Ticket`] as a compact JWS, for attempt 1.
    pub ticket: String,
    /// Where the payload is, if the call has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadSource>,
    /// W3C trace context of the client's request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Agent to hub: how the call ended. Sent once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallResult {
    /// The call.
    pub call: JobId,
    /// How it ended; without a receipt.
    pub outcome: Outcome,
    /// When the connector started; absent if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Agent to hub: the call was not taken and nothing happened; `replayed` says nothing of an earlier copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallDeclined {
    /// The call.
    pub call: JobId,
    /// `busy`, `paused`, `signature_invalid`, `envelope_expired`, `replayed`, `cancelled`, `internal`.
    #[serde(deserialize_with = "lenient")]
    pub code: Code,
    /// Why, in a public sentence.
    pub message: String,
    /// When to come back, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Hub to agent: nobody waits for the call any more: stop it if its effect has not happened, or never start it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCancel {
    /// The call.
    pub call: JobId,
}
