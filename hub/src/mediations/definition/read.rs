//! From a section to a definition, with all findings.

use super::{
    Definition, Inputs, JobSpec, MAX_INTERVAL_S, MAX_LABEL, MAX_STEPS, MAX_TRANSFERS, Missed, Overlap,
    RETENTION_DAYS, StepEntry, Transfer, check,
    job::seconds,
    templates::{self, Text},
};
use crate::mediations::{ids::DefinitionId, steps::Step, trigger::Trigger};
use passerelle_config::{Diagnostics, HumanDuration, Section};
use passerelle_protocol::Name;
use serde::Deserialize;
use uuid::Uuid;

/// The keys whose parts are read by others.
const PARTS: &[&str] = &["trigger", "steps", "transfer"];
const STEP: &[&str] = &["name", "input"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    guid: Option<DefinitionId>,
    name: Name,
    label: Option<Label>,
    enabled: Option<bool>,
    system: Option<Uuid>,
    standard_flow: Option<StandardFlow>,
    retention_days: Option<RetentionDays>,
    ignore_old_errors: Option<bool>,
    max_interval: Option<HumanDuration>,
    max_interval_s: Option<u32>,
    overlap: Option<Overlap>,
    missed: Option<Missed>,
    timezone: Option<Zone>,
}

// Checked as they are read, so that what is wrong with them is told beside all else.

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Label(String);

impl TryFrom<String> for Label {
    type Error = String;

    fn try_from(label: String) -> Result<Self, String> {
        let right = (1..=MAX_LABEL).contains(&label.chars().count()) && !label.chars().any(char::is_control);
        right.then_some(Self(label)).ok_or_else(|| format!("must be 1 to {MAX_LABEL} characters on one line"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct StandardFlow(String);

impl TryFrom<String> for StandardFlow {
    type Error = String;

    fn try_from(flow: String) -> Result<Self, String> {
        let right =
            (1..=MAX_LABEL).contains(&flow.len()) && !flow.chars().any(|c| c.is_control() || c == '/');
        right
            .then_some(Self(flow))
            .ok_or_else(|| format!("must be 1 to {MAX_LABEL} characters without a slash"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "u64")]
struct RetentionDays(u8);

impl TryFrom<u64> for RetentionDays {
    type Error = String;

    fn try_from(days: u64) -> Result<Self, String> {
        let right = u8::try_from(days).ok().filter(|days| (1..=30).contains(days));
        right.map(Self).ok_or_else(|| format!("must be 1 to 30, found {days}"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Zone(String);

impl TryFrom<String> for Zone {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match jiff::tz::TimeZone::get(&name) {
            Ok(_) => Ok(Self(name)),
            Err(_) => {
                Err("no time zone of this hub's database: use an IANA name such as \"Europe/Paris\""
                    .to_owned())
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: Option<Name>,
    input: Option<Inputs>,
}

/// A definition as it was written: its guid may be missing, it is then that of the definition of the same name.
#[derive(Debug, Clone)]
pub struct Written {
    /// The guid, if one was written.
    pub guid: Option<DefinitionId>,
    /// The rest; its guid is [`Self::guid`] or a new one.
    pub definition: Definition,
    /// What of it has still to be compiled, to be checked; nothing if it was stored.
    pub(crate) texts: Vec<Text>,
}

impl Definition {
    /// Reads one that somebody applies; nothing if there is any finding.
    pub fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Written> {
        let mut written = Self::read_part(section.clone(), diagnostics)?;
        let before = diagnostics.findings().len();
        written.texts = templates::of(&written.definition, &section, diagnostics);
        (diagnostics.findings().len() == before).then_some(written)
    }

    fn read_part(section: Section, diagnostics: &mut Diagnostics) -> Option<Written> {
        let before = diagnostics.findings().len();
        let mut steps = Vec::new();
        for part in section.parts("steps", diagnostics) {
            if let Some(step) = step(part, diagnostics) {
                steps.push(step);
            }
        }
        let mut transfer = Vec::new();
        for (index, part) in section.parts("transfer", diagnostics).into_iter().enumerate() {
            if let Some(read) = one_transfer(part, index, diagnostics) {
                transfer.push(read);
            }
        }
        let trigger = match section.part("trigger") {
            Some(part) => Trigger::read(part, diagnostics),
            None => {
                diagnostics.push(
                    section.finding("trigger", "missing; this table is required: kind = \"manual\", for one"),
                );
                None
            }
        };
        let whole = section.clone();
        let (_, rest) = section.split(PARTS);
        let raw: Option<Raw> = rest.parse(diagnostics);
        let (Some(raw), Some(trigger)) = (raw, trigger) else { return None };
        let max_interval_s =
            seconds(&rest, "max_interval", raw.max_interval, raw.max_interval_s, diagnostics);
        let definition = Self {
            guid: raw.guid.unwrap_or_else(DefinitionId::make),
            label: raw.label.map_or_else(|| raw.name.to_string(), |Label(label)| label),
            name: raw.name,
            enabled: raw.enabled.unwrap_or(true),
            system: raw.system,
            standard_flow: raw.standard_flow.map(|StandardFlow(flow)| flow),
            trigger,
            steps,
            transfer,
            retention_days: raw.retention_days.map_or(RETENTION_DAYS, |RetentionDays(days)| days),
            ignore_old_errors: raw.ignore_old_errors.unwrap_or(false),
            max_interval_s,
            overlap: raw.overlap.unwrap_or_default(),
            missed: raw.missed.unwrap_or_default(),
            timezone: raw.timezone.map_or_else(|| "UTC".to_owned(), |Zone(name)| name),
        };
        bounds(&definition, &rest, diagnostics);
        check::references(&definition, &whole, diagnostics);
        (diagnostics.findings().len() == before).then_some(Written {
            guid: raw.guid,
            definition,
            texts: Vec::new(),
        })
    }

    /// Reads what a client sent.
    ///
    /// # Errors
    /// All findings, each with its path.
    pub fn of_json(value: &serde_json::Value) -> Result<Written, Diagnostics> {
        Self::json_by(value, Self::read)
    }

    /// Reads what is stored, and was applied before.
    ///
    /// # Errors
    /// As [`Self::of_json`].
    pub fn of_stored(value: &serde_json::Value) -> Result<Written, Diagnostics> {
        Self::json_by(value, Self::read_part)
    }

    fn json_by(
        value: &serde_json::Value,
        read: impl FnOnce(Section, &mut Diagnostics) -> Option<Written>,
    ) -> Result<Written, Diagnostics> {
        let mut diagnostics = Diagnostics::default();
        match read(Section::of_json(value), &mut diagnostics) {
            Some(written) if diagnostics.is_empty() => Ok(written),
            _ => Err(diagnostics),
        }
    }
}

fn step(section: Section, diagnostics: &mut Diagnostics) -> Option<StepEntry> {
    let (common, rest) = section.split(STEP);
    let named: Option<Named> = common.parse(diagnostics);
    if named.as_ref().is_some_and(|named| named.name.is_none()) {
        diagnostics.push(common.finding("name", "missing; this key is required"));
    }
    let step = Step::read(rest, diagnostics)?;
    let Named { name, input } = named?;
    Some(StepEntry { name: name?, input, step })
}

fn one_transfer(section: Section, index: usize, diagnostics: &mut Diagnostics) -> Option<Transfer> {
    let (common, rest) = section.split(STEP);
    let named: Option<Named> = common.parse(diagnostics);
    let job = JobSpec::read(&rest, diagnostics)?;
    let Named { name, input } = named?;
    let name = name.or_else(|| format!("transfer-{}", index + 1).parse().ok())?;
    Some(Transfer { name, input, job })
}

fn bounds(definition: &Definition, section: &Section, diagnostics: &mut Diagnostics) {
    let mut say = |key: &str, message: String| diagnostics.push(section.finding(key, message));
    if definition.max_interval_s.is_some_and(|seconds| seconds == 0 || seconds > MAX_INTERVAL_S) {
        let key = if section.has("max_interval") { "max_interval" } else { "max_interval_s" };
        say(key, format!("must be 1 s to {} days", MAX_INTERVAL_S / 86_400));
    }
    if definition.steps.len() > MAX_STEPS {
        say("steps", format!("at most {MAX_STEPS}, found {}", definition.steps.len()));
    }
    if definition.transfer.len() > MAX_TRANSFERS {
        say("transfer", format!("at most {MAX_TRANSFERS}, found {}", definition.transfer.len()));
    }
}
