//! What triggers must be: their names and paths, when a file is whole, and a move that does not lead back.

use super::{After, Changes, ChangesStart, Pickup, RawChanges, RawPickup, RawWatch, Stable, Watch};
use crate::{ByteSize, Diagnostics, HumanDuration, Section, check, defaults, path_glob};
use globset::Glob;
use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

/// What stands in a marker's form for the name of the file that it marks.
const NAME: &str = "{name}";
/// The longest name of an entity.
const MAX_ENTITY: usize = 128;
/// The longest name of a file.
const MAX_FILE_NAME: usize = 255;

/// Checks the triggers of one resource, which differ in their names.
pub(super) struct Checker<'a> {
    pub(super) common: &'a Section,
    pub(super) diagnostics: &'a mut Diagnostics,
    pub(super) names: BTreeSet<String>,
}

impl Checker<'_> {
    pub(super) fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.diagnostics.push(self.common.finding(key, message));
    }

    pub(super) fn pickup(&mut self, number: usize, raw: RawPickup) -> Option<Pickup> {
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

    pub(super) fn watch(&mut self, number: usize, raw: RawWatch) -> Option<Watch> {
        let at = format!("watch[{number}]");
        let name = self.name(&at, raw.name, "watch");
        let path = self.required(&at, "path", raw.path, "name the file, such as \"prices.csv\"");
        let path = path.and_then(|path| self.path(&format!("{at}.path"), &path, false));
        let max_size = self.max_size(&at, raw.max_size);
        let every = self.every(&at, raw.every);
        let at = self.common.finding(&at, "");
        Some(Watch { name: name?, path: path?, max_size, every, at })
    }

    pub(super) fn changes(&mut self, number: usize, raw: RawChanges) -> Option<Changes> {
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
