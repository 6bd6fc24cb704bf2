//! A submitted job: its body read strictly, its bounds, and the digest by which a repeated submission is told.

use super::{body, problem::Problem};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName};
use passerelle_protocol::{
    ApiCode, BlobId, EventId, Name, Sha256, is_traceparent,
    limits::{MAX_INLINE_PAYLOAD, MAX_JSON, MAX_JSON_DEPTH, depth},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The longest time from submission to start: 30 days.
pub const MAX_DEADLINE_S: u32 = 30 * 24 * 3600;
/// The longest time that an attempt may be without progress: an hour.
pub const MAX_TIMEOUT_S: u32 = 3600;
/// The most attempts a job may have.
pub const MAX_ATTEMPTS: u32 = 100;
const MAX_ORDER_KEY: usize = 200;
const MAX_LABELS: usize = 32;
const MAX_LABEL_KEY: usize = 64;
const MAX_LABEL_VALUE: usize = 256;
const MAX_IDEMPOTENCY_KEY: usize = 255;
const MAX_MEDIA_TYPE: usize = 255;

/// The body of `POST /v1/jobs`.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The site whose agents carry it out.
    #[schema(value_type = String)]
    site: Name,
    /// The resource, as the site's operator named it.
    #[schema(value_type = String)]
    resource: Name,
    /// The operation.
    #[schema(value_type = String)]
    operation: Name,
    /// The operation's parameters, at most 256 KiB.
    #[schema(value_type = Object)]
    params: Map<String, Value>,
    /// The payload.
    #[serde(default, deserialize_with = "body::object")]
    payload: Option<SubmittedPayload>,
    /// It starts by then, in seconds from its submission: 1 to 2592000, default 86400.
    deadline_s: Option<u32>,
    /// An attempt without progress for this many seconds ends: 1 to 3600, default 300.
    timeout_s: Option<u32>,
    /// How many attempts it may have: 1 to 100, default 5.
    max_attempts: Option<u32>,
    /// Jobs of the same key on a resource run in the order of their submission; at most 200 characters.
    order_key: Option<String>,
    /// What a failure does to the jobs behind it with the same `order_key`.
    on_failure: Option<OnFailure>,
    /// 0 to 9; 9 first; default 4.
    priority: Option<u8>,
    /// At most 32 labels of 64 and 256 characters.
    labels: Option<BTreeMap<String, String>>,
}

/// A submitted payload: exactly one of `text`, `base64`, `blob`, `event`.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmittedPayload {
    /// The content as text.
    text: Option<String>,
    /// The content in base64 (RFC 4648 §4).
    base64: Option<String>,
    /// A blob, uploaded before with `POST /v1/blobs`.
    #[schema(value_type = Option<String>, format = "uuid")]
    blob: Option<BlobId>,
    /// An event whose payload the job's is to be; the event then lists the job.
    #[schema(value_type = Option<String>, format = "uuid")]
    event: Option<EventId>,
    /// Default: `text/plain;charset=utf-8` for a text, that of the event for an event, else `application/octet-stream`.
    media_type: Option<String>,
}

/// What a failure does to an ordered line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The line waits until the job is retried, resolved or cancelled.
    Hold,
    /// The line goes on.
    Continue,
}

/// A submission within all bounds, its defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The site.
    pub site: Name,
    /// The resource.
    pub resource: Name,
    /// The operation.
    pub operation: Name,
    /// The parameters: an object.
    pub params: Value,
    /// The payload.
    pub payload: Option<Payload>,
    /// Seconds from submission to the latest start.
    pub deadline_s: u32,
    /// Seconds an attempt may be without progress.
    pub timeout_s: u32,
    /// How many attempts it may have.
    pub max_attempts: u32,
    /// The line it stands in.
    pub order_key: Option<String>,
    /// `hold` or `continue`.
    pub on_failure: Option<String>,
    /// 0 to 9.
    pub priority: u8,
    /// The client's labels.
    pub labels: BTreeMap<String, String>,
}

/// A payload and its media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Where the content is.
    pub content: PayloadContent,
    /// Media type.
    pub media_type: String,
}

/// Where a submitted payload's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PayloadContent {
    /// In the submission.
    Inline(Vec<u8>),
    /// In a blob of the tenant.
    Blob(BlobId),
    /// The payload of an event of the tenant; `as_told`: with the event's own media type.
    Event {
        /// The event.
        event: EventId,
        /// No other media type was given.
        as_told: bool,
    },
}

impl Payload {
    /// Whether its content is kept with the job, not in a file.
    pub fn is_small(&self) -> bool {
        matches!(&self.content, PayloadContent::Inline(bytes) if bytes.len() <= MAX_INLINE_PAYLOAD)
    }

    /// Whether its content came with the submission.
    pub fn is_inline(&self) -> bool {
        matches!(&self.content, PayloadContent::Inline(_))
    }

    /// The event that it is the payload of.
    pub fn event(&self) -> Option<EventId> {
        match &self.content {
            PayloadContent::Event { event, .. } => Some(*event),
            PayloadContent::Inline(_) | PayloadContent::Blob(_) => None,
        }
    }
}

impl Checked {
    /// Reads and checks a submission.
    ///
    /// # Errors
    /// 400 `bad_request` naming the field, 413 `too_large`.
    pub fn read(bytes: &[u8]) -> Result<Self, Problem> {
        body::parse::<Submission>(bytes)?.check()
    }

    /// The digest over all that the client asked for; the payload counts by content, not by the blob's id.
    #[must_use]
    pub fn digest(&self, payload: Option<&Sha256>) -> Sha256 {
        // serde_json writes objects with sorted keys, so equal submissions have equal texts.
        let mut canonical = serde_json::json!({
            "site": self.site, "resource": self.resource, "operation": self.operation, "params": self.params,
            "payload": payload, "media_type": self.payload.as_ref().map(|p| &p.media_type),
            "deadline_s": self.deadline_s, "timeout_s": self.timeout_s, "max_attempts": self.max_attempts,
            "order_key": self.order_key, "on_failure": self.on_failure, "priority": self.priority,
            "labels": self.labels,
        });
        // Two events may carry the same content: jobs of theirs are not the same.
        if let Some(event) = self.payload.as_ref().and_then(Payload::event) {
            canonical["event"] = event.to_string().into();
        }
        Sha256::of(canonical.to_string().as_bytes())
    }
}

impl Submission {
    fn check(self) -> Result<Checked, Problem> {
        let params = Value::Object(self.params);
        check_params(&params)?;
        let within = |field: &str, value: Option<u32>, default: u32, most: u32| match value.unwrap_or(default)
        {
            value if (1..=most).contains(&value) => Ok(value),
            value => Err(Problem::bad_request(format!("{field}: must be 1 to {most}, found {value}"))),
        };
        let deadline_s = within("deadline_s", self.deadline_s, 86_400, MAX_DEADLINE_S)?;
        let timeout_s = within("timeout_s", self.timeout_s, 300, MAX_TIMEOUT_S)?;
        let max_attempts = within("max_attempts", self.max_attempts, 5, MAX_ATTEMPTS)?;
        let priority = check_priority(self.priority)?;
        check_order_key(self.order_key.as_deref())?;
        let labels = self.labels.unwrap_or_default();
        check_labels(&labels)?;
        Ok(Checked {
            site: self.site,
            resource: self.resource,
            operation: self.operation,
            params,
            payload: self.payload.map(SubmittedPayload::check).transpose()?,
            deadline_s,
            timeout_s,
            max_attempts,
            order_key: self.order_key,
            on_failure: on_failure(self.on_failure),
            priority,
            labels,
        })
    }
}

/// Judges depth and length of the parameters.
pub(super) fn check_params(params: &Value) -> Result<(), Problem> {
    if depth(params) > MAX_JSON_DEPTH {
        return Err(Problem::bad_request(format!("params: at most {MAX_JSON_DEPTH} levels deep")));
    }
    if params.to_string().len() > MAX_JSON {
        let detail = format!("params: at most {MAX_JSON} bytes as JSON; send content as a payload");
        return Err(Problem::new(ApiCode::TooLarge, detail));
    }
    Ok(())
}

pub(super) fn check_priority(priority: Option<u8>) -> Result<u8, Problem> {
    match priority.unwrap_or(4) {
        priority @ 0..=9 => Ok(priority),
        other => Err(Problem::bad_request(format!("priority: must be 0 to 9, found {other}"))),
    }
}

pub(super) fn check_order_key(key: Option<&str>) -> Result<(), Problem> {
    if key.is_none_or(|key| is_text(key, 1, MAX_ORDER_KEY)) {
        return Ok(());
    }
    let detail = format!("order_key: 1 to {MAX_ORDER_KEY} characters, no control characters");
    Err(Problem::bad_request(detail))
}

pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Problem> {
    if labels.len() > MAX_LABELS {
        let detail = format!("labels: at most {MAX_LABELS}, found {}", labels.len());
        return Err(Problem::bad_request(detail));
    }
    if labels.iter().all(|(key, value)| is_text(key, 1, MAX_LABEL_KEY) && is_text(value, 0, MAX_LABEL_VALUE))
    {
        return Ok(());
    }
    Err(Problem::bad_request(format!(
        "labels: a key has 1 to {MAX_LABEL_KEY} characters, a value at most {MAX_LABEL_VALUE}, no control \
         characters"
    )))
}

/// The word that is stored.
pub(super) fn on_failure(wish: Option<OnFailure>) -> Option<String> {
    wish.map(|on| match on {
        OnFailure::Hold => "hold".to_owned(),
        OnFailure::Continue => "continue".to_owned(),
    })
}

impl SubmittedPayload {
    pub(super) fn check(self) -> Result<Payload, Problem> {
        let as_told = self.media_type.is_none();
        let (content, usual) = match (self.text, self.base64, self.blob, self.event) {
            (Some(text), None, None, None) => {
                (PayloadContent::Inline(text.into_bytes()), "text/plain;charset=utf-8")
            }
            (None, Some(base64), None, None) => {
                let bytes = STANDARD.decode(base64).map_err(|_| {
                    Problem::bad_request("payload.base64: not base64 (RFC 4648 section 4, with padding)")
                })?;
                (PayloadContent::Inline(bytes), "application/octet-stream")
            }
            (None, None, Some(blob), None) => (PayloadContent::Blob(blob), "application/octet-stream"),
            (None, None, None, Some(event)) => {
                (PayloadContent::Event { event, as_told }, "application/octet-stream")
            }
            _ => return Err(Problem::bad_request("payload: give exactly one of text, base64, blob, event")),
        };
        let media_type = self.media_type.unwrap_or_else(|| usual.to_owned());
        if !is_media_type(&media_type) {
            return Err(Problem::bad_request("payload.media_type: expected a media type, as text/csv"));
        }
        Ok(Payload { content, media_type })
    }
}

/// The idempotency key of a submission.
///
/// # Errors
/// 400 if it is empty, longer than 255 characters, repeated or not printable.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(HeaderName::from_static("idempotency-key")).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match value.to_str() {
        Ok(key)
            if values.next().is_none()
                && (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len())
                && key.bytes().all(|b| (b' '..=b'~').contains(&b)) =>
        {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Problem::bad_request(format!(
            "idempotency-key: one key of 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        ))),
    }
}

/// The request's W3C trace context; one that is malformed is ignored, as the recommendation demands.
#[must_use]
pub fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    is_traceparent(text).then(|| text.to_owned())
}

/// Whether a text can stand in `Content-Type`: `type/subtype` and whatever printable follows.
#[must_use]
pub fn is_media_type(text: &str) -> bool {
    let essence = text.split(';').next().unwrap_or_default();
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    text.len() <= MAX_MEDIA_TYPE
        && text.bytes().all(|b| (b' '..=b'~').contains(&b))
        && essence.trim_end().split_once('/').is_some_and(|(kind, sub)| token(kind) && token(sub))
}

fn is_text(text: &str, least: usize, most: usize) -> bool {
    (least..=most).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(extra: Value) -> Result<Checked, Problem> {
        let mut body = json!({"site": "paris", "resource": "compta", "operation": "drop", "params": {}});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Checked::read(body.to_string().as_bytes())
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let job = with(json!({})).unwrap();
        assert_eq!((job.deadline_s, job.timeout_s, job.max_attempts, job.priority), (86_400, 300, 5, 4));
        assert_eq!((job.order_key, job.on_failure, job.payload), (None, None, None));
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_with_its_field() {
        let long = "x".repeat(300);
        let many: BTreeMap<String, &str> = (0..33).map(|n| (n.to_string(), "")).collect();
        let mut deep = json!(1);
        for _ in 0..70 {
            deep = json!([deep]);
        }
        for (extra, expected) in [
            (json!({"site": "Paris"}), "site: a name is"),
            (json!({"resource": "../x"}), "resource: a name is"),
            (json!({"operation": ""}), "operation: a name is"),
            (json!({"params": []}), "params: invalid type"),
            (json!({"params": {"x": deep}}), "params: at most 64 levels"),
            (json!({"deadline_s": 0}), "deadline_s: must be 1 to 2592000, found 0"),
            (json!({"deadline_s": 2_592_001}), "deadline_s: must be"),
            (json!({"deadline_s": -1}), "deadline_s: invalid value"),
            (json!({"timeout_s": 3601}), "timeout_s: must be 1 to 3600"),
            (json!({"timeout_s": 1.5}), "timeout_s: invalid type"),
            (json!({"max_attempts": 101}), "max_attempts: must be 1 to 100"),
            (json!({"max_attempts": "5"}), "max_attempts: invalid type"),
            (json!({"priority": 10}), "priority: must be 0 to 9"),
            (json!({"order_key": ""}), "order_key: 1 to 200"),
            (json!({"order_key": long}), "order_key: 1 to 200"),
            (json!({"on_failure": "stop"}), "on_failure: unknown variant `stop`"),
            (json!({"labels": many}), "labels: at most 32"),
            (json!({"labels": {"a": long}}), "labels: a key has"),
            (json!({"labels": {"a": 1}}), "labels.a: invalid type"),
            (json!({"colour": 1}), "colour: unknown field `colour`"),
            (json!({"payload": {}}), "payload: give exactly one"),
            (json!({"payload": {"text": "a", "base64": "YQ=="}}), "payload: give exactly one"),
            (json!({"payload": {"base64": "*"}}), "payload.base64: not base64"),
            (json!({"payload": {"blob": "x"}}), "payload.blob: "),
            (json!({"payload": {"event": "x"}}), "payload.event: "),
            (
                json!({"payload": {"event": "0f1e2d3c-4b5a-8978-8695-a4b3c2d1e0f0", "text": "a"}}),
                "payload: give exactly",
            ),
            (json!({"payload": {"text": "a", "media_type": "csv"}}), "payload.media_type: "),
            (json!({"payload": {"text": "a", "media_type": "text/csv\r\nx: y"}}), "payload.media_type: "),
        ] {
            let problem = with(extra.clone()).unwrap_err();
            assert_eq!(problem.status_code(), 400, "{extra}");
            assert!(problem.detail().starts_with(expected), "{extra}: {}", problem.detail());
        }
        assert_eq!(with(json!({"params": {"x": "y".repeat(MAX_JSON)}})).unwrap_err().status_code(), 413);
        assert_eq!(Checked::read(br#"{"site":"a"}"#).unwrap_err().status_code(), 400);
    }

    #[test]
    fn the_digest_tells_submissions_apart_but_not_the_order_of_their_keys() {
        let read = |text: &str| Checked::read(text.as_bytes()).unwrap();
        let one = read(r#"{"site":"a","resource":"b","operation":"c","params":{"x":1,"y":{"p":1,"q":2}}}"#);
        let same = read(
            r#"{"params":{"y":{"q":2,"p":1},"x":1},"operation":"c","resource":"b","site":"a","priority":4}"#,
        );
        let other = read(r#"{"site":"a","resource":"b","operation":"c","params":{"x":2}}"#);
        assert_eq!(one.digest(None), same.digest(None));
        assert_ne!(one.digest(None), other.digest(None));
        assert_ne!(one.digest(None), one.digest(Some(&Sha256::of(b""))));
    }

    #[test]
    fn headers_are_taken_only_in_their_form() {
        let headers = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(&headers("traceparent", good)).as_deref(), Some(good));
        for bad in
            ["", "00-x-y-01", &good.replace('4', "G"), &good.replace("00f067aa0ba902b7", "0000000000000000")]
        {
            assert_eq!(traceparent(&headers("traceparent", bad)), None, "{bad}");
        }
        assert_eq!(
            idempotency_key(&headers("idempotency-key", "order 7")).unwrap().as_deref(),
            Some("order 7")
        );
        for bad in ["", &"x".repeat(256), "é"] {
            assert!(idempotency_key(&headers("idempotency-key", bad)).is_err(), "{bad}");
        }
    }
}
