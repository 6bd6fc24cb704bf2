//! The rate of a resource, as its agents themselves count it.

use std::time::{Duration, Instant};

/// So many attempts per minute, a second's worth at once: as the agents themselves count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate(pub(super) u32);

impl Rate {
    fn every(self) -> Duration {
        Duration::from_secs(60) / self.0.max(1)
    }

    pub(super) fn burst(self) -> usize {
        (self.0 / 60).max(1) as usize
    }

    /// How many turns there are at `now` if the next one was due at `next`.
    pub(super) fn turns(self, next: Instant, now: Instant) -> usize {
        let Some(waited) = now.checked_duration_since(next) else { return 0 };
        let more = waited.as_nanos() / self.every().as_nanos().max(1);
        usize::try_from(more).unwrap_or(usize::MAX).saturating_add(1).min(self.burst())
    }

    /// When the next turn is, after one was taken at `now`.
    pub(super) fn after(self, next: Option<Instant>, now: Instant) -> Instant {
        let saved = self.every() * u32::try_from(self.burst() - 1).unwrap_or(u32::MAX);
        let earliest = now.checked_sub(saved).unwrap_or(now);
        next.map_or(earliest, |next| next.max(earliest)) + self.every()
    }
}
