//! A job in a definition: a step's, or a transfer.

use crate::mediations::template;
use passerelle_config::{Diagnostics, HumanDuration, Section};
use passerelle_protocol::Name;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use std::fmt;

/// The longest time from submission to start, in seconds.
pub use crate::api::{MAX_ATTEMPTS, MAX_DEADLINE_S, MAX_TIMEOUT_S};

/// How long a job of a run waits for an agent, unless it says otherwise: a day.
const DEADLINE_S: u32 = 24 * 3600;
const TIMEOUT_S: u32 = 300;
const ATTEMPTS: u32 = 5;
const PRIORITY: u8 = 4;

/// What a run submits as a job. Texts in `params`, `payload` and `order_key` are templates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobSpec {
    /// The site.
    pub site: Name,
    /// The resource.
    pub resource: Name,
    /// The operation.
    pub operation: Name,
    /// Its parameters.
    pub params: Map<String, Value>,
    /// The payload as a template; nothing: the flows that the unit reads, one job each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The media type of the payload, where it is not the flow's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Jobs of the same key on a resource run in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_key: Option<String>,
    /// What a failure does to the jobs behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// It starts by then, in seconds from its submission.
    pub deadline_s: u32,
    /// An attempt without progress for this many seconds ends.
    pub timeout_s: u32,
    /// How many attempts it may have.
    pub max_attempts: u32,
    /// 0 to 9; 9 first.
    pub priority: u8,
}

/// What a failure does to the jobs behind it with the same order key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// They wait.
    Hold,
    /// They go on.
    Continue,
}

impl OnFailure {
    /// The word of it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Continue => "continue",
        }
    }
}

/// A transfer: the jobs that bring flows of the run where they belong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Transfer {
    /// Its name, unlike that of any step or other transfer; `transfer-1` and so on where nothing is said.
    pub name: Name,
    /// The flows that it brings; where nothing is said, those of the last step that gave any, else those of the trigger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Inputs>,
    /// The jobs.
    #[serde(flatten)]
    pub job: JobSpec,
}

/// Which flows a unit reads: names of steps, labels of flows, or `trigger`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Inputs(pub Vec<String>);

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> de::Visitor<'de> for Names {
            type Value = Inputs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a step or a list of names")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Inputs, E> {
                Ok(Inputs(vec![name.to_owned()]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut names: A) -> Result<Inputs, A::Error> {
                let mut inputs = Vec::new();
                while let Some(name) = names.next_element()? {
                    inputs.push(name);
                }
                Ok(Inputs(inputs))
            }
        }
        deserializer.deserialize_any(Names)
    }
}

/// The keys of a job as they are written; the serialized form has the seconds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    site: Name,
    resource: Name,
    operation: Name,
    #[serde(default)]
    params: Map<String, Value>,
    payload: Option<String>,
    media_type: Option<String>,
    order_key: Option<String>,
    on_failure: Option<OnFailure>,
    deadline: Option<HumanDuration>,
    deadline_s: Option<u32>,
    timeout: Option<HumanDuration>,
    timeout_s: Option<u32>,
    max_attempts: Option<u32>,
    priority: Option<u8>,
}

impl JobSpec {
    /// Reads one from a section that holds nothing else.
    pub fn read(section: &Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let raw: Raw = section.parse(diagnostics)?;
        let before = diagnostics.findings().len();
        let deadline_s = seconds(section, "deadline", raw.deadline, raw.deadline_s, diagnostics);
        let timeout_s = seconds(section, "timeout", raw.timeout, raw.timeout_s, diagnostics);
        let spec = Self {
            site: raw.site,
            resource: raw.resource,
            operation: raw.operation,
            params: raw.params,
            payload: raw.payload,
            media_type: raw.media_type,
            order_key: raw.order_key,
            on_failure: raw.on_failure,
            deadline_s: deadline_s.unwrap_or(DEADLINE_S),
            timeout_s: timeout_s.unwrap_or(TIMEOUT_S),
            max_attempts: raw.max_attempts.unwrap_or(ATTEMPTS),
            priority: raw.priority.unwrap_or(PRIORITY),
        };
        spec.check(section, diagnostics);
        (diagnostics.findings().len() == before).then_some(spec)
    }

    fn check(&self, section: &Section, diagnostics: &mut Diagnostics) {
        let mut within = |key: &str, value: u32, max: u32| {
            if value == 0 || value > max {
                let key = if section.has(key) { key.to_owned() } else { format!("{key}_s") };
                diagnostics.push(section.finding(&key, format!("must be 1 to {max}, found {value}")));
            }
        };
        within("deadline", self.deadline_s, MAX_DEADLINE_S);
        within("timeout", self.timeout_s, MAX_TIMEOUT_S);
        if self.max_attempts == 0 || self.max_attempts > MAX_ATTEMPTS {
            let said = format!("must be 1 to {MAX_ATTEMPTS}, found {}", self.max_attempts);
            diagnostics.push(section.finding("max_attempts", said));
        }
        if self.priority > 9 {
            diagnostics.push(section.finding("priority", format!("must be 0 to 9, found {}", self.priority)));
        }
        if self.on_failure.is_some() && self.order_key.is_none() {
            diagnostics
                .push(section.finding("on_failure", "only with an order_key: name one, or leave this out"));
        }
        let mut found = template::check_all(&self.params, "params");
        for (key, text) in [("payload", &self.payload), ("order_key", &self.order_key)] {
            if let Some(Err(why)) = text.as_deref().map(template::check) {
                found.push((key.to_owned(), why));
            }
        }
        for (path, why) in found {
            diagnostics.push(section.finding(&path, why));
        }
    }
}

/// A duration that a file says as `"30s"` under `key` and JSON as a number under `key_s`; not both.
pub fn seconds(
    section: &Section,
    key: &str,
    human: Option<HumanDuration>,
    number: Option<u32>,
    diagnostics: &mut Diagnostics,
) -> Option<u32> {
    match (human, number) {
        (Some(_), Some(_)) => {
            diagnostics.push(section.finding(key, format!("said twice: leave out {key} or {key}_s")));
            None
        }
        (Some(HumanDuration(duration)), None) => {
            // A part of a second would be cut: nothing here is that short.
            Some(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX))
        }
        (None, number) => number,
    }
}
