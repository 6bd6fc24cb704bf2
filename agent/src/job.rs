//! One attempt of a job as the agent holds it, from offer to report; or a call, which is its own only attempt.

use bytes::Bytes;
use jiff::Timestamp;
use passerelle_protocol::{Envelope, KeyId, Ticket, session::Attempt};
use serde_json::Value;
use tokio::time::Instant;

/// Where the payload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The job has none.
    None,
    /// It came with the offer.
    Inline(Bytes),
    /// At the hub, to be downloaded beside the tunnel.
    AtHub,
}

/// How long a call may take: counted from its receipt, so that clocks that differ do not matter.
#[derive(Debug, Clone, Copy)]
pub struct CallTimes {
    /// The connector starts by then.
    pub starts_by: Instant,
    /// It has ended by then, come what may.
    pub ends: Instant,
}

/// An accepted attempt. Everything in it is verified and journalled.
#[derive(Debug, Clone)]
pub struct Job {
    /// Job and attempt.
    pub attempt: Attempt,
    /// What is to be done.
    pub envelope: Envelope,
    /// The key that signed it; unknown of what an older version accepted.
    pub signer: Option<KeyId>,
    /// The hub's word on this attempt.
    pub ticket: Ticket,
    /// The payload.
    pub payload: Payload,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// When the connector started, if an earlier run of this process had come so far.
    pub started_at: Option<Timestamp>,
    /// The connector's intent, if an earlier run had come so far.
    pub intent: Option<Value>,
    /// Whether an earlier run of this program held it.
    pub resumed: bool,
    /// Of a call; a job has none.
    pub call: Option<CallTimes>,
}

impl Job {
    /// Whether it is a call: somebody waits for it, and nothing of it is journalled.
    pub fn is_call(&self) -> bool {
        self.call.is_some()
    }
}
