//! Messages as frames: the two enums by direction, and how they are read and written.

use crate::{
    bounds::Bounded,
    call::{Call, CallCancel, CallDeclined, CallResult},
    event::{Event, EventAck, EventRefused, TriggerCursor, Triggers},
    limits::{MAX_FRAME, MAX_TEXT},
    message::{
        Accept, Cancel, Commit, CommitGranted, Decline, Draining, Hello, HubKeys, Offer, Progress, Refuse,
        Report, ReportAck, Unsupported, Welcome,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

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
    HubKeys = "hub_keys",
    Offer = "offer",
    CommitGranted = "commit_granted",
    ReportAck = "report_ack",
    Cancel = "cancel",
    EventAck = "event_ack",
    EventRefused = "event_refused",
    Triggers = "triggers",
    Call = "call",
    CallCancel = "call_cancel",
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
    Event = "event",
    CallResult = "call_result",
    CallDeclined = "call_declined",
    TriggerCursor = "trigger_cursor",
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
    // Fields in their order, without their names, are no message, though the library would take them.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(DecodeError::NotAMessage("expected a JSON object".to_owned()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VersionRange;

    #[test]
    fn unknown_fields_are_ignored_and_unknown_types_are_named() {
        let id = "01936b0c-7e6a-7000-8000-000000000001";
        let text = format!(r#"{{"type":"accept","job":"{id}","attempt":1,"later":{{"x":[1]}}}}"#);
        assert!(matches!(decode_to_hub(&text), Ok(ToHub::Accept(Accept { attempt: 1, .. }))));
        assert_eq!(
            decode_to_hub(r#"{"type":"teleport"}"#),
            Err(DecodeError::UnknownType("teleport".to_owned()))
        );
        for array in ["[]".to_owned(), r#"["unsupported"]"#.to_owned(), format!(r#" ["accept","{id}",1]"#)] {
            assert!(matches!(decode_to_hub(&array), Err(DecodeError::NotAMessage(_))), "{array}");
        }
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
