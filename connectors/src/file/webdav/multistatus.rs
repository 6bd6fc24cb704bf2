//! Reads a server's `207 Multi-Status` (RFC 4918 §13) as a stream, however long it is, in bounded memory.
//!
//! What a server sends is not trusted: there are no entities but XML's own, document types are refused, and depth, the
//! length of one piece and of the whole are limited.

use crate::{
    file::backend::{FsError, Problem},
    http::answer::http_date,
};
use jiff::Timestamp;
use quick_xml::{
    NsReader,
    events::{BytesStart, Event},
    name::{Namespace, ResolveResult},
};
use std::io::{self, BufReader, Read};

/// How deep elements may be nested; an honest answer has six levels.
const MAX_DEPTH: usize = 32;
/// The longest text, tag or comment.
const MAX_PIECE: usize = 256 * 1024;
/// The longest answer: over half a million items.
const MAX_ANSWER: u64 = 256 * 1024 * 1024;
/// How much is asked of the connection at once.
const BUFFER: usize = 16 * 1024;

/// One `response` of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Item {
    /// As the server wrote it, still percent-encoded.
    pub(super) href: String,
    /// The status of the whole item, where the server gives one.
    pub(super) status: Option<u16>,
    /// Whether it is a collection.
    pub(super) collection: bool,
    pub(super) size: Option<u64>,
    pub(super) modified: Option<Timestamp>,
    pub(super) etag: Option<String>,
}

/// The element whose text is being collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Href,
    Status,
    Size,
    Modified,
    Etag,
}

/// Gives each item to `each`.
///
/// # Errors
/// [`Problem::Protocol`] if it is no such answer or beyond the limits; those of `each`; those that `source` carries.
pub(super) fn read(
    source: impl Read,
    mut each: impl FnMut(Item) -> Result<(), FsError>,
) -> Result<(), FsError> {
    let mut reader =
        NsReader::from_reader(BufReader::with_capacity(BUFFER, Limited { source, piece: 0, whole: 0 }));
    let config = reader.config_mut();
    config.expand_empty_elements = true;
    config.check_end_names = true;
    let mut buffer = Vec::new();
    let mut state = State::default();
    loop {
        buffer.clear();
        reader.get_mut().get_mut().piece = 0;
        let (namespace, event) =
            reader.read_resolved_event_into(&mut buffer).map_err(|error| from_xml(&error))?;
        let dav = matches!(namespace, ResolveResult::Bound(Namespace(b"DAV:")));
        match event {
            Event::Start(start) => state.open(dav, &start)?,
            // Empty elements come as a start and an end.
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::End(_) => {
                if let Some(item) = state.close()? {
                    each(item)?;
                }
            }
            Event::Text(text) => state.text(&text.decode().map_err(wrong)?)?,
            Event::CData(text) => state.text(&text.decode().map_err(wrong)?)?,
            Event::GeneralRef(reference) => {
                let resolved = match reference.resolve_char_ref().map_err(wrong)? {
                    Some(character) => character.to_string(),
                    None => own_entity(&reference)?.to_owned(),
                };
                state.text(&resolved)?;
            }
            Event::DocType(_) => return Err(wrong("it has a document type, which is refused")),
            Event::Eof => return state.finish(),
        }
    }
}

/// XML's own five; a server cannot define others, since document types are refused.
fn own_entity(name: &[u8]) -> Result<&'static str, FsError> {
    match name {
        b"amp" => Ok("&"),
        b"lt" => Ok("<"),
        b"gt" => Ok(">"),
        b"quot" => Ok("\""),
        b"apos" => Ok("'"),
        _ => Err(wrong("it has an entity that XML does not know")),
    }
}

/// Where in the answer the reader stands.
#[derive(Debug, Default)]
struct State {
    /// The open elements: the local names of those in the namespace `DAV:`, nothing for others.
    path: Vec<Vec<u8>>,
    item: Item,
    /// The properties of one `propstat`, which count only if its status is 200.
    found: Item,
    field: Option<Field>,
    text: String,
    /// A size of this `propstat`, and of this item, that is none.
    found_no_size: bool,
    no_size: bool,
    seen: bool,
}

impl State {
    fn open(&mut self, dav: bool, start: &BytesStart<'_>) -> Result<(), FsError> {
        if self.path.len() >= MAX_DEPTH {
            return Err(wrong("its elements are nested too deeply"));
        }
        let name = if dav { start.local_name().as_ref().to_vec() } else { Vec::new() };
        self.path.push(name);
        self.field = None;
        self.text.clear();
        match self.names().as_slice() {
            [b"multistatus"] => self.seen = true,
            [_, b"response"] => (self.item, self.no_size) = (Item::default(), false),
            [_, b"response", b"propstat"] => (self.found, self.found_no_size) = (Item::default(), false),
            // The first one counts: a status may name several.
            [_, b"response", b"href"] if self.item.href.is_empty() => self.field = Some(Field::Href),
            [_, b"response", b"status"] | [_, b"response", b"propstat", b"status"] => {
                self.field = Some(Field::Status);
            }
            [.., b"propstat", b"prop", b"getcontentlength"] => self.field = Some(Field::Size),
            [.., b"propstat", b"prop", b"getlastmodified"] => self.field = Some(Field::Modified),
            [.., b"propstat", b"prop", b"getetag"] => self.field = Some(Field::Etag),
            [.., b"propstat", b"prop", b"resourcetype", b"collection"] => self.found.collection = true,
            [root] if root != b"multistatus" => return Err(wrong("it is no multistatus")),
            _ => {}
        }
        Ok(())
    }

    fn names(&self) -> Vec<&[u8]> {
        self.path.iter().map(Vec::as_slice).collect()
    }

    fn text(&mut self, text: &str) -> Result<(), FsError> {
        if self.field.is_some() {
            if self.text.len() + text.len() > MAX_PIECE {
                return Err(wrong("a value in it is too long"));
            }
            self.text.push_str(text);
        }
        Ok(())
    }

    /// Takes in what the closing element held: an item, when it was the item's own.
    ///
    /// # Errors
    /// If it is a file whose size is no number, or beyond all: as nothing it would pass for an empty one.
    fn close(&mut self) -> Result<Option<Item>, FsError> {
        let text = self.text.trim();
        match self.field.take() {
            Some(Field::Href) => self.item.href = text.to_owned(),
            Some(Field::Size) => {
                self.found.size = text.parse().ok();
                // Servers that do not have it may name it all the same.
                self.found_no_size = self.found.size.is_none() && !text.is_empty();
            }
            Some(Field::Modified) => {
                self.found.modified = http_date(text);
            }
            Some(Field::Etag) => self.found.etag = Some(text.to_owned()).filter(|etag| !etag.is_empty()),
            Some(Field::Status) => {
                let status = text.split_ascii_whitespace().nth(1).and_then(|code| code.parse().ok());
                match self.path.len() {
                    3 => self.item.status = status,
                    _ => self.found.status = status,
                }
            }
            None => {}
        }
        let closed = self.path.pop().unwrap_or_default();
        match (self.path.len(), closed.as_slice()) {
            (1, b"response") => {
                let item = std::mem::take(&mut self.item);
                if self.no_size && !item.collection {
                    return Err(wrong(format!("the size of {} is no number of bytes", item.href)));
                }
                return Ok(Some(item));
            }
            (2, b"propstat") if self.found.status == Some(200) => {
                let Item { collection, size, modified, etag, .. } = std::mem::take(&mut self.found);
                self.no_size |= self.found_no_size;
                self.item.collection |= collection;
                self.item.size = size.or(self.item.size);
                self.item.modified = modified.or(self.item.modified);
                self.item.etag = etag.or(self.item.etag.take());
            }
            _ => {}
        }
        Ok(None)
    }

    fn finish(self) -> Result<(), FsError> {
        match (self.seen, self.path.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => Err(wrong("it ends in the middle")),
            (false, _) => Err(wrong("it is no multistatus")),
        }
    }
}

fn wrong(what: impl std::fmt::Display) -> FsError {
    FsError::new(Problem::Protocol, format!("the server's multistatus cannot be used: {what}"))
}

fn from_xml(error: &quick_xml::Error) -> FsError {
    if let quick_xml::Error::Io(io) = error
        && let Some(carried) = io.get_ref().and_then(|inner| inner.downcast_ref::<FsError>())
    {
        return FsError::new(carried.problem, &carried.detail);
    }
    wrong(error)
}

/// A source that gives no more than the limits allow.
struct Limited<R> {
    source: R,
    /// Read since the last event.
    piece: usize,
    whole: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece > MAX_PIECE || self.whole > MAX_ANSWER {
            return Err(io::Error::other(wrong("it is too long")));
        }
        let n = self.source.read(buffer)?;
        self.piece += n;
        self.whole += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items(text: &str) -> Result<Vec<Item>, FsError> {
        let mut found = Vec::new();
        read(text.as_bytes(), |item| {
            found.push(item);
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn answers_of_nginx_and_apache_are_read() {
        let nginx = r#"<?xml version="1.0" encoding="utf-8" ?>
<D:multistatus xmlns:D="DAV:">
<D:response><D:href>/in/a%20b.csv</D:href><D:propstat><D:prop>
<D:getcontentlength>7</D:getcontentlength>
<D:getlastmodified>Mon, 26 Oct 2026 07:33:20 GMT</D:getlastmodified>
<D:resourcetype></D:resourcetype>
<D:getetag>"6abc-7"</D:getetag></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>
<D:response><D:href>/in/</D:href><D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>"#;
        let expected = [
            Item {
                href: "/in/a%20b.csv".to_owned(),
                size: Some(7),
                modified: Some("2026-10-26T07:33:20Z".parse().unwrap()),
                etag: Some("\"6abc-7\"".to_owned()),
                ..Item::default()
            },
            Item { href: "/in/".to_owned(), collection: true, ..Item::default() },
        ];
        assert_eq!(items(nginx).unwrap(), expected);
        // Another prefix, another order, a property that is not there, and text in pieces.
        let apache = r#"<multistatus xmlns="DAV:" xmlns:ns0="DAV:" xmlns:lp1="urn:x">
<response><href>/a&amp;b&#233;<![CDATA[<]]></href>
<propstat><prop><ns0:getcontentlength>12</ns0:getcontentlength><lp1:getetag>"no"</lp1:getetag></prop>
<status>HTTP/1.1 200 OK</status></propstat>
<propstat><prop><ns0:getlastmodified/></prop><status>HTTP/1.1 404 Not Found</status></propstat></response>
<response><href>/locked</href><status>HTTP/1.1 423 Locked</status></response></multistatus>"#;
        let found = items(apache).unwrap();
        assert_eq!((found[0].href.as_str(), found[0].size, &found[0].etag), ("/a&bé<", Some(12), &None));
        assert_eq!((found[1].href.as_str(), found[1].status), ("/locked", Some(423)));
    }

    #[test]
    fn properties_of_a_failed_propstat_do_not_count() {
        let text = r#"<multistatus xmlns="DAV:"><response><href>/a</href><propstat>
<prop><resourcetype><collection/></resourcetype><getcontentlength>9</getcontentlength></prop>
<status>HTTP/1.1 403 Forbidden</status></propstat></response></multistatus>"#;
        let found = items(text).unwrap();
        assert_eq!(found, [Item { href: "/a".to_owned(), ..Item::default() }]);
    }

    #[test]
    fn a_size_that_is_none_is_not_taken_for_nothing() {
        let item = |kind: &str, size: &str, status: &str| {
            items(&format!(
                "<multistatus xmlns=\"DAV:\"><response><href>/a</href><propstat><prop><resourcetype>{kind}</resourcetype>\
                 <getcontentlength>{size}</getcontentlength></prop><status>HTTP/1.1 {status}</status></propstat></response>\
                 </multistatus>"
            ))
        };
        for size in ["-5", "18446744073709551616", "99999999999999999999999", "1.5", "many"] {
            let error = item("", size, "200 OK").unwrap_err();
            assert_eq!(error.problem, Problem::Protocol, "{size}");
            assert!(error.detail.contains("the size of /a"), "{}", error.detail);
            // Of a folder nobody asks it, and what the server does not have does not count.
            assert_eq!(item("<collection/>", size, "200 OK").unwrap()[0].size, None, "{size}");
            assert_eq!(item("", size, "404 Not Found").unwrap()[0].size, None, "{size}");
        }
        assert_eq!(item("", " 18446744073709551615 ", "200 OK").unwrap()[0].size, Some(u64::MAX));
        assert_eq!(item("", "", "200 OK").unwrap()[0].size, None);
    }

    #[test]
    fn hostile_answers_are_refused() {
        let bomb = r#"<?xml version="1.0"?><!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>
<multistatus xmlns="DAV:"><response><href>&b;</href></response></multistatus>"#;
        let deep = format!("<multistatus xmlns=\"DAV:\">{}", "<a>".repeat(100));
        let long = format!(
            "<multistatus xmlns=\"DAV:\"><response><href>{}</href></response></multistatus>",
            "x".repeat(2 * MAX_PIECE)
        );
        let entity = "<multistatus xmlns=\"DAV:\"><response><href>&x;</href></response></multistatus>";
        for (text, word) in [
            (bomb, "document type"),
            (deep.as_str(), "deeply"),
            (long.as_str(), "too long"),
            (entity, "entity"),
            ("<html><body>hello</body></html>", "no multistatus"),
            ("<multistatus xmlns=\"urn:other\"/>", "no multistatus"),
            ("<multistatus xmlns=\"DAV:\"><response>", "middle"),
            ("", "no multistatus"),
            ("plain text", "no multistatus"),
        ] {
            let error = items(text).unwrap_err();
            assert_eq!(error.problem, Problem::Protocol, "{word}");
            assert!(error.detail.contains(word), "{word}: {}", error.detail);
        }
        // One that never ends is given up, in constant memory.
        let endless = io::repeat(b' ').chain(io::empty());
        let error = read(endless, |_| Ok(())).unwrap_err();
        assert!(error.detail.contains("too long"), "{}", error.detail);
    }

    #[test]
    fn an_error_of_the_connection_keeps_its_meaning() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other(FsError::new(Problem::TimedOut, "silence")))
            }
        }
        assert_eq!(read(Broken, |_| Ok(())).unwrap_err().problem, Problem::TimedOut);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_answered(text in "(<|>|/|multistatus|response|href|D:|xmlns=\"DAV:\"| |&|;|x|!|\\[|\\]){0,60}") {
            drop(items(&text));
        }
    }
}
