//! What hub and agent say to each other: messages, ids, limits, signatures and the session state machine.
//!
//! This crate is pure: no socket, no clock, no runtime. Time is always passed in. `docs/protocol.md` is the
//! specification that a second implementation is written from; `fixtures/v1/` holds one example per message.

mod bounds;
mod call;
mod code;
mod codec;
mod digest;
mod event;
pub mod http;
mod ids;
mod jws;
mod keys;
pub mod limits;
mod message;
mod name;
mod outcome;
pub mod session;
mod signed;
mod trace;
mod unverified;

pub use call::{Call, CallCancel, CallDeclined, CallResult, CallsAnnouncement};
pub use code::{ApiCode, Code};
pub use codec::{DecodeError, EncodeError, ToAgent, ToHub, decode_to_agent, decode_to_hub};
pub use digest::Sha256;
pub use event::{
    CHANGE, ChangeEvent, Event, EventAck, EventPayload, EventRefused, FileEvent, ListenerAnnouncement,
    NOTIFICATION, NotificationEvent, PICKUP, TriggerAnnouncement, TriggerCursor, TriggerLease, Triggers,
    WATCH,
};
pub use ids::{AgentId, BlobId, EventId, JobId, SessionId};
pub use jws::{JwsError, KeyId, SigningKey, VerifyingKey};
pub use keys::{AgentKey, HubKey};
pub use message::{
    Accept, Cancel, Commit, CommitGranted, ConnectorAnnouncement, Decline, Draining, Held, HeldAction,
    HeldJob, HeldState, Hello, HubKeys, Intent, Offer, OperationAnnouncement, Pause, PayloadSource, Progress,
    Refuse, Repeat, Report, ReportAck, ResourceAnnouncement, Unsupported, VersionRange, Welcome,
};
pub use name::{Name, NameError};
pub use outcome::{Effect, Failure, Outcome, OutputPayload, Verdict};
pub use signed::{AgentToken, CommitMode, Envelope, PayloadDigest, Receipt, Ticket, TokenRejected};
pub use trace::is_traceparent;

/// The protocol version this crate speaks; also the highest it accepts.
pub const PROTOCOL_VERSION: u16 = 1;
/// The WebSocket subprotocol (RFC 6455 §1.9) of the tunnel.
pub const SUBPROTOCOL: &str = "passerelle.v1";
