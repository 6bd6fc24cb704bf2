//! Wrong credentials, counted: a source or a key that fails too often is told to wait.
//!
//! Three counts of a minute each. *A source and a name together* (an address that guesses the secret of one API key or
//! enrolment token) are locked: even the right secret is refused until the minute is over. *A source* or *a name* alone is
//! never locked, because then anybody could lock out those who share an address with them, or whose key's id they know:
//! there only wrong credentials are answered `429` in the place of `401`. Agents prove themselves with signatures, which
//! nobody guesses, so that for them only the source counts.

use super::{App, problem::Problem};
use crate::server::Peer;
use axum::extract::FromRequestParts;
use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};
use passerelle_protocol::ApiCode;
use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long failures count.
const WINDOW: Duration = Duration::from_secs(60);
/// Failures of one source with one name before they are locked.
pub const PER_PAIR: u32 = 20;
/// Failures for one name, from everywhere, that are told apart from a limit.
const PER_NAME: u32 = 60;
/// Failures of one source, with whatever name.
const PER_SOURCE: u32 = 120;
/// How many counts are kept.
const MAX_COUNTS: usize = 50_000;
/// The longest name that is counted by itself; ours are shorter.
const MAX_NAME: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    Source(IpAddr),
    Name(String),
    Pair(IpAddr, String),
}

#[derive(Debug)]
struct Count {
    failures: u32,
    since: Instant,
}

/// The counts.
#[derive(Debug, Default)]
pub struct Guard {
    counts: Mutex<HashMap<Who, Count>>,
}

impl Guard {
    /// How long this source has to wait before this name is looked at again.
    ///
    /// # Errors
    /// 429 `rate_limited`.
    pub fn admit(&self, source: Source, name: &str) -> Result<(), Problem> {
        let Some(source) = source.0 else { return Ok(()) };
        let now = Instant::now();
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get(&Who::Pair(source, name.chars().take(MAX_NAME).collect())) {
            Some(count) if count.failures >= PER_PAIR && now < count.since + WINDOW => {
                Err(limited(count.since + WINDOW - now))
            }
            _ => Ok(()),
        }
    }

    /// Counts a failure; the answer is `refusal`, or that it was one too many.
    pub fn failed(&self, source: Source, name: Option<&str>, refusal: Problem) -> Problem {
        self.count(source.0, name, Instant::now()).map_or(refusal, limited)
    }

    fn count(&self, source: Option<IpAddr>, name: Option<&str>, now: Instant) -> Option<Duration> {
        let name = name.map(|name| name.chars().take(MAX_NAME).collect::<String>());
        let pair = source.zip(name.clone()).map(|(source, name)| (Who::Pair(source, name), PER_PAIR));
        let name = name.map(|name| (Who::Name(name), PER_NAME));
        let source = source.map(|source| (Who::Source(source), PER_SOURCE));
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wait = None;
        for (who, limit) in [source, name, pair].into_iter().flatten() {
            if counts.len() >= MAX_COUNTS && !counts.contains_key(&who) {
                counts.retain(|_, count| now < count.since + WINDOW);
                if counts.len() >= MAX_COUNTS {
                    continue;
                }
            }
            let count = counts.entry(who).or_insert(Count { failures: 0, since: now });
            if now >= count.since + WINDOW {
                *count = Count { failures: 0, since: now };
            }
            count.failures = count.failures.saturating_add(1);
            if count.failures > limit {
                wait = wait.max(Some(count.since + WINDOW - now));
            }
        }
        wait
    }
}

fn limited(wait: Duration) -> Problem {
    let seconds = wait.as_secs() + 1;
    let detail = format!("too many wrong credentials: try again in {seconds} s");
    Problem::new(ApiCode::RateLimited, detail).header(header::RETRY_AFTER, HeaderValue::from(seconds))
}

/// Where a request comes from: the peer, or behind a proxy what the proxy says. `None`: not known.
#[derive(Debug, Clone, Copy)]
pub struct Source(Option<IpAddr>);

impl FromRequestParts<App> for Source {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
        Ok(Self::of(peer, &parts.headers, app.behind_proxy))
    }
}

impl Source {
    fn of(peer: Option<IpAddr>, headers: &HeaderMap, behind_proxy: bool) -> Self {
        let address = if behind_proxy { forwarded(headers) } else { peer };
        Self(address.map(network))
    }
}

/// The last address of `X-Forwarded-For`: the one that the proxy before us added. Those before it are the client's word.
fn forwarded(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all(HeaderName::from_static("x-forwarded-for")).iter().next_back()?;
    last.to_str().ok()?.rsplit(',').next()?.trim().parse().ok()
}

/// A customer of IPv6 has a /64 at least: its addresses are one source.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_count_has_its_limit_and_ends_with_its_minute() {
        let guard = Guard::default();
        let start = Instant::now();
        let far = |n: u32| Some(IpAddr::V4(std::net::Ipv4Addr::from_bits(n)));
        for n in 1..=PER_PAIR {
            assert_eq!(guard.count(Some(ip("10.0.0.1")), Some("a"), start), None, "{n}");
        }
        assert_eq!(guard.count(Some(ip("10.0.0.1")), Some("a"), start), Some(WINDOW));
        assert!(guard.admit(Source(Some(ip("10.0.0.1"))), "a").is_err());
        // Neither the name elsewhere nor the source with another name is locked.
        assert!(guard.admit(Source(Some(ip("10.0.0.2"))), "a").is_ok());
        assert!(guard.admit(Source(Some(ip("10.0.0.1"))), "b").is_ok());
        assert!(guard.admit(Source(None), "a").is_ok());
        let over = start + WINDOW;
        assert_eq!(guard.count(Some(ip("10.0.0.1")), Some("a"), over), None);
        // One name, guessed at from everywhere.
        let limited = (0..=PER_NAME).filter(|n| guard.count(far(*n), Some("c"), start).is_some()).count();
        assert_eq!(limited, 1);
        // One source with many names.
        let names = (0..=PER_SOURCE).map(|n| n.to_string());
        let limited = names.filter(|n| guard.count(Some(ip("10.9.9.9")), Some(n), start).is_some()).count();
        assert_eq!(limited, 1);
    }

    #[test]
    fn the_counts_are_bounded() {
        let guard = Guard::default();
        let start = Instant::now();
        for n in 0..60_000_u32 {
            guard.count(Some(IpAddr::V4(std::net::Ipv4Addr::from_bits(n))), None, start);
        }
        assert_eq!(guard.counts.lock().unwrap().len(), MAX_COUNTS);
        guard.count(Some(ip("192.0.2.1")), None, start + WINDOW);
        assert_eq!(guard.counts.lock().unwrap().len(), 1);
    }

    #[test]
    fn behind_a_proxy_only_its_own_word_counts() {
        let headers = |values: &[&str]| {
            let name = HeaderName::from_static("x-forwarded-for");
            HeaderMap::from_iter(values.iter().map(|v| (name.clone(), v.parse().unwrap())))
        };
        let peer = Some(ip("127.0.0.1"));
        let of = |values: &[&str], behind| Source::of(peer, &headers(values), behind).0;
        assert_eq!(of(&["203.0.113.9"], false), peer, "the client's word was believed");
        assert_eq!(of(&["1.2.3.4, 203.0.113.9"], true), Some(ip("203.0.113.9")));
        assert_eq!(of(&["1.2.3.4", "203.0.113.9"], true), Some(ip("203.0.113.9")));
        assert_eq!(of(&["nonsense"], true), None);
        assert_eq!(of(&[], true), None);
        assert_eq!(of(&["2001:db8:1:2:3:4:5:6"], true), Some(ip("2001:db8:1:2::")));
        assert_eq!(of(&["::ffff:203.0.113.9"], true), Some(ip("203.0.113.9")));
    }
}
