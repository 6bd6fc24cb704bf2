//! The agent's side of the session.

mod calls;
mod messages;

use super::{
    Attempt,
    events::SentEvents,
    link::{CloseReason, Frame, Link, Recent, Resend, Undecoded, check_events},
};
use crate::{
    Accept, Call, Commit, Decline, Draining, Event, EventAck, EventRefused, Hello, HubKeys, Intent, JobId,
    Offer, Progress, Refuse, Report, Sha256, ToHub, TriggerCursor, TriggerLease, Unsupported, VersionRange,
    Welcome, decode_to_agent,
    limits::{HANDSHAKE, MAX_JOBS, MAX_UNACKED_REPORT_BYTES, MAX_UNACKED_REPORTS, RESEND},
    outcome::cut_message,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

/// What the session tells its owner.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    /// The session is open.
    Welcomed(Welcome),
    /// The hub refused the session; it is closed.
    Refused(Refuse),
    /// The hub has newer signing keys: verify and keep them before the offers that follow are looked at.
    HubKeys(HubKeys),
    /// An attempt is offered: answer with [`AgentSession::accept`] or [`AgentSession::decline`].
    Offered(Offer),
    /// The hub wants the attempt stopped. May come more than once.
    CancelRequested(Attempt),
    /// The attempt may have its final effect.
    CommitGranted(Attempt),
    /// The hub stored the report: the attempt may be forgotten.
    ReportAcked(Attempt),
    /// The hub stored the event, now or before: it may be forgotten.
    EventAcked(EventAck),
    /// The hub did not store the event: send it again after `retry_after_ms`, or never if that is absent.
    EventRefused(EventRefused),
    /// All the triggers that may run from now on, each for its `ttl_s` counted from now.
    Triggers(Vec<TriggerLease>),
    /// A call: answer with [`AgentSession::end_call`] or [`AgentSession::decline_call`].
    Called(Call),
    /// Nobody waits for the call any more.
    CallCancelled(JobId),
    /// The hub sent, or did not understand, a message of this type. For a counter and the log.
    Unsupported(String),
}

#[derive(Debug)]
enum State {
    AwaitWelcome { until: Instant },
    Open,
    Closed(CloseReason),
}

#[derive(Debug)]
enum Phase {
    /// Told the owner, who has not answered yet. The ticket tells this offer from a later one of the attempt.
    Offered { ticket: Sha256 },
    /// Accepted or running.
    Held,
    /// The owner waits for a commit grant.
    Asking { commit: Commit, resend: Resend },
    /// Reported; the encoded report is kept until it is acknowledged.
    Reported { text: String, resend: Resend },
}

/// The agent's side of one connection. See the [module](super) for how it is driven.
#[derive(Debug)]
pub struct AgentSession {
    link: Link,
    state: State,
    versions: VersionRange,
    attempts: BTreeMap<Attempt, Phase>,
    /// What was declined, so that a second copy of the same offer gets the same answer.
    declined: Recent<(Sha256, Decline)>,
    unacked_bytes: usize,
    unacked: usize,
    sent_events: SentEvents,
    calls: calls::OpenCalls,
    /// The serial of the latest triggers.
    triggers: Option<u64>,
    max_jobs: usize,
    /// The grace time in seconds, once draining.
    draining: Option<u32>,
    events: VecDeque<AgentEvent>,
}

/// Progress is dropped while so many frames wait: it may be lost, and must not crowd out what may not.
const PROGRESS_BEHIND: usize = 64;

impl AgentSession {
    /// Starts the session with its `Hello`; the attempts in `hello.held` are what the agent holds.
    ///
    /// # Errors
    /// If the hello is too large for a frame.
    pub fn new(hello: Hello, now: Instant) -> Result<Self, CloseReason> {
        let mut link = Link::new(now);
        let attempts =
            hello.held.iter().map(|held| (Attempt::new(held.job, held.attempt), Phase::Held)).collect();
        let versions = hello.versions;
        let calls = calls::OpenCalls::new(hello.calls.map_or(0, |calls| calls.max));
        let max_jobs = hello.max_jobs.min(MAX_JOBS) as usize;
        link.send(ToHub::from(hello).encode())?;
        Ok(Self {
            link,
            state: State::AwaitWelcome { until: now + HANDSHAKE },
            versions,
            attempts,
            declined: Recent::new(),
            unacked_bytes: 0,
            unacked: 0,
            sent_events: SentEvents::default(),
            calls,
            triggers: None,
            max_jobs,
            draining: None,
            events: VecDeque::new(),
        })
    }

    /// Takes a received frame. Afterwards look at frames, events and [`Self::closed`].
    pub fn handle_frame(&mut self, frame: Frame, now: Instant) {
        if self.closed().is_some() {
            return;
        }
        self.link.heard(now);
        if let Frame::Text(text) = frame {
            let done = match decode_to_agent(&text).map_err(Undecoded::from) {
                Ok(message) => self.handle_message(message, now),
                Err(Undecoded::Fatal(reason)) => Err(reason),
                Err(Undecoded::Unsupported(of)) => {
                    self.events.push_back(AgentEvent::Unsupported(of.clone()));
                    self.link.send(ToHub::from(Unsupported { of }).encode())
                }
            };
            self.close_on(done.and_then(|()| check_events(self.events.len())));
        }
    }

    /// Does what is due at `now`: heartbeats, re-sending, noticing a dead hub.
    pub fn handle_timeout(&mut self, now: Instant) {
        // What still waits to be sent is not sent again.
        let clear = self.link.queued() == 0;
        let done = match &self.state {
            State::Closed(_) => return,
            State::AwaitWelcome { until } if now >= *until => Err(CloseReason::HandshakeTimeout),
            State::AwaitWelcome { .. } | State::Open => self.link.handle_timeout(now),
        };
        self.close_on(done);
        if !self.is_open() {
            return;
        }
        let mut again = Vec::new();
        for phase in self.attempts.values_mut() {
            match phase {
                Phase::Asking { commit, resend } => {
                    if resend.due(now, RESEND) && clear {
                        again.push(ToHub::from(commit.clone()).encode());
                    }
                }
                Phase::Reported { text, resend } => {
                    if resend.due(now, RESEND) && clear {
                        again.push(Ok(text.clone()));
                    }
                }
                Phase::Offered { .. } | Phase::Held => {}
            }
        }
        let events = self.sent_events.due(now);
        again.extend(events.into_iter().filter(|_| clear).map(Ok));
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
            State::AwaitWelcome { until } => self.link.timeout().min(*until),
            State::Open => self.link.timeout(),
        };
        let resends = self.attempts.values().filter_map(|phase| match phase {
            Phase::Asking { resend, .. } | Phase::Reported { resend, .. } if self.is_open() => {
                Some(resend.at())
            }
            Phase::Offered { .. } | Phase::Held | Phase::Asking { .. } | Phase::Reported { .. } => None,
        });
        let events = self.sent_events.next().filter(|_| self.is_open());
        Some(resends.chain(events).fold(base, Instant::min))
    }

    /// The next frame to send.
    pub fn poll_frame(&mut self) -> Option<Frame> {
        self.link.pop()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<AgentEvent> {
        self.events.pop_front()
    }

    /// Why the session ended, once it has.
    #[must_use]
    pub fn closed(&self) -> Option<&CloseReason> {
        match &self.state {
            State::Closed(reason) => Some(reason),
            State::AwaitWelcome { .. } | State::Open => None,
        }
    }

    /// Whether the hub has welcomed us and the session has not ended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Says that an offered attempt is in the journal.
    pub fn accept(&mut self, attempt: Attempt) {
        if matches!(self.attempts.get(&attempt), Some(Phase::Offered { .. })) {
            self.attempts.insert(attempt, Phase::Held);
            self.send(Accept { job: attempt.job, attempt: attempt.number });
        }
    }

    /// Says that an offered attempt was not taken. The same offer coming again gets the same answer; the hub may
    /// offer the attempt again under a new ticket.
    pub fn decline(&mut self, mut decline: Decline) {
        let attempt = Attempt::new(decline.job, decline.attempt);
        if let Some(Phase::Offered { ticket }) = self.attempts.get(&attempt) {
            cut_message(&mut decline.message);
            self.declined.insert(attempt, (*ticket, decline.clone()));
            self.attempts.remove(&attempt);
            self.send(decline);
        }
    }

    /// Tells how far an attempt is. Lost without harm, so it is not even sent while much else waits.
    pub fn progress(&mut self, progress: Progress) {
        let attempt = Attempt::new(progress.job, progress.attempt);
        if self.link.queued() < PROGRESS_BEHIND
            && matches!(self.attempts.get(&attempt), Some(Phase::Held | Phase::Asking { .. }))
        {
            self.send(progress);
        }
    }

    /// Asks for the right to the final effect; [`AgentEvent::CommitGranted`] answers. Before the welcome it waits.
    pub fn commit(&mut self, attempt: Attempt, intent: Intent, now: Instant) {
        if matches!(self.attempts.get(&attempt), Some(Phase::Held)) {
            let commit = Commit { job: attempt.job, attempt: attempt.number, intent };
            let resend = Resend::after(now, RESEND);
            self.attempts.insert(attempt, Phase::Asking { commit: commit.clone(), resend });
            self.send(commit);
        }
    }

    /// Whether another report may be sent now; if not, wait for a [`AgentEvent::ReportAcked`].
    #[must_use]
    pub fn can_report(&self) -> bool {
        self.is_open()
            && self.unacked < MAX_UNACKED_REPORTS
            && (self.unacked == 0 || self.unacked_bytes < MAX_UNACKED_REPORT_BYTES)
    }

    /// Sends a report, again and again until it is acknowledged. Does nothing unless [`Self::can_report`].
    /// The attempt need not be known here: the journal decides what is reported.
    ///
    /// # Errors
    /// If the report breaks a limit; nothing was sent and the session goes on: report a failure in its place.
    pub fn report(&mut self, report: &Report, now: Instant) -> Result<(), CloseReason> {
        let attempt = Attempt::new(report.job, report.attempt);
        if !self.can_report() || matches!(self.attempts.get(&attempt), Some(Phase::Reported { .. })) {
            return Ok(());
        }
        let text = ToHub::from(report.clone()).encode().map_err(|e| CloseReason::Local(e.to_string()))?;
        self.unacked += 1;
        self.unacked_bytes += text.len();
        let resend = Resend::after(now, RESEND);
        self.attempts.insert(attempt, Phase::Reported { text: text.clone(), resend });
        let done = self.link.send(Ok(text));
        self.close_on(done);
        Ok(())
    }

    /// Whether another event may be sent now; if not, wait for its answer to one.
    #[must_use]
    pub fn can_send_event(&self) -> bool {
        self.is_open() && self.sent_events.has_room()
    }

    /// Sends an event, again and again until it is acknowledged or refused. Does nothing unless [`Self::can_send_event`],
    /// nor for one that waits for its answer.
    ///
    /// # Errors
    /// If the event breaks a limit; nothing was sent and the session goes on.
    pub fn send_event(&mut self, event: &Event, now: Instant) -> Result<(), CloseReason> {
        if !self.can_send_event() || self.sent_events.contains(event.id) {
            return Ok(());
        }
        let text = ToHub::from(event.clone()).encode().map_err(|e| CloseReason::Local(e.to_string()))?;
        self.sent_events.insert(event.id, text.clone(), now);
        let done = self.link.send(Ok(text));
        self.close_on(done);
        Ok(())
    }

    /// Tells how far a trigger has read its change feed. Lost without harm: a lease that does not name the cursor asks for
    /// it again.
    pub fn tell_cursor(&mut self, cursor: TriggerCursor) {
        if self.is_open() && self.link.queued() < PROGRESS_BEHIND {
            self.send(cursor);
        }
    }

    /// How many events wait for their answer.
    #[must_use]
    pub fn unacked_events(&self) -> usize {
        self.sent_events.len()
    }

    /// Tells the hub to offer nothing more, at once or right after its welcome. Offers that crossed on the wire
    /// still come as events: decline them.
    pub fn drain(&mut self, grace_s: u32) {
        if self.draining.is_none() {
            self.draining = Some(grace_s);
            self.send(Draining { grace_s });
        }
    }

    /// How many reports wait for their acknowledgement.
    #[must_use]
    pub fn unacked(&self) -> usize {
        self.unacked
    }

    fn send(&mut self, message: impl Into<ToHub>) {
        if self.is_open() {
            let done = self.link.send(message.into().encode());
            self.close_on(done);
        }
    }

    /// What the owner said before the welcome.
    fn send_what_waited(&mut self, now: Instant) {
        if let Some(grace_s) = self.draining {
            self.send(Draining { grace_s });
        }
        let mut asking = Vec::new();
        for phase in self.attempts.values_mut() {
            if let Phase::Asking { commit, resend } = phase {
                *resend = Resend::after(now, RESEND);
                asking.push(commit.clone());
            }
        }
        for commit in asking {
            self.send(commit);
        }
    }

    fn close_on(&mut self, done: Result<(), CloseReason>) {
        if let (Err(reason), None) = (done, self.closed()) {
            self.state = State::Closed(reason);
        }
    }
}
