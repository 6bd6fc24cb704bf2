//! Places below a resource's root: the form of their paths, and the names this connector makes itself.

use crate::{Code, Failure};
use std::fmt;
use uuid::Uuid;

/// The longest name of a file or folder, in bytes: what Linux, NTFS and most servers take.
const MAX_NAME: usize = 255;
/// The longest path, in bytes.
const MAX_PATH: usize = 4096;
/// How the names begin that this connector keeps for itself.
const OWN_PREFIX: &str = ".passerelle-";
/// What an operator puts into a share, so that its bare mount point can be told from it (`require_marker`).
pub(super) const MARKER: &str = ".passerelle-share";
const OWN_SUFFIX: &str = ".part";
/// Of a file that was set aside to be deleted or moved.
const TAKEN_SUFFIX: &str = ".taken";

/// A file or folder below the root, checked for form: relative, `/` between names, no `.`, `..`, empty name or NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place(String);

impl Place {
    /// Checks the path of a job.
    pub(super) fn new(path: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| Err(Failure::denied(Code::PathInvalid, format!("the path {why}")));
        if path.is_empty() {
            return wrong("is empty");
        }
        if path.len() > MAX_PATH {
            return wrong("is longer than 4096 bytes");
        }
        if path.starts_with('/') {
            return wrong("begins with a slash: paths are relative to the resource's folder");
        }
        if path.contains('\0') {
            return wrong("holds a NUL character");
        }
        for name in path.split('/') {
            match name {
                "" => return wrong("has an empty name: two slashes in a row, or one at its end"),
                "." | ".." => return wrong("has a name `.` or `..`: it must lead straight down"),
                long if long.len() > MAX_NAME => return wrong("has a name of more than 255 bytes"),
                own if own.starts_with(OWN_PREFIX) => {
                    return wrong(
                        "has a name that begins with `.passerelle-`: those are kept for unfinished files",
                    );
                }
                _ => {}
            }
        }
        Ok(Self(path.to_owned()))
    }

    /// A place that this connector itself made up or was told by the target: never by a job or an intent.
    pub(super) fn own(path: String) -> Self {
        Self(path)
    }

    /// The whole path.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The folder it is in; the root is `""`.
    pub(super) fn folder(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// Its last name.
    pub(super) fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(self.0.as_str(), |(_, name)| name)
    }

    /// Another name in the same folder.
    fn beside(&self, name: &str) -> Self {
        Self(join(self.folder(), name))
    }

    /// Where an attempt writes before the file gets its name.
    pub(super) fn part(&self, job: Uuid, attempt: u32) -> Self {
        self.beside(&format!("{OWN_PREFIX}{job}-{attempt}{OWN_SUFFIX}"))
    }

    /// Where a picked-up file is before it goes.
    pub(super) fn aside(&self, id: Uuid) -> Self {
        self.beside(&format!("{OWN_PREFIX}{id}-taken{OWN_SUFFIX}"))
    }

    /// The part that an intent names, if an attempt of this job would have written it beside this place. An intent may
    /// come with the hub's word: it must not lead to any other file.
    pub(super) fn own_part(&self, job: Uuid, path: &str) -> Option<Self> {
        let number = path.strip_suffix(OWN_SUFFIX)?.rsplit('-').next()?.parse().ok()?;
        Some(self.part(job, number)).filter(|part| part.as_str() == path)
    }

    /// The name that an intent gives to what shall lie here, if it is one of the first `names` to try.
    pub(super) fn own_name(&self, path: &str, names: u32) -> Option<Self> {
        (1..=names).map(|n| self.nth(n)).find(|place| place.as_str() == path)
    }

    /// Where a job sets aside the file that it found here, whatever its attempt: a later one finds it again.
    pub(super) fn taken(&self, job: Uuid) -> Self {
        self.beside(&format!("{OWN_PREFIX}{job}{TAKEN_SUFFIX}"))
    }

    /// The `n`-th name to try for `on_conflict: "suffix"`: `report.csv`, `report (2).csv`, `report (3).csv`, …
    pub(super) fn nth(&self, n: u32) -> Self {
        if n < 2 {
            return self.clone();
        }
        let name = self.name();
        let (stem, extension) = match name.rfind('.') {
            Some(dot) if dot > 0 => name.split_at(dot),
            _ => (name, ""),
        };
        let suffix = format!(" ({n})");
        // A name that would grow too long gives way at the end of its stem, between two characters.
        let room = MAX_NAME.saturating_sub(suffix.len() + extension.len());
        let mut end = stem.len().min(room);
        while !stem.is_char_boundary(end) {
            end -= 1;
        }
        let (stem, _) = stem.split_at(end);
        self.beside(&format!("{stem}{suffix}{extension}"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a name is never shown in lists: that of an unfinished file, of one that was set aside for a moment, or the marker.
pub(super) fn is_hidden(name: &[u8]) -> bool {
    is_part(name)
        || name == MARKER.as_bytes()
        || name.starts_with(OWN_PREFIX.as_bytes()) && name.ends_with(TAKEN_SUFFIX.as_bytes())
}

/// `folder/name`, where the root is `""`.
pub(super) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// Whether a name is that of an unfinished file of ours, never shown in lists.
pub(super) fn is_part(name: &[u8]) -> bool {
    name.starts_with(OWN_PREFIX.as_bytes()) && name.ends_with(OWN_SUFFIX.as_bytes())
}

/// Whether a name is one that this connector keeps for itself.
pub(super) fn is_own(name: &[u8]) -> bool {
    name.starts_with(OWN_PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;
    use proptest::prelude::*;

    #[test]
    fn bad_forms_are_denied_with_the_reason() {
        let long_path = "a/".repeat(2048) + "b";
        let long_name = "a".repeat(256);
        for (path, word) in [
            ("", "empty"),
            ("/etc/passwd", "slash"),
            ("a//b", "empty name"),
            ("a/", "empty name"),
            ("../a", "`..`"),
            ("a/../b", "`..`"),
            ("a/./b", "`..`"),
            ("a\0b", "NUL"),
            (long_path.as_str(), "4096"),
            (long_name.as_str(), "255"),
            ("in/.passerelle-x.part", "kept"),
        ] {
            let failure = Place::new(path).unwrap_err();
            assert_eq!((failure.verdict, failure.code), (Verdict::Denied, Code::PathInvalid), "{path:?}");
            assert!(failure.message.contains(word), "{path:?}: {}", failure.message);
        }
    }

    #[test]
    fn odd_but_good_names_pass() {
        for path in ["a b", "é/ü", "it's \"x\"", "two\nlines", "..x", "x..", "...", "a\\b", &"a".repeat(255)]
        {
            assert_eq!(Place::new(path).unwrap().as_str(), path);
        }
    }

    #[test]
    fn suffixes_go_before_the_extension() {
        let nth = |path: &str, n| Place::new(path).unwrap().nth(n).to_string();
        assert_eq!(nth("in/report.csv", 1), "in/report.csv");
        assert_eq!(nth("in/report.csv", 2), "in/report (2).csv");
        assert_eq!(nth("report", 3), "report (3)");
        assert_eq!(nth(".profile", 2), ".profile (2)");
        assert_eq!(nth("a.tar.gz", 2), "a.tar (2).gz");
    }

    #[test]
    fn parts_lie_beside_their_target() {
        let part = Place::new("in/a.csv").unwrap().part(Uuid::nil(), 3);
        assert_eq!(part.as_str(), "in/.passerelle-00000000-0000-0000-0000-000000000000-3.part");
        assert!(is_part(part.name().as_bytes()));
        assert!(!is_part(b".passerelle-notes"));
    }

    #[test]
    fn what_is_set_aside_lies_beside_its_place_and_is_hidden_but_no_part() {
        let taken = Place::new("in/a.csv").unwrap().taken(Uuid::nil());
        assert_eq!(taken.as_str(), "in/.passerelle-00000000-0000-0000-0000-000000000000.taken");
        assert!(is_hidden(taken.name().as_bytes()) && !is_part(taken.name().as_bytes()));
        assert!(is_hidden(MARKER.as_bytes()) && is_own(MARKER.as_bytes()));
        assert!(!is_hidden(b".passerelle-notes") && !is_hidden(b"a.taken"));
    }

    proptest! {
        #[test]
        fn what_passes_never_climbs(path in "[a-z./\\\\\n ]{0,24}") {
            if let Ok(place) = Place::new(&path) {
                prop_assert!(!place.as_str().starts_with('/'));
                prop_assert!(place.as_str().split('/').all(|name| !matches!(name, "" | "." | "..")));
                prop_assert_eq!(join(place.folder(), place.name()), path);
            }
        }

        #[test]
        fn suffixed_names_stay_within_255_bytes(name in "[aé.]{1,140}", n in 2u32..2000) {
            if let Ok(place) = Place::new(&name) {
                let suffixed = place.nth(n);
                prop_assert!(suffixed.name().len() <= MAX_NAME);
                let mark = format!("({n})");
                prop_assert!(suffixed.name().contains(&mark));
            }
        }
    }
}
