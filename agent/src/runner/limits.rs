//! Concurrency and rate of a resource.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep_until},
};

/// What a resource bears. Shared by all that was ever configured under its name, so that a changed limit counts for
/// what runs already too.
#[derive(Debug)]
pub struct ResourceLimits {
    places: Semaphore,
    size: Mutex<Size>,
    rate: Mutex<Option<Rate>>,
}

/// How many places there are.
#[derive(Debug)]
struct Size {
    max: u32,
    /// Places in use that are not given back, because there are fewer now.
    surplus: u32,
}

/// A place at a resource, free again when dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    limits: &'a ResourceLimits,
    permit: Option<SemaphorePermit<'a>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        // Given back under the lock: a change of the size in between would count it wrongly.
        let mut size = lock(&self.limits.size);
        if size.surplus > 0 {
            size.surplus -= 1;
            permit.forget();
        } else {
            drop(permit);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ResourceLimits {
    /// Limits of the configuration.
    pub fn new(max_concurrent: u32, rate_per_minute: Option<u32>) -> Self {
        Self {
            places: Semaphore::new(max_concurrent as usize),
            size: Mutex::new(Size { max: max_concurrent, surplus: 0 }),
            rate: Mutex::new(rate_per_minute.map(Rate::new)),
        }
    }

    /// Changes the limits; what runs keeps its place.
    pub fn change(&self, max_concurrent: u32, rate_per_minute: Option<u32>) {
        let mut size = lock(&self.size);
        let (old, new) = (size.max, max_concurrent);
        size.max = new;
        if new > old {
            let paid = size.surplus.min(new - old);
            size.surplus -= paid;
            self.places.add_permits((new - old - paid) as usize);
        } else {
            let gone = self.places.forget_permits((old - new) as usize);
            size.surplus += (old - new).saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX));
        }
        let mut rate = lock(&self.rate);
        if rate.as_ref().map(|rate| rate.per_minute) != rate_per_minute {
            *rate = rate_per_minute.map(Rate::new);
        }
    }

    /// Waits for a place, then for the rate.
    ///
    /// # Cancel safety
    /// Cancel safe, but a turn of the rate that was waited for is used up.
    pub async fn turn(&self) -> Turn<'_> {
        let permit = match self.places.acquire().await {
            Ok(permit) => permit,
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        };
        let turn = Turn { limits: self, permit: Some(permit) };
        let at = lock(&self.rate).as_mut().map(|rate| rate.next(Instant::now()));
        if let Some(at) = at {
            sleep_until(at).await;
        }
        turn
    }
}

/// A token bucket of one second's worth, as a generic cell rate algorithm: it only remembers when the next turn is.
#[derive(Debug)]
struct Rate {
    per_minute: u32,
    every: Duration,
    burst: Duration,
    next: Option<Instant>,
}

impl Rate {
    fn new(per_minute: u32) -> Self {
        let every = Duration::from_secs(60) / per_minute.max(1);
        let burst = every * (per_minute / 60).saturating_sub(1);
        Self { per_minute, every, burst, next: None }
    }

    /// Takes a turn: when it is.
    fn next(&mut self, now: Instant) -> Instant {
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        let turn = self.next.map_or(earliest, |next| next.max(earliest));
        self.next = Some(turn + self.every);
        turn.max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_at_the_configured_rate() {
        let mut rate = Rate::new(30);
        let start = Instant::now();
        let turns: Vec<u64> = (0..4).map(|_| rate.next(start).duration_since(start).as_secs()).collect();
        assert_eq!(turns, [0, 2, 4, 6]);
        let later = start + Duration::from_secs(100);
        assert_eq!(rate.next(later), later);
        assert_eq!(rate.next(later), later + Duration::from_secs(2));
    }

    #[test]
    fn a_fast_rate_gives_a_second_at_once() {
        let mut rate = Rate::new(600);
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
    #[tokio::test]
    async fn a_changed_number_of_places_counts_for_what_runs_already() {
        let limits = ResourceLimits::new(3, None);
        let mut running = vec![limits.turn().await, limits.turn().await, limits.turn().await];
        let full = || async { tokio::time::timeout(Duration::from_millis(20), limits.turn()).await.is_err() };
        limits.change(1, None);
        running.pop();
        running.pop();
        assert!(full().await, "a place that is gone was given out");
        running.pop();
        running.push(limits.turn().await);
        assert!(full().await);
        limits.change(2, None);
        running.push(limits.turn().await);
        assert!(full().await);
        // Down and up again while all are in use: as if nothing had been.
        limits.change(1, None);
        limits.change(2, None);
        assert!(full().await);
        running.pop();
        running.push(limits.turn().await);
    }

    #[tokio::test]
    async fn a_changed_rate_counts_from_the_next_turn_on() {
        let limits = ResourceLimits::new(2, Some(1));
        drop(limits.turn().await);
        limits.change(2, None);
        let turn = tokio::time::timeout(Duration::from_secs(5), limits.turn()).await;
        drop(turn.expect("the old rate still counts"));
    }
}
