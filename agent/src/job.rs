//! One attempt of a job as the agent holds it, from offer to report.

use bytes::Bytes;
use jiff::Timestamp;
use passerelle_protocol::{Envelope, Ticket, session::Attempt};
use serde_json::Value;

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

/// An accepted attempt. Everything in it is verified and journalled.
#[derive(Debug, Clone)]
pub struct Job {
    /// Job and attempt.
    pub attempt: Attempt,
    /// What is to be done.
    pub envelope: Envelope,
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
}
