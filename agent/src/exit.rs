//! How the program ends: the documented exit codes, and the errors that lead to them.

use std::process::ExitCode;

/// The agent was asked to stop and did so.
pub const DRAINED: u8 = 0;
/// A command found something wrong (`check`, `health`, `status`), or could not reach what it asked.
pub const FAILED: u8 = 1;
/// Configuration, state folder or local port: an operator has to mend it.
pub const CONFIGURATION: u8 = 64;
/// The hub refused the agent for good.
pub const REFUSED: u8 = 69;
/// A fault of the agent itself.
pub const BUG: u8 = 70;

/// Why the program ends other than drained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// See [`FAILED`].
    #[error("{0}")]
    Failed(String),
    /// See [`CONFIGURATION`].
    #[error("{0}")]
    Configuration(String),
    /// See [`REFUSED`].
    #[error("{0}")]
    Refused(String),
    /// See [`BUG`].
    #[error("{0}; this is a fault of the agent, please report it")]
    Bug(String),
}

impl Stop {
    /// The exit code that it leads to.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => FAILED,
            Self::Configuration(_) => CONFIGURATION,
            Self::Refused(_) => REFUSED,
            Self::Bug(_) => BUG,
        }
    }
}

impl From<&Stop> for ExitCode {
    fn from(stop: &Stop) -> Self {
        Self::from(stop.code())
    }
}
