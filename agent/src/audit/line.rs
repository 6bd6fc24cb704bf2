//! One row of the chain as text: what exactly is hashed.
//!
//! A line is a JSON object without spaces, its members in a fixed order, the last two `prev` and `hash`. The hash is the
//! SHA-256 of the line's bytes up to the comma before `hash`, closed with `}`. `prev` is the hash of the row before it.

use super::{Entry, Kind};
use jiff::Timestamp;
use passerelle_protocol::Sha256;
use serde::{Deserialize, Serialize};

/// `prev` of the first row.
pub const GENESIS: [u8; 32] = [0; 32];
/// `,"hash":"` and 64 digits and `"}`.
const TAIL: usize = 9 + 64 + 2;

/// The end of the chain: the newest row's number and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number; 0 before the first row.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Head {
    /// Before the first row.
    pub const START: Self = Self { seq: 0, hash: GENESIS };
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, Sha256::from(self.hash))
    }
}

impl std::str::FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected NUMBER:HASH, as `audit verify` prints it".to_owned();
        let (seq, hash) = text.trim().split_once(':').ok_or_else(wrong)?;
        let hash: Sha256 = hash.parse().map_err(|_| wrong())?;
        Ok(Self { seq: seq.parse().map_err(|_| wrong())?, hash: *hash.bytes() })
    }
}

#[derive(Serialize)]
struct Written<'a> {
    seq: u64,
    at: Timestamp,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effect: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    prev: Sha256,
}

/// What is read of a line. Fields of later versions are ignored here; the hash covers them all the same.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// Its number.
    pub seq: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What.
    pub kind: String,
    /// The job.
    pub job: Option<String>,
    /// The attempt.
    pub attempt: Option<u32>,
    /// The resource.
    pub resource: Option<String>,
    /// The operation.
    pub operation: Option<String>,
    /// The rule.
    pub rule: Option<String>,
    /// The code.
    pub code: Option<String>,
    /// The effect.
    pub effect: Option<String>,
    /// How many.
    pub count: Option<u64>,
    /// One short sentence.
    pub detail: Option<String>,
    /// The hash of the row before it.
    pub prev: Sha256,
}

/// Writes the row that follows `head`, with `seq` at least the next number.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn write(entry: &Entry, head: Head, seq: u64) -> serde_json::Result<(String, Head)> {
    let written = Written {
        seq,
        at: entry.at,
        kind: entry.kind,
        job: entry.job.map(|job| job.to_string()),
        attempt: entry.attempt,
        resource: entry.resource.as_deref(),
        operation: entry.operation.as_deref(),
        rule: entry.rule.as_deref(),
        code: entry.code.as_deref(),
        effect: entry.effect,
        count: entry.count,
        detail: entry.detail.as_deref(),
        prev: Sha256::from(head.hash),
    };
    let mut line = serde_json::to_string(&written)?;
    let hash = Sha256::of(line.as_bytes());
    line.pop();
    line.push_str(&format!(",\"hash\":\"{hash}\"}}"));
    Ok((line, Head { seq, hash: *hash.bytes() }))
}

/// Reads a line and checks its own hash.
///
/// # Errors
/// Why it is no row, or not the one it was.
pub fn read(line: &str) -> Result<(Row, Head), String> {
    let cut = line.len().checked_sub(TAIL).filter(|cut| line.is_char_boundary(*cut));
    let (body, tail) = cut.and_then(|cut| line.split_at_checked(cut)).ok_or("it is too short for a row")?;
    let told = tail.strip_prefix(",\"hash\":\"").and_then(|tail| tail.strip_suffix("\"}"));
    let told: Sha256 = told
        .and_then(|hash| hash.parse().ok())
        .ok_or("it does not end with its hash: it is cut off or was written by something else")?;
    let hash = Sha256::of(format!("{body}}}").as_bytes());
    if hash != told {
        return Err("its hash does not fit its content: it was changed".to_owned());
    }
    let row: Row = serde_json::from_str(line).map_err(|error| format!("it is no row: {error}"))?;
    let head = Head { seq: row.seq, hash: *hash.bytes() };
    Ok((row, head))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry { at: Timestamp::from_second(1_795_240_800).unwrap(), ..Entry::new(Kind::AgentStarted) }
    }

    /// The example of `docs/audit.md`.
    #[test]
    fn the_line_of_the_documentation_is_what_is_written() {
        let entry = Entry { resource: Some("compta".into()), ..entry() }.detail("version \"1\"");
        let (line, head) = write(&entry, Head::START, 1).unwrap();
        let page = include_str!("../../../docs/audit.md");
        assert!(page.contains(&line), "docs/audit.md does not show\n{line}");
        assert_eq!(read(&line).unwrap().1, head);
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let (line, _) = write(&entry().detail("où"), Head::START, 7).unwrap();
        for at in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(changed) = String::from_utf8(bytes) {
                assert!(read(&changed).is_err(), "{at}: {changed}");
            }
        }
        for end in 0..line.len() {
            assert!(line.get(..end).is_none_or(|short| read(short).is_err()));
        }
        assert!(read(&format!("{line} ")).is_err());
    }

    #[test]
    fn a_head_is_written_as_it_is_read() {
        let head = Head { seq: 12, hash: [0xab; 32] };
        assert_eq!(head.to_string().parse(), Ok(head));
        for wrong in ["", "12", "12:", "12:zz", "x:00"] {
            assert!(wrong.parse::<Head>().is_err(), "{wrong}");
        }
    }
}
