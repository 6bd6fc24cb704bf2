//! Reads the XML of a store's answers: flat, small, and not trusted.
//!
//! There are no entities but XML's own, document types are refused, depth is limited; the caller bounds the length.

use crate::file::backend::{FsError, Problem};
use quick_xml::{Reader, events::Event};

/// How deep elements may be nested; an honest answer has four levels.
const MAX_DEPTH: usize = 12;

/// Calls `each` at the end of every element, with its names from the root on and its own text.
///
/// # Errors
/// [`Problem::Protocol`] if it is no XML that this reads; those of `each`.
pub(super) fn read(
    body: &[u8],
    mut each: impl FnMut(&[&str], &str) -> Result<(), FsError>,
) -> Result<(), FsError> {
    let mut reader = Reader::from_reader(body);
    let config = reader.config_mut();
    config.expand_empty_elements = true;
    config.check_end_names = true;
    let mut path: Vec<String> = Vec::new();
    let mut text = String::new();
    let mut buffer = Vec::new();
    let mut seen = false;
    loop {
        buffer.clear();
        match reader.read_event_into(&mut buffer).map_err(wrong)? {
            Event::Start(start) => {
                if path.len() >= MAX_DEPTH || (seen && path.is_empty()) {
                    return Err(wrong("its elements are nested wrongly"));
                }
                seen = true;
                path.push(String::from_utf8_lossy(start.local_name().as_ref()).into_owned());
                text.clear();
            }
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::End(_) => {
                let names: Vec<&str> = path.iter().map(String::as_str).collect();
                each(&names, &text)?;
                path.pop();
                text.clear();
            }
            Event::Text(piece) => text.push_str(&piece.decode().map_err(wrong)?),
            Event::CData(piece) => text.push_str(&piece.decode().map_err(wrong)?),
            Event::GeneralRef(reference) => match reference.resolve_char_ref().map_err(wrong)? {
                Some(character) => text.push(character),
                None => text.push_str(own_entity(&reference)?),
            },
            Event::DocType(_) => return Err(wrong("it has a document type, which is refused")),
            Event::Eof if seen && path.is_empty() => return Ok(()),
            Event::Eof => return Err(wrong("it ends in the middle")),
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

pub(super) fn wrong(what: impl std::fmt::Display) -> FsError {
    FsError::new(Problem::Protocol, format!("the object store's XML cannot be used: {what}"))
}

/// Text that may stand between two tags.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(body: &str) -> Result<Vec<(String, String)>, FsError> {
        let mut found = Vec::new();
        read(body.as_bytes(), |path, text| {
            found.push((path.join("/"), text.to_owned()));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn elements_are_told_with_their_text() {
        let body =
            "<?xml version=\"1.0\"?><Error xmlns=\"urn:x\"><Code>No&amp;Such&#75;ey</Code><Message/></Error>";
        let found = leaves(body).unwrap();
        assert_eq!(found[0], ("Error/Code".to_owned(), "No&SuchKey".to_owned()));
        assert_eq!(found[1], ("Error/Message".to_owned(), String::new()));
        assert_eq!(found[2].0, "Error");
    }

    #[test]
    fn what_is_no_honest_answer_is_refused() {
        let deep = "<a>".repeat(MAX_DEPTH + 1);
        for body in [
            "",
            "no xml",
            "<a>",
            "<a></b>",
            "<a/><b/>",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>",
            "<a>&b;</a>",
            &deep,
        ] {
            assert_eq!(leaves(body).unwrap_err().problem, Problem::Protocol, "{body}");
        }
    }

    #[test]
    fn what_is_escaped_is_read_as_it_was() {
        let text = "a&b<c>\"d\"";
        assert_eq!(leaves(&format!("<a>{}</a>", escape(text))).unwrap()[0].1, text);
    }
}
