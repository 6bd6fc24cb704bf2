//! A look at one resource, link by link, for the operator: how far one gets, and where it ends.

use crate::Failure;
use std::time::Duration;

/// What to look at.
#[derive(Debug, Clone)]
pub struct Examine {
    /// How long each link may take.
    pub timeout: Duration,
    /// Folders, relative to the resource's root, in which a file of ours may be written, renamed and deleted for a try;
    /// none if the operator allows no drop or wants no try.
    pub try_writing: Vec<String>,
}

/// One link that was looked at.
#[derive(Debug)]
pub struct Link {
    /// Its name: `name`, `connection`, `TLS`, `host key`, `log-in`, `folder`, `writing`, `token`, `answer`.
    pub name: &'static str,
    /// What was found.
    pub found: Found,
}

/// What was found at a link. The texts are for the operator: they name hosts and paths.
#[derive(Debug)]
pub enum Found {
    /// It is as it should be.
    Passed(String),
    /// What a job would meet there.
    Failed(Failure),
    /// Not looked at, since one before it failed.
    Skipped,
}

/// Collects links as they are passed, up to the first that fails.
#[derive(Debug, Default)]
pub(crate) struct Links(Vec<Link>);

impl Links {
    /// This link is fine.
    pub(crate) fn passed(&mut self, name: &'static str, found: impl Into<String>) {
        self.0.push(Link { name, found: Found::Passed(found.into()) });
    }

    /// This link fails.
    pub(crate) fn failed(&mut self, name: &'static str, failure: Failure) {
        self.0.push(Link { name, found: Found::Failed(failure) });
    }

    /// These cannot be looked at any more.
    pub(crate) fn skipped(&mut self, names: impl IntoIterator<Item = &'static str>) {
        self.0.extend(names.into_iter().map(|name| Link { name, found: Found::Skipped }));
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, in their order.
    pub(crate) fn finish(self) -> Vec<Link> {
        self.0
    }
}
