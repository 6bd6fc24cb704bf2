//! Records out of a flow, one at a time.

use super::{
    Error, MAX_RECORD, Record,
    columns::{Column, Kind},
    csv::{Field, Splitter},
    decimal::Decimal,
    json,
    layout::{Format, Layout},
};
use serde_json::{Number, Value};
use std::io::Read;

/// What a record is called in messages: line 12 of CSV and NDJSON, record 3 of JSON.
pub(crate) type Place = String;

/// Takes the records.
pub(crate) type Each<'a> = dyn FnMut(&Place, Record) -> Result<(), Error> + 'a;

/// What a flow had.
#[derive(Debug, Default)]
pub(crate) struct Had {
    /// How many records.
    pub(crate) records: u64,
    /// The fields that a header named.
    pub(crate) header: Vec<String>,
}

/// Reads a flow to its end.
///
/// # Errors
/// What does not fit the layout, with line and field; what `each` or the disk says.
pub(crate) fn records(input: &mut dyn Read, layout: &Layout, each: &mut Each<'_>) -> Result<Had, Error> {
    let mut had = Had::default();
    let mut counted = |place: &Place, record: Record| {
        had.records += 1;
        each(place, record)
    };
    let mut header = Vec::new();
    match layout.format {
        Format::Csv | Format::Raw => header = delimited(input, layout, &mut counted)?,
        Format::Ndjson => lines(input, layout, &mut counted)?,
        Format::Json => {
            let path: Vec<&str> = layout.at.as_deref().map(|at| at.split('.').collect()).unwrap_or_default();
            let mut text = Utf8(input, false);
            json::array(&mut text, &path, &mut |number, record| {
                counted(&format!("record {number}"), record)
            })?;
        }
        Format::Xml => return Err(Error::data("XML is only written")),
    }
    Ok(Had { header, ..had })
}

/// Gives the fields that the header named.
fn delimited(input: &mut dyn Read, layout: &Layout, each: &mut Each<'_>) -> Result<Vec<String>, Error> {
    let dialect = layout.dialect();
    let mut splitter = Splitter::new(dialect);
    let fixed = dialect.header_is_informative || !dialect.header;
    let mut columns: Option<Vec<Column>> = fixed.then(|| layout.columns.clone());
    let mut skip_header = dialect.header;
    let mut line = |number: u64, fields: Vec<Field>| {
        let place = format!("line {number}");
        // An empty line is no record of one empty field, unless records have one field.
        let is_blank = matches!(fields.as_slice(), [Field { text, quoted: false }] if text.is_empty());
        match &columns {
            None => {
                columns = Some(named(&fields, &layout.columns).map_err(|error| error.at(&place))?);
                skip_header = false;
                Ok(())
            }
            Some(columns) if is_blank && columns.len() != 1 => Ok(()),
            Some(columns) => {
                if fields.len() != columns.len() {
                    let (found, wanted) = (fields.len(), columns.len());
                    return Err(Error::data(format!("{place}: {found} fields where {wanted} are expected")));
                }
                if std::mem::take(&mut skip_header) {
                    return Ok(());
                }
                let mut record = Vec::with_capacity(fields.len());
                for (column, field) in columns.iter().zip(fields) {
                    let value = typed(column, field, dialect.decimal_mark)
                        .map_err(|error| error.at(&format!("{place}, field {:?}", column.name)))?;
                    record.push((column.name.clone(), value));
                }
                each(&place, Record(record))
            }
        }
    };
    layout.charset()?.read(input, &mut |text| splitter.push(text, &mut line))?;
    splitter.finish(&mut line)?;
    if columns.is_none() || skip_header {
        return Err(Error::data("the flow is empty: not even a header is there"));
    }
    let named = columns.unwrap_or_default().into_iter().map(|column| column.name);
    Ok(if dialect.header { named.collect() } else { Vec::new() })
}

/// The columns that a header names, with the types that the definition gives them.
fn named(fields: &[Field], known: &[Column]) -> Result<Vec<Column>, Error> {
    let mut columns: Vec<Column> = Vec::with_capacity(fields.len());
    for (index, Field { text, quoted }) in fields.iter().enumerate() {
        if !quoted && text.contains('\r') {
            let what = "the header has a carriage return inside: lines that end with it alone are not read, only LF and CRLF";
            return Err(Error::data(what));
        }
        if text.is_empty() {
            return Err(Error::data(format!("column {}: the header has no name for it", index + 1)));
        }
        if columns.iter().any(|column| column.name == *text) {
            return Err(Error::data(format!("column {}: the header names it twice", index + 1)));
        }
        let column = known.iter().find(|column| column.name == *text).cloned();
        columns.push(column.unwrap_or_else(|| Column::named(text)));
    }
    match known.iter().find(|wanted| !columns.iter().any(|column| column.name == wanted.name)) {
        Some(missing) => Err(Error::data(format!("the header has no column {:?}", missing.name))),
        None => Ok(columns),
    }
}

/// A record that was read as text, with the types that the layout gives its columns.
///
/// # Errors
/// What is not of its type, with the field.
pub(crate) fn typed_record(record: &Record, layout: &Layout) -> Result<Record, Error> {
    let typed = record.0.iter().map(|(name, value)| {
        let column = layout.columns.iter().find(|column| column.name == *name);
        match (column, value) {
            (Some(column), Value::String(text)) => {
                let field = Field { text: text.clone(), quoted: false };
                let value = typed(column, field, layout.dialect().decimal_mark)
                    .map_err(|error| error.at(&format!("field {name:?}")))?;
                Ok((name.clone(), value))
            }
            _ => Ok((name.clone(), value.clone())),
        }
    });
    typed.collect::<Result<_, _>>().map(Record)
}

fn typed(column: &Column, field: Field, decimal_mark: char) -> Result<Value, Error> {
    let Field { text, quoted } = field;
    match column.kind {
        Kind::Text => Ok(Value::String(text)),
        _ if text.is_empty() && !quoted => Ok(Value::Null),
        Kind::Boolean => match text.as_str() {
            "true" | "1" => Ok(Value::Bool(true)),
            "false" | "0" => Ok(Value::Bool(false)),
            _ => Err(Error::data("neither true, false, 1 nor 0")),
        },
        Kind::Number => {
            let other_mark = if decimal_mark == ',' { '.' } else { ',' };
            let number = Decimal::parse(&text).filter(|_| !text.contains(other_mark));
            let plain = number.ok_or_else(|| Error::data("not a number"))?.text('.', "");
            let whole = plain.parse::<i64>().ok().map(Number::from);
            let whole = whole.or_else(|| plain.parse::<u64>().ok().map(Number::from));
            if whole.is_none() && !plain.contains('.') {
                return Err(Error::data("a number with more digits than numbers keep: read it as text"));
            }
            let number = whole.or_else(|| plain.parse().ok().and_then(Number::from_f64));
            number.map(Value::Number).ok_or_else(|| Error::data("not a number"))
        }
    }
}

fn lines(input: &mut dyn Read, layout: &Layout, each: &mut Each<'_>) -> Result<(), Error> {
    let (mut rest, mut number) = (String::new(), 0_u64);
    let mut one = |text: &str| {
        number += 1;
        let text = text.trim();
        if text.is_empty() {
            return Ok(());
        }
        let place = format!("line {number}");
        let record = json::line(text).map_err(|error| error.at(&place))?;
        each(&place, record)
    };
    layout.charset()?.read(input, &mut |text| {
        rest.push_str(text);
        let mut taken = 0;
        while let Some(end) = rest.get(taken..).and_then(|left| left.find('\n')) {
            one(rest.get(taken..taken + end).unwrap_or_default())?;
            taken += end + 1;
        }
        rest.drain(..taken);
        if rest.len() > MAX_RECORD { Err(Error::data("a line is longer than 1 MiB")) } else { Ok(()) }
    })?;
    one(&rest)
}

/// Takes a byte order mark off, which JSON should not have and often has.
struct Utf8<'a>(&'a mut dyn Read, bool);

impl Read for Utf8<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if std::mem::replace(&mut self.1, true) {
            return self.0.read(buffer);
        }
        let mut first = [0; 3];
        let mut have = 0;
        while have < first.len() {
            match self.0.read(first.get_mut(have..).unwrap_or_default())? {
                0 => break,
                count => have += count,
            }
        }
        let first = first.get(..have).unwrap_or_default();
        let text = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(first);
        match buffer.get_mut(..text.len()) {
            _ if text.is_empty() => self.0.read(buffer),
            Some(room) => {
                room.copy_from_slice(text);
                Ok(text.len())
            }
            None => Err(std::io::Error::other("a reader with no room for three bytes")),
        }
    }
}
