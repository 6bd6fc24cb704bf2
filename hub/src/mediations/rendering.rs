//! Templates that make whole files, and the columns of what is written: the language of `template.rs` with helpers for
//! French exports.
//!
//! A template reads the values that it is given and nothing else, and is strict: a name that is not there is an error. Its
//! steps are bounded, and so is what it makes. Besides the language's own filters there are `decimal`, `date`, `fixed`,
//! `csv`, `xml`, `tojson` and `total`.

pub(super) mod filters;
pub(super) mod output;

use super::{
    formats::MAX_RECORD,
    nesting,
    template::{said, said_of},
};
use minijinja::{Environment, Expression, UndefinedBehavior, Value, machinery, syntax::SyntaxConfig};
use serde_json::Value as Json;
use std::{
    io::{self, Write},
    sync::LazyLock,
};

/// The longest template.
pub const MAX_SOURCE: usize = 256 * 1024;
/// The most that one rendering may give.
pub(crate) const MAX_RENDERED: usize = 64 * 1024 * 1024;
/// Steps that one rendering may take; one of them pays for 64 bytes as well.
const FUEL: u64 = 6_000_000;
/// How much is handed on at once.
const PIECE: usize = 64 * 1024;
/// Steps that one column of one record may take.
const SMALL_FUEL: u64 = 20_000;
const DEPTH: usize = 32;

/// Where the expressions of columns live.
static SMALL: LazyLock<Environment<'static>> = LazyLock::new(|| environment(SMALL_FUEL));

/// Lines of blocks leave no empty lines in a file, and its last line keeps its end.
fn syntax() -> Option<SyntaxConfig> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build().ok()
}

fn environment(fuel: u64) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(fuel));
    environment.set_recursion_limit(DEPTH);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    if let Some(syntax) = syntax() {
        environment.set_syntax(syntax);
    }
    filters::add(&mut environment);
    environment.set_formatter(filters::print_or_nothing);
    nesting::limit(&mut environment);
    environment
}

/// The language with few steps, to look at templates.
pub(super) fn small() -> Environment<'static> {
    environment(SMALL_FUEL)
}

/// Whether a text is the template of a file as far as its parser tells (`template.rs` says why no further).
///
/// # Errors
/// What is wrong with it.
pub fn check(source: &str) -> Result<(), String> {
    if source.len() > MAX_SOURCE {
        return Err(format!("longer than {MAX_SOURCE} bytes"));
    }
    nesting::check(source, false)?;
    let parsed = machinery::parse(source, "", syntax().unwrap_or_default());
    parsed.map(drop).map_err(|e| format!("not a template: {}", said(&e)))
}

/// Whether a text is an expression as far as its parser tells.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_expression(source: &str) -> Result<(), String> {
    if source.len() > 4096 {
        return Err("longer than 4096 bytes".to_owned());
    }
    nesting::check(source, true)?;
    machinery::parse_expr(source).map(drop).map_err(|e| format!("not an expression: {}", said(&e)))
}

/// Renders a template; `out` gets pieces of the text, whole characters and line ends.
///
/// # Errors
/// A name that is not there, values that do not fit, too many steps; `out` refuses.
pub(super) fn render(
    source: &str,
    names: Value,
    out: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<(), String> {
    nesting::check(source, false)?;
    let environment = environment(FUEL);
    let template = environment.template_from_str(source).map_err(|e| said(&e))?;
    let mut pieces = Pieces { out, held: String::new() };
    template
        .render_captured_to(names.clone(), &mut pieces)
        .map_err(|e| said_of(&e, &environment, template.undeclared_variables(true), &names))?;
    pieces.end().map_err(|e| e.to_string())
}

/// Gathers what is rendered, and hands it on in pieces.
struct Pieces<'o> {
    out: &'o mut dyn FnMut(&str) -> io::Result<()>,
    held: String,
}

impl Pieces<'_> {
    fn end(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() { Ok(()) } else { (self.out)(&held) }
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(|_| io::Error::other("half a character"))?;
        let mut rest = text;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.floor_char_boundary(PIECE));
            rest = later;
            self.held.push_str(now);
            // The two characters of a line end stay together.
            if self.held.len() >= PIECE && !self.held.ends_with('\r') {
                self.end()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The expressions of columns.
pub(crate) struct Expressions(Vec<Expression<'static, 'static>>);

impl Expressions {
    /// Compiles them.
    ///
    /// # Errors
    /// One that was not checked.
    pub(crate) fn new(sources: &[String]) -> Result<Self, String> {
        let environment: &'static Environment<'static> = &SMALL;
        let compiled = sources.iter().map(|source| {
            nesting::check(source, true)?;
            environment.compile_expression_owned(source.clone()).map_err(|e| said(&e))
        });
        compiled.collect::<Result<_, String>>().map(Self)
    }

    /// Their values for a record, and how long they are as JSON.
    ///
    /// # Errors
    /// The number of the expression whose field is not there, or whose value does not fit, and why.
    pub(crate) fn of(&self, record: Value) -> Result<(Vec<Json>, usize), (usize, String)> {
        let names = minijinja::context! { record };
        let mut length = 0;
        let value = |(at, expression): (usize, &Expression<'_, '_>)| {
            let value = expression
                .eval(names.clone())
                .map_err(|e| (at, said_of(&e, &SMALL, expression.undeclared_variables(true), &names)))?;
            if value.is_undefined() {
                return Err((at, "the value is not defined".to_owned()));
            }
            let text = filters::json(&value, MAX_RECORD).map_err(|e| (at, said(&e)))?;
            length += text.len();
            if length > MAX_RECORD {
                let most = MAX_RECORD / 1024 / 1024;
                return Err((at, format!("the values of the record have more than {most} MiB")));
            }
            serde_json::to_value(&value).map_err(|_| (at, "a value that JSON does not have".to_owned()))
        };
        let values = self.0.iter().enumerate().map(value).collect::<Result<_, _>>()?;
        Ok((values, length))
    }
}

#[cfg(test)]
mod tests;
