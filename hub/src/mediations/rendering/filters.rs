//! Helpers of templates: what accountants, label printers and old applications want to see.

use crate::mediations::formats::{
    csv,
    decimal::Decimal,
    layout::{Dialect, LineEnd, Quotes},
    xml,
};
use jiff::{Timestamp, civil, fmt::strtime, tz::TimeZone};
use minijinja::{
    Environment, Error, ErrorKind, Output, State, Value,
    value::{Kwargs, ValueKind},
};
use std::io::{self, Write};

/// The widest field of `fixed`.
const MAX_WIDTH: usize = 4096;
/// The longest JSON of a value. Lists of a template may repeat each other without holding anything: what they would be
/// written out knows no bound.
const MAX_JSON: usize = super::MAX_RENDERED;

pub(in crate::mediations) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("decimal", decimal);
    environment.add_filter("date", date);
    environment.add_filter("fixed", fixed);
    environment.add_filter("csv", field);
    environment.add_filter("xml", escaped);
    environment.add_filter("tojson", to_json);
    environment.add_filter("total", total);
}

/// Prints a value into a text: truth as JSON has it, lists and objects as JSON.
///
/// # Errors
/// For null: what stands for it is for the template to say.
pub(in crate::mediations) fn print(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => Err(unfit("null inside of a text: say what stands for it, as {{ x or \"\" }}")),
        ValueKind::Bool | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            Ok(out.write_str(&plain(value)?)?)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// The same in files, where null is an empty field.
pub(super) fn print_or_nothing(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    if value.is_none() { Ok(()) } else { print(out, state, value) }
}

fn unfit(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// A value as a text: null is an empty one; truth, lists and objects are as in JSON.
fn plain(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::None => Ok(String::new()),
        ValueKind::Bool => Ok(value.is_true().to_string()),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => to_json(value),
        _ => Ok(value.to_string()),
    }
}

/// A number or a text with one in it; what is null or empty counts as zero, as an empty amount does.
fn number(value: &Value) -> Option<Decimal> {
    match value.kind() {
        ValueKind::None => Some(Decimal::ZERO),
        ValueKind::Number => Decimal::parse(&value.to_string()),
        ValueKind::String => match value.as_str().map(str::trim) {
            Some("") | None => Some(Decimal::ZERO),
            Some(text) => Decimal::parse(text),
        },
        _ => None,
    }
}

/// `amount | decimal(2)` → `1663,15`; `mark="."`, `group=" "` change how.
fn decimal(value: &Value, places: Option<u32>, options: Kwargs) -> Result<String, Error> {
    let mark: Option<String> = options.get("mark")?;
    let group: Option<String> = options.get("group")?;
    options.assert_all_used()?;
    let mark = match mark.as_deref() {
        None | Some(",") => ',',
        Some(".") => '.',
        Some(_) => return Err(unfit("decimal: mark must be \",\" or \".\"")),
    };
    let group = group.unwrap_or_default();
    if group.chars().count() > 1 {
        return Err(unfit("decimal: group must be one character"));
    }
    let number = number(value).ok_or_else(|| unfit("decimal: not a number"))?;
    let rounded = number.rounded(places.unwrap_or(2)).ok_or_else(|| unfit("decimal: too many places"))?;
    Ok(rounded.text(mark, &group))
}

/// `at | date` → `20261031`; `date("%d/%m/%Y", zone="Europe/Paris")` says how and where.
fn date(value: &Value, format: Option<String>, options: Kwargs) -> Result<String, Error> {
    let zone: Option<String> = options.get("zone")?;
    options.assert_all_used()?;
    if value.is_none() || value.as_str().is_some_and(str::is_empty) {
        return Ok(String::new());
    }
    let format = format.unwrap_or_else(|| "%Y%m%d".to_owned());
    let text = value.as_str().map(str::trim).ok_or_else(|| unfit("date: not a text with a date"))?;
    let zone = match zone {
        Some(name) => TimeZone::get(&name)
            .map_err(|_| unfit("date: zone is not known; give the like of Europe/Paris"))?,
        None => TimeZone::UTC,
    };
    let write = |time: strtime::BrokenDownTime| {
        time.to_string(&format).map_err(|_| unfit("date: the format asks for what is not there"))
    };
    if let Ok(at) = text.parse::<Timestamp>() {
        return write((&at.to_zoned(zone)).into());
    }
    let at: Option<civil::DateTime> = text.parse().ok().or_else(|| {
        let day = text.parse::<civil::Date>().ok().or_else(|| civil::Date::strptime("%Y%m%d", text).ok());
        let day = day.or_else(|| civil::Date::strptime("%d/%m/%Y", text).ok())?;
        Some(day.to_datetime(civil::Time::midnight()))
    });
    write(at.ok_or_else(|| unfit("date: not a date, as 2026-10-31 or 2026-10-31T06:00:00Z"))?.into())
}

/// `value | fixed(10)` → exactly so many characters; `align="right"`, `fill="0"`, `cut=true`.
fn fixed(value: &Value, width: usize, options: Kwargs) -> Result<String, Error> {
    let align: Option<String> = options.get("align")?;
    let fill: Option<String> = options.get("fill")?;
    let cut: Option<bool> = options.get("cut")?;
    options.assert_all_used()?;
    if width > MAX_WIDTH {
        return Err(unfit(format!("fixed: at most {MAX_WIDTH} characters")));
    }
    let fill = fill.unwrap_or_else(|| " ".to_owned());
    if fill.chars().count() != 1 {
        return Err(unfit("fixed: fill must be one character"));
    }
    let text = plain(value)?;
    let has = text.chars().count();
    if has > width {
        return match cut {
            Some(true) => Ok(text.chars().take(width).collect()),
            _ => Err(unfit(format!("fixed: {has} characters where {width} fit; give cut=true to cut them"))),
        };
    }
    let padding = fill.repeat(width - has);
    match align.as_deref() {
        None | Some("left") => Ok(text + &padding),
        Some("right") => Ok(padding + &text),
        Some(_) => Err(unfit("fixed: align must be \"left\" or \"right\"")),
    }
}

/// `value | csv` in quotes where it needs them; `delimiter="\t"` changes what those are.
fn field(value: &Value, options: Kwargs) -> Result<String, Error> {
    let delimiter: Option<String> = options.get("delimiter")?;
    options.assert_all_used()?;
    let delimiter = delimiter.unwrap_or_else(|| ";".to_owned());
    let mut chars = delimiter.chars();
    let (Some(delimiter), None) = (chars.next(), chars.next()) else {
        return Err(unfit("csv: delimiter must be one character"));
    };
    let dialect = Dialect {
        delimiter,
        quotes: Quotes::Minimal,
        header: false,
        header_is_informative: false,
        line_end: LineEnd::Crlf,
        decimal_mark: '.',
    };
    let mut out = String::new();
    let text = plain(value)?;
    csv::write(&mut out, &text, true, &dialect).map_err(|e| unfit(e.to_string()))?;
    Ok(out)
}

/// `value | xml` inside an element or a quoted attribute.
fn escaped(value: &Value) -> Result<String, Error> {
    let text = plain(value)?;
    xml::escape(&text).ok_or_else(|| unfit("xml: a control character, which XML does not know"))
}

/// `value | tojson` as JSON.
///
/// # Errors
/// For what JSON does not have, or what is longer than a template may give.
fn to_json(value: &Value) -> Result<String, Error> {
    json(value, MAX_JSON)
}

/// A value as JSON of at most so many bytes.
///
/// # Errors
/// As [`to_json`].
pub(in crate::mediations) fn json(value: &Value, most: usize) -> Result<String, Error> {
    let mut text = Bounded::new(most);
    serde_json::to_writer(&mut text, value).map_err(|error| {
        let long = error.is_io();
        unfit(if long { "a value is too long to be written out" } else { "a value that JSON does not have" })
    })?;
    String::from_utf8(text.written).map_err(|_| unfit("a value that JSON does not have"))
}

/// A text that may not become longer than it is allowed.
pub(in crate::mediations) struct Bounded {
    pub(in crate::mediations) written: Vec<u8>,
    most: usize,
}

impl Bounded {
    pub(in crate::mediations) fn new(most: usize) -> Self {
        Self { written: Vec::new(), most }
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written.len() + bytes.len() > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `records | total("Debit")` adds a field of all records, exactly.
fn total(value: &Value, name: String) -> Result<String, Error> {
    let mut sum = Decimal::ZERO;
    for item in value.try_iter()? {
        let number = number(&item.get_attr(&name)?)
            .ok_or_else(|| unfit(format!("total: {name:?} is not a number")))?;
        sum = sum.plus(number).ok_or_else(|| unfit("total: the sum is too large"))?;
    }
    Ok(sum.text('.', ""))
}
