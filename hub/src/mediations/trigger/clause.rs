//! Several things that start a run together ([`All`]) or each alone ([`Any`]).

use super::{Trigger, seconds};
use crate::mediations::expression::Expression;
use passerelle_config::{Diagnostics, HumanDuration, Section};
use passerelle_protocol::Name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How many clauses a trigger may have.
pub const MAX_CLAUSES: usize = 20;
/// How long things wait for one another, unless the definition says otherwise: a day.
const WITHIN_S: u32 = 24 * 3600;
/// The longest that they wait: 30 days.
const MAX_WITHIN_S: u32 = 30 * 24 * 3600;
/// The keys of a clause beside those of its kind.
const CLAUSE: &[&str] = &["name", "key"];

/// Waits for all of several things, and starts one run with all of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct All {
    /// What it waits for.
    pub of: Vec<Clause>,
    /// How long the first of them waits for the others, in seconds.
    pub within_s: u32,
}

/// Starts a run for each of several things.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Any {
    /// What it takes.
    pub of: Vec<Clause>,
}

/// One of several things.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Clause {
    /// Its name: the label of its flows, and where its data stands in `trigger.data`.
    pub name: Name,
    /// What belongs together has the same key; without it, all does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Expression>,
    /// What it waits for: none of several things again.
    #[serde(flatten)]
    pub trigger: Trigger,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    within: Option<HumanDuration>,
    within_s: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClause {
    name: Option<Name>,
    key: Option<Expression>,
}

impl All {
    /// Reads one from a section that holds nothing else.
    pub fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let of = clauses(&section, true, diagnostics);
        let (_, rest) = section.split(&["of"]);
        let raw: Raw = rest.parse(diagnostics)?;
        let within_s = seconds(&rest, "within", raw.within, raw.within_s, diagnostics)?.unwrap_or(WITHIN_S);
        if !(1..=MAX_WITHIN_S).contains(&within_s) {
            diagnostics.push(rest.finding("within", "expected 1 s to 30 days"));
            return None;
        }
        Some(Self { of: of?, within_s })
    }
}

impl Any {
    /// Reads one from a section that holds nothing else.
    pub fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let of = clauses(&section, false, diagnostics);
        let (_, rest) = section.split(&["of"]);
        let _: Nothing = rest.parse(diagnostics)?;
        Some(Self { of: of? })
    }
}

fn clauses(section: &Section, joined: bool, diagnostics: &mut Diagnostics) -> Option<Vec<Clause>> {
    let before = diagnostics.findings().len();
    let parts = section.parts("of", diagnostics);
    if parts.len() < 2 || parts.len() > MAX_CLAUSES {
        let message = format!("expected 2 to {MAX_CLAUSES} tables [[…trigger.of]], found {}", parts.len());
        diagnostics.push(section.finding("of", message));
    }
    let mut names = BTreeSet::new();
    let mut of = Vec::new();
    for part in parts.into_iter().take(MAX_CLAUSES) {
        let (common, rest) = part.split(CLAUSE);
        let raw: Option<RawClause> = common.parse(diagnostics);
        let trigger = Trigger::read_one(rest, diagnostics);
        let (Some(raw), Some(trigger)) = (raw, trigger) else { continue };
        let Some(name) = raw.name else {
            diagnostics.push(common.finding("name", "missing; this key is required"));
            continue;
        };
        if !names.insert(name.clone()) {
            diagnostics.push(common.finding("name", "a clause before has this name already: choose another"));
        }
        if name.as_str() == "key" {
            diagnostics.push(common.finding("name", "\"key\" is taken: choose another"));
        }
        if let Some(key) = &raw.key {
            if !joined {
                diagnostics.push(common.finding("key", "goes with kind = \"all\" only: leave it out"));
            } else if let Err(why) = key.knows_only(&["event"]) {
                diagnostics.push(common.finding("key", why));
            }
        }
        of.push(Clause { name, key: raw.key, trigger });
    }
    (diagnostics.findings().len() == before).then_some(of)
}
