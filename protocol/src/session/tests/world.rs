//! One agent, one hub, a faulty network between them, and time that only the test moves.

use super::{
    agent_owner::{AgentOwner, AgentTask, Run},
    hub_owner::{HubOwner, HubTask},
    network::{Faults, Network, Parcel, Rng, Side},
    start,
};
use crate::{
    limits::{MAX_UNACKED_EVENTS, MAX_UNACKED_REPORTS},
    session::{Frame, HubSession},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Something that happens to the world.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    Submit {
        resource: usize,
        run: Run,
        count: usize,
    },
    Cancel {
        index: usize,
    },
    /// Somebody waits for an operation, so often.
    Calls {
        count: usize,
    },
    /// So many files arrive.
    Files {
        count: usize,
    },
    /// The connection breaks and both ends learn of it.
    Cut,
    /// The connection swallows everything and nobody is told.
    Dark,
    CrashAgent,
    CrashHub,
    /// The agent drains, and is back some time later.
    Drain,
    /// One side cannot send for a while.
    Stall {
        agent: bool,
        seconds: u64,
    },
}

#[derive(Debug)]
enum Action {
    Deliver { connection: u64, to: Side, parcel: Parcel },
    Agent(AgentTask),
    Hub(HubTask),
    Dial,
    Happen(Happening),
    Undrain,
    Unstall,
    MustBeGone { connection: u64 },
    FaultsEnd,
}

pub(super) struct World {
    pub(super) agent: AgentOwner,
    pub(super) hub: HubOwner,
    now: Instant,
    rng: Rng,
    network: Network,
    agenda: BTreeMap<(Instant, u64), Action>,
    planned: u64,
    connection: u64,
    stalled: [Option<Instant>; 2],
    dialling: bool,
}

const FAULTY: Duration = Duration::from_secs(150);
const SETTLE: Duration = Duration::from_secs(240);

impl World {
    pub(super) fn new(seed: u64, faults: Faults, max_jobs: u32, max_concurrent: u32) -> Self {
        let mut agent = AgentOwner::new(max_jobs, max_concurrent);
        agent.slow = faults.slow;
        agent.orderly = faults.orderly();
        let mut hub = HubOwner::new(max_jobs, max_concurrent);
        hub.slow = faults.slow;
        hub.failing = faults.loss / 2;
        hub.orderly = faults.orderly();
        let mut world = Self {
            agent,
            hub,
            now: start(),
            rng: Rng(seed),
            network: Network::new(faults),
            agenda: BTreeMap::new(),
            planned: 0,
            connection: 0,
            stalled: [None; 2],
            dialling: false,
        };
        world.plan(Duration::ZERO, Action::Dial);
        world.plan(FAULTY, Action::FaultsEnd);
        world
    }

    pub(super) fn schedule(&mut self, after: Duration, happening: Happening) {
        self.plan(after, Action::Happen(happening));
    }

    /// Runs through the faulty time and on until everything is settled.
    pub(super) fn run(&mut self) {
        let limit = self.now + FAULTY + SETTLE;
        let faults_end = self.now + FAULTY;
        loop {
            let next = self.next();
            if next > faults_end && self.hub.settled() && self.agent.idle() {
                return;
            }
            assert!(next <= limit, "not settled: {:?}", self.hub.jobs);
            self.step(next);
        }
    }

    fn next(&self) -> Instant {
        let agent = self.agent.session.as_ref().and_then(|(_, session)| session.poll_timeout());
        let hub = self.hub.session.as_ref().and_then(|(_, session)| session.poll_timeout());
        let agenda = self.agenda.first_key_value().map(|((at, _), _)| *at);
        // A session without a timeout would wait for ever for a peer that is gone.
        [agent, hub, agenda].into_iter().flatten().min().expect("somebody waits for something").max(self.now)
    }

    fn plan(&mut self, after: Duration, action: Action) {
        self.planned += 1;
        self.agenda.insert((self.now + after, self.planned), action);
    }

    fn step(&mut self, next: Instant) {
        self.now = next;
        if self.agenda.first_key_value().is_some_and(|((at, _), _)| *at <= next) {
            let (_, action) = self.agenda.pop_first().unwrap();
            self.act(action);
        } else {
            if let Some((_, session)) = &mut self.agent.session {
                session.handle_timeout(next);
                assert!(session.poll_timeout().is_none_or(|at| at > next), "the agent's clock stands still");
            }
            if let Some((_, session)) = &mut self.hub.session {
                session.handle_timeout(next);
                assert!(session.poll_timeout().is_none_or(|at| at > next), "the hub's clock stands still");
            }
        }
        self.pump();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Deliver { connection, to, parcel } => self.deliver(connection, to, parcel),
            Action::Agent(task) => self.agent.run(task, &mut self.rng, self.now),
            Action::Hub(task) => self.hub.run(task, &mut self.rng),
            Action::Dial => {
                self.dialling = false;
                self.connection += 1;
                self.agent.connect(self.connection, self.now);
                self.send(self.connection, Side::Hub, Parcel::Connect);
            }
            Action::Happen(happening) => self.happen(happening),
            Action::Undrain => {
                // A drained agent leaves and comes back as a new process.
                if std::mem::take(&mut self.agent.draining) {
                    self.agent.crash(&mut self.rng);
                }
            }
            Action::Unstall => {}
            Action::MustBeGone { connection } => {
                assert!(self.agent.session.as_ref().is_none_or(|(c, _)| *c > connection), "agent kept it");
                assert!(self.hub.session.as_ref().is_none_or(|(c, _)| *c > connection), "hub kept it");
            }
            Action::FaultsEnd => {
                self.network.faults = Faults::NONE;
                self.agent.slow = Faults::NONE.slow;
                self.hub.slow = Faults::NONE.slow;
                self.hub.failing = 0;
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Submit { resource, run, count } => {
                for _ in 0..count {
                    self.hub.submit(resource, run);
                    if run == Run::Endless {
                        let index = self.hub.jobs.len() - 1;
                        self.plan(Duration::from_secs(10), Action::Happen(Happening::Cancel { index }));
                    }
                }
            }
            Happening::Cancel { index } => self.hub.cancel(index, self.now),
            Happening::Calls { count } => (0..count).for_each(|_| self.hub.call(self.now)),
            Happening::Files { count } => (0..count).for_each(|_| self.agent.see(self.now)),
            Happening::Cut => {
                self.network.dark = self.connection;
                self.agent.session = None;
                self.hub.session = None;
            }
            Happening::Dark => {
                self.network.dark = self.connection;
                let connection = self.connection;
                self.plan(Duration::from_secs(30), Action::MustBeGone { connection });
            }
            Happening::CrashAgent => self.agent.crash(&mut self.rng),
            Happening::CrashHub => self.hub.crash(),
            Happening::Drain => {
                if !self.agent.draining {
                    self.agent.drain();
                    self.plan(Duration::from_secs(20), Action::Undrain);
                }
            }
            Happening::Stall { agent, seconds } => {
                let side = if agent { Side::Agent } else { Side::Hub };
                let time = Duration::from_secs(seconds);
                self.stalled[side as usize] = Some(self.now + time);
                self.plan(time, Action::Unstall);
            }
        }
    }

    fn deliver(&mut self, connection: u64, to: Side, parcel: Parcel) {
        if connection <= self.network.dark {
            return;
        }
        match (to, parcel) {
            (Side::Hub, Parcel::Connect) => {
                // A newer connection fences the older one.
                if self.hub.session.as_ref().is_none_or(|(current, _)| *current < connection) {
                    self.hub.session = Some((connection, HubSession::new(self.now)));
                }
            }
            (Side::Agent, Parcel::Connect) => unreachable!("the hub never dials"),
            (Side::Agent, Parcel::Close) => {
                self.agent.session.take_if(|(current, _)| *current == connection);
            }
            (Side::Hub, Parcel::Close) => {
                self.hub.session.take_if(|(current, _)| *current == connection);
            }
            (side, Parcel::Frame(frame)) => {
                let pong = frame == Frame::Ping;
                let heard = match side {
                    Side::Agent => match &mut self.agent.session {
                        Some((current, session)) if *current == connection => {
                            session.handle_frame(frame, self.now);
                            true
                        }
                        Some(_) | None => false,
                    },
                    Side::Hub => match &mut self.hub.session {
                        Some((current, session)) if *current == connection => {
                            session.handle_frame(frame, self.now);
                            true
                        }
                        Some(_) | None => false,
                    },
                };
                if pong && heard {
                    self.send(connection, side.other(), Parcel::Frame(Frame::Pong));
                }
            }
        }
    }

    fn send(&mut self, connection: u64, to: Side, parcel: Parcel) {
        for at in self.network.ways(&mut self.rng, connection, to, self.now) {
            let parcel = parcel.clone();
            self.planned += 1;
            self.agenda.insert((at, self.planned), Action::Deliver { connection, to, parcel });
        }
    }

    /// Lets both owners act on what the sessions say, and the network carry what they send.
    fn pump(&mut self) {
        while let Some(event) = self.agent.session.as_mut().and_then(|(_, session)| session.poll_event()) {
            self.agent.handle_event(event, &mut self.rng, self.now);
        }
        while let Some(event) = self.hub.session.as_mut().and_then(|(_, session)| session.poll_event()) {
            self.hub.handle_event(event, &mut self.rng, self.now);
        }
        self.hub.dispatch(self.now);
        for (after, task) in std::mem::take(&mut self.agent.todo) {
            self.plan(after, Action::Agent(task));
        }
        for (after, task) in std::mem::take(&mut self.hub.todo) {
            self.plan(after, Action::Hub(task));
        }
        for side in [Side::Agent, Side::Hub] {
            if self.stalled[side as usize].is_none_or(|until| until <= self.now) {
                self.carry(side);
            }
        }
        if let Some((connection, session)) = &self.agent.session {
            assert!(session.unacked() <= MAX_UNACKED_REPORTS);
            assert!(session.unacked_events() <= MAX_UNACKED_EVENTS);
            if session.closed().is_some() {
                let connection = *connection;
                self.agent.session = None;
                self.send(connection, Side::Hub, Parcel::Close);
            }
        }
        if let Some((connection, session)) = &self.hub.session
            && session.closed().is_some()
        {
            let connection = *connection;
            self.hub.session = None;
            self.send(connection, Side::Agent, Parcel::Close);
        }
        if self.agent.session.is_none() && !self.dialling {
            self.dialling = true;
            let wait = self.rng.up_to(Duration::from_secs(3));
            self.plan(wait, Action::Dial);
        }
    }

    fn carry(&mut self, from: Side) {
        let mut sent = 0;
        loop {
            let frame = match from {
                Side::Agent => self.agent.session.as_mut().and_then(|(c, s)| Some((*c, s.poll_frame()?))),
                Side::Hub => self.hub.session.as_mut().and_then(|(c, s)| Some((*c, s.poll_frame()?))),
            };
            let Some((connection, frame)) = frame else { break };
            self.send(connection, from.other(), Parcel::Frame(frame));
            sent += 1;
        }
        assert!(sent < 400, "{sent} frames piled up at the {from:?}");
    }
}
