//! What the cloud can do more, and less, after a change of the configuration.
//!
//! Two rules never add up, so each path of each operation of each rule is compared alone: it is nothing new if one rule of
//! the other side allows all of it. Where that cannot be told of two globs it counts as new: rather a line too many.

use super::{OperationView, Overview, ResourceView, RuleView, glob_covers, size, words};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    fmt::{self, Display},
};

/// The difference between two configurations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What the cloud can do now and could not before.
    pub more: Vec<Change>,
    /// What the cloud could do before and cannot now.
    pub less: Vec<Change>,
}

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// The resource.
    pub resource: String,
    /// What, in words.
    pub what: String,
}

/// Compares.
pub fn difference(old: &Overview, new: &Overview) -> Difference {
    Difference {
        more: gained(&old.resources, &new.resources, true),
        less: gained(&new.resources, &old.resources, false),
    }
}

/// What `to` allows and `from` does not. `forward`: `to` is the new side.
fn gained(from: &[ResourceView], to: &[ResourceView], forward: bool) -> Vec<Change> {
    let mut changes = BTreeSet::new();
    for resource in to {
        let other = from.iter().find(|other| other.name == resource.name);
        let mut say = |what: String| {
            changes.insert(Change { resource: resource.name.clone(), what });
        };
        let atoms: Vec<Atom<'_>> = atoms(resource).collect();
        let moved = other
            .is_some_and(|other| (&other.place, &other.connector) != (&resource.place, &resource.connector));
        for trigger in &resource.triggers {
            let mut before = other.filter(|_| !moved).into_iter().flat_map(|other| &other.triggers);
            if !before.any(|other| other.does == trigger.does) {
                say(format!("by itself: {}", trigger.does));
            }
        }
        if atoms.is_empty() {
            continue;
        }
        if moved && let Some(place) = &resource.place {
            say(format!("leads to {place}"));
        }
        // Elsewhere nothing was allowed, whatever the rules were.
        let before: Vec<Atom<'_>> = other.filter(|_| !moved).into_iter().flat_map(self::atoms).collect();
        for atom in &atoms {
            let wider = before
                .iter()
                .filter(|other| {
                    other.operation.name == atom.operation.name
                        && other.request == atom.request
                        && (atom.request.is_some() || glob_covers(other.path, atom.path))
                })
                .map(|other| atom.beyond(other, forward))
                .min_by_key(Vec::len);
            match wider {
                None => say(atom.to_string()),
                Some(wider) => wider.into_iter().for_each(|what| say(format!("{}{what}", atom.name()))),
            }
        }
        if let Some(other) = other.filter(|_| !before.is_empty()) {
            let numbers = |a: &dyn Display, b: &dyn Display| {
                if forward { format!("{a} (before: {b})") } else { format!("{b} (before: {a})") }
            };
            if resource.max_concurrent > other.max_concurrent {
                say(format!(
                    "attempts at once: {}",
                    numbers(&resource.max_concurrent, &other.max_concurrent)
                ));
            }
            if above(resource.rate_per_minute, other.rate_per_minute) {
                let shown = |rate: Option<u32>| rate.map_or("no limit".to_owned(), |rate| rate.to_string());
                let numbers = numbers(&shown(resource.rate_per_minute), &shown(other.rate_per_minute));
                say(format!("attempts started per minute: {numbers}"));
            }
        }
    }
    changes.into_iter().collect()
}

/// One path, or one request that the operator wrote, of one operation of one rule.
struct Atom<'a> {
    rule: &'a RuleView,
    operation: &'a OperationView,
    path: &'a str,
    request: Option<&'a str>,
}

fn atoms(resource: &ResourceView) -> impl Iterator<Item = Atom<'_>> {
    resource.rules.iter().flat_map(|rule| {
        // An operation without paths is one atom.
        let mut places: Vec<(&str, Option<&str>)> =
            rule.paths.iter().map(|path| (path.as_str(), None)).collect();
        places.extend(rule.requests.iter().map(|request| ("", Some(request.as_str()))));
        if places.is_empty() {
            places.push(("", None));
        }
        rule.operations.iter().flat_map(move |operation| {
            places.clone().into_iter().map(move |(path, request)| Atom { rule, operation, path, request })
        })
    })
}

/// Whether a limit is higher than another one; none is the highest.
fn above<T: Ord>(limit: Option<T>, other: Option<T>) -> bool {
    match (limit, other) {
        (None, Some(_)) => true,
        (Some(limit), Some(other)) => limit > other,
        (_, None) => false,
    }
}

impl Atom<'_> {
    fn name(&self) -> String {
        match (self.request, self.path) {
            (Some(request), _) => format!("{} by request {request}", self.operation.name),
            (None, "") => self.operation.name.clone(),
            (None, path) => format!("{} on {path}", self.operation.name),
        }
    }

    /// What it allows beyond another one.
    fn beyond(&self, other: &Self, forward: bool) -> Vec<String> {
        let mut beyond = Vec::new();
        let mut lists = |what: &str, own: &[String], theirs: &[String]| {
            let more: Vec<&str> = own
                .iter()
                .filter(|one| !theirs.iter().any(|other| other == *one || other == "*"))
                .map(String::as_str)
                .collect();
            if !more.is_empty() {
                beyond.push(format!(" with {what} {}", more.join(", ")));
            }
        };
        // A request says these itself.
        if self.request.is_none() {
            lists("method", &self.operation.methods, &other.operation.methods);
            lists("query key", &self.rule.query, &other.rule.query);
            lists("header", &self.rule.headers, &other.rule.headers);
        }
        lists("entity", &self.rule.entities, &other.rule.entities);
        lists("field", &self.rule.fields, &other.rule.fields);
        lists("call", &self.rule.calls, &other.rule.calls);
        for right in self.operation.may.iter().filter(|right| !other.operation.may.contains(right)) {
            beyond.push(format!(": it may {}", words::right(right)));
        }
        let shown = |limit: Option<u64>, bytes: bool| match limit {
            None => "any".to_owned(),
            Some(limit) if bytes => size(limit),
            Some(limit) => limit.to_string(),
        };
        for (what, own, theirs, bytes) in [
            ("size", self.rule.max_size, other.rule.max_size, true),
            ("times a day", self.rule.max_per_day, other.rule.max_per_day, false),
            ("volume a day", self.rule.daily_volume, other.rule.daily_volume, true),
        ] {
            if above(own, theirs) {
                let (new, old) = if forward { (own, theirs) } else { (theirs, own) };
                beyond.push(format!(": {what} {} (before: {})", shown(new, bytes), shown(old, bytes)));
            }
        }
        beyond
    }
}

impl Display for Atom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if !self.operation.methods.is_empty() && self.request.is_none() {
            write!(f, " ({})", self.operation.methods.join(", "))?;
        }
        if let Some(bytes) = self.rule.max_size {
            write!(f, ", up to {}", size(bytes))?;
        }
        if !self.operation.may.is_empty() {
            let rights: Vec<&str> = self.operation.may.iter().map(|name| words::right(name)).collect();
            write!(f, "; it may {}", rights.join(" and "))?;
        }
        Ok(())
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, sign, changes) in
            [("The cloud can do more:", '+', &self.more), ("The cloud can do less:", '-', &self.less)]
        {
            if !changes.is_empty() {
                writeln!(f, "{title}")?;
            }
            changes
                .iter()
                .try_for_each(|change| writeln!(f, "{sign} {}: {}", change.resource, change.what))?;
        }
        if self.more.is_empty() && self.less.is_empty() {
            f.write_str("The cloud can do the same as before.\n")?;
        }
        Ok(())
    }
}
