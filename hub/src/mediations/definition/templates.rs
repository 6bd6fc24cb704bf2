//! The texts of a definition that have to be compiled to be checked: templates, and the patterns of conditions. That is done
//! when somebody applies it, in a process of its own, and tells also names, filters and tests that nobody gives: not at three
//! in the morning. What is stored was applied before, perhaps by another version, and is not asked again.

use super::{Definition, JobSpec};
use crate::mediations::{
    expression::Expression,
    formats::layout::Layout,
    steps::{Step, WebhookStep},
    template::{self, Dialect, Source, is_template},
};
use passerelle_config::{Diagnostics, Finding, Section};
use serde_json::{Map, Value};

/// A text, and where it stands.
#[derive(Debug, Clone)]
pub struct Text {
    /// Its place; what is wrong is still to be said.
    pub(crate) place: Finding,
    /// What is to be compiled.
    pub(crate) source: Source,
}

/// What all templates see.
const ALWAYS: &[&str] = &["run", "trigger", "steps", "flows", "inputs", "watermarks"];

/// How many patterns a condition may have, and all conditions of a definition.
const MAX_OF_ONE: usize = 8;
const MAX_PATTERNS: usize = 64;

/// The texts of a definition, with their places in its section; there may be too many of them.
pub fn of(definition: &Definition, section: &Section, diagnostics: &mut Diagnostics) -> Vec<Text> {
    let steps = definition.steps.iter().map(|entry| entry.name.to_string()).collect();
    let mut look = Look { section, diagnostics, steps, found: Vec::new() };
    for (path, when) in definition.trigger.conditions() {
        look.condition(&format!("trigger.{path}"), Some(when));
    }
    for (index, entry) in definition.steps.iter().enumerate() {
        let at = format!("steps[{}]", index + 1);
        match &entry.step {
            Step::Convert(step) => {
                look.columns(&format!("{at}.to"), &step.to);
                look.text(&format!("{at}.flow"), step.flow.as_deref(), &["flow"]);
            }
            Step::Filter(step) => {
                look.condition(&format!("{at}.when"), Some(&step.when));
                look.text(&format!("{at}.flow"), step.flow.as_deref(), &["flow"]);
            }
            Step::ForEach(step) => {
                let items = ["item", "index"];
                if let Some(job) = &step.job {
                    look.job(&format!("{at}.job"), job, &items);
                }
                if let Some(webhook) = &step.webhook {
                    look.webhook(&format!("{at}.webhook"), webhook, &items);
                }
                look.condition(&format!("{at}.when"), step.when.as_ref());
                look.text(&format!("{at}.flow"), step.flow.as_deref(), &[]);
            }
            Step::Job(step) => {
                look.job(&at, &step.job, &["flow", "index"]);
                look.text(&format!("{at}.flow"), step.flow.as_deref(), &["result"]);
                for (name, source) in &step.watermarks {
                    look.text(&format!("{at}.watermarks.{name}"), Some(source), &["result"]);
                }
            }
            Step::Render(step) => {
                let more: &[_] = if step.from.is_some() { &["records"] } else { &[] };
                look.source(&format!("{at}.template"), &step.template, Dialect::File, more);
                look.text(&format!("{at}.flow"), step.flow.as_deref(), &[]);
            }
            Step::Webhook(step) => look.webhook(&at, step, &[]),
        }
    }
    for (index, transfer) in definition.transfer.iter().enumerate() {
        look.job(&format!("transfer[{}]", index + 1), &transfer.job, &["flow", "index"]);
    }
    let all = patterns(definition);
    if all > MAX_PATTERNS {
        let said = format!("at most {MAX_PATTERNS} patterns in all conditions, found {all}");
        look.diagnostics.push(section.finding("steps", said));
    }
    look.found
}

/// How many patterns its conditions have: compiled, each takes up to half a mebibyte.
pub fn patterns(definition: &Definition) -> usize {
    let of = |when: &Expression| when.patterns().count();
    let steps = definition.steps.iter().map(|entry| match &entry.step {
        Step::Filter(step) => of(&step.when),
        Step::ForEach(step) => step.when.as_ref().map_or(0, of),
        Step::Convert(_) | Step::Job(_) | Step::Render(_) | Step::Webhook(_) => 0,
    });
    definition.trigger.conditions().into_iter().map(|(_, when)| of(when)).chain(steps).sum()
}

struct Look<'l> {
    section: &'l Section,
    diagnostics: &'l mut Diagnostics,
    /// The names of all steps: each is there from the beginning of a run.
    steps: Vec<String>,
    found: Vec<Text>,
}

impl Look<'_> {
    fn source(&mut self, path: &str, text: &str, dialect: Dialect, more: &[&str]) {
        let known: Vec<&str> = match dialect {
            Dialect::Column | Dialect::Pattern => more.to_vec(),
            Dialect::Short | Dialect::File if !is_template(text) => return,
            Dialect::Short | Dialect::File => ALWAYS.iter().chain(more).copied().collect(),
        };
        let known = known.into_iter().map(str::to_owned).collect();
        let steps = if text.contains("steps") { self.steps.clone() } else { Vec::new() };
        let source = Source { text: text.to_owned(), dialect, known, steps };
        self.found.push(Text { place: self.section.finding(path, ""), source });
    }

    fn condition(&mut self, path: &str, when: Option<&Expression>) {
        let patterns: Vec<&str> = when.into_iter().flat_map(Expression::patterns).collect();
        if patterns.len() > MAX_OF_ONE {
            let said = format!("at most {MAX_OF_ONE} patterns in one expression, found {}", patterns.len());
            self.diagnostics.push(self.section.finding(path, said));
        }
        for pattern in patterns {
            self.source(path, pattern, Dialect::Pattern, &[]);
        }
    }

    fn text(&mut self, path: &str, source: Option<&str>, more: &[&str]) {
        if let Some(source) = source {
            self.source(path, source, Dialect::Short, more);
        }
    }

    fn values(&mut self, path: &str, values: &Map<String, Value>, more: &[&str]) {
        for (path, source) in template::texts(values, path) {
            self.source(&path, source, Dialect::Short, more);
        }
    }

    fn job(&mut self, path: &str, job: &JobSpec, more: &[&str]) {
        self.values(&format!("{path}.params"), &job.params, more);
        self.text(&format!("{path}.payload"), job.payload.as_deref(), more);
        self.text(&format!("{path}.order_key"), job.order_key.as_deref(), more);
    }

    fn webhook(&mut self, path: &str, webhook: &WebhookStep, more: &[&str]) {
        self.values(&format!("{path}.data"), &webhook.data, more);
    }

    fn columns(&mut self, path: &str, layout: &Layout) {
        for (index, column) in layout.columns.iter().enumerate() {
            if let Some(source) = &column.value {
                let at = format!("{path}.columns[{}].value", index + 1);
                self.source(&at, source, Dialect::Column, &["record"]);
            }
        }
    }
}
