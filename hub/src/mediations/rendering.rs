//! Templates that make whole files, and the columns of what is written: the language of `template.rs` with helpers for
//! French exports.
//!
//! A template reads the values that it is given and nothing else, and is strict: a name that is not there is an error. Its
//! steps are bounded, and so is what it makes. Besides the language's own filters there are `decimal`, `date`, `fixed`,
//! `csv`, `xml`, `tojson` and `total`.

pub(super) mod filters;

use super::formats::{Error, Record, columns::Column, encoding::Charset, layout::LineEnd, write::unmappable};
use super::{nesting, template::said};
use minijinja::{Environment, Expression, UndefinedBehavior, Value, syntax::SyntaxConfig, value::Serde};
use serde_json::Value as Json;
use std::io::{self, Write};

/// The longest template.
pub const MAX_SOURCE: usize = 256 * 1024;
/// The most that one rendering may give.
pub(crate) const MAX_RENDERED: usize = 64 * 1024 * 1024;
/// Steps that one rendering may take; one of them pays for 64 bytes as well.
const FUEL: u64 = 6_000_000;
/// Steps that one column of one record may take.
const SMALL_FUEL: u64 = 20_000;
const DEPTH: usize = 32;

/// The language with its helpers.
pub(crate) struct Templates {
    whole: Environment<'static>,
    small: Environment<'static>,
}

/// The values of columns.
pub(crate) struct Columns<'t> {
    columns: Vec<(Column, Option<Expression<'t, 'static>>)>,
}

/// How what a template gives is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) charset: Charset,
    pub(crate) bom: bool,
    pub(crate) unmappable: Option<char>,
    /// What the template's line ends become; without it they stay.
    pub(crate) line_end: Option<LineEnd>,
}

fn environment(fuel: u64) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(fuel));
    environment.set_recursion_limit(DEPTH);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    // Lines of blocks leave no empty lines in a file, and its last line keeps its end.
    let syntax =
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build();
    if let Ok(syntax) = syntax {
        environment.set_syntax(syntax);
    }
    filters::add(&mut environment);
    environment.set_formatter(filters::print_or_nothing);
    nesting::limit(&mut environment);
    environment
}

/// Whether a text is a template, and which names have to be given to it.
///
/// # Errors
/// What is wrong with it.
pub fn check(source: &str) -> Result<Vec<String>, String> {
    if source.len() > MAX_SOURCE {
        return Err(format!("longer than {MAX_SOURCE} bytes"));
    }
    nesting::check(source, false)?;
    let environment = environment(SMALL_FUEL);
    let template =
        environment.template_from_str(source).map_err(|e| format!("not a template: {}", said(&e)))?;
    let is_global = |name: &String| environment.globals().any(|(global, _)| global == name.as_str());
    let mut names: Vec<String> =
        template.undeclared_variables(false).into_iter().filter(|name| !is_global(name)).collect();
    names.sort();
    Ok(names)
}

/// Whether a text is an expression over `record`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_expression(source: &str) -> Result<(), String> {
    if source.len() > 4096 {
        return Err("longer than 4096 bytes".to_owned());
    }
    nesting::check(source, true)?;
    let environment = environment(SMALL_FUEL);
    let expression =
        environment.compile_expression(source).map_err(|e| format!("not an expression: {}", said(&e)))?;
    let is_global = |name: &String| environment.globals().any(|(global, _)| global == name.as_str());
    let other =
        expression.undeclared_variables(false).into_iter().find(|name| name != "record" && !is_global(name));
    match other {
        Some(name) => Err(format!("{name:?} is not known here; write record.{name}, or 'text' for a text")),
        None => Ok(()),
    }
}

impl Templates {
    pub(crate) fn new() -> Self {
        Self { whole: environment(FUEL), small: environment(SMALL_FUEL) }
    }

    /// Renders a template into `out`; gives how many bytes that were.
    ///
    /// # Errors
    /// A name that is not there, values that do not fit, too many steps or bytes; the disk.
    pub(crate) fn render(
        &self,
        source: &str,
        context: &Json,
        output: Output,
        out: &mut dyn Write,
    ) -> Result<usize, Error> {
        nesting::check(source, false).map_err(Error::data)?;
        let template = self.whole.template_from_str(source).map_err(|e| Error::data(said(&e)))?;
        let mut sink = Sink::new(out, output)?;
        let rendered = template.render_captured_to(Value::from(Serde(context)), &mut sink);
        let Sink { told, written, .. } = sink;
        match (told, rendered) {
            (Some(told), _) => Err(told),
            (None, Err(error)) => Err(Error::data(said(&error))),
            (None, Ok(_)) => {
                out.flush()?;
                Ok(written)
            }
        }
    }

    /// The columns of what is written.
    ///
    /// # Errors
    /// An expression that was not checked.
    pub(crate) fn columns(&self, columns: &[Column]) -> Result<Columns<'_>, String> {
        let compiled = columns.iter().map(|column| {
            let value = column.value.clone().map(|value| self.small.compile_expression_owned(value));
            Ok((column.clone(), value.transpose().map_err(|e| said(&e))?))
        });
        Ok(Columns { columns: compiled.collect::<Result<_, String>>()? })
    }
}

impl Columns<'_> {
    /// What stands in the columns for a record.
    ///
    /// # Errors
    /// A field that is not there, or a value that does not fit.
    pub(crate) fn of(&self, record: Record) -> Result<Vec<(String, Json)>, Error> {
        let context = self
            .columns
            .iter()
            .any(|(_, value)| value.is_some())
            .then(|| minijinja::context! { record => Value::from(Serde(&record)) });
        let mut values = Vec::with_capacity(self.columns.len());
        for (column, expression) in &self.columns {
            let name = &column.name;
            let value = match (expression, &context) {
                (Some(expression), Some(context)) => {
                    let value = expression.eval(context.clone());
                    let value = value.map_err(|e| Error::data(format!("column {name:?}: {}", said(&e))))?;
                    if value.is_undefined() {
                        return Err(Error::data(format!("column {name:?}: the value is not defined")));
                    }
                    serde_json::to_value(&value).map_err(|_| {
                        Error::data(format!("column {name:?}: a value that JSON does not have"))
                    })?
                }
                _ => record
                    .get(name)
                    .cloned()
                    .ok_or_else(|| Error::data(format!("column {name:?}: the record has no such field")))?,
            };
            values.push((name.clone(), value));
        }
        Ok(values)
    }
}

/// Encodes what a template gives, up to a limit.
struct Sink<'o> {
    out: &'o mut dyn Write,
    output: Output,
    told: Option<Error>,
    written: usize,
    /// Of what is written, counted from 1.
    line: u64,
    after_return: bool,
}

impl<'o> Sink<'o> {
    fn new(out: &'o mut dyn Write, output: Output) -> Result<Self, Error> {
        let mut sink = Self { out, output, told: None, written: 0, line: 1, after_return: false };
        if output.bom {
            let mut mark = Vec::new();
            output.charset.write_bom(&mut mark);
            sink.out.write_all(&mark)?;
            sink.written = mark.len();
        }
        Ok(sink)
    }

    fn put(&mut self, text: &str) -> Result<(), Error> {
        let mut lines = text.split_inclusive('\n');
        let mut bytes = Vec::with_capacity(text.len());
        lines.try_for_each(|piece| {
            let Self { output, line, after_return, .. } = self;
            let (content, ends) = match (piece.strip_suffix('\n'), output.line_end) {
                (Some(content), Some(end)) => {
                    let cut = content.strip_suffix('\r').unwrap_or(content);
                    let is_split = content.is_empty() && *after_return && end == LineEnd::Crlf;
                    (cut, if is_split { "\n" } else { end.text() })
                }
                (Some(content), None) => (content, "\n"),
                (None, _) => (piece, ""),
            };
            *after_return = piece.ends_with('\r');
            for part in [content, ends] {
                output
                    .charset
                    .write(part, output.unmappable, &mut bytes)
                    .map_err(|c| unmappable(c, output.charset).at(&format!("line {line} of the output")))?;
            }
            *line += u64::from(piece.ends_with('\n'));
            Ok::<(), Error>(())
        })?;
        self.written += bytes.len();
        if self.written > MAX_RENDERED {
            return Err(Error::data(format!(
                "the template gives more than {} MiB",
                MAX_RENDERED / 1024 / 1024
            )));
        }
        Ok(self.out.write_all(&bytes)?)
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(|_| io::Error::other("half a character"))?;
        match self.put(text) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let _ = self.told.insert(error);
                Err(io::Error::other("stopped"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
