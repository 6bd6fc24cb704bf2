//! What both sides share: the queue of outgoing frames, heartbeats, and how a session ends.

use super::Attempt;
use crate::{
    DecodeError, EncodeError,
    limits::{DEAD_AFTER, HEARTBEAT, MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES},
};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A WebSocket frame, as far as the session cares. Pings are answered with pongs by the WebSocket layer
/// (RFC 6455 §5.5.2), so the session only sends pings and notices that something came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A control message.
    Text(String),
    /// A heartbeat.
    Ping,
    /// The answer to a heartbeat.
    Pong,
}

/// Who ended the session, as the agent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initiator {
    /// This side.
    Local,
    /// The other side.
    Remote,
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(String),
    /// No version in common.
    #[error("no common protocol version: {0}")]
    PeerIncompatible(String),
    /// Nothing came for [`DEAD_AFTER`].
    #[error("nothing came from the peer for {} s", DEAD_AFTER.as_secs())]
    PeerDead,
    /// `Hello` or `Welcome` did not come in time.
    #[error("the peer did not finish the handshake within {} s", crate::limits::HANDSHAKE.as_secs())]
    HandshakeTimeout,
    /// The hub said no.
    #[error("refused: {0}")]
    Refused(String),
    /// A message of our own could not be sent.
    #[error("internal fault: {0}")]
    Local(String),
}

impl CloseReason {
    /// Which side is at the origin of it. A refusal comes from the hub, which is remote for the agent.
    #[must_use]
    pub fn initiator(&self) -> Initiator {
        match self {
            Self::Refused(_) => Initiator::Remote,
            Self::PeerMisbehaved(_)
            | Self::PeerIncompatible(_)
            | Self::PeerDead
            | Self::HandshakeTimeout
            | Self::Local(_) => Initiator::Local,
        }
    }

    /// The WebSocket close code to send (RFC 6455 §7.4.1).
    #[must_use]
    pub fn close_code(&self) -> u16 {
        match self {
            Self::PeerMisbehaved(_) | Self::PeerIncompatible(_) => 1002,
            Self::Refused(_) => 1000,
            Self::PeerDead | Self::HandshakeTimeout => 1001,
            Self::Local(_) => 1011,
        }
    }
}

/// Outgoing frames and heartbeats of one side.
#[derive(Debug)]
pub(super) struct Link {
    out: VecDeque<Frame>,
    out_bytes: usize,
    heard: Instant,
    heartbeat: Duration,
    next_ping: Instant,
}

impl Link {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            out: VecDeque::new(),
            out_bytes: 0,
            heard: now,
            heartbeat: HEARTBEAT,
            next_ping: now + HEARTBEAT,
        }
    }

    /// Sends heartbeats more often than the protocol asks for.
    pub(super) fn beat_every(&mut self, heartbeat: Duration) {
        let earlier = self.heartbeat.saturating_sub(heartbeat);
        self.next_ping = self.next_ping.checked_sub(earlier).unwrap_or(self.next_ping);
        self.heartbeat = self.heartbeat.min(heartbeat);
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    pub(super) fn send(&mut self, encoded: Result<String, EncodeError>) -> Result<(), CloseReason> {
        let text = encoded.map_err(|e| CloseReason::Local(e.to_string()))?;
        // A peer that makes us answer without reading must not fill memory.
        if self.out.len() >= MAX_QUEUED_FRAMES || self.out_bytes + text.len() > MAX_QUEUED_BYTES {
            return Err(CloseReason::PeerMisbehaved("the peer does not read".to_owned()));
        }
        self.out_bytes += text.len();
        self.out.push_back(Frame::Text(text));
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<Frame> {
        let frame = self.out.pop_front();
        if let Some(Frame::Text(text)) = &frame {
            self.out_bytes -= text.len();
        }
        frame
    }

    /// How many bytes of frames wait to be sent.
    pub(super) fn queued_bytes(&self) -> usize {
        self.out_bytes
    }

    /// How many frames wait to be sent.
    pub(super) fn queued(&self) -> usize {
        self.out.len()
    }

    pub(super) fn timeout(&self) -> Instant {
        self.next_ping.min(self.heard + DEAD_AFTER)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<(), CloseReason> {
        if now.saturating_duration_since(self.heard) >= DEAD_AFTER {
            return Err(CloseReason::PeerDead);
        }
        if now >= self.next_ping {
            self.next_ping = now + self.heartbeat;
            // A ping that still waits says as much as a second one.
            if !self.out.contains(&Frame::Ping) {
                self.out.push_back(Frame::Ping);
            }
        }
        Ok(())
    }
}

/// What a frame that does not decode means for the session.
pub(super) enum Undecoded {
    /// Answer `Unsupported` and go on.
    Unsupported(String),
    /// End the session.
    Fatal(CloseReason),
}

impl From<DecodeError> for Undecoded {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::UnknownType(of) => Self::Unsupported(of),
            DecodeError::TooLong(_) | DecodeError::NotAMessage(_) | DecodeError::Malformed { .. } => {
                Self::Fatal(CloseReason::PeerMisbehaved(error.to_string()))
            }
        }
    }
}

/// Whether the owner takes its events; a queue of them may not grow without bound either.
pub(super) fn check_events(waiting: usize) -> Result<(), CloseReason> {
    if waiting > MAX_QUEUED_FRAMES {
        return Err(CloseReason::Local("the owner of the session takes no events".to_owned()));
    }
    Ok(())
}

/// Remembers the latest [`Recent::KEPT`] attempts of a kind.
#[derive(Debug)]
pub(super) struct Recent<T>(VecDeque<(Attempt, T)>);

impl<T> Recent<T> {
    const KEPT: usize = 1024;

    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn insert(&mut self, attempt: Attempt, value: T) {
        self.remove(attempt);
        if self.0.len() >= Self::KEPT {
            self.0.pop_front();
        }
        self.0.push_back((attempt, value));
    }

    pub(super) fn get(&self, attempt: Attempt) -> Option<&T> {
        self.0.iter().rev().find(|(a, _)| *a == attempt).map(|(_, value)| value)
    }

    pub(super) fn remove(&mut self, attempt: Attempt) -> Option<T> {
        let at = self.0.iter().rposition(|(a, _)| *a == attempt)?;
        self.0.remove(at).map(|(_, value)| value)
    }
}

/// A time to send something again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resend(Instant);

impl Resend {
    pub(super) fn after(now: Instant, wait: Duration) -> Self {
        Self(now + wait)
    }

    pub(super) fn due(&mut self, now: Instant, wait: Duration) -> bool {
        let due = now >= self.0;
        if due {
            self.0 = now + wait;
        }
        due
    }

    pub(super) fn at(self) -> Instant {
        self.0
    }
}
