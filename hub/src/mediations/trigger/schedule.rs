//! Schedules: fixed times of day, days of the week, an interval, or a cron expression, each in a time zone.
//!
//! Everything here is pure: [`Schedule::next_after`] says when a schedule is due next, and nothing else decides it. The rules for
//! the days on which clocks change:
//!
//! - A time that the clock skips (02:30 on the last Sunday of March) is due at the end of the gap (03:00); several such times
//!   fall together into one.
//! - A time that the clock shows twice (02:30 on the last Sunday of October) is due once, at the first.
//! - A cron expression whose hour is `*` or `*/n` counts the hours that really pass: it is due at both, and at none of those that
//!   the clock skips.
//! - An interval counts real time from 1970-01-01T00:00:00Z, whatever clocks show: `1h` is due at every full hour.

use super::{cron::Cron, seconds};
use jiff::{
    Timestamp,
    civil::{Date, Time, Weekday},
    tz::{AmbiguousOffset, TimeZone},
};
use passerelle_config::{Diagnostics, HumanDuration, Section};
use serde::{Deserialize, Serialize};

/// How many times of day a schedule may name.
const MAX_TIMES: usize = 96;
/// The longest interval: 366 days.
const MAX_EVERY_S: u32 = 366 * 24 * 3600;
/// How many days are looked through for the next one: 29 February of a leap year on a given weekday comes within 40 years.
const MAX_DAYS: usize = 41 * 366;
/// How far a time of day may be from its instant's own: clocks are set by less.
const SHIFT: u32 = 3 * 3600;

/// A schedule, as it stands in a definition. Exactly one of `at`, `every_s` and `cron` is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Times of day, `"06:00"` or `"06:00:30"`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub at: Vec<String>,
    /// The days of the week on which `at` is meant, `"mon"` to `"sun"`; without it every day.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<String>,
    /// An interval in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_s: Option<u32>,
    /// A cron expression of five fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// The IANA name of the time zone that `at` and `cron` are meant in; without it that of the definition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

/// The keys as they are written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    at: Vec<String>,
    #[serde(default)]
    days: Vec<String>,
    every: Option<HumanDuration>,
    every_s: Option<u32>,
    cron: Option<String>,
    timezone: Option<String>,
}

/// A schedule whose parts were read.
#[derive(Debug, Clone)]
pub struct Rule {
    when: When,
}

#[derive(Debug, Clone)]
enum When {
    /// Real seconds.
    Every(i64),
    /// What a clock on the wall shows.
    Wall { days: Days, times: Vec<u32>, both: bool, zone: TimeZone },
}

#[derive(Debug, Clone)]
enum Days {
    /// Of the week, Monday first.
    Week([bool; 7]),
    Cron(Cron),
}

/// A wrong key and what is right.
pub type Wrong = (&'static str, String);

impl Schedule {
    /// Reads one from a section that holds nothing else.
    pub fn read(section: &Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let raw: Raw = section.parse(diagnostics)?;
        let every_s = seconds(section, "every", raw.every, raw.every_s, diagnostics)?;
        let schedule = Self { at: raw.at, days: raw.days, every_s, cron: raw.cron, timezone: raw.timezone };
        match schedule.rule(None) {
            Ok(_) => Some(schedule),
            Err(wrong) => {
                for (key, message) in wrong {
                    diagnostics.push(section.finding(key, message));
                }
                None
            }
        }
    }

    /// What it comes down to. `timezone` is that of the definition.
    ///
    /// # Errors
    /// Every key that is wrong.
    pub fn rule(&self, timezone: Option<&str>) -> Result<Rule, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let given = [!self.at.is_empty(), self.every_s.is_some(), self.cron.is_some()];
        if given.iter().filter(|given| **given).count() != 1 {
            wrong.push(("at", "give exactly one of at, every and cron".to_owned()));
        }
        if !self.days.is_empty() && self.at.is_empty() {
            wrong.push(("days", "goes with at only; a cron expression has its own days".to_owned()));
        }
        if self.every_s.is_some() && self.timezone.is_some() {
            wrong.push(("timezone", "an interval counts real time: leave the time zone out".to_owned()));
        }
        let zone = zone(self.timezone.as_deref().or(timezone)).unwrap_or_else(|error| {
            wrong.push(("timezone", error));
            TimeZone::UTC
        });
        let mut when = None;
        if let Some(seconds) = self.every_s {
            if (1..=MAX_EVERY_S).contains(&seconds) {
                when = Some(When::Every(i64::from(seconds)));
            } else {
                wrong.push(("every", "expected 1 s to 366 days".to_owned()));
            }
        } else if let Some(cron) = &self.cron {
            match Cron::parse(cron) {
                Ok(cron) => {
                    let (times, both) = (cron.times(), cron.counts_real_hours());
                    when = Some(When::Wall { days: Days::Cron(cron), times, both, zone });
                }
                Err(error) => wrong.push(("cron", error)),
            }
        } else {
            let times = times(&self.at).map_err(|error| wrong.push(("at", error)));
            let days = week(&self.days).map_err(|error| wrong.push(("days", error)));
            if let (Ok(times), Ok(days)) = (times, days) {
                when = Some(When::Wall { days: Days::Week(days), times, both: false, zone });
            }
        }
        let rule = when.map(|when| Rule { when });
        if let Some(rule) = &rule
            && wrong.is_empty()
            && rule.next_after(Timestamp::UNIX_EPOCH).is_none()
        {
            wrong.push(("cron", "never due: there is no such day".to_owned()));
        }
        rule.filter(|_| wrong.is_empty()).ok_or(wrong)
    }

    /// In one line, for people.
    pub fn describe(&self) -> String {
        let mut text = match (self.every_s, &self.cron) {
            (Some(seconds), _) => {
                let every = std::time::Duration::from_secs(u64::from(seconds));
                return format!("every {}", HumanDuration(every));
            }
            (None, Some(cron)) => format!("cron {cron}"),
            (None, None) if self.days.is_empty() => format!("daily at {}", self.at.join(", ")),
            (None, None) => format!("{} at {}", self.days.join(", "), self.at.join(", ")),
        };
        if let Some(zone) = &self.timezone {
            text = format!("{text} ({zone})");
        }
        text
    }
}

impl Rule {
    /// The first time after `after` at which it is due; none for one that is never due again.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Every(seconds) => {
                let turn = after.as_second().div_euclid(*seconds).checked_add(1)?;
                Timestamp::from_second(turn.checked_mul(*seconds)?).ok()
            }
            When::Wall { days, times, both, zone } => {
                let start = zone.to_datetime(after);
                let mut date = start.date();
                // What the clock showed a little before may be due only after it, where clocks change.
                let mut from = since_midnight(start.time()).saturating_sub(SHIFT);
                if from == 0
                    && let Ok(before) = date.yesterday()
                {
                    (date, from) = (before, 24 * 3600 - SHIFT);
                }
                for _ in 0..MAX_DAYS {
                    if days.has(date)
                        && let Some(found) = first_of_day(zone, date, times, from, *both, after)
                    {
                        return Some(found);
                    }
                    date = date.tomorrow().ok()?;
                    from = 0;
                }
                None
            }
        }
    }

    /// The last time of those from `first`, which is one, until `now`.
    pub fn last_until(&self, first: Timestamp, now: Timestamp) -> Timestamp {
        // From near to far, so that a long absence costs no more than the last stretch of it.
        for hours in [1i64, 24, 8 * 24, 32 * 24, 400 * 24] {
            let from = now.checked_sub(jiff::SignedDuration::from_hours(hours)).unwrap_or(first).max(first);
            let mut last = if from == first { Some(first) } else { self.next_after(from) };
            if last.is_some_and(|last| last <= now) {
                while let Some(next) = last.and_then(|last| self.next_after(last)).filter(|next| *next <= now)
                {
                    last = Some(next);
                }
                return last.unwrap_or(first);
            }
        }
        first
    }
}

impl Days {
    fn has(&self, date: Date) -> bool {
        match self {
            Self::Week(days) => usize::try_from(date.weekday().to_monday_zero_offset())
                .is_ok_and(|day| days.get(day).copied().unwrap_or_default()),
            Self::Cron(cron) => cron.is_on(date),
        }
    }
}

/// The first instant after `after` of a day's times from `from` on. Times come in the order of the clock, which is not that of
/// the instants where the clock goes back; the first showing of each never comes before that of the one before it.
fn first_of_day(
    zone: &TimeZone,
    date: Date,
    times: &[u32],
    from: u32,
    both: bool,
    after: Timestamp,
) -> Option<Timestamp> {
    let mut best: Option<Timestamp> = None;
    for time in times.iter().skip_while(|time| **time < from) {
        let (first, second) = match instants(zone, date, *time)? {
            Shown::Once(first) => (first, None),
            // Of the hours that really pass it is none.
            Shown::Never(_) if both => continue,
            Shown::Never(end) => (end, None),
            Shown::Twice(first, second) => (first, Some(second)),
        };
        if best.is_some_and(|best| first >= best) {
            break;
        }
        let second = second.filter(|_| both);
        let due = Some(first).filter(|first| *first > after).or(second.filter(|second| *second > after));
        best = match (best, due) {
            (Some(best), Some(due)) => Some(best.min(due)),
            (best, due) => best.or(due),
        };
    }
    best
}

/// When a clock shows a time of a day.
enum Shown {
    Once(Timestamp),
    /// The clock skips it: the end of the gap.
    Never(Timestamp),
    Twice(Timestamp, Timestamp),
}

fn instants(zone: &TimeZone, date: Date, time: u32) -> Option<Shown> {
    let part = |value: u32| i8::try_from(value).ok();
    let time = Time::new(part(time / 3600)?, part(time / 60 % 60)?, part(time % 60)?, 0).ok()?;
    let shown = date.to_datetime(time);
    let found = zone.to_ambiguous_timestamp(shown);
    match found.offset() {
        AmbiguousOffset::Unambiguous { offset } => Some(Shown::Once(offset.to_timestamp(shown).ok()?)),
        AmbiguousOffset::Gap { before, after: _ } => {
            let beyond = before.to_timestamp(shown).ok()?;
            let just_after = beyond.checked_add(jiff::SignedDuration::from_nanos(1)).ok()?;
            let end = zone.preceding(just_after).next().map_or(beyond, |change| change.timestamp());
            Some(Shown::Never(end))
        }
        AmbiguousOffset::Fold { before, after } => {
            Some(Shown::Twice(before.to_timestamp(shown).ok()?, after.to_timestamp(shown).ok()?))
        }
    }
}

/// A time zone by its IANA name; UTC if none is given.
///
/// # Errors
/// If there is none of that name.
pub fn zone(name: Option<&str>) -> Result<TimeZone, String> {
    name.map_or(Ok(TimeZone::UTC), |name| {
        TimeZone::get(name).map_err(|_| {
            format!("unknown time zone {name:?}; expected an IANA name such as \"Europe/Paris\" or \"UTC\"")
        })
    })
}

fn since_midnight(time: Time) -> u32 {
    let part = |value: i8| u32::try_from(value).unwrap_or_default();
    part(time.hour()) * 3600 + part(time.minute()) * 60 + part(time.second())
}

fn times(texts: &[String]) -> Result<Vec<u32>, String> {
    if texts.len() > MAX_TIMES {
        return Err(format!("more than {MAX_TIMES} times; write an interval or a cron expression"));
    }
    let mut times = texts.iter().map(|text| time_of_day(text)).collect::<Result<Vec<_>, _>>()?;
    times.sort_unstable();
    times.dedup();
    Ok(times)
}

fn time_of_day(text: &str) -> Result<u32, String> {
    let wrong = || format!("expected a time of day such as \"06:00\" or \"23:59:30\", found {text:?}");
    let digits = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = text.split(':').collect();
    if !(2..=3).contains(&parts.len()) || !parts.iter().all(|part| digits(part)) {
        return Err(wrong());
    }
    let mut numbers = parts.iter().map(|part| part.parse::<u32>().unwrap_or(u32::MAX));
    let (hour, minute) = (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(u32::MAX));
    let second = numbers.next().unwrap_or(0);
    if hour > 23 || minute > 59 || second > 59 {
        Err(wrong())
    } else {
        Ok(hour * 3600 + minute * 60 + second)
    }
}

fn week(texts: &[String]) -> Result<[bool; 7], String> {
    if texts.is_empty() {
        return Ok([true; 7]);
    }
    let mut days = [false; 7];
    for text in texts {
        let day = match text.to_ascii_lowercase().as_str() {
            "mon" | "monday" => Weekday::Monday,
            "tue" | "tuesday" => Weekday::Tuesday,
            "wed" | "wednesday" => Weekday::Wednesday,
            "thu" | "thursday" => Weekday::Thursday,
            "fri" | "friday" => Weekday::Friday,
            "sat" | "saturday" => Weekday::Saturday,
            "sun" | "sunday" => Weekday::Sunday,
            _ => return Err(format!("unknown day {text:?}, expected mon, tue, wed, thu, fri, sat or sun")),
        };
        if let Some(day) = usize::try_from(day.to_monday_zero_offset()).ok().and_then(|day| days.get_mut(day))
        {
            *day = true;
        }
    }
    Ok(days)
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
