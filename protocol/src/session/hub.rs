//! The hub's side of the session.

mod calls;
mod messages;

use super::{
    Attempt,
    events::HeardEvents,
    link::{CloseReason, Frame, Link, Recent, Resend, Undecoded, check_events},
};
use crate::{
    CallDeclined, CallResult, Cancel, Commit, CommitGranted, Decline, EncodeError, Event, EventAck, EventId,
    EventRefused, HeldAction, Hello, HubKeys, JobId, Name, Offer, Progress, Refuse, Report, ReportAck,
    ToAgent, TriggerCursor, TriggerLease, Triggers, Unsupported, Welcome, decode_to_hub,
    limits::{HANDSHAKE, MAX_UNANSWERED_OFFER_BYTES, RESEND},
    outcome::cut_message,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// What the session tells its owner.
#[derive(Debug, Clone, PartialEq)]
pub enum HubEvent {
    /// The agent said hello: answer with [`HubSession::welcome`] or [`HubSession::refuse`].
    Hello(Box<Hello>),
    /// The attempt is in the agent's journal.
    Accepted(Attempt),
    /// The attempt was not taken; its credit is free again. The job's next offer takes the next number.
    Declined(Decline),
    /// The connector has started or moved on.
    Progress(Progress),
    /// The attempt asks for its final effect: store the grant, then [`HubSession::grant_commit`].
    /// May come more than once.
    CommitRequested(Commit),
    /// The attempt has ended: store it, then [`HubSession::ack_report`]. May come more than once, and for attempts
    /// that the hub gave up or does not know: acknowledge those too, or the agent keeps them for ever.
    Reported(Report),
    /// Something happened at a resource: store it, then [`HubSession::ack_event`] or [`HubSession::refuse_event`].
    /// May come more than once.
    Event(Event),
    /// A call has ended.
    CallEnded(CallResult),
    /// A call was not taken; certainly nothing happened.
    CallDeclined(CallDeclined),
    /// A call was not answered in its time: what became of it is not known.
    CallLost(JobId),
    /// How far a trigger has read its change feed.
    Cursor(TriggerCursor),
    /// The agent takes nothing more.
    Draining,
    /// The agent sent, or did not understand, a message of this type.
    Unsupported(String),
}

/// The agent cannot take the offer now: its places, or those of the resource, are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no credit left")]
pub struct NoCredit;

/// Why an offer was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOffered {
    /// The agent cannot take it now, or has declined this attempt on this connection.
    #[error("no credit left")]
    NoCredit,
    /// It is no message that could ever be sent: too long, say.
    #[error(transparent)]
    Unsendable(#[from] EncodeError),
}

#[derive(Debug)]
enum State {
    AwaitHello { until: Instant },
    AwaitDecision,
    Open,
    Closed(CloseReason),
}

#[derive(Debug)]
enum Phase {
    /// The encoded offer is kept until it is answered.
    Offered {
        text: String,
        resend: Resend,
    },
    Accepted,
    /// The owner was told; a report that comes again much later is told again.
    Reported {
        tell_again: Resend,
    },
}

#[derive(Debug)]
struct Tracked {
    resource: Name,
    phase: Phase,
    cancel: Option<Resend>,
}

/// The hub's side of one connection. See the [module](super) for how it is driven.
#[derive(Debug)]
pub struct HubSession {
    link: Link,
    state: State,
    max_jobs: usize,
    max_concurrent: BTreeMap<Name, usize>,
    attempts: BTreeMap<Attempt, Tracked>,
    held: BTreeMap<Attempt, Name>,
    unanswered_bytes: usize,
    declined: Recent<()>,
    heard_events: HeardEvents,
    calls: calls::OpenCalls,
    /// How many lists of triggers were sent.
    triggers: u64,
    draining: bool,
    events: VecDeque<HubEvent>,
}

impl HubSession {
    /// Starts the session; the agent speaks first.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            link: Link::new(now),
            state: State::AwaitHello { until: now + HANDSHAKE },
            max_jobs: 0,
            max_concurrent: BTreeMap::new(),
            attempts: BTreeMap::new(),
            held: BTreeMap::new(),
            unanswered_bytes: 0,
            declined: Recent::new(),
            heard_events: HeardEvents::default(),
            calls: calls::OpenCalls::default(),
            triggers: 0,
            draining: false,
            events: VecDeque::new(),
        }
    }

    /// The same with heartbeats that come more often than [`crate::limits::HEARTBEAT`], for a hub whose leases are short:
    /// the agent's answers renew them.
    #[must_use]
    pub fn with_heartbeat(now: Instant, heartbeat: Duration) -> Self {
        let mut session = Self::new(now);
        session.link.beat_every(heartbeat);
        session
    }

    /// Takes a received frame. Afterwards look at frames, events and [`Self::closed`].
    pub fn handle_frame(&mut self, frame: Frame, now: Instant) {
        if self.closed().is_some() {
            return;
        }
        self.link.heard(now);
        if let Frame::Text(text) = frame {
            let done = match decode_to_hub(&text).map_err(Undecoded::from) {
                Ok(message) => self.handle_message(message, now),
                Err(Undecoded::Fatal(reason)) => Err(reason),
                Err(Undecoded::Unsupported(of)) => {
                    self.events.push_back(HubEvent::Unsupported(of.clone()));
                    self.link.send(ToAgent::from(Unsupported { of }).encode())
                }
            };
            self.close_on(done.and_then(|()| check_events(self.events.len())));
        }
    }

    /// Does what is due at `now`: heartbeats, re-sending, noticing a dead agent.
    pub fn handle_timeout(&mut self, now: Instant) {
        // What still waits to be sent is not sent again.
        let clear = self.link.queued() == 0;
        let done = match &self.state {
            State::Closed(_) => return,
            State::AwaitHello { until } if now >= *until => Err(CloseReason::HandshakeTimeout),
            State::AwaitHello { .. } | State::AwaitDecision | State::Open => self.link.handle_timeout(now),
        };
        self.close_on(done);
        if !self.is_open() {
            return;
        }
        self.give_calls_up(now);
        let mut again = Vec::new();
        for (attempt, tracked) in &mut self.attempts {
            if let Phase::Offered { text, resend } = &mut tracked.phase
                && resend.due(now, RESEND)
                && clear
            {
                again.push(Ok(text.clone()));
            }
            if let Some(resend) = &mut tracked.cancel
                && resend.due(now, RESEND)
                && clear
            {
                let cancel = Cancel { job: attempt.job, attempt: attempt.number };
                again.push(ToAgent::from(cancel).encode());
            }
        }
        for encoded in again {
            let done = self.link.send(encoded);
            self.close_on(done);
        }
    }

    /// When [`Self::handle_timeout`] is next due; `None` once closed.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let base = match &self.state {
            State::Closed(_) => return None,
            State::AwaitHello { until } => self.link.timeout().min(*until),
            State::AwaitDecision | State::Open => self.link.timeout(),
        };
        let resends = self.attempts.values().flat_map(|tracked| {
            let offer = match &tracked.phase {
                Phase::Offered { resend, .. } => Some(resend.at()),
                Phase::Accepted | Phase::Reported { .. } => None,
            };
            offer.into_iter().chain(tracked.cancel.map(Resend::at))
        });
        let calls = self.calls.next().filter(|_| self.is_open());
        Some(resends.chain(calls).fold(base, Instant::min))
    }

    /// The next frame to send.
    pub fn poll_frame(&mut self) -> Option<Frame> {
        self.link.pop()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<HubEvent> {
        self.events.pop_front()
    }

    /// Why the session ended, once it has.
    #[must_use]
    pub fn closed(&self) -> Option<&CloseReason> {
        match &self.state {
            State::Closed(reason) => Some(reason),
            State::AwaitHello { .. } | State::AwaitDecision | State::Open => None,
        }
    }

    /// Whether the agent was welcomed and the session has not ended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Opens the session. Attempts that `welcome.held` keeps take up credit until they are reported.
    pub fn welcome(&mut self, welcome: Welcome) {
        if !matches!(self.state, State::AwaitDecision) {
            return;
        }
        self.state = State::Open;
        let held = std::mem::take(&mut self.held);
        for verdict in &welcome.held {
            let attempt = Attempt::new(verdict.job, verdict.attempt);
            if let (HeldAction::Keep, Some(resource)) = (verdict.action, held.get(&attempt)) {
                let tracked = Tracked { resource: resource.clone(), phase: Phase::Accepted, cancel: None };
                self.attempts.insert(attempt, tracked);
            }
        }
        self.send(welcome);
    }

    /// Says why there is no session (or no longer one), and closes it. The frame still has to be sent.
    pub fn refuse(&mut self, refuse: Refuse) {
        if self.closed().is_none() {
            let reason = CloseReason::Refused(refuse.code.clone());
            let done = self.link.send(ToAgent::from(refuse).encode()).and(Err(reason));
            self.close_on(done);
        }
    }

    /// How many more jobs the agent takes. None while it drains, or while many large offers are unanswered.
    #[must_use]
    pub fn credit(&self) -> usize {
        if self.is_open() && !self.draining && self.unanswered_bytes < MAX_UNANSWERED_OFFER_BYTES {
            self.max_jobs.saturating_sub(self.attempts.len())
        } else {
            0
        }
    }

    /// How many more jobs the agent takes for `resource`; 0 for one that it did not announce.
    #[must_use]
    pub fn credit_for(&self, resource: &Name) -> usize {
        let in_flight = self.attempts.values().filter(|t| t.resource == *resource).count();
        self.max_concurrent.get(resource).map_or(0, |max| max.saturating_sub(in_flight)).min(self.credit())
    }

    /// Offers an attempt; it is sent again until it is answered.
    ///
    /// # Errors
    /// [`NotOffered::NoCredit`] if the agent has no place for it, and always for an attempt that it declined on this
    /// connection: a late copy of that decline would be taken for the new answer. Offer the job under its next attempt
    /// number. [`NotOffered::Unsendable`] for what no frame can hold; the session goes on.
    pub fn offer(&mut self, offer: Offer, resource: Name, now: Instant) -> Result<(), NotOffered> {
        let attempt = Attempt::new(offer.job, offer.attempt);
        if self.attempts.contains_key(&attempt) {
            return Ok(());
        }
        if self.credit_for(&resource) == 0 || self.declined.get(attempt).is_some() {
            return Err(NotOffered::NoCredit);
        }
        let text = ToAgent::from(offer).encode()?;
        self.unanswered_bytes += text.len();
        let phase = Phase::Offered { text: text.clone(), resend: Resend::after(now, RESEND) };
        self.attempts.insert(attempt, Tracked { resource, phase, cancel: None });
        let done = self.link.send(Ok(text));
        self.close_on(done);
        Ok(())
    }

    /// Asks the agent to stop an attempt; sent again until the attempt is reported or declined. Does nothing once it is.
    pub fn cancel(&mut self, attempt: Attempt, now: Instant) {
        if let Some(tracked) = self.attempts.get_mut(&attempt)
            && tracked.cancel.is_none()
            && !matches!(tracked.phase, Phase::Reported { .. })
        {
            tracked.cancel = Some(Resend::after(now, RESEND));
            self.send(Cancel { job: attempt.job, attempt: attempt.number });
        }
    }

    /// Grants an attempt its final effect. Call it only when the grant is stored.
    pub fn grant_commit(&mut self, attempt: Attempt) {
        self.send(CommitGranted { job: attempt.job, attempt: attempt.number });
    }

    /// Tells the signing keys that the agent does not know yet. Call it before the first offer that needs them.
    pub fn tell_keys(&mut self, statements: Vec<String>) {
        self.send(HubKeys { statements });
    }

    /// Says that a report is stored, and frees the attempt's credit.
    pub fn ack_report(&mut self, attempt: Attempt) {
        self.forget(attempt);
        self.send(ReportAck { job: attempt.job, attempt: attempt.number });
    }

    /// Says that an event is stored, now or before.
    pub fn ack_event(&mut self, id: EventId, duplicate: bool) {
        self.heard_events.answered(id);
        self.send(EventAck { id, duplicate });
    }

    /// Says why an event is not stored.
    pub fn refuse_event(&mut self, mut refused: EventRefused) {
        self.heard_events.answered(refused.id);
        cut_message(&mut refused.message);
        self.send(refused);
    }

    /// Tells all the triggers that the agent may run from now on. Call it again in time: at least every third of the
    /// shortest `ttl_s`, while the agent is heard.
    pub fn tell_triggers(&mut self, leases: Vec<TriggerLease>) {
        self.triggers += 1;
        self.send(Triggers { serial: self.triggers, leases });
    }

    /// The attempts that the agent holds or is offered, as far as this session knows.
    pub fn attempts(&self) -> impl Iterator<Item = Attempt> {
        self.attempts.keys().copied()
    }

    fn send(&mut self, message: impl Into<ToAgent>) {
        if self.is_open() {
            let done = self.link.send(message.into().encode());
            self.close_on(done);
        }
    }

    /// Keeps count of the bytes of unanswered offers, when `attempt` stops being one.
    fn answered(&mut self, attempt: Attempt) {
        if let Some(Tracked { phase: Phase::Offered { text, .. }, .. }) = self.attempts.get(&attempt) {
            self.unanswered_bytes -= text.len();
        }
    }

    fn forget(&mut self, attempt: Attempt) {
        self.answered(attempt);
        self.attempts.remove(&attempt);
    }

    fn close_on(&mut self, done: Result<(), CloseReason>) {
        if let (Err(reason), None) = (done, self.closed()) {
            self.state = State::Closed(reason);
        }
    }
}
