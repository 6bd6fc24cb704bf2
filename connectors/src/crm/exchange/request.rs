//! One request of a dialect: what it asks of which place below the resource's url.
//!
//! A path is code or configuration; what comes from a job or a target goes into it through [`segment`].

use crate::{
    Code,
    crm::error::{CrmError, Problem},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;
use url::Url;

/// What may stand in a path segment as it is (RFC 3986 §2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// No honest link is encoded more often.
const MAX_DECODED: usize = 5;

/// One segment of a path, encoded.
///
/// # Errors
/// `invalid_params` for dots alone, which lead through the path however they are encoded.
pub(crate) fn segment(text: &str) -> Result<String, CrmError> {
    if leads_astray(text) { Err(astray()) } else { Ok(utf8_percent_encode(text, SEGMENT).to_string()) }
}

/// Whether a part of a path is a step through it, as URLs have it (`%2e` is a dot there).
pub(crate) fn leads_astray(part: &str) -> bool {
    matches!(part.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
}

/// Whether a path of a target's link leads through the path for a server that decodes it first, as many gateways do:
/// `..%2fadmin`, and the like. An id with an encoded slash in it does not.
pub(super) fn leads_out(path: &str) -> bool {
    let mut path = path.to_owned();
    for _ in 0..MAX_DECODED {
        // Some servers cut parameters (`;…`) off a part before they look at it.
        let is_step = |part: &str| matches!(part.split(';').next(), Some("." | ".."));
        if path.split(['/', '\\']).any(is_step) {
            return true;
        }
        let decoded = percent_decode_str(&path).decode_utf8_lossy().into_owned();
        if decoded == path {
            return false;
        }
        path = decoded;
    }
    true
}

pub(super) fn astray() -> CrmError {
    // The target was not asked.
    CrmError::new(Problem::Ours(Code::InvalidParams))
        .reason("\".\" and \"..\" are no ids, and no part of a path; give another value")
}

/// A request below the resource's url.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(super) method: Method,
    pub(super) url: Target,
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
    pub(super) writes: bool,
    pub(super) bare: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Target {
    /// Relative to the resource's url, encoded.
    Path(String),
    /// A target's own link, already checked.
    Link(Url),
}

impl Request {
    /// A request to a path below the resource's url. The path is code or configuration; what comes from a job or a target
    /// goes through [`segment`] first. A method other than GET and HEAD counts as a write.
    pub(crate) fn path(method: Method, path: impl Into<String>) -> Self {
        Self::to(method, Target::Path(path.into()))
    }

    /// A GET of a target's own link: see [`Exchange::link`](super::Exchange::link).
    pub(crate) fn link(url: Url) -> Self {
        Self::to(Method::GET, Target::Link(url))
    }

    fn to(method: Method, url: Target) -> Self {
        let writes = !method.is_safe();
        Self { method, url, query: Vec::new(), headers: HeaderMap::new(), body: None, writes, bare: false }
    }

    /// Adds a query parameter.
    pub(crate) fn query(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.query.push((key.into(), value.into()));
        self
    }

    /// Sets a header; a value that no header can carry is left out.
    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// Sends JSON.
    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        self.body = Some(Bytes::from(body.to_string()));
        self
    }

    /// Says that this request only reads, whatever its method (a search by POST, JSON-RPC).
    pub(crate) fn reads(mut self) -> Self {
        self.writes = false;
        self
    }

    /// Leaves the resource's `Authorization` out: the dialect sends credentials in its own way (a log-in).
    pub(crate) fn bare(mut self) -> Self {
        self.bare = true;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::leads_out;

    #[test]
    fn an_encoded_slash_is_taken_in_ids_and_not_in_steps() {
        for out in [
            "..%2fadmin",
            "..%5cadmin",
            "x/..%2F..%2fadmin",
            "a%2f..",
            "..;x%2fadmin",
            "..%252fadmin",
            "%2e%2e/x",
            "x%5C.%5Cy",
        ] {
            assert!(leads_out(out), "{out}");
        }
        for below in
            ["", "contacts", "contacts('a%2Fb')", "contacts('..%2Fb')", "a..b/c.d/...", "a%20b%25/%E9"]
        {
            assert!(!leads_out(below), "{below}");
        }
    }
}
