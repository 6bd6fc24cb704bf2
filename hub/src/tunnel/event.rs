//! Looks at an event before it goes to the store's writer: its form, its id, and the content that came with it.

use crate::store::{
    Error,
    received::{CheckedEvent, Receipt, clean_media_type},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use passerelle_protocol::{
    CHANGE, ChangeEvent, Event, EventId, EventRefused, FileEvent, NOTIFICATION, Name, NotificationEvent,
    PICKUP, PayloadSource, Sha256, WATCH,
};
use serde::Deserialize as _;
use std::time::Duration;

/// When an agent may send an event again for which there is no room.
const NO_ROOM: Duration = Duration::from_secs(60);
/// The longest idempotency key of a notification.
const MAX_KEY: usize = 255;
/// When it may send one again whose payload is not here.
const NO_PAYLOAD: Duration = Duration::from_secs(1);

/// The event, if its form is right; else what to tell the agent.
pub(super) fn check_event(
    mut event: Event,
    site: &Name,
    max_payload: u64,
) -> Result<CheckedEvent, EventRefused> {
    let (id, refuse) = (event.id, |code: &str, message: String| EventRefused {
        id: event.id,
        code: code.to_owned(),
        message,
        retry_after_ms: None,
    });
    let right = match event.kind.as_str() {
        PICKUP | WATCH => is_of_its_file(&event, site),
        NOTIFICATION => is_of_its_key(&event, site),
        CHANGE => is_of_its_record(&event, site),
        _ => Ok(()),
    };
    right.map_err(|why| refuse("bad_request", format!("event {id}: {why}")))?;
    if event.payload.as_ref().is_some_and(|payload| payload.size > max_payload) {
        let message =
            format!("the payload of event {id} is larger than the {max_payload} bytes that this hub takes");
        return Err(refuse("too_large", message));
    }
    let wrong =
        refuse("digest_mismatch", format!("the payload of event {id} does not have the size or digest told"));
    let mut data = None;
    if let Some(payload) = &mut event.payload {
        payload.media_type = clean_media_type(&payload.media_type);
        if let PayloadSource::Inline { data: text } = &mut payload.source {
            let bytes = STANDARD.decode(std::mem::take(text)).map(Bytes::from);
            let right =
                |bytes: &Bytes| bytes.len() as u64 == payload.size && Sha256::of(bytes) == payload.sha256;
            data = Some(bytes.ok().filter(right).ok_or(wrong)?);
        }
    }
    Ok(CheckedEvent { event, data })
}

/// Whether an event of a file is of the file that its data names, and carries that file.
fn is_of_its_file(event: &Event, site: &Name) -> Result<(), &'static str> {
    let file = FileEvent::deserialize(&event.data).map_err(|_| "its data needs path, size and sha256")?;
    let outside = |part: &str| part.is_empty() || part == "." || part == "..";
    if file.path.split('/').any(outside) || file.path.contains('\0') {
        return Err("the path of its data is not one below the resource's root");
    }
    if file.id(site, &event.resource, &event.kind) != event.id {
        return Err("its id is not the one that its data gives");
    }
    match &event.payload {
        Some(payload) if payload.size == file.size && payload.sha256 == file.sha256 => Ok(()),
        Some(_) => Err("its payload is not the file that its data names"),
        None => Err("the file has to come with it as its payload"),
    }
}

/// Whether an event of a listener is of its key, and carries what was posted.
fn is_of_its_key(event: &Event, site: &Name) -> Result<(), &'static str> {
    let posted = NotificationEvent::deserialize(&event.data).map_err(|_| "its data needs a key")?;
    if posted.key.is_empty() || posted.key.len() > MAX_KEY {
        return Err("the key of its data has not 1 to 255 bytes");
    }
    if posted.id(site, &event.resource) != event.id {
        return Err("its id is not the one that its data gives");
    }
    event.payload.as_ref().map(drop).ok_or("what was posted has to come with it as its payload")
}

/// Whether an event of a change feed is of the record that its data names.
fn is_of_its_record(event: &Event, site: &Name) -> Result<(), &'static str> {
    let change =
        ChangeEvent::deserialize(&event.data).map_err(|_| "its data needs entity, op, id and digest")?;
    if !["upsert", "delete"].contains(&change.op.as_str()) {
        return Err("the op of its data is neither upsert nor delete");
    }
    if change.event_id(site, &event.resource, &event.trigger) != event.id {
        return Err("its id is not the one that its data gives");
    }
    Ok(())
}

/// What the agent is told of an event that the store did not take.
pub(super) fn refusal(id: EventId, receipt: Receipt) -> Option<EventRefused> {
    let Receipt::Refused { code, message, again } = receipt else { return None };
    let retry_after_ms = again.then(|| ms(NO_PAYLOAD));
    Some(EventRefused { id, code: code.to_owned(), message, retry_after_ms })
}

/// The same where there is no room for it now; nothing for a fault, which ends the session.
pub(super) fn no_room(id: EventId, error: &Error) -> Option<EventRefused> {
    if !matches!(error, Error::Quota(_) | Error::Full) {
        return None;
    }
    let (code, message) = (error.code().as_str().to_owned(), error.to_string());
    Some(EventRefused { id, code, message, retry_after_ms: Some(ms(NO_ROOM)) })
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::name;
    use passerelle_protocol::EventPayload;
    use serde_json::json;

    fn event(path: &str) -> Event {
        let (resource, kind) = (name("compta"), name(PICKUP));
        let file =
            FileEvent { path: path.to_owned(), size: 3, sha256: Sha256::of(b"abc"), modified_at: None };
        Event {
            id: file.id(&name("paris"), &resource, &kind),
            resource,
            trigger: name("in"),
            kind,
            lease: 1,
            occurred_at: jiff::Timestamp::UNIX_EPOCH,
            data: serde_json::to_value(file).unwrap(),
            payload: Some(EventPayload {
                size: 3,
                sha256: Sha256::of(b"abc"),
                media_type: "text/csv\r\nset-cookie: x".to_owned(),
                source: PayloadSource::Inline { data: "YWJj".to_owned() },
            }),
        }
    }

    /// What makes a right event a wrong one.
    type Change = fn(&mut Event);

    #[test]
    fn only_the_event_of_its_own_file_is_right() {
        let paris = name("paris");
        let checked = check_event(event("in/a.csv"), &paris, 3).unwrap();
        assert_eq!(checked.data.as_deref(), Some(&b"abc"[..]));
        assert_eq!(checked.event.payload.unwrap().media_type, "application/octet-stream");

        let code = |event: Event, site: &Name, most| check_event(event, site, most).unwrap_err().code;
        assert_eq!(code(event("in/a.csv"), &name("lyon"), 3), "bad_request");
        assert_eq!(code(event("in/a.csv"), &paris, 2), "too_large");
        for path in ["", "/etc/passwd", "../a", "a//b", "a/./b", "a\0b"] {
            assert_eq!(code(event(path), &paris, 3), "bad_request", "{path:?}");
        }
        let changes: [(&str, Change); 6] = [
            ("bad_request", |event| event.data["path"] = json!("in/b.csv")),
            ("bad_request", |event| event.data = json!({})),
            ("bad_request", |event| event.payload = None),
            ("bad_request", |event| event.payload.as_mut().unwrap().size = 4),
            ("digest_mismatch", |event| {
                event.payload.as_mut().unwrap().source = PayloadSource::Inline { data: "YWJk".to_owned() };
            }),
            ("digest_mismatch", |event| {
                event.payload.as_mut().unwrap().source = PayloadSource::Inline { data: "?".to_owned() };
            }),
        ];
        for (expected, change) in changes {
            let mut event = event("in/a.csv");
            change(&mut event);
            let refused = check_event(event, &paris, 3).unwrap_err();
            assert_eq!((refused.code.as_str(), refused.retry_after_ms), (expected, None));
        }
    }

    #[test]
    fn what_may_come_again_says_when() {
        let id = event("a").id;
        assert_eq!(no_room(id, &Error::Full).unwrap().retry_after_ms, Some(60_000));
        assert_eq!(no_room(id, &Error::Internal("x".to_owned())), None);
        let (code, message) = ("not_found", String::new());
        let again = Receipt::Refused { code, message: message.clone(), again: true };
        assert_eq!(refusal(id, again).unwrap().retry_after_ms, Some(1000));
        let never = Receipt::Refused { code, message, again: false };
        assert_eq!(refusal(id, never).unwrap().retry_after_ms, None);
        assert_eq!(refusal(id, Receipt::Duplicate), None);
    }
}
