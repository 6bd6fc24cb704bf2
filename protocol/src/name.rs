//! Names of tenants, sites, resources, connectors and operations.

use crate::limits::MAX_NAME;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A name: 1 to 64 of `a-z 0-9 . _ -`, starting with a letter or digit. Safe in paths, URLs, logs and labels.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is no [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit")]
pub struct NameError;

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = matches!(text.as_bytes(), [first, rest @ ..]
            if lower(*first) && rest.len() < MAX_NAME
                && rest.iter().all(|&b| lower(b) || matches!(b, b'.' | b'_' | b'-')));
        if valid { Ok(Self(text)) } else { Err(NameError) }
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::try_from(text.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn only_the_plain_alphabet_makes_a_name() {
        for good in ["a", "0", "compta", "orders-app", "a.b_c-9", &"x".repeat(64)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", ".", "-a", "_a", "A", "é", "a/b", "a b", "a\n", "..", &"x".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
