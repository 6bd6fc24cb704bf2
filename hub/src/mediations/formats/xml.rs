//! Records as XML: well-formed whatever they hold.

use super::{Error, Record};
use serde_json::Value;

/// How deep objects and lists may stand in each other.
const DEPTH: usize = 16;

/// Whether a name can be an element's.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn element(name: &str) -> Result<(), String> {
    let first = |c: char| c.is_alphabetic() || c == '_';
    let rest = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    let mut chars = name.chars();
    if !chars.next().is_some_and(first) || !chars.all(rest) || name.to_ascii_lowercase().starts_with("xml") {
        return Err(format!(
            "{name:?} cannot name an XML element: begin with a letter, and take letters, digits, _, - and ."
        ));
    }
    Ok(())
}

/// Escaped for an element or a quoted attribute; `None` for characters that XML 1.0 (§2.2) does not have.
pub(crate) fn escape(text: &str) -> Option<String> {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' => escaped.push_str("&#9;"),
            '\n' => escaped.push_str("&#10;"),
            '\r' => escaped.push_str("&#13;"),
            '\u{fffe}' | '\u{ffff}' => return None,
            c if u32::from(c) < 0x20 => return None,
            c => escaped.push(c),
        }
    }
    Some(escaped)
}

/// One record as an element.
///
/// # Errors
/// A field whose name or content XML cannot hold.
pub(crate) fn record(out: &mut String, name: &str, record: &Record) -> Result<(), Error> {
    out.push('<');
    out.push_str(name);
    out.push('>');
    for (field, value) in &record.0 {
        write(out, field, value, DEPTH).map_err(|error| error.at(field))?;
    }
    out.push_str("</");
    out.push_str(name);
    out.push('>');
    Ok(())
}

fn write(out: &mut String, name: &str, value: &Value, depth: usize) -> Result<(), Error> {
    element(name).map_err(Error::Data)?;
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::data(format!("lists and objects stand in each other more than {DEPTH} deep")));
    };
    // A list is its element again and again.
    if let Value::Array(items) = value {
        return items.iter().try_for_each(|item| write(out, name, item, depth));
    }
    let mut inner = String::new();
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            fields.iter().try_for_each(|(name, value)| write(&mut inner, name, value, depth))?;
        }
        Value::String(text) => {
            inner = escape(text).ok_or_else(|| {
                Error::data("holds a control character, which XML does not know; take it out before")
            })?;
        }
        Value::Array(_) | Value::Bool(_) | Value::Number(_) => inner = value.to_string(),
    }
    if inner.is_empty() {
        out.push_str(&format!("<{name}/>"));
    } else {
        out.push_str(&format!("<{name}>{inner}</{name}>"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{element, record};
    use crate::mediations::formats::Record;
    use serde_json::json;

    fn written(fields: &[(&str, serde_json::Value)]) -> Result<String, String> {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut out = String::new();
        record(&mut out, "Article", &Record(fields)).map_err(|e| e.to_string())?;
        Ok(out)
    }

    #[test]
    fn whatever_a_record_holds_the_text_is_well_formed() {
        let text = written(&[
            ("Nom", json!("<b>&\"L'Écume\"</b>\r\n]]>")),
            ("Stock", json!(5)),
            ("Tags", json!(["a", { "x": null }])),
            ("Vide", json!("")),
        ])
        .unwrap();
        assert_eq!(
            text,
            "<Article><Nom>&lt;b&gt;&amp;&quot;L&#39;Écume&quot;&lt;/b&gt;&#13;&#10;]]&gt;</Nom><Stock>5</Stock>\
             <Tags>a</Tags><Tags><x/></Tags><Vide/></Article>"
        );
        let parsed: Vec<_> = {
            let mut reader = quick_xml::Reader::from_str(&text);
            std::iter::from_fn(|| match reader.read_event().unwrap() {
                quick_xml::events::Event::Eof => None,
                event => Some(event.into_owned()),
            })
            .collect()
        };
        assert!(parsed.len() > 10);
    }

    #[test]
    fn what_xml_cannot_hold_is_named_by_its_field() {
        assert!(written(&[("Nom", json!("a\u{1}b"))]).unwrap_err().starts_with("Nom: "));
        assert!(written(&[("Prix HT", json!(1))]).unwrap_err().contains("cannot name"));
        let mut deep = json!(1);
        for _ in 0..20 {
            deep = json!({ "a": deep });
        }
        assert!(written(&[("Nom", deep)]).unwrap_err().contains("deep"));
        for name in ["", "1a", "a b", "a:b", "xmlns", "a>b", "-a"] {
            assert!(element(name).is_err(), "{name:?}");
        }
    }
}
