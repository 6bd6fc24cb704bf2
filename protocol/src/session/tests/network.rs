//! The network between the two sides, and the randomness of a run.

use crate::session::Frame;
use std::time::{Duration, Instant};

/// SplitMix64: a run is decided by its seed alone.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn percent(&mut self, percent: u8) -> bool {
        self.next() % 100 < u64::from(percent)
    }

    pub(super) fn up_to(&mut self, longest: Duration) -> Duration {
        Duration::from_millis(self.next() % (u64::try_from(longest.as_millis()).unwrap() + 1))
    }
}

/// What the network does to frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Faults {
    /// Lost frames, in percent.
    pub(super) loss: u8,
    /// Doubled frames, in percent.
    pub(super) duplicate: u8,
    /// Whether frames may overtake each other.
    pub(super) reorder: bool,
    /// The longest way of a frame.
    pub(super) delay: Duration,
    /// The longest the owners take to decide, and the hub to store.
    pub(super) slow: Duration,
}

impl Faults {
    /// What a WebSocket over TCP promises.
    pub(super) const NONE: Self = Self {
        loss: 0,
        duplicate: 0,
        reorder: false,
        delay: Duration::from_millis(50),
        slow: Duration::from_millis(50),
    };

    /// Whether frames arrive once and in order, as on a real connection.
    pub(super) fn orderly(self) -> bool {
        self.loss == 0 && self.duplicate == 0 && !self.reorder
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Agent,
    Hub,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Agent => Self::Hub,
            Self::Hub => Self::Agent,
        }
    }
}

/// What travels over a connection.
#[derive(Debug, Clone)]
pub(super) enum Parcel {
    /// The TCP connection itself, seen by the hub.
    Connect,
    Frame(Frame),
    Close,
}

/// The newest connection; parcels of older ones are never delivered.
pub(super) struct Network {
    pub(super) faults: Faults,
    /// Connections up to this one swallow everything, silently.
    pub(super) dark: u64,
    last: [Option<(u64, Instant)>; 2],
}

impl Network {
    pub(super) fn new(faults: Faults) -> Self {
        Self { faults, dark: 0, last: [None; 2] }
    }

    /// When a parcel arrives: not at all, once or twice.
    pub(super) fn ways(&mut self, rng: &mut Rng, connection: u64, to: Side, now: Instant) -> Vec<Instant> {
        if connection <= self.dark || rng.percent(self.faults.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(rng.percent(self.faults.duplicate));
        (0..copies)
            .map(|_| {
                let mut at = now + rng.up_to(self.faults.delay);
                if !self.faults.reorder {
                    let last = &mut self.last[to as usize];
                    if let Some((_, before)) = last.filter(|(of, _)| *of == connection) {
                        at = at.max(before);
                    }
                    *last = Some((connection, at));
                }
                at
            })
            .collect()
    }
}
