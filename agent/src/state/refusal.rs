//! A refusal for good is remembered, so that a container that restarts at once does not hammer the hub.

use super::StateDir;
use crate::clock;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a start after a refusal waits before it asks the hub again.
const REMEMBERED_FOR: Duration = Duration::from_secs(5 * 60);

const FILE: &str = "refused.json";

/// The hub's refusal for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The hub's code.
    pub code: String,
    /// Why and what to do.
    pub message: String,
    /// Who was refused: another one (enrolled anew, a new token) need not wait.
    #[serde(default)]
    pub subject: String,
    /// When.
    pub at: Timestamp,
}

impl Refusal {
    /// A refusal of this moment.
    pub fn now(code: impl Into<String>, message: impl Into<String>, subject: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), subject: subject.into(), at: clock::now() }
    }

    /// Writes it to the state folder; a failure is logged, since the refusal itself matters more.
    pub fn remember(&self, state: &StateDir) {
        let written =
            serde_json::to_vec(self).map_err(std::io::Error::other).and_then(|b| state.write(FILE, &b));
        if let Err(error) = written {
            tracing::warn!(%error, "Could not remember the refusal");
        }
    }

    /// Forgets the last one: the hub took us.
    pub fn forget(state: &StateDir) {
        if let Err(error) = state.remove(FILE) {
            tracing::warn!(%error, "Could not forget the last refusal");
        }
    }

    /// The last one of this subject, and how long to wait still; `None` if there was none or it is old enough.
    pub fn last(state: &StateDir, subject: &str, now: Timestamp) -> Option<(Self, Duration)> {
        let refusal: Self = serde_json::from_slice(&state.read(FILE).ok()??).ok()?;
        if refusal.subject != subject {
            return None;
        }
        let age = Duration::try_from(now.duration_since(refusal.at)).ok()?;
        let left = REMEMBERED_FOR.checked_sub(age).filter(|left| !left.is_zero())?;
        Some((refusal, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_remembered_for_five_minutes() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let now = clock::now();
        assert_eq!(Refusal::last(&state, "me", now), None);
        let refusal = Refusal {
            code: "revoked".into(),
            message: "the agent was revoked".into(),
            subject: "me".into(),
            at: now,
        };
        refusal.remember(&state);
        let (last, left) = Refusal::last(&state, "me", now + jiff::SignedDuration::from_secs(60)).unwrap();
        assert_eq!((last, left), (refusal, Duration::from_secs(240)));
        assert_eq!(Refusal::last(&state, "me", now + jiff::SignedDuration::from_secs(301)), None);
        assert_eq!(Refusal::last(&state, "another", now), None);
        Refusal::forget(&state);
        assert_eq!(Refusal::last(&state, "me", now), None);
    }
}
