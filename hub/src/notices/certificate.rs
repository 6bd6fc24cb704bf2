//! The hub's own TLS certificate: when it ends, and telling of it in time. Agents cannot connect any more once it has ended.
//!
//! Certificates that agents meet at private resources are not known here: no message tells of them.

use crate::{
    model::NoticeKind,
    store::{
        Error, Store,
        notices::{NewNotice, tell},
        row::name,
    },
};
use jiff::{Timestamp, Unit, civil};
use passerelle_protocol::{Name, Sha256};
use rusqlite::{OptionalExtension as _, params};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use std::path::Path;
use uuid::Uuid;

/// It is told when fewer than so many days are left, once for each.
const DAYS: [i64; 5] = [30, 14, 7, 3, 1];

/// A certificate whose end is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Its digest, as browsers show it.
    pub sha256: Sha256,
    /// Its last moment.
    pub not_after: Timestamp,
}

impl Watched {
    /// Reads the first certificate of a PEM file; `None` if there is none whose end can be read.
    #[must_use]
    pub fn read(file: &Path) -> Option<Self> {
        let certificate = CertificateDer::pem_file_iter(file).ok()?.next()?.ok()?;
        Some(Self { sha256: Sha256::of(&certificate), not_after: not_after(&certificate)? })
    }

    /// The step that is due: the fewest days that are told of and not yet over.
    fn step(&self, now: Timestamp) -> Option<i64> {
        let left = self.not_after.duration_since(now).as_secs();
        DAYS.into_iter().rev().find(|days| left <= days * 24 * 3600)
    }
}

impl Store {
    /// Tells every tenant when the certificate came a step nearer to its end.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub async fn look_at_certificate(&self, certificate: Watched) -> Result<(), Error> {
        let Some(step) = certificate.step(crate::clock::now()) else { return Ok(()) };
        self.write(move |tx| {
            let key = format!("certificate_told:{}", certificate.sha256);
            let told: Option<String> = tx
                .conn
                .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
                .query_row([&key], |row| row.get(0))
                .optional()?;
            if told.and_then(|told| told.parse().ok()).is_some_and(|told: i64| told <= step) {
                return Ok(());
            }
            tx.conn.execute("DELETE FROM meta WHERE key LIKE 'certificate_told:%' AND key <> ?1", [&key])?;
            let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2) \
                       ON CONFLICT (key) DO UPDATE SET value = excluded.value";
            tx.conn.prepare_cached(sql)?.execute(params![key, step.to_string()])?;
            let left = certificate.not_after.duration_since(tx.now).as_secs().max(0);
            tracing::warn!(
                days_left = left / 86_400,
                "The hub's TLS certificate expires soon: renew it and restart"
            );
            let tenants: Vec<Name> = {
                let mut statement = tx.conn.prepare_cached("SELECT name FROM tenants ORDER BY name")?;
                let rows = statement.query_map([], |row| name(row, 0))?;
                rows.collect::<Result<_, _>>()?
            };
            for tenant in &tenants {
                let data = json!({
                    "Certificat": "hub",
                    "Sha256": certificate.sha256,
                    "DateExpiration": certificate.not_after,
                    "JoursRestants": left / 86_400,
                });
                let kind = NoticeKind::CertificatBientotExpire;
                tell(tx, &NewNotice { tenant, kind, line: Uuid::nil(), data })?;
            }
            Ok(())
        })
        .await
    }
}

/// The end of the validity of a certificate in DER (RFC 5280 §4.1). Read to tell people; nothing is trusted for it.
fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    // Version (tagged, optional), serial number, signature algorithm, issuer; then the validity.
    let skipped = if fields.first() == Some(&0xa0) { 4 } else { 3 };
    for _ in 0..skipped {
        (_, _, fields) = element(fields)?;
    }
    let (_, validity, _) = element(fields)?;
    let (_, _, validity) = element(validity)?;
    let (tag, text, _) = element(validity)?;
    let text = std::str::from_utf8(text).ok()?;
    let digits = text.strip_suffix('Z')?;
    let number = |from: usize| digits.get(from..from + 2)?.parse::<i16>().ok();
    // UTCTime has years of two digits, GeneralizedTime of four.
    let (year, at) = match tag {
        0x17 => (number(0).map(|year| if year < 50 { 2000 + year } else { 1900 + year })?, 2),
        0x18 => (number(0)? * 100 + number(2)?, 4),
        _ => return None,
    };
    let part = |index: usize| number(at + 2 * index).and_then(|n| i8::try_from(n).ok());
    let time = civil::DateTime::new(year, part(0)?, part(1)?, part(2)?, part(3)?, part(4)?, 0).ok()?;
    let zoned = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    zoned.timestamp().round(Unit::Second).ok()
}

/// Tag, content and what follows of the first element.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, testing::Hub};

    fn until(year: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["hub.example.com".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 2, 3);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_notations() {
        for (year, end) in [(2027, "2027-02-03T00:00:00Z"), (2061, "2061-02-03T00:00:00Z")] {
            let certificate = until(year);
            assert_eq!(not_after(&certificate), Some(end.parse().unwrap()));
            for cut in 0..certificate.len() {
                let _ = not_after(&certificate[..cut]);
            }
        }
        assert_eq!(not_after(b"no certificate"), None);
    }

    #[tokio::test]
    async fn each_step_is_told_once() {
        let hub = Hub::new().await;
        let told = async || -> i64 {
            let count = |conn: &rusqlite::Connection| {
                Ok(conn.query_row("SELECT count(*) FROM notices", [], |row| row.get(0))?)
            };
            hub.store.read(count).await.unwrap()
        };
        let ends_in = |days: i64| Watched {
            sha256: Sha256::of(b"one"),
            not_after: clock::now().checked_add(jiff::SignedDuration::from_hours(days * 24 - 1)).unwrap(),
        };
        for (days, expected) in [(31, 0), (30, 1), (29, 1), (14, 2), (14, 2), (6, 3), (1, 4), (0, 4)] {
            hub.store.look_at_certificate(ends_in(days)).await.unwrap();
            assert_eq!(told().await, expected, "{days}");
        }
        // Its successor is another one.
        let next = Watched { sha256: Sha256::of(b"two"), ..ends_in(20) };
        hub.store.look_at_certificate(next).await.unwrap();
        assert_eq!(told().await, 5);
    }
}
