//! A circuit breaker per resource of a site: while its target is down, jobs wait in the queue instead of spending their
//! attempts on it, and the target is not hammered. The hub keeps it, so all agents of the site share it.
//!
//! ```text
//! closed ──5 failures in a row──► open ──after a while──► half open ──the one job tried succeeds──► closed
//!                                   ▲──────────────── it fails: open for longer ────────┘
//! ```

use passerelle_protocol::{Code, session::Attempt};
use std::time::{Duration, Instant};

/// How many attempts in a row must fail.
const THRESHOLD: u32 = 5;
/// How long it is open the first time; doubled with each failed try.
const OPEN: Duration = Duration::from_secs(5);
/// How long it is open at most.
const MAX_OPEN: Duration = Duration::from_secs(30);

/// What an attempt's outcome says of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// It answered.
    Up,
    /// It did not, or lets nobody in.
    Down,
    /// Nothing.
    Silent,
}

impl Health {
    /// What a failure of this code says.
    pub(crate) fn of(code: Code) -> Self {
        match code {
            Code::TargetUnreachable | Code::TargetTimeout | Code::TargetAuth => Self::Down,
            Code::TargetRefused
            | Code::TargetNotFound
            | Code::TargetConflict
            | Code::TargetFull
            | Code::TargetThrottled
            | Code::TargetUnsupported
            | Code::TargetProtocol => Self::Up,
            Code::PolicyDenied
            | Code::PathInvalid
            | Code::InvalidParams
            | Code::SignatureInvalid
            | Code::EnvelopeExpired
            | Code::Replayed
            | Code::TooLarge
            | Code::DigestMismatch
            | Code::Deadline
            | Code::Cancelled
            | Code::AgentOffline
            | Code::AgentLost
            | Code::Busy
            | Code::Paused
            | Code::BreakerOpen
            | Code::Internal => Self::Silent,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, rounds: u32 },
    HalfOpen { tried: Option<Attempt>, rounds: u32 },
}

/// One resource's breaker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Breaker(State);

impl Default for Breaker {
    fn default() -> Self {
        Self(State::Closed { failures: 0 })
    }
}

impl Breaker {
    /// How many attempts may start now; or, if none may, when to ask again.
    pub(crate) fn places(&mut self, now: Instant) -> Result<usize, Instant> {
        if let State::Open { until, rounds } = self.0 {
            if now < until {
                return Err(until);
            }
            self.0 = State::HalfOpen { tried: None, rounds };
        }
        Ok(match self.0 {
            State::HalfOpen { tried: Some(_), .. } => 0,
            State::HalfOpen { tried: None, .. } => 1,
            State::Closed { .. } | State::Open { .. } => usize::MAX,
        })
    }

    /// An attempt is about to be offered.
    pub(crate) fn starts(&mut self, attempt: Attempt) {
        if let State::HalfOpen { tried: tried @ None, .. } = &mut self.0 {
            *tried = Some(attempt);
        }
    }

    /// An attempt ended without telling of the target: another one may be tried.
    pub(crate) fn ended(&mut self, attempt: Attempt) {
        if let State::HalfOpen { tried, .. } = &mut self.0
            && *tried == Some(attempt)
        {
            *tried = None;
        }
    }

    /// What an attempt told of the target. True if the queue should be looked at again.
    pub(crate) fn told(&mut self, attempt: Attempt, health: Health, now: Instant) -> bool {
        let open = |rounds: u32| {
            let wait = OPEN.saturating_mul(1 << rounds.min(8)).min(MAX_OPEN);
            State::Open { until: now + wait, rounds: rounds + 1 }
        };
        let next = match (self.0, health) {
            (State::Closed { failures }, Health::Down) if failures + 1 >= THRESHOLD => open(0),
            (State::Closed { failures }, Health::Down) => State::Closed { failures: failures + 1 },
            (State::HalfOpen { tried, rounds }, Health::Down) if tried == Some(attempt) => open(rounds),
            (State::HalfOpen { tried, rounds }, Health::Silent) if tried == Some(attempt) => {
                State::HalfOpen { tried: None, rounds }
            }
            (_, Health::Up) => State::Closed { failures: 0 },
            (same, Health::Down | Health::Silent) => same,
        };
        let was_closed = matches!(self.0, State::Closed { .. });
        self.0 = next;
        // An opened one asks for a look when it may be tried again; a closed one lets the others go.
        !was_closed || !matches!(next, State::Closed { .. })
    }

    /// As the API shows it.
    pub(crate) fn as_str(&self, now: Instant) -> &'static str {
        match self.0 {
            State::Closed { .. } => "closed",
            State::Open { until, .. } if now < until => "open",
            State::Open { .. } | State::HalfOpen { .. } => "half_open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_protocol::JobId;

    fn attempt(n: u8) -> Attempt {
        Attempt::new(JobId::new(1, &[n; 10]), 1)
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for n in 0..5 {
            assert_eq!(breaker.as_str(now), "closed");
            breaker.told(attempt(n), Health::Down, now);
        }
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_lets_one_try_after_a_while() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!((breaker.as_str(now), breaker.places(now)), ("open", Err(now + OPEN)));
        let later = now + OPEN;
        assert_eq!((breaker.places(later), breaker.as_str(later)), (Ok(1), "half_open"));
        breaker.starts(attempt(9));
        assert_eq!(breaker.places(later), Ok(0));
        // A late word of another attempt does not count; that the tried one was not offered after all does.
        breaker.told(attempt(3), Health::Down, later);
        breaker.ended(attempt(9));
        assert_eq!(breaker.places(later), Ok(1));
        breaker.starts(attempt(10));
        assert!(breaker.told(attempt(10), Health::Down, later));
        assert_eq!(breaker.places(later), Err(later + 2 * OPEN));
        let again = later + 2 * OPEN;
        assert_eq!(breaker.places(again), Ok(1));
        breaker.starts(attempt(11));
        assert!(breaker.told(attempt(11), Health::Up, again));
        assert_eq!((breaker.places(again), breaker.as_str(again)), (Ok(usize::MAX), "closed"));
    }

    #[test]
    fn failures_that_do_not_follow_each_other_or_do_not_tell_of_the_target_keep_it_closed() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for n in 0..20 {
            let health = match n % 4 {
                3 => Health::Up,
                _ => Health::of(Code::TargetUnreachable),
            };
            breaker.told(attempt(n), health, now);
            breaker.told(attempt(n), Health::of(Code::PolicyDenied), now);
        }
        assert_eq!(breaker.as_str(now), "closed");
    }

    #[test]
    fn it_is_never_open_for_longer_than_half_a_minute() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for n in 0..20 {
            now += MAX_OPEN;
            assert_eq!(breaker.places(now), Ok(1));
            breaker.starts(attempt(n));
            breaker.told(attempt(n), Health::Down, now);
        }
        assert_eq!(breaker.places(now), Err(now + MAX_OPEN));
    }
}
