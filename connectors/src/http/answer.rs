//! What an answer means: which statuses fail and how, `Retry-After`, and the header fields that go into the result.

use super::path;
use crate::{Code, Failure, hiding::Secrets};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_LOCATION, LOCATION, RETRY_AFTER},
};
use jiff::{Timestamp, fmt::strtime};
use serde_json::{Map, Value};
use std::time::Duration;
use url::Url;

/// A target's hint is followed up to this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Judges a status that is not a success. `reading` says that the request only read; `notify` that all final refusals
/// are one code, as the contract has it.
pub(super) fn refusal(status: StatusCode, headers: &HeaderMap, reading: bool, notify: bool) -> Failure {
    let says = |what: &str| format!("the target {what} (status {})", status.as_u16());
    let failure = match status.as_u16() {
        401 | 403 => Failure::permanent(
            if notify { Code::TargetRefused } else { Code::TargetAuth },
            says("refused the resource's credentials; check auth and the account's rights"),
        ),
        407 if !notify => {
            Failure::permanent(Code::TargetAuth, says("is behind a proxy that refused its credentials"))
        }
        408 | 504 => Failure::retry(Code::TargetTimeout, says("reports a timeout")),
        425 | 429 | 503 => Failure::retry(Code::TargetThrottled, says("asks to come back later")),
        500..=599 => Failure::retry(Code::TargetRefused, says("reports a fault of its own")),
        304 => Failure::permanent(
            Code::TargetRefused,
            says(
                "answered that nothing was modified, as it may to a request with a condition; leave If-None-Match and \
                 If-Modified-Since out of its headers, or list 304 in expect",
            ),
        ),
        300..=399 if !headers.contains_key(LOCATION) => Failure::permanent(
            Code::TargetRefused,
            says("answered with a redirect that leads nowhere; check the path of the request"),
        ),
        300..=399 => Failure::permanent(
            Code::TargetRefused,
            says("answered with a redirect, which is not followed; set the resource's url to where it leads"),
        ),
        404 | 410 if !notify => Failure::permanent(Code::TargetNotFound, says("does not have it")),
        409 | 412 if !notify => Failure::permanent(Code::TargetConflict, says("reports a conflict")),
        200..=299 => Failure::permanent(Code::TargetRefused, says("gave an answer that is not in expect")),
        _ => Failure::permanent(Code::TargetRefused, says("refused the request")),
    };
    let failure = match failure.verdict {
        crate::Verdict::Retry => failure.retry_after(retry_after(headers, Timestamp::now())),
        crate::Verdict::Permanent | crate::Verdict::Denied | crate::Verdict::Cancelled => failure,
    };
    // An application that answers an error says that it did not do the work; a gateway cannot know whether the
    // application behind it did.
    let in_doubt = matches!(status.as_u16(), 200..=299 | 502 | 504);
    if in_doubt && !reading { failure.effect_unknown() } else { failure }
}

/// `Retry-After` as seconds or as one of the three forms of an HTTP date (RFC 9110 §10.2.3, §5.6.7).
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // Too long for a u64 is surely past the limit.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        Duration::try_from(http_date(text)?.duration_since(now)).unwrap_or(Duration::ZERO)
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// One of the three forms of an HTTP date.
pub(crate) fn http_date(text: &str) -> Option<Timestamp> {
    const FORMS: &[&str] =
        &["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    FORMS.iter().find_map(|form| {
        let parsed = strtime::parse(form, text).ok()?;
        parsed.to_datetime().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    })
}

/// Header fields that are between the agent and the target, tell of its inside, or let the reader act as the agent.
const DROPPED: &[&str] = &[
    "alt-svc",
    "authentication-info",
    // A proxy, or the application, that gives back what it was sent.
    "authorization",
    "clear-site-data",
    "connection",
    "cookie",
    "cookie2",
    "keep-alive",
    "link",
    "location",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "refresh",
    "server",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "www-authenticate",
    "x-powered-by",
];

/// The header fields for the job's result: lower case, several values joined, bounded. `location` and
/// `content-location` are told only if they lead below the resource's URL, and relative to it; `link` and `refresh` name whole
/// addresses and are not told, and neither are fields that are the agent's `own`. The resource's secrets are taken out.
pub(super) fn headers(
    headers: &HeaderMap,
    asked: &Url,
    base: &Url,
    own: &[HeaderName],
    secrets: &Secrets,
) -> Value {
    let mut kept = Map::new();
    let mut bytes = 0;
    for name in headers.keys() {
        let value = if *name == LOCATION || *name == CONTENT_LOCATION {
            location(headers.get(name), asked, base)
                .and_then(|to| to.as_str().strip_prefix(base.as_str()).map(str::to_owned))
        } else if DROPPED.contains(&name.as_str())
            || own.contains(name)
            || secrets.hide(name.as_str()) != name.as_str()
        {
            None
        } else {
            let values: Option<Vec<&str>> =
                headers.get_all(name).iter().map(|value| value.to_str().ok()).collect();
            values.map(|values| values.join(", "))
        };
        let Some(value) = value.map(|value| secrets.hide(&value)) else { continue };
        bytes += name.as_str().len() + value.len();
        if kept.len() == MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            break;
        }
        kept.insert(name.as_str().to_owned(), Value::String(value));
    }
    Value::Object(kept)
}

/// Where an answer points to, if that is below the resource's URL.
fn location(header: Option<&HeaderValue>, asked: &Url, base: &Url) -> Option<Url> {
    let mut to = asked.join(header?.to_str().ok()?).ok()?;
    to.set_fragment(None);
    path::is_below(base, &to).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::{refusal, retry_after};
    use crate::{Code, Effect, Verdict, hiding::Secrets};
    use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
    use serde_json::{Value, json};
    use std::time::Duration;
    use url::Url;

    fn headers(headers: &HeaderMap, asked: &Url, base: &Url) -> Value {
        super::headers(headers, asked, base, &[], &Secrets::default())
    }

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn each_status_has_its_verdict_code_and_effect() {
        use {Code as C, Effect as E, Verdict as V};
        for (status, verdict, code, effect) in [
            (301, V::Permanent, C::TargetRefused, E::NotApplied),
            (400, V::Permanent, C::TargetRefused, E::NotApplied),
            (401, V::Permanent, C::TargetRefused, E::NotApplied),
            (403, V::Permanent, C::TargetRefused, E::NotApplied),
            (404, V::Permanent, C::TargetRefused, E::NotApplied),
            (408, V::Retry, C::TargetTimeout, E::NotApplied),
            (409, V::Permanent, C::TargetRefused, E::NotApplied),
            (413, V::Permanent, C::TargetRefused, E::NotApplied),
            (422, V::Permanent, C::TargetRefused, E::NotApplied),
            (425, V::Retry, C::TargetThrottled, E::NotApplied),
            (429, V::Retry, C::TargetThrottled, E::NotApplied),
            (500, V::Retry, C::TargetRefused, E::NotApplied),
            (501, V::Retry, C::TargetRefused, E::NotApplied),
            (502, V::Retry, C::TargetRefused, E::Unknown),
            (503, V::Retry, C::TargetThrottled, E::NotApplied),
            (504, V::Retry, C::TargetTimeout, E::Unknown),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let failure = refusal(status, &HeaderMap::new(), false, true);
            assert_eq!((failure.verdict, failure.code, failure.effect), (verdict, code, effect), "{status}");
            assert!(failure.message.contains(status.as_str()), "{}", failure.message);
            let reading = refusal(status, &HeaderMap::new(), true, false);
            assert_eq!(reading.effect, Effect::NotApplied, "{status}");
        }
        let request = |status: u16| {
            refusal(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), false, false).code
        };
        assert_eq!(
            [404, 410, 409, 412].map(request).as_slice(),
            [Code::TargetNotFound, Code::TargetNotFound, Code::TargetConflict, Code::TargetConflict]
        );
    }

    #[test]
    fn only_a_redirect_is_said_to_lead_somewhere() {
        let message = |status: u16, pairs: &[(&str, &str)]| {
            refusal(StatusCode::from_u16(status).unwrap(), &map(pairs), false, true).message
        };
        assert!(message(302, &[("location", "/x")]).contains("where it leads"));
        assert!(message(304, &[]).contains("nothing was modified"));
        assert!(message(300, &[]).contains("leads nowhere"));
    }

    #[test]
    fn retry_after_takes_seconds_and_every_form_of_date_and_is_clamped() {
        let now = "1994-11-06T08:49:07Z".parse().unwrap();
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("3601", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(30)),
            ("Sun Nov  6 08:49:37 1994", Some(30)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Mon, 07 Nov 1994 08:49:37 GMT", Some(3600)),
            ("soon", None),
            ("-5", None),
            ("", None),
            ("1.5", None),
        ] {
            let got = retry_after(&map(&[("retry-after", text)]), now);
            assert_eq!(got, seconds.map(Duration::from_secs), "{text}");
        }
        let failure = refusal(StatusCode::TOO_MANY_REQUESTS, &map(&[("retry-after", "7")]), false, true);
        assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn the_result_tells_only_harmless_header_fields() {
        let base = Url::parse("https://h/api/").unwrap();
        let asked = base.join("orders/1").unwrap();
        let told = headers(
            &map(&[
                ("Content-Type", "text/plain"),
                ("ETag", "\"x\""),
                ("Set-Cookie", "session=1"),
                ("Server", "nginx"),
                ("WWW-Authenticate", "Basic"),
                ("X-Many", "a"),
                ("X-Many", "b"),
                ("Location", "/api/orders/2?x=1"),
            ]),
            &asked,
            &base,
        );
        let expected = json!({ "content-type": "text/plain", "etag": "\"x\"", "x-many": "a, b", "location": "orders/2?x=1" });
        assert_eq!(told, expected);
        for elsewhere in ["https://other/api/orders", "/admin", "//other/api/", "https://u:p@h/api/x"] {
            for name in ["Location", "Content-Location", "Link", "Refresh"] {
                let told = headers(&map(&[(name, elsewhere)]), &asked, &base);
                assert_eq!(told, json!({}), "{name}: {elsewhere}");
            }
        }
        let many: Vec<(String, String)> = (0..80).map(|i| (format!("x-{i}"), "v".repeat(100))).collect();
        let pairs: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(headers(&map(&pairs), &asked, &base).as_object().unwrap().len(), 64);
    }

    #[test]
    fn no_credential_comes_back_with_an_answer() {
        let base = Url::parse("https://app.intra/api/").unwrap();
        let mut secrets = Secrets::default();
        secrets.add("S3CRET-token");
        let given = map(&[
            ("authorization", "Bearer S3CRET-token"),
            ("proxy-authorization", "Basic x"),
            ("cookie", "a=b"),
            ("x-api-key", "ab"),
            ("x-s3cret-token", "1"),
            ("x-echo", "Bearer s3cret-token, S3CRET%2Dtoken"),
        ]);
        let own = [HeaderName::from_static("x-api-key")];
        let told = super::headers(&given, &base, &base, &own, &secrets);
        assert_eq!(told, json!({ "x-echo": "Bearer [secret], [secret]" }));
    }
}
