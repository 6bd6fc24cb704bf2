//! `[[resources.NAME.pickup]]`, `[[resources.NAME.watch]]` and `[[resources.NAME.changes]]`: files and changes that the
//! agent sends to the cloud by itself.

use crate::{ByteSize, Diagnostics, Finding, HumanDuration, Section, check, defaults, path_glob};
use globset::Glob;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

/// What stands in a marker's form for the name of the file that it marks.
const NAME: &str = "{name}";
/// The longest name of an entity.
const MAX_ENTITY: usize = 128;
/// The longest name of a file.
const MAX_FILE_NAME: usize = 255;

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

struct Checker<'a> {
    common: &'a Section,
    diagnostics: &'a mut Diagnostics,
    names: BTreeSet<String>,
}

impl Checker<'_> {
    fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.diagnostics.push(self.common.finding(key, message));
    }

    fn pickup(&mut self, number: usize, raw: RawPickup) -> Option<Pickup> {
        let at = format!("pickup[{number}]");
        let name = self.name(&at, raw.name, "pickup");
        let folder = match raw.folder {
            Some(folder) => self.path(&format!("{at}.folder"), &folder, true),
            None => Some(String::new()),
        };
        let pattern = self.required(&at, "pattern", raw.pattern, "name the files, such as \"*.csv\"");
        let pattern = pattern.and_then(|text| match path_glob(&text) {
            Ok(glob) => Some(glob),
            Err(why) => {
                self.wrong(&format!("{at}.pattern"), why);
                None
            }
        });
        let stable = raw.stable.unwrap_or(Stable::Quiet(HumanDuration(defaults::QUIET)));
        self.stable(&at, &stable);
        let choice = "\"delete\", \"keep\", or { move_to = \"done\" }";
        let after = self.required(&at, "after", raw.after, &format!("say what follows: {choice}"));
        let after = match after {
            Some(After::MoveTo(target)) => {
                self.path(&format!("{at}.after.move_to"), &target, true).map(After::MoveTo)
            }
            after => after,
        };
        if let (Some(folder), Some(pattern), Some(After::MoveTo(target))) = (&folder, &pattern, &after)
            && would_loop(folder, pattern, target)
        {
            let message = "leads where the pattern takes files from: they would be taken again and again; name a \
                           folder outside it, or a narrower pattern";
            self.wrong(&format!("{at}.after.move_to"), message);
        }
        let max_size = self.max_size(&at, raw.max_size);
        let every = self.every(&at, raw.every);
        let at = self.common.finding(&at, "");
        Some(Pickup {
            name: name?,
            folder: folder?,
            pattern: pattern?,
            stable,
            order: raw.order,
            after: after?,
            max_size,
            every,
            at,
        })
    }

    fn watch(&mut self, number: usize, raw: RawWatch) -> Option<Watch> {
        let at = format!("watch[{number}]");
        let name = self.name(&at, raw.name, "watch");
        let path = self.required(&at, "path", raw.path, "name the file, such as \"prices.csv\"");
        let path = path.and_then(|path| self.path(&format!("{at}.path"), &path, false));
        let max_size = self.max_size(&at, raw.max_size);
        let every = self.every(&at, raw.every);
        let at = self.common.finding(&at, "");
        Some(Watch { name: name?, path: path?, max_size, every, at })
    }

    fn changes(&mut self, number: usize, raw: RawChanges) -> Option<Changes> {
        let at = format!("changes[{number}]");
        let name = self.name(&at, raw.name, "changes");
        let entity = self.required(&at, "entity", raw.entity, "name the entity, such as \"contact\"");
        if entity.as_ref().is_some_and(|entity| entity.is_empty() || entity.len() > MAX_ENTITY) {
            self.wrong(&format!("{at}.entity"), format!("expected 1 to {MAX_ENTITY} bytes"));
        }
        let start = match raw.start.as_deref() {
            None | Some("now") => ChangesStart::Now,
            Some("beginning") => ChangesStart::Beginning,
            Some(time) => match time.parse() {
                Ok(time) => ChangesStart::Since(time),
                Err(_) => {
                    let message =
                        "expected \"now\", \"beginning\" or a time such as \"2026-11-01T00:00:00Z\"";
                    self.wrong(&format!("{at}.start"), message);
                    ChangesStart::Now
                }
            },
        };
        let page_size = raw.page_size.map_or(defaults::CHANGES_PAGE, |size| {
            let key = format!("{at}.page_size");
            check::in_range(self.common, &key, size, 1..=defaults::CHANGES_PAGE_LIMIT, self.diagnostics)
        });
        let every = self.every(&at, raw.every);
        let at = self.common.finding(&at, "");
        Some(Changes { name: name?, entity: entity?, start, page_size, fields: raw.fields, every, at })
    }

    fn name(&mut self, at: &str, name: Option<String>, default: &str) -> Option<String> {
        let name = name.unwrap_or_else(|| default.to_owned());
        let key = format!("{at}.name");
        if !check::is_name(&name) {
            self.wrong(&key, format!("not a trigger's name: {}", check::NAME_RULE));
            return None;
        }
        if !self.names.insert(name.clone()) {
            let message = format!(
                "another trigger of this resource is named {name:?} too; give each a `name` of its own"
            );
            self.wrong(&key, message);
            return None;
        }
        Some(name)
    }

    fn required<T>(&mut self, at: &str, key: &str, value: Option<T>, hint: &str) -> Option<T> {
        let key = format!("{at}.{key}");
        // One that stands there, but wrongly, has been told already.
        if value.is_none() && !self.common.has(&key) {
            self.wrong(&key, format!("missing; {hint}"));
        }
        value
    }

    fn path(&mut self, key: &str, text: &str, is_folder: bool) -> Option<String> {
        match relative(text, is_folder) {
            Ok(path) => Some(path),
            Err(why) => {
                self.wrong(key, why);
                None
            }
        }
    }

    fn stable(&mut self, at: &str, stable: &Stable) {
        match stable {
            Stable::Rename => {}
            Stable::Quiet(quiet) => {
                self.in_range(&format!("{at}.stable.quiet"), quiet.0, &defaults::QUIET_RANGE);
            }
            Stable::Looks(looks) => {
                let key = format!("{at}.stable.looks");
                check::in_range(
                    self.common,
                    &key,
                    (*looks).into(),
                    2..=defaults::MAX_LOOKS,
                    self.diagnostics,
                );
            }
            Stable::DoneMarker(form) => {
                if let Err(why) = marker(form) {
                    self.wrong(&format!("{at}.stable.done_marker"), why);
                }
            }
        }
    }

    fn max_size(&mut self, at: &str, size: Option<ByteSize>) -> Option<ByteSize> {
        if size.is_some_and(|size| size.0 == 0) {
            self.wrong(&format!("{at}.max_size"), "must be larger than 0");
        }
        size
    }

    fn every(&mut self, at: &str, every: Option<HumanDuration>) -> Duration {
        let every = every.map_or(defaults::EVERY, |every| every.0);
        self.in_range(&format!("{at}.every"), every, &defaults::EVERY_RANGE);
        every
    }

    fn in_range(&mut self, key: &str, value: Duration, range: &RangeInclusive<Duration>) {
        if !range.contains(&value) {
            let (from, to) = (HumanDuration(*range.start()), HumanDuration(*range.end()));
            self.wrong(key, format!("expected a duration from \"{from}\" to \"{to}\""));
        }
    }
}

/// A path below the root, without a slash at its end. Only a folder may be the root itself, as `""`, `"."` or `"./"`.
fn relative(text: &str, is_folder: bool) -> Result<String, String> {
    let path = if is_folder { text.strip_suffix('/').unwrap_or(text) } else { text };
    if matches!(path, "" | ".") && !text.starts_with('/') {
        return if is_folder { Ok(String::new()) } else { Err("names no file".to_owned()) };
    }
    if path.starts_with('/') || path.is_empty() {
        return Err("starts with '/': paths are relative to the resource's root".to_owned());
    }
    let bad = |name: &str| match name {
        "" => Some("has an empty name: two slashes in a row, or one at its end"),
        "." | ".." => Some("has a name `.` or `..`: it must lead straight down from the resource's root"),
        long if long.len() > MAX_FILE_NAME => Some("has a name of more than 255 bytes"),
        own if own.starts_with(".passerelle-") => {
            Some("has a name that begins with `.passerelle-`: those are kept for unfinished files")
        }
        name if name.contains('\0') => Some("holds a NUL character"),
        _ => None,
    };
    match path.split('/').find_map(bad) {
        Some(why) => Err(why.to_owned()),
        None => Ok(path.to_owned()),
    }
}

/// A marker's form: the file's name, and something that tells the two apart.
fn marker(form: &str) -> Result<(), String> {
    let example = "write one such as \"{name}.done\"";
    if form.matches(NAME).count() != 1 {
        return Err(format!("expected `{NAME}` once, where the file's name stands; {example}"));
    }
    if form == NAME {
        return Err(format!("is the file itself; {example}"));
    }
    if form.contains(['/', '\0']) {
        return Err(format!("a marker lies in the folder of its file; {example}"));
    }
    Ok(())
}

/// Whether a file that the pattern takes is one that it takes again after it was moved. Tried on a sample of each
/// alternative of the pattern.
fn would_loop(folder: &str, pattern: &Glob, target: &str) -> bool {
    let inside = match (folder, target.strip_prefix(folder)) {
        ("", _) => Some(target),
        (_, Some(rest)) => rest.strip_prefix('/').or(rest.is_empty().then_some("")),
        (_, None) => None,
    };
    let Some(inside) = inside else { return false };
    let matcher = pattern.compile_matcher();
    samples(pattern.glob()).iter().any(|sample| {
        let moved = if inside.is_empty() { sample.clone() } else { format!("{inside}/{sample}") };
        matcher.is_match(&moved)
    })
}

/// Some paths that a glob matches: one for each of its alternatives, within reason.
fn samples(glob: &str) -> Vec<String> {
    if let Some((before, rest)) = glob.split_once('{')
        && let Some((choices, after)) = rest.split_once('}')
    {
        return choices
            .split(',')
            .take(16)
            .flat_map(|choice| samples(&format!("{before}{choice}{after}")))
            .take(64)
            .collect();
    }
    let mut sample = String::new();
    let plain = glob.replace("**/", "").replace("**", "x");
    let mut chars = plain.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' => sample.push('x'),
            '\\' => sample.extend(chars.next()),
            '[' => {
                sample.extend(chars.next().filter(|c| *c != '!' && *c != '^').or(Some('~')));
                chars.by_ref().find(|c| *c == ']');
            }
            c => sample.push(c),
        }
    }
    vec![sample]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_into_what_is_taken_is_found_out() {
        for (folder, pattern, target, loops) in [
            ("", "*.csv", "done", false),
            ("", "**/*.csv", "done", true),
            ("in", "**/*.csv", "done", false),
            ("in", "**/*.csv", "in/done", true),
            ("in", "*.csv", "in/done", false),
            ("in", "*.csv", "in", true),
            ("in", "*.csv", "inside", false),
            ("", "{a,**/b}.csv", "done", true),
            ("", "out/*.csv", "done", false),
            ("", "**", "done", true),
        ] {
            let glob = path_glob(pattern).unwrap();
            assert_eq!(would_loop(folder, &glob, target), loops, "{folder:?} {pattern:?} {target:?}");
        }
    }

    #[test]
    fn paths_lead_straight_down() {
        for (text, folder) in [("", ""), (".", ""), ("./", ""), ("in/", "in"), ("in/out", "in/out")] {
            assert_eq!(relative(text, true).as_deref(), Ok(folder), "{text:?}");
        }
        for bad in ["/", "/in", "../in", "in/../out", "in//out", "a\0", ".passerelle-x"] {
            assert!(relative(bad, true).is_err(), "{bad:?}");
        }
        assert!(relative("", false).is_err() && relative("a/", false).is_err());
    }

    #[test]
    fn a_marker_has_the_name_once_and_is_another_file() {
        assert_eq!(marker("{name}.done"), Ok(()));
        assert_eq!(marker("ok-{name}"), Ok(()));
        for bad in ["done", "{name}", "{name}{name}", "../{name}.done"] {
            assert!(marker(bad).is_err(), "{bad}");
        }
    }
}
