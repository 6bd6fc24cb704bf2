//! Business events as a trigger: what `POST /v1/events/in` takes.

use super::known_names;
use crate::mediations::expression::Expression;
use passerelle_config::{Diagnostics, Section};
use serde::{Deserialize, Serialize};

/// A business event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventTrigger {
    /// Its `EventKind`.
    pub event: String,
    /// Its `EventCategory`; without it, any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Only where this holds: `event` is the envelope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Expression>,
}

impl EventTrigger {
    /// Reads one from a section that holds nothing else.
    pub fn read(section: &Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let trigger: Self = section.parse(diagnostics)?;
        let before = diagnostics.findings().len();
        if trigger.event.is_empty() || trigger.event.chars().count() > 100 {
            let message = "expected the EventKind, 1 to 100 characters, as \"CommandeValidee\"";
            diagnostics.push(section.finding("event", message));
        }
        known_names(section, "when", trigger.when.as_ref(), diagnostics);
        (diagnostics.findings().len() == before).then_some(trigger)
    }

    /// Whether an event is of this kind and category; what `when` says is another matter.
    pub fn is_of(&self, category: &str) -> bool {
        self.category.as_deref().is_none_or(|wanted| wanted == category)
    }

    /// What it waits for.
    pub fn topic(&self) -> String {
        topic(&self.event)
    }
}

/// The topic of events of a kind.
pub fn topic(kind: &str) -> String {
    format!("event/{kind}")
}
