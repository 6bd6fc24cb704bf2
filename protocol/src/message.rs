//! The control messages: JSON objects with a `type`, one per WebSocket text frame.
//!
//! Unknown fields are ignored, so messages grow by addition. A message of unknown `type` is answered with
//! [`Unsupported`] by the session and otherwise ignored.

use crate::{
    AgentId, Code, JobId, Name, SessionId, Sha256,
    limits::{MAX_FRAME, MAX_INLINE_PAYLOAD, MAX_JSON, MAX_RESOURCES, MAX_TEXT},
    outcome::{Effect, Outcome, cut_message},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The protocol versions one side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The lowest.
    pub min: u16,
    /// The highest.
    pub max: u16,
}

impl VersionRange {
    /// The highest version that both speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u16> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

/// How an operation may be repeated after an attempt whose effect is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repeat {
    /// Doing it twice has the effect of doing it once.
    Safe,
    /// The target tells repetitions by the idempotency key.
    WithKey,
    /// Never blindly.
    Never,
}

/// One operation of a connector, as announced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationAnnouncement {
    /// Its name.
    pub name: Name,
    /// JSON Schema (2020-12) of its parameters.
    pub params_schema: Value,
    /// How it repeats.
    pub repeat: Repeat,
}

/// A kind of connector, as announced: said once, however many resources use it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectorAnnouncement {
    /// What it can do.
    pub operations: Vec<OperationAnnouncement>,
}

/// One resource, as announced. Never a host, path or secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceAnnouncement {
    /// Its name.
    pub name: Name,
    /// Its kind of connector: a key of [`Hello::connectors`].
    pub connector: Name,
    /// The operations that at least one local rule allows.
    pub operations: Vec<Name>,
    /// How many of its jobs the agent takes at once.
    pub max_concurrent: u32,
    /// How many attempts may start per minute; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_minute: Option<u32>,
}

/// How far the agent is with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldState {
    /// Accepted, the connector has not started.
    Accepted,
    /// The connector has started.
    Running,
    /// Finished; its report follows.
    Finished,
}

/// An attempt that the agent holds when it connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldJob {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// The resource.
    pub resource: Name,
    /// How far it is.
    pub state: HeldState,
}

/// Agent to hub, first frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions the agent speaks.
    pub versions: VersionRange,
    /// The agent; must be the one of the token.
    pub agent: AgentId,
    /// Its name, as its operator wrote it.
    pub name: Name,
    /// Its software version.
    pub agent_version: String,
    /// Random per process start: tells a reconnect from a second process with the same identity.
    pub instance: String,
    /// How many jobs the agent holds at once, at most.
    pub max_jobs: u32,
    /// The kinds of connector its resources use.
    pub connectors: BTreeMap<Name, ConnectorAnnouncement>,
    /// Its resources.
    pub resources: Vec<ResourceAnnouncement>,
    /// The attempts it holds.
    pub held: Vec<HeldJob>,
}

/// What the agent is to do with a held attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldAction {
    /// Go on.
    Keep,
    /// The hub does not know it, or gave it up: stop before the effect if still possible, and report.
    Stop,
}

/// The hub's word on one held attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// What to do with it.
    pub action: HeldAction,
}

/// Hub to agent: the session is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u16,
    /// This connection.
    pub session: SessionId,
    /// Counts the agent's connections; older ones are fenced.
    pub epoch: u64,
    /// The agent's tenant.
    pub tenant: Name,
    /// The agent's site.
    pub site: Name,
    /// The hub's clock.
    pub server_time: Timestamp,
    /// One entry per held attempt of `Hello`.
    pub held: Vec<Held>,
}

/// Hub to agent: no session; the hub closes the connection after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Why: `version`, `revoked`, `tier_required`, `application_incompatible`, `bad_hello`, `fenced`, `busy`.
    pub code: String,
    /// Why and what to do, in a sentence.
    pub message: String,
    /// Whether coming back is pointless until an operator acts.
    pub permanent: bool,
    /// When to come back, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// The versions the hub speaks.
    pub versions: VersionRange,
    /// The hub's clock.
    pub server_time: Timestamp,
}

/// Where the agent finds an offered job's payload. Size and digest are in the envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum PayloadSource {
    /// Here, in base64; up to 256 KiB decoded.
    Inline {
        /// The content in base64 (RFC 4648 §4, padded).
        data: String,
    },
    /// At the hub, `GET` [`crate::http::payload_path`].
    Hub,
}

/// Hub to agent: one attempt of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The job.
    pub job: JobId,
    /// The attempt, counted from 1.
    pub attempt: u32,
    /// [`crate::Envelope`] as a compact JWS.
    pub envelope: String,
    /// [`crate::Ticket`] as a compact JWS.
    pub ticket: String,
    /// Where the payload is, if the job has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadSource>,
    /// W3C trace context of the client's request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Agent to hub: the attempt is in the agent's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
}

/// Agent to hub: the attempt was not taken and nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decline {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// `busy`, `paused`, `breaker_open`, `signature_invalid`, `envelope_expired`, `replayed`, `deadline`, `internal`.
    pub code: Code,
    /// Why, in a public sentence.
    pub message: String,
    /// When to offer again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Agent to hub: the connector has started, or has come further.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// When the connector started.
    pub started_at: Timestamp,
    /// Bytes moved so far.
    pub bytes_done: u64,
    /// Bytes to move, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
}

/// What a final effect will be, said before it happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The part beside the target, relative to the resource's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// The final path, relative to the resource's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Size of the content in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Digest of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
}

/// Agent to hub: may the attempt have its final effect? Sent where the ticket says `commit: "ask"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// What the effect will be.
    pub intent: Intent,
}

/// Hub to agent: the attempt may have its final effect. Stored at the hub before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitGranted {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
}

/// Agent to hub: how the attempt ended. Sent until acknowledged, from the agent's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// When the connector started; absent if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Hub to agent: the report is stored; the agent may forget the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAck {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
}

/// Hub to agent: stop the attempt if its effect has not happened; a report follows in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
}

/// Agent to hub: offer nothing more; running attempts are being finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// How long the agent will still be there, in seconds.
    pub grace_s: u32,
}

/// Either way: a message of this type is not known here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    /// The `type` that was not understood, cut to 64 characters.
    pub of: String,
}

macro_rules! messages {
    ($(#[$doc:meta])* $name:ident, $decode:ident: $($variant:ident = $tag:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "type")]
        pub enum $name {
            $(#[doc = concat!("`", $tag, "`")] #[serde(rename = $tag)] $variant($variant),)*
        }

        $(impl From<$variant> for $name {
            fn from(message: $variant) -> Self {
                Self::$variant(message)
            }
        })*

        impl $name {
            /// The `type` of every message this way.
            pub const TYPES: &[&str] = &[$($tag,)*];

            /// The message as JSON text.
            ///
            /// # Errors
            /// If it breaks a limit that the other side would refuse it for, or is longer than [`MAX_FRAME`].
            pub fn encode(&self) -> Result<String, EncodeError> {
                match self {
                    $(Self::$variant(message) => message.check().map_err(EncodeError)?,)*
                }
                let text = serde_json::to_string(self).map_err(|e| EncodeError(e.to_string()))?;
                if text.len() > MAX_FRAME {
                    return Err(EncodeError(format!("the message has {} bytes, more than a frame may", text.len())));
                }
                Ok(text)
            }
        }

        /// Reads a frame.
        ///
        /// # Errors
        /// See [`DecodeError`].
        pub fn $decode(text: &str) -> Result<$name, DecodeError> {
            match message_type(text)?.as_str() {
                $($tag => body(text, $tag).map($name::$variant),)*
                other => Err(DecodeError::UnknownType(other.chars().take(64).collect())),
            }
        }
    };
}

messages! {
    /// A message from hub to agent.
    ToAgent, decode_to_agent:
    Welcome = "welcome",
    Refuse = "refuse",
    Offer = "offer",
    CommitGranted = "commit_granted",
    ReportAck = "report_ack",
    Cancel = "cancel",
    Unsupported = "unsupported",
}

messages! {
    /// A message from agent to hub.
    ToHub, decode_to_hub:
    Hello = "hello",
    Accept = "accept",
    Decline = "decline",
    Progress = "progress",
    Commit = "commit",
    Report = "report",
    Draining = "draining",
    Unsupported = "unsupported",
}

/// A message that cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unsendable message: {0}")]
pub struct EncodeError(String);

/// Why a frame is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is longer than the {MAX_FRAME} allowed")]
    TooLong(usize),
    /// Not a JSON object with a text `type`.
    #[error("not a message: {0}")]
    NotAMessage(String),
    /// A known type with missing or mistyped fields.
    #[error("malformed {kind}: {detail}")]
    Malformed {
        /// The message's type.
        kind: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// A type that is not known here; the session answers it and goes on.
    #[error("unknown message type {0:?}")]
    UnknownType(String),
}

fn message_type(text: &str) -> Result<String, DecodeError> {
    #[derive(Deserialize)]
    struct Tag {
        r#type: String,
    }
    if text.len() > MAX_FRAME {
        return Err(DecodeError::TooLong(text.len()));
    }
    serde_json::from_str::<Tag>(text).map(|tag| tag.r#type).map_err(|e| DecodeError::NotAMessage(detail(&e)))
}

/// The parser's sentence, which may quote the frame at any length.
fn detail(error: &serde_json::Error) -> String {
    error.to_string().chars().take(MAX_TEXT).collect()
}

fn body<T: DeserializeOwned + Bounded>(text: &str, kind: &'static str) -> Result<T, DecodeError> {
    let malformed = |detail: String| DecodeError::Malformed { kind, detail };
    let mut message: T = serde_json::from_str(text).map_err(|e| malformed(detail(&e)))?;
    message.check().map_err(malformed)?;
    message.cut();
    Ok(message)
}

/// Rules on a message's fields beyond their types.
trait Bounded {
    /// What both sides must keep to: checked before sending and after receiving.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
    /// Cuts sentences meant for people to their longest.
    fn cut(&mut self) {}
}

fn short(field: &str, text: &str) -> Result<(), String> {
    if text.len() > MAX_TEXT {
        return Err(format!("{field} has {} bytes, more than {MAX_TEXT}", text.len()));
    }
    Ok(())
}

fn inline(data: &str) -> Result<(), String> {
    if data.len() > MAX_INLINE_PAYLOAD.div_ceil(3) * 4 {
        return Err(format!("an inline payload is larger than {MAX_INLINE_PAYLOAD} bytes"));
    }
    Ok(())
}

impl Bounded for Hello {
    fn check(&self) -> Result<(), String> {
        if self.resources.len() > MAX_RESOURCES {
            return Err(format!("{} resources, more than {MAX_RESOURCES}", self.resources.len()));
        }
        short("agent_version", &self.agent_version)?;
        short("instance", &self.instance)?;
        let mut names = BTreeSet::new();
        if let Some(r) = self.resources.iter().find(|r| !names.insert(&r.name)) {
            return Err(format!("resource {} is announced twice", r.name));
        }
        if let Some(r) = self.resources.iter().find(|r| !self.connectors.contains_key(&r.connector)) {
            return Err(format!("resource {} names a connector that is not announced", r.name));
        }
        Ok(())
    }
}
impl Bounded for Offer {
    fn check(&self) -> Result<(), String> {
        if self.attempt == 0 {
            return Err("attempts count from 1".to_owned());
        }
        match &self.payload {
            Some(PayloadSource::Inline { data }) => inline(data),
            Some(PayloadSource::Hub) | None => Ok(()),
        }
    }
}
impl Bounded for Refuse {
    fn check(&self) -> Result<(), String> {
        short("code", &self.code)
    }
    fn cut(&mut self) {
        cut_message(&mut self.message);
    }
}
impl Bounded for Decline {
    fn cut(&mut self) {
        cut_message(&mut self.message);
    }
}
impl Bounded for Report {
    fn check(&self) -> Result<(), String> {
        match &self.outcome {
            Outcome::Succeeded { result, output, .. } => {
                let json = serde_json::to_string(result).map_err(|e| e.to_string())?.len();
                if json > MAX_JSON {
                    return Err(format!("a result of {json} bytes is larger than {MAX_JSON}"));
                }
                output.as_ref().map_or(Ok(()), |output| {
                    short("media_type", &output.media_type)?;
                    inline(output.data.as_deref().unwrap_or_default())
                })
            }
            Outcome::Failed(failure) if failure.effect == Effect::Applied => {
                Err("a failure was not applied, or it is not known".to_owned())
            }
            Outcome::Failed(_) => Ok(()),
        }
    }
    fn cut(&mut self) {
        if let Outcome::Failed(failure) = &mut self.outcome {
            cut_message(&mut failure.message);
        }
    }
}
impl Bounded for Welcome {}
impl Bounded for CommitGranted {}
impl Bounded for ReportAck {}
impl Bounded for Cancel {}
impl Bounded for Unsupported {}
impl Bounded for Accept {}
impl Bounded for Progress {}
impl Bounded for Commit {}
impl Bounded for Draining {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_ignored_and_unknown_types_are_named() {
        let id = "01936b0c-7e6a-7000-8000-000000000001";
        let text = format!(r#"{{"type":"accept","job":"{id}","attempt":1,"later":{{"x":[1]}}}}"#);
        assert!(matches!(decode_to_hub(&text), Ok(ToHub::Accept(Accept { attempt: 1, .. }))));
        assert_eq!(
            decode_to_hub(r#"{"type":"teleport"}"#),
            Err(DecodeError::UnknownType("teleport".to_owned()))
        );
        assert!(matches!(decode_to_hub("[]"), Err(DecodeError::NotAMessage(_))));
        assert!(matches!(decode_to_hub(r#"{"type":7}"#), Err(DecodeError::NotAMessage(_))));
        assert!(matches!(
            decode_to_hub(r#"{"type":"accept"}"#),
            Err(DecodeError::Malformed { kind: "accept", .. })
        ));
        assert!(matches!(decode_to_hub(&" ".repeat(MAX_FRAME + 1)), Err(DecodeError::TooLong(_))));
        let deep = format!(r#"{{"type":"accept","x":{}}}"#, "[".repeat(100_000));
        assert!(matches!(decode_to_hub(&deep), Err(DecodeError::NotAMessage(_))));
    }

    #[test]
    fn versions_meet_at_the_highest_common_one() {
        let range = |min, max| VersionRange { min, max };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(1, 1).common(range(2, 5)), None);
    }
}
