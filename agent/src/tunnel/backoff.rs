//! When to dial again: exponential with full jitter, the hub's hints clamped, reset after a stable minute.

use std::time::Duration;

/// The first and shortest ceiling.
const MIN: Duration = Duration::from_secs(1);
/// The highest ceiling.
const MAX: Duration = Duration::from_secs(60);
/// The longest wait that a hub may ask for.
const MAX_HINT: Duration = Duration::from_secs(300);
/// The ceiling while nobody answers at all: whoever dials then disturbs nobody, and is to be back soon after the network.
const LOST: Duration = Duration::from_secs(3);
/// A session that lasted this long was a good one.
const STABLE: Duration = Duration::from_secs(60);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait before the next try; `random` is uniform in 0..1.
    pub fn next(&mut self, random: f64, hint: Option<Duration>) -> Duration {
        let ceiling = MIN.saturating_mul(1 << self.failures.min(6)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        // Full jitter: anything between nothing and the ceiling, so that a thousand agents do not come back together.
        let jittered = ceiling.mul_f64(random.clamp(0.0, 1.0));
        match hint {
            // What the hub asks for is the least; the jitter comes on top.
            Some(hint) => hint.clamp(MIN, MAX_HINT) + jittered.min(MIN),
            None => jittered,
        }
    }

    /// How long to wait after nobody answered at all, which says nothing of the hub.
    pub fn lost(random: f64) -> Duration {
        LOST.mul_f64(random.clamp(0.0, 1.0))
    }

    /// A session ended after this long.
    pub fn session_lasted(&mut self, duration: Duration) {
        if duration >= STABLE {
            self.failures = 0;
        }
    }
}

/// A random number, uniform in 0..1.
pub fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the jitter is the middle: still a wait.
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_from_one_second_to_a_minute() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..8).map(|_| backoff.next(1.0, None).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.next(0.0, None), Duration::ZERO);
        for _ in 0..100 {
            backoff.next(1.0, None);
        }
        assert_eq!(backoff.next(0.5, None), Duration::from_secs(30));
    }

    #[test]
    fn where_nobody_answers_the_wait_stays_short() {
        assert!((0..100).all(|_| Backoff::lost(random()) <= LOST));
        assert_eq!((Backoff::lost(0.0), Backoff::lost(1.0)), (Duration::ZERO, LOST));
    }

    #[test]
    fn hints_are_clamped() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0.0, Some(Duration::ZERO)), Duration::from_secs(1));
        assert_eq!(backoff.next(0.0, Some(Duration::from_secs(86_400))), Duration::from_secs(300));
        assert_eq!(backoff.next(1.0, Some(Duration::from_secs(10))), Duration::from_secs(11));
    }

    #[test]
    fn only_a_stable_session_resets() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.next(1.0, None);
        }
        backoff.session_lasted(Duration::from_secs(59));
        assert_eq!(backoff.next(1.0, None), Duration::from_secs(32));
        backoff.session_lasted(Duration::from_secs(60));
        assert_eq!(backoff.next(1.0, None), Duration::from_secs(1));
    }

    #[test]
    fn random_numbers_differ_and_stay_in_range() {
        let numbers: Vec<f64> = (0..50).map(|_| random()).collect();
        assert!(numbers.iter().all(|n| (0.0..=1.0).contains(n)));
        assert!(numbers.windows(2).any(|w| (w[0] - w[1]).abs() > f64::EPSILON));
    }
}
