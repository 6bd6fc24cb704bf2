//! The bodies of the HTTPS calls beside the tunnel: enrolment and problem documents.

use crate::{AgentId, KeyId, Name, VerifyingKey};
use serde::{Deserialize, Serialize};

/// `POST` here to enrol; no authentication but the token in the body.
pub const ENROL_PATH: &str = "/agent/v1/enrol";
/// `GET` here with `Upgrade: websocket` opens the tunnel.
pub const TUNNEL_PATH: &str = "/agent/v1/tunnel";

/// `POST` here to register the agent's next key.
pub const KEYS_PATH: &str = "/agent/v1/keys";

/// Where the payload of an offered job is downloaded (`GET`, `Range` honoured).
#[must_use]
pub fn payload_path(job: crate::JobId) -> String {
    format!("/agent/v1/jobs/{job}/payload")
}

/// Where an attempt's output is uploaded: `POST` opens, `HEAD` tells the offset, `PATCH` appends, as in tus 1.0.
#[must_use]
pub fn output_path(job: crate::JobId, attempt: u32) -> String {
    format!("/agent/v1/jobs/{job}/attempts/{attempt}/output")
}

/// Where the payload of an event is uploaded before the event is sent, in the same way.
#[must_use]
pub fn event_payload_path(event: crate::EventId) -> String {
    format!("/agent/v1/events/{event}/payload")
}

/// Body of the enrolment request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The one-time token.
    pub token: String,
    /// The agent's new public key.
    pub public_key: VerifyingKey,
    /// The agent's name, as its operator wrote it.
    pub name: Name,
    /// The agent's version.
    pub agent_version: String,
    /// The identity that this one replaces: [`crate::AgentKey`] of that agent, naming the new key, signed by its old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
}

/// Answer to an enrolment (201).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolResponse {
    /// The agent's id.
    pub agent: AgentId,
    /// The tenant of the token.
    pub tenant: Name,
    /// The site of the token.
    pub site: Name,
    /// `orchestrator` or `hub`.
    pub application: String,
    /// The `aud` of the agent's tokens.
    pub audience: String,
    /// The keys that sign jobs, to be pinned.
    pub job_keys: Vec<VerifyingKey>,
    /// The agent that this one replaces, if the hub took `replaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<AgentId>,
    /// The hub's clock.
    pub server_time: jiff::Timestamp,
}

/// Body of the registration of an agent's next key: one statement ([`crate::AgentKey`]), signed twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRequest {
    /// Signed by a key that the hub knows as the agent's.
    pub by_old: String,
    /// Signed by the key that it names.
    pub by_new: String,
}

/// Answer to it (200).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyResponse {
    /// The key that is registered.
    pub key: KeyId,
    /// The hub's clock.
    pub server_time: jiff::Timestamp,
}

/// A problem document (RFC 9457), media type `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `about:blank`: the code is what identifies the problem.
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// The HTTP status in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The stable code.
    pub code: String,
    /// The hub's clock, on refusals of credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_time: Option<jiff::Timestamp>,
}

fn about_blank() -> String {
    "about:blank".to_owned()
}
