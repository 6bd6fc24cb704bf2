//! Definitions in a TOML file: `[[mediation]]`, one after the other.

use super::{Definition, read::Written};
use crate::mediations::ids::DefinitionId;
use passerelle_config::{Diagnostics, Section};
use passerelle_protocol::Name;
use serde::Deserialize;
use std::{collections::BTreeSet, path::Path};

pub use super::read::Written as WrittenDefinition;

/// The longest file.
pub const MAX_FILE: usize = 1024 * 1024;
/// How many definitions a file may have.
pub const MAX_DEFINITIONS: usize = 1000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// The definitions that were read together so far.
#[derive(Default)]
pub struct Seen {
    names: BTreeSet<Name>,
    guids: BTreeSet<DefinitionId>,
}

impl Seen {
    /// What a definition has in common with one before it: the key, and what to say of it.
    pub fn again(&mut self, one: &Written) -> Vec<(&'static str, &'static str)> {
        let mut found = Vec::new();
        if !self.names.insert(one.definition.name.clone()) {
            found.push(("name", "a definition before has this name already: choose another"));
        }
        if one.guid.is_some_and(|guid| !self.guids.insert(guid)) {
            let said = "a definition before has this guid already: leave it out, and a new one is made";
            found.push(("guid", said));
        }
        found
    }
}

/// Reads a file's text; `name` is how findings call it.
///
/// # Errors
/// All findings at once, each as `file:line:column: path: what is wrong and what is right`.
pub fn read(name: &Path, text: &str) -> Result<Vec<Written>, Diagnostics> {
    let mut diagnostics = Diagnostics::default();
    let mut written = Vec::new();
    if let Some(document) = Section::of_toml(name, text, &mut diagnostics) {
        let parts = document.parts("mediation", &mut diagnostics);
        if parts.is_empty() && diagnostics.is_empty() {
            diagnostics
                .push(document.finding("mediation", "missing; begin each definition with [[mediation]]"));
        }
        if parts.len() > MAX_DEFINITIONS {
            let said = format!("at most {MAX_DEFINITIONS} in one file, found {}", parts.len());
            diagnostics.push(document.finding("mediation", said));
        }
        let mut seen = Seen::default();
        for (index, part) in parts.into_iter().take(MAX_DEFINITIONS).enumerate() {
            let Some(one) = Definition::read(part, &mut diagnostics) else { continue };
            let at = format!("mediation[{}]", index + 1);
            for (key, said) in seen.again(&one) {
                diagnostics.push(document.finding(&format!("{at}.{key}"), said));
            }
            written.push(one);
        }
        let (_, rest) = document.split(&["mediation"]);
        let _: Option<Nothing> = rest.parse(&mut diagnostics);
    }
    diagnostics.sort();
    if diagnostics.is_empty() { Ok(written) } else { Err(diagnostics) }
}
