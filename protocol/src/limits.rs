//! Every bound of the protocol, in one place. Sizes in bytes.

use serde_json::Value;
use std::time::Duration;

/// The longest control message, as text. A longer frame ends the session.
pub const MAX_FRAME: usize = 1024 * 1024;
/// Payloads up to this size travel inside `Offer`, `Report` and `Event`; larger ones beside the tunnel.
pub const MAX_INLINE_PAYLOAD: usize = 256 * 1024;
/// The longest `params` of a job and `result` of an operation, as JSON text.
pub const MAX_JSON: usize = 256 * 1024;
/// How deep objects and lists may nest in them: readers of JSON end at 128 levels, of which messages and answers have some.
pub const MAX_JSON_DEPTH: usize = 64;

/// How deep objects and lists nest in a value that a reader of JSON gave: a text or number has depth 0.
#[must_use]
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// The longest public sentence of a failure; longer ones are cut at a character boundary.
pub const MAX_MESSAGE: usize = 1024;
/// The longest `state` of an intent, as JSON text.
pub const MAX_INTENT_STATE: usize = 4 * 1024;
/// The longest path of an intent, its part's or its target's.
pub const MAX_INTENT_PATH: usize = 8 * 1024;
/// The longest envelope that a client may sign, as text: with a payload inside it still fits into an offer.
pub const MAX_ENVELOPE: usize = 512 * 1024;
/// The longest `data` of an event, as JSON text.
pub const MAX_EVENT_DATA: usize = 16 * 1024;
/// How many jobs an agent may hold at once, whatever it announces.
pub const MAX_JOBS: u32 = 1024;
/// How many calls an agent may have at once, whatever it announces.
pub const MAX_CALLS: u32 = 1024;
/// How many resources an agent may announce.
pub const MAX_RESOURCES: usize = 500;
/// How many triggers an agent may announce.
pub const MAX_TRIGGERS: usize = 1000;
/// How many listeners an agent may announce.
pub const MAX_LISTENERS: usize = 64;
/// The longest cursor of a change feed.
pub const MAX_CURSOR: usize = 4 * 1024;
/// How many events may wait for their answer before the agent pauses sending more.
pub const MAX_UNACKED_EVENTS: usize = 16;
/// How many bytes of unanswered events an agent session keeps for re-sending (at least one event always fits).
pub const MAX_UNACKED_EVENT_BYTES: usize = 2 * 1024 * 1024;
/// How many reports may wait for their acknowledgement before the agent pauses sending more.
pub const MAX_UNACKED_REPORTS: usize = 64;
/// How many bytes of unacknowledged reports an agent session keeps for re-sending (at least one report always fits).
pub const MAX_UNACKED_REPORT_BYTES: usize = 1024 * 1024;
/// How many bytes of unanswered offers a hub session keeps for re-sending (at least one offer always fits).
pub const MAX_UNANSWERED_OFFER_BYTES: usize = 16 * 1024 * 1024;
/// How many frames may wait for a peer that does not read; past it the session ends.
pub const MAX_QUEUED_FRAMES: usize = 8192;
/// How many bytes of frames may wait for a peer that does not read; past it the session ends.
pub const MAX_QUEUED_BYTES: usize = 24 * 1024 * 1024;
/// The longest of the short free texts: versions, media types, the instance of a hello.
pub const MAX_TEXT: usize = 256;
/// How many statements one message `hub_keys` carries, and how many keys a hello names.
pub const MAX_HUB_KEYS: usize = 64;
/// The longest name of a tenant, site, resource or operation.
pub const MAX_NAME: usize = 64;

/// Both sides send a WebSocket ping after this long without having sent one.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// A peer from which nothing came for this long is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(25);
/// `Hello` and `Welcome` must have come by then.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// An unanswered offer, report, event, commit or cancel is sent again after this long.
pub const RESEND: Duration = Duration::from_secs(10);

/// How long a hub-signed envelope and its ticket live.
pub const ENVELOPE_LIFE: Duration = Duration::from_secs(15 * 60);
/// How long a call may take, and the longest life of its envelope and ticket.
pub const CALL_LIFE: Duration = Duration::from_secs(60);
/// How long an agent's token (`Authorization: Bearer`) may live.
pub const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// The clock difference between hub and agent that is tolerated.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);
