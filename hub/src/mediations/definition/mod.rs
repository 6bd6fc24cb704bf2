//! A mediation definition: what an operator or a client says about one mediation.
//!
//! The same reader serves TOML files ([`file`]) and JSON bodies, and the stored form is its JSON. What refers to something
//! else (an input to a step) is checked in [`check`]. A change makes a new version; a run keeps the one it began with.

pub mod check;
pub mod diff;
pub mod file;
mod job;
mod read;
pub(crate) mod templates;

pub use job::{Inputs, JobSpec, OnFailure, Transfer};

use super::{
    ids::DefinitionId,
    steps::Step,
    trigger::{Manual, Trigger},
};
use passerelle_protocol::Name;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest label.
pub const MAX_LABEL: usize = 200;
/// How many steps a definition may have.
pub const MAX_STEPS: usize = 50;
/// How many transfers a definition may have.
pub const MAX_TRANSFERS: usize = 20;
/// How long runs are kept, in days, unless the definition says otherwise.
pub const RETENTION_DAYS: u8 = 30;
/// The longest interval between two runs: 400 days.
pub const MAX_INTERVAL_S: u32 = 400 * 24 * 3600;

/// A mediation definition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Definition {
    /// Its guid.
    pub guid: DefinitionId,
    /// Its name, unlike that of any other definition of the tenant.
    pub name: Name,
    /// What operators read.
    pub label: String,
    /// Whether runs begin at all.
    pub enabled: bool,
    /// The guid of the system mediation that it is; such a definition's name, trigger kind, steps and transfers are fixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<Uuid>,
    /// The name of the vendor's standard flow that starts it (`PUT app/mediations/standard/{flow}`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standard_flow: Option<String>,
    /// What starts its runs.
    pub trigger: Trigger,
    /// What each run does, in this order.
    pub steps: Vec<StepEntry>,
    /// Where the flows of a run go then, in this order.
    pub transfer: Vec<Transfer>,
    /// How many days runs are kept after their end: 1 to 30.
    pub retention_days: u8,
    /// A newer run closes older failed ones.
    pub ignore_old_errors: bool,
    /// Two runs are never farther apart, or the mediation is late: seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_interval_s: Option<u32>,
    /// What a trigger does while a run is under way.
    pub overlap: Overlap,
    /// What becomes of planned times that passed while no hub was up.
    pub missed: Missed,
    /// The IANA time zone of its schedule.
    pub timezone: String,
}

/// What a trigger does while an earlier run is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The new run waits for its turn.
    #[default]
    Queue,
    /// No run begins; that is noted.
    Skip,
    /// Both run.
    Parallel,
}

/// What becomes of planned times that passed while no hub was up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// One run, for the last of them.
    #[default]
    RunOnce,
    /// None.
    Skip,
}

/// One step of a definition: its name, what it reads, and what it does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepEntry {
    /// Its name, unlike that of any other step or transfer of the definition.
    pub name: Name,
    /// The flows that it reads; where nothing is said, those of the step before it, for the first those of the trigger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Inputs>,
    /// What it does.
    #[serde(flatten)]
    pub step: Step,
}

impl Definition {
    /// What stands where one is to be read: it does nothing.
    pub(crate) fn unread(name: Name) -> Self {
        Self {
            guid: DefinitionId::from(Uuid::nil()),
            label: String::new(),
            name,
            enabled: false,
            system: None,
            standard_flow: None,
            trigger: Trigger::Manual(Manual::default()),
            steps: Vec::new(),
            transfer: Vec::new(),
            retention_days: RETENTION_DAYS,
            ignore_old_errors: false,
            max_interval_s: None,
            overlap: Overlap::Queue,
            missed: Missed::Skip,
            timezone: String::new(),
        }
    }

    /// How many units a run has: its steps, then its transfers.
    #[must_use]
    pub fn units(&self) -> usize {
        self.steps.len() + self.transfer.len()
    }

    /// The name of a unit.
    #[must_use]
    pub fn unit_name(&self, position: usize) -> Option<&Name> {
        match self.steps.get(position) {
            Some(step) => Some(&step.name),
            None => self.transfer.get(position.checked_sub(self.steps.len())?).map(|transfer| &transfer.name),
        }
    }

    /// As JSON: the form in which it is stored and shown.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}
