//! A model of what owns an [`AgentSession`]: journal, dispatch, runner and reporter.

use super::{hello, name, network::Rng, report, success};
use crate::{
    CallDeclined, CallResult, Code, Decline, Effect, Event, EventId, Failure, HeldAction, HeldJob, HeldState,
    Intent, JobId, Offer, Outcome, Progress, Verdict,
    session::{AgentEvent, AgentSession, Attempt},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

pub(super) const RESOURCES: [&str; 3] = ["compta", "orders-app", "crm"];

/// How an attempt runs; travels as the last word of the model's envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// Acts at once.
    Free,
    /// Asks before its effect.
    Ask,
    /// Ends on a cancel alone.
    Endless,
}

#[derive(Debug, Clone, PartialEq)]
enum Stage {
    Accepted,
    Running,
    Committing,
    Finished(Outcome),
}

#[derive(Debug)]
struct Entry {
    resource: String,
    run: Run,
    stage: Stage,
}

/// Something the agent does later.
#[derive(Debug, Clone)]
pub(super) enum AgentTask {
    Decide { connection: u64, attempt: Attempt },
    Start { process: u32, attempt: Attempt },
    End { process: u32, attempt: Attempt },
    EndCall { connection: u64, call: JobId },
}

#[derive(Default)]
pub(super) struct AgentOwner {
    pub(super) session: Option<(u64, AgentSession)>,
    pub(super) todo: Vec<(Duration, AgentTask)>,
    max_jobs: u32,
    max_concurrent: u32,
    pub(super) draining: bool,
    /// The longest the agent takes to answer an offer, and a job to run.
    pub(super) slow: Duration,
    /// Whether offers past the announced credit would be the hub's fault.
    pub(super) orderly: bool,
    /// Survives a crash, and so do the numbers after it.
    journal: BTreeMap<Attempt, Entry>,
    highest: BTreeMap<JobId, u32>,
    pub(super) accepted: BTreeSet<Attempt>,
    pub(super) started: BTreeMap<Attempt, u32>,
    pub(super) applied: BTreeMap<JobId, u32>,
    pub(super) acked: BTreeMap<Attempt, u32>,
    process: u32,
    /// Calls that were begun, ever, and those that took effect.
    pub(super) called: BTreeSet<JobId>,
    pub(super) call_effects: BTreeMap<JobId, u32>,
    running_calls: BTreeSet<JobId>,
    pending: BTreeMap<Attempt, (Offer, bool)>,
    reported: BTreeSet<Attempt>,
    /// The spool: survives a crash, in the order of the trigger.
    pub(super) spool: BTreeMap<u32, Event>,
    seen: u32,
    /// Those that the hub said it had already.
    pub(super) duplicates: u32,
    sent_events: BTreeSet<u32>,
    /// The lease, if the hub gave one in this session.
    lease: Option<u64>,
}

impl AgentOwner {
    pub(super) fn new(max_jobs: u32, max_concurrent: u32) -> Self {
        Self { max_jobs, max_concurrent, ..Self::default() }
    }

    pub(super) fn idle(&self) -> bool {
        self.journal.is_empty() && self.pending.is_empty() && self.spool.is_empty()
    }

    pub(super) fn connect(&mut self, connection: u64, now: Instant) {
        let limits: Vec<(&str, u32)> = RESOURCES.iter().map(|r| (*r, self.max_concurrent)).collect();
        let mut hello = hello(self.max_jobs, &limits);
        hello.held = self.journal.iter().map(|(attempt, entry)| held(*attempt, entry)).collect();
        let mut session = AgentSession::new(hello, now).unwrap();
        if self.draining {
            session.drain(30);
        }
        for (attempt, entry) in &self.journal {
            if entry.stage == Stage::Committing {
                session.commit(*attempt, intent(), now);
            }
        }
        self.running_calls.clear();
        self.pending.clear();
        self.reported.clear();
        self.sent_events.clear();
        self.lease = None;
        self.session = Some((connection, session));
    }

    pub(super) fn crash(&mut self, rng: &mut Rng) {
        self.session = None;
        self.pending.clear();
        self.process += 1;
        let process = self.process;
        for (attempt, entry) in &self.journal {
            let attempt = *attempt;
            let task = match entry.stage {
                Stage::Accepted => AgentTask::Start { process, attempt },
                Stage::Running if entry.run == Run::Endless => continue,
                Stage::Running => AgentTask::End { process, attempt },
                Stage::Committing | Stage::Finished(_) => continue,
            };
            self.todo.push((rng.up_to(self.slow), task));
        }
    }

    /// A file arrives at a resource: the trigger writes its event to the spool.
    pub(super) fn see(&mut self, now: Instant) {
        self.seen += 1;
        self.spool.insert(self.seen, super::event(self.seen));
        self.flush(now);
    }

    /// The ids of all files that arrived.
    pub(super) fn files(&self) -> BTreeSet<EventId> {
        (1..=self.seen).map(|number| super::event(number).id).collect()
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
        if let Some((_, session)) = &mut self.session {
            session.drain(30);
        }
    }

    pub(super) fn handle_event(&mut self, event: AgentEvent, rng: &mut Rng, now: Instant) {
        match event {
            AgentEvent::Welcomed(welcome) => {
                assert!(welcome.held.iter().all(|held| held.action == HeldAction::Keep));
                assert_eq!(welcome.held.len(), self.journal.len());
            }
            AgentEvent::Offered(offer) => {
                let attempt = Attempt::new(offer.job, offer.attempt);
                let twice = self.pending.insert(attempt, (offer, false)).is_some();
                assert!(!twice && !self.journal.contains_key(&attempt), "{attempt:?} came twice");
                if self.orderly {
                    let used = self.journal.len() + self.pending.len();
                    assert!(used <= self.max_jobs as usize, "offered past the credit");
                }
                let connection = self.session.as_ref().unwrap().0;
                self.todo.push((rng.up_to(self.slow), AgentTask::Decide { connection, attempt }));
            }
            AgentEvent::CancelRequested(attempt) => {
                if let Some((_, cancelled)) = self.pending.get_mut(&attempt) {
                    *cancelled = true;
                } else if let Some(entry) = self.journal.get_mut(&attempt)
                    && !matches!(entry.stage, Stage::Finished(_))
                {
                    entry.stage = Stage::Finished(cancelled());
                }
            }
            AgentEvent::CommitGranted(attempt) => {
                if self.journal.get(&attempt).is_some_and(|entry| entry.stage == Stage::Committing) {
                    self.end(attempt, rng);
                }
            }
            AgentEvent::ReportAcked(attempt) => {
                let entry = self.journal.remove(&attempt).expect("acknowledged twice");
                assert!(matches!(entry.stage, Stage::Finished(_)));
                *self.acked.entry(attempt).or_default() += 1;
            }
            AgentEvent::EventAcked(ack) => {
                self.duplicates += u32::from(ack.duplicate);
                let number = self.numbered(ack.id);
                self.spool.remove(&number).expect("acknowledged twice");
                self.sent_events.remove(&number);
            }
            AgentEvent::EventRefused(refused) => {
                assert!(refused.retry_after_ms.is_some(), "refused for good");
                let number = self.numbered(refused.id);
                self.sent_events.remove(&number);
            }
            AgentEvent::Triggers(leases) => {
                let lease = leases.first().map(|lease| lease.lease);
                assert!(self.lease <= lease, "an older list of triggers was believed");
                self.lease = lease;
            }
            AgentEvent::Called(call) => {
                assert!(self.called.insert(call.call), "{} was begun twice", call.call);
                let (connection, session) = self.session.as_mut().unwrap();
                assert!(session.open_calls() <= self.max_jobs as usize, "more calls than announced");
                if self.draining || rng.percent(20) {
                    self.called.remove(&call.call);
                    session.decline_call(CallDeclined {
                        call: call.call,
                        code: Code::Busy,
                        message: "not now".to_owned(),
                        retry_after_ms: None,
                    });
                } else {
                    self.running_calls.insert(call.call);
                    let task = AgentTask::EndCall { connection: *connection, call: call.call };
                    self.todo.push((rng.up_to(self.slow), task));
                }
            }
            AgentEvent::CallCancelled(call) => {
                if self.running_calls.remove(&call) {
                    let (_, session) = self.session.as_mut().unwrap();
                    session.end_call(call_result(call, cancelled())).unwrap();
                }
            }
            AgentEvent::HubKeys(_) | AgentEvent::Refused(_) | AgentEvent::Unsupported(_) => {
                panic!("{event:?}")
            }
        }
        self.flush(now);
    }

    pub(super) fn run(&mut self, task: AgentTask, rng: &mut Rng, now: Instant) {
        match task {
            AgentTask::Decide { connection, attempt } => {
                if self.session.as_ref().is_some_and(|(current, _)| *current == connection)
                    && let Some((offer, cancelled)) = self.pending.remove(&attempt)
                {
                    self.decide(offer, cancelled, rng);
                }
            }
            AgentTask::Start { process, attempt } if process == self.process => {
                if let Some(entry) = self.journal.get_mut(&attempt)
                    && entry.stage == Stage::Accepted
                {
                    entry.stage = Stage::Running;
                    *self.started.entry(attempt).or_default() += 1;
                    if let Some((_, session)) = &mut self.session {
                        session.progress(progress(attempt));
                    }
                    if entry.run != Run::Endless {
                        self.todo.push((rng.up_to(self.slow), AgentTask::End { process, attempt }));
                    }
                }
            }
            AgentTask::End { process, attempt } if process == self.process => {
                if let Some(entry) = self.journal.get_mut(&attempt)
                    && entry.stage == Stage::Running
                {
                    if entry.run == Run::Ask {
                        entry.stage = Stage::Committing;
                        if let Some((_, session)) = &mut self.session {
                            session.commit(attempt, intent(), now);
                        }
                    } else {
                        self.end(attempt, rng);
                    }
                }
            }
            AgentTask::EndCall { connection, call } => {
                if let Some((_, session)) =
                    self.session.as_mut().filter(|(current, _)| *current == connection)
                    && self.running_calls.remove(&call)
                {
                    *self.call_effects.entry(call).or_default() += 1;
                    session.end_call(call_result(call, success())).unwrap();
                }
            }
            AgentTask::Start { .. } | AgentTask::End { .. } => {}
        }
        self.flush(now);
    }

    fn decide(&mut self, offer: Offer, cancel: bool, rng: &mut Rng) {
        let attempt = Attempt::new(offer.job, offer.attempt);
        let (resource, run) = offer.envelope.split_once(' ').unwrap();
        let resource = resource.to_owned();
        let run = [Run::Free, Run::Ask, Run::Endless].into_iter().find(|r| format!("{r:?}") == run).unwrap();
        let at_resource = self.journal.values().filter(|entry| entry.resource == resource).count();
        let full =
            self.journal.len() >= self.max_jobs as usize || at_resource >= self.max_concurrent as usize;
        assert!(!(full && self.orderly), "offered past the credit");
        let code = if self.highest.get(&offer.job).is_some_and(|seen| *seen >= offer.attempt) {
            Some(Code::Replayed)
        } else if self.draining || full || rng.percent(10) {
            Some(Code::Busy)
        } else {
            None
        };
        let (_, session) = self.session.as_mut().unwrap();
        if let Some(code) = code {
            let (job, attempt) = (offer.job, offer.attempt);
            let message = "not now".to_owned();
            return session.decline(Decline { job, attempt, code, message, retry_after_ms: None });
        }
        assert!(!self.draining, "a job was accepted while draining");
        self.highest.insert(offer.job, offer.attempt);
        self.accepted.insert(attempt);
        let stage = if cancel { Stage::Finished(cancelled()) } else { Stage::Accepted };
        self.journal.insert(attempt, Entry { resource, run, stage });
        session.accept(attempt);
        self.todo.push((rng.up_to(self.slow), AgentTask::Start { process: self.process, attempt }));
    }

    /// The effect happens, or fails for certain.
    fn end(&mut self, attempt: Attempt, rng: &mut Rng) {
        let outcome = if rng.percent(20) {
            Outcome::Failed(Failure::new(
                Verdict::Retry,
                Effect::NotApplied,
                Code::TargetUnreachable,
                "no route",
            ))
        } else {
            *self.applied.entry(attempt.job).or_default() += 1;
            success()
        };
        self.journal.get_mut(&attempt).unwrap().stage = Stage::Finished(outcome);
    }

    fn numbered(&self, id: EventId) -> u32 {
        *self.spool.iter().find(|(_, event)| event.id == id).expect("an event of the spool").0
    }

    /// The reporter: sends from the journal what has not been sent in this session.
    fn flush(&mut self, now: Instant) {
        let Some((_, session)) = &mut self.session else { return };
        for (attempt, entry) in &self.journal {
            if let Stage::Finished(outcome) = &entry.stage
                && session.can_report()
                && self.reported.insert(*attempt)
            {
                session.report(&report(*attempt, outcome.clone()), now).unwrap();
            }
        }
        for (number, event) in &self.spool {
            if self.lease.is_some() && session.can_send_event() && self.sent_events.insert(*number) {
                session.send_event(event, now).unwrap();
            }
        }
    }
}

fn call_result(call: JobId, outcome: Outcome) -> CallResult {
    CallResult { call, outcome, started_at: None, finished_at: jiff::Timestamp::UNIX_EPOCH }
}

fn held(attempt: Attempt, entry: &Entry) -> HeldJob {
    let state = match entry.stage {
        Stage::Accepted => HeldState::Accepted,
        Stage::Running | Stage::Committing => HeldState::Running,
        Stage::Finished(_) => HeldState::Finished,
    };
    HeldJob { job: attempt.job, attempt: attempt.number, resource: name(&entry.resource), state }
}

fn cancelled() -> Outcome {
    Outcome::Failed(Failure::new(
        Verdict::Cancelled,
        Effect::NotApplied,
        Code::Cancelled,
        "cancelled on request",
    ))
}

fn intent() -> Intent {
    Intent { part: None, target: Some("FEC.txt".to_owned()), size: Some(3), sha256: None, state: None }
}

fn progress(attempt: Attempt) -> Progress {
    Progress {
        job: attempt.job,
        attempt: attempt.number,
        started_at: jiff::Timestamp::UNIX_EPOCH,
        bytes_done: 0,
        bytes_total: None,
    }
}
