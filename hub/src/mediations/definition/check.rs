//! What refers to something else in a definition.

use super::{Definition, Inputs};
use passerelle_config::{Diagnostics, Section};
use std::collections::BTreeSet;

/// The name under which the flows of a run's occurrence are read.
pub const TRIGGER: &str = "trigger";

/// Names are unlike each other; what a unit reads comes before it. Labels of flows are made as a run goes: a name that no
/// step before has is taken for one.
pub fn references(definition: &Definition, section: &Section, diagnostics: &mut Diagnostics) {
    let mut before: BTreeSet<&str> = BTreeSet::new();
    let later: BTreeSet<&str> = definition.steps.iter().map(|step| step.name.as_str()).collect();
    let units = definition.steps.iter().enumerate().map(|(i, step)| ("steps", i, &step.name, &step.input));
    let transfers =
        definition.transfer.iter().enumerate().map(|(i, one)| ("transfer", i, &one.name, &one.input));
    for (part, index, name, input) in units.chain(transfers) {
        let at = format!("{part}[{}]", index + 1);
        if name.as_str() == TRIGGER {
            diagnostics.push(section.finding(
                &format!("{at}.name"),
                "\"trigger\" names the flows of the trigger: choose another name",
            ));
        }
        let Inputs(inputs) = input.as_ref().unwrap_or(const { &Inputs(Vec::new()) });
        for wanted in inputs {
            let early = later.contains(wanted.as_str()) && !before.contains(wanted.as_str());
            if early {
                let said = format!(
                    "step {wanted} does not come before this one: name an earlier step, or \"trigger\""
                );
                diagnostics.push(section.finding(&format!("{at}.input"), said));
            }
        }
        if !before.insert(name.as_str()) {
            let said = format!("a step or transfer before has the name {name} already: choose another");
            diagnostics.push(section.finding(&format!("{at}.name"), said));
        }
    }
}
