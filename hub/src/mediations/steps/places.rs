//! Places for large content and long computing: there are few, and tenants take turns.

use passerelle_protocol::Name;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::oneshot;

/// Held while a step has large content in memory or computes for long.
#[must_use]
#[derive(Debug)]
pub struct Place(Option<Arc<Places>>);

/// The places of a hub.
#[derive(Debug)]
pub(crate) struct Places(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    waiting: HashMap<Name, VecDeque<oneshot::Sender<Place>>>,
    /// The tenants that wait, the next one first.
    turns: VecDeque<Name>,
}

impl Places {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { free: count, waiting: HashMap::new(), turns: VecDeque::new() })))
    }

    /// Waits for a place. One tenant's steps get theirs in their order; those of several tenants take turns, however many one
    /// of them has.
    pub(crate) async fn take(self: &Arc<Self>, tenant: &Name) -> Place {
        let waiting = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.free > 0 {
                // Nobody waits while there is a free one.
                state.free -= 1;
                return Place(Some(Arc::clone(self)));
            }
            let (sender, receiver) = oneshot::channel();
            let line = state.waiting.entry(tenant.clone()).or_default();
            line.push_back(sender);
            if line.len() == 1 {
                state.turns.push_back(tenant.clone());
            }
            receiver
        };
        // The places do not go while somebody waits for one.
        waiting.await.unwrap_or(Place(None))
    }

    /// Hands a place on to the next tenant that waits.
    fn give(self: Arc<Self>) {
        let mut place = Place(Some(Arc::clone(&self)));
        loop {
            let next = {
                let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(tenant) = state.turns.pop_front() else {
                    state.free += 1;
                    place.0 = None;
                    return;
                };
                let line = state.waiting.entry(tenant.clone()).or_default();
                let next = line.pop_front();
                if line.is_empty() {
                    state.waiting.remove(&tenant);
                } else {
                    state.turns.push_back(tenant);
                }
                next
            };
            let Some(next) = next else { continue };
            match next.send(place) {
                Ok(()) => return,
                // Whoever waited there waits no more.
                Err(back) => place = back,
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(places) = self.0.take() {
            places.give();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn tenants_take_turns_and_one_tenants_steps_keep_their_order() {
        let places = Places::new(1);
        let first = places.take(&name("a")).await;
        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        for (tenant, number) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)] {
            let (shared, sender) = (Arc::clone(&places), sender.clone());
            tokio::spawn(async move {
                let place = shared.take(&name(tenant)).await;
                sender.send(number).unwrap();
                drop(place);
            });
            // Each waits before the next one comes.
            while places.0.lock().unwrap().waiting.values().map(VecDeque::len).sum::<usize>() < number {
                tokio::task::yield_now().await;
            }
        }
        drop((first, sender));
        let mut found = Vec::new();
        while let Some(number) = order.recv().await {
            found.push(number);
        }
        assert_eq!(found, [1, 4, 5, 2, 6, 3]);
    }

    #[tokio::test]
    async fn who_waits_no_more_takes_no_place() {
        let places = Places::new(2);
        let held = (places.take(&name("a")).await, places.take(&name("a")).await);
        for _ in 0..3 {
            let short = Duration::from_millis(1);
            assert!(timeout(short, places.take(&name("b"))).await.is_err(), "there is none");
        }
        drop(held);
        let again = (places.take(&name("b")).await, places.take(&name("a")).await);
        assert!(timeout(Duration::from_millis(1), places.take(&name("c"))).await.is_err());
        drop(again);
        let state = places.0.lock().unwrap();
        assert!(state.free == 2 && state.waiting.is_empty() && state.turns.is_empty(), "{state:?}");
    }
}
