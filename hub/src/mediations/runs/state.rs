//! The states of a run: stable codes, and what operators read.

use super::Labels;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Where a run stands. `failed` and `unknown` can be restarted or ignored; the other ends are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waits for its turn.
    Queued,
    /// Its steps or their jobs are under way.
    Running,
    /// All is done.
    Succeeded,
    /// A step or transfer failed.
    Failed,
    /// Nobody can tell whether a transfer took effect: its job is to be resolved before a restart.
    Unknown,
    /// An operator closed it.
    Ignored,
    /// A newer run closed it.
    Superseded,
    /// It never began: an earlier run was under way.
    Skipped,
}

impl RunState {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Unknown,
        Self::Ignored,
        Self::Superseded,
        Self::Skipped,
    ];

    /// The stable code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Ignored => "ignored",
            Self::Superseded => "superseded",
            Self::Skipped => "skipped",
        }
    }

    /// What operators read.
    #[must_use]
    pub fn labels(self) -> Labels {
        let (en, fr) = match self {
            Self::Queued => ("Waiting for its turn", "En attente"),
            Self::Running => ("In progress", "En cours"),
            Self::Succeeded => ("Completed", "Terminée"),
            Self::Failed => ("Failed", "En erreur"),
            Self::Unknown => ("Effect unknown", "Effet inconnu"),
            Self::Ignored => ("Ignored", "Ignorée"),
            Self::Superseded => (
                "Closed because of a newer mediation run.",
                "Fermeture pour cause de médiation plus récente.",
            ),
            Self::Skipped => (
                "Not run: an earlier run was under way",
                "Non exécutée : une médiation précédente était en cours",
            ),
        };
        Labels { en, fr }
    }

    /// Whether it has come to an end, for good or until a restart.
    #[must_use]
    pub fn is_finished(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// Whether it ended in a way that somebody has to look at.
    #[must_use]
    pub fn is_error(self) -> bool {
        matches!(self, Self::Failed | Self::Unknown)
    }
}

impl FromStr for RunState {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|state| state.as_str() == text).ok_or(())
    }
}
