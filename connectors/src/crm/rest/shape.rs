//! What an operator says of an unknown REST interface: where things stand in its answers, and how it pages, searches,
//! tells changes and refuses. `[resources.X.rest]` holds for all entities, `[resources.X.entities.Y.rest]` for one.

use crate::crm::vocabulary::Given;
use jiff::Timestamp;
use passerelle_config::HumanDuration;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::Duration};

/// The keys as they are written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawShape {
    /// The path of one record, with `{id}`. Default: the collection, `/` and the id.
    item: Option<String>,
    /// Where the id stands in a record, as a dotted path.
    #[schemars(extend("default" = "id"))]
    id: Option<String>,
    /// Where the records stand in a page; `""` is the whole answer.
    #[schemars(extend("default" = ""))]
    list: Option<String>,
    /// Where the record stands in an answer about one; `""` is the whole answer.
    #[schemars(extend("default" = ""))]
    record: Option<String>,
    /// Where an answer has the next page's link or cursor; by page or offset: `null` there says that nothing follows.
    #[schemars(extend("default" = "next"))]
    next: Option<String>,
    /// `etag`, or where a record has its version. Default: none.
    version: Option<String>,
    /// The header that a write is conditional by. Default with `etag`: `If-Match`.
    version_header: Option<String>,
    /// Where a record tells its last change.
    modified: Option<String>,
    /// Where a record tells when it was made.
    created: Option<String>,
    /// How pages follow one another.
    #[schemars(extend("enum" = ["page", "offset", "link", "cursor", "none"], "default" = "none"))]
    paging: Option<String>,
    /// Query parameter of the page's number.
    #[schemars(extend("default" = "page"))]
    page_param: Option<String>,
    /// Query parameter of the page's size.
    #[schemars(extend("default" = "limit"))]
    size_param: Option<String>,
    /// Query parameter of how many records to leave out.
    #[schemars(extend("default" = "offset"))]
    offset_param: Option<String>,
    /// Query parameter of the cursor.
    #[schemars(extend("default" = "cursor"))]
    cursor_param: Option<String>,
    /// The first page's number.
    #[schemars(extend("default" = 1))]
    first_page: Option<u32>,
    /// The most records of a page that the server gives.
    #[schemars(range(min = 2, max = 1000), extend("default" = 100))]
    max_page: Option<u32>,
    /// Whether a page after the last one is a 404.
    #[schemars(extend("default" = false))]
    empty_page_is_404: Option<bool>,
    /// The method that changes a record; with `PUT` the whole record is read and sent.
    #[schemars(extend("enum" = ["PATCH", "POST", "PUT"], "default" = "PATCH"))]
    update: Option<String>,
    /// Query parameters of every request.
    query: Option<BTreeMap<String, String>>,
    /// Query parameter that says that a field has a value, with `{field}` and `{value}`.
    #[schemars(extend("default" = "{field}"))]
    filter_param: Option<String>,
    /// Its value, with `{field}` and `{value}`.
    #[schemars(extend("default" = "{value}"))]
    filter_value: Option<String>,
    /// Puts several conditions into one parameter, such as ` and `. Default: one parameter each.
    filter_join: Option<String>,
    /// How a quote in a value is written inside `'{value}'`.
    #[schemars(extend("enum" = ["double", "backslash", "refuse"], "default" = "refuse"))]
    filter_quote: Option<String>,
    /// Query parameters that sort by id.
    find_order: Option<BTreeMap<String, String>>,
    /// Query parameter of changes at or after a time; without it there are no `changes`.
    since_param: Option<String>,
    /// Its value, with `{time}`.
    #[schemars(extend("default" = "{time}"))]
    since_value: Option<String>,
    /// Query parameters that sort by the last change, then by id.
    since_order: Option<BTreeMap<String, String>>,
    /// How times are written: `space` is `2026-11-22 09:30:00` in UTC, `epoch` seconds since 1970.
    #[schemars(extend("enum" = ["rfc3339", "space", "epoch"], "default" = "rfc3339"))]
    time_format: Option<String>,
    /// Of the times that the server tells and filters by; at most 60s.
    #[schemars(extend("default" = "1s"))]
    granularity: Option<HumanDuration>,
    /// Whether the server itself refuses a second record of a key.
    #[schemars(extend("default" = false))]
    unique_keys: Option<bool>,
    /// Where a refusal has its words. Default: `detail`, `message`, `error` or `error.message`.
    error_message: Option<String>,
    /// Where a refusal names the fields. Default: `errors`, or the whole answer.
    error_fields: Option<String>,
    /// The header in which a refusal has its words.
    error_header: Option<String>,
    /// What in a 2xx answer says that it is a failure.
    failure: Option<String>,
}

/// How the pages of a list follow one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Paging {
    /// By page numbers.
    Page { page: String, size: String, first: usize },
    /// By how many records to leave out.
    Offset { offset: String, size: String },
    /// By a link in the answer.
    Link { size: String },
    /// By a token in the answer.
    Cursor { cursor: String, size: String },
    /// There is one page.
    None,
}

/// Where the version of a record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VersionAt {
    /// Nowhere.
    None,
    /// In the header `ETag`.
    ETag,
    /// In the record.
    Field(String),
}

/// How a value is kept from breaking out of a filter's quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quote {
    /// A quote is doubled.
    Double,
    /// A quote and a backslash get a backslash before them.
    Backslash,
    /// Such values are refused.
    Refuse,
}

/// How times are written in a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeFormat {
    /// `2026-11-22T09:30:00.5Z`
    Rfc3339,
    /// `2026-11-22 09:30:00`, in UTC.
    Space,
    /// Seconds since 1970.
    Epoch,
}

/// One entity's interface, complete.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// With `{id}`.
    pub(crate) item: String,
    pub(crate) id: String,
    pub(crate) list: String,
    pub(crate) record: String,
    pub(crate) version: VersionAt,
    /// The header that makes a write conditional.
    pub(crate) version_header: Option<String>,
    pub(crate) modified: Option<String>,
    /// Where a record tells when it was made.
    pub(crate) created: Option<String>,
    pub(crate) paging: Paging,
    /// Where an answer has the next page's link or cursor.
    pub(crate) next: String,
    pub(crate) max_page: usize,
    pub(crate) empty_page_is_404: bool,
    pub(crate) update: http::Method,
    pub(crate) query: Vec<(String, String)>,
    /// With `{field}` and `{value}`.
    pub(crate) filter: (String, String),
    /// Puts several filters into one parameter.
    pub(crate) filter_join: Option<String>,
    pub(crate) filter_quote: Quote,
    pub(crate) find_order: Vec<(String, String)>,
    /// Parameter and value, with `{time}`.
    pub(crate) since: Option<(String, String)>,
    pub(crate) since_order: Vec<(String, String)>,
    pub(crate) time_format: TimeFormat,
    pub(crate) granularity: Duration,
    pub(crate) unique_keys: bool,
    pub(crate) error_message: Vec<String>,
    pub(crate) error_fields: Option<String>,
    pub(crate) error_header: Option<String>,
    pub(crate) failure: Option<String>,
}

impl RawShape {
    /// These keys, and those of `base` for the rest.
    pub(crate) fn over(self, base: &Self) -> Self {
        macro_rules! over {
            ($($key:ident),*) => { Self { $($key: self.$key.or_else(|| base.$key.clone())),* } };
        }
        over!(
            item,
            id,
            list,
            record,
            next,
            version,
            version_header,
            modified,
            created,
            paging,
            page_param,
            size_param,
            offset_param,
            cursor_param,
            first_page,
            max_page,
            empty_page_is_404,
            update,
            query,
            filter_param,
            filter_value,
            filter_join,
            filter_quote,
            find_order,
            since_param,
            since_value,
            since_order,
            time_format,
            granularity,
            unique_keys,
            error_message,
            error_fields,
            error_header,
            failure
        )
    }

    /// Checks them; `wrong` takes a key and what is wrong with it. `target` is the path of the collection.
    pub(crate) fn check(self, target: &str, wrong: &mut dyn FnMut(&str, String)) -> Shape {
        let text = |given: Option<String>, default: &str| given.unwrap_or_else(|| default.to_owned());
        let item = self.item.unwrap_or_else(|| match target.ends_with('/') {
            true => format!("{target}{{id}}/"),
            false => format!("{target}/{{id}}"),
        });
        if !item.contains("{id}") {
            wrong("item", "must contain {id}, such as \"contacts/{id}\"".to_owned());
        }
        let size = text(self.size_param, "limit");
        let paging = match self.paging.as_deref().unwrap_or("none") {
            "none" => Paging::None,
            "page" => Paging::Page {
                page: text(self.page_param, "page"),
                size,
                first: self.first_page.unwrap_or(1) as usize,
            },
            "offset" => Paging::Offset { offset: text(self.offset_param, "offset"), size },
            "link" => Paging::Link { size },
            "cursor" => Paging::Cursor { cursor: text(self.cursor_param, "cursor"), size },
            other => {
                wrong(
                    "paging",
                    format!("unknown kind {other:?}; expected page, offset, link, cursor or none"),
                );
                Paging::None
            }
        };
        let max_page = self.max_page.unwrap_or(100) as usize;
        if !(2..=1000).contains(&max_page) {
            wrong("max_page", "expected 2 to 1000 records of one page".to_owned());
        }
        let update = match self.update.as_deref().unwrap_or("PATCH") {
            "PATCH" => http::Method::PATCH,
            "POST" => http::Method::POST,
            "PUT" => http::Method::PUT,
            other => {
                wrong("update", format!("unknown method {other:?}; expected PATCH, PUT or POST"));
                http::Method::PATCH
            }
        };
        let filter = (text(self.filter_param, "{field}"), text(self.filter_value, "{value}"));
        if !filter.0.contains("{value}") && !filter.1.contains("{value}") {
            wrong("filter_value", "must contain {value}".to_owned());
        }
        let filter_quote = match self.filter_quote.as_deref().unwrap_or("refuse") {
            "double" => Quote::Double,
            "backslash" => Quote::Backslash,
            "refuse" => Quote::Refuse,
            other => {
                wrong(
                    "filter_quote",
                    format!("unknown kind {other:?}; expected double, backslash or refuse"),
                );
                Quote::Refuse
            }
        };
        let version = match self.version.as_deref() {
            None | Some("") => VersionAt::None,
            Some("etag") => VersionAt::ETag,
            Some(field) => VersionAt::Field(field.to_owned()),
        };
        let version_header =
            self.version_header.or_else(|| (version == VersionAt::ETag).then(|| "if-match".to_owned()));
        if version_header.as_ref().is_some_and(|name| http::HeaderName::from_bytes(name.as_bytes()).is_err())
        {
            wrong("version_header", "not a header's name; write one such as \"If-Match\"".to_owned());
        }
        let since = self.since_param.map(|param| (param, text(self.since_value, "{time}")));
        if since.as_ref().is_some_and(|(_, value)| !value.contains("{time}")) {
            wrong("since_value", "must contain {time}".to_owned());
        }
        if since.is_some() && self.modified.is_none() {
            wrong(
                "modified",
                "missing; since_param needs to know where a record tells its last change".to_owned(),
            );
        }
        let time_format = match self.time_format.as_deref().unwrap_or("rfc3339") {
            "rfc3339" => TimeFormat::Rfc3339,
            "space" => TimeFormat::Space,
            "epoch" => TimeFormat::Epoch,
            other => {
                wrong("time_format", format!("unknown format {other:?}; expected rfc3339, space or epoch"));
                TimeFormat::Rfc3339
            }
        };
        let granularity = self.granularity.map_or(Duration::from_secs(1), |given| given.0);
        if granularity.is_zero() || granularity > Duration::from_secs(60) {
            wrong("granularity", "expected more than 0 and at most 60s".to_owned());
        }
        let pairs = |given: Option<BTreeMap<String, String>>| given.unwrap_or_default().into_iter().collect();
        Shape {
            item,
            id: text(self.id, "id"),
            list: text(self.list, ""),
            record: text(self.record, ""),
            version,
            version_header,
            modified: self.modified,
            created: self.created,
            paging,
            next: text(self.next, "next"),
            max_page,
            empty_page_is_404: self.empty_page_is_404.unwrap_or(false),
            update,
            query: pairs(self.query),
            filter,
            filter_join: self.filter_join,
            filter_quote,
            find_order: pairs(self.find_order),
            since,
            since_order: pairs(self.since_order),
            time_format,
            granularity,
            unique_keys: self.unique_keys.unwrap_or(false),
            error_message: match self.error_message {
                Some(path) => vec![path],
                None => ["detail", "message", "error", "error.message"].map(str::to_owned).to_vec(),
            },
            error_fields: self.error_fields,
            error_header: self.error_header,
            failure: self.failure,
        }
    }
}

impl Shape {
    /// The query parameters of a search; `None` if a value cannot stand in the filter without doubt.
    pub(crate) fn filters(&self, filter: &[Given<'_>]) -> Option<Vec<(String, String)>> {
        let mut pairs = Vec::new();
        for Given { field, value } in filter {
            let value = self.quoted(&plain(value))?;
            let fill = |template: &str| template.replace("{field}", &field.target).replace("{value}", &value);
            pairs.push((fill(&self.filter.0), fill(&self.filter.1)));
        }
        let Some(join) = self.filter_join.as_deref().filter(|_| pairs.len() > 1) else { return Some(pairs) };
        let param = pairs.first().map(|(param, _)| param.clone()).unwrap_or_default();
        let joined = pairs.into_iter().map(|(_, value)| value).collect::<Vec<_>>().join(join);
        Some(vec![(param, joined)])
    }

    /// A value for its place. In a template where it stands alone nothing can break out of it.
    fn quoted(&self, value: &str) -> Option<String> {
        if self.filter.1 == "{value}" {
            return Some(value.to_owned());
        }
        let special = |c: char| matches!(c, '\'' | '"' | '\\') || c.is_control();
        match self.filter_quote {
            _ if !value.contains(special) && !self.unquoted(value) => Some(value.to_owned()),
            Quote::Double if !value.contains(|c: char| c == '\\' || c.is_control()) && self.is_quoted() => {
                Some(value.replace('\'', "''"))
            }
            Quote::Backslash if !value.contains(char::is_control) && self.is_quoted() => {
                Some(value.replace('\\', "\\\\").replace('\'', "\\'").replace('"', "\\\""))
            }
            Quote::Double | Quote::Backslash | Quote::Refuse => None,
        }
    }

    fn is_quoted(&self) -> bool {
        self.filter.1.contains("'{value}'") || self.filter.1.contains("\"{value}\"")
    }

    /// Without quotes around it only letters, digits and what e-mail addresses and ids have are surely one value.
    fn unquoted(&self, value: &str) -> bool {
        let harmless = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | '+');
        !self.is_quoted() && !value.chars().all(harmless)
    }

    /// A time as this interface writes it.
    pub(crate) fn time(&self, at: Timestamp) -> String {
        let whole = self.granularity >= Duration::from_secs(1);
        match self.time_format {
            TimeFormat::Rfc3339 => at.to_string(),
            TimeFormat::Space if whole => at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            TimeFormat::Space => at.strftime("%Y-%m-%d %H:%M:%S%.6f").to_string(),
            TimeFormat::Epoch => at.as_second().to_string(),
        }
    }
}

/// A value as text.
pub(crate) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What stands at a dotted path; the whole for `""`.
pub(crate) fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    if path.is_empty() {
        return Some(value);
    }
    // A key with dots in it goes before a path.
    if let Some(found) = value.get(path) {
        return Some(found);
    }
    path.split('.').try_fold(value, |value, part| match value {
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        other => other.get(part),
    })
}

/// An object with these values at their dotted paths.
pub(crate) fn object(fields: &[Given<'_>]) -> Value {
    let mut object = Value::Object(Map::new());
    for Given { field, value } in fields {
        let mut place = &mut object;
        for part in field.target.split('.') {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = &mut place[part];
        }
        *place = (*value).clone();
    }
    object
}
