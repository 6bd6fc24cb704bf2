//! The triggers of a resource in plain words: what the cloud gets by them, and what becomes of the files.

use super::{at, size};
use passerelle_config::{
    After, Changes, ChangesStart, HumanDuration, Order, Pickup, ResourceConfig, Stable, Watch,
};
use passerelle_protocol::{CHANGE, PICKUP, WATCH};
use serde::Serialize;
use std::{
    fmt::{self, Display},
    path::Path,
};

/// One trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TriggerView {
    /// Its name.
    pub name: String,
    /// `pickup`, `watch` or `change`.
    pub kind: &'static str,
    /// Where it stands.
    pub at: String,
    /// What it does, in a sentence.
    pub does: String,
}

/// The triggers of a resource.
pub(super) fn views(resource: &ResourceConfig, base: &Path) -> Vec<TriggerView> {
    let pickup = |rule: &Pickup| TriggerView {
        name: rule.name.clone(),
        kind: PICKUP,
        at: at(&rule.at, base),
        does: takes(rule),
    };
    let watch = |rule: &Watch| TriggerView {
        name: rule.name.clone(),
        kind: WATCH,
        at: at(&rule.at, base),
        does: tells(rule),
    };
    let change = |rule: &Changes| TriggerView {
        name: rule.name.clone(),
        kind: CHANGE,
        at: at(&rule.at, base),
        does: reads(rule),
    };
    let files = resource.pickups.iter().map(pickup).chain(resource.watches.iter().map(watch));
    files.chain(resource.changes.iter().map(change)).collect()
}

fn reads(rule: &Changes) -> String {
    let fields = match &rule.fields {
        None => "all fields that the feed gives".to_owned(),
        Some(fields) if fields.is_empty() => "no fields".to_owned(),
        Some(fields) => format!("the fields {}", fields.join(", ")),
    };
    let start = match rule.start {
        ChangesStart::Now => "from its first start on".to_owned(),
        ChangesStart::Beginning => "and at first all that there is".to_owned(),
        ChangesStart::Since(time) => format!("from {time} on"),
    };
    let every = HumanDuration(rule.every);
    format!(
        "each change of {:?} is sent to the cloud with {fields}, {start}; looked for every {every}",
        rule.entity
    )
}

fn takes(rule: &Pickup) -> String {
    let folder = match rule.folder.as_str() {
        "" => "the resource's root".to_owned(),
        folder => format!("{folder}/"),
    };
    let whole = match &rule.stable {
        Stable::Rename => "as soon as they have their name".to_owned(),
        Stable::Quiet(quiet) => format!("when they have not changed for {quiet}"),
        Stable::Looks(looks) => format!("when they were the same at {looks} looks"),
        Stable::DoneMarker(form) => format!("when {form} lies beside them"),
    };
    let order = match rule.order {
        None => "",
        Some(Order::Name) => ", in the order of their names",
        Some(Order::Time) => ", the oldest first",
    };
    let after = match &rule.after {
        After::Delete => "deleted".to_owned(),
        After::Keep => "kept where they are".to_owned(),
        After::MoveTo(folder) => format!("moved below {folder}/"),
    };
    let most = rule.max_size.map_or(String::new(), |most| format!(" up to {}", size(most.0)));
    let every = HumanDuration(rule.every);
    format!(
        "files matching {} in {folder}{most} are sent to the cloud {whole}{order}, and then {after}; looked for every {every}",
        rule.pattern.glob()
    )
}

fn tells(rule: &Watch) -> String {
    let most = rule.max_size.map_or(String::new(), |most| format!(" up to {}", size(most.0)));
    let every = HumanDuration(rule.every);
    format!("each new content of the file {}{most} is sent to the cloud; looked at every {every}", rule.path)
}

impl Display for TriggerView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  By itself, by {} {} ({}): {}.", self.kind, self.name, self.at, self.does)
    }
}
