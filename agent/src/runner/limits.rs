//! Concurrency and rate of a resource.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep_until},
};

/// What a resource bears.
#[derive(Debug)]
pub struct ResourceLimits {
    places: Semaphore,
    rate: Option<Rate>,
}

impl ResourceLimits {
    /// Limits of the configuration.
    pub fn new(max_concurrent: u32, rate_per_minute: Option<u32>) -> Self {
        Self { places: Semaphore::new(max_concurrent as usize), rate: rate_per_minute.map(Rate::new) }
    }

    /// Waits for a place, then for the rate. The place is free again when the permit is dropped.
    ///
    /// # Cancel safety
    /// Cancel safe, but a turn of the rate that was waited for is used up.
    pub async fn turn(&self) -> SemaphorePermit<'_> {
        let permit = match self.places.acquire().await {
            Ok(permit) => permit,
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        };
        if let Some(rate) = &self.rate {
            sleep_until(rate.next(Instant::now())).await;
        }
        permit
    }
}

/// A token bucket of one second's worth, as a generic cell rate algorithm: it only remembers when the next turn is.
#[derive(Debug)]
struct Rate {
    every: Duration,
    burst: Duration,
    next: Mutex<Option<Instant>>,
}

impl Rate {
    fn new(per_minute: u32) -> Self {
        let every = Duration::from_secs(60) / per_minute.max(1);
        let burst = every * (per_minute / 60).saturating_sub(1);
        Self { every, burst, next: Mutex::new(None) }
    }

    /// Takes a turn: when it is.
    fn next(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        let turn = next.map_or(earliest, |next| next.max(earliest));
        *next = Some(turn + self.every);
        turn.max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_at_the_configured_rate() {
        let rate = Rate::new(30);
        let start = Instant::now();
        let turns: Vec<u64> = (0..4).map(|_| rate.next(start).duration_since(start).as_secs()).collect();
        assert_eq!(turns, [0, 2, 4, 6]);
        let later = start + Duration::from_secs(100);
        assert_eq!(rate.next(later), later);
        assert_eq!(rate.next(later), later + Duration::from_secs(2));
    }

    #[test]
    fn a_fast_rate_gives_a_second_at_once() {
        let rate = Rate::new(600);
        let start = Instant::now();
        let at_once = (0..20).filter(|_| rate.next(start) == start).count();
        assert_eq!(at_once, 10);
    }

    #[tokio::test]
    async fn no_more_than_the_allowed_number_have_a_place() {
        let limits = ResourceLimits::new(2, None);
        let first = limits.turn().await;
        let _second = limits.turn().await;
        assert!(tokio::time::timeout(Duration::from_millis(20), limits.turn()).await.is_err());
        drop(first);
        drop(limits.turn().await);
    }
}
