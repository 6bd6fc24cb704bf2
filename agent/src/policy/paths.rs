//! Whether a rule's glob allows a path, or everything that a listing may reveal.
//!
//! A listing demands a pattern (`2026/*.csv`, `**/*.csv`), and must be refused if one of the names behind it is outside
//! the rule. Comparing the pattern with the glob as if it were a path is not enough: `[!s]*` matches the text `*`,
//! behind which `secret` hides. So each varying part of the pattern is replaced by a mark that only a `*` of the glob
//! can take up; where the mark passes, every name passes.

use globset::{Glob, GlobMatcher};

/// The operation whose paths are patterns.
pub(super) const LISTING: &str = "list";
/// What makes a pattern vary.
const WILD: [char; 6] = ['*', '?', '[', ']', '{', '\\'];
/// Stands for anything within one part of a path. A noncharacter, which no honest glob holds.
const MARK: &str = "\u{FDD0}";

/// A glob of a rule.
#[derive(Debug)]
pub(super) struct PathRule {
    matcher: GlobMatcher,
    /// Only literal text, stars and alternatives: what takes up the mark takes up everything.
    transparent: bool,
    slashes: usize,
    /// The glob part by part, where it can be taken apart; `None` stands for `**`.
    parts: Vec<Option<GlobMatcher>>,
}

impl PathRule {
    pub(super) fn new(glob: &Glob) -> Self {
        let text = glob.glob();
        Self {
            matcher: glob.compile_matcher(),
            transparent: !text.contains(['?', '[', ']', '\\']) && !text.contains(MARK),
            slashes: text.matches('/').count(),
            parts: parts(text).unwrap_or_default(),
        }
    }

    /// Whether the glob allows this one name, whatever characters it is made of.
    pub(super) fn allows_name(&self, path: &str) -> bool {
        is_plain(path) && self.matcher.is_match(path)
    }

    /// Whether the glob may match something below a folder. Says no where it cannot tell.
    pub(super) fn leads_below(&self, folder: &str) -> bool {
        let folders: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
        let (mut globs, mut folders) = (self.parts.as_slice(), folders.as_slice());
        loop {
            match (globs, folders) {
                ([], _) => return false,
                ([None, ..], _) | ([_, ..], []) => return is_plain(folder),
                ([Some(glob), more @ ..], [first, rest @ ..]) if glob.is_match(first) => {
                    (globs, folders) = (more, rest);
                }
                ([Some(_), ..], [_, ..]) => return false,
            }
        }
    }

    /// The glob as it is written.
    pub(super) fn text(&self) -> &str {
        self.matcher.glob().glob()
    }

    /// Whether the glob allows a path, or for a listing everything behind the pattern.
    pub(super) fn allows(&self, operation: &str, path: &str) -> bool {
        if !is_plain(path) {
            return false;
        }
        if operation == LISTING && path.contains(WILD) {
            return self.transparent && self.covers(path);
        }
        self.matcher.is_match(path)
    }

    /// Whether the glob matches every path that the pattern matches.
    fn covers(&self, pattern: &str) -> bool {
        let mut parts: Vec<String> = pattern.split('/').map(mark).collect();
        parts.dedup_by(|a, b| a == "**" && b == "**");
        let mut folders = parts.iter().enumerate().filter(|(_, part)| *part == "**").map(|(index, _)| index);
        let (at, more) = (folders.next(), folders.next());
        let Some(at) = at else { return self.matcher.is_match(parts.join("/")) };
        if more.is_some() {
            return false;
        }
        // Any number of folders. With more of them than the glob has parts, one of its `**` takes them up, and then it
        // takes up any number more. At the end of a pattern `**` stands for at least one part.
        let least = usize::from(at + 1 == parts.len());
        (least..=self.slashes + 2).all(|count| {
            let mut parts = parts.clone();
            parts.splice(at..=at, std::iter::repeat_n(MARK.to_owned(), count));
            self.matcher.is_match(parts.join("/"))
        })
    }
}

/// The parts of a glob between its slashes; nothing if one of them may hold a slash itself.
fn parts(glob: &str) -> Option<Vec<Option<GlobMatcher>>> {
    let mut depth = 0_usize;
    for c in glob.chars() {
        match c {
            '\\' | '[' => return None,
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            '/' if depth > 0 => return None,
            _ => {}
        }
    }
    let part = |part: &str| match part {
        "**" => Some(None),
        part => Some(Some(passerelle_config::path_glob(part).ok()?.compile_matcher())),
    };
    glob.split('/').map(part).collect()
}

/// Whether a glob allows every path that another one does. Says no where it cannot tell.
pub(super) fn covers(wide: &str, narrow: &str) -> bool {
    passerelle_config::path_glob(wide).is_ok_and(|glob| {
        // A glob that is compared as a whole has no part that a listing would not have too.
        PathRule::new(&glob).allows(LISTING, narrow)
    })
}

/// One part of a pattern with all that varies, from the first to the last such character, as one mark.
fn mark(part: &str) -> String {
    match part.find(WILD) {
        Some(first) if part != "**" => {
            let rest = part.rfind(|c| WILD.contains(&c) || c == '}').map_or("", |last| &part[last + 1..]);
            format!("{}{MARK}{rest}", &part[..first])
        }
        _ => part.to_owned(),
    }
}

/// Whether a path stays below the root as it is written. Connectors check the form first; this is the second lock.
fn is_plain(path: &str) -> bool {
    !path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == ".." || part == ".")
}

#[cfg(test)]
mod tests {
    use super::PathRule;
    use passerelle_config::path_glob;
    use proptest::prelude::*;

    fn allows(glob: &str, operation: &str, path: &str) -> bool {
        PathRule::new(&path_glob(glob).unwrap()).allows(operation, path)
    }

    #[test]
    fn a_listing_is_allowed_if_every_name_behind_its_pattern_is() {
        for (glob, pattern, allowed) in [
            ("**/*.csv", "*.csv", true),
            ("**/*.csv", "2026/*.csv", true),
            ("**/*.csv", "2026/**/*.csv", true),
            ("**/*.csv", "2026/**/[ab]*.csv", true),
            ("**/*.csv", "2026/{a,b}.csv", true),
            ("**/*.csv", "2026/*", false),
            ("**/*.csv", "2026/{a.csv,b}", false),
            ("**/*.csv", "2026/a[.csv]", false),
            ("**", "*", true),
            ("**", "a/**/*", true),
            ("**", "**", true),
            ("*", "*", true),
            ("*", "**/*", false),
            ("a/**", "a/*", true),
            ("a/**", "a/**", true),
            ("a/**", "a/**/**", true),
            ("a/**", "*/*", false),
            ("a/*/x", "a/**/x", false),
            ("{a/x,a/*/x,a/*/*/x}", "a/**/x", false),
            ("{a/x,a/**/x}", "a/**/x", true),
            // The glob would match the pattern as text, and let names through that it does not match.
            ("[!s]*", "*", false),
            ("a?.csv", "a*.csv", false),
            ("[*]", "*", false),
            ("a\\*b", "a*b", false),
            ("?", "[a]", false),
            // Without anything that varies it is one name.
            ("[!s]*", "a", true),
            ("[!s]*", "s", false),
        ] {
            assert_eq!(allows(glob, "list", pattern), allowed, "glob {glob} on pattern {pattern}");
        }
        // A file may be named like a pattern.
        assert!(allows("[!s]*", "fetch", "*"));
    }

    #[test]
    fn a_glob_tells_below_which_folders_it_may_lead() {
        for (glob, folder, leads) in [
            ("**/*.csv", "", true),
            ("**/*.csv", "any/where", true),
            ("in/*.csv", "", true),
            ("in/*.csv", "in", true),
            ("in/*.csv", "in/deep", false),
            ("in/*.csv", "other", false),
            ("in/*.csv", "in.", false),
            ("in/*.csv", "..", false),
            ("*", "", true),
            ("*", "in", false),
            ("{a,b}/x*/**", "b/xy/z", true),
            ("{a,b}/x*/**", "c", false),
            // Not taken apart: rather no.
            ("{a/b,c}/*", "a", false),
            ("[ab]/*", "a", false),
        ] {
            let rule = PathRule::new(&path_glob(glob).unwrap());
            assert_eq!(rule.leads_below(folder), leads, "glob {glob} below {folder}");
        }
    }

    const NAMES: [&str; 7] = ["a", "b", "ab", "s", "as", "a.c", "*"];

    fn every_path() -> Vec<String> {
        let mut paths: Vec<String> = NAMES.map(str::to_owned).to_vec();
        let mut last = paths.clone();
        for _ in 0..3 {
            last = last
                .iter()
                .flat_map(|path| ["a", "s", "b", "a.c"].map(|name| format!("{path}/{name}")))
                .collect();
            paths.extend_from_slice(&last);
        }
        paths
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn no_listing_reveals_a_name_outside_its_rule(
            glob in "(\\*\\*/)?([as*]{1,2}|\\[!s\\]\\*|\\?|\\{a,s\\}|\\*\\.c)(/(\\*|a\\*|\\*\\*|[as]))?(/(\\*|\\*\\*))?",
            pattern in "([as]/|\\*/)?(\\*\\*/)?([as*]{1,2}|\\[!s\\]|\\?|\\{a,s\\}|\\*\\.c|\\*\\*)",
        ) {
            let rule = path_glob(&glob).unwrap().compile_matcher();
            let behind = path_glob(&pattern).unwrap().compile_matcher();
            if allows(&glob, "list", &pattern) {
                for path in every_path().iter().filter(|path| behind.is_match(path)) {
                    prop_assert!(rule.is_match(path), "{path}");
                }
            }
        }
    }
}
