//! When schedules are due: the days on which clocks change, leap days, ends of months, clocks that are set.

use super::*;

fn at(times: &[&str], zone: &str) -> Schedule {
    let at = times.iter().map(|time| (*time).to_owned()).collect();
    Schedule { at, timezone: Some(zone.to_owned()), ..Schedule::default() }
}

fn cron(expression: &str, zone: &str) -> Schedule {
    Schedule { cron: Some(expression.to_owned()), timezone: Some(zone.to_owned()), ..Schedule::default() }
}

fn every(interval: &str) -> Schedule {
    let HumanDuration(every) = HumanDuration::try_from(interval.to_owned()).unwrap();
    Schedule { every_s: Some(every.as_secs().try_into().unwrap()), ..Schedule::default() }
}

/// Checks the times that follow `after`.
#[track_caller]
fn check(schedule: &Schedule, after: &str, expected: &[&str]) {
    let rule = schedule.rule(None).unwrap();
    let mut last: Timestamp = after.parse().unwrap();
    for expected in expected {
        let next = rule.next_after(last).unwrap();
        assert_eq!(next.to_string(), *expected, "{} after {last}", schedule.describe());
        last = next;
    }
}

const PARIS: &str = "Europe/Paris";

#[test]
fn a_time_that_the_clock_skips_is_due_at_the_end_of_the_gap() {
    // 2027-03-28 in Paris: 02:00 is followed by 03:00.
    let spring = "2027-03-27T12:00:00Z";
    check(&at(&["02:30"], PARIS), spring, &["2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"]);
    check(&at(&["02:00"], PARIS), spring, &["2027-03-28T01:00:00Z", "2027-03-29T00:00:00Z"]);
    check(
        &at(&["01:59", "02:10", "02:50", "03:00", "03:01"], PARIS),
        spring,
        &["2027-03-28T00:59:00Z", "2027-03-28T01:00:00Z", "2027-03-28T01:01:00Z", "2027-03-28T23:59:00Z"],
    );
    check(&cron("30 2 * * *", PARIS), spring, &["2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"]);
    check(
        &cron("*/30 * * * *", PARIS),
        "2027-03-28T00:15:00Z",
        &["2027-03-28T00:30:00Z", "2027-03-28T01:00:00Z", "2027-03-28T01:30:00Z", "2027-03-28T02:00:00Z"],
    );
    check(&at(&["06:00"], PARIS), spring, &["2027-03-28T04:00:00Z", "2027-03-29T04:00:00Z"]);
    // Of the hours that really pass, 02:30 is none.
    check(
        &cron("30 * * * *", PARIS),
        "2027-03-28T00:00:00Z",
        &["2027-03-28T00:30:00Z", "2027-03-28T01:30:00Z", "2027-03-28T02:30:00Z"],
    );
    check(
        &cron("30 */2 * * *", PARIS),
        "2027-03-27T23:00:00Z",
        &["2027-03-27T23:30:00Z", "2027-03-28T02:30:00Z", "2027-03-28T04:30:00Z"],
    );
    check(
        &cron("30 0-23 * * *", PARIS),
        "2027-03-28T00:30:00Z",
        &["2027-03-28T01:00:00Z", "2027-03-28T01:30:00Z"],
    );
}

#[test]
fn a_time_that_the_clock_shows_twice_is_due_once_unless_each_hour_counts() {
    // 2026-10-25 in Paris: 03:00 is followed by 02:00.
    let autumn = "2026-10-24T12:00:00Z";
    check(&at(&["02:30"], PARIS), autumn, &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
    check(
        &at(&["02:00", "02:59", "03:00"], PARIS),
        autumn,
        &["2026-10-25T00:00:00Z", "2026-10-25T00:59:00Z", "2026-10-25T02:00:00Z", "2026-10-26T01:00:00Z"],
    );
    check(
        &cron("15,45 2 * * *", PARIS),
        autumn,
        &["2026-10-25T00:15:00Z", "2026-10-25T00:45:00Z", "2026-10-26T01:15:00Z"],
    );
    check(
        &cron("0,30 * * * *", PARIS),
        "2026-10-24T23:30:00Z",
        &[
            "2026-10-25T00:00:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-25T01:00:00Z",
            "2026-10-25T01:30:00Z",
            "2026-10-25T02:00:00Z",
        ],
    );
    // Asked for inside of the second showing.
    check(&at(&["02:30"], PARIS), "2026-10-25T01:00:00Z", &["2026-10-26T01:30:00Z"]);
    check(&cron("30 * * * *", PARIS), "2026-10-25T01:10:00Z", &["2026-10-25T01:30:00Z"]);
}

#[test]
fn a_day_of_each_kind_has_its_number_of_hours() {
    let hours = |day: &str, schedule: Schedule| {
        let rule = schedule.rule(None).unwrap();
        let day: Date = day.parse().unwrap();
        let zone = TimeZone::get(PARIS).unwrap();
        let begin = day.to_zoned(zone.clone()).unwrap().timestamp();
        let end = day.tomorrow().unwrap().to_zoned(zone).unwrap().timestamp();
        let mut last = begin.checked_sub(jiff::SignedDuration::from_secs(1)).unwrap();
        let mut count = 0;
        while let Some(next) = rule.next_after(last).filter(|next| *next < end) {
            (last, count) = (next, count + 1);
        }
        count
    };
    for (day, expected) in [("2026-11-22", 24), ("2026-10-25", 25), ("2027-03-28", 23)] {
        assert_eq!(hours(day, cron("0 * * * *", PARIS)), expected, "{day}");
        assert_eq!(hours(day, cron("*/15 * * * *", PARIS)), expected * 4, "{day}");
        assert_eq!(hours(day, every("1h")), expected, "{day}");
        assert_eq!(hours(day, at(&["00:00", "02:15", "23:59"], PARIS)), 3, "{day}");
    }
}

#[test]
fn clocks_that_change_at_midnight_or_by_half_an_hour_are_no_exception() {
    // Lord Howe Island goes back by half an hour at 02:00; Santiago skips midnight.
    check(
        &at(&["01:45"], "Australia/Lord_Howe"),
        "2026-04-04T00:00:00Z",
        &["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"],
    );
    check(
        &at(&["00:00"], "America/Santiago"),
        "2026-09-05T12:00:00Z",
        &["2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"],
    );
    check(&at(&["00:30"], "America/Santiago"), "2026-09-05T12:00:00Z", &["2026-09-06T04:00:00Z"]);
}

#[test]
fn days_of_the_week_leap_days_and_ends_of_months() {
    let mut weekly = at(&["06:00", "18:00"], PARIS);
    weekly.days = vec!["fri".to_owned(), "Mon".to_owned()];
    check(
        &weekly,
        "2026-11-20T05:00:00Z",
        &["2026-11-20T17:00:00Z", "2026-11-23T05:00:00Z", "2026-11-23T17:00:00Z", "2026-11-27T05:00:00Z"],
    );
    check(&cron("0 6 * * 1-5", PARIS), "2026-11-20T05:00:00Z", &["2026-11-23T05:00:00Z"]);
    check(
        &cron("0 12 29 2 *", "UTC"),
        "2026-01-01T00:00:00Z",
        &["2028-02-29T12:00:00Z", "2032-02-29T12:00:00Z"],
    );
    check(&cron("0 0 29 2 *", "UTC"), "2096-03-01T00:00:00Z", &["2104-02-29T00:00:00Z"]);
    check(
        &cron("30 23 L * *", PARIS),
        "2028-01-31T22:30:00Z",
        &["2028-02-29T22:30:00Z", "2028-03-31T21:30:00Z", "2028-04-30T21:30:00Z"],
    );
    check(
        &cron("0 0 31 * *", "UTC"),
        "2026-01-31T00:00:00Z",
        &["2026-03-31T00:00:00Z", "2026-05-31T00:00:00Z", "2026-07-31T00:00:00Z", "2026-08-31T00:00:00Z"],
    );
    check(
        &at(&["23:59:59"], "UTC"),
        "2026-12-31T23:59:58Z",
        &["2026-12-31T23:59:59Z", "2027-01-01T23:59:59Z"],
    );
}

#[test]
fn an_interval_counts_real_time() {
    check(&every("1h"), "2026-10-25T00:00:00Z", &["2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"]);
    check(&every("15m"), "2026-11-22T10:07:12.5Z", &["2026-11-22T10:15:00Z", "2026-11-22T10:30:00Z"]);
    check(&every("1s"), "2026-12-31T23:59:58.2Z", &["2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"]);
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_due_again() {
    // The next time is counted from the last one that was due, not from what the clock shows.
    for schedule in [at(&["06:00"], PARIS), cron("0 6 * * *", PARIS), every("24h")] {
        let rule = schedule.rule(None).unwrap();
        let due = rule.next_after("2026-11-22T00:00:01Z".parse().unwrap()).unwrap();
        assert!(rule.next_after(due).unwrap() > due);
        assert_eq!(rule.last_until(due, due), due);
    }
}

#[test]
fn the_last_missed_time_is_found_after_any_absence() {
    let now: Timestamp = "2026-11-22T10:07:12Z".parse().unwrap();
    for (schedule, first, last) in [
        (cron("* * * * *", PARIS), "2026-11-22T10:05:00Z", "2026-11-22T10:07:00Z"),
        (cron("* * * * *", PARIS), "2020-01-01T00:00:00Z", "2026-11-22T10:07:00Z"),
        (at(&["06:00"], PARIS), "2026-11-01T05:00:00Z", "2026-11-22T05:00:00Z"),
        (cron("0 6 1 * *", "UTC"), "2026-02-01T06:00:00Z", "2026-11-01T06:00:00Z"),
        (cron("0 6 1 1 *", "UTC"), "2020-01-01T06:00:00Z", "2026-01-01T06:00:00Z"),
        (cron("0 6 29 2 *", "UTC"), "2024-02-29T06:00:00Z", "2024-02-29T06:00:00Z"),
        (every("1s"), "2026-11-22T09:00:00Z", "2026-11-22T10:07:12Z"),
    ] {
        let rule = schedule.rule(None).unwrap();
        assert_eq!(rule.last_until(first.parse().unwrap(), now).to_string(), last, "{}", schedule.describe());
    }
}

#[test]
fn the_zone_of_the_definition_serves_where_the_schedule_has_none() {
    let schedule = Schedule { at: vec!["06:00".to_owned()], ..Schedule::default() };
    let next =
        |zone| schedule.rule(zone).unwrap().next_after("2026-11-22T00:00:00Z".parse().unwrap()).unwrap();
    assert_eq!(next(Some(PARIS)).to_string(), "2026-11-22T05:00:00Z");
    assert_eq!(next(None).to_string(), "2026-11-22T06:00:00Z");
}

#[test]
fn what_is_wrong_is_said_of_every_key() {
    let of = |schedule: &Schedule| -> Vec<(&str, String)> { schedule.rule(None).unwrap_err() };
    let both = Schedule { cron: Some("0 6 * * 1-5".to_owned()), ..at(&["06:00"], "Mars/Olympus") };
    let keys: Vec<_> = of(&both).iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, ["at", "timezone"]);
    for (schedule, key, expected) in [
        (Schedule::default(), "at", "exactly one of"),
        (at(&["6:00"], PARIS), "at", "\"06:00\""),
        (at(&["24:00"], PARIS), "at", "found \"24:00\""),
        (at(&["06:00:60"], PARIS), "at", "found"),
        (every("0s"), "every", "1 s to 366 days"),
        (every("400d"), "every", "1 s to 366 days"),
        (Schedule { timezone: Some(PARIS.to_owned()), ..every("1h") }, "timezone", "real time"),
        (Schedule { days: vec!["mon".to_owned()], ..every("1h") }, "days", "at only"),
        (
            Schedule { days: vec!["lundi".to_owned()], ..at(&["06:00"], PARIS) },
            "days",
            "unknown day \"lundi\"",
        ),
        (cron("0 0 30 2 *", "UTC"), "cron", "never due"),
        (cron("0 0 * *", "UTC"), "cron", "five fields"),
    ] {
        let wrong = of(&schedule);
        assert!(
            wrong.iter().any(|(found, text)| *found == key && text.contains(expected)),
            "{schedule:?}: {wrong:?}"
        );
    }
}
