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
    /// What was issued at this second or before is refused.
    floor: i64,
    ids: BTreeMap<i64, HashSet<JobId>>,
    count: usize,
}

impl Seen {
    /// Nothing was taken; what was issued at `started` or before may have been, by the process before.
    pub fn since(started: i64) -> Self {
        Self { floor: started, ids: BTreeMap::new(), count: 0 }
    }

    /// What was issued at this second or before is refused.
    pub fn floor(&self) -> i64 {
        self.floor
    }

    /// Takes an envelope, once.
    ///
    /// # Errors
    /// See [`Replay`].
    pub fn take(&mut self, call: JobId, issued_at: i64, now: i64) -> Result<(), Replay> {
        let over = now.saturating_sub(CALL_LIFE.as_secs().cast_signed() + CLOCK_SKEW.as_secs().cast_signed());
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
        let of_second = self.ids.entry(issued_at).or_default();
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
            self.floor = self.floor.max(at);
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
        let mut seen = Seen::since(1000);
        assert_eq!(seen.take(id(1), 1000, 1000), Err(Replay::TooOld));
        assert_eq!(seen.take(id(1), 1001, 1001), Ok(()));
        assert_eq!(seen.take(id(1), 1001, 1002), Err(Replay::Again));
        assert_eq!(seen.take(id(2), 1001, 1060), Ok(()));
        // As long as it could still be accepted it is known; then its time alone refuses it.
        assert_eq!(seen.take(id(1), 1001, 1121), Err(Replay::Again));
        assert_eq!(seen.take(id(3), 1122, 1122), Ok(()));
        assert_eq!(seen.take(id(1), 1001, 1122), Err(Replay::TooOld));
        assert_eq!((seen.floor(), seen.count), (1001, 1));
    }

    #[test]
    fn what_finds_no_room_to_be_remembered_is_refused() {
        let mut seen = Seen::since(0);
        for n in 0..MOST {
            assert_eq!(seen.take(id(n), 1 + i64::from(n % 2 == 0), 2), Ok(()));
        }
        assert_eq!(seen.take(id(MOST), 3, 3), Ok(()));
        assert_eq!((seen.floor(), seen.count), (1, MOST / 2 + 1));
        assert_eq!(seen.take(id(1), 1, 3), Err(Replay::TooOld), "it was taken before");
        let mut seen = Seen::since(0);
        for n in 0..MOST {
            seen.take(id(n), 1, 1).unwrap();
        }
        assert_eq!(seen.take(id(MOST), 1, 1), Err(Replay::Flood));
        assert_eq!(seen.take(id(0), 1, 1), Err(Replay::Again));
        assert_eq!(seen.take(id(MOST), 2, 2), Ok(()));
    }
}
