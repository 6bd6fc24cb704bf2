//! The parameters of `request` and `notify`: their schema, their checks, and what they demand of the policy.

use super::path;
use crate::{Code, Demands, Failure};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const MAX_QUERY: usize = 8 * 1024;
const MAX_HEADERS: usize = 32;
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Methods that a job may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Verb {
    Get,
    Head,
    Options,
    Post,
    Put,
    Patch,
    Delete,
}

impl From<Verb> for Method {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Get => Self::GET,
            Verb::Head => Self::HEAD,
            Verb::Options => Self::OPTIONS,
            Verb::Post => Self::POST,
            Verb::Put => Self::PUT,
            Verb::Patch => Self::PATCH,
            Verb::Delete => Self::DELETE,
        }
    }
}

/// One request to the application; its answer is the result.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RequestParams {
    /// The HTTP method.
    method: Verb,
    /// The path, relative to the resource's url.
    #[schemars(length(min = 1, max = 2048))]
    path: String,
    /// Query parameters: strings, numbers, booleans, or lists of them.
    #[serde(default)]
    #[schemars(schema_with = "query_schema")]
    query: BTreeMap<String, Value>,
    /// Header fields.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// The statuses that count as success; without it any does.
    #[schemars(length(min = 1, max = 32), inner(range(min = 100, max = 599)))]
    expect: Option<Vec<u16>>,
}

/// Tells the application something; only a 2xx answer counts as success.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NotifyParams {
    /// The path, relative to the resource's url.
    #[schemars(length(min = 1, max = 2048))]
    path: String,
    /// The HTTP method.
    #[serde(default = "post")]
    method: Verb,
    /// Header fields.
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

fn post() -> Verb {
    Verb::Post
}

fn query_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    let value = json!({ "anyOf": [scalar, { "type": "array", "items": scalar }] });
    let mut schema = schemars::Schema::default();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("additionalProperties".to_owned(), value);
    schema.insert("default".to_owned(), json!({}));
    schema
}

/// The schema of `request`'s parameters.
pub(super) fn request_schema() -> Value {
    schemars::schema_for!(RequestParams).to_value()
}

/// The schema of `notify`'s parameters.
pub(super) fn notify_schema() -> Value {
    schemars::schema_for!(NotifyParams).to_value()
}

/// Checked parameters.
#[derive(Debug)]
pub(super) struct Params {
    pub(super) method: Method,
    /// Relative to the resource's URL, decoded once.
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) expect: Option<Vec<u16>>,
    pub(super) notify: bool,
}

impl Params {
    /// Checks the parameters of an operation; `own_header` is one that the resource itself sets.
    ///
    /// # Errors
    /// `invalid_params` (permanent) or `path_invalid` (denied).
    pub(super) fn check(
        operation: &str,
        params: &Value,
        own_header: Option<&HeaderName>,
    ) -> Result<Self, Failure> {
        let checked = match operation {
            "request" => {
                let raw: RequestParams = parse(params)?;
                if let Some(wrong) = raw.expect.iter().flatten().find(|status| !(100..=599).contains(*status))
                {
                    return Err(invalid(format!("expect: {wrong} is not an HTTP status")));
                }
                Self {
                    method: raw.method.into(),
                    path: path::decode(&raw.path)?,
                    query: query(&raw.query)?,
                    headers: headers(&raw.headers, own_header)?,
                    expect: raw.expect,
                    notify: false,
                }
            }
            "notify" => {
                let raw: NotifyParams = parse(params)?;
                Self {
                    method: raw.method.into(),
                    path: path::decode(&raw.path)?,
                    query: Vec::new(),
                    headers: headers(&raw.headers, own_header)?,
                    expect: None,
                    notify: true,
                }
            }
            other => {
                return Err(invalid(format!("the http connector has no operation {other}")));
            }
        };
        Ok(checked)
    }

    /// Whether it only reads: GET, HEAD and OPTIONS of `request`. A notification always means an effect.
    pub(super) fn is_reading(&self) -> bool {
        !self.notify && self.method.is_safe()
    }

    pub(super) fn demands(&self) -> Demands {
        let mut query: Vec<String> = self.query.iter().map(|(key, _)| key.clone()).collect();
        query.dedup();
        Demands {
            paths: vec![self.path.clone()],
            method: Some(self.method.to_string()),
            query,
            headers: self.headers.keys().map(|name| name.as_str().to_owned()).collect(),
            ..Demands::default()
        }
    }
}

fn parse<T: DeserializeOwned>(params: &Value) -> Result<T, Failure> {
    // Serde would take an array for a struct as well.
    if !params.is_object() {
        return Err(invalid("params: expected an object"));
    }
    T::deserialize(params).map_err(|e| invalid(e.to_string()))
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::permanent(Code::InvalidParams, message)
}

fn query(raw: &BTreeMap<String, Value>) -> Result<Vec<(String, String)>, Failure> {
    let mut pairs = Vec::new();
    for (key, value) in raw {
        let values = match value {
            Value::Array(items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    return Err(invalid(format!(
                        "query.{key}: expected a string, number, boolean, or a list of them"
                    )));
                }
            };
            pairs.push((key.clone(), text));
        }
    }
    let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    if bytes > MAX_QUERY {
        return Err(invalid(format!("query: larger than {MAX_QUERY} bytes")));
    }
    Ok(pairs)
}

/// Header fields that frame or route the message, carry credentials, or are Passerelle's own; and those that make some
/// servers act on another method or path than the policy has seen.
const FORBIDDEN: &[&str] = &[
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "cookie2",
    "expect",
    "host",
    "idempotency-key",
    "keep-alive",
    "te",
    "trailer",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "upgrade",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
];

fn headers(raw: &BTreeMap<String, String>, own: Option<&HeaderName>) -> Result<HeaderMap, Failure> {
    if raw.len() > MAX_HEADERS {
        return Err(invalid(format!("headers: more than {MAX_HEADERS}")));
    }
    if raw.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_HEADER_BYTES {
        return Err(invalid(format!("headers: larger than {MAX_HEADER_BYTES} bytes")));
    }
    let mut headers = HeaderMap::with_capacity(raw.len());
    for (name, value) in raw {
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| invalid(format!("headers: {name:?} is not a header name")))?;
        let text = header.as_str();
        if FORBIDDEN.contains(&text) || text.starts_with("proxy-") || own == Some(&header) {
            return Err(invalid(format!("headers.{text}: a job may not set this header")));
        }
        // Refuses CR, LF and other control characters.
        let value = HeaderValue::from_str(value).map_err(|_| {
            invalid(format!("headers.{text}: the value contains a character that is not allowed"))
        })?;
        if headers.insert(header.clone(), value).is_some() {
            return Err(invalid(format!("headers.{text}: given twice, in different case")));
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::{Params, notify_schema, request_schema};
    use crate::{Code, Verdict};
    use http::{HeaderName, Method};
    use serde_json::{Value, json};

    fn check(operation: &str, params: &Value) -> Result<Params, (Code, String)> {
        Params::check(operation, params, Some(&HeaderName::from_static("x-api-key")))
            .map_err(|failure| (failure.code, failure.message))
    }

    #[test]
    fn parameters_become_demands() {
        let params = json!({
            "method": "PATCH", "path": "orders/a%20b", "query": { "page": 2, "tag": ["x", "y"], "all": true },
            "headers": { "X-Shop": "Lyon", "Content-Type": "application/json" }, "expect": [200, 204],
        });
        let checked = check("request", &params).unwrap();
        assert_eq!(checked.expect, Some(vec![200, 204]));
        let query: Vec<String> = checked.query.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(query, ["all=true", "page=2", "tag=x", "tag=y"]);
        let demands = checked.demands();
        assert_eq!(demands.paths, ["orders/a b"]);
        assert_eq!(demands.method.as_deref(), Some("PATCH"));
        assert_eq!(demands.query, ["all", "page", "tag"]);
        let mut headers = demands.headers;
        headers.sort();
        assert_eq!(headers, ["content-type", "x-shop"]);

        let notify = check("notify", &json!({ "path": "orders/1/validated" })).unwrap();
        assert_eq!(notify.method, Method::POST);
        assert!(!notify.is_reading());
        assert!(!check("notify", &json!({ "path": "ping", "method": "GET" })).unwrap().is_reading());
        assert!(check("request", &json!({ "path": "ping", "method": "GET" })).unwrap().is_reading());
    }

    #[test]
    fn wrong_parameters_are_refused_with_the_field_named() {
        for (operation, params, says) in [
            ("request", json!({ "path": "x" }), "method"),
            ("request", json!({ "method": "get", "path": "x" }), "get"),
            ("request", json!({ "method": "CONNECT", "path": "x" }), "CONNECT"),
            ("request", json!({ "method": "GET" }), "path"),
            ("request", json!({ "method": "GET", "path": 5 }), "string"),
            ("request", json!({ "method": "GET", "path": "x", "body": 1 }), "body"),
            ("request", json!({ "method": "GET", "path": "x", "query": { "a": {} } }), "query.a"),
            ("request", json!({ "method": "GET", "path": "x", "query": { "a": [null] } }), "query.a"),
            ("request", json!({ "method": "GET", "path": "x", "query": { "a": "b".repeat(9000) } }), "query"),
            ("request", json!({ "method": "GET", "path": "x", "expect": [700] }), "700"),
            ("notify", json!({ "path": "x", "query": {} }), "query"),
            ("notify", json!(["x", "POST", {}]), "object"),
            ("nothing", json!({}), "nothing"),
        ] {
            let (code, message) = check(operation, &params).unwrap_err();
            assert_eq!(code, Code::InvalidParams, "{params}");
            assert!(message.contains(says), "{params}: {message}");
        }
        let failure = Params::check("notify", &json!({ "path": "../x" }), None).unwrap_err();
        assert_eq!((failure.verdict, failure.code), (Verdict::Denied, Code::PathInvalid));
    }

    #[test]
    fn headers_that_frame_route_or_authenticate_are_not_for_jobs() {
        for (name, value) in [
            ("Host", "h"),
            ("Content-Length", "0"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "close"),
            ("Authorization", "Bearer x"),
            ("Cookie", "a=b"),
            ("Proxy-Authorization", "x"),
            ("Proxy-Anything", "x"),
            ("Idempotency-Key", "x"),
            ("traceparent", "x"),
            ("X-HTTP-Method-Override", "DELETE"),
            ("X-Api-Key", "the resource's own"),
            ("bad name", "x"),
            ("", "x"),
            ("x-a", "a\r\nb: c"),
            ("x-a", "a\nb"),
            ("x-a", "a\u{0}"),
        ] {
            let params = json!({ "path": "x", "headers": { name: value } });
            let (code, message) = check("notify", &params).unwrap_err();
            assert_eq!(code, Code::InvalidParams, "{name}: {value}");
            assert!(message.starts_with("headers"), "{message}");
        }
        assert!(check("notify", &json!({ "path": "x", "headers": { "X-A": "1", "x-a": "2" } })).is_err());
        let many: serde_json::Map<String, Value> = (0..33).map(|i| (format!("x-{i}"), json!("v"))).collect();
        assert!(check("notify", &json!({ "path": "x", "headers": many })).is_err());
    }

    #[test]
    fn the_schemas_are_closed_objects_that_name_what_is_needed() {
        let request = request_schema();
        assert_eq!(request["required"], json!(["method", "path"]));
        assert_eq!(request["additionalProperties"], json!(false));
        let notify = notify_schema();
        assert_eq!(notify["required"], json!(["path"]));
        assert_eq!(notify["properties"]["method"]["default"], json!("POST"));
    }
}
