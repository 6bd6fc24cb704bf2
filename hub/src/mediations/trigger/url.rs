//! A URL of a private application as a trigger: an agent asks for it again and again, and a run begins when it answers with
//! something new, or with a given status.
//!
//! The poll is an ordinary `request` with GET on an `http` resource, made as a call: the owner of the resource allows it with
//! the rule that allows any other `GET` of that path, and needs nothing else; the hub names the resource and a path, never a
//! host. What was seen last is kept with the definition, and an agent that is away is asked again at the next turn.

use super::{known_names, seconds};
use crate::mediations::expression::Expression;
use jiff::Timestamp;
use passerelle_config::{Diagnostics, HumanDuration, Section};
use passerelle_protocol::{Name, Sha256};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The longest path, in bytes.
const MAX_PATH: usize = 2048;
/// The longest interval: a week.
const MAX_EVERY_S: u32 = 7 * 24 * 3600;

/// A URL that is asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UrlTrigger {
    /// The site.
    pub site: Name,
    /// The `http` resource.
    pub resource: Name,
    /// The path below the resource's URL.
    pub path: String,
    /// Its query.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub query: Map<String, Value>,
    /// How often it is asked for, in seconds.
    pub every_s: u32,
    /// Starts a run when the answer comes to have this status. Without it, when an answer with 2xx has other content than the
    /// one before: another ETag, or where there is none, another body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Only where this holds: `event` is the answer's `status` and `headers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Expression>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    site: Name,
    resource: Name,
    path: String,
    #[serde(default)]
    query: Map<String, Value>,
    every: Option<HumanDuration>,
    every_s: Option<u32>,
    status: Option<u16>,
    when: Option<Expression>,
}

/// What was seen last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSeen {
    /// The status.
    pub status: u16,
    /// The ETag of the last answer with 2xx.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The digest of its body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
}

impl UrlTrigger {
    /// Reads one from a section that holds nothing else.
    pub fn read(section: &Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let raw: Raw = section.parse(diagnostics)?;
        let before = diagnostics.findings().len();
        let every_s = seconds(section, "every", raw.every, raw.every_s, diagnostics)?;
        let mut wrong = |key: &str, message: &str| diagnostics.push(section.finding(key, message));
        if !every_s.is_some_and(|seconds| (1..=MAX_EVERY_S).contains(&seconds)) {
            wrong("every", "expected 1 s to 7 days, as every = \"5m\"");
        }
        if raw.path.is_empty() || raw.path.len() > MAX_PATH || raw.path.starts_with('/') {
            wrong("path", "expected a path below the resource's URL, without a leading '/'");
        }
        if raw.status.is_some_and(|status| !(100..600).contains(&status)) {
            wrong("status", "expected an HTTP status, 100 to 599");
        }
        known_names(section, "when", raw.when.as_ref(), diagnostics);
        let Raw { site, resource, path, query, status, when, .. } = raw;
        let every_s = every_s.filter(|_| diagnostics.findings().len() == before)?;
        Some(Self { site, resource, path, query, every_s, status, when })
    }

    /// Whether an answer starts a run, after the one before; and what is seen now.
    pub fn judge(&self, before: Option<&LastSeen>, answer: LastSeen) -> (bool, LastSeen) {
        if let Some(wanted) = self.status {
            let starts = answer.status == wanted && before.is_none_or(|before| before.status != wanted);
            return (starts, answer);
        }
        if !(200..300).contains(&answer.status) {
            // What was seen before stays what the next content is compared with.
            let before = before.cloned().unwrap_or_default();
            return (false, LastSeen { status: answer.status, ..before });
        }
        let same = before.is_some_and(|before| match (&before.etag, &answer.etag) {
            (Some(before), Some(now)) => before == now,
            _ => before.sha256.is_some() && before.sha256 == answer.sha256,
        });
        (!same, answer)
    }

    /// When it is asked for next.
    pub fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        let every = i64::from(self.every_s.max(1));
        Timestamp::from_second((now.as_second().div_euclid(every) + 1).checked_mul(every)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::name;

    fn trigger(status: Option<u16>) -> UrlTrigger {
        UrlTrigger {
            site: name("paris"),
            resource: name("stock-app"),
            path: "export/stock.csv".to_owned(),
            query: Map::new(),
            every_s: 300,
            status,
            when: None,
        }
    }

    fn answer(status: u16, etag: Option<&str>, body: &[u8]) -> LastSeen {
        LastSeen { status, etag: etag.map(str::to_owned), sha256: Some(Sha256::of(body)) }
    }

    /// Which of these answers start a run.
    fn starts(trigger: &UrlTrigger, answers: &[LastSeen]) -> Vec<bool> {
        let mut before = None;
        let mut starts = Vec::new();
        for answer in answers {
            let (starting, seen) = trigger.judge(before.as_ref(), answer.clone());
            starts.push(starting);
            // As it is kept: JSON.
            before = Some(serde_json::from_str(&serde_json::to_string(&seen).unwrap()).unwrap());
        }
        starts
    }

    #[test]
    fn each_new_content_starts_a_run_and_a_failure_in_between_changes_nothing() {
        let answers = [
            answer(503, None, b"down"),
            answer(200, None, b"a"),
            answer(200, None, b"a"),
            answer(500, None, b"oops"),
            answer(200, None, b"a"),
            answer(200, None, b"b"),
            answer(200, None, b"a"),
        ];
        assert_eq!(starts(&trigger(None), &answers), [false, true, false, false, false, true, true]);
        let tagged = [
            answer(200, Some("\"1\""), b"a"),
            answer(200, Some("\"1\""), b"rendered anew"),
            answer(200, Some("\"2\""), b"a"),
            answer(200, None, b"a"),
            answer(200, None, b"c"),
        ];
        assert_eq!(starts(&trigger(None), &tagged), [true, false, true, false, true]);
    }

    #[test]
    fn a_status_starts_a_run_when_it_comes() {
        let answers = [200, 200, 503, 200, 404, 404].map(|status| answer(status, None, b""));
        assert_eq!(starts(&trigger(Some(200)), &answers), [true, false, false, true, false, false]);
        assert_eq!(starts(&trigger(Some(404)), &answers), [false, false, false, false, true, false]);
    }

    #[test]
    fn turns_are_counted_in_real_time() {
        let next = trigger(None).next_after("2026-11-22T10:07:12Z".parse().unwrap()).unwrap();
        assert_eq!(next.to_string(), "2026-11-22T10:10:00Z");
    }
}
