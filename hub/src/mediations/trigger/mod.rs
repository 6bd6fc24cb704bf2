//! What starts runs: the kinds of trigger, each in a file of its own, and what all of them come down to, an [`Occurrence`].
//!
//! `times.rs` starts what is planned, `deliver.rs` what business events and agents tell of, `poll.rs` what URLs answer; each
//! commits the run together with the note that the occasion was dealt with. `arrivals.rs` keeps what waits for the rest of a
//! trigger that needs several things.

mod arrivals;
mod clause;
pub(crate) mod cron;
pub(crate) mod deliver;
mod event;
mod manual;
pub mod poll;
mod problems;
mod resource;
pub mod schedule;
pub(crate) mod times;
mod url;

pub use clause::{All, Any, Clause};
pub use event::EventTrigger;
pub use manual::Manual;
pub use problems::TriggerProblem;
pub use resource::ResourceTrigger;
pub use schedule::Schedule;
pub use url::UrlTrigger;

#[cfg(test)]
mod tests;

use super::expression::Expression;
use jiff::Timestamp;
use passerelle_config::{Diagnostics, HumanDuration, Section};
use passerelle_protocol::BlobId;
use serde::Serialize;
use serde_json::Value;

/// The longest key of an occurrence.
pub const MAX_KEY: usize = 200;
/// The most that an occurrence's data may have, as JSON.
pub const MAX_DATA: usize = 256 * 1024;
/// How many flows a run may begin with.
pub const MAX_FLOWS: usize = 100;

/// What starts a definition's runs. As JSON an object with `kind`, in a file the table `[mediation.trigger]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Trigger {
    /// Nothing by itself: an operator or a client starts each run.
    Manual(Manual),
    /// Planned times.
    Schedule(Schedule),
    /// Business events of applications.
    Event(EventTrigger),
    /// What agents tell of a resource.
    Resource(ResourceTrigger),
    /// What a private application answers.
    Url(UrlTrigger),
    /// Several things together.
    All(All),
    /// Each of several things.
    Any(Any),
}

/// The words of `kind`.
const KINDS: &[&str] = &["manual", "schedule", "event", "resource", "url", "all", "any"];
/// Those that one of several things may have.
const ONE: &[&str] = &["schedule", "event", "resource", "url"];

impl Trigger {
    /// Reads one from its section, `kind` included.
    pub fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        Self::read_kind(section, KINDS, diagnostics)
    }

    /// Reads one of several things.
    fn read_one(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        Self::read_kind(section, ONE, diagnostics)
    }

    fn read_kind(
        section: Section,
        kinds: &'static [&'static str],
        diagnostics: &mut Diagnostics,
    ) -> Option<Self> {
        let kind = section.word("kind", kinds, diagnostics)?;
        let (_, rest) = section.split(&["kind"]);
        match kind {
            "manual" => rest.parse(diagnostics).map(Self::Manual),
            "schedule" => Schedule::read(&rest, diagnostics).map(Self::Schedule),
            "event" => EventTrigger::read(&rest, diagnostics).map(Self::Event),
            "resource" => ResourceTrigger::read(&rest, diagnostics).map(Self::Resource),
            "url" => UrlTrigger::read(&rest, diagnostics).map(Self::Url),
            "all" => All::read(rest, diagnostics).map(Self::All),
            "any" => Any::read(rest, diagnostics).map(Self::Any),
            _ => None,
        }
    }

    /// The word of its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Manual(_) => "manual",
            Self::Schedule(_) => "schedule",
            Self::Event(_) => "event",
            Self::Resource(_) => "resource",
            Self::Url(_) => "url",
            Self::All(_) => "all",
            Self::Any(_) => "any",
        }
    }

    /// The things that it waits for, each under its place: one, or several.
    pub(crate) fn clauses(&self) -> Vec<&Self> {
        match self {
            Self::All(All { of, .. }) | Self::Any(Any { of }) => {
                of.iter().map(|clause| &clause.trigger).collect()
            }
            Self::Manual(_) | Self::Schedule(_) | Self::Event(_) | Self::Resource(_) | Self::Url(_) => {
                vec![self]
            }
        }
    }

    /// Its conditions and keys, each with its path.
    pub(crate) fn conditions(&self) -> Vec<(String, &Expression)> {
        fn own(trigger: &Trigger) -> Option<&Expression> {
            match trigger {
                Trigger::Event(EventTrigger { when, .. })
                | Trigger::Resource(ResourceTrigger { when, .. })
                | Trigger::Url(UrlTrigger { when, .. }) => when.as_ref(),
                Trigger::Manual(_) | Trigger::Schedule(_) | Trigger::All(_) | Trigger::Any(_) => None,
            }
        }
        match self {
            Self::All(All { of, .. }) | Self::Any(Any { of }) => {
                let each = of.iter().enumerate().flat_map(|(index, clause)| {
                    let at = format!("of[{}]", index + 1);
                    let when = own(&clause.trigger).map(|when| (format!("{at}.when"), when));
                    when.into_iter().chain(clause.key.as_ref().map(|key| (format!("{at}.key"), key)))
                });
                each.collect()
            }
            _ => own(self).map(|when| ("when".to_owned(), when)).into_iter().collect(),
        }
    }

    /// The one at a place.
    pub(crate) fn clause(&self, place: usize) -> Option<&Self> {
        match self {
            Self::All(All { of, .. }) | Self::Any(Any { of }) => of.get(place).map(|clause| &clause.trigger),
            Self::Manual(_) | Self::Schedule(_) | Self::Event(_) | Self::Resource(_) | Self::Url(_) => {
                Some(self).filter(|_| place == 0)
            }
        }
    }
}

/// A duration that a file says as `"30s"` under `key` and JSON as a number under `key_s`; not both, and whole seconds.
fn seconds(
    section: &Section,
    key: &str,
    human: Option<HumanDuration>,
    number: Option<u32>,
    diagnostics: &mut Diagnostics,
) -> Option<Option<u32>> {
    let wrong = match (human, number) {
        (None, number) => return Some(number),
        (Some(_), Some(_)) => format!("said twice: leave out {key} or {key}_s"),
        (Some(HumanDuration(duration)), None) if duration.subsec_nanos() != 0 => {
            "expected whole seconds".to_owned()
        }
        (Some(HumanDuration(duration)), None) => {
            return Some(Some(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)));
        }
    };
    diagnostics.push(section.finding(key, wrong));
    None
}

/// Conditions see the event and nothing else.
fn known_names(section: &Section, key: &str, expression: Option<&Expression>, diagnostics: &mut Diagnostics) {
    if let Some(Err(why)) = expression.map(|expression| expression.knows_only(&["event"])) {
        diagnostics.push(section.finding(key, why));
    }
}

/// One thing that happened: a run of a definition begins once for each `key`.
#[derive(Debug, Clone, PartialEq)]
pub struct Occurrence {
    /// What tells it from all others of the definition: a planned time, the id of an event; at most [`MAX_KEY`] bytes.
    pub key: String,
    /// The word of the trigger that saw it, or `api`.
    pub kind: &'static str,
    /// When it happened; for a schedule the planned time.
    pub at: Timestamp,
    /// What is known of it: `trigger.data` in templates and conditions. At most [`MAX_DATA`].
    pub data: Value,
    /// The content that came with it: the run's first flows, in this order.
    pub flows: Vec<InputFlow>,
}

/// Content that comes with an occurrence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFlow {
    /// Its label, often the name of a file.
    pub label: String,
    /// A blob of the tenant (that of an event's payload, say): it stays as long as the run does.
    pub blob: BlobId,
    /// Its media type, where it is not the blob's.
    pub media_type: Option<String>,
}
