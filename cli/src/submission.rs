//! The body of a job's submission, from the command line.

use crate::{Failure, args::Submit};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

/// The body without its payload.
///
/// # Errors
/// A usage failure if the parameters are not an object, or a file cannot be read.
pub(crate) fn body(submit: &Submit) -> Result<Map<String, Value>, Failure> {
    let mut body = Map::new();
    body.insert("site".to_owned(), json!(submit.site));
    body.insert("resource".to_owned(), json!(submit.resource));
    body.insert("operation".to_owned(), json!(submit.operation));
    body.insert("params".to_owned(), Value::Object(params(submit.params.as_deref(), &submit.param)?));
    let seconds = |duration: std::time::Duration| json!(duration.as_secs());
    let optional = [
        ("deadline_s", submit.deadline.map(seconds)),
        ("timeout_s", submit.timeout.map(seconds)),
        ("max_attempts", submit.max_attempts.map(|n| json!(n))),
        ("order_key", submit.order_key.as_ref().map(|key| json!(key))),
        ("priority", submit.priority.map(|n| json!(n))),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            body.insert(key.to_owned(), value);
        }
    }
    if !submit.label.is_empty() {
        let labels: Map<String, Value> =
            submit.label.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        body.insert("labels".to_owned(), Value::Object(labels));
    }
    Ok(body)
}

/// The parameters: the whole, and single ones that win over it.
///
/// # Errors
/// A usage failure if they are not an object, or the file cannot be read.
pub(crate) fn params(
    whole: Option<&str>,
    single: &[(String, String)],
) -> Result<Map<String, Value>, Failure> {
    let mut params = match whole {
        None => Map::new(),
        Some(given) => {
            let text = match given.strip_prefix('@') {
                Some(file) => fs::read_to_string(file)
                    .map_err(|e| Failure::usage(format!("--params: cannot read {file}: {e}")))?,
                None => given.to_owned(),
            };
            serde_json::from_str(&text)
                .map_err(|e| Failure::usage(format!("--params: expected a JSON object: {e}")))?
        }
    };
    for (key, value) in single {
        let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        params.insert(key.clone(), value);
    }
    Ok(params)
}

/// A small payload as part of the body: text if it is text, so that people can read it, else base64.
pub(crate) fn inline(content: Vec<u8>) -> (&'static str, Value) {
    match String::from_utf8(content) {
        Ok(text) => ("text", json!(text)),
        Err(not_text) => ("base64", json!(STANDARD.encode(not_text.into_bytes()))),
    }
}

/// The media type of a file, by its extension; the common ones of business files.
pub(crate) fn media_type(file: &Path) -> Option<&'static str> {
    let extension = file.extension()?.to_str()?.to_ascii_lowercase();
    Some(match extension.as_str() {
        "json" => "application/json",
        "xml" => "application/xml",
        "csv" => "text/csv",
        "txt" => "text/plain",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{body, inline, media_type, params};
    use crate::{
        Cli,
        args::{Command, Jobs},
    };
    use clap::Parser as _;
    use serde_json::{Value, json};
    use std::path::Path;

    fn pairs(given: &[(&str, &str)]) -> Vec<(String, String)> {
        given.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn single_parameters_are_json_where_they_can_and_win_over_the_whole() {
        let single =
            pairs(&[("path", "a/b.txt"), ("n", "5"), ("t", "\"5\""), ("on", "true"), ("l", "[1,\"x\"]")]);
        let got = params(Some(r#"{"path":"old","kept":null}"#), &single).unwrap();
        let expected =
            json!({ "path": "a/b.txt", "kept": null, "n": 5, "t": "5", "on": true, "l": [1, "x"] });
        assert_eq!(Value::Object(got), expected);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"a":1}"#).unwrap();
        let whole = format!("@{}", file.path().display());
        assert_eq!(Value::Object(params(Some(&whole), &[]).unwrap()), json!({ "a": 1 }));
        for wrong in ["[]", "5", "{", "@/no/such/file"] {
            let failure = params(Some(wrong), &[]).unwrap_err();
            assert_eq!(failure.code, crate::USAGE);
            assert!(failure.message.starts_with("--params"), "{}", failure.message);
        }
    }

    #[test]
    fn only_what_was_given_is_sent() {
        let parse = |line: &str| {
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
            let Command::Jobs(Jobs::Submit(submit)) = cli.command else { panic!("{cli:?}") };
            Value::Object(body(&submit).unwrap())
        };
        let least = "passerelle jobs submit --site s --resource r --operation o";
        assert_eq!(parse(least), json!({ "site": "s", "resource": "r", "operation": "o", "params": {} }));
        let all = format!(
            "{least} --deadline 1h --timeout 30s --max-attempts 3 --order-key k --priority 0 --label a=1"
        );
        let expected = json!({
            "site": "s", "resource": "r", "operation": "o", "params": {}, "deadline_s": 3600, "timeout_s": 30,
            "max_attempts": 3, "order_key": "k", "priority": 0, "labels": { "a": "1" },
        });
        assert_eq!(parse(&all), expected);
    }

    #[test]
    fn small_payloads_are_text_where_they_can() {
        assert_eq!(inline("é\r\n".into()), ("text", json!("é\r\n")));
        assert_eq!(inline(vec![0xff, 0]), ("base64", json!("/wA=")));
        assert_eq!(media_type(Path::new("a/B.JSON")), Some("application/json"));
        assert_eq!(media_type(Path::new("a/b")), None);
    }
}
