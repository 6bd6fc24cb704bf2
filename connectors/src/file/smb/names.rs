//! Names as SMB carries them.
//!
//! A server keeps to Windows' rules or bends what breaks them into other names (Samba mangles, Windows drops dots and
//! spaces at the end, `CON` is a device), so that a file would lie elsewhere than said. Such names are refused before.

use crate::file::backend::{FsError, Problem};

/// The longest name, in UTF-16 units.
const MAX_NAME: usize = 255;
/// What no name may hold, beside control characters.
const FORBIDDEN: &[char] = &['\\', ':', '*', '?', '"', '<', '>', '|', '/'];
/// Devices of Windows, whatever extension follows.
const DEVICES: &[&str] = &["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];
/// Devices that are numbered.
const NUMBERED: &[&str] = &["COM", "LPT"];

/// A path below the share's root in the form of the protocol: `folder\name`.
pub(super) fn wire(root: &str, path: &str) -> Result<String, FsError> {
    let mut whole = root.to_owned();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        check(name)?;
        if !whole.is_empty() {
            whole.push('\\');
        }
        whole.push_str(name);
    }
    Ok(whole)
}

/// Whether a name reaches the server and stays the same there.
pub(super) fn check(name: &str) -> Result<(), FsError> {
    if name.encode_utf16().count() > MAX_NAME {
        return Err(FsError::new(Problem::NameTooLong, format!("{name:?} has more than {MAX_NAME} units")));
    }
    let holds_forbidden = name.chars().any(|c| FORBIDDEN.contains(&c) || c.is_control());
    if holds_forbidden || name.ends_with(['.', ' ']) || is_device(name) {
        return Err(FsError::new(Problem::BadShareName, format!("{name:?} is no name on a file share")));
    }
    Ok(())
}

fn is_device(name: &str) -> bool {
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem).trim_end_matches(' ').to_uppercase();
    let is_numbered = |kind: &&str| {
        let mut number = stem.strip_prefix(*kind).unwrap_or_default().chars();
        // Superscript digits count as digits there.
        number.next().is_some_and(|digit| "123456789¹²³".contains(digit)) && number.next().is_none()
    };
    DEVICES.contains(&stem.as_str()) || NUMBERED.iter().any(is_numbered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_would_bend_is_refused() {
        for name in [
            "a\\b",
            "a:b",
            "a*",
            "a?",
            "\"a\"",
            "<a>",
            "a|b",
            "line\nend",
            "\u{1f}",
            "a.",
            "a ",
            "...",
            "CON",
            "con",
            "nul.txt",
            "Com1",
            "lpt9.csv",
            "COM¹",
            "aux .csv",
        ] {
            let error = wire("", name).unwrap_err();
            assert_eq!(error.problem, Problem::BadShareName, "{name:?}");
        }
        let long = "x".repeat(256);
        assert_eq!(wire("", &long).unwrap_err().problem, Problem::NameTooLong);
        // Two units each, although within 255 characters.
        assert_eq!(wire("", &"𝄞".repeat(128)).unwrap_err().problem, Problem::NameTooLong);
    }

    #[test]
    fn other_names_pass() {
        for name in
            ["a b.csv", " a", ".hidden", "é日本語", "COM10", "COM", "console", "a[1].csv", "it's", "~$x"]
        {
            assert_eq!(wire("", name).unwrap(), name);
        }
        assert_eq!(wire("exports\\fec", "2026/10/a.csv").unwrap(), "exports\\fec\\2026\\10\\a.csv");
        assert_eq!(wire("exports", "").unwrap(), "exports");
        assert_eq!(wire("", &"𝄞".repeat(127)).unwrap().encode_utf16().count(), 254);
    }
}
