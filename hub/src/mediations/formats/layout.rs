//! What a definition says of how a flow is written.

use super::{Error, columns::Column};
use serde::{Deserialize, Serialize};

/// A flow's format and its details; what is not said is as the format's documents have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The format.
    pub format: Format,
    /// CSV: what stands between fields. One character; `"\t"` is a tab.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<char>,
    /// CSV: which fields stand in quotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotes: Option<Quotes>,
    /// CSV: whether the first line names the columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<bool>,
    /// CSV, NDJSON and XML: what ends a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_end: Option<LineEnd>,
    /// The decimal mark of numbers in CSV: `"."` or `","`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decimal_mark: Option<char>,
    /// The encoding, as `utf-8`, `windows-1252`, `iso-8859-15`, `utf-16le`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Whether a byte order mark stands before what is written; one that is read is always understood.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bom: bool,
    /// What is written for a character that the encoding does not have; without it that is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmappable: Option<char>,
    /// The columns in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<Column>,
    /// JSON: the field that holds the records, as `items` or `data.items`; without it the text is an array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// XML: the outermost element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// XML: the element of one record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
}

/// A format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Delimited text.
    Csv,
    /// The vendor's RAW: CSV with `;`, texts in quotes, UTF-8, CRLF, an informative header and columns in a fixed order.
    Raw,
    /// An array of objects.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// One element a record; only written.
    Xml,
}

/// Which fields of CSV stand in quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quotes {
    /// Those that need them.
    Minimal,
    /// Every field.
    All,
    /// Texts, but not numbers and booleans.
    Text,
    /// None: a field that would need them is an error, and a quote is a character like any other.
    None,
}

/// What ends a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineEnd {
    /// `\n`
    Lf,
    /// `\r\n`
    Crlf,
}

impl LineEnd {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Lf => "\n",
            Self::Crlf => "\r\n",
        }
    }
}

/// CSV with every detail decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialect {
    pub(crate) delimiter: char,
    pub(crate) quotes: Quotes,
    pub(crate) header: bool,
    /// The header is there, but the definition's columns count.
    pub(crate) header_is_informative: bool,
    pub(crate) line_end: LineEnd,
    pub(crate) decimal_mark: char,
}

impl Layout {
    /// The format with nothing else said.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self {
            format,
            delimiter: None,
            quotes: None,
            header: None,
            line_end: None,
            decimal_mark: None,
            encoding: None,
            bom: false,
            unmappable: None,
            columns: Vec::new(),
            at: None,
            root: None,
            record: None,
        }
    }

    pub(crate) fn dialect(&self) -> Dialect {
        let raw = self.format == Format::Raw;
        Dialect {
            delimiter: self.delimiter.unwrap_or(if raw { ';' } else { ',' }),
            quotes: self.quotes.unwrap_or(if raw { Quotes::Text } else { Quotes::Minimal }),
            header: self.header.unwrap_or(true),
            header_is_informative: raw,
            line_end: self.line_end.unwrap_or(LineEnd::Crlf),
            decimal_mark: self.decimal_mark.unwrap_or('.'),
        }
    }

    pub(crate) fn line_end(&self) -> LineEnd {
        match self.format {
            Format::Csv | Format::Raw => self.dialect().line_end,
            Format::Json | Format::Ndjson | Format::Xml => self.line_end.unwrap_or(LineEnd::Lf),
        }
    }

    /// The media type of what is written so.
    pub(crate) fn media_type(&self) -> String {
        let charset = self.encoding.as_deref().unwrap_or("utf-8").to_ascii_lowercase();
        match self.format {
            Format::Csv | Format::Raw => format!("text/csv; charset={charset}"),
            Format::Json => "application/json".to_owned(),
            Format::Ndjson => "application/x-ndjson".to_owned(),
            Format::Xml => "application/xml".to_owned(),
        }
    }

    /// What is wrong with it as something to read.
    ///
    /// # Errors
    /// The key and what it has to be.
    pub fn check_read(&self) -> Result<(), String> {
        if self.format == Format::Xml {
            return Err("format: XML is only written; give csv, raw, json or ndjson here".to_owned());
        }
        if self.columns.iter().any(|column| column.value.is_some()) {
            return Err("columns: value belongs to what is written; name the column alone here".to_owned());
        }
        let positional = self.is_csv() && (self.format == Format::Raw || !self.dialect().header);
        if positional && self.columns.is_empty() {
            return Err("columns: name them in their order, since no header decides them".to_owned());
        }
        self.check()
    }

    /// What is wrong with it as something to write.
    ///
    /// # Errors
    /// The key and what it has to be.
    pub fn check_write(&self) -> Result<(), String> {
        if self.format == Format::Raw && self.columns.is_empty() {
            return Err("columns: name them in their order, which RAW fixes".to_owned());
        }
        if self.at.is_some() {
            return Err("at: belongs to JSON that is read".to_owned());
        }
        self.check()
    }

    fn is_csv(&self) -> bool {
        matches!(self.format, Format::Csv | Format::Raw)
    }

    fn check(&self) -> Result<(), String> {
        let csv = [
            ("delimiter", self.delimiter.is_some()),
            ("quotes", self.quotes.is_some()),
            ("header", self.header.is_some()),
            ("decimal_mark", self.decimal_mark.is_some()),
        ];
        if let Some((key, _)) = csv.into_iter().find(|(_, given)| *given && !self.is_csv()) {
            return Err(format!("{key}: belongs to the formats csv and raw"));
        }
        if self.at.is_some() && self.format != Format::Json {
            return Err("at: belongs to the format json".to_owned());
        }
        let xml = [("root", &self.root), ("record", &self.record)];
        for (key, name) in xml {
            match name {
                Some(_) if self.format != Format::Xml => {
                    return Err(format!("{key}: belongs to the format xml"));
                }
                Some(name) => super::xml::element(name).map_err(|why| format!("{key}: {why}"))?,
                None => {}
            }
        }
        let dialect = self.dialect();
        if matches!(dialect.delimiter, '"' | '\r' | '\n') || dialect.delimiter.len_utf8() > 1 {
            return Err("delimiter: must be one ASCII character, and no quote or line end".to_owned());
        }
        if !matches!(dialect.decimal_mark, '.' | ',') {
            return Err("decimal_mark: must be \".\" or \",\"".to_owned());
        }
        if dialect.quotes == Quotes::None && dialect.decimal_mark == dialect.delimiter {
            return Err("decimal_mark: is the delimiter, and nothing is quoted".to_owned());
        }
        if self.columns.len() > super::MAX_FIELDS {
            return Err(format!("columns: more than {}", super::MAX_FIELDS));
        }
        for (index, column) in self.columns.iter().enumerate() {
            let place = |why: String| format!("columns: {:?}: {why}", column.name);
            column.check().map_err(place)?;
            if self.columns.iter().take(index).any(|other| other.name == column.name) {
                return Err(place("stands there twice".to_owned()));
            }
            if self.format == Format::Xml {
                super::xml::element(&column.name).map_err(place)?;
            }
        }
        let encoding = super::encoding::named(self.encoding.as_deref())?;
        if self.bom && !encoding.has_bom() {
            return Err(format!("bom: {} has none", encoding.name()));
        }
        match self.unmappable {
            Some(c) if !c.is_ascii() || c.is_control() => {
                Err("unmappable: must be a printable ASCII character, as ?".to_owned())
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Layout {
    /// The encoding that was checked with [`Self::check_read`] or [`Self::check_write`].
    pub(crate) fn charset(&self) -> Result<super::encoding::Charset, Error> {
        super::encoding::named(self.encoding.as_deref()).map_err(Error::Data)
    }
}
