//! `docs/protocol.md` against the code: nothing that travels is missing from it, and its examples are the fixtures.

use passerelle_protocol::{
    AgentKey, AgentToken, ApiCode, Code, Envelope, HubKey, PROTOCOL_VERSION, Receipt, SUBPROTOCOL, Ticket,
    ToAgent, ToHub,
    http::{ENROL_PATH, KEYS_PATH, TUNNEL_PATH},
};
use serde_json::Value;
use std::{fs, path::PathBuf};

fn crate_file(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn document() -> String {
    crate_file("../docs/protocol.md")
}

#[test]
fn every_message_has_a_heading_and_an_example() {
    let document = document();
    for (way, types) in [("to_hub", ToHub::TYPES), ("to_agent", ToAgent::TYPES)] {
        for tag in types {
            assert!(document.contains(&format!("\n### `{tag}` (")), "no heading for {tag}");
            let example = document.contains(&format!("<!-- fixture: {way}.{tag}"));
            assert!(example || *tag == "unsupported", "no example of {way} {tag}");
        }
    }
}

#[test]
fn every_code_limit_path_and_kind_of_token_is_described() {
    let document = document();
    let codes = Code::ALL.iter().map(|code| code.as_str());
    let api_codes = ApiCode::ALL.iter().map(|code| code.as_str());
    for code in codes.chain(api_codes) {
        assert!(document.contains(&format!("\n| `{code}` | ")), "{code} is in no table");
    }
    let limits = crate_file("src/limits.rs");
    let names: Vec<&str> = limits
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split_once(':').map(|(name, _)| name))
        .collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let value = value_of(&limits, name);
        assert!(
            document.contains(&format!("\n| `{name}` | {value} | ")),
            "limit {name} is not said to be {value}"
        );
    }
    let tokens = [
        Envelope::TYP,
        Envelope::CALL_TYP,
        Ticket::TYP,
        AgentToken::TYP,
        Receipt::TYP,
        AgentKey::TYP,
        HubKey::TYP,
    ];
    for text in tokens.into_iter().chain([ENROL_PATH, TUNNEL_PATH, KEYS_PATH, SUBPROTOCOL]) {
        assert!(document.contains(text), "{text} is missing");
    }
    assert!(document.starts_with(&format!("# The Passerelle tunnel protocol, version {PROTOCOL_VERSION}\n")));
}

/// The value of a constant as the document writes it, read from its source.
fn value_of(limits: &str, name: &str) -> String {
    let line = limits.lines().find(|line| line.starts_with(&format!("pub const {name}:"))).expect(name);
    let value = line.split_once(" = ").expect("a value").1.trim_end_matches(';');
    let time = value.strip_prefix("Duration::from_secs(").map(|rest| rest.trim_end_matches(')'));
    let number: u64 = time.unwrap_or(value).split(" * ").map(|n| n.parse::<u64>().expect(line)).product();
    match number {
        n if time.is_some() && n > 60 => format!("{} min", n / 60),
        n if time.is_some() => format!("{n} s"),
        n if n >= 1 << 20 => format!("{} MiB", n >> 20),
        n if n >= 1 << 16 => format!("{} KiB", n >> 10),
        n => n.to_string(),
    }
}

/// The field names of every fixture occur in the document.
#[test]
fn every_field_is_described() {
    fn fields(value: &Value, into: &mut Vec<String>) {
        match value {
            // Parameters, results and schemas belong to the operations.
            Value::Object(map) => {
                for (key, value) in map {
                    into.push(key.clone());
                    if !["params", "result", "params_schema", "connectors"].contains(&key.as_str()) {
                        fields(value, into);
                    }
                }
            }
            Value::Array(list) => list.iter().for_each(|value| fields(value, into)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    // Tables and text, without the examples.
    let prose: String = document().split("```").step_by(2).collect();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut names = Vec::new();
        fields(&value, &mut names);
        for name in names {
            let words = prose.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            assert!({ words }.any(|word| word == name), "{}: `{name}` is not described", path.display());
        }
    }
}

#[test]
fn every_example_is_a_fixture() {
    /// Equal, but a text that ends in `…` only begins alike.
    fn alike(shown: &Value, whole: &Value) -> bool {
        match (shown, whole) {
            (Value::String(shown), Value::String(whole)) => {
                shown.strip_suffix('…').map_or(shown == whole, |start| whole.starts_with(start))
            }
            (Value::Array(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
            }
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
            }
            (shown, whole) => shown == whole,
        }
    }
    let document = document();
    let mut seen = 0;
    for example in document.split("<!-- fixture: ").skip(1) {
        let (name, rest) = example.split_once(" -->\n```json\n").expect("a block follows");
        let shown: Value = serde_json::from_str(rest.split("\n```").next().unwrap()).expect(name);
        let (file, field) = name.split_once('#').map_or((name, None), |(file, field)| (file, Some(field)));
        let whole: Value = serde_json::from_str(&crate_file(&format!("fixtures/v1/{file}.json"))).unwrap();
        let whole = field.map_or(&whole, |field| &whole[field]);
        assert!(alike(&shown, whole), "the example {name} is not its fixture");
        seen += 1;
    }
    assert_eq!(seen, document.matches("```json").count(), "an example without a fixture");
    assert!(seen > 20);
}

#[test]
fn every_link_leads_to_a_heading() {
    let document = document();
    let anchors: Vec<String> = document
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    for link in document.split("](#").skip(1) {
        let link = link.split(')').next().unwrap();
        assert!(anchors.iter().any(|anchor| anchor == link), "#{link} leads nowhere");
    }
}
