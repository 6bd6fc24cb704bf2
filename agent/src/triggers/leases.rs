//! Which triggers this agent may run: what the hub said last, each for as long as it said.

use crate::journal::events::Key;
use passerelle_protocol::TriggerLease;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

#[derive(Debug)]
struct Lease {
    number: u64,
    /// `None`: without end.
    until: Option<Instant>,
    cursor: Option<String>,
}

/// See the [module](self). Leases outlive the connection that they came over: that is what their time is for.
#[derive(Debug, Default)]
pub struct Leases(Mutex<BTreeMap<Key, Lease>>);

impl Leases {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are all, as of `now`.
    pub fn replace(&self, leases: Vec<TriggerLease>, now: Instant) {
        let lease = |TriggerLease { resource, trigger, lease, ttl_s, cursor }| {
            let until = ttl_s.map(|seconds: u32| now + Duration::from_secs(seconds.into()));
            (Key { resource, trigger }, Lease { number: lease, until, cursor })
        };
        *self.lock() = leases.into_iter().map(lease).collect();
    }

    /// The number under which a trigger may run now, if it may.
    pub fn held(&self, key: &Key, now: Instant) -> Option<u64> {
        let leases = self.lock();
        let lease = leases.get(key)?;
        lease.until.is_none_or(|until| now < until).then_some(lease.number)
    }

    /// How far its feed was read, as the hub said last.
    pub fn cursor(&self, key: &Key) -> Option<String> {
        self.lock().get(key)?.cursor.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_holds_for_its_time_and_a_list_replaces_the_one_before() {
        let (leases, now) = (Leases::default(), Instant::now());
        let key =
            |trigger: &str| Key { resource: "compta".parse().unwrap(), trigger: trigger.parse().unwrap() };
        let lease = |trigger: &str, lease, ttl_s| TriggerLease {
            resource: "compta".parse().unwrap(),
            trigger: trigger.parse().unwrap(),
            lease,
            ttl_s,
            cursor: None,
        };
        assert_eq!(leases.held(&key("a"), now), None);
        leases.replace(vec![lease("a", 3, Some(30)), lease("b", 4, None)], now);
        assert_eq!(leases.held(&key("a"), now + Duration::from_secs(29)), Some(3));
        assert_eq!(leases.held(&key("a"), now + Duration::from_secs(30)), None);
        assert_eq!(leases.held(&key("b"), now + Duration::from_secs(1_000_000)), Some(4));
        leases.replace(vec![lease("a", 5, None)], now);
        assert_eq!((leases.held(&key("a"), now), leases.held(&key("b"), now)), (Some(5), None));
    }
}
