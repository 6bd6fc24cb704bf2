//! A model of what owns a [`HubSession`]: the job store, its dispatcher and its reconciliation.

use super::{
    agent_owner::{RESOURCES, Run},
    lease, name,
    network::Rng,
    offer, welcome,
};
use crate::{
    Call, Code, Event, EventId, EventRefused, Held, HeldAction, Hello, JobId, Outcome, Report, Verdict,
    session::{Attempt, HubEvent, HubSession},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

const MAX_TRIES: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Queued,
    Offered,
    Accepted,
    Done,
}

#[derive(Debug)]
pub(super) struct Job {
    resource: &'static str,
    run: Run,
    attempt: u32,
    tries: u32,
    pub(super) state: State,
    cancel: bool,
}

impl Job {
    fn not_taken(&mut self, renumber: bool) {
        self.attempt += u32::from(renumber);
        self.state = if self.cancel { State::Done } else { State::Queued };
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallAnswer {
    Succeeded,
    Failed,
    Declined,
    Lost,
}

/// Something the hub does later. What is not stored yet when it crashes is lost.
#[derive(Debug, Clone)]
pub(super) enum HubTask {
    Store { process: u32, connection: u64, report: Report },
    Keep { process: u32, connection: u64, event: Box<Event> },
    Lease { process: u32, connection: u64 },
    Grant { process: u32, connection: u64, attempt: Attempt },
}

#[derive(Default)]
pub(super) struct HubOwner {
    pub(super) session: Option<(u64, HubSession)>,
    /// What each call was answered, if it was.
    pub(super) calls: BTreeMap<JobId, Option<CallAnswer>>,
    pub(super) todo: Vec<(Duration, HubTask)>,
    pub(super) slow: Duration,
    /// A store that takes one event after the other.
    pub(super) in_order: bool,
    /// How many writes of the store fail, in percent.
    pub(super) failing: u8,
    /// Whether the hub must know of every attempt that the agent holds.
    pub(super) orderly: bool,
    /// Whether an attempt that the agent never saw is offered under the next number, or again under its own.
    pub(super) renumber: bool,
    max_jobs: u32,
    max_concurrent: u32,
    /// The store: survives a crash.
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) reports: BTreeMap<Attempt, Outcome>,
    granted: BTreeSet<Attempt>,
    tickets: u64,
    /// The ids of the stored events, in the order of their storing.
    pub(super) events: Vec<EventId>,
    process: u32,
}

impl HubOwner {
    pub(super) fn new(max_jobs: u32, max_concurrent: u32) -> Self {
        Self { max_jobs, max_concurrent, ..Self::default() }
    }

    pub(super) fn submit(&mut self, resource: usize, run: Run) {
        let id = JobId::new(self.jobs.len() as u64, &[9; 10]);
        let resource = RESOURCES[resource % RESOURCES.len()];
        self.jobs
            .insert(id, Job { resource, run, attempt: 1, tries: 0, state: State::Queued, cancel: false });
    }

    pub(super) fn cancel(&mut self, index: usize, now: Instant) {
        let count = self.jobs.len().max(1);
        let Some((id, job)) = self.jobs.iter_mut().nth(index % count) else { return };
        job.cancel = true;
        match job.state {
            State::Queued => job.state = State::Done,
            State::Offered | State::Accepted => {
                if let Some((_, session)) = &mut self.session {
                    session.cancel(Attempt::new(*id, job.attempt), now);
                }
            }
            State::Done => {}
        }
    }

    /// Makes a call if there is credit, and cancels every other one at once.
    pub(super) fn call(&mut self, now: Instant) {
        let number = self.calls.len() as u64;
        let id = JobId::new(1_000_000 + number, &[8; 10]);
        let Some((_, session)) = &mut self.session else { return };
        let (credit, open) = (session.call_credit(), session.open_calls());
        let call = Call {
            call: id,
            envelope: "envelope".to_owned(),
            ticket: "ticket".to_owned(),
            payload: None,
            traceparent: None,
        };
        let sent = session.call(call, now + Duration::from_secs(60));
        assert_eq!(sent.is_ok(), credit > 0);
        if sent.is_ok() {
            assert!(open < self.max_jobs as usize, "called past the credit");
            self.calls.insert(id, None);
            if number.is_multiple_of(3) {
                session.cancel_call(id);
            }
        }
    }

    fn answered(&mut self, call: JobId, answer: CallAnswer) {
        let known = self.calls.get_mut(&call).expect("an answer to a call");
        assert_eq!(known.replace(answer), None, "{call} was answered twice");
    }

    pub(super) fn crash(&mut self) {
        self.session = None;
        self.process += 1;
    }

    pub(super) fn settled(&self) -> bool {
        self.jobs.values().all(|job| job.state == State::Done)
    }

    pub(super) fn handle_event(&mut self, event: HubEvent, rng: &mut Rng, now: Instant) {
        let connection = self.session.as_ref().unwrap().0;
        let process = self.process;
        match event {
            HubEvent::Hello(hello) => self.reconcile(&hello, now),
            HubEvent::Accepted(attempt) => {
                let job = self.jobs.get_mut(&attempt.job).unwrap();
                if job.attempt == attempt.number && job.state != State::Done {
                    job.state = State::Accepted;
                    if job.cancel {
                        self.session.as_mut().unwrap().1.cancel(attempt, now);
                    }
                }
            }
            HubEvent::Declined(decline) => {
                let job = self.jobs.get_mut(&decline.job).unwrap();
                if job.attempt == decline.attempt && job.state == State::Offered {
                    assert_eq!(decline.code, Code::Busy, "an attempt in progress was refused for good");
                    job.not_taken(true);
                }
            }
            HubEvent::CommitRequested(commit) => {
                let attempt = Attempt::new(commit.job, commit.attempt);
                if self.jobs[&commit.job].attempt == commit.attempt {
                    self.granted.insert(attempt);
                    self.todo.push((rng.up_to(self.slow), HubTask::Grant { process, connection, attempt }));
                }
            }
            HubEvent::Reported(report) => {
                self.todo.push((rng.up_to(self.slow), HubTask::Store { process, connection, report }));
            }
            HubEvent::Event(event) => {
                let wait = if self.in_order { self.slow } else { rng.up_to(self.slow) };
                self.todo.push((wait, HubTask::Keep { process, connection, event: Box::new(event) }));
            }
            HubEvent::CallEnded(result) => {
                let succeeded = matches!(result.outcome, Outcome::Succeeded { .. });
                let answer = if succeeded { CallAnswer::Succeeded } else { CallAnswer::Failed };
                self.answered(result.call, answer);
            }
            HubEvent::CallDeclined(declined) => {
                // A copy that came late tells nothing of the first.
                let replayed = declined.code == Code::Replayed;
                let answer = if replayed { CallAnswer::Lost } else { CallAnswer::Declined };
                self.answered(declined.call, answer);
            }
            HubEvent::CallLost(call) => self.answered(call, CallAnswer::Lost),
            HubEvent::Progress(_) | HubEvent::Draining | HubEvent::Cursor(_) => {}
            HubEvent::Unsupported(of) => panic!("unsupported {of}"),
        }
    }

    pub(super) fn run(&mut self, task: HubTask, rng: &mut Rng) {
        match task {
            // A store that fails says nothing: the report comes again.
            HubTask::Store { .. } if rng.percent(self.failing) => {}
            HubTask::Store { process, connection, report } if process == self.process => {
                let attempt = Attempt::new(report.job, report.attempt);
                self.store(attempt, report.outcome);
                if let Some((_, session)) = self.session.as_mut().filter(|(c, _)| *c == connection) {
                    session.ack_report(attempt);
                }
            }
            HubTask::Grant { process, connection, attempt } if process == self.process => {
                assert!(self.granted.contains(&attempt));
                if let Some((_, session)) = self.session.as_mut().filter(|(c, _)| *c == connection) {
                    session.grant_commit(attempt);
                }
            }
            HubTask::Keep { process, connection, event } if process == self.process => {
                let full = rng.percent(self.failing);
                let duplicate = self.events.contains(&event.id);
                if !full && !duplicate {
                    self.events.push(event.id);
                }
                let Some((_, session)) = self.session.as_mut().filter(|(c, _)| *c == connection) else {
                    return;
                };
                if full {
                    let (id, code, message) = (event.id, "quota".to_owned(), "full".to_owned());
                    session.refuse_event(EventRefused { id, code, message, retry_after_ms: Some(1000) });
                } else {
                    session.ack_event(event.id, duplicate);
                }
            }
            HubTask::Lease { process, connection } if process == self.process => {
                if let Some((_, session)) = self.session.as_mut().filter(|(c, _)| *c == connection) {
                    // Grows with each list, so that the model sees whether an older one is believed.
                    self.tickets += 1;
                    session.tell_triggers(vec![lease(self.tickets)]);
                    self.todo.push((Duration::from_secs(10), HubTask::Lease { process, connection }));
                }
            }
            HubTask::Store { .. } | HubTask::Grant { .. } | HubTask::Keep { .. } | HubTask::Lease { .. } => {}
        }
    }

    fn store(&mut self, attempt: Attempt, outcome: Outcome) {
        if let Some(before) = self.reports.get(&attempt) {
            assert_eq!(*before, outcome, "a second report of {attempt:?} says something else");
            return;
        }
        let job = self.jobs.get_mut(&attempt.job).unwrap();
        assert!(job.attempt == attempt.number && job.state != State::Done, "{attempt:?} was not in progress");
        assert!(job.state != State::Queued || !self.orderly, "{attempt:?} ran while the hub thought it free");
        let retry = matches!(&outcome, Outcome::Failed(failure) if failure.verdict == Verdict::Retry);
        job.tries += 1;
        if retry && !job.cancel && job.tries < MAX_TRIES {
            job.attempt += 1;
            job.state = State::Queued;
        } else {
            job.state = State::Done;
        }
        self.reports.insert(attempt, outcome);
    }

    fn reconcile(&mut self, hello: &Hello, now: Instant) {
        let held: BTreeSet<Attempt> = hello.held.iter().map(|h| Attempt::new(h.job, h.attempt)).collect();
        let mut answer = welcome();
        let mut cancel = Vec::new();
        for attempt in &held {
            let job = self.jobs.get_mut(&attempt.job).unwrap();
            let current = job.attempt == attempt.number && job.state != State::Done;
            assert!(current || self.reports.contains_key(attempt), "{attempt:?} is held but was given up");
            if current {
                job.state = State::Accepted;
                if job.cancel {
                    cancel.push(*attempt);
                }
            }
            answer.held.push(Held {
                job: attempt.job,
                attempt: attempt.number,
                action: HeldAction::Keep,
                granted: false,
            });
        }
        for (id, job) in &mut self.jobs {
            if held.contains(&Attempt::new(*id, job.attempt)) {
                continue;
            }
            assert!(job.state != State::Accepted, "the agent lost an attempt that it had accepted");
            if job.state == State::Offered {
                job.not_taken(self.renumber);
            }
        }
        let (connection, session) = self.session.as_mut().unwrap();
        self.todo.push((Duration::ZERO, HubTask::Lease { process: self.process, connection: *connection }));
        session.welcome(answer);
        for attempt in cancel {
            session.cancel(attempt, now);
        }
    }

    pub(super) fn dispatch(&mut self, now: Instant) {
        let Some((_, session)) = self.session.as_mut().filter(|(_, session)| session.credit() > 0) else {
            return;
        };
        for (id, job) in &mut self.jobs {
            let resource = name(job.resource);
            if job.state != State::Queued || session.credit_for(&resource) == 0 {
                continue;
            }
            assert!(session.attempts().count() < self.max_jobs as usize);
            self.tickets += 1;
            let mut offer = offer(Attempt::new(*id, job.attempt), &format!("ticket {}", self.tickets));
            offer.envelope = format!("{} {:?}", job.resource, job.run);
            session.offer(offer, resource, now).unwrap();
            job.state = State::Offered;
        }
        // The store's own count, apart from the session's.
        let busy = |resource: &str| {
            let of = |job: &&Job| matches!(job.state, State::Offered) && job.resource == resource;
            self.jobs.values().filter(of).count()
        };
        assert!(RESOURCES.iter().all(|resource| busy(resource) <= self.max_concurrent as usize));
        assert!(RESOURCES.iter().map(|resource| busy(resource)).sum::<usize>() <= self.max_jobs as usize);
    }
}
