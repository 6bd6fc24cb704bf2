//! The filters of `status?minDate=&maxDate=&definitionGuid=`, as real clients send them.
//!
//! All three may be missing or empty; the zero guid is no filter. A `+` in a date is often not escaped, so that it comes as
//! a space. Keys are compared without regard to case. .NET's smallest and greatest dates are no filter either.

use super::{error::Failure, uuid};
use crate::mediations::DefinitionId;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};
use uuid::Uuid;

/// What to list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) since: Option<Timestamp>,
    /// Before this one; the vendor's `maxDate` itself is still listed.
    pub(super) until: Option<Timestamp>,
    pub(super) definition: Option<DefinitionId>,
}

/// Reads the query.
///
/// # Errors
/// 400 for a date or guid that is none.
pub(super) fn read(query: &str) -> Result<Filter, Failure> {
    let mut filter = Filter::default();
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let value = value.trim();
        if value.is_empty() {
            continue;
        }
        match key.to_ascii_lowercase().as_str() {
            "mindate" => filter.since = date("minDate", value, false)?,
            "maxdate" => filter.until = date("maxDate", value, true)?,
            "definitionguid" => filter.definition = guid(value)?,
            // Clients add keys of their own, against caches for instance.
            _ => {}
        }
    }
    Ok(filter)
}

fn guid(value: &str) -> Result<Option<DefinitionId>, Failure> {
    match Uuid::parse_str(value) {
        Ok(zero) if zero.is_nil() => Ok(None),
        Ok(_) => Ok(uuid(value).map(DefinitionId::from)),
        Err(_) => Err(bad(format!("definitionGuid: {value:?} is no guid"))),
    }
}

/// `end`: a date without a time means the whole of its day.
fn date(key: &str, value: &str, end: bool) -> Result<Option<Timestamp>, Failure> {
    let wrong = || bad(format!("{key}: {value:?} is no date; write the like of 2026-11-21T06:00:00Z"));
    // Only an offset has a space in front of its hours: it was a plus.
    let text = match value.rsplit_once(' ') {
        Some((before, offset)) if is_offset(offset) => format!("{before}+{offset}"),
        _ => value.to_owned(),
    };
    match text.get(..4).and_then(|year| year.parse::<i16>().ok()) {
        Some(..=1) | Some(9999..) => return Ok(None),
        _ => {}
    }
    let moment = |at: Timestamp| match end {
        true => at.checked_add(SignedDuration::from_millis(1)).unwrap_or(at),
        false => at,
    };
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(Some(moment(at)));
    }
    let utc = |at: civil::DateTime| at.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp());
    if let Ok(day) = text.parse::<civil::Date>()
        && text.len() <= 10
    {
        let day = if end { day.tomorrow().map_err(|_| wrong())? } else { day };
        return utc(day.at(0, 0, 0, 0)).map(Some).map_err(|_| wrong());
    }
    let at: civil::DateTime = text.parse().map_err(|_| wrong())?;
    utc(at).map(moment).map(Some).map_err(|_| wrong())
}

/// The hours and minutes of an offset: `01:00`, `0100`, `01`; not a time of day with seconds.
fn is_offset(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    matches!((text.len(), digits), (5, 4) | (4, 4) | (2, 2))
        && text.bytes().all(|b| b.is_ascii_digit() || b == b':')
}

fn bad(message: String) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn since(query: &str) -> Option<String> {
        read(query).unwrap().since.map(|at| at.to_string())
    }

    #[test]
    fn dates_are_read_as_clients_send_them() {
        for (query, expected) in [
            ("minDate=2026-11-21T06:00:00Z", "2026-11-21T06:00:00Z"),
            ("minDate=2026-11-21T07:00:00+01:00", "2026-11-21T06:00:00Z"),
            ("minDate=2026-11-21T07:00:00%2B01:00", "2026-11-21T06:00:00Z"),
            ("minDate=2026-11-21T07%3A00%3A00%2B01%3A00", "2026-11-21T06:00:00Z"),
            ("minDate=2026-11-21T07:00:00.1234567+01:00", "2026-11-21T06:00:00.1234567Z"),
            ("minDate=2026-11-21T05:00:00-01:00", "2026-11-21T06:00:00Z"),
            ("minDate=2026-11-21T06:00:00", "2026-11-21T06:00:00Z"),
            ("minDate=2026-11-21 06:00:00", "2026-11-21T06:00:00Z"),
            ("minDate=2026-11-21+06:00:00", "2026-11-21T06:00:00Z"),
            ("MINDATE=2026-11-21", "2026-11-21T00:00:00Z"),
        ] {
            assert_eq!(since(query).as_deref(), Some(expected), "{query}");
        }
        for none in [
            "",
            "minDate=",
            "minDate=0001-01-01T00:00:00",
            "minDate=9999-12-31T23:59:59.9999999",
            "maxDate=&definitionGuid=&minDate=&_=17",
            "definitionGuid=00000000-0000-0000-0000-000000000000",
        ] {
            assert_eq!(read(none).unwrap(), Filter::default(), "{none}");
        }
        for bad in
            ["minDate=yesterday", "maxDate=2026-13-01", "definitionGuid=7", "minDate=2026-11-21T25:00:00Z"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_end_is_listed_itself() {
        let until = |query: &str| read(query).unwrap().until.map(|at| at.to_string());
        let at = until("maxDate=2026-11-21T06:00:00Z");
        assert_eq!(at.as_deref(), Some("2026-11-21T06:00:00.001Z"));
        assert_eq!(until("maxDate=2026-11-21").as_deref(), Some("2026-11-22T00:00:00Z"));
    }

    #[test]
    fn guids_are_read_in_every_spelling() {
        let plain = "0193f0b2-7d5c-7f2e-8a46-3b1c5d7e9f10";
        let expected = Some(DefinitionId::from(Uuid::parse_str(plain).unwrap()));
        for text in [plain.to_owned(), plain.to_uppercase(), format!("%7B{plain}%7D"), plain.replace('-', "")]
        {
            assert_eq!(read(&format!("definitionGuid={text}")).unwrap().definition, expected, "{text}");
        }
    }
}
