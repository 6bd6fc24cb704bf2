//! What happens at a private resource as a trigger: a file picked up or changed, a notification that a listener took, a
//! record that changed. Agents tell of it, each once.

use super::known_names;
use crate::mediations::expression::Expression;
use passerelle_config::{Diagnostics, Section, path_glob};
use passerelle_protocol::{CHANGE, NOTIFICATION, Name, PICKUP, WATCH};
use serde::{Deserialize, Serialize};

/// The kinds of events that agents tell of.
const EVENTS: &[&str] = &[PICKUP, WATCH, NOTIFICATION, CHANGE];

/// An event of a resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceTrigger {
    /// The site.
    pub site: Name,
    /// The resource.
    pub resource: Name,
    /// The name of the trigger or listener in the agent's configuration; without it, any of the resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Name>,
    /// `pickup`, `watch`, `notification` or `change`; without it, any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Name>,
    /// A glob that the file's path has to match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Only where this holds: `event` is what the agent told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Expression>,
}

impl ResourceTrigger {
    /// Reads one from a section that holds nothing else.
    pub fn read(section: &Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let trigger: Self = section.parse(diagnostics)?;
        let before = diagnostics.findings().len();
        if let Some(event) = &trigger.event
            && !EVENTS.contains(&event.as_str())
        {
            let message = format!("expected one of {}", EVENTS.join(", "));
            diagnostics.push(section.finding("event", message));
        }
        if let Some(Err(why)) = trigger.path.as_deref().map(path_glob) {
            diagnostics.push(section.finding("path", why));
        }
        known_names(section, "when", trigger.when.as_ref(), diagnostics);
        (diagnostics.findings().len() == before).then_some(trigger)
    }

    /// Whether an event of its resource is meant; what `when` says is another matter. `path` is that of its file, if it has one.
    pub fn is_of(&self, trigger: &Name, kind: &Name, path: Option<&str>) -> bool {
        self.trigger.as_ref().is_none_or(|wanted| wanted == trigger)
            && self.event.as_ref().is_none_or(|wanted| wanted == kind)
            && self.path.as_deref().is_none_or(|glob| {
                path.zip(path_glob(glob).ok())
                    .is_some_and(|(path, glob)| glob.compile_matcher().is_match(path))
            })
    }

    /// What the stars in the last part of its glob stand for in a file's name; nothing where the glob is no plain one.
    pub fn stars(&self, path: &str) -> Vec<String> {
        let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
        self.path.as_deref().and_then(|glob| stars(&last(glob), &last(path))).unwrap_or_default()
    }

    /// What it waits for.
    pub fn topic(&self) -> String {
        topic(&self.site, &self.resource)
    }
}

/// The topic of events of a resource.
pub fn topic(site: &Name, resource: &Name) -> String {
    format!("resource/{site}/{resource}")
}

/// What each `*` of a pattern stands for; each as short as the rest allows.
fn stars(pattern: &str, name: &str) -> Option<Vec<String>> {
    if pattern.contains(['?', '[', '{', '\\']) || pattern.contains("**") || !pattern.contains('*') {
        return None;
    }
    let (first, rest) = pattern.split_once('*')?;
    let mut left = name.strip_prefix(first)?;
    let mut found = Vec::new();
    let parts: Vec<&str> = rest.split('*').collect();
    for (place, part) in parts.iter().enumerate() {
        let end = if place + 1 == parts.len() {
            left.len().checked_sub(part.len()).filter(|_| left.ends_with(part))?
        } else {
            left.find(part)?
        };
        let (star, after) = left.split_at_checked(end)?;
        found.push(star.to_owned());
        left = after.strip_prefix(part)?;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::name;

    fn of(path: Option<&str>) -> ResourceTrigger {
        ResourceTrigger {
            site: name("paris"),
            resource: name("suppliers"),
            trigger: None,
            event: None,
            path: path.map(str::to_owned),
            when: None,
        }
    }

    #[test]
    fn only_what_is_meant_is_taken() {
        let any = of(None);
        assert!(
            any.is_of(&name("in"), &name(PICKUP), Some("a.csv"))
                && any.is_of(&name("in"), &name(CHANGE), None)
        );
        let globbed = of(Some("in/articles-*.csv"));
        assert!(globbed.is_of(&name("in"), &name(PICKUP), Some("in/articles-42.csv")));
        for path in [Some("in/prices-42.csv"), Some("articles-42.csv"), Some("in/x/articles-4.csv"), None] {
            assert!(!globbed.is_of(&name("in"), &name(PICKUP), path), "{path:?}");
        }
        let named = ResourceTrigger { trigger: Some(name("in")), event: Some(name(WATCH)), ..of(None) };
        assert!(named.is_of(&name("in"), &name(WATCH), None));
        assert!(
            !named.is_of(&name("out"), &name(WATCH), None) && !named.is_of(&name("in"), &name(PICKUP), None)
        );
    }

    #[test]
    fn stars_of_the_last_part_are_told() {
        let stars = |glob: &str, path: &str| of(Some(glob)).stars(path);
        assert_eq!(stars("in/articles-*.csv", "in/articles-F42.csv"), ["F42"]);
        assert_eq!(stars("**/*-*.csv", "a/b/articles-F42-2.csv"), ["articles", "F42-2"]);
        assert_eq!(stars("*", "in/x"), ["x"]);
        assert_eq!(stars("a*a", "aa"), [""]);
        assert!(
            stars("a*a", "a").is_empty()
                && stars("a?*.csv", "ab1.csv").is_empty()
                && stars("x", "x").is_empty()
        );
    }
}
