//! What starts runs: the kinds of trigger, each in a file of its own, and what all of them come down to, an [`Occurrence`].

mod manual;

pub use manual::Manual;

use jiff::Timestamp;
use passerelle_config::{Diagnostics, Section};
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
}

/// The words of `kind`.
const KINDS: &[&str] = &["manual"];

impl Trigger {
    /// Reads one from its section, `kind` included.
    pub fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let kind = section.word("kind", KINDS, diagnostics)?;
        let (_, rest) = section.split(&["kind"]);
        match kind {
            "manual" => rest.parse(diagnostics).map(Self::Manual),
            _ => None,
        }
    }

    /// The word of its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Manual(_) => "manual",
        }
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
