//! How notices are delivered, and when an absence is told: `[notices]` of the hub's configuration.

use passerelle_config::HumanDuration;
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::Duration;

/// As it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a subscriber may take to answer.
    pub timeout: Duration,
    /// The wait after the first failure; each further one doubles it.
    pub first_retry: Duration,
    /// The longest wait.
    pub longest_retry: Duration,
    /// After this long without success a delivery is dead.
    pub give_up: Duration,
    /// How long dead deliveries and old notices are kept.
    pub keep: Duration,
    /// An agent that was not heard for so long is told to be away.
    pub agent_away: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Section::default().checked()
    }
}

/// As it is written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Section {
    /// How long a subscriber may take to answer a delivery.
    pub timeout: HumanDuration,
    /// The wait after the first failure; each further one doubles it.
    pub first_retry: HumanDuration,
    /// The longest wait.
    pub longest_retry: HumanDuration,
    /// How long a delivery is tried before it is dead.
    pub give_up: HumanDuration,
    /// How long dead deliveries and old notices are kept.
    pub keep: HumanDuration,
    /// An agent that was not heard for so long is told to be away.
    pub agent_away: HumanDuration,
}

impl Default for Section {
    fn default() -> Self {
        let seconds = |seconds| HumanDuration(Duration::from_secs(seconds));
        Self {
            timeout: seconds(30),
            first_retry: seconds(5),
            longest_retry: seconds(15 * 60),
            give_up: seconds(3 * 24 * 3600),
            keep: seconds(7 * 24 * 3600),
            agent_away: seconds(5 * 60),
        }
    }
}

impl Section {
    /// The same as it is used.
    #[must_use]
    pub fn checked(&self) -> Settings {
        Settings {
            timeout: self.timeout.0,
            first_retry: self.first_retry.0,
            longest_retry: self.longest_retry.0,
            give_up: self.give_up.0,
            keep: self.keep.0,
            agent_away: self.agent_away.0,
        }
    }

    /// What cannot be meant.
    #[must_use]
    pub fn finding(&self) -> Option<String> {
        let second = Duration::from_secs(1);
        let bounds = [
            ("timeout", self.timeout, second, Duration::from_secs(300)),
            ("first_retry", self.first_retry, Duration::from_millis(50), Duration::from_secs(3600)),
            ("longest_retry", self.longest_retry, self.first_retry.0, Duration::from_secs(24 * 3600)),
            ("give_up", self.give_up, second, Duration::from_secs(30 * 24 * 3600)),
            ("keep", self.keep, second, Duration::from_secs(90 * 24 * 3600)),
            ("agent_away", self.agent_away, second, Duration::from_secs(30 * 24 * 3600)),
        ];
        let (key, _, least, most) =
            bounds.into_iter().find(|(_, value, least, most)| !(*least..=*most).contains(&value.0))?;
        Some(format!("notices.{key}: must be {} s to {} s", least.as_secs_f64(), most.as_secs()))
    }
}
