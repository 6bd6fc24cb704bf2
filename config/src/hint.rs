//! What to say of a name that nobody knows: the nearest known one, if it looks like a slip, and all of them.

/// What to say of a key that is not among the known ones.
pub(crate) fn unknown_key(key: &str, known: &[&str]) -> String {
    let mut names = known.to_vec();
    names.sort_unstable();
    let hint = nearest(key, known).map_or_else(String::new, |name| format!("did you mean \"{name}\"? "));
    format!("unknown key; {hint}known keys: {}", names.join(", "))
}

/// What to say of a value that is not among the known ones; the value itself is not repeated.
pub(crate) fn unknown_value(value: &str, known: &[&str]) -> String {
    let hint = nearest(value, known).map_or_else(String::new, |name| format!("did you mean \"{name}\"? "));
    let names: Vec<_> = known.iter().map(|name| format!("\"{name}\"")).collect();
    format!("unknown value; {hint}expected one of {}", names.join(", "))
}

/// The known name that differs least, if it is near enough to be a slip.
fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let distance = |other: &str| edit_distance(&name.to_lowercase(), other);
    let best = known.iter().copied().min_by_key(|other| distance(other))?;
    let len = name.chars().count().max(best.len());
    (len < 64 && distance(best) <= (len / 3).max(1)).then_some(best)
}

/// Insertions, deletions and replacements that turn one text into the other.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::{edit_distance, nearest};

    #[test]
    fn a_slip_is_told_from_another_word() {
        let known = ["url", "username", "password", "known_hosts", "may"];
        for (name, expected) in [
            ("usernam", Some("username")),
            ("user_name", Some("username")),
            ("USERNAME", Some("username")),
            ("uri", Some("url")),
            ("known-host", Some("known_hosts")),
            ("passphrase", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, &known), expected, "{name}");
        }
        assert_eq!(nearest("x", &[]), None);
        assert_eq!(nearest(&"username".repeat(1000), &known), None);
        assert_eq!((edit_distance("", "abc"), edit_distance("kitten", "sitting")), (3, 3));
    }
}
