//! What a resource remembers of its token and of the token server. Pure: time is passed in.

use super::{Fetched, Token};
use crate::{Failure, Verdict};
use std::time::{Duration, Instant};

/// A token is renewed this long before its end, or a fifth of its lifetime if that is less.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a token counts as good whose server does not say it; an application that thinks otherwise answers 401.
const UNSAID: Duration = Duration::from_secs(3600);
/// No token is kept longer than this, whatever the server says.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How long a token server that refused the client is left alone: doubled each time, up to the second.
const REFUSED: Duration = Duration::from_secs(60);
const REFUSED_LONGEST: Duration = Duration::from_secs(15 * 60);
/// How long one that has other trouble is left alone, if it does not say so itself; and the most that it may say.
const TROUBLED: Duration = Duration::from_secs(1);
const TROUBLED_LONGEST: Duration = Duration::from_secs(300);
/// How long the 401 to a fresh token is taken for the application's last word.
const BARREN: Duration = Duration::from_secs(60);

/// The token, and what became of the fetches.
#[derive(Default)]
pub(super) struct State {
    held: Option<Held>,
    fetches: u64,
    /// What the last fetch ended with, if it failed, and until when there is no other.
    failed: Option<(Failure, Instant)>,
    refusals: u32,
    barren: Option<(u64, Instant)>,
}

struct Held {
    token: Token,
    /// From then on it is better to have a new one.
    due: Instant,
    ends: Instant,
}

impl State {
    /// How many fetches have ended.
    pub(super) fn fetches(&self) -> u64 {
        self.fetches
    }

    /// The token, if nobody needs to fetch one now.
    pub(super) fn usable(&self, now: Instant) -> Option<Token> {
        let held = self.held.as_ref()?;
        let left_alone = self.failed.as_ref().is_some_and(|(_, until)| now < *until);
        (now < held.due || (now < held.ends && left_alone)).then(|| held.token.clone())
    }

    /// The token, if it is another one than `old` and has not ended.
    pub(super) fn newer_than(&self, old: &Token, now: Instant) -> Option<Token> {
        let held = self.held.as_ref()?;
        (held.token.number > old.number && now < held.ends).then(|| held.token.clone())
    }

    /// Forgets a token that the application does not take.
    pub(super) fn drop_token(&mut self, refused: &Token) {
        self.held.take_if(|held| held.token.number == refused.number);
    }

    pub(super) fn set_barren(&mut self, token: &Token, now: Instant) {
        self.barren = Some((token.number, now + BARREN));
    }

    /// Whether this token was refused right after it had been fetched, a moment ago.
    pub(super) fn is_barren(&self, token: &Token, now: Instant) -> bool {
        self.barren.is_some_and(|(number, until)| number == token.number && now < until)
    }

    /// The outcome of a fetch after the first `seen` ones, or what is remembered of a failed one; `None`: fetch.
    pub(super) fn outcome_after(&self, seen: u64, now: Instant) -> Option<Result<Token, Failure>> {
        if let Some((failure, until)) = &self.failed
            && (self.fetches > seen || now < *until)
        {
            return Some(match &self.held {
                Some(held) if now < held.ends => Ok(held.token.clone()),
                Some(_) | None => Err(failure.clone()),
            });
        }
        // However short it lives: it came after it was wanted.
        let held = self.held.as_ref().filter(|_| self.fetches > seen)?;
        Some(Ok(held.token.clone()))
    }

    /// Takes in what a fetch ended with. A failed renewal is no trouble while the old token lives.
    pub(super) fn settle(
        &mut self,
        fetched: Result<Fetched, Failure>,
        now: Instant,
    ) -> Result<Token, Failure> {
        self.fetches += 1;
        match fetched {
            Ok(Fetched { header, lifetime }) => {
                let token = Token { header, number: self.fetches };
                let lifetime = lifetime.unwrap_or(UNSAID).min(LONGEST);
                let (ends, margin) = (now + lifetime, MARGIN.min(lifetime / 5));
                self.held = Some(Held { token: token.clone(), due: ends - margin, ends });
                (self.failed, self.refusals) = (None, 0);
                Ok(token)
            }
            Err(failure) => {
                let wait = if failure.verdict == Verdict::Permanent {
                    // Whatever token there was: this client has none any more.
                    self.held = None;
                    self.refusals = (self.refusals + 1).min(16);
                    (REFUSED * (1 << (self.refusals - 1))).min(REFUSED_LONGEST)
                } else {
                    failure.retry_after.unwrap_or(TROUBLED).clamp(TROUBLED, TROUBLED_LONGEST)
                };
                self.failed = Some((failure.clone(), now + wait));
                match &self.held {
                    Some(held) if now < held.ends => Ok(held.token.clone()),
                    Some(_) | None => Err(failure),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BARREN, State};
    use crate::{Code, Failure, http::oauth::Fetched};
    use http::HeaderValue;
    use std::time::{Duration, Instant};

    const SECOND: Duration = Duration::from_secs(1);

    fn fetched(text: &'static str, seconds: Option<u64>) -> Result<Fetched, Failure> {
        let lifetime = seconds.map(Duration::from_secs);
        Ok(Fetched { header: HeaderValue::from_static(text), lifetime })
    }

    fn refused() -> Result<Fetched, Failure> {
        Err(Failure::permanent(Code::TargetAuth, "refused"))
    }

    fn troubled() -> Result<Fetched, Failure> {
        Err(Failure::retry(Code::TargetUnreachable, "troubled"))
    }

    #[test]
    fn a_token_is_renewed_a_while_before_it_ends() {
        for (lifetime, good_for) in [(Some(3600), 3540), (Some(100), 80), (Some(10), 8), (None, 3540)] {
            let (mut state, now) = (State::default(), Instant::now());
            assert!(state.usable(now).is_none());
            state.settle(fetched("a", lifetime), now).unwrap();
            let good_for = Duration::from_secs(good_for);
            assert!(state.usable(now + good_for - SECOND / 2).is_some(), "{lifetime:?}");
            assert!(state.usable(now + good_for).is_none(), "{lifetime:?}");
        }
    }

    #[test]
    fn a_renewal_that_fails_does_no_harm_while_the_old_token_lives() {
        let (mut state, now) = (State::default(), Instant::now());
        state.settle(fetched("a", Some(100)), now).unwrap();
        let late = now + Duration::from_secs(90);
        assert_eq!(state.settle(troubled(), late).unwrap().header, "a");
        assert!(state.usable(late).is_some(), "the server is left alone for a moment");
        assert!(state.usable(late + SECOND).is_none(), "then it is asked again");
        let ended = now + Duration::from_secs(100);
        assert_eq!(state.settle(troubled(), ended).unwrap_err().code, Code::TargetUnreachable);
        state.settle(fetched("b", Some(100)), ended).unwrap();
        assert_eq!(
            state.settle(refused(), ended + Duration::from_secs(90)).unwrap_err().code,
            Code::TargetAuth
        );
    }

    #[test]
    fn those_who_waited_share_the_outcome_and_a_refusal_is_remembered() {
        let (mut state, now) = (State::default(), Instant::now());
        let seen = state.fetches();
        assert!(state.outcome_after(seen, now).is_none());
        state.settle(fetched("a", Some(0)), now).unwrap();
        assert_eq!(state.outcome_after(seen, now).unwrap().unwrap().header, "a", "however short it lives");
        assert!(state.outcome_after(state.fetches(), now).is_none());

        let mut at = now;
        for minutes in [1, 2, 4, 8, 15, 15] {
            let seen = state.fetches();
            state.settle(refused(), at).unwrap_err();
            assert_eq!(state.outcome_after(seen, at).unwrap().unwrap_err().code, Code::TargetAuth);
            let until = at + SECOND * 60 * minutes;
            assert!(
                state.outcome_after(state.fetches(), until - SECOND).is_some(),
                "left alone for {minutes} min"
            );
            assert!(state.outcome_after(state.fetches(), until).is_none(), "asked again after {minutes} min");
            at = until;
        }
        state.settle(fetched("b", None), at).unwrap();
        state.settle(troubled(), at).unwrap();
        assert!(state.outcome_after(state.fetches(), at + SECOND).is_none(), "trouble passes soon");
    }

    #[test]
    fn a_refused_token_is_replaced_once() {
        let (mut state, now) = (State::default(), Instant::now());
        let first = state.settle(fetched("a", None), now).unwrap();
        assert!(state.newer_than(&first, now).is_none());
        assert!(!state.is_barren(&first, now));
        state.drop_token(&first);
        assert!(state.usable(now).is_none());
        let second = state.settle(fetched("b", None), now).unwrap();
        assert_eq!(
            state.newer_than(&first, now).unwrap().header,
            "b",
            "whoever comes later takes the new one"
        );
        state.drop_token(&first);
        assert!(state.usable(now).is_some(), "the new one is not the refused one");
        state.set_barren(&second, now);
        assert!(state.is_barren(&second, now) && !state.is_barren(&first, now));
        assert!(!state.is_barren(&second, now + BARREN));
    }
}
