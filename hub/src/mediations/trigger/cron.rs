//! Cron expressions: five fields (minute, hour, day of month, month, day of week), or a name such as `@daily`.
//!
//! Each field is `*`, a number, a range `a-b`, a step `*/n`, `a/n` or `a-b/n`, or several of these with commas; months and days of
//! the week also by their English names (`jan`, `mon`), Sunday is 0 and 7, and `L` is the last day of the month. Where both the
//! day of the month and the day of the week are given, either of them serves, as cron has always had it.

use jiff::civil::Date;

/// The longest expression.
const MAX_LENGTH: usize = 200;

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A cron expression, read: a set of bits for each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    last_day: bool,
    months: u64,
    weekdays: u64,
    any_day: bool,
    any_weekday: bool,
    every_hour: bool,
}

/// What a field may hold.
struct Field {
    name: &'static str,
    low: u8,
    high: u8,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { name: "minute", low: 0, high: 59, names: &[] },
    Field { name: "hour", low: 0, high: 23, names: &[] },
    Field { name: "day of the month", low: 1, high: 31, names: &[] },
    Field { name: "month", low: 1, high: 12, names: MONTHS },
    Field { name: "day of the week", low: 0, high: 7, names: DAYS },
];

impl Cron {
    /// Reads an expression.
    ///
    /// # Errors
    /// Which field is wrong, and what is right.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!("longer than {MAX_LENGTH} bytes; split it into several schedules"));
        }
        let text = match text.trim() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            named if named.starts_with('@') => {
                return Err(format!(
                    "unknown name {named:?}, expected @hourly, @daily, @weekly, @monthly or @yearly"
                ));
            }
            fields => fields,
        };
        let texts: Vec<&str> = text.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = texts.as_slice() else {
            return Err(format!(
                "expected five fields (minute, hour, day of month, month, day of week) as in \"0 6 * * 1-5\", found {}",
                texts.len()
            ));
        };
        let [minutes_of, hours_of, days_of, months_of, weekdays_of] = &FIELDS;
        let mut last_day = false;
        let days = day
            .split(',')
            .filter(|part| {
                let last = part.eq_ignore_ascii_case("l");
                last_day |= last;
                !last
            })
            .try_fold(0, |bits, part| Ok::<_, String>(bits | item(days_of, part)?))?;
        let weekdays = field(weekdays_of, weekday)?;
        Ok(Self {
            minutes: field(minutes_of, minute)?,
            hours: field(hours_of, hour)?,
            days,
            last_day,
            months: field(months_of, month)?,
            // 7 is Sunday too.
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            any_day: day.starts_with('*'),
            any_weekday: weekday.starts_with('*'),
            every_hour: hour.starts_with('*'),
        })
    }

    /// Whether the hour is not fixed (`*` or `*/n`): each hour that really passes counts, also one that the clock shows twice.
    pub fn counts_real_hours(&self) -> bool {
        self.every_hour
    }

    /// Whether it can be due on this day.
    pub fn is_on(&self, date: Date) -> bool {
        if !has(self.months, date.month()) {
            return false;
        }
        let day = has(self.days, date.day()) || (self.last_day && date.day() == date.days_in_month());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        if self.any_day || self.any_weekday { day && weekday } else { day || weekday }
    }

    /// The times of such a day, in seconds since midnight, in order.
    pub fn times(&self) -> Vec<u32> {
        let mut times = Vec::new();
        for hour in (0..24u8).filter(|hour| self.hours >> hour & 1 == 1) {
            for minute in (0..60u8).filter(|minute| self.minutes >> minute & 1 == 1) {
                times.push(u32::from(hour) * 3600 + u32::from(minute) * 60);
            }
        }
        times
    }
}

fn has(bits: u64, number: i8) -> bool {
    u32::try_from(number).is_ok_and(|number| bits >> number & 1 == 1)
}

fn field(of: &Field, text: &str) -> Result<u64, String> {
    text.split(',').try_fold(0, |bits, part| Ok(bits | item(of, part)?))
}

fn item(of: &Field, text: &str) -> Result<u64, String> {
    let wrong = || {
        let Field { name, low, high, .. } = of;
        format!("{name}: expected numbers from {low} to {high}, ranges, steps or *, found {text:?}")
    };
    let (range, step) = match text.split_once('/') {
        Some((range, step)) => {
            (range, Some(step.parse::<u8>().ok().filter(|step| *step > 0).ok_or_else(wrong)?))
        }
        None => (text, None),
    };
    let number = |text: &str| -> Option<u8> {
        let named = of.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let number = match named {
            Some(place) => u8::try_from(place).ok()? + u8::from(of.low == 1),
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok()?,
            None => return None,
        };
        (of.low..=of.high).contains(&number).then_some(number)
    };
    let (first, last) = match range.split_once('-') {
        _ if range == "*" => (of.low, of.high),
        Some((first, last)) => (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?),
        None => {
            let first = number(range).ok_or_else(wrong)?;
            (first, if step.is_some() { of.high } else { first })
        }
    };
    if first > last {
        return Err(wrong());
    }
    Ok((first..=last).step_by(usize::from(step.unwrap_or(1))).fold(0, |bits, number| bits | 1 << number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[test]
    fn fields_are_read_as_cron_reads_them() {
        let times = |text: &str| Cron::parse(text).unwrap().times();
        assert_eq!(times("30 6 * * *"), [23_400]);
        assert_eq!(times("*/20 8-9 * * *"), [28_800, 30_000, 31_200, 32_400, 33_600, 34_800]);
        assert_eq!(times("50/5 0 * * *"), [3000, 3300]);
        assert_eq!(times("* * * * *").len(), 1440);
        assert_eq!(times("@hourly").len(), 24);

        let on = |text: &str, date: Date| Cron::parse(text).unwrap().is_on(date);
        let (sunday, monday) = (date(2026, 11, 22), date(2026, 11, 23));
        for text in ["0 0 * * 0", "0 0 * * 7", "0 0 * * sun", "0 0 * * SUN", "0 0 * * 5-7", "@weekly"] {
            assert!(on(text, sunday) && !on(text, monday), "{text}");
        }
        assert!(on("0 0 * * mon-fri", monday) && !on("0 0 * * mon-fri", sunday));
        assert!(
            on("0 0 1,22 * mon", sunday) && on("0 0 1,22 * mon", monday),
            "either of the two days serves"
        );
        assert!(!on("0 0 */2 * mon", sunday), "but not where one of them begins with a star");
        assert!(on("0 0 * feb *", date(2026, 2, 3)) && !on("0 0 * 2 *", sunday));
        for (last, day_before) in [
            (date(2026, 2, 28), date(2026, 2, 27)),
            (date(2028, 2, 29), date(2028, 2, 28)),
            (date(2026, 11, 30), date(2026, 11, 29)),
        ] {
            assert!(on("0 0 L * *", last) && !on("0 0 l * *", day_before));
        }
    }

    #[test]
    fn what_is_no_expression_is_refused_with_its_field() {
        for (text, expected) in [
            ("", "five fields"),
            ("0 6 * *", "found 4"),
            ("0 6 * * 1-5 2026", "found 6"),
            ("60 * * * *", "minute: expected numbers from 0 to 59"),
            ("0 24 * * *", "hour: "),
            ("0 0 0 * *", "day of the month: "),
            ("0 0 * 13 *", "month: "),
            ("0 0 * * 8", "day of the week: "),
            ("0 0 * * fri-mon", "day of the week: "),
            ("*/0 * * * *", "minute: "),
            ("1,,2 * * * *", "minute: "),
            ("+1 * * * *", "minute: "),
            ("1-x * * * *", "minute: "),
            ("@reboot", "unknown name \"@reboot\""),
            (&"1,".repeat(200), "longer than"),
        ] {
            let error = Cron::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
