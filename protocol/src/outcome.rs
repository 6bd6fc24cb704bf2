//! How an attempt ended: success, or a failure told on two axes, verdict and effect.

use crate::{Code, Sha256, code::lenient, limits::MAX_MESSAGE};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// What should happen next with a failed attempt's job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Worth another attempt, if deadline, attempts and effect allow one.
    Retry,
    /// Another attempt would end the same way.
    Permanent,
    /// The local policy forbids it.
    Denied,
    /// It was cancelled.
    Cancelled,
}

/// What an attempt did to the private system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It took effect.
    Applied,
    /// It certainly had no effect.
    NotApplied,
    /// It may or may not have had its effect.
    Unknown,
}

/// Cuts a sentence to [`MAX_MESSAGE`] bytes, at a character boundary.
pub(crate) fn cut_message(message: &mut String) {
    cut(message, MAX_MESSAGE);
}

/// Cuts a text to `longest` bytes, at a character boundary.
pub(crate) fn cut(text: &mut String, longest: usize) {
    text.truncate(text.floor_char_boundary(longest));
}

/// Why an attempt failed, in terms the cloud may know: no host, path outside the root, or credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What should happen next.
    pub verdict: Verdict,
    /// What it did; never `applied`.
    pub effect: Effect,
    /// The stable code.
    #[serde(deserialize_with = "lenient")]
    pub code: Code,
    /// One public sentence.
    pub message: String,
    /// The private system's own hint when to come back, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Failure {
    /// Makes a failure; a message longer than [`MAX_MESSAGE`] is cut.
    #[must_use]
    pub fn new(verdict: Verdict, effect: Effect, code: Code, message: impl Into<String>) -> Self {
        let mut message = message.into();
        cut_message(&mut message);
        Self { verdict, effect, code, message, retry_after_ms: None }
    }

    /// Adds the target's hint when to come back.
    #[must_use]
    pub fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after_ms = after.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        self
    }
}

/// The output payload of a success: inline as base64, or already uploaded beside the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPayload {
    /// Size in bytes.
    pub size: u64,
    /// Digest of the content.
    pub sha256: Sha256,
    /// Media type (RFC 9110 §8.3.1).
    pub media_type: String,
    /// The content in base64, up to 256 KiB decoded; absent if it was uploaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It took effect.
    Succeeded {
        /// The operation's JSON result.
        result: Value,
        /// The output payload, if the operation has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<OutputPayload>,
        /// The receipt: a compact JWS by the agent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        receipt: Option<String>,
    },
    /// It failed.
    Failed(Failure),
}
