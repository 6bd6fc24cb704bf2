//! A part of the configuration that another crate reads: a connector's own settings, with their positions.

use crate::{
    Diagnostics, Finding,
    read::read,
    tree::{Node, Source},
};
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// The settings of one resource, without the keys that every resource has.
#[derive(Debug)]
pub struct Section {
    name: String,
    /// The path that all its keys share: `resources.compta`, or nothing for a whole file.
    path: String,
    node: Node,
    source: Arc<Source>,
    /// Keys that the resource has beside these: worth a hint when one is misspelt.
    also_known: &'static [&'static str],
}

impl Section {
    pub(crate) fn new(
        name: &str,
        path: String,
        node: Node,
        source: Arc<Source>,
        also_known: &'static [&'static str],
    ) -> Self {
        Self { name: name.to_owned(), path, node, source, also_known }
    }

    /// The resource's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the settings; wrong types, missing and unknown keys become findings at their places, all of them but one:
    /// of several required keys that are missing only the first is named. A table that needs better makes its keys
    /// `Option` and reports with [`Self::finding`].
    ///
    /// Avoid internally tagged enums and `flatten`: serde buffers their values and the places get lost.
    pub fn parse<T: DeserializeOwned>(&self, diagnostics: &mut Diagnostics) -> Option<T> {
        let before = diagnostics.findings().len();
        self.parse_leniently(diagnostics).filter(|_| diagnostics.findings().len() == before)
    }

    /// As [`Self::parse`], but gives what is left without the mistaken parts, so that it can be checked further.
    pub(crate) fn parse_leniently<T: DeserializeOwned>(&self, diagnostics: &mut Diagnostics) -> Option<T> {
        let (value, mistakes) = read(&self.node, self.also_known);
        for mistake in mistakes {
            let path = self.full_path(&mistake.path);
            diagnostics.push(self.source.finding(mistake.at, &path, mistake.message));
        }
        value
    }

    /// Whether a key stands there, rightly or wrongly.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.node.find(key).is_some()
    }

    /// A finding at the place of a key (`url`, `auth.token`), or, if there is no such key, at the table it belongs to.
    #[must_use]
    pub fn finding(&self, key: &str, message: impl Into<String>) -> Finding {
        let at = if key.is_empty() { self.node.at } else { self.node.nearest(key).at };
        self.source.finding(at, &self.full_path(key), message)
    }

    fn full_path(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            (path, "") => path.to_owned(),
            ("", key) => key.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }
}
