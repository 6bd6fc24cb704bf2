//! Requests that the operator wrote: a job names one and gives values for its declared parameters, nothing else.

mod parameters;
mod template;

use super::{params, path};
use crate::{Code, Failure};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use parameters::{Parameters, RawParameter};
use passerelle_config::{Diagnostics, Section};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use template::{Place, Template};

const MAX_REQUESTS: usize = 200;
const MAX_FIELDS: usize = 32;
const MAX_NAME: usize = 64;
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// One request as the operator writes it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRequest {
    /// The HTTP method.
    #[schemars(required, extend("enum" = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]))]
    method: Option<String>,
    /// The path below the resource's `url`, as it is before any encoding; `{name}` stands for a parameter.
    #[schemars(required)]
    path: Option<String>,
    /// Templates by query key; one whose parameter was not given is left out.
    query: Option<BTreeMap<String, String>>,
    /// Templates by header; one whose parameter was not given is left out.
    headers: Option<BTreeMap<String, String>>,
    /// Template of the body, up to 64 KiB.
    body: Option<String>,
    /// Media type of `body`: JSON, XML, a form or plain text.
    #[schemars(extend("default" = "application/json"))]
    media_type: Option<String>,
    /// Whether the job's payload is the body, in place of `body`.
    #[schemars(extend("default" = false))]
    payload: Option<bool>,
    /// Statuses that count as success, if the job does not say it.
    expect: Option<Vec<u16>>,
    /// What a job may give, by name.
    parameters: Option<BTreeMap<String, RawParameter>>,
}

/// A checked request.
#[derive(Debug)]
struct Request {
    method: Method,
    path: Template,
    query: Vec<(String, Template)>,
    headers: Vec<(HeaderName, Template)>,
    body: Option<(Template, String)>,
    /// Whether a job's payload becomes the body.
    payload: bool,
    expect: Option<Vec<u16>>,
    parameters: Parameters,
}

/// The named requests of a resource.
#[derive(Debug, Clone, Default)]
pub(super) struct Requests(Arc<BTreeMap<String, Request>>);

/// A request with its places filled.
pub(super) struct Filled {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    /// The body and its media type.
    pub(super) body: Option<(Vec<u8>, String)>,
    pub(super) takes_payload: bool,
    pub(super) expect: Option<Vec<u16>>,
}

impl Requests {
    /// Checks them; findings go to `diagnostics`.
    pub(super) fn check(
        raw: BTreeMap<String, RawRequest>,
        own_headers: &[HeaderName],
        section: &Section,
        diagnostics: &mut Diagnostics,
    ) -> Self {
        let mut wrong = |key: &str, message: String| {
            let dot = if key.is_empty() { "" } else { "." };
            diagnostics.push(section.finding(&format!("requests{dot}{key}"), message));
        };
        if raw.len() > MAX_REQUESTS {
            wrong("", format!("expected at most {MAX_REQUESTS} requests, found {}", raw.len()));
        }
        let mut requests = BTreeMap::new();
        for (name, raw) in raw {
            let is_name = !name.is_empty()
                && name.len() <= MAX_NAME
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
            if !is_name {
                wrong(&name, format!("not a request's name: up to {MAX_NAME} letters, digits, - and _"));
            }
            let request = Request::check(raw, own_headers, &mut |key, message| {
                let dot = if key.is_empty() { "" } else { "." };
                wrong(&format!("{name}{dot}{key}"), message);
            });
            requests.extend(request.map(|request| (name, request)));
        }
        Self(Arc::new(requests))
    }

    /// Fills the places of a request with a job's values.
    ///
    /// # Errors
    /// `invalid_params` (permanent) with the argument or the place named; `path_invalid` (denied).
    pub(super) fn fill(&self, name: &str, args: &Map<String, Value>) -> Result<Filled, Failure> {
        let Some(request) = self.0.get(name) else {
            return Err(invalid(format!("request: this resource has no request {name:?}")));
        };
        request.fill(args)
    }
}

impl Request {
    fn check(
        raw: RawRequest,
        own_headers: &[HeaderName],
        wrong: &mut dyn FnMut(&str, String),
    ) -> Option<Self> {
        let parameters = Parameters::check(raw.parameters.unwrap_or_default(), &mut |key, message| {
            let dot = if key.is_empty() { "" } else { "." };
            wrong(&format!("parameters{dot}{key}"), message);
        });
        let declared: BTreeSet<&str> = parameters.names().collect();
        let mut template = |key: &str, text: &str, place| match Template::new(text, place, &declared) {
            Ok(template) => Some(template),
            Err(message) => {
                wrong(key, message);
                None
            }
        };
        let path = raw.path.as_deref().map(|text| template("path", text, Place::Path));
        let query = raw.query.unwrap_or_default();
        let query: Option<Vec<_>> = query
            .into_iter()
            .map(|(name, text)| {
                template(&format!("query.{name}"), &text, Place::Query).map(|text| (name, text))
            })
            .collect();
        let mut headers = Some(Vec::new());
        let mut names = Vec::new();
        for (name, text) in raw.headers.unwrap_or_default() {
            let value = template(&format!("headers.{name}"), &text, Place::Header);
            names.push(name.clone());
            headers = headers.and_then(|mut headers| {
                headers.push((HeaderName::from_bytes(name.as_bytes()).ok()?, value?));
                Some(headers)
            });
        }
        let media_type = raw.media_type.unwrap_or_else(|| "application/json".to_owned());
        let place = place_of(&media_type);
        let body = match (raw.body.as_deref(), place) {
            (None, _) => Some(None),
            (Some(text), Some(place)) => {
                template("body", text, place).map(|text| Some((text, media_type.clone())))
            }
            (Some(_), None) => None,
        };
        for name in names {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(header) if params::is_forbidden(&header, own_headers) => {
                    wrong(&format!("headers.{name}"), "a request may not set this header".to_owned());
                }
                Ok(_) => {}
                Err(_) => wrong(&format!("headers.{name}"), "not a header's name".to_owned()),
            }
        }
        if raw.body.is_some() && place.is_none() {
            let message = "a body needs one of application/json (or …+json), application/xml (or …+xml), \
                           application/x-www-form-urlencoded, text/plain";
            wrong("media_type", message.to_owned());
        }
        if path.is_none() {
            wrong("path", "missing; write the path below the resource's url".to_owned());
        }
        let method = raw.method.as_deref().and_then(|text| METHODS.into_iter().find(|method| method == text));
        if method.is_none() {
            let names = METHODS.map(|method| method.to_string()).join(", ");
            wrong("method", format!("missing or unknown; write one of {names}"));
        }
        let payload = raw.payload.unwrap_or(false);
        if payload && body.as_ref().is_some_and(Option::is_some) {
            wrong("payload", "the request makes its own body; remove one of the two".to_owned());
        }
        let sends = payload || body.as_ref().is_some_and(Option::is_some);
        if sends && matches!(method, Some(Method::GET | Method::HEAD)) {
            wrong("method", "a GET or HEAD request has no body".to_owned());
        }
        if let Some(status) = raw.expect.iter().flatten().find(|status| !(100..=599).contains(*status)) {
            wrong("expect", format!("{status} is not an HTTP status"));
        }
        let request = Self {
            method: method?,
            path: path??,
            query: query?,
            headers: headers?,
            body: body?,
            payload,
            expect: raw.expect,
            parameters,
        };
        if request.query.len() > MAX_FIELDS || request.headers.len() > MAX_FIELDS {
            wrong("", format!("expected at most {MAX_FIELDS} query keys and as many headers"));
        }
        request.check_path(wrong);
        request.check_sample(wrong);
        Some(request)
    }

    fn check_path(&self, wrong: &mut dyn FnMut(&str, String)) {
        if self.path.source().contains(['?', '#']) {
            wrong("path", "contains ? or #; put the query into query".to_owned());
        }
        if self.path.source().starts_with('/') {
            wrong("path", "starts with /; paths are relative to the resource's url".to_owned());
        }
        let optional = self.parameters.names().find(|name| {
            self.parameters.is_optional(name) && !self.path.has_blocks() && self.path.uses(name)
        });
        if let Some(name) = optional {
            wrong("path", format!("parameter {name:?} stands in the path, so it cannot be optional"));
        }
    }

    /// A body without conditions gives JSON with any values, or with none.
    fn check_sample(&self, wrong: &mut dyn FnMut(&str, String)) {
        if let Some((body, _)) = self.body.as_ref().filter(|(body, _)| !body.has_blocks())
            && let Err(message) = body.render(&self.parameters.sample())
            && message.contains("JSON")
        {
            wrong("body", message);
        }
    }

    fn fill(&self, args: &Map<String, Value>) -> Result<Filled, Failure> {
        let args = self.parameters.fill(args).map_err(invalid)?;
        let render = |template: &Template, place: &str| {
            template.render(&args).map_err(|message| invalid(format!("{place} of this request: {message}")))
        };
        let rendered = render(&self.path, "path")?;
        if rendered.lacks {
            return Err(invalid("path of this request: a parameter that stands in it is missing"));
        }
        let path = path::check(rendered.text)?;
        let mut query = Vec::new();
        for (name, template) in &self.query {
            let value = render(template, "query")?;
            if !value.lacks {
                query.push((name.clone(), value.text));
            }
        }
        let mut headers = HeaderMap::new();
        for (name, template) in &self.headers {
            let value = render(template, "headers")?;
            if !value.lacks {
                let value = HeaderValue::from_str(&value.text).map_err(|_| {
                    invalid(format!("headers.{name}: a value contains a character that is not allowed"))
                })?;
                headers.insert(name.clone(), value);
            }
        }
        let body = match &self.body {
            Some((template, media_type)) => {
                Some((render(template, "body")?.text.into_bytes(), media_type.clone()))
            }
            None => None,
        };
        Ok(Filled {
            method: self.method.clone(),
            path,
            query,
            headers,
            body,
            takes_payload: self.payload,
            expect: self.expect.clone(),
        })
    }
}

/// How values are written into a body of this media type; `None` if that is not known.
fn place_of(media_type: &str) -> Option<Place> {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    HeaderValue::from_str(media_type).ok()?;
    match essence.as_str() {
        "application/json" => Some(Place::Json),
        "application/xml" | "text/xml" => Some(Place::Xml),
        "application/x-www-form-urlencoded" => Some(Place::Form),
        "text/plain" => Some(Place::Text),
        other if other.ends_with("+json") => Some(Place::Json),
        other if other.ends_with("+xml") => Some(Place::Xml),
        _ => None,
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::permanent(Code::InvalidParams, message)
}
