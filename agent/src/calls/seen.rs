//! The envelopes of calls that were taken, in memory: none is taken twice.
//!
//! What there is no room to remember is refused instead: the oldest ids are forgotten, and from then on everything that
//! was issued in their second or before is. The same holds for what a process before this one may have taken.

use passerelle_protocol::{
    JobId,
    limits::{CALL_LIFE, CLOCK_SKEW},
};
use std::collections::{BTreeMap, HashSet};

/// How many ids are remembered: ten seconds of more calls than an agent can carry out.
const MOST: usize = 65_536;

/// Why an envelope is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// It was taken before.
    Again,
    /// It was issued before this process started, or before what is still remembered.
    TooOld,
    /// More were issued in one second than can be remembered.
    Flood,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Seen {
    /// What was issued at this millisecond or before is refused.
    floor: i64,
    /// By the second in which they were issued.
    ids: BTreeMap<i64, HashSet<JobId>>,
    count: usize,
}

impl Seen {
    /// Nothing was taken; what was issued at `started` (Unix milliseconds) or before may have been, by the process before.
    pub fn since(started: i64) -> Self {
        Self { floor: started, ids: BTreeMap::new(), count: 0 }
    }

    /// What was issued at this millisecond or before is refused.
    pub fn floor(&self) -> i64 {
        self.floor
    }

    /// Takes an envelope, once; times are Unix milliseconds.
    ///
    /// # Errors
    /// See [`Replay`].
    pub fn take(&mut self, call: JobId, issued_at: i64, now: i64) -> Result<(), Replay> {
        let life = CALL_LIFE.as_secs().cast_signed() + CLOCK_SKEW.as_secs().cast_signed();
        let over = now.div_euclid(1000).saturating_sub(life);
        while self.ids.first_key_value().is_some_and(|(at, _)| *at < over) {
            self.forget_oldest();
        }
        if issued_at <= self.floor {
            return Err(Replay::TooOld);
        }
        if self.count >= MOST && self.ids.len() > 1 {
            self.forget_oldest();
            return self.take(call, issued_at, now);
        }
        let of_second = self.ids.entry(issued_at.div_euclid(1000)).or_default();
        if of_second.contains(&call) {
            return Err(Replay::Again);
        }
        if self.count >= MOST {
            return Err(Replay::Flood);
        }
        of_second.insert(call);
        self.count += 1;
        Ok(())
    }

    fn forget_oldest(&mut self) {
        if let Some((at, ids)) = self.ids.pop_first() {
            self.floor = self.floor.max(at.saturating_mul(1000).saturating_add(999));
            self.count -= ids.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> JobId {
        let mut random = [0; 10];
        random[2..].copy_from_slice(&(n as u64).to_be_bytes());
        JobId::new(1, &random)
    }

    #[test]
    fn what_was_issued_before_the_start_is_refused_and_what_was_taken_is_not_taken_again() {
        let mut seen = Seen::since(1_000_300);
        assert_eq!(seen.take(id(1), 1_000_300, 1_000_300), Err(Replay::TooOld));
        assert_eq!(seen.take(id(1), 1_000_301, 1_000_301), Ok(()), "in the second of the start");
        assert_eq!(seen.take(id(1), 1_000_301, 1_002_000), Err(Replay::Again));
        assert_eq!(seen.take(id(2), 1_001_000, 1_060_000), Ok(()));
        // As long as it could still be accepted it is known; then its time alone refuses it.
        assert_eq!(seen.take(id(1), 1_000_301, 1_120_000), Err(Replay::Again));
        assert_eq!(seen.take(id(3), 1_121_000, 1_121_000), Ok(()));
        assert_eq!(seen.take(id(1), 1_000_301, 1_121_000), Err(Replay::TooOld));
        assert_eq!((seen.floor(), seen.count), (1_000_999, 2));
    }

    #[test]
    fn what_finds_no_room_to_be_remembered_is_refused() {
        let mut seen = Seen::since(0);
        for n in 0..MOST {
            assert_eq!(seen.take(id(n), if n % 2 == 0 { 2000 } else { 1000 }, 2000), Ok(()));
        }
        assert_eq!(seen.take(id(MOST), 3000, 3000), Ok(()));
        assert_eq!((seen.floor(), seen.count), (1999, MOST / 2 + 1));
        assert_eq!(seen.take(id(1), 1000, 3000), Err(Replay::TooOld), "it was taken before");
        let mut seen = Seen::since(0);
        for n in 0..MOST {
            seen.take(id(n), 1000, 1000).unwrap();
        }
        assert_eq!(seen.take(id(MOST), 1999, 1999), Err(Replay::Flood));
        assert_eq!(seen.take(id(0), 1000, 1000), Err(Replay::Again));
        assert_eq!(seen.take(id(MOST), 2000, 2000), Ok(()));
    }
}
