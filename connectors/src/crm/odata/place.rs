//! Where records are: entity sets, keys, queries, and the cursors of their pages.

use super::literal::in_path;
use crate::crm::{
    error::{CrmError, Problem},
    exchange::Exchange,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::collections::BTreeSet;
use uuid::Uuid;

/// What stands as it is in a query option's value. A space is `%20`: not every service takes `+` for one.
const VALUE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b',').remove(b'*');
/// The longest cursor of a search.
const MAX_CURSOR: usize = 1000;

/// An entity set, written `contacts(contactid)`, or `Partners('Code')` where the id is a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The set.
    pub(super) set: String,
    /// The property that is the id.
    pub(super) id: String,
    /// Ids are texts.
    pub(super) text: bool,
}

impl Place {
    pub(super) fn parse(target: &str) -> Option<Self> {
        let (set, id) = target.trim().strip_suffix(')')?.split_once('(')?;
        let quoted = id.strip_prefix('\'').and_then(|id| id.strip_suffix('\''));
        let id = quoted.unwrap_or(id);
        (is_name(set) && is_name(id)).then(|| Self {
            set: set.to_owned(),
            id: id.to_owned(),
            text: quoted.is_some(),
        })
    }

    /// The path of a record; `None` if nothing can have this id.
    pub(super) fn of(&self, id: &str) -> Option<String> {
        let literal = if self.text {
            format!("'{}'", id.replace('\'', "''"))
        } else if let Ok(id) = id.parse::<Uuid>() {
            id.to_string()
        } else {
            id.parse::<i64>().ok()?.to_string()
        };
        Some(format!("{}({})", self.set, in_path(&literal)))
    }

    /// The path of the record of an alternate key.
    pub(super) fn by(&self, property: &str, literal: &str) -> String {
        format!("{}({property}={})", self.set, in_path(literal))
    }
}

/// Whether this is a name of OData's.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// A query of these options.
pub(super) fn query(path: &str, options: &[(&str, String)]) -> String {
    let options: Vec<String> =
        options.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, VALUE))).collect();
    if options.is_empty() {
        return path.to_owned();
    }
    let joint = if path.contains('?') { '&' } else { '?' };
    format!("{path}{joint}{}", options.join("&"))
}

/// The id in a link to a record, or the id as it stands.
pub(super) fn id_of(link: &str) -> Option<String> {
    let id = match link.rsplit_once('(') {
        Some((_, rest)) => rest.strip_suffix(')')?,
        None => link,
    };
    let id = percent_decode_str(id).decode_utf8().ok()?;
    let quoted = id.strip_prefix('\'').and_then(|id| id.strip_suffix('\''));
    let id = quoted.map_or_else(|| id.to_string(), |id| id.replace("''", "'"));
    (!id.is_empty() && id.len() <= 256).then_some(id)
}

/// A page of a search: which link, and how many of its records were given out already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    /// Relative to the resource's url.
    pub(super) link: String,
    pub(super) skip: usize,
}

impl Turn {
    /// Of a cursor, and the query that the search began with.
    pub(super) fn read(cursor: Option<&str>, first: &str) -> Result<Self, CrmError> {
        let Some(cursor) = cursor else { return Ok(Self { link: first.to_owned(), skip: 0 }) };
        let foreign = || CrmError::new(Problem::Unsupported).reason("the cursor is none of this search");
        let (skip, link) = cursor.split_once('|').ok_or_else(foreign)?;
        let skip = skip.parse().map_err(|_| foreign())?;
        let link = match link.strip_prefix('+') {
            Some("") => first.to_owned(),
            Some(more) => format!("{first}&{more}"),
            None => link.to_owned(),
        };
        Ok(Self { link, skip })
    }

    /// As a cursor. A service's link repeats the query: where that is too long, only what it added is kept.
    pub(super) fn cursor(&self, first: &str) -> Result<String, CrmError> {
        let link = if self.link == first {
            "+".to_owned()
        } else if self.link.len() < MAX_CURSOR - 10 {
            self.link.clone()
        } else {
            format!("+{}", added(&self.link, first).join("&"))
        };
        let cursor = format!("{}|{link}", self.skip);
        if cursor.len() > MAX_CURSOR {
            return Err(CrmError::new(Problem::Unsupported)
                .reason("its link to the next page is longer than 1000 characters"));
        }
        Ok(cursor)
    }
}

fn added<'a>(link: &'a str, first: &str) -> Vec<&'a str> {
    let options = |link: &'a str| link.split_once('?').map_or("", |(_, query)| query).split('&');
    let plain = |option: &str| percent_decode_str(option).decode_utf8_lossy().into_owned();
    let ours: BTreeSet<String> =
        first.split_once('?').map_or("", |(_, query)| query).split('&').map(plain).collect();
    options(link).filter(|option| !ours.contains(&plain(option))).collect()
}

/// A link of the service, relative to the resource's url.
pub(super) fn relative(exchange: &Exchange, link: &str) -> Result<String, CrmError> {
    let url = exchange.link(link)?;
    exchange.relative(&url).ok_or_else(|| {
        CrmError::new(Problem::Protocol).reason("a link of the target leads away from the resource's url")
    })
}

#[cfg(test)]
mod tests {
    use super::{Place, Turn, id_of, query};

    #[test]
    fn a_record_has_a_path_and_nothing_else_gets_into_it() {
        let contacts = Place::parse("contacts(contactid)").unwrap();
        let id = "5236125b-1930-446b-adef-1fdcd94d6edf";
        assert_eq!(contacts.of(id).unwrap(), format!("contacts({id})"));
        assert_eq!(contacts.of("7").unwrap(), "contacts(7)");
        for other in ["", "x", "1)/accounts(2", "'7'"] {
            assert_eq!(contacts.of(other), None, "{other}");
        }
        let partners = Place::parse("Partners('Code')").unwrap();
        assert_eq!(partners.of("a')/x('b").unwrap(), "Partners('a%27%27%29%2Fx%28%27%27b')");
        for no in ["contacts", "contacts()", "(id)", "a/b(id)", "contacts(id)x", "contacts('id)"] {
            assert_eq!(Place::parse(no), None, "{no}");
        }
    }

    #[test]
    fn ids_are_found_in_links() {
        for (link, id) in [
            (
                "https://crm/api/contacts(5236125b-1930-446b-adef-1fdcd94d6edf)",
                "5236125b-1930-446b-adef-1fdcd94d6edf",
            ),
            ("Partners('O''Neil%2F')", "O'Neil/"),
            ("5236125b-1930-446b-adef-1fdcd94d6edf", "5236125b-1930-446b-adef-1fdcd94d6edf"),
        ] {
            assert_eq!(id_of(link).as_deref(), Some(id));
        }
        assert_eq!(id_of("contacts("), None);
    }

    #[test]
    fn a_long_link_is_kept_by_what_it_added() {
        let first = query("contacts", &[("$select", "a".repeat(1000)), ("$filter", "x eq 'a b'".to_owned())]);
        let next = Turn { link: format!("{first}&$skiptoken=%3Ccookie%20page%3D%222%22%3E"), skip: 0 };
        let cursor = next.cursor(&first).unwrap();
        assert!(cursor.len() < 100, "{cursor}");
        assert_eq!(Turn::read(Some(&cursor), &first).unwrap(), next);
        let begun = Turn { link: first.clone(), skip: 3 };
        assert_eq!(Turn::read(Some(&begun.cursor(&first).unwrap()), &first).unwrap(), begun);
        assert!(Turn::read(Some("x"), &first).is_err());
        let endless = Turn { link: format!("{first}&$skiptoken={}", "x".repeat(2000)), skip: 0 };
        assert!(endless.cursor(&first).is_err());
    }
}
