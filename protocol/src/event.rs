//! Events: what a trigger on a private resource saw, and which agent of a site may run it.
//!
//! An event's id is a hash of what happened, not a number of who saw it: two agents that see the same file give it the
//! same id, and the hub keeps one.

use crate::{EventId, Name, PayloadSource, Sha256};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The kind of a trigger that takes each new file of a folder.
pub const PICKUP: &str = "pickup";
/// The kind of a trigger that watches one file for change.
pub const WATCH: &str = "watch";

/// The kind of an event that an in-house application posted to a listener of an agent.
pub const NOTIFICATION: &str = "notification";
/// The kind of a trigger that reads the change feed of a private system.
pub const CHANGE: &str = "change";

/// One trigger of a resource, as announced in [`crate::Hello`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TriggerAnnouncement {
    /// The resource, one of those announced.
    pub resource: Name,
    /// Its name, unique in the resource.
    pub name: Name,
    /// Its kind: [`PICKUP`], [`WATCH`] or [`CHANGE`]. A kind that the hub does not know gets no lease.
    pub kind: Name,
}

/// One listener, as announced in [`crate::Hello`]: local applications post to it what the cloud is to hear of. Every agent
/// of a site runs its own; there is no lease.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerAnnouncement {
    /// Its name: no resource has the same one. Its events carry it as `resource` and as `trigger`.
    pub name: Name,
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
    /// How far its change feed was read, by the last [`TriggerCursor`] of whoever ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Agent to hub: how far a trigger has read its change feed, all of which the hub has acknowledged. The hub gives it with
/// the lease, so that another agent of the site goes on from there; [`TriggerLease::cursor`] also tells that it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerCursor {
    /// The resource.
    pub resource: Name,
    /// The trigger.
    pub trigger: Name,
    /// The lease under which it was read; one that is over says nothing.
    pub lease: u64,
    /// Where to go on: opaque, at most [`crate::limits::MAX_CURSOR`] bytes.
    pub cursor: String,
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
    /// Which, whoever saw it: [`FileEvent::id`], [`NotificationEvent::id`], [`ChangeEvent::id`].
    pub id: EventId,
    /// The resource.
    pub resource: Name,
    /// The trigger that saw it.
    pub trigger: Name,
    /// The trigger's kind.
    pub kind: Name,
    /// The lease under which it was seen; 0 for a [`NOTIFICATION`].
    pub lease: u64,
    /// When it was seen.
    pub occurred_at: Timestamp,
    /// What happened: a JSON object of at most [`crate::limits::MAX_EVENT_DATA`] bytes; [`FileEvent`] for files,
    /// [`NotificationEvent`], [`ChangeEvent`].
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
        id_of(&[
            site.as_str(),
            resource.as_str(),
            kind.as_str(),
            &self.path,
            &self.size.to_string(),
            &modified_at,
            &self.sha256.to_string(),
        ])
    }
}

/// The `data` of an event of kind [`NOTIFICATION`]; what was posted is its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotificationEvent {
    /// The key that the application gave, or one that the agent made up.
    pub key: String,
    /// The `EventKind` of what was posted, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_kind: Option<String>,
}

impl NotificationEvent {
    /// The id of what was posted under this key to a listener of `site`: the same at every agent of the site, so that a
    /// key is one event, whichever of them it was posted to.
    #[must_use]
    pub fn id(&self, site: &Name, listener: &Name) -> EventId {
        id_of(&[site.as_str(), listener.as_str(), NOTIFICATION, &self.key])
    }
}

/// The `data` of an event of kind [`CHANGE`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeEvent {
    /// The entity.
    pub entity: String,
    /// `upsert` or `delete`.
    pub op: String,
    /// The target's id of the record.
    pub id: String,
    /// Its external key, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Map<String, Value>>,
    /// Its version, where the target has versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its fields; absent for a deletion, and where they are the payload because they are too large for here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Map<String, Value>>,
    /// Tells this change of the record from its other ones: a digest of its content and of the target's own stamp of it.
    pub digest: Sha256,
}

impl ChangeEvent {
    /// The id of this change, read by `trigger` of `resource` of `site`: the same however often and by whomever it is read.
    #[must_use]
    pub fn event_id(&self, site: &Name, resource: &Name, trigger: &Name) -> EventId {
        id_of(&[
            site.as_str(),
            resource.as_str(),
            CHANGE,
            trigger.as_str(),
            &self.entity,
            &self.id,
            &self.op,
            &self.digest.to_string(),
        ])
    }
}

/// The id that these parts give.
fn id_of(parts: &[&str]) -> EventId {
    let mut text = Vec::new();
    for part in parts {
        // With its length before it no part can pass for the end of one and the start of the next. A part is never
        // as long as 4 GiB: an event's data is not.
        text.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        text.extend_from_slice(part.as_bytes());
    }
    EventId::of_digest(&Sha256::of(&text))
}

#[cfg(test)]
mod tests {
    use super::{ChangeEvent, FileEvent, NotificationEvent, PICKUP, WATCH};
    use crate::{Name, Sha256};
    use std::collections::BTreeSet;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_is_one_event_of_its_listener_and_site() {
        let posted = NotificationEvent { key: "order-7".to_owned(), event_kind: None };
        let (paris, orders) = (name("paris"), name("orders"));
        let id = posted.id(&paris, &orders);
        let kind = NotificationEvent { event_kind: Some("CommandeValidee".to_owned()), ..posted.clone() };
        assert_eq!(id, kind.id(&paris, &orders), "the key alone counts");
        let other = NotificationEvent { key: "order-8".to_owned(), event_kind: None };
        let ids = [
            id,
            posted.id(&name("lyon"), &orders),
            posted.id(&paris, &name("tills")),
            other.id(&paris, &orders),
        ];
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }

    #[test]
    fn a_change_is_one_event_of_its_trigger() {
        let change = ChangeEvent {
            entity: "contact".to_owned(),
            op: "upsert".to_owned(),
            id: "7".to_owned(),
            key: None,
            version: None,
            fields: None,
            digest: Sha256::of(b"1"),
        };
        let (site, resource, trigger) = (name("paris"), name("crm"), name("contacts"));
        let with = |make: fn(&mut ChangeEvent)| {
            let mut change = change.clone();
            make(&mut change);
            change.event_id(&site, &resource, &trigger)
        };
        let ids = [
            with(|_| ()),
            with(|change| change.entity = "order".to_owned()),
            with(|change| change.op = "delete".to_owned()),
            with(|change| change.id = "8".to_owned()),
            with(|change| change.digest = Sha256::of(b"2")),
            change.event_id(&name("lyon"), &resource, &trigger),
            change.event_id(&site, &name("crm2"), &trigger),
            change.event_id(&site, &resource, &name("others")),
        ];
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        assert_eq!(ids[0], with(|change| change.version = Some("3".to_owned())), "the digest stands for it");
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
