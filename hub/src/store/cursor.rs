//! Where a page of a list ended, as clients hand it back: time and number of the last row.

use super::Error;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

pub(crate) fn write_cursor(at: i64, seq: i64) -> String {
    URL_SAFE_NO_PAD.encode(format!("{at}.{seq}"))
}

pub(crate) fn read_cursor(text: &str) -> Result<(i64, i64), Error> {
    let read = || {
        let decoded = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (at, seq) = decoded.split_once('.')?;
        Some((at.parse().ok()?, seq.parse().ok()?))
    };
    read().ok_or_else(|| Error::BadRequest("cursor: not one that a page of this list gave".to_owned()))
}
