//! Delimited text, read strictly and written as its dialect says.

use super::{
    Error, MAX_FIELDS, MAX_RECORD,
    layout::{Dialect, Quotes},
};

/// One field, and whether it stood in quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) text: String,
    pub(crate) quoted: bool,
}

/// Where the reader stands in a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    Plain,
    Quoted,
    /// After a quote in quotes: another one is a quote, anything else ends the field.
    Closing,
    /// After a carriage return behind the closing quote: only a line feed can follow.
    Ending,
}

/// Turns characters into lines of fields. A carriage return alone is content; before a line feed it belongs to the end.
#[derive(Debug)]
pub(crate) struct Splitter {
    dialect: Dialect,
    at: At,
    fields: Vec<Field>,
    text: String,
    quoted: bool,
    size: usize,
    /// Counted from 1.
    line: u64,
    /// The line where the record begins.
    first_line: u64,
}

impl Splitter {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            at: At::Start,
            fields: Vec::new(),
            text: String::new(),
            quoted: false,
            size: 0,
            line: 1,
            first_line: 1,
        }
    }

    /// Takes a piece of the text and hands over each whole line with the number of its first line.
    pub(crate) fn push(
        &mut self,
        piece: &str,
        each: &mut dyn FnMut(u64, Vec<Field>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for c in piece.chars() {
            self.size += c.len_utf8();
            if self.size > MAX_RECORD {
                return Err(self.fault("the record is longer than 1 MiB; is a quote missing?"));
            }
            if self.take(c)? {
                let first = std::mem::replace(&mut self.first_line, self.line);
                self.size = 0;
                let fields = std::mem::take(&mut self.fields);
                each(first, fields)?;
            }
        }
        Ok(())
    }

    /// The last line, which may lack its end.
    pub(crate) fn finish(
        mut self,
        each: &mut dyn FnMut(u64, Vec<Field>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.at == At::Quoted {
            return Err(self.fault("the text ends inside quotes: it is cut short, or a quote is missing"));
        }
        if self.at == At::Start && self.fields.is_empty() {
            return Ok(());
        }
        self.end_field()?;
        each(self.first_line, std::mem::take(&mut self.fields))
    }

    /// Takes a character; true if it ended a line.
    fn take(&mut self, c: char) -> Result<bool, Error> {
        let quotes = self.dialect.quotes != Quotes::None;
        match (self.at, c) {
            (At::Start, '"') if quotes => (self.at, self.quoted) = (At::Quoted, true),
            (At::Quoted, '"') => self.at = At::Closing,
            (At::Closing, '"') => {
                self.at = At::Quoted;
                self.text.push('"');
            }
            (At::Quoted, c) => {
                self.line += u64::from(c == '\n');
                self.text.push(c);
            }
            (At::Start | At::Plain | At::Closing, c) if c == self.dialect.delimiter => self.end_field()?,
            (At::Start | At::Plain | At::Closing | At::Ending, '\n') => {
                self.line += 1;
                if !self.quoted && self.text.ends_with('\r') {
                    self.text.pop();
                }
                self.end_field()?;
                return Ok(true);
            }
            (At::Closing, '\r') => self.at = At::Ending,
            (At::Closing | At::Ending, _) => return Err(self.fault("text stands after a closing quote")),
            (At::Plain, '"') if quotes => {
                return Err(self.fault("a quote stands inside a field that is not in quotes"));
            }
            (At::Start | At::Plain, c) => {
                self.at = At::Plain;
                self.text.push(c);
            }
        }
        Ok(false)
    }

    fn end_field(&mut self) -> Result<(), Error> {
        if self.fields.len() == MAX_FIELDS {
            return Err(self.fault(&format!("more than {MAX_FIELDS} fields")));
        }
        let text = std::mem::take(&mut self.text);
        self.fields.push(Field { text, quoted: std::mem::take(&mut self.quoted) });
        self.at = At::Start;
        Ok(())
    }

    fn fault(&self, what: &str) -> Error {
        Error::data(format!("line {}, column {}: {what}", self.first_line, self.fields.len() + 1))
    }
}

/// Writes a field.
///
/// # Errors
/// It needs quotes, and the dialect has none.
pub(crate) fn write(out: &mut String, text: &str, is_text: bool, dialect: &Dialect) -> Result<(), Error> {
    let special = |c: char| c == dialect.delimiter || matches!(c, '"' | '\r' | '\n');
    // A space at the edge would be lost on readers that trim.
    let needs = text.contains(special) || text.starts_with(' ') || text.ends_with(' ');
    let quoted = match dialect.quotes {
        Quotes::Minimal => needs,
        Quotes::All => true,
        Quotes::Text => is_text || needs,
        Quotes::None => {
            if text.contains([dialect.delimiter, '\r', '\n']) {
                return Err(Error::data(
                    "holds the delimiter or a line end, and this dialect has no quotes; take it out before",
                ));
            }
            false
        }
    };
    if quoted {
        out.push('"');
        out.push_str(&text.replace('"', "\"\""));
        out.push('"');
    } else {
        out.push_str(text);
    }
    Ok(())
}
