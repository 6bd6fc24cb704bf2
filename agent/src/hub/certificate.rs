//! The few fields of an X.509 certificate (RFC 5280 §4.1) that messages tell: who issued it, for whom, until when.
//!
//! Read for people only: whether a certificate is trusted is decided by the verifier.

use jiff::Timestamp;

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The issuer's common name, else its organisation.
    pub issuer: Option<String>,
    /// The subject's common name, else its organisation.
    pub subject: Option<String>,
    /// The last moment at which it is valid.
    pub not_after: Option<Timestamp>,
}

impl Facts {
    /// Reads a certificate in DER; `None` if it is none.
    pub fn read(certificate: &[u8]) -> Option<Self> {
        let (_, certificate, _) = element(certificate)?;
        let (_, mut fields, _) = element(certificate)?;
        // Version (tagged, optional), serial number, signature algorithm, then the issuer.
        if fields.first() == Some(&0xa0) {
            (_, _, fields) = element(fields)?;
        }
        for _ in 0..2 {
            (_, _, fields) = element(fields)?;
        }
        let (_, issuer, fields) = element(fields)?;
        let (_, validity, fields) = element(fields)?;
        let (_, _, validity) = element(validity)?;
        let (tag, not_after, _) = element(validity)?;
        let (_, subject, _) = element(fields)?;
        Some(Self { issuer: name(issuer), subject: name(subject), not_after: time(tag, not_after) })
    }

    /// The issuer in quotes, for a sentence.
    pub fn issuer(&self) -> String {
        self.issuer.as_ref().map_or("an issuer without a name".to_owned(), |issuer| format!("{issuer:?}"))
    }
}

/// The common name, or the organisation, of a distinguished name.
fn name(mut sets: &[u8]) -> Option<String> {
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    const ORGANISATION: &[u8] = &[0x55, 0x04, 0x0a];
    let mut organisation = None;
    while !sets.is_empty() {
        let (_, mut attributes, rest) = element(sets)?;
        sets = rest;
        while !attributes.is_empty() {
            let (_, attribute, rest) = element(attributes)?;
            attributes = rest;
            let (_, kind, value) = element(attribute)?;
            let (_, text, _) = element(value)?;
            let text =
                || String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(128).collect();
            if kind == COMMON_NAME {
                return Some(text());
            } else if kind == ORGANISATION {
                organisation = Some(text());
            }
        }
    }
    organisation
}

/// `UTCTime` (tag 0x17, two digits of the year) or `GeneralizedTime` (four), always in UTC (RFC 5280 §4.1.2.5).
fn time(tag: u8, text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let text = match tag {
        0x17 => {
            let century = if text.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
            format!("{century}{text}")
        }
        _ => text.to_owned(),
    };
    let part = |from: usize, to: usize| text.get(from..to);
    let (date, clock) =
        ((part(0, 4)?, part(4, 6)?, part(6, 8)?), (part(8, 10)?, part(10, 12)?, part(12, 14)?));
    format!("{}-{}-{}T{}:{}:{}Z", date.0, date.1, date.2, clock.0, clock.1, clock.2).parse().ok()
}

/// Splits the first DER element off: tag, content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |n, digit| n << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_certificates_tell_nothing() {
        for bad in [
            &b""[..],
            b"\x30",
            b"\x30\x82",
            b"\x30\x03\x30\x01",
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0; 64],
        ] {
            assert_eq!(Facts::read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn issuer_subject_and_end_are_read_in_both_notations_of_time() {
        for (year, end) in [(2031, "2031-02-03T00:00:00Z"), (2061, "2061-02-03T00:00:00Z")] {
            let mut ca = rcgen::CertificateParams::default();
            ca.distinguished_name = rcgen::DistinguishedName::new();
            ca.distinguished_name.push(rcgen::DnType::OrganizationName, "Acme");
            ca.distinguished_name.push(rcgen::DnType::CommonName, "Inspect");
            let issuer = rcgen::Issuer::new(ca, rcgen::KeyPair::generate().unwrap());
            let mut params = rcgen::CertificateParams::new(vec!["hub.example.com".to_owned()]).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "Hub");
            params.not_after = rcgen::date_time_ymd(year, 2, 3);
            let certificate = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
            let facts = Facts::read(certificate.der()).unwrap();
            assert_eq!((facts.issuer.as_deref(), facts.subject.as_deref()), (Some("Inspect"), Some("Hub")));
            assert_eq!(facts.not_after, Some(end.parse().unwrap()));
            assert_eq!(facts.issuer(), "\"Inspect\"");
        }
    }
}
