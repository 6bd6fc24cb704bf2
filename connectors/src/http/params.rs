//! The parameters of `request` and `notify`: their schema, their checks, and what they demand of the policy.

use super::{event::EventParams, path, requests::Requests};
use crate::{Code, Demands, Failure};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
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
    #[serde(default)]
    #[schemars(with = "Verb")]
    method: Option<Verb>,
    /// The path, relative to the resource's url.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 2048))]
    path: Option<String>,
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
    /// In place of method, path, query and headers: a request that the resource's operator wrote.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 64))]
    request: Option<String>,
    /// The values for its parameters.
    #[serde(default)]
    args: Map<String, Value>,
}

/// Tells the application something; only a 2xx answer counts as success.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NotifyParams {
    /// The path, relative to the resource's url.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 2048))]
    path: Option<String>,
    /// The HTTP method.
    #[serde(default)]
    #[schemars(with = "Verb", extend("default" = "POST"))]
    method: Option<Verb>,
    /// Header fields.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// In place of a payload: an event, sent in the vendor's envelope.
    #[serde(default)]
    #[schemars(with = "EventParams")]
    event: Option<EventParams>,
    /// In place of path, method, headers and event: a request that the resource's operator wrote.
    #[serde(default)]
    #[schemars(with = "String", length(min = 1, max = 64))]
    request: Option<String>,
    /// The values for its parameters.
    #[serde(default)]
    args: Map<String, Value>,
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
    one_of(schemars::schema_for!(RequestParams), &["method", "path"])
}

/// The schema of `notify`'s parameters.
pub(super) fn notify_schema() -> Value {
    one_of(schemars::schema_for!(NotifyParams), &["path"])
}

/// Either these parameters or the name of a request.
fn one_of(mut schema: schemars::Schema, needed: &[&str]) -> Value {
    schema.insert("oneOf".to_owned(), json!([{ "required": needed }, { "required": ["request"] }]));
    let mut schema = schema.to_value();
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        // What may be left out has no value in its place.
        for property in properties.values_mut().filter_map(Value::as_object_mut) {
            property.retain(|key, value| key != "default" || !value.is_null());
        }
    }
    schema
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
    /// The operator's request that it names.
    pub(super) request: Option<String>,
    /// A body that is made of the parameters, with its media type.
    pub(super) made: Option<(Vec<u8>, String)>,
    /// Whether a payload may be the body.
    pub(super) takes_payload: bool,
}

impl Params {
    /// Checks the parameters of an operation; `own_headers` are those that the resource itself sets.
    ///
    /// # Errors
    /// `invalid_params` (permanent) or `path_invalid` (denied).
    pub(super) fn check(
        operation: &str,
        params: &Value,
        own_headers: &[HeaderName],
        requests: &Requests,
    ) -> Result<Self, Failure> {
        match operation {
            "request" => {
                let raw: RequestParams = parse(params)?;
                if let Some(wrong) = raw.expect.iter().flatten().find(|status| !(100..=599).contains(*status))
                {
                    return Err(invalid(format!("expect: {wrong} is not an HTTP status")));
                }
                if let Some(name) = raw.request {
                    let beside = [
                        ("method", raw.method.is_some()),
                        ("path", raw.path.is_some()),
                        ("query", !raw.query.is_empty()),
                        ("headers", !raw.headers.is_empty()),
                    ];
                    return Self::named(name, &raw.args, &beside, requests, raw.expect, false);
                }
                no_args(&raw.args)?;
                Ok(Self {
                    method: raw.method.ok_or_else(|| missing("method"))?.into(),
                    path: path::decode(&raw.path.ok_or_else(|| missing("path"))?)?,
                    query: query(&raw.query)?,
                    headers: headers(&raw.headers, own_headers)?,
                    expect: raw.expect,
                    notify: false,
                    request: None,
                    made: None,
                    takes_payload: true,
                })
            }
            "notify" => {
                let raw: NotifyParams = parse(params)?;
                if let Some(name) = raw.request {
                    let beside = [
                        ("method", raw.method.is_some()),
                        ("path", raw.path.is_some()),
                        ("headers", !raw.headers.is_empty()),
                        ("event", raw.event.is_some()),
                    ];
                    return Self::named(name, &raw.args, &beside, requests, None, true);
                }
                no_args(&raw.args)?;
                let made = raw.event.map(EventParams::envelope).transpose()?;
                let method: Method = raw.method.unwrap_or(Verb::Post).into();
                if made.is_some() && method.is_safe() {
                    return Err(invalid(format!("event: a {method} notification has no body")));
                }
                Ok(Self {
                    method,
                    path: path::decode(&raw.path.ok_or_else(|| missing("path"))?)?,
                    query: Vec::new(),
                    headers: headers(&raw.headers, own_headers)?,
                    expect: None,
                    notify: true,
                    request: None,
                    takes_payload: made.is_none(),
                    made: made.map(|text| (text, "application/json".to_owned())),
                })
            }
            other => Err(invalid(format!("the http connector has no operation {other}"))),
        }
    }

    /// The operator's request of this name; `beside` are the parameters that do not go with one.
    fn named(
        name: String,
        args: &Map<String, Value>,
        beside: &[(&str, bool)],
        requests: &Requests,
        expect: Option<Vec<u16>>,
        notify: bool,
    ) -> Result<Self, Failure> {
        if let Some((key, _)) = beside.iter().find(|(_, given)| *given) {
            return Err(invalid(format!("{key}: does not go with request, which says all of it")));
        }
        let filled = requests.fill(&name, args)?;
        Ok(Self {
            method: filled.method,
            path: filled.path,
            query: filled.query,
            headers: filled.headers,
            expect: expect.or(filled.expect),
            notify,
            request: Some(name),
            made: filled.body,
            takes_payload: filled.takes_payload,
        })
    }

    /// Whether it only reads: GET, HEAD and OPTIONS of `request`. A notification always means an effect.
    pub(super) fn is_reading(&self) -> bool {
        !self.notify && self.method.is_safe()
    }

    /// Of an operator's request its name alone: what it does, a job cannot change.
    pub(super) fn demands(&self) -> Demands {
        if let Some(name) = &self.request {
            return Demands { request: Some(name.clone()), ..Demands::default() };
        }
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

fn missing(key: &str) -> Failure {
    invalid(format!("missing field `{key}`"))
}

fn no_args(args: &Map<String, Value>) -> Result<(), Failure> {
    if args.is_empty() { Ok(()) } else { Err(invalid("args: goes with request alone")) }
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

/// Whether neither a job nor a request of the operator may set this header; `own` are those that the resource sets.
pub(super) fn is_forbidden(header: &HeaderName, own: &[HeaderName]) -> bool {
    let text = header.as_str();
    FORBIDDEN.contains(&text) || text.starts_with("proxy-") || own.contains(header)
}

fn headers(raw: &BTreeMap<String, String>, own: &[HeaderName]) -> Result<HeaderMap, Failure> {
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
        if is_forbidden(&header, own) {
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
    use crate::{Code, Verdict, http::requests::Requests};
    use http::{HeaderName, Method};
    use serde_json::{Value, json};

    fn check(operation: &str, params: &Value) -> Result<Params, (Code, String)> {
        Params::check(operation, params, &[HeaderName::from_static("x-api-key")], &Requests::default())
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
            ("notify", json!({ "path": "x", "args": { "a": 1 } }), "args"),
            ("notify", json!({ "path": "x", "request": "y" }), "path: does not go with request"),
            ("notify", json!({ "request": "y" }), "no request \"y\""),
            (
                "notify",
                json!({ "path": "x", "event": { "kind": "CreationClient", "data": {} } }),
                "event.data.Guid",
            ),
            ("notify", json!({ "path": "x", "event": { "kind": "CreationClient" } }), "data"),
            (
                "notify",
                json!({ "path": "x", "method": "GET", "event": { "kind": "a", "category": "b", "data": {} } }),
                "event",
            ),
            ("request", json!({ "method": "GET", "path": "x", "event": {} }), "event"),
            ("nothing", json!({}), "nothing"),
        ] {
            let (code, message) = check(operation, &params).unwrap_err();
            assert_eq!(code, Code::InvalidParams, "{params}");
            assert!(message.contains(says), "{params}: {message}");
        }
        let failure =
            Params::check("notify", &json!({ "path": "../x" }), &[], &Requests::default()).unwrap_err();
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
        assert_eq!(
            request["oneOf"],
            json!([{ "required": ["method", "path"] }, { "required": ["request"] }])
        );
        assert_eq!(request["properties"]["path"]["type"], json!("string"));
        assert_eq!(request["properties"]["path"].get("default"), None);
        assert_eq!(request["additionalProperties"], json!(false));
        let notify = notify_schema();
        assert_eq!(notify["oneOf"], json!([{ "required": ["path"] }, { "required": ["request"] }]));
        assert_eq!(notify["properties"]["method"]["default"], json!("POST"));
    }
}
