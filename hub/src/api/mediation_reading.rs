//! Definitions as they are sent, read. What is wrong is told together: first what cannot be read, then what cannot be filled in.

use super::{App, problem::Problem};
use crate::mediations::{
    Definition,
    definition::{
        file::{self, WrittenDefinition},
        templates::Text,
    },
};
use passerelle_config::{Diagnostics, Finding, without_place};
use passerelle_protocol::Name;
use serde_json::Value;
use std::path::Path;

/// How many findings a refusal tells.
const MAX_FINDINGS: usize = 50;

/// All that is wrong, a line each.
fn refused(mut said: Vec<String>) -> Problem {
    let more = said.len().saturating_sub(MAX_FINDINGS);
    if more > 0 {
        said.truncate(MAX_FINDINGS);
        said.push(format!("and {more} more"));
    }
    Problem::bad_request(said.join("\n"))
}

/// Findings in a text, with file, line and column.
fn in_text(findings: &Diagnostics) -> Problem {
    refused(findings.findings().iter().map(ToString::to_string).collect())
}

/// Findings in a JSON value that stands at `within`.
fn in_json(findings: &Diagnostics, within: &str) -> Vec<String> {
    let dot = if within.is_empty() { "" } else { "." };
    let findings = findings.findings().iter();
    findings.map(|finding| format!("{within}{dot}{}", without_place(finding))).collect()
}

/// What is wrong with the templates and patterns of a definition, which do not compile or name what nobody gives. That is
/// found out in another process: to compile a template is to compute parts of it.
async fn compiled(app: &App, tenant: &Name, written: &WrittenDefinition) -> Result<Vec<Finding>, Problem> {
    if written.texts.is_empty() {
        return Ok(Vec::new());
    }
    let sources = written.texts.iter().map(|text| &text.source);
    let found = app.templates.check(tenant, sources).await.map_err(|fault| {
        let name = &written.definition.name;
        match fault.said("") {
            (why, false) => Problem::bad_request(format!("the templates of {name} cannot be checked: {why}")),
            (why, true) => Problem::internal(&why),
        }
    })?;
    let with_place = |(text, messages): (&Text, Vec<String>)| {
        let place = text.place.clone();
        messages.into_iter().map(move |message| Finding { message, ..place.clone() })
    };
    Ok(written.texts.iter().zip(found).flat_map(with_place).collect())
}

/// Findings in their order.
fn sorted(findings: Vec<Finding>) -> Diagnostics {
    let mut all = Diagnostics::default();
    findings.into_iter().for_each(|finding| all.push(finding));
    all.sort();
    all
}

/// Reads one definition, templates and all.
pub(super) async fn read(app: &App, tenant: &Name, value: &Value) -> Result<WrittenDefinition, Problem> {
    let written = Definition::of_json(value).map_err(|findings| refused(in_json(&findings, "")))?;
    let said = in_json(&sorted(compiled(app, tenant, &written).await?), "");
    if said.is_empty() { Ok(written) } else { Err(refused(said)) }
}

/// Reads a list of definitions; tells what is wrong with any of them.
pub(super) async fn read_all(
    app: &App,
    tenant: &Name,
    values: &[Value],
) -> Result<Vec<WrittenDefinition>, Problem> {
    let within = |index: usize| format!("definitions[{}]", index + 1);
    let (mut written, mut said, mut seen) = (Vec::new(), Vec::new(), file::Seen::default());
    for (index, value) in values.iter().enumerate() {
        match Definition::of_json(value) {
            Ok(one) => {
                let again = seen.again(&one).into_iter();
                said.extend(again.map(|(key, why)| format!("{}.{key}: {why}", within(index))));
                written.push(one);
            }
            Err(findings) => said.extend(in_json(&findings, &within(index))),
        }
    }
    if said.is_empty() {
        for (index, one) in written.iter().enumerate() {
            let found = compiled(app, tenant, one).await.map_err(|problem| problem.within(&within(index)))?;
            said.extend(in_json(&sorted(found), &within(index)));
        }
    }
    if said.is_empty() { Ok(written) } else { Err(refused(said)) }
}

/// Reads a text in TOML, templates and all; `name` is how findings call it.
pub(super) async fn read_text(
    app: &App,
    tenant: &Name,
    name: String,
    text: String,
) -> Result<Vec<WrittenDefinition>, Problem> {
    // A long text takes a while, in which nobody else is to wait.
    let reading = tokio::task::spawn_blocking(move || file::read(Path::new(&name), &text));
    let read = reading.await.map_err(|error| Problem::internal(&error))?;
    let written = read.map_err(|findings| in_text(&findings))?;
    let mut findings = Vec::new();
    for one in &written {
        findings.extend(compiled(app, tenant, one).await?);
    }
    let findings = sorted(findings);
    if findings.is_empty() { Ok(written) } else { Err(in_text(&findings)) }
}
