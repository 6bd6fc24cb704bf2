//! Records into a flow, one at a time.

use super::{
    Error, Record,
    columns::Column,
    csv,
    encoding::Charset,
    layout::{Dialect, Format, Layout, LineEnd, Quotes},
    xml,
};
use serde_json::Value;
use std::{io::Write, mem};

/// How many records are evaluated at once, and how many bytes of them about.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 512 * 1024;

/// The values of the first records, of one at least; where they end at one that does not fit, the number of its expression,
/// and why.
pub(crate) type Values = (Vec<Vec<Value>>, Option<(usize, String)>);

/// What gives the values of columns that are expressions over `record`.
pub(crate) trait Evaluate {
    /// The values for records, in their order.
    ///
    /// # Errors
    /// What ends all of it.
    fn values(&mut self, expressions: &[String], records: &[Record]) -> Result<Values, Error>;
}

/// Writes records as a layout says; [`Self::finish`] ends it.
pub(crate) struct Writer<'w> {
    out: &'w mut dyn Write,
    layout: Layout,
    dialect: Dialect,
    charset: Charset,
    line_end: LineEnd,
    evaluate: &'w mut dyn Evaluate,
    /// The expressions of the columns that have one.
    expressions: Vec<String>,
    /// Records that wait for the values of those, where each came from, and about how long they are.
    waiting: Vec<Record>,
    places: Vec<String>,
    waiting_bytes: usize,
    /// The columns of CSV when the definition names none: the fields of the first record.
    fields: Option<Vec<String>>,
    count: u64,
    /// Of what is written, counted from 1.
    line: u64,
}

impl<'w> Writer<'w> {
    /// Begins a flow.
    ///
    /// # Errors
    /// A layout that was not checked; the disk.
    pub(crate) fn new(
        out: &'w mut dyn Write,
        layout: &Layout,
        evaluate: &'w mut dyn Evaluate,
    ) -> Result<Self, Error> {
        let mut writer = Self {
            out,
            dialect: layout.dialect(),
            charset: layout.charset()?,
            line_end: layout.line_end(),
            evaluate,
            expressions: layout.columns.iter().filter_map(|column| column.value.clone()).collect(),
            waiting: Vec::new(),
            places: Vec::new(),
            waiting_bytes: 0,
            layout: layout.clone(),
            fields: None,
            count: 0,
            line: 1,
        };
        if writer.layout.bom {
            let mut mark = Vec::new();
            writer.charset.write_bom(&mut mark);
            writer.out.write_all(&mark)?;
        }
        match writer.layout.format {
            Format::Csv | Format::Raw if !layout.columns.is_empty() => {
                let names = layout.columns.iter().map(|column| column.name.clone()).collect();
                writer.header(names)?;
            }
            Format::Json => writer.text("[")?,
            Format::Xml => {
                let (root, encoding) = (writer.root(), writer.charset.name());
                writer.text(&format!("<?xml version=\"1.0\" encoding=\"{encoding}\"?>"))?;
                writer.end_line()?;
                writer.text(&format!("<{root}>"))?;
                writer.end_line()?;
            }
            Format::Csv | Format::Raw | Format::Ndjson => {}
        }
        Ok(writer)
    }

    fn root(&self) -> String {
        self.layout.root.clone().unwrap_or_else(|| "records".to_owned())
    }

    /// Writes a record; `place` is where it came from.
    ///
    /// # Errors
    /// A field that is not there, or that the format or the encoding cannot hold.
    pub(crate) fn write(&mut self, place: &str, record: Record) -> Result<(), Error> {
        if self.expressions.is_empty() {
            let record = self.mapped(record, Vec::new()).map_err(|error| error.at(place))?;
            return self.put(place, record);
        }
        self.waiting_bytes += about(&record);
        self.waiting.push(record);
        self.places.push(place.to_owned());
        if self.waiting.len() == BATCH || self.waiting_bytes >= BATCH_BYTES {
            self.evaluated()
        } else {
            Ok(())
        }
    }

    /// Writes the records that wait for the values of their columns. [`Self::finish`] does it too: this is for who stops.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn evaluated(&mut self) -> Result<(), Error> {
        let (mut records, mut places) = (mem::take(&mut self.waiting), mem::take(&mut self.places));
        self.waiting_bytes = 0;
        while !records.is_empty() {
            let (made, unfit) = self.evaluate.values(&self.expressions, &records)?;
            let count = made.len().min(records.len());
            for ((record, place), values) in records.drain(..count).zip(&places).zip(made) {
                let record = self.mapped(record, values).map_err(|error| error.at(place))?;
                self.put(place, record)?;
            }
            places.drain(..count);
            match (places.first(), unfit) {
                (Some(place), Some((at, why))) => {
                    let name = self.layout.columns.iter().filter(|column| column.value.is_some()).nth(at);
                    let name = name.map_or("", |column| &column.name);
                    return Err(Error::data(format!("{place}: column {name:?}: {why}")));
                }
                (Some(_), None) if count == 0 => {
                    return Err(Error::Passing("the values of columns did not come".to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn put(&mut self, place: &str, record: Record) -> Result<(), Error> {
        self.count += 1;
        match self.layout.format {
            Format::Csv | Format::Raw => self.row(place, record),
            Format::Json => {
                let start = if self.count == 1 { "\n" } else { ",\n" };
                let text = format!("{start}{}", json(&record)?);
                self.line += 1;
                self.text(&text).map_err(|error| error.at(place))
            }
            Format::Ndjson => {
                let text = json(&record)?;
                self.text(&text).map_err(|error| error.at(place))?;
                self.end_line()
            }
            Format::Xml => {
                let name = self.layout.record.clone().unwrap_or_else(|| "record".to_owned());
                let mut text = String::new();
                xml::record(&mut text, &name, &record).map_err(|error| error.at(place))?;
                self.text(&text).map_err(|error| error.at(place))?;
                self.end_line()
            }
        }
    }

    /// Says which fields records would have had: a CSV without records keeps its header.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn without_records(&mut self, names: Vec<String>) -> Result<(), Error> {
        let is_csv = matches!(self.layout.format, Format::Csv | Format::Raw);
        if is_csv && self.fields.is_none() && !names.is_empty() { self.header(names) } else { Ok(()) }
    }

    /// Ends the flow; gives how many records it has.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn finish(mut self) -> Result<u64, Error> {
        self.evaluated()?;
        match self.layout.format {
            Format::Json => self.text("\n]\n")?,
            Format::Xml => {
                let root = self.root();
                self.text(&format!("</{root}>"))?;
                self.end_line()?;
            }
            Format::Csv | Format::Raw | Format::Ndjson => {}
        }
        self.out.flush()?;
        Ok(self.count)
    }

    /// The record with the definition's columns, if it has any; `values` are those of expressions.
    fn mapped(&self, record: Record, values: Vec<Value>) -> Result<Record, Error> {
        if self.layout.columns.is_empty() {
            return Ok(record);
        }
        let mut values = values.into_iter();
        let value = |column: &Column| {
            let name = &column.name;
            let value = match &column.value {
                Some(_) => values.next(),
                None => record.get(name).cloned(),
            };
            let missing = || Error::data(format!("column {name:?}: the record has no such field"));
            Ok((name.clone(), value.ok_or_else(missing)?))
        };
        self.layout.columns.iter().map(value).collect::<Result<_, Error>>().map(Record)
    }

    fn header(&mut self, names: Vec<String>) -> Result<(), Error> {
        if self.dialect.header {
            let mut text = String::new();
            for (index, name) in names.iter().enumerate() {
                if index > 0 {
                    text.push(self.dialect.delimiter);
                }
                let is_text = self.dialect.quotes != Quotes::Text || self.layout.format == Format::Raw;
                csv::write(&mut text, name, is_text, &self.dialect)
                    .map_err(|error| error.at(&format!("header, column {name:?}")))?;
            }
            self.text(&text).map_err(|error| error.at("header"))?;
            self.end_line()?;
        }
        self.fields = Some(names);
        Ok(())
    }

    fn row(&mut self, place: &str, record: Record) -> Result<(), Error> {
        if self.fields.is_none() {
            let names = record.0.iter().map(|(name, _)| name.clone()).collect();
            self.header(names)?;
        }
        let Some(fields) = &self.fields else { return Ok(()) };
        if let Some((name, _)) = record.0.iter().find(|(name, _)| !fields.contains(name)) {
            return Err(Error::data(format!(
                "{place}: the field {name:?} is not among those of the first record; name the columns"
            )));
        }
        let mut bytes = Vec::new();
        for (index, name) in fields.iter().enumerate() {
            let at = |error: Error| error.at(&format!("{place}, field {name:?}"));
            let mut text = String::new();
            if index > 0 {
                text.push(self.dialect.delimiter);
            }
            let value = record.get(name).unwrap_or(&Value::Null);
            let (content, is_text) = cell(value, &self.dialect).map_err(at)?;
            csv::write(&mut text, &content, is_text, &self.dialect).map_err(at)?;
            let encoded = self.charset.write(&text, self.layout.unmappable, &mut bytes);
            encoded.map_err(|c| at(unmappable(c, self.charset)))?;
        }
        self.out.write_all(&bytes)?;
        self.end_line()
    }

    fn end_line(&mut self) -> Result<(), Error> {
        self.line += 1;
        let end = self.line_end.text();
        self.text(end)
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let encoded = self.charset.write(text, self.layout.unmappable, &mut bytes);
        encoded.map_err(|c| unmappable(c, self.charset))?;
        Ok(self.out.write_all(&bytes)?)
    }
}

/// About how much memory a record takes.
fn about(record: &Record) -> usize {
    /// Of a value beside its text.
    const VALUE: usize = 32;

    fn of(value: &Value) -> usize {
        VALUE
            + match value {
                Value::String(text) => text.len(),
                Value::Array(items) => items.iter().map(of).sum(),
                Value::Object(entries) => {
                    entries.iter().map(|(name, entry)| VALUE + name.len() + of(entry)).sum()
                }
                Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            }
    }
    record.0.iter().map(|(name, value)| name.len() + of(value)).sum()
}

/// Says which character an encoding lacks, by its code: the message shall not carry text of the flow.
pub(crate) fn unmappable(c: char, charset: Charset) -> Error {
    let (code, name) = (u32::from(c), charset.name());
    Error::data(format!(
        "{name} has no character U+{code:04X}; take it out before, or give unmappable = \"?\""
    ))
}

fn json(record: &Record) -> Result<String, Error> {
    serde_json::to_string(record).map_err(|error| Error::data(error.to_string()))
}

/// A value as CSV has it, and whether it is a text.
fn cell(value: &Value, dialect: &Dialect) -> Result<(String, bool), Error> {
    match value {
        // RAW does not tell an absent text from an empty one; without quotes both are nothing.
        Value::Null => Ok((String::new(), false)),
        Value::Bool(truth) => Ok((truth.to_string(), false)),
        Value::Number(number) => {
            Ok((number.to_string().replace('.', &dialect.decimal_mark.to_string()), false))
        }
        Value::String(text) => Ok((text.clone(), true)),
        Value::Array(_) | Value::Object(_) => {
            Err(Error::data("is a list or an object; give the column a value that names a part of it"))
        }
    }
}
