//! The hub's clock and its source of ids. Times are cut to whole milliseconds: what is shown is what is stored.

use jiff::{Timestamp, Unit};
use std::{sync::LazyLock, time::Instant};
use uuid::Uuid;

/// The time now, in whole milliseconds.
#[must_use]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(jiff::TimestampRound::new().smallest(Unit::Millisecond).mode(jiff::RoundMode::Trunc))
        .unwrap_or(now)
}

/// The time now, in seconds since the Unix epoch.
#[must_use]
pub fn unix() -> i64 {
    Timestamp::now().as_second()
}

/// Milliseconds of a clock that nobody sets: for how long something was silent.
#[must_use]
pub fn monotonic_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A new UUID version 7; within this process each is greater than the one before.
#[must_use]
pub fn new_uuid7() -> Uuid {
    Uuid::now_v7()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_have_no_more_than_milliseconds_and_ids_grow() {
        assert_eq!(super::now().subsec_nanosecond() % 1_000_000, 0);
        let ids: Vec<_> = (0..1000).map(|_| super::new_uuid7()).collect();
        assert!(ids.is_sorted());
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
    }
}
