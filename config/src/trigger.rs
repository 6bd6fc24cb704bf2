//! `[[resources.NAME.pickup]]`, `[[resources.NAME.watch]]` and `[[resources.NAME.changes]]`: files and changes that the
//! agent sends to the cloud by itself.

mod checker;

use crate::{ByteSize, Diagnostics, Finding, HumanDuration, Section, defaults};
use checker::Checker;
use globset::Glob;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{collections::BTreeSet, time::Duration};

/// Files that the agent takes from a folder: each becomes one event at the hub, with its content.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPickup {
    /// Its name, by which the hub knows it; a resource's triggers differ in it. Default: `pickup`.
    pub(crate) name: Option<String>,
    /// The folder, below the resource's root. Default: the root.
    pub(crate) folder: Option<String>,
    /// Glob of the files to take, relative to the folder: `*` does not cross `/`, `**/` matches any number of folders.
    #[schemars(required)]
    pub(crate) pattern: Option<String>,
    /// How a file shows that it is whole: `{ quiet = "10s" }` (unchanged for so long), `{ looks = 3 }` (the same at so
    /// many looks, `every` apart), `{ done_marker = "{name}.done" }` (another file says so), or `"rename"` (files get
    /// their name only when they are whole).
    pub(crate) stable: Option<Stable>,
    /// `name` or `time`: strictly in this order, so that a file that is not whole yet holds up those after it.
    /// Default: as they become whole.
    pub(crate) order: Option<Order>,
    /// What becomes of a file once the hub has it: `"delete"`, `"keep"`, or `{ move_to = "done" }`.
    #[schemars(required)]
    pub(crate) after: Option<After>,
    /// The largest file; a larger one stays where it is. Default: what the spool takes.
    pub(crate) max_size: Option<ByteSize>,
    /// How often the folder is looked at.
    #[schemars(extend("default" = "30s"))]
    pub(crate) every: Option<HumanDuration>,
}

/// A file whose every change becomes an event at the hub, with its content.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawWatch {
    /// Its name, by which the hub knows it; a resource's triggers differ in it. Default: `watch`.
    pub(crate) name: Option<String>,
    /// The file, below the resource's root.
    #[schemars(required)]
    pub(crate) path: Option<String>,
    /// The largest content; a larger one is not sent. Default: what the spool takes.
    pub(crate) max_size: Option<ByteSize>,
    /// How often the file is looked at.
    #[schemars(extend("default" = "30s"))]
    pub(crate) every: Option<HumanDuration>,
}

/// How a file shows that it is whole.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stable {
    /// Producers write elsewhere and rename into place.
    Rename,
    /// Size and time have not changed for this long.
    Quiet(HumanDuration),
    /// Size and time were the same at so many looks.
    Looks(u32),
    /// Another file, named by this form, is there.
    DoneMarker(String),
}

/// In which order files are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// By path: names compared byte by byte, folder by folder.
    Name,
    /// By the time of the last change, then by path.
    Time,
}

/// What becomes of a file once the hub has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// It is deleted.
    Delete,
    /// It stays, and is remembered.
    Keep,
    /// It is moved below this folder of the resource.
    MoveTo(String),
}

/// `[[resources.NAME.pickup]]`
#[derive(Debug, Clone)]
pub struct Pickup {
    /// Its name, unique among the resource's triggers.
    pub name: String,
    /// The folder below the root, without a slash at its end; the root is `""`.
    pub folder: String,
    /// Which files of the folder.
    pub pattern: Glob,
    /// When a file is whole.
    pub stable: Stable,
    /// Strictly in this order.
    pub order: Option<Order>,
    /// What follows.
    pub after: After,
    /// The largest file.
    pub max_size: Option<ByteSize>,
    /// How often the folder is looked at.
    pub every: Duration,
    /// Where it stands, for messages.
    pub at: Finding,
}

/// `[[resources.NAME.watch]]`
#[derive(Debug, Clone)]
pub struct Watch {
    /// Its name, unique among the resource's triggers.
    pub name: String,
    /// The file below the root.
    pub path: String,
    /// The largest content.
    pub max_size: Option<ByteSize>,
    /// How often the file is looked at.
    pub every: Duration,
    /// Where it stands, for messages.
    pub at: Finding,
}

/// A change feed of the private system: each change becomes one event at the hub.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawChanges {
    /// Its name, by which the hub knows it; a resource's triggers differ in it. Under a new name a feed is read anew.
    /// Default: `changes`.
    pub(crate) name: Option<String>,
    /// The entity, such as `contact`.
    #[schemars(required)]
    pub(crate) entity: Option<String>,
    /// Where it starts the first time: `"now"`, `"beginning"`, or a time such as `"2026-11-01T00:00:00Z"`.
    #[schemars(extend("default" = "now"))]
    pub(crate) start: Option<String>,
    /// How many changes are asked for at once.
    #[schemars(range(min = 1, max = 1000), extend("default" = defaults::CHANGES_PAGE))]
    pub(crate) page_size: Option<i64>,
    /// The fields that are sent to the cloud. Default: all that the feed gives.
    pub(crate) fields: Option<Vec<String>>,
    /// How often the feed is read.
    #[schemars(extend("default" = "30s"))]
    pub(crate) every: Option<HumanDuration>,
}

/// Where a change feed is read from the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangesStart {
    /// What changes from now on.
    Now,
    /// All that is there.
    Beginning,
    /// What changed at this time or later.
    Since(jiff::Timestamp),
}

/// `[[resources.NAME.changes]]`
#[derive(Debug, Clone)]
pub struct Changes {
    /// Its name, unique among the resource's triggers.
    pub name: String,
    /// The entity.
    pub entity: String,
    /// Where it starts the first time.
    pub start: ChangesStart,
    /// How many changes are asked for at once.
    pub page_size: u32,
    /// The fields that are sent; `None`: all.
    pub fields: Option<Vec<String>>,
    /// How often the feed is read.
    pub every: Duration,
    /// Where it stands, for messages.
    pub at: Finding,
}

/// The triggers of a resource as they stand in the file.
pub(crate) struct Raw {
    pub(crate) pickups: Vec<RawPickup>,
    pub(crate) watches: Vec<RawWatch>,
    pub(crate) changes: Vec<RawChanges>,
}

/// The triggers of a resource.
pub(crate) struct Checked {
    pub(crate) pickups: Vec<Pickup>,
    pub(crate) watches: Vec<Watch>,
    pub(crate) changes: Vec<Changes>,
}

/// The triggers of a resource, checked.
pub(crate) fn check(common: &Section, raw: Raw, diagnostics: &mut Diagnostics) -> Checked {
    let Raw { pickups, watches, changes } = raw;
    let mut checker = Checker { common, diagnostics, names: BTreeSet::new() };
    let total = pickups.len() + watches.len() + changes.len();
    if total > defaults::MAX_TRIGGERS {
        let key = match (pickups.is_empty(), watches.is_empty()) {
            (false, _) => "pickup",
            (true, false) => "watch",
            (true, true) => "changes",
        };
        checker.wrong(key, format!("expected at most {} triggers, found {total}", defaults::MAX_TRIGGERS));
    }
    let pickups = pickups.into_iter().enumerate().filter_map(|(i, raw)| checker.pickup(i + 1, raw)).collect();
    let watches = watches.into_iter().enumerate().filter_map(|(i, raw)| checker.watch(i + 1, raw)).collect();
    let changes =
        changes.into_iter().enumerate().filter_map(|(i, raw)| checker.changes(i + 1, raw)).collect();
    Checked { pickups, watches, changes }
}
