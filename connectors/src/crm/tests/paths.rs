//! What of a job gets into a path.

use super::memory::exchange;
use crate::{
    Code,
    crm::{
        error::Problem,
        exchange::{
            Talk,
            request::{Request, segment},
        },
    },
};
use http::Method;
use std::time::Duration;

#[tokio::test]
async fn dots_lead_nowhere_however_they_are_written() {
    for text in [".", "..", "%2e", ".%2E"] {
        assert!(segment(text).is_err(), "{text}");
    }
    for (text, encoded) in [("...", "..."), ("a/../b", "a%2F..%2Fb"), ("1.5", "1.5"), ("%2e/", "%252e%2F")] {
        assert_eq!(segment(text).unwrap(), encoded);
    }
    let talk = Talk::within(Duration::from_secs(5));
    for path in
        ["..", "contacts/./x", "contacts/%2e%2E/x", "contacts/.%2e?a=b", "./contacts", "a\\..\\b", "a/.\t./b"]
    {
        let error = exchange().send(&talk, Request::path(Method::GET, path)).await.unwrap_err();
        assert_eq!(error.problem, Problem::Ours(Code::InvalidParams), "{path}");
    }
    // Nobody listens there, which is how far a sound path gets.
    for path in ["contacts/a..b/.c", "contacts?filter=../x"] {
        let error = exchange().send(&talk, Request::path(Method::GET, path)).await.unwrap_err();
        assert_eq!(error.problem, Problem::Unavailable, "{path}");
    }
}
