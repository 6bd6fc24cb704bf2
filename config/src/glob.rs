//! Path globs of allow rules: one place for what they mean, for the loader and for the policy.

use globset::{Glob, GlobBuilder};

/// The longest glob: its automaton grows with it.
const MAX_GLOB: usize = 1024;

/// Reads a path glob: `*` and `?` do not cross `/`, `**/` matches zero or more folders, `{a,b}` alternatives, `[a-z]`
/// classes, case-sensitive; dot-files are like others. A backslash takes the next character literally. `?` and classes
/// stand for one byte: letters beyond ASCII are matched by `*` or by themselves.
///
/// # Errors
/// If it is no glob, or one that could never match a path below the resource's root.
pub fn path_glob(pattern: &str) -> Result<Glob, String> {
    if pattern.is_empty() {
        return Err("empty; write a glob such as \"**/*.csv\", or \"**\" for everything".to_owned());
    }
    if pattern.len() > MAX_GLOB {
        return Err(format!("longer than {MAX_GLOB} bytes; split it into several globs"));
    }
    if pattern.starts_with('/') {
        return Err(
            "never matches: paths are relative to the resource's root; leave the leading '/' out".to_owned()
        );
    }
    if pattern.contains('\0') || pattern.split('/').any(|part| part == ".." || part == ".") {
        return Err("never matches: paths have no '.' or '..' parts and no NUL".to_owned());
    }
    if has_wide_class(pattern) {
        return Err("letters beyond ASCII don't work between '[' and ']'; write alternatives such as {é,è}"
            .to_owned());
    }
    GlobBuilder::new(pattern)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|error| format!("not a glob: {}", error.kind()))
}

/// Whether a class holds a character of several bytes, of which it would match each one alone.
fn has_wide_class(pattern: &str) -> bool {
    let mut in_class = false;
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '[' => in_class = true,
            ']' => in_class = false,
            c if in_class && !c.is_ascii() => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::path_glob;

    #[test]
    fn globs_mean_what_the_contract_says() {
        let cases: &[(&str, &str, bool)] = &[
            ("**/*.csv", "a.csv", true),
            ("**/*.csv", "x/y/a.csv", true),
            ("*.csv", "x/a.csv", false),
            ("*.csv", ".a.csv", true),
            ("*.csv", "A.CSV", false),
            ("*", "a\nb", true),
            ("*", "été.txt", true),
            ("?.txt", "a.txt", true),
            ("?.txt", "é.txt", false),
            ("{é,è}*", "été", true),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/b", "a/b", true),
            ("**", "a/b/.c", true),
            ("orders/*/validated", "orders/17/validated", true),
            ("orders/*/validated", "orders/17/18/validated", false),
            ("{in,out}/*", "out/x", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
        ];
        for (pattern, path, matches) in cases {
            let matcher = path_glob(pattern).unwrap().compile_matcher();
            assert_eq!(matcher.is_match(path), *matches, "{pattern:?} on {path:?}");
        }
    }

    #[test]
    fn globs_that_never_match_are_refused() {
        for bad in ["", "/a", "a/../b", "..", "./a", "a\0", "[", "{a", "a[z-a]", "[é]", &"x".repeat(1025)] {
            assert!(path_glob(bad).is_err(), "{bad:?}");
        }
    }
}
