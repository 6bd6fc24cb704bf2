//! Reads `--until`: a time or a duration from now.

use jiff::{SignedDuration, Timestamp};
use passerelle_config::HumanDuration;

/// The longest pause that a time is set for; a longer one is one without end, and better said so.
const LONGEST_DAYS: i64 = 366;

/// The moment that `text` names: RFC 3339, or a duration from `now` such as `2h30m`.
///
/// # Errors
/// What is right.
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let text = text.trim();
    let wrong = || {
        format!(
            "--until {text:?}: expected a time such as 2026-11-21T18:00:00Z or +01:00, or a duration such as 2h30m"
        )
    };
    let until = match text.parse::<Timestamp>() {
        Ok(time) => time,
        Err(_) => {
            let HumanDuration(duration) = text.to_owned().try_into().map_err(|_: String| wrong())?;
            let duration = SignedDuration::try_from(duration).map_err(|_| wrong())?;
            now.checked_add(duration).map_err(|_| wrong())?
        }
    };
    if until <= now {
        return Err(format!("--until {text:?}: that has passed"));
    }
    if until.duration_since(now) > SignedDuration::from_hours(24 * LONGEST_DAYS) {
        return Err(format!(
            "--until {text:?}: more than a year from now; leave it out to pause until `resume`"
        ));
    }
    Ok(until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_at_a_time_or_after_a_duration() {
        let now: Timestamp = "2026-11-21T06:00:00Z".parse().unwrap();
        for (text, until) in [
            ("2h", "2026-11-21T08:00:00Z"),
            ("2h30m", "2026-11-21T08:30:00Z"),
            ("90s", "2026-11-21T06:01:30Z"),
            ("3d", "2026-11-24T06:00:00Z"),
            (" 1h ", "2026-11-21T07:00:00Z"),
            ("2026-11-21T18:00:00Z", "2026-11-21T18:00:00Z"),
            ("2026-11-21T18:00:00+01:00", "2026-11-21T17:00:00Z"),
        ] {
            assert_eq!(parse(text, now), Ok(until.parse().unwrap()), "{text}");
        }
        for bad in ["", "soon", "0s", "-1h", "2", "2026-11-21", "2026-11-21T05:00:00Z", "10000d", "2h 2026"] {
            assert!(parse(bad, now).is_err(), "{bad}");
        }
    }
}
