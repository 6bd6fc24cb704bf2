//! Where a reading of changes by time stands, and what it told of late: the content of its cursors.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How far back late commits are looked for, in seconds.
pub(super) const OVERLAP: i64 = 120;

/// Where a reading by time stands. Times in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct At {
    /// The last time that was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) high: Option<i64>,
    /// The id of the last record.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) last: String,
    /// How many records from the beginning of the last time's grain on are told.
    #[serde(default)]
    pub(super) off: usize,
    /// Nothing before this is ever told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) floor: Option<i64>,
    /// From this second on all that was told is remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) whole: Option<i64>,
}

/// The beginning of the grain that a time lies in, in microseconds.
pub(super) fn floor_to(micros: i64, granularity: Duration) -> i64 {
    let grain = i64::try_from(granularity.as_micros()).unwrap_or(1).max(1);
    micros.div_euclid(grain).saturating_mul(grain)
}

/// What was told of late: a mark per change, with its second, or [`Recent::FUTURE`] if it was dated ahead.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Recent(Vec<(i64, [u8; 5])>);

impl Recent {
    pub(super) const MOST: usize = 400;
    const BYTES: usize = 6;
    /// The second of what was dated ahead: kept until its time has come.
    pub(super) const FUTURE: i64 = i64::MAX;
    /// At most so many of those.
    const MOST_FUTURE: usize = 100;
    /// How they are written in a cursor, where others have the seconds that they lie behind.
    const AHEAD: u8 = u8::MAX;

    pub(super) fn has(&self, mark: [u8; 5]) -> bool {
        self.0.iter().any(|(_, known)| *known == mark)
    }

    /// Whether a change of this second was told; one that was dated ahead is now one of its second.
    pub(super) fn met(&mut self, second: i64, mark: [u8; 5]) -> bool {
        match self.0.iter_mut().find(|(_, known)| *known == mark) {
            Some((known, _)) => {
                *known = (*known).min(second);
                true
            }
            None => false,
        }
    }

    /// Whether no more that is dated ahead can be remembered.
    pub(super) fn is_full_ahead(&self) -> bool {
        self.0.iter().filter(|(second, _)| *second == Self::FUTURE).count() >= Self::MOST_FUTURE
    }

    /// Forgets what was dated ahead and is there no more.
    pub(super) fn keep_ahead(&mut self, seen: &[[u8; 5]]) {
        self.0.retain(|(second, mark)| *second != Self::FUTURE || seen.contains(mark));
    }

    /// Remembers a change of this second and forgets what is too old or too much, whole seconds at a time.
    pub(super) fn add(&mut self, second: i64, mark: [u8; 5], at: &mut At) {
        self.0.push((second, mark));
        if self.0.len() > Self::MOST + Self::MOST / 8 {
            self.trim(at);
        }
    }

    pub(super) fn trim(&mut self, at: &mut At) {
        let Some(high) = at.high else { return };
        let high = high.div_euclid(1_000_000);
        self.0.retain(|(second, _)| *second >= high - OVERLAP);
        if self.0.len() > Self::MOST {
            // The newest first; of one second those that were told last.
            self.0.reverse();
            self.0.sort_by_key(|(second, _)| std::cmp::Reverse(*second));
            let oldest_dropped = self.0.get(Self::MOST).map_or(high, |(second, _)| *second);
            self.0.truncate(Self::MOST);
            self.0.reverse();
            at.whole = at.whole.max(Some(oldest_dropped + 1));
        }
    }

    pub(super) fn to_bytes(&self, high: i64) -> Vec<u8> {
        let high = high.div_euclid(1_000_000);
        let entry = |(second, mark): &(i64, [u8; 5])| {
            let behind = match *second {
                Self::FUTURE => Self::AHEAD,
                second => u8::try_from((high - second).clamp(0, OVERLAP)).unwrap_or_default(),
            };
            [&[behind][..], mark].concat()
        };
        self.0.iter().flat_map(entry).collect()
    }

    pub(super) fn from_bytes(bytes: &[u8], high: i64) -> Self {
        let high = high.div_euclid(1_000_000);
        let entry = |chunk: &[u8]| {
            let (behind, mark) = chunk.split_first()?;
            let second = if *behind == Self::AHEAD { Self::FUTURE } else { high - i64::from(*behind) };
            Some((second, mark.try_into().ok()?))
        };
        Self(bytes.chunks_exact(Self::BYTES).filter_map(entry).collect())
    }
}
