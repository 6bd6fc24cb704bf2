//! How many posts a listener takes per minute: a generic cell rate algorithm that only remembers when the next one is due.

use std::time::Duration;
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// See the [module](self). A minute's worth may come at once.
#[derive(Debug)]
pub struct Rate {
    every: Duration,
    due: Option<Instant>,
}

impl Rate {
    /// So many a minute.
    pub fn new(per_minute: u32) -> Self {
        Self { every: MINUTE / per_minute.max(1), due: None }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long to wait for the next, if there have been too many.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.due = Some(self.next(now)?);
        Ok(())
    }

    /// Whether one could be taken.
    ///
    /// # Errors
    /// Those of [`Self::take`].
    pub fn look(&self, now: Instant) -> Result<(), Duration> {
        self.next(now).map(drop)
    }

    fn next(&self, now: Instant) -> Result<Instant, Duration> {
        let next = self.due.map_or(now, |due| due.max(now)) + self.every;
        // What is due lies less than a minute ahead.
        let ahead = next.saturating_duration_since(now);
        if ahead > MINUTE { Err(ahead - MINUTE) } else { Ok(next) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_may_come_at_once_and_the_next_one_waits_its_turn() {
        let (mut rate, start) = (Rate::new(3), Instant::now());
        assert_eq!(
            (0..9).map(|_| rate.look(start)).collect::<Vec<_>>(),
            [Ok(()); 9],
            "looking takes nothing"
        );
        assert_eq!((0..3).map(|_| rate.take(start)).collect::<Vec<_>>(), [Ok(()); 3]);
        assert_eq!(rate.look(start), Err(Duration::from_secs(20)));
        assert_eq!(rate.take(start), Err(Duration::from_secs(20)));
        assert_eq!(rate.take(start + Duration::from_secs(19)), Err(Duration::from_secs(1)));
        assert_eq!(rate.take(start + Duration::from_secs(20)), Ok(()));
        assert!(rate.take(start + Duration::from_secs(20)).is_err());
        assert_eq!(rate.take(start + Duration::from_secs(600)), Ok(()));
    }
}
