//! Dolibarr's `sqlfilters`: `(t.column:operator:'value')`, joined by `and` and `or`.
//!
//! Dolibarr cuts such a filter up by colons and parentheses before it quotes the values. Versions before 19 cut a value at a
//! colon and then compare with 0, which in MySQL equals every text; a parenthesis breaks the filter; a quote ends a value. So
//! a value here holds only characters that no version takes for syntax. Any other character becomes `_`, which in `like`
//! stands for any one character, and who asks looks at the answers again ([`super::super::shape::matches`]).

use jiff::{Timestamp, tz::TimeZone};

/// A criterion, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter(String);

impl Filter {
    /// A column has this text, or one like it.
    pub(super) fn text(column: &str, value: &str) -> Self {
        let safe = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '.' | '@' | '+' | '/');
        if value.chars().all(safe) {
            return Self(format!("({}:=:'{value}')", checked(column)));
        }
        let value: String = value.chars().map(|c| if safe(c) { c } else { '_' }).collect();
        Self(format!("({}:like:'{value}')", checked(column)))
    }

    /// A column has this number.
    pub(super) fn number(column: &str, operator: Operator, value: i64) -> Self {
        Self(format!("({}:{}:{value})", checked(column), operator.as_str()))
    }

    /// A time, in the server's own zone.
    pub(super) fn time(column: &str, operator: Operator, at: Timestamp, offset_s: i64) -> Self {
        // Without separators, since a colon would cut it; MySQL, MariaDB and PostgreSQL all read it.
        let local = Timestamp::from_second(at.as_second() + offset_s).unwrap_or(at);
        let local = local.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%S").to_string();
        Self(format!("({}:{}:'{local}')", checked(column), operator.as_str()))
    }

    /// Nothing in a column.
    pub(super) fn empty(column: &str) -> Self {
        Self(format!("({}:is:NULL)", checked(column)))
    }

    /// All of these; `None` of nothing.
    pub(super) fn all(filters: Vec<Self>) -> Option<Self> {
        let parts: Vec<String> = filters.into_iter().map(|filter| filter.0).collect();
        (!parts.is_empty()).then(|| Self(parts.join(" and ")))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A comparison.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operator {
    Is,
    AtLeast,
}

impl Operator {
    fn as_str(self) -> &'static str {
        match self {
            Self::Is => "=",
            Self::AtLeast => ">=",
        }
    }
}

/// A column's name comes from the configuration; whatever is no part of a name goes all the same.
fn checked(column: &str) -> String {
    column.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).collect()
}

#[cfg(test)]
mod tests {
    use super::{Filter, Operator};

    #[test]
    fn no_value_reaches_the_syntax() {
        for (value, filter) in [
            ("EXT-1", "(t.ref_ext:=:'EXT-1')"),
            ("a b@c.org", "(t.ref_ext:=:'a b@c.org')"),
            ("Zoé", "(t.ref_ext:=:'Zoé')"),
            ("a:b", "(t.ref_ext:like:'a_b')"),
            ("O'Brien", "(t.ref_ext:like:'O_Brien')"),
            ("x') or (1:=:1", "(t.ref_ext:like:'x__ or _1___1')"),
            ("100%_", "(t.ref_ext:like:'100__')"),
            ("\\'", "(t.ref_ext:like:'__')"),
            ("__NOW__", "(t.ref_ext:like:'__NOW__')"),
        ] {
            let made = Filter::text("t.ref_ext", value);
            assert_eq!(made.as_str(), filter);
            assert_eq!(made.as_str().matches(['(', ')', ':']).count(), 4, "{value}");
            assert_eq!(made.as_str().matches('\'').count(), 2, "{value}");
        }
        assert_eq!(Filter::text("t.x) or (1", "a").as_str(), "(t.xor1:=:'a')");
    }

    #[test]
    fn times_are_in_the_servers_zone_and_hold_no_colon() {
        let at = "2026-11-21T23:30:00Z".parse().unwrap();
        let filter = Filter::time("t.tms", Operator::AtLeast, at, 3600);
        assert_eq!(filter.as_str(), "(t.tms:>=:'20261122T003000')");
        let both = Filter::all(vec![filter, Filter::number("t.rowid", Operator::Is, 7)]).unwrap();
        assert_eq!(both.as_str(), "(t.tms:>=:'20261122T003000') and (t.rowid:=:7)");
        assert_eq!(Filter::all(Vec::new()), None);
    }
}
