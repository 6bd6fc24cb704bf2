//! Templates of named requests (minijinja's language, limited): values fill places, and never break out of them.
//!
//! - A path takes a value inside one part: a slash in it is refused.
//! - Query values and header fields are encoded or refused by whoever puts them into the request.
//! - A JSON body is made in two steps: the template writes a mark where a value goes, the text is read as JSON, and only
//!   then the values take the places of their marks. Whatever a value holds, the structure is the operator's.
//! - XML is escaped, forms are percent-encoded; plain text takes no control characters.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value,
    value::{Object, ObjectRepr, ValueKind},
};
use serde_json::{Map, Value as Json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    io,
    sync::{Arc, Mutex, PoisonError},
};
use url::form_urlencoded::byte_serialize;

/// Steps that one rendering may take: enough for an order of some thousand lines.
const FUEL: u64 = 200_000;
/// The longest template.
pub(super) const MAX_SOURCE: usize = 64 * 1024;
/// The most that one rendering may give.
const MAX_RENDERED: usize = 1024 * 1024;
const DEPTH: usize = 32;

/// Where a template's text goes, which decides how values are put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Path,
    Query,
    Header,
    Json,
    Xml,
    Form,
    Text,
}

/// A template that compiles and uses declared parameters alone.
#[derive(Debug, Clone)]
pub(super) struct Template {
    source: String,
    place: Place,
    names: BTreeSet<String>,
}

/// What a template gave.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) text: String,
    /// A parameter that was not given stood in it.
    pub(super) lacks: bool,
}

/// What the places of one rendering were filled with.
#[derive(Default)]
struct Filled {
    values: Vec<Json>,
    /// How long the values are together, as JSON.
    bytes: usize,
    lacks: bool,
}

impl Template {
    /// Checks a template.
    ///
    /// # Errors
    /// What is wrong with it, for the finding at its key.
    pub(super) fn new(source: &str, place: Place, declared: &BTreeSet<&str>) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err(format!("longer than {MAX_SOURCE} bytes"));
        }
        let environment = environment();
        let compiled =
            environment.template_from_str(source).map_err(|e| format!("not a template: {}", said(&e)))?;
        let is_global = |name: &String| environment.globals().any(|(global, _)| global == name.as_str());
        let names: BTreeSet<String> =
            compiled.undeclared_variables(false).into_iter().filter(|name| !is_global(name)).collect();
        if let Some(name) = names.iter().find(|name| !declared.contains(name.as_str())) {
            return Err(format!("{name:?} is not among the parameters of this request; declare it there"));
        }
        Ok(Self { source: source.to_owned(), place, names })
    }

    /// Whether a parameter stands in it.
    pub(super) fn uses(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Whether its text is the same whatever the values are.
    pub(super) fn is_plain(&self) -> bool {
        !self.source.contains("{{") && !self.source.contains("{%") && !self.source.contains("{#")
    }

    /// Whether it has conditions or loops.
    pub(super) fn has_blocks(&self) -> bool {
        self.source.contains("{%")
    }

    /// The text as the operator wrote it.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Fills it with the values of all declared parameters; null stands for one that was not given.
    ///
    /// # Errors
    /// What does not fit, in words that may be public.
    pub(super) fn render(&self, args: &Map<String, Json>) -> Result<Rendered, String> {
        if self.is_plain() && self.place != Place::Json {
            return Ok(Rendered { text: self.source.clone(), lacks: false });
        }
        let mark = mark()?;
        let filled = Arc::new(Mutex::new(Filled::default()));
        let mut environment = environment();
        let (place, into, of) = (self.place, Arc::clone(&filled), mark.clone());
        environment.set_formatter(move |output, _, value| {
            let mut filled = into.lock().unwrap_or_else(PoisonError::into_inner);
            let text = fill(place, value, &of, &mut filled)?;
            output.write_str(&text).map_err(|e| Error::new(ErrorKind::WriteFailure, e.to_string()))
        });
        let template = environment.template_from_str(&self.source).map_err(|e| said(&e))?;
        let mut text = Bounded(Vec::new());
        let given = |(name, value): (&String, &Json)| {
            let value = match value {
                Json::Null if self.source.contains('~') => Value::from_object(Absent),
                value => Value::from(minijinja::value::Serde(value)),
            };
            (name.clone(), value)
        };
        template
            .render_captured_to(
                Value::from(args.iter().map(given).collect::<BTreeMap<String, Value>>()),
                &mut text,
            )
            .map_err(|e| said(&e))?;
        let text = String::from_utf8(text.0).map_err(|e| e.to_string())?;
        let filled = std::mem::take(&mut *filled.lock().unwrap_or_else(PoisonError::into_inner));
        let text = if place == Place::Json { json(&text, &mark, filled.values)? } else { text };
        Ok(Rendered { text, lacks: filled.lacks })
    }
}

fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(DEPTH);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.add_test("none", |value: &Value| is_absent(value));
    environment
}

/// A parameter that was not given, where texts are put together: the library would write `None` there.
#[derive(Debug)]
struct Absent;

impl Object for Absent {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        false
    }

    fn render(self: &Arc<Self>, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

fn is_absent(value: &Value) -> bool {
    value.is_none() || value.downcast_object_ref::<Absent>().is_some()
}

/// The error without the template's text around it.
fn said(error: &Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" (line {line} of the template)"));
    match (error.detail(), error.kind()) {
        (_, ErrorKind::OutOfFuel) => "the template takes too many steps".to_owned(),
        (_, ErrorKind::WriteFailure) => format!("the template gives more than {MAX_RENDERED} bytes"),
        (Some(detail), _) => format!("{detail}{line}"),
        (None, kind) => format!("{kind}{line}"),
    }
}

/// What no value can contain by accident or guess.
fn mark() -> Result<String, String> {
    let mut random = [0; 16];
    SystemRandom::new().fill(&mut random).map_err(|_| "no random numbers".to_owned())?;
    let mut mark = String::from("value");
    for byte in random {
        // Writing to a string cannot fail.
        let _ = write!(mark, "{byte:02x}");
    }
    Ok(mark + "-")
}

/// The text that stands for a value at its place.
fn fill(place: Place, value: &Value, mark: &str, filled: &mut Filled) -> Result<String, Error> {
    let unfit = |what: &str| Error::new(ErrorKind::InvalidOperation, what.to_owned());
    if value.is_undefined() {
        return Err(unfit("a value is not defined"));
    }
    let value = if is_absent(value) { &Value::from(()) } else { value };
    filled.lacks |= value.is_none();
    if place == Place::Json {
        let json = serde_json::to_value(value).map_err(|_| unfit("a value cannot be written as JSON"))?;
        // The text that bounds itself holds only marks.
        filled.bytes = filled.bytes.saturating_add(json.to_string().len());
        if filled.bytes > MAX_RENDERED {
            return Err(unfit("the values of the template are too long together"));
        }
        filled.values.push(json);
        return Ok(format!("\"{mark}{}\"", filled.values.len() - 1));
    }
    let text = match value.kind() {
        ValueKind::None => String::new(),
        ValueKind::Bool | ValueKind::Number => value.to_string(),
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        _ => return Err(unfit("only texts, numbers and booleans fit here")),
    };
    let has_controls = text.chars().any(char::is_control);
    match place {
        Place::Path if text.contains(['/', '\\']) => {
            Err(unfit("a value in a path must not contain a slash or backslash"))
        }
        Place::Path | Place::Query | Place::Header | Place::Text if has_controls => {
            Err(unfit("a value contains a line end or another control character"))
        }
        Place::Path | Place::Query | Place::Header | Place::Text | Place::Json => Ok(text),
        Place::Form => Ok(byte_serialize(text.as_bytes()).collect()),
        Place::Xml => xml(&text).ok_or_else(|| unfit("a value contains a character that XML does not know")),
    }
}

/// Escaped for an element or a quoted attribute; `None` for characters that XML 1.0 (§2.2) does not have.
fn xml(text: &str) -> Option<String> {
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
            c if c.is_control() && u32::from(c) < 0x20 => return None,
            c => escaped.push(c),
        }
    }
    Some(escaped)
}

/// Reads the text as JSON and puts each value in the place of its mark.
fn json(text: &str, mark: &str, values: Vec<Json>) -> Result<String, String> {
    let mut tree: Json = serde_json::from_str(text).map_err(|e| {
        format!(
            "what the template gives is not JSON (line {}): write values without quotes around them",
            e.line()
        )
    })?;
    replace(&mut tree, mark, &values)?;
    Ok(tree.to_string())
}

fn replace(tree: &mut Json, mark: &str, values: &[Json]) -> Result<(), String> {
    let value_of =
        |text: &str| text.strip_prefix(mark)?.parse::<usize>().ok().and_then(|index| values.get(index));
    let astray = "a value stands where the template has captured or changed it; use it directly";
    match tree {
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
        Json::String(text) => match value_of(text) {
            Some(value) if value.to_string().contains(mark) => return Err(astray.to_owned()),
            Some(value) => *tree = value.clone(),
            None if text.contains(mark) => return Err(astray.to_owned()),
            None => {}
        },
        Json::Array(items) => items.iter_mut().try_for_each(|item| replace(item, mark, values))?,
        Json::Object(fields) => {
            let marked: Vec<String> = fields.keys().filter(|name| name.contains(mark)).cloned().collect();
            for name in marked {
                let Some(Json::String(to)) = value_of(&name) else {
                    return Err("the name of a JSON field has to be a text".to_owned());
                };
                let Some(field) = fields.remove(&name) else { continue };
                if fields.insert(to.clone(), field).is_some() {
                    return Err("the name of a JSON field that a value gives is taken".to_owned());
                }
            }
            fields.values_mut().try_for_each(|field| replace(field, mark, values))?;
        }
    }
    Ok(())
}

/// Takes up to a limit.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED {
            return Err(io::Error::other("too much"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, Template};
    use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};
    use serde_json::{Value, json};

    const HOSTILE: &[&str] = &[
        "\"",
        "\\",
        "\\\"",
        "\",\"admin\":true,\"x\":\"",
        "}",
        "]}",
        ",",
        ":",
        "{{ other }}",
        "{% raw %}",
        "<script>",
        "&amp;",
        "'; drop table",
        "a&b=c",
        "%2e%2e%2f",
        "..",
        "é€😀",
        "\u{2028}",
        "</Note><Admin/>",
        "]]>",
        "value",
        "null",
        "a\nb",
        "\t",
        "\u{7f}",
    ];

    fn render(source: &str, place: Place, args: &Value) -> Result<String, String> {
        let args = args.as_object().unwrap();
        let declared = args.keys().map(String::as_str).collect();
        Template::new(source, place, &declared)?.render(args).map(|rendered| rendered.text)
    }

    #[test]
    fn a_value_never_breaks_out_of_its_place_in_json() {
        let source = r#"{"note": {{ note }}, "list": [{{ note }}, {{ n }}], "fixed": "x", {{ note }}: 1}"#;
        for hostile in HOSTILE {
            let text = render(source, Place::Json, &json!({ "note": hostile, "n": 1.5 })).unwrap();
            let tree: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(
                tree,
                json!({ "note": hostile, "list": [hostile, 1.5], "fixed": "x", *hostile: 1 }),
                "{hostile}"
            );
        }
        let nested = json!({ "note": { "a": ["\"", null] }, "n": true });
        let text = render(r#"{"note": {{ note }}, "n": {{ n }}}"#, Place::Json, &nested).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), nested);
        let lines = json!({ "lines": [{ "sku": "a\"b", "n": 2 }, { "sku": ",", "n": 3 }] });
        let looped = r#"{"l": [{% for line in lines %}{"s": {{ line.sku }}, "n": {{ line.n }}}{% if not loop.last %},{% endif %}{% endfor %}]}"#;
        let text = render(looped, Place::Json, &lines).unwrap();
        let expected = json!({ "l": [{ "s": "a\"b", "n": 2 }, { "s": ",", "n": 3 }] });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn no_text_at_all_changes_the_structure(a in any::<String>(), b in any::<String>()) {
            let args = json!({ "a": a, "b": b });
            let source = r#"{"a": {{ a }}, "both": {{ a ~ b }}, "list": [{{ b }}, {% if a %}{{ a }}{% else %}0{% endif %}]}"#;
            let text = render(source, Place::Json, &args).unwrap();
            let last = if a.is_empty() { json!(0) } else { json!(a) };
            let expected = json!({ "a": a, "both": format!("{a}{b}"), "list": [b, last] });
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
            let form = render("a={{ a }}&b={{ b }}", Place::Form, &args).unwrap();
            let pairs: Vec<_> = url::form_urlencoded::parse(form.as_bytes()).into_owned().collect();
            prop_assert_eq!(pairs, [("a".to_owned(), a), ("b".to_owned(), b)]);
        }
    }

    #[test]
    fn values_between_quotes_are_refused_whatever_they_hold() {
        for value in HOSTILE {
            for source in [r#"{"a": "x {{ v }}"}"#, r#"["x {{ v }} {{ v }}"]"#, r#"{"{{ v }}": 1}"#] {
                let error = render(source, Place::Json, &json!({ "v": value })).unwrap_err();
                assert!(error.contains("without quotes"), "{error}");
            }
        }
        for source in [r#"{% set x %}{{ v }}{% endset %}{"a": {{ x }}}"#, r#"{"a": {{ v ~ v }}}"#] {
            match render(source, Place::Json, &json!({ "v": "a" })) {
                Ok(text) => assert_eq!(text, r#"{"a":"aa"}"#),
                Err(error) => assert!(error.contains("captured"), "{error}"),
            }
        }
    }

    #[test]
    fn values_in_other_places_are_encoded_or_refused() {
        for hostile in HOSTILE {
            let args = json!({ "v": hostile });
            let form = render("a={{ v }}&b=1", Place::Form, &args).unwrap();
            let pairs: Vec<_> = url::form_urlencoded::parse(form.as_bytes()).into_owned().collect();
            assert_eq!(pairs, [("a".to_owned(), (*hostile).to_owned()), ("b".to_owned(), "1".to_owned())]);
            if let Ok(text) = render("<N a=\"{{ v }}\">{{ v }}</N>", Place::Xml, &args) {
                assert_eq!(text.matches(['<', '>']).count(), 4, "{text}");
                assert_eq!(text.matches('"').count(), 2, "{text}");
            }
            let controls = hostile.chars().any(char::is_control);
            for place in [Place::Header, Place::Query, Place::Text] {
                assert_eq!(render("{{ v }}", place, &args).is_err(), controls, "{hostile:?}");
            }
            let path = render("orders/{{ v }}/x", Place::Path, &args);
            assert_eq!(path.is_err(), controls || hostile.contains(['/', '\\']), "{hostile:?}: {path:?}");
        }
        let list = json!({ "v": [1] });
        for place in [Place::Path, Place::Query, Place::Header, Place::Xml, Place::Form, Place::Text] {
            assert!(render("{{ v }}", place, &list).unwrap_err().contains("only texts"));
        }
        assert_eq!(render("{{ v|safe }}", Place::Xml, &json!({ "v": "<" })).unwrap(), "&lt;");
    }

    #[test]
    fn templates_know_declared_parameters_alone_and_are_bounded() {
        let v = json!({ "v": "a" });
        for (source, says) in [
            ("{{ w }}", "\"w\" is not among"),
            ("{{ v }", "not a template"),
            ("{% include 'x' %}", "not a template"),
            ("{{ v.nothing }}", "undefined"),
            ("{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}", "steps"),
            ("{% for i in range(9999) %}{{ v * 1000 }}{% endfor %}", "bytes"),
        ] {
            let error = render(source, Place::Text, &v).unwrap_err();
            assert!(error.contains(says), "{source}: {error}");
        }
        assert_eq!(render("{{ v|upper }}{% if v == 'a' %}!{% endif %}", Place::Text, &v).unwrap(), "A!");
        let declared = ["v"].into_iter().collect();
        let none = json!({ "v": null, "w": "a" });
        for (source, place, text) in [
            (r#"{{ "x" ~ v }}"#, Place::Text, "x"),
            (r#"{{ w ~ "-" ~ v ~ w }}{{ v }}"#, Place::Text, "a-a"),
            (r#"{"a": {{ "x" ~ v }}, "b": {{ v }}}"#, Place::Json, r#"{"a":"x","b":null}"#),
            (
                r#"{% if v is none %}{{ w ~ "!" }}{% endif %}{% if v %}{{ v ~ w }}{% endif %}"#,
                Place::Text,
                "a!",
            ),
        ] {
            assert_eq!(render(source, place, &none).unwrap(), text, "{source}");
        }
        let lacking = Template::new("{{ v }}", Place::Query, &declared).unwrap();
        assert!(lacking.render(json!({ "v": null }).as_object().unwrap()).unwrap().lacks);
        assert!(!lacking.render(v.as_object().unwrap()).unwrap().lacks);
    }
}
