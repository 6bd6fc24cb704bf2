//! The agent's clock, in one place.

use jiff::Timestamp;
use std::time::Duration;

/// Now, by the wall clock.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Now, in whole seconds since the Unix epoch.
pub fn unix_seconds() -> i64 {
    now().as_second()
}

/// How long from now until a time in seconds since the Unix epoch; zero if it has passed.
pub fn until(unix_seconds: i64) -> Duration {
    let millis = unix_seconds.saturating_mul(1000).saturating_sub(now().as_millisecond());
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Says by how much this machine's clock differs from the hub's, if by more than `tolerated` seconds.
pub fn difference(server_time: Timestamp, tolerated: i64) -> Option<String> {
    let ahead = unix_seconds().saturating_sub(server_time.as_second());
    if ahead.abs() <= tolerated {
        return None;
    }
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    Some(format!("this machine's clock is {} s {direction} the hub's; set it right (NTP)", ahead.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_with_amount_and_direction() {
        let hub = |seconds: i64| Timestamp::from_second(unix_seconds() + seconds).unwrap();
        assert_eq!(difference(hub(5), 60), None);
        let behind = difference(hub(3600), 60).unwrap();
        assert!(behind.contains(" s behind the hub's") && behind.contains("36"), "{behind}");
        let ahead = difference(hub(-3600), 60).unwrap();
        assert!(ahead.contains(" s ahead of the hub's"), "{ahead}");
    }

    #[test]
    fn the_time_until_a_past_moment_is_zero() {
        assert_eq!(until(unix_seconds() - 5), Duration::ZERO);
        assert!(until(unix_seconds() + 60) > Duration::from_secs(58));
    }
}
