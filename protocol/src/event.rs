//! Events: what a trigger on a private resource saw, and which agent of a site may run it.
//!
//! An event's id is a hash of what happened, not a number of who saw it: two agents that see the same file give it the
//! same id, and the hub keeps one.

use crate::{EventId, Name, PayloadSource, Sha256};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The kind of a trigger that takes each new file of a folder.
pub const PICKUP: &str = "pickup";
/// The kind of a trigger that watches one file for change.
pub const WATCH: &str = "watch";

/// One trigger of a resource, as announced in [`crate::Hello`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TriggerAnnouncement {
    /// The resource, one of those announced.
    pub resource: Name,
    /// Its name, unique in the resource.
    pub name: Name,
    /// Its kind: [`PICKUP`] or [`WATCH`]. A kind that the hub does not know gets no lease.
    pub kind: Name,
}

/// The right to run one trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerLease {
    /// The resource.
    pub resource: Name,
    /// The trigger.
    pub trigger: Name,
    /// Grows whenever the trigger goes to another agent.
    pub lease: u64,
    /// How long it holds, counted from its receipt; absent: without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
}

/// Hub to agent: all the triggers that it may run from now on. One that is not listed stops before its next file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Triggers {
    /// Counts these messages of a connection: an older one that comes late says nothing.
    pub serial: u64,
    /// One entry per trigger.
    pub leases: Vec<TriggerLease>,
}

/// The content that belongs to an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPayload {
    /// Its size in bytes.
    pub size: u64,
    /// Its digest.
    pub sha256: Sha256,
    /// Its media type.
    pub media_type: String,
    /// Where it is: here, or uploaded before to [`crate::http::event_payload_path`].
    pub source: PayloadSource,
}

/// Agent to hub: something happened at a resource. Sent until it is acknowledged, from the agent's spool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Which, whoever saw it. For files: [`FileEvent::id`].
    pub id: EventId,
    /// The resource.
    pub resource: Name,
    /// The trigger that saw it.
    pub trigger: Name,
    /// The trigger's kind.
    pub kind: Name,
    /// The lease under which it was seen.
    pub lease: u64,
    /// When it was seen.
    pub occurred_at: Timestamp,
    /// What happened: a JSON object of at most [`crate::limits::MAX_EVENT_DATA`] bytes; [`FileEvent`] for files.
    pub data: Value,
    /// The content that belongs to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<EventPayload>,
}

/// Hub to agent: the event is stored; the agent may forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventAck {
    /// The event.
    pub id: EventId,
    /// The hub had it already.
    pub duplicate: bool,
}

/// Hub to agent: the event was not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRefused {
    /// The event.
    pub id: EventId,
    /// Why: `bad_request`, `conflict`, `digest_mismatch`, `forbidden`, `not_found`, `quota`, `too_large`.
    pub code: String,
    /// Why and what to do, in a public sentence.
    pub message: String,
    /// When to send it again, in milliseconds; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// The `data` of an event of kind [`PICKUP`] or [`WATCH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEvent {
    /// The file, relative to the resource's root.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// The digest of its content.
    pub sha256: Sha256,
    /// When it was last changed; absent where the server does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified_at: Option<Timestamp>,
}

impl FileEvent {
    /// The id of the event that a trigger of `kind` on `resource` of `site` makes of this file: the same at every agent,
    /// and another for every other content, time or place.
    #[must_use]
    pub fn id(&self, site: &Name, resource: &Name, kind: &Name) -> EventId {
        let modified_at = self.modified_at.map(|at| at.to_string()).unwrap_or_default();
        let parts = [
            site.as_str(),
            resource.as_str(),
            kind.as_str(),
            &self.path,
            &self.size.to_string(),
            &modified_at,
            &self.sha256.to_string(),
        ];
        let mut text = Vec::new();
        for part in parts {
            // With its length before it no part can pass for the end of one and the start of the next. A part is never
            // as long as 4 GiB: an event's data is not.
            text.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            text.extend_from_slice(part.as_bytes());
        }
        EventId::of_digest(&Sha256::of(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::{FileEvent, PICKUP, WATCH};
    use crate::{Name, Sha256};
    use std::collections::BTreeSet;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn the_id_is_of_version_8_and_every_part_counts() {
        let file = FileEvent {
            path: "in/a.csv".to_owned(),
            size: 3,
            sha256: Sha256::of(b"abc"),
            modified_at: Some("2026-11-21T06:00:00.25Z".parse().unwrap()),
        };
        let (site, resource, pickup) = (name("paris"), name("compta"), name(PICKUP));
        let id = file.id(&site, &resource, &pickup);
        assert_eq!(id, file.clone().id(&site, &resource, &pickup));
        assert_eq!((id.uuid().get_version_num(), id.uuid().get_variant()), (8, uuid::Variant::RFC4122));
        let other = |change: fn(&mut FileEvent)| {
            let mut file = file.clone();
            change(&mut file);
            file.id(&site, &resource, &pickup)
        };
        let ids = [
            id,
            file.id(&name("lyon"), &resource, &pickup),
            file.id(&site, &name("compt"), &pickup),
            file.id(&site, &resource, &name(WATCH)),
            // The same letters, parted elsewhere.
            file.id(&name("parisc"), &name("ompta"), &pickup),
            other(|file| file.path.push('x')),
            other(|file| file.size = 4),
            other(|file| file.sha256 = Sha256::of(b"abd")),
            other(|file| file.modified_at = None),
            other(|file| file.modified_at = Some("2026-11-21T06:00:00.250000001Z".parse().unwrap())),
        ];
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }
}
