//! The pattern of `matches()`: compiled when it is first asked, since a compiled one takes a hundred times its text.

use regex::{Regex, RegexBuilder};
use std::sync::OnceLock;

/// How large a compiled pattern may become.
const MAX_COMPILED: usize = 256 * 1024;

/// A pattern as it was written.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    pub(super) text: String,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    pub(super) fn new(text: String) -> Self {
        Self { text, compiled: OnceLock::new() }
    }

    /// Whether a text matches; nothing if this is no pattern.
    pub(super) fn is_match(&self, text: &str) -> Option<bool> {
        let compiled = self.compiled.get_or_init(|| compile(&self.text).ok());
        compiled.as_ref().map(|regex| regex.is_match(text))
    }
}

/// Compiles a pattern.
///
/// # Errors
/// That it is none, or too large a one.
pub(super) fn compile(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build();
    built.map_err(|_| "matches(): not a pattern, or too large a one".to_owned())
}
